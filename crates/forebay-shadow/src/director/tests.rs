//! The director against a synchroniser that answers when it is told to.

use std::sync::Mutex;

use super::*;
use crate::switchboard::Instance;
use crate::synchronise::Pending;

/// Answers questions when the test says so.
#[derive(Debug, Default)]
struct Slow {
    open: Mutex<Vec<oneshot::Sender<()>>>,
    /// What a promotion ends with, if not well.
    refusal: Mutex<Option<String>>,
}

impl Synchroniser for Slow {
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
    })
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
    let mut child = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
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
    director.stands(0, Standing::Ready { lag: None }).await;
    assert!(director.rest.is_none());
    *slow.refusal.lock().unwrap() = Some("no".to_owned());
    director.stands(1, Standing::Ready { lag: None }).await;
    director
        .change(Cause::Planned, Input::HandOver, oneshot::channel().0)
        .await;
    assert!(director.rest.is_some());
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
            assert_eq!(testament.primary, "a");
            other.lock().unwrap();
            if succeeds {
                verdict.send(Outcome::Succeeded).unwrap();
            } else {
                verdict.send(Outcome::Failed(testament.followers)).unwrap();
                other.unlock().unwrap();
            }
        };
        tokio::join!(director.give_way(reply, judged), outcome);
        assert_eq!(director.succeeded, succeeds);
    }
    assert!(director.epochs.lock().is_err(), "it is the other one's");
}
