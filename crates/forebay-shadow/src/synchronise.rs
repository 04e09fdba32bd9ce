//! What keeps a shadow in step with its primary, and makes it one.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::stream::Stream;
use crate::switchboard::Instance;

/// How a shadow stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It could take over now.
    Ready {
        /// How far it is behind, where that can be told.
        lag: Option<Lag>,
    },
    /// It runs and cannot take over: why.
    Behind(String),
    /// It cannot be reached: why.
    Away(String),
}

/// How far a shadow is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Of what the primary wrote.
    pub bytes: Option<u64>,
    /// Since it heard from the primary.
    pub time: Option<Duration>,
}

/// A step that takes a while.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What tells a primary that hangs from one that is busy with what it was asked, besides its silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    /// Input that it leaves unread: it would read, whatever it is busy with.
    Unread,
    /// A ping that it does not answer: each connection has a process of its own, which reads nothing
    /// while it is busy, and the ping has one, too.
    Ping,
}

/// Whether an instance that does not follow has to be begun anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It is made to follow as it runs.
    Never,
    /// It would be, and may come to follow by itself.
    Possible,
    /// It has not for long enough.
    Due,
}

/// One way to keep a shadow. Every step is bounded in time by itself and may be asked for again.
pub trait Synchroniser: std::fmt::Debug + Send + Sync {
    /// Makes an instance the one that is written to. The old primary is fenced, or settled.
    fn promote<'a>(&'a self, to: &'a Instance) -> Pending<'a, Result<(), String>>;

    /// Has a primary that is to hand over, and its shadow, do beforehand what a promotion would wait for. Clients are
    /// answered meanwhile, and nothing depends on it but how long they wait afterwards.
    fn prepare<'a>(&'a self, _: &'a Instance, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// Gives the shadow what it lacks of a primary that is to hand over, and has answered all it
    /// was asked: the primary, and the shadow.
    fn settle<'a>(&'a self, _: &'a Instance, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// Makes an instance follow the primary.
    fn follow<'a>(
        &'a self,
        shadow: &'a Instance,
        primary: &'a Instance,
    ) -> Pending<'a, Result<(), String>>;

    /// Whether an instance is put in step by being ended: whoever begins it again makes it follow.
    fn renewal(&self, _: &Instance) -> Renewal {
        Renewal::Never
    }

    /// How an instance stands to the primary.
    fn standing<'a>(&'a self, shadow: &'a Instance, primary: &'a Instance)
    -> Pending<'a, Standing>;

    /// How an instance stands while nobody serves, and `last` was the last primary. That one is
    /// ready when it is there; [`Standing::Behind`] says that it is, and must not serve again.
    fn vacant<'a>(
        &'a self,
        this: &'a Instance,
        last: &'a Instance,
        _: &'a [Instance],
    ) -> Pending<'a, Standing> {
        Box::pin(async move {
            if this.app != last.app {
                return self.standing(this, last).await;
            }
            match self.ping(this).await {
                Ok(()) => Standing::Ready { lag: None },
                Err(why) => Standing::Away(why),
            }
        })
    }

    /// Whether only one instance may serve at a time, because each has a state of its own. Then a
    /// hand-over waits until the old primary has answered what it was sent; else that one answers
    /// it while the new one serves already.
    fn is_exclusive(&self) -> bool {
        true
    }

    /// What speaks for a primary that hangs.
    fn witness(&self) -> Witness {
        Witness::Unread
    }

    /// Asks an instance whether it is there, by its own protocol where it has one.
    fn ping<'a>(&'a self, instance: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(connect(instance))
    }
}

/// How long an instance may take to accept a connection.
const CONNECT_BOUND: Duration = Duration::from_secs(1);

async fn connect(instance: &Instance) -> Result<(), String> {
    let connected = tokio::time::timeout(CONNECT_BOUND, Stream::connect(&instance.address)).await;
    match connected {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "connect to {} at {}: {error}",
            instance.app, instance.address
        )),
        Err(_) => Err(format!(
            "connect to {} at {}: no answer within {} s",
            instance.app,
            instance.address,
            CONNECT_BOUND.as_secs()
        )),
    }
}

/// `standby`: a warm process without a state of its own. It is in step when it accepts connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Standby;

impl Synchroniser for Standby {
    fn is_exclusive(&self) -> bool {
        false
    }

    fn promote<'a>(&'a self, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        // The first request will tell; to ask before it would cost the clients a round trip.
        Box::pin(async { Ok(()) })
    }

    fn follow<'a>(&'a self, _: &'a Instance, _: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn standing<'a>(&'a self, shadow: &'a Instance, _: &'a Instance) -> Pending<'a, Standing> {
        Box::pin(async {
            match connect(shadow).await {
                Ok(()) => Standing::Ready { lag: None },
                Err(why) => Standing::Away(why),
            }
        })
    }
}
