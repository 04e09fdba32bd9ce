//! What the screen can show, and in which order apps stand.

use std::cmp::Ordering;

use forebay_api as api;

/// One of the screens, by the key of its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum View {
    /// CPUs, apps, fronts and events together
    #[default]
    Host,
    /// Apps, with what the chosen one used and will need
    Apps,
    /// Who serves, who stands by, and how far behind
    Fronts,
    /// Who is constrained beyond its slice, and moves between hosts
    Offload,
    /// The update of the operating system
    Updates,
    /// The hosts that share applications
    Fleet,
    /// What happened
    Events,
    /// What apps do with accelerators, and what a CPU costs them
    Accelerators,
}

impl View {
    /// In the order of their keys.
    pub(super) const ALL: [Self; 8] = [
        Self::Host,
        Self::Apps,
        Self::Fronts,
        Self::Offload,
        Self::Updates,
        Self::Fleet,
        Self::Events,
        Self::Accelerators,
    ];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Apps => "apps",
            Self::Fronts => "fronts",
            Self::Offload => "offload",
            Self::Updates => "updates",
            Self::Fleet => "fleet",
            Self::Events => "events",
            Self::Accelerators => "accel",
        }
    }

    /// The view of a key.
    pub(super) fn of_key(key: char) -> Option<Self> {
        let number = key.to_digit(10)?.checked_sub(1)?;
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// The view so many further, around the end.
    pub(super) fn beside(self, steps: usize) -> Self {
        let at = Self::ALL.iter().position(|one| *one == self).unwrap_or(0);
        Self::ALL[(at + steps) % Self::ALL.len()]
    }

    /// Whether the stream does not tell it, so that it is asked for while it is shown.
    pub(super) const fn is_asked(self) -> bool {
        matches!(self, Self::Offload | Self::Updates | Self::Fleet)
    }

    /// Whether it has apps to choose from.
    pub(super) const fn has_apps(self) -> bool {
        matches!(self, Self::Host | Self::Apps)
    }
}

/// What apps are ordered by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    /// By name
    #[default]
    Name,
    /// By how much they matter, the most first
    Class,
    /// By processor time used, the most first
    Cpu,
    /// By processor time planned for, the most first
    Demand,
    /// By share of time in which some task waited for a CPU, the most first
    Wait,
    /// By memory, the most first
    Memory,
    /// By response time, the longest first
    Response,
}

impl Sort {
    const ALL: [Self; 7] = [
        Self::Name,
        Self::Class,
        Self::Cpu,
        Self::Demand,
        Self::Wait,
        Self::Memory,
        Self::Response,
    ];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Class => "class",
            Self::Cpu => "use",
            Self::Demand => "demand",
            Self::Wait => "wait",
            Self::Memory => "memory",
            Self::Response => "response time",
        }
    }

    pub(super) fn next(self) -> Self {
        let at = Self::ALL.iter().position(|one| *one == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// Which of two apps stands first. Where nothing is known, last.
    pub(super) fn order(self, one: &api::App, other: &api::App) -> Ordering {
        let number = |app: &api::App| match self {
            Self::Name | Self::Class | Self::Memory => None,
            Self::Cpu => app.usage.cpu_cores,
            Self::Demand => app.demand.as_ref().map(|demand| demand.cpu.q95),
            Self::Wait => app.usage.cpu_stalled,
            Self::Response => app.usage.response_time_ms,
        };
        let known = match self {
            Self::Name => Ordering::Equal,
            Self::Class => one.class.cmp(&other.class),
            Self::Memory => other.usage.memory_bytes.cmp(&one.usage.memory_bytes),
            _ => match (number(one), number(other)) {
                (Some(one), Some(other)) => other.total_cmp(&one),
                (one, other) => other.is_some().cmp(&one.is_some()),
            },
        };
        known.then_with(|| one.name.cmp(&other.name))
    }
}
