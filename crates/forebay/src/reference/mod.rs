//! The pages of `docs/reference` and `dist/openapi.json`, made of what the program itself goes by.
//!
//! They are kept in the repository, so that they can be read and reviewed there. The test below fails
//! where one is not what would be made now; `cargo xtask docs` writes them anew.

mod api;
mod cli;
mod configuration;
mod events;
mod metrics;
mod written;

use std::path::Path;

/// Set by `cargo xtask docs`: write what is stale in place of failing.
const WRITE: &str = "FOREBAY_WRITE_REFERENCE";

/// What stands at the head of each page.
const MADE: &str = "<!-- Made from the code by `cargo xtask docs`; do not edit. -->\n\n";

/// Every file below the repository's root, with what belongs in it.
fn files() -> Vec<(&'static str, String)> {
    let document = crate::server::tests::openapi();
    let page = |text: String| format!("{MADE}{}\n", text.trim_end());
    vec![
        (
            "docs/reference/configuration.md",
            page(configuration::page()),
        ),
        ("docs/reference/cli.md", page(cli::page())),
        ("docs/reference/api.md", page(api::page(&document))),
        ("docs/reference/metrics.md", page(metrics::page())),
        ("docs/reference/events.md", page(events::page())),
        ("dist/openapi.json", format!("{document:#}\n")),
    ]
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .replace('<', "\\<")
        .replace('*', "\\*")
        .replace('\n', " ")
}

/// A table in Markdown; its cells have gone through [`cell`] where they are not Markdown.
fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let line = |cells: &[String; N]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", " --- |".repeat(N));
    let rows: String = rows.iter().map(line).collect();
    format!("{}{rule}{rows}\n", line(&titles.map(str::to_owned)))
}

#[test]
fn the_reference_says_what_the_code_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let write = std::env::var_os(WRITE).is_some();
    let mut stale = Vec::new();
    for (path, text) in files() {
        let kept = std::fs::read_to_string(root.join(path)).unwrap_or_default();
        if kept == text {
            continue;
        }
        if write {
            std::fs::write(root.join(path), text).unwrap();
        } else {
            stale.push(path);
        }
    }
    assert!(
        stale.is_empty(),
        "not what the code says any more: {stale:?}; type `cargo xtask docs`, and commit them"
    );
}

#[test]
fn each_page_of_the_reference_is_in_the_summary() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let summary = std::fs::read_to_string(root.join("docs/SUMMARY.md")).unwrap();
    for (path, _) in files() {
        if let Some(page) = path.strip_prefix("docs/") {
            assert!(summary.contains(&format!("({page})")), "{page}");
        }
    }
}
