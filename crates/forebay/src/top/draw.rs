//! Puts the state on a screen, 80 by 24 or whatever there is.

use forebay_api as api;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Row, Table, TableState, Wrap};

use super::state::State;
use crate::cli::{Band, cores, memory, percent};
use crate::output::utc;

/// A CPU's cell: number, bar, busy share, owner.
const CELL_WIDE: u16 = 26;
/// The same without the bar.
const CELL_NARROW: u16 = 13;
/// Columns of a bar.
const BAR: usize = 6;
/// Lines of CPUs at most, in parts of the screen's height.
const CPUS_SHARE: u16 = 3;
/// Lines of events, without their title.
const EVENTS_LINES: u16 = 5;
/// Where the time of accelerators stands among the columns of apps: beside that of CPUs.
const ACCELERATOR_COLUMN: usize = 4;
/// Lines of fronts at most, without their title.
const FRONTS_LINES: u16 = 4;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let [head, cpus, apps, fronts, events, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(cpu_lines(frame.area(), state) + 1),
        Constraint::Min(3),
        Constraint::Length(front_lines(state)),
        Constraint::Length(EVENTS_LINES + 1),
        Constraint::Length(1),
    ])
    .areas(frame.area());

    match &state.tick {
        Some(tick) => {
            frame.render_widget(header(&tick.status, state), head);
            draw_cpus(frame, cpus, &tick.status.host);
            draw_apps(frame, apps, &tick.apps, state);
            draw_fronts(frame, fronts, &tick.fronts);
        }
        None => frame.render_widget("forebay: waiting for the first period", head),
    }
    draw_events(frame, events, state);
    frame.render_widget(footer(state), foot);
    if let Some((text, above)) = &state.reading {
        draw_reading(frame, text, *above);
    }
}

fn header(status: &api::Status, state: &State) -> Paragraph<'static> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let acting = if status.paused {
        Span::from(" PAUSED ").reversed()
    } else {
        Span::from("partitioning")
    };
    let first = Line::from(vec![
        Span::from(format!("forebay {}", status.version)).bold(),
        Span::from("  "),
        acting,
        Span::from(format!(
            "  {} of {} apps run  {} memory available",
            status.apps_running,
            status.apps,
            or_dash(status.host.memory_available_bytes.map(memory)),
        )),
    ]);
    let second = Line::from(format!(
        "period {}  late p99 {:.1} ms  {} overruns  own use {} of one CPU, {}",
        or_dash(state.period_ms.map(|ms| format!("{ms:.0} ms"))),
        status.timing.late_p99_seconds * 1000.0,
        status.timing.overruns,
        or_dash(state.agent_share.map(|s| format!("{:.1}%", s * 100.0))),
        memory(status.agent.resident_bytes),
    ));
    Paragraph::new(vec![first, second])
}

/// How the CPUs fill an area.
struct Grid {
    cell: u16,
    columns: u16,
    lines: u16,
}

impl Grid {
    /// Cells with bars if they fit, narrow ones otherwise.
    fn of(cpus: usize, width: u16, lines_max: u16) -> Self {
        let with = |cell: u16| {
            let columns = (width / cell).max(1);
            let lines = cpus.div_ceil(usize::from(columns));
            let lines = u16::try_from(lines).unwrap_or(u16::MAX);
            Self {
                cell,
                columns,
                lines,
            }
        };
        let wide = with(CELL_WIDE);
        if wide.lines <= lines_max {
            wide
        } else {
            with(CELL_NARROW)
        }
    }
}

fn cpu_lines(area: Rect, state: &State) -> u16 {
    let cpus = state.tick.as_ref().map_or(0, |t| t.status.host.cpus.len());
    let lines_max = (area.height / CPUS_SHARE).max(1);
    Grid::of(cpus, area.width, lines_max).lines.min(lines_max)
}

fn draw_cpus(frame: &mut Frame<'_>, area: Rect, host: &api::Host) {
    let shared = match host.shared_cpus.as_str() {
        "" => "none shared".to_owned(),
        list => format!("shared: {list}"),
    };
    let title = format!(" CPUs, {shared} ");
    let block = Block::new().borders(Borders::TOP).title(title);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    if inside.is_empty() {
        return;
    }

    let grid = Grid::of(host.cpus.len(), inside.width, inside.height);
    let room = usize::from(grid.columns) * usize::from(inside.height);
    let hidden = host.cpus.len().saturating_sub(room);
    let shown = match hidden {
        0 => host.cpus.len(),
        _ => room.saturating_sub(1),
    };
    let mut cells: Vec<Line<'_>> = host.cpus[..shown]
        .iter()
        .map(|cpu| cpu_cell(cpu, grid.cell))
        .collect();
    if shown < host.cpus.len() {
        let more = host.cpus.len() - shown;
        cells.push(Line::from(format!("{more} more")));
    }
    for (at, cell) in (0u16..).zip(cells) {
        let place = Rect {
            x: inside.x + at % grid.columns * grid.cell,
            y: inside.y + at / grid.columns,
            width: (grid.cell - 1).min(inside.width),
            height: 1,
        };
        frame.render_widget(cell, place.intersection(inside));
    }
}

fn cpu_cell(cpu: &api::Cpu, width: u16) -> Line<'static> {
    let busy = cpu.busy.map_or_else(|| "-".to_owned(), percent);
    let style = match cpu.owner {
        Some(_) => Style::new().fg(Color::Cyan),
        None => Style::new(),
    };
    let number = format!("{:>3} ", cpu.id);
    let share = format!("{busy:>4} ");
    if width < CELL_WIDE {
        // What is shared stands in the title.
        let owner = cpu.owner.iter().flat_map(|owner| owner.chars());
        let owner: String = owner.take(3).collect();
        return Line::from(vec![
            Span::from(number),
            Span::from(share),
            Span::styled(owner, style),
        ]);
    }
    let filled = (1..=BAR)
        .filter(|n| {
            cpu.busy
                .is_some_and(|busy| busy * fraction(BAR) >= fraction(*n) - 0.5)
        })
        .count();
    let bar = format!("{}{} ", "|".repeat(filled), ".".repeat(BAR - filled));
    let owner = cpu.owner.clone().unwrap_or_else(|| "shared".to_owned());
    Line::from(vec![
        Span::from(number),
        Span::styled(bar, Style::new().fg(Color::Green)),
        Span::from(share),
        Span::styled(owner, style),
    ])
}

fn fraction(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

fn draw_apps(frame: &mut Frame<'_>, area: Rect, apps: &[api::App], state: &State) {
    let mut titles = vec![
        "APP",
        "CLASS",
        "STATE",
        " USE",
        "q50-q95-q99",
        "CPUS",
        "WGHT",
        " MEM",
        " LOW",
        "HIGH",
    ];
    let mut widths = vec![
        Constraint::Min(9),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(5),
        Constraint::Length(14),
        Constraint::Length(7),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(5),
    ];
    let mut rows: Vec<Vec<String>> = apps.iter().map(app_cells).collect();
    // There is room for it where it says something.
    if apps.iter().any(|app| app.accelerator.is_some()) {
        titles.insert(ACCELERATOR_COLUMN, " ACC");
        widths.insert(ACCELERATOR_COLUMN, Constraint::Length(5));
        for (row, app) in rows.iter_mut().zip(apps) {
            let busy = app.accelerator.as_ref().map(|used| cores(used.busy));
            let cell = busy.unwrap_or_else(|| "-".to_owned());
            row.insert(ACCELERATOR_COLUMN, format!("{cell:>5}"));
        }
    }
    let rows = rows.into_iter().zip(apps).map(|(cells, app)| {
        let row = Row::new(cells);
        match app.state {
            api::RunState::Running => row,
            api::RunState::Absent | api::RunState::Ended => {
                row.style(Style::new().fg(Color::DarkGray))
            }
        }
    });
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::new().borders(Borders::TOP).title(" Apps "))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .column_spacing(1);
    let mut place = TableState::new().with_selected(state.selected());
    frame.render_stateful_widget(table, area, &mut place);
}

fn app_cells(app: &api::App) -> Vec<String> {
    let slice = &app.slice;
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let weight = match slice.cpu_idle {
        Some(true) => Some("idle".to_owned()),
        _ => slice.cpu_weight.map(|weight| weight.to_string()),
    };
    let high = slice.memory_high_bytes.map(|high| match high {
        api::Limit::At(bytes) => short(bytes),
        api::Limit::Max(_) => "max".to_owned(),
    });
    let band = app.demand.as_ref().map(|d| Band(&d.cpu).to_string());
    vec![
        app.name.clone(),
        app.class.to_string(),
        app.state.to_string(),
        format!("{:>5}", or_dash(app.usage.cpu_cores.map(cores))),
        or_dash(band),
        or_dash(slice.cpus.clone()),
        or_dash(weight),
        format!("{:>5}", or_dash(app.usage.memory_bytes.map(short))),
        format!("{:>5}", or_dash(slice.memory_low_bytes.map(short))),
        format!("{:>5}", or_dash(high)),
    ]
}

/// An amount of memory in five columns.
fn short(bytes: u64) -> String {
    const UNITS: [(u64, char); 4] = [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')];
    for (bits, unit) in UNITS {
        let whole = bytes >> bits;
        if whole > 0 {
            let tenth = ((bytes >> (bits - 10)) & 1023) * 10 / 1024;
            return if whole < 10 {
                format!("{whole}.{tenth}{unit}")
            } else {
                format!("{whole}{unit}")
            };
        }
    }
    format!("{bytes}B")
}

fn front_lines(state: &State) -> u16 {
    let fronts = state.tick.as_ref().map_or(0, |tick| tick.fronts.len());
    match u16::try_from(fronts) {
        Ok(0) => 0,
        fronts => fronts.map_or(FRONTS_LINES, |fronts| fronts.min(FRONTS_LINES)) + 1,
    }
}

/// Who serves behind each front, and who stands by.
fn draw_fronts(frame: &mut Frame<'_>, area: Rect, fronts: &[api::Front]) {
    let block = Block::new().borders(Borders::TOP).title(" Fronts ");
    let room = usize::from(block.inner(area).height);
    let shown = match fronts.len() {
        count if count <= room => count,
        _ => room.saturating_sub(1),
    };
    let mut lines: Vec<Line<'_>> = fronts.iter().take(shown).map(front_line).collect();
    if shown < fronts.len() {
        lines.push(Line::from(format!("{} more", fronts.len() - shown)));
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn front_line(front: &api::Front) -> Line<'static> {
    let stage = front.stage.as_deref().unwrap_or("unknown");
    let instances = front.instances.iter().map(|one| role(front, one));
    let said = instances.chain(front.trouble.clone());
    let said = said.collect::<Vec<_>>().join(", ");
    let line = Line::from(format!("{:<10} {stage:<8} {said}", front.front));
    if stage == "warm" {
        line
    } else {
        line.fg(Color::Yellow)
    }
}

/// What an instance does behind its front, and how far behind the primary it is.
fn role(front: &api::Front, instance: &api::FrontInstance) -> String {
    let app = &instance.app;
    if front.primary.as_ref() == Some(app) {
        return match front.stage.as_deref() {
            Some("down") => format!("{app} served last"),
            _ => format!("{app} serves"),
        };
    }
    if let Some(why) = &instance.trouble {
        return format!("{app}: {why}");
    }
    let stands = if instance.detached {
        "is detached"
    } else {
        "stands by"
    };
    let bytes = instance.lag_bytes.map(|n| format!("{} behind", short(n)));
    let heard = instance.lag_ms.map(|ms| format!("heard {ms} ms ago"));
    let lag: Vec<String> = bytes.into_iter().chain(heard).collect();
    if lag.is_empty() {
        format!("{app} {stands}")
    } else {
        format!("{app} {stands} ({})", lag.join(", "))
    }
}

fn draw_events(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let block = Block::new().borders(Borders::TOP).title(" Events (UTC) ");
    let lines = usize::from(block.inner(area).height);
    let latest = state.events.iter().rev().take(lines).rev();
    let lines: Vec<Line<'_>> = latest
        .map(|event| {
            let time = utc(event.time_unix_ms).split_off(11);
            let app = event.app.as_deref().unwrap_or("(host)");
            let text = format!("{time} {:<9} {app:<12} {}", event.kind, event.message);
            match event.kind.as_str() {
                "failed" | "shortfall" | "foreign" => Line::from(text).fg(Color::Yellow),
                _ => Line::from(text),
            }
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn footer(state: &State) -> Line<'static> {
    if let Some(message) = &state.message {
        return Line::from(message.clone()).bold();
    }
    let paused = state.tick.as_ref().is_some_and(|tick| tick.status.paused);
    let pause = if paused { "resume" } else { "pause" };
    Line::from(format!("q quit  p {pause}  up/down select  enter explain"))
}

fn draw_reading(frame: &mut Frame<'_>, text: &str, above: u16) {
    let area = frame.area();
    let block = Block::bordered()
        .title(" Why ")
        .title_bottom(" up/down scroll  esc back ");
    let paragraph = Paragraph::new(text)
        .wrap(Wrap { trim: false })
        .scroll((above, 0))
        .block(block);
    frame.render_widget(Clear, area);
    frame.render_widget(paragraph, area);
}
