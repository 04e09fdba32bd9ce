//! How signals reach the control thread: a board that others write and it reads.
//!
//! The control thread never waits for a writer. When one is at the board just then, a period
//! goes by what the one before it saw; a value then stands a period longer at most.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use forebay_core::accel;
use forebay_core::app::AppId;
use forebay_core::signals::{Board, Signals, Told};

/// A new board: for those who tell, and for the control thread.
pub(crate) fn board() -> (Teller, Listener) {
    let shared = Arc::new(Shared {
        origin: Instant::now(),
        board: Mutex::default(),
    });
    let teller = Teller(Arc::clone(&shared));
    (
        teller,
        Listener {
            shared,
            latest: Signals::default(),
        },
    )
}

#[derive(Debug)]
struct Shared {
    origin: Instant,
    board: Mutex<Board>,
}

/// Writes to the board.
#[derive(Debug, Clone)]
pub(crate) struct Teller(Arc<Shared>);

impl Teller {
    /// Tells signals of an app, each of which stands for some time from now on. Says whether
    /// there was room for another app.
    pub(crate) fn tell(&self, stands: Duration, app: &AppId, told: Told) -> bool {
        let mut board = self.0.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.tell(self.0.origin.elapsed(), stands, app, told)
    }
}

impl Teller {
    /// As [`tell`](Self::tell), of what the worker of an app says of accelerators.
    pub(crate) fn tell_accelerator(&self, stands: Duration, app: &AppId, used: accel::Use) -> bool {
        let mut board = self.0.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.tell_accelerator(self.0.origin.elapsed(), stands, app, used)
    }
}

/// Reads the board.
#[derive(Debug)]
pub(crate) struct Listener {
    shared: Arc<Shared>,
    latest: Signals,
}

impl Listener {
    /// What stands now. Does not wait.
    pub(crate) fn now(&mut self) -> &Signals {
        let board = match self.shared.board.try_lock() {
            Ok(board) => board,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return &self.latest,
        };
        self.latest = board.at(self.shared.origin.elapsed());
        drop(board);
        &self.latest
    }
}

#[cfg(test)]
mod tests {
    use forebay_core::signals::Signal;

    use super::*;

    #[test]
    fn a_writer_at_the_board_holds_up_no_reader() {
        let (teller, mut listener) = board();
        let web: AppId = "web".parse().unwrap();
        let signal = |requests| Signal {
            requests_per_second: Some(requests),
            response_time_ms: None,
            errors: None,
        };
        let told = |requests| Told::by_app(signal(requests));
        let hour = Duration::from_secs(3600);
        assert!(teller.tell(hour, &web, told(1.0)));
        assert_eq!(listener.now().of(&web), signal(1.0));
        assert!(teller.tell(hour, &web, told(2.0)));
        let writing = Arc::clone(&teller.0);
        let writing = writing.board.lock().unwrap();
        assert_eq!(listener.now().of(&web), signal(1.0));
        drop(writing);
        assert_eq!(listener.now().of(&web), signal(2.0));
        assert!(teller.tell(Duration::ZERO, &web, told(3.0)));
        assert_eq!(listener.now().of(&web), Signal::default());
    }
}
