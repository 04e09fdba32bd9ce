//! A kernel: what is computed, on the CPU always and on devices where there is a source for them.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::Backend;
use crate::task::{Grid, Launch, Scalar, ScalarType, Shape, View};

/// Buffers of one kernel at most.
pub const BUFFERS_MAX: usize = 16;
/// Scalars of one kernel at most.
pub const SCALARS_MAX: usize = 16;
/// The longest name of a kernel, in bytes.
pub const NAME_MAX: usize = 64;

/// What may be computed.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The entry point of its sources too, unless its launches name others.
    pub name: Cow<'static, str>,
    pub signature: Signature,
    /// Run before each launch. No size that it lets pass may make the kernel leave its buffers.
    pub check: Check,
    /// What is started on a device for one task.
    pub launches: Launches,
    pub sources: Sources,
    /// How far a result of a device may be from that of the CPU.
    pub tolerance: Tolerance,
    pub cpu: Cpu,
}

/// What a kernel takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// In the order of the arguments of every entry point.
    pub buffers: Vec<Parameter>,
    /// They follow the buffers (and the scratch buffers of a launch).
    pub scalars: Vec<ScalarParameter>,
}

/// One buffer of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    pub name: Cow<'static, str>,
    pub access: Access,
    pub element: Element,
}

/// One number of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScalarParameter {
    pub name: Cow<'static, str>,
    #[serde(rename = "type")]
    pub kind: ScalarType,
}

/// What a kernel does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    /// All of it is written, and nothing of what was there is read.
    Write,
    ReadWrite,
}

impl Access {
    #[must_use]
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }

    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// What a buffer consists of. A buffer is a whole number of these, and aligned to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Element {
    U8,
    U32,
    I32,
    U64,
    F32,
    F64,
}

impl Element {
    /// In bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::F64 => 8,
        }
    }
}

/// What is asked before each launch.
#[derive(Debug, Clone)]
pub enum Check {
    /// Of a built-in kernel: the reason why these sizes are refused.
    Function(fn(&Shape<'_>) -> Result<(), String>),
    /// Of a kernel of an app: each buffer holds at least so many elements for each item of the grid.
    PerItem(Vec<u32>),
}

/// What is started on a device for one task.
#[derive(Debug, Clone)]
pub enum Launches {
    /// Of a built-in kernel. Only called with a shape that its check let pass.
    Function(fn(&Shape<'_>) -> Vec<Launch>),
    /// Of a kernel of an app: its one entry point over the grid of the task.
    Grid,
}

/// The kernel for devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sources {
    /// OpenCL C.
    pub opencl: Option<Cow<'static, str>>,
    /// CUDA C++, compiled at run time.
    pub cuda: Option<Cow<'static, str>>,
    /// PTX, for CUDA: it needs no compiler but the driver's, and is taken where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ptx: Option<Cow<'static, str>>,
    /// WGSL, for Vulkan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wgsl: Option<Cow<'static, str>>,
    /// A file with SPIR-V, for Vulkan, where there is no `wgsl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spirv: Option<PathBuf>,
    /// A file with the program as an OpenCL device has it, for those that take no source (FPGAs). Its
    /// entry points are those of `opencl`.
    pub opencl_binary: Option<PathBuf>,
}

impl Sources {
    /// Whether there is one for devices of a backend.
    #[must_use]
    pub const fn has(&self, backend: Backend) -> bool {
        match backend {
            Backend::Opencl => self.opencl.is_some() || self.opencl_binary.is_some(),
            Backend::Cuda => self.cuda.is_some() || self.ptx.is_some(),
            Backend::Vulkan => self.wgsl.is_some() || self.spirv.is_some(),
        }
    }

    /// All texts, in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        let texts = [&self.opencl, &self.cuda, &self.ptx, &self.wgsl];
        texts.into_iter().flatten().map(|text| text.len()).sum()
    }
}

/// How far a result may be from that of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tolerance {
    /// Not at all: the same bytes.
    Exact,
    /// Of floats: `|device - cpu| <= absolute + relative * |cpu|`. Two that are not numbers are equal.
    Close { relative: f64, absolute: f64 },
    /// Of floats: `|device - cpu| <= relative * m`, where m is the greatest magnitude among those of
    /// the buffer that are finite. For sums: what cancels keeps the error of its largest terms.
    Scaled { relative: f64 },
}

/// The mandatory implementation.
#[derive(Debug, Clone)]
pub enum Cpu {
    /// In the broker.
    Native(CpuFunction),
    /// In the client that registered it: an app's own code runs in the app's own process.
    Client,
}

/// Computes on the CPU. Only called with a shape that the check let pass.
///
/// # Errors
/// What is wrong with the content of the buffers (not with their sizes).
pub type CpuFunction = fn(&mut Arguments<'_, '_>) -> Result<(), String>;

/// What a kernel computes with.
#[derive(Debug)]
pub struct Arguments<'a, 'b> {
    /// As the signature says.
    pub buffers: &'a mut [View<'b>],
    pub scalars: &'a [Scalar],
    pub grid: Grid,
}

impl Kernel {
    /// Whether the sizes of a task fit.
    ///
    /// # Errors
    /// Why they do not.
    pub fn check(&self, shape: &Shape<'_>) -> Result<(), String> {
        let Signature { buffers, scalars } = &self.signature;
        if shape.elements.len() != buffers.len() || shape.scalars.len() != scalars.len() {
            return Err(format!(
                "kernel {} takes {} buffers and {} scalars, and was given {} and {}",
                self.name,
                buffers.len(),
                scalars.len(),
                shape.elements.len(),
                shape.scalars.len(),
            ));
        }
        for (scalar, parameter) in shape.scalars.iter().zip(scalars) {
            if scalar.kind() != parameter.kind {
                return Err(format!(
                    "kernel {}: {} is to be {:?}, and is {scalar:?}",
                    self.name, parameter.name, parameter.kind
                ));
            }
        }
        match &self.check {
            Check::Function(check) => check(shape),
            Check::PerItem(per_item) => {
                let items = shape.grid.items();
                if items == 0 {
                    return Err(format!("kernel {}: its grid has no items", self.name));
                }
                for ((elements, needed), parameter) in
                    shape.elements.iter().zip(per_item).zip(buffers)
                {
                    let needed = items.checked_mul(u64::from(*needed));
                    if needed.is_none_or(|needed| needed > *elements as u64) {
                        return Err(format!(
                            "kernel {}: {} holds {elements} elements, too few for {items} items",
                            self.name, parameter.name
                        ));
                    }
                }
                Ok(())
            }
        }
    }

    /// What is started on a device for a task of this shape, which was checked.
    #[must_use]
    pub fn launches(&self, shape: &Shape<'_>) -> Vec<Launch> {
        match self.launches {
            Launches::Function(plan) => plan(shape),
            Launches::Grid => vec![Launch {
                entry: self.name.clone(),
                grid: shape.grid,
                local: None,
                scratch: Vec::new(),
                scalars: shape.scalars.to_vec(),
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_is_for_one_backend_and_texts_count() {
        let check = |text: &str, backend: Option<Backend>, length: usize| {
            let sources: Sources = serde_json::from_str(text).unwrap();
            let has = Backend::ALL.into_iter().filter(|one| sources.has(*one));
            assert_eq!(has.collect::<Vec<_>>(), Vec::from_iter(backend), "{text}");
            assert_eq!(sources.length(), length, "{text}");
        };
        check("{}", None, 0);
        check(r#"{"opencl":"abc"}"#, Some(Backend::Opencl), 3);
        check(r#"{"opencl_binary":"/a"}"#, Some(Backend::Opencl), 0);
        check(r#"{"cuda":"abc"}"#, Some(Backend::Cuda), 3);
        check(r#"{"ptx":"abc"}"#, Some(Backend::Cuda), 3);
        check(r#"{"wgsl":"abc"}"#, Some(Backend::Vulkan), 3);
        check(r#"{"spirv":"/a"}"#, Some(Backend::Vulkan), 0);
    }

    /// A worker of before knows none of these, and refuses what it does not know.
    #[test]
    fn sources_that_are_not_there_are_not_sent() {
        let sent = serde_json::to_string(&Sources::default()).unwrap();
        assert_eq!(sent, r#"{"opencl":null,"cuda":null,"opencl_binary":null}"#);
    }
}
