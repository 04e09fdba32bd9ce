//! What one could set by hand, once and for all: the static arms.

use std::path::Path;

use forebay_core::app::{AppId, OnStop};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::idset::CpuSet;
use forebay_core::slice::Setting;
use forebay_host::{LinuxHost, Options};

use crate::demo::{Arm, Error};

/// Processes placed by hand, until undone.
pub(crate) struct Placement {
    host: LinuxHost,
    apps: Vec<AppId>,
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placement")
            .field("apps", &self.apps)
            .finish_non_exhaustive()
    }
}

impl Placement {
    /// Places the service and the batch processes as `arm` says.
    pub(crate) fn make(
        state_dir: &Path,
        arm: Arm,
        service: u32,
        batch: &[u32],
    ) -> Result<Self, Error> {
        let failed = |error: forebay_host::Error| Error::part(arm.name(), error.explain());
        let mut host = LinuxHost::open(Options {
            group: format!("forebay-static-{}", std::process::id()).into(),
            state_dir: state_dir.to_owned(),
            ..Options::default()
        })
        .map_err(failed)?;
        let names = std::iter::once("service".to_owned())
            .chain((1..=batch.len()).map(|number| format!("batch{number}")));
        let apps: Vec<AppId> = names
            .map(|name| name.parse().expect("letters and digits are a name"))
            .collect();
        let [first, rest] = settings(arm, &host.topology().cpu_set());
        let pids = std::iter::once(service).chain(batch.iter().copied());
        let mut actions = Vec::new();
        for (number, (app, pid)) in apps.iter().zip(pids).enumerate() {
            let settings = if number == 0 { &first } else { &rest };
            actions.extend(settings.iter().map(|setting| Action::Set {
                app: app.clone(),
                setting: *setting,
            }));
            actions.push(Action::Enter {
                app: app.clone(),
                pids: vec![pid],
            });
        }
        let outcomes = host.apply(&actions);
        for (action, outcome) in actions.iter().zip(outcomes) {
            if let Outcome::Failed(why) = outcome {
                return Err(Error::part(arm.name(), format!("{action}: {why}")));
            }
        }
        Ok(Self { host, apps })
    }

    /// Puts everything back.
    pub(crate) fn undo(self) -> Result<(), Error> {
        let failed = |why: String| Error::part("the static arm", why);
        let report = self
            .host
            .close(OnStop::Keep)
            .map_err(|error| failed(error.explain()))?;
        if report.is_complete() {
            Ok(())
        } else {
            Err(failed(report.failed.join("; ")))
        }
    }
}

/// Settings of the service and of each batch app: each in a group of its own, as Forebay does.
fn settings(arm: Arm, all: &CpuSet) -> [Vec<Setting>; 2] {
    let last: CpuSet = all.iter().next_back().into_iter().collect();
    let others = all.difference(&last);
    let others = if others.is_empty() { last } else { others };
    let first = |cpus: CpuSet| vec![Setting::Cpus(cpus), Setting::CpuWeight(10_000)];
    match arm {
        Arm::Weights => [
            first(*all),
            vec![Setting::Cpus(*all), Setting::CpuWeight(1)],
        ],
        Arm::Idle => [
            first(*all),
            vec![Setting::Cpus(*all), Setting::CpuIdle(true)],
        ],
        Arm::CpuSet => [first(last), vec![Setting::Cpus(others)]],
        Arm::Precedence => [
            first(*all),
            vec![Setting::Cpus(others), Setting::CpuIdle(true)],
        ],
        Arm::Alone | Arm::Uncontrolled | Arm::Forebay => [Vec::new(), Vec::new()],
    }
}
