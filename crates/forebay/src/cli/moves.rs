//! `forebay move`: moves between hosts.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use forebay_api as api;
use forebay_api::Client;
use forebay_core::app::AppId;

use super::Failure;
use crate::output::{Format, Output, numbers, table, words};

/// How long the daemon may take to begin one: it asks the coordinator.
const BEGIN_WAIT: Duration = Duration::from_secs(20);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// Characters of a bar.
const BAR: usize = 24;

/// Moves between hosts.
#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// The app; without one, all moves from and to this host are shown
    app: Option<AppId>,

    /// The host it is to move to, or `auto` for the one with the most room
    #[arg(long, value_name = "HOST", requires = "app")]
    to: Option<String>,

    /// Only find out whether it could: nothing is touched
    #[arg(long, requires = "to")]
    dry_run: bool,

    /// Begin it and do not wait for its end
    #[arg(long, requires = "to", conflicts_with = "dry_run")]
    detach: bool,

    /// Have it stay, as long as that is possible
    #[arg(long, requires = "app", conflicts_with = "to")]
    cancel: bool,
}

pub(super) async fn run(
    args: MoveArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), Failure> {
    let Some(app) = args.app else {
        let moves: api::Moves = client.get("/v1/moves").await?;
        return Ok(output.show(&moves, list)?);
    };
    if args.cancel {
        let uri = format!("/v1/moves/{app}/cancel");
        return super::done(client.post(&uri, &()).await?, output);
    }
    let Some(to) = args.to else {
        let found = find(client, &app).await?;
        return Ok(output.show(&found, one)?);
    };
    let request = api::MoveRequest {
        app: app.to_string(),
        to,
        dry_run: args.dry_run,
    };
    let begun: api::Done = client
        .patient(BEGIN_WAIT)
        .post("/v1/moves", &request)
        .await?;
    if args.dry_run || args.detach {
        return super::done(begun, output);
    }
    let ended = follow(client, &app, output.format()).await?;
    let moved = ended.stage == "moved";
    if moved || output.format() == Format::Json {
        output.show(&ended, one)?;
    }
    match moved {
        true => Ok(()),
        false => Err(Failure::Failed(format!(
            "{app} stays, and did not move to {}: {}",
            ended.to,
            ended.why.as_deref().unwrap_or("no reason is known")
        ))),
    }
}

async fn find(client: &Client, app: &AppId) -> Result<api::Move, Failure> {
    let moves: api::Moves = client.get("/v1/moves").await?;
    let found = moves.away.into_iter().find(|one| one.app == app.as_str());
    found.ok_or_else(|| {
        Failure::Failed(format!(
            "{app} did not move from here since the daemon began"
        ))
    })
}

/// Shows how far it is until it is over.
async fn follow(client: &Client, app: &AppId, format: Format) -> Result<api::Move, Failure> {
    let mut screen = std::io::stderr();
    let shows = format == Format::People && screen.is_terminal();
    loop {
        let now = find(client, app).await?;
        if shows {
            // A terminal that is gone is no reason to give the move up.
            write!(screen, "\r\x1b[K{}", bar(&now)).ok();
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

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn rate(one: &api::Move) -> f64 {
    mib(one.sent_bytes) / one.took_seconds.max(0.001)
}

pub(super) fn bar(one: &api::Move) -> String {
    let part = mib(one.sent_bytes) / mib(one.total_bytes).max(f64::MIN_POSITIVE);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between nothing and the bar"
    )]
    let full = (part.clamp(0.0, 1.0) * BAR as f64) as usize;
    let left = match one.left_seconds {
        Some(left) if one.stage == "copying" => format!(", about {left:.0} s left"),
        _ => to_come(one),
    };
    let bar = format!(
        "[{}{}] {}",
        "#".repeat(full),
        "-".repeat(BAR - full),
        one.stage
    );
    if one.total_bytes == 0 {
        return bar;
    }
    format!(
        "{bar} {:.1} of {:.1} MiB ({:.0} %), {:.1} MiB/s{left}",
        mib(one.sent_bytes),
        mib(one.total_bytes),
        part * 100.0,
        rate(one),
    )
}

/// What its target, where it runs, has still to fetch.
fn to_come(one: &api::Move) -> String {
    match one.owed_bytes {
        Some(owed) if one.stage == "lending" => {
            format!(", {:.1} MiB of its memory still to come", mib(owed))
        }
        _ => String::new(),
    }
}

fn one(one: &api::Move) -> String {
    let mut text = match one.stage.as_str() {
        "moved" => format!("{} moved to {}", one.app, one.to),
        "stayed" | "refused" => format!("{} stays, and did not move to {}", one.app, one.to),
        stage => format!("{} moves to {}: {stage}", one.app, one.to),
    };
    // An instance on each host stands still for nobody, and nothing is sent.
    if one.mode == "handoff" {
        write!(text, " (handoff) in {:.1} s", one.took_seconds).ok();
    } else {
        let (mode, sent, took) = (&one.mode, mib(one.sent_bytes), one.took_seconds);
        let over = one.transport.as_ref().map(|by| format!(" over {by}"));
        let over = over.unwrap_or_default();
        write!(text, " ({mode}): {sent:.1} MiB{over} in {took:.1} s").ok();
        if let Some(stood) = one.stood_seconds {
            write!(text, ", stood still for {:.0} ms", stood * 1000.0).ok();
        }
    }
    if let Some(why) = one.why.as_ref().filter(|_| one.stage != "moved") {
        write!(text, "\n{why}").ok();
    }
    text
}

/// All of them, for people.
pub(crate) fn list(moves: &api::Moves) -> String {
    let Some(host) = &moves.host else {
        return "no app changes hosts here: this host has no `fleet.link.listen`".to_owned();
    };
    let away = moves.away.iter().map(|one| {
        [
            one.app.clone(),
            host.clone(),
            one.to.clone(),
            one.stage.clone(),
            format!("{:.1}", mib(one.sent_bytes)),
            one.why.clone().unwrap_or_default(),
        ]
    });
    let coming = moves.coming.iter().map(|one| {
        [
            one.app.clone(),
            one.from.clone(),
            host.clone(),
            one.stage.clone(),
            String::new(),
            one.why.clone().unwrap_or_default(),
        ]
    });
    let rows: Vec<[String; 6]> = away.chain(coming).collect();
    let mut text = if rows.is_empty() {
        "nothing moved since the daemon began".to_owned()
    } else {
        let columns = [
            words("APP"),
            words("FROM"),
            words("TO"),
            words("STAGE"),
            numbers("MIB"),
            words("WHY"),
        ];
        table(columns, &rows)
    };
    if let Some(trouble) = &moves.trouble {
        write!(text, "\n{trouble}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copying() -> api::Move {
        api::Move {
            app: "shop".to_owned(),
            to: "b".to_owned(),
            mode: "restart".to_owned(),
            stage: "copying".to_owned(),
            sent_bytes: 30 << 20,
            total_bytes: 120 << 20,
            took_seconds: 3.0,
            left_seconds: Some(9.0),
            ..api::Move::default()
        }
    }

    #[test]
    fn a_terminal_shows_how_far_it_is_and_how_long_it_takes() {
        let shown = bar(&copying());
        assert_eq!(
            shown,
            "[######------------------] copying 30.0 of 120.0 MiB (25 %), 10.0 MiB/s, about 9 s left"
        );
        let lending = api::Move {
            owed_bytes: Some(21 << 19),
            stage: "lending".to_owned(),
            ..copying()
        };
        let owed = ", 10.5 MiB of its memory still to come";
        let shown = bar(&lending);
        assert!(shown.ends_with(owed), "{shown}");
        let nothing = api::Move {
            sent_bytes: 0,
            total_bytes: 0,
            left_seconds: None,
            stage: "checking".to_owned(),
            ..copying()
        };
        assert_eq!(bar(&nothing), "[------------------------] checking");
    }

    #[test]
    fn its_end_says_what_became_of_it() {
        let moved = api::Move {
            stage: "moved".to_owned(),
            over: true,
            stood_seconds: Some(0.08),
            why: Some("of an earlier attempt".to_owned()),
            ..copying()
        };
        assert_eq!(
            one(&moved),
            "shop moved to b (restart): 30.0 MiB in 3.0 s, stood still for 80 ms"
        );
        let handed = api::Move {
            mode: "handoff".to_owned(),
            sent_bytes: 0,
            ..moved.clone()
        };
        assert_eq!(one(&handed), "shop moved to b (handoff) in 3.0 s");
        let stayed = api::Move {
            stage: "stayed".to_owned(),
            why: Some("b has no room".to_owned()),
            stood_seconds: None,
            ..moved
        };
        assert_eq!(
            one(&stayed),
            "shop stays, and did not move to b (restart): 30.0 MiB in 3.0 s\nb has no room"
        );
    }
}
