//! What the screen shows, and how keys and the mouse change it.

use std::collections::VecDeque;

use forebay_api as api;
use ratatui::crossterm::event::{
    KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use ratatui::layout::Position;

use super::draw::Spots;
use super::trail::Trails;
use super::view::{Sort, View};

/// Events kept for the screen.
const EVENTS_MAX: usize = 500;
/// Letters of a filter.
const FILTER_MAX: usize = 64;
/// Rows that a turn of the wheel or a key for pages goes.
const WHEEL: usize = 3;
const PAGE: usize = 10;

/// What a key asks for beyond the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    Pause,
    Resume,
    Explain(String),
}

/// A text over everything.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) title: &'static str,
    pub(super) text: String,
    /// Lines of it that are above the screen.
    pub(super) above: u16,
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
    pub(super) trails: Trails,
    pub(super) view: View,
    pub(super) sort: Sort,
    /// The other way round.
    pub(super) reversed: bool,
    /// What names, classes and events must contain.
    pub(super) filter: String,
    /// Keys are letters of the filter.
    pub(super) typing: bool,
    /// The apps that are shown, in their order.
    shown: Vec<usize>,
    /// How often that was worked out.
    pub(super) orders: u64,
    /// The name of the selected app: the list changes under the selection.
    selected: Option<String>,
    /// Lines of the view that are above the screen, where it has no selection.
    pub(super) above: u16,
    /// What was told of a view that the stream does not tell.
    pub(super) asked: Option<(View, String)>,
    /// Text over everything.
    pub(super) reading: Option<Reading>,
    /// What the last wish came to; until the next key.
    pub(super) message: Option<String>,
    /// Why nothing new is heard; until it is.
    pub(super) trouble: Option<String>,
    /// What is done when the next key is `y`.
    pub(super) confirming: Option<Wish>,
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
        }
        self.trouble = None;
        self.events.extend(tick.events.iter().cloned());
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
        self.trails.take(&tick.apps);
        self.tick = Some(tick);
        self.reorder();
    }

    /// Shows a message until the next key.
    pub(super) fn say(&mut self, message: String) {
        self.message = Some(message);
    }

    /// Says why nothing new is heard, until it is.
    pub(super) fn miss(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Shows a text over everything.
    pub(super) fn read(&mut self, title: &'static str, text: String) {
        self.reading = Some(Reading {
            title,
            text,
            above: 0,
        });
    }

    /// Takes in where what was drawn ends: nobody scrolls beyond.
    pub(super) fn drawn(&mut self, spots: &Spots) {
        self.above = self.above.min(spots.last);
    }

    /// The apps that pass the filter, in order. Once for each change, however often it is drawn.
    pub(super) fn reorder(&mut self) {
        self.orders += 1;
        let apps = self.tick.as_ref().map_or(&[][..], |tick| &tick.apps);
        let wanted = self.filter.to_lowercase();
        let passes = |app: &api::App| {
            wanted.is_empty()
                || app.name.to_lowercase().contains(&wanted)
                || app.class.to_string().contains(&wanted)
                || app.state.to_string().contains(&wanted)
        };
        let mut shown: Vec<usize> = (0..apps.len()).filter(|at| passes(&apps[*at])).collect();
        // The stream has them by name.
        if self.sort != Sort::Name {
            shown.sort_by(|one, other| self.sort.order(&apps[*one], &apps[*other]));
        }
        if self.reversed {
            shown.reverse();
        }
        self.shown = shown;
    }

    /// How many apps are shown.
    pub(super) fn count(&self) -> usize {
        self.shown.len()
    }

    /// The app in a row.
    pub(super) fn app(&self, row: usize) -> Option<&api::App> {
        self.tick.as_ref()?.apps.get(*self.shown.get(row)?)
    }

    /// The apps in their order.
    pub(super) fn apps(&self) -> impl Iterator<Item = &api::App> {
        (0..self.count()).filter_map(|row| self.app(row))
    }

    /// In which row the selection is.
    pub(super) fn selected(&self) -> Option<usize> {
        let found = self
            .selected
            .as_ref()
            .and_then(|name| self.apps().position(|app| app.name == *name));
        found.or(if self.shown.is_empty() { None } else { Some(0) })
    }

    /// Does what a key means, or tells what it asks for.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        self.message = None;
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Some(Wish::Quit);
        }
        if let Some(wish) = self.confirming.take() {
            return matches!(key.code, KeyCode::Char('y')).then_some(wish);
        }
        if self.reading.is_some() {
            self.key_reading(key.code);
            return None;
        }
        if self.typing {
            self.key_typing(key.code);
            return None;
        }
        match key.code {
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Esc if self.filter.is_empty() => return Some(Wish::Quit),
            KeyCode::Esc => {
                self.filter.clear();
                self.reorder();
            }
            KeyCode::Char('p') => {
                let paused = self.tick.as_ref()?.status.paused;
                self.confirming = Some(if paused { Wish::Resume } else { Wish::Pause });
            }
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.reorder();
            }
            KeyCode::Char('r') => {
                self.reversed = !self.reversed;
                self.reorder();
            }
            KeyCode::Char('?' | 'h') => self.read(" Keys ", HELP.to_owned()),
            KeyCode::Tab => self.show(self.view.beside(1)),
            KeyCode::BackTab => self.show(self.view.beside(View::ALL.len() - 1)),
            KeyCode::Char(digit) if View::of_key(digit).is_some() => {
                self.show(View::of_key(digit).unwrap_or_default());
            }
            KeyCode::Enter => return self.explained(),
            other => self.key_moving(other),
        }
        None
    }

    fn key_reading(&mut self, code: KeyCode) {
        let Some(Reading { above, .. }) = &mut self.reading else {
            return;
        };
        match code {
            KeyCode::Up | KeyCode::Char('k') => *above = above.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => *above = above.saturating_add(1),
            KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q') => self.reading = None,
            _ => {}
        }
    }

    fn key_typing(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.filter.chars().count() < FILTER_MAX => {
                self.filter.push(letter);
            }
            _ => return,
        }
        self.above = 0;
        self.reorder();
    }

    fn key_moving(&mut self, code: KeyCode) {
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.step(|at| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.step(|at| at + 1),
            KeyCode::PageUp => self.step(|at| at.saturating_sub(PAGE)),
            KeyCode::PageDown => self.step(|at| at + PAGE),
            KeyCode::Home => self.step(|_| 0),
            KeyCode::End => self.step(|_| usize::MAX),
            _ => {}
        }
    }

    /// Does what the mouse means at what was drawn, or tells what it asks for.
    pub(super) fn mouse(&mut self, mouse: MouseEvent, spots: &Spots) -> Option<Wish> {
        let at = Position::new(mouse.column, mouse.row);
        match mouse.kind {
            MouseEventKind::ScrollUp => self.turn(|at| at.saturating_sub(WHEEL), KeyCode::Up),
            MouseEventKind::ScrollDown => self.turn(|at| at + WHEEL, KeyCode::Down),
            MouseEventKind::Down(MouseButton::Left) if self.reading.is_some() => {
                self.reading = None;
            }
            MouseEventKind::Down(MouseButton::Left) => {
                self.message = None;
                if let Some((_, view)) = spots.tabs.iter().find(|(area, _)| area.contains(at)) {
                    self.show(*view);
                } else if let Some((_, sort)) =
                    spots.heads.iter().find(|(area, _)| area.contains(at))
                {
                    self.reversed = self.sort == *sort && !self.reversed;
                    self.sort = *sort;
                    self.reorder();
                } else if spots.rows.contains(at) {
                    let row = spots.first + usize::from(at.y - spots.rows.y);
                    // The second time on the same one.
                    if row < self.count() && self.selected.is_some() && self.selected() == Some(row)
                    {
                        return self.explained();
                    }
                    self.step(|_| row);
                }
            }
            _ => {}
        }
        None
    }

    fn turn(&mut self, to: impl FnOnce(usize) -> usize, key: KeyCode) {
        if self.reading.is_some() {
            self.key_reading(key);
        } else {
            self.step(to);
        }
    }

    fn explained(&self) -> Option<Wish> {
        if !self.view.has_apps() {
            return None;
        }
        let app = self.app(self.selected()?)?;
        Some(Wish::Explain(app.name.clone()))
    }

    /// Changes the view.
    pub(super) fn show(&mut self, view: View) {
        if view != self.view {
            self.view = view;
            self.above = 0;
        }
    }

    /// Moves the selection, or the text where there is none.
    fn step(&mut self, to: impl FnOnce(usize) -> usize) {
        if !self.view.has_apps() {
            let to = to(usize::from(self.above));
            self.above = u16::try_from(to).unwrap_or(u16::MAX);
            return;
        }
        if let Some(at) = self.selected() {
            let to = to(at).min(self.count().saturating_sub(1));
            self.selected = self.app(to).map(|app| app.name.clone());
        }
    }
}

const HELP: &str =
    "1 to 8, Tab    the views: host, apps, fronts, offload, updates, fleet, events, accelerators
up, down, PgUp, PgDn, Home, End    choose an app, or scroll
Enter    why the chosen app's slice is what it is
/    show only what contains some letters; Esc shows all again
s, r    order apps by something else, or the other way round
p    pause, or act again; asks first
q    quit

The mouse does the same: a tab, a column's head, a row, a row again, the wheel.

Apps: bars are what was used, the shade behind them what was planned for (95 % quantile).
Right of the line is what will be needed: up to the median, the 95 % and the 99 % quantile.
Yellow bars are above what was planned for.";
