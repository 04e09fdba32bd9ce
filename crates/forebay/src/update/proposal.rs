//! What an update would be on this host: the order that a request comes to, the way for each app, and what stands
//! against it. Nothing is touched.

use std::collections::{BTreeMap, BTreeSet};

use forebay_api as api;
use forebay_core::app::{AppId, Class, Policy};
use forebay_core::update::{Choice, Order, WAYS_OF_A_BOOT, Way, falls_short};

use super::order::{Asked, asked, order};
use super::plan;
use super::soft::Softly;
use super::{Refused, Shared};

/// An update before it is one.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) order: Order,
    pub(super) choices: BTreeMap<AppId, Choice>,
    /// Where the way is chosen here: the one that is taken.
    pub(super) chosen: Option<Way>,
    /// Less disruptive ones, and why not these.
    pub(super) passed_over: Vec<(Way, String)>,
    pub(super) softly: Softly,
    /// How apps would be kept over a reboot here, or why they cannot be.
    pub(super) keeping: Result<String, String>,
    /// Why it would not begin.
    pub(super) refused: Vec<String>,
}

impl Shared {
    pub(super) async fn propose(&self, request: api::UpdateRequest) -> Result<Proposal, Refused> {
        let policy = self.policy().await.map_err(Refused::Cannot)?;
        match asked(&request)? {
            Asked::Way(way) => self.propose_by(request, Some(way), &policy).await,
            Asked::Usual => self.propose_by(request, None, &policy).await,
            Asked::Chosen => self.choose(request, &policy).await,
        }
    }

    /// The least disruptive way over a boot that carries critical apps; where there are none, all but batch.
    async fn choose(
        &self,
        request: api::UpdateRequest,
        policy: &Policy,
    ) -> Result<Proposal, Refused> {
        let mut passed_over = Vec::new();
        let fronts = self.fronts.all();
        let fronts: BTreeSet<&AppId> = fronts.values().map(|known| &known.config.app).collect();
        let [ways @ .., last] = WAYS_OF_A_BOOT;
        for way in ways {
            let proposal = self
                .propose_by(by(way, &request), Some(way), policy)
                .await?;
            let carried: Vec<_> = chosen_for(policy, &fronts)
                .filter_map(|id| Some((id.as_str(), proposal.choices.get(id)?.rung)))
                .collect();
            let fleet = self.fleet.is_some();
            let unoffered = plan::unoffered(way, fleet, &proposal.keeping, &proposal.softly);
            let why = unoffered
                .map(str::to_owned)
                .or_else(|| falls_short(way, &carried))
                .or_else(|| proposal.refused.first().cloned());
            match why {
                Some(why) => passed_over.push((way, why)),
                None => {
                    return Ok(Proposal {
                        chosen: Some(way),
                        passed_over,
                        ..proposal
                    });
                }
            }
        }
        let proposal = self.propose_by(by(last, &request), Some(last), policy);
        Ok(Proposal {
            chosen: Some(last),
            passed_over,
            ..proposal.await?
        })
    }

    async fn propose_by(
        &self,
        request: api::UpdateRequest,
        way: Option<Way>,
        policy: &Policy,
    ) -> Result<Proposal, Refused> {
        let fleet = self.fleet.as_ref();
        let order = order(request, way, policy, fleet)?;
        let softly = self.softly(policy, &order).await;
        let softly = softly.map_err(Refused::Cannot)?;
        let choices = plan::choices(policy, &order, self, &softly);
        let keeping = self.keeping(policy);
        let mut refused = plan::cannot(way, &order, &choices, (fleet, &keeping, &softly));
        refused.extend(self.must_rehearse(&order));
        Ok(Proposal {
            order,
            choices,
            chosen: None,
            passed_over: Vec::new(),
            softly,
            keeping,
            refused,
        })
    }
}

/// The apps that a way is chosen for. Fronts are none: they begin anew with the host, whichever way it is.
fn chosen_for<'a>(
    policy: &'a Policy,
    fronts: &BTreeSet<&AppId>,
) -> impl Iterator<Item = &'a AppId> {
    let apps = || policy.apps.values().filter(|app| !fronts.contains(&app.id));
    let some_are_critical = apps().any(|app| app.class == Class::Critical);
    let least = match some_are_critical {
        true => Class::Critical,
        false => Class::Standard,
    };
    apps()
        .filter(move |app| app.class == least)
        .map(|app| &app.id)
}

/// The same request by one way over a boot.
fn by(way: Way, request: &api::UpdateRequest) -> api::UpdateRequest {
    api::UpdateRequest {
        reboot: true,
        // Of a kernel that comes by another way nothing is tried out.
        rehearse: request.rehearse.clone().filter(|_| way == Way::Checkpoint),
        ..request.clone()
    }
}

#[cfg(test)]
mod tests {
    use forebay_core::app::{App, Binding, Exec};

    use super::*;

    #[test]
    fn a_way_is_chosen_for_critical_apps_and_no_front() {
        let app = |name: &str, class| {
            let id: AppId = name.parse().unwrap();
            let exec = Exec::of(vec!["true".to_owned()]);
            (id.clone(), App::new(id, class, Binding::Exec(exec)))
        };
        let front: AppId = "web.front".parse().unwrap();
        let check = |apps: &[(&str, Class)], expected: &[&str]| {
            let apps = apps.iter().map(|(name, class)| app(name, *class));
            let policy = Policy {
                apps: apps.collect(),
                ..Policy::default()
            };
            let fronts = BTreeSet::from([&front]);
            let chosen: Vec<&str> = chosen_for(&policy, &fronts).map(AppId::as_str).collect();
            assert_eq!(chosen, expected);
        };
        let (critical, standard, batch) = (Class::Critical, Class::Standard, Class::Batch);
        check(
            &[("db", critical), ("web", standard), ("web.front", critical)],
            &["db"],
        );
        check(
            &[("build", batch), ("web", standard), ("web.front", critical)],
            &["web"],
        );
        check(&[("build", batch), ("web.front", critical)], &[]);
    }
}
