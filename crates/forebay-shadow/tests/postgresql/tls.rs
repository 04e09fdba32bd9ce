//! Clients that speak TLS with a front, and those that do not.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use crate::postgresql::certificate::believer;
use crate::postgresql::client::{self, Client, bind_execute, parse, query, sync};
use crate::postgresql::{Cluster, Encryption, PLAIN, Wanted, until};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

const TLS: Wanted = Wanted {
    authentication: "scram-sha-256",
    tls: Encryption::Offered,
    ..PLAIN
};

/// How a client comes to speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// It asks, after it has asked for GSSAPI in vain.
    Asking,
    /// With its first byte, and says by ALPN what it speaks.
    Directly(&'static str),
}

type Secure = StreamOwned<ClientConnection, TcpStream>;

fn secure(cluster: &Cluster, how: How) -> std::io::Result<Secure> {
    let mut stream = client::tcp(cluster.front);
    let protocol = match how {
        How::Asking => {
            for (request, expected) in [(GSSENC_REQUEST, b'N'), (SSL_REQUEST, b'S')] {
                stream.write_all(&request)?;
                let mut answer = [0];
                stream.read_exact(&mut answer)?;
                assert_eq!(answer, [expected]);
            }
            ""
        }
        How::Directly(protocol) => protocol,
    };
    let chain = std::fs::read_to_string(cluster.certificate()).unwrap();
    let name = "test".try_into().unwrap();
    let client = ClientConnection::new(believer(&chain, protocol), name).unwrap();
    let mut stream = StreamOwned::new(client, stream);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}

/// As `postgres`, who is trusted.
fn session(cluster: &Cluster, how: How) -> Client {
    Client::over(secure(cluster, how).unwrap(), "postgres")
}

impl Cluster {
    /// psql through the front, as one who has to prove who it is.
    fn over_tls(&self, options: &str) -> Command {
        let mut psql = self.command("psql", self.front, "app");
        let root = self.certificate();
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(format!(
                "host=localhost hostaddr=127.0.0.1 dbname=postgres sslrootcert={} {options}",
                root.display()
            ));
        psql
    }

    fn says(&self, options: &str, command: &str) -> Output {
        self.over_tls(options)
            .args(["-c", command])
            .output()
            .unwrap()
    }
}

fn told(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn psql_speaks_tls_as_it_likes() {
    let Some(cluster) = Cluster::start("psql_speaks_tls_as_it_likes", &TLS) else {
        return;
    };
    for (mode, is_encrypted) in [
        ("disable", false),
        ("allow", false),
        ("prefer", true),
        ("require", true),
        ("verify-ca", true),
        ("verify-full", true),
    ] {
        for binding in ["disable", "prefer"] {
            let options = format!("sslmode={mode} channel_binding={binding}");
            let output = cluster.says(&options, "\\conninfo");
            let (said, why) = told(&output);
            assert!(output.status.success(), "{options}: {why}");
            let tls = said.contains("SSL connection (protocol: TLSv1.3");
            assert_eq!(tls, is_encrypted, "{options}: {said}");
        }
    }
    // The name is looked at.
    let options = "sslmode=verify-full host=elsewhere";
    let (_, why) = told(&cluster.says(options, "SELECT 1"));
    assert!(why.contains("does not match host name"), "{why}");
    // Old clients, too.
    let options = "sslmode=require ssl_max_protocol_version=TLSv1.2";
    let (said, why) = told(&cluster.says(options, "\\conninfo"));
    assert!(said.contains("TLSv1.2"), "{said} {why}");
    // What binds to the channel is not offered, and the client says why that will not do.
    let options = "sslmode=require channel_binding=require";
    let (_, why) = told(&cluster.says(options, "SELECT 1"));
    assert!(
        why.contains("channel binding is required, but server did not offer"),
        "{why}"
    );

    // COPY both ways.
    let psql = |sql: &str| {
        let output = cluster.says("sslmode=require", sql);
        let (said, why) = told(&output);
        assert!(output.status.success(), "{sql}: {why}");
        said
    };
    psql("CREATE TABLE t (a int, b text)");
    let mut copy = cluster
        .over_tls("sslmode=verify-full")
        .args(["-c", "\\copy t from stdin"])
        .args(["-c", "\\copy (select * from t order by a) to stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let rows: Vec<String> = (0..100_000)
        .map(|row| format!("{row}\trow {row}\n"))
        .collect();
    let rows = rows.concat();
    let mut into = copy.stdin.take().unwrap();
    let read = std::thread::spawn(move || copy.wait_with_output().unwrap());
    into.write_all(rows.as_bytes()).unwrap();
    drop(into);
    assert!(read.join().unwrap().stdout == rows.as_bytes());
    assert_eq!(psql("SELECT length(repeat('x', 5000000))"), "5000000");
    assert_eq!(psql("SELECT repeat('x', 5000000)").len(), 5_000_000);

    let bench = |arguments: &[&str]| {
        let mut command = cluster.command("pgbench", cluster.front, "app");
        let command = command.env("PGSSLMODE", "require").args(arguments);
        let output = command.output().unwrap();
        let (said, why) = told(&output);
        assert!(output.status.success(), "{arguments:?}: {why}");
        said
    };
    bench(&["-i", "-q", "postgres"]);
    for protocol in ["simple", "extended", "prepared"] {
        let said = bench(&["-M", protocol, "-c", "4", "-t", "50", "-n", "postgres"]);
        assert!(said.contains("200/200"), "{said}");
    }
    assert_eq!(cluster.status().epoch, 1, "nobody failed over");
}

#[test]
fn a_request_to_cancel_may_be_encrypted() {
    let name = "a_request_to_cancel_may_be_encrypted";
    let Some(cluster) = Cluster::start(name, &TLS) else {
        return;
    };
    let running = || {
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
        until("a query", || {
            (cluster.psql_at(cluster.ports[0], "postgres", running) == "1").then_some(())
        });
    };
    // psql 15 sends it in cleartext, whatever it speaks otherwise.
    let psql = cluster
        .over_tls("sslmode=require")
        .args(["-c", "SELECT pg_sleep(60)"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    running();
    kill_process(Pid::from_child(&psql), Signal::INT).unwrap();
    let (_, why) = told(&psql.wait_with_output().unwrap());
    assert!(
        why.contains("canceling statement due to user request"),
        "{why}"
    );

    for how in [How::Asking, How::Directly("postgresql")] {
        let mut client = session(&cluster, how);
        client.send(&query("SELECT pg_sleep(60)"));
        running();
        let code = 80_877_102_u32.to_be_bytes();
        let request = [16_u32.to_be_bytes().as_slice(), &code, &client.key].concat();
        let mut cancel = secure(&cluster, how).unwrap();
        cancel.write_all(&request).unwrap();
        assert_eq!(client.answer().unwrap().error.unwrap(), "57014");
    }
}

#[test]
fn idle_sessions_over_tls_survive_the_loss_of_a_primary() {
    let name = "idle_sessions_over_tls_survive_the_loss_of_a_primary";
    let Some(cluster) = Cluster::start(name, &TLS) else {
        return;
    };
    let mut psql = cluster
        .over_tls("sslmode=verify-full")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = psql.stdin.take().unwrap();
    says.write_all(b"SET work_mem = '7MB'; PREPARE p AS SELECT 'prepared';\nSELECT 'there';\n")
        .unwrap();
    until("psql", || {
        let asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT ''there%' AND state = 'idle'";
        (cluster.psql_at(cluster.ports[0], "postgres", asked) == "1").then_some(())
    });
    let mut clients: Vec<Client> = [How::Asking, How::Directly("postgresql"), How::Asking]
        .into_iter()
        .map(|how| session(&cluster, how))
        .collect();
    for client in &mut clients {
        client.query("SET work_mem = '5MB'");
        client.send(&[parse("mine", "SELECT 'kept'"), sync()].concat());
        client.answer().unwrap();
    }
    let within = clients.last_mut().unwrap();
    within.query("BEGIN; INSERT INTO ledger VALUES (1)");
    let before = cluster.counts().connections;
    cluster.kill(0);
    let (within, idle) = clients.split_last_mut().unwrap();
    for client in idle {
        assert_eq!(client.query("SHOW work_mem").value(), "5MB");
        client.send(&[bind_execute("mine"), sync()].concat());
        assert_eq!(client.answer().unwrap().value(), "kept");
    }
    assert_eq!(within.fails("SELECT 1").error.unwrap(), "40001");
    within.query("ROLLBACK");
    assert_eq!(within.query("SELECT count(*) FROM ledger").value(), "0");
    says.write_all(b"SHOW work_mem;\nEXECUTE p;\n").unwrap();
    drop(says);
    let output = psql.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(told(&output).0, "there\n7MB\nprepared");
    assert_eq!(cluster.counts().connections, before);
    assert_eq!(cluster.status().epoch, 2);
}

/// What a client hears that sends this in cleartext and then nothing more.
fn hears(cluster: &Cluster, bytes: &[u8]) -> Vec<u8> {
    let mut stream = client::tcp(cluster.front);
    stream.write_all(bytes).unwrap();
    let mut heard = Vec::new();
    // It may be reset with bytes that were not read.
    stream.read_to_end(&mut heard).ok();
    heard
}

#[test]
fn what_is_no_tls_is_counted_and_disturbs_nobody() {
    let name = "what_is_no_tls_is_counted_and_disturbs_nobody";
    let Some(cluster) = Cluster::start(name, &TLS) else {
        return;
    };
    let mut good = session(&cluster, How::Asking);
    let mut refused = 0;
    let mut counted = |cluster: &Cluster, good: &mut Client| {
        let before = refused;
        refused = until("a client that is refused", || {
            Some(cluster.counts().refused).filter(|now| *now > before)
        });
        assert_eq!(good.query("SELECT 1").value(), "1");
    };
    let contains =
        |heard: &[u8], words: &[u8]| heard.windows(words.len()).any(|part| part == words);
    // Begun and not gone on with: held until the end of the test.
    let slow: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = client::tcp(cluster.front);
            stream.write_all(&SSL_REQUEST).unwrap();
            stream
        })
        .collect();

    // Bytes in cleartext behind the request (CVE-2021-23214): a session that somebody else opens.
    let opening = b"\0\0\0\x17\0\x03\0\0user\0postgres\0\0";
    let heard = hears(&cluster, &[SSL_REQUEST.as_slice(), opening].concat());
    assert!(heard.starts_with(b"E"), "{heard:?}");
    assert!(contains(&heard, b"08P01"), "{heard:?}");
    assert!(
        contains(&heard, b"in cleartext follow the request"),
        "{heard:?}"
    );
    counted(&cluster, &mut good);
    // The same a moment later, when the request was answered.
    let mut stream = client::tcp(cluster.front);
    stream.write_all(&SSL_REQUEST).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    stream.write_all(opening).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).ok();
    assert!(!contains(&heard, b"R\0\0\0"), "{heard:?}");
    counted(&cluster, &mut good);
    // And between the request and a handshake that is a good one: what is injected is not heard.
    let mut stream = client::tcp(cluster.front);
    stream.write_all(&SSL_REQUEST).unwrap();
    stream.read_exact(&mut answer).unwrap();
    stream.write_all(opening).unwrap();
    let chain = std::fs::read_to_string(cluster.certificate()).unwrap();
    let name = "test".try_into().unwrap();
    let connection = ClientConnection::new(believer(&chain, ""), name).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    assert!(stream.conn.complete_io(&mut stream.sock).is_err());
    counted(&cluster, &mut good);

    // Twice, and a request within TLS.
    for requests in [
        [GSSENC_REQUEST, GSSENC_REQUEST, GSSENC_REQUEST].concat(),
        [GSSENC_REQUEST.as_slice(), &SSL_REQUEST, &SSL_REQUEST].concat(),
    ] {
        let heard = hears(&cluster, &requests);
        assert!(contains(&heard, b"08P01"), "{heard:?}");
        counted(&cluster, &mut good);
    }
    let mut twice = secure(&cluster, How::Asking).unwrap();
    twice.write_all(&SSL_REQUEST).unwrap();
    let mut heard = Vec::new();
    twice.read_to_end(&mut heard).unwrap();
    assert!(contains(&heard, b"08P01"), "{heard:?}");

    // Directly, without saying what is spoken, or something else.
    let mut silent = secure(&cluster, How::Directly("")).unwrap();
    silent.read_to_end(&mut Vec::new()).ok();
    counted(&cluster, &mut good);
    assert!(secure(&cluster, How::Directly("h2")).is_err());
    counted(&cluster, &mut good);
    // Garbage.
    for garbage in [
        b"\x16\x03\x01\0\x05hello".as_slice(),
        b"\x16\xff\xff\xff\xff\xff",
    ] {
        let heard = hears(&cluster, garbage);
        // An alert of TLS, if anything.
        assert!(heard.is_empty() || heard.starts_with(b"\x15"), "{heard:?}");
        counted(&cluster, &mut good);
    }
    let heard = hears(&cluster, b"GET / HTTP/1.1\r\n\r\n");
    assert!(contains(&heard, b"08P01"), "{heard:?}");
    // A login that binds to its channel though that is not offered.
    let mut binds = secure(&cluster, How::Asking).unwrap();
    let opening = b"\0\0\0\x12\0\x03\0\0user\0app\0\0";
    binds.write_all(opening).unwrap();
    let mut offer = [0; 24];
    binds.read_exact(&mut offer).unwrap();
    assert!(offer.ends_with(b"SCRAM-SHA-256\0\0"), "{offer:?}");
    let first = b"p=tls-server-end-point,,n=,r=nonce";
    let body = [b"SCRAM-SHA-256-PLUS\0\0\0\0\x22".as_slice(), first].concat();
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    binds
        .write_all(&[b"p".as_slice(), &length, &body].concat())
        .unwrap();
    let mut heard = Vec::new();
    binds.read_to_end(&mut heard).unwrap();
    assert!(contains(&heard, b"0A000"), "{heard:?}");
    assert!(contains(&heard, b"channel_binding=prefer"), "{heard:?}");
    assert_eq!(good.query("SELECT 1").value(), "1");
    drop(slow);
}

#[test]
fn a_front_may_require_tls() {
    let wanted = Wanted {
        authentication: "trust",
        tls: Encryption::Required,
        ..PLAIN
    };
    let Some(cluster) = Cluster::start("a_front_may_require_tls", &wanted) else {
        return;
    };
    for (mode, is_let_in) in [("disable", false), ("prefer", true), ("require", true)] {
        let output = cluster.says(&format!("sslmode={mode}"), "SELECT 1");
        let (said, why) = told(&output);
        assert_eq!(said == "1", is_let_in, "{mode}: {why}");
        if !is_let_in {
            assert!(why.contains("takes clients over TLS alone"), "{why}");
        }
    }
}
