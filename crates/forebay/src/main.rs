//! Forecasts, partitions and protects the applications of a Linux host.

mod accel;
mod adopt;
mod backing;
mod backtest;
mod bench;
mod calibrate;
mod cli;
mod config;
mod control;
mod daemon;
mod dashboard;
mod demo;
mod durable;
mod fetch;
mod fleet;
mod front;
mod fronts;
mod images;
mod instance;
mod local;
mod log;
mod outlook;
mod output;
mod porter;
#[cfg(test)]
mod reference;
mod server;
mod signals;
mod store;
mod tier;
mod tiering;
mod top;
mod training;
mod update;
mod workers;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(name = "forebay", version, about, after_help = cli::Exit::DOCUMENTATION)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// The whole command line, as help, completions and the manual page show it too.
    fn whole() -> clap::Command {
        cli::with_connection(Self::command())
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::Args),
    #[command(flatten)]
    Client(cli::ClientCommand),
    Daemon(daemon::Args),
    Dashboard(dashboard::Args),
    Setup(adopt::setup::Args),
    Adopt(adopt::Args),
    Calibrate(calibrate::Args),
    Backtest(backtest::Args),
    Check(local::CheckArgs),
    Restore(local::RestoreArgs),
    Doctor(local::DoctorArgs),
    Tier(tier::Args),
    Accel(accel::Args),
    Completions(local::CompletionsArgs),
    Man(local::ManArgs),
    #[command(hide = true)]
    Guardian(local::GuardianArgs),
    #[command(hide = true)]
    Errand(update::ErrandArgs),
    #[command(hide = true)]
    Front(front::Args),
    #[command(hide = true)]
    Instance(instance::Args),
    #[command(hide = true)]
    Porter(porter::Args),
    /// The program that a rehearsal writes down and begins again
    #[command(hide = true)]
    RehearsalCanary(local::CanaryArgs),
    /// Process 1 of the machine that a rehearsal starts
    #[command(hide = true)]
    RehearsalInit,
    #[command(hide = true)]
    AccelWorker(accel::WorkerArgs),
    #[command(hide = true)]
    AccelDevice(accel::DeviceArgs),
    #[command(hide = true)]
    Bench(bench::Args),
    #[command(hide = true)]
    Chaos(bench::chaos::Args),
    /// Programs that the demo and the benchmarks run
    #[command(subcommand, hide = true)]
    Workload(workload::Workload),
}

fn main() -> ExitCode {
    let matches = Cli::whole().get_matches();
    let command = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli.command,
        Err(error) => error.exit(),
    };
    let result: Result<ExitCode, Box<dyn std::error::Error>> = match command {
        Command::Demo(args) => demo::run(&args).map_err(Into::into),
        // Files of this host, and other hosts: the daemon is not asked.
        Command::Client(cli::ClientCommand::Fleet(cli::fleet::FleetCommand::Link(command))) => {
            cli::fleet_link::run(&command)
        }
        Command::Client(command) => return ask(command, &matches),
        Command::Daemon(args) => daemon::run(&args).map_err(Into::into),
        Command::Dashboard(args) => dashboard::run(&args).map_err(Into::into),
        Command::Errand(args) => update::run_errand(&args).map_err(Into::into),
        Command::Front(args) => front::run(&args).map_err(Into::into),
        Command::Instance(args) => instance::run(&args).map_err(Into::into),
        Command::Porter(args) => porter::run(&args).map_err(Into::into),
        Command::RehearsalCanary(args) => local::canary(&args).map_err(Into::into),
        Command::RehearsalInit => forebay_host::rehearsal::run_guest()
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        Command::Accel(args) => accel::run(&args).map_err(Into::into),
        Command::AccelWorker(args) => accel::work(&args).map_err(Into::into),
        Command::AccelDevice(args) => accel::drive(&args).map_err(Into::into),
        Command::Setup(args) => adopt::setup::run(&args).map_err(Into::into),
        Command::Adopt(args) => adopt::run(&args).map_err(Into::into),
        Command::Backtest(args) => backtest::run(&args).map_err(Into::into),
        Command::Calibrate(args) => calibrate::run(&args).map_err(Into::into),
        Command::Check(args) => local::check(&args).map_err(Into::into),
        Command::Restore(args) => local::restore(&args).map_err(Into::into),
        Command::Doctor(args) => local::doctor(&args).map_err(Into::into),
        Command::Tier(args) => tier::run(&args).map_err(Into::into),
        Command::Completions(args) => Ok(local::completions(&args)),
        Command::Man(args) => local::man(&args).map_err(Into::into),
        Command::Guardian(args) => local::guardian(&args).map_err(Into::into),
        Command::Bench(args) => bench::run(&args).map_err(Into::into),
        Command::Chaos(args) => bench::chaos::run(&args).map_err(Into::into),
        Command::Workload(workload) => workload::run(workload)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
    };
    result.unwrap_or_else(|error| {
        report(&*error);
        ExitCode::FAILURE
    })
}

fn ask(command: cli::ClientCommand, matches: &clap::ArgMatches) -> ExitCode {
    let connection = matches
        .subcommand()
        .map(|(_, own)| cli::Connection::from_arg_matches(own));
    match connection {
        Some(Ok(connection)) => cli::run(command, &connection),
        Some(Err(error)) => error.exit(),
        None => unreachable!("a command was parsed"),
    }
}

/// Says what went wrong, with the causes, once.
fn report(error: &dyn std::error::Error) {
    let mut text = format!("forebay: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_line_is_understood() {
        Cli::whole().debug_assert();
        let check = |line: &str, understood: bool| {
            let matches = Cli::whole().try_get_matches_from(line.split(' '));
            let parsed = matches.is_ok_and(|matches| Cli::from_arg_matches(&matches).is_ok());
            assert_eq!(parsed, understood, "{line}");
        };
        check("forebay demo --seconds 60 --json demo.json", true);
        check("forebay demo --simulated --seconds 20", true);
        check("forebay demo --json", false);
        check("forebay status --json --socket /tmp/s", true);
        check("forebay explain web --json", true);
        check(
            "forebay top --once --view accelerators --sort wait --reverse",
            true,
        );
        check("forebay top --once --json --filter web", true);
        check("forebay top --view nothing", false);
        check("forebay fleet hosts --json", true);
        check("forebay fleet status --socket /tmp/s", true);
        check("forebay fleet cordon db-1", true);
        check("forebay fleet cordon", false);
        check("forebay fleet cordon a/b", false);
        check("forebay fleet", false);
        check("forebay check --json forebay.toml", true);
        check("forebay adopt --suggest --json", true);
        check("forebay adopt", false);
        check("forebay setup --protect nginx --protect db.service", true);
        check("forebay setup --config f.toml --dry-run", true);
        check("forebay setup nginx", false);
        check("forebay doctor --json", true);
        check("forebay calibrate /dev/sda --seconds 4 --json", true);
        check("forebay calibrate --show", true);
        check("forebay calibrate /dev/sda --install-model", true);
        check("forebay calibrate /dev/sda --remove-model", true);
        check("forebay calibrate --remove-model", false);
        check(
            "forebay calibrate /dev/sda --install-model --remove-model",
            false,
        );
        check(
            "forebay calibrate /dev/sda --remove-model --seconds 4",
            false,
        );
        check("forebay calibrate", false);
        check(
            "forebay backtest a.csv b.csv --models mixture,moving-max",
            true,
        );
        check(
            "forebay backtest a.csv --target peak --horizons 60 --chart a.svg",
            true,
        );
        check(
            "forebay backtest --data d --origins o.csv --out f.csv",
            true,
        );
        check("forebay backtest --data d --origins o.csv", false);
        check("forebay backtest a.csv --out f.csv", false);
        check(
            "forebay backtest a.csv --data d --origins o.csv --out f.csv",
            false,
        );
        check("forebay backtest a.csv --models best", false);
        check("forebay backtest a.csv --warm-up 1", false);
        check("forebay backtest a.csv --history 9", false);
        check("forebay backtest a.csv --every 0", false);
        check(
            "forebay backtest web --resource memory --step 1m --state-dir /tmp/s --last 500",
            true,
        );
        check("forebay backtest web --resource ram", false);
        check("forebay backtest web --step 2m", false);
        check("forebay backtest web --last 0", false);
        check("forebay backtest", false);
        check("forebay calibrate /dev/sda --seconds 1", false);
        check("forebay calibrate /dev/sda --show", false);
        check("forebay tier promote data a b --json", true);
        check("forebay tier promote data", false);
        check("forebay bench colocation --json result.json", true);
        check("forebay run --name n --class batch -- sleep 1", true);
        check("forebay push web requests=120 response_time=3.4ms", true);
        check("forebay push web --json response_time=1s", true);
        check("forebay push web", false);
        check("forebay history web response_time", true);
        check("forebay fleet ca init --fleet shop --host db1", true);
        check("forebay fleet ca token db2 --minutes 10 --json", true);
        check("forebay fleet ca token db2 --minutes 0", false);
        check("forebay fleet ca issue db2", false);
        check("forebay fleet join db1:7346 forebay-join-1.x", true);
        check("forebay fleet join db1:7346", false);
        check(
            "forebay update run --restart a --restart b -- apt-get upgrade -y",
            true,
        );
        check("forebay update run apt-get upgrade", false);
        check("forebay update plan --json --rollback false -- true", true);
        check(
            "forebay update hooks install --root /tmp/r --fail closed",
            true,
        );
        check("forebay update hook pre --fail open", true);
        check("forebay update status --json", true);
        check("forebay update", false);
        check("forebay fleet renew --dir /tmp/f", true);
        check("forebay accel devices --json", true);
        check("forebay accel devices --worker /run/w.sock", true);
        check("forebay accel stats", false);
        check("forebay accel bench --json", true);
        check("forebay accel", false);
        check(
            "forebay accel-worker /run/w.sock --deny opencl:0:0 --threads 2",
            true,
        );
        check("forebay accel-worker /run/w.sock --threads 0", false);
        check("forebay accel-worker", false);
        check("forebay accel-device --list", true);
        check("forebay nonsense", false);
    }
}
