//! What may be sent again.
//!
//! Problem: a connection broke before the answer came. Nobody knows by that whether the request was
//! executed.
//!
//! Approach: what cannot do harm twice is sent again: an idempotent request, or one that carries a
//! key by which the service knows it. So is what surely was never read: nothing of it was written,
//! or the instance was stopped for good while all of it lay unread in its socket. Everything else is
//! said to be unknown.
//!
//! Properties: nothing is sent again of which the client has a byte, or of which a part was let go;
//! nothing that may have been read is sent again unless it is idempotent; one instance in one epoch
//! gets a request at most twice, and the second time only on a connection of its own.

use tokio::time::Instant;

use super::head::Request;
use super::{DOUBT, is_idempotent};
use crate::switchboard::{Assigned, Gate, Switchboard};

/// Epochs in which a request is sent that may have been executed in each: one whose execution ends
/// an instance does not end all of them in turn.
const EPOCHS_MAX: u32 = 3;

/// How often a request was sent, and to whom.
#[derive(Debug)]
pub(crate) struct Tries {
    safe: bool,
    deadline: Instant,
    epochs: u32,
    /// The latest one, and how often in that epoch.
    latest: Option<(Assigned, u32)>,
    /// Some of it was written.
    written: bool,
    executed: bool,
}

/// How a connection broke before the answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Broken {
    pub(crate) assigned: Assigned,
    /// The connection had served another request before.
    pub(crate) used: bool,
    /// The instance was lost, and stands or is gone.
    pub(crate) replaced: bool,
    /// Bytes of the request that were written.
    pub(crate) written: usize,
    /// All of the request is still there.
    pub(crate) retained: bool,
    /// This end of the connection.
    pub(crate) port: Option<u16>,
}

/// What becomes of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is sent again.
    Again,
    /// Nobody knows whether it was executed.
    Unknown,
}

impl Tries {
    pub(crate) const fn new(request: &Request, deadline: Instant) -> Self {
        Self {
            safe: is_idempotent(request),
            deadline,
            epochs: 0,
            latest: None,
            written: false,
            executed: false,
        }
    }

    /// A connection is there; whether another instance got the request before.
    pub(crate) fn begin(&mut self, assigned: Assigned) -> bool {
        let replayed = self.written && self.latest.is_some_and(|(before, _)| before != assigned);
        if self.latest.is_none_or(|(before, _)| before != assigned) {
            self.epochs += 1;
        }
        let before = self.latest.filter(|(latest, _)| *latest == assigned);
        self.latest = Some((assigned, before.map_or(1, |(_, count)| count + 1)));
        replayed
    }

    /// It may be executed twice.
    pub(crate) const fn is_safe(&self) -> bool {
        self.safe
    }

    /// The next connection has to be a new one.
    pub(crate) const fn wants_fresh(&self) -> bool {
        self.latest.is_some()
    }

    /// An instance that did not answer may have executed it.
    pub(crate) const fn may_have_been_executed(&self) -> bool {
        self.executed
    }

    /// Decides, after having waited until it shows whether the instance is lost.
    pub(crate) async fn judge(&mut self, board: &Switchboard, broken: &Broken) -> Fate {
        if broken.written == 0 && broken.retained {
            // A connection that was closed while it was idle.
            return self.once_more(board, broken).await;
        }
        self.written = true;
        if !broken.replaced && !broken.used {
            board.trouble();
        }
        let unread = broken.replaced
            && broken.retained
            && broken
                .port
                .and_then(|port| board.unread(broken.assigned.epoch, port))
                .is_some_and(|unread| usize::try_from(unread) == Ok(broken.written));
        if unread {
            return Fate::Again;
        }
        self.executed = true;
        if !self.safe || !broken.retained {
            return Fate::Unknown;
        }
        if broken.replaced {
            return self.next();
        }
        self.once_more(board, broken).await
    }

    const fn next(&self) -> Fate {
        if self.epochs < EPOCHS_MAX {
            Fate::Again
        } else {
            Fate::Unknown
        }
    }

    /// The same instance in the same epoch is asked twice at most.
    async fn once_more(&self, board: &Switchboard, broken: &Broken) -> Fate {
        let asked = self.latest.map_or(0, |(_, count)| count);
        if asked < 2 && broken.used {
            return Fate::Again;
        }
        let mut routing = board.subscribe();
        loop {
            let seen = *routing.borrow_and_update();
            if seen.epoch != broken.assigned.epoch {
                return self.next();
            }
            // While the director acts, it will say what comes of it.
            let left = self.deadline.saturating_duration_since(Instant::now());
            let bound = match seen.gate {
                Gate::Held => left,
                Gate::Open => left.min(DOUBT),
            };
            match tokio::time::timeout(bound, routing.changed()).await {
                Ok(Ok(())) => {}
                Err(_) if asked < 2 && bound < left => return Fate::Again,
                Ok(Err(_)) | Err(_) => return Fate::Unknown,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::head;
    use super::*;
    use crate::switchboard::Instance;
    use crate::unread::Queue;

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
    const FIRST: Assigned = Assigned { slot: 0, epoch: 3 };

    fn board() -> Switchboard {
        let instance = |app: &str| Instance {
            app: app.to_owned(),
            address: format!("/run/{app}").parse().unwrap(),
            elsewhere: None,
        };
        let board = Switchboard::new(vec![instance("a"), instance("b")], 0, 3);
        board.change(|routing| routing.gate = Gate::Open);
        board
    }

    fn tries(method: &str) -> Tries {
        let head = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
        let request = head::request(head.as_bytes(), &mut Vec::new()).unwrap();
        let mut tries = Tries::new(&request, Instant::now() + PATIENCE);
        assert!(!tries.begin(FIRST));
        tries
    }

    const BROKEN: Broken = Broken {
        assigned: FIRST,
        used: false,
        replaced: false,
        written: 10,
        retained: true,
        port: Some(7),
    };

    #[tokio::test(start_paused = true)]
    async fn what_may_have_been_executed_is_sent_again_only_if_that_is_safe() {
        let board = board();
        let left = [(7, 10), (8, 9)].map(|(port, length)| Queue::new(Some(port), length));
        board.leave(3, &left);
        let replaced = Broken {
            replaced: true,
            ..BROKEN
        };
        let cases = [
            ("safe", "GET", BROKEN, Fate::Again, true),
            ("unsafe", "POST", BROKEN, Fate::Unknown, true),
            (
                "safe, partly gone",
                "PUT",
                Broken {
                    retained: false,
                    ..replaced
                },
                Fate::Unknown,
                true,
            ),
            ("unread", "POST", replaced, Fate::Again, false),
            (
                "read in part",
                "POST",
                Broken {
                    port: Some(8),
                    ..replaced
                },
                Fate::Unknown,
                true,
            ),
            (
                "of an unknown port",
                "POST",
                Broken {
                    port: None,
                    ..replaced
                },
                Fate::Unknown,
                true,
            ),
            (
                "unread by one that may go on",
                "POST",
                BROKEN,
                Fate::Unknown,
                true,
            ),
            (
                "never written",
                "POST",
                Broken {
                    written: 0,
                    used: true,
                    ..BROKEN
                },
                Fate::Again,
                false,
            ),
        ];
        for (name, method, broken, fate, executed) in cases {
            let mut tries = tries(method);
            assert_eq!(tries.judge(&board, &broken).await, fate, "{name}");
            assert_eq!(tries.may_have_been_executed(), executed, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_instance_is_asked_twice_and_the_next_one_too() {
        let board = board();
        let mut tries = tries("GET");
        assert_eq!(tries.judge(&board, &BROKEN).await, Fate::Again);
        assert!(!tries.begin(FIRST), "the same one");
        assert_eq!(tries.judge(&board, &BROKEN).await, Fate::Unknown);
        let (fate, ()) = tokio::join!(tries.judge(&board, &BROKEN), async {
            board.change(|routing| routing.gate = Gate::Held);
            tokio::time::sleep(2 * DOUBT).await;
            board.change(|routing| routing.epoch = 4);
        });
        assert_eq!(fate, Fate::Again, "the director said who is next");
        assert!(tries.begin(Assigned { slot: 1, epoch: 4 }));
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_does_not_end_all_instances_in_turn() {
        let board = board();
        let mut tries = tries("GET");
        for epoch in 3..=5 {
            let assigned = Assigned { slot: 0, epoch };
            let broken = Broken {
                assigned,
                replaced: true,
                ..BROKEN
            };
            let fate = if epoch < 5 {
                Fate::Again
            } else {
                Fate::Unknown
            };
            assert_eq!(tries.judge(&board, &broken).await, fate, "{epoch}");
            assert!(tries.begin(Assigned {
                slot: 1,
                epoch: epoch + 1
            }));
        }
    }
}
