//! What the pages that people write have their reader put into a configuration, or type.
//!
//! Every block of TOML in `docs/*.md` and `README.md` has to be accepted by the check that `forebay check`
//! makes, and every command by what parses the command line. Pages show pieces: [`complete`] adds what a
//! piece lacks to be a configuration, by a rule that never changes a key which is there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::FromArgMatches as _;
use clap::error::ErrorKind;
use forebay_core::units::Bytes;
use toml::{Table, Value};

use crate::config::{self, HostFacts};

/// What begins like a command within a sentence and is none: the line, and what it is.
const NO_COMMANDS: [(&str, &str); 1] =
    [("forebay update 1 APP", "a line of the protocol of updates")];

/// What an app is bound by; one that a page shows without gets [`PROGRAM`].
const BINDINGS: [&str; 5] = ["exec", "systemd", "container", "cgroup", "match"];
const PROGRAM: &str = "/usr/bin/example";
/// What instances of a front of mode `postgres` run, since their programs' directory is asked of it.
const POSTGRES: &str = "/usr/lib/postgresql/15/bin/postgres";

/// A holiday.
const CALENDAR: &[u8] = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:test\r\nBEGIN:VEVENT\r\nUID:1\r\n\
    DTSTAMP:20260101T000000Z\r\nDTSTART;VALUE=DATE:20260501\r\nSUMMARY:closed\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";

/// The pages, by their names below the root.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths: Vec<PathBuf> = fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    paths.push(root.join("README.md"));
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

/// A fenced block, or lines outside of any.
struct Part<'a> {
    /// What stands behind the fence; none outside.
    language: Option<&'a str>,
    /// Where its first line is, from 1 on.
    line: usize,
    lines: Vec<&'a str>,
}

/// A page as blocks, and what is between them.
fn parts(page: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut part = Part {
        language: None,
        line: 1,
        lines: Vec::new(),
    };
    for (number, line) in (1..).zip(page.lines()) {
        let Some(language) = line.trim_start().strip_prefix("```") else {
            part.lines.push(line);
            continue;
        };
        let next = Part {
            language: part.language.is_none().then_some(language),
            line: number + 1,
            lines: Vec::new(),
        };
        parts.push(std::mem::replace(&mut part, next));
    }
    parts.push(part);
    parts
}

/// The table behind a key; made where there is none.
fn below<'a>(table: &'a mut Table, key: &str) -> &'a mut Table {
    let entry = table
        .entry(key)
        .or_insert_with(|| Value::Table(Table::new()));
    entry
        .as_table_mut()
        .unwrap_or_else(|| panic!("`{key}` is a section"))
}

fn texts(values: &[&str]) -> Value {
    Value::Array(values.iter().map(|&text| text.into()).collect())
}

/// Adds what a piece of a configuration lacks:
///
/// 1. keys before the first heading are an app's (`[apps.example]`), unless they are sections;
/// 2. a front without a mode has the one that its own section is named after, else `tcp`; one without
///    `listen` or `instances` gets an address, and two instances: those of its `data`, if it has that; one of
///    mode `postgres` has a user;
/// 3. apps that fronts, events or forecasts name are there (but for instances `elsewhere`), and an app that
///    is bound to nothing has a program.
fn complete(mut piece: Table) -> Table {
    let is_section = |key: &String| config::ROOT.iter().any(|known| known.name == key);
    let own: Vec<String> = piece
        .keys()
        .filter(|key| !is_section(key))
        .cloned()
        .collect();
    for key in own {
        let value = piece.remove(&key).unwrap();
        below(below(&mut piece, "apps"), "example").insert(key, value);
    }
    let mut named = Vec::new();
    if let Some(fronts) = piece.get_mut("fronts").and_then(Value::as_table_mut) {
        for (name, front) in fronts.iter_mut() {
            named.extend(complete_front(name, front.as_table_mut().unwrap()));
        }
    }
    for (rows, key) in [("event", "apps"), ("external_forecast", "app")] {
        let rows = piece.get(rows).and_then(Value::as_array);
        for value in rows.into_iter().flatten().filter_map(|row| row.get(key)) {
            let names = value
                .as_array()
                .map_or(std::slice::from_ref(value), Vec::as_slice);
            let names = names.iter().filter_map(Value::as_str);
            named.extend(names.map(|name| (name.to_owned(), PROGRAM)));
        }
    }
    for (name, program) in named {
        let app = below(below(&mut piece, "apps"), &name);
        if program == POSTGRES {
            app.entry("user").or_insert("postgres".into());
        }
        bind(app, program);
    }
    if let Some(apps) = piece.get_mut("apps").and_then(Value::as_table_mut) {
        for (_, app) in apps.iter_mut() {
            bind(app.as_table_mut().unwrap(), PROGRAM);
        }
    }
    piece
}

/// Has an app that is bound to nothing run a program.
fn bind(app: &mut Table, program: &str) {
    if !BINDINGS.iter().any(|binding| app.contains_key(*binding)) {
        app.insert("exec".to_owned(), texts(&[program]));
    }
}

/// Completes a front; the apps of this host that it names, each with the program that it would run.
fn complete_front(name: &str, front: &mut Table) -> Vec<(String, &'static str)> {
    let modes = ["http", "redis", "postgres"];
    let mode = modes.into_iter().find(|mode| front.contains_key(*mode));
    front.entry("mode").or_insert(mode.unwrap_or("tcp").into());
    front.entry("listen").or_insert(texts(&["127.0.0.1:1"]));
    let data = front
        .get("postgres")
        .and_then(|section| section.get("data"));
    let names = match data.and_then(Value::as_table) {
        Some(data) => data.keys().cloned().collect(),
        None => vec![format!("{name}-a"), format!("{name}-b")],
    };
    let addresses = (2..).map(|port| Value::from(format!("127.0.0.1:{port}")));
    let instances: Table = names.into_iter().zip(addresses).collect();
    front.entry("instances").or_insert(instances.into());
    let program = match front["mode"].as_str() {
        Some("postgres") => {
            let section = below(front, "postgres");
            section.entry("user").or_insert("postgres".into());
            POSTGRES
        }
        _ => PROGRAM,
    };
    let elsewhere = front.get("elsewhere").and_then(Value::as_table);
    let here = |name: &&String| !elsewhere.is_some_and(|others| others.contains_key(*name));
    let instances = front["instances"].as_table().unwrap();
    instances
        .keys()
        .filter(here)
        .map(|name| (name.clone(), program))
        .collect()
}

/// A host that has whatever configurations of the pages name; lives as long as the guard.
struct Stage {
    facts: HostFacts,
    guard: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let root = guard.path();
        fs::create_dir(root.join("etc")).unwrap();
        let made = Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/CN=test",
            ])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout"])
            .arg(root.join("test.key"))
            .arg("-out")
            .arg(root.join("test.crt"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let facts = HostFacts {
            cpus: 8,
            memory: Bytes::mib(64 << 10),
            root: root.to_owned(),
            executable: "/usr/bin/forebay".into(),
            search_path: "/usr/bin".to_owned(),
        };
        let stage = Self { facts, guard };
        stage.put("etc/passwd", b"nobody:x:65534:65534::/:\n", 0o644);
        stage.put("etc/group", b"forebay:x:990:\n", 0o644);
        stage.put("proc/sys/kernel/hostname", b"test\n", 0o644);
        stage
    }

    /// Writes a file of the host.
    fn put(&self, path: &str, content: &[u8], mode: u32) {
        let path = self.guard.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Puts there what is named: programs, users, certificates with their keys, passwords, calendars, directories.
    fn furnish(&self, table: &Table) {
        let copy = |file: &str| fs::read(self.guard.path().join(file)).unwrap();
        for (key, value) in table {
            match (key.as_str(), value) {
                ("exec", Value::Array(words)) => {
                    let program = words[0].as_str().unwrap();
                    let place = Path::new("/usr/bin").join(program);
                    self.put(place.to_str().unwrap(), b"", 0o755);
                }
                ("user", Value::String(user)) => {
                    let passwd = self.guard.path().join("etc/passwd");
                    let known = fs::read_to_string(&passwd).unwrap();
                    fs::write(passwd, format!("{known}{user}:x:900:900::/:\n")).unwrap();
                }
                ("key", Value::String(path)) => self.put(path, &copy("test.key"), 0o600),
                ("certificate" | "ca" | "client_ca", Value::String(path)) => {
                    self.put(path, &copy("test.crt"), 0o644);
                }
                ("ics", Value::String(path)) => self.put(path, CALENDAR, 0o644),
                ("password_file", Value::String(path)) => self.put(path, b"secret\n", 0o600),
                ("directory" | "slow" | "fast", Value::String(path)) => {
                    let place = self.guard.path().join(path.trim_start_matches('/'));
                    fs::create_dir_all(place).unwrap();
                }
                (_, Value::Table(below)) => self.furnish(below),
                _ => {}
            }
        }
    }

    /// What the check says of a piece, completed.
    fn check(&self, piece: &str) -> Result<(), String> {
        let piece: Table = piece.parse().map_err(|error| format!("{error}"))?;
        let whole = complete(piece);
        self.furnish(&whole);
        let text = toml::to_string(&whole).unwrap();
        match config::parse(&text, "completed", &self.facts) {
            Ok(_) => Ok(()),
            Err(errors) => Err(format!("{errors}\n{text}")),
        }
    }
}

/// Fleets by etcd are of builds with the feature.
fn needs_more_than_this_build(piece: &str) -> bool {
    cfg!(not(feature = "etcd")) && piece.contains("[fleet")
}

#[test]
fn configurations_in_the_pages_are_accepted() {
    let stage = Stage::new();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, page) in pages() {
        for part in parts(&page)
            .iter()
            .filter(|part| part.language == Some("toml"))
        {
            let piece = part.lines.join("\n");
            if needs_more_than_this_build(&piece) {
                continue;
            }
            checked += 1;
            if let Err(why) = stage.check(&piece) {
                wrong.push(format!("{name}:{}: {why}", part.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 20, "{checked} blocks");
}

#[test]
fn a_piece_that_is_wrong_is_not_completed_into_one_that_is_right() {
    let stage = Stage::new();
    for (piece, words) in [
        ("floor = { cpus = 1 }", "unknown key `cpus`"),
        ("[fronts.a]\nmode = \"smtp\"", "smtp"),
        ("[fronts.a]\nmod = \"http\"", "unknown key `mod`"),
        ("[apps.a]\nclass = \"vital\"", "vital"),
        ("[polcy]\nlend = true", "unknown key `polcy`"),
        ("[apps.a", "TOML"),
    ] {
        let why = stage.check(piece).unwrap_err();
        assert!(why.contains(words), "{piece}: {why}");
    }
}

/// The words of a command as a shell reads them, up to what ends it there. Brackets around what may be
/// left out are taken away, and what they hold counts.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '>' | '<' | '|' | ';' | '&') => break,
            (None, '#') if word.is_none() => break,
            (None, '[' | ']') => {}
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

/// What a reader would write in place of a word in capitals.
fn filled(word: String) -> String {
    let is_placeholder = word
        .chars()
        .all(|letter| letter.is_ascii_uppercase() || "-_".contains(letter))
        && word.starts_with(|letter: char| letter.is_ascii_uppercase());
    match word.as_str() {
        "COMMAND" => "status".to_owned(),
        "SHELL" => "bash".to_owned(),
        "N" => "1".to_owned(),
        "ADDRESS" => "10.0.0.1:9476".to_owned(),
        _ if is_placeholder => word.to_lowercase(),
        _ => word,
    }
}

/// What the command line says of a command; `whole` where it must lack nothing.
fn check_command(line: &str, whole: bool) -> Result<(), String> {
    let words = words(line).into_iter().map(filled);
    let matches = crate::Cli::whole().try_get_matches_from(words);
    let Err(error) = matches.and_then(|matches| crate::Cli::from_arg_matches(&matches)) else {
        return Ok(());
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            if !whole =>
        {
            Ok(())
        }
        _ => Err(format!("`{line}`: {error}")),
    }
}

/// The commands in a part of a page: in a block every line, outside those that are indented as one. A line
/// that ends in a backslash goes on with the next.
fn commands<'a>(part: &'a Part<'_>) -> impl Iterator<Item = (usize, String)> + 'a {
    let mut lines = (part.line..).zip(&part.lines);
    std::iter::from_fn(move || {
        let (number, line) = lines.next()?;
        let mut whole = (*line).to_owned();
        while let Some(begun) = whole.strip_suffix('\\') {
            let (_, more) = lines.next()?;
            whole = format!("{begun} {more}");
        }
        Some((number, whole))
    })
    .filter_map(|(number, line)| {
        let command = match part.language {
            Some("toml" | "rust") => None,
            Some(_) => Some(line.trim_start()),
            None => line.strip_prefix("    "),
        }?;
        let command = ["$ ", "sudo ", "until "]
            .into_iter()
            .fold(command, |rest, before| {
                rest.strip_prefix(before).unwrap_or(rest)
            });
        command
            .starts_with("forebay ")
            .then(|| (number, command.to_owned()))
    })
}

#[test]
fn commands_in_the_pages_are_understood() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, page) in pages() {
        for part in &parts(&page) {
            for (number, command) in commands(part) {
                checked += 1;
                if let Err(why) = check_command(&command, true) {
                    wrong.push(format!("{name}:{number}: {why}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 90, "{checked} commands");
}

#[test]
fn commands_within_sentences_exist() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (name, page) in pages() {
        for part in parts(&page).iter().filter(|part| part.language.is_none()) {
            let text = part.lines.join("\n");
            // Between backticks is every second piece.
            let spans = text.split('`').skip(1).step_by(2);
            let is_command = |span: &&str| {
                let is_none = NO_COMMANDS.iter().any(|(line, _)| line == span);
                span.starts_with("forebay ") && !span.contains("...") && !is_none
            };
            for span in spans.filter(is_command) {
                checked += 1;
                if let Err(why) = check_command(&span.replace('\n', " "), false) {
                    wrong.push(format!("{name}: {why}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 90, "{checked} commands");
}

#[test]
fn a_command_that_is_not_there_is_noticed() {
    for line in [
        "forebay statsu",
        "forebay update plan --rungs checkpoint -- true",
        "forebay move shop --to",
        "forebay update run --limit",
    ] {
        assert!(check_command(line, true).is_err(), "{line}");
    }
    assert!(check_command("forebay explain", true).is_err());
    assert!(check_command("forebay explain", false).is_ok());
}
