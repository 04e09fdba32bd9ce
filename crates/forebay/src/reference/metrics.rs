//! The page of metrics, from an answer that has a value of each.

use std::collections::{BTreeMap, BTreeSet};

use super::{cell, table};

const HEAD: &str = "\
# Metrics

`GET /metrics` on the socket, and on `daemon.http` where that is configured, in the text format of
OpenMetrics. A value that is not known now is left out and never 0. There are as many series as there
are apps, CPUs, block devices that apps use, tiers, fronts and their instances; a counter begins anew when the
daemon does, those of updates excepted, and those of a front's requests when its process does.
`dist/grafana` has a dashboard and `dist/prometheus` alerts for these names.

";

#[derive(Debug, Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

pub(super) fn page() -> String {
    let rows: Vec<_> = read(&crate::server::tests::every_metric())
        .into_iter()
        .map(|(name, metric)| {
            let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
            [
                format!("`{name}`"),
                metric.kind,
                unit(&name).to_owned(),
                labels.join(", "),
                cell(&metric.help),
            ]
        })
        .collect();
    HEAD.to_owned() + &table(["Name", "Type", "Unit", "Labels", "Meaning"], &rows)
}

/// The metrics by the names of their samples.
fn read(text: &str) -> BTreeMap<String, Metric> {
    let mut said: BTreeMap<&str, Metric> = BTreeMap::new();
    let mut metrics = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match *words.as_slice() {
            ["#", "HELP", name, help] => said.entry(name).or_default().help = help.to_owned(),
            ["#", "TYPE", name, kind] => said.entry(name).or_default().kind = kind.to_owned(),
            ["#", ..] => {}
            _ => {
                let (name, labels) = sample(line);
                let family = name.strip_suffix("_total").unwrap_or(name);
                let told = said
                    .get(family)
                    .unwrap_or_else(|| panic!("{name} has no type"));
                let metric: &mut Metric =
                    metrics.entry(name.to_owned()).or_insert_with(|| Metric {
                        kind: told.kind.clone(),
                        help: told.help.clone(),
                        labels: BTreeSet::new(),
                    });
                metric.labels.extend(labels);
            }
        }
    }
    metrics
}

/// The name of a sample, and those of its labels, whose values have no commas here.
fn sample(line: &str) -> (&str, Vec<String>) {
    let (name, rest) = line.split_once(['{', ' ']).unwrap();
    let labels = match rest.split_once('}') {
        Some((labels, _)) => labels
            .split(',')
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .collect(),
        None => Vec::new(),
    };
    (name, labels)
}

/// The unit, which the name says by convention.
fn unit(name: &str) -> &'static str {
    const UNITS: [(&str, &str); 10] = [
        ("_bytes_per_second", "bytes per second"),
        ("_per_second", "1 per second"),
        ("_seconds", "seconds"),
        ("_bytes", "bytes"),
        ("_bytes_max", "bytes"),
        ("_cores", "CPUs"),
        ("_cpus", "CPUs"),
        ("_ratio", "ratio"),
        ("_packets", "packets"),
        ("_segments", "segments"),
    ];
    let name = name.strip_suffix("_total").unwrap_or(name);
    let unit = UNITS.iter().find(|(suffix, _)| name.ends_with(suffix));
    unit.map_or("", |(_, unit)| unit)
}

#[test]
fn samples_are_read_with_their_labels() {
    let text = "# HELP a_b Help me.\n# TYPE a_b counter\na_b_total{x=\"1\",y=\"a b\"} 2\n# EOF\n";
    let metrics = read(text);
    let metric = &metrics["a_b_total"];
    assert_eq!(
        (metric.kind.as_str(), metric.help.as_str()),
        ("counter", "Help me.")
    );
    assert_eq!(
        metric.labels,
        BTreeSet::from(["x".to_owned(), "y".to_owned()])
    );
}
