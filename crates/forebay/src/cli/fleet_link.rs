//! `forebay fleet ca|join|renew`: which hosts are in the fleet.
//!
//! These work on files of this host, and on the agent of the host that holds the fleet's authority; the
//! daemon is not asked.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use forebay_core::fleet::HostName;
use serde::Serialize;

use crate::fleet::link::authority::{Authority, Beginning, Token};
use crate::fleet::link::identity::system_clock;
use crate::fleet::link::{Identity, agent, join, renewal};
use crate::output::{Format, Output, utc};

/// Where a host's place in its fleet is kept unless it is said.
const DIR: &str = "/var/lib/forebay/fleet";
/// Where agents listen unless it is said.
const LISTEN: &str = "0.0.0.0:7346";

type Failure = Box<dyn std::error::Error>;

/// What decides who is in the fleet.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum LinkCommand {
    /// Hold the fleet's authority: begin a fleet, let hosts in, and forget them
    #[command(subcommand)]
    Ca(CaCommand),
    /// Join a fleet, with a token that the host which holds its authority made
    Join(JoinArgs),
    /// Renew the certificate of this host now; agents do so by themselves
    Renew(Place),
}

/// What is done on the host that holds the authority.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CaCommand {
    /// Begin a fleet, of which this host is the first
    Init(InitArgs),
    /// Print a token that lets a host join, once
    Token(TokenArgs),
    /// Make key and certificate for a host that cannot reach this one; take the file there by a safe way
    Issue(IssueArgs),
    /// Take the certificates of a host back
    Forget(ForgetArgs),
    /// Let hosts join and renew their certificates, until ended
    Serve(ServeArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// Where the host's place in the fleet is kept
    #[arg(long, value_name = "DIR", default_value = DIR)]
    dir: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct InitArgs {
    /// What the fleet is called
    #[arg(long, value_name = "NAME", default_value = "fleet")]
    fleet: String,

    /// What this host is called in it [default: its host name]
    #[arg(long, value_name = "NAME")]
    host: Option<HostName>,

    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TokenArgs {
    /// The host that may join
    host: HostName,

    /// For so long
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1440))]
    minutes: u32,

    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct IssueArgs {
    /// The host
    host: HostName,

    /// The directory to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Where it will find the agent of this host, to renew its certificate before it ends
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,

    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ForgetArgs {
    /// The host
    host: HostName,

    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = LISTEN)]
    listen: String,

    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct JoinArgs {
    /// Where the agent of the host listens that made the token
    #[arg(value_name = "ADDRESS")]
    address: String,

    /// What `forebay fleet ca token` printed there; `-` reads it from standard input
    #[arg(value_name = "TOKEN")]
    token: String,

    #[command(flatten)]
    place: Place,
}

/// What a command has done.
#[derive(Debug, Serialize)]
#[serde(tag = "done", rename_all = "snake_case")]
enum Done {
    Begun {
        fleet: String,
        host: HostName,
        authority_sha256: String,
    },
    Token {
        host: HostName,
        token: String,
        until_unix_ms: u64,
    },
    Issued {
        host: HostName,
        dir: PathBuf,
    },
    Forgotten {
        host: HostName,
        certificates: usize,
    },
    Joined {
        host: HostName,
        fleet: String,
        until_unix_ms: u64,
    },
    Renewed {
        host: HostName,
        until_unix_ms: u64,
    },
    Listening {
        address: String,
    },
}

fn text(done: &Done) -> String {
    match done {
        Done::Begun {
            fleet,
            host,
            authority_sha256,
        } => format!(
            "Fleet {fleet} begins with {host}, which holds its authority (SHA-256 {authority_sha256}).\n\
             Let others join: `forebay fleet ca serve` here, and `forebay fleet ca token HOST` for each."
        ),
        Done::Token {
            host,
            token,
            until_unix_ms,
        } => format!(
            "{token}\n\nLets {host} join, once, until {} UTC. Run there:\n  forebay fleet join ADDRESS - \
             \nand give it the first line.",
            utc(*until_unix_ms)
        ),
        Done::Issued { host, dir } => format!(
            "Key and certificate of {host} are in {}. Take them there by a safe way, and remove them here.",
            dir.display()
        ),
        Done::Forgotten { host, certificates } => format!(
            "{host} is forgotten: {certificates} of its certificates are taken back. This host refuses it \
             now, others when they hear of it, which is every 10 minutes while they reach this one."
        ),
        Done::Joined {
            host,
            fleet,
            until_unix_ms,
        } => format!(
            "This host is {host} of fleet {fleet}. Its certificate is valid until {} UTC, and renewed before.",
            utc(*until_unix_ms)
        ),
        Done::Renewed {
            host,
            until_unix_ms,
        } => format!(
            "The certificate of {host} is valid until {} UTC.",
            utc(*until_unix_ms)
        ),
        Done::Listening { address } => format!("Listening at {address}."),
    }
}

/// Runs one of the commands.
///
/// # Errors
/// When it is not done, with what to do.
pub(crate) fn run(command: &LinkCommand) -> Result<ExitCode, Failure> {
    match command {
        LinkCommand::Ca(command) => authority(command),
        LinkCommand::Join(args) => {
            let token = match args.token.as_str() {
                "-" => std::io::read_to_string(std::io::stdin().lock())?,
                token => token.to_owned(),
            };
            // More may follow it, as it was printed.
            let token = Token::parse(token.lines().next().unwrap_or_default())?;
            let joined = join::join(&args.place.dir, &args.address, &token, system_clock());
            let identity = runtime()?.block_on(joined)?;
            args.place.show(&Done::Joined {
                host: identity.host(),
                fleet: token.fleet.clone(),
                until_unix_ms: unix_ms(identity.certificate().ends()),
            })
        }
        LinkCommand::Renew(place) => {
            let identity = Arc::new(Identity::load(&place.dir, system_clock())?);
            runtime()?.block_on(renewal::renew(&identity, renewal::When::Now))?;
            place.show(&Done::Renewed {
                host: identity.host(),
                until_unix_ms: unix_ms(identity.certificate().ends()),
            })
        }
    }
}

fn authority(command: &CaCommand) -> Result<ExitCode, Failure> {
    let now = SystemTime::now();
    match command {
        CaCommand::Init(args) => {
            let host = match &args.host {
                Some(host) => host.clone(),
                None => own_name()?,
            };
            let beginning = Beginning {
                fleet: args.fleet.clone(),
                host: host.clone(),
            };
            let (fleet, authority_sha256) =
                Authority::init(&args.place.dir, beginning, now)?.name()?;
            args.place.show(&Done::Begun {
                fleet,
                host,
                authority_sha256,
            })
        }
        CaCommand::Token(args) => {
            let good_for = Duration::from_secs(u64::from(args.minutes) * 60);
            let token = Authority::open(&args.place.dir)?.token(&args.host, good_for, now)?;
            args.place.show(&Done::Token {
                host: args.host.clone(),
                token: token.text()?,
                until_unix_ms: unix_ms(now + good_for),
            })
        }
        CaCommand::Issue(args) => {
            same_not(&args.place.dir, &args.out)?;
            Authority::open(&args.place.dir)?.issue(
                &args.host,
                (&args.out, args.address.clone()),
                now,
            )?;
            args.place.show(&Done::Issued {
                host: args.host.clone(),
                dir: args.out.clone(),
            })
        }
        CaCommand::Forget(args) => {
            let authority = Authority::open(&args.place.dir)?;
            let certificates = authority.forget(&args.host, now)?;
            // The agent of this host looks there before it answers anybody.
            let identity = Identity::load(&args.place.dir, system_clock())?;
            identity.deny(&authority.denied(now)?)?;
            args.place.show(&Done::Forgotten {
                host: args.host.clone(),
                certificates,
            })
        }
        CaCommand::Serve(args) => {
            // One that is not of this host would let nobody in.
            Authority::open(&args.place.dir)?;
            let identity = Arc::new(Identity::load(&args.place.dir, system_clock())?);
            runtime()?.block_on(agent::serve(identity, &args.listen, |address| {
                let address = address.to_string();
                args.place.show(&Done::Listening { address }).map(drop)
            }))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Place {
    fn show(&self, done: &Done) -> Result<ExitCode, Failure> {
        let format = if self.json {
            Format::Json
        } else {
            Format::People
        };
        Output::stdout(format).show(done, text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The key of another host must not take the place of this one's.
fn same_not(dir: &Path, out: &Path) -> Result<(), Failure> {
    match std::path::absolute(dir)? == std::path::absolute(out)? {
        true => Err(format!(
            "write to {}: that is where this host's own place in the fleet is kept; name another \
             directory with --out",
            out.display()
        )
        .into()),
        false => Ok(()),
    }
}

fn own_name() -> Result<HostName, Failure> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    Ok(name
        .parse()
        .map_err(|error| format!("{error}; name this host with --host"))?)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
