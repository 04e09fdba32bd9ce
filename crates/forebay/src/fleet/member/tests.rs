//! The thread before a coordinator that takes its time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use forebay_core::app::AppId;
use forebay_core::fleet::policy::Rules;
use forebay_core::fleet::rolling::Rolling;
use forebay_core::fleet::{Epoch, Ownership};
use forebay_core::units::Bytes;

use super::*;
use crate::config::{LinkConfig, MovesConfig, Rdma};
use crate::fleet::coordinator::ErrorKind;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(2);
/// What a request takes: longer than until a renewal is due.
const SLOW: Duration = Duration::from_millis(600);

/// The files of one host, behind a slow network: every request that is no renewal takes [`SLOW`].
#[derive(Debug)]
struct Slow {
    local: Local,
    /// What was asked, in order.
    asked: Mutex<Vec<&'static str>>,
    is_news: Condvar,
    /// Renewals get no answer.
    is_silent: AtomicBool,
    /// The next renewal panics.
    panics: AtomicBool,
}

impl Slow {
    fn open(directory: &std::path::Path) -> Arc<Self> {
        Arc::new(Self {
            local: Local::open(directory).unwrap(),
            asked: Mutex::default(),
            is_news: Condvar::new(),
            is_silent: AtomicBool::new(false),
            panics: AtomicBool::new(false),
        })
    }

    fn note(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
        self.is_news.notify_all();
    }

    fn slowly(&self, what: &'static str) {
        self.note(what);
        let until = now() + SLOW;
        while let Some(left) = until.checked_sub(now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
    }

    /// What was asked once so many of a kind were.
    fn after(&self, count: usize, what: &str) -> Vec<&'static str> {
        let asked = self.asked.lock().unwrap();
        let (asked, waited) = self
            .is_news
            .wait_timeout_while(asked, PATIENCE, |asked| {
                asked.iter().filter(|other| **other == what).count() < count
            })
            .unwrap();
        assert!(!waited.timed_out(), "not {count} times {what}: {asked:?}");
        asked.clone()
    }
}

impl Coordinator for Slow {
    fn place(&self) -> &str {
        self.local.place()
    }

    fn join(&self, member: &Member, ttl: Duration) -> Result<Held, Error> {
        self.note("join");
        self.local.join(member, ttl)
    }

    fn renew(&self, held: &Held) -> Result<Option<Held>, Error> {
        if self.is_silent.load(Ordering::Relaxed) {
            self.slowly("renew");
            let kind = ErrorKind::Unknown("no answer in time".to_owned());
            return Err(Error {
                attempt: "renew".to_owned(),
                place: self.place().to_owned(),
                kind,
            });
        }
        self.note("renew");
        assert!(
            !self.panics.swap(false, Ordering::Relaxed),
            "as the test wants it"
        );
        self.local.renew(held)
    }

    fn publish(&self, held: &Held, member: &Member) -> Result<(), Error> {
        self.slowly("publish");
        self.local.publish(held, member)
    }

    fn leave(&self, held: &Held) -> Result<(), Error> {
        self.note("leave");
        self.local.leave(held)
    }

    fn hosts(&self) -> Result<Members, Error> {
        self.slowly("hosts");
        self.local.hosts()
    }

    fn record(&self, app: &AppId) -> Result<Option<Ownership>, Error> {
        self.local.record(app)
    }

    fn records(&self) -> Result<(i64, Records), Error> {
        self.local.records()
    }

    fn create(&self, app: &AppId, record: &Ownership) -> Result<(), Error> {
        self.local.create(app, record)
    }

    fn change(&self, app: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Error> {
        self.local.change(app, epoch, to)
    }

    fn take_over(&self, app: &AppId, from: &Ownership, to: &Ownership) -> Result<(), Error> {
        self.local.take_over(app, from, to)
    }

    fn forget(&self, app: &AppId, epoch: Epoch) -> Result<(), Error> {
        self.local.forget(app, epoch)
    }

    fn watch(&self, host: &HostName) -> watch::Receiver<View> {
        self.local.watch(host)
    }

    fn post(&self, host: &HostName, command: &Command) -> Result<CommandId, Error> {
        self.local.post(host, command)
    }

    fn complete(&self, host: &HostName, id: &CommandId, how: &Completed) -> Result<(), Error> {
        self.slowly("complete");
        self.local.complete(host, id, how)
    }

    fn completed(&self, host: &HostName, id: &CommandId) -> Result<Option<Completed>, Error> {
        self.local.completed(host, id)
    }

    fn rolling(&self) -> Result<(i64, Rolling), Error> {
        self.local.rolling()
    }

    fn roll(&self, seen: i64, to: &Rolling) -> Result<bool, Error> {
        self.local.roll(seen, to)
    }
}

/// A host of a fleet of one.
fn member(directory: &std::path::Path, host: &HostName, slow: &Arc<Slow>) -> Membership {
    telling(directory, host, slow, Arc::new(|_, _| {}))
}

/// The same, and who hears what its user is told.
fn telling(
    directory: &std::path::Path,
    host: &HostName,
    slow: &Arc<Slow>,
    tell: Tell,
) -> Membership {
    let (_reports, latest) = watch::channel(None);
    let coordinator: Arc<dyn Coordinator> = Arc::<Slow>::clone(slow);
    Membership::start_with(
        Beginning {
            config: FleetConfig {
                host: host.clone(),
                lease: LEASE,
                etcd: None,
                link: LinkConfig {
                    listen: None,
                    address: None,
                    rdma: Rdma::Off,
                },
                moves: MovesConfig {
                    by_itself: true,
                    rules: Rules::default(),
                },
                lock: None,
            },
            directory: directory.to_owned(),
            host: offering::Host {
                cpus: 1,
                memory: Bytes::mib(64),
                system_memory: Bytes(0),
            },
            reports: latest,
            outlook: outlook::Desk::none(),
            tell,
        },
        coordinator,
    )
    .unwrap()
}

#[test]
fn the_lease_is_renewed_between_requests_that_take_long() {
    let directory = tempfile::tempdir().unwrap();
    let host: HostName = "a".parse().unwrap();
    let slow = Slow::open(directory.path());
    let commands = [
        Command::Cordon,
        Command::Uncordon,
        Command::Other,
        Command::Cordon,
    ];
    let ids = commands.map(|command| slow.post(&host, &command).unwrap());
    let membership = member(directory.path(), &host, &slow);
    let asked = slow.after(ids.len(), "complete");
    for pair in asked.windows(2) {
        let is_slow = |what: &str| what != "join" && what != "renew";
        assert!(!(is_slow(pair[0]) && is_slow(pair[1])), "{asked:?}");
    }
    let deadline = now() + PATIENCE;
    let completed = |id: &CommandId| slow.completed(&host, id).unwrap();
    let standing = membership.desk().standing;
    while completed(&ids[3]).is_none() || !standing.borrow().cordoned {
        assert!(now() < deadline, "not in time");
        std::thread::yield_now();
    }
    for (id, words) in ids
        .iter()
        .zip(["no more", "again", "does not know", "no more"])
    {
        let how = completed(id).unwrap();
        let (Completed::Done { what: said } | Completed::Refused { why: said }) = how;
        assert!(said.contains(words), "{said}");
    }
    membership.stop();
}

/// It ended the thread, and the lease with it, and nobody was told.
#[test]
fn what_panics_in_the_thread_is_told_and_the_lease_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Slow::open(directory.path());
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell: Tell = {
        let told = Arc::clone(&told);
        Arc::new(move |_, what| told.lock().unwrap().push(what))
    };
    let membership = telling(directory.path(), &"a".parse().unwrap(), &slow, tell);
    slow.after(1, "renew");
    slow.panics.store(true, Ordering::Relaxed);
    // The one that panics, and more.
    let asked = slow.after(4, "renew");
    assert_eq!(
        asked.iter().filter(|what| **what == "join").count(),
        1,
        "it is a member as before: {asked:?}"
    );
    membership.stop();
    let told = told.lock().unwrap();
    let defects: Vec<&String> = told
        .iter()
        .filter(|what| what.contains("a defect"))
        .collect();
    let [defect] = defects[..] else {
        panic!("{told:?}");
    };
    assert!(
        defect.contains("place in the fleet") && defect.contains("as the test wants it"),
        "{defect}"
    );
}

#[test]
fn who_ends_waits_for_no_further_request() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Slow::open(directory.path());
    let membership = member(directory.path(), &"a".parse().unwrap(), &slow);
    slow.after(1, "hosts");
    slow.is_silent.store(true, Ordering::Relaxed);
    let standing = membership.desk().standing;
    let deadline = now() + PATIENCE;
    while standing.borrow().lost.is_none() {
        assert!(now() < deadline, "not in time");
        std::thread::yield_now();
    }
    let before = slow.asked.lock().unwrap().len();
    membership.stop();
    let asked = slow.asked.lock().unwrap();
    assert!(
        !asked.contains(&"leave") && asked.len() <= before + 1,
        "{before}: {asked:?}"
    );
}
