//! Says how the daemon is, then what happens, until the daemon stops.
//!
//! ```sh
//! cargo run -p forebay-api --example watch [-- SOCKET]
//! ```

#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::path::PathBuf;
use std::process::ExitCode;

use forebay_api::{Client, Error, Event, Events, Status, StreamPace};

/// Events of before that are shown.
const PAST: u32 = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let given = std::env::args_os().nth(1);
    let socket = given.or_else(|| std::env::var_os("FOREBAY_SOCKET"));
    let socket = socket.map_or_else(|| PathBuf::from(forebay_api::SOCKET), PathBuf::from);
    match watch(socket).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn watch(socket: PathBuf) -> Result<(), Error> {
    let client = Client::connect(socket).await?;

    // The stream first: what happens while the past is fetched must not fall between.
    let mut ticks = client
        .ticks(StreamPace {
            every_ms: Some(1000),
        })
        .await?;
    show_status(&client.get("/v1/status").await?);
    let past: Events = client.get(&format!("/v1/events?limit={PAST}")).await?;
    past.events.iter().for_each(show_event);

    while let Some(tick) = ticks.next().await? {
        // What the past had already is not said again.
        let new = tick
            .events
            .iter()
            .filter(|event| !past.events.contains(event));
        new.for_each(show_event);
    }
    println!("the daemon has stopped");
    Ok(())
}

fn show_status(status: &Status) {
    println!(
        "forebay {}, up {:.0} s, {} of {} apps run{}",
        status.version,
        status.uptime_seconds,
        status.apps_running,
        status.apps,
        if status.paused { ", paused" } else { "" }
    );
    for shortfall in &status.shortfalls {
        println!("short: {shortfall}");
    }
}

fn show_event(event: &Event) {
    let app = event.app.as_deref().unwrap_or("host");
    println!("{app}: {}: {}", event.kind, event.message);
}
