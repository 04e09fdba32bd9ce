//! `forebay shadow`: fronts, their shadows, and handing over to one.

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use forebay_api as api;
use forebay_api::Client;

use super::Failure;
use crate::output::{Output, numbers, table, words};

/// How long a change may take: longer than the daemon waits for it.
const CHANGE_WAIT: Duration = Duration::from_secs(40);

/// What to do with fronts.
#[derive(Debug, Args)]
pub(crate) struct ShadowArgs {
    /// What to do
    #[arg(value_enum, default_value = "list")]
    action: Action,

    /// The front; all but `list` need it
    front: Option<String>,

    /// The instance; `resync`, `detach` and `attach` need it
    app: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// List the fronts with who serves and who stands by
    List,
    /// Show one front: its instances, what it counted, and its latest changes
    Status,
    /// Have the shadow take over in order: no request is lost, none is executed twice
    Handover,
    /// Have the shadow take over at once: the primary is stopped where it stands and ended
    Promote,
    /// Have a new process take the front's place: of another release, or with another plan
    Upgrade,
    /// Put a shadow in step with the primary anew
    Resync,
    /// Keep an instance from taking over
    Detach,
    /// Let a detached instance take over again
    Attach,
}

pub(super) async fn run(
    args: ShadowArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), Failure> {
    let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
    match (args.action, args.front, args.app) {
        (Action::List, None, _) => {
            let fronts: api::Fronts = client.get("/v1/fronts").await?;
            output.show(&fronts, list)?;
        }
        (Action::List, Some(_), _) => {
            return usage("`list` shows all fronts; use `status` for one of them");
        }
        (_, None, _) => return usage("name the front: `forebay shadow list` shows them"),
        (Action::Status, Some(front), None) => {
            let fronts: api::Fronts = client.get("/v1/fronts").await?;
            output.show(&find(fronts, &front)?, status)?;
        }
        (Action::Handover, Some(front), None) => {
            let uri = format!("/v1/fronts/{front}/handover");
            let done: api::HandOver = client.patient(CHANGE_WAIT).post(&uri, &()).await?;
            output.show(&done, handed_over)?;
        }
        (Action::Promote, Some(front), None) => {
            let uri = format!("/v1/fronts/{front}/promote");
            let done: api::HandOver = client.patient(CHANGE_WAIT).post(&uri, &()).await?;
            output.show(&done, handed_over)?;
        }
        (Action::Upgrade, Some(front), None) => {
            let uri = format!("/v1/fronts/{front}/upgrade");
            super::done(client.patient(CHANGE_WAIT).post(&uri, &()).await?, output)?;
        }
        (Action::Status | Action::Handover | Action::Promote | Action::Upgrade, _, Some(_)) => {
            return usage("name the front alone: this is about all of it");
        }
        (Action::Resync | Action::Detach | Action::Attach, Some(_), None) => {
            return usage("name the instance as well: `forebay shadow status FRONT` shows them");
        }
        (Action::Resync, Some(front), Some(app)) => {
            tend(client, output, front, app, "resync").await?
        }
        (Action::Detach, Some(front), Some(app)) => {
            tend(client, output, front, app, "detach").await?
        }
        (Action::Attach, Some(front), Some(app)) => {
            tend(client, output, front, app, "attach").await?
        }
    }
    Ok(())
}

async fn tend(
    client: &Client,
    output: &mut Output,
    front: String,
    app: String,
    what: &str,
) -> Result<(), Failure> {
    let uri = format!("/v1/fronts/{front}/instances/{app}/{what}");
    super::done(client.post(&uri, &()).await?, output)
}

fn find(fronts: api::Fronts, name: &str) -> Result<api::Front, Failure> {
    let names: Vec<String> = fronts.fronts.iter().map(|f| f.front.clone()).collect();
    let found = fronts.fronts.into_iter().find(|known| known.front == name);
    found.ok_or_else(|| {
        let names = if names.is_empty() {
            "none; configure one under [fronts]".to_owned()
        } else {
            names.join(", ")
        };
        Failure::Usage(format!("there is no front `{name}`; there are: {names}"))
    })
}

fn list(fronts: &api::Fronts) -> String {
    if fronts.fronts.is_empty() {
        return "no fronts: configure one under [fronts]".to_owned();
    }
    let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let rows: Vec<[String; 7]> = fronts
        .fronts
        .iter()
        .map(|front| {
            [
                front.front.clone(),
                front.mode.clone(),
                or_none(&front.stage),
                or_none(&front.primary),
                or_none(&front.standby),
                front.epoch.to_string(),
                front.listen.join(" "),
            ]
        })
        .collect();
    let mut text = table(
        [
            words("FRONT"),
            words("MODE"),
            words("STAGE"),
            words("PRIMARY"),
            words("SHADOW"),
            numbers("EPOCH"),
            words("LISTENS ON"),
        ],
        &rows,
    );
    for front in &fronts.fronts {
        if let Some(trouble) = &front.trouble {
            write!(text, "\n{}: {trouble}", front.front).ok();
        }
        if let Some(outdated) = &front.outdated {
            write!(text, "\n{}: {outdated}", front.front).ok();
        }
    }
    text
}

fn status(front: &api::Front) -> String {
    let mut text = list(&api::Fronts {
        fronts: vec![front.clone()],
    });
    let primary = front.primary.as_deref();
    for instance in &front.instances {
        let role = if primary == Some(instance.app.as_str()) {
            "primary"
        } else {
            "shadow"
        };
        let place = match (&instance.elsewhere, instance.pid) {
            (Some(host), _) => format!("on {host}"),
            (None, Some(pid)) => format!("process {pid}"),
            (None, None) => "process -".to_owned(),
        };
        write!(
            text,
            "\n{} ({role}) at {}, {place}\n  {}",
            instance.app,
            instance.address,
            match &instance.trouble {
                None if instance.detached => "ready, and detached".to_owned(),
                None => "ready".to_owned(),
                Some(why) => why.clone(),
            }
        )
        .ok();
        if let Some(bytes) = instance.lag_bytes {
            write!(text, ", {bytes} bytes behind").ok();
        }
        if let Some(ms) = instance.lag_ms {
            write!(text, ", heard {ms} ms ago").ok();
        }
        if !instance.fence && instance.elsewhere.is_none() {
            text.push_str("\n  cannot be stopped by the front: only its death makes room");
        }
    }
    if let Some(counts) = &front.counts {
        write!(
            text,
            "\n\n{} connections ({} open, {} refused), {} requests: {} held, {} sent again, {} failed, {} of unknown outcome",
            counts.connections,
            counts.open + counts.before_open,
            counts.refused,
            counts.requests,
            counts.held,
            counts.replayed,
            counts.failed,
            counts.unknown
        )
        .ok();
        if counts.mirrored + counts.unmirrored > 0 {
            write!(
                text,
                "\n{} answers compared with the shadow's: {} differ; {} could not be compared",
                counts.mirrored, counts.mismatched, counts.unmirrored
            )
            .ok();
        }
        if counts.before > 0 {
            write!(
                text,
                "\n{} process(es) before this one still serve {} connection(s) they had",
                counts.before, counts.before_open
            )
            .ok();
        }
        if counts.spread > 0 {
            write!(text, "\n{} reads answered by the shadow", counts.spread).ok();
        }
    }
    if !front.changes.is_empty() {
        text.push_str("\n\nchanges, the latest last:");
        for change in &front.changes {
            write!(text, "\n  {change}").ok();
        }
    }
    if !front.failures.is_empty() {
        text.push_str("\n\nwhat did not work, the latest last:");
        for failure in &front.failures {
            write!(text, "\n  {failure}").ok();
        }
    }
    text
}

fn handed_over(done: &api::HandOver) -> String {
    let steps: Vec<String> = done
        .steps
        .iter()
        .map(|step| format!("{} {:.1} ms", step.step, step.ms))
        .collect();
    format!(
        "{}: {} serves now instead of {}, epoch {} ({})",
        done.front,
        done.to,
        done.from,
        done.epoch,
        steps.join(", ")
    )
}
