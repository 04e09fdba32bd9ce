//! `forebay adopt --suggest` and `forebay setup`: what runs here, and a configuration for it.

pub(crate) mod setup;
mod suggest;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use forebay_host::Roots;
use forebay_host::discover::{Found, discover};
use forebay_host::owner::Addresses;

use crate::daemon::Error;
use crate::demo::print;
use suggest::{Suggestion, suggest};

/// Suggest a configuration for what runs here
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Say what could be adopted, and change nothing: the only way there is
    #[arg(long, required = true)]
    suggest: bool,
    /// How long to watch, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Control group of Forebay itself, which is left out
    #[arg(long, value_name = "GROUP", default_value = "forebay")]
    cgroup_root: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints a configuration that [`check`](crate::local::check) takes, with its reasons as comments.
///
/// # Errors
/// When /proc or every control group hierarchy is missing.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let watch = Duration::from_secs(args.seconds);
    let addresses = Addresses::from_environment();
    let found = discover(&Roots::default(), &addresses, &args.cgroup_root, watch)
        .map_err(|error| Error::Host(error.explain()))?;
    let suggestions = suggest(found);
    if args.json {
        let list: Vec<_> = suggestions.iter().map(json).collect();
        print::line(format_args!("{:#}", serde_json::json!(list)));
    } else {
        print::line(format_args!(
            "{}",
            suggest::configuration(&suggestions).trim_end()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn json(suggestion: &Suggestion) -> serde_json::Value {
    let Found {
        name,
        place,
        owner,
        container: _,
        pids,
        program,
        cpus,
        resident,
        ports,
        yields,
    } = &suggestion.found;
    let (group, executable, command_line) = suggest::place(place);
    serde_json::json!({
        "app": suggestion.app,
        "class": suggestion.class.map(|class| class.to_string()),
        "because": suggestion.because,
        "name": name,
        "owner": suggest::owner(*owner),
        "cgroup": group,
        "systemd": suggest::unit_of(&suggestion.found),
        "container": suggest::container_of(&suggestion.found),
        "executable": executable,
        "command_line": command_line,
        "pids": pids,
        "program": program,
        "cpus": cpus,
        "resident_bytes": resident.0,
        "ports": ports,
        "yields": yields,
    })
}
