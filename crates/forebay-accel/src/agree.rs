//! Whether a result of a device is that of the CPU, as far as the kernel promises.

use std::fmt;

use crate::kernel::{Element, Tolerance};

/// Where two results differ first.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The element.
    pub index: usize,
    /// In words: what the CPU and what the device has there.
    pub cpu: String,
    pub device: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, cpu, device } = self;
        write!(
            f,
            "element {index} is {cpu} on the CPU and {device} on the device"
        )
    }
}

/// Compares two buffers of elements. What is no float is compared exactly, whatever is tolerated.
///
/// # Errors
/// The first difference beyond what is tolerated.
pub fn agree(
    tolerance: Tolerance,
    element: Element,
    cpu: &[u8],
    device: &[u8],
) -> Result<(), Difference> {
    if cpu.len() != device.len() {
        return Err(Difference {
            index: cpu.len().min(device.len()) / element.size(),
            cpu: format!("one of {} bytes", cpu.len()),
            device: format!("one of {} bytes", device.len()),
        });
    }
    if cpu == device {
        return Ok(());
    }
    match (element, tolerance) {
        (Element::F32, Tolerance::Close { .. } | Tolerance::Scaled { .. }) => {
            floats(tolerance, cpu, device, |bytes: [u8; 4]| {
                f64::from(f32::from_ne_bytes(bytes))
            })
        }
        (Element::F64, Tolerance::Close { .. } | Tolerance::Scaled { .. }) => {
            floats(tolerance, cpu, device, f64::from_ne_bytes)
        }
        _ => exactly(element, cpu, device),
    }
}

fn exactly(element: Element, cpu: &[u8], device: &[u8]) -> Result<(), Difference> {
    let size = element.size();
    let pairs = cpu.chunks(size).zip(device.chunks(size)).enumerate();
    for (index, (cpu, device)) in pairs {
        if cpu != device {
            return Err(Difference {
                index,
                cpu: format!("{cpu:02x?}"),
                device: format!("{device:02x?}"),
            });
        }
    }
    Ok(())
}

fn floats<const N: usize>(
    tolerance: Tolerance,
    cpu: &[u8],
    device: &[u8],
    read: fn([u8; N]) -> f64,
) -> Result<(), Difference> {
    let (cpu, _) = cpu.as_chunks::<N>();
    let (device, _) = device.as_chunks::<N>();
    let greatest = || {
        let magnitudes = cpu.iter().map(|bytes| read(*bytes).abs());
        magnitudes.filter(|m| m.is_finite()).fold(0.0, f64::max)
    };
    let (relative, absolute) = match tolerance {
        Tolerance::Exact => (0.0, 0.0),
        Tolerance::Close { relative, absolute } => (relative, absolute),
        Tolerance::Scaled { relative } => (0.0, relative * greatest()),
    };
    for (index, (cpu, device)) in cpu.iter().zip(device).enumerate() {
        let (cpu, device) = (read(*cpu), read(*device));
        let equal = cpu == device || (cpu.is_nan() && device.is_nan());
        // A comparison with what is no number is false.
        let close = cpu.is_finite() && (device - cpu).abs() <= absolute + relative * cpu.abs();
        if !equal && !close {
            return Err(Difference {
                index,
                cpu: format!("{cpu:e}"),
                device: format!("{device:e}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tolerance: Tolerance, cpu: &[f32], device: &[f32], first: Option<usize>) {
        let found = agree(
            tolerance,
            Element::F32,
            bytemuck::cast_slice(cpu),
            bytemuck::cast_slice(device),
        );
        assert_eq!(
            found.as_ref().err().map(|difference| difference.index),
            first,
            "{tolerance:?} {cpu:?} {device:?}: {found:?}"
        );
    }

    #[test]
    fn floats_may_differ_as_far_as_is_tolerated() {
        let close = Tolerance::Close {
            relative: 0.01,
            absolute: 0.001,
        };
        check(close, &[100.0, 0.0], &[100.9, 0.0009], None);
        check(close, &[100.0, 0.0], &[101.1, 0.0], Some(0));
        check(close, &[100.0, 0.0], &[100.0, 0.0011], Some(1));
        let scaled = Tolerance::Scaled { relative: 0.01 };
        check(scaled, &[100.0, 0.0], &[100.0, 0.9], None);
        check(scaled, &[100.0, 0.0], &[100.0, 1.1], Some(1));
        check(Tolerance::Exact, &[1.0, 2.0], &[1.0, 2.000_001], Some(1));
        check(Tolerance::Exact, &[1.0], &[1.0, 2.0], Some(1));
    }

    #[test]
    fn what_is_no_number_equals_itself_alone() {
        let scaled = Tolerance::Scaled { relative: 0.1 };
        let (nan, most) = (f32::NAN, f32::INFINITY);
        check(scaled, &[nan, 1.0], &[-nan, 1.0], None);
        check(scaled, &[1.0, nan], &[1.0, 1.0], Some(1));
        check(scaled, &[1.0, 1.0], &[1.0, nan], Some(1));
        check(scaled, &[1.0, most], &[1.001, most], None);
        check(scaled, &[1.0, most], &[1.001, 1.0], Some(1));
        check(scaled, &[1.0, 1.0], &[1.001, most], Some(1));
    }

    #[test]
    fn what_is_no_float_is_compared_exactly() {
        let (cpu, device) = (7_u32.to_ne_bytes(), 8_u32.to_ne_bytes());
        let scaled = Tolerance::Scaled { relative: 1.0 };
        assert!(agree(scaled, Element::U32, &cpu, &device).is_err());
        assert!(agree(scaled, Element::U32, &cpu, &cpu).is_ok());
    }
}
