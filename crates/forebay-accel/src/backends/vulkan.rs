//! Devices through Vulkan: GPUs of every vendor, and CPUs by Mesa's lavapipe.
//!
//! By `wgpu`, which brings the compiler of WGSL and SPIR-V (naga): it checks a source before a driver
//! sees it, and keeps every access within its buffer. The loader and drivers are found at run time.
//!
//! A source finds the buffers of its signature, then the scratch buffers, as storage at
//! `@group(0) @binding(0)` and so on, and the scalars as one uniform at `@group(1) @binding(0)`.

#![expect(
    unsafe_code,
    reason = "why there is no loader, and how much memory there is, is only told below wgpu's safe calls"
)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use wgpu::{BufferUsages, Features, hal, naga};

use super::copies::{Allocator, Copies, scratch_sizes};
use super::unknown;
use crate::device::{
    Backend, BuildError, Constant, Device, DeviceError, DeviceInfo, DeviceKind, Timing,
};
use crate::kernel::{Kernel, Launches, Signature, Sources};
use crate::task::{Launch, Scalar, View};

/// What a source may use where a device has it.
const FEATURES: Features = Features::SHADER_F64
    .union(Features::SHADER_INT64)
    .union(Features::SHADER_F16)
    .union(Features::SUBGROUP);
/// Buffers are whole numbers of so many bytes.
const WORD: usize = 4;
/// The smallest uniform.
const UNIFORM_MIN: usize = 16;

/// All devices that drivers show.
pub(super) fn find() -> Result<Vec<DeviceInfo>, String> {
    let devices = adapters()?;
    if devices.is_empty() {
        return Err(no_driver("they show no device that can be used"));
    }
    Ok(devices.into_iter().map(|(_, info)| info).collect())
}

pub(super) fn open(id: &str) -> Result<Box<dyn Device>, String> {
    let devices = adapters().map_err(|reason| format!("{}: {reason}", unknown(id)))?;
    let found = devices.into_iter().find(|(_, info)| info.id == id);
    let (adapter, info) = found.ok_or_else(|| unknown(id))?;
    let wanted = wgpu::DeviceDescriptor {
        required_features: adapter.features() & FEATURES,
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) =
        now(adapter.request_device(&wanted))?.map_err(|error| format!("open {id}: {error}"))?;
    let told = Arc::new(Mutex::new(Told::default()));
    let heard = Arc::clone(&told);
    device.on_uncaptured_error(Arc::new(move |error| {
        lock(&heard).error.get_or_insert(error);
    }));
    let heard = Arc::clone(&told);
    device.set_device_lost_callback(move |_, why| lock(&heard).lost = Some(why));
    Ok(Box::new(Vulkan {
        opened: Opened {
            info,
            limits: device.limits(),
            device,
            queue,
            told,
        },
        built: HashMap::new(),
        copies: Copies::default(),
    }))
}

/// What can be opened, in an order that stays the same.
fn adapters() -> Result<Vec<(wgpu::Adapter, DeviceInfo)>, String> {
    let wanted = hal::InstanceDescriptor {
        name: "forebay",
        flags: wgpu::InstanceFlags::empty(),
        memory_budget_thresholds: wgpu::MemoryBudgetThresholds::default(),
        backend_options: wgpu::BackendOptions::default(),
        telemetry: None,
        display: None,
    };
    // SAFETY: it loads the loader and asks it for an instance. wgpu's own way to do so says nothing of
    // why there is none.
    let instance = unsafe { <hal::vulkan::Instance as hal::Instance>::init(&wanted) }
        .map_err(|error| no_instance(&error))?;
    // SAFETY: the instance was just made, and is handed over.
    let instance = unsafe { wgpu::Instance::from_hal::<hal::api::Vulkan>(instance) };
    let adapters = now(instance.enumerate_adapters(wgpu::Backends::VULKAN))?;
    let numbered = adapters.into_iter().enumerate();
    let all = numbered.map(|(number, adapter)| {
        let info = info(&adapter, format!("vulkan:{number}"));
        (adapter, info)
    });
    Ok(all.collect())
}

fn no_instance(error: &hal::InstanceError) -> String {
    let why = error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string);
    if error.to_string().contains("missing Vulkan entry points") {
        "its loader is not installed (libvulkan.so.1; Debian: libvulkan1)".to_owned()
    } else {
        no_driver(&why)
    }
}

fn no_driver(why: &str) -> String {
    format!(
        "no driver is installed for it, or none that has a device ({why}; look in \
         /usr/share/vulkan/icd.d; Debian: mesa-vulkan-drivers)"
    )
}

/// What wgpu answers at once where it is not in a browser.
fn now<T>(answer: impl Future<Output = T>) -> Result<T, String> {
    match pin!(answer).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Ok(answer),
        Poll::Pending => Err("wgpu did not answer at once; report it".to_owned()),
    }
}

fn info(adapter: &wgpu::Adapter, id: String) -> DeviceInfo {
    let about = adapter.get_info();
    let limits = adapter.limits();
    DeviceInfo {
        id,
        backend: Backend::Vulkan,
        platform: "Vulkan".to_owned(),
        vendor: match about.vendor {
            0x1002 => "AMD".to_owned(),
            0x10de => "NVIDIA".to_owned(),
            0x8086 => "Intel".to_owned(),
            0x1_0005 => "Mesa".to_owned(),
            other => format!("{other:#x}"),
        },
        name: about.name,
        driver: format!("{}, {}", about.driver, about.driver_info),
        memory_bytes: memory_bytes(adapter),
        buffer_bytes_max: buffer_bytes_max(&limits),
        kind: match about.device_type {
            wgpu::DeviceType::Cpu => DeviceKind::Cpu,
            _ => DeviceKind::Gpu,
        },
    }
}

fn buffer_bytes_max(limits: &wgpu::Limits) -> u64 {
    limits
        .max_buffer_size
        .min(limits.max_storage_buffer_binding_size)
}

/// The largest part of memory that is the device's own.
fn memory_bytes(adapter: &wgpu::Adapter) -> u64 {
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: nothing of what is below wgpu is kept or ended.
    let Some(below) = (unsafe { adapter.as_hal::<hal::api::Vulkan>() }) else {
        return 0;
    };
    let instance = below.shared_instance().raw_instance();
    // SAFETY: the device was given by this instance, which lives.
    let memory =
        unsafe { instance.get_physical_device_memory_properties(below.raw_physical_device()) };
    let heaps = memory.memory_heaps.iter();
    let own = heaps
        .take(memory.memory_heap_count as usize)
        .filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    own.map(|heap| heap.size).max().unwrap_or(0)
}

/// What wgpu says beside its answers.
#[derive(Debug, Default)]
struct Told {
    /// The first since it was looked at.
    error: Option<wgpu::Error>,
    /// Why the device is of no more use.
    lost: Option<String>,
}

fn lock(told: &Mutex<Told>) -> std::sync::MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Vulkan {
    opened: Opened,
    built: HashMap<String, Built>,
    copies: Copies<wgpu::Buffer>,
}

/// The device as wgpu has it.
struct Opened {
    info: DeviceInfo,
    limits: wgpu::Limits,
    device: wgpu::Device,
    queue: wgpu::Queue,
    told: Arc<Mutex<Told>>,
}

/// A kernel that was compiled.
struct Built {
    buffers: wgpu::BindGroupLayout,
    scalars: wgpu::BindGroupLayout,
    /// Buffers and scratch buffers.
    bindings: usize,
    entries: HashMap<String, Entry>,
}

struct Entry {
    pipeline: wgpu::ComputePipeline,
    /// Items of a group.
    group: [u32; 3],
}

impl Device for Vulkan {
    fn info(&self) -> &DeviceInfo {
        &self.opened.info
    }

    fn build(&mut self, kernel: &Kernel) -> Result<(), BuildError> {
        let (source, module) = parse(&kernel.sources)?;
        let named = kernel.signature.buffers.len();
        let bindings = buffers_of(&module).max(named);
        if matches!(kernel.launches, Launches::Grid) && bindings > named {
            return Err(BuildError::Compile(format!(
                "it has {bindings} buffers at @group(0), and its signature {named}"
            )));
        }
        let built = self
            .opened
            .compile(&kernel.signature, bindings, source, &module);
        self.opened.trouble_building()?;
        self.built.insert(kernel.name.clone().into_owned(), built);
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
        let built = self
            .built
            .get(kernel.name.as_ref())
            .ok_or_else(|| DeviceError::Failed(format!("kernel {} was not built", kernel.name)))?;
        let opened = &self.opened;
        let scratch = scratch_sizes(launches);
        let groups = opened.check(kernel, built, buffers, &scratch, launches)?;
        let start = Instant::now();
        let placed = self.copies.place(opened, buffers, kept, launches)?;
        let memory = placed.in_order();
        opened.queue.submit([]);
        opened.wait()?;
        let given = Instant::now();
        opened.start(built, &memory, launches, &groups)?;
        opened.wait()?;
        let computed = Instant::now();
        opened.bring_back(buffers, &memory)?;
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
    type Buffer = wgpu::Buffer;

    fn copied(&self, view: &View<'_>) -> Result<wgpu::Buffer, DeviceError> {
        let bytes = view.bytes();
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let buffer = self.allocate(bytes.len(), usage)?;
        if !matches!(view, View::Write(_)) && !bytes.is_empty() {
            self.write(&buffer, bytes)?;
        }
        Ok(buffer)
    }

    fn scratch(&self, bytes: usize) -> Result<wgpu::Buffer, DeviceError> {
        self.allocate(bytes, BufferUsages::STORAGE)
    }
}

impl Opened {
    /// Compiles all entry points. What went wrong is told beside it.
    fn compile(
        &self,
        signature: &Signature,
        bindings: usize,
        source: wgpu::ShaderSource<'_>,
        module: &naga::Module,
    ) -> Built {
        let writes = |binding: usize| {
            let parameter = signature.buffers.get(binding);
            parameter.is_none_or(|parameter| parameter.access.writes())
        };
        let each = (0..).zip((0..bindings).map(writes));
        let entries: Vec<_> = each
            .map(|(binding, writes)| {
                let read_only = !writes;
                entry(binding, wgpu::BufferBindingType::Storage { read_only })
            })
            .collect();
        let buffers = self.layout(&entries);
        let scalars = self.layout(&[entry(0, wgpu::BufferBindingType::Uniform)]);
        let layout = wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&buffers), Some(&scalars)],
            immediate_size: 0,
        };
        let layout = self.device.create_pipeline_layout(&layout);
        let about = wgpu::ShaderModuleDescriptor {
            label: None,
            source,
        };
        let shader = self.device.create_shader_module(about);
        let pipeline = |entry: &naga::EntryPoint| {
            let about = wgpu::ComputePipelineDescriptor {
                label: None,
                layout: Some(&layout),
                module: &shader,
                entry_point: Some(&entry.name),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            };
            let entry_made = Entry {
                pipeline: self.device.create_compute_pipeline(&about),
                group: entry.workgroup_size,
            };
            (entry.name.clone(), entry_made)
        };
        Built {
            bindings,
            entries: module.entry_points.iter().map(pipeline).collect(),
            buffers,
            scalars,
        }
    }

    fn layout(&self, entries: &[wgpu::BindGroupLayoutEntry]) -> wgpu::BindGroupLayout {
        let about = wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries,
        };
        self.device.create_bind_group_layout(&about)
    }

    /// How many groups each launch has, if all of it is within the limits of the device.
    fn check(
        &self,
        kernel: &Kernel,
        built: &Built,
        buffers: &[View<'_>],
        scratch: &[usize],
        launches: &[Launch],
    ) -> Result<Vec<[u32; 3]>, DeviceError> {
        let given = buffers.len() + scratch.len();
        if given != built.bindings {
            return Err(DeviceError::Failed(format!(
                "kernel {} has {} buffers at @group(0) and was given {given}: all buffers, then the \
                 scratch buffers",
                kernel.name, built.bindings
            )));
        }
        let sizes = buffers.iter().map(|view| view.bytes().len());
        let mut all = 0_u64;
        for size in sizes.chain(scratch.iter().copied()) {
            let size = padded(size)
                .map(|size| size as u64)
                .filter(|size| *size <= self.info.buffer_bytes_max);
            let size = size.ok_or_else(|| {
                DeviceError::TooLarge(format!(
                    "a buffer has at most {} bytes",
                    self.info.buffer_bytes_max
                ))
            })?;
            all = all.saturating_add(size);
        }
        if all > self.info.memory_bytes {
            return Err(DeviceError::OutOfMemory);
        }
        launches
            .iter()
            .map(|launch| {
                let entry = built.entry(kernel, launch)?;
                if launch.local.is_some_and(|local| local != entry.group) {
                    return Err(DeviceError::Failed(format!(
                        "entry point {} has groups of {:?}, and is launched with {:?}",
                        launch.entry, entry.group, launch.local
                    )));
                }
                let groups = [0, 1, 2].map(|i| launch.grid.0[i].div_ceil(entry.group[i].max(1)));
                let most = self.limits.max_compute_workgroups_per_dimension;
                if groups.iter().any(|groups| *groups > most) {
                    return Err(DeviceError::TooLarge(format!(
                        "{groups:?} groups of {:?} items; {most} in each dimension is the most",
                        entry.group
                    )));
                }
                Ok(groups)
            })
            .collect()
    }

    fn allocate(&self, bytes: usize, usage: BufferUsages) -> Result<wgpu::Buffer, DeviceError> {
        let size = padded(bytes).ok_or(DeviceError::OutOfMemory)? as u64;
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        });
        self.trouble("allocate a buffer on it")?;
        Ok(buffer)
    }

    /// Has bytes copied to a buffer with what is submitted next; what is left of its last word is 0.
    fn write(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<(), DeviceError> {
        if let Some(size) = wgpu::BufferSize::new(buffer.size())
            && let Some(mut view) = self.queue.write_buffer_with(buffer, 0, size)
        {
            view.slice(..bytes.len()).copy_from_slice(bytes);
            let rest = view.len() - bytes.len();
            view.slice(bytes.len()..).copy_from_slice(&vec![0; rest]);
        }
        self.trouble("copy a buffer to it")
    }

    /// Starts all launches, one after the other.
    fn start(
        &self,
        built: &Built,
        memory: &[&wgpu::Buffer],
        launches: &[Launch],
        groups: &[[u32; 3]],
    ) -> Result<(), DeviceError> {
        let bound = self.bound(&built.buffers, memory);
        let mut with = Vec::with_capacity(launches.len());
        for launch in launches {
            let bytes = uniform(&launch.scalars);
            let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
            let buffer = self.allocate(bytes.len(), usage)?;
            self.write(&buffer, &bytes)?;
            with.push(self.bound(&built.scalars, &[&buffer]));
        }
        let mut encoder = self.encoder();
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_bind_group(0, &bound, &[]);
        for ((launch, [x, y, z]), scalars) in launches.iter().zip(groups).zip(&with) {
            let Some(entry) = built.entries.get(launch.entry.as_ref()) else {
                continue;
            };
            pass.set_pipeline(&entry.pipeline);
            pass.set_bind_group(1, scalars, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
        drop(pass);
        self.queue.submit([encoder.finish()]);
        self.trouble("start it")
    }

    fn bound(&self, layout: &wgpu::BindGroupLayout, buffers: &[&wgpu::Buffer]) -> wgpu::BindGroup {
        let each = (0..).zip(buffers);
        let entries: Vec<_> = each
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let about = wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        };
        self.device.create_bind_group(&about)
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        let about = wgpu::CommandEncoderDescriptor::default();
        self.device.create_command_encoder(&about)
    }

    /// Copies what was written from the device.
    fn bring_back(
        &self,
        buffers: &mut [View<'_>],
        memory: &[&wgpu::Buffer],
    ) -> Result<(), DeviceError> {
        let mut encoder = self.encoder();
        let mut copies = Vec::new();
        for (view, buffer) in buffers.iter_mut().zip(memory) {
            let Some(bytes) = view.bytes_mut().filter(|bytes| !bytes.is_empty()) else {
                continue;
            };
            let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
            let copy = self.allocate(bytes.len(), usage)?;
            encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, copy.size());
            copies.push((bytes, copy));
        }
        self.queue.submit([encoder.finish()]);
        for (_, copy) in &copies {
            // Whether it could be mapped shows below.
            copy.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        }
        self.wait()?;
        for (bytes, copy) in copies {
            let mapped = copy
                .slice(..)
                .get_mapped_range()
                .map_err(|error| DeviceError::Failed(format!("copy a buffer from it: {error}")))?;
            bytes.copy_from_slice(&mapped[..bytes.len()]);
        }
        Ok(())
    }

    /// Waits until it did all that was submitted. A kernel that never ends never lets it return: the
    /// broker ends this process then.
    fn wait(&self) -> Result<(), DeviceError> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.trouble("wait for it")?;
        match polled {
            Ok(_) => Ok(()),
            Err(wgpu::PollError::Timeout) => Err(DeviceError::Timeout),
            Err(error) => Err(DeviceError::Failed(format!("wait for it: {error}"))),
        }
    }

    /// What was told since it was looked at last.
    fn trouble(&self, attempt: &str) -> Result<(), DeviceError> {
        let mut told = lock(&self.told);
        let error = told.error.take();
        if let Some(why) = &told.lost {
            return Err(DeviceError::Lost(format!("{attempt}: {why}")));
        }
        match error {
            None => Ok(()),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(DeviceError::OutOfMemory),
            Some(error) => Err(DeviceError::Failed(format!("{attempt}: {}", text(&error)))),
        }
    }

    fn trouble_building(&self) -> Result<(), BuildError> {
        let mut told = lock(&self.told);
        let error = told.error.take();
        if let Some(why) = &told.lost {
            return Err(BuildError::Failed(format!(
                "compile it: the device is gone: {why}"
            )));
        }
        match error {
            None => Ok(()),
            Some(error @ wgpu::Error::Validation { .. }) => Err(BuildError::Compile(text(&error))),
            Some(error) => Err(BuildError::Failed(format!("compile it: {}", text(&error)))),
        }
    }
}

impl Built {
    fn entry(&self, kernel: &Kernel, launch: &Launch) -> Result<&Entry, DeviceError> {
        self.entries.get(launch.entry.as_ref()).ok_or_else(|| {
            DeviceError::Failed(format!(
                "kernel {} has no entry point {}",
                kernel.name, launch.entry
            ))
        })
    }
}

fn text(error: &wgpu::Error) -> String {
    error.to_string().trim().to_owned()
}

const fn entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty,
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

/// Bytes of a buffer that holds so many: there is none of no bytes.
fn padded(bytes: usize) -> Option<usize> {
    bytes.max(1).checked_next_multiple_of(WORD)
}

/// The source for the device, and what it consists of. What is wrong with it, naga says.
fn parse(sources: &Sources) -> Result<(wgpu::ShaderSource<'_>, naga::Module), BuildError> {
    if let Some(source) = &sources.wgsl {
        let module = naga::front::wgsl::parse_str(source)
            .map_err(|error| BuildError::Compile(error.emit_to_string(source).trim().to_owned()))?;
        return whole(wgpu::ShaderSource::Wgsl(Cow::Borrowed(source)), module);
    }
    let file = sources.spirv.as_ref();
    let file = file.ok_or(BuildError::NoSource(Backend::Vulkan))?;
    let bytes = std::fs::read(file).map_err(|error| {
        BuildError::Failed(format!("read its program {}: {error}", file.display()))
    })?;
    let options = naga::front::spv::Options::default();
    let module = naga::front::spv::parse_u8_slice(&bytes, &options).map_err(|error| {
        BuildError::Compile(format!(
            "{} is no SPIR-V that can be read: {error}",
            file.display()
        ))
    })?;
    let (words, _) = bytes.as_chunks::<WORD>();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    whole(wgpu::ShaderSource::SpirV(Cow::Owned(words)), module)
}

/// Sizes of groups have to be known.
fn whole<'a>(
    source: wgpu::ShaderSource<'a>,
    module: naga::Module,
) -> Result<(wgpu::ShaderSource<'a>, naga::Module), BuildError> {
    let mut entries = module.entry_points.iter();
    match entries.find(|entry| entry.workgroup_size_overrides.is_some()) {
        None => Ok((source, module)),
        Some(entry) => Err(BuildError::Compile(format!(
            "the group of entry point {} has a size that is an override; write it as numbers",
            entry.name
        ))),
    }
}

/// Buffers that a source names.
fn buffers_of(module: &naga::Module) -> usize {
    let bindings = module.global_variables.iter();
    let buffers = bindings
        .filter_map(|(_, variable)| variable.binding)
        .filter(|place| place.group == 0);
    buffers
        .map(|place| place.binding as usize + 1)
        .max()
        .unwrap_or(0)
}

/// Scalars as WGSL has them in a struct: each aligned to its size, wide ones with the low word first.
fn uniform(scalars: &[Scalar]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for scalar in scalars {
        let mut add = |one: &[u8]| {
            bytes.resize(bytes.len().next_multiple_of(one.len()), 0);
            bytes.extend_from_slice(one);
        };
        match scalar {
            Scalar::U32(value) => add(&value.to_le_bytes()),
            Scalar::I32(value) => add(&value.to_le_bytes()),
            Scalar::U64(value) => add(&value.to_le_bytes()),
            Scalar::F32(value) => add(&value.to_le_bytes()),
            Scalar::F64(value) => add(&value.to_le_bytes()),
        }
    }
    bytes.resize(
        bytes.len().next_multiple_of(UNIFORM_MIN).max(UNIFORM_MIN),
        0,
    );
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    #[test]
    fn scalars_are_where_a_struct_has_them() {
        let bytes = uniform(&[Scalar::U32(1), Scalar::U64(2), Scalar::F32(1.0)]);
        let words: Vec<u32> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        assert_eq!(words, [1, 0, 2, 0, 0x3f80_0000, 0, 0, 0]);
        assert_eq!(uniform(&[]).len(), UNIFORM_MIN);
    }

    #[test]
    fn buffers_are_whole_words_and_never_nothing() {
        assert_eq!([0, 1, 4, 5].map(padded), [4, 4, 4, 8].map(Some));
        assert_eq!(padded(usize::MAX), None);
    }

    /// Needs no driver.
    #[test]
    fn every_wgsl_source_is_read_and_has_the_entry_points_of_its_launches() {
        let mut read = 0;
        for kernel in kernels::built_in() {
            match parse(&kernel.sources) {
                Ok((_, module)) => {
                    read += 1;
                    assert!(buffers_of(&module) >= kernel.signature.buffers.len());
                }
                Err(BuildError::NoSource(Backend::Vulkan)) => {}
                Err(error) => panic!("{}: {error}", kernel.name),
            }
        }
        assert_eq!(read, 5);
    }
}
