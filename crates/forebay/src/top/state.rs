//! What the screen shows, and how keys change it.

use std::collections::VecDeque;

use forebay_api as api;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Events kept for the screen.
const EVENTS_MAX: usize = 100;

/// What a key asks for beyond the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Pause,
    Resume,
    Explain(String),
}

/// What is shown.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) tick: Option<api::Tick>,
    /// Between the latest two ticks: the length of a period in milliseconds.
    pub(super) period_ms: Option<f64>,
    /// Between the latest two ticks: the daemon's share of one CPU.
    pub(super) agent_share: Option<f64>,
    /// Newest last.
    pub(super) events: VecDeque<api::Event>,
    /// The name of the selected app: the list changes under the selection.
    selected: Option<String>,
    /// Text over everything, and how many lines of it are above the screen.
    pub(super) reading: Option<(String, u16)>,
    /// What the last wish or the stream came to.
    pub(super) message: Option<String>,
}

impl State {
    /// Nothing but past events.
    pub(super) fn new(events: Vec<api::Event>) -> Self {
        Self {
            events: events.into(),
            ..Self::default()
        }
    }

    /// Takes in the next tick.
    pub(super) fn take(&mut self, tick: api::Tick) {
        if let Some(before) = &self.tick {
            let (then, now) = (&before.status, &tick.status);
            let periods = now.period.saturating_sub(then.period);
            let seconds = now.uptime_seconds - then.uptime_seconds;
            if periods > 0 && seconds > 0.0 {
                let periods = f64::from(u32::try_from(periods).unwrap_or(u32::MAX));
                self.period_ms = Some(seconds * 1000.0 / periods);
                let used = now.agent.cpu_seconds - then.agent.cpu_seconds;
                self.agent_share = Some(used.max(0.0) / seconds);
            }
        } else {
            // A message from before there was a daemon to see is over.
            self.message = None;
        }
        self.events.extend(tick.events.iter().cloned());
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
        self.tick = Some(tick);
    }

    /// Shows a message until the next key.
    pub(super) fn say(&mut self, message: String) {
        self.message = Some(message);
    }

    /// Shows a text over everything.
    pub(super) fn read(&mut self, text: String) {
        self.reading = Some((text, 0));
    }

    /// Where the selection is among the apps.
    pub(super) fn selected(&self) -> Option<usize> {
        let apps = &self.tick.as_ref()?.apps;
        let found = self
            .selected
            .as_ref()
            .and_then(|name| apps.iter().position(|app| app.name == *name));
        found.or(if apps.is_empty() { None } else { Some(0) })
    }

    /// Does what a key means, or tells what it asks for.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        self.message = None;
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Some(Wish::Quit);
        }
        if let Some((_, above)) = &mut self.reading {
            match key.code {
                KeyCode::Up | KeyCode::Char('k') => *above = above.saturating_sub(1),
                KeyCode::Down | KeyCode::Char('j') => *above = above.saturating_add(1),
                KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q') => self.reading = None,
                _ => {}
            }
            return None;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Quit),
            KeyCode::Char('p') => Some(if self.tick.as_ref()?.status.paused {
                Wish::Resume
            } else {
                Wish::Pause
            }),
            KeyCode::Up | KeyCode::Char('k') => self.select(|at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(|at, last| (at + 1).min(last)),
            KeyCode::Home => self.select(|_, _| 0),
            KeyCode::End => self.select(|_, last| last),
            KeyCode::Enter => {
                let at = self.selected()?;
                let app = self.tick.as_ref()?.apps.get(at)?;
                Some(Wish::Explain(app.name.clone()))
            }
            _ => None,
        }
    }

    /// Moves the selection; asks for nothing.
    fn select(&mut self, to: impl FnOnce(usize, usize) -> usize) -> Option<Wish> {
        let at = self.selected()?;
        let apps = &self.tick.as_ref()?.apps;
        let to = to(at, apps.len().saturating_sub(1));
        self.selected = apps.get(to).map(|app| app.name.clone());
        None
    }
}
