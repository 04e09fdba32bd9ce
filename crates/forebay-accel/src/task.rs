//! One piece of work: a kernel, views of memory, numbers, a grid.

use std::borrow::Cow;

use bytemuck::{AnyBitPattern, NoUninit};
use serde::{Deserialize, Serialize};

/// How many items a kernel is run for, in up to three dimensions. None is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid(pub [u32; 3]);

impl Grid {
    /// So many items in a row.
    #[must_use]
    pub const fn line(items: u32) -> Self {
        Self([items, 1, 1])
    }

    /// All items; the most that there can be where they are more than a number holds.
    #[must_use]
    pub fn items(self) -> u64 {
        let [x, y, z] = self.0.map(u64::from);
        (x * y).saturating_mul(z)
    }
}

/// A number that is passed by value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scalar {
    U32(u32),
    I32(i32),
    U64(u64),
    #[serde(rename = "f32_bits", with = "f32_bits")]
    F32(f32),
    #[serde(rename = "f64_bits", with = "f64_bits")]
    F64(f64),
}

/// Floats travel as their bits: JSON has none that are no numbers, and rounds.
mod f32_bits {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f32, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
        u32::deserialize(from).map(f32::from_bits)
    }
}

mod f64_bits {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

/// What a [`Scalar`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScalarType {
    U32,
    I32,
    U64,
    F32,
    F64,
}

impl Scalar {
    #[must_use]
    pub const fn kind(self) -> ScalarType {
        match self {
            Self::U32(_) => ScalarType::U32,
            Self::I32(_) => ScalarType::I32,
            Self::U64(_) => ScalarType::U64,
            Self::F32(_) => ScalarType::F32,
            Self::F64(_) => ScalarType::F64,
        }
    }
}

/// The sizes of a task: what is checked before each launch.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// Elements of each buffer, as the signature orders them.
    pub elements: &'a [usize],
    pub scalars: &'a [Scalar],
    /// What the client asked for. Kernels whose sizes follow from their buffers pay no heed to it.
    pub grid: Grid,
}

/// One start of an entry point on a device.
///
/// Its arguments are all buffers of the signature, then the scratch buffers, then the scalars.
/// Launches of one task run one after the other, and each sees what those before it wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    pub entry: Cow<'static, str>,
    pub grid: Grid,
    /// Items of a group; `None` leaves it to the device. It divides the grid.
    pub local: Option<[u32; 3]>,
    /// Memory of the device, in bytes, that all launches of the task share: the n-th of one launch
    /// is the n-th of every other, and as large as the largest of them.
    pub scratch: Vec<usize>,
    pub scalars: Vec<Scalar>,
}

/// A piece of memory that a kernel works on.
#[derive(Debug)]
pub enum View<'a> {
    Read(&'a [u8]),
    Write(&'a mut [u8]),
    ReadWrite(&'a mut [u8]),
}

impl View<'_> {
    /// What may be read of it. Of one that is only written it says nothing.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Write(bytes) | Self::ReadWrite(bytes) => bytes,
        }
    }

    /// What may be written of it, if it may be.
    #[must_use]
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::Read(_) => None,
            Self::Write(bytes) | Self::ReadWrite(bytes) => Some(bytes),
        }
    }

    /// As elements.
    ///
    /// # Errors
    /// When it is not a whole number of these, or not aligned to them.
    pub fn slice<T: AnyBitPattern>(&self) -> Result<&[T], String> {
        bytemuck::try_cast_slice(self.bytes()).map_err(|error| error.to_string())
    }

    /// As elements to write to.
    ///
    /// # Errors
    /// When it is only read, not a whole number of these, or not aligned to them.
    pub fn slice_mut<T: AnyBitPattern + NoUninit>(&mut self) -> Result<&mut [T], String> {
        let bytes = self.bytes_mut().ok_or("a buffer is only read")?;
        bytemuck::try_cast_slice_mut(bytes).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_after_they_travelled() {
        let check = |scalar: Scalar, wanted: &str| {
            let text = serde_json::to_string(&scalar).unwrap();
            assert_eq!(text, wanted);
            let back: Scalar = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), wanted);
        };
        check(Scalar::U64(u64::MAX), r#"{"u64":18446744073709551615}"#);
        check(Scalar::I32(-1), r#"{"i32":-1}"#);
        check(Scalar::F32(f32::NAN), r#"{"f32_bits":2143289344}"#);
        check(Scalar::F32(0.1), r#"{"f32_bits":1036831949}"#);
        check(
            Scalar::F64(f64::NEG_INFINITY),
            r#"{"f64_bits":18442240474082181120}"#,
        );
    }
}
