//! What becomes of commands whose server is lost.

use std::io;
use std::sync::atomic::Ordering;

use super::conversation::{ABORTED, Conversation, IN_DOUBT, LOST};
use super::entry::{Entry, What};
use super::relay::doubt;
use super::requests::Command;
use super::transaction::Doom;

/// How often a command is sent again: one that ends every server that it reaches is not.
const LOSSES_MAX: u8 = 3;

/// What was decided about all commands of a lost connection.
#[derive(Debug, Default)]
struct Tally {
    again: u64,
    doubted: u64,
    failed: u64,
}

impl Conversation<'_> {
    /// The connection is given up. What it brought was taken from it before.
    pub(super) fn lose(&mut self) -> io::Result<()> {
        let Some(up) = self.up.take() else {
            return Ok(());
        };
        // Whatever came next would be taken for the rest of it.
        if self.parted.take().is_some() {
            return Err(io::Error::other(
                "the primary was lost within a reply or a message of which the client has a part",
            ));
        }
        let mut tally = Tally {
            doubted: self.outlet.doubt(IN_DOUBT),
            ..Tally::default()
        };
        self.settling = None;
        self.stale_offset = false;
        self.doom_transaction();
        self.take_back(up.written);
        let open_from = self.open_from();
        let executed = self.executed(up.written, open_from);
        let doomed = self
            .transaction
            .as_ref()
            .is_some_and(|open| open.doom.is_some());
        self.unconfirmed = 0;
        let mut kept = Vec::with_capacity(self.entries.len());
        for (place, mut entry) in std::mem::take(&mut self.entries).into_iter().enumerate() {
            let sent = entry.is_sent(up.written);
            entry.end = None;
            entry.ticket = None;
            entry.confirmations = 0;
            entry.losses += u8::from(sent);
            match entry.what {
                What::Local(_) => {}
                What::Nothing | What::Abort | What::Confirm => continue,
                What::Multi | What::Queued => {
                    let reply: &[u8] = if entry.what == What::Multi {
                        b"+OK\r\n"
                    } else {
                        b"+QUEUED\r\n"
                    };
                    let here = if place >= open_from {
                        doomed
                    } else {
                        executed.contains(&place)
                    };
                    if here {
                        entry.answer(reply);
                    }
                }
                What::Discard if executed.contains(&place) => entry.answer(b"+OK\r\n"),
                What::Exec { watched: true } if !sent => {
                    // A `WATCH` that is sent again is for a transaction that is over.
                    kept.push(Entry::own(Command::new(&["UNWATCH"])));
                    entry.answer(self.state.protocol.nothing());
                }
                What::Exec { .. } if !sent && executed.contains(&place) => {
                    tally.failed += 1;
                    entry.answer(ABORTED);
                }
                _ if sent && entry.what.is_once() => {
                    tally.doubted += 1;
                    entry.answer(IN_DOUBT);
                }
                // What would be sent now would not be followed by a `WAIT`.
                _ if entry.strict || entry.losses >= LOSSES_MAX => {
                    tally.failed += 1;
                    entry.answer(LOST);
                }
                _ => tally.again += u64::from(sent),
            }
            kept.push(entry);
        }
        self.entries = kept.into();
        self.weigh();
        let counters = &self.board.counters;
        doubt(self.board, tally.doubted);
        counters.replayed.fetch_add(tally.again, Ordering::Relaxed);
        counters.failed.fetch_add(tally.failed, Ordering::Relaxed);
        Ok(())
    }

    /// What was watched may have changed unseen.
    fn doom_transaction(&mut self) {
        let watched = std::mem::take(&mut self.watching);
        match &mut self.transaction {
            None => self.watch_lost |= watched,
            Some(open) => {
                if watched {
                    open.doom.get_or_insert(Doom::Watched);
                }
                if open.failed {
                    open.doom.get_or_insert(Doom::Rejected);
                }
                if open.too_large {
                    open.doom.get_or_insert(Doom::Lost);
                }
            }
        }
    }

    /// What was written last and the server cannot have read comes again, as if it had not been sent:
    /// what `strict` asks for is seen to anew. Only of commands that say nothing about the connection.
    fn take_back(&mut self, written: u64) {
        let may = |entry: &&Entry<'_>| {
            let plain = matches!(
                entry.what,
                What::Read
                    | What::Write
                    | What::Once
                    | What::Wait
                    | What::Blocking { .. }
                    | What::Confirm
                    | What::Nothing
            );
            plain && !entry.is_sent(written)
        };
        let tail = self.entries.iter().rev().take_while(may).count();
        let from = self.entries.len() - tail;
        let strict = self.entries.iter().skip(from).position(|e| e.strict);
        let Some(first) = strict.map(|first| from + first) else {
            return;
        };
        let own = |entry: &Entry<'_>| matches!(entry.what, What::Confirm | What::Nothing);
        let back = self.entries.split_off(first);
        let back = back.into_iter().filter(|entry| !own(entry));
        let back: Vec<Command> = back.filter_map(|entry| entry.command).collect();
        if let Some(next) = self.next.take() {
            self.again.push_front(next);
        }
        self.counted += back.len();
        for command in back.into_iter().rev() {
            self.again.push_front(command);
        }
    }

    /// Where entries begin that belong to the transaction that is open.
    fn open_from(&self) -> usize {
        if self.transaction.is_none() {
            return self.entries.len();
        }
        let ends = |entry: &Entry<'_>| entry.what.ends_transaction();
        let last = self.entries.iter().rposition(ends);
        last.map_or(0, |place| place + 1)
    }

    /// Places of entries whose transaction ended in a way that is not sent again: it was sent to be
    /// executed, or some of it was answered before it was.
    fn executed(&self, written: u64, open_from: usize) -> Vec<usize> {
        let mut executed = Vec::new();
        let mut of_this = Vec::new();
        let mut begun = false;
        for (place, entry) in self.entries.iter().enumerate().take(open_from) {
            match entry.what {
                What::Multi => {
                    begun = true;
                    of_this.push(place);
                }
                What::Queued => of_this.push(place),
                What::Exec { .. } | What::Discard | What::Abort => {
                    of_this.push(place);
                    // What would be executed now would not be followed by a `WAIT`, and nothing is
                    // watched any more.
                    let once = match entry.what {
                        What::Exec { watched } => watched || entry.strict || entry.is_sent(written),
                        _ => entry.what == What::Abort,
                    };
                    if once || !begun {
                        executed.append(&mut of_this);
                    }
                    of_this.clear();
                    begun = false;
                }
                _ => {}
            }
        }
        executed
    }
}
