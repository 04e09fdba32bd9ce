//! On the source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::{AppId, Binding};
use forebay_core::fleet::HostName;
use forebay_core::fleet::mobility::{Connections, Memory, ServiceAddress};
use forebay_core::fleet::rounds::{Bounds, Round, Verdict, judge, pays};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::preflight::{Connection, Speeds, Survey, connections};
use forebay_host::checkpoint::{
    Criu, Freezing, Held, LOST_AFTER, Orphaned, Side, Tcp, Tracker, disown_connections,
    lend as lent, let_go, pack,
};
use forebay_host::fence::Unclaimed;

use super::parcels::Parcels;
use super::weigh::{Load, weigh};
use super::{IMAGES, OWED, SURVEY, clear, criu, lending, place, remove, tcp};
use crate::fleet::moves::body::{address, luggage, restart};
use crate::fleet::moves::note::Counted;
use crate::fleet::moves::{Apps, Content, Foreseen, Ground, Leaving, Phase, Road, Trouble, refuse};

/// The rest that sending may take while it stands, beside what CRIU takes anyhow.
const AIM: Duration = Duration::from_millis(50);
/// It stays where it would stand for longer.
const MOST: Duration = Duration::from_secs(5);
/// So often it is tried to have CRIU let it go before its group does: it would run into connections that are not the
/// kernel's, and stands for some 15 s each time.
const LET_GO_TRIES: u32 = 3;
/// And of its files: what changes last is sent while it stands as well.
const FILES: Bounds = Bounds {
    aim: Duration::from_millis(100),
    most: MOST,
    fixed: Duration::from_millis(10),
};

/// When rounds of copying so much are enough, and when in vain.
fn bounds(tracked: Bytes) -> Bounds {
    let fixed = Speeds::MEASURED.fixed(tracked);
    Bounds {
        aim: fixed.saturating_add(AIM),
        most: MOST,
        fixed,
    }
}

/// A process that was looked at and may move.
#[derive(Debug)]
struct Fit {
    pid: u32,
    criu: Criu,
    tracked: Bytes,
    untracked: Bytes,
    foreseen: Foreseen,
}

/// See the module above.
#[derive(Debug)]
pub(in crate::fleet::moves) struct Leaves {
    app: AppId,
    connections: Connections,
    memory: Memory,
    there: Option<HostName>,
    address: Option<ServiceAddress>,
    files: luggage::Leaves,
    apps: Arc<dyn Apps>,
    fit: Option<Fit>,
    tracker: Option<Tracker>,
    held: Option<Held>,
    /// How often it stood on since it was not let go.
    kept: u32,
}

impl Leaves {
    pub(in crate::fleet::moves::body) fn new(
        app: AppId,
        (connections, memory, address): (Connections, Memory, Option<ServiceAddress>),
        files: luggage::Leaves,
        apps: Arc<dyn Apps>,
    ) -> Self {
        Self {
            app,
            connections,
            memory,
            there: None,
            address,
            files,
            apps,
            fit: None,
            tracker: None,
            held: None,
            kept: 0,
        }
    }

    fn ground(&self) -> Result<Ground, Trouble> {
        let ground = self.apps.ground();
        ground.ok_or_else(|| {
            Trouble::Refused(format!("{}: processes do not go along from here", self.app))
        })
    }

    fn images(&self) -> Result<PathBuf, Trouble> {
        Ok(place(&self.ground()?, &self.app, Side::Leaves))
    }

    fn fit(&self) -> Result<&Fit, Trouble> {
        let fit = self.fit.as_ref();
        fit.ok_or_else(|| {
            Trouble::Refused(format!("{} was not looked at; move it again", self.app))
        })
    }

    /// Looks at its process; all that stands against a move at once.
    fn survey(&self, pid: u32, criu: &Criu) -> Result<Survey, Trouble> {
        let seen = |error: forebay_host::Error| Trouble::Refused(error.explain());
        let mut survey = Survey::of(pid, criu).map_err(seen)?;
        let others = self.apps.processes(&self.app).len().saturating_sub(1);
        if others > 0 && survey.obstacles.is_empty() {
            let what = format!("{others} more process(es) are in its slice, and one alone moves");
            survey.obstacles.push(what);
        }
        if self.connections == Connections::Refuse {
            let open = connections(pid).map_err(seen)?;
            survey
                .obstacles
                .extend(that_stay(&open, self.address.as_ref()));
        }
        match survey.obstacles.is_empty() {
            true => Ok(survey),
            false => refuse(format!(
                "{} cannot go along with its memory: {}",
                self.app,
                survey.obstacles.join("; ")
            )),
        }
    }

    /// Copies its memory, or what it wrote since that was done, until little is left.
    fn copy_memory(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        let fit = self.fit()?;
        let (pid, tracked) = (fit.pid, fit.tracked);
        let bounds = bounds(tracked);
        let failed = |error: forebay_host::Error| error.explain();
        let tracker = match &mut self.tracker {
            Some(tracker) => tracker,
            None => {
                road.note.expect(tracked.0);
                let attached = Tracker::attach(pid);
                let attached = attached.map_err(|error| Trouble::Refused(failed(error)))?;
                self.tracker.insert(attached)
            }
        };
        let mut rounds = Vec::new();
        loop {
            let number = u32::try_from(rounds.len() + 1).unwrap_or(u32::MAX);
            let mut parcels = Parcels::new(road, Phase::Copy(number));
            let copied = tracker.round(&mut parcels).map_err(failed);
            let round = parcels.finish(copied)?;
            road.note.expect(round.left.0);
            rounds.push(round);
            if road.note.is_cancelled() {
                return refuse(format!("move {}: it was cancelled", self.app));
            }
            let is_enough = match self.memory {
                Memory::PreCopy => is_enough(&self.app, bounds, &rounds)?,
                // What is left comes after it.
                Memory::PostCopy => !pays(bounds, &rounds),
            };
            if is_enough {
                return Ok(());
            }
        }
    }

    /// Sends what it wrote last, or says which pages that are: what its target has to hear of.
    fn send_memory(&mut self, road: &Road<'_>) -> Result<Vec<Content>, Trouble> {
        let tracker = self.tracker.as_mut().ok_or_else(|| {
            Trouble::Refused(format!("{} was not copied; move it again", self.app))
        })?;
        if self.memory == Memory::PreCopy {
            let mut parcels = Parcels::new(road, Phase::Final);
            let last = tracker.last(&mut parcels).map_err(|error| error.explain());
            parcels.finish(last)?;
            return Ok(Vec::new());
        }
        let mut owed = Vec::new();
        let left = tracker.owe(&mut owed);
        let left = left.map_err(|error| Trouble::Refused(error.explain()))?;
        road.note.owed(Some(left));
        let content = Content {
            name: OWED.to_owned(),
            kind: OWED.to_owned(),
        };
        let bytes = u64::try_from(owed.len()).unwrap_or(u64::MAX);
        let mut from = Counted {
            from: owed.as_slice(),
            note: road.note,
        };
        let parcel = (Phase::Final, &content, bytes);
        road.peer.send(road.to, road.of, parcel, &mut from)?;
        Ok(vec![content])
    }

    /// Sends what CRIU wrote of it.
    fn send_images(&self, road: &Road<'_>) -> Result<Content, Trouble> {
        let packed = pack::pack(&self.images()?);
        let (bytes, images) = packed.map_err(|error| Trouble::Refused(error.explain()))?;
        let content = Content {
            name: IMAGES.to_owned(),
            kind: IMAGES.to_owned(),
        };
        let mut from = Counted {
            from: images,
            note: road.note,
        };
        let parcel = (Phase::Final, &content, bytes);
        road.peer.send(road.to, road.of, parcel, &mut from)?;
        Ok(content)
    }

    /// Its connections go on at the target: nothing of them is left here when it ends.
    fn disown_connections(&self) {
        if self.address.is_none() {
            return;
        }
        for pid in self.apps.processes(&self.app) {
            if let Err(error) = disown_connections(pid) {
                tracing::warn!(app = %self.app, why = error.explain(), "what it had is closed, unheard");
            }
        }
    }

    /// CRIU holds it no more; its group may.
    fn let_go(&mut self) -> Result<(), Trouble> {
        let let_go = match self.held.take() {
            Some(held) => held.thaw(),
            // A daemon before this one had it held. Its group says who it is: this one may not have looked yet.
            None => {
                let processes = self.apps.processes(&self.app);
                let_go(&processes, &self.images()?)
            }
        };
        let_go.map_err(|error| Trouble::Refused(error.explain()))
    }
}

/// Whether it is to be frozen now.
fn is_enough(app: &AppId, bounds: Bounds, rounds: &[Round]) -> Result<bool, Trouble> {
    match judge(bounds, rounds) {
        Verdict::Again => Ok(false),
        Verdict::Freeze(_) => Ok(true),
        Verdict::Stay(pause) => {
            let pause = pause.map_or_else(String::new, |pause| {
                format!(", so that it would stand still for {pause:.1?}")
            });
            refuse(format!(
                "{app} writes its memory faster than it can be sent{pause}; move it when it does less, or have what is \
                 left come after it (`memory = \"post-copy\"`)"
            ))
        }
    }
}

/// What established connections say against a move: all but those at the address that goes along stay.
fn that_stay(open: &[Connection], address: Option<&ServiceAddress>) -> Option<String> {
    // The other end of one that this host has with itself would stay.
    let is_own = |ip| address.is_some_and(|own| own.ip == ip);
    let goes = |one: &&Connection| is_own(one.here.ip()) && !is_own(one.there.ip());
    let stay: Vec<&Connection> = open.iter().filter(|one| !goes(one)).collect();
    let first = stay.first()?;
    let advice = match address {
        None => "give it a `move.address` that goes along, or say".to_owned(),
        Some(own) => format!("only those at {} go along; say", own.ip),
    };
    Some(format!(
        "{} TCP connection(s) are established whose addresses stay here, such as {first}: {advice} \
         `move.connections = \"close\"` if whoever is at their other ends connects anew",
        stay.len()
    ))
}

impl Leaving for Leaves {
    fn goes_to(&mut self, there: &HostName) {
        self.there = Some(there.clone());
    }

    fn check(&mut self) -> Result<BTreeSet<String>, Trouble> {
        let app = self.apps.app(&self.app);
        let app = app.ok_or_else(|| Trouble::Refused(format!("there is no app {}", self.app)))?;
        let Binding::Exec(exec) = &app.binding else {
            return refuse(format!(
                "{} is not started by Forebay, so that it would not be known elsewhere; bind it with `exec`",
                self.app
            ));
        };
        let pid = match (self.apps.runs(&self.app), self.apps.main_process(&self.app)) {
            (Some(true), Some(pid)) => pid,
            _ => {
                return refuse(format!(
                    "{} does not run here; `forebay explain {0}` says why",
                    self.app
                ));
            }
        };
        address::is_here(&*self.apps, &self.app)?;
        let ground = self.ground()?;
        if lending::is_owed(&ground, &self.app).map_err(Trouble::Refused)? {
            return refuse(format!(
                "memory of {} still comes from where it was; move it when all of it is here (`forebay events`)",
                self.app
            ));
        }
        let criu = criu(&ground).map_err(Trouble::Refused)?;
        let mut survey = self.survey(pid, &criu)?;
        // What goes along need not be there before.
        let (with, at_target): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut survey.files)
            .into_iter()
            .partition(|(file, _)| self.files.has(file));
        survey.files = at_target;
        let mapped = with.iter().filter(|(_, bytes)| bytes.is_some());
        self.files
            .are_mapped(mapped.map(|(file, _)| file.as_path()));
        let here = survey.place(Bytes(u64::MAX), &criu);
        let here = here.map_err(|error| Trouble::Refused(error.explain()))?;
        let text = serde_json::to_string(&survey)
            .map_err(|error| Trouble::Refused(format!("say what {} is: {error}", self.app)))?;
        let mut requires = self.files.check()?;
        requires.extend(restart::needs(exec));
        requires.insert(format!("{SURVEY}:{text}"));
        requires.insert(super::connections(self.connections));
        requires.extend(super::memory(self.memory));
        requires.extend(self.address.as_ref().map(address::named));
        self.fit = Some(Fit {
            pid,
            tracked: survey.tracked,
            untracked: survey.untracked,
            foreseen: Foreseen {
                pause: survey.judge(&here, Speeds::MEASURED).pause,
                copying: None,
            },
            criu,
        });
        Ok(requires)
    }

    fn risks(&self) -> Option<String> {
        let there = self.there.as_ref()?;
        let fit = self.fit.as_ref()?;
        (self.memory == Memory::PostCopy).then(|| {
            format!(
                "up to {} MiB of its memory come after it (post-copy), and until they have, it is lost with its memory \
                 and started anew on {there} if this host, {there}, or the link between them is lost, or the daemon here \
                 for more than {} s",
                fit.tracked.0 >> 20,
                LOST_AFTER.as_secs()
            )
        })
    }

    fn weigh(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        if self.memory == Memory::PostCopy {
            // However fast it writes, what is not sent by then comes after it.
            return Ok(());
        }
        let Fit {
            pid,
            tracked,
            untracked,
            ..
        } = *self.fit()?;
        let load = Load {
            pid,
            tracked,
            untracked,
        };
        let foreseen = weigh(&self.app, load, bounds(tracked), road)?;
        if let Some(fit) = &mut self.fit {
            fit.foreseen = foreseen;
        }
        Ok(())
    }

    fn foresees(&self) -> Option<Foreseen> {
        self.fit.as_ref().map(|fit| fit.foreseen)
    }

    fn copy(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        if !self.files.is_empty() {
            self.files.copy(road, FILES)?;
        }
        self.copy_memory(road)?;
        // What it wrote to its files meanwhile, and to its memory while that was sent.
        if !self.files.is_empty() {
            self.files.copy(road, FILES)?;
            if self.memory == Memory::PreCopy {
                self.copy_memory(road)?;
            }
        }
        Ok(())
    }

    fn freeze(&mut self) -> Result<(), Trouble> {
        let images = self.images()?;
        clear(&images).map_err(Trouble::Refused)?;
        let fit = self.fit()?;
        let tcp = tcp(self.connections, self.address.as_ref());
        let stop = match tcp {
            Tcp::Keep => self.apps.stop(&self.app)?,
            Tcp::Refuse | Tcp::Close => None,
        };
        let freezing = Freezing {
            tcp,
            orphaned: Orphaned::GoesOn(stop.as_ref()),
        };
        let held = Held::freeze(&fit.criu, fit.pid, &images, freezing);
        self.held = Some(held.map_err(|error| Trouble::Refused(error.explain()))?);
        // From here on it stands whatever becomes of CRIU and of this daemon.
        restart::stand_still(&*self.apps, &self.app)?;
        self.apps.hush(&self.app)?;
        match self.memory {
            Memory::PreCopy => Ok(()),
            Memory::PostCopy => lent::begin(self.fit()?.pid, &images)
                .map_err(|error| Trouble::Refused(error.explain())),
        }
    }

    fn send(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        let mut contents = self.send_memory(road)?;
        if !self.files.is_empty() {
            contents.extend(self.files.send_last(road)?);
        }
        contents.push(self.send_images(road)?);
        let prepared = road.peer.prepare(road.to, road.of, &contents);
        // Of a file that was changed the target may say no more than that it did not come whole.
        self.files.is_as_sent()?;
        prepared
    }

    fn thaw(&mut self) -> Result<(), Trouble> {
        self.tracker = None;
        lent::end(&self.images()?).map_err(|error| Trouble::Refused(error.explain()))?;
        address::answer(&*self.apps, &self.app);
        // CRIU leaves its connections out of the kernel's hands: it must not read from them before they are back.
        let let_go = self.let_go();
        if let Err(trouble) = &let_go {
            self.kept = self.kept.saturating_add(1);
            if self.kept < LET_GO_TRIES {
                return let_go;
            }
            let what = format!("goes on, and connections of it may be lost: {trouble}");
            self.apps.warn(&self.app, what);
        }
        self.apps.thaw(&self.app)?;
        // What is left of CRIU is removed once that can be.
        let_go?;
        remove(&self.images()?).map_err(Trouble::Refused)
    }

    fn clean(&mut self) -> Result<(), Trouble> {
        self.tracker = None;
        let images = self.images()?;
        lent::end(&images).map_err(|error| Trouble::Refused(error.explain()))?;
        self.let_go()?;
        remove(&images).map_err(Trouble::Refused)
    }

    fn unclaimed(&self) -> Unclaimed {
        match self.memory {
            Memory::PreCopy => Unclaimed::Stands,
            Memory::PostCopy => Unclaimed::Lends,
        }
    }

    fn lend(&mut self, road: &Road<'_>) -> Result<(), Trouble> {
        // By what is on disk: the configuration may say something else by now.
        if !lent::is_noted(&self.images()?) {
            return Ok(());
        }
        let owes = road.peer.owes(road.to, road.of)?;
        road.note.owed(owes);
        match owes {
            None => Ok(()),
            Some(left) => Err(Trouble::Unknown(format!(
                "it runs on {}, and {:.1} MiB of its memory are still to come from here",
                road.to,
                left.as_f64() / f64::from(1 << 20)
            ))),
        }
    }

    fn end(&mut self) -> Result<(), Trouble> {
        self.tracker = None;
        // Its group holds it, and is ended whether or not CRIU was let go.
        if let Err(trouble) = self.let_go() {
            tracing::warn!(app = %self.app, why = %trouble, "ended while CRIU holds it");
        }
        self.disown_connections();
        restart::end(&*self.apps, &self.app)?;
        remove(&self.images()?).map_err(Trouble::Refused)
    }
}

impl Drop for Leaves {
    /// The daemon ends: CRIU goes with it, and the group says whether it goes on.
    fn drop(&mut self) {
        if let Some(held) = self.held.take()
            && let Err(error) = held.thaw()
        {
            tracing::warn!(app = %self.app, reason = error.explain(), "CRIU holds it on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_stay_are_named() {
        let check = |address: Option<&str>, ends: &[(&str, &str)], expected: Option<&[&str]>| {
            let address = address.map(|text| ServiceAddress::parse(text, None).unwrap());
            let open = ends.iter().map(|(here, there)| Connection {
                here: here.parse().unwrap(),
                there: there.parse().unwrap(),
            });
            let said = that_stay(&open.collect::<Vec<_>>(), address.as_ref());
            match (said, expected) {
                (None, None) => {}
                (Some(said), Some(words)) => {
                    let missing = words.iter().find(|word| !said.contains(**word));
                    assert_eq!(missing, None, "{said}");
                }
                (said, _) => panic!("{ends:?}: {said:?}"),
            }
        };
        let own = Some("10.77.0.5/24");
        let client = ("10.77.0.5:80", "10.77.0.9:4000");
        let other = ("10.77.0.2:80", "10.77.0.9:4001");
        check(None, &[], None);
        check(
            None,
            &[client],
            Some(&[
                "1 TCP connection(s)",
                "10.77.0.5:80 with 10.77.0.9:4000",
                "move.address",
            ]),
        );
        check(own, &[client], None);
        check(
            own,
            &[client, other],
            Some(&[
                "1 TCP connection(s)",
                "10.77.0.2:80 with 10.77.0.9:4001",
                "only those at",
            ]),
        );
        check(
            own,
            &[("10.77.0.5:80", "10.77.0.5:4000")],
            Some(&["10.77.0.5:80 with 10.77.0.5:4000"]),
        );
    }
}
