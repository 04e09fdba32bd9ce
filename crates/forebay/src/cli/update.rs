//! `forebay update`: updates of the operating system.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use forebay_api as api;
use forebay_api::Client;
use forebay_api::attend::{Told, socket_beside};

use super::update_fleet::FleetUpdateCommand;
use super::update_hook::{self, HookArgs, HooksArgs};
use super::update_rehearse::{self, RehearseArgs};
use super::{Connection, Exit, Failure};
use crate::output::{Output, numbers, table, words};
use crate::update::without_daemon;

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(200);
/// Where the daemon keeps its state unless told otherwise.
pub(super) const STATE_DIR: &str = "/var/lib/forebay";

/// Updates of the operating system.
#[derive(Debug, Subcommand)]
pub(crate) enum UpdateCommand {
    /// Show what an update would do to each app, and change nothing
    Plan(OrderArgs),
    /// Run a command that updates this host, with critical apps protected from it
    Run(RunArgs),
    /// Show how far an update is, and what to type next; works without the daemon
    Status(StatusArgs),
    /// Go on without the reboot that an update waits for
    Resume,
    /// Call an update off, or ask its command to end
    Abort,
    /// Show what came of updates
    History,
    /// Try a kernel out in a virtual machine: it comes up, and what CRIU wrote down here goes on there
    Rehearse(RehearseArgs),
    /// Update the hosts of the fleet, a few at a time
    #[command(subcommand)]
    Fleet(FleetUpdateCommand),
    /// Attend for an app: run commands when it is to prepare for an update, and when that is over
    Attend(AttendArgs),
    /// Have package managers ask before they begin, and say afterwards what runs outdated code
    Hooks(HooksArgs),
    /// What a package manager runs
    #[command(hide = true)]
    Hook(HookArgs),
}

/// What is wanted.
#[derive(Debug, Args)]
pub(crate) struct OrderArgs {
    /// What undoes it, for the shell
    #[arg(long, value_name = "COMMAND")]
    rollback: Option<String>,

    /// How long it may take, in seconds; an hour unless given
    #[arg(long, value_name = "S")]
    limit: Option<u64>,

    /// How long each program that is restarted may take to run, and then all apps to be well, in seconds, before it is
    /// undone; a minute unless given
    #[arg(long, value_name = "S")]
    well_within: Option<u64>,

    /// Restart this app, whether it runs outdated code or not; may be given several times
    #[arg(long, value_name = "APP")]
    restart: Vec<String>,

    /// It is complete only after a reboot
    #[arg(long)]
    reboot: bool,

    /// The way that it is to go, by the names that `plan` shows, or auto: over a boot by the least disruptive that carries
    /// critical apps, for which Forebay may reboot the host; unless given, without a boot
    #[arg(long, value_name = "RUNG")]
    rung: Option<String>,

    /// Whether the kernel that comes is tried out in a virtual machine first, with the rung checkpoint: auto (where that
    /// is possible), required or off [default: auto]
    #[arg(long, value_name = "WHEN")]
    rehearse: Option<String>,

    /// Go on where critical apps were slower while the slice of the update was full of work
    #[arg(long)]
    unproved: bool,

    /// The command that updates, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What is wanted, and whether to wait for it.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    order: OrderArgs,

    /// Begin it and do not wait for its end
    #[arg(long)]
    detach: bool,
}

/// Where to look when no daemon runs.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The daemon's state directory, for when it does not run
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
}

/// Which app, and what is run for it.
#[derive(Debug, Args)]
pub(crate) struct AttendArgs {
    /// The app [default: the one in whose slice Forebay started this]
    #[arg(long, value_name = "APP")]
    app: Option<String>,

    /// Run by the shell when it is to prepare; status 0 means that it is ready
    #[arg(long, value_name = "COMMAND")]
    prepare: String,

    /// Run by the shell when the update is over
    #[arg(long, value_name = "COMMAND")]
    resume: Option<String>,
}

/// Runs one command to its end; says on standard error what went wrong.
pub(super) fn run(command: UpdateCommand, connection: &Connection) -> ExitCode {
    let mut output = Output::stdout(connection.format());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(execute(command, &connection.socket(), &mut output)),
        Err(cause) => Err(Failure::Io {
            doing: "start",
            cause,
        }),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let exit = failure.exit();
            if exit != Exit::Ok {
                // Without standard error there is nobody to tell.
                writeln!(std::io::stderr(), "forebay: {failure}").ok();
            }
            exit.into()
        }
    }
}

async fn execute(
    command: UpdateCommand,
    socket: &Path,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let client = async || Client::connect(socket).await;
    match command {
        UpdateCommand::Hooks(args) => update_hook::files(&args, output)?,
        UpdateCommand::Attend(args) => attend(&args, socket)?,
        UpdateCommand::Rehearse(args) => return update_rehearse::run(&args, output),
        UpdateCommand::Hook(args) => return update_hook::run(&args, socket).await,
        UpdateCommand::Status(args) => {
            let updates = updates(socket, &args.state_dir).await?;
            output.show(&updates, status)?;
        }
        UpdateCommand::Fleet(command) => {
            return super::update_fleet::run(command, &client().await?, output).await;
        }
        UpdateCommand::Plan(args) => {
            let request = request(args)?;
            let plan: api::UpdatePlan = client().await?.post("/v1/update/plan", &request).await?;
            output.show(&plan, planned)?;
        }
        UpdateCommand::Run(args) => {
            let request = request(args.order)?;
            let client = client().await?;
            let begun: api::UpdateBegun = client.post("/v1/update", &request).await?;
            if args.detach {
                output.show(&begun, |begun| {
                    format!(
                        "update {} begins; `forebay update status` shows it",
                        begun.number
                    )
                })?;
                return Ok(Exit::Ok);
            }
            let receipt = follow(&client, begun.number).await?;
            output.show(&receipt, one)?;
            if receipt.outcome != "committed" {
                return Ok(Exit::Failed);
            }
        }
        UpdateCommand::Resume => {
            super::done(
                client().await?.post("/v1/update/resume", &()).await?,
                output,
            )?;
        }
        UpdateCommand::Abort => {
            super::done(client().await?.post("/v1/update/abort", &()).await?, output)?;
        }
        UpdateCommand::History => {
            let updates: api::Updates = client().await?.get("/v1/update").await?;
            output.show(&updates.history, |all| match all.is_empty() {
                true => "no update was run".to_owned(),
                false => all.iter().map(one).collect::<Vec<_>>().join("\n\n"),
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn request(args: OrderArgs) -> Result<api::UpdateRequest, Failure> {
    let directory = std::env::current_dir().map_err(|cause| Failure::Io {
        doing: "find the working directory",
        cause,
    })?;
    Ok(request_in(args, Some(directory.display().to_string())))
}

/// What is wanted, in a directory.
pub(super) fn request_in(args: OrderArgs, directory: Option<String>) -> api::UpdateRequest {
    api::UpdateRequest {
        command: args.command,
        directory,
        rollback: args
            .rollback
            .map(|text| ["sh", "-c", &text].map(str::to_owned).to_vec()),
        limit_seconds: args.limit,
        well_within_seconds: args.well_within,
        restart: args.restart,
        reboot: args.reboot,
        rung: args.rung,
        rehearse: args.rehearse,
        unproved: args.unproved,
    }
}

/// What the daemon says, or what it wrote down where there is none.
pub(super) async fn updates(socket: &Path, state_dir: &Path) -> Result<api::Updates, Failure> {
    match Client::connect(socket).await {
        Ok(client) => Ok(client.get("/v1/update").await?),
        Err(error @ api::Error::Connect { .. }) => {
            let found = without_daemon(state_dir).map_err(Failure::Failed)?;
            match found.current.is_some() || !found.history.is_empty() {
                true => Ok(found),
                false => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

async fn follow(client: &Client, number: u64) -> Result<api::UpdateReceipt, Failure> {
    loop {
        let updates: api::Updates = client.get("/v1/update").await?;
        let receipt = updates.history.into_iter().find(|one| one.number == number);
        if let Some(receipt) = receipt {
            return Ok(receipt);
        }
        if updates
            .current
            .is_none_or(|current| current.number != number)
        {
            return Err(Failure::Failed(format!(
                "update {number} is neither under way nor in the history"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Attends until the daemon refuses the app; a daemon that is not there is waited for.
fn attend(args: &AttendArgs, daemon_socket: &Path) -> Result<(), Failure> {
    let app = args.app.clone();
    let app = app.or_else(|| std::env::var(forebay_api::attend::APP_VARIABLE).ok());
    let app = app.ok_or_else(|| {
        Failure::Failed(format!(
            "attend: for which app? give --app; programs that Forebay starts find it in {}",
            forebay_api::attend::APP_VARIABLE
        ))
    })?;
    let named = std::env::var_os(forebay_api::attend::SOCKET_VARIABLE);
    let socket = named.map_or_else(|| socket_beside(daemon_socket), PathBuf::from);
    let prepare = |told| {
        let (update, how) = match told {
            Told::Prepare { update, ends, .. } => (update, if ends { "end" } else { "detach" }),
            Told::Resume => return Ok(()),
        };
        let status = std::process::Command::new("sh")
            .args(["-c", &args.prepare])
            .env("FOREBAY_UPDATE", update.to_string())
            .env("FOREBAY_UPDATE_HOW", how)
            .status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{}: {status}", args.prepare)),
            Err(error) => Err(format!("{}: {error}", args.prepare)),
        }
    };
    let resume = || {
        let Some(command) = &args.resume else {
            return;
        };
        let status = std::process::Command::new("sh")
            .args(["-c", command])
            .status();
        let why = match status {
            Ok(status) if status.success() => return,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        // Without standard error there is nobody to tell.
        writeln!(std::io::stderr(), "forebay: {command}: {why}").ok();
    };
    forebay_api::attend::attend(&socket, &app, prepare, resume)
        .map_err(|error| Failure::Failed(format!("attend for {app}: {error}")))
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"))
}

fn planned(plan: &api::UpdatePlan) -> String {
    let rows: Vec<[String; 5]> = plan
        .apps
        .iter()
        .map(|app| {
            [
                app.app.clone(),
                app.rung.clone(),
                ms(app.pause_p50_ms),
                ms(app.pause_p99_ms),
                app.reason.clone(),
            ]
        })
        .collect();
    let columns = [
        words("APP"),
        words("RUNG"),
        numbers("PAUSE P50"),
        numbers("P99"),
        words("WHY"),
    ];
    let mut text = table(columns, &rows);
    let rungs: Vec<[String; 3]> = plan
        .rungs
        .iter()
        .map(|rung| {
            let offered = if rung.offered { "yes" } else { "no" };
            [rung.rung.clone(), offered.to_owned(), rung.reason.clone()]
        })
        .collect();
    let columns = [words("RUNG"), words("OFFERED"), words("WHY")];
    write!(text, "\n{}", table(columns, &rungs)).ok();
    if let Some(chosen) = &plan.chosen {
        write!(text, "\nchosen: {chosen}").ok();
    }
    for passed in &plan.passed_over {
        write!(text, "\nnot {}: {}", passed.rung, passed.reason).ok();
    }
    if let Some(rehearsal) = &plan.rehearsal {
        write!(text, "\nrehearsal: {}", rehearsal.reason).ok();
        if let Some(last) = &rehearsal.last {
            write!(text, "\nthe last one: {}", update_rehearse::said(last)).ok();
        }
    }
    for refused in &plan.refused {
        write!(text, "\nit would not begin: {refused}").ok();
    }
    text
}

/// How they stand, for people.
pub(crate) fn status(updates: &api::Updates) -> String {
    let mut text = match (&updates.current, updates.history.last()) {
        (Some(current), _) => {
            let mut text = format!(
                "update {} ({}): {}\n{}",
                current.number,
                current.command.join(" "),
                current.stage,
                current.next
            );
            if let Some(held) = &current.held {
                write!(text, "\nit stands still: {held}").ok();
            }
            if let Some(output) = &current.output {
                write!(text, "\nits output is in {output}").ok();
            }
            for one in &current.prepared {
                let how = match one.how.as_str() {
                    "end" => "was ended, and is started again when it is over",
                    _ => "runs detached, alone on CPUs of its own",
                };
                write!(text, "\n{} is prepared: it {how}", one.app).ok();
            }
            for one in &current.isolation {
                write!(text, "\n{}: {}", one.app, isolated(one)).ok();
            }
            if let Some(rehearsal) = &current.rehearsal {
                write!(text, "\n{}", update_rehearse::said(rehearsal)).ok();
            }
            for trouble in &current.troubles {
                write!(text, "\n{trouble}").ok();
            }
            text
        }
        (None, Some(last)) => format!("no update is under way; the last one:\n{}", one(last)),
        (None, None) => "no update was run".to_owned(),
    };
    if let Some(trouble) = &updates.trouble {
        write!(text, "\n{trouble}").ok();
    }
    if !updates.outdated.is_empty() {
        write!(
            text,
            "\noutdated code runs in {}",
            updates.outdated.join(", ")
        )
        .ok();
    }
    text
}

/// What was measured of an app's isolation.
fn isolated(found: &api::UpdateIsolation) -> String {
    let cpus = |cpus: &Option<String>| cpus.clone().unwrap_or_else(|| "none".to_owned());
    let share = |share: Option<f64>| {
        share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
    };
    let floor = found.memory_floor_bytes;
    let floor = floor.map_or_else(|| "none".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
    format!(
        "own CPUs {}, memory floor {floor}; with the slice of the update full of work on CPUs {}: p99 {} ({} \
         before), it waited for a CPU {} of the time ({} before)",
        cpus(&found.exclusive_cpus),
        cpus(&found.load_cpus),
        ms(found.p99_loaded_ms),
        ms(found.p99_before_ms),
        share(found.waited_loaded),
        share(found.waited),
    )
}

/// One that is over, for people.
pub(crate) fn one(receipt: &api::UpdateReceipt) -> String {
    let took = receipt.ended_unix_ms.saturating_sub(receipt.began_unix_ms) as f64 / 1000.0;
    let mut text = format!(
        "update {} ({}): {} after {took:.1} s; it stood still {} time(s), {} ms",
        receipt.number,
        receipt.command.join(" "),
        receipt.outcome,
        receipt.held_times,
        receipt.held_ms
    );
    for front in &receipt.fronts {
        let during = &front.during;
        write!(
            text,
            "\nfront {}: {} answers, {} errors, {} failed, {} of unknown outcome, {} held; p99 {} (before {}), \
             slowest {}",
            front.front,
            during.answers,
            during.errors,
            front.failed,
            front.unknown,
            front.held,
            ms(during.p99_ms),
            ms(front.before.p99_ms),
            ms(during.max_ms),
        )
        .ok();
        for hand_over in &front.hand_overs {
            write!(text, "\n  {hand_over}").ok();
        }
    }
    for clients in &receipt.clients {
        write!(
            text,
            "\nclients of front {}: {} of {} connections went on, {} were not at rest and closed; pause {}",
            clients.front,
            clients.back,
            clients.kept,
            clients.left,
            ms(clients.pause_ms),
        )
        .ok();
    }
    for app in &receipt.apps {
        let planned = &app.planned;
        write!(
            text,
            "\n{}: {}{}, pause planned {}",
            planned.app,
            planned.rung,
            if app.restarted { ", restarted" } else { "" },
            ms(planned.pause_p99_ms),
        )
        .ok();
        if app.pause_ms.is_some() {
            write!(text, ", measured {}", ms(app.pause_ms)).ok();
        }
        if app.load_cpus.is_some() || app.exclusive_cpus.is_some() {
            let found = api::UpdateIsolation {
                exclusive_cpus: app.exclusive_cpus.clone(),
                load_cpus: app.load_cpus.clone(),
                memory_floor_bytes: app.memory_floor_bytes,
                waited: app.waited,
                waited_loaded: app.waited_loaded,
                p99_before_ms: app.p99_before_ms,
                p99_loaded_ms: app.p99_loaded_ms,
                ..api::UpdateIsolation::default()
            };
            write!(text, "; {}", isolated(&found)).ok();
        }
    }
    if let Some(rehearsal) = &receipt.rehearsal {
        write!(text, "\n{}", update_rehearse::said(rehearsal)).ok();
    }
    for trouble in &receipt.troubles {
        write!(text, "\n{trouble}").ok();
    }
    if !receipt.next.is_empty() {
        write!(text, "\n{}", receipt.next).ok();
    }
    text
}
