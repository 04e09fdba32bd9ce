//! Addresses that go where their applications go: on the host that owns one, and on no other.
//!
//! # Problem
//!
//! Clients reach an application at one address, whatever host it is on. Two hosts that answer for it at a time cut
//! each other's connections; none that does is an application that is lost to its clients. And whatever becomes of
//! the daemon, an address that it put on a device has to go from there.
//!
//! # Approach
//!
//! What the owner's host has of an address is on disk before anything is changed, one file for each application, and
//! whoever comes after it finds it there: the next daemon, the guardian, `forebay restore`. The ledger itself is the
//! control thread's, and an address has to go in time while that thread is busy or hangs: so it is beside it.
//!
//! ```text
//! addresses/APP.json   answers: it is on the device, and was announced
//!                      quiet:   nftables drop what comes for it and what would leave from it; nobody is told that
//!                               it is here. It may be on the device, or not.
//! ```
//!
//! A process whose connections go along is made while its address is on the device, which the kernel wants; until its
//! host owns it, the address is quiet there. It neither answers nor says anything in the name of a connection that
//! goes on at the source if the move is given up, and the kernel resets none that is not made yet.
//!
//! # Properties
//!
//! - An address that is there already, and that Forebay did not put there, is left alone, and refused.
//! - What is taken away goes in this order: the address, then the rules. In between it is on no device.
//! - Other addresses of the device stay, also where the kernel would take them along.
//! - Each change can be made twice; one that was interrupted is made again, or taken back by [`Addresses::leave`].
//! - Files are of one boot and one network (namespace): in another one there is nothing to take away. Of a network that
//!   is gone nothing is left anywhere.

mod announce;
mod links;
mod networks;

use std::fs::{self, File};
use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use forebay_core::fleet::mobility::ServiceAddress;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use self::links::{Link, Present};
use crate::Roots;
use crate::error::HostError;
use crate::{nft, regular};

/// The directory in the state directory.
const DIR: &str = "addresses";
const END: &str = "json";
/// A longer file is none of ours.
const BYTES_MAX: u64 = 4096;
/// How long others may take for one change.
const LOCK_MAX: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(1);
/// An announcement may be lost: it is made again so long after the one before.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
];

/// What a host has of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stance {
    Answers,
    Quiet,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    boot: String,
    /// The number of the network namespace.
    network: u64,
    /// Its device is named.
    address: ServiceAddress,
    stance: Stance,
}

impl Held {
    fn device(&self) -> &str {
        self.address.device.as_deref().unwrap_or_default()
    }
}

/// The addresses of applications on this host.
#[derive(Debug, Clone)]
pub struct Addresses {
    dir: PathBuf,
    roots: Roots,
}

/// What one thread of one process has at a time.
struct Lock(#[expect(dead_code, reason = "it is held until it is closed")] File);

impl Addresses {
    /// Those of a state directory.
    #[must_use]
    pub fn new(state_dir: &Path, roots: Roots) -> Self {
        Self {
            dir: state_dir.join(DIR),
            roots,
        }
    }

    /// The applications that have, or may have, something of an address here.
    #[must_use]
    pub fn all(&self) -> Vec<AppId> {
        let listed = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let app = |path: PathBuf| {
            let is_one = path.extension().is_some_and(|end| end == END);
            path.file_stem().filter(|_| is_one)?.to_str()?.parse().ok()
        };
        listed.filter_map(|entry| app(entry.path())).collect()
    }

    /// Whether what is here of an application's address is heard by nobody.
    pub(crate) fn is_quiet(&self, app: &AppId) -> bool {
        let held = self.read(app).ok().flatten();
        held.is_some_and(|held| held.stance == Stance::Quiet)
    }

    /// Whether an application's address is here and answers.
    #[must_use]
    pub fn answers(&self, app: &AppId, address: &ServiceAddress) -> bool {
        let held = self.read(app).ok().flatten();
        held.is_some_and(|held| {
            held.stance == Stance::Answers
                && is_same(&held.address, address)
                && links::addresses().is_ok_and(|all| is_there(&all, &held.address))
        })
    }

    /// Whether an address could be put here.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn could_answer(&self, app: &AppId, address: &ServiceAddress) -> Result<(), HostError> {
        match self.read(app)? {
            Some(held) if is_same(&held.address, address) => Ok(()),
            _ => free(app, address, &addresses_of(app)?).map(drop),
        }
    }

    /// Has an application's address be here and answer, and says so to the network; whether it did not before.
    ///
    /// # Errors
    /// When somebody else put it on this host, no device is the one for it, or the kernel refuses. What was there
    /// before is there then.
    pub fn answer(&self, app: &AppId, address: &ServiceAddress) -> Result<bool, HostError> {
        let _lock = self.lock()?;
        let held = self.place(app, address, Stance::Answers)?;
        let link = device(app, &held)?;
        let was_there = is_there(&addresses_of(app)?, &held.address);
        if was_there && held.stance == Stance::Answers {
            return Ok(false);
        }
        links::add(&held.address, link.number)
            .map_err(|e| HostError::io(format!("put {address} of {app} on {}", link.name), e))?;
        if held.stance == Stance::Quiet {
            unsilence(app, &held)?;
            self.write(
                app,
                &Held {
                    stance: Stance::Answers,
                    ..held
                },
            )?;
        }
        if let Err(error) = announce::announce(address.ip, &link) {
            tracing::warn!(%app, %address, device = link.name, %error, "not announced");
        }
        self.announce_again(app, address);
        tracing::info!(%app, %address, device = link.name, "its address is here");
        Ok(true)
    }

    /// Has an application's address be here, and nobody know of it.
    ///
    /// # Errors
    /// As of [`answer`](Self::answer), or when the kernel has no nftables.
    pub fn await_quietly(&self, app: &AppId, address: &ServiceAddress) -> Result<(), HostError> {
        let _lock = self.lock()?;
        let held = self.place(app, address, Stance::Quiet)?;
        let link = device(app, &held)?;
        self.quieten(app, &held)?;
        links::add(&held.address, link.number)
            .map_err(|e| HostError::io(format!("put {address} of {app} on {}", link.name), e))
    }

    /// Takes an application's address away, and has nothing of what still uses it here be seen by others.
    ///
    /// # Errors
    /// When the kernel refuses, as one without nftables does.
    pub fn hush(&self, app: &AppId) -> Result<(), HostError> {
        let _lock = self.lock()?;
        let Some(held) = self.read(app)? else {
            return Ok(());
        };
        self.quieten(app, &held)?;
        take_away(app, &held)
    }

    /// Takes away all that is here of an application's address. Nothing is to be done where that is nothing.
    ///
    /// # Errors
    /// When the kernel refuses; it is known on then.
    pub fn leave(&self, app: &AppId) -> Result<(), HostError> {
        if !self.file(app).exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.leave_locked(app)
    }

    /// Does what [`leave`](Self::leave) does with those that answer, for whoever is in time although a daemon hangs that
    /// may be in the middle of a change: an address goes then all the same, and its file stays, so that it is looked at
    /// again. Blocks for [`LOCK_MAX`] at most, whatever their number, and not at all where there is nothing.
    ///
    /// What could not be taken away, and why; it is known on.
    pub(crate) fn leave_in_time<'a>(
        &self,
        apps: impl IntoIterator<Item = &'a AppId>,
    ) -> Vec<(&'a AppId, HostError)> {
        let mut failed = Vec::new();
        let mut answer = Vec::new();
        for app in apps {
            match self.answering(app) {
                Ok(held) => answer.extend(held.map(|_| app)),
                Err(error) => failed.push((app, error)),
            }
        }
        if answer.is_empty() {
            return failed;
        }
        let lock = self.lock();
        if let Err(error) = &lock {
            tracing::warn!(
                why = error.explain(),
                "addresses go, and are looked at again"
            );
        }
        for app in answer {
            // Whoever had the lock may have changed it.
            let gone = self.answering(app).and_then(|held| match held {
                Some(held) => {
                    take_away(app, &held)?;
                    lock.as_ref().map_or(Ok(()), |_| self.forget(app))
                }
                None => Ok(()),
            });
            failed.extend(gone.err().map(|error| (app, error)));
        }
        failed
    }

    /// What is on disk of one that answers. Of one that is quiet nobody hears, and a move has it.
    fn answering(&self, app: &AppId) -> Result<Option<Held>, HostError> {
        let held = self.read(app)?;
        Ok(held.filter(|held| held.stance == Stance::Answers))
    }

    fn leave_locked(&self, app: &AppId) -> Result<(), HostError> {
        if let Some(held) = self.read(app)? {
            take_away(app, &held)?;
            if held.stance == Stance::Quiet {
                unsilence(app, &held)?;
            }
            tracing::info!(%app, address = %held.address, "its address is not here any more");
        }
        self.forget(app)
    }

    /// What is on disk of an application's address, which it is from now on; one that it had before is taken away.
    /// A new one has this stance.
    fn place(
        &self,
        app: &AppId,
        address: &ServiceAddress,
        stance: Stance,
    ) -> Result<Held, HostError> {
        if let Some(held) = self.read(app)? {
            if is_same(&held.address, address) {
                return Ok(held);
            }
            self.leave_locked(app)?;
        }
        let link = free(app, address, &addresses_of(app)?)?;
        let held = Held {
            boot: self.roots.boot_id()?,
            network: self.network()?,
            address: ServiceAddress {
                device: Some(link.name),
                ..address.clone()
            },
            stance,
        };
        self.write(app, &held)?;
        Ok(held)
    }

    fn quieten(&self, app: &AppId, held: &Held) -> Result<(), HostError> {
        if held.stance != Stance::Quiet {
            self.write(
                app,
                &Held {
                    stance: Stance::Quiet,
                    ..held.clone()
                },
            )?;
        }
        nft::silence(held.address.ip).map_err(|e| {
            let attempt = format!("keep {} of {app} quiet by nftables", held.address);
            HostError::io(attempt, e).advise("load the module nf_tables, or move it by `restart`")
        })
    }

    /// Says again a few times that it is here, while it is.
    fn announce_again(&self, app: &AppId, address: &ServiceAddress) {
        let (own, app, address) = (self.clone(), app.clone(), address.clone());
        let thread = std::thread::Builder::new().name("announce".to_owned());
        let again = move || {
            for pause in AGAIN {
                std::thread::sleep(pause);
                let held = own.read(&app).ok().flatten();
                let Some(held) = held.filter(|_| own.answers(&app, &address)) else {
                    return;
                };
                let said = device(&app, &held).map(|link| announce::announce(address.ip, &link));
                if let Ok(Err(error)) = said {
                    tracing::warn!(%app, %address, %error, "not announced again");
                }
            }
        };
        if let Err(error) = thread.spawn(again) {
            tracing::warn!(%error, "an address is not announced again");
        }
    }

    fn file(&self, app: &AppId) -> PathBuf {
        self.dir.join(format!("{app}.{END}"))
    }

    /// What is on disk, if it is of this boot and of a network that is there.
    fn read(&self, app: &AppId) -> Result<Option<Held>, HostError> {
        let file = self.file(app);
        let bytes = match regular::read(&file, BYTES_MAX) {
            Ok((bytes, _)) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(HostError::file("read", &file, error)),
        };
        let held: Held = serde_json::from_slice(&bytes).map_err(|error| {
            HostError::invalid(
                format!("read {}: {error}", file.display()),
                "look for the address on this host's devices, take it away, and remove the file",
            )
        })?;
        if held.boot != self.roots.boot_id()? {
            return Ok(None);
        }
        if held.network != self.network()? {
            // With a network goes what is in it.
            if !networks::is_there(&self.roots.proc, held.network) {
                return Ok(None);
            }
            return Err(HostError::invalid(
                format!(
                    "look for {} of {app}: it is in another network",
                    held.address
                ),
                "run this in the network namespace of the daemon",
            ));
        }
        Ok(Some(held))
    }

    fn write(&self, app: &AppId, held: &Held) -> Result<(), HostError> {
        let file = self.file(app);
        let fail = |error: io::Error| HostError::file("write", &file, error);
        let text = serde_json::to_vec(held).map_err(|error| fail(io::Error::other(error)))?;
        regular::replace(&file, &text, 0o600).map_err(|error| fail(io::Error::other(error)))
    }

    fn forget(&self, app: &AppId) -> Result<(), HostError> {
        let file = self.file(app);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HostError::file("remove", &file, error))
            }
            _ => Ok(()),
        }
    }

    /// That of the thread that asks.
    fn network(&self) -> Result<u64, HostError> {
        let path = self.roots.proc.join("thread-self/ns/net");
        let found = fs::metadata(&path).map_err(|e| HostError::file("look at", &path, e))?;
        Ok(found.st_ino())
    }

    fn lock(&self) -> Result<Lock, HostError> {
        fs::create_dir_all(&self.dir).map_err(|e| HostError::file("make", &self.dir, e))?;
        let file = File::open(&self.dir).map_err(|e| HostError::file("open", &self.dir, e))?;
        let until = Instant::now() + LOCK_MAX;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    std::thread::sleep(LOCK_POLL);
                }
                Err(error) => return Err(HostError::file("lock", &self.dir, error)),
            }
        }
    }
}

/// Whether what is on disk is the address that is meant; a device that is not named may be any.
fn is_same(held: &ServiceAddress, wanted: &ServiceAddress) -> bool {
    let has_device = wanted.device.is_none() || held.device == wanted.device;
    (held.ip, held.prefix) == (wanted.ip, wanted.prefix) && has_device
}

fn is_there(all: &[Present], address: &ServiceAddress) -> bool {
    all.iter().any(|present| present.ip == address.ip)
}

fn addresses_of(app: &AppId) -> Result<Vec<Present>, HostError> {
    links::addresses()
        .map_err(|e| HostError::io(format!("look for the address of {app} on this host"), e))
}

fn links_of(app: &AppId) -> Result<Vec<Link>, HostError> {
    links::links().map_err(|e| HostError::io(format!("look for the device of {app}'s address"), e))
}

/// The device that an address is put on which nobody has put on this host.
fn free(app: &AppId, address: &ServiceAddress, all: &[Present]) -> Result<Link, HostError> {
    let links = links_of(app)?;
    let name = |number: u32| {
        let found = links.iter().find(|link| link.number == number);
        found.map_or("a device", |link| link.name.as_str())
    };
    if let Some(other) = all.iter().find(|present| present.ip == address.ip) {
        let device = name(other.link);
        return Err(HostError::invalid(
            format!(
                "put {address} of {app} on this host: it is on {device}, and Forebay did not put it there"
            ),
            format!(
                "take it away (`ip address del {}/{} dev {device}`), or give {app} another `move.address`",
                other.ip, other.prefix
            ),
        ));
    }
    choose(address, all, links).map_err(|(why, fix)| {
        HostError::invalid(format!("put {address} of {app} on this host: {why}"), fix)
    })
}

/// The device that is named, or the only one that has an address of the network.
fn choose(
    address: &ServiceAddress,
    all: &[Present],
    links: Vec<Link>,
) -> Result<Link, (String, String)> {
    if let Some(name) = &address.device {
        let found = links.into_iter().find(|link| link.name == *name);
        return found.ok_or_else(|| {
            let fix = "name one as `move.device` that `ip link` shows".to_owned();
            (format!("there is no network device {name}"), fix)
        });
    }
    let is_one = |link: &Link| {
        let mut own = all.iter().filter(|present| present.link == link.number);
        own.any(|present| address.has_in_network(present.ip))
    };
    let mut found: Vec<Link> = links.into_iter().filter(is_one).collect();
    match (found.pop(), found.first()) {
        (Some(only), None) => Ok(only),
        (Some(one), Some(other)) => Err((
            format!("{} and {} both have its network", other.name, one.name),
            "name one of them as `move.device`".to_owned(),
        )),
        (None, _) => Err((
            "no network device has an address of its network".to_owned(),
            "name one as `move.device`".to_owned(),
        )),
    }
}

/// The device of an address that is on disk.
fn device(app: &AppId, held: &Held) -> Result<Link, HostError> {
    let name = held.device();
    let found = links_of(app)?.into_iter().find(|link| link.name == name);
    found.ok_or_else(|| {
        HostError::missing(
            format!(
                "put {} of {app} on {name}: there is no such network device",
                held.address
            ),
            "bring it back, or name another one as `move.device`",
        )
    })
}

fn take_away(app: &AppId, held: &Held) -> Result<(), HostError> {
    let name = held.device();
    let links = links_of(app)?;
    let Some(link) = links.iter().find(|link| link.name == name) else {
        return Ok(());
    };
    links::remove(&held.address, link)
        .map_err(|e| HostError::io(format!("take {} of {app} from {name}", held.address), e))
}

fn unsilence(app: &AppId, held: &Held) -> Result<(), HostError> {
    nft::unsilence(held.address.ip).map_err(|e| {
        let attempt = format!("let others know of {} of {app}", held.address);
        HostError::io(attempt, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_the_one_that_has_the_network() {
        let link = |number, name: &str| Link {
            number,
            name: name.to_owned(),
            mac: None,
            keeps_secondaries: true,
        };
        let all = |ips: &[(&str, u32)]| -> Vec<Present> {
            let present = |(ip, link): &(&str, u32)| Present {
                ip: ip.parse().unwrap(),
                prefix: 24,
                link: *link,
                is_secondary: false,
            };
            ips.iter().map(present).collect()
        };
        let check = |device: Option<&str>, ips: &[(&str, u32)], expected: Result<&str, &str>| {
            let address = ServiceAddress::parse("10.77.0.5/24", device.map(str::to_owned)).unwrap();
            let links = vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1")];
            let found = choose(&address, &all(ips), links);
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.name, expected),
                (Err((why, _)), Err(part)) => assert!(why.contains(part), "{why}"),
                (found, _) => panic!("{device:?} {ips:?}: {found:?}"),
            }
        };
        check(None, &[("10.0.0.1", 2), ("10.77.0.1", 3)], Ok("eth1"));
        check(None, &[("10.77.0.1", 2), ("10.77.0.2", 2)], Ok("eth0"));
        check(
            None,
            &[("10.77.0.1", 2), ("10.77.0.2", 3)],
            Err("eth0 and eth1 both"),
        );
        check(None, &[("10.0.0.1", 2)], Err("no network device has"));
        check(Some("eth0"), &[], Ok("eth0"));
        check(Some("eth7"), &[], Err("no network device eth7"));
    }

    fn held(network: u64) -> Held {
        Held {
            boot: Roots::default().boot_id().unwrap(),
            network,
            // Nothing is to be taken from a device that is not there.
            address: ServiceAddress::parse("10.77.0.5/24", Some("forebay-none".to_owned()))
                .unwrap(),
            stance: Stance::Answers,
        }
    }

    /// A daemon that hung in the middle of a change put the address there later, and no file said so.
    #[test]
    fn what_goes_in_time_is_looked_at_again_while_somebody_is_in_the_middle_of_a_change() {
        let state = tempfile::tempdir().unwrap();
        let addresses = Addresses::new(state.path(), Roots::default());
        let (app, other): (AppId, AppId) = ("cache".parse().unwrap(), "web".parse().unwrap());
        let apps = [&other, &app];
        // Nobody waits where there is nothing, nor for one that is quiet.
        let quiet = Held {
            stance: Stance::Quiet,
            ..held(addresses.network().unwrap())
        };
        let hangs = addresses.lock().unwrap();
        addresses.write(&other, &quiet).unwrap();
        let began = Instant::now();
        assert!(addresses.leave_in_time(apps).is_empty());
        assert!(began.elapsed() < LOCK_MAX, "it waited");

        let own = held(addresses.network().unwrap());
        addresses.write(&app, &own).unwrap();
        assert!(addresses.leave_in_time(apps).is_empty());
        assert_eq!(addresses.read(&app).unwrap(), Some(own), "it is forgotten");
        drop(hangs);
        assert!(addresses.leave_in_time(apps).is_empty());
        assert_eq!(addresses.read(&app).unwrap(), None);
        assert_eq!(addresses.all(), [other]);
    }

    #[test]
    fn what_cannot_be_read_keeps_no_other_from_going_in_time() {
        let state = tempfile::tempdir().unwrap();
        let addresses = Addresses::new(state.path(), Roots::default());
        let (app, other): (AppId, AppId) = ("cache".parse().unwrap(), "web".parse().unwrap());
        let own = held(addresses.network().unwrap());
        drop(addresses.lock().unwrap());
        addresses.write(&app, &own).unwrap();
        fs::write(addresses.file(&other), "{").unwrap();
        let failed = addresses.leave_in_time([&other, &app]);
        let failed: Vec<&AppId> = failed.into_iter().map(|(app, _)| app).collect();
        assert_eq!(failed, [&other]);
        assert_eq!(addresses.all(), [other], "it is known on");
    }

    /// Its file kept the app from being begun, and everything from being put back, until somebody removed it.
    #[test]
    fn of_a_network_that_is_gone_nothing_is_left() {
        let state = tempfile::tempdir().unwrap();
        // Nobody is there but this thread, which is in a network of its own.
        let proc = tempfile::tempdir().unwrap();
        for (dir, file, text) in [
            (
                "sys/kernel/random",
                "boot_id",
                Roots::default().boot_id().unwrap(),
            ),
            ("thread-self/ns", "net", String::new()),
        ] {
            fs::create_dir_all(proc.path().join(dir)).unwrap();
            fs::write(proc.path().join(dir).join(file), text).unwrap();
        }
        let roots = Roots {
            proc: proc.path().to_owned(),
            ..Roots::default()
        };
        let addresses = Addresses::new(state.path(), roots);
        let app: AppId = "cache".parse().unwrap();
        drop(addresses.lock().unwrap());
        addresses
            .write(&app, &held(addresses.network().unwrap() + 1))
            .unwrap();
        assert_eq!(addresses.read(&app).unwrap(), None);
        addresses.leave(&app).unwrap();
        assert_eq!(addresses.all(), []);
    }
}
