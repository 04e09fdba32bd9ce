//! Programs of others work unchanged.

use std::process::Stdio;

use forebay_shadow::redis::Options;

use super::harness::{has, pair};
use super::strict;

async fn output(program: &str, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output.stderr)
    );
    assert_eq!(text(&output.stderr), "", "{program} {arguments:?}");
    text(&output.stdout)
}

#[tokio::test]
async fn redis_cli_works() {
    if !has("redis_cli_works", "redis-server") || !has("redis_cli_works", "redis-cli") {
        return;
    }
    let (_servers, front) = pair(&[], Options::default()).await;
    let port = front.port.to_string();
    for (arguments, expected) in [
        (&["SET", "a b", "1"][..], "OK\n"),
        (&["-3", "HSET", "h", "f", "v"], "1\n"),
        (&["-3", "HGETALL", "h"], "f v\n"),
        (&["-n", "3", "EXISTS", "a b"], "0\n"),
        (
            &["EVAL", "return redis.call('INCR', KEYS[1])", "1", "a b"],
            "2\n",
        ),
        (&["--scan", "--pattern", "a*"], "a b\n"),
    ] {
        let arguments = [&["-p", &port], arguments].concat();
        let found = output("redis-cli", &arguments).await;
        assert_eq!(found.replace("f\nv", "f v"), expected, "{arguments:?}");
    }
}

#[tokio::test]
async fn redis_benchmark_works() {
    let name = "redis_benchmark_works";
    if !has(name, "redis-server") || !has(name, "redis-benchmark") {
        return;
    }
    for (guarantee, options) in [("fast", Options::default()), ("strict", strict())] {
        let (_servers, front) = pair(&[], options).await;
        let port = front.port.to_string();
        for pipeline in ["1", "16"] {
            let arguments = [
                "-p",
                &port,
                "-q",
                "-n",
                "5000",
                "-P",
                pipeline,
                "-t",
                "ping,set,get,incr,lpush,lpop,sadd,hset,spop,zadd,lrange_100,mset",
            ];
            let found = output("redis-benchmark", &arguments).await;
            let lines: Vec<&str> = found
                .split(['\r', '\n'])
                .filter(|line| line.contains("requests per second"))
                .collect();
            println!("{guarantee}, {pipeline} in a pipeline: {lines:#?}");
            assert_eq!(lines.len(), 14, "{found}");
        }
    }
}
