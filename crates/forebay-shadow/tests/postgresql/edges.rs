//! What sessions and commits must not lose in cases that are rare.

use std::process::{Child, Stdio};

use forebay_shadow::control::{Answer, Request};
use forebay_shadow::postgres::Guarantee;
use forebay_shadow::synchronise::Standing;

use crate::postgresql::client::{Client, query};
use crate::postgresql::{Cluster, PLAIN, Wanted, until};

/// Somebody else who receives the log of the first primary, until this is dropped.
struct Receiver {
    child: Child,
    _into: tempfile::TempDir,
}

impl Receiver {
    /// One who goes by a name.
    fn start(cluster: &Cluster, name: &str) -> Self {
        let into = tempfile::TempDir::new().unwrap();
        let mut receive = cluster.command("pg_receivewal", cluster.ports[0], "postgres");
        receive.args(["--synchronous", "-D"]).arg(into.path());
        let receive = receive.env("PGAPPNAME", name).stderr(Stdio::null());
        Self {
            child: receive.spawn().unwrap(),
            _into: into,
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // One that has ended is waited for as well.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What the front asks for itself is a part of what a hand-over waits for: a request that is sent right
/// behind it would reach the old primary after the shadow has been given all that there was.
#[test]
fn a_hand_over_waits_for_the_fronts_own_questions() {
    let Some(cluster) = Cluster::start("a_hand_over_waits_for_the_fronts_own_questions", &PLAIN)
    else {
        return;
    };
    let primary = cluster.ports[0];
    let mut locking = Client::connect(primary, "postgres");
    // The front asks for cursors, and nobody else does.
    locking.query("BEGIN; LOCK TABLE pg_catalog.pg_cursors");
    let mut client = Client::connect(cluster.front, "app");
    client.send(&query("SET work_mem = '5MB'"));
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND wait_event_type = 'Lock'";
    until("a question of the front", || {
        (cluster.psql_at(primary, "postgres", waiting) == "1").then_some(())
    });
    let answer = cluster.ask(&Request::HandOver, &[]);
    let Answer::Refused(why) = &answer else {
        panic!("{answer:?}");
    };
    assert!(why.contains("took longer than"), "{why}");
    client.send(&query("INSERT INTO ledger VALUES (1)"));
    locking.query("COMMIT");
    assert_eq!(client.answer().unwrap().error, None);
    assert_eq!(client.answer().unwrap().error, None);
    let answer = until("a hand-over", || {
        match cluster.ask(&Request::HandOver, &[]) {
            Answer::Changed(transition) => Some(transition),
            _ => None,
        }
    });
    println!("{answer}");
    assert_eq!(client.query("SELECT count(*) FROM ledger").value(), "1");
    assert_eq!(client.query("SHOW work_mem").value(), "5MB");
}

/// What was set before a transaction that is lost was not lost with it; and an advisory lock of a
/// session stays when its transaction is rolled back.
#[test]
fn what_outlives_a_lost_transaction_is_not_lost_silently() {
    let name = "what_outlives_a_lost_transaction_is_not_lost_silently";
    let Some(cluster) = Cluster::start(name, &PLAIN) else {
        return;
    };
    let mut before = Client::connect(cluster.front, "app");
    before.send(&[query("SET work_mem = '5MB'"), query("BEGIN")].concat());
    before.answer().unwrap();
    assert_eq!(before.answer().unwrap().status, b'T');
    let mut locks = Client::connect(cluster.front, "app");
    locks.query("BEGIN");
    locks.query("SELECT pg_advisory_lock(1)");
    let mut sets = Client::connect(cluster.front, "app");
    sets.query("BEGIN");
    sets.query("SET work_mem = '6MB'");
    cluster.kill(0);
    // It has the setting, or is told that it is lost.
    match before.try_query("ROLLBACK") {
        Ok(_) => assert_eq!(before.query("SHOW work_mem").value(), "5MB"),
        Err(ended) => assert_eq!(ended.error.as_deref(), Some("57P01"), "{ended:?}"),
    }
    let ended = locks.try_query("ROLLBACK").unwrap_err();
    assert_eq!(ended.error.as_deref(), Some("57P01"), "{ended:?}");
    assert_eq!(sets.query("ROLLBACK").tags, ["ROLLBACK"]);
    assert_eq!(sets.query("SHOW work_mem").value(), "4MB");
}

/// A text that deletes where a backslash escapes a quote, and reads where it does not.
#[test]
fn a_text_is_read_as_the_server_reads_it() {
    let Some(cluster) = Cluster::start("a_text_is_read_as_the_server_reads_it", &PLAIN) else {
        return;
    };
    let mut client = Client::connect(cluster.front, "app");
    client.query("INSERT INTO ledger VALUES (1)");
    client.query("SET standard_conforming_strings = off");
    client.query("SET escape_string_warning = off");
    client.send(&query(
        r"SELECT pg_sleep(60), 'a\''; INSERT INTO ledger VALUES (2); --'",
    ));
    let active = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    until("a query", || {
        (cluster.psql_at(cluster.ports[0], "postgres", active) == "1").then_some(())
    });
    cluster.kill(0);
    let answer = client.answer().unwrap();
    assert_eq!(answer.error.as_deref(), Some("08007"), "{answer:?}");
    assert_eq!(cluster.counts().replayed, 0);
}

/// `strict` waits for the shadow itself, and not for whoever else receives the log.
#[test]
fn commits_wait_for_the_shadow_alone() {
    let wanted = Wanted {
        guarantee: Guarantee::Strict,
        ..PLAIN
    };
    let Some(cluster) = Cluster::start("commits_wait_for_the_shadow_alone", &wanted) else {
        return;
    };
    let receiver = Receiver::start(&cluster, "pg_receivewal");
    let states = "SELECT string_agg(application_name || ' ' || sync_state, ', ' ORDER BY application_name) \
                  FROM pg_stat_replication";
    until("two that receive", || {
        let states = cluster.psql_at(cluster.ports[0], "postgres", states);
        (states.matches(", ").count() == 1).then_some(())
    });
    let states = cluster.psql_at(cluster.ports[0], "postgres", states);
    drop(receiver);
    assert_eq!(states, "pg_receivewal async, walreceiver sync");
}

/// Another one who goes by the shadow's name may confirm its commits: it cannot take over then.
#[test]
fn a_shadow_without_a_name_of_its_own_is_not_ready() {
    let wanted = Wanted {
        guarantee: Guarantee::Strict,
        ..PLAIN
    };
    let name = "a_shadow_without_a_name_of_its_own_is_not_ready";
    let Some(cluster) = Cluster::start(name, &wanted) else {
        return;
    };
    let receiver = Receiver::start(&cluster, "WalReceiver");
    let why = until("the front", || {
        let standing = cluster.status().members[1].standing.clone();
        matches!(standing, Standing::Behind(_)).then(|| format!("{standing:?}"))
    });
    drop(receiver);
    assert!(
        why.contains("walreceiver") && why.contains("application_name"),
        "{why}"
    );
    cluster.await_standby(1);
}

/// Commits wait by the word of the checkpointer, which may read its settings later than others.
#[test]
fn a_shadow_is_ready_once_the_checkpointer_has_commits_wait() {
    let wanted = Wanted {
        guarantee: Guarantee::Strict,
        ..PLAIN
    };
    let name = "a_shadow_is_ready_once_the_checkpointer_has_commits_wait";
    let Some(cluster) = Cluster::start(name, &wanted) else {
        return;
    };
    cluster.await_standby(1);
    let port = cluster.ports[0];
    let ask = |sql: &str| cluster.psql_at(port, "postgres", sql);
    let pid = ask("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // From here on the checkpointer reads nothing, whoever else may have the front's setting.
    ask("ALTER SYSTEM SET synchronous_standby_names = ''");
    ask("SELECT pg_reload_conf()");
    let standing = || format!("{:?}", cluster.status().members[1].standing);
    until("it is not ready", || {
        standing().contains("commits begin to wait").then_some(())
    });
    let synchronous = "SELECT string_agg(sync_state, ', ') FROM pg_stat_replication";
    until("the server calls it synchronous", || {
        (ask(synchronous).trim() == "sync").then_some(())
    });
    until("it waits for the checkpointer", || {
        standing().contains("has not read yet").then_some(())
    });
    assert_eq!(cluster.status().standby, None);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    cluster.await_standby(1);
}
