//! Devices through Vulkan, by `wgpu`: GPUs that have neither OpenCL nor CUDA.
//!
//! Sources are WGSL: the buffers of the signature, then the scratch buffers, then one uniform buffer
//! with the scalars, are the bindings 0, 1, 2... of group 0, in every entry point. Scalars are of four
//! bytes. The size of a group is that of the source (`@workgroup_size`).

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Instant;

use wgpu::{
    Adapter, Backends, BindGroup, BindGroupEntry, BindGroupLayout, Buffer, BufferUsages,
    CommandEncoderDescriptor, ComputePassDescriptor, ComputePipeline, ErrorFilter, Instance,
    InstanceDescriptor, MapMode, PollType, Queue, ShaderModule,
};

use super::opencl::scratch_sizes;
use super::unknown;
use crate::device::{Backend, BuildError, Device, DeviceError, DeviceInfo, DeviceKind, Timing};
use crate::kernel::{Access, Kernel};
use crate::task::{Launch, Scalar, View};

/// All devices of all drivers.
pub(super) fn find() -> Result<Vec<DeviceInfo>, String> {
    let devices = all();
    if devices.is_empty() {
        return Err(
            "its loader is not installed, or no driver for it (libvulkan.so.1; \
             /usr/share/vulkan/icd.d)"
                .to_owned(),
        );
    }
    Ok(devices.into_iter().map(|(_, info)| info).collect())
}

pub(super) fn open(id: &str) -> Result<Box<dyn Device>, String> {
    let Some((adapter, info)) = all().into_iter().find(|(_, info)| info.id == id) else {
        return Err(unknown(id));
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("forebay"),
        // All that it has: the default limits are those of browsers.
        required_limits: adapter.limits(),
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
        .map_err(|error| format!("open {id} ({}): {error}", info.name))?;
    let (lost, loss) = mpsc::channel();
    device.set_device_lost_callback(move |reason, text| {
        // Nobody listens once the device is closed.
        drop(lost.send(format!("{reason:?}: {text}")));
    });
    Ok(Box::new(Vulkan {
        info,
        device,
        queue,
        loss,
        built: HashMap::new(),
    }))
}

fn all() -> Vec<(Adapter, DeviceInfo)> {
    let instance = Instance::new(InstanceDescriptor {
        backends: Backends::VULKAN,
        ..InstanceDescriptor::new_without_display_handle()
    });
    let adapters = pollster::block_on(instance.enumerate_adapters(Backends::VULKAN));
    let numbered = adapters.into_iter().enumerate();
    numbered
        .map(|(number, adapter)| {
            let info = info(&adapter, number);
            (adapter, info)
        })
        .collect()
}

fn info(adapter: &Adapter, number: usize) -> DeviceInfo {
    let wgpu::AdapterInfo {
        name,
        vendor,
        device_type,
        driver,
        driver_info,
        ..
    } = adapter.get_info();
    let limits = adapter.limits();
    let buffer_bytes_max = limits
        .max_storage_buffer_binding_size
        .min(limits.max_buffer_size);
    DeviceInfo {
        id: format!("vulkan:{number}"),
        backend: Backend::Vulkan,
        platform: "Vulkan".to_owned(),
        vendor: format!("{vendor:#x}"),
        name,
        driver: format!("{driver} {driver_info}"),
        // The interface does not say how much memory there is: only how large a buffer may be.
        memory_bytes: buffer_bytes_max,
        buffer_bytes_max,
        kind: match device_type {
            wgpu::DeviceType::Cpu => DeviceKind::Cpu,
            _ => DeviceKind::Gpu,
        },
    }
}

struct Vulkan {
    info: DeviceInfo,
    device: wgpu::Device,
    queue: Queue,
    loss: mpsc::Receiver<String>,
    built: HashMap<String, Built>,
}

struct Built {
    module: ShaderModule,
    /// Items of a group, by entry point.
    groups: HashMap<String, [u32; 3]>,
    access: Vec<Access>,
    /// By entry point and number of scratch buffers: what was started before.
    pipelines: HashMap<(String, usize), (ComputePipeline, BindGroupLayout)>,
}

impl Device for Vulkan {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn build(&mut self, kernel: &Kernel) -> Result<(), BuildError> {
        let source = kernel
            .sources
            .wgsl
            .as_ref()
            .ok_or(BuildError::NoSource(Backend::Vulkan))?;
        let parsed = wgpu::naga::front::wgsl::parse_str(source)
            .map_err(|error| BuildError::Compile(error.emit_to_string(source)))?;
        let groups = parsed
            .entry_points
            .iter()
            .map(|entry| (entry.name.clone(), entry.workgroup_size))
            .collect();
        let scope = self.device.push_error_scope(ErrorFilter::Validation);
        let module = self
            .device
            .create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(&kernel.name),
                source: wgpu::ShaderSource::Wgsl(source.as_ref().into()),
            });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(BuildError::Compile(error.to_string()));
        }
        let parameters = kernel.signature.buffers.iter();
        let built = Built {
            module,
            groups,
            access: parameters.map(|parameter| parameter.access).collect(),
            pipelines: HashMap::new(),
        };
        self.built.insert(kernel.name.clone().into_owned(), built);
        Ok(())
    }

    fn run(
        &mut self,
        kernel: &Kernel,
        buffers: &mut [View<'_>],
        _: &[Scalar],
        launches: &[Launch],
    ) -> Result<Timing, DeviceError> {
        let Some(built) = self.built.get_mut(kernel.name.as_ref()) else {
            return Err(DeviceError::Failed(format!(
                "kernel {} was not built",
                kernel.name
            )));
        };
        let scopes = [
            ErrorFilter::OutOfMemory,
            ErrorFilter::Validation,
            ErrorFilter::Internal,
        ]
        .map(|filter| self.device.push_error_scope(filter));
        let work = Work {
            device: &self.device,
            queue: &self.queue,
            buffer_bytes_max: self.info.buffer_bytes_max,
        };
        let result = work.run(built, buffers, launches);
        // In the reverse order of their making; what is wrong there is why nothing may be believed.
        let mut error = None;
        for scope in scopes.into_iter().rev() {
            error = pollster::block_on(scope.pop()).or(error);
        }
        if let Ok(reason) = self.loss.try_recv() {
            return Err(DeviceError::Lost(reason));
        }
        match error {
            Some(wgpu::Error::OutOfMemory { .. }) => Err(DeviceError::OutOfMemory),
            Some(error) => Err(DeviceError::Failed(error.to_string())),
            None => result,
        }
    }
}

struct Work<'a> {
    device: &'a wgpu::Device,
    queue: &'a Queue,
    buffer_bytes_max: u64,
}

impl Work<'_> {
    fn run(
        &self,
        built: &mut Built,
        buffers: &mut [View<'_>],
        launches: &[Launch],
    ) -> Result<Timing, DeviceError> {
        let start = Instant::now();
        let mut memory = Vec::with_capacity(buffers.len());
        for view in &*buffers {
            let buffer = self.allocate(
                view.bytes().len(),
                BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC,
            )?;
            if !matches!(view, View::Write(_)) {
                self.write(&buffer, view.bytes());
            }
            memory.push(buffer);
        }
        for size in scratch_sizes(launches) {
            memory.push(self.allocate(size, BufferUsages::STORAGE)?);
        }
        self.queue.submit([]);
        self.wait()?;
        let given = Instant::now();
        let mut encoder = self
            .device
            .create_command_encoder(&CommandEncoderDescriptor::default());
        for launch in launches {
            let groups = groups(built, launch)?;
            let memory = &memory[..buffers.len() + launch.scratch.len()];
            let scalars = self.scalars(launch)?;
            let (pipeline, layout) = self.pipeline(built, launch);
            let bound = self.bind(layout, memory, &scalars);
            // A pass for each: what one wrote is seen by the next.
            let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &bound, &[]);
            let [x, y, z] = groups;
            pass.dispatch_workgroups(x, y, z);
        }
        self.queue.submit([encoder.finish()]);
        self.wait()?;
        let computed = Instant::now();
        self.read(buffers, &memory)?;
        Ok(Timing {
            transfer_in: given - start,
            compute: computed - given,
            transfer_out: computed.elapsed(),
        })
    }

    /// A whole number of words: there is no other.
    fn allocate(&self, bytes: usize, usage: BufferUsages) -> Result<Buffer, DeviceError> {
        let size = (bytes as u64).next_multiple_of(4).max(4);
        if size > self.buffer_bytes_max {
            return Err(DeviceError::OutOfMemory);
        }
        Ok(self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        }))
    }

    fn write(&self, buffer: &Buffer, bytes: &[u8]) {
        let whole = bytes.len() / 4 * 4;
        let (words, rest) = bytes.split_at(whole);
        if !words.is_empty() {
            self.queue.write_buffer(buffer, 0, words);
        }
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            self.queue.write_buffer(buffer, whole as u64, &last);
        }
    }

    fn scalars(&self, launch: &Launch) -> Result<Buffer, DeviceError> {
        let mut words = Vec::new();
        for scalar in &launch.scalars {
            words.extend(match scalar {
                Scalar::U32(value) => value.to_ne_bytes(),
                Scalar::I32(value) => value.to_ne_bytes(),
                Scalar::F32(value) => value.to_ne_bytes(),
                Scalar::U64(_) | Scalar::F64(_) => {
                    return Err(DeviceError::Failed(format!(
                        "entry point {} takes {scalar:?}; in WGSL numbers have 32 bits",
                        launch.entry
                    )));
                }
            });
        }
        // Uniform buffers are of 16 bytes each.
        words.resize(words.len().next_multiple_of(16).max(16), 0);
        let buffer = self.allocate(words.len(), BufferUsages::UNIFORM | BufferUsages::COPY_DST)?;
        self.write(&buffer, &words);
        Ok(buffer)
    }

    fn pipeline<'a>(
        &self,
        built: &'a mut Built,
        launch: &Launch,
    ) -> &'a (ComputePipeline, BindGroupLayout) {
        let Built {
            module,
            access,
            pipelines,
            ..
        } = built;
        let key = (launch.entry.clone().into_owned(), launch.scratch.len());
        pipelines.entry(key).or_insert_with(|| {
            let scratch = vec![Access::ReadWrite; launch.scratch.len()];
            let storage =
                access
                    .iter()
                    .chain(&scratch)
                    .map(|access| wgpu::BufferBindingType::Storage {
                        read_only: !access.writes(),
                    });
            let bindings = storage.chain([wgpu::BufferBindingType::Uniform]);
            let entries: Vec<_> = (0..)
                .zip(bindings)
                .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                    binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty,
                        has_dynamic_offset: false,
                        min_binding_size: None,
                    },
                    count: None,
                })
                .collect();
            let layout = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label: None,
                    entries: &entries,
                });
            let of_pipeline = self
                .device
                .create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: None,
                    bind_group_layouts: &[Some(&layout)],
                    immediate_size: 0,
                });
            let pipeline = self
                .device
                .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(&launch.entry),
                    layout: Some(&of_pipeline),
                    module,
                    entry_point: Some(&launch.entry),
                    compilation_options: wgpu::PipelineCompilationOptions::default(),
                    cache: None,
                });
            (pipeline, layout)
        })
    }

    fn bind(&self, layout: &BindGroupLayout, memory: &[Buffer], scalars: &Buffer) -> BindGroup {
        let entries: Vec<_> = (0..)
            .zip(memory.iter().chain([scalars]))
            .map(|(binding, buffer)| BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    }

    fn read(&self, buffers: &mut [View<'_>], memory: &[Buffer]) -> Result<(), DeviceError> {
        let mut encoder = self
            .device
            .create_command_encoder(&CommandEncoderDescriptor::default());
        let mut brought = Vec::new();
        for (view, buffer) in buffers.iter_mut().zip(memory) {
            if let Some(bytes) = view.bytes_mut().filter(|bytes| !bytes.is_empty()) {
                let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
                let here = self.allocate(bytes.len(), usage)?;
                encoder.copy_buffer_to_buffer(buffer, 0, &here, 0, here.size());
                brought.push((bytes, here));
            }
        }
        self.queue.submit([encoder.finish()]);
        let (mapped, mappings) = mpsc::channel();
        for (_, here) in &brought {
            let mapped = mapped.clone();
            here.map_async(MapMode::Read, .., move |result| drop(mapped.send(result)));
        }
        drop(mapped);
        self.wait()?;
        for (bytes, here) in brought {
            let failed = |why: String| DeviceError::Failed(format!("copy a buffer from it: {why}"));
            match mappings.try_recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(failed(error.to_string())),
                Err(_) => return Err(failed("the driver did not answer".to_owned())),
            }
            let range = here
                .slice(..)
                .get_mapped_range()
                .map_err(|error| failed(error.to_string()))?;
            bytes.copy_from_slice(&range[..bytes.len()]);
        }
        Ok(())
    }

    fn wait(&self) -> Result<(), DeviceError> {
        match self.device.poll(PollType::wait_indefinitely()) {
            Ok(_) => Ok(()),
            Err(wgpu::PollError::Timeout) => Err(DeviceError::Timeout),
            Err(error) => Err(DeviceError::Failed(format!("wait for it: {error}"))),
        }
    }
}

/// Groups to start: the grid over the size of a group that the source says.
fn groups(built: &Built, launch: &Launch) -> Result<[u32; 3], DeviceError> {
    let Some(size) = built.groups.get(launch.entry.as_ref()) else {
        return Err(DeviceError::Failed(format!(
            "there is no entry point {}",
            launch.entry
        )));
    };
    Ok([0, 1, 2].map(|i| launch.grid.0[i].div_ceil(size[i].max(1))))
}
