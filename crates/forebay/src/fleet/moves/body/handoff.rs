//! The way `handoff`: an instance of the application runs on both hosts, and its front hands over.
//!
//! Nothing is sent and nobody stands still: requests wait at the front while those under way are answered.
//! The front may be on either host. On the source it hands over before the record is changed, and back where
//! the move is given up; on the target it does when the record says that the application is that host's.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use forebay_core::app::AppId;
use forebay_core::fleet::HostName;
use forebay_core::fleet::arrival::{Found, Mark};

use crate::fleet::moves::service::{Service, Stand};
use crate::fleet::moves::{Apps, Coming, Content, Leaving, Phase, Road, Trouble, refuse};

/// Where no front is on the source, the target has to have one that knows of this host's instance.
const FRONT: &str = "front-of-instance-at:";

/// What both sides have.
#[derive(Debug)]
struct Side {
    app: AppId,
    apps: Arc<dyn Apps>,
}

impl Side {
    fn service(&self) -> Result<Arc<dyn Service>, Trouble> {
        let unknown = || Trouble::Unknown("fronts are not known yet; try again".to_owned());
        self.apps.service().ok_or_else(unknown)
    }

    fn stand(&self) -> Result<Option<Stand>, Trouble> {
        self.service()?.stand(&self.app)
    }

    /// Has the front here hand over to the instance of a host, unless that one serves.
    fn hand_over(&self, to: &HostName) -> Result<(), Trouble> {
        match self.stand()? {
            Some(stand) if stand.serves != *to => {
                stand.can_take(&self.app, to).map_err(Trouble::Refused)?;
                self.service()?.hand_over(&stand.front, &self.app, to)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn here(&self) -> Result<HostName, Trouble> {
        Ok(self.service()?.here())
    }
}

/// On the source.
#[derive(Debug)]
pub(super) struct Leaves {
    side: Side,
    to: Option<HostName>,
}

impl Leaves {
    pub(super) const fn new(app: AppId, apps: Arc<dyn Apps>) -> Self {
        let side = Side { app, apps };
        Self { side, to: None }
    }

    fn to(&self) -> Result<&HostName, Trouble> {
        let unknown = || Trouble::Refused(format!("nobody said where {} moves to", self.side.app));
        self.to.as_ref().ok_or_else(unknown)
    }
}

impl Leaving for Leaves {
    fn goes_to(&mut self, to: &HostName) {
        self.to = Some(to.clone());
    }

    fn check(&mut self) -> Result<BTreeSet<String>, Trouble> {
        let here = self.side.here()?;
        let app = &self.side.app;
        let Some(stand) = self.side.stand()? else {
            return Ok(BTreeSet::from([format!("{FRONT}{here}")]));
        };
        if stand.serves != here {
            return refuse(format!(
                "{app} is served from {} by the front {}; hand over here before, or ask there",
                stand.serves, stand.front
            ));
        }
        let can = stand.can_take(app, self.to()?);
        can.map_err(Trouble::Refused).map(|()| BTreeSet::new())
    }

    fn copy(&mut self, _: &Road<'_>) -> Result<(), Trouble> {
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), Trouble> {
        self.side.hand_over(self.to()?)
    }

    fn send(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        // The target counts on something that came.
        let content = Content {
            name: self.side.app.to_string(),
            kind: "handoff".to_owned(),
        };
        let parcel = (Phase::Final, &content, 0);
        road.peer
            .send(road.to, road.of, parcel, &mut std::io::empty())?;
        road.peer.prepare(road.to, road.of, &[content])
    }

    fn thaw(&mut self) -> Result<(), Trouble> {
        self.side.hand_over(&self.side.here()?)
    }

    fn end(&mut self) -> Result<(), Trouble> {
        // It stands by from now on.
        Ok(())
    }
}

/// On the target.
#[derive(Debug)]
pub(super) struct Comes(Side);

impl Comes {
    pub(super) const fn new(app: AppId, apps: Arc<dyn Apps>) -> Self {
        Self(Side { app, apps })
    }

    fn runs(&self) -> Result<(), Trouble> {
        let app = &self.0.app;
        match self.0.apps.runs(app) {
            Some(true) => Ok(()),
            Some(false) => refuse(format!(
                "{app} has no instance that runs on the target; `forebay explain {app}` there says why"
            )),
            None => Err(Trouble::Unknown(format!("{app} was not looked at yet"))),
        }
    }
}

impl Coming for Comes {
    fn fits(&self, requires: &BTreeSet<String>) -> Result<(), String> {
        self.runs().map_err(|trouble| trouble.to_string())?;
        let app = &self.0.app;
        for required in requires {
            let Some(from) = required.strip_prefix(FRONT) else {
                return Err(format!(
                    "`{required}` is asked for, which this release does not know on the target; update it"
                ));
            };
            let stand = self.0.stand().map_err(|trouble| trouble.to_string())?;
            let here = self.0.here().map_err(|trouble| trouble.to_string())?;
            let stand = stand.ok_or_else(|| {
                format!(
                    "no front on {from} or {here} has the instances of {app} on both; name the other host's in \
                     its `elsewhere`"
                )
            })?;
            stand.can_take(app, &here)?;
        }
        Ok(())
    }

    fn take(&mut self, _: (Phase, &Content, u64), _: &mut dyn Read) -> Result<(), String> {
        Ok(())
    }

    fn prepare(&mut self, _: &[Content]) -> Result<(), Trouble> {
        self.runs()
    }

    fn start(&mut self) -> Result<(), Trouble> {
        let here = self.0.here()?;
        if self.0.stand()?.is_some_and(|stand| stand.serves == here) {
            return Ok(());
        }
        self.runs()?;
        self.0.hand_over(&here)
    }

    fn discard(&mut self) -> Result<(), Trouble> {
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        Ok(())
    }

    fn found(&self, _: Mark) -> Found {
        // Instances are on both, and a start that is refused was looked at: the front says who serves.
        Found::Fresh
    }
}
