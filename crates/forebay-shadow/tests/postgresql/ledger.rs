//! A ledger that is written while its primary is killed, again and again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_shadow::postgres::Guarantee;

use crate::postgresql::client::{Client, bind_execute, parse, query, sync};
use crate::postgresql::{Cluster, PLAIN, Wanted, until};

/// What became of one entry of the ledger, as its client heard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Committed,
    Failed,
    Unknown,
}

/// Writes entries in all ways until it is to stop, with the moments at which they were committed.
fn write_ledger(
    port: u16,
    worker: u64,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> (Vec<(u64, Heard)>, Vec<Instant>) {
    let mut client = Client::connect(port, "app");
    client.query("PREPARE entry (bigint) AS INSERT INTO ledger VALUES ($1)");
    let (mut heard, mut moments) = (Vec::new(), vec![Instant::now()]);
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = number * 100 + worker;
        let insert = format!("INSERT INTO ledger VALUES ({id})");
        let batch = |sql: &str| [parse("", sql), bind_execute(""), sync()].concat();
        let steps = match number % 4 {
            0 => vec![query("BEGIN"), query(&insert), query("COMMIT")],
            1 => vec![batch("BEGIN"), batch(&insert), batch("COMMIT")],
            2 => vec![
                query("BEGIN"),
                query(&format!("EXECUTE entry({id})")),
                query("COMMIT"),
            ],
            _ => vec![query(&insert)],
        };
        let mut outcome = Heard::Committed;
        let mut status = b'I';
        for step in steps {
            client.send(&step);
            let answer = client.answer().expect("a client was dropped");
            status = answer.status;
            match answer.error.as_deref() {
                None if answer.tags == ["ROLLBACK"] => panic!("a commit was a rollback"),
                None => continue,
                Some("40001") => outcome = Heard::Failed,
                Some("08007") => outcome = Heard::Unknown,
                Some(_) => panic!("{answer:?}"),
            }
            break;
        }
        if status != b'I' {
            client.query("ROLLBACK");
        }
        heard.push((id, outcome));
        if outcome == Heard::Committed {
            moments.push(Instant::now());
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    (heard, moments)
}

/// `strict`: nothing that was acknowledged is lost, nothing is applied twice, and what is said to
/// have failed has failed, over as many kills as fit (`FOREBAY_KILLS` for more).
#[test]
fn strict_loses_nothing() {
    const WORKERS: u64 = 8;
    const TIME: Duration = Duration::from_secs(60);
    let wanted = Wanted {
        guarantee: Guarantee::Strict,
        rebuild: true,
        ..PLAIN
    };
    let Some(cluster) = Cluster::start("strict_loses_nothing", &wanted) else {
        return;
    };
    let kills_wanted: Option<usize> = std::env::var("FOREBAY_KILLS")
        .ok()
        .map(|text| text.parse().unwrap());
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    let mut kills = Vec::new();
    let workers: Vec<_> = std::thread::scope(|scope| {
        let (stop, done) = (&stop, &done);
        let port = cluster.front;
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| scope.spawn(move || write_ledger(port, worker, stop, done)))
            .collect();
        let mut primary = 0;
        loop {
            let enough =
                kills_wanted.map_or(began.elapsed() >= TIME, |wanted| kills.len() >= wanted);
            if enough {
                break;
            }
            let logged_in = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
            let standby = cluster.ports[1 - primary];
            until("connections to the standby", || {
                let count = cluster.psql_at(standby, "postgres", logged_in);
                (count == WORKERS.to_string()).then_some(())
            });
            kills.push(Instant::now());
            cluster.kill(primary);
            let before = done.load(Ordering::Relaxed);
            until("transactions", || {
                (done.load(Ordering::Relaxed) >= before + 100).then_some(())
            });
            cluster.await_standby(primary);
            cluster.join(primary);
            primary = 1 - primary;
        }
        stop.store(true, Ordering::Relaxed);
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    for transition in cluster.status().transitions {
        println!("{transition}");
    }
    let rows = cluster.psql_at(
        cluster.front,
        "app",
        "SELECT id, count(*) FROM ledger GROUP BY id",
    );
    let ledger: BTreeMap<u64, u64> = rows
        .lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(id, count)| (id.parse().unwrap(), count.parse().unwrap()))
        .collect();
    let mut counted = [0; 3];
    for (id, heard) in workers.iter().flat_map(|(heard, _)| heard) {
        let there = ledger.get(id).copied().unwrap_or(0);
        match heard {
            Heard::Committed => assert_eq!(there, 1, "{id} was acknowledged"),
            Heard::Failed => assert_eq!(there, 0, "{id} was said to have failed"),
            Heard::Unknown => assert!(there <= 1, "{id}"),
        }
        counted[*heard as usize] += 1;
    }
    let mut gaps: Vec<Duration> = kills
        .iter()
        .map(|kill| {
            let of_worker = |moments: &Vec<Instant>| {
                let after = moments.iter().position(|moment| moment > kill)?;
                // The answer of one may have been on its way.
                let pairs = moments.windows(2).skip(after.saturating_sub(1)).take(3);
                pairs.map(|pair| pair[1] - pair[0]).max()
            };
            workers
                .iter()
                .filter_map(|(_, moments)| of_worker(moments))
                .max()
                .unwrap()
        })
        .collect();
    println!("gaps in order: {gaps:?}");
    gaps.sort();
    println!(
        "strict: {} kills, {} committed, {} failed, {} unknown; gaps: p50 {:?}, p99 {:?}, greatest {:?}",
        kills.len(),
        counted[0],
        counted[1],
        counted[2],
        gaps[gaps.len() / 2],
        gaps[(gaps.len() * 99).div_ceil(100) - 1],
        gaps[gaps.len() - 1],
    );
    println!("{:?}", cluster.counts());
    assert!(gaps[gaps.len() - 1] < Duration::from_secs(5));
}
