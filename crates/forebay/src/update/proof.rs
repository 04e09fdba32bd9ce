//! Measures that the slice of an update leaves critical apps alone, before that is believed.
//!
//! The slice is filled with work, as the update's own command may fill it, and meanwhile is looked: which CPUs
//! the work was seen on, which CPUs each app may use and nobody of the update, what the kernel has as memory
//! that is never taken from it, how long its tasks wait for a CPU and how long its clients wait for answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Class, Policy};
use forebay_core::idset::CpuSet;
use forebay_core::report::TickReport;
use forebay_core::units::Bytes;
use forebay_core::update::{AppProof, Call, Fact, Looked, Order, Pace, Step, judge};
use forebay_host::mounts::{Controller, Hierarchies};

use super::errand::{self, Standing};
use super::journal::Entry;
use super::run::{LOAD_RUN, LOOK, PROC, Runner, START_MAX, WINDOW, forget};
use super::{detached, measure, outdated};
use crate::control::Command;

/// How long the load lasts: the window and what its start takes.
const LOAD_SECONDS: u64 = 8;
/// Between two looks at where the load runs.
const STEP: Duration = Duration::from_millis(100);
/// Share of time that tasks of an app may wait for a CPU more than before.
const WAITED_MORE_MAX: f64 = 0.25;
/// Share of looks at which the load may be on CPUs of an app: a plan that changes needs a moment.
const CROSSED_MAX: f64 = 0.2;
/// Files of a group with memory that is never taken away, and with memory that is taken last.
const FLOORS: [&str; 2] = ["memory.min", "memory.low"];

/// What was seen over some time.
#[derive(Debug, Default)]
struct Seen {
    ran_on: CpuSet,
    /// Sums of shares of time, and how many.
    waited: BTreeMap<AppId, (f64, u32)>,
    looks: u32,
    /// Looks at which the load was on CPUs of an app that the load may not use.
    crossed: BTreeMap<AppId, u32>,
}

impl Seen {
    fn waited(&self, app: &AppId) -> Option<f64> {
        let (sum, count) = self.waited.get(app)?;
        Some(sum / f64::from(*count))
    }

    /// One look at where the load runs.
    fn look(&mut self, report: &TickReport, load: u32) {
        let proc = Path::new(PROC);
        let ran_on = outdated::ran_on(proc, load);
        let others = outdated::cpus(proc, load).unwrap_or_default();
        self.ran_on = self.ran_on.union(&ran_on);
        self.looks += 1;
        for (id, app) in report
            .apps
            .iter()
            .filter(|(_, app)| app.class == Class::Critical)
        {
            let own = app.main_pid.and_then(|pid| outdated::cpus(proc, pid));
            let own = own.unwrap_or_default().difference(&others);
            if !own.is_disjoint(&ran_on) {
                *self.crossed.entry(id.clone()).or_default() += 1;
            }
        }
    }

    fn crossed(&self, app: &AppId) -> f64 {
        let crossed = self.crossed.get(app).copied().unwrap_or(0);
        f64::from(crossed) / f64::from(self.looks.max(1))
    }
}

/// What clients and tasks met, before the load or under it.
#[derive(Debug, Default)]
struct Part {
    paces: BTreeMap<AppId, Pace>,
    seen: Seen,
}

impl Runner {
    pub(super) async fn prove(&self, entry: &mut Entry) -> Result<Fact, String> {
        self.hold_apart(entry).await?;
        let number = entry.record.number;
        let step = Step {
            update: number,
            run: LOAD_RUN,
            boot: self.shared.place.boot.clone(),
        };
        // What an attempt before this one left: a load may be repeated.
        let file = self.shared.place.errand(number, LOAD_RUN);
        let burn = self.load(number);
        // The limit is the command's: the load ends by itself.
        let order = Order {
            limit: entry.record.order.limit.max(START_MAX),
            ..entry.record.order.clone()
        };
        let app = self.shared.place.app(&step, &order, &burn);
        let app = app.ok_or("the load has no name")?;
        let id = app.id.clone();
        self.end(&id).await?;
        forget(&file)?;
        let report = self.report().await?;
        entry.was = measure::look(&self.shared.fronts, &report.report).await;
        let before = self.watch(None).await?;
        entry.before.clone_from(&before.paces);
        self.add(app).await?;
        let begun = self.await_load(&file).await;
        let load = begun.as_ref().ok().copied();
        let loaded = self.watch(load).await?;
        let still =
            errand::look(&file).map_err(|error| format!("look at {}: {error}", file.display()))?;
        let begun = begun.and_then(|pid| match still {
            Standing::Runs(_) => Ok(pid),
            _ => Err("the load ended while it was watched".to_owned()),
        });
        let report = self.report().await?;
        let policy = self.shared.policy().await?;
        let proof = self.proof(&policy, &report.report, load, (&before, &loaded));
        self.end(&id).await?;
        forget(&file)?;
        if let Err(why) = begun {
            return Ok(Fact::Refused(format!("measure the isolation: {why}")));
        }
        let doubt = proof.iter().find_map(|(id, found)| {
            let app = policy.apps.get(id)?;
            let why = doubt(app, found, &entry.record.order)?;
            Some(format!(
                "{id} is not isolated from the update: {why}; give {id} a floor, or go on all the same with \
                 --unproved"
            ))
        });
        match doubt.filter(|_| !entry.record.order.unproved) {
            Some(why) => {
                // What was found is to be seen, also where it is not enough.
                entry.record.proof = proof;
                Ok(Fact::Refused(why))
            }
            None => Ok(Fact::Proved(proof)),
        }
    }

    /// Has apps that are to run detached be alone on CPUs of their own, so that it is measured as it will be.
    async fn hold_apart(&self, entry: &Entry) -> Result<(), String> {
        let apart = self.shared.kept.apart();
        apart.set(detached(&entry.record));
        let edit = Box::new(move |policy: &mut Policy| {
            apart.impose_once(policy);
            Ok(())
        });
        self.shared.ask(|reply| Command::Edit(edit, reply)).await?
    }

    /// Work on all CPUs that the slice may use.
    fn load(&self, number: u64) -> Vec<String> {
        let count = self.shared.place.dir().join(format!("{number}.load"));
        [
            &self.shared.place.executable.display().to_string(),
            "workload",
            "burn",
            "--count-file",
            &count.display().to_string(),
            "--seconds",
            &LOAD_SECONDS.to_string(),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Waits until the load runs; its process.
    async fn await_load(&self, file: &Path) -> Result<u32, String> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let standing = errand::look(file).map_err(|error| error.to_string())?;
            match standing {
                Standing::Runs(pid) => return Ok(pid),
                Standing::Ended(ending) => return Err(format!("the load {ending}")),
                Standing::Unknown if Instant::now() < deadline => {}
                Standing::Unknown => return Err("the load was not started".to_owned()),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What clients and tasks meet for a while, and where the load runs.
    async fn watch(&self, load: Option<u32>) -> Result<Part, String> {
        let seeing = async {
            let mut seen = Seen::default();
            let until = Instant::now() + WINDOW;
            while Instant::now() < until {
                let published = self.report().await?;
                for (id, app) in &published.report.apps {
                    if let Some(share) = app.usage.cpu_stalled {
                        let (sum, count) = seen.waited.entry(id.clone()).or_default();
                        *sum += share;
                        *count += 1;
                    }
                }
                if let Some(pid) = load {
                    seen.look(&published.report, pid);
                }
                tokio::time::sleep(STEP).await;
            }
            Ok::<Seen, String>(seen)
        };
        let (paces, seen) = tokio::join!(measure::paces(&self.shared.fronts, WINDOW), seeing);
        Ok(Part { paces, seen: seen? })
    }

    fn proof(
        &self,
        policy: &Policy,
        report: &TickReport,
        load: Option<u32>,
        (before, loaded): (&Part, &Part),
    ) -> BTreeMap<AppId, AppProof> {
        let proc = Path::new(PROC);
        let others = load.and_then(|pid| outdated::cpus(proc, pid));
        let hierarchies = Hierarchies::read(proc).ok();
        let critical = policy
            .apps
            .values()
            .filter(|app| app.class == Class::Critical);
        let prove = |app: &App| {
            let pid = report.apps.get(&app.id)?.main_pid;
            let own = pid.and_then(|pid| outdated::cpus(proc, pid));
            let front = measure::front_of(&self.shared.fronts, &app.id);
            let of = |part: &Part| {
                let pace = front.as_ref().and_then(|front| part.paces.get(front));
                pace.copied().unwrap_or_default()
            };
            let proof = AppProof {
                exclusive: match (own, others) {
                    (Some(own), Some(others)) => own.difference(&others),
                    _ => CpuSet::default(),
                },
                memory_floor: pid
                    .zip(hierarchies.as_ref())
                    .and_then(|(pid, hierarchies)| floor(hierarchies, proc, pid)),
                before: of(before),
                loaded: of(loaded),
                load_ran_on: loaded.seen.ran_on,
                crossed: loaded.seen.crossed(&app.id),
                waited: before.seen.waited(&app.id),
                waited_loaded: loaded.seen.waited(&app.id),
            };
            Some((app.id.clone(), proof))
        };
        critical.filter_map(prove).collect()
    }
}

/// Why an app is not isolated, if so.
fn doubt(app: &App, found: &AppProof, order: &Order) -> Option<String> {
    let past = Looked {
        runs: true,
        port: None,
        pace: found.before,
        ..Looked::default()
    };
    let now = Looked {
        pace: found.loaded,
        ..past
    };
    if let Err(why) = judge(&past, &now, app.response_time_max) {
        return Some(format!("while its slice was full of work, {why}"));
    }
    if found.crossed > CROSSED_MAX {
        return Some(format!(
            "at {:.0} % of all looks work of its slice ran on CPUs that are to be {}'s own ({})",
            found.crossed * 100.0,
            app.id,
            found.exclusive
        ));
    }
    if order.told.get(&app.id) == Some(&Call::Detach) && found.exclusive.is_empty() {
        return Some("it is to run detached, and has no CPU of its own".to_owned());
    }
    let (Some(before), Some(loaded)) = (found.waited, found.waited_loaded) else {
        return None;
    };
    // On CPUs that it shares it waits by its weight, and what that comes to its clients say.
    let more = !found.exclusive.is_empty() && loaded > before + WAITED_MORE_MAX;
    more.then(|| {
        format!(
            "while its slice was full of work, its tasks waited for a CPU {:.0} % of the time, before it were \
             {:.0} %",
            loaded * 100.0,
            before * 100.0
        )
    })
}

/// What the kernel has as memory that is not taken from the group of a process; none where it has none, as
/// with v1.
fn floor(hierarchies: &Hierarchies, proc: &Path, pid: u32) -> Option<Bytes> {
    let (index, _) = hierarchies.of(Controller::Memory)?;
    let text = std::fs::read_to_string(proc.join(format!("{pid}/cgroup"))).ok()?;
    let dir = hierarchies.membership(&text).into_iter().nth(index)??;
    FLOORS.into_iter().find_map(|file| {
        let text = std::fs::read_to_string(dir.join(file)).ok()?;
        let bytes = text.trim().parse().ok().filter(|bytes| *bytes > 0)?;
        Some(Bytes(bytes))
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use forebay_core::app::{Binding, Exec};
    use forebay_core::update::WELL_WITHIN_USUAL;

    use super::*;

    fn order(told: &[(&str, Call)]) -> Order {
        let told = told.iter().map(|(app, call)| (app.parse().unwrap(), *call));
        Order {
            command: vec!["true".to_owned()],
            directory: PathBuf::from("/"),
            rollback: None,
            rehearse: Default::default(),
            limit: Duration::from_secs(1),
            well_within: WELL_WITHIN_USUAL,
            restart: Default::default(),
            reboot: false,
            unproved: false,
            elsewhere: false,
            keep: false,
            soft: false,
            told: told.collect(),
        }
    }

    #[test]
    fn an_app_is_isolated_by_what_was_measured() {
        let exec = Exec::of(vec!["true".to_owned()]);
        let app = App::new("web".parse().unwrap(), Class::Critical, Binding::Exec(exec));
        let cpus = |list: &str| list.parse::<CpuSet>().unwrap();
        let good = AppProof {
            exclusive: cpus("1"),
            load_ran_on: cpus("0"),
            waited: Some(0.01),
            waited_loaded: Some(0.02),
            ..AppProof::default()
        };
        let plain = order(&[]);
        let check = |found: &AppProof, order: &Order, expected: Option<&str>| {
            let said = doubt(&app, found, order);
            match expected {
                None => assert_eq!(said, None, "{found:?}"),
                Some(words) => assert!(said.unwrap_or_default().contains(words), "{found:?}"),
            }
        };
        check(&good, &plain, None);
        check(&AppProof::default(), &plain, None);
        let crossed = AppProof {
            load_ran_on: cpus("0-1"),
            crossed: 0.3,
            ..good.clone()
        };
        check(&crossed, &plain, Some("at 30 % of all looks"));
        let waits = AppProof {
            waited_loaded: Some(0.4),
            ..good.clone()
        };
        check(&waits, &plain, Some("waited for a CPU 40 % of the time"));
        let shares = AppProof {
            exclusive: CpuSet::default(),
            ..waits
        };
        check(&shares, &plain, None);
        let told = order(&[("web", Call::Detach)]);
        check(&shares, &told, Some("has no CPU of its own"));
        check(&good, &told, None);
    }
}
