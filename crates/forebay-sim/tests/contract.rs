//! The simulated host passes the contract of every host.
#![expect(
    clippy::unwrap_used,
    reason = "a fixture that fails should stop the test"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Device, Exec, Match, Restart};
use forebay_core::idset::CpuSet;
use forebay_core::slice::{Knob, Setting};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::{Bytes, Limit, Time};
use forebay_sim::contract::{Fixture, HOARD, check_all};
use forebay_sim::{Load, Program, SimHost};

const GROUP: &str = "system/contract";

struct Simulated {
    offered: fn(Knob) -> bool,
}

fn app(id: AppId, binding: Binding) -> App {
    App::new(id, Class::Standard, binding)
}

impl Fixture<SimHost> for Simulated {
    fn fresh(&mut self) -> SimHost {
        let topology = Topology::regular(Shape {
            nodes: 2,
            l3s: 1,
            cores: 2,
            threads: 2,
            memory: Bytes::mib(8192),
        });
        let mut host = SimHost::new(topology, 1)
            .offering(self.offered)
            .with_swap(Bytes::mib(1024));
        if !(self.offered)(Knob::MemoryHigh) {
            host = host.without_reclaim();
        }
        host.install("burn", Program::burner(1));
        host
    }

    fn burner(&mut self, id: AppId) -> App {
        let exec = Exec {
            command: vec!["burn".to_owned()],
            user: None,
            group: None,
            directory: None,
            environment: std::collections::BTreeMap::new(),
            stdout: None,
            stderr: None,
            restart: Restart::Never,
        };
        app(id, Binding::Exec(exec))
    }

    fn reader(&mut self, host: &mut SimHost, id: AppId) -> Result<App, String> {
        let program = Program {
            io: Load::Constant(1e7),
            ..Program::steady(0.1, 1, Bytes::mib(8))
        };
        host.install("read", program);
        let mut app = self.burner(id);
        if let Binding::Exec(exec) = &mut app.binding {
            exec.command = vec!["read".to_owned()];
        }
        Ok(app)
    }

    fn settle(&mut self, host: &mut SimHost, time: Duration) {
        host.advance(time);
    }

    fn time(&mut self, host: &SimHost) -> Time {
        host.time()
    }

    fn read(&mut self, host: &SimHost, app: &App, knob: Knob) -> Result<Setting, String> {
        let group = SimHost::group_of(app);
        Ok(host.read(&group, knob).expect("the group is there"))
    }

    fn write(&mut self, host: &mut SimHost, app: &App, setting: Setting) -> Result<(), String> {
        host.write(&SimHost::group_of(app), setting).unwrap();
        Ok(())
    }

    fn occupied_group(&mut self, host: &mut SimHost, id: AppId) -> Result<App, String> {
        host.create_group(GROUP);
        host.spawn("/usr/bin/burn", Program::burner(2), GROUP)
            .unwrap();
        host.advance(Duration::from_millis(100));
        for setting in [
            Setting::CpuWeight(70),
            Setting::MemoryHigh(Limit::At(Bytes::mib(900))),
            Setting::Cpus("0-2".parse().unwrap()),
        ] {
            host.write(GROUP, setting).unwrap();
        }
        Ok(app(id, Binding::Cgroup(GROUP.into())))
    }

    fn hoarding_group(&mut self, host: &mut SimHost, id: AppId) -> Result<App, String> {
        host.create_group(GROUP);
        let hoarder = Program {
            cold: HOARD,
            ..Program::burner(1)
        };
        host.spawn("/usr/bin/hoard", hoarder, GROUP).unwrap();
        Ok(app(id, Binding::Cgroup(GROUP.into())))
    }

    fn stray(&mut self, host: &mut SimHost, id: AppId) -> Result<(App, u32), String> {
        let pid = host.spawn("/usr/bin/burn", Program::burner(1), "").unwrap();
        let wanted = Match {
            executable: Some("burn".to_owned()),
            command_line: None,
        };
        Ok((app(id, Binding::Match(wanted)), pid))
    }

    fn remove_group(&mut self, host: &mut SimHost, app: &App) -> Result<(), String> {
        host.remove_group(&SimHost::group_of(app));
        Ok(())
    }

    fn interrupts(&mut self, host: &SimHost) -> Result<BTreeMap<u32, CpuSet>, String> {
        Ok(host.interrupts())
    }

    fn has_cost_model(&mut self, host: &SimHost, device: Device) -> Result<bool, String> {
        Ok(host.has_cost_model(device))
    }

    fn left_behind(&mut self, host: &SimHost) -> Result<Vec<String>, String> {
        Ok(host.left_behind())
    }
}

#[test]
fn with_every_knob() {
    check_all(&mut Simulated { offered: |_| true });
}

#[test]
fn with_the_knobs_of_a_v1_host() {
    check_all(&mut Simulated {
        offered: |knob| {
            !matches!(
                knob,
                Knob::CpuIdle | Knob::MemoryMin | Knob::MemoryHigh | Knob::IoWeight
            )
        },
    });
}
