//! Whether to compress what is sent from one host to another.
//!
//! Problem: on a slow link compressing makes a transfer several times shorter, on a fast one it makes it
//! longer and costs CPU that applications want, and pages of memory compress by anything between not at
//! all and fiftyfold.
//!
//! Approach: a chunk is compressed while the one before is sent, so that the slower of the two sets the
//! pace. Compressed, content goes at the pace of the compressor or of the link by what is left of each
//! byte; plain, at the pace of the link. Compression is chosen where it is clearly faster. All three
//! figures are measured on the very content and link, and measured again every [`PROBE_EVERY`] chunks,
//! since both change. The pace of the link is learnt only from sends that somebody waited for: others
//! went into a buffer.
//!
//! Properties, tested: nothing that does not shrink is compressed; a link that is faster than the
//! compressor is not slowed down; it does not change its mind for less than [`BETTER_BY`].
//!
//! Source: Jeannot, Knutsson and Björkman, "Adaptive Online Data Compression", HPDC 2002, sections 3
//! and 4, for the pipeline and for measuring both sides all the time.

use std::time::Duration;

/// So much faster one way has to be to be chosen instead of the other.
pub const BETTER_BY: f64 = 1.1;
/// After so many chunks the way that is not taken is tried with one.
pub const PROBE_EVERY: u32 = 64;
/// What does not shrink to this is not worth the CPU on either side.
const SHRINKS_TO: f64 = 0.95;
/// Part that the latest measurement has in the figure.
const NEWEST_PART: f64 = 0.5;

/// What was measured of a link and of a compressor, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paces {
    /// The link, in bytes that go over it.
    pub link: f64,
    /// The compressor, in bytes that go into it.
    pub compressor: f64,
    /// Bytes that come out of it for one that goes in.
    pub left: f64,
}

impl Paces {
    /// The pace of content when it is compressed.
    #[must_use]
    pub fn compressed(self) -> f64 {
        self.compressor
            .min(self.link / self.left.max(f64::MIN_POSITIVE))
    }
}

/// Whether to compress from now on, given whether that is done now.
#[must_use]
pub fn pays(paces: Paces, now: bool) -> bool {
    let faster = match now {
        true => paces.link <= paces.compressed() * BETTER_BY,
        false => paces.compressed() > paces.link * BETTER_BY,
    };
    faster && paces.left <= SHRINKS_TO
}

/// One chunk that was prepared while another was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that went over the link.
    pub wire_bytes: u64,
    /// How long that took.
    pub wire: Duration,
    /// How long the other one took to prepare meanwhile.
    pub prepared: Duration,
}

/// One chunk that was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressed {
    /// Bytes before.
    pub bytes: u64,
    /// Bytes after.
    pub bytes_left: u64,
    /// How long it took.
    pub took: Duration,
}

/// Chooses for one transfer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chooser {
    link: Option<f64>,
    compressor: Option<f64>,
    left: Option<f64>,
    compresses: bool,
    since_probe: u32,
}

impl Chooser {
    /// Whether to compress the next chunk.
    pub fn compress_next(&mut self) -> bool {
        self.since_probe += 1;
        // Without a figure of the link there is nothing to compare with: it is sent plain.
        if self.link.is_some() && (self.compressor.is_none() || self.since_probe > PROBE_EVERY) {
            self.since_probe = 0;
            return !self.compresses;
        }
        self.compresses
    }

    /// Whether it compresses, but for probes.
    #[must_use]
    pub const fn compresses(&self) -> bool {
        self.compresses
    }

    /// Takes in how a chunk was sent.
    pub fn sent(&mut self, sent: Sent) {
        // Nobody waited for the link: a buffer took it, and says nothing about the link. The first one
        // says at least that it is not slower.
        if self.link.is_none() || sent.wire >= sent.prepared {
            learn(&mut self.link, pace(sent.wire_bytes, sent.wire));
        }
        self.judge();
    }

    /// Takes in how a chunk was compressed.
    pub fn compressed(&mut self, compressed: Compressed) {
        learn(
            &mut self.compressor,
            pace(compressed.bytes, compressed.took),
        );
        if compressed.bytes > 0 {
            let left = compressed.bytes_left as f64 / compressed.bytes as f64;
            learn(&mut self.left, Some(left));
        }
        self.judge();
    }

    fn judge(&mut self) {
        if let (Some(link), Some(compressor), Some(left)) = (self.link, self.compressor, self.left)
        {
            let paces = Paces {
                link,
                compressor,
                left,
            };
            self.compresses = pays(paces, self.compresses);
        }
    }
}

/// Bytes per second; none where it took no time that can be measured.
fn pace(bytes: u64, took: Duration) -> Option<f64> {
    let pace = bytes as f64 / took.as_secs_f64();
    (pace.is_finite() && pace > 0.0).then_some(pace)
}

fn learn(figure: &mut Option<f64>, newest: Option<f64>) {
    if let Some(newest) = newest {
        let known = figure.unwrap_or(newest);
        *figure = Some(known + NEWEST_PART * (newest - known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    fn check(link: f64, compressor: f64, left: f64) -> bool {
        let paces = Paces {
            link: link * MB,
            compressor: compressor * MB,
            left,
        };
        pays(paces, false)
    }

    #[test]
    fn a_slow_link_is_worth_it_and_a_fast_one_is_not() {
        assert!(check(125.0, 700.0, 0.4), "1 Gbit/s");
        assert!(!check(1200.0, 700.0, 0.4), "10 Gbit/s");
        assert!(
            check(500.0, 700.0, 0.4),
            "the compressor sets the pace, and is still faster"
        );
        assert!(!check(660.0, 700.0, 0.1), "hardly faster");
        assert!(!check(125.0, 2000.0, 0.97), "it does not shrink");
        assert!(!check(1.0, 2000.0, 1.0));
    }

    #[test]
    fn it_does_not_change_its_mind_for_little() {
        let paces = Paces {
            link: 100.0,
            compressor: 105.0,
            left: 0.5,
        };
        assert!(!pays(paces, false));
        assert!(pays(paces, true));
        assert!(!pays(
            Paces {
                link: 120.0,
                ..paces
            },
            true
        ));
    }

    /// Sends so many chunks of a million bytes over a modelled pipeline; how many were compressed.
    fn transfer(chooser: &mut Chooser, chunks: u32, link: f64, compressor: f64, left: f64) -> u32 {
        let mut compressed = 0;
        for _ in 0..chunks {
            let bytes = 1_000_000;
            let (mut wire_bytes, mut prepared) = (bytes, Duration::from_micros(50));
            if chooser.compress_next() {
                compressed += 1;
                prepared = Duration::from_secs_f64(1.0 / compressor);
                wire_bytes = crate::units::Bytes::from_f64(1e6 * left).0;
                chooser.compressed(Compressed {
                    bytes,
                    bytes_left: wire_bytes,
                    took: prepared,
                });
            }
            let wire = Duration::from_secs_f64(1.0 / link)
                .mul_f64(f64::from(u32::try_from(wire_bytes).unwrap()) / 1e6);
            // A buffer takes at once what the link has time for while the compressor works.
            let wire = if wire < prepared { wire / 20 } else { wire };
            chooser.sent(Sent {
                wire_bytes,
                wire,
                prepared,
            });
        }
        compressed
    }

    #[test]
    fn it_learns_what_pays_and_learns_anew() {
        let mut chooser = Chooser::default();
        let slow = transfer(&mut chooser, 200, 120.0, 700.0, 0.4);
        assert!(slow > 190, "{slow}");
        let fast = transfer(&mut chooser, 400, 1200.0, 700.0, 0.4);
        assert!(fast < 200, "{fast}");
        let slow_again = transfer(&mut chooser, 400, 120.0, 700.0, 0.4);
        assert!(slow_again > 300, "{slow_again}");
        let random = transfer(&mut chooser, 600, 120.0, 700.0, 1.0);
        assert!(random < 30, "{random}");
    }
}
