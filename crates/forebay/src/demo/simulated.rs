//! The demo's scenario on a simulated host: the same control period, virtual time.
//!
//! For those without root. A simulation has no response times to measure; what it shows is
//! how long work waited for a CPU and who got how much.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::Bytes;
use forebay_sim::{Load, Program, SimHost};
use serde::Serialize;

use super::{Error, print};

/// Of the simulated host; the scenario has no other randomness.
const SEED: u64 = 1;

/// One arm of the simulation.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    /// Share of time in which work of the service waited for a CPU, in percent.
    service_stalled_percent: f64,
    /// CPU time of the service.
    service_cpu_seconds: f64,
    /// CPU time of the batch apps.
    batch_cpu_seconds: f64,
}

/// Runs the three arms for `length` of virtual time each.
pub(super) fn run(length: Duration, json: Option<&Path>) -> Result<ExitCode, Error> {
    let rows = [
        arm("alone", &["service"], true, length)?,
        arm("uncontrolled", &["service", "burn", "churn"], true, length)?,
        arm("forebay", &["service", "burn", "churn"], false, length)?,
    ];
    print::line(format_args!(
        "Simulated host of 2 CPUs, {} s of virtual time an arm. Nothing here was measured on this machine.\n",
        length.as_secs()
    ));
    print::line(format_args!(
        "{:<16}{:>22}{:>18}{:>16}",
        "", "service waited, %", "service CPU s", "batch CPU s"
    ));
    for row in &rows {
        print::line(format_args!(
            "{:<16}{:>22.2}{:>18.1}{:>16.1}",
            row.name, row.service_stalled_percent, row.service_cpu_seconds, row.batch_cpu_seconds
        ));
    }
    if let Some(file) = json {
        let result = serde_json::json!({ "simulated": true, "arms": rows });
        std::fs::write(file, result.to_string() + "\n").map_err(Error::system(
            "write the result to",
            file.display(),
            "check that its directory exists and has room",
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn arm(name: &'static str, members: &[&str], paused: bool, length: Duration) -> Result<Row, Error> {
    let mut host = SimHost::new(
        Topology::regular(Shape {
            nodes: 1,
            l3s: 1,
            cores: 2,
            threads: 1,
            memory: Bytes::mib(4096),
        }),
        SEED,
    );
    let mut policy = Policy::default();
    for member in members {
        let app = app(member)?;
        host.create_group(member);
        host.spawn(member, program(member), member)
            .ok_or_else(|| Error::part(member, "the simulated group is missing"))?;
        policy.apps.insert(app.id.clone(), app);
    }
    let mut state = State::new();
    let mut cpu: BTreeMap<AppId, f64> = BTreeMap::new();
    let (mut stalled, mut stalls) = (0.0, 0.0);
    let period = policy.period;
    let ticks = length.as_millis() / period.as_millis();
    for _ in 0..ticks {
        let inputs = Inputs {
            paused,
            ..Inputs::new(host.time(), &policy)
        };
        let report = tick(&mut state, &mut host, &inputs);
        for (id, app) in &report.apps {
            *cpu.entry(id.clone()).or_default() +=
                app.usage.cpu.unwrap_or(0.0) * period.as_secs_f64();
            if id.as_str() == "service"
                && let Some(share) = app.usage.cpu_stalled
            {
                stalled += share;
                stalls += 1.0;
            }
        }
        host.advance(period);
    }
    let total = |critical: bool| {
        cpu.iter()
            .filter(|(id, _)| (id.as_str() == "service") == critical)
            .map(|(_, seconds)| seconds)
            .sum()
    };
    Ok(Row {
        name,
        service_stalled_percent: 100.0 * stalled / f64::max(stalls, 1.0),
        service_cpu_seconds: total(true),
        batch_cpu_seconds: total(false),
    })
}

fn app(name: &str) -> Result<App, Error> {
    Ok(App::new(
        name.parse().map_err(|error| Error::part(name, error))?,
        if name == "service" {
            Class::Critical
        } else {
            Class::Batch
        },
        Binding::Cgroup(name.into()),
    ))
}

fn program(name: &str) -> Program {
    match name {
        // A load that swings between 0.1 and 0.4 CPUs, as in the real demo.
        "service" => Program {
            cpu: Load::Sine {
                mean: 0.25,
                amplitude: 0.15,
                period: Duration::from_secs(10),
            },
            ..Program::steady(0.25, 2, Bytes::mib(64))
        },
        "burn" => Program::burner(8),
        _ => Program::steady(1.0, 1, Bytes::mib(256)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forebay_keeps_the_service_from_waiting_and_batch_at_work() {
        let length = Duration::from_secs(20);
        let all = ["service", "burn", "churn"];
        let uncontrolled = arm("uncontrolled", &all, true, length).unwrap();
        let forebay = arm("forebay", &all, false, length).unwrap();
        assert!(
            forebay.service_stalled_percent * 5.0 < uncontrolled.service_stalled_percent,
            "{forebay:?} {uncontrolled:?}"
        );
        assert!(
            forebay.batch_cpu_seconds > 0.5 * uncontrolled.batch_cpu_seconds,
            "{forebay:?} {uncontrolled:?}"
        );
    }
}
