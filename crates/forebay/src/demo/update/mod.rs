//! `forebay demo update`: a package is installed on this host while its services are under load.
//!
//! Two critical apps serve. `web` is two instances behind a front, and is restarted for the update, one
//! instance after the other; `till` needs no restart, and clients ask it directly. The operation is a real
//! one of dpkg, in the host's own database, with a package of the demo's own. At the end stands what clients
//! saw, beside what was planned, and the receipt.

pub(super) mod package;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::clients::{self, Clients, Span};
use super::print::{line, progress};
use super::{Error, STATE_DIR, interruption, stay, terminate};
use crate::bench::failover::free_port;
use crate::bench::start_daemon;
use crate::output::{numbers, table, words};
use package::Package;

/// Computing time of one request.
const WORK_US: u32 = 300;
/// How long anything but the update may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the update may, in seconds.
const LIMIT_SECONDS: &str = "120";
const LOOK: Duration = Duration::from_millis(20);
const INSTANCES: [&str; 2] = ["shop-a", "shop-b"];

/// Ports of the host, all on loopback.
struct Ports {
    front: u16,
    instances: [u16; 2],
    till: u16,
}

/// What is shown with.
struct Stage {
    program: PathBuf,
    dir: PathBuf,
    daemon: Child,
    interrupted: Arc<AtomicBool>,
}

/// One service, and what its clients saw.
struct Row {
    name: &'static str,
    /// The pause that was planned, in milliseconds: the median and what one in a hundred exceeds.
    planned: (Option<f64>, Option<f64>),
    /// The pause as the front measured it; none for who has no front.
    front: Option<f64>,
    before: Span,
    during: Span,
    restarted: bool,
}

/// Shows it; the figures as JSON.
///
/// # Errors
/// When there is no dpkg, a part fails, or a signal ends it.
pub(super) fn show(dir: &Path, length: Duration, stays: bool) -> Result<Value, Error> {
    let interrupted = interruption()?;
    let program = std::env::current_exe();
    let program = program.map_err(Error::system("find", "this program", "mount /proc"))?;
    let ports = Ports {
        front: free_port()?,
        instances: [free_port()?, free_port()?],
        till: free_port()?,
    };
    progress(format_args!("a package is built and installed\n"));
    let package = Package::install(dir)?;
    let config = dir.join("forebay.toml");
    fs::write(&config, configuration(&program, dir, &ports)).map_err(Error::system(
        "write",
        config.display(),
        "make room",
    ))?;
    let mut stage = Stage {
        program,
        dir: dir.to_owned(),
        daemon: start_daemon(&config)?,
        interrupted,
    };
    let shown = stage.play(&package, &ports, length);
    if stays && shown.is_ok() {
        stay(&[dir.join("socket")], &stage.interrupted);
    }
    let ended = terminate(&mut stage.daemon, "the daemon");
    let removed = package.remove();
    let result = shown?;
    ended.and(removed).map(|()| result)
}

fn configuration(program: &Path, dir: &Path, ports: &Ports) -> String {
    let quoted = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
    let app = |name: &str, port: u16| {
        format!(
            "[apps.{name}]\nclass = \"critical\"\nrestart = \"always\"\nexec = [{}, \"workload\", \"service\", \
             \"--port\", \"{port}\", \"--work-us\", \"{WORK_US}\"]\n",
            quoted(program)
        )
    };
    let [a, b] = ports.instances;
    let address = Ipv4Addr::LOCALHOST;
    [
        format!(
            "[daemon]\nsocket = {}\nstate_dir = {}\ncgroup_root = \"{}{}\"\nlease = \"2s\"\n\
             [policy]\non_stop = \"kill\"\n",
            quoted(&dir.join("socket")),
            quoted(&dir.join(STATE_DIR)),
            "forebay-demo-",
            std::process::id(),
        ),
        app(INSTANCES[0], a),
        app(INSTANCES[1], b),
        app("till", ports.till),
        format!(
            "[fronts.web]\nmode = \"http\"\nlisten = [\"{address}:{}\"]\n\
             instances = {{ {} = \"{address}:{a}\", {} = \"{address}:{b}\" }}\n",
            ports.front, INSTANCES[0], INSTANCES[1],
        ),
    ]
    .concat()
}

impl Stage {
    fn play(&self, package: &Package, ports: &Ports, length: Duration) -> Result<Value, Error> {
        line(format_args!(
            "Two critical services, each with {} clients that ask without a pause. `web` is two instances behind a\n\
             front, and is restarted for the update; `till` needs no restart. dpkg upgrades {} meanwhile.\n",
            clients::COUNT,
            package.name
        ));
        self.warm()?;
        // What is planned is what was measured before.
        self.must(&["shadow", "handover", "web", "--json"])?;
        self.warm()?;
        let till = self.pid("till")?;
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let asking = [local(ports.front), local(ports.till)].map(Clients::start);
        let [web_clients, till_clients] = asking;
        let (web_clients, till_clients) = (web_clients?, till_clients?);
        let calm = Instant::now();
        progress(format_args!("clients ask\n"));
        self.pause(length / 2)?;
        let order = order(package);
        let plan = self.must(&with(&["update", "plan", "--json"], &order))?;
        progress(format_args!("the update begins\n"));
        let began = Instant::now();
        let receipt = self.update(&order)?;
        let ended = Instant::now();
        if receipt["outcome"] != "committed" {
            return Err(Error::part("the update", &receipt["troubles"]));
        }
        let version = package.installed()?;
        if version.as_deref() != Some("2") {
            return Err(Error::part("the package", format!("{version:?} is there")));
        }
        let planned = |app: &str| {
            let apps = plan["apps"].as_array().into_iter().flatten();
            let of = apps.filter(|one| one["app"] == app);
            let ms = |key: &str| of.clone().find_map(|one| one[key].as_f64());
            (ms("pause_p50_ms"), ms("pause_p99_ms"))
        };
        let rows = [
            Row {
                name: "web",
                planned: planned(INSTANCES[0]),
                front: receipt["fronts"][0]["pause_ms"].as_f64(),
                before: web_clients.between(calm, began)?,
                during: web_clients.between(began, ended)?,
                restarted: restarted(&receipt, INSTANCES[0]),
            },
            Row {
                name: "till",
                planned: planned("till"),
                front: None,
                before: till_clients.between(calm, began)?,
                during: till_clients.between(began, ended)?,
                restarted: restarted(&receipt, "till") || self.pid("till")? != till,
            },
        ];
        web_clients.stop()?;
        till_clients.stop()?;
        line(format_args!("{}", shown(&rows)));
        line(format_args!(
            "The receipt:\n{}",
            self.said(&["update", "history"])?
        ));
        Ok(json!({
            "took_seconds": (ended - began).as_secs_f64(),
            "services": rows.iter().map(Row::json).collect::<Vec<_>>(),
            "plan": plan,
            "receipt": receipt,
        }))
    }

    /// Waits until one instance serves and the other could.
    fn warm(&self) -> Result<(), Error> {
        self.until("a front with a shadow in step", || {
            let front = self.ask(&["shadow", "status", "web", "--json"])?;
            Ok(front.filter(|front| front["stage"] == "warm" && front["standby"].is_string()))
        })?;
        self.until("all services", || {
            let apps = ["shop-a", "shop-b", "till"];
            let runs = apps.map(|app| self.pid(app).is_ok());
            Ok(runs.iter().all(|runs| *runs).then_some(()))
        })
    }

    fn pid(&self, app: &str) -> Result<u64, Error> {
        let said = self.ask(&["explain", app, "--json"])?;
        let pid = said.and_then(|said| said["app"]["main_pid"].as_u64());
        pid.ok_or_else(|| Error::part(app, "it does not run"))
    }

    /// Runs the update; its receipt. An interruption calls it off or asks its command to end.
    fn update(&self, order: &[String]) -> Result<Value, Error> {
        let begun = self.must(&with(&["update", "run", "--json", "--detach"], order))?;
        let mut told = String::new();
        self.until("the end of the update", || {
            let said = self.must(&["update", "status", "--json"].map(str::to_owned))?;
            if let Some(stage) = said["current"]["stage"].as_str()
                && told != stage
            {
                progress(format_args!("update: {stage}"));
                stage.clone_into(&mut told);
            }
            let history = said["history"].as_array().into_iter().flatten();
            let mut own = history.filter(|one| one["number"] == begun["number"]);
            Ok(own.next().cloned())
        })
    }

    /// Looks again and again until it is there.
    fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        // The update has a limit of its own.
        let until = Instant::now() + PATIENCE * 4;
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() >= until {
                return Err(Error::part(what, "it did not come in time"));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn pause(&self, length: Duration) -> Result<(), Error> {
        let until = Instant::now() + length;
        self.until("the time", || Ok((Instant::now() >= until).then_some(())))
    }

    fn command(
        &self,
        words: &[impl AsRef<std::ffi::OsStr>],
    ) -> Result<std::process::Output, Error> {
        let Some((name, rest)) = words.split_first() else {
            return Err(Error::part("a command", "it is empty"));
        };
        Command::new(&self.program)
            .arg(name)
            .arg("--socket")
            .arg(self.dir.join("socket"))
            .args(rest)
            .stdin(Stdio::null())
            .output()
            .map_err(Error::system("run", self.program.display(), "report it"))
    }

    /// What the daemon says; none where it does not, or refuses.
    fn ask(&self, words: &[&str]) -> Result<Option<Value>, Error> {
        let output = self.command(words)?;
        let said = output.status.success();
        Ok(said
            .then(|| serde_json::from_slice(&output.stdout).ok())
            .flatten())
    }

    /// The same, of what has to succeed.
    fn must(&self, words: &[impl AsRef<std::ffi::OsStr>]) -> Result<Value, Error> {
        let output = self.command(words)?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::part("the daemon", why));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| Error::part("the daemon", error))
    }

    fn said(&self, words: &[&str]) -> Result<String, Error> {
        let output = self.command(words)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// As an operator gives it, but that a host that is full may go on: what was measured is shown.
fn order(package: &Package) -> Vec<String> {
    let mut words: Vec<String> = ["--unproved", "--limit", LIMIT_SECONDS]
        .map(str::to_owned)
        .into();
    for app in INSTANCES {
        words.extend(["--restart".to_owned(), app.to_owned()]);
    }
    words.extend(["--rollback".to_owned(), package.command(1).join(" ")]);
    words.push("--".to_owned());
    words.extend(package.command(2));
    words
}

fn with(words: &[&str], order: &[String]) -> Vec<String> {
    let words = words.iter().map(|word| (*word).to_owned());
    words.chain(order.iter().cloned()).collect()
}

fn restarted(receipt: &Value, app: &str) -> bool {
    let apps = receipt["apps"].as_array().into_iter().flatten();
    apps.filter(|one| one["app"] == app)
        .any(|one| one["restarted"] == true)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Row {
    fn json(&self) -> Value {
        let span = |span: &Span| {
            json!({
                "requests": span.requests,
                "failed": span.failed,
                "p50_ms": ms(span.p50),
                "p99_ms": ms(span.p99),
                "longest_ms": ms(span.longest),
            })
        };
        json!({
            "service": self.name,
            "planned_pause_p50_ms": self.planned.0,
            "planned_pause_p99_ms": self.planned.1,
            "front_pause_ms": self.front,
            "before": span(&self.before),
            "during": span(&self.during),
            "restarted": self.restarted,
        })
    }

    fn cells(&self) -> [String; 9] {
        let some = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        [
            self.name.to_owned(),
            if self.restarted { "yes" } else { "no" }.to_owned(),
            some(self.planned.1),
            some(self.front),
            format!("{:.1}", ms(self.during.longest)),
            format!("{:.1}", ms(self.before.p99)),
            format!("{:.1}", ms(self.during.p99)),
            self.during.requests.to_string(),
            self.during.failed.to_string(),
        ]
    }
}

fn shown(rows: &[Row]) -> String {
    let rows: Vec<_> = rows.iter().map(Row::cells).collect();
    let columns = [
        words("SERVICE"),
        words("RESTARTED"),
        numbers("PLANNED MS"),
        numbers("FRONT MS"),
        numbers("LONGEST MS"),
        numbers("P99 BEFORE"),
        numbers("DURING"),
        numbers("REQUESTS"),
        numbers("FAILED"),
    ];
    format!(
        "{}\nplanned: the pause that one in a hundred exceeds, from hand-overs before. front: the longest hand-over,\n\
         as the front measured it. longest: the longest that any client waited for an answer during the update.\n",
        table(columns, &rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_was_planned_and_what_clients_saw() {
        let span = |longest| Span {
            requests: 100,
            failed: 0,
            p50: Duration::from_millis(1),
            p99: Duration::from_millis(4),
            longest: Duration::from_millis(longest),
        };
        let row = Row {
            name: "web",
            planned: (Some(1.5), Some(2.5)),
            front: Some(3.0),
            before: span(9),
            during: span(17),
            restarted: true,
        };
        let text = shown(std::slice::from_ref(&row));
        for word in ["web", "yes", "2.5", "3.0", "17.0"] {
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(row.json()["during"]["longest_ms"], 17.0);
    }
}
