//! The page of configuration keys, from the table that the reader of configurations goes by.

use super::{cell, table};
use crate::config::{Key, Kind, ROOT};

const HEAD: &str = "\
# Configuration keys

`/etc/forebay/forebay.toml` is TOML. A key that is not here is refused with its line and the nearest
one that is. `forebay check` says every mistake at once; `forebay check --schema` prints the same
table as JSON Schema, for editors.

";

/// How the values of each kind are written.
const KINDS: [[&str; 3]; 7] = [
    [
        "duration",
        "a number with `us`, `ms`, `s`, `m` or `min`, `h` or `d`",
        "`\"100ms\"`",
    ],
    [
        "size",
        "bytes; as text with `B`, `K` or `KiB`, `M` or `MiB`, `G` or `GiB`, `T` or `TiB` (powers of 1024), \
         or `kB`, `MB`, `GB`, `TB` (powers of 1000)",
        "`\"64MiB\"`",
    ],
    [
        "CPUs",
        "a number of CPUs, or thousandths as text with `m`",
        "`1.5`, `\"1500m\"`",
    ],
    [
        "rate",
        "bits per second, as text with `bit`, `Kbit`, `Mbit` or `Gbit` (powers of 1000)",
        "`\"100Mbit\"`",
    ],
    ["percent", "a whole number with `%`", "`\"30%\"`"],
    ["count", "a whole number", "`64`"],
    [
        "address",
        "an IP address with its port",
        "`\"127.0.0.1:9475\"`",
    ],
];

pub(super) fn page() -> String {
    let kinds = KINDS.map(|row| row.map(str::to_owned));
    let mut page = HEAD.to_owned() + &table(["Type", "Written as", "Such as"], &kinds);
    page += "Sections below: the name in brackets is the heading in the file, and `NAME` is one that you choose.\n\n";
    let sections: Vec<_> = ROOT.iter().map(|key| row(key, "")).collect();
    page += &table(["Section", "Type", "Default", "Meaning"], &sections);
    for key in ROOT {
        section(key, "", &mut page);
    }
    page
}

/// The section of a key that has one, with all those in it.
fn section(key: &Key, within: &str, page: &mut String) {
    let Some((heading, keys)) = heading(key, within) else {
        return;
    };
    let path = heading.trim_matches(['[', ']']);
    *page += &format!("## `{heading}`\n\n{}.\n\n", key.doc.replace('*', "\\*"));
    let rows: Vec<_> = keys.iter().map(|key| row(key, path)).collect();
    *page += &table(["Key", "Type", "Default", "Meaning"], &rows);
    for key in keys {
        section(key, path, page);
    }
}

/// How a section is headed in a file, and what may be in it.
fn heading(key: &Key, within: &str) -> Option<(String, &'static [Key])> {
    let path = match within {
        "" => key.name.to_owned(),
        within => format!("{within}.{}", key.name),
    };
    match key.kind {
        Kind::Section(keys) => Some((format!("[{path}]"), keys)),
        Kind::Sections(keys) => Some((format!("[{path}.NAME]"), keys)),
        Kind::Rows(keys) => Some((format!("[[{path}]]"), keys)),
        _ => None,
    }
}

fn row(key: &Key, within: &str) -> [String; 4] {
    let (meaning, default) = meaning(key.doc);
    let default = default.map_or("none".to_owned(), cell);
    let (name, kind, default) = match heading(key, within) {
        Some((heading, _)) => (
            format!("[`{}`](#{})", key.name, anchor(&heading)),
            format!("section `{heading}`"),
            "".to_owned(),
        ),
        None => (format!("`{}`", key.name), kind(&key.kind), default),
    };
    [name, kind, default, cell(meaning)]
}

/// The anchor that the book gives a heading: letters, digits, `-` and `_` in lower case.
fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .collect::<String>()
        .to_ascii_lowercase()
}

/// A key's sentence without its default, and that.
fn meaning(doc: &str) -> (&str, Option<&str>) {
    let split = doc.strip_suffix(')').and_then(|doc| {
        let (meaning, default) = doc.rsplit_once(" (default")?;
        Some((meaning, default.trim_start_matches(':').trim_start()))
    });
    split.map_or((doc, None), |(meaning, default)| (meaning, Some(default)))
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Texts => "list of texts".to_owned(),
        Kind::TextOrTexts => "text, or list of texts".to_owned(),
        Kind::TextMap => "texts by name".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Bytes => "size".to_owned(),
        Kind::Cpu => "CPUs".to_owned(),
        Kind::Rate => "rate".to_owned(),
        Kind::Percent => "percent".to_owned(),
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::Address => "address".to_owned(),
        Kind::Count { min, max } if *max == i64::MAX.unsigned_abs() => {
            format!("count, at least {min}")
        }
        Kind::Count { min, max } => format!("count, {min} to {max}"),
        Kind::Choice { words, .. } => {
            let words: Vec<_> = words.iter().map(|word| format!("`\"{word}\"`")).collect();
            words.join(", ")
        }
        Kind::OrMax(inner) => format!("{}, or `\"max\"`", self::kind(inner)),
        Kind::Section(_) | Kind::Sections(_) | Kind::Rows(_) => "section".to_owned(),
    }
}

/// A default that stands elsewhere in the sentence would be told twice or not at all.
#[test]
fn defaults_stand_at_the_end_of_what_is_said_of_a_key() {
    fn check(keys: &[Key]) {
        for key in keys {
            let (meaning, _) = meaning(key.doc);
            assert!(!meaning.contains("(default"), "{}: {meaning}", key.name);
            if let Some((_, keys)) = heading(key, "") {
                check(keys);
            }
        }
    }
    check(ROOT);
}
