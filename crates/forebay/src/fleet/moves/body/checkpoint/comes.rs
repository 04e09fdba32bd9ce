//! On the target.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding};
use forebay_core::fleet::arrival::{Found, Mark};
use forebay_core::fleet::mobility::{Connections, Memory, ServiceAddress};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::pack;
use forebay_host::checkpoint::porter::{self, Errand, Porter};
use forebay_host::checkpoint::preflight::{Speeds, Survey};
use forebay_host::checkpoint::{Landing, Side, Tcp, disown_connections};
use forebay_host::ledger::Process;

use super::lending::{self, Told, tell_whole};
use super::{
    CONNECTIONS, IMAGES, LENDS, MEMORY, OWED, SURVEY, clear, criu, memory_word, place, remove, tcp,
    word,
};
use crate::fleet::moves::body::{address, luggage, restart};
use crate::fleet::moves::{Apps, Coming, Content, Ground, Origin, Phase, Trouble, refuse};

/// How long it may take until no process of a copy is left.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);
/// What this host has free stays free in part.
const SPARE: u64 = 64 << 20;

/// See the module above.
#[derive(Debug)]
pub(in crate::fleet::moves) struct Comes {
    app: AppId,
    binding: Binding,
    connections: Connections,
    memory: Memory,
    origin: Option<Origin>,
    address: Option<ServiceAddress>,
    files: luggage::Comes,
    apps: Arc<dyn Apps>,
    porter: Option<Porter>,
    process: Option<Process>,
}

impl Comes {
    pub(in crate::fleet::moves::body) fn new(
        app: &App,
        (connections, memory, address): (Connections, Memory, Option<ServiceAddress>),
        files: luggage::Comes,
        apps: Arc<dyn Apps>,
    ) -> Self {
        Self {
            app: app.id.clone(),
            binding: app.binding.clone(),
            connections,
            memory,
            origin: None,
            address,
            files,
            apps,
            porter: None,
            process: None,
        }
    }

    fn ground(&self) -> Result<Ground, String> {
        let ground = self.apps.ground();
        ground.ok_or_else(|| format!("{}: processes do not come to the target", self.app))
    }

    fn images(&self) -> Result<PathBuf, String> {
        Ok(place(&self.ground()?, &self.app, Side::Comes))
    }

    /// Whether this host has what a process of another one needs.
    fn has_place(&self, text: &str) -> Result<(), String> {
        let survey: Survey = serde_json::from_str(text).map_err(|error| {
            format!(
                "what {} needs on the target is not understood there ({error}); update it",
                self.app
            )
        })?;
        let criu = criu(&self.ground()?).map_err(|why| format!("on the target: {why}"))?;
        let place = survey.place(free()?, &criu);
        let place = place.map_err(|error| format!("on the target: {}", error.explain()))?;
        let outlook = survey.judge(&place, Speeds::MEASURED);
        match outlook.obstacles.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "{} cannot go along with its memory: {}",
                self.app,
                outlook.obstacles.join("; ")
            )),
        }
    }

    /// Puts its files in their places before it is made: what was there stays aside until it runs here.
    fn place_files(&self, contents: &[Content]) -> Result<(), Trouble> {
        if self.files.is_empty() {
            return Ok(());
        }
        self.files.complete(contents)?;
        self.files.agrees()?;
        self.files.staged.place_all().map_err(Trouble::Refused)
    }

    /// The porter; a new one at first, with nothing of an earlier attempt.
    fn porter(&mut self) -> Result<&mut Porter, String> {
        if self.porter.is_none() {
            let ground = self.ground()?;
            let images = place(&ground, &self.app, Side::Comes);
            clear(&images)?;
            let groups = self.apps.slice(&self.app);
            let errand = Errand {
                criu: criu(&ground)?.program().to_owned(),
                images,
                most: free()?,
                landing: Landing {
                    tcp: tcp(self.connections, self.address.as_ref()),
                    groups: groups.map_err(|trouble| trouble.to_string())?,
                },
            };
            let started = command(&errand)
                .and_then(|command| Porter::start(command).map_err(|error| error.explain()));
            self.porter = Some(started?);
        }
        let porter = self.porter.as_mut();
        porter.ok_or_else(|| format!("nothing came of {}", self.app))
    }

    /// Hears of the end of a porter, which fetches memory after it where some is owed.
    fn hear(&self, (mut porter, process): (Child, Process), is_owed: bool) -> Result<(), String> {
        let (apps, app) = (Arc::clone(&self.apps), self.app.clone());
        let images = self.images()?;
        let thread = std::thread::Builder::new().name("porter".to_owned());
        let heard = thread.spawn(move || match porter.wait() {
            _ if is_owed => tell_whole(&*apps, &app, (&images, Some(process))),
            Ok(status) if status.success() => {}
            ended => apps.warn(
                &app,
                format!(
                    "its memory was not filled in, and it ended: {ended:?}; see the daemon's log"
                ),
            ),
        });
        if let Err(error) = heard {
            tracing::warn!(app = %self.app, %error, "nobody hears whether its memory is whole");
        }
        Ok(())
    }

    /// What a porter is told of whoever lends memory.
    fn told(&self) -> Result<String, String> {
        let ground = self.ground()?;
        let origin = self.origin.as_ref();
        let origin = origin.ok_or_else(|| format!("nobody knows where {} comes from", self.app))?;
        let told = serde_json::to_string(&Told::of(origin, &ground)?);
        told.map_err(|error| format!("say where {} comes from: {error}; report this", self.app))
    }

    fn landed(&self) -> Option<Process> {
        let found = || porter::landed(&self.images().ok()?);
        self.process.or_else(found)
    }
}

/// Memory that is free here.
fn free() -> Result<Bytes, String> {
    let text = std::fs::read_to_string("/proc/meminfo");
    let text = text.map_err(|error| format!("read /proc/meminfo: {error}; mount /proc"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    let kib = kib.ok_or("find MemAvailable in /proc/meminfo; update the kernel")?;
    Ok(Bytes((kib << 10).saturating_sub(SPARE)))
}

/// What starts a porter.
fn command(errand: &Errand) -> Result<Command, String> {
    let program = std::env::current_exe();
    let program = program.map_err(|error| format!("find this program: {error}; report this"))?;
    let mut command = Command::new(program);
    let tcp = match errand.landing.tcp {
        Tcp::Keep => "keep",
        Tcp::Close => "close",
        Tcp::Refuse => "refuse",
    };
    command
        .arg("porter")
        .arg("--criu")
        .arg(&errand.criu)
        .arg("--images")
        .arg(&errand.images)
        .args(["--most", &errand.most.0.to_string(), "--tcp", tcp]);
    for group in &errand.landing.groups {
        command.arg("--group").arg(group);
    }
    forebay_host::outside::have_step_out(&mut command);
    Ok(command)
}

impl Coming for Comes {
    fn comes_from(&mut self, origin: Origin) {
        self.origin = Some(origin);
    }

    fn fits(&self, requires: &BTreeSet<String>) -> Result<(), String> {
        let Binding::Exec(exec) = &self.binding else {
            return Err(format!(
                "{} is not started by Forebay on the target; bind it with `exec` there, too",
                self.app
            ));
        };
        for required in requires {
            let (kind, what) = required.split_once(':').unwrap_or((required, ""));
            match kind {
                SURVEY => self.has_place(what)?,
                LENDS if what == memory_word(self.memory) => {}
                LENDS => {
                    return Err(format!(
                        "{} has another `move.memory` on the target; give it the same on all hosts",
                        self.app
                    ));
                }
                CONNECTIONS if what == word(self.connections) => {}
                CONNECTIONS => {
                    return Err(format!(
                        "{} has another `move.connections` on the target; give it the same on all hosts",
                        self.app
                    ));
                }
                _ => self
                    .files
                    .has((kind, what))
                    .or_else(|| restart::has(&self.app, exec, (kind, what)))
                    .or_else(|| address::has(&self.app, &*self.apps, (kind, what)))
                    .unwrap_or_else(|| Err(restart::unknown(required)))?,
            }
        }
        self.files.has_all(requires)
    }

    fn take(
        &mut self,
        (_, content, bytes): (Phase, &Content, u64),
        from: &mut dyn Read,
    ) -> Result<(), String> {
        match content.kind.as_str() {
            MEMORY => {
                let taken = self.porter()?.take(bytes, from);
                // It waits for the rest of what was cut off.
                if taken.is_err()
                    && let Some(porter) = self.porter.take()
                {
                    porter.end();
                }
                taken.map_err(|error| error.explain())
            }
            OWED => {
                let told = self.told()?;
                let porter = self.porter()?;
                let owed = porter.owe(&told, bytes, from);
                owed.map_err(|error| error.explain())
            }
            IMAGES => {
                self.porter()?;
                pack::unpack(&self.images()?, &mut from.take(bytes))
                    .map_err(|error| error.explain())
            }
            other => {
                let taken = self.files.take((content, bytes), from);
                taken.unwrap_or_else(|| {
                    Err(format!(
                        "`{other}` is not known to this release; update the target"
                    ))
                })
            }
        }
    }

    fn prepare(&mut self, contents: &[Content]) -> Result<(), Trouble> {
        let has = |kind: &str| contents.iter().any(|content| content.kind == kind);
        let porter = self.porter.take().filter(|_| has(IMAGES));
        let Some(porter) = porter else {
            return refuse(format!("the images of {} did not come", self.app));
        };
        // CRIU opens them by their names, with what is in them now.
        let placed = self.place_files(contents);
        // Its connections are made at an address of this host.
        let awaited = placed.and_then(|()| self.apps.await_quietly(&self.app));
        if let Err(trouble) = awaited {
            porter.end();
            return Err(trouble);
        }
        let (process, child) = porter
            .prepare()
            .map_err(|error| Trouble::Refused(error.explain()))?;
        self.process = Some(process);
        self.hear((child, process), has(OWED))
            .map_err(Trouble::Refused)
    }

    fn start(&mut self) -> Result<(), Trouble> {
        let Some(process) = self.landed() else {
            return refuse(format!("{} ended before it went on", self.app));
        };
        // They are of another time.
        self.apps.forget_images(&self.app)?;
        self.apps.adopt(&self.app, process)?;
        let begun = self.apps.answer(&self.app).and_then(|()| {
            porter::go_on(process).map_err(|error| Trouble::Refused(error.explain()))
        });
        if begun.is_err() {
            // It goes back, and is reached there.
            self.apps.hush(&self.app)?;
        }
        begun
    }

    fn discard(&mut self) -> Result<(), Trouble> {
        if let Some(porter) = self.porter.take() {
            porter.end();
        }
        if let Some(process) = self.landed() {
            if self.address.is_some()
                && let Err(error) = disown_connections(process.pid)
            {
                tracing::warn!(app = %self.app, why = error.explain(), "what it had is closed, unheard");
            }
            porter::end(process);
        }
        self.process = None;
        // CRIU is in its slice as well, and what it made so far.
        self.apps.end(&self.app)?;
        let deadline = Instant::now() + END_MAX;
        while !self.apps.processes(&self.app).is_empty() {
            if Instant::now() >= deadline {
                return Err(Trouble::Unknown(format!(
                    "remove what came of {}: some of its processes are still there; see `forebay explain {0}`",
                    self.app
                )));
            }
            std::thread::sleep(POLL);
        }
        self.apps.leave_address(&self.app)?;
        // Nobody has them open any more.
        self.files.staged.discard().map_err(Trouble::Refused)?;
        let images = self.images().map_err(Trouble::Refused)?;
        remove(&images).map_err(Trouble::Refused)
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        self.files.staged.settle().map_err(Trouble::Refused)?;
        let ground = self.ground().map_err(Trouble::Refused)?;
        // Its source asks until it hears that nothing is.
        if lending::is_owed(&ground, &self.app).map_err(Trouble::Refused)? {
            return Ok(());
        }
        remove(&place(&ground, &self.app, Side::Comes)).map_err(Trouble::Refused)
    }

    fn found(&self, mark: Mark) -> Found {
        match (self.landed(), mark) {
            (None, _) => Found::Nothing,
            (Some(_), Mark::Starting) => Found::Started,
            (Some(_), Mark::Receiving | Mark::Prepared | Mark::Dropped) => Found::Fresh,
        }
    }
}

impl Drop for Comes {
    /// Before it is whole nobody needs a porter without its daemon.
    fn drop(&mut self) {
        if let Some(porter) = self.porter.take() {
            porter.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_known() {
        assert!(free().unwrap() > Bytes(0));
        let errand = Errand {
            criu: "/usr/sbin/criu".into(),
            images: "/var/lib/forebay/moves/web.comes".into(),
            most: Bytes(7),
            landing: Landing {
                tcp: Tcp::Close,
                groups: vec!["/sys/fs/cgroup/a".into()],
            },
        };
        let words: Vec<String> = command(&errand)
            .unwrap()
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let words = words.join(" ");
        assert_eq!(
            words,
            "porter --criu /usr/sbin/criu --images /var/lib/forebay/moves/web.comes --most 7 --tcp close --group \
             /sys/fs/cgroup/a"
        );
    }
}
