//! Programs of OpenCL that were compiled before, as FPGAs take them: of whatever device is there, and of
//! Intel's emulator of FPGAs where there is one (`cargo xtask test --fpga-emulator`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_accel::backends;
use forebay_accel::broker::{self, Options};
use forebay_accel::client::Client;
use forebay_accel::device::{Backend, BuildError, DeviceInfo, DeviceKind};
use forebay_accel::kernel::{
    Access, Arguments, Element, Kernel, Parameter, ScalarParameter, Signature, Sources, Tolerance,
};
use forebay_accel::kernels::built_in;
use forebay_accel::kernels::sample::{Sample, Sizes};
use forebay_accel::process::{self, Launcher, Process};
use forebay_accel::task::{Grid, Scalar, ScalarType};
use forebay_accel::wire::{Definition, Wish};

use super::{SHIFTED, compare, devices, floats, is_played, launches, play, run, show, with};

/// FPGAs are given what their vendor's tools compiled. Any device takes its own binary, so the path is
/// tried with that.
#[test]
fn an_opencl_program_from_a_file_runs() {
    const TEST: &str = "binaries::an_opencl_program_from_a_file_runs";
    if !is_played(TEST) {
        return show(&play(TEST, &[]));
    }
    let folder = tempfile::tempdir().unwrap();
    for mut device in devices(TEST, Backend::Opencl) {
        let file = folder.path().join("add.bin");
        std::fs::write(&file, binary(device.info(), SHIFTED)).unwrap();
        let from_file = |file: &Path| {
            with(Sources {
                opencl_binary: Some(file.to_owned()),
                ..Sources::default()
            })
        };
        let kernel = from_file(&file);
        device.build(&kernel).unwrap();
        let mut sample = Sample::of(&kernel, 100, Sizes::Round, 1).unwrap();
        let launches = launches(&kernel, &sample);
        run(device.as_mut(), &kernel, &mut sample, &launches).unwrap();
        let sum = floats(&sample, 0)[7] + floats(&sample, 1)[7] + 1.0;
        assert_eq!(floats(&sample, 2)[7], sum);

        let rubbish = folder.path().join("rubbish.bin");
        std::fs::write(&rubbish, "no program").unwrap();
        let error = device.build(&from_file(&rubbish)).unwrap_err();
        assert!(matches!(error, BuildError::Failed(_)), "{error:?}");
    }
}

/// Where the drivers are among which Intel's emulator of FPGAs is.
const EMULATOR: &str = "FOREBAY_TEST_FPGA_EMULATOR";

/// Each kernel as its own driver compiled it, by `clCreateProgramWithBinary`, on a device of type
/// ACCELERATOR. There the program is taken and not the source, which is none here.
#[test]
fn an_fpga_computes_every_kernel_from_a_program_in_a_file() {
    const TEST: &str = "binaries::an_fpga_computes_every_kernel_from_a_program_in_a_file";
    if !is_played(TEST) {
        return match std::env::var(EMULATOR) {
            Ok(drivers) => show(&play(TEST, &[("OCL_ICD_VENDORS", &drivers)])),
            Err(_) => println!("SKIPPED: {TEST}: `cargo xtask test --fpga-emulator` fetches one"),
        };
    }
    let folder = tempfile::tempdir().unwrap();
    let mut found = devices(TEST, Backend::Opencl).into_iter();
    let device = found.find(|device| device.info().kind == DeviceKind::Accelerator);
    let mut device = device.expect("the emulator is asked for, and is no device here");
    let from_file = |kernel: &Kernel, file: &Path| Kernel {
        sources: Sources {
            opencl: Some("no source is looked at".into()),
            opencl_binary: Some(file.to_owned()),
            ..Sources::default()
        },
        ..kernel.clone()
    };
    for kernel in built_in() {
        let file = folder.path().join(format!("{}.aocx", kernel.name));
        let source = kernel.sources.opencl.as_deref().unwrap();
        std::fs::write(&file, binary(device.info(), source)).unwrap();
        let kernel = from_file(&kernel, &file);
        device.build(&kernel).unwrap();
        compare(device.as_mut(), &kernel, 1, Sizes::Round, 1);
        compare(device.as_mut(), &kernel, 3000, Sizes::Ragged, 2);
        compare(device.as_mut(), &kernel, 65_536, Sizes::Round, 3);
    }
    let rubbish = folder.path().join("rubbish.aocx");
    std::fs::write(&rubbish, "no program").unwrap();
    let error = device.build(&from_file(&built_in()[0], &rubbish));
    assert!(
        matches!(&error, Err(BuildError::Failed(why)) if why.contains("rubbish.aocx")),
        "{error:?}"
    );
}

/// What the device's driver makes of a source.
fn binary(info: &DeviceInfo, source: &str) -> Vec<u8> {
    let mut numbers = info
        .id
        .split(':')
        .skip(1)
        .map(|part| part.parse::<usize>().unwrap());
    let platforms = opencl3::platform::get_platforms().unwrap();
    let ids = platforms[numbers.next().unwrap()]
        .get_devices(opencl3::device::CL_DEVICE_TYPE_ALL)
        .unwrap();
    let device = opencl3::device::Device::new(ids[numbers.next().unwrap()]);
    let context = opencl3::context::Context::from_device(&device).unwrap();
    let program =
        opencl3::program::Program::create_and_build_from_source(&context, source, "").unwrap();
    program.get_binaries().unwrap().remove(0)
}

/// Drives devices in threads, where a worker has processes.
#[derive(Debug)]
struct Threads;

impl Launcher for Threads {
    fn launch(&self, device: &str) -> std::io::Result<Process> {
        let (ours, theirs) = process::pair()?;
        let device = device.to_owned();
        let mut thread = Some(std::thread::spawn(move || {
            let mut device = backends::open(&device).unwrap();
            // It ends as the socket does.
            process::serve(&theirs, &mut *device).ok();
        }));
        let socket = ours.try_clone()?;
        let end = move || {
            rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).ok();
            if let Some(thread) = thread.take() {
                thread.join().unwrap();
            }
        };
        Ok(Process {
            socket: ours,
            end: Box::new(end),
        })
    }
}

/// As an app does that has an FPGA: it registers a kernel that has a program in a file and no source.
#[test]
fn an_app_s_program_from_a_file_runs_by_its_tasks() {
    const TEST: &str = "binaries::an_app_s_program_from_a_file_runs_by_its_tasks";
    if !is_played(TEST) {
        return show(&play(TEST, &[]));
    }
    let folder = tempfile::tempdir().unwrap();
    for device in devices(TEST, Backend::Opencl) {
        let info = device.info().clone();
        drop(device);
        let source = "__kernel void tripled(__global uint *numbers, uint count) { \
             size_t i = get_global_id(0); if (i < count) { numbers[i] *= 3; } }";
        let file = folder.path().join("tripled.bin");
        std::fs::write(&file, binary(&info, source)).unwrap();
        let mut options = Options::new(folder.path().join("accel.sock"));
        options.verify_one_in = 1;
        let id = info.id.clone();
        let broker = broker::start(options.clone(), vec![info], Arc::new(Threads)).unwrap();
        let client = Client::connect(&options.socket).unwrap();
        let register = |file: PathBuf, name: &str| {
            let definition = Definition {
                name: name.to_owned(),
                signature: Signature {
                    buffers: vec![Parameter {
                        name: "numbers".into(),
                        access: Access::ReadWrite,
                        element: Element::U32,
                    }],
                    scalars: vec![ScalarParameter {
                        name: "count".into(),
                        kind: ScalarType::U32,
                    }],
                },
                per_item: vec![1],
                sources: Sources {
                    opencl_binary: Some(file),
                    ..Sources::default()
                },
                tolerance: Tolerance::Exact,
            };
            let compute = |arguments: &mut Arguments<'_, '_>| {
                for number in arguments.buffers[0].slice_mut::<u32>()? {
                    *number *= 3;
                }
                Ok(())
            };
            let builds = client.register(definition, Box::new(compute)).unwrap();
            builds.into_iter().next().unwrap().error
        };
        assert_eq!(register(file, "tripled"), None);
        let absent = register(folder.path().join("absent.bin"), "absent");
        assert!(
            matches!(&absent, Some(BuildError::Failed(why)) if why.contains("absent.bin")),
            "{absent:?}"
        );
        // Each of them is computed by the client, too, and compared.
        let mut numbers = client.memory(4000).unwrap();
        for factor in 1..10 {
            numbers.slice_mut::<u32>().unwrap().fill(factor);
            for (kernel, place) in [("tripled", id.as_str()), ("absent", "cpu")] {
                let task = client.task(kernel).output(&mut numbers);
                let task = task.grid(Grid::line(1000)).scalar(Scalar::U32(1000));
                let run = task.place(Wish::Device(id.clone())).submit().unwrap();
                let run = run.wait().unwrap();
                assert_eq!((run.place.as_str(), run.retries), (place, 0));
            }
            let all = numbers.slice::<u32>().unwrap();
            assert!(all.iter().all(|number| *number == 9 * factor));
        }
        assert_eq!(client.devices().unwrap()[0].faults, 0);
        drop((numbers, client));
        broker.stop();
    }
}
