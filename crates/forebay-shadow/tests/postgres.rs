//! Sessions of PostgreSQL through a front, with two real servers that are killed.

#[expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]
#[path = "postgresql/edges.rs"]
mod edges;
#[path = "postgresql/ledger.rs"]
mod ledger;
#[expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::result_large_err,
    reason = "helpers of tests, which clippy does not see as such"
)]
mod postgresql;
#[expect(
    clippy::unwrap_used,
    reason = "helpers of tests, which clippy does not see as such"
)]
#[path = "postgresql/tls.rs"]
mod tls;

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_shadow::control::{Answer, Request};
use forebay_shadow::postgres::Guarantee;
use postgresql::client::{self, Client, bind_execute, parse, query, sync};
use postgresql::{Cluster, PLAIN, Wanted, until};

#[test]
fn tools_work_unchanged() {
    let Some(cluster) = Cluster::start("tools_work_unchanged", &PLAIN) else {
        return;
    };
    let psql = |sql: &str| cluster.psql_at(cluster.front, "app", sql);
    assert_eq!(psql("SELECT 1"), "1");
    assert_eq!(psql("BEGIN; SELECT 2; COMMIT"), "BEGIN\n2\nCOMMIT");
    assert_eq!(psql("SELECT length(repeat('x', 5000000))"), "5000000");
    assert_eq!(psql("SELECT repeat('x', 5000000)").len(), 5_000_000);
    psql("CREATE TABLE t (a int, b text)");
    psql("\\d t");
    psql("\\df+ pg_catalog.lower");

    // COPY both ways, and a query too long to be looked at.
    let mut copy = cluster.command("psql", cluster.front, "app");
    let mut copy = copy
        .args([
            "-X",
            "-q",
            "-c",
            "\\copy t from stdin",
            "-c",
            "\\copy (select count(*) from t) to stdout",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut into = copy.stdin.take().unwrap();
    for number in 0..100_000 {
        writeln!(into, "{number}\trow {number}").unwrap();
    }
    drop(into);
    let output = copy.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "100000");
    let mut client = Client::connect(cluster.front, "app");
    let long = "y".repeat(1_000_000);
    assert_eq!(
        client.query(&format!("SELECT length('{long}')")).value(),
        "1000000"
    );
    client.send(
        &[
            parse("", &format!("SELECT length('{long}')")),
            bind_execute(""),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(client.answer().unwrap().value(), "1000000");

    // Errors keep their place, and pipelines their order.
    assert_eq!(client.fails("SELECT 1/0").error.unwrap(), "22012");
    let pipeline = [
        query("SELECT 1"),
        query("SELECT oops"),
        query("SET work_mem = 77; SELECT 3"),
    ];
    client.send(&pipeline.concat());
    assert_eq!(client.answer().unwrap().value(), "1");
    assert_eq!(client.answer().unwrap().error.unwrap(), "42703");
    assert_eq!(client.answer().unwrap().value(), "3");

    let bench = |arguments: &[&str]| {
        let output = cluster.tool("pgbench", cluster.front, "app", arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    bench(&["-i", "-q", "postgres"]);
    for protocol in ["simple", "extended", "prepared"] {
        let said = bench(&["-M", protocol, "-c", "4", "-t", "50", "-n", "postgres"]);
        assert!(said.contains("200/200"), "{said}");
        let said = bench(&[
            "-M", protocol, "-S", "-c", "4", "-t", "50", "-n", "postgres",
        ]);
        assert!(said.contains("200/200"), "{said}");
    }
    // A stream of the log, too.
    let copy = tempfile::TempDir::new().unwrap();
    let into = copy.path().join("copy").display().to_string();
    let copied = cluster.tool(
        "pg_basebackup",
        cluster.front,
        "postgres",
        &["-D", &into, "-c", "fast", "--no-sync"],
    );
    let said = String::from_utf8_lossy(&copied.stderr);
    assert!(copied.status.success(), "{said}");
    // A dump by several sessions, which share a snapshot.
    let into = copy.path().join("dump").display().to_string();
    let dumped = cluster.tool(
        "pg_dump",
        cluster.front,
        "postgres",
        &["-j", "2", "-F", "d", "-f", &into, "postgres"],
    );
    let said = String::from_utf8_lossy(&dumped.stderr);
    assert!(dumped.status.success(), "{said}");
    // A session that may stream the log, and takes no messages of the extended protocol.
    let mut streaming = cluster.command("psql", cluster.front, "postgres");
    let streaming = streaming.args([
        "-X",
        "-A",
        "-t",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        "SET work_mem = '5MB'",
        "-c",
        "BEGIN",
        "-c",
        "INSERT INTO t VALUES (1)",
        "-c",
        "COMMIT",
        "-c",
        "SHOW work_mem",
        "dbname=postgres replication=database",
    ]);
    let streamed = streaming.output().unwrap();
    let said = String::from_utf8_lossy(&streamed.stderr);
    assert!(streamed.status.success(), "{said}");
    let said = String::from_utf8_lossy(&streamed.stdout);
    assert!(said.trim().ends_with("COMMIT\n5MB"), "{said}");
    assert_eq!(cluster.status().epoch, 1, "nobody failed over");
}

#[test]
fn a_request_to_cancel_reaches_its_backend() {
    let Some(cluster) = Cluster::start("a_request_to_cancel_reaches_its_backend", &PLAIN) else {
        return;
    };
    let mut client = Client::connect(cluster.front, "app");
    let cancel = |client: &mut Client| {
        client.send(&query("SELECT pg_sleep(60)"));
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
        let primary = cluster.ports[cluster.status().primary];
        until("a query", || {
            (cluster.psql_at(primary, "postgres", running) == "1").then_some(())
        });
        let mut stream = TcpStream::connect(("127.0.0.1", cluster.front)).unwrap();
        let code = 80_877_102_u32.to_be_bytes();
        let request = [16_u32.to_be_bytes().as_slice(), &code, &client.key].concat();
        stream.write_all(&request).unwrap();
        client.answer().unwrap()
    };
    assert_eq!(cancel(&mut client).error.unwrap(), "57014");
    // Its key stays the same, and means another backend.
    cluster.kill(0);
    client.query("SELECT 1");
    assert_eq!(cancel(&mut client).error.unwrap(), "57014");
}

#[test]
fn garbage_gets_one_clear_error() {
    let Some(cluster) = Cluster::start("garbage_gets_one_clear_error", &PLAIN) else {
        return;
    };
    let mut client = Client::connect(cluster.front, "app");
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        &[0, 0, 0, 9, 0, 2, 0, 0, 0],
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", cluster.front)).unwrap();
        stream.write_all(garbage).unwrap();
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut said).unwrap();
        assert!(said.windows(5).any(|part| part == b"08P01"), "{said:?}");
    }
    for garbage in [
        b"Q\0\0\0\0".as_slice(),
        b"Q\xff\xff\xff\xff",
        b"\x07\0\0\0\x04",
    ] {
        let mut wrong = Client::connect(cluster.front, "app");
        wrong.send(garbage);
        assert_eq!(wrong.answer().unwrap_err().error.unwrap(), "08P01");
    }
    assert_eq!(client.query("SELECT 1").value(), "1");
}

/// A server whose backend crashes starts all of them anew: sessions come back to the same primary.
#[test]
fn sessions_survive_a_backend_that_crashes() {
    let Some(cluster) = Cluster::start("sessions_survive_a_backend_that_crashes", &PLAIN) else {
        return;
    };
    let mut idle = Client::connect(cluster.front, "app");
    idle.query("SET work_mem = '5MB'");
    let mut within = Client::connect(cluster.front, "app");
    within.query("BEGIN; INSERT INTO ledger VALUES (1)");
    let mut crashing = Client::connect(cluster.front, "app");
    let pid = crashing.query("SELECT pg_backend_pid()").value().to_owned();
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(idle.query("SHOW work_mem").value(), "5MB");
    assert_eq!(within.fails("COMMIT").error.unwrap(), "40001");
    assert_eq!(crashing.query("SELECT count(*) FROM ledger").value(), "0");
    assert_eq!(cluster.status().epoch, 1, "nobody failed over");
}

/// A server that lets the user in no more is not asked again and again.
#[test]
fn a_login_that_is_denied_ends_its_session() {
    let Some(cluster) = Cluster::start("a_login_that_is_denied_ends_its_session", &PLAIN) else {
        return;
    };
    let mut client = Client::connect(cluster.front, "app");
    let mut crashing = Client::connect(cluster.front, "postgres");
    crashing.query("ALTER ROLE app NOLOGIN");
    let pid = crashing.query("SELECT pg_backend_pid()").value().to_owned();
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let began = Instant::now();
    // Its old backend may still answer.
    let ended = until("the end of a session", || {
        client.try_query("SELECT 1").err()
    });
    assert_eq!(ended.error.as_deref(), Some("57P01"), "{ended:?}");
    assert!(ended.message.contains("(28000)"), "{ended:?}");
    // The patience of this front is twice that.
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(cluster.status().epoch, 1, "nobody failed over");
}

/// Passwords that are sent as they are, and wrong ones.
#[test]
fn a_login_is_repeated_with_the_password_that_was_heard() {
    let wanted = Wanted {
        authentication: "password",
        ..PLAIN
    };
    let name = "a_login_is_repeated_with_the_password_that_was_heard";
    let Some(cluster) = Cluster::start(name, &wanted) else {
        return;
    };
    let mut wrong = cluster.command("psql", cluster.front, "app");
    let wrong = wrong.env("PGPASSWORD", "guess").args(["-c", "SELECT 1"]);
    let said = String::from_utf8_lossy(&wrong.output().unwrap().stderr).into_owned();
    assert!(said.contains("password authentication failed"), "{said}");
    let mut psql = cluster.command("psql", cluster.front, "app");
    let mut psql = psql
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut into = psql.stdin.take().unwrap();
    writeln!(into, "SET work_mem = '77MB';").unwrap();
    let set = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    until("a connection to the standby", || {
        (cluster.psql_at(cluster.ports[1], "postgres", set) == "1").then_some(())
    });
    cluster.kill(0);
    writeln!(into, "SHOW work_mem;").unwrap();
    drop(into);
    let output = psql.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.trim().ends_with("77MB"), "{said}");
}

/// What a session carries over.
#[test]
fn idle_sessions_survive_with_their_state() {
    let wanted = Wanted {
        authentication: "scram-sha-256",
        ..PLAIN
    };
    let Some(cluster) = Cluster::start("idle_sessions_survive_with_their_state", &wanted) else {
        return;
    };
    // One that proved a password which the front does not know.
    let mut psql = cluster.command("psql", cluster.front, "app");
    let mut psql = psql
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut into = psql.stdin.take().unwrap();
    writeln!(into, "SET work_mem = '77MB'; SELECT pg_backend_pid();").unwrap();

    let mut client = Client::connect(cluster.front, "postgres");
    client.query("SET work_mem = '5MB'; SET my.own = 'it''s \\'; SET search_path = \"$user\", public, pg_temp");
    client.query("SET client_encoding = 'LATIN1'");
    client.query("SELECT set_config('my.other', 'yes', false)");
    client.query("PREPARE in_sql (int) AS SELECT $1 + 1; PREPARE \"Gone\" AS SELECT 1");
    client.query("DEALLOCATE \"Gone\"; LISTEN \"A channel\"");
    client.query("BEGIN; SET statement_timeout = 1234; ROLLBACK");
    client.query("BEGIN; SET LOCAL lock_timeout = 1234; COMMIT");
    client.query("SET ROLE app");
    client.send(
        &[
            parse("by_protocol", "SELECT 'prepared'"),
            parse("dropped", "SELECT 1"),
            sync(),
        ]
        .concat(),
    );
    client.answer().unwrap();
    client.query("DEALLOCATE dropped");
    let backend = client.query("SELECT pg_backend_pid()");
    let logged_in = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('a test', 'psql') AND pid <> pg_backend_pid()";
    until("connections to the standby", || {
        (cluster.psql_at(cluster.ports[1], "postgres", logged_in) == "2").then_some(())
    });

    let kept = cluster.psql_at(
        cluster.ports[1],
        "postgres",
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'a test'",
    );

    cluster.kill(0);
    // The switch costs no login: the connection that was kept is the session's.
    assert_ne!(client.query("SELECT pg_backend_pid()"), backend);
    assert_eq!(client.query("SELECT pg_backend_pid()").value(), kept);
    for (setting, value) in [
        ("work_mem", "5MB"),
        ("my.own", "it's \\"),
        ("my.other", "yes"),
        ("search_path", "\"$user\", public, pg_temp"),
        ("client_encoding", "LATIN1"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("role", "app"),
        ("application_name", "a test"),
    ] {
        assert_eq!(
            client.query(&format!("SHOW {setting}")).value(),
            value,
            "{setting}"
        );
    }
    assert_eq!(client.query("EXECUTE in_sql(2)").value(), "3");
    assert_eq!(client.fails("EXECUTE \"Gone\"").error.unwrap(), "26000");
    client.send(&[bind_execute("by_protocol"), sync()].concat());
    assert_eq!(client.answer().unwrap().value(), "prepared");
    client.send(&[bind_execute("dropped"), sync()].concat());
    assert_eq!(client.answer().unwrap().error.unwrap(), "26000");
    client.query("INSERT INTO ledger VALUES (1)");
    let notified = client.query("NOTIFY \"A channel\"");
    assert!(notified.types.contains('A'), "{notified:?}");

    writeln!(
        into,
        "SHOW work_mem; INSERT INTO ledger VALUES (2); SELECT count(*) FROM ledger;"
    )
    .unwrap();
    drop(into);
    let output = psql.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.trim().ends_with("77MB\nINSERT 0 1\n2"), "{said}");
    let counts = cluster.counts();
    assert_eq!((counts.failed, counts.unknown), (0, 0));
}

#[test]
fn what_cannot_be_carried_over_is_named() {
    let Some(cluster) = Cluster::start("what_cannot_be_carried_over_is_named", &PLAIN) else {
        return;
    };
    let cases = [
        ("CREATE TEMP TABLE mine (a int)", "temporary table mine"),
        ("SELECT pg_advisory_lock(1)", "advisory lock"),
        (
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
            "cursor WITH HOLD c",
        ),
        ("SELECT 1", ""),
        ("CREATE TEMP TABLE gone (a int); DROP TABLE gone", ""),
        (
            "SELECT pg_advisory_lock(2); SELECT pg_advisory_unlock_all()",
            "",
        ),
    ];
    let mut clients: Vec<Client> = cases
        .iter()
        .map(|(sql, _)| {
            let mut client = Client::connect(cluster.front, "app");
            client.query(sql);
            client
        })
        .collect();
    cluster.kill(0);
    for (client, (sql, lost)) in clients.iter_mut().zip(cases) {
        let answer = client.try_query("SELECT 1");
        if lost.is_empty() {
            assert_eq!(answer.unwrap().value(), "1", "{sql}");
        } else {
            let answer = answer.unwrap_err();
            assert_eq!(answer.error.as_deref(), Some("57P01"), "{sql}");
            assert!(answer.message.contains(lost), "{sql}: {answer:?}");
        }
    }
}

#[test]
fn a_transaction_fails_and_its_session_goes_on() {
    let Some(cluster) = Cluster::start("a_transaction_fails_and_its_session_goes_on", &PLAIN)
    else {
        return;
    };
    let mut begun: Vec<Client> = (0..6)
        .map(|_| Client::connect(cluster.front, "app"))
        .collect();
    for (number, client) in begun.iter_mut().enumerate() {
        let answer = client.query(&format!("BEGIN; INSERT INTO ledger VALUES ({number})"));
        assert_eq!(answer.status, b'T');
    }
    let mut running = Client::connect(cluster.front, "app");
    running.query("BEGIN");
    running.send(&query("SELECT pg_sleep(60)"));
    let mut reading = Client::connect(cluster.front, "app");
    reading.send(&query("SELECT pg_sleep(1), 7"));
    let mut batch = Client::connect(cluster.front, "app");
    batch.send(&[parse("", "SELECT pg_sleep(1)"), bind_execute(""), sync()].concat());
    let mut writing = Client::connect(cluster.front, "app");
    writing.send(&query("INSERT INTO ledger SELECT 100 FROM pg_sleep(60)"));
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()";
    until("queries", || {
        (cluster.psql_at(cluster.ports[0], "postgres", active) == "4").then_some(())
    });
    cluster.kill(0);

    // The next statement fails, and so does every other until the client has rolled back.
    let failed = begun[0].fails("INSERT INTO ledger VALUES (10)");
    assert_eq!(
        (failed.error.as_deref(), failed.status),
        (Some("40001"), b'E')
    );
    assert_eq!(begun[0].fails("SELECT 1").error.unwrap(), "25P02");
    assert_eq!(begun[0].query("ROLLBACK").status, b'I');
    // One that commits hears it at once, and has ended its transaction.
    let failed = begun[1].fails("COMMIT");
    assert_eq!(
        (failed.error.as_deref(), failed.status),
        (Some("40001"), b'I')
    );
    // One that rolls back has what it wants.
    assert_eq!(begun[2].query("ROLLBACK").tags, ["ROLLBACK"]);
    // The same in batches.
    begun[3].send(
        &[
            parse("", "INSERT INTO ledger VALUES (11)"),
            bind_execute(""),
            sync(),
        ]
        .concat(),
    );
    let failed = begun[3].answer().unwrap();
    assert_eq!(
        (
            failed.error.as_deref(),
            failed.status,
            failed.types.as_str()
        ),
        (Some("40001"), b'E', "EZ")
    );
    begun[3].send(&[parse("", "ROLLBACK"), bind_execute(""), sync()].concat());
    assert_eq!(begun[3].answer().unwrap().types, "12CZ");
    begun[4].send(&[parse("", "COMMIT"), bind_execute(""), sync()].concat());
    let failed = begun[4].answer().unwrap();
    assert_eq!(
        (failed.error.as_deref(), failed.status),
        (Some("40001"), b'I')
    );
    begun[5].send(&[parse("", "ROLLBACK"), bind_execute(""), sync()].concat());
    assert_eq!(begun[5].answer().unwrap().types, "12CZ");
    let failed = running.answer().unwrap();
    assert_eq!(
        (failed.error.as_deref(), failed.status),
        (Some("40001"), b'E')
    );
    running.query("ROLLBACK");
    assert_eq!(reading.answer().unwrap().rows[0][1].as_deref(), Some("7"));
    assert_eq!(batch.answer().unwrap().types, "12DCZ");
    let unknown = writing.answer().unwrap();
    assert_eq!(
        (unknown.error.as_deref(), unknown.status),
        (Some("08007"), b'I')
    );

    for (number, client) in begun.iter_mut().enumerate() {
        assert_eq!(
            client
                .query(&format!("INSERT INTO ledger VALUES ({number})"))
                .status,
            b'I'
        );
    }
    let ledger = cluster.psql_at(
        cluster.front,
        "app",
        "SELECT string_agg(id::text, ' ' ORDER BY id) FROM ledger",
    );
    assert_eq!(ledger, "0 1 2 3 4 5");
    let counts = cluster.counts();
    assert_eq!((counts.replayed, counts.unknown), (2, 1));
}

/// The front asks for the number of a transaction, and its question fails: the client has taken the
/// name under which it is asked.
#[test]
fn a_transaction_that_a_question_fails_is_said_to_have_failed() {
    let name = "a_transaction_that_a_question_fails_is_said_to_have_failed";
    let Some(cluster) = Cluster::start(name, &PLAIN) else {
        return;
    };
    let mut client = Client::connect(cluster.front, "app");
    client.query("PREPARE forebay AS SELECT 1");
    let insert = "INSERT INTO ledger VALUES (1)";
    let failed = |answer: client::Answer, status| {
        let heard = (answer.error.as_deref(), answer.status);
        assert_eq!(heard, (Some("40001"), status), "{answer:?}");
    };
    // After a statement.
    client.query("BEGIN");
    client.query(insert);
    failed(client.fails(insert), b'E');
    assert_eq!(client.fails(insert).error.unwrap(), "25P02");
    assert_eq!(client.query("ROLLBACK").status, b'I');
    client.query("BEGIN");
    client.query(insert);
    failed(client.fails("COMMIT"), b'I');
    // Before a COMMIT that is already on its way.
    client.query("BEGIN");
    client.query("SELECT 1");
    failed(client.fails("COMMIT"), b'I');
    client.query("BEGIN");
    client.query("SELECT 1");
    client.send(&[parse("", "COMMIT"), bind_execute(""), sync()].concat());
    failed(client.answer().unwrap(), b'I');
    client.query("BEGIN");
    client.send(&[query(insert), query("COMMIT")].concat());
    assert_eq!(client.answer().unwrap().error, None);
    failed(client.answer().unwrap(), b'I');
    // One that the client failed itself.
    client.query("BEGIN");
    client.send(&[query("SELECT 1/0"), query("COMMIT")].concat());
    assert_eq!(client.answer().unwrap().error.unwrap(), "22012");
    assert_eq!(client.answer().unwrap().tags, ["ROLLBACK"]);
    // One that rolls back has what it wants.
    client.query("BEGIN");
    client.query(insert);
    assert_eq!(client.query("ROLLBACK").tags, ["ROLLBACK"]);
    client.query(insert);
    assert_eq!(client.query("SELECT count(*) FROM ledger").value(), "1");
}

/// A COMMIT that the standby has, and of which the client was not told.
#[test]
fn a_commit_in_doubt_is_resolved() {
    let wanted = Wanted {
        guarantee: Guarantee::Strict,
        ..PLAIN
    };
    let Some(cluster) = Cluster::start("a_commit_in_doubt_is_resolved", &wanted) else {
        return;
    };
    let commit = |client: &mut Client, id: u32| {
        client.query("SET synchronous_commit = remote_apply");
        client.query("BEGIN");
        client.query(&format!("INSERT INTO ledger VALUES ({id})"));
    };
    let mut simple = Client::connect(cluster.front, "app");
    let mut batch = Client::connect(cluster.front, "app");
    let mut alone = Client::connect(cluster.front, "app");
    commit(&mut simple, 1);
    commit(&mut batch, 2);
    alone.query("SET synchronous_commit = remote_apply");
    // The standby receives, and does not apply: whoever commits waits for it.
    cluster.psql_at(cluster.ports[1], "postgres", "SELECT pg_wal_replay_pause()");
    simple.send(&query("COMMIT"));
    batch.send(&[parse("", "COMMIT"), bind_execute(""), sync()].concat());
    alone.send(&query("INSERT INTO ledger VALUES (3)"));
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("commits that wait", || {
        (cluster.psql_at(cluster.ports[0], "postgres", waiting) == "3").then_some(())
    });
    let received =
        "SELECT count(*) FROM pg_stat_replication WHERE flush_lsn = pg_current_wal_flush_lsn()";
    until("the standby", || {
        (cluster.psql_at(cluster.ports[0], "postgres", received) == "1").then_some(())
    });
    cluster.kill(0);
    let answer = simple.answer().unwrap();
    assert_eq!(
        (answer.error, answer.types.as_str(), answer.status),
        (None, "CZ", b'I')
    );
    let answer = batch.answer().unwrap();
    assert_eq!(
        (answer.error, answer.types.as_str(), answer.status),
        (None, "12CZ", b'I')
    );
    // Nobody knows the transaction of one that commits by itself.
    let answer = alone.answer().unwrap();
    assert_eq!(
        (answer.error.as_deref(), answer.status),
        (Some("08007"), b'I')
    );
    let ledger = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM ledger";
    assert_eq!(simple.query(ledger).value(), "1 2 3");
}

/// A primary whose processes all stand still is replaced, and never goes on.
#[test]
fn a_primary_that_is_stopped_is_replaced() {
    let Some(cluster) = Cluster::start("a_primary_that_is_stopped_is_replaced", &PLAIN) else {
        return;
    };
    if !cluster.has_fences() {
        println!(
            "SKIPPED: a_primary_that_is_stopped_is_replaced: no group can be made to fence it"
        );
        return;
    }
    let mut client = Client::connect(cluster.front, "app");
    let count = |cluster: &Cluster| {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'a test'";
        cluster.psql_at(cluster.ports[1], "postgres", sql)
    };
    until("a connection to the standby", || {
        (count(&cluster) == "1").then_some(())
    });
    client.query("SELECT 1");
    cluster.stop(0);
    let began = Instant::now();
    assert_eq!(client.query("SELECT 2").value(), "2");
    println!("stopped: the gap was {:?}", began.elapsed());
    client.query("INSERT INTO ledger VALUES (1)");
    let status = cluster.status();
    assert_eq!((status.epoch, status.primary), (2, 1), "{status:#?}");
}

/// A backend that is busy reads nothing; what was sent to it meanwhile is no sign of a loss.
#[test]
fn a_pipeline_behind_a_long_query_is_no_loss() {
    let Some(cluster) = Cluster::start("a_pipeline_behind_a_long_query_is_no_loss", &PLAIN) else {
        return;
    };
    let mut client = Client::connect(cluster.front, "app");
    // Its answers are known to come fast.
    for _ in 0..2000 {
        client.query("SELECT pg_sleep(0)");
    }
    client.send(&query("SELECT pg_sleep(2)"));
    let active = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    until("a long query", || {
        (cluster.psql_at(cluster.ports[0], "postgres", active) == "1").then_some(())
    });
    client.send(&query("SELECT 1"));
    assert_eq!(client.answer().unwrap().error, None);
    assert_eq!(client.answer().unwrap().value(), "1");
    assert_eq!(cluster.status().epoch, 1, "{:#?}", cluster.status());
}

#[test]
fn a_backend_that_is_ended_alone_ends_its_session() {
    let Some(cluster) = Cluster::start("a_backend_that_is_ended_alone_ends_its_session", &PLAIN)
    else {
        return;
    };
    let mut client = Client::connect(cluster.front, "app");
    let pid = client.query("SELECT pg_backend_pid()").value().to_owned();
    cluster.psql_at(
        cluster.front,
        "postgres",
        &format!("SELECT pg_terminate_backend({pid})"),
    );
    let ended = client.answer().unwrap_err();
    assert_eq!(ended.error.as_deref(), Some("57P01"));
    assert_eq!(cluster.status().epoch, 1);
}

#[test]
fn a_hand_over_is_not_noticed() {
    let wanted = Wanted {
        rebuild: true,
        ..PLAIN
    };
    let Some(cluster) = Cluster::start("a_hand_over_is_not_noticed", &wanted) else {
        return;
    };
    let mut idle = Client::connect(cluster.front, "app");
    idle.query("SET work_mem = '5MB'");
    let done = AtomicU64::new(0);
    let wanted = AtomicU64::new(u64::MAX);
    let worst = std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut client = Client::connect(cluster.front, "app");
            let mut worst = Duration::ZERO;
            while done.load(Ordering::Relaxed) < wanted.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.query("BEGIN");
                client.query(&format!(
                    "INSERT INTO ledger VALUES ({})",
                    done.load(Ordering::Relaxed)
                ));
                client.query("COMMIT");
                done.fetch_add(1, Ordering::Relaxed);
                worst = worst.max(began.elapsed());
            }
            worst
        });
        until("transactions", || {
            (done.load(Ordering::Relaxed) > 20).then_some(())
        });
        let answer = cluster.ask(&Request::HandOver, &[]);
        let Answer::Changed(transition) = answer else {
            panic!("{answer:?}");
        };
        println!("{transition}");
        wanted.store(done.load(Ordering::Relaxed) + 20, Ordering::Relaxed);
        busy.join().unwrap()
    });
    let done = done.into_inner();
    println!("hand-over: {done} transactions, the slowest took {worst:?}");
    assert_eq!(idle.query("SHOW work_mem").value(), "5MB");
    let count = cluster.psql_at(cluster.front, "app", "SELECT count(*) FROM ledger");
    assert_eq!(count, done.to_string());
    let counts = cluster.counts();
    assert_eq!((counts.failed, counts.unknown), (0, 0));
    // The old primary becomes a standby of the new one.
    cluster.await_standby(0);
}

#[test]
fn a_hand_over_does_not_wait_for_the_writer_of_the_log() {
    let name = "a_hand_over_does_not_wait_for_the_writer_of_the_log";
    let Some(cluster) = Cluster::start(name, &PLAIN) else {
        return;
    };
    // Longer than the front waits for a standby: nothing but the front has the log flushed.
    let slowly = "ALTER SYSTEM SET wal_writer_delay = '10s'";
    cluster.psql_at(cluster.ports[0], "postgres", slowly);
    let reload = "SELECT pg_reload_conf()";
    cluster.psql_at(cluster.ports[0], "postgres", reload);
    let mut client = Client::connect(cluster.front, "app");
    client.query("SET synchronous_commit = off");
    client.query("INSERT INTO ledger VALUES (1)");
    let answer = cluster.ask(&Request::HandOver, &[]);
    let Answer::Changed(transition) = answer else {
        panic!("{answer:?}");
    };
    println!("{transition}");
    let count = client.query("SELECT count(*) FROM ledger");
    assert_eq!(count.value(), "1");
}
