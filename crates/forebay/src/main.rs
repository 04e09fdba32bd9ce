//! Forecasts, partitions and protects the applications of a Linux host.

mod backing;
mod bench;
mod cli;
mod config;
mod control;
mod daemon;
mod demo;
mod local;
mod output;
mod server;
mod store;
mod top;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(name = "forebay", version, about, after_help = cli::Exit::DOCUMENTATION)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    connection: cli::Connection,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::Args),
    #[command(flatten)]
    Client(cli::ClientCommand),
    Daemon(daemon::Args),
    Check(local::CheckArgs),
    Restore(local::RestoreArgs),
    Doctor(local::DoctorArgs),
    Completions(local::CompletionsArgs),
    /// Print the manual page
    Man,
    #[command(hide = true)]
    Guardian(local::GuardianArgs),
    #[command(hide = true)]
    Bench(bench::Args),
    #[command(hide = true)]
    Chaos(bench::chaos::Args),
    /// Programs that the demo and the benchmarks run
    #[command(subcommand, hide = true)]
    Workload(workload::Workload),
}

fn main() -> ExitCode {
    let Cli {
        command,
        connection,
    } = Cli::parse();
    let result: Result<ExitCode, Box<dyn std::error::Error>> = match command {
        Command::Demo(args) => demo::run(&args).map_err(Into::into),
        Command::Client(command) => return cli::run(command, &connection),
        Command::Daemon(args) => daemon::run(&args).map_err(Into::into),
        Command::Check(args) => local::check(&args).map_err(Into::into),
        Command::Restore(args) => local::restore(&args).map_err(Into::into),
        Command::Doctor(args) => local::doctor(&args).map_err(Into::into),
        Command::Completions(args) => Ok(local::completions(&args)),
        Command::Man => local::man().map_err(Into::into),
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
