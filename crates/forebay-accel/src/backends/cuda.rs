//! Devices through CUDA: NVIDIA's GPUs, by the driver and the run-time compiler alone.
//!
//! Both libraries are found at run time, and asked for before anything else: what calls into a library
//! that is not there ends the process.

#![expect(
    unsafe_code,
    reason = "drivers are called through pointers; the crate marks most of its calls unsafe"
)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError, LaunchConfig,
    PushKernelArg, result,
};
use cudarc::nvrtc::{self, CompileError, CompileOptions};

use super::copies::{Allocator, Copies};
use super::unknown;
use crate::device::{
    Backend, BuildError, Constant, Device, DeviceError, DeviceInfo, DeviceKind, Timing,
};
use crate::kernel::{Kernel, Sources};
use crate::task::{Launch, Scalar, View};

/// All GPUs that the driver shows.
pub(super) fn find() -> Result<Vec<DeviceInfo>, String> {
    let count = count()?;
    let mut devices = Vec::new();
    for ordinal in 0..count {
        match info(ordinal) {
            Ok(info) => devices.push(info),
            Err(error) => {
                tracing::warn!(device = ordinal, %error, "a CUDA device that cannot be used");
            }
        }
    }
    if devices.is_empty() {
        return Err("its driver shows no GPU".to_owned());
    }
    Ok(devices)
}

pub(super) fn open(id: &str) -> Result<Box<dyn Device>, String> {
    let count = count().map_err(|reason| format!("{}: {reason}", unknown(id)))?;
    let ordinal = id
        .strip_prefix("cuda:")
        .and_then(|number| number.parse().ok());
    let Some(ordinal) = ordinal.filter(|ordinal| *ordinal < count) else {
        return Err(unknown(id));
    };
    let failed = |error: DriverError| format!("open {id}: {error}");
    let info = info(ordinal).map_err(failed)?;
    let context = usize::try_from(ordinal)
        .map_err(|_| unknown(id))
        .and_then(|ordinal| CudaContext::new(ordinal).map_err(failed))?;
    let architecture = context
        .compute_capability()
        .map_err(failed)
        .map(|(major, minor)| format!("--gpu-architecture=compute_{major}{minor}"))?;
    let stream = context.default_stream();
    Ok(Box::new(Cuda {
        info,
        architecture,
        context,
        stream,
        built: HashMap::new(),
        copies: Copies::default(),
    }))
}

fn count() -> Result<i32, String> {
    // SAFETY: it only tries to load the library.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("NVIDIA's driver is not installed (libcuda.so.1)".to_owned());
    }
    result::init().map_err(|error| format!("start its driver: {error}"))?;
    result::device::get_count().map_err(|error| format!("count its devices: {error}"))
}

fn info(ordinal: i32) -> Result<DeviceInfo, DriverError> {
    let device = result::device::get(ordinal)?;
    // SAFETY: the device was just given by the driver.
    let memory_bytes = unsafe { result::device::total_mem(device) }? as u64;
    let mut version = 0;
    // SAFETY: the driver writes one number to a place that is one.
    unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(DeviceInfo {
        id: format!("cuda:{ordinal}"),
        backend: Backend::Cuda,
        platform: "CUDA".to_owned(),
        vendor: "NVIDIA".to_owned(),
        name: result::device::get_name(device)?,
        driver: format!("{}.{}", version / 1000, version % 1000 / 10),
        memory_bytes,
        buffer_bytes_max: memory_bytes,
        kind: DeviceKind::Gpu,
    })
}

struct Cuda {
    info: DeviceInfo,
    /// The option of the compiler.
    architecture: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Modules by the name of the kernel, with the entry points that were used.
    built: HashMap<String, (Arc<CudaModule>, HashMap<String, CudaFunction>)>,
    copies: Copies<CudaSlice<u8>>,
}

impl Device for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn build(&mut self, kernel: &Kernel) -> Result<(), BuildError> {
        let program = program(&kernel.sources, &self.architecture)?;
        let module = self
            .context
            .load_module(program)
            .map_err(|error| load_error(&kernel.sources, error))?;
        self.built
            .insert(kernel.name.clone().into_owned(), (module, HashMap::new()));
        Ok(())
    }

    fn run(
        &mut self,
        kernel: &Kernel,
        buffers: &mut [View<'_>],
        kept: &[Option<Constant>],
        _: &[Scalar],
        launches: &[Launch],
    ) -> Result<Timing, DeviceError> {
        let Some((module, entries)) = self.built.get_mut(kernel.name.as_ref()) else {
            return Err(DeviceError::Failed(format!(
                "kernel {} was not built",
                kernel.name
            )));
        };
        let stream = &self.stream;
        let start = Instant::now();
        let placed = self.copies.place(stream, buffers, kept, launches)?;
        wait(stream)?;
        let memory = placed.in_order();
        let given = Instant::now();
        for launch in launches {
            if !entries.contains_key(launch.entry.as_ref()) {
                let entry = entry(module, &launch.entry)?;
                entries.insert(launch.entry.clone().into_owned(), entry);
            }
            let entry = &entries[launch.entry.as_ref()];
            let memory = &memory[..buffers.len() + launch.scratch.len()];
            start_launch(stream, entry, memory, launch)?;
        }
        wait(stream)?;
        let computed = Instant::now();
        for (view, buffer) in buffers.iter_mut().zip(memory) {
            let Some(bytes) = view.bytes_mut().filter(|bytes| !bytes.is_empty()) else {
                continue;
            };
            stream
                .memcpy_dtoh(buffer, bytes)
                .map_err(|error| device_error("copy a buffer from it", error))?;
        }
        wait(stream)?;
        Ok(Timing {
            transfer_in: given - start,
            compute: computed - given,
            transfer_out: computed.elapsed(),
        })
    }

    fn forget(&mut self, constants: &[Constant]) {
        self.copies.forget(constants);
    }
}

/// What the driver loads: PTX as it is where there is some, else what the source compiles to.
fn program(sources: &Sources, architecture: &str) -> Result<nvrtc::Ptx, BuildError> {
    if let Some(text) = &sources.ptx {
        // The driver takes a text that ends with a zero byte.
        return if text.contains('\0') {
            Err(BuildError::Compile("the PTX has a zero byte".to_owned()))
        } else {
            Ok(nvrtc::Ptx::from_src(text.as_ref()))
        };
    }
    let source = sources.cuda.as_ref();
    compile(
        source.ok_or(BuildError::NoSource(Backend::Cuda))?,
        architecture,
    )
}

/// What is wrong with PTX, the driver says when it loads it.
fn load_error(sources: &Sources, error: DriverError) -> BuildError {
    if sources.ptx.is_some() && is_of_ptx(error.0) {
        BuildError::Compile(format!("the driver does not take its PTX: {error}"))
    } else {
        BuildError::Failed(format!("load its program: {error}"))
    }
}

const fn is_of_ptx(code: CUresult) -> bool {
    matches!(
        code,
        CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    )
}

/// From source to what the driver loads.
pub(super) fn compile(source: &str, architecture: &str) -> Result<nvrtc::Ptx, BuildError> {
    // SAFETY: it only tries to load the library.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(BuildError::Failed(
            "CUDA's run-time compiler is not installed (libnvrtc.so)".to_owned(),
        ));
    }
    if source.contains('\0') {
        return Err(BuildError::Compile("the source has a zero byte".to_owned()));
    }
    let options = CompileOptions {
        options: vec![architecture.to_owned()],
        ..CompileOptions::default()
    };
    nvrtc::compile_ptx_with_opts(source, options).map_err(|error| match error {
        CompileError::CompileError { log, .. } => {
            BuildError::Compile(log.to_string_lossy().trim().to_owned())
        }
        other => BuildError::Failed(format!("compile it: {other}")),
    })
}

fn entry(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction, DeviceError> {
    let failed = |why: String| DeviceError::Failed(format!("find entry point {name}: {why}"));
    if name.contains('\0') {
        return Err(failed("its name has a zero byte".to_owned()));
    }
    module
        .load_function(name)
        .map_err(|error| failed(error.to_string()))
}

fn allocate(stream: &Arc<CudaStream>, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
    // SAFETY: what is in it is only read by kernels, and by the copy back after they wrote it. There
    // is no memory of no bytes.
    unsafe { stream.alloc(bytes.max(1)) }
        .map_err(|error| device_error("allocate a buffer on it", error))
}

impl Allocator for Arc<CudaStream> {
    type Buffer = CudaSlice<u8>;

    fn copied(&self, view: &View<'_>) -> Result<CudaSlice<u8>, DeviceError> {
        let mut buffer = allocate(self, view.bytes().len())?;
        if !matches!(view, View::Write(_)) && !view.bytes().is_empty() {
            self.memcpy_htod(view.bytes(), &mut buffer)
                .map_err(|error| device_error("copy a buffer to it", error))?;
        }
        Ok(buffer)
    }

    fn scratch(&self, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
        allocate(self, bytes)
    }
}

fn wait(stream: &CudaStream) -> Result<(), DeviceError> {
    stream
        .synchronize()
        .map_err(|error| device_error("wait for it", error))
}

fn start_launch(
    stream: &CudaStream,
    entry: &CudaFunction,
    memory: &[&CudaSlice<u8>],
    launch: &Launch,
) -> Result<(), DeviceError> {
    let mut arguments = stream.launch_builder(entry);
    for buffer in memory {
        arguments.arg(*buffer);
    }
    for scalar in &launch.scalars {
        match scalar {
            Scalar::U32(value) => arguments.arg(value),
            Scalar::I32(value) => arguments.arg(value),
            Scalar::U64(value) => arguments.arg(value),
            Scalar::F32(value) => arguments.arg(value),
            Scalar::F64(value) => arguments.arg(value),
        };
    }
    let block = launch.local.unwrap_or_else(|| default_block(launch.grid.0));
    let [x, y, z] = [0, 1, 2].map(|i| launch.grid.0[i].div_ceil(block[i].max(1)));
    let [width, height, depth] = block;
    let shape = LaunchConfig {
        grid_dim: (x, y, z),
        block_dim: (width, height, depth),
        shared_mem_bytes: 0,
    };
    // SAFETY: the arguments are those that the kernel's signature names, and outlive the wait that
    // follows the launches. What the kernel itself does is why this process is one that may die.
    unsafe { arguments.launch(shape) }
        .map_err(|error| device_error(&format!("start {} on it", launch.entry), error))?;
    Ok(())
}

/// Items of a group where the launch leaves it open: 256, in the dimensions that the grid has. The
/// last group of a dimension may reach beyond the grid, so kernels look where they are.
fn default_block([_, height, depth]: [u32; 3]) -> [u32; 3] {
    match (height, depth) {
        (1, 1) => [256, 1, 1],
        (_, 1) => [16, 16, 1],
        _ => [8, 8, 4],
    }
}

fn device_error(attempt: &str, error: DriverError) -> DeviceError {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory,
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => DeviceError::Timeout,
        // After each of these the context is of no more use.
        CUresult::CUDA_ERROR_NO_DEVICE
        | CUresult::CUDA_ERROR_INVALID_DEVICE
        | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUresult::CUDA_ERROR_DEINITIALIZED
        | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
        | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED => DeviceError::Lost(format!("{attempt}: {error}")),
        _ => DeviceError::Failed(format!("{attempt}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    #[test]
    fn blocks_have_the_dimensions_of_the_grid() {
        assert_eq!(default_block([1000, 1, 1]), [256, 1, 1]);
        assert_eq!(default_block([10, 10, 1]), [16, 16, 1]);
        assert_eq!(default_block([10, 1, 10]), [8, 8, 4]);
    }

    #[test]
    fn ready_ptx_is_loaded_as_it_is_and_needs_no_compiler() {
        let sources = |ptx: &'static str| Sources {
            ptx: Some(ptx.into()),
            cuda: Some("not C at all".into()),
            ..Sources::default()
        };
        let ready = sources(".version 7.0\n.target sm_70\n");
        let loaded = program(&ready, "--gpu-architecture=compute_70").unwrap();
        assert_eq!(loaded.to_src(), ".version 7.0\n.target sm_70\n");
        let broken = program(&sources(".version\0"), "").unwrap_err();
        assert!(matches!(broken, BuildError::Compile(_)), "{broken}");
        let none = program(&Sources::default(), "").unwrap_err();
        assert_eq!(none, BuildError::NoSource(Backend::Cuda));

        // The words of an error are the driver's, which may not be there.
        assert!(is_of_ptx(CUresult::CUDA_ERROR_INVALID_PTX));
        assert!(!is_of_ptx(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    }

    /// Needs NVIDIA's run-time compiler (PyPI: nvidia-cuda-nvrtc-cu12) in the library path, and no GPU.
    #[test]
    fn every_cuda_source_compiles() {
        // SAFETY: it only tries to load the library.
        if !unsafe { nvrtc::sys::is_culib_present() } {
            println!("SKIPPED: every_cuda_source_compiles: no libnvrtc.so in the library path");
            return;
        }
        for kernel in kernels::built_in() {
            let source = kernel.sources.cuda.as_deref().unwrap();
            let program = compile(source, "--gpu-architecture=compute_70");
            let program = program.unwrap_or_else(|error| panic!("{}: {error}", kernel.name));
            let text = program.to_src();
            assert!(text.contains(".entry"), "{}: no entry point", kernel.name);
        }
        let error = compile("not C at all", "--gpu-architecture=compute_70").err();
        assert!(matches!(error, Some(BuildError::Compile(_))), "{error:?}");
    }
}
