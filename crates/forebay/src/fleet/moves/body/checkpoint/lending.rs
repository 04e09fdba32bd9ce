//! Memory that comes after its process: lent on the source, awaited on the target.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::{App, AppId};
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::{Epoch, HostName};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::lend::{self as lent, Pages};
use forebay_host::checkpoint::owes::{self as owed, Owes};
use forebay_host::checkpoint::{Lender, Line, Side, porter};
use forebay_host::ledger::Process;
use forebay_host::procs;
use serde::{Deserialize, Serialize};
use tokio::runtime::{self, Runtime};

use super::{place, remove};
use crate::fleet::link::identity::system_clock;
use crate::fleet::link::messages::{Move, Request};
use crate::fleet::link::{self, Answer, Identity, Link};
use crate::fleet::moves::{Apps, Ground, Origin};

/// How long the source may take to be connected to, and how long to answer: it reads its memory.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const FETCH_MAX: Duration = Duration::from_secs(10);

/// Lends memory of an application that stands still here.
///
/// # Errors
/// It lends nothing: why.
pub(in crate::fleet::moves) fn lend(
    ground: Option<Ground>,
    app: &AppId,
    pages: &[Pages],
) -> Result<Vec<u8>, String> {
    let ground = ground.ok_or_else(|| format!("{app}: processes do not go along from here"))?;
    lent::read(&place(&ground, app, Side::Leaves), pages).map_err(|error| error.explain())
}

/// How much is still to come of an application that came; none where nothing is needed.
///
/// # Errors
/// It cannot be found out.
pub(in crate::fleet::moves) fn owes(
    ground: Option<&Ground>,
    app: &AppId,
) -> Result<Option<Bytes>, String> {
    let Some(ground) = ground else {
        return Err(format!("{app}: processes do not come to the target"));
    };
    let owes = owed::owes(&place(ground, app, Side::Comes)).map_err(|error| error.explain())?;
    // Until it was told how it ended, which what is here says.
    Ok(owes.map(|owes| match owes {
        Owes::Comes(left) => left,
        Owes::Whole | Owes::Lost(_) => Bytes(0),
    }))
}

/// Nobody asks any more what became of it.
///
/// # Errors
/// It cannot be removed.
pub(in crate::fleet::moves) fn forget_owed(
    ground: Option<&Ground>,
    app: &AppId,
) -> Result<(), String> {
    ground.map_or(Ok(()), |ground| remove(&place(ground, app, Side::Comes)))
}

/// Tells how it ends with all that still comes, or came, for a porter that an earlier daemon began.
pub(in crate::fleet::moves) fn attend_owed(apps: &Arc<dyn Apps>) {
    let Some(ground) = apps.ground() else {
        return;
    };
    let goes_along = |app: &App| {
        let mobility = app.mobility.as_ref();
        mobility.is_some_and(|mobility| mobility.way == Way::Checkpoint)
    };
    for app in apps.movable().into_iter().filter(goes_along) {
        let images = place(&ground, &app.id, Side::Comes);
        if !matches!(owed::owes(&images), Ok(None)) {
            let (apps, id) = (Arc::clone(apps), app.id.clone());
            let process = porter::landed(&images);
            let thread = std::thread::Builder::new().name("owed".to_owned());
            if let Err(error) = thread.spawn(move || tell_whole(&*apps, &id, (&images, process))) {
                tracing::warn!(app = %app.id, %error, "nobody hears whether its memory is whole");
            }
        }
    }
}

/// Waits until all memory of an application is there, or it is known that it will not be, and tells that.
pub(super) fn tell_whole(
    apps: &dyn Apps,
    app: &AppId,
    (images, process): (&Path, Option<Process>),
) {
    // Where it ended meanwhile, or was dropped, nothing of it is.
    let is_there = |process| procs::is_alive(Path::new("/proc"), process);
    let told = owed::await_whole(images).and_then(|ended| {
        match ended {
            Some(Owes::Whole) if process.is_some_and(is_there) => {
                apps.tell(app, "all of its memory is here".to_owned());
            }
            Some(Owes::Lost(why)) => apps.warn(
                app,
                format!(
                    "it was ended, and what it had in memory is lost, as part of that had still to come from where it \
                     was before: {why}; its policy says whether it is started anew"
                ),
            ),
            _ => {}
        }
        owed::forget(images)
    });
    if let Err(error) = told {
        let reason = error.explain();
        apps.warn(
            app,
            format!("whether all of its memory is here is not known, and where it was before it stands on: {reason}"),
        );
    }
}

/// Of whom memory is to be had, as a porter is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Told {
    app: AppId,
    epoch: Epoch,
    host: HostName,
    address: String,
    /// Where this host has its certificate.
    identity: PathBuf,
}

impl Told {
    /// # Errors
    /// Nobody knows where that host is.
    pub(super) fn of(origin: &Origin, ground: &Ground) -> Result<Self, String> {
        let address = origin.peer.address(&origin.host);
        Ok(Self {
            app: origin.of.app.clone(),
            epoch: origin.of.epoch,
            host: origin.host.clone(),
            address: address.map_err(|trouble| trouble.to_string())?,
            identity: ground.state_dir.join(link::agent::DIR),
        })
    }
}

/// The lender that a porter is told of.
///
/// # Errors
/// It is not understood, or this host is in no fleet.
pub(crate) fn lender(told: &str) -> Result<Arc<dyn Lender>, forebay_host::Error> {
    let told: Told = serde_json::from_str(told).map_err(|error| {
        forebay_host::Error::told(format!(
            "find out whose memory is lent: {error}; report this"
        ))
    })?;
    Ok(Arc::new(told))
}

/// A connection of a porter's own.
struct Wire {
    runtime: Runtime,
    link: Link,
    of: Move,
}

impl Lender for Told {
    fn connect(&self) -> Result<Box<dyn Line>, forebay_host::Error> {
        let told = forebay_host::Error::told;
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|error| told(format!("connect to {}: {error}; check limits", self.host)))?;
        // Read each time: it is renewed meanwhile.
        let identity = Identity::load(&self.identity, system_clock());
        let identity = Arc::new(identity.map_err(|error| told(error.to_string()))?);
        let link = Link::connect(&identity, &self.host, &self.address, CONNECT_MAX);
        let link = runtime
            .block_on(link)
            .map_err(|error| told(error.to_string()))?;
        Ok(Box::new(Wire {
            runtime,
            link,
            of: Move {
                app: self.app.clone(),
                epoch: self.epoch,
            },
        }))
    }
}

impl Line for Wire {
    fn fetch(&mut self, pages: &[Pages]) -> Result<Vec<u8>, forebay_host::Error> {
        let told = forebay_host::Error::told;
        let request = Request::Lend {
            of: self.of.clone(),
            pages: pages.to_vec(),
        };
        let fetched = self.runtime.block_on(self.link.fetch(&request, FETCH_MAX));
        match fetched.map_err(|error| told(error.to_string()))? {
            Ok(bytes) => Ok(bytes),
            Err(Answer::Refused(refused)) => Err(told(refused.message)),
            Err(_) => Err(told(format!(
                "{} answers something else than memory; update it",
                self.link.peer().host
            ))),
        }
    }
}

/// Whether memory of an application that came here is still to come: it cannot move on before.
pub(super) fn is_owed(ground: &Ground, app: &AppId) -> Result<bool, String> {
    owes(Some(ground), app).map(|owes| owes.is_some())
}
