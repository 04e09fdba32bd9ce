//! One move of one process between two hosts, with a client that measures: a process of its own, in a
//! network of its own, and the first of process numbers of its own: so all that it began ends with it.
//!
//! The client is here. Source and target are two networks, each behind a cable of its own; the target
//! also has process numbers of its own, so that the process may have the one that it had. The service
//! has an address of its own, which moves: the client's route to it is changed when the process runs, and
//! only then is the source told to end what it has: its kernel would refuse what still came to it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::host;
use crate::demo::Error;
use crate::demo::print::line;

const SERVICE: &str = "10.77.9.9";
const PORT: u16 = 7709;
/// Where the number of the next process is set, and to what: those at the target begin at 1, and the
/// process needs one that none has there.
const LAST_PID: (&str, &str) = ("/proc/sys/kernel/ns_last_pid", "1000");
/// The client's own address, on none of the cables: it stays whatever becomes of a host.
const CLIENT: &str = "10.77.0.1";
/// From one request to the next.
const PACE: Duration = Duration::from_micros(500);
/// Before the move, and after it.
const CALM: Duration = Duration::from_secs(1);
/// So long may anything take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// `forebay workload move`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where images may be, in memory
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    criu: PathBuf,
    /// Memory of the process, in MiB
    #[arg(long)]
    memory: u64,
    /// Memory that it writes in a second, in MiB
    #[arg(long)]
    rate: u64,
    #[arg(long)]
    plain: bool,
}

/// A process that ends with this one.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs one move, and tells of it in one line.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let result = one(args)?;
    line(format_args!("{result}"));
    Ok(())
}

fn one(args: &Args) -> Result<Value, Error> {
    let (from, to) = (args.dir.join("from"), args.dir.join("to"));
    for dir in [&from, &to] {
        std::fs::create_dir_all(dir).map_err(Error::system("make", dir.display(), "make room"))?;
    }
    let (path, number) = LAST_PID;
    std::fs::write(path, number).map_err(Error::system("set", path, "run this as root"))?;
    let (near, far) = UnixStream::pair().map_err(Error::system("make", "a link", "report it"))?;
    let listen = format!("0.0.0.0:{PORT}");
    let memory = args.memory.to_string();
    let rate = args.rate.to_string();
    let words = [
        "pages",
        "--memory",
        memory.as_str(),
        "--rate",
        rate.as_str(),
    ];
    let words: Vec<&str> = words
        .into_iter()
        .chain(["--listen", listen.as_str()])
        .collect();
    // What it has open would have to be at the target as well.
    let mut program = Kept(start(
        command(&["unshare", "--net", "--"], &words)?.stderr(Stdio::null()),
        Stdio::null(),
        Stdio::null(),
    )?);
    let arguments = |side: &'static str, dir: &Path| {
        let mut words = vec!["mover".to_owned(), side.to_owned()];
        words.extend(["--dir".to_owned(), dir.display().to_string()]);
        words.extend(["--criu".to_owned(), args.criu.display().to_string()]);
        if args.plain {
            words.push("--plain".to_owned());
        }
        words
    };
    let words = arguments("target", &to);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let apart = "unshare --net --pid --fork --mount-proc --kill-child --";
    let apart: Vec<&str> = apart.split(' ').collect();
    let mut target = Kept(start(
        &mut command(&apart, &words)?,
        Stdio::from(OwnedFd::from(far.try_clone().map_err(Error::system(
            "share",
            "a link",
            "raise the limit on open files",
        ))?)),
        Stdio::piped(),
    )?);
    let mut route = wire(program.0.id(), target.0.id())?;
    // The source is a host that stays when the process is gone from it.
    let path = format!("/proc/{}/ns/net", program.0.id());
    let source_net = File::open(&path).map_err(Error::system("open", path, "report it"))?;
    let stream = connect()?;
    let stop = AtomicBool::new(false);
    let pid = program.0.id().to_string();
    let net = format!("--net=/proc/{pid}/ns/net");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| ask(&stream, &stop));
        std::thread::sleep(CALM);
        let mut words = arguments("source", &from);
        words.extend(["--pid".to_owned(), pid]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let source = command(&["nsenter", &net, "--"], &words).and_then(|mut command| {
            start(
                &mut command,
                Stdio::from(OwnedFd::from(near)),
                Stdio::piped(),
            )
        });
        let moved = source.map(Kept).and_then(|mut source| {
            let mut said = BufReader::new(target.0.stdout.take().expect("it is piped"));
            next(&mut said)?;
            route.change("10.77.2.2")?;
            (&far).write_all(host::RUNS).map_err(Error::system(
                "tell",
                "the source",
                "see what it said",
            ))?;
            let mut told = BufReader::new(source.0.stdout.take().expect("it is piped"));
            let source_said = next(&mut told)?;
            let target_said = next(&mut said)?;
            std::thread::sleep(CALM);
            Ok((source_said, target_said))
        });
        stop.store(true, Ordering::Relaxed);
        if moved.is_err() {
            // It waits for an answer that does not come; why is in `moved`.
            stream.shutdown(Shutdown::Both).ok();
        }
        let heard = client
            .join()
            .map_err(|_| Error::part("the client", "ended"))?;
        let (source, target) = moved?;
        let heard = heard.map_err(|error| Error::part("the client", error))?;
        let count = request(&stream, *b"c").map_err(|error| Error::part("the client", error))?;
        let is_gone = program
            .0
            .try_wait()
            .map_err(Error::system("look at", "the source", "report it"))?
            .is_some();
        drop(source_net);
        Ok(json!({
            "pause_ms": heard.gap.as_secs_f64() * 1e3,
            "requests": heard.requests,
            "is_monotonic": heard.is_monotonic,
            "is_whole": count != u64::MAX && count >= heard.count,
            "source_is_gone": is_gone,
            "source": source,
            "target": target,
        }))
    })
}

/// What a client saw.
struct Heard {
    requests: u64,
    /// The longest time from one answer to the next.
    gap: Duration,
    count: u64,
    is_monotonic: bool,
}

fn ask(stream: &TcpStream, stop: &AtomicBool) -> std::io::Result<Heard> {
    let mut heard = Heard {
        requests: 0,
        gap: Duration::ZERO,
        count: 0,
        is_monotonic: true,
    };
    let mut before = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let count = request(stream, *b"p")?;
        let now = Instant::now();
        heard.gap = heard.gap.max(now - before);
        before = now;
        heard.requests += 1;
        heard.is_monotonic &= count >= heard.count;
        heard.count = count;
        std::thread::sleep(PACE);
    }
    Ok(heard)
}

fn request(mut stream: &TcpStream, word: [u8; 1]) -> std::io::Result<u64> {
    stream.write_all(&word)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    Ok(u64::from_le_bytes(answer))
}

/// Connects as soon as the service has its memory.
fn connect() -> Result<TcpStream, Error> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect((SERVICE, PORT)) {
            Ok(stream) => {
                let set = stream
                    .set_nodelay(true)
                    .and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
                set.map_err(Error::system("set up", "a connection", "report it"))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() >= until => {
                return Err(Error::part("the client", format!("connect: {error}")));
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// What changes the client's route: it is there before it is needed.
struct Route {
    ip: Kept,
    input: ChildStdin,
    said: BufReader<ChildStdout>,
}

impl Route {
    fn ready() -> Result<Self, Error> {
        let mut ip = Kept(
            Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(Error::system("run", "ip", "install iproute2"))?,
        );
        let (input, said) = (ip.0.stdin.take(), ip.0.stdout.take());
        match (input, said.map(BufReader::new)) {
            (Some(input), Some(said)) => Ok(Self { ip, input, said }),
            _ => Err(Error::part("ip", "it has no input or output")),
        }
    }

    /// Changes it, and sees that it did.
    fn change(&mut self, via: &str) -> Result<(), Error> {
        let failed = || Error::system::<std::io::Error>("move", SERVICE, "see what `ip` says");
        writeln!(
            self.input,
            "route replace {SERVICE}/32 via {via} src {CLIENT}\nroute show {SERVICE}/32"
        )
        .and_then(|()| self.input.flush())
        .map_err(failed())?;
        let mut now = String::new();
        self.said.read_line(&mut now).map_err(failed())?;
        if now.contains(via) {
            return Ok(());
        }
        let ended = self.ip.0.try_wait();
        Err(Error::part(
            "ip",
            format!("the route is {now:?}; {ended:?}"),
        ))
    }
}

/// Puts cables between the client and the two hosts.
fn wire(source: u32, target: u32) -> Result<Route, Error> {
    for host in [source, target] {
        await_network(host)?;
    }
    let own = format!(
        "link set lo up\n\
         address add {CLIENT}/32 dev lo\n\
         link add source type veth peer name cable netns {source}\n\
         link add target type veth peer name cable netns {target}\n\
         address add 10.77.1.1/24 dev source\naddress add 10.77.2.1/24 dev target\n\
         link set source up\nlink set target up\n\
         route add {SERVICE}/32 via 10.77.1.2 src {CLIENT}\n"
    );
    ip(&[], &own)?;
    for (host, net) in [(source, 1), (target, 2)] {
        let theirs = format!(
            "link set lo up\naddress add 10.77.{net}.2/24 dev cable\nlink set cable up\n\
             address add {SERVICE}/32 dev lo\nroute add default via 10.77.{net}.1\n"
        );
        ip(
            &["nsenter", &format!("--net=/proc/{host}/ns/net"), "--"],
            &theirs,
        )?;
    }
    Route::ready()
}

/// Waits until a process that was started has the network of its own.
pub(crate) fn await_network(pid: u32) -> Result<(), Error> {
    let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).ok();
    let until = Instant::now() + PATIENCE;
    while of(&pid.to_string()) == of("self") {
        if Instant::now() >= until {
            return Err(Error::part("unshare", "it makes no network"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Has `ip` carry out commands, by way of others: in the network of a process.
pub(crate) fn ip(before: &[&str], commands: &str) -> Result<(), Error> {
    let mut words = before.to_vec();
    words.extend(["ip", "-batch", "-"]);
    let failed = || Error::system::<std::io::Error>("run", "ip", "install iproute2");
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    let mut input = child
        .stdin
        .take()
        .ok_or_else(|| Error::part("ip", "it has no input"))?;
    input.write_all(commands.as_bytes()).map_err(failed())?;
    drop(input);
    let status = child.wait().map_err(failed())?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::part("ip", status))
    }
}

/// This program in another part, by way of others.
fn command(before: &[&str], words: &[&str]) -> Result<Command, Error> {
    let program = std::env::current_exe();
    let program = program.map_err(Error::system("find", "this program", "report it"))?;
    let mut command = Command::new(before[0]);
    command
        .args(&before[1..])
        .arg(program)
        .arg("workload")
        .args(words);
    Ok(command)
}

fn start(command: &mut Command, input: Stdio, output: Stdio) -> Result<Child, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(input)
        .stdout(output)
        .spawn()
        .map_err(Error::system("run", name, "install util-linux"))
}

fn next(from: &mut impl std::io::BufRead) -> Result<Value, Error> {
    let mut text = String::new();
    let length = from
        .read_line(&mut text)
        .map_err(Error::system("hear", "a host", "report it"))?;
    if length == 0 {
        return Err(Error::part("a host", "it ended; what it said is above"));
    }
    serde_json::from_str(&text).map_err(|error| Error::part("a host", error))
}
