//! `forebay top --once`: one look, for scripts and pipes.

use forebay_api as api;
use forebay_api::Client;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::asked;
use super::draw;
use super::state::State;
use super::view::View;
use crate::cli::Failure;
use crate::output::{Format, Output};

/// Columns where nothing says how many there are.
const WIDTH: u16 = 132;
/// Lines beside those of apps: tabs, the daemon's numbers, titles, heads, the footer.
const FRAME_LINES: usize = 48;

/// Prints the view of the next period.
pub(super) async fn run(
    client: &Client,
    mut state: State,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut ticks = client.ticks(api::StreamPace::default()).await?;
    let Some(tick) = ticks.next().await? else {
        return Err(Failure::Failed(
            "the daemon stopped before its next period; see its log".to_owned(),
        ));
    };
    let waiting = asked::waiting(&tick.apps);
    state.take(tick);
    if output.format() == Format::Json {
        return Ok(output.show(&ordered(&state), |_| String::new())?);
    }
    if state.view.is_asked() {
        let text = asked::page(client, state.view, &waiting).await;
        state.asked = Some((state.view, text));
    }
    let text = text(&state, width());
    Ok(output.show(&text, String::clone)?)
}

/// The message with the apps that are shown, in their order.
fn ordered(state: &State) -> Option<api::Tick> {
    let tick = state.tick.as_ref()?;
    Some(api::Tick {
        apps: state.apps().cloned().collect(),
        ..tick.clone()
    })
}

/// As wide as who runs it says.
fn width() -> u16 {
    let columns = std::env::var("COLUMNS").ok();
    let columns = columns.and_then(|columns| columns.parse().ok());
    columns.filter(|columns| *columns > 0).unwrap_or(WIDTH)
}

/// The screen as text, as high as all of it is.
pub(super) fn text(state: &State, width: u16) -> String {
    let told = state
        .asked
        .as_ref()
        .map_or(0, |(_, text)| text.lines().count());
    let fronts = state.tick.as_ref().map_or(0, |tick| tick.fronts.len() * 3);
    let cpus = state
        .tick
        .as_ref()
        .map_or(0, |tick| tick.status.host.cpus.len());
    let events = match state.view {
        View::Events => state.events.len(),
        _ => 0,
    };
    // Lines of a text may be folded.
    let lines = FRAME_LINES + state.count() + told * 3 + fronts + cpus + events * 2;
    let height = u16::try_from(lines).unwrap_or(u16::MAX);
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| {
        draw::page(frame, state);
    });
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let mut line = String::new();
        let mut x = 0;
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            line += symbol;
            // The cell behind a wide sign is its other half.
            x += u16::try_from(ratatui::text::Span::from(symbol).width())
                .unwrap_or(1)
                .max(1);
        }
        let line = line.trim_end();
        if !line.is_empty() {
            text += line;
            text.push('\n');
        }
    }
    text
}
