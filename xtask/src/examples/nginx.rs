//! nginx under wrk.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use super::stage::Stage;
use super::{App, Class, Latency, Server, Trial, free_port, words};
use crate::process;

#[derive(Default)]
pub(super) struct Nginx {
    port: u16,
}

/// Size of the file that is served.
const PAGE_BYTES: usize = 4096;

impl Nginx {
    fn command(stage: &Stage) -> Vec<String> {
        let prefix = stage.dir().join("nginx").display().to_string();
        let words = [
            "nginx",
            "-p",
            &prefix,
            "-c",
            "nginx.conf",
            "-g",
            "daemon off;",
        ];
        words.map(str::to_owned).to_vec()
    }
}

impl Trial for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn edits(&self, stage: &Stage) -> Vec<(&'static str, String)> {
        let exec = format!("exec = {:?}", Self::command(stage));
        vec![(r#"exec = ["nginx", "-g", "daemon off;"]"#, exec)]
    }

    fn apps(&self) -> &'static [App] {
        &[
            App {
                name: "nginx",
                class: Class::Critical,
                programs: &["nginx"],
            },
            App {
                name: "wrk",
                class: Class::Standard,
                programs: &["wrk"],
            },
            App {
                name: "build",
                class: Class::Batch,
                programs: &["make", "cc1"],
            },
        ]
    }

    fn prepare(&mut self, stage: &Stage) -> Result<(), String> {
        self.port = free_port()?;
        let prefix = stage.dir().join("nginx");
        let fail = |error| format!("write nginx's files in {}: {error}", prefix.display());
        fs::create_dir_all(prefix.join("html")).map_err(fail)?;
        fs::write(prefix.join("html/index.html"), "x".repeat(PAGE_BYTES)).map_err(fail)?;
        fs::write(prefix.join("nginx.conf"), conf(self.port)).map_err(fail)
    }

    fn server(&self, stage: &Stage) -> Command {
        words(stage, &Self::command(stage))
    }

    fn server_kind(&self) -> Server {
        Server::OfForebay
    }

    fn is_ready(&self, _stage: &Stage) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn load(&self, stage: &Stage) -> Command {
        let mut wrk = stage.program("wrk");
        wrk.args([
            "--threads",
            "1",
            "--connections",
            "32",
            "--latency",
            "--script",
        ])
        .arg(process::repository().join("examples/pace.lua"))
        .arg("--duration")
        .arg(format!("{}s", stage.load_s()))
        .arg(format!("http://127.0.0.1:{}/", self.port));
        wrk
    }

    fn latency(&self, _stage: &Stage, output: &str) -> Result<Latency, String> {
        parse(output).ok_or_else(|| format!("read what wrk says: it says\n{output}"))
    }
}

/// Everything in the prefix, on loopback, one worker for each CPU as Debian's own has it.
fn conf(port: u16) -> String {
    format!(
        "worker_processes auto;\n\
         pid nginx.pid;\n\
         error_log error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
         \x20 access_log off;\n\
         \x20 client_body_temp_path body;\n\
         \x20 proxy_temp_path proxy;\n\
         \x20 fastcgi_temp_path fastcgi;\n\
         \x20 uwsgi_temp_path uwsgi;\n\
         \x20 scgi_temp_path scgi;\n\
         \x20 server {{ listen 127.0.0.1:{port}; root html; }}\n\
         }}\n"
    )
}

fn parse(output: &str) -> Option<Latency> {
    let after = |start: &str| {
        let mut lines = output.lines().map(str::trim);
        lines
            .find_map(|line| line.strip_prefix(start))
            .map(str::trim)
    };
    Some(Latency {
        p50_ms: ms(after("50%")?)?,
        p99_ms: ms(after("99%")?)?,
        per_s: after("Requests/sec:")?.parse().ok()?,
    })
}

/// A time as wrk writes it: `636.00us`, `1.20ms`, `2.00s`.
fn ms(text: &str) -> Option<f64> {
    let units = [("us", 0.001), ("ms", 1.0), ("s", 1000.0)];
    let (number, scale) = units
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let output = "  Latency Distribution\n     50%  636.00us\n     75%    1.02ms\n     \
                      99%    3.45ms\n  9 requests in 8.00s, 1MB read\nRequests/sec:  20123.45\n";
        let latency = parse(output).unwrap();
        assert!((latency.p50_ms - 0.636).abs() < 1e-9);
        assert!((latency.p99_ms - 3.45).abs() < 1e-9);
        assert!((latency.per_s - 20123.45).abs() < 1e-9);
        assert_eq!(ms("1.50s"), Some(1500.0));
        assert_eq!(parse("unable to connect"), None);
    }
}
