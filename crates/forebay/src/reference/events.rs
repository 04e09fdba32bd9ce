//! The page of events, from the enumeration of their kinds and what is said of each there.

use super::{cell, table};

const HEAD: &str = "\
# Events

What an operator would want to have been told. `forebay events` shows the latest, `--follow` goes on
with those to come; `GET /v1/events` and `GET /v1/stream` have them as JSON, the history keeps them,
and `forebay_events_total` counts them by kind. Each has a time, the app that it is about (or none,
when it is about the host), a kind and a message in words. More kinds may come.

";

/// Where the kinds are.
const SOURCE: &str = include_str!("../../../forebay-core/src/report.rs");

pub(super) fn page() -> String {
    let rows: Vec<_> = kinds()
        .into_iter()
        .map(|(kind, meaning)| [format!("`{kind}`"), cell(&meaning)])
        .collect();
    HEAD.to_owned() + &table(["Kind", "Meaning"], &rows)
}

/// Each kind by its name on the wire, with its meaning.
fn kinds() -> Vec<(&'static str, String)> {
    let (_, body) = SOURCE.split_once("pub enum EventKind {").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let mut meaning = Vec::new();
    let mut kinds = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(said) = line.strip_prefix("/// ") {
            meaning.push(said);
        } else if let Some(name) = line.strip_suffix(',') {
            let kind = serde_json::from_value(snake_case(name).into()).unwrap();
            let meaning = std::mem::take(&mut meaning).join(" ");
            kinds.push((crate::server::tests::event_kind(kind), meaning));
        }
    }
    kinds
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[test]
fn every_kind_has_a_name_and_a_meaning() {
    let kinds = kinds();
    assert!(kinds.len() >= 16, "{kinds:?}");
    for (kind, meaning) in &kinds {
        assert!(meaning.ends_with('.'), "{kind}: {meaning}");
    }
    assert_eq!(kinds[0], ("started", "A program was started.".to_owned()));
}
