//! Weights of a network, and their form as bytes.
//!
//! # Approach
//!
//! All numbers little-endian: eight bytes of magic with the format's number; hidden
//! units and the count of horizons, each horizon (u16); version (u32), fingerprint of
//! the configuration (u64), losses before and after (f64); the count of parameters
//! (u32) and the parameters (f32); FNV-1a of all before (u64).
//!
//! # Properties
//!
//! - Whatever the bytes are, reading them ends in weights or in a [`WeightsError`].
//! - No length that is read is believed before it is checked against the bytes.

use std::error::Error;
use std::fmt;

use super::Layout;

/// The last byte is the number of the format.
const MAGIC: [u8; 8] = *b"FBYLSTM\x01";
const CHECKSUM_LEN: usize = 8;
/// Most that a weight may be: beyond, the network is broken.
const PARAMETER_MAX: f32 = 1e4;

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Origin {
    /// Counts up with every replacement.
    pub version: u32,
    /// Fingerprint of the training's configuration.
    pub config: u64,
    /// Held-out loss of what was there before, relative to the naive forecast.
    pub loss_before: f64,
    /// The same of these weights.
    pub loss_after: f64,
}

/// The parameters of one network.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    layout: Layout,
    parameters: Vec<f32>,
    origin: Origin,
}

/// Why bytes are no weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightsError {
    /// They do not begin as weights of this format do.
    Format,
    /// A later release wrote them, in another format.
    Newer,
    /// They end too early or too late.
    Length,
    /// The checksum is another.
    Checksum,
    /// Horizons or hidden units are out of bounds, or the count of parameters is
    /// not that of such a network.
    Layout,
    /// A number is not finite or is absurdly large.
    Number,
}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => "read weights: not a file of this format; train anew",
            Self::Newer => {
                "read weights: a later release wrote them; run that release, or train anew"
            }
            Self::Length => "read weights: cut off or too long; train anew",
            Self::Checksum => "read weights: the checksum is wrong; train anew",
            Self::Layout => "read weights: no network has these sizes; train anew",
            Self::Number => "read weights: a number is not finite or too large; train anew",
        })
    }
}

impl Error for WeightsError {}

impl Weights {
    /// The weights that come with the crate: for 1, 12 and 60 steps, trained on
    /// synthetic series alone (`examples/lstm_pretrain`). They forecast series that they
    /// never saw, and are where training on a host starts from.
    ///
    /// # Panics
    ///
    /// If what is built in is no weights, which tests exclude.
    #[must_use]
    pub fn pretrained() -> Self {
        Self::from_bytes(include_bytes!("pretrained.bin"))
            .expect("the weights that are built in are read by tests")
    }

    /// None if the parameters do not fit the layout or are not finite.
    pub(super) fn new(layout: Layout, parameters: Vec<f32>, origin: Origin) -> Option<Self> {
        let fit = parameters.len() == layout.shape().parameters();
        let sound = parameters.iter().all(|p| p.abs() <= PARAMETER_MAX);
        (fit && sound).then_some(Self {
            layout,
            parameters,
            origin,
        })
    }

    /// Which network they are for.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Counts up with every replacement.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.origin.version
    }

    /// Where they come from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The same weights under another number: weights that are rolled back have numbers that are
    /// not given again.
    #[must_use]
    pub fn numbered(self, version: u32) -> Self {
        let origin = Origin {
            version,
            ..self.origin
        };
        Self { origin, ..self }
    }

    pub(super) fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// As bytes: little-endian, with the layout, the origin and a checksum.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let horizons = self.layout.horizons();
        for number in [self.layout.hidden(), horizons.len()]
            .iter()
            .chain(horizons)
        {
            // Layouts are bounded far below.
            out.extend(u16::try_from(*number).unwrap_or(u16::MAX).to_le_bytes());
        }
        out.extend(self.origin.version.to_le_bytes());
        out.extend(self.origin.config.to_le_bytes());
        out.extend(self.origin.loss_before.to_le_bytes());
        out.extend(self.origin.loss_after.to_le_bytes());
        let count = u32::try_from(self.parameters.len()).unwrap_or(u32::MAX);
        out.extend(count.to_le_bytes());
        for parameter in &self.parameters {
            out.extend(parameter.to_le_bytes());
        }
        out.extend(fingerprint(&out).to_le_bytes());
        out
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// See [`WeightsError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        if !bytes.starts_with(&MAGIC) {
            let (name, [number]) = MAGIC.split_at(MAGIC.len() - 1) else {
                return Err(WeightsError::Format);
            };
            let found = bytes.strip_prefix(name).and_then(<[u8]>::first);
            return Err(match found {
                Some(found) if found > number => WeightsError::Newer,
                _ => WeightsError::Format,
            });
        }
        let (body, checksum) = bytes
            .split_last_chunk::<CHECKSUM_LEN>()
            .ok_or(WeightsError::Length)?;
        let mut rest = Reader(body.get(MAGIC.len()..).ok_or(WeightsError::Length)?);
        let hidden = usize::from(u16::from_le_bytes(rest.take()?));
        let count = usize::from(u16::from_le_bytes(rest.take()?));
        if count > super::HORIZONS_MAX {
            return Err(WeightsError::Layout);
        }
        let mut horizons = Vec::with_capacity(count);
        for _ in 0..count {
            horizons.push(usize::from(u16::from_le_bytes(rest.take()?)));
        }
        let origin = Origin {
            version: u32::from_le_bytes(rest.take()?),
            config: u64::from_le_bytes(rest.take()?),
            loss_before: f64::from_le_bytes(rest.take()?),
            loss_after: f64::from_le_bytes(rest.take()?),
        };
        let layout = Layout::new(&horizons, hidden).ok_or(WeightsError::Layout)?;
        let count = u32::from_le_bytes(rest.take()?);
        if usize::try_from(count) != Ok(layout.shape().parameters()) {
            return Err(WeightsError::Layout);
        }
        let (numbers, left) = rest.0.as_chunks::<4>();
        if !left.is_empty() || numbers.len() != layout.shape().parameters() {
            return Err(WeightsError::Length);
        }
        if fingerprint(body) != u64::from_le_bytes(*checksum) {
            return Err(WeightsError::Checksum);
        }
        let parameters = numbers.iter().map(|&n| f32::from_le_bytes(n)).collect();
        Self::new(layout, parameters, origin).ok_or(WeightsError::Number)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let (taken, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(WeightsError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo): finds what storage breaks, not what
/// an adversary makes.
pub(super) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
