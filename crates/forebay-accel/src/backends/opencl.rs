//! Devices through OpenCL: GPUs of every vendor, FPGAs, and CPUs.
//!
//! The loader is found at run time. A device whose kind is accelerator takes a program that was
//! compiled before (`Sources::opencl_binary`); all others compile the source.

#![expect(
    unsafe_code,
    reason = "drivers are called through pointers; the crate marks most of its calls unsafe"
)]

use std::collections::HashMap;
use std::ptr;
use std::time::Instant;

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::{
    CL_DEVICE_TYPE_ACCELERATOR, CL_DEVICE_TYPE_ALL, CL_DEVICE_TYPE_CPU, Device as ClDevice,
};
use opencl3::error_codes::{
    CL_BUILD_PROGRAM_FAILURE, CL_CONTEXT_TERMINATED_KHR, CL_DEVICE_NOT_AVAILABLE,
    CL_DEVICE_NOT_FOUND, CL_INVALID_COMMAND_QUEUE, CL_INVALID_CONTEXT, CL_INVALID_DEVICE,
    CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_HOST_MEMORY, CL_OUT_OF_RESOURCES,
    CL_PLATFORM_NOT_FOUND_KHR, ClError, DLOPEN_RUNTIME_LOAD_FAILED,
};
use opencl3::kernel::Kernel as ClKernel;
use opencl3::memory::{Buffer, CL_MEM_READ_ONLY, CL_MEM_READ_WRITE, ClMem};
use opencl3::platform::{Platform, get_platforms};
use opencl3::program::Program;
use opencl3::types::{CL_BLOCKING, cl_mem_flags};

use super::copies::{Allocator, Copies};
use super::unknown;
use crate::device::{
    Backend, BuildError, Constant, Device, DeviceError, DeviceInfo, DeviceKind, Timing,
};
use crate::kernel::Kernel;
use crate::task::{Launch, Scalar, View};

/// All devices of all platforms.
pub(super) fn find() -> Result<Vec<DeviceInfo>, String> {
    let devices = all()?;
    if devices.is_empty() {
        return Err("its platforms have no device".to_owned());
    }
    Ok(devices.into_iter().map(|(_, info)| info).collect())
}

pub(super) fn open(id: &str) -> Result<Box<dyn Device>, String> {
    let found = all().map_err(|reason| format!("{}: {reason}", unknown(id)))?;
    let Some((device, info)) = found.into_iter().find(|(_, info)| info.id == id) else {
        return Err(unknown(id));
    };
    let failed = |error: ClError| format!("open {id} ({}): {error}", info.name);
    let context = Context::from_device(&device).map_err(failed)?;
    // SAFETY: the device is one of the context just made, and 0 asks for a queue that runs in order,
    // which every device has. The crate marks each way to make a queue unsafe, or needs OpenCL 2.
    let queue = unsafe { CommandQueue::create(&context, device.id(), 0) }.map_err(failed)?;
    Ok(Box::new(Opencl {
        opened: Opened {
            info,
            device,
            context,
            queue,
        },
        built: HashMap::new(),
        copies: Copies::default(),
    }))
}

fn all() -> Result<Vec<(ClDevice, DeviceInfo)>, String> {
    let platforms = get_platforms().map_err(|error| match error.0 {
        DLOPEN_RUNTIME_LOAD_FAILED => {
            "its loader is not installed (libOpenCL.so; Debian: ocl-icd-libopencl1)".to_owned()
        }
        CL_PLATFORM_NOT_FOUND_KHR => no_platform(),
        _ => format!("list its platforms: {error}"),
    })?;
    if platforms.is_empty() {
        return Err(no_platform());
    }
    let mut devices = Vec::new();
    for (number, platform) in platforms.iter().enumerate() {
        // A platform whose driver fails does not hide the devices of the others.
        let ids = match platform.get_devices(CL_DEVICE_TYPE_ALL) {
            Ok(ids) => ids,
            Err(error) => {
                tracing::warn!(platform = number, %error, "no devices of an OpenCL platform");
                continue;
            }
        };
        for (index, id) in ids.into_iter().enumerate() {
            let device = ClDevice::new(id);
            match info(&device, platform, format!("opencl:{number}:{index}")) {
                Ok(Some(info)) => devices.push((device, info)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(platform = number, device = index, %error, "an OpenCL device that cannot be used");
                }
            }
        }
    }
    Ok(devices)
}

fn no_platform() -> String {
    "no driver is installed for it (nothing in /etc/OpenCL/vendors; on NVIDIA look for \
     libnvidia-opencl.so.1 and name it there)"
        .to_owned()
}

/// None of a device that cannot be used now.
fn info(device: &ClDevice, platform: &Platform, id: String) -> Result<Option<DeviceInfo>, ClError> {
    if !device.available()? {
        return Ok(None);
    }
    let kind = device.dev_type()?;
    Ok(Some(DeviceInfo {
        id,
        backend: Backend::Opencl,
        platform: text(platform.name()?),
        vendor: text(device.vendor()?),
        name: text(device.name()?),
        // CPU drivers of one version differ by what they were built for, which is in the platform's.
        driver: format!(
            "{}, {}",
            text(device.driver_version()?),
            text(platform.version()?)
        ),
        memory_bytes: device.global_mem_size()?,
        buffer_bytes_max: device.max_mem_alloc_size()?,
        kind: if kind & CL_DEVICE_TYPE_ACCELERATOR != 0 {
            DeviceKind::Accelerator
        } else if kind & CL_DEVICE_TYPE_CPU != 0 {
            DeviceKind::Cpu
        } else {
            DeviceKind::Gpu
        },
    }))
}

fn text(name: String) -> String {
    name.trim_matches(['\0', ' ']).to_owned()
}

struct Opencl {
    opened: Opened,
    /// Entry points by the name of the kernel.
    built: HashMap<String, HashMap<String, ClKernel>>,
    copies: Copies<Buffer<u8>>,
}

/// The device as its driver has it.
struct Opened {
    info: DeviceInfo,
    device: ClDevice,
    context: Context,
    queue: CommandQueue,
}

impl Device for Opencl {
    fn info(&self) -> &DeviceInfo {
        &self.opened.info
    }

    fn build(&mut self, kernel: &Kernel) -> Result<(), BuildError> {
        let opened = &self.opened;
        let mut program = opened.program(kernel)?;
        if let Err(error) = program.build(&[opened.device.id()], "") {
            return Err(opened.build_error(&program, error));
        }
        let entries = opencl3::kernel::create_program_kernels(&program)
            .map_err(|error| BuildError::Failed(format!("list its entry points: {error}")))?;
        let mut by_name = HashMap::new();
        for entry in entries {
            let name = entry
                .function_name()
                .map_err(|error| BuildError::Failed(format!("name an entry point: {error}")))?;
            by_name.insert(text(name), entry);
        }
        self.built.insert(kernel.name.clone().into_owned(), by_name);
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
        let entries = self
            .built
            .get(kernel.name.as_ref())
            .ok_or_else(|| DeviceError::Failed(format!("kernel {} was not built", kernel.name)))?;
        let opened = &self.opened;
        let start = Instant::now();
        let placed = self.copies.place(opened, buffers, kept, launches)?;
        let memory = placed.in_order();
        let given = Instant::now();
        for launch in launches {
            let entry = entries.get(launch.entry.as_ref()).ok_or_else(|| {
                DeviceError::Failed(format!(
                    "kernel {} has no entry point {}",
                    kernel.name, launch.entry
                ))
            })?;
            opened.start(entry, &memory, buffers.len(), launch)?;
        }
        opened
            .queue
            .finish()
            .map_err(|error| device_error("wait for it", error))?;
        let computed = Instant::now();
        for (view, buffer) in buffers.iter_mut().zip(memory) {
            let Some(bytes) = view.bytes_mut().filter(|bytes| !bytes.is_empty()) else {
                continue;
            };
            // SAFETY: as above, in the other direction; `bytes` is borrowed alone.
            unsafe {
                opened
                    .queue
                    .enqueue_read_buffer(buffer, CL_BLOCKING, 0, bytes, &[])
            }
            .map_err(|error| device_error("copy a buffer from it", error))?;
        }
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

impl Allocator for Opened {
    type Buffer = Buffer<u8>;

    fn copied(&self, view: &View<'_>) -> Result<Buffer<u8>, DeviceError> {
        let flags = match view {
            View::Read(_) => CL_MEM_READ_ONLY,
            View::Write(_) | View::ReadWrite(_) => CL_MEM_READ_WRITE,
        };
        let mut buffer = self.allocate(view.bytes().len(), flags)?;
        if !matches!(view, View::Write(_)) && !view.bytes().is_empty() {
            // SAFETY: the buffer is as large as the bytes, and the call returns when they are
            // copied. The crate has no safe call.
            unsafe {
                self.queue
                    .enqueue_write_buffer(&mut buffer, CL_BLOCKING, 0, view.bytes(), &[])
            }
            .map_err(|error| device_error("copy a buffer to it", error))?;
        }
        Ok(buffer)
    }

    fn scratch(&self, bytes: usize) -> Result<Buffer<u8>, DeviceError> {
        self.allocate(bytes, CL_MEM_READ_WRITE)
    }
}

impl Opened {
    /// The program that suits the device, not built.
    fn program(&self, kernel: &Kernel) -> Result<Program, BuildError> {
        let sources = &kernel.sources;
        let binary = sources.opencl_binary.as_ref();
        let prefers_binary = self.info.kind == DeviceKind::Accelerator || sources.opencl.is_none();
        if let Some(file) = binary.filter(|_| prefers_binary) {
            let bytes = std::fs::read(file).map_err(|error| {
                BuildError::Failed(format!("read its program {}: {error}", file.display()))
            })?;
            // SAFETY: one binary for one device, both of which live through the call. Whether the
            // bytes are a program for it, the driver says.
            return unsafe {
                Program::create_from_binary(&self.context, &[self.device.id()], &[&bytes])
            }
            .map_err(|error| {
                BuildError::Failed(format!(
                    "load its program {}: {error}; compile it for {}",
                    file.display(),
                    self.info.name
                ))
            });
        }
        let Some(source) = &sources.opencl else {
            return Err(BuildError::NoSource(Backend::Opencl));
        };
        if !self.device.compiler_available().unwrap_or(false) {
            return Err(BuildError::Failed(format!(
                "{} takes no source; name a program that was compiled for it (`opencl_binary`)",
                self.info.name
            )));
        }
        Program::create_from_source(&self.context, source)
            .map_err(|error| BuildError::Failed(format!("create its program: {error}")))
    }

    fn build_error(&self, program: &Program, error: ClError) -> BuildError {
        let log = program
            .get_build_log(self.device.id())
            .map(text)
            .unwrap_or_default();
        let log = log.trim();
        match error.0 {
            CL_BUILD_PROGRAM_FAILURE if !log.is_empty() => BuildError::Compile(log.to_owned()),
            CL_BUILD_PROGRAM_FAILURE => {
                BuildError::Compile("the compiler did not say why".to_owned())
            }
            _ => BuildError::Failed(format!("build its program: {error}")),
        }
    }

    fn allocate(&self, bytes: usize, flags: cl_mem_flags) -> Result<Buffer<u8>, DeviceError> {
        if bytes as u64 > self.info.buffer_bytes_max {
            return Err(DeviceError::OutOfMemory);
        }
        // SAFETY: no host memory is handed over. There is no memory of no bytes.
        unsafe { Buffer::create(&self.context, flags, bytes.max(1), ptr::null_mut()) }
            .map_err(|error| device_error("allocate a buffer on it", error))
    }

    fn start(
        &self,
        entry: &ClKernel,
        memory: &[&Buffer<u8>],
        buffers: usize,
        launch: &Launch,
    ) -> Result<(), DeviceError> {
        let failed = |error| device_error(&format!("start {} on it", launch.entry), error);
        let memory = &memory[..buffers + launch.scratch.len()];
        let wanted = memory.len() + launch.scalars.len();
        let takes = entry.num_args().map_err(failed)?;
        if takes as usize != wanted {
            return Err(DeviceError::Failed(format!(
                "entry point {} takes {takes} arguments and was given {wanted}: all buffers, the \
                 scratch buffers, the scalars",
                launch.entry
            )));
        }
        for (index, buffer) in (0..).zip(memory) {
            let buffer = buffer.get();
            // SAFETY: the driver copies the handle, and the memory lives until the run ends.
            unsafe { entry.set_arg(index, &buffer) }.map_err(failed)?;
        }
        for (index, scalar) in (takes - counted(launch.scalars.len())..).zip(&launch.scalars) {
            // SAFETY: the driver copies the number, and refuses one of another size.
            unsafe {
                match scalar {
                    Scalar::U32(value) => entry.set_arg(index, value),
                    Scalar::I32(value) => entry.set_arg(index, value),
                    Scalar::U64(value) => entry.set_arg(index, value),
                    Scalar::F32(value) => entry.set_arg(index, value),
                    Scalar::F64(value) => entry.set_arg(index, value),
                }
            }
            .map_err(failed)?;
        }
        let global = launch.grid.0.map(|items| items as usize);
        let local = launch.local.map(|items| items.map(|items| items as usize));
        // SAFETY: three dimensions, and as many sizes of each kind; no offset. What the kernel itself
        // does is why this process is one that may die.
        unsafe {
            self.queue.enqueue_nd_range_kernel(
                entry.get(),
                3,
                ptr::null(),
                global.as_ptr(),
                local.as_ref().map_or(ptr::null(), |local| local.as_ptr()),
                &[],
            )
        }
        .map_err(failed)?;
        Ok(())
    }
}

fn counted(arguments: usize) -> u32 {
    u32::try_from(arguments).unwrap_or(u32::MAX)
}

fn device_error(attempt: &str, error: ClError) -> DeviceError {
    match error.0 {
        CL_MEM_OBJECT_ALLOCATION_FAILURE | CL_OUT_OF_RESOURCES | CL_OUT_OF_HOST_MEMORY => {
            DeviceError::OutOfMemory
        }
        CL_DEVICE_NOT_AVAILABLE
        | CL_DEVICE_NOT_FOUND
        | CL_CONTEXT_TERMINATED_KHR
        | CL_INVALID_CONTEXT
        | CL_INVALID_COMMAND_QUEUE
        | CL_INVALID_DEVICE => DeviceError::Lost(format!("{attempt}: {error}")),
        _ => DeviceError::Failed(format!("{attempt}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_driver_become_what_the_broker_acts_on() {
        let of = |code| device_error("x", ClError(code));
        assert_eq!(
            of(CL_MEM_OBJECT_ALLOCATION_FAILURE),
            DeviceError::OutOfMemory
        );
        assert!(matches!(of(CL_DEVICE_NOT_AVAILABLE), DeviceError::Lost(_)));
        assert!(matches!(of(-54), DeviceError::Failed(_)));
    }
}
