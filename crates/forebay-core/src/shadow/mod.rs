//! The rules by which a shadow takes over from its primary.
//!
//! [`detection`] tells from evidence whether a primary is lost; [`promotion`] says what is done
//! about it, in which order, and what may be undone. Both are pure: the data plane gathers the
//! evidence and carries the steps out.

pub mod detection;
pub mod promotion;

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::app::{AppId, Class, Floor, Policy};

/// The policy while these apps stand by: a shadow is small until it serves.
///
/// It keeps a fair share of what is left, and not the idle class of batch: in the period in which it
/// takes over it has to run at once.
#[must_use]
pub fn planned<'a>(policy: &'a Policy, standing_by: &BTreeSet<AppId>) -> Cow<'a, Policy> {
    let smaller = |id: &&AppId| {
        let app = policy.apps.get(*id);
        app.is_some_and(|app| app.class == Class::Critical || app.floor != Floor::default())
    };
    if !standing_by.iter().any(|id| smaller(&id)) {
        return Cow::Borrowed(policy);
    }
    let mut planned = policy.clone();
    for id in standing_by {
        if let Some(app) = planned.apps.get_mut(id) {
            app.class = app.class.max(Class::Standard);
            app.floor = Floor::default();
        }
    }
    Cow::Owned(planned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{App, Binding};
    use crate::units::MilliCpu;

    #[test]
    fn a_shadow_is_small_and_nothing_else_changes() {
        let mut policy = Policy::default();
        let id = |name: &str| name.parse::<AppId>().unwrap();
        for (name, class) in [
            ("a", Class::Critical),
            ("b", Class::Critical),
            ("c", Class::Batch),
        ] {
            let mut app = App::new(id(name), class, Binding::Cgroup(name.into()));
            app.floor.cpu = MilliCpu(500);
            policy.apps.insert(app.id.clone(), app);
        }
        assert!(matches!(
            planned(&policy, &BTreeSet::new()),
            Cow::Borrowed(_)
        ));
        let nobody = BTreeSet::from([id("x")]);
        assert!(matches!(planned(&policy, &nobody), Cow::Borrowed(_)));
        let small = planned(&policy, &BTreeSet::from([id("b"), id("c")]));
        let class = |name: &str| small.apps[&id(name)].class;
        assert_eq!(class("a"), Class::Critical);
        assert_eq!(class("b"), Class::Standard);
        assert_eq!(class("c"), Class::Batch);
        assert_eq!(small.apps[&id("b")].floor, Floor::default());
        assert_eq!(small.apps[&id("a")], policy.apps[&id("a")]);
    }
}
