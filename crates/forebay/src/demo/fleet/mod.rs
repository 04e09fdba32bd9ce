//! `forebay demo fleet`: a service that moves between hosts by itself, under its clients.
//!
//! Three hosts are three networks of one machine, each with a daemon, a directory and control groups of its
//! own, on one bridge; etcd is a real one beside them. The service stands behind a front on the first
//! host, with an instance on two of them; the third is cordoned. A critical hog begins on the host whose instance serves: that
//! one is constrained, its ladder finds nothing on its host that helps, and it leaves. Nobody says
//! `forebay move`. Then the same again where it came to.
//!
//! All of it is within a network of the inner process's own, so that bridge and cables go with the last
//! process; see [`sweep`](super::sweep) for the rest. What the hosts share is the machine's processors: a host
//! that is hogged slows the others as well, and the figures are upper bounds.

mod hosts;

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::clients::{self, Clients, Span};
use super::print::{line, progress};
use super::{Error, interruption, stay};
use hosts::{Hosts, NAMES};

/// How often it moves.
const MOVES: u32 = 2;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// Around the change of who serves, to see what clients met.
const AROUND: Duration = Duration::from_secs(1);

/// One move, and what clients met.
struct Row {
    from: String,
    to: String,
    why: String,
    /// From the start of the hog until another host served.
    after: Duration,
    calm: Span,
    hogged: Span,
    /// Around the change.
    around: Span,
    /// Hosts that say that they own it, when it is over.
    owners: usize,
}

/// Runs this program again in a network of its own, in place of this process.
///
/// # Errors
/// It does not start; else this does not return.
pub(super) fn apart() -> Result<(), Error> {
    let program = std::env::current_exe();
    let program = program.map_err(Error::system("find", "this program", "mount /proc"))?;
    let error = Command::new("unshare")
        .args(["--net", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .arg("--apart")
        .exec();
    Err(Error::system("run", "unshare", "install util-linux")(error))
}

/// Shows it; the figures as JSON.
///
/// # Errors
/// When a part fails, or a signal ends it.
pub(super) fn show(dir: &Path, length: Duration, stays: bool) -> Result<Value, Error> {
    if cfg!(not(feature = "etcd")) {
        return Err(Error::part(
            "the fleet",
            "this program was built without etcd; build it with `--features etcd`",
        ));
    }
    let interrupted = interruption()?;
    let stage = Stage {
        interrupted: &interrupted,
    };
    line(format_args!(
        "Three hosts in networks of their own, etcd, and a service behind one front with instances on two of them.\n\
         {} clients ask without a pause. On the host that serves a critical hog begins; nobody asks for a move.\n",
        clients::COUNT
    ));
    let mut hosts = Hosts::start(dir, &stage)?;
    let mut owner = stage.first_owner(&hosts)?;
    let clients = Clients::start(hosts.front())?;
    let calm = length / (MOVES * 4);
    let mut rows = Vec::new();
    for _ in 0..MOVES {
        let row = stage.one_move(&mut hosts, &clients, &owner, calm)?;
        line(format_args!("{} -> {}: {}", row.from, row.to, row.why));
        owner.clone_from(&row.to);
        rows.push(row);
    }
    stage.pause(calm)?;
    let all = clients.stop()?;
    line(format_args!("\n{}", table(&rows, &all)));
    let result = result(&rows, &all);
    if stays {
        stay(&hosts.sockets(), &interrupted);
    }
    hosts.end()?;
    Ok(result)
}

/// What is waited with.
struct Stage<'a> {
    interrupted: &'a AtomicBool,
}

impl Stage<'_> {
    /// Looks again and again until it is there.
    fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() >= until {
                let seconds = PATIENCE.as_secs();
                return Err(Error::part(what, format!("not within {seconds} s")));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn pause(&self, length: Duration) -> Result<(), Error> {
        let until = Instant::now() + length;
        while Instant::now() < until {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn first_owner(&self, hosts: &Hosts) -> Result<String, Error> {
        progress(format_args!("the hosts find each other\n"));
        self.settled(hosts, |_| true)
    }

    /// Waits until one host serves, owns the service, and another instance is in step; which.
    fn settled(&self, hosts: &Hosts, is_it: impl Fn(&str) -> bool) -> Result<String, Error> {
        self.until("a host that serves, and one that could", || {
            let front = hosts.ask("a", &["shadow", "status", "web", "--json"])?;
            let Some(front) = front.filter(|front| front["standby"].is_string()) else {
                return Ok(None);
            };
            let owners = hosts.owners()?;
            let [owner] = &owners[..] else {
                return Ok(None);
            };
            let serves = front["primary"] == hosts::instance(owner).as_str();
            let warm = front["stage"] == "warm";
            Ok((serves && warm && is_it(owner)).then(|| owner.clone()))
        })
    }

    fn one_move(
        &self,
        hosts: &mut Hosts,
        clients: &Clients,
        from: &str,
        calm: Duration,
    ) -> Result<Row, Error> {
        progress(format_args!("{from} serves, and is well\n"));
        let began = Instant::now();
        self.pause(calm)?;
        progress(format_args!("a hog begins on {from}\n"));
        let hogged = Instant::now();
        hosts.hog(from, self)?;
        self.until("a move by itself", || {
            Ok(hosts.serves()?.filter(|now| now != from))
        })?;
        let moved = Instant::now();
        self.pause(AROUND)?;
        hosts.end_hog(from, self)?;
        let to = self.settled(hosts, |owner| owner != from)?;
        let owners = hosts.owners()?.len();
        Ok(Row {
            why: hosts.why(from)?,
            from: from.to_owned(),
            to,
            after: moved - hogged,
            calm: clients.between(began, hogged)?,
            hogged: clients.between(hogged, moved)?,
            around: clients.between(moved.checked_sub(AROUND).unwrap_or(hogged), moved + AROUND)?,
            owners,
        })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn table(rows: &[Row], all: &Span) -> String {
    let mut text = format!(
        "{:<8}{:>9}{:>14}{:>14}{:>14}{:>14}{:>10}{:>8}{:>8}\n",
        "move",
        "after s",
        "calm p99 ms",
        "hogged p99",
        "moving p99",
        "longest wait",
        "requests",
        "failed",
        "owners"
    );
    for row in rows {
        // A String takes all that is written.
        writeln!(
            text,
            "{:<8}{:>9.1}{:>14.1}{:>14.1}{:>14.1}{:>14.1}{:>10}{:>8}{:>8}",
            format!("{} -> {}", row.from, row.to),
            row.after.as_secs_f64(),
            ms(row.calm.p99),
            ms(row.hogged.p99),
            ms(row.around.p99),
            ms(row.around.longest),
            row.around.requests,
            row.around.failed,
            row.owners
        )
        .ok();
    }
    text + &format!(
        "in all: {} requests, {} failed.\n\
         after: from the start of the hog until another host served. moving: within {} s of that; longest wait: the\n\
         longest that any client waited for an answer then, the pause that it saw included.\n",
        all.requests,
        all.failed,
        AROUND.as_secs()
    )
}

fn result(rows: &[Row], all: &Span) -> Value {
    let span = |span: &Span| {
        json!({
            "requests": span.requests,
            "failed": span.failed,
            "p50_ms": ms(span.p50),
            "p99_ms": ms(span.p99),
            "longest_ms": ms(span.longest),
        })
    };
    let rows = rows.iter().map(|row| {
        json!({
            "from": row.from,
            "to": row.to,
            "why": row.why,
            "after_seconds": row.after.as_secs_f64(),
            "calm": span(&row.calm),
            "hogged": span(&row.hogged),
            "moving": span(&row.around),
            "owners": row.owners,
        })
    });
    json!({
        "hosts": NAMES,
        "moves": rows.collect::<Vec<_>>(),
        "all": span(all),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_move_and_the_result_its_figures() {
        let span = Span {
            requests: 100,
            failed: 1,
            p50: Duration::from_millis(2),
            p99: Duration::from_millis(7),
            longest: Duration::from_millis(31),
        };
        let row = Row {
            from: "a".to_owned(),
            to: "b".to_owned(),
            why: "it waits".to_owned(),
            after: Duration::from_secs(4),
            calm: span,
            hogged: span,
            around: span,
            owners: 1,
        };
        let text = table(&[row], &span);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("a -> b") && text.contains("31.0"), "{text}");
        assert!(text.contains("in all: 100 requests, 1 failed"), "{text}");
        let result = result(&[], &span);
        assert_eq!(result["all"]["longest_ms"], 31.0);
    }
}
