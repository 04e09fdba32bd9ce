//! Tells apps of updates: where they register, what they answer, and how those that are told to end come back.
//!
//! Each connection follows what its app is told now, and says it anew whenever that changes. A daemon that
//! comes back knows from the journal whom it has to tell what, and hears their answers again.
//! `docs/update-protocol.md` is the protocol's page.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_api::attend::{GREETING, LINE_BYTES_MAX, Told};
use forebay_core::app::{AppId, Binding, Restart};
use forebay_core::snapshot::RunState;
use forebay_core::update::{Answered, Call, Fact, Heard, Part, heard};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Shared;
use super::journal::Entry;
use super::run::Runner;
use super::seats::{Seat, Seats};
use crate::config;
use crate::control::Deed;
use crate::server::{ListenError, Readers, Rules, Socket};

/// Calls that one connection may leave unanswered.
const UNANSWERED_MAX: usize = 8;
/// How long one has to say who it is, and to take a line.
const LINE_WAIT: Duration = Duration::from_secs(5);
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);
/// How long an app has to end, and to run again.
const CHANGE_MAX: Duration = Duration::from_secs(60);

/// One app that is there.
#[derive(Debug, Clone)]
struct Present {
    connection: u64,
    /// What it was told, and what it said to that.
    answer: Option<(Told, Result<(), String>)>,
}

/// Who is told what, and what they answered.
#[derive(Debug)]
pub(super) struct Board {
    calls: watch::Sender<BTreeMap<AppId, Told>>,
    present: watch::Sender<BTreeMap<AppId, Present>>,
    ended: watch::Sender<Arc<BTreeSet<AppId>>>,
}

impl Board {
    /// That of a daemon that begins; `entry` is the update that is under way.
    pub(super) fn new(entry: Option<&Entry>) -> Self {
        let prepared = entry.map(|entry| &entry.record.prepared);
        let ended = prepared.map(ended).unwrap_or_default();
        Self {
            calls: watch::Sender::default(),
            present: watch::Sender::default(),
            ended: watch::Sender::new(Arc::new(ended)),
        }
    }

    /// Apps that an update ended.
    pub(super) fn ended(&self) -> watch::Receiver<Arc<BTreeSet<AppId>>> {
        self.ended.subscribe()
    }

    /// Has nobody start those that are to be ended, which are these.
    pub(super) fn hold_ended(&self, prepared: &BTreeMap<AppId, Call>) -> BTreeSet<AppId> {
        let ending = ended(prepared);
        self.ended.send_replace(Arc::new(ending.clone()));
        ending
    }

    /// Whether a connection is the one by which an app is told.
    fn is_latest(&self, app: &AppId, connection: u64) -> bool {
        let present = self.present.borrow();
        present.get(app).map(|one| one.connection) == Some(connection)
    }

    pub(super) fn is_present(&self, app: &AppId) -> bool {
        self.present.borrow().contains_key(app)
    }

    fn call(&self, app: &AppId, told: Told) {
        self.calls.send_if_modified(|calls| {
            let before = calls.insert(app.clone(), told);
            before != Some(told)
        });
    }

    fn resume(&self, app: &AppId) {
        self.calls
            .send_if_modified(|calls| calls.remove(app).is_some());
    }

    fn heard(&self, app: &AppId, told: Told) -> Heard {
        match self.present.borrow().get(app) {
            None => Heard::Absent,
            Some(present) => match &present.answer {
                Some((to, Ok(()))) if *to == told => Heard::Ready,
                Some((to, Err(why))) if *to == told => Heard::Cannot(why.clone()),
                _ => Heard::Nothing,
            },
        }
    }

    /// The same of one that may have been ended because it was ready.
    fn heard_of(&self, app: &AppId, told: Told, ended: &BTreeSet<AppId>) -> Heard {
        match ended.contains(app) {
            true => Heard::Ready,
            false => self.heard(app, told),
        }
    }

    fn answer(&self, app: &AppId, connection: u64, answer: (Told, Result<(), String>)) {
        self.present.send_modify(|present| {
            if let Some(one) = present.get_mut(app)
                && one.connection == connection
            {
                one.answer = Some(answer);
            }
        });
    }
}

/// Those that are not to be started.
fn ended(prepared: &BTreeMap<AppId, Call>) -> BTreeSet<AppId> {
    let ended = prepared.iter().filter(|(_, call)| **call == Call::End);
    ended.map(|(app, _)| app.clone()).collect()
}

/// An app that is there for as long as this lives.
struct Registered<'a> {
    board: &'a Board,
    app: AppId,
    connection: u64,
}

impl<'a> Registered<'a> {
    /// The latest connection of an app is the one that counts.
    fn new(board: &'a Board, app: AppId, connection: u64) -> Self {
        let one = Present {
            connection,
            answer: None,
        };
        board.present.send_modify(|present| {
            present.insert(app.clone(), one);
        });
        Self {
            board,
            app,
            connection,
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.board.present.send_if_modified(|present| {
            let own = present.get(&self.app).map(|one| one.connection);
            own == Some(self.connection) && present.remove(&self.app).is_some()
        });
    }
}

/// Where apps of a daemon are told, if its own socket leaves room for that name. Every user's app may come: whose it
/// is, the kernel says.
///
/// # Errors
/// When it cannot listen there.
pub(crate) fn attended(daemon_socket: &Path) -> Result<Option<Socket>, ListenError> {
    let anyone = Rules {
        group: None,
        readers: Readers::Anyone,
    };
    let path = config::update_socket(daemon_socket);
    path.map(|path| Socket::bind(&path, &anyone)).transpose()
}

/// Takes connections in for as long as there is a daemon.
pub(super) async fn listen(shared: Arc<Shared>, listener: Option<UnixListener>) {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    let (seats, mut serving) = (Seats::default(), JoinSet::new());
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.map(|(stream, _)| take_in(&seats, stream)) {
                Ok(Ok((stream, seat))) => {
                    number += 1;
                    let shared = Arc::clone(&shared);
                    serving.spawn(async move { serve(&shared, stream, seat, number).await });
                }
                // Whoever wants to could fill the log; one that is closed comes again.
                Ok(Err(why)) => tracing::debug!(why, "a connection of an app is closed"),
                Err(error) => {
                    tracing::warn!(%error, "an app that is told of updates is not accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
            Some(_) = serving.join_next(), if !serving.is_empty() => {}
        }
    }
}

/// Where a connection waits until it was admitted, if there is room for its user.
fn take_in(seats: &Seats, stream: UnixStream) -> Result<(UnixStream, Seat), String> {
    let peer = stream.peer_cred();
    let user = peer.map_err(|error| format!("ask who it is: {error}"))?;
    Ok((stream, seats.take(user.uid())?))
}

/// Lines of bounded length, of which none is lost when somebody else was faster.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// The next one; none at the end.
    async fn next(
        &mut self,
        reader: &mut (impl tokio::io::AsyncRead + Unpin),
    ) -> Result<Option<String>, String> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                return Ok(Some(line.trim_end_matches('\r').to_owned()));
            }
            if self.bytes.len() >= LINE_BYTES_MAX {
                return Err(format!("a line of more than {LINE_BYTES_MAX} bytes"));
            }
            let read = reader.read_buf(&mut self.bytes).await;
            if read.map_err(|error| format!("read: {error}"))? == 0 {
                return Ok(None);
            }
        }
    }
}

async fn say(writer: &mut (impl tokio::io::AsyncWrite + Unpin), line: &str) -> Result<(), String> {
    let text = format!("{line}\n");
    let written = tokio::time::timeout(LINE_WAIT, writer.write_all(text.as_bytes())).await;
    written
        .map_err(|_| "it does not read what it is told".to_owned())?
        .map_err(|error| format!("write: {error}"))
}

/// Hears who it is, and tells it for as long as it is there.
async fn serve(shared: &Shared, stream: UnixStream, seat: Seat, number: u64) {
    let (mut reader, mut writer) = stream.into_split();
    let mut lines = Lines::default();
    let app = match greet(shared, &mut lines, (&mut reader, &mut writer), seat.user()).await {
        Ok(app) => app,
        Err(why) => {
            tracing::debug!(why, user = seat.user(), "a connection of an app is refused");
            return;
        }
    };
    drop(seat);
    let registered = Registered::new(&shared.board, app, number);
    let conversation = Conversation {
        board: &shared.board,
        app: &registered.app,
        number,
    };
    if let Err(why) = conversation.hold(&mut lines, reader, writer).await {
        tracing::warn!(why, app = %registered.app, "an app that is told of updates");
    }
}

/// Who is at the other end, where it may be told.
async fn greet(
    shared: &Shared,
    lines: &mut Lines,
    (reader, writer): (&mut OwnedReadHalf, &mut OwnedWriteHalf),
    user: u32,
) -> Result<AppId, String> {
    let greeting = tokio::time::timeout(LINE_WAIT, lines.next(reader)).await;
    let greeting = greeting.map_err(|_| "it does not say who it is".to_owned())??;
    let greeting = greeting.ok_or("it says nothing")?;
    match admit(shared, &greeting, user).await {
        Ok(app) => Ok(app),
        Err(why) => {
            say(writer, &format!("refused {why}")).await?;
            Err(why)
        }
    }
}

/// One app at the other end of a connection.
struct Conversation<'a> {
    board: &'a Board,
    app: &'a AppId,
    number: u64,
}

impl Conversation<'_> {
    /// Tells it how things are, and hears its answers, until it goes or comes by another connection. Answers come in the
    /// order of the calls: one to a call that was taken back meanwhile is none to the next.
    async fn hold(
        &self,
        lines: &mut Lines,
        mut reader: impl tokio::io::AsyncRead + Unpin,
        mut writer: impl tokio::io::AsyncWrite + Unpin,
    ) -> Result<(), String> {
        let mut calls = self.board.calls.subscribe();
        let mut present = self.board.present.subscribe();
        let (mut said, mut unanswered) = (None, VecDeque::new());
        while self.board.is_latest(self.app, self.number) {
            let told = calls.borrow_and_update().get(self.app).copied();
            let told = told.unwrap_or(Told::Resume);
            if said.replace(told) != Some(told) {
                if told != Told::Resume {
                    unanswered.push_back(told);
                }
                if unanswered.len() > UNANSWERED_MAX {
                    return Err(format!("it left {UNANSWERED_MAX} calls unanswered"));
                }
                say(&mut writer, &told.line()).await?;
            }
            tokio::select! {
                changed = calls.changed() => if changed.is_err() {
                    return Ok(());
                },
                changed = present.changed() => if changed.is_err() {
                    return Ok(());
                },
                line = lines.next(&mut reader) => {
                    let Some(line) = line? else {
                        return Ok(());
                    };
                    let answer = answer(&line)?;
                    let call = unanswered.pop_front();
                    let call = call.ok_or_else(|| format!("it answers `{line}`, and was asked nothing"))?;
                    self.board.answer(self.app, self.number, (call, answer));
                }
            }
        }
        Ok(())
    }
}

fn answer(line: &str) -> Result<Result<(), String>, String> {
    match line.split_once(' ') {
        None if line == "ready" => Ok(Ok(())),
        Some(("cannot", why)) => Ok(Err(why.to_owned())),
        _ => Err(format!("`{line}` is neither `ready` nor `cannot WHY`")),
    }
}

/// Who it says it is, where it may say so: root may for any app, others for one that runs as their user.
async fn admit(shared: &Shared, greeting: &str, uid: u32) -> Result<AppId, String> {
    let name = greeting.strip_prefix(GREETING);
    let name = name.ok_or_else(|| format!("`{greeting}`: begin with `{GREETING}APP`"))?;
    let id: AppId = name.parse().map_err(|error| format!("{error}"))?;
    let owner = || {
        let published = shared.reports.borrow().clone()?;
        let pid = published.report.apps.get(&id)?.main_pid?;
        let found = std::fs::metadata(format!("/proc/{pid}")).ok()?;
        Some(std::os::unix::fs::MetadataExt::uid(&found))
    };
    // Before the control thread is asked: a stranger costs it nothing.
    if uid != 0 && owner() != Some(uid) {
        return Err(format!(
            "{id}: only root and the user that it runs as may answer for it"
        ));
    }
    let policy = shared.policy().await?;
    let app = policy.apps.get(&id);
    if app.is_none_or(|app| app.update.is_none()) {
        return Err(format!(
            "{id}: no app of that name is told of updates; give it `update = {{}}` in the configuration"
        ));
    }
    Ok(id)
}

impl Runner {
    /// Tells those that take part to prepare, and ends those that are to end once they are ready.
    pub(super) async fn prepare_apps(&self, entry: &mut Entry) -> Result<Fact, String> {
        let policy = self.shared.policy().await?;
        let update = entry.record.number;
        let part = |id: &AppId| policy.apps.get(id).and_then(|app| app.update);
        let asked = entry.record.order.told.iter();
        let asked: BTreeMap<AppId, (Call, Part)> = asked
            .filter_map(|(app, call)| Some((app.clone(), (*call, part(app)?))))
            .collect();
        // A daemon before this one may have ended some of them already.
        let ended = ended(&entry.record.prepared);
        let (ready, troubles) = match self.ask_apps(update, &asked, &ended).await {
            Ok(all) => all,
            Err(fact) => return Ok(fact),
        };
        for app in asked.keys().filter(|app| !ready.contains_key(*app)) {
            self.shared.board.resume(app);
        }
        entry.record.prepared = ready;
        self.keep(entry).await?;
        self.end_prepared(&entry.record.prepared).await?;
        Ok(Fact::Told(troubles))
    }

    /// Ends those that are to be ended, and has nobody start them; they are on disk.
    pub(super) async fn end_prepared(
        &self,
        prepared: &BTreeMap<AppId, Call>,
    ) -> Result<(), String> {
        let policy = self.shared.policy().await?;
        let ending = self.shared.board.hold_ended(prepared);
        // What matters least goes first, so that what matters most is away for the shortest time.
        let mut ending: Vec<AppId> = ending.into_iter().collect();
        ending.sort_by_key(|id| std::cmp::Reverse(policy.apps.get(id).map(|app| app.class)));
        for app in ending {
            self.end_app(&app).await?;
        }
        Ok(())
    }

    /// Who is ready, and what is to be said of the others; or why the update does not go on.
    async fn ask_apps(
        &self,
        update: u64,
        asked: &BTreeMap<AppId, (Call, Part)>,
        ended: &BTreeSet<AppId>,
    ) -> Result<(BTreeMap<AppId, Call>, Vec<String>), Fact> {
        let board = &self.shared.board;
        let told = |call: Call, part: Part| Told::Prepare {
            update,
            seconds: part.timeout.as_secs(),
            ends: call == Call::End,
        };
        for (app, (call, part)) in asked {
            board.call(app, told(*call, *part));
        }
        let began = Instant::now();
        loop {
            let all = asked.iter().map(|(app, (call, part))| {
                let heard = board.heard_of(app, told(*call, *part), ended);
                (app.clone(), (*call, *part, heard))
            });
            match heard(&all.collect(), began.elapsed()) {
                Answered::Wait => {}
                Answered::Refuse(why) => return Err(Fact::Refused(why)),
                Answered::All(ready, troubles) => return Ok((ready, troubles)),
            }
            if self.shared.wishes.abort.load(Ordering::Relaxed) {
                return Err(Fact::Aborted);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn end_app(&self, app: &AppId) -> Result<(), String> {
        let runs = |state: RunState| state == RunState::Running;
        // The control thread has to know that it is not to start it again.
        self.next_report().await?;
        self.next_report().await?;
        let deadline = Instant::now() + CHANGE_MAX;
        while self
            .report()
            .await?
            .report
            .apps
            .get(app)
            .is_some_and(|app| runs(app.state.clone()))
        {
            self.act(app, Deed::End).await?;
            self.next_report().await?;
            if Instant::now() >= deadline {
                return Err(format!(
                    "end {app}: it still runs; see `forebay explain {app}`"
                ));
            }
        }
        self.tell(format!("{app} is prepared, and is ended for the update"));
        Ok(())
    }

    /// Tells those that are prepared that it is over, and has those begin that were ended; what is wrong.
    pub(super) async fn resume_apps(&self, entry: &mut Entry) -> Result<Vec<String>, String> {
        let board = &self.shared.board;
        let prepared = std::mem::take(&mut entry.record.prepared);
        board.ended.send_replace(Arc::default());
        let mut troubles = Vec::new();
        // What matters most comes first.
        let policy = self.shared.policy().await?;
        let mut starting: Vec<AppId> = ended(&prepared).into_iter().collect();
        starting.sort_by_key(|id| policy.apps.get(id).map(|app| app.class));
        for app in starting {
            let binding = policy.apps.get(&app).map(|app| &app.binding);
            let Some(Binding::Exec(exec)) = binding else {
                continue;
            };
            if let Err(why) = self.await_start(&app, exec.restart).await {
                troubles.push(why);
            }
        }
        for app in entry.record.order.told.keys() {
            board.resume(app);
        }
        Ok(troubles)
    }

    async fn await_start(&self, app: &AppId, restart: Restart) -> Result<(), String> {
        let deadline = Instant::now() + CHANGE_MAX;
        let mut is_asked = false;
        loop {
            let published = self.next_report().await?;
            let state = published.report.apps.get(app).map(|app| app.state.clone());
            if state == Some(RunState::Running) {
                return Ok(());
            }
            // Its end was wanted: it begins again also where its policy has it stay ended.
            let stays = match (&state, restart) {
                (Some(RunState::Ended(_)), Restart::Never) => true,
                (Some(RunState::Ended(ending)), Restart::OnFailure) => ending.is_success(),
                _ => false,
            };
            if stays && !is_asked {
                is_asked = true;
                self.act(app, Deed::Start).await?;
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "{app} was ended for the update, and does not run again; `forebay explain {app}` says why"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board_with(app: &AppId, told: Told) -> Board {
        let board = Board::new(None);
        board.call(app, told);
        board
    }

    #[test]
    fn an_answer_counts_for_what_was_asked_by_the_latest_connection() {
        let app: AppId = "orders".parse().unwrap();
        let told = |update| Told::Prepare {
            update,
            seconds: 30,
            ends: false,
        };
        let board = board_with(&app, told(7));
        assert_eq!(board.heard(&app, told(7)), Heard::Absent);
        let first = Registered::new(&board, app.clone(), 1);
        assert_eq!(board.heard(&app, told(7)), Heard::Nothing);
        board.answer(&app, 1, (told(6), Ok(())));
        assert_eq!(board.heard(&app, told(7)), Heard::Nothing);
        board.answer(&app, 1, (told(7), Ok(())));
        assert_eq!(board.heard(&app, told(7)), Heard::Ready);
        let second = Registered::new(&board, app.clone(), 2);
        board.answer(&app, 1, (told(7), Ok(())));
        assert_eq!(board.heard(&app, told(7)), Heard::Nothing);
        drop(first);
        assert!(board.is_present(&app));
        board.answer(&app, 2, (told(7), Err("busy".to_owned())));
        assert_eq!(board.heard(&app, told(7)), Heard::Cannot("busy".to_owned()));
        drop(second);
        assert!(!board.is_present(&app));
    }

    /// The other end of a conversation.
    struct End {
        lines: Lines,
        stream: tokio::io::DuplexStream,
    }

    impl End {
        async fn hear(&mut self) -> Option<String> {
            let line = self.lines.next(&mut self.stream);
            let line = tokio::time::timeout(Duration::from_secs(30), line).await;
            line.unwrap().unwrap()
        }

        async fn say(&mut self, line: &str) {
            say(&mut self.stream, line).await.unwrap();
        }
    }

    /// Holds a conversation with `orders` while something is done at its other end; how it ended.
    async fn conversing(
        board: &Board,
        number: u64,
        other: impl AsyncFnOnce(End),
    ) -> Result<(), String> {
        let registered = Registered::new(board, "orders".parse().unwrap(), number);
        let (own, stream) = tokio::io::duplex(4096);
        let (reader, writer) = tokio::io::split(own);
        let conversation = Conversation {
            board,
            app: &registered.app,
            number,
        };
        let mut lines = Lines::default();
        let end = End {
            lines: Lines::default(),
            stream,
        };
        let held = conversation.hold(&mut lines, reader, writer);
        tokio::join!(held, other(end)).0
    }

    /// It was asked by update 7, which did not begin, and is still saving when update 8 asks.
    #[tokio::test]
    async fn a_late_answer_is_none_to_the_next_update() {
        let app: AppId = "orders".parse().unwrap();
        let told = |update| Told::Prepare {
            update,
            seconds: 30,
            ends: true,
        };
        let board = Board::new(None);
        let held = conversing(&board, 1, async |mut end| {
            assert_eq!(end.hear().await.as_deref(), Some("resume"));
            board.call(&app, told(7));
            assert_eq!(end.hear().await, Some(told(7).line()));
            board.resume(&app);
            assert_eq!(end.hear().await.as_deref(), Some("resume"));
            board.call(&app, told(8));
            assert_eq!(end.hear().await, Some(told(8).line()));
            let mut present = board.present.subscribe();
            end.say("ready").await;
            present.changed().await.unwrap();
            assert_eq!(board.heard(&app, told(8)), Heard::Nothing);
            end.say("ready").await;
            present.changed().await.unwrap();
            assert_eq!(board.heard(&app, told(8)), Heard::Ready);
            end.say("ready").await;
            assert_eq!(end.hear().await, None, "it was asked nothing more");
        });
        let why = held.await.unwrap_err();
        assert!(why.contains("asked nothing"), "{why}");
    }

    #[tokio::test]
    async fn an_app_that_comes_again_has_its_earlier_connection_closed() {
        let board = Board::new(None);
        let held = conversing(&board, 1, async |mut first| {
            assert_eq!(first.hear().await.as_deref(), Some("resume"));
            let held = conversing(&board, 2, async |mut second| {
                assert_eq!(second.hear().await.as_deref(), Some("resume"));
                assert_eq!(first.hear().await, None);
            });
            held.await.unwrap();
        });
        held.await.unwrap();
    }

    #[tokio::test]
    async fn calls_that_are_never_answered_have_a_bound() {
        let app: AppId = "orders".parse().unwrap();
        let board = Board::new(None);
        let held = conversing(&board, 1, async |mut end| {
            end.hear().await;
            for update in 1.. {
                board.call(
                    &app,
                    Told::Prepare {
                        update,
                        seconds: 30,
                        ends: false,
                    },
                );
                if end.hear().await.is_none() {
                    assert_eq!(update, UNANSWERED_MAX as u64 + 1);
                    break;
                }
            }
        });
        held.await.unwrap_err();
    }

    /// A daemon that died after it had ended the first of two.
    #[test]
    fn one_that_was_ended_because_it_was_ready_is_ready() {
        let app: AppId = "orders".parse().unwrap();
        let told = Told::Prepare {
            update: 7,
            seconds: 30,
            ends: true,
        };
        let board = Board::new(None);
        let nobody = ended(&BTreeMap::from([(app.clone(), Call::Detach)]));
        assert_eq!(board.heard_of(&app, told, &nobody), Heard::Absent);
        let ended = ended(&BTreeMap::from([(app.clone(), Call::End)]));
        assert_eq!(board.heard_of(&app, told, &ended), Heard::Ready);
    }

    #[test]
    fn an_answer_is_one_of_two() {
        assert_eq!(answer("ready"), Ok(Ok(())));
        assert_eq!(
            answer("cannot it is busy"),
            Ok(Err("it is busy".to_owned()))
        );
        for line in ["", "ready now", "cannot", "READY"] {
            answer(line).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_refused() {
        let mut lines = Lines::default();
        let mut text: &[u8] = b"one\r\ntwo\nthr";
        assert_eq!(lines.next(&mut text).await, Ok(Some("one".to_owned())));
        assert_eq!(lines.next(&mut text).await, Ok(Some("two".to_owned())));
        assert_eq!(lines.next(&mut text).await, Ok(None));
        let endless = vec![b'x'; 4096];
        Lines::default().next(&mut &endless[..]).await.unwrap_err();
    }
}
