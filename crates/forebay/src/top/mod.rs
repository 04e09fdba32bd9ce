//! `forebay top`: the host, its apps and events, live from the daemon's stream.
//!
//! [`state`] is what is shown and how keys change it, without effects; [`draw`] puts it on a
//! screen of any size. This module has the effects: the stream, the keyboard, signals, and
//! the terminal, which is put back however this ends.

mod draw;
mod state;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use forebay_api as api;
use forebay_api::{Client, Ticks};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Interval;

use crate::cli::{Failure, explain};
use state::{State, Wish};

/// How often the screen changes: fast enough to see, slow enough to read and to cost little.
const EVERY: Duration = Duration::from_millis(500);

/// How often a daemon that went away is looked for.
const RETRY: Duration = Duration::from_secs(1);

/// Keys that may wait to be handled; more are lost.
const KEYS_MAX: usize = 32;

/// How long the keyboard is waited for before looking whether anybody still listens.
const KEY_WAIT: Duration = Duration::from_millis(250);

/// Past events to start with.
const EVENTS_PAST: u32 = 20;

/// Shows the screen until the user or a signal ends it.
pub(crate) async fn run(client: &Client) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "top needs a terminal; use `forebay status` and `forebay apps` elsewhere".to_owned(),
        ));
    }
    let unusable = |cause| Failure::Io {
        doing: "use the terminal",
        cause,
    };
    // Whatever can fail for want of a daemon fails before the screen changes.
    let ticks = follow(client).await?;
    let past: api::Events = client
        .get(&format!("/v1/events?limit={EVENTS_PAST}"))
        .await?;
    let mut state = State::new(past.events);
    let mut ends = Ends::new().map_err(unusable)?;
    // This also makes a panic restore the terminal before it is told.
    let mut terminal = ratatui::try_init().map_err(unusable)?;
    let _restore = Restore;
    watch(client, ticks, &mut state, &mut terminal, &mut ends).await
}

async fn follow(client: &Client) -> Result<Ticks, Failure> {
    let every_ms = u64::try_from(EVERY.as_millis()).ok();
    Ok(client.ticks(api::StreamPace { every_ms }).await?)
}

/// Puts the terminal back.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Signals that end us in order.
struct Ends {
    terminate: Signal,
    hangup: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn watch(
    client: &Client,
    ticks: Ticks,
    state: &mut State,
    terminal: &mut DefaultTerminal,
    ends: &mut Ends,
) -> Result<(), Failure> {
    let unusable = |cause| Failure::Io {
        doing: "use the terminal",
        cause,
    };
    let mut keys = keyboard();
    let mut stream = Stream {
        client,
        ticks: Some(ticks),
        retry: tokio::time::interval(RETRY),
    };
    loop {
        terminal
            .draw(|frame| draw::draw(frame, state))
            .map_err(unusable)?;
        tokio::select! {
            () = ends.any() => return Ok(()),
            tick = stream.next() => match tick {
                Ok(tick) => state.take(tick),
                Err(why) => state.say(why),
            },
            input = keys.recv() => match input {
                None => return Ok(()),
                Some(Err(cause)) => return Err(unusable(cause)),
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    match state.key(key) {
                        Some(Wish::Quit) => return Ok(()),
                        Some(wish) => grant(wish, client, state).await,
                        None => {}
                    }
                }
                // A changed size is drawn to at the top of the loop.
                Some(Ok(_)) => {}
            },
        }
    }
}

/// Does what a key asked for; what came of it is shown.
async fn grant(wish: Wish, client: &Client, state: &mut State) {
    let result = match wish {
        Wish::Quit => return,
        Wish::Pause => pause(client, "/v1/pause").await,
        Wish::Resume => pause(client, "/v1/resume").await,
        Wish::Explain(app) => match client.get(&format!("/v1/apps/{app}")).await {
            Ok(explanation) => {
                state.read(explain(&explanation));
                return;
            }
            Err(error) => Err(error),
        },
    };
    state.say(match result {
        Ok(done) => done.messages.join("; "),
        Err(error) => error.to_string(),
    });
}

async fn pause(client: &Client, uri: &str) -> Result<api::Done, api::Error> {
    client.post(uri, &()).await
}

/// The stream, found again when the daemon comes back.
struct Stream<'a> {
    client: &'a Client,
    ticks: Option<Ticks>,
    retry: Interval,
}

impl Stream<'_> {
    /// The next tick, or why there is none now. May be dropped before it is done.
    async fn next(&mut self) -> Result<api::Tick, String> {
        loop {
            if let Some(ticks) = &mut self.ticks {
                let why = match ticks.next().await {
                    Ok(Some(tick)) => return Ok(tick),
                    Ok(None) => "the daemon stopped; waiting for it".to_owned(),
                    Err(error) => format!("{error}; trying again"),
                };
                self.ticks = None;
                self.retry.reset();
                return Err(why);
            }
            self.retry.tick().await;
            self.ticks = follow(self.client).await.ok();
        }
    }
}

/// Keys and changes of size, from a thread that ends when nobody listens any more: reading
/// a terminal blocks.
fn keyboard() -> mpsc::Receiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let input = match event::poll(KEY_WAIT) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let broken = input.is_err();
            // A key that finds no room is one too many.
            sender.try_send(input).ok();
            if broken {
                return;
            }
        }
    });
    receiver
}
