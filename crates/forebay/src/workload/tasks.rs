//! A service that hands compute tasks to the worker beside it: results are checked, times are told.
//!
//! Each client submits one task after the other, by turns of the kernels named, and compares every result
//! with the one that the implementation on the CPU gave at the beginning. What was done is shown in a
//! file, as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_accel::client::{Client, SOCKET_VARIABLE};
use forebay_accel::trial::Trial;
use forebay_accel::wire::Wish;
use serde::{Deserialize, Serialize};

use super::{Error, Lifetime, bind_to_parent, place};

/// How often the file is written, and the time that rates and quantiles are of.
const WINDOW: Duration = Duration::from_secs(1);
/// A worker that is lost comes back in so long a time.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(50);

/// `forebay workload tasks`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// File with a kernel and the size of its sample on each line, as in `kmeans 65536`; waited for
    #[arg(long, value_name = "FILE")]
    kernels: PathBuf,
    /// Clients that submit
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
    /// File that shows what was done
    #[arg(long, value_name = "FILE")]
    status: PathBuf,
    /// Nothing is submitted while this file is there
    #[arg(long, value_name = "FILE")]
    rest: Option<PathBuf>,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// The kernels of a file, once it is there.
fn kernels(file: &Path) -> Result<Vec<(String, u32)>, String> {
    let text = loop {
        match std::fs::read_to_string(file) {
            Ok(text) => break text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::thread::sleep(AGAIN),
            Err(error) => return Err(format!("read {}: {error}", file.display())),
        }
    };
    let lines = text.lines().map(|line| {
        let parts = line.split_once(' ');
        let (kernel, size) = parts.ok_or_else(|| format!("{line}: write KERNEL SIZE"))?;
        let size = size.parse().map_err(|error| format!("{line}: {error}"))?;
        Ok((kernel.to_owned(), size))
    });
    lines.collect()
}

/// What was done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Tasks by the place where they ran, since it began.
    pub(crate) done: BTreeMap<String, u64>,
    /// Results that were not the CPU's.
    pub(crate) wrong: u64,
    /// Tasks without a result.
    pub(crate) failed: u64,
    /// Of the last second: tasks by place, and the time until their results, in milliseconds.
    pub(crate) lately: BTreeMap<String, u64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
}

#[derive(Default)]
struct Book {
    status: Status,
    times: Vec<Duration>,
}

/// Submits until the process is ended.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let socket = std::env::var_os(SOCKET_VARIABLE)
        .map(PathBuf::from)
        .ok_or_else(|| {
            Error::unusable(
                SOCKET_VARIABLE,
                "it is not set",
                "let Forebay start this, as an app with `accelerators`",
            )
        })?;
    let book = Arc::new(Mutex::new(Book::default()));
    for number in 0..args.clients {
        let (args, socket, book) = (args.clone(), socket.clone(), Arc::clone(&book));
        let work = move || {
            if let Err(error) = submit(&args, &socket, usize::from(number), &book) {
                tracing::error!(%error, "a client ends");
            }
        };
        let thread = std::thread::Builder::new().name("client".to_owned());
        let started = thread.spawn(work).map(drop);
        started.map_err(Error::system("start", "a client", "raise pids.max"))?;
    }
    loop {
        std::thread::sleep(WINDOW);
        let mut book = lock(&book);
        let mut times = std::mem::take(&mut book.times);
        times.sort_unstable();
        let quantile = |part: usize| {
            let time = times.get(times.len() * part / 100)?;
            Some(time.as_secs_f64() * 1000.0)
        };
        book.status.p50_ms = quantile(50);
        book.status.p95_ms = quantile(95);
        let text = serde_json::to_vec(&book.status).map_err(Error::system(
            "write what was done as",
            "JSON",
            "this should not happen; report it",
        ))?;
        book.status.lately.clear();
        drop(book);
        place(&args.status, &text)?;
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn submit(args: &Args, socket: &Path, first: usize, book: &Mutex<Book>) -> Result<(), String> {
    let client = connect(socket);
    let mut trials = Vec::new();
    for (name, size) in kernels(&args.kernels)? {
        trials.push(Trial::new(&client, &name, size)?);
    }
    if trials.is_empty() {
        return Err(format!("{} names no kernel", args.kernels.display()));
    }
    let mut turn = first;
    loop {
        if args.rest.as_ref().is_some_and(|rest| rest.exists()) {
            std::thread::sleep(AGAIN);
            continue;
        }
        turn += 1;
        let count = trials.len();
        let trial = &mut trials[turn % count];
        let began = Instant::now();
        let ran = trial.run(&client, Wish::Best);
        let took = began.elapsed();
        let right = ran.is_ok() && trial.check().is_ok();
        let mut book = lock(book);
        let place = match ran {
            Ok(run) => run.place,
            Err(why) => {
                book.status.failed += 1;
                return Err(why.to_string());
            }
        };
        *book.status.done.entry(place.clone()).or_default() += 1;
        *book.status.lately.entry(place).or_default() += 1;
        book.status.wrong += u64::from(!right);
        book.times.push(took);
    }
}

/// The worker begins beside this program, and listens a while later.
fn connect(socket: &Path) -> Client {
    loop {
        if let Ok(client) = Client::lasting(socket, PATIENCE) {
            return client;
        }
        std::thread::sleep(AGAIN);
    }
}
