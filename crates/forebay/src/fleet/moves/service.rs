//! Fronts, as moves of the way `handoff` need them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId};
use forebay_core::fleet::HostName;
use forebay_core::fleet::choice::Offer;
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::taking::{Taking, rule_out};
use forebay_shadow::status::{MemberStatus, Status};
use forebay_shadow::synchronise::Standing;
use tokio::runtime::Handle;

use super::{Apps, Trouble, body};
use crate::fronts;

/// How long a front may take to say who serves after it handed over.
const SEEN_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const POLL: Duration = Duration::from_millis(5);

/// The fronts of this host.
pub(crate) trait Service: fmt::Debug + Send + Sync {
    /// This host.
    fn here(&self) -> HostName;
    /// How the front of an application stands; none where no front here has it among its instances, with
    /// one of another host.
    fn stand(&self, app: &AppId) -> Result<Option<Stand>, Trouble>;
    /// Has a front hand over, so that a host's instance serves.
    fn hand_over(&self, front: &AppId, app: &AppId, to: &HostName) -> Result<(), Trouble>;
}

/// An instance of it runs on each of its hosts.
pub(crate) fn is_handed_over(app: &App) -> bool {
    let mobility = app.mobility.as_ref();
    mobility.is_some_and(|mobility| mobility.way == Way::Handoff)
}

/// How a front stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) front: AppId,
    /// The host whose instance serves.
    pub(crate) serves: HostName,
    /// The front's epoch, which each of its changes makes greater.
    pub(crate) epoch: u64,
    /// The hosts that it handed over from, and the epoch that began with that, as far as it remembers.
    pub(crate) left: BTreeMap<HostName, u64>,
    /// The hosts with an instance, and why that one could not take over now.
    pub(crate) others: BTreeMap<HostName, Result<(), String>>,
}

impl Stand {
    /// Whether the instance of a host could take over.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub(crate) fn can_take(&self, app: &AppId, to: &HostName) -> Result<(), String> {
        let front = &self.front;
        match self.others.get(to) {
            Some(Ok(())) => Ok(()),
            Some(Err(why)) => Err(format!(
                "{app} cannot be handed over to {to}: {why}; `forebay shadow status {front}` shows it"
            )),
            None => {
                let hosts: Vec<&str> = self.others.keys().map(HostName::as_str).collect();
                Err(format!(
                    "{app} cannot be handed over to {to}: the front {front} has no instance there; it has some on: \
                     {}",
                    hosts.join(", ")
                ))
            }
        }
    }
}

/// Hosts that would refuse are none to choose from: by what they say of the applications that they take, and of one
/// that is handed over those without an instance that could take over.
///
/// # Errors
/// Its front does not say how it stands.
pub(crate) fn fit(
    app: &App,
    apps: &dyn Apps,
    offers: &mut BTreeMap<HostName, Offer>,
) -> Result<(), Trouble> {
    let service = apps.service().filter(|_| is_handed_over(app));
    let stand = service.map(|service| service.stand(&app.id)).transpose()?;
    let stand = stand.flatten();
    if let Ok(own) = body::like(app) {
        let has_front = stand.is_some();
        rule_out(&app.id, &Taking { has_front, ..own }, offers);
    }
    let Some(stand) = stand else {
        return Ok(());
    };
    for (host, offer) in offers {
        if let Err(why) = stand.can_take(&app.id, host) {
            offer.unfit.get_or_insert(why);
        }
    }
    Ok(())
}

/// How a front stands by what it says. The hosts of its instances are those of its plan; `here` is that of
/// those without any.
fn stand(front: &AppId, status: &Status, here: &HostName) -> Option<Stand> {
    let host = |member: &MemberStatus| match &member.elsewhere {
        Some(host) => host.parse().ok(),
        None => Some(here.clone()),
    };
    let serves = host(status.members.get(status.primary)?)?;
    let mut others = BTreeMap::new();
    for (slot, member) in status.members.iter().enumerate() {
        let host = host(member)?;
        if host == serves {
            continue;
        }
        let can = match &member.standing {
            _ if member.detached => Err(format!("{} is detached", member.app)),
            Standing::Behind(why) | Standing::Away(why) => {
                Err(format!("{} is not in step: {why}", member.app))
            }
            Standing::Ready { .. } if status.standby != Some(slot) => Err(format!(
                "{} is not the one that would take over",
                member.app
            )),
            Standing::Ready { .. } => Ok(()),
        };
        // One that can, of several on a host, is enough.
        let known = others.entry(host).or_insert_with(|| can.clone());
        if can.is_ok() {
            *known = can;
        }
    }
    let of = |app: &str| status.members.iter().find(|member| member.app == app);
    let mut left = BTreeMap::new();
    for change in &status.transitions {
        let from = of(&change.from).and_then(host);
        let to = change.to.as_deref().and_then(of).and_then(host);
        if let Some(from) = from.filter(|from| to.as_ref() != Some(from)) {
            left.insert(from, change.epoch);
        }
    }
    Some(Stand {
        front: front.clone(),
        serves,
        epoch: status.epoch,
        left,
        others,
    })
}

/// See [`Service`].
pub(crate) struct Fronts {
    pub(crate) here: HostName,
    pub(crate) desk: fronts::Desk,
    /// The one that fronts are spoken with on.
    pub(crate) runtime: Handle,
}

impl fmt::Debug for Fronts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fronts").finish_non_exhaustive()
    }
}

impl Service for Fronts {
    fn here(&self) -> HostName {
        self.here.clone()
    }

    fn stand(&self, app: &AppId) -> Result<Option<Stand>, Trouble> {
        let all = self.desk.all();
        let has = |known: &fronts::Known| {
            let mut own = known.config.instances.iter().map(|(app, _)| app);
            !known.config.elsewhere.is_empty() && own.any(|own| own == app)
        };
        let Some((name, known)) = all.iter().find(|(_, known)| has(known)) else {
            return Ok(None);
        };
        let said = match (&known.status, &known.unreachable) {
            (Ok(status), None) => stand(name, status, &self.here),
            (Err(why), _) | (_, Some(why)) => {
                return Err(Trouble::Unknown(format!("the front {name}: {why}")));
            }
        };
        said.map(Some)
            .ok_or_else(|| Trouble::Unknown(format!("the front {name} does not say who serves")))
    }

    fn hand_over(&self, front: &AppId, app: &AppId, to: &HostName) -> Result<(), Trouble> {
        let change = self.desk.change(front.as_str(), fronts::Way::InOrder);
        let changed = self.runtime.block_on(change);
        let deadline = Instant::now() + SEEN_MAX;
        // What the front says counts, whether its answer came or not.
        loop {
            let serves = self.stand(app).ok().flatten().map(|stand| stand.serves);
            if serves.as_ref() == Some(to) {
                return Ok(());
            }
            match &changed {
                Err(fronts::Refused::Unknown(why)) => return Err(Trouble::Refused(why.clone())),
                Err(fronts::Refused::Busy(why)) if serves.is_some() => {
                    return Err(Trouble::Refused(why.clone()));
                }
                _ if Instant::now() >= deadline => {
                    let what = format!("the front {front} does not say that {to} serves {app}");
                    return Err(Trouble::Unknown(what));
                }
                _ => std::thread::sleep(POLL),
            }
        }
    }
}
