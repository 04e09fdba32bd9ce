//! `forebay accel`: devices, kernels and workers of this host; and `forebay accel-worker`, the
//! broker of one app, with the processes of its devices.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_accel::backends::Found;
use forebay_accel::broker::{self, Options};
use forebay_accel::client::{self, Client, Memory};
use forebay_accel::device::{Backend, DeviceInfo};
use forebay_accel::dispatch::Regret;
use forebay_accel::process::{self, OwnProgram};
use forebay_accel::task::Scalar;
use forebay_accel::wire::{DeviceStatus, KernelStatus, Stats, There, Wish};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::output::{Format, Output, numbers, table, words};

/// Drivers are loaded in so long a time, or are taken to hang.
const FIND_BOUND: Duration = Duration::from_secs(60);
/// How often it is looked whether a device has built a kernel.
const BUILD_LOOK: Duration = Duration::from_millis(5);
/// Tasks of one element that are measured.
const SMALL_TASKS: usize = 10_000;
/// Elements of vectors that are added.
const SIZES: [u32; 4] = [1 << 10, 1 << 14, 1 << 18, 1 << 22];
/// Runs of each size and place.
const RUNS: usize = 11;

/// Show accelerators and workers, or measure them
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: AccelCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum AccelCommand {
    /// List the devices of this host, or those of a worker and how they do
    Devices(Whom),
    /// List the kernels that every app has
    Kernels(Whom),
    /// Show what a worker counted
    Stats(Worker),
    /// Measure what it costs to hand a task over, and how long it takes on each device
    Bench(Whom),
}

#[derive(Debug, Clone, clap::Args)]
struct Whom {
    /// Socket of a worker [default: this host without one]
    #[arg(long, value_name = "SOCKET")]
    worker: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct Worker {
    /// Socket of a worker
    #[arg(long, value_name = "SOCKET")]
    worker: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Take tasks of one app; runs as the app's user, in its slice
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WorkerArgs {
    /// Where to listen
    #[arg(value_name = "SOCKET")]
    socket: PathBuf,
    /// Use only this device; may be given several times
    #[arg(long, value_name = "ID")]
    allow: Vec<String>,
    /// Do not use this device; may be given several times
    #[arg(long, value_name = "ID")]
    deny: Vec<String>,
    /// Threads that compute [default: as many as CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Compute one result of a device in N on the CPU too
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..))]
    verify_one_in: u64,
    /// The longest run on a device; after it the device is taken to hang
    #[arg(long, value_name = "N", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    run_max_seconds: u64,
    /// How long a kernel is left alone on a device after a fault; each further one doubles it
    #[arg(long, value_name = "N", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    quarantine_seconds: u64,
    /// Part of the time of each device that tasks may take, in percent
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    device_time_percent: u8,
    /// The most that the buffers of one task may take of a device's memory [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    device_bytes_max: Option<u64>,
}

/// Drive one device for a worker
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DeviceArgs {
    /// The device, or `--list`
    #[arg(value_name = "ID", allow_hyphen_values = true)]
    device: String,
}

/// Why nothing is shown, or a worker does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("{0}")]
    Find(String),
    #[error("listen on {path}: {source}; name a socket in a directory that this user may write to", path = .path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("be the process of a device: {0}; let a worker start it")]
    Device(io::Error),
    #[error("print: {0}")]
    Print(#[from] io::Error),
    #[error("{0}")]
    Worker(String),
}

/// Shows or measures.
///
/// # Errors
/// When a worker cannot be asked, or devices cannot be looked for.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    match &args.command {
        AccelCommand::Devices(whom) => devices(whom)?,
        AccelCommand::Kernels(whom) => {
            let kernels = match &whom.worker {
                Some(worker) => Client::connect(worker)?.kernels()?,
                None => broker::built_in(),
            };
            output(whom.json).show(&kernels, |all| show_kernels(all))?;
        }
        AccelCommand::Stats(Worker { worker, json }) => {
            let stats = Client::connect(worker)?.stats()?;
            output(*json).show(&stats, show_stats)?;
        }
        AccelCommand::Bench(whom) => bench(whom)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn output(json: bool) -> Output {
    Output::stdout(if json { Format::Json } else { Format::People })
}

fn find() -> Result<Found, Error> {
    process::find(FIND_BOUND).map_err(Error::Find)
}

fn devices(whom: &Whom) -> Result<(), Error> {
    let mut output = output(whom.json);
    if let Some(worker) = &whom.worker {
        let devices = Client::connect(worker)?.devices()?;
        return Ok(output.show(&devices, |all| show_states(all))?);
    }
    Ok(output.show(&find()?, show_found)?)
}

fn show_found(found: &Found) -> String {
    let mut text = if found.devices.is_empty() {
        "no device was found; tasks run on the CPU\n".to_owned()
    } else {
        let rows: Vec<[String; 6]> = found.devices.iter().map(device_row).collect();
        let heads = [
            words("DEVICE"),
            words("KIND"),
            numbers("MEMORY"),
            words("NAME"),
            words("PLATFORM"),
            words("DRIVER"),
        ];
        table(heads, &rows)
    };
    for (backend, why) in &found.absent {
        text.push_str(&format!("{backend}: {why}\n"));
    }
    text
}

fn device_row(info: &DeviceInfo) -> [String; 6] {
    [
        info.id.clone(),
        format!("{:?}", info.kind).to_lowercase(),
        forebay_core::units::Bytes(info.memory_bytes).to_string(),
        info.name.clone(),
        info.platform.clone(),
        info.driver.clone(),
    ]
}

fn show_states(all: &[DeviceStatus]) -> String {
    if all.is_empty() {
        return "the worker has no device; tasks run on the CPU".to_owned();
    }
    let rows: Vec<[String; 9]> = all
        .iter()
        .map(|device| {
            [
                device.info.id.clone(),
                device.ready().to_string(),
                device.tasks.to_string(),
                format!("{:.0}%", device.utilisation * 100.0),
                format!("{:.0}%", device.part * 100.0),
                forebay_core::units::Bytes(device.kept_bytes).to_string(),
                device.verified.to_string(),
                device.faults.to_string(),
                device
                    .quarantine
                    .as_ref()
                    .map_or_else(|| "usable".to_owned(), |why| format!("quarantined: {why}")),
            ]
        })
        .collect();
    let heads = [
        words("DEVICE"),
        numbers("KERNELS"),
        numbers("TASKS"),
        numbers("BUSY"),
        numbers("PART"),
        numbers("KEPT"),
        numbers("VERIFIED"),
        numbers("FAULTS"),
        words("STATE"),
    ];
    let mut text = table(heads, &rows);
    for device in all {
        for kernel in &device.kernels {
            let why = match &kernel.state {
                There::Builds | There::Ready => continue,
                There::Never(why) => format!("cannot be built: {why}"),
                There::Quarantined(why) => format!("quarantined: {why}"),
            };
            text.push_str(&format!("{} on {}: {why}\n", kernel.name, device.info.id));
        }
    }
    text
}

fn show_kernels(all: &[KernelStatus]) -> String {
    let rows: Vec<[String; 4]> = all
        .iter()
        .map(|kernel| {
            let buffers = kernel.signature.buffers.iter();
            let buffers = buffers.map(|one| {
                let access = format!("{:?}", one.access).to_lowercase();
                format!("{}: {:?} {access}", one.name, one.element)
            });
            let scalars = kernel.signature.scalars.iter();
            let scalars = scalars.map(|one| format!("{}: {:?}", one.name, one.kind));
            let backends = kernel.backends.iter().map(Backend::to_string);
            let join = |parts: Vec<String>| parts.join(", ");
            [
                kernel.name.clone(),
                join(std::iter::once("cpu".to_owned()).chain(backends).collect()),
                join(buffers.collect()),
                join(scalars.collect()),
            ]
        })
        .collect();
    let heads = [
        words("KERNEL"),
        words("RUNS ON"),
        words("BUFFERS"),
        words("NUMBERS"),
    ];
    table(heads, &rows)
}

fn show_stats(stats: &Stats) -> String {
    let count = |number: u64| number.to_string();
    let bytes = forebay_core::units::Bytes(stats.region_bytes);
    let rows = [
        ("clients", count(stats.clients)),
        ("memory", format!("{bytes} in {}", stats.regions)),
        ("queued", count(stats.queued)),
        ("on the CPU", count(stats.on_cpu)),
        ("on devices", count(stats.on_devices)),
        ("tries", count(stats.explored)),
        ("done again", count(stats.rerun)),
        ("failed", count(stats.failed)),
        ("refused", count(stats.refused)),
        ("busy", count(stats.busy)),
        ("cancelled", count(stats.cancelled)),
        ("late", count(stats.late)),
        ("CPU price", format!("{:.1}", stats.cpu_price)),
        ("regret", regret(&stats.regret)),
    ];
    let lines = rows.map(|(name, value)| format!("{name:<12} {value}\n"));
    lines.concat()
}

/// What the choices of places lost to the best ones.
fn regret(regret: &Regret) -> String {
    let Regret {
        calls,
        spent_us,
        best_us,
        part,
    } = regret;
    let ms = |us: f64| us / 1000.0;
    part.map_or_else(
        || "no task had a choice yet".to_owned(),
        |part| {
            format!(
                "{:.1} % in {calls} choices: {:.1} ms, and {:.1} ms at the best places",
                part * 100.0,
                ms(*spent_us),
                ms(*best_us)
            )
        },
    )
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    small: Small,
    places: Vec<PlaceTime>,
}

/// Tasks of one element, on the CPU.
#[derive(Debug, Serialize)]
struct Small {
    tasks: usize,
    /// From when a task was read until it began.
    read_to_start_us_p50: f64,
    read_to_start_us_p99: f64,
    /// From before it is sent until the answer is there.
    submit_to_answer_us_p50: f64,
    submit_to_answer_us_p99: f64,
}

#[derive(Debug, Serialize)]
struct PlaceTime {
    place: String,
    kernel: &'static str,
    elements: u32,
    runs: usize,
    took_us_p50: f64,
}

fn bench(whom: &Whom) -> Result<(), Error> {
    let mut output = output(whom.json);
    if let Some(worker) = &whom.worker {
        return Ok(output.show(&measure(&Client::connect(worker)?)?, show_measured)?);
    }
    let directory = std::env::temp_dir().join(format!("forebay-accel-{}", std::process::id()));
    let failed = |what: &str, error: io::Error| {
        Error::Worker(format!("{what} {}: {error}", directory.display()))
    };
    std::fs::create_dir(&directory).map_err(|error| failed("make", error))?;
    let socket = directory.join("worker.sock");
    let started = broker::start(
        Options::new(socket.clone()),
        find()?.devices,
        Arc::new(OwnProgram),
    );
    let measured = started
        .map_err(|source| Error::Listen {
            path: socket.clone(),
            source,
        })
        .and_then(|broker| {
            let measured = Client::connect(&socket)
                .map_err(Error::from)
                .and_then(|client| measure(&client));
            broker.stop();
            measured
        });
    std::fs::remove_dir_all(&directory).map_err(|error| failed("remove", error))?;
    Ok(output.show(&measured?, show_measured)?)
}

fn measure(client: &Client) -> Result<Measured, Error> {
    let devices = client.devices()?;
    let mut places = vec![Wish::Cpu];
    places.extend(devices.into_iter().map(|one| Wish::Device(one.info.id)));
    let small = measure_small(client)?;
    let mut times = Vec::new();
    for place in places {
        for elements in SIZES {
            times.extend(measure_place(client, &place, elements)?);
        }
    }
    Ok(Measured {
        small,
        places: times,
    })
}

fn vectors(client: &Client, elements: u32) -> Result<[Memory; 3], Error> {
    let bytes = elements as usize * 4;
    Ok([
        client.memory(bytes)?,
        client.memory(bytes)?,
        client.memory(bytes)?,
    ])
}

fn measure_small(client: &Client) -> Result<Small, Error> {
    let [a, b, mut sum] = vectors(client, 1)?;
    let (mut waited, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..SMALL_TASKS {
        let began = Instant::now();
        let task = client.task("add").input(&a).input(&b).output(&mut sum);
        let run = task.scalar(Scalar::U32(1)).submit()?.wait()?;
        waited.push(run.waited_us);
        whole.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Small {
        tasks: SMALL_TASKS,
        read_to_start_us_p50: percentile(&mut waited, 50),
        read_to_start_us_p99: percentile(&mut waited, 99),
        submit_to_answer_us_p50: percentile(&mut whole, 50),
        submit_to_answer_us_p99: percentile(&mut whole, 99),
    })
}

/// How long a place takes; nothing of a device that did not run the tasks.
fn measure_place(client: &Client, place: &Wish, elements: u32) -> Result<Option<PlaceTime>, Error> {
    let name = match place {
        Wish::Device(id) => id.as_str(),
        Wish::Cpu | Wish::Best => "cpu",
    };
    let [a, b, mut sum] = vectors(client, elements)?;
    let mut run_once = || -> Result<_, client::Error> {
        let task = client.task("add").input(&a).input(&b).output(&mut sum);
        let task = task.scalar(Scalar::U32(elements)).place(place.clone());
        task.submit()?.wait()
    };
    // The first one has a device build the kernel, and runs on the CPU meanwhile.
    run_once()?;
    if matches!(place, Wish::Device(_)) && !await_kernel(client, name)? {
        return Ok(None);
    }
    let mut took = Vec::new();
    // One that is slow or used by others is asked again, but not for ever.
    for _ in 0..RUNS * 2 {
        let run = run_once()?;
        if run.place == name {
            took.push(run.took_us);
        }
        if took.len() == RUNS {
            break;
        }
    }
    Ok((took.len() == RUNS).then(|| PlaceTime {
        place: name.to_owned(),
        kernel: "add",
        elements,
        runs: RUNS,
        took_us_p50: percentile(&mut took, 50),
    }))
}

/// Waits until a device has built the kernel that is measured; whether it has.
fn await_kernel(client: &Client, device: &str) -> Result<bool, Error> {
    let end = Instant::now() + FIND_BOUND;
    loop {
        let devices = client.devices()?;
        let device = devices.iter().find(|one| one.info.id == device);
        let there = device.filter(|one| one.quarantine.is_none());
        let kernel = there.and_then(|one| one.kernels.iter().find(|kernel| kernel.name == "add"));
        match kernel.map(|kernel| &kernel.state) {
            Some(There::Ready) => return Ok(true),
            Some(There::Builds) if Instant::now() < end => std::thread::sleep(BUILD_LOOK),
            Some(There::Builds | There::Never(_) | There::Quarantined(_)) | None => {
                return Ok(false);
            }
        }
    }
}

fn percentile(values: &mut [f64], part: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = values.len() * part / 100;
    values.get(index).copied().unwrap_or(f64::NAN)
}

fn show_measured(measured: &Measured) -> String {
    let small = &measured.small;
    let rows: Vec<[String; 4]> = measured
        .places
        .iter()
        .map(|time| {
            [
                time.place.clone(),
                time.kernel.to_owned(),
                time.elements.to_string(),
                format!("{:.1}", time.took_us_p50),
            ]
        })
        .collect();
    let heads = [
        words("PLACE"),
        words("KERNEL"),
        numbers("ELEMENTS"),
        numbers("P50 (us)"),
    ];
    format!(
        "{} tasks of one element: read to start p50 {:.1} us, p99 {:.1} us; submit to answer p50 \
         {:.1} us, p99 {:.1} us\n\n{}",
        small.tasks,
        small.read_to_start_us_p50,
        small.read_to_start_us_p99,
        small.submit_to_answer_us_p50,
        small.submit_to_answer_us_p99,
        table(heads, &rows)
    )
}

/// Is the worker of an app.
///
/// # Errors
/// When it cannot listen.
pub(crate) fn work(args: &WorkerArgs) -> Result<ExitCode, Error> {
    crate::log::begin("warn");
    // What a client may share, only this user and root may reach.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| Error::Worker(format!("give up new privileges: {error}")))?;
    raise_open_files();
    let devices = match process::find(FIND_BOUND) {
        Ok(found) => {
            for (backend, why) in &found.absent {
                tracing::info!(%backend, why, "no devices");
            }
            found.devices
        }
        Err(why) => {
            tracing::warn!(why, "the worker begins without devices");
            Vec::new()
        }
    };
    for id in &args.allow {
        if !devices.iter().any(|device| device.id == *id) {
            tracing::warn!(id, "a device that is allowed is not there");
        }
    }
    let wanted = |device: &DeviceInfo| {
        (args.allow.is_empty() || args.allow.contains(&device.id))
            && !args.deny.contains(&device.id)
    };
    let devices: Vec<DeviceInfo> = devices.into_iter().filter(wanted).collect();
    let mut options = Options::new(args.socket.clone());
    options.verify_one_in = args.verify_one_in;
    options.run_max = Duration::from_secs(args.run_max_seconds);
    options.quarantine = Duration::from_secs(args.quarantine_seconds);
    options.device_part = f64::from(args.device_time_percent) / 100.0;
    options.device_bytes_max = args.device_bytes_max.unwrap_or(u64::MAX);
    if let Some(threads) = args.threads {
        options.cpu_threads = threads.into();
    }
    let started = broker::start(options, devices, Arc::new(OwnProgram));
    let broker = started.map_err(|source| Error::Listen {
        path: args.socket.clone(),
        source,
    })?;
    end_when_asked(&args.socket)
        .map_err(|error| Error::Worker(format!("wait for signals: {error}")))?;
    broker.serve();
    Err(Error::Worker(
        "clients are not heard any more; start the worker again".to_owned(),
    ))
}

/// Each piece of memory that a client shares takes a descriptor: as many as this process may have at all.
fn raise_open_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files stays: fewer clients can share memory");
    }
}

/// Takes the socket away when this process is asked to end, if it is still the same. The processes of
/// devices end with it.
fn end_when_asked(socket: &Path) -> io::Result<()> {
    let identity = |socket: &Path| {
        let metadata = std::fs::symlink_metadata(socket)?;
        io::Result::Ok((metadata.dev(), metadata.ino()))
    };
    let own = identity(socket)?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let socket = socket.to_owned();
    let wait = move || {
        let asked = signals.forever().next();
        if identity(&socket).is_ok_and(|now| now == own)
            && let Err(error) = std::fs::remove_file(&socket)
        {
            tracing::warn!(socket = %socket.display(), %error, "socket left behind");
        }
        tracing::info!(?asked, "the worker ends");
        std::process::exit(0);
    };
    let thread = std::thread::Builder::new().name("ends".to_owned());
    thread.spawn(wait).map(|_| ())
}

/// Is the process of a device.
///
/// # Errors
/// When its worker cannot be heard.
pub(crate) fn drive(args: &DeviceArgs) -> Result<ExitCode, Error> {
    crate::log::begin("warn");
    process::run(&args.device).map_err(Error::Device)?;
    Ok(ExitCode::SUCCESS)
}
