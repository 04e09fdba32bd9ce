//! The kernels that every app has at once.
//!
//! Each has a module: what it takes, which sizes it refuses, what is started on a device, and the
//! implementation on the CPU, by a library that is known to be fast where there is one. Texts for
//! devices are in `source`: one for OpenCL and CUDA, with the words of `dialect.h`.
//!
//! Sizes are held to [`sizes::ELEMENTS_MAX`] so that devices count in 32 bits.

use std::borrow::Cow;

use crate::kernel::{Access, Element, Kernel, Parameter, ScalarParameter, Sources};
use crate::task::ScalarType;

mod add;
mod crc32;
mod fft;
mod histogram;
mod kmeans;
pub mod library;
mod lstm;
mod matmul;
mod reduce;
pub mod sample;
mod scan;
mod sha256;
mod sizes;
mod sort;

/// All of them; names are unique.
#[must_use]
pub fn built_in() -> Vec<Kernel> {
    vec![
        add::kernel(),
        crc32::kernel(),
        fft::kernel(),
        histogram::kernel(),
        kmeans::kernel(),
        lstm::kernel(),
        matmul::kernel(),
        reduce::kernel(),
        scan::kernel(),
        sha256::kernel(),
        sort::kernel(),
    ]
}

fn reads(name: &'static str, element: Element) -> Parameter {
    Parameter {
        name: Cow::Borrowed(name),
        access: Access::Read,
        element,
    }
}

fn writes(name: &'static str, element: Element) -> Parameter {
    Parameter {
        name: Cow::Borrowed(name),
        access: Access::Write,
        element,
    }
}

/// Scalars of one type.
fn scalars(kind: ScalarType, names: &[&'static str]) -> Vec<ScalarParameter> {
    names
        .iter()
        .map(|name| ScalarParameter {
            name: Cow::Borrowed(name),
            kind,
        })
        .collect()
}

/// One text for OpenCL and CUDA.
fn shared_source(text: &'static str) -> Sources {
    Sources {
        opencl: Some(Cow::Borrowed(text)),
        cuda: Some(Cow::Borrowed(text)),
        ..Sources::default()
    }
}

/// The same, and one for Vulkan.
fn shared_source_and(text: &'static str, wgsl: &'static str) -> Sources {
    Sources {
        wgsl: Some(Cow::Borrowed(wgsl)),
        ..shared_source(text)
    }
}

/// A text with the words that it is written in.
macro_rules! in_dialect {
    ($file:literal) => {
        concat!(
            include_str!("source/dialect.h"),
            include_str!(concat!("source/", $file))
        )
    };
}
use in_dialect;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_kernel_has_a_text_for_devices() {
        let kernels = built_in();
        let mut names: Vec<_> = kernels.iter().map(|kernel| &kernel.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), kernels.len());
        for kernel in &kernels {
            let Sources { opencl, cuda, .. } = &kernel.sources;
            assert!(opencl.is_some() && cuda.is_some(), "{}", kernel.name);
        }
    }
}
