//! Commands that ask the running daemon, over its socket.
//!
//! Flatten [`ClientCommand`] into the binary's commands, let [`with_connection`] give each of
//! them the options of a [`Connection`], and hand both to [`run`]. They are no options of the
//! binary, because for the demo and the benchmarks `--json` names a file.

mod drain;
mod exit;
mod explain;
mod explain_io;
pub(crate) mod fleet;
pub(crate) mod fleet_link;
mod forecast;
mod image;
mod moves;
mod push;
mod render;
mod shadow;
mod update;
mod update_fleet;
mod update_hook;
mod update_rehearse;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use forebay_api as api;
use forebay_api::Client;
use forebay_core::app::AppId;

pub(crate) use exit::{Exit, Failure};
pub(crate) use explain::explain;
pub(crate) use fleet::{list_now as hosts_in_words, status as fleet_in_words};
pub(crate) use moves::list as moves_in_words;
pub(crate) use render::{Band, cores, memory, percent};
pub(crate) use update::{one as receipt_in_words, status as updates_in_words};

use crate::output::{Format, Output};
use crate::top;
use push::PushArgs;

/// The variable that names the socket, unless `--socket` does.
pub(crate) const SOCKET_VARIABLE: &str = "FOREBAY_SOCKET";

/// The daemon's socket: the one that is named, or the variable names, or the usual one.
pub(crate) fn socket(named: Option<&Path>) -> PathBuf {
    named
        .map(Path::to_owned)
        .or_else(|| std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from))
        .unwrap_or_else(|| PathBuf::from(api::SOCKET))
}

/// How to reach the daemon, and how to print what it says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// The daemon's socket [default: $FOREBAY_SOCKET, or /run/forebay/forebay.sock]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Connection {
    /// The socket to ask at.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.socket.as_deref())
    }

    /// For whom to print.
    pub(crate) const fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            Format::People
        }
    }
}

/// Everything that is asked of a running daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Show the daemon and the host
    Status,
    /// List the apps with their use, demand and slice
    Apps,
    /// Watch the host and its apps live, or print one look
    Top(top::TopArgs),
    /// Say why an app's slice is what it is
    Explain(ExplainArgs),
    /// Show the latest events
    Events(EventsArgs),
    /// Show what an app used
    History(HistoryArgs),
    /// Show what an app will need, from the next period to a day ahead
    Forecast(forecast::ForecastArgs),
    /// Show what would change, and change nothing
    Plan(PlanArgs),
    /// Start a program as a new app
    Run(RunArgs),
    /// Change an app until the configuration is read again: all keys or none
    Set(SetArgs),
    /// Tell what an app serves: each value stands for three seconds
    Push(PushArgs),
    /// Show fronts and their shadows, or have a shadow take over
    Shadow(shadow::ShadowArgs),
    /// Show the hosts that share applications with this one, ask them for something, or let hosts in
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// Show images of programs, or take one
    Image(image::ImageArgs),
    /// Move an app to another host of the fleet, or show moves
    Move(moves::MoveArgs),
    /// Update the operating system with critical apps protected from it
    #[command(subcommand)]
    Update(update::UpdateCommand),
    /// Leave every slice as it is and only observe
    Pause,
    /// Act again after a pause
    Resume,
    /// Read the configuration again; one with errors changes nothing
    Reload,
}

/// Adds the options of a connection to each command that asks the daemon.
pub(crate) fn with_connection(mut binary: clap::Command) -> clap::Command {
    let asking = ClientCommand::augment_subcommands(clap::Command::new(""));
    for command in asking.get_subcommands() {
        binary = binary.mut_subcommand(command.get_name(), |own| {
            // A set of options brings a description of itself along.
            let about = own.get_about().cloned().unwrap_or_default();
            let own = Connection::augment_args(own).about(about);
            // Behind the second word of a command as well as behind the first.
            let everywhere = |option: clap::Arg| option.global(true);
            match own.has_subcommands() {
                true => own
                    .mut_arg("socket", everywhere)
                    .mut_arg("json", everywhere),
                false => own,
            }
        });
    }
    binary
}

/// What to explain.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Its name
    app: AppId,

    /// Say how its forecasts are made: by which models, with which weights, periods and recent errors
    #[arg(long)]
    forecast: bool,
}

/// Which events to show.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with those that happen from now on
    #[arg(long, short)]
    follow: bool,

    /// Only those about this app, with every change of its slice and the numbers that decided
    #[arg(long)]
    app: Option<AppId>,

    /// At most so many, the latest
    #[arg(long, short = 'n', default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

/// Which history to show.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The app; it may no longer be configured
    app: AppId,

    /// The resource
    #[arg(value_enum)]
    resource: ResourceArg,

    /// Length of the intervals; unless given, the shortest that reach back far enough
    #[arg(long, value_enum)]
    step: Option<StepArg>,

    /// Not before so many minutes ago
    #[arg(long, value_name = "MINUTES")]
    since: Option<u32>,

    /// At most so many intervals, the latest
    #[arg(long, short = 'n', default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ResourceArg {
    Cpu,
    #[value(name = "cpu_stalled")]
    CpuStalled,
    Io,
    Memory,
    Received,
    Sent,
    Requests,
    #[value(name = "response_time")]
    ResponseTime,
    Accelerator,
    #[value(name = "cpu_allowed")]
    CpuAllowed,
    #[value(name = "memory_allowed")]
    MemoryAllowed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StepArg {
    #[value(name = "10s")]
    TenSeconds,
    #[value(name = "1m")]
    Minute,
    #[value(name = "1h")]
    Hour,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ClassArg {
    Critical,
    Standard,
    Batch,
}

/// What to plan for.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// Say that nothing is to change: the only way there is, and the usual one
    #[arg(long)]
    what_if: bool,

    /// Changes to plan with: APP key=value..., and further apps after it
    #[arg(value_name = "APP key=value")]
    changes: Vec<String>,
}

/// What to start.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The new app's name
    #[arg(long)]
    name: AppId,

    /// How much it matters
    #[arg(long, value_enum)]
    class: ClassArg,

    /// Processor time never taken away, in CPUs
    #[arg(long, value_name = "CPUS")]
    floor_cpu: Option<String>,

    /// Memory never taken away, such as 512MiB
    #[arg(long, value_name = "SIZE")]
    floor_memory: Option<String>,

    /// The most processor time, in CPUs
    #[arg(long, value_name = "CPUS")]
    ceiling_cpu: Option<String>,

    /// The most memory, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    ceiling_memory: Option<String>,

    /// The most processes and threads
    #[arg(long, value_name = "COUNT")]
    ceiling_pids: Option<String>,

    /// User to run as, for root; everybody else runs programs as themselves
    #[arg(long)]
    user: Option<String>,

    /// Group to run as, for root
    #[arg(long)]
    group: Option<String>,

    /// Working directory; this one unless given
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,

    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The app
    app: AppId,

    /// The keys, as in the configuration, with their new values: floor.cpu=0.5
    #[arg(required = true, value_name = "key=value", value_parser = assignment)]
    set: Vec<api::Assignment>,
}

/// Runs one command to its end; says on standard error what went wrong.
pub(crate) fn run(command: ClientCommand, connection: &Connection) -> ExitCode {
    let command = match command {
        // It says where an update stands without a daemon, too.
        ClientCommand::Update(command) => return update::run(command, connection),
        other => other,
    };
    asking(connection, async |client, output| {
        execute(command, client, output).await
    })
}

/// Asks the daemon, and ends as that did.
fn asking(
    connection: &Connection,
    ask: impl AsyncFnOnce(&Client, &mut Output) -> Result<(), Failure>,
) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(|cause| Failure::Io {
            doing: "start",
            cause,
        })
        .and_then(|runtime| {
            runtime.block_on(async {
                let client = Client::connect(connection.socket()).await?;
                let mut output = Output::stdout(connection.format());
                ask(&client, &mut output).await
            })
        });
    match result {
        Ok(()) => Exit::Ok.into(),
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

/// The status of the daemon at a socket, for the benchmarks.
pub(crate) fn status(socket: &Path) -> Result<api::Status, Failure> {
    get(socket, "/v1/status")
}

/// The tiers of the daemon at a socket, for the benchmarks.
pub(crate) fn tiers(socket: &Path) -> Result<api::Tiers, Failure> {
    get(socket, "/v1/tiers")
}

/// The fronts of the daemon at a socket, for the benchmarks.
pub(crate) fn fronts(socket: &Path) -> Result<api::Fronts, Failure> {
    get(socket, "/v1/fronts")
}

fn get<T: serde::de::DeserializeOwned>(socket: &Path, uri: &str) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|cause| Failure::Io {
            doing: "start",
            cause,
        })?;
    runtime.block_on(async {
        let client = Client::connect(socket).await?;
        Ok(client.get(uri).await?)
    })
}

async fn execute(
    command: ClientCommand,
    client: &Client,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        ClientCommand::Status => {
            let status: api::Status = client.get("/v1/status").await?;
            output.show(&status, render::status)?;
        }
        ClientCommand::Apps => {
            let apps: api::Apps = client.get("/v1/apps").await?;
            output.show(&apps, |apps| render::apps(&apps.apps))?;
        }
        ClientCommand::Top(args) => top::run(args, client, output).await?,
        ClientCommand::Explain(ExplainArgs {
            app,
            forecast: true,
        }) => {
            let uri = format!("/v1/forecast/{app}?horizon_seconds=86400");
            let forecast: api::Forecast = client.get(&uri).await?;
            output.show(&forecast, render::forecast)?;
        }
        ClientCommand::Explain(ExplainArgs { app, .. }) => {
            let explanation: api::Explanation = client.get(&format!("/v1/apps/{app}")).await?;
            output.show(&explanation, explain)?;
        }
        ClientCommand::Events(args) => events(&args, client, output).await?,
        ClientCommand::History(args) => history(&args, client, output).await?,
        ClientCommand::Forecast(args) => forecast::run(&args, client, output).await?,
        ClientCommand::Plan(args) => {
            let changes = changes(&args.changes).map_err(Failure::Usage)?;
            let plan: api::Plan = client
                .post("/v1/plan", &api::PlanRequest { changes })
                .await?;
            output.show(&plan, render::plan)?;
        }
        ClientCommand::Run(args) => {
            let request = run_request(args)?;
            done(client.post("/v1/apps", &request).await?, output)?;
        }
        ClientCommand::Set(SetArgs { app, set }) => {
            let uri = format!("/v1/apps/{app}");
            done(client.patch(&uri, &api::SetRequest { set }).await?, output)?;
        }
        ClientCommand::Push(args) => {
            let uri = format!("/v1/apps/{}/signals", args.app);
            done(client.post(&uri, &args.request()?).await?, output)?;
        }
        ClientCommand::Shadow(args) => shadow::run(args, client, output).await?,
        ClientCommand::Fleet(command) => fleet::run(command, client, output).await?,
        ClientCommand::Image(args) => image::run(args, client, output).await?,
        ClientCommand::Move(args) => moves::run(args, client, output).await?,
        ClientCommand::Update(_) => {
            return Err(Failure::Usage(
                "an update is asked for by itself".to_owned(),
            ));
        }
        ClientCommand::Pause => done(client.post("/v1/pause", &()).await?, output)?,
        ClientCommand::Resume => done(client.post("/v1/resume", &()).await?, output)?,
        ClientCommand::Reload => done(client.post("/v1/reload", &()).await?, output)?,
    }
    Ok(())
}

fn done(done: api::Done, output: &mut Output) -> Result<(), Failure> {
    Ok(output.show(&done, |done| done.messages.join("\n"))?)
}

async fn events(args: &EventsArgs, client: &Client, output: &mut Output) -> Result<(), Failure> {
    // The stream first: what happens while the past is fetched must not fall between.
    let mut ticks = match args.follow {
        true => Some(client.ticks(api::StreamPace::default()).await?),
        false => None,
    };
    let about = match &args.app {
        Some(app) => format!("&app={app}"),
        None => String::new(),
    };
    let uri = format!("/v1/events?limit={}{about}", args.limit);
    let past: api::Events = client.get(&uri).await?;
    let Some(ticks) = &mut ticks else {
        return Ok(output.show(&past, |past| render::events(&past.events))?);
    };
    let mut shown = BTreeSet::new();
    for event in &past.events {
        output.line(event, render::event)?;
        shown.insert((event.time_unix_ms, event.message.clone()));
    }
    while let Some(tick) = ticks.next().await? {
        let about = |event: &&api::Event| match &args.app {
            Some(app) => event.app.as_deref() == Some(app.as_str()),
            None => true,
        };
        for event in tick.events.iter().filter(about) {
            if !shown.remove(&(event.time_unix_ms, event.message.clone())) {
                output.line(event, render::event)?;
            }
        }
    }
    let path = client.path().display();
    Err(Failure::Failed(format!(
        "follow the events of the daemon at {path}: it stopped; ask again when it runs"
    )))
}

async fn history(args: &HistoryArgs, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let resource = match args.resource {
        ResourceArg::Cpu => api::Resource::Cpu,
        ResourceArg::CpuStalled => api::Resource::CpuStalled,
        ResourceArg::Io => api::Resource::Io,
        ResourceArg::Memory => api::Resource::Memory,
        ResourceArg::Received => api::Resource::Received,
        ResourceArg::Sent => api::Resource::Sent,
        ResourceArg::Requests => api::Resource::Requests,
        ResourceArg::ResponseTime => api::Resource::ResponseTime,
        ResourceArg::Accelerator => api::Resource::Accelerator,
        ResourceArg::CpuAllowed => api::Resource::CpuAllowed,
        ResourceArg::MemoryAllowed => api::Resource::MemoryAllowed,
    };
    let step = args.step.map(|step| match step {
        StepArg::TenSeconds => api::Step::TenSeconds,
        StepArg::Minute => api::Step::Minute,
        StepArg::Hour => api::Step::Hour,
    });
    let mut uri = format!("/v1/history/{}/{resource}?limit={}", args.app, args.limit);
    if let Some(step) = step {
        uri += &format!("&step={}", step.as_str());
    }
    if let Some(minutes) = args.since {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let since = now_ms.saturating_sub(u64::from(minutes) * 60_000);
        uri += &format!("&since_unix_ms={since}");
    }
    let history: api::History = client.get(&uri).await?;
    Ok(output.show(&history, render::history)?)
}

fn run_request(args: RunArgs) -> Result<api::RunRequest, Failure> {
    let directory = match args.directory {
        Some(directory) => std::path::absolute(directory),
        None => std::env::current_dir(),
    };
    let directory = directory.map_err(|cause| Failure::Io {
        doing: "find the working directory; name one with --directory",
        cause,
    })?;
    let directory = directory.into_os_string().into_string().map_err(|path| {
        Failure::Usage(format!(
            "the working directory {} is not UTF-8; name another with --directory",
            path.display()
        ))
    })?;
    let keys = [
        ("floor.cpu", args.floor_cpu),
        ("floor.memory", args.floor_memory),
        ("ceiling.cpu", args.ceiling_cpu),
        ("ceiling.memory", args.ceiling_memory),
        ("ceiling.pids", args.ceiling_pids),
    ];
    let set = keys.into_iter().filter_map(|(key, value)| {
        let key = key.to_owned();
        value.map(|value| api::Assignment { key, value })
    });
    Ok(api::RunRequest {
        name: args.name.to_string(),
        class: match args.class {
            ClassArg::Critical => api::Class::Critical,
            ClassArg::Standard => api::Class::Standard,
            ClassArg::Batch => api::Class::Batch,
        },
        command: args.command,
        user: args.user,
        group: args.group,
        directory: Some(directory),
        set: set.collect(),
    })
}

fn assignment(text: &str) -> Result<api::Assignment, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(api::Assignment {
            key: key.to_owned(),
            value: value.to_owned(),
        }),
        _ => Err("write it as key=value, such as floor.cpu=0.5".to_owned()),
    }
}

/// `web floor.cpu=2 crunch class=batch`: each app with the keys after it.
fn changes(words: &[String]) -> Result<Vec<api::AppChange>, String> {
    let mut changes: Vec<api::AppChange> = Vec::new();
    for word in words {
        match (word.contains('='), changes.last_mut()) {
            (false, _) => changes.push(api::AppChange {
                app: word.clone(),
                set: Vec::new(),
            }),
            (true, Some(change)) => change.set.push(assignment(word)?),
            (true, None) => {
                return Err(format!(
                    "`{word}` stands before any app; write APP key=value"
                ));
            }
        }
    }
    match changes.iter().find(|change| change.set.is_empty()) {
        Some(change) => Err(format!(
            "nothing to change for `{}`; write {0} key=value",
            change.app
        )),
        None => Ok(changes),
    }
}

#[cfg(test)]
pub(crate) mod tests;
