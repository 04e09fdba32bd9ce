//! `forebay backtest` from outside: tables, files, and what it says of bad input.

#![expect(
    clippy::unwrap_used,
    reason = "a test, whose functions clippy does not see as such"
)]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn forebay(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("backtest").args(words).current_dir(dir);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A day of samples with a period of an hour, noise, and one of them missing.
fn recorded(seed: u64) -> String {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut text = "timestamp,value\n".to_owned();
    for step in (0..1440_u32).filter(|step| *step != 700) {
        let wave = if step % 60 < 15 { 4.0 } else { 1.0 };
        writeln!(
            text,
            "{},{:.4}",
            1_700_000_000 + 60 * step,
            wave + 0.3 * rng.f64()
        )
        .unwrap();
    }
    text
}

#[test]
fn one_series_gives_a_table_json_and_a_chart() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.csv"), recorded(1)).unwrap();
    let words = [
        "web.csv",
        "--history",
        "240",
        "--horizons",
        "12,1",
        "--json",
        "out.json",
    ];
    let models = [
        "ensemble",
        "mixture",
        "arima",
        "lstm",
        "series",
        "window",
        "smoothing",
        "seasonal",
        "last-value",
        "histogram",
        "moving-max",
    ];
    for chart in ["fan.svg", "fan.png"] {
        let output = forebay(dir.path(), &[&words[..], &["--chart", chart]].concat());
        let shown = text(&output.stdout);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let head = "web.csv: 1439 rows, one every 60 s, cycle of 60 steps, 1 missing\n";
        assert!(shown.starts_with(head), "{shown}");
        for model in models {
            let rows = shown
                .lines()
                .filter(|line| line.split(' ').next() == Some(model));
            assert_eq!(rows.count(), 2, "{model}: {shown}");
        }
    }
    let json = fs::read_to_string(dir.path().join("out.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let scores = report["files"][0]["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 2 * models.len());
    let loss = |model: &str, horizon: u64| {
        let of =
            |score: &&serde_json::Value| score["model"] == model && score["horizon"] == horizon;
        scores.iter().find(of).unwrap()["relative"][2]
            .as_f64()
            .unwrap()
    };
    assert!((loss("last-value", 12) - 1.0).abs() < 1e-9);
    assert!(loss("mixture", 12) < 0.8, "the hour was not learnt: {json}");
    assert!(loss("moving-max", 1) > loss("mixture", 1));
    let svg = fs::read_to_string(dir.path().join("fan.svg")).unwrap();
    assert!(svg.contains(">web: ensemble<") && svg.contains(">12 steps (12 min) ahead: "));
    assert!(
        fs::read(dir.path().join("fan.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
}

#[test]
fn several_series_are_taken_together() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.csv"), recorded(1)).unwrap();
    fs::write(dir.path().join("b.csv"), recorded(2)).unwrap();
    let words = [
        "a.csv",
        "b.csv",
        "--models",
        "window,moving-max",
        "--target",
        "peak",
        "--horizons",
        "12",
        "--json",
        "o.json",
    ];
    let output = forebay(dir.path(), &words);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(shown.contains("geometric means of ratios"), "{shown}");
    let report = fs::read_to_string(dir.path().join("o.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let ratio = |place: &serde_json::Value| place["relative"][2].as_f64().unwrap();
    let files = &report["files"];
    let mean = (ratio(&files[0]["scores"][0]) * ratio(&files[1]["scores"][0])).sqrt();
    assert!((ratio(&report["together"][0]) - mean).abs() < 1e-9);
    assert_eq!(report["together"][0]["series"], 2);
}

#[test]
fn origins_that_are_given_are_forecast() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.csv"), recorded(1)).unwrap();
    fs::write(dir.path().join("o"), "series,origin\nweb,900\nweb,500\n").unwrap();
    let run = |models: &str| {
        let words = [
            "--data",
            ".",
            "--origins",
            "o",
            "--out",
            "f.csv",
            "--models",
            models,
        ];
        let output = forebay(dir.path(), &words);
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs::read_to_string(dir.path().join("f.csv")).unwrap()
    };
    let forecasts = run("last-value");
    let lines: Vec<&str> = forecasts.lines().collect();
    assert_eq!(lines[0], "series,origin,step,q50,q90,q95,q99");
    assert_eq!(lines.len(), 7);
    // The last value is the median, and row 500 stands on line 502 of the file.
    let series = recorded(1);
    let value: f64 = series
        .lines()
        .nth(501)
        .unwrap()
        .split(',')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let fields: Vec<&str> = lines[1].split(',').collect();
    assert_eq!(fields[..3], ["web", "500", "1"]);
    assert!((fields[3].parse::<f64>().unwrap() - value).abs() < 1e-9);
    let cost = fs::read_to_string(dir.path().join("f.csv.json")).unwrap();
    let cost: serde_json::Value = serde_json::from_str(&cost).unwrap();
    assert!(cost["predict_ms"].as_f64().unwrap() > 0.0 && cost["rss_mb"].as_f64().unwrap() > 1.0);
    assert_ne!(run("mixture"), forecasts);

    fs::write(dir.path().join("o"), "series,origin\nweb,1439\n").unwrap();
    let words = ["--data", ".", "--origins", "o", "--out", "f.csv"];
    let output = forebay(dir.path(), &words);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("it has 1439 rows and the origins name row 1439"));
}

#[test]
fn bad_input_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let check = |content: &[u8], words: &[&str], status: i32, said: &str| {
        fs::write(dir.path().join("x.csv"), content).unwrap();
        let output = forebay(dir.path(), words);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(error.contains(said), "{error} does not say {said}");
    };
    let good = recorded(1);
    check(
        b"",
        &["x.csv"],
        1,
        "x.csv: it is empty; write one line for each sample",
    );
    check(
        b"0,1\n1,-1\n",
        &["x.csv"],
        1,
        "x.csv:2: -1 is negative, which no demand is; record",
    );
    check(
        b"0,1\n1,1\n0.5,1\n",
        &["x.csv"],
        1,
        "x.csv:3: its time is 0.5 s before that of the row above; sort",
    );
    check(
        b"\x89PNG\r\n\x1a\n\0",
        &["x.csv"],
        1,
        "x.csv:1: this is not text; name a CSV file",
    );
    check(
        b"0,1\n",
        &["x.csv"],
        1,
        "x.csv: of 1 steps none is left to be judged; record more",
    );
    check(
        b"",
        &["y.csv"],
        1,
        "read y.csv; name a CSV file that can be read: No such file",
    );
    check(b"", &["."], 1, "read .; name a CSV file that can be read");
    let good = good.as_bytes();
    check(
        good,
        &["x.csv", "--json", "no/o.json"],
        1,
        "write no/o.json; name a file in a directory",
    );
    check(
        good,
        &["x.csv", "--chart", "o.gif"],
        2,
        "--chart o.gif: name a file that ends in .svg or .png",
    );
    check(
        good,
        &["x.csv", "--horizons", "1,2,3,4,5"],
        2,
        "--horizons has 5 numbers; name 1 to 4",
    );
    check(
        good,
        &["x.csv", "--horizons", "721"],
        2,
        "--horizons has 721; name 1 to 720",
    );
    check(
        good,
        &["x.csv", "--models", "series,series"],
        2,
        "--models has series twice",
    );
}
