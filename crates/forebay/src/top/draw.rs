//! Puts the state on a screen, 80 by 24 or whatever there is.

mod apps;

use forebay_api as api;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Wrap};

use super::state::{Reading, State, Wish};
use super::view::{Sort, View};
use crate::cli::{memory, percent};
use crate::output::{harmless, numbers, table, utc, words};

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
/// Lines of fronts at most, without their title.
const FRONTS_LINES: u16 = 4;
/// A lower screen has neither tabs nor the daemon's own numbers.
const LOW: u16 = 10;

/// Where what was drawn is, for the mouse.
#[derive(Debug, Clone, Default)]
pub(super) struct Spots {
    pub(super) tabs: Vec<(Rect, View)>,
    pub(super) heads: Vec<(Rect, Sort)>,
    pub(super) rows: Rect,
    /// The app in the first row.
    pub(super) first: usize,
    /// Apps that were put into words for it.
    pub(super) formatted: usize,
    /// The last line of what can be scrolled.
    pub(super) last: u16,
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) -> Spots {
    let mut spots = Spots::default();
    let area = frame.area();
    let (tabs_lines, head_lines) = if area.height < LOW { (0, 1) } else { (1, 2) };
    let [tabs, head, body, foot] = Layout::vertical([
        Constraint::Length(tabs_lines),
        Constraint::Length(head_lines),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_tabs(frame, tabs, state.view, &mut spots);
    match &state.tick {
        Some(tick) => {
            frame.render_widget(header(&tick.status, state), head);
            draw_view(frame, body, tick, state, &mut spots);
        }
        None => frame.render_widget("forebay: waiting for the first period", head),
    }
    frame.render_widget(footer(state), foot);
    if let Some(reading) = &state.reading {
        draw_reading(frame, reading);
    }
    spots
}

/// Draws what is told without what only a reader at a terminal needs.
pub(super) fn page(frame: &mut Frame<'_>, state: &State) {
    let Some(tick) = &state.tick else {
        return;
    };
    let areas = Layout::vertical([Constraint::Length(2), Constraint::Min(0)]);
    let [head, body] = areas.areas(frame.area());
    frame.render_widget(header(&tick.status, state), head);
    let mut spots = Spots::default();
    match state.view {
        // A chart of one moment says nothing.
        View::Apps => apps::table(frame, body, state, &mut spots),
        _ => draw_view(frame, body, tick, state, &mut spots),
    }
}

/// The names of the views where they fit, else that of the one that is shown.
fn draw_tabs(frame: &mut Frame<'_>, area: Rect, shown: View, spots: &mut Spots) {
    let names = |all: bool| -> Vec<String> {
        let named = |(key, view): (usize, &View)| match all || *view == shown {
            true => format!("{key} {}", view.title()),
            false => key.to_string(),
        };
        (1..).zip(&View::ALL).map(named).collect()
    };
    let width = |names: &[String]| names.iter().map(|name| name.len() + 2).sum::<usize>();
    let mut tabs = names(true);
    if width(&tabs) > usize::from(area.width) {
        tabs = names(false);
    }
    let mut x = area.x;
    for (name, view) in tabs.iter().zip(View::ALL) {
        let width = u16::try_from(name.len()).unwrap_or(u16::MAX);
        let spot = Rect::new(x, area.y, width, area.height).intersection(area);
        let style = match view == shown {
            true => Style::new().reversed(),
            false => Style::new(),
        };
        frame.render_widget(Span::styled(name.clone(), style), spot);
        spots.tabs.push((spot, view));
        x = x.saturating_add(width + 2);
    }
}

fn draw_view(
    frame: &mut Frame<'_>,
    area: Rect,
    tick: &api::Tick,
    state: &State,
    spots: &mut Spots,
) {
    match state.view {
        View::Host => draw_host(frame, area, tick, state, spots),
        View::Apps => apps::view(frame, area, state, spots),
        View::Fronts => {
            let lines = all_fronts(&tick.fronts);
            spots.last = draw_lines(frame, area, " Fronts ", lines, state.above);
        }
        View::Events => spots.last = draw_all_events(frame, area, state),
        View::Accelerators => {
            let text = accelerators(&tick.apps);
            spots.last = draw_text(frame, area, " Accelerators ", &text, state);
        }
        View::Offload | View::Updates | View::Fleet => {
            let told = match &state.asked {
                Some((view, text)) if *view == state.view => text.as_str(),
                _ => "asking…",
            };
            let title = match state.view {
                View::Offload => " Constrained apps, and moves ",
                View::Updates => " Update of the operating system ",
                _ => " Fleet ",
            };
            spots.last = draw_text(frame, area, title, told, state);
        }
    }
}

fn draw_host(
    frame: &mut Frame<'_>,
    area: Rect,
    tick: &api::Tick,
    state: &State,
    spots: &mut Spots,
) {
    let short = u16::try_from(tick.status.shortfalls.len()).unwrap_or(u16::MAX);
    let [cpus, shortfalls, rows, fronts, events] = Layout::vertical([
        Constraint::Length(cpu_lines(frame.area(), state) + 1),
        Constraint::Length(short.min(FRONTS_LINES)),
        Constraint::Min(3),
        Constraint::Length(front_lines(state)),
        Constraint::Length(EVENTS_LINES + 1),
    ])
    .areas(area);
    draw_cpus(frame, cpus, &tick.status.host);
    let missed = tick.status.shortfalls.iter();
    let missed: Vec<Line<'_>> = missed
        .map(|line| Line::from(harmless(line.clone())).fg(Color::Yellow))
        .collect();
    frame.render_widget(Paragraph::new(missed), shortfalls);
    apps::table(frame, rows, state, spots);
    draw_fronts(frame, fronts, &tick.fronts);
    draw_events(frame, events, state);
}

fn draw_text(frame: &mut Frame<'_>, area: Rect, title: &str, text: &str, state: &State) -> u16 {
    let wanted = state.filter.to_lowercase();
    let lines = text
        .lines()
        .filter(|line| wanted.is_empty() || line.to_lowercase().contains(&wanted));
    let lines = lines.map(|line| Line::from(harmless(line.to_owned())));
    draw_lines(frame, area, title, lines.collect(), state.above)
}

/// Lines under a title, so many of them above the screen; the last one stays.
fn draw_lines(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    lines: Vec<Line<'_>>,
    above: u16,
) -> u16 {
    let rows: usize = lines.iter().map(|line| rows(line, area.width)).sum();
    let last = u16::try_from(rows.saturating_sub(1)).unwrap_or(u16::MAX);
    let block = Block::new().borders(Borders::TOP).title(title);
    let paragraph = Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .scroll((above.min(last), 0))
        .block(block);
    frame.render_widget(paragraph, area);
    last
}

/// The rows of a line whose words are wrapped at a width: what is scrolled are rows.
fn rows(line: &Line<'_>, width: u16) -> usize {
    let width = usize::from(width.max(1));
    let text: String = line.spans.iter().map(|span| &*span.content).collect();
    let (mut rows, mut used) = (1, 0);
    for word in text.split_inclusive(' ') {
        let seen = word.trim_end().chars().count();
        if used > 0 && used + seen > width {
            (rows, used) = (rows + 1, 0);
        }
        // One that is longer than a row goes on in the next.
        let more = seen.saturating_sub(1) / width;
        rows += more;
        used += word.chars().count() - more * width;
    }
    rows
}

/// What apps do with accelerators and what a second of a CPU counts beside one of a device.
fn accelerators(apps: &[api::App]) -> String {
    let rows: Vec<[String; 8]> = apps
        .iter()
        .filter_map(|app| Some((app, app.accelerator.as_ref()?)))
        .map(|(app, used)| {
            [
                harmless(app.name.clone()),
                used.devices.to_string(),
                used.kernels.to_string(),
                format!("{:.2}", used.busy),
                format!("{:.1}", used.on_devices_per_second),
                format!("{:.1}", used.on_cpu_per_second),
                memory(used.shared_bytes),
                format!("{:.1}", used.cpu_price),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no app has a worker that answers; `accelerators` in an app's section gives it one"
            .to_owned();
    }
    let columns = [
        words("APP"),
        numbers("DEVICES"),
        numbers("KERNELS"),
        numbers("BUSY"),
        numbers("TASKS/S THERE"),
        numbers("ON CPUS"),
        numbers("SHARED"),
        numbers("CPU COUNTS AS"),
    ];
    table(columns, &rows)
}

fn all_fronts(fronts: &[api::Front]) -> Vec<Line<'static>> {
    if fronts.is_empty() {
        let none = "no fronts; a [fronts.NAME] section keeps a shadow ready to take over";
        return vec![Line::from(none)];
    }
    let mut lines = Vec::new();
    for front in fronts {
        lines.push(front_line(front));
        let standby = front.standby.as_deref().unwrap_or("nobody");
        lines.push(Line::from(harmless(format!(
            "{:<10} {}, listens on {}, epoch {}, {standby} would take over",
            "",
            front.mode,
            front.listen.join(" "),
            front.epoch
        ))));
        if let Some(outdated) = &front.outdated {
            lines.push(Line::from(harmless(format!("{:<10} {outdated}", ""))).fg(Color::Yellow));
        }
    }
    lines
}

fn header(status: &api::Status, state: &State) -> Paragraph<'static> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let acting = if state.trouble.is_some() {
        Span::from(" NO DAEMON ").reversed()
    } else if status.paused {
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
        let owner = harmless(owner.take(3).collect());
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
    let owner = harmless(owner);
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
    let line = format!("{:<10} {stage:<8} {said}", front.front);
    let line = Line::from(harmless(line));
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
    let lines: Vec<Line<'_>> = latest.map(event_line).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// The newest at the top, so that scrolling goes back in time.
fn draw_all_events(frame: &mut Frame<'_>, area: Rect, state: &State) -> u16 {
    let wanted = state.filter.to_lowercase();
    let passes = |event: &&api::Event| {
        wanted.is_empty()
            || [Some(&event.kind), Some(&event.message), event.app.as_ref()]
                .into_iter()
                .flatten()
                .any(|word| word.to_lowercase().contains(&wanted))
    };
    let lines = state.events.iter().rev().filter(passes).map(event_line);
    draw_lines(
        frame,
        area,
        " Events (UTC), newest first ",
        lines.collect(),
        state.above,
    )
}

fn event_line(event: &api::Event) -> Line<'static> {
    let time = utc(event.time_unix_ms).split_off(11);
    let app = event.app.as_deref().unwrap_or("(host)");
    let text = harmless(format!(
        "{time} {:<9} {app:<12} {}",
        event.kind, event.message
    ));
    match event.kind.as_str() {
        "failed" | "shortfall" | "foreign" => Line::from(text).fg(Color::Yellow),
        _ => Line::from(text),
    }
}

fn footer(state: &State) -> Line<'static> {
    if let Some(wish) = &state.confirming {
        let asked = match wish {
            Wish::Pause => "Pause: every slice stays as it is and nothing is changed. y does it",
            _ => "Resume: slices are changed again by what is forecast. y does it",
        };
        return Line::from(asked).bold();
    }
    if state.typing {
        let filter = harmless(state.filter.clone());
        return Line::from(format!(
            "show only: {filter}_   enter keeps it, esc shows all"
        ))
        .bold();
    }
    let said = state.message.as_ref().or(state.trouble.as_ref());
    if let Some(message) = said {
        return Line::from(harmless(message.clone())).bold();
    }
    let paused = state.tick.as_ref().is_some_and(|tick| tick.status.paused);
    let pause = if paused { "resume" } else { "pause" };
    Line::from(format!(
        "q quit  p {pause}  up/down select  enter explain  / filter  s sort  ? help"
    ))
}

fn draw_reading(frame: &mut Frame<'_>, reading: &Reading) {
    let area = frame.area();
    let block = Block::bordered()
        .title(reading.title)
        .title_bottom(" up/down scroll  esc back ");
    let paragraph = Paragraph::new(harmless(reading.text.clone()))
        .wrap(Wrap { trim: false })
        .scroll((reading.above, 0))
        .block(block);
    frame.render_widget(Clear, area);
    frame.render_widget(paragraph, area);
}
