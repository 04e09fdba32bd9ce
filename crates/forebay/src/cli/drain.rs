//! `forebay fleet drain`: a host is left by all that can move.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use forebay_api as api;
use forebay_api::Client;
use forebay_core::fleet::HostName;

use super::{Failure, moves};
use crate::output::{Format, Output, table, words};

/// How long the host may take to hear of it.
const BEGIN_WAIT: Duration = Duration::from_secs(20);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn run(
    client: &Client,
    output: &mut Output,
    host: Option<&HostName>,
    detach: bool,
) -> Result<(), Failure> {
    let fleet: api::Fleet = client.get("/v1/fleet").await?;
    let name = host.map_or(fleet.host.as_str(), HostName::as_str);
    let uri = format!("/v1/fleet/hosts/{name}/drain");
    let begun: api::Done = client.patient(BEGIN_WAIT).post(&uri, &()).await?;
    if detach || name != fleet.host {
        // How far another host is only that one knows.
        return super::done(begun, output);
    }
    let ended = follow(client, output.format()).await?;
    output.show(&ended, list)?;
    let stay = ended
        .apps
        .iter()
        .filter(|one| one.movable && one.state == "stays");
    match stay.count() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!(
            "{count} of the apps that can move did not leave {name}; mend what it says, and drain it again"
        ))),
    }
}

/// Shows how far it is, and begins nothing.
pub(super) async fn show(client: &Client, output: &mut Output) -> Result<(), Failure> {
    let drain: api::Drain = client.get("/v1/fleet/drain").await?;
    Ok(output.show(&drain, |drain| {
        match drain.draining || !drain.apps.is_empty() {
            true => list(drain),
            false => format!("{} is not drained", drain.host),
        }
    })?)
}

/// Shows how far it is until it is over.
async fn follow(client: &Client, format: Format) -> Result<api::Drain, Failure> {
    let mut screen = std::io::stderr();
    let shows = format == Format::People && screen.is_terminal();
    loop {
        let now: api::Drain = client.get("/v1/fleet/drain").await?;
        if shows {
            let moves: api::Moves = client.get("/v1/moves").await?;
            // A terminal that is gone is no reason to end.
            write!(screen, "\r\x1b[K{}", line(&now, &moves)).ok();
            screen.flush().ok();
        }
        if now.over {
            if shows {
                write!(screen, "\r\x1b[K").ok();
            }
            return Ok(now);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How far it is, in one line.
fn line(drain: &api::Drain, moves: &api::Moves) -> String {
    let movable = || drain.apps.iter().filter(|one| one.movable);
    let over = movable().filter(|one| matches!(one.state.as_str(), "left" | "stays"));
    let mut text = format!("{} of {}", over.count(), movable().count());
    let moving = movable().find(|one| one.state == "moves");
    let under_way = |one: &&api::Move| moving.is_some_and(|moving| moving.app == one.app);
    if let Some(one) = moves.away.iter().find(under_way) {
        write!(text, "  {} to {} {}", one.app, one.to, moves::bar(one)).ok();
    } else if let Some(one) = movable().find(|one| one.state == "waits") {
        let why = one.why.as_deref().unwrap_or("it begins");
        write!(text, "  {} waits: {why}", one.app).ok();
    }
    text
}

fn list(drain: &api::Drain) -> String {
    if drain.apps.is_empty() {
        return format!("nothing runs on {}, and it takes no more", drain.host);
    }
    let rows = drain.apps.iter().map(|one| {
        [
            one.app.clone(),
            one.state.clone(),
            one.to.clone().unwrap_or_default(),
            one.why.clone().unwrap_or_default(),
        ]
    });
    let rows: Vec<[String; 4]> = rows.collect();
    let columns = [words("APP"), words("STATE"), words("TO"), words("WHY")];
    let mut text = table(columns, &rows);
    if let Some(trouble) = &drain.trouble {
        write!(text, "\n{trouble}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str, state: &str, to: Option<&str>, why: Option<&str>) -> api::DrainedApp {
        api::DrainedApp {
            app: name.to_owned(),
            movable: name != "db",
            state: state.to_owned(),
            to: to.map(str::to_owned),
            why: why.map(str::to_owned),
        }
    }

    #[test]
    fn it_says_how_far_it_is_and_what_stays_and_why() {
        let drain = api::Drain {
            host: "a".to_owned(),
            apps: vec![
                app("shop", "left", Some("b"), None),
                app("web", "moves", Some("c"), None),
                app("x", "waits", None, None),
                app("db", "stays", None, Some("it is pinned")),
            ],
            ..api::Drain::default()
        };
        let moving = api::Move {
            app: "web".to_owned(),
            to: "c".to_owned(),
            stage: "copying".to_owned(),
            ..api::Move::default()
        };
        let moves = api::Moves {
            away: vec![moving],
            ..api::Moves::default()
        };
        let text = line(&drain, &moves);
        assert!(text.starts_with("1 of 3  web to c ["), "{text}");
        let text = line(&drain, &api::Moves::default());
        assert_eq!(text, "1 of 3  x waits: it begins");
        let text = list(&drain);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines[1], "shop  left   b", "{text}");
        assert_eq!(lines[4], "db    stays      it is pinned", "{text}");
    }
}
