//! `forebay porter`: takes a process in that comes from another host, and outlives the daemon that began it.

use std::path::PathBuf;
use std::process::ExitCode;

use forebay_core::units::Bytes;
use forebay_host::checkpoint::porter::{Errand, serve};
use forebay_host::checkpoint::{Landing, Tcp};

use crate::fleet::moves::lender;

/// What becomes of its TCP connections.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Word {
    Keep,
    Close,
    Refuse,
}

/// Takes in a process that comes from another host
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// CRIU
    #[arg(long)]
    criu: PathBuf,
    /// Where its images are
    #[arg(long)]
    images: PathBuf,
    /// Memory that it may have, in bytes
    #[arg(long)]
    most: u64,
    /// What becomes of its TCP connections
    #[arg(long)]
    tcp: Word,
    /// A directory of its control groups
    #[arg(long)]
    group: Vec<PathBuf>,
}

/// Does what the daemon asks by standard input, to the end.
pub(crate) fn run(args: &Args) -> Result<ExitCode, forebay_host::Error> {
    let errand = Errand {
        criu: args.criu.clone(),
        images: args.images.clone(),
        most: Bytes(args.most),
        landing: Landing {
            tcp: match args.tcp {
                Word::Keep => Tcp::Keep,
                Word::Close => Tcp::Close,
                Word::Refuse => Tcp::Refuse,
            },
            groups: args.group.clone(),
        },
    };
    let mut ends = (std::io::stdin(), std::io::stdout());
    serve(&errand, (&mut ends.0, &mut ends.1), &lender)?;
    Ok(ExitCode::SUCCESS)
}
