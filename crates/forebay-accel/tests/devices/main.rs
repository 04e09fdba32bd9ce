//! Every built-in kernel on every device that this host has, against the CPU. PoCL and lavapipe stand
//! in for accelerators (`cargo xtask setup`); they are CPUs, and the paths to them are those to GPUs.
//!
//! Devices are looked for in one process of a test's own, so that their caches are in a folder that is
//! removed, and what a driver does to the process harms no other test.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test that fails stops, and says which devices it tried"
)]

mod binaries;

use std::process::Command;

use forebay_accel::backends::{self, Found};
use forebay_accel::device::{Backend, BuildError, Constant, Device, DeviceError};
use forebay_accel::kernel::{Kernel, Sources};
use forebay_accel::kernels::built_in;
use forebay_accel::kernels::sample::{Sample, Sizes};
use forebay_accel::task::{Grid, Launch, Scalar, Shape};

/// Says which part a process of ours is to play.
const PART: &str = "FOREBAY_TEST_DEVICES";

/// Runs one test of this file in a process of its own, where [`PART`] is set, and returns its output.
fn play(test: &str, variables: &[(&str, &str)]) -> String {
    let cache = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(PART, test)
        .env("POCL_CACHE_DIR", cache.path())
        .env("XDG_CACHE_HOME", cache.path())
        .env("NODEVICE_SELECT", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    // A name that no test has is no failure of the harness.
    let one = text.contains("1 passed");
    assert!(
        output.status.success() && one,
        "{test}: {}\n{text}",
        output.status
    );
    text
}

fn is_played(test: &str) -> bool {
    std::env::var(PART).is_ok_and(|part| part == test)
}

/// Shows what the played test says of itself; one that was skipped is then counted. The first line
/// follows the name of the test.
fn show(text: &str) {
    for line in text.lines() {
        for word in ["SKIPPED:", "device "] {
            if let Some(at) = line.find(word) {
                // On a line of its own: the harness may have begun one.
                println!("\n{}", &line[at..]);
                break;
            }
        }
    }
}

fn kernel(name: &str) -> Kernel {
    let mut kernels = built_in().into_iter();
    kernels.find(|kernel| kernel.name == name).unwrap()
}

/// Opens every device; says so if there is none.
fn devices(test: &str, backend: Backend) -> Vec<Box<dyn Device>> {
    let Found { devices, absent } = backends::find();
    let of_backend = devices.iter().filter(|info| info.backend == backend);
    let opened: Vec<_> = of_backend
        .map(|info| {
            println!("device {} is {} ({})", info.id, info.name, info.driver);
            assert!(
                info.memory_bytes > 0 && info.buffer_bytes_max > 0,
                "{info:?}"
            );
            let device = backends::open(&info.id).unwrap();
            assert_eq!(device.info(), info);
            device
        })
        .collect();
    if opened.is_empty() {
        println!("SKIPPED: {test}: no {backend} device: {absent:?}");
    }
    opened
}

fn launches(kernel: &Kernel, sample: &Sample) -> Vec<Launch> {
    let elements = sample.elements(&kernel.signature);
    let shape = Shape {
        elements: &elements,
        scalars: &sample.scalars,
        grid: Grid::line(1),
    };
    kernel.check(&shape).unwrap();
    kernel.launches(&shape)
}

fn run(
    device: &mut dyn Device,
    kernel: &Kernel,
    sample: &mut Sample,
    launches: &[Launch],
) -> Result<forebay_accel::device::Timing, DeviceError> {
    let scalars = sample.scalars.clone();
    let mut views = sample.views(&kernel.signature);
    device.run(kernel, &mut views, &[], &scalars, launches)
}

fn compare(device: &mut dyn Device, kernel: &Kernel, scale: u32, sizes: Sizes, seed: u64) {
    let mut on_cpu = Sample::of(kernel, scale, sizes, seed).unwrap();
    let mut on_device = on_cpu.clone();
    on_cpu.compute(kernel).unwrap();
    let launches = launches(kernel, &on_device);
    let place = format!(
        "{} on {} with {:?}, seed {seed}",
        kernel.name,
        device.info().id,
        on_device.scalars
    );
    let timing = run(device, kernel, &mut on_device, &launches);
    let timing = timing.unwrap_or_else(|error| panic!("{place}: {error}"));
    assert!(
        timing.compute.as_nanos() > 0 && timing.total() >= timing.compute,
        "{place}"
    );
    if let Err((buffer, difference)) = on_cpu.agrees(kernel, &on_device) {
        panic!("{place}: {buffer}: {difference}");
    }
}

/// All kernels that have a source for the device, with sizes of every kind.
fn try_all(device: &mut dyn Device) -> usize {
    let mut tried = 0;
    for kernel in built_in() {
        match device.build(&kernel) {
            Ok(()) => tried += 1,
            Err(BuildError::NoSource(_)) => continue,
            Err(error) => panic!("{} on {}: {error}", kernel.name, device.info().id),
        }
        let first = fastrand::u64(..);
        compare(device, &kernel, 1, Sizes::Round, first);
        for seed in 0..6 {
            compare(
                device,
                &kernel,
                3000,
                Sizes::Ragged,
                first.wrapping_add(seed),
            );
        }
        compare(device, &kernel, 150_000, Sizes::Ragged, first);
        compare(device, &kernel, 65_536, Sizes::Round, first);
    }
    tried
}

/// Every built-in kernel that has a source for such devices gives on each what it gives on the CPU.
fn computes_what_the_cpu_does(test: &str, backend: Backend, kernels: usize) {
    if !is_played(test) {
        return show(&play(test, &[]));
    }
    for mut device in devices(test, backend) {
        assert_eq!(try_all(device.as_mut()), kernels);
    }
}

#[test]
fn opencl_devices_compute_what_the_cpu_does() {
    const TEST: &str = "opencl_devices_compute_what_the_cpu_does";
    computes_what_the_cpu_does(TEST, Backend::Opencl, built_in().len());
}

#[test]
fn cuda_devices_compute_what_the_cpu_does() {
    const TEST: &str = "cuda_devices_compute_what_the_cpu_does";
    computes_what_the_cpu_does(TEST, Backend::Cuda, built_in().len());
}

#[test]
fn vulkan_devices_compute_what_the_cpu_does() {
    const TEST: &str = "vulkan_devices_compute_what_the_cpu_does";
    let kernels = built_in();
    let with_source = kernels.iter().filter(|one| one.sources.wgsl.is_some());
    let with_source = with_source.count();
    assert!(with_source >= 4);
    computes_what_the_cpu_does(TEST, Backend::Vulkan, with_source);
}

/// `add` with other sources.
fn with(sources: Sources) -> Kernel {
    Kernel {
        sources,
        ..kernel("add")
    }
}

fn opencl(source: &str) -> Kernel {
    with(Sources {
        opencl: Some(source.to_owned().into()),
        ..Sources::default()
    })
}

const SHIFTED: &str = "__kernel void add(__global const float *a, __global const float *b, \
     __global float *sum, uint count) { \
     size_t i = get_global_id(0); if (i < count) { sum[i] = a[i] + b[i] + 1; } }";

#[test]
fn what_an_opencl_device_cannot_do_is_an_answer() {
    const TEST: &str = "what_an_opencl_device_cannot_do_is_an_answer";
    if !is_played(TEST) {
        return show(&play(TEST, &[]));
    }
    for mut device in devices(TEST, Backend::Opencl) {
        let device = device.as_mut();
        let broken = device.build(&opencl("__kernel void add(float x) { y = nonsense; }"));
        let Err(BuildError::Compile(text)) = broken else {
            panic!("{broken:?}");
        };
        assert!(text.contains("nonsense"), "{text}");
        let nothing = device.build(&with(Sources::default()));
        assert_eq!(nothing, Err(BuildError::NoSource(Backend::Opencl)));
        let no_file = device.build(&with(Sources {
            opencl_binary: Some("/nonexistent/program.aocx".into()),
            ..Sources::default()
        }));
        assert!(
            matches!(&no_file, Err(BuildError::Failed(text)) if text.contains("program.aocx")),
            "{no_file:?}"
        );

        let kernel = opencl(SHIFTED);
        let mut sample = Sample::of(&kernel, 100, Sizes::Round, 1).unwrap();
        let sound = launches(&kernel, &sample);
        let mut fails = |launch: Launch| run(device, &kernel, &mut sample, &[launch]).unwrap_err();
        let unbuilt = fails(sound[0].clone()).to_string();
        assert!(unbuilt.contains("was not built"), "{unbuilt}");
        device.build(&kernel).unwrap();
        let mut fails = |launch: Launch| run(device, &kernel, &mut sample, &[launch]).unwrap_err();
        let entry = fails(Launch {
            entry: "multiply".into(),
            ..sound[0].clone()
        });
        assert!(
            entry.to_string().contains("no entry point multiply"),
            "{entry}"
        );
        let arguments = fails(Launch {
            scalars: vec![Scalar::U32(1); 2],
            ..sound[0].clone()
        });
        assert!(
            arguments.to_string().contains("takes 4 arguments"),
            "{arguments}"
        );
        let large = fails(Launch {
            scratch: vec![usize::MAX / 2],
            ..sound[0].clone()
        });
        assert_eq!(large, DeviceError::OutOfMemory);

        // After all of that it computes, and a wrong result is seen.
        let mut on_cpu = sample.clone();
        on_cpu.compute(&kernel).unwrap();
        run(device, &kernel, &mut sample, &sound).unwrap();
        assert!(on_cpu.agrees(&kernel, &sample).is_err());
    }
}

fn wgsl(source: &str) -> Kernel {
    with(Sources {
        wgsl: Some(source.to_owned().into()),
        ..Sources::default()
    })
}

/// `add` in WGSL, where an item does something with its number `i`.
fn adds(body: &str) -> String {
    format!(
        "@group(0) @binding(0) var<storage, read> a: array<f32>;\n\
         @group(0) @binding(1) var<storage, read> b: array<f32>;\n\
         @group(0) @binding(2) var<storage, read_write> sum: array<f32>;\n\
         @group(1) @binding(0) var<uniform> count: u32;\n\
         @compute @workgroup_size(256) fn add(@builtin(global_invocation_id) item: vec3<u32>) {{\n\
         let i = item.x; {body}\n}}"
    )
}

fn floats(sample: &Sample, buffer: usize) -> &[f32] {
    bytemuck::cast_slice(sample.buffers[buffer].bytes())
}

#[test]
fn what_a_vulkan_device_cannot_do_is_an_answer() {
    const TEST: &str = "what_a_vulkan_device_cannot_do_is_an_answer";
    if !is_played(TEST) {
        return show(&play(TEST, &[]));
    }
    for mut device in devices(TEST, Backend::Vulkan) {
        let device = device.as_mut();
        let mut refused = |kernel: &Kernel, words: &str| match device.build(kernel) {
            Err(BuildError::Compile(text)) => assert!(text.contains(words), "{text}"),
            other => panic!("{words}: {other:?}"),
        };
        // What is no WGSL, what has no sense, and what does not fit the signature.
        refused(&wgsl(&adds("y = nonsense;")), "no definition in scope");
        refused(&wgsl(&adds("sum[i] = 1u;")), "sum[i] = 1u");
        refused(&wgsl(&adds("a[i] = 1.0;")), "a[i] = 1.0");
        let writes = adds("sum[i] = 1.0;").replace("<storage, read> b", "<storage, read_write> b");
        refused(&wgsl(&writes.replace("sum[i]", "b[i]")), "b");
        let sized = "override wide: u32 = 4; @compute @workgroup_size(wide) fn add() {}";
        refused(&wgsl(sized), "write it as numbers");
        let nothing = device.build(&with(Sources::default()));
        assert_eq!(nothing, Err(BuildError::NoSource(Backend::Vulkan)));

        let shifted = adds("if i < count { sum[i] = a[i] + b[i] + 1.0; }");
        let kernel = wgsl(&shifted);
        let mut sample = Sample::of(&kernel, 100, Sizes::Round, 1).unwrap();
        let sound = launches(&kernel, &sample);
        let mut fails = |launch: Launch| run(device, &kernel, &mut sample, &[launch]).unwrap_err();
        let unbuilt = fails(sound[0].clone()).to_string();
        assert!(unbuilt.contains("was not built"), "{unbuilt}");
        device.build(&kernel).unwrap();
        let mut says = |launch: Launch, words: &str| {
            let error = run(device, &kernel, &mut sample, &[launch]).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            error
        };
        let changed = |change: fn(&mut Launch)| {
            let mut launch = sound[0].clone();
            change(&mut launch);
            launch
        };
        says(
            changed(|one| one.entry = "multiply".into()),
            "no entry point multiply",
        );
        says(
            changed(|one| one.local = Some([64, 1, 1])),
            "groups of [256, 1, 1]",
        );
        says(changed(|one| one.scratch = vec![4]), "has 3 buffers");
        // Limits are looked at before anything is started.
        let wide = says(changed(|one| one.grid = Grid::line(u32::MAX)), "groups of");
        assert!(matches!(wide, DeviceError::TooLarge(_)), "{wide:?}");
        let scratch = wgsl(
            &(shifted.clone() + "@group(0) @binding(3) var<storage, read_write> more: array<u32>;"),
        );
        device.build(&scratch).unwrap();
        let large = changed(|one| one.scratch = vec![usize::MAX / 2]);
        let large = run(device, &scratch, &mut sample, &[large]).unwrap_err();
        assert!(matches!(large, DeviceError::TooLarge(_)), "{large:?}");

        // After all of that it computes, and a wrong result is seen.
        device.build(&kernel).unwrap();
        let mut on_cpu = sample.clone();
        on_cpu.compute(&kernel).unwrap();
        run(device, &kernel, &mut sample, &sound).unwrap();
        assert!(on_cpu.agrees(&kernel, &sample).is_err());
        // What leaves its buffer harms nobody.
        let outside = wgsl(&adds("sum[i + 0x10000000u] = a[i + 0x70000000u];"));
        device.build(&outside).unwrap();
        run(device, &outside, &mut sample, &sound).unwrap();
        device.build(&kernel).unwrap();
        run(device, &kernel, &mut sample, &sound).unwrap();
        assert_eq!(
            floats(&sample, 2)[7],
            floats(&sample, 0)[7] + floats(&sample, 1)[7] + 1.0
        );
    }
}

#[test]
fn a_vulkan_device_keeps_the_copies_that_it_is_told_to() {
    const TEST: &str = "a_vulkan_device_keeps_the_copies_that_it_is_told_to";
    if !is_played(TEST) {
        return show(&play(TEST, &[]));
    }
    for mut device in devices(TEST, Backend::Vulkan) {
        let kernel = kernel("add");
        device.build(&kernel).unwrap();
        let mut sample = Sample::of(&kernel, 1001, Sizes::Round, 1).unwrap();
        let launches = launches(&kernel, &sample);
        let kept = Constant {
            memory: 1,
            offset: 0,
            length: 4004,
        };
        let mut sum = |sample: &mut Sample, value: f32| {
            bytemuck::cast_slice_mut::<u8, f32>(sample.buffers[0].bytes_mut()).fill(value);
            let scalars = sample.scalars.clone();
            let mut views = sample.views(&kernel.signature);
            let keep = [Some(kept), None, None];
            let ran = device.run(&kernel, &mut views, &keep, &scalars, &launches);
            ran.unwrap();
            if value == 3.0 {
                device.forget(&[kept]);
            }
            floats(sample, 2)[1000] - floats(sample, 1)[1000]
        };
        // Of memory that is constant nobody can change the content; here it tells the copy.
        let sums = [1.0, 2.0, 3.0, 4.0].map(|value| sum(&mut sample, value).round());
        assert_eq!(sums, [1.0, 1.0, 1.0, 4.0]);
    }
}

#[cfg(feature = "vulkan")]
#[test]
fn a_vulkan_program_in_spirv_runs() {
    use wgpu::naga;

    const TEST: &str = "a_vulkan_program_in_spirv_runs";
    if !is_played(TEST) {
        return show(&play(TEST, &[]));
    }
    let folder = tempfile::tempdir().unwrap();
    let from_file = |name: &str, bytes: Option<&[u8]>| {
        let file = folder.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&file, bytes).unwrap();
        }
        with(Sources {
            spirv: Some(file),
            ..Sources::default()
        })
    };
    // Whatever makes SPIR-V will do; naga is at hand.
    let source = adds("if i < count { sum[i] = a[i] + b[i] + 1.0; }");
    let module = naga::front::wgsl::parse_str(&source).unwrap();
    let all = naga::valid::ValidationFlags::all();
    let mut validator = naga::valid::Validator::new(all, naga::valid::Capabilities::empty());
    let about = validator.validate(&module).unwrap();
    let options = naga::back::spv::Options::default();
    let words = naga::back::spv::write_vec(&module, &about, &options, None).unwrap();
    let program: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for mut device in devices(TEST, Backend::Vulkan) {
        let mut fails = |kernel: &Kernel| device.build(kernel).unwrap_err();
        let absent = fails(&from_file("absent.spv", None));
        assert!(
            matches!(&absent, BuildError::Failed(why) if why.contains("absent.spv")),
            "{absent:?}"
        );
        for rubbish in [
            &b"no program, of whole words.."[..],
            b"odd",
            &program[..100],
        ] {
            let refused = fails(&from_file("rubbish.spv", Some(rubbish)));
            assert!(matches!(refused, BuildError::Compile(_)), "{refused:?}");
        }
        let kernel = from_file("add.spv", Some(&program));
        device.build(&kernel).unwrap();
        let mut sample = Sample::of(&kernel, 100, Sizes::Round, 1).unwrap();
        let launches = launches(&kernel, &sample);
        run(device.as_mut(), &kernel, &mut sample, &launches).unwrap();
        let sum = floats(&sample, 0)[7] + floats(&sample, 1)[7] + 1.0;
        assert_eq!(floats(&sample, 2)[7], sum);
    }
}

#[test]
fn every_backend_has_devices_or_a_reason() {
    const TEST: &str = "every_backend_has_devices_or_a_reason";
    if !is_played(TEST) {
        play(TEST, &[]);
        return;
    }
    let found = backends::find();
    for backend in Backend::ALL {
        let devices = found.devices.iter().filter(|info| info.backend == backend);
        let reasons = found.absent.iter().filter(|(of, _)| *of == backend);
        assert_eq!(devices.count() == 0, reasons.count() == 1, "{found:?}");
    }
    for id in [
        "",
        "opencl",
        "tpu:0",
        "opencl:999:0",
        "opencl:x:y",
        "cuda:99",
        "cuda:-1",
        "cuda:x",
        "vulkan:99",
        "vulkan:x",
    ] {
        let error = backends::open(id).err().unwrap();
        assert!(error.contains("forebay accel devices"), "{id}: {error}");
    }
}

#[test]
fn without_a_loader_there_is_a_reason() {
    const TEST: &str = "without_a_loader_there_is_a_reason";
    if !is_played(TEST) {
        // A file that is no library is found first.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libOpenCL.so.1"), "").unwrap();
        play(
            TEST,
            &[("LD_LIBRARY_PATH", folder.path().to_str().unwrap())],
        );
        return;
    }
    says(Backend::Opencl, "loader is not installed");
}

#[test]
fn without_a_loader_of_vulkan_or_without_it_in_the_build_there_is_a_reason() {
    const TEST: &str = "without_a_loader_of_vulkan_or_without_it_in_the_build_there_is_a_reason";
    if !is_played(TEST) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libvulkan.so.1"), "").unwrap();
        let path = folder.path().to_str().unwrap();
        play(TEST, &[("LD_LIBRARY_PATH", path)]);
        return;
    }
    let words = if cfg!(feature = "vulkan") {
        "loader is not installed"
    } else {
        "not in this build"
    };
    says(Backend::Vulkan, words);
}

#[test]
fn without_a_driver_of_vulkan_there_is_a_reason() {
    const TEST: &str = "without_a_driver_of_vulkan_there_is_a_reason";
    if !is_played(TEST) {
        let none = "/nonexistent/none.json";
        // The loader of Debian 12 has both words for it.
        let text = play(
            TEST,
            &[("VK_DRIVER_FILES", none), ("VK_ICD_FILENAMES", none)],
        );
        return show(&text);
    }
    let found = backends::find();
    let reason = found.absent.iter().find(|(of, _)| *of == Backend::Vulkan);
    let (_, reason) = reason.unwrap();
    if reason.contains("loader is not installed") || reason.contains("not in this build") {
        println!("SKIPPED: {TEST}: {reason}");
        return;
    }
    says(Backend::Vulkan, "no driver is installed");
}

#[test]
fn without_a_driver_there_is_a_reason() {
    const TEST: &str = "without_a_driver_there_is_a_reason";
    if !is_played(TEST) {
        return show(&play(TEST, &[("OCL_ICD_VENDORS", "/nonexistent")]));
    }
    let found = backends::find();
    if found
        .absent
        .iter()
        .any(|(_, why)| why.contains("loader is not installed"))
    {
        println!("SKIPPED: {TEST}: the loader of OpenCL is not installed");
        return;
    }
    says(Backend::Opencl, "no driver is installed");
}

fn says(backend: Backend, words: &str) {
    let found = backends::find();
    let reason = found.absent.iter().find(|(of, _)| *of == backend);
    let reason = reason
        .map(|(_, reason)| reason.as_str())
        .unwrap_or_default();
    assert!(reason.contains(words), "{found:?}");
}
