//! Examples of fronts: the primary is killed under a load, and the load must not notice.
//!
//! Each trial starts the example's instances and front with a daemon, sends a load through the
//! front, and kills the process of whoever serves, once the other one could, again and again. The
//! load tool must end well, and afterwards nothing may be left.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::stage::{self, Running, Signal, Stage, wait_until};
use super::{Extent, LOAD_MAX, free_port, write_copy};
use crate::json::{self, Json};
use crate::process;

/// One example of a front.
pub(super) trait Fronted {
    /// Its file in `examples/`, without extension.
    fn name(&self) -> &'static str;

    /// The front in it.
    fn front(&self) -> &'static str;

    /// Writes what the instances need, once.
    fn prepare(&mut self, stage: &Stage) -> Result<(), String>;

    /// Texts of the example and what takes their place in the copy.
    fn edits(&self, stage: &Stage) -> Vec<(&'static str, String)>;

    /// File names of executables that the example would bind wherever they run.
    fn binds(&self) -> &'static [&'static str];

    /// The load tool.
    fn load(&self, stage: &Stage) -> Command;

    /// What the tool says, in a line, or what is wrong with it.
    fn verdict(&self, output: &str) -> Result<String, String>;
}

/// All of them.
pub(super) fn all() -> Vec<Box<dyn Fronted>> {
    vec![Box::new(Redis::default()), Box::new(Http::default())]
}

/// Tries one; what it said of the load.
pub(super) fn try_one(
    example: &mut dyn Fronted,
    forebay: &Path,
    extent: Extent,
) -> Result<(), String> {
    let mut stage = Stage::new(example.name(), forebay, extent.load_s())?;
    let tried = perform(example, &mut stage);
    let removed = stage.remove();
    tried?;
    removed?;
    println!("nothing is left: no control group, no process, no file");
    Ok(())
}

fn perform(example: &mut dyn Fronted, stage: &mut Stage) -> Result<(), String> {
    example.prepare(stage)?;
    write_copy(example.name(), example.edits(stage), stage)?;
    let mut command = stage.forebay(&["daemon", "--parent-death", "--config"]);
    command.arg(stage.config());
    let mut daemon = vec![stage.spawn("daemon", Signal::Terminate, command)?];
    let suffered = suffer(example, stage, &mut daemon);
    stage.remember_family();
    let mut ended = Ok(());
    while let Some(last) = daemon.pop() {
        ended = ended.and(last.end());
    }
    suffered?;
    ended
}

/// Kills whoever serves while a load goes on, until that ends.
fn suffer(example: &dyn Fronted, stage: &mut Stage, daemon: &mut [Running]) -> Result<(), String> {
    let mut before = wait_ready(example, stage, daemon, None)?;
    let begun = Instant::now();
    let mut load = stage.spawn("load", Signal::Terminate, example.load(stage))?;
    // The load has to be there to notice.
    let calm = Duration::from_secs(stage.load_s()) / 4;
    let mut kills = 0;
    while !load.has_ended()? {
        if begun.elapsed() > LOAD_MAX {
            return Err(format!(
                "the load: no end within {} s; see what else this host does",
                LOAD_MAX.as_secs()
            ));
        }
        stage::all_run(daemon)?;
        if begun.elapsed() < calm * (kills + 1) {
            stage::pause();
            continue;
        }
        stage.remember_family();
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -s KILL \"$1\"", "sh", &before.pid]);
        process::succeed(&mut kill)?;
        let after = wait_ready(example, stage, daemon, Some(&before))?;
        println!("killed {}; {} serves", before.primary, after.primary);
        before = after;
        kills += 1;
    }
    let output = load.succeeded()?;
    let verdict = example.verdict(&output)?;
    if kills == 0 {
        return Err("the load ended before the primary was killed; give it more to do".into());
    }
    println!("{kills} kills under the load: {verdict}");
    let mut status = stage.client(&["shadow", "status", example.front()]);
    let told = status.output();
    let told = told.map_err(|error| format!("run `{}`: {error}", process::describe(&status)))?;
    println!("{}", String::from_utf8_lossy(&told.stdout).trim_end());
    Ok(())
}

/// Who serves.
struct Serving {
    primary: String,
    pid: String,
}

/// Waits until somebody serves and somebody else could, and whoever served before was replaced and
/// is back.
fn wait_ready(
    example: &dyn Fronted,
    stage: &Stage,
    daemon: &mut [Running],
    before: Option<&Serving>,
) -> Result<Serving, String> {
    wait_until("the front has a primary and a shadow", || {
        stage::all_run(daemon)?;
        let mut ask = stage.client(&["shadow", "status", example.front(), "--json"]);
        let output = ask
            .output()
            .map_err(|error| format!("run `{}`: {error}", process::describe(&ask)))?;
        // It does not answer before the daemon runs.
        if !output.status.success() {
            return Ok(None);
        }
        let told = json::parse(&String::from_utf8_lossy(&output.stdout))
            .map_err(|error| format!("read `{}`: {error}", process::describe(&ask)))?;
        Ok(serving(&told).filter(|now| before.is_none_or(|before| before.primary != now.primary)))
    })
}

fn serving(told: &Json) -> Option<Serving> {
    told.get("standby").text()?;
    let primary = told.get("primary").text()?;
    let mut instances = told.get("instances").elements().iter();
    let instance = instances.find(|instance| instance.get("app").text() == Some(primary))?;
    let Json::Number(pid) = instance.get("pid") else {
        return None;
    };
    (told.get("stage").text() == Some("warm")).then(|| Serving {
        primary: primary.to_owned(),
        pid: pid.to_string(),
    })
}

#[derive(Default)]
struct Redis {
    /// Of the front, and of the instances.
    ports: [u16; 3],
}

/// About as many reads as are answered in a second of a small and busy host.
const REDIS_READS_PER_S: u64 = 20_000;

impl Fronted for Redis {
    fn name(&self) -> &'static str {
        "redis-front"
    }

    fn front(&self) -> &'static str {
        "cache"
    }

    fn prepare(&mut self, _: &Stage) -> Result<(), String> {
        self.ports = [free_port()?, free_port()?, free_port()?];
        Ok(())
    }

    fn edits(&self, _: &Stage) -> Vec<(&'static str, String)> {
        let [front, a, b] = self.ports;
        vec![
            (r#""--port", "7001""#, format!(r#""--port", "{a}""#)),
            (r#""--port", "7002""#, format!(r#""--port", "{b}""#)),
            (
                r#"listen = ["127.0.0.1:6379"]"#,
                format!(r#"listen = ["127.0.0.1:{front}"]"#),
            ),
            (
                r#"{ redis-a = "127.0.0.1:7001", redis-b = "127.0.0.1:7002" }"#,
                format!(r#"{{ redis-a = "127.0.0.1:{a}", redis-b = "127.0.0.1:{b}" }}"#),
            ),
        ]
    }

    fn binds(&self) -> &'static [&'static str] {
        &["redis-benchmark"]
    }

    fn load(&self, stage: &Stage) -> Command {
        let port = self.ports[0].to_string();
        let requests = (stage.load_s() * REDIS_READS_PER_S).to_string();
        let mut benchmark = stage.program("redis-benchmark");
        benchmark.args(["-h", "127.0.0.1", "-p", &port, "-t", "get", "-c", "50"]);
        benchmark.args(["-n", &requests, "-q"]);
        benchmark
    }

    fn verdict(&self, output: &str) -> Result<String, String> {
        let lines = output.split(['\r', '\n']);
        let last = lines
            .rev()
            .find(|line| line.contains("requests per second"));
        last.map(str::to_owned)
            .ok_or_else(|| format!("read what redis-benchmark says: it says\n{output}"))
    }
}

#[derive(Default)]
struct Http {
    /// Of the front, and of the instances.
    ports: [u16; 3],
}

impl Fronted for Http {
    fn name(&self) -> &'static str {
        "http-front"
    }

    fn front(&self) -> &'static str {
        "web"
    }

    fn prepare(&mut self, stage: &Stage) -> Result<(), String> {
        self.ports = [free_port()?, free_port()?, free_port()?];
        let example = process::repository().join("examples/http-front.conf");
        let text = fs::read_to_string(&example)
            .map_err(|error| format!("read {}: {error}", example.display()))?;
        let dir = stage.dir().display().to_string();
        for port in &self.ports[1..] {
            let text = text
                .replace("PORT", &port.to_string())
                .replace("/run/", &format!("{dir}/"));
            let path = stage.dir().join(format!("http-front-{port}.conf"));
            fs::write(&path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
        }
        Ok(())
    }

    fn edits(&self, stage: &Stage) -> Vec<(&'static str, String)> {
        let [front, a, b] = self.ports;
        let exec = |port: u16| {
            let path = stage.dir().join(format!("http-front-{port}.conf"));
            format!("exec = {:?}", ["nginx", "-c", &path.display().to_string()])
        };
        vec![
            (
                r#"exec = ["nginx", "-c", "/run/http-front-8081.conf"]"#,
                exec(a),
            ),
            (
                r#"exec = ["nginx", "-c", "/run/http-front-8082.conf"]"#,
                exec(b),
            ),
            (
                r#"listen = ["127.0.0.1:8080"]"#,
                format!(r#"listen = ["127.0.0.1:{front}"]"#),
            ),
            (
                r#"{ web-a = "127.0.0.1:8081", web-b = "127.0.0.1:8082" }"#,
                format!(r#"{{ web-a = "127.0.0.1:{a}", web-b = "127.0.0.1:{b}" }}"#),
            ),
        ]
    }

    fn binds(&self) -> &'static [&'static str] {
        &["wrk"]
    }

    fn load(&self, stage: &Stage) -> Command {
        let mut wrk = stage.program("wrk");
        wrk.args(["--threads", "1", "--connections", "32", "--latency"]);
        wrk.arg("--script")
            .arg(process::repository().join("examples/pace.lua"))
            .arg("--duration")
            .arg(format!("{}s", stage.load_s()))
            .arg(format!("http://127.0.0.1:{}/", self.ports[0]));
        wrk
    }

    fn verdict(&self, output: &str) -> Result<String, String> {
        let line = |word: &str| output.lines().find(|line| line.contains(word));
        let wrong = line("Socket errors").or_else(|| line("Non-2xx"));
        if let Some(wrong) = wrong {
            return Err(format!("the load met errors: {}", wrong.trim()));
        }
        let rate = line("requests in").map(str::trim);
        let rate = rate.ok_or_else(|| format!("read what wrk says: it says\n{output}"))?;
        Ok(format!("{rate}, none failed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_say_is_read() {
        let good = "  20123 requests in 8.00s, 1MB read\nRequests/sec:  2515.45\n";
        assert!(Http::default().verdict(good).unwrap().contains("20123"));
        for bad in [
            "  9 requests in 8s\n  Socket errors: connect 0, read 3, write 0, timeout 0\n",
            "  9 requests in 8s\n  Non-2xx or 3xx responses: 4\n",
            "unable to connect",
        ] {
            assert!(Http::default().verdict(bad).is_err(), "{bad}");
        }
        let good = "GET: rps=9 (overall: 8)\rGET: 9960.15 requests per second, p50=0.2 msec\n";
        assert!(Redis::default().verdict(good).unwrap().contains("9960.15"));
        assert!(Redis::default().verdict("Could not connect").is_err());
    }

    #[test]
    fn whoever_serves_is_found_once_another_one_could() {
        let told = |standby: &str| {
            let text = format!(
                "{{\"stage\":\"warm\",\"primary\":\"b\",\"standby\":{standby},\"instances\":\
                 [{{\"app\":\"a\",\"pid\":7}},{{\"app\":\"b\",\"pid\":8}}]}}"
            );
            serving(&json::parse(&text).unwrap())
        };
        let found = told("\"a\"").unwrap();
        assert_eq!((found.primary.as_str(), found.pid.as_str()), ("b", "8"));
        assert!(told("null").is_none());
    }
}
