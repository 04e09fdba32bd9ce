//! Redis under redis-benchmark.

use std::net::TcpStream;
use std::process::Command;

use super::stage::Stage;
use super::{App, Class, Latency, Server, Trial, free_port};

#[derive(Default)]
pub(super) struct Redis {
    port: u16,
}

/// redis-benchmark counts requests, whatever time they take; about as many as it has answered in
/// a second of a small host.
const REQUESTS_PER_S: u64 = 50_000;

impl Trial for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn edits(&self, _stage: &Stage) -> Vec<(&'static str, String)> {
        vec![(
            r#""--port", "6379""#,
            format!(r#""--port", "{}""#, self.port),
        )]
    }

    fn apps(&self) -> &'static [App] {
        &[
            App {
                name: "redis",
                class: Class::Critical,
                // Debian 12 has redis-server as a link to redis-check-rdb.
                programs: &["redis-server", "redis-check-rdb"],
            },
            App {
                name: "redis-benchmark",
                class: Class::Standard,
                programs: &["redis-benchmark"],
            },
            App {
                name: "build",
                class: Class::Batch,
                programs: &["make", "cc1"],
            },
        ]
    }

    fn prepare(&mut self, _stage: &Stage) -> Result<(), String> {
        self.port = free_port()?;
        Ok(())
    }

    fn server(&self, stage: &Stage) -> Command {
        let port = self.port.to_string();
        let mut redis = stage.program_as("redis", "redis-server");
        redis.args(["--port", &port, "--bind", "127.0.0.1"]);
        redis.args(["--save", "", "--maxmemory", "256mb"]);
        redis
    }

    fn server_kind(&self) -> Server {
        Server::OfForebay
    }

    fn is_ready(&self, _stage: &Stage) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn load(&self, stage: &Stage) -> Command {
        let port = self.port.to_string();
        let requests = (stage.load_s() * REQUESTS_PER_S).to_string();
        let mut benchmark = stage.program("redis-benchmark");
        benchmark.args(["-h", "127.0.0.1", "-p", &port, "-t", "get", "-n", &requests]);
        benchmark.args(["-c", "50", "--csv"]);
        benchmark
    }

    fn latency(&self, _stage: &Stage, output: &str) -> Result<Latency, String> {
        parse(output).ok_or_else(|| format!("read what redis-benchmark says: it says\n{output}"))
    }

    fn runs_build(&self) -> bool {
        true
    }
}

/// The row of the first test, by the names of its columns.
fn parse(output: &str) -> Option<Latency> {
    let mut lines = output
        .lines()
        .skip_while(|line| !line.starts_with("\"test\""));
    let cells = |line: &str| -> Vec<String> {
        line.split(',')
            .map(|cell| cell.trim_matches('"').to_owned())
            .collect()
    };
    let names = cells(lines.next()?);
    let row = cells(lines.next()?);
    let value = |name: &str| {
        let column = names.iter().position(|column| column == name)?;
        row.get(column)?.parse::<f64>().ok()
    };
    Some(Latency {
        p50_ms: value("p50_latency_ms")?,
        p99_ms: value("p99_latency_ms")?,
        per_s: value("rps")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_benchmark_says_is_read() {
        let output = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                      \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                      \"GET\",\"99601.59\",\"0.273\",\"0.080\",\"0.271\",\"0.407\",\"0.471\",\"0.999\"\n";
        let expected = Latency {
            p50_ms: 0.271,
            p99_ms: 0.471,
            per_s: 99601.59,
        };
        assert_eq!(parse(output), Some(expected));
        assert_eq!(parse("Could not connect"), None);
    }
}
