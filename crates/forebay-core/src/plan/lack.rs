//! What an app does without although somebody asked for it.
//!
//! A knob that the host does not offer, or that the owner of an app's group has no way to set, is
//! planned around. The user hears of it where the policy asks for the knob: of what only follows
//! from an app's class, `doctor` tells for the host, but of one app nothing else would.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::app::{App, Binding, IoMax, Partition};
use crate::host::Capabilities;
use crate::slice::{Knob, Setting, Slice};
use crate::units::{Bytes, Limit};

/// Who has no way to set a knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// The host.
    Host,
    /// systemd, which owns the app's group.
    Systemd,
    /// The container runtime, which owns the app's group.
    Runtime,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "this host does not have it; see `forebay doctor`",
            Self::Systemd => "its owner, systemd, has no way to set it",
            Self::Runtime => {
                "its owner, the container runtime, has no way to set it and to take it back"
            }
        })
    }
}

/// The knobs of a slice that cannot be set for an app although they are asked for.
pub(super) fn of(app: &App, slice: &Slice, capabilities: &Capabilities) -> BTreeMap<Knob, Lack> {
    let lack = |setting: &Setting| {
        let knob = setting.knob();
        let lack = match &app.binding {
            _ if capabilities.offers(&app.id, knob) || does_nothing(setting) => return None,
            Binding::Systemd(_) if capabilities.has(knob) => Lack::Systemd,
            Binding::Container(_) if capabilities.has(knob) && is_explicit(app, setting) => {
                Lack::Runtime
            }
            _ if is_explicit(app, setting) => Lack::Host,
            _ => return None,
        };
        Some((knob, lack))
    };
    slice.iter().filter_map(lack).collect()
}

/// Whether a setting is what a group has that nobody set.
pub(crate) fn does_nothing(setting: &Setting) -> bool {
    match setting {
        Setting::CpuMax(limit) => *limit == Limit::Max,
        Setting::MemoryHigh(limit)
        | Setting::MemoryMax(limit)
        | Setting::MemorySwapMax(limit)
        | Setting::MemoryZswapMax(limit) => *limit == Limit::Max,
        Setting::PidsMax(limit) => *limit == Limit::Max,
        Setting::EgressMax(limit) => *limit == Limit::Max,
        Setting::IoMax(_, max) => *max == IoMax::NONE,
        Setting::IoLatency(_, target) => *target == Limit::Max,
        Setting::OomScoreAdj(value) => *value == 0,
        Setting::MemoryMin(bytes) | Setting::MemoryLow(bytes) => *bytes == Bytes(0),
        Setting::CpuIdle(idle) => !idle,
        Setting::CpusPartition(partition) => *partition == Partition::Member,
        Setting::L3Cache(percent) | Setting::MemoryBandwidth(percent) => *percent == 100,
        Setting::Cpus(_)
        | Setting::Mems(_)
        | Setting::CpuWeight(_)
        | Setting::CpuBurst(_)
        | Setting::CpuUclampMin(_)
        | Setting::CpuUclampMax(_)
        | Setting::IoWeight(_) => false,
    }
}

/// Whether the user asked for this knob of this app, and not only for a class.
fn is_explicit(app: &App, setting: &Setting) -> bool {
    match setting {
        Setting::CpuMax(_)
        | Setting::CpuUclampMin(_)
        | Setting::CpuUclampMax(_)
        | Setting::MemoryMax(_)
        | Setting::MemorySwapMax(_)
        | Setting::MemoryZswapMax(_)
        | Setting::PidsMax(_)
        | Setting::EgressMax(_) => true,
        Setting::MemoryMin(_) => app.floor.memory > Bytes(0),
        Setting::IoWeight(_) => app.io_weight.is_some(),
        Setting::IoMax(device, _) => app.io_max.contains_key(device),
        _ => false,
    }
}
