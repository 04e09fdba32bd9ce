//! PostgreSQL that is handed over to another host by a move, and back, under clients that ask.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::fronts::free_port;
use crate::leaving::{Hosts, Load, await_served};
use crate::place::{eventually, signal};
use crate::standby::{PROGRAMS, as_postgres, succeed};

/// Settings that let a former primary be rewound, and a standby hear at once that it is promoted. A promotion copies
/// a segment of the log: they are small.
const SETTINGS: &str = "unix_socket_directories = ''\nshared_buffers = 16MB\nwal_log_hints = on\n\
    wal_keep_size = 64MB\nwal_retrieve_retry_interval = 10ms\nmin_wal_size = 80MB\n\
    dynamic_shared_memory_type = mmap\n";

/// What the user of the other host starts: it follows the one that serves, unless that is itself, or
/// nobody is.
const STARTER: &str = r#"#!/bin/bash
set -eu
programs=$1 data=$2 port=$3 other=$4
ask() { "$programs/psql" -X -A -t -h 127.0.0.1 -p "$other" -d postgres -c 'SELECT pg_is_in_recovery()'; }
source="host=127.0.0.1 port=$other user=postgres dbname=postgres"
if [ "$(ask)" = f ]; then
  if [ ! -e "$data/PG_VERSION" ]; then
    "$programs/pg_basebackup" -d "$source application_name=shop-b" -D "$data" -R -c fast
  elif [ ! -e "$data/standby.signal" ]; then
    "$programs/pg_rewind" --target-pgdata="$data" --source-server="$source" -R
    echo "primary_conninfo = '$source application_name=shop-b'" >>"$data/postgresql.auto.conf"
  fi
fi
exec "$programs/postgres" -D "$data" -p "$port"
"#;

/// One message of the protocol, version 3: its kind and the whole of it behind its length.
fn message(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes(head[1..].try_into().unwrap());
    let mut rest = vec![0; length as usize - 4];
    stream.read_exact(&mut rest).unwrap();
    (head[0], rest)
}

/// Reads to the end of an answer.
fn answer(stream: &mut TcpStream) -> Vec<Vec<u8>> {
    let mut rows = Vec::new();
    loop {
        match message(stream) {
            (b'Z', _) => return rows,
            (b'E', why) => panic!("{}", String::from_utf8_lossy(&why)),
            (b'D', row) => rows.push(row),
            _ => {}
        }
    }
}

fn open(stream: &mut TcpStream) {
    let body = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00";
    let length = u32::try_from(body.len() + 4).unwrap();
    stream.write_all(&length.to_be_bytes()).unwrap();
    stream.write_all(body).unwrap();
    answer(stream);
}

fn ask(stream: &mut TcpStream) {
    let text = b"SELECT count(*) FROM ledger\0";
    let length = u32::try_from(text.len() + 4).unwrap();
    stream
        .write_all(&[b"Q", &length.to_be_bytes()[..], text].concat())
        .unwrap();
    // One column of one byte, a 1: nothing of the ledger was lost.
    assert_eq!(answer(stream), [b"\0\x01\0\0\0\x011".to_vec()]);
}

fn psql(port: u16, sql: &str) -> String {
    let mut psql = as_postgres("psql");
    psql.args(["-X", "-A", "-t", "-h", "127.0.0.1", "-p", &port.to_string()]);
    let output = succeed(psql.args(["-v", "ON_ERROR_STOP=1", "-c", sql]));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_postgres_is_handed_over_by_a_move_and_no_query_fails() {
    let test = "a_postgres_is_handed_over_by_a_move_and_no_query_fails";
    if !Path::new(PROGRAMS).join("postgres").exists() {
        println!("SKIPPED: {test}: PostgreSQL 15 is not installed");
        return;
    }
    let Some(mut hosts) = Hosts::new(test, &["a", "b"]) else {
        return;
    };
    let [port, a, b] = [(); 3].map(|()| free_port());
    let base = hosts.place("a").path("pg");
    let owned = ["-d", "-o", "postgres", "-g", "postgres"];
    succeed(Command::new("install").args(owned).arg(&base));
    let data = base.join("a");
    let mut initdb = as_postgres("initdb");
    let small = ["--auth", "trust", "--wal-segsize", "1", "-D"];
    succeed(initdb.args(small).arg(&data));
    let file = data.join("postgresql.conf");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text + SETTINGS).unwrap();
    let starter = base.join("start-standby");
    fs::write(&starter, STARTER).unwrap();
    let base = base.display();
    let app = |exec: String| {
        format!(
            "[apps.shop]\nclass = \"critical\"\nrestart = \"always\"\nuser = \"postgres\"\n\
             move = {{ mode = \"handoff\" }}\nexec = [{exec}]\nstderr = \"{base}/log\"\n"
        )
    };
    let exec = format!("\"{PROGRAMS}/postgres\", \"-D\", \"{base}/a\", \"-p\", \"{a}\"");
    let front = format!(
        "[fronts.web]\nmode = \"postgres\"\nlisten = [\"127.0.0.1:{port}\"]\n\
         instances = {{ shop = \"127.0.0.1:{a}\", shop-b = \"127.0.0.1:{b}\" }}\n\
         elsewhere = {{ shop-b = \"b\" }}\n[fronts.web.postgres]\nuser = \"postgres\"\n\
         rebuild_after = \"300ms\"\ndata = {{ shop = \"{base}/a\" }}\n"
    );
    hosts.start("a", &(app(exec) + &front));
    eventually("it is served", || {
        hosts.place("a").json(&["shadow", "status", "web"])["primary"] == "shop"
            && hosts.owns("a") == ["shop"]
    });
    psql(
        port,
        "CREATE TABLE ledger (id int); INSERT INTO ledger VALUES (1)",
    );
    let exec = format!(
        "\"/bin/bash\", \"{}\", \"{PROGRAMS}\", \"{base}/b\", \"{b}\", \"{a}\"",
        starter.display()
    );
    hosts.start("b", &app(exec));
    hosts.await_members();
    await_served(&hosts, "a");
    let mut load = Load::start(port, 4, (open, ask));
    for _ in 0..2 {
        load.begin();
        let moved = hosts.place("a").json(&["move", "shop", "--to", "b"]);
        assert_eq!(moved["stage"], "moved", "{moved}");
        load.note();
        // The former primary of the front's own host is rewound by itself.
        await_served(&hosts, "b");
        assert_eq!(psql(a, "SELECT pg_is_in_recovery()"), "t");
        load.begin();
        let moved = hosts.place("b").json(&["move", "shop", "--to", "a"]);
        assert_eq!(moved["stage"], "moved", "{moved}");
        load.note();
        // That of the other host is its user's to begin anew.
        signal(hosts.place("b").await_pid("shop"), Signal::INT);
        await_served(&hosts, "a");
        assert_eq!(psql(b, "SELECT pg_is_in_recovery()"), "t");
    }
    println!(
        "{}",
        hosts.place("a").json(&["shadow", "status", "web"])["changes"]
    );
    load.end(test);
}
