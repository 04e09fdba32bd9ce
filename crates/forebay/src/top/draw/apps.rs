//! Apps in rows, and one of them in a chart. Only what is seen is formatted, however many there are.

use forebay_api as api;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::super::state::State;
use super::super::trail::{self, Ink};
use super::super::view::Sort;
use super::{Spots, harmless, short};
use crate::cli::{Band, cores, percent};

/// Lines of the chart with its title.
const CHART_LINES: u16 = 7;
/// A lower screen has rows instead.
const CHART_ROOM: u16 = 16;
/// Columns of a row's bars.
const TREND: u16 = 16;
/// The name has so many columns at least.
const NAME: u16 = 9;

/// A column of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Name,
    Class,
    State,
    Use,
    Accelerator,
    Band,
    Cpus,
    Weight,
    Memory,
    Low,
    High,
    Wait,
    Response,
    Trend,
}

impl Column {
    /// As they stand.
    const ALL: [Self; 14] = [
        Self::Name,
        Self::Class,
        Self::State,
        Self::Use,
        Self::Accelerator,
        Self::Band,
        Self::Cpus,
        Self::Weight,
        Self::Memory,
        Self::Low,
        Self::High,
        Self::Wait,
        Self::Response,
        Self::Trend,
    ];
    /// What a narrow screen has first.
    const BY_WORTH: [Self; 14] = [
        Self::Name,
        Self::Use,
        Self::Memory,
        Self::State,
        Self::Accelerator,
        Self::Band,
        Self::Class,
        Self::Cpus,
        Self::Weight,
        Self::Low,
        Self::High,
        Self::Trend,
        Self::Wait,
        Self::Response,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Name => "APP",
            Self::Class => "CLASS",
            Self::State => "STATE",
            Self::Use => " USE",
            Self::Accelerator => " ACC",
            Self::Band => "q50-q95-q99",
            Self::Cpus => "CPUS",
            Self::Weight => "WGHT",
            Self::Memory => " MEM",
            Self::Low => " LOW",
            Self::High => "HIGH",
            Self::Wait => "WAIT",
            Self::Response => " RESP",
            Self::Trend => "TREND",
        }
    }

    const fn width(self) -> u16 {
        match self {
            Self::Name => NAME,
            Self::Class => 8,
            Self::State | Self::Cpus => 7,
            Self::Use | Self::Accelerator | Self::Weight => 5,
            Self::Memory | Self::Low | Self::High => 5,
            Self::Band => 14,
            Self::Wait => 4,
            Self::Response => 7,
            Self::Trend => TREND,
        }
    }

    const fn sort(self) -> Option<Sort> {
        match self {
            Self::Name => Some(Sort::Name),
            Self::Class => Some(Sort::Class),
            Self::Use => Some(Sort::Cpu),
            Self::Band => Some(Sort::Demand),
            Self::Memory => Some(Sort::Memory),
            Self::Wait => Some(Sort::Wait),
            Self::Response => Some(Sort::Response),
            _ => None,
        }
    }

    fn text(self, app: &api::App) -> String {
        let slice = &app.slice;
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let right = |value: Option<String>| format!("{:>5}", or_dash(value));
        match self {
            Self::Name => harmless(app.name.clone()),
            Self::Class => app.class.to_string(),
            Self::State => app.state.to_string(),
            Self::Use => right(app.usage.cpu_cores.map(cores)),
            Self::Accelerator => right(app.accelerator.as_ref().map(|used| cores(used.busy))),
            Self::Band => or_dash(app.demand.as_ref().map(|d| Band(&d.cpu).to_string())),
            Self::Cpus => or_dash(slice.cpus.clone()),
            Self::Weight => or_dash(match slice.cpu_idle {
                Some(true) => Some("idle".to_owned()),
                _ => slice.cpu_weight.map(|weight| weight.to_string()),
            }),
            Self::Memory => right(app.usage.memory_bytes.map(short)),
            Self::Low => right(slice.memory_low_bytes.map(short)),
            Self::High => right(slice.memory_high_bytes.map(|high| match high {
                api::Limit::At(bytes) => short(bytes),
                api::Limit::Max(_) => "max".to_owned(),
            })),
            Self::Wait => format!("{:>4}", or_dash(app.usage.cpu_stalled.map(percent))),
            Self::Response => {
                let ms = app.usage.response_time_ms.map(|ms| match ms {
                    ms if ms < 100.0 => format!("{ms:.1}ms"),
                    ms => format!("{ms:.0}ms"),
                });
                format!("{:>7}", or_dash(ms))
            }
            Self::Trend => String::new(),
        }
    }
}

/// The columns that fit, as they stand, each with its place.
fn columns(area: Rect, has_accelerators: bool) -> Vec<(Column, u16, u16)> {
    let mut left = area.width;
    let mut kept = Vec::new();
    for column in Column::BY_WORTH {
        let needed = column.width() + u16::from(!kept.is_empty());
        let wanted = column != Column::Accelerator || has_accelerators;
        if wanted && (needed <= left || column == Column::Name) {
            left = left.saturating_sub(needed);
            kept.push(column);
        }
    }
    let mut x = area.x;
    let mut placed = Vec::new();
    for column in Column::ALL {
        if kept.contains(&column) {
            // The names have what is left.
            let extra = if column == Column::Name { left } else { 0 };
            let width = (column.width() + extra).min(area.width);
            placed.push((column, x, width));
            x += width + 1;
        }
    }
    placed
}

/// The rows with their heads.
pub(super) fn table(frame: &mut Frame<'_>, area: Rect, state: &State, spots: &mut Spots) {
    let block = Block::new()
        .borders(Borders::TOP)
        .title(title(state, area.width));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    if inside.is_empty() {
        return;
    }
    let [heads, rows] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(inside);
    let room = usize::from(rows.height);
    let selected = state.selected().unwrap_or(0);
    // By whole pages: a row stays where it is while the selection goes through it.
    let first = selected / room.max(1) * room;
    let seen: Vec<&api::App> = (first..first + room)
        .filter_map(|row| state.app(row))
        .collect();
    let columns = columns(inside, seen.iter().any(|app| app.accelerator.is_some()));
    let buffer = frame.buffer_mut();
    for (column, x, width) in &columns {
        let mut style = Style::new().add_modifier(Modifier::BOLD);
        if column.sort() == Some(state.sort) {
            style = style.add_modifier(Modifier::UNDERLINED);
        }
        buffer.set_stringn(*x, heads.y, column.title(), usize::from(*width), style);
        if let Some(sort) = column.sort() {
            let spot = Rect::new(*x, heads.y, *width, 1);
            spots.heads.push((spot, sort));
        }
    }
    for ((y, app), row) in (rows.y..).zip(&seen).zip(first..) {
        let style = match app.state {
            api::RunState::Running => Style::new(),
            api::RunState::Absent | api::RunState::Ended => Style::new().fg(Color::DarkGray),
        };
        for (column, x, width) in &columns {
            if *column == Column::Trend {
                let points = state.trails.latest(&app.name, usize::from(*width));
                let line = inked(&trail::spark(&points));
                buffer.set_line(*x, y, &line, *width);
            } else {
                buffer.set_stringn(*x, y, column.text(app), usize::from(*width), style);
            }
        }
        if row == selected {
            let whole = Rect::new(rows.x, y, rows.width, 1);
            buffer.set_style(whole, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
    spots.rows = rows;
    spots.first = first;
    spots.formatted += seen.len();
}

fn title(state: &State, width: u16) -> String {
    let all = state.tick.as_ref().map_or(0, |tick| tick.apps.len());
    let mut words = Vec::new();
    if !state.filter.is_empty() {
        let filter = harmless(state.filter.clone());
        words.push(format!("{} of {all} with `{filter}`", state.count()));
    }
    if state.sort != Sort::default() || state.reversed {
        let way = if state.reversed { ", reversed" } else { "" };
        words.push(format!("by {}{way}", state.sort.title()));
    }
    match words.is_empty() || width < 30 {
        true => " Apps ".to_owned(),
        false => format!(" Apps: {} ", words.join(", ")),
    }
}

/// Rows, and the chosen app below them where there is room.
pub(super) fn view(frame: &mut Frame<'_>, area: Rect, state: &State, spots: &mut Spots) {
    let lines = if area.height >= CHART_ROOM {
        CHART_LINES
    } else {
        0
    };
    let [rows, below] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(lines)]).areas(area);
    table(frame, rows, state, spots);
    if let Some(app) = state.selected().and_then(|row| state.app(row))
        && !below.is_empty()
    {
        chart(frame, below, app, state);
    }
}

fn chart(frame: &mut Frame<'_>, area: Rect, app: &api::App, state: &State) {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let band = app.demand.as_ref().map(|demand| &demand.cpu);
    let title = format!(
        " {}: {} CPUs used, {} expected at most ",
        harmless(app.name.clone()),
        or_dash(app.usage.cpu_cores.map(cores)),
        or_dash(band.map(|band| Band(band).to_string())),
    );
    let block = Block::new().borders(Borders::TOP).title(title);
    let inside = block.inner(area);
    let (width, height) = (usize::from(inside.width), usize::from(inside.height));
    let points = state.trails.latest(&app.name, width);
    let lines: Vec<Line<'_>> = trail::chart(&points, band, width, height)
        .iter()
        .map(|cells| inked(cells))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn inked(cells: &[(char, Ink)]) -> Line<'static> {
    let style = |ink| match ink {
        Ink::Used => Style::new().fg(Color::Green),
        Ink::Above => Style::new().fg(Color::Yellow),
        Ink::Band => Style::new().fg(Color::DarkGray),
        Ink::Plain => Style::new(),
    };
    let span = |(sign, ink): &(char, Ink)| Span::styled(sign.to_string(), style(*ink));
    Line::from(cells.iter().map(span).collect::<Vec<_>>())
}
