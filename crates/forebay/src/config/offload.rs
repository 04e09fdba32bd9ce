//! The section `offload`: when an app counts as constrained, and what is done about it.

use std::time::Duration;

use forebay_core::offload::{Mode, Rules};

use super::error::{Findings, Problem};
use super::resolve::{Bounds, bounded, share};
use super::text::{At, Section};

const HOUR: Duration = Duration::from_secs(3600);
/// How long an answer may be allowed to take.
pub(super) const RESPONSE_TIME: Bounds = Bounds {
    min: Duration::from_millis(1),
    max: HOUR,
};
/// A forecast says nothing of chances between one half and certainty.
const CHANCE_MAX: u32 = 50;

/// Resolves the section.
pub(super) fn rules(mut section: Section, findings: &mut Findings<'_>) -> Rules {
    let defaults = Rules::default();
    let mode = match section.take::<&str>("mode") {
        Some(At { value: "off", .. }) => Mode::Off,
        Some(At { value: "act", .. }) => Mode::Act,
        _ => Mode::Watch,
    };
    let mut part = |key, default| share(&mut section, key, findings).unwrap_or(default);
    let rules = Rules {
        mode,
        cpu_percent: part("cpu", defaults.cpu_percent),
        memory_percent: part("memory", defaults.memory_percent),
        io_percent: part("io", defaults.io_percent),
        network_percent: part("network", defaults.network_percent),
        cpu_stalled_percent: part("cpu_waits", defaults.cpu_stalled_percent),
        memory_stalled_percent: part("memory_waits", defaults.memory_stalled_percent),
        io_stalled_percent: part("io_waits", defaults.io_stalled_percent),
        errors_percent: part("errors", defaults.errors_percent),
        ..defaults
    };
    let at = section.at("chance");
    let chance = share(&mut section, "chance", findings);
    if let (Some(value), Some(at)) = (chance.filter(|chance| *chance > CHANCE_MAX), at) {
        let problem = Problem::new(
            format!("{value}% is more than a forecast can tell"),
            format!("write 1% to {CHANCE_MAX}%"),
        );
        findings.add(at, section.key("chance"), problem);
    }
    let within = |min| Bounds { min, max: HOUR };
    let mut time =
        |key, bounds, default| bounded(&mut section, key, bounds, findings).unwrap_or(default);
    Rules {
        chance_percent: chance.unwrap_or(defaults.chance_percent),
        response_time: time("response_time", RESPONSE_TIME, defaults.response_time),
        persistence: time("persistence", within(Duration::ZERO), defaults.persistence),
        cool_down: time("cool_down", within(Duration::ZERO), defaults.cool_down),
        settling: time(
            "settling",
            within(Duration::from_secs(1)),
            defaults.settling,
        ),
        ..rules
    }
}
