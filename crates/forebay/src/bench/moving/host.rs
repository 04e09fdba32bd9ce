//! One of the two hosts of a move, as a process of its own: the source takes a process apart, the target
//! puts it together. Their link is standard input.

use std::fs;
use std::io::{self, BufReader, BufWriter, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forebay_core::fleet::rounds::{Bounds, Verdict};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::preflight::{Speeds, Survey};
use forebay_host::checkpoint::{
    Assembly, Criu, Freezing, Held, Landed, Landing, Orphaned, Tcp, Tracker, pack, runs,
};
use serde_json::{Value, json};

use crate::demo::Error;
use crate::demo::print::line;

/// What is buffered on the way.
const BUFFER: usize = 256 << 10;

/// What tells the source that it runs at the target, and that its address is there.
pub(super) const RUNS: &[u8; 1] = b"r";

/// `forebay workload mover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum)]
    side: Side,
    /// The process that moves
    #[arg(long)]
    pid: Option<u32>,
    /// Where images are
    #[arg(long)]
    dir: PathBuf,
    /// CRIU
    #[arg(long)]
    criu: PathBuf,
    /// Stop, copy all, begin again
    #[arg(long)]
    plain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Side {
    Source,
    Target,
}

/// Does its side of one move, tells of it in one line, and stays.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let link = link()?;
    let criu = Criu::find(Some(&args.criu)).map_err(host)?;
    match (args.side, args.plain) {
        (Side::Source, false) => depart(args, &criu, &link),
        (Side::Source, true) => depart_plain(args, &link),
        (Side::Target, plain) => {
            if plain {
                arrive_plain(args, &link)?;
            } else {
                arrive(args, &criu, &link)?;
            }
            // What was restored is a child of this process, and ends with it.
            loop {
                std::thread::park();
            }
        }
    }
}

fn link() -> Result<UnixStream, Error> {
    rustix::io::dup(io::stdin())
        .map(UnixStream::from)
        .map_err(Error::system(
            "take",
            "the link",
            "start it by `forebay bench move`",
        ))
}

fn host(error: forebay_host::Error) -> Error {
    Error::part("the move", error.explain())
}

fn broken(error: io::Error) -> Error {
    Error::part("the link", error)
}

fn tell(what: &Value) {
    line(format_args!("{what}"));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn depart(args: &Args, criu: &Criu, link: &UnixStream) -> Result<(), Error> {
    let pid = args
        .pid
        .ok_or_else(|| Error::part("the source", "no --pid"))?;
    let tracked = Survey::of(pid, criu).map_err(host)?.tracked;
    let began = Instant::now();
    let mut tracker = Tracker::attach(pid).map_err(host)?;
    let stood = tracker.stood();
    let mut out = BufWriter::with_capacity(BUFFER, link);
    let bounds = Bounds {
        aim: Duration::from_millis(50).saturating_add(Speeds::MEASURED.fixed(tracked)),
        most: Duration::from_secs(2),
        fixed: Speeds::MEASURED.fixed(tracked),
    };
    let (rounds, verdict) = tracker.rounds(bounds, &mut out).map_err(host)?;
    let Verdict::Freeze(expected) = verdict else {
        return Err(Error::part("the source", format!("{verdict:?}")));
    };
    let copied = began.elapsed();
    let freezing = Instant::now();
    let freezing_by = Freezing {
        tcp: Tcp::Keep,
        orphaned: Orphaned::Stands,
    };
    let held = Held::freeze(criu, pid, &args.dir, freezing_by).map_err(host)?;
    let frozen = freezing.elapsed();
    let last = tracker.last(&mut out).map_err(host)?;
    runs::end(&mut out).map_err(broken)?;
    let rest = freezing.elapsed() - frozen;
    send_images(&args.dir, &mut out)?;
    let sent = freezing.elapsed();
    drop(out);
    wait_for(link)?;
    let running = freezing.elapsed();
    drop(tracker);
    held.end().map_err(host)?;
    let all: Vec<Value> = rounds
        .iter()
        .map(|round| {
            json!({
                "copied_mib": round.copied.as_f64() / 1048576.0,
                "took_ms": ms(round.took),
                "left_mib": round.left.as_f64() / 1048576.0,
            })
        })
        .collect();
    tell(&json!({
        "attach_ms": ms(stood),
        "precopy_ms": ms(copied),
        "rounds": all,
        "expected_ms": ms(expected),
        "frozen_ms": ms(frozen),
        "last_ms": ms(rest),
        "last_mib": last.as_f64() / 1048576.0,
        "sent_ms": ms(sent),
        "running_ms": ms(running),
    }));
    Ok(())
}

fn arrive(args: &Args, criu: &Criu, link: &UnixStream) -> Result<(), Error> {
    let mut from = BufReader::with_capacity(BUFFER, link);
    let mut assembly = Assembly::new(Bytes::mib(64 << 10)).map_err(host)?;
    assembly.take(&mut from).map_err(host)?;
    let size = assembly.size();
    pack::unpack(&args.dir, &mut from).map_err(host)?;
    let began = Instant::now();
    let landing = Landing {
        tcp: Tcp::Keep,
        groups: Vec::new(),
    };
    let landed = Landed::prepare(criu, &args.dir, assembly, &landing, None).map_err(host)?;
    let prepared = began.elapsed();
    landed.start().map_err(host)?;
    tell(&json!({ "running": landed.pid() }));
    let filled = landed.settle().map_err(host)?;
    tell(&json!({
        "assembly_mib": size.as_f64() / 1048576.0,
        "prepare_ms": ms(prepared),
        "fill_ms": ms(filled.took),
        "filled_mib": filled.bytes.as_f64() / 1048576.0,
        "faults": filled.faults,
    }));
    Ok(())
}

/// As one would do by hand: CRIU dumps it all and ends it, the images are copied, CRIU restores it.
fn depart_plain(args: &Args, link: &UnixStream) -> Result<(), Error> {
    let pid = args
        .pid
        .ok_or_else(|| Error::part("the source", "no --pid"))?;
    let began = Instant::now();
    let mut dump = Command::new(&args.criu);
    dump.arg("dump").args(["--tree", &pid.to_string()]);
    by_hand(dump, &args.dir, "dump.log")?;
    let dumped = began.elapsed();
    let mut out = BufWriter::with_capacity(BUFFER, link);
    send_images(&args.dir, &mut out)?;
    drop(out);
    let sent = began.elapsed();
    wait_for(link)?;
    tell(&json!({
        "frozen_ms": ms(dumped),
        "sent_ms": ms(sent),
        "running_ms": ms(began.elapsed()),
    }));
    Ok(())
}

fn arrive_plain(args: &Args, link: &UnixStream) -> Result<(), Error> {
    let mut from = BufReader::with_capacity(BUFFER, link);
    pack::unpack(&args.dir, &mut from).map_err(host)?;
    let began = Instant::now();
    let mut restore = Command::new(&args.criu);
    restore.args(["restore", "--restore-detached"]);
    by_hand(restore, &args.dir, "restore.log")?;
    tell(&json!({ "running": 0 }));
    tell(&json!({ "prepare_ms": ms(began.elapsed()) }));
    Ok(())
}

fn by_hand(mut criu: Command, dir: &Path, log: &str) -> Result<(), Error> {
    let status = criu
        .arg("--images-dir")
        .arg(dir)
        .args(["--tcp-established", "--network-lock", "nftables"])
        .args(["--skip-in-flight", "--manage-cgroups=ignore"])
        .args(["--file-locks", "--log-file", log])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(Error::system("run", "criu", "install CRIU 4.0 or newer"))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(dir.join(log)).unwrap_or_default();
    let said: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("Error"))
        .collect();
    Err(Error::part("criu", said.join(" | ")))
}

fn send_images(dir: &Path, to: &mut impl Write) -> Result<(), Error> {
    let (_, mut from) = pack::pack(dir).map_err(host)?;
    io::copy(&mut from, to)
        .and_then(|_| to.flush())
        .map_err(broken)
}

/// Waits for [`RUNS`].
fn wait_for(mut link: &UnixStream) -> Result<(), Error> {
    link.read_exact(&mut [0]).map_err(broken)
}
