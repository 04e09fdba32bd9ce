//! Two redis-servers behind a front of the same daemon, for the demo.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::clients::End;
use super::shop::{Behind, PATIENCE, Shop, free_port};
use super::{Fault, Scene};
use crate::demo::Error;

const PROGRAM: &str = "redis-server";
/// What an order's number is divided by to find its list: those of one round are in one.
const ROUND: u64 = 1 << 32;
/// More orders than one round takes.
const ORDERS_MAX: u64 = 10_000_000;

/// Whether there is a redis-server, and else how to get one.
pub(super) fn is_installed() -> Result<(), String> {
    let found = Command::new(PROGRAM)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match found {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{PROGRAM} --version: {status}")),
        Err(error) => Err(format!(
            "{PROGRAM}: {error}; `apt-get install redis-server` gets it"
        )),
    }
}

/// Behind Forebay, with guarantee `strict`.
pub(super) struct Cache {
    address: SocketAddr,
    front: Behind,
    /// The list of the round that goes on.
    round: u64,
}

impl Cache {
    /// What the daemon has to be told, and who asks then.
    pub(super) fn plan(scene: &Scene<'_>) -> Result<(Self, String), Error> {
        let [port, a, b] = [free_port()?, free_port()?, free_port()?];
        let mut text = String::new();
        for (name, port) in [("redis-a", a), ("redis-b", b)] {
            let command = toml::Value::from(server(scene, port));
            text += &format!(
                "[apps.{name}]\nclass = \"critical\"\nrestart = \"always\"\nexec = {command}\n"
            );
        }
        // Without `continue`, what a client waits for is the one that was killed, not the front.
        text += &format!(
            "[fronts.cache]\nmode = \"redis\"\nlisten = [\"127.0.0.1:{port}\"]\n\
             instances = {{ redis-a = \"127.0.0.1:{a}\", redis-b = \"127.0.0.1:{b}\" }}\n\
             [fronts.cache.redis]\nguarantee = \"strict\"\nwithout_shadow = \"continue\"\n"
        );
        let cache = Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            front: Behind::new(scene, "cache"),
            round: 0,
        };
        Ok((cache, text))
    }

    /// What the front did, in words, the latest last.
    pub(super) fn changes(&self) -> Vec<String> {
        self.front.changes()
    }

    /// The orders of another round are asked for from now on.
    pub(super) const fn begin(&mut self, round: u64) {
        self.round = round;
    }
}

/// The command of one server.
fn server(scene: &Scene<'_>, port: u16) -> Vec<String> {
    let words = [
        PROGRAM,
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--repl-diskless-sync-delay",
        "0",
        "--logfile",
        "/dev/null",
        "--dir",
        &scene.dir.display().to_string(),
    ];
    words.map(str::to_owned).into()
}

fn list(round: u64) -> String {
    format!("orders-{round}")
}

fn command(words: &[&str]) -> String {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    text
}

/// An order, or a look.
pub(super) fn request(order: Option<u64>) -> String {
    match order {
        Some(id) => command(&["RPUSH", &list(id / ROUND), &id.to_string()]),
        None => command(&["GET", "item"]),
    }
}

/// What an answer to one of these means, once it is there.
pub(super) fn answer(bytes: &[u8]) -> Option<End> {
    let end = bytes.windows(2).position(|window| window == b"\r\n")?;
    let line = bytes.get(..end)?;
    Some(match line {
        [b':', ..] | b"$-1" | b"_" => End::Answered,
        _ if line.starts_with(b"-INDOUBT") => End::Unknown,
        _ => End::Failed,
    })
}

impl Shop for Cache {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn await_ready(&mut self) -> Result<(), Error> {
        self.front.await_ready()
    }

    fn hurt(&mut self, fault: Fault) -> Result<Instant, Error> {
        self.front.strike(fault)
    }

    fn heal(&mut self, fault: Fault) -> Result<(), Error> {
        self.front.let_go_on(fault);
        Ok(())
    }

    fn executed(&self) -> Result<HashMap<u64, u32>, Error> {
        let failed = || {
            Error::system(
                "read the orders of",
                format!("the front `cache` at {}", self.address),
                "see what the front did, below",
            )
        };
        read(self.address, &list(self.round)).map_err(failed())
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        // The daemon ends it.
        Ok(())
    }
}

/// How often each number is in a list.
fn read(address: SocketAddr, list: &str) -> std::io::Result<HashMap<u64, u32>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(command(&["LRANGE", list, "0", "-1"]).as_bytes())?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut number = |mark: char, stream: &mut BufReader<TcpStream>| {
        line.clear();
        stream.by_ref().take(1024).read_line(&mut line)?;
        let number = line.trim_end().strip_prefix(mark);
        let number = number.and_then(|number| number.parse::<u64>().ok());
        number.ok_or_else(|| std::io::Error::other(format!("it says {:?}", line.trim_end())))
    };
    let mut executed = HashMap::new();
    for _ in 0..number('*', &mut stream)?.min(ORDERS_MAX) {
        number('$', &mut stream)?;
        let mut text = String::new();
        stream.by_ref().take(1024).read_line(&mut text)?;
        let id = text.trim_end().parse().map_err(std::io::Error::other)?;
        *executed.entry(id).or_default() += 1;
    }
    Ok(executed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_asked_for_and_understood() {
        let asked = request(Some(3 * ROUND + 7));
        assert_eq!(
            asked,
            "*3\r\n$5\r\nRPUSH\r\n$8\r\norders-3\r\n$11\r\n12884901895\r\n"
        );
        assert_eq!(request(None), "*2\r\n$3\r\nGET\r\n$4\r\nitem\r\n");
        assert_eq!(answer(b":17\r"), None);
        assert_eq!(answer(b":17\r\n"), Some(End::Answered));
        assert_eq!(answer(b"$-1\r\n"), Some(End::Answered));
        assert_eq!(answer(b"-INDOUBT forebay: x\r\n"), Some(End::Unknown));
        assert_eq!(answer(b"-NOREPLICAS forebay: x\r\n"), Some(End::Failed));
    }
}
