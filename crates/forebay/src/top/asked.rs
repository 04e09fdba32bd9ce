//! What the stream does not tell: asked for while it is shown, one request after the other.

use forebay_api as api;
use forebay_api::Client;

use super::view::View;
use crate::cli;

/// Apps whose ladders are asked for at a time: those that wait most for a CPU.
const LADDERS_MAX: usize = 8;

/// The apps that wait most for a CPU, of all that run.
pub(super) fn waiting(apps: &[api::App]) -> Vec<String> {
    let running = apps
        .iter()
        .filter(|app| app.state == api::RunState::Running);
    let mut running: Vec<&api::App> = running.collect();
    let stalled = |app: &api::App| app.usage.cpu_stalled.unwrap_or(0.0);
    running.sort_by(|one, other| stalled(other).total_cmp(&stalled(one)));
    let names = running.into_iter().take(LADDERS_MAX);
    names.map(|app| app.name.clone()).collect()
}

/// A view in words, or why there are none.
pub(super) async fn page(client: &Client, view: View, waiting: &[String]) -> String {
    let told = match view {
        View::Offload => offload(client, waiting).await,
        View::Updates => client.get("/v1/update").await.map(|told| updates(&told)),
        View::Fleet => fleet(client).await,
        _ => Ok(String::new()),
    };
    told.unwrap_or_else(|error| error.to_string())
}

async fn offload(client: &Client, waiting: &[String]) -> Result<String, api::Error> {
    let mut text = String::new();
    for app in waiting {
        let told: api::Explanation = client.get(&format!("/v1/apps/{app}")).await?;
        if !told.offload.is_empty() {
            text += &format!("{app}\n");
            text.extend(told.offload.iter().map(|line| format!("  {line}\n")));
        }
    }
    if text.is_empty() {
        text = "no app is constrained beyond its slice\n".to_owned();
    }
    let moves: api::Moves = client.get("/v1/moves").await?;
    Ok(format!("{text}\n{}", cli::moves_in_words(&moves)))
}

fn updates(told: &api::Updates) -> String {
    let mut text = cli::updates_in_words(told);
    // The last one is told already where none is under way.
    let before = told.history.len() - usize::from(told.current.is_none()).min(told.history.len());
    for receipt in told.history[..before].iter().rev() {
        text += &format!("\n\n{}", cli::receipt_in_words(receipt));
    }
    text
}

async fn fleet(client: &Client) -> Result<String, api::Error> {
    let own: api::Fleet = match client.get("/v1/fleet").await {
        Ok(own) => own,
        // That it is alone is no trouble, and said in the daemon's words.
        Err(api::Error::Refused { message, .. }) => return Ok(message),
        Err(error) => return Err(error),
    };
    let hosts: api::FleetHosts = client.get("/v1/fleet/hosts").await?;
    Ok(format!(
        "{}\n{}",
        cli::fleet_in_words(&own),
        cli::hosts_in_words(&hosts)
    ))
}
