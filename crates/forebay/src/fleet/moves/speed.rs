//! Something is sent to another host to be measured, before anything moves.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, ReadBuf};

use crate::fleet::link::messages::MEASURE_MAX;
use crate::fleet::link::{Answer, Compress, Error, Link, Progress, Request, Sending};

/// For how long something is sent.
const TIME: Duration = Duration::from_millis(250);
/// How long no byte may go over, and how long the answer may take: what is slower takes no memory in.
const STALL_MAX: Duration = Duration::from_secs(20);

/// Sends bytes as contents of a move are sent, and how long that took until the other side had all of them.
pub(super) async fn measure(link: &mut Link) -> (Result<Answer, Error>, Duration) {
    let progress = Progress::default();
    let sending = Sending {
        progress: &progress,
        // What memory shrinks to is not known.
        compress: Compress::Never,
        stall: STALL_MAX,
        answer: STALL_MAX,
    };
    let mut source = ForAWhile {
        began: Instant::now(),
        left: MEASURE_MAX,
    };
    let began = Instant::now();
    let answer = link.send(&Request::Measure, &mut source, sending).await;
    (answer, began.elapsed())
}

/// Bytes, until time or their bound is over.
struct ForAWhile {
    began: Instant,
    left: u64,
}

impl AsyncRead for ForAWhile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.began.elapsed() < TIME {
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            let count = into.remaining().min(left);
            into.initialize_unfilled_to(count);
            into.advance(count);
            self.left -= u64::try_from(count).unwrap_or(self.left);
        }
        Poll::Ready(Ok(()))
    }
}
