//! The director against a synchroniser that answers when it is told to.

use std::sync::Mutex;

use super::steps::Durability;
use super::*;
use crate::switchboard::{Gate, Instance};
use crate::synchronise::Pending;

/// Answers questions when the test says so.
#[derive(Debug, Default)]
struct Slow {
    open: Mutex<Vec<oneshot::Sender<()>>>,
    /// What a promotion ends with, if not well.
    refusal: Mutex<Option<String>>,
    /// Each has a state of its own.
    exclusive: Mutex<bool>,
    /// How the next hand-over is prepared, once that comes.
    preparation: Mutex<Option<oneshot::Receiver<Result<(), String>>>>,
}

impl Synchroniser for Slow {
    fn is_exclusive(&self) -> bool {
        *self.exclusive.lock().unwrap()
    }

    fn prepare<'a>(&'a self, _: &'a Instance, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        let preparation = self.preparation.lock().unwrap().take();
        Box::pin(async {
            match preparation {
                Some(prepared) => prepared.await.map_err(|error| error.to_string())?,
                None => Ok(()),
            }
        })
    }

    fn promote<'a>(&'a self, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        let refusal = self.refusal.lock().unwrap().clone();
        Box::pin(async { refusal.map_or(Ok(()), Err) })
    }

    fn follow<'a>(&'a self, _: &'a Instance, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn standing<'a>(&'a self, _: &'a Instance, _: &'a Instance) -> Pending<'a, Standing> {
        Box::pin(async { Standing::Ready { lag: None } })
    }

    fn ping<'a>(&'a self, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        let (answer, answered) = oneshot::channel();
        self.open.lock().unwrap().push(answer);
        Box::pin(async { answered.await.map_err(|error| error.to_string()) })
    }
}

fn director(synchroniser: &Arc<Slow>, directory: &std::path::Path) -> Director {
    let instance = |app: &str| Instance {
        app: app.to_owned(),
        address: format!("/run/{app}").parse().unwrap(),
        elsewhere: None,
    };
    let board = Switchboard::new(vec![instance("a"), instance("b")], 0, 0);
    Director::new(Parts {
        board: Arc::new(board),
        synchroniser: Arc::<Slow>::clone(synchroniser),
        epochs: EpochFile::open(&directory.join("epoch")).unwrap(),
        orders: mpsc::channel(1).1,
        status: watch::channel(Status::default()).0,
        grace: Duration::ZERO,
        about: About::default(),
        endings: Endings::default(),
    })
    .unwrap()
}

/// An old primary's answer to a ping came after its shadow had taken over, and made the old one,
/// dead or begun anew with nothing, the shadow that was ready: the next loss promoted it.
#[tokio::test]
async fn an_answer_from_before_a_promotion_says_nothing_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    assert_eq!(director.board.routing().standby, Some(1));
    director.ask_standings();
    while slow.open.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    director.drive(Input::Lost(Cause::Death)).await;
    assert_eq!(director.machine.primary(), 1);
    slow.open.lock().unwrap().pop().unwrap().send(()).unwrap();
    for _ in 0..2 {
        let (asked, _) = director.heard.recv().await.unwrap();
        assert!(!director.is_current(asked), "{asked:?}");
    }
    assert_eq!(director.board.routing().standby, None);
}

#[tokio::test]
async fn a_shadow_whose_process_ends_stands_by_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    let (orders, obeyed) = mpsc::channel(1);
    director.orders = obeyed;
    let mut child = sleeper();
    director.join(1, child.id(), None).unwrap();
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    let board = Arc::clone(&director.board);
    let mut changes = board.subscribe();
    assert_eq!(board.routing().standby, Some(1));
    child.kill().unwrap();
    child.wait().unwrap();
    let running = tokio::spawn(director.run());
    let gone = changes.wait_for(|routing| routing.standby.is_none());
    tokio::time::timeout(Duration::from_secs(10), gone)
        .await
        .unwrap()
        .unwrap();
    drop(orders);
    running.await.unwrap();
}

#[tokio::test]
async fn an_answer_of_a_process_says_nothing_of_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    director.stands(1, Standing::Ready { lag: None }).await;
    assert_eq!(director.board.routing().standby, Some(1));
    director.ask_standings();
    director.join(1, std::process::id(), None).unwrap();
    assert_eq!(director.board.routing().standby, None);
    let (asked, _) = director.heard.recv().await.unwrap();
    assert_eq!(asked.slot, 1);
    assert!(!director.is_current(asked), "{asked:?}");
    let (asked, standing) = director.heard.recv().await.unwrap();
    assert!(director.is_current(asked), "{asked:?}");
    director.stands(asked.slot, standing).await;
    // The same process once more changes nothing.
    director.join(1, std::process::id(), None).unwrap();
    assert_eq!(director.board.routing().standby, Some(1));
}

/// What became of a hand-over, for whoever asked for it.
type HandedOver = oneshot::Receiver<Result<Transition, String>>;

/// A director with a shadow that is ready, and a hand-over that was asked for and is being prepared.
async fn preparing(
    slow: &Arc<Slow>,
    directory: &std::path::Path,
) -> (Director, oneshot::Sender<Result<(), String>>, HandedOver) {
    let mut director = director(slow, directory);
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    let (done, preparation) = oneshot::channel();
    *slow.preparation.lock().unwrap() = Some(preparation);
    let (reply, answer) = oneshot::channel();
    director.obey(Order::HandOver(reply)).await;
    (director, done, answer)
}

#[tokio::test]
async fn a_hand_over_begins_once_it_is_prepared_and_clients_are_answered_until_then() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    // What fails only makes it longer.
    for prepared in [Ok(()), Err("it is full".to_owned())] {
        let (mut director, done, mut answer) = preparing(&slow, directory.path()).await;
        assert_eq!(director.machine.stage(), Stage::Warm);
        assert_eq!(director.board.routing().gate, Gate::Open);
        let (again, refused) = oneshot::channel();
        director.obey(Order::HandOver(again)).await;
        let why = refused.await.unwrap().unwrap_err();
        assert!(why.contains("about to begin"), "{why}");
        assert!(answer.try_recv().is_err());
        done.send(prepared).unwrap();
        let note = director.noted.recv().await.unwrap();
        director.note(note).await;
        let transition = answer.await.unwrap().unwrap();
        assert_eq!(transition.to.as_deref(), Some("b"));
        assert_eq!(director.machine.primary(), 1);
    }
}

/// The old primary would take over again from the one that took over from it.
#[tokio::test]
async fn a_primary_that_is_lost_while_a_hand_over_is_prepared_is_replaced_once() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let (mut director, done, mut answer) = preparing(&slow, directory.path()).await;
    director.drive(Input::Lost(Cause::Death)).await;
    assert_eq!(director.machine.primary(), 1);
    director.stands(0, Standing::Ready { lag: None }).await;
    done.send(Ok(())).unwrap();
    // Others are done beside the director as well.
    let why = loop {
        let note = director.noted.recv().await.unwrap();
        director.note(note).await;
        match answer.try_recv() {
            Ok(answer) => break answer.unwrap_err(),
            Err(oneshot::error::TryRecvError::Empty) => {}
            Err(gone) => panic!("{gone}"),
        }
    };
    assert!(why.contains("b took over while"), "{why}");
    assert_eq!(director.machine.primary(), 1);
}

/// A hand-over that the shadow refused was told as done, and whoever began anew would have taken the
/// shadow for the primary.
#[tokio::test]
async fn a_hand_over_that_is_refused_is_told_so_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    *slow.refusal.lock().unwrap() = Some("it is behind".to_owned());
    let (reply, answer) = oneshot::channel();
    director
        .change(Cause::Planned, Input::HandOver, reply)
        .await;
    assert_eq!(answer.await.unwrap(), Err("it is behind".to_owned()));
    assert_eq!(
        (director.machine.primary(), director.machine.stage()),
        (0, Stage::Warm)
    );
    let latest = EpochFile::open(&directory.path().join("epoch")).unwrap();
    assert_eq!(latest.latest().unwrap().unwrap().primary, "a");
}

/// A step that fails now would fail in the next instant as well: a full disk made a loop without a
/// pause.
#[tokio::test]
async fn a_change_that_failed_is_not_tried_again_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    let (orders, obeyed) = mpsc::channel(1);
    director.orders = obeyed;
    let mut child = sleeper();
    director.join(0, child.id(), None).unwrap();
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    *slow.refusal.lock().unwrap() = Some("no".to_owned());
    let before = Instant::now();
    director
        .change(Cause::Planned, Input::HandOver, oneshot::channel().0)
        .await;
    // Something that would be acted on at once, and would succeed.
    *slow.refusal.lock().unwrap() = None;
    child.kill().unwrap();
    child.wait().unwrap();
    let mut changes = director.board.subscribe();
    let running = tokio::spawn(director.run());
    let changed = changes.wait_for(|routing| routing.primary == 1);
    tokio::time::timeout(Duration::from_secs(10), changed)
        .await
        .unwrap()
        .unwrap();
    assert!(before.elapsed() >= REST, "{:?}", before.elapsed());
    drop(orders);
    running.await.unwrap();
}

fn sleeper() -> std::process::Child {
    let mut command = std::process::Command::new("sleep");
    command.arg("600").spawn().unwrap()
}

/// The next epoch is durable before it is needed, so that a promotion does not wait for the disk; and
/// whoever begins after the host was cut off from power uses another one.
#[tokio::test]
async fn an_epoch_is_reserved_while_all_is_calm_and_never_used_twice() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    let file = directory.path().join("epoch");
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    let mut durable = Vec::new();
    for change in 0..4 {
        let next = director.machine.epoch() + 1;
        assert_eq!(director.durability(next), Durability::Host, "{change}");
        let note = director.noted.recv().await.unwrap();
        // What was synced just now is what a host that is cut off from power would find at least.
        durable = std::fs::read(&file).unwrap();
        director.note(note).await;
        assert_eq!(director.durability(next), Durability::Process, "{change}");
        assert_eq!(director.durability(next + 1), Durability::Host);
        director.drive(Input::Lost(Cause::Death)).await;
        assert_eq!(director.machine.epoch(), next);
        let written = EpochFile::open(&file).unwrap().latest().unwrap().unwrap();
        assert_eq!(written.epoch, next, "it outlives this process");
        let slot = 1 - director.machine.primary();
        director.stands(slot, Standing::Ready { lag: None }).await;
    }
    let used = director.machine.epoch();
    let cut_off = directory.path().join("cut-off");
    std::fs::write(&cut_off, durable).unwrap();
    let found = EpochFile::open(&cut_off)
        .unwrap()
        .latest()
        .unwrap()
        .unwrap();
    assert!(found.used() >= used, "{found:?} after {used}");
}

/// Where instances have a state, the host that begins again begins with the one that was written to
/// last.
#[tokio::test]
async fn a_promotion_of_one_with_a_state_waits_for_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    *slow.exclusive.lock().unwrap() = true;
    let mut director = director(&slow, directory.path());
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    director.drive(Input::Lost(Cause::Death)).await;
    assert_eq!(director.machine.primary(), 1);
    director.reserved = Epoch::MAX;
    assert_eq!(director.durability(1), Durability::Host);
    assert!(director.noted.try_recv().is_err(), "nothing is reserved");
}

/// A front that died between fence and kill left the old primary standing, to be let go on by
/// whoever came next.
#[tokio::test]
async fn who_was_fenced_before_the_front_began_is_ended_where_it_stands() {
    let name = format!("forebay-director-test-{}", std::process::id());
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(std::path::Path::new);
    let root = roots
        .into_iter()
        .find(|root| root.join("cgroup.controllers").exists());
    let group = root.map(|root| root.join(name));
    let able = group.as_ref().is_some_and(|group| {
        std::fs::create_dir(group).is_ok() && group.join("cgroup.kill").exists()
    });
    let Some(group) = group.filter(|_| able) else {
        println!("SKIPPED: no group that can be killed can be made here");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    let fence = || {
        let open = |name: &str| {
            let mut options = std::fs::File::options();
            options.read(name != "cgroup.kill");
            options.write(matches!(name, "cgroup.kill" | "cgroup.freeze"));
            options.open(group.join(name)).unwrap().into()
        };
        let names = [
            "cgroup.freeze",
            "cgroup.events",
            "cgroup.procs",
            "cgroup.kill",
        ];
        let files = names.into_iter().map(open).collect();
        Fence::new(crate::fence::Hierarchy::V2, files).unwrap()
    };
    let record = directory.path().join("record");
    let mut child = std::process::Command::new("sh")
        .args(["-c", "read line; echo executed > \"$1\"", "sh"])
        .arg(&record)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
    fence().freeze().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !fence().stands().unwrap() {
        assert!(Instant::now() < deadline, "it does not stand");
    }
    let input = child.stdin.as_mut().unwrap();
    std::io::Write::write_all(input, b"what lay in its input\n").unwrap();
    // A primary that stands is left to the fence: whoever serves next comes after that.
    director.join(0, child.id(), Some(fence())).unwrap();
    assert!(director.members[0].is_some());
    director.join(1, child.id(), Some(fence())).unwrap();
    assert!(director.members[1].is_none());
    while child.try_wait().unwrap().is_none() || fence().is_asked().unwrap() {
        assert!(Instant::now() < deadline, "it is not ended");
        tokio::task::yield_now().await;
    }
    assert!(!record.exists(), "it went on");
    while std::fs::remove_dir(&group).is_err() {
        assert!(Instant::now() < deadline, "its group stays");
    }
}

#[tokio::test]
async fn an_instance_joins_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    let mut join = async |app: &str| {
        let (reply, joined) = oneshot::channel();
        let order = Order::Joined {
            app: app.to_owned(),
            pid: std::process::id(),
            fence: None,
            reply,
        };
        director.obey(order).await;
        joined.await.unwrap()
    };
    assert_eq!(join("b").await, Ok(()));
    let refusal = join("c").await.unwrap_err();
    assert!(
        refusal.contains("`c`") && refusal.contains("a, b"),
        "{refusal}"
    );
    assert!(director.members[1].is_some() && director.members[0].is_none());
}

/// A promotion that failed was in the log of the front and nowhere else.
#[tokio::test]
async fn a_change_that_failed_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    *slow.refusal.lock().unwrap() = Some("it is behind".to_owned());
    for _ in 0..3 {
        director
            .change(Cause::Planned, Input::HandOver, oneshot::channel().0)
            .await;
    }
    let told: Vec<_> = director
        .failures
        .iter()
        .map(|failure| &failure.what)
        .collect();
    assert_eq!(told, ["a was not replaced (planned): it is behind"]);
    // Whoever asked for what leaves nobody hears that, too.
    let (reply, answer) = oneshot::channel();
    let input = Input::Lost(Cause::Death);
    director.change(Cause::Death, input, reply).await;
    let refused = answer.await.unwrap().unwrap_err();
    assert!(
        refused.contains("it is behind; nobody serves now"),
        "{refused}"
    );
    assert_eq!(director.failures.len(), 2);
    assert_eq!(director.failures[1].number, 2);
}

/// While another process might be the one that says who serves, this one does nothing.
#[tokio::test]
async fn a_director_that_gave_way_goes_on_only_if_nobody_took_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    let mut director = director(&slow, directory.path());
    let other = EpochFile::open(&directory.path().join("epoch")).unwrap();
    director.epochs.lock().unwrap();
    assert!(other.lock().is_err());
    for succeeds in [false, true] {
        let (reply, testament) = oneshot::channel::<Result<Testament, String>>();
        let (verdict, judged) = oneshot::channel();
        let outcome = async {
            let testament = testament.await.unwrap().unwrap();
            assert_eq!(testament.primary.app, "a");
            other.lock().unwrap();
            if succeeds {
                verdict.send(Outcome::Succeeded).unwrap();
            } else {
                verdict.send(Outcome::Failed(testament.followers)).unwrap();
                other.unlock().unwrap();
            }
        };
        tokio::join!(director.give_way(reply, judged, None), outcome);
        assert_eq!(director.succeeded, succeeds);
    }
    assert!(director.epochs.lock().is_err(), "it is the other one's");
}

/// The record of a hand-over may be written though it could not be made durable: whoever began anew
/// took the shadow for the primary, which went on as the old one.
#[tokio::test]
async fn a_record_of_a_hand_over_that_is_not_durable_is_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow::default());
    *slow.exclusive.lock().unwrap() = true;
    let mut director = director(&slow, directory.path());
    director.stands(0, Standing::Ready { lag: None }).await;
    director.stands(1, Standing::Ready { lag: None }).await;
    // It takes what is written, and nothing of it can be made durable.
    director.epochs = Arc::new(EpochFile::open("/dev/zero".as_ref()).unwrap());
    let (reply, answer) = oneshot::channel();
    director
        .change(Cause::Planned, Input::HandOver, reply)
        .await;
    let why = answer.await.unwrap().unwrap_err();
    assert!(why.contains("write epoch 2 to /dev/zero"), "{why}");
    let stage = (director.machine.primary(), director.machine.stage());
    assert_eq!(stage, (0, Stage::Warm));
    assert_eq!(
        director.epochs.records_written(),
        2,
        "the second is the old primary's"
    );
}

/// A stall on a busy host, of an instance that cannot be stopped, kept all requests back until the disk
/// had written that nothing came of it: longer than they could wait.
#[tokio::test]
async fn who_cannot_be_stopped_goes_on_without_waiting_for_the_disk() {
    for exclusive in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let slow = Arc::new(Slow::default());
        *slow.exclusive.lock().unwrap() = exclusive;
        let mut director = director(&slow, directory.path());
        director.stands(0, Standing::Ready { lag: None }).await;
        director.join(0, std::process::id(), None).unwrap();
        director.stands(0, Standing::Ready { lag: None }).await;
        director.stands(1, Standing::Ready { lag: None }).await;
        director.reserved = 2;
        // It takes what is written, and nothing of it can be made durable.
        director.epochs = Arc::new(EpochFile::open("/dev/zero".as_ref()).unwrap());
        director.begin(Cause::Stall, &[]);
        director.drive(Input::Lost(Cause::Stall)).await;
        assert_eq!(director.machine.stage(), Stage::Warm);
        assert_eq!(director.board.routing().gate, Gate::Open);
        let failures: Vec<&str> = director.failures.iter().map(|f| &*f.what).collect();
        let [what] = failures.as_slice() else {
            panic!("{failures:?}");
        };
        let waited = what.contains("write epoch");
        assert_eq!(waited, exclusive, "{what}");
    }
}
