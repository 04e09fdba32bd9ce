//! One client's connection: commands go to whoever is the primary, answers come back in order.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_core::shadow::promotion::Epoch;
use tokio::io::Interest;
use tokio::time::Instant;

use super::balance::{Balance, Steered};
use super::bounds::{CLIENT_BYTES_MAX, Patience};
use super::commands::{self, Kind, Transaction};
use super::entry::{Entry, Outlet, Owner, What};
use super::relay::{Queued, Whose};
use super::requests::{Command, Requests};
use super::state::State;
use super::transaction::{Doom, Open};
use super::upstream::{Read, Role, Upstream, dial, read};
use super::{Guarantee, Setup, WithoutShadow};
use crate::flights::Ticket;
use crate::rest::Resting;
use crate::stream::Stream;
use crate::switchboard::{Gate, Switchboard, count};
use crate::tls::Wire;

/// Bytes that wait for the server to take them, beyond which no more commands are taken.
const UPSTREAM_BYTES_MAX: usize = 1024 * 1024;
/// Writes that one `WAIT` confirms.
const UNCONFIRMED_MAX: usize = 128;
/// How long commands may stay with a primary that handed over in order.
const LINGER: Duration = Duration::from_secs(2);

pub(super) const IN_DOUBT: &[u8] =
    b"-INDOUBT forebay: the primary was lost before it answered; whether \
this command was executed is not known\r\n";
pub(super) const LOST: &[u8] = b"-TRYAGAIN forebay: not executed: the primary was lost\r\n";
const NO_SHADOW: &[u8] =
    b"-NOREPLICAS forebay: not executed, since no shadow is in step (guarantee `strict`)\r\n";
pub(super) const ABORTED: &[u8] =
    b"-EXECABORT forebay: Transaction discarded, nothing of it was executed; \
the primary changed and the transaction could not be carried over\r\n";
/// How far commands were taken from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forwarded {
    /// As many as may be under way are.
    Full,
    /// All that could.
    Done,
}

/// What the guarantee asks for before a command is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// Nothing.
    None,
    /// Every shadow has it.
    Confirm,
    /// There is no shadow, but one may come until then.
    Wait(Instant),
    /// There is no shadow.
    Refuse,
}

/// A client and what it has under way.
#[derive(Debug)]
pub(super) struct Conversation<'a> {
    pub(super) board: &'a Switchboard,
    pub(super) setup: &'a Setup,
    patience: Duration,
    pub(super) client: Wire,
    pub(super) client_ended: bool,
    /// Nothing more is taken from the client, and it is left once all is answered.
    pub(super) closing: bool,
    pub(super) requests: Requests,
    /// What was begun by the client, and how long that may take.
    pub(super) bounds: Patience,
    /// The next command, while it cannot be sent.
    pub(super) next: Option<Command>,
    /// Commands that come next since a server that was lost had not read them.
    pub(super) again: VecDeque<Command>,
    /// How many of the next commands were counted when they were sent before.
    pub(super) counted: usize,
    /// Since when it cannot.
    held_since: Option<Instant>,
    /// Until when it waits for a shadow, if it does.
    shadow_due: Option<Instant>,
    pub(super) outlet: Outlet,
    pub(super) entries: VecDeque<Entry<'a>>,
    /// Entries up to here need not keep commands that are not sent twice.
    kept: usize,
    /// The connection that commands are under way on.
    pub(super) up: Option<Upstream>,
    pub(super) balance: Balance,
    /// The epoch of the connection that was lost last.
    lost: Option<Epoch>,
    /// Since when a primary that handed over still has commands.
    lingers_since: Option<Instant>,
    pub(super) state: State,
    pub(super) transaction: Option<Open>,
    /// Keys are watched through the connection there is.
    pub(super) watching: bool,
    /// Keys were watched through one that is lost.
    pub(super) watch_lost: bool,
    /// Writes that no `WAIT` was sent for yet.
    pub(super) unconfirmed: usize,
    /// What was written may count as written only after another command: see [`Self::confirm`].
    pub(super) stale_offset: bool,
    /// Where the rest of a large reply goes, while one is passed on.
    pub(super) parted: Option<Whose>,
    /// Replies lie here that the client has no room for.
    pub(super) stuffed: bool,
    /// The last connection ended without a word.
    fruitless: bool,
    /// A new connection is made what the old one was: somebody waits for that.
    pub(super) settling: Option<Ticket<'a>>,
    pub(super) queued: Queued,
    /// The connection was at rest, and something may have changed meanwhile that the client keeps.
    pub(super) rested: bool,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        board: &'a Switchboard,
        client: Wire,
        setup: &'a Setup,
        patience: Duration,
    ) -> Self {
        Self {
            board,
            setup,
            patience: patience.max(super::upstream::RETRY),
            client,
            client_ended: false,
            closing: false,
            requests: Requests::new(setup.options.command_bytes_max),
            bounds: Patience::default(),
            next: None,
            again: VecDeque::new(),
            counted: 0,
            held_since: None,
            shadow_due: None,
            outlet: Outlet::default(),
            entries: VecDeque::new(),
            kept: 0,
            up: None,
            balance: Balance::default(),
            lost: None,
            lingers_since: None,
            state: State::default(),
            transaction: None,
            watching: false,
            watch_lost: false,
            unconfirmed: 0,
            stale_offset: false,
            parted: None,
            stuffed: false,
            fruitless: false,
            settling: None,
            queued: Queued::default(),
            rested: false,
        }
    }

    /// Goes on until the client leaves; its connection, where it is to be at rest instead.
    pub(super) async fn run(mut self) -> io::Result<Option<Resting>> {
        let mut changes = self.board.subscribe();
        let mut rest = self.board.rest.subscribe();
        loop {
            // Over TLS much may be there that the runtime does not count.
            tokio::task::consume_budget().await;
            self.advance()?;
            if self.is_done() {
                self.client.close().await;
                return Ok(None);
            }
            if self.is_at_rest() {
                return Ok(self.rest());
            }
            if self.settle_balance().await {
                continue;
            }
            if self.up.is_none() && self.wants_upstream() {
                if std::mem::take(&mut self.fruitless) {
                    tokio::time::sleep(super::upstream::RETRY).await;
                }
                match dial(self.board, self.lost, self.patience).await {
                    Ok(up) => self.connected(up),
                    Err(unserved) => self.give_up(&unserved.to_string()),
                }
                continue;
            }
            let up = self.up.as_ref();
            let due = self.due();
            tokio::select! {
                ready = heard(&self.client, self.client_interest()) => ready?,
                ready = ready(up.map(|up| &up.stream), self.upstream_interest()) => {
                    // Reading tells what is wrong.
                    if let Err(error) = ready {
                        tracing::debug!(%error, "a server cannot be waited for");
                    }
                }
                changed = changes.changed() => changed.map_err(io::Error::other)?,
                changed = rest.changed() => changed.map_err(io::Error::other)?,
                () = sleep_until(due) => self.overdue()?,
            }
        }
    }

    /// Moves everything on that can be moved without waiting.
    fn advance(&mut self) -> io::Result<()> {
        self.listen()?;
        if let Some(up) = &mut self.up
            && self.outlet.out.len() < CLIENT_BYTES_MAX
        {
            up.receive();
        }
        self.relay()?;
        self.follow_board()?;
        while self.forward() == Forwarded::Full {
            self.answer_local()?;
            if self.is_full() {
                break;
            }
        }
        self.answer_local()?;
        if let Some(up) = &mut self.up {
            up.flush();
        }
        self.forget_sent();
        let taken = self.outlet.out.flush(&mut self.client)?;
        self.note_unread(taken);
        Ok(())
    }

    /// Takes in what the client sent.
    fn listen(&mut self) -> io::Result<()> {
        let may_not = self.client_ended || self.closing || self.pauses();
        if may_not || self.requests.held() > self.request_room() {
            return Ok(());
        }
        let (requests, bounds) = (&mut self.requests, &mut self.bounds);
        let take = |bytes: &[u8]| {
            bounds.received += bytes.len();
            requests.push(bytes);
        };
        match read(&mut self.client, take)? {
            Read::Some | Read::Nothing => {}
            Read::End => self.client_ended = true,
        }
        Ok(())
    }

    fn client_interest(&self) -> Option<Interest> {
        let may = !self.client_ended && !self.closing && !self.pauses();
        let reads = may && self.requests.held() <= self.request_room();
        let writes = self.outlet.out.len() > 0 || !self.client.is_flushed();
        interest(reads, writes)
    }

    fn upstream_interest(&self) -> Option<Interest> {
        let up = self.up.as_ref()?;
        let reads = self.outlet.out.len() < CLIENT_BYTES_MAX && !up.ended;
        interest(reads, up.out.len() > 0)
    }

    fn is_done(&self) -> bool {
        if self.outlet.out.len() > 0 {
            return false;
        }
        // Whoever left while it waits for others does not wait any more.
        let abandoned = self.client_ended && self.is_blocked();
        let answered = self.entries.is_empty() && self.next.is_none() && self.again.is_empty();
        abandoned || answered && (self.closing || self.client_ended)
    }

    fn wants_upstream(&self) -> bool {
        let next = self.next.is_some() || !self.again.is_empty();
        next || !self.entries.is_empty() || self.state.listens()
    }

    /// When something has to happen though nothing comes.
    fn due(&self) -> Option<Instant> {
        let held = self.held_since.map(|since| since + self.patience);
        let lingers = self.lingers_since.map(|since| since + LINGER);
        let shadow = self.shadow_due;
        let stuck = self.stuck_at();
        let due = held.into_iter().chain(lingers).chain(shadow);
        due.chain(stuck).min()
    }

    fn overdue(&mut self) -> io::Result<()> {
        let now = Instant::now();
        self.end_stuck(now)?;
        if self
            .held_since
            .is_some_and(|since| since + self.patience <= now)
        {
            self.held_since = None;
            self.reject_next(&unserved(&format!(
                "no instance could serve within {} ms",
                self.patience.as_millis()
            )));
        }
        if self
            .lingers_since
            .is_some_and(|since| since + LINGER <= now)
            && let Some(up) = &mut self.up
        {
            up.ended = true;
            self.lingers_since = None;
        }
        // What is past is not waited for, also where nothing can be done about it yet.
        self.shadow_due = self.shadow_due.filter(|due| *due > now);
        Ok(())
    }

    /// Lets go of a connection that has ended, or whose server is not the primary any more.
    fn follow_board(&mut self) -> io::Result<()> {
        let Some(up) = &self.up else { return Ok(()) };
        let routing = self.board.routing();
        let mut leaves = up.ended;
        if up.role == Role::Shadow {
            leaves |= !up.is_shadow_in(&routing);
        } else if routing.epoch != up.assigned.epoch {
            let is_lost = routing.is_lost(up.assigned);
            let waits = self.entries.iter().any(|entry| entry.is_sent(up.written));
            leaves |= is_lost || !waits;
            self.lingers_since.get_or_insert_with(Instant::now);
        } else {
            self.lingers_since = None;
        }
        if !leaves {
            return Ok(());
        }
        if let Some(up) = &mut self.up
            && !up.ended
        {
            // Whatever it answered before counts.
            up.drain(CLIENT_BYTES_MAX);
            self.relay()?;
        }
        if self.stuffed {
            return Ok(());
        }
        self.lingers_since = None;
        if self.is_on_shadow() {
            let declined = std::mem::take(&mut self.balance.declined);
            let useless = self.up.as_ref().filter(|up| declined || !up.heard);
            let useless = useless.map(|up| up.assigned);
            self.lose()?;
            self.resume_parked(useless);
            return Ok(());
        }
        if let Some(up) = &self.up {
            self.lost = Some(up.assigned.epoch);
            self.fruitless = !up.heard;
        }
        self.kept = 0;
        self.lose()
    }

    /// Sends what the client asks for, as far as that is possible now.
    fn forward(&mut self) -> Forwarded {
        // What confirms a command that waited for others goes out before the next one is steered:
        // it has to go to the server that executed that command.
        self.confirm_if_due();
        self.bounds.starved = false;
        while !self.closing && !self.is_full() && !self.is_blocked() {
            if self
                .up
                .as_ref()
                .is_some_and(|up| up.out.len() > UPSTREAM_BYTES_MAX)
            {
                break;
            }
            let command = match self.next.take().or_else(|| self.again.pop_front()) {
                Some(command) => command,
                None if self.pauses() => break,
                None => match self.requests.next() {
                    Ok(Some(command)) => {
                        self.bounds.finished();
                        command
                    }
                    Ok(None) => {
                        self.note_unfinished();
                        break;
                    }
                    Err(error) => {
                        self.local(format!("-ERR {error}\r\n").into_bytes());
                        self.closing = true;
                        break;
                    }
                },
            };
            if commands::is_http(&command) {
                tracing::warn!("a client speaks HTTP to a redis front; it is left");
                self.closing = true;
                break;
            }
            let kind = commands::kind(&command);
            if self.answer_here(kind, &command) {
                continue;
            }
            if self.steer(kind, &command) == Steered::Wait {
                self.next = Some(command);
                break;
            }
            self.shadow_due = None;
            let duty = self.duty(kind);
            if let Duty::Wait(until) = duty {
                self.shadow_due = Some(until);
            }
            if !self.may_send() || self.shadow_due.is_some() {
                self.hold(command);
                break;
            }
            self.held_since = None;
            self.send_on(kind, command, duty);
        }
        self.confirm_if_due();
        if !self.bounds.starved {
            self.bounds.finished();
        }
        if self.is_full() {
            Forwarded::Full
        } else {
            Forwarded::Done
        }
    }

    /// A command that waits for others is under way: the server reads nothing behind it.
    fn is_blocked(&self) -> bool {
        let last = self.entries.back();
        last.is_some_and(|entry| matches!(entry.what, What::Blocking { .. } | What::Wait))
    }

    fn may_send(&self) -> bool {
        let routing = self.board.routing();
        let up = self.up.as_ref();
        routing.gate == Gate::Open
            && up.is_some_and(|up| {
                let is_shadow = up.role == Role::Primary || up.is_shadow_in(&routing);
                !up.ended && up.settled && is_shadow && up.assigned.epoch == routing.epoch
            })
    }

    fn hold(&mut self, command: Command) {
        if self.held_since.is_none()
            && let Some(up) = &self.up
        {
            self.held_since = Some(Instant::now());
            if up.settled {
                count(&self.board.counters.held);
            }
        }
        self.next = Some(command);
    }

    /// Queues an answer that does not come from the server.
    pub(super) fn local(&mut self, reply: Vec<u8>) {
        if self.unconfirmed > 0 {
            self.confirm();
        }
        self.entries.push_back(Entry::local(reply));
    }

    /// What is owed to a command by the guarantee.
    fn duty(&self, kind: Kind) -> Duty {
        let writes = match kind {
            Kind::Write | Kind::Blocking { writes: true } => self.transaction.is_none(),
            Kind::Transaction(Transaction::Exec) => self.transaction.is_some(),
            _ => false,
        };
        if !writes || self.setup.options.guarantee == Guarantee::Fast {
            return Duty::None;
        }
        match self.setup.shadow_due(self.board) {
            None => Duty::Confirm,
            Some(_) if self.without_shadow() == WithoutShadow::Continue => Duty::None,
            Some(due) if Instant::now() < due => Duty::Wait(due),
            Some(_) => Duty::Refuse,
        }
    }

    /// Sends a command, as what it is in the situation there is.
    fn send_on(&mut self, kind: Kind, command: Command, duty: Duty) {
        let strict = duty == Duty::Confirm;
        if duty == Duty::Refuse {
            self.counted = self.counted.saturating_sub(1);
            count(&self.board.counters.failed);
            if matches!(kind, Kind::Transaction(_)) {
                self.transaction = None;
                self.watching = false;
                self.send_own(What::Abort, Command::new(&["DISCARD"]));
            }
            self.local(NO_SHADOW.to_vec());
            return;
        }
        if self.counted > 0 {
            self.counted -= 1;
        } else {
            count(&self.board.counters.requests);
        }
        let what = self.place(kind, &command);
        // Only writes may come between a write and what confirms it.
        if self.unconfirmed > 0 && (!strict || matches!(what, What::Blocking { .. })) {
            self.confirm();
        }
        // A command that waits for others tells nothing by not being answered.
        let waits = matches!(what, What::Blocking { .. } | What::Wait);
        let route = (!waits).then(|| self.setup.route(self.board, &command));
        self.send(what, command, route, strict);
        if strict {
            self.unconfirmed += 1;
            self.stale_offset |= waits;
        }
        if self.unconfirmed >= UNCONFIRMED_MAX {
            self.confirm();
        }
    }

    /// A write may be acknowledged that no shadow has.
    pub(super) fn may_continue(&self) -> bool {
        self.without_shadow() == WithoutShadow::Continue && self.board.routing().standby.is_none()
    }

    /// A primary that handed over in order still has commands.
    pub(super) const fn lingers(&self) -> bool {
        self.lingers_since.is_some()
    }

    const fn without_shadow(&self) -> WithoutShadow {
        self.setup.options.without_shadow
    }

    fn confirm_if_due(&mut self) {
        if self.unconfirmed > 0 && !self.is_blocked() {
            self.confirm();
        }
    }

    /// Asks for the shadows to have what was written before.
    fn confirm(&mut self) {
        self.unconfirmed = 0;
        // What a blocked command took when others gave is counted as written by its connection
        // only when that executes another one (Redis 7.0: `woff` is set by `processCommand`).
        if std::mem::take(&mut self.stale_offset) {
            self.send_own(What::Nothing, Command::new(&["PING"]));
        }
        let shadows = self.setup.confirmations(self.board).to_string();
        let wait = self.setup.options.confirm_ms.max(1).to_string();
        self.send_own(What::Confirm, Command::new(&["WAIT", &shadows, &wait]));
    }

    pub(super) fn send_own(&mut self, what: What, command: Command) {
        let route = self.setup.route(self.board, &command);
        self.send(what, command, Some(route), false);
    }

    fn send(&mut self, what: What, command: Command, route: Option<usize>, strict: bool) {
        let mut entry = Entry {
            what,
            command: Some(command),
            end: None,
            ticket: None,
            confirmations: 0,
            losses: 0,
            strict,
        };
        self.bounds.entry_bytes += entry.bytes();
        if let Some(up) = self.up.as_mut().filter(|up| up.settled) {
            put(self.board, self.setup, up, &mut entry, route);
        }
        self.entries.push_back(entry);
    }

    /// Commands that are not sent twice need not be kept once they were sent.
    fn forget_sent(&mut self) {
        let Some(up) = &self.up else { return };
        while let Some(entry) = self.entries.get_mut(self.kept) {
            if entry.end.is_some_and(|end| end > up.written) {
                break;
            }
            if entry.what.is_forgotten() {
                self.bounds.entry_bytes -= entry.bytes();
                entry.command = None;
            }
            self.kept += 1;
        }
    }

    /// The oldest command is answered.
    pub(super) fn pop(&mut self) -> Option<Entry<'a>> {
        self.kept = self.kept.saturating_sub(1);
        let entry = self.entries.pop_front()?;
        self.bounds.entry_bytes -= entry.bytes();
        Some(entry)
    }

    /// Makes a new connection what the old one was. What was interrupted is sent once the server
    /// agreed to all of it: as somebody else, or in another database, it would do other things.
    fn connected(&mut self, mut up: Upstream) {
        let replay = self.state.replay(super::state::Listens::Yes);
        up.send(&replay.bytes);
        up.replay = replay.replies;
        if std::mem::take(&mut self.rested) || self.lost.is_some() {
            self.outlet.push(self.state.forget());
        }
        if let Some(open) = self.transaction.as_ref().filter(|open| open.doom.is_none()) {
            let of_it = |entry: &&Entry<'_>| matches!(entry.what, What::Multi | What::Queued);
            let entries = self.entries.iter().rev();
            let unanswered = entries.take_while(|entry| !entry.what.ends_transaction());
            let unanswered = unanswered.filter(of_it).count();
            let answered = (1 + open.commands.len()).saturating_sub(unanswered);
            let multi = Command::new(&["MULTI"]);
            for command in std::iter::once(&multi).chain(&open.commands).take(answered) {
                up.send(&command.bytes);
                up.replay += 1;
            }
        }
        up.settled = up.replay == 0;
        if !up.settled {
            let route = self.board.flights.route("other");
            self.settling = Some(self.board.flights.begin(up.assigned.slot, route));
        }
        self.resume(up);
    }

    /// Sends what was interrupted once the connection is what the old one was.
    pub(super) fn settle(&mut self) {
        let settles = |up: &mut Upstream| !up.settled && up.replay == 0;
        if let Some(mut up) = self.up.take_if(settles) {
            up.settled = true;
            self.settling = None;
            self.resume(up);
        }
    }

    /// Goes on with a connection, which is sent what was interrupted.
    pub(super) fn resume(&mut self, mut up: Upstream) {
        self.kept = 0;
        if !up.settled {
            self.up = Some(up);
            return;
        }
        for entry in &mut self.entries {
            let Some(command) = &entry.command else {
                continue;
            };
            let waits = matches!(entry.what, What::Blocking { .. } | What::Wait);
            let route = (!waits).then(|| self.setup.route(self.board, command));
            put(self.board, self.setup, &mut up, entry, route);
        }
        self.up = Some(up);
    }

    /// Nobody could serve for as long as commands may wait.
    fn give_up(&mut self, why: &str) {
        let error = unserved(why);
        let mut failed = 0;
        for entry in &mut self.entries {
            match entry.what {
                What::Local(_) => {}
                What::Confirm | What::Abort | What::Nothing => entry.answer(b""),
                _ => {
                    failed += 1;
                    entry.answer(&error);
                }
            }
        }
        self.board
            .counters
            .failed
            .fetch_add(failed, Ordering::Relaxed);
        self.weigh();
        self.unconfirmed = 0;
        if let Some(open) = &mut self.transaction {
            open.doom.get_or_insert(Doom::Lost);
        }
        self.reject_next(&error);
    }

    /// Refuses the command that waits, and those that were sent before in vain.
    fn reject_next(&mut self, error: &[u8]) {
        let waiting = usize::from(self.next.take().is_some()) + self.again.len();
        self.again.clear();
        self.counted = 0;
        for _ in 0..waiting {
            count(&self.board.counters.failed);
            self.reject(error);
        }
    }
}

fn unserved(why: &str) -> Vec<u8> {
    format!("-TRYAGAIN forebay: not executed: {why}\r\n").into_bytes()
}

fn put<'a>(
    board: &'a Switchboard,
    setup: &Setup,
    up: &mut Upstream,
    entry: &mut Entry<'a>,
    route: Option<usize>,
) {
    let Some(command) = &entry.command else {
        return;
    };
    entry.end = Some(up.send(&command.bytes));
    entry.ticket = route.map(|route| {
        let ticket = board.flights.begin(up.assigned.slot, route);
        if commands::is_long(command) {
            return ticket.with_grace(Duration::from_millis(setup.options.long_ms));
        }
        ticket
    });
}

fn interest(reads: bool, writes: bool) -> Option<Interest> {
    match (reads, writes) {
        (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
        (true, false) => Some(Interest::READABLE),
        (false, true) => Some(Interest::WRITABLE),
        (false, false) => None,
    }
}

async fn heard(client: &Wire, interest: Option<Interest>) -> io::Result<()> {
    match interest {
        Some(interest) => client.ready(interest).await,
        None => std::future::pending().await,
    }
}

async fn ready(stream: Option<&Stream>, interest: Option<Interest>) -> io::Result<()> {
    match (stream, interest) {
        (Some(stream), Some(interest)) => stream.ready(interest).await,
        _ => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Who a reply belongs to.
pub(super) const fn owner(strict: bool) -> Owner {
    if strict { Owner::Write } else { Owner::Other }
}
