//! What holds for the host while apps run detached: they are alone on CPUs of their own, which are taken from
//! everybody else and serve no interrupts, as far as the kernel can do that.
//!
//! It is a change of the running policy, made anew whenever the configuration is read, and put back by the value
//! that each part had. All of it happens on the control thread, so that no two changes cross.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use forebay_core::app::{AppId, Class, Floor, Partition, Policy};
use forebay_core::units::MilliCpu;

use super::locked;

#[derive(Debug, Default)]
struct State {
    apps: BTreeSet<AppId>,
    before: Option<Before>,
}

/// What a policy had before.
#[derive(Debug)]
struct Before {
    apps: BTreeMap<AppId, (Class, Floor)>,
    lend: bool,
    partition: Partition,
    move_interrupts: bool,
}

/// Apps that run detached.
#[derive(Debug, Clone, Default)]
pub(crate) struct Apart(Arc<Mutex<State>>);

impl Apart {
    /// Which do, from the next policy on.
    pub(super) fn set(&self, apps: BTreeSet<AppId>) {
        locked(&self.0).apps = apps;
    }

    /// Has a policy that is as it is configured hold them apart.
    pub(crate) fn impose(&self, policy: &mut Policy) {
        let mut state = locked(&self.0);
        if state.apps.is_empty() {
            return;
        }
        let own = policy
            .apps
            .iter()
            .filter(|(id, _)| state.apps.contains(*id));
        state.before = Some(Before {
            apps: own
                .map(|(id, app)| (id.clone(), (app.class, app.floor)))
                .collect(),
            lend: policy.lend,
            partition: policy.partition,
            move_interrupts: policy.move_interrupts,
        });
        for id in &state.apps {
            if let Some(app) = policy.apps.get_mut(id) {
                app.class = Class::Critical;
                app.floor.cpu = app.ceiling.cpu.cut(app.floor.cpu.max(MilliCpu::cpus(1)));
            }
        }
        policy.lend = false;
        policy.move_interrupts = true;
        if policy.partition == Partition::Member {
            policy.partition = Partition::Root;
        }
    }

    /// The same of the policy that runs, unless it holds them apart already.
    pub(super) fn impose_once(&self, policy: &mut Policy) {
        if locked(&self.0).before.is_none() {
            self.impose(policy);
        }
    }

    /// Puts back what the policy had.
    pub(super) fn release(&self, policy: &mut Policy) {
        let mut state = locked(&self.0);
        state.apps.clear();
        let Some(before) = state.before.take() else {
            return;
        };
        for (id, (class, floor)) in before.apps {
            if let Some(app) = policy.apps.get_mut(&id) {
                (app.class, app.floor) = (class, floor);
            }
        }
        policy.lend = before.lend;
        policy.partition = before.partition;
        policy.move_interrupts = before.move_interrupts;
    }
}

#[cfg(test)]
mod tests {
    use forebay_core::app::{App, Binding, Exec};

    use super::*;

    fn policy() -> Policy {
        let app = |name: &str| {
            let id: AppId = name.parse().unwrap();
            let exec = Exec::of(vec!["true".to_owned()]);
            (
                id.clone(),
                App::new(id, Class::Standard, Binding::Exec(exec)),
            )
        };
        Policy {
            apps: [app("web"), app("other")].into(),
            lend: true,
            ..Policy::default()
        }
    }

    #[test]
    fn a_policy_is_as_it_was_afterwards_also_when_it_was_read_again_meanwhile() {
        let apart = Apart::default();
        let mut running = policy();
        apart.impose_once(&mut running);
        assert_eq!(running, policy(), "nobody is detached");
        let web: AppId = "web".parse().unwrap();
        apart.set([web.clone()].into());
        apart.impose_once(&mut running);
        apart.impose_once(&mut running);
        let own = &running.apps[&web];
        assert_eq!(
            (own.class, own.floor.cpu),
            (Class::Critical, MilliCpu::cpus(1))
        );
        assert!(running.move_interrupts && !running.lend);
        assert_eq!(running.partition, Partition::Root);
        let mut read = policy();
        read.headroom_percent = 7;
        apart.impose(&mut read);
        assert_eq!(read.apps[&web].class, Class::Critical);
        apart.release(&mut read);
        let expected = Policy {
            headroom_percent: 7,
            ..policy()
        };
        assert_eq!(read, expected);
    }
}
