//! `forebay top`: the host, its apps and events, live from the daemon's stream.
//!
//! [`state`] is what is shown and how keys and the mouse change it, without effects; [`draw`] puts it on
//! a screen of any size, and formats what is seen there only; [`trail`] is what apps did lately. [`asked`]
//! is what the stream does not tell, [`once`] one look for scripts. This module has the effects: the
//! stream, the keyboard, signals, and the terminal, which is put back however this ends.

mod asked;
mod draw;
mod once;
mod state;
#[cfg(test)]
mod tests;
mod trail;
mod view;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use forebay_api as api;
use forebay_api::{Client, Ticks};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{
    self, DisableMouseCapture, EnableMouseCapture, Event, KeyEventKind,
};
use ratatui::crossterm::execute;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use crate::cli::{Failure, explain};
use crate::output::{Format, Output};
use draw::Spots;
use state::{State, Wish};
use view::{Sort, View};

/// How often a daemon that went away is looked for.
const RETRY: Duration = Duration::from_secs(1);

/// How often is asked for what the stream does not tell, while it is shown.
const ASK: Duration = Duration::from_secs(2);

/// Keys that may wait to be handled; more are lost.
const KEYS_MAX: usize = 32;

/// How long the keyboard is waited for before looking whether anybody still listens.
const KEY_WAIT: Duration = Duration::from_millis(250);

/// Past events to start with.
const EVENTS_PAST: u32 = 100;

/// What is shown first.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TopArgs {
    /// Print one look and end; a pipe or a file takes it as well as a terminal
    #[arg(long)]
    once: bool,

    /// What to show first
    #[arg(long, value_enum, default_value_t)]
    view: View,

    /// What to order apps by
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,

    /// The other way round
    #[arg(long)]
    reverse: bool,

    /// Only apps and events with these letters
    #[arg(
        long,
        value_name = "LETTERS",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
}

/// Shows the screen until the user or a signal ends it.
pub(crate) async fn run(
    args: TopArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), Failure> {
    if !args.once && output.format() == Format::Json {
        return Err(Failure::Usage(
            "a screen is no JSON; use `forebay top --once --json`".to_owned(),
        ));
    }
    if !args.once && !io::stdout().is_terminal() {
        return Err(Failure::Usage(
            "top needs a terminal; use `forebay top --once` elsewhere".to_owned(),
        ));
    }
    let unusable = |cause| Failure::Io {
        doing: "use the terminal",
        cause,
    };
    // Whatever can fail for want of a daemon fails before the screen changes.
    let past: api::Events = client
        .get(&format!("/v1/events?limit={EVENTS_PAST}"))
        .await?;
    let mut state = State::new(past.events);
    state.show(args.view);
    state.sort = args.sort;
    state.reversed = args.reverse;
    state.filter = args.filter;
    if args.once {
        return once::run(client, state, output).await;
    }
    let pace = every(0);
    let ticks = follow(client, pace).await?;
    let mut ends = Ends::new().map_err(unusable)?;
    // This also makes a panic restore the terminal before it is told.
    let mut terminal = ratatui::try_init().map_err(unusable)?;
    let _restore = Restore;
    execute!(io::stdout(), EnableMouseCapture).map_err(unusable)?;
    let stream = Stream {
        client,
        ticks: Some(ticks),
        pace,
        retry: tokio::time::interval(RETRY),
    };
    watch(stream, &mut state, &mut terminal, &mut ends).await
}

/// How often the screen changes: fast enough to see, slow enough to read and to cost little. A message
/// has every app in it, so that many of them are told of more seldom.
const fn every(apps: usize) -> Duration {
    Duration::from_millis(match apps {
        0..150 => 500,
        150..600 => 1000,
        600..2000 => 2000,
        _ => 5000,
    })
}

async fn follow(client: &Client, pace: Duration) -> Result<Ticks, Failure> {
    let every_ms = u64::try_from(pace.as_millis()).ok();
    Ok(client.ticks(api::StreamPace { every_ms }).await?)
}

/// Puts the terminal back.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        // The terminal may be gone; then nobody misses it.
        execute!(io::stdout(), DisableMouseCapture).ok();
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
    mut stream: Stream<'_>,
    state: &mut State,
    terminal: &mut DefaultTerminal,
    ends: &mut Ends,
) -> Result<(), Failure> {
    let unusable = |cause| Failure::Io {
        doing: "use the terminal",
        cause,
    };
    let client = stream.client;
    let mut keys = keyboard();
    let mut asking = Asking::new();
    loop {
        let mut spots = Spots::default();
        terminal
            .draw(|frame| spots = draw::draw(frame, state))
            .map_err(unusable)?;
        state.drawn(&spots);
        let view = state.view;
        tokio::select! {
            () = ends.any() => return Ok(()),
            tick = stream.next() => match tick {
                Ok(tick) => {
                    stream.suit(tick.apps.len());
                    state.take(tick);
                }
                Err(why) => state.miss(why),
            },
            told = asking.next(client, state) => state.asked = Some(told),
            input = keys.recv() => {
                let wish = match input {
                    None => return Ok(()),
                    Some(Err(cause)) => return Err(unusable(cause)),
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => state.key(key),
                    Some(Ok(Event::Mouse(mouse))) => state.mouse(mouse, &spots),
                    // A changed size is drawn to at the top of the loop.
                    Some(Ok(_)) => None,
                };
                match wish {
                    Some(Wish::Quit) => return Ok(()),
                    Some(wish) => grant(wish, client, state).await,
                    None => {}
                }
            },
        }
        if state.view != view {
            asking.at_once();
        }
    }
}

/// Asks for what the stream does not tell, while it is shown: one request at a time.
struct Asking {
    every: Interval,
    answers: mpsc::Receiver<(View, String)>,
    answer: mpsc::Sender<(View, String)>,
    under_way: bool,
}

impl Asking {
    fn new() -> Self {
        let (answer, answers) = mpsc::channel(1);
        let mut every = tokio::time::interval(ASK);
        // What was not asked in time is not asked twice later.
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            every,
            answers,
            answer,
            under_way: false,
        }
    }

    /// Another view is shown: it is not waited with.
    fn at_once(&mut self) {
        self.every.reset_immediately();
    }

    /// The next answer. May be dropped before it is done: the request goes on.
    async fn next(&mut self, client: &Client, state: &State) -> (View, String) {
        loop {
            tokio::select! {
                answer = self.answers.recv() => {
                    self.under_way = false;
                    // The channel stays open while this one holds a sender.
                    if let Some(answer) = answer {
                        return answer;
                    }
                },
                _ = self.every.tick(), if state.view.is_asked() && !self.under_way => {
                    self.under_way = true;
                    let (client, answer, view) = (client.clone(), self.answer.clone(), state.view);
                    let apps = state.tick.as_ref().map_or(&[][..], |tick| &tick.apps);
                    let waiting = asked::waiting(apps);
                    tokio::spawn(async move {
                        let text = asked::page(&client, view, &waiting).await;
                        // Nobody listens any more when the screen is gone.
                        answer.send((view, text)).await.ok();
                    });
                }
            }
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
                state.read(" Why ", explain(&explanation));
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
    pace: Duration,
    retry: Interval,
}

impl Stream<'_> {
    /// Takes up the pace for so many apps.
    fn suit(&mut self, apps: usize) {
        let pace = every(apps);
        if pace != self.pace {
            self.pace = pace;
            // Asked for again, which needs no word to the reader.
            self.ticks = None;
            self.retry.reset();
        }
    }

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
            match follow(self.client, self.pace).await {
                Ok(ticks) => self.ticks = Some(ticks),
                Err(why) => return Err(format!("{why}; trying again")),
            }
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
