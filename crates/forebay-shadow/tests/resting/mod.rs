//! Takes clients' connections from a front that rest, and gives them to one, as the daemon does over a boot.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};

use forebay_shadow::control::{Answer, Line, Request};

/// A connection that rests.
#[derive(Debug)]
pub(crate) struct Resting {
    pub(crate) state: String,
    pub(crate) unread: Vec<u8>,
    pub(crate) socket: OwnedFd,
}

/// What a front offers, and how many connections it does not.
pub(crate) async fn offered(line: &mut Line) -> (Vec<Resting>, u64) {
    line.send(&Request::Rest, &[]).await.unwrap();
    let (mut known, mut sockets) = (Vec::new(), VecDeque::new());
    let left = loop {
        let (answer, more) = line.receive().await.unwrap().unwrap();
        sockets.extend(more);
        match answer {
            Answer::Resting { state, unread } => known.push((state, unread)),
            Answer::Rested { left } => break left,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(known.len(), sockets.len());
    let resting = known.into_iter().zip(sockets);
    let resting = resting.map(|((state, unread), socket)| Resting {
        state,
        unread,
        socket,
    });
    (resting.collect(), left)
}

pub(crate) async fn taken(line: &mut Line) {
    let answer = line.ask(&Request::Taken, &[]).await.unwrap();
    assert_eq!(answer, Answer::Done);
}

pub(crate) async fn resume(line: &mut Line, resting: &Resting) -> Answer {
    let request = Request::Resume {
        state: resting.state.clone(),
        unread: resting.unread.clone(),
    };
    line.ask(&request, &[resting.socket.as_fd()]).await.unwrap()
}
