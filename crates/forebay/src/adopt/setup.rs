//! `forebay setup`: from nothing to a configuration, in steps that are said one by one.
//!
//! Without `--protect` it only observes: the services that were found are apps, and `policy.mode` keeps
//! everything as it is. With it, the services that were named are critical apps, and the others stand
//! there as comments. A file that names anything already is never touched; one of comments alone, as the
//! package brings it, is kept and added to.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use forebay_core::app::Class;
use forebay_host::Roots;
use forebay_host::discover::discover;
use forebay_host::owner::Addresses;

use super::suggest::{self, Suggestion, suggest};
use crate::config;
use crate::daemon::{Error, facts};
use crate::demo::print;

/// Write a first configuration for what runs here, and say what comes next
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Protect this service, and act: by its name, its unit, its container or its program. Without it, Forebay only observes
    #[arg(long, value_name = "NAME")]
    protect: Vec<String>,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Print the file, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// How long to watch, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

/// Looks, suggests, writes, checks; says each.
///
/// # Errors
/// When the file names something already or cannot be written, when nothing or several things are
/// called as asked, and when /proc or every control group hierarchy is missing.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let old = existing(&args.config).map_err(Error::Host)?;
    host()?;
    print::line(format_args!("2. Services: watching for {} s", args.seconds));
    let suggestions = services(args.seconds)?;
    for suggestion in suggestions.iter().filter(|s| s.class.is_some()) {
        print::line(format_args!("   {}", line(suggestion)));
    }
    let protected = protected(&suggestions, &args.protect).map_err(Error::Host)?;
    let text = old.clone().unwrap_or_default() + &configuration(&suggestions, &protected);
    let name = args.config.display().to_string();
    // Nothing is written that would not be read.
    config::parse(&text, &name, &facts()?).map_err(Error::Config)?;
    if args.dry_run {
        print::line(format_args!("3. Configuration: {name} would be"));
        print::line(format_args!("{}", text.trim_end()));
        return Ok(ExitCode::SUCCESS);
    }
    write(&args.config, &text, old.as_deref()).map_err(|error| {
        Error::Host(format!(
            "write {name}: {error}; be root, or name another file by --config"
        ))
    })?;
    let does = match protected.is_empty() {
        true => "it only observes",
        false => "it protects what was asked for",
    };
    print::line(format_args!("3. Configuration: {name} is written; {does}"));
    config::load(Some(&args.config), &facts()?).map_err(Error::Config)?;
    print::line(format_args!("4. Checked: it is valid"));
    print::line(format_args!("{}", next(&args.config, &protected)));
    Ok(ExitCode::SUCCESS)
}

/// What is in the file already, if there is one and it names nothing.
fn existing(path: &Path) -> Result<Option<String>, String> {
    let name = path.display();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(format!(
                "read {name}: {error}; name another file by --config"
            ));
        }
    };
    match text.parse::<toml::Table>() {
        Ok(table) if table.is_empty() => Ok(Some(text)),
        _ => Err(format!(
            "{name} has settings, and is left as it is: add to it what `forebay adopt --suggest` prints, \
             or have another file written by --config"
        )),
    }
}

/// The first step: what the host offers.
fn host() -> Result<(), Error> {
    let features = forebay_host::doctor::examine(&Roots::default(), Path::new("forebay"))
        .map_err(|error| Error::Host(error.explain()))?;
    let missing: Vec<_> = features.iter().filter(|feature| !feature.present).collect();
    print::line(format_args!(
        "1. Host: it has {} of {} features; `forebay doctor` says more",
        features.len() - missing.len(),
        features.len()
    ));
    for feature in missing {
        print::line(format_args!(
            "   without {}: {}",
            feature.name, feature.lack_costs
        ));
    }
    Ok(())
}

fn services(seconds: u64) -> Result<Vec<Suggestion>, Error> {
    let addresses = Addresses::from_environment();
    let watch = Duration::from_secs(seconds);
    let found = discover(&Roots::default(), &addresses, Path::new("forebay"), watch)
        .map_err(|error| Error::Host(error.explain()))?;
    Ok(suggest(found))
}

fn line(suggestion: &Suggestion) -> String {
    let class = suggestion
        .class
        .map_or(String::new(), |class| class.to_string());
    format!(
        "{:<20} {class:<9} {}: {}",
        suggestion.app,
        suggest::told(&suggestion.found),
        suggestion.because
    )
}

/// The one suggestion that each name means.
fn protected<'a>(
    suggestions: &'a [Suggestion],
    names: &[String],
) -> Result<Vec<&'a Suggestion>, String> {
    let mut protected: Vec<&Suggestion> = Vec::new();
    for name in names {
        // A name that is exactly an app's means that one, whatever else runs the same program.
        let exact = suggestions
            .iter()
            .find(|suggestion| suggestion.app == *name);
        let meant: Vec<_> = match exact {
            Some(exact) => vec![exact],
            None => suggestions.iter().filter(|s| is_called(s, name)).collect(),
        };
        match meant.as_slice() {
            [one] if protected.iter().any(|other| other.app == one.app) => {}
            [one] => protected.push(one),
            [] => {
                let there = names_of(suggestions.iter());
                return Err(format!(
                    "nothing called `{name}` runs here; start it first, or name one of {there}"
                ));
            }
            several => {
                let there = names_of(several.iter().copied());
                return Err(format!(
                    "`{name}` could be any of {there}; name one of them"
                ));
            }
        }
    }
    Ok(protected)
}

fn names_of<'a>(suggestions: impl Iterator<Item = &'a Suggestion>) -> String {
    let names: Vec<_> = suggestions.map(|one| one.app.as_str()).collect();
    names.join(", ")
}

fn is_called(suggestion: &Suggestion, name: &str) -> bool {
    let found = &suggestion.found;
    let unit = suggest::unit_of(found);
    unit == Some(name)
        || unit.and_then(|unit| unit.strip_suffix(".service")) == Some(name)
        || suggest::container_of(found) == Some(name)
        || found.name == name
        || found.program == name
}

/// What is written: all that was found and only observed, or what is protected and the rest as comments.
fn configuration(suggestions: &[Suggestion], protected: &[&Suggestion]) -> String {
    let mut text = String::new();
    if let Some(socket) = suggest::unusual_socket(suggestions) {
        // Writing to a text cannot fail.
        write!(
            text,
            "\n[daemon]\ncontainer_socket = {}\n",
            suggest::quoted(socket)
        )
        .ok();
    }
    text += match protected.is_empty() {
        true => {
            "\n[policy]\n# Nothing is changed; \"act\" puts what is planned in force.\nmode = \"observe\"\n"
        }
        false => "\n[policy]\n# \"observe\" leaves everything as it is.\nmode = \"act\"\n",
    };
    for suggestion in protected {
        text.push('\n');
        text += &suggest::section(suggestion, Class::Critical, "you asked to protect it");
    }
    for suggestion in suggestions {
        let Some(class) = suggestion.class else {
            continue;
        };
        if protected.iter().any(|other| other.app == suggestion.app) {
            continue;
        }
        text.push('\n');
        let section = suggest::section(suggestion, class, suggestion.because);
        match protected.is_empty() {
            true => text += &section,
            false => section.lines().for_each(|line| {
                writeln!(text, "# {line}").ok();
            }),
        }
    }
    text + &suggest::left_alone(suggestions)
}

/// Puts the file in its place at once, unless it is no longer what it was.
fn write(path: &Path, text: &str, old: Option<&str>) -> io::Result<()> {
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let beside = path.with_extension("toml.new");
    let mut file = File::create(&beside)?;
    let written = place(&mut file, path, &beside, text, old);
    if written.is_err() {
        fs::remove_file(&beside)?;
    }
    written?;
    File::open(directory)?.sync_all()
}

fn place(
    file: &mut File,
    path: &Path,
    beside: &Path,
    text: &str,
    old: Option<&str>,
) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    let Some(old) = old else {
        file.sync_all()?;
        // Unlike a rename, a link refuses where there is a file by now.
        fs::hard_link(beside, path)?;
        return fs::remove_file(beside);
    };
    let now = fs::metadata(path)?;
    std::os::unix::fs::fchown(&*file, Some(now.uid()), Some(now.gid()))?;
    file.set_permissions(fs::Permissions::from_mode(now.mode() & 0o7777))?;
    file.sync_all()?;
    if fs::read_to_string(path)? != old {
        return Err(io::Error::other("somebody wrote it meanwhile"));
    }
    fs::rename(beside, path)
}

/// What to type next.
fn next(path: &Path, protected: &[&Suggestion]) -> String {
    let is_usual = path == Path::new(config::DEFAULT_FILE);
    let runs = std::os::unix::net::UnixStream::connect(crate::cli::socket(None)).is_ok();
    let start = match (is_usual, runs) {
        (true, true) => "forebay reload".to_owned(),
        (true, false) if Path::new("/run/systemd/system").exists() => {
            "systemctl enable --now forebay".to_owned()
        }
        (true, false) => "forebay daemon".to_owned(),
        (false, _) => format!("forebay daemon --config {}", path.display()),
    };
    let then = match protected {
        [] => format!(
            "forebay top                          # what it sees\n  \
             forebay plan                         # what it would do\n  \
             then set `mode = \"act\"` in {}, and `forebay reload`",
            path.display()
        ),
        [first, ..] => format!("forebay explain {}  # what it does, and why", first.app),
    };
    format!("Next:\n  {start}\n  {then}")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use forebay_core::units::Bytes;
    use forebay_host::discover::{Found, Owner, Place};

    use super::*;

    fn service(name: &str, ports: &[u16]) -> Found {
        Found {
            name: name.to_owned(),
            place: Place::Group(PathBuf::from(format!("system.slice/{name}.service"))),
            owner: Owner::Systemd,
            container: None,
            pids: vec![7],
            program: name.to_owned(),
            cpus: 0.1,
            resident: Bytes::mib(50),
            ports: ports.to_vec(),
            yields: false,
        }
    }

    fn found() -> Vec<Suggestion> {
        suggest(vec![
            service("nginx", &[80]),
            service("worker", &[]),
            service("ssh", &[22]),
        ])
    }

    fn read(text: &str) -> config::Config {
        config::parse(text, "forebay.toml", &facts().unwrap())
            .unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    #[test]
    fn by_default_all_that_was_found_is_observed_and_nothing_is_done() {
        let config = read(&configuration(&found(), &[]));
        assert!(config.policy.observe);
        let apps: Vec<_> = config.policy.apps.keys().map(ToString::to_string).collect();
        assert_eq!(apps, ["nginx", "worker"]);
    }

    #[test]
    fn what_is_to_be_protected_is_the_only_app() {
        let suggestions = found();
        let protected = protected(
            &suggestions,
            &["nginx.service".to_owned(), "nginx".to_owned()],
        )
        .unwrap();
        let text = configuration(&suggestions, &protected);
        let config = read(&text);
        assert!(!config.policy.observe);
        assert_eq!(config.policy.apps.len(), 1, "{text}");
        assert_eq!(
            config.policy.apps.values().next().unwrap().class,
            Class::Critical
        );
        assert!(text.contains("# [apps.worker]"), "{text}");
    }

    #[test]
    fn a_name_that_means_nothing_or_several_is_refused() {
        let mut suggestions = found();
        let refused = protected(&suggestions, &["redis".to_owned()]).unwrap_err();
        assert!(refused.contains("nginx, ssh, worker"), "{refused}");
        for suggestion in &mut suggestions {
            suggestion.found.program = "python3".to_owned();
        }
        let refused = protected(&suggestions, &["python3".to_owned()]).unwrap_err();
        assert!(refused.contains("could be any of"), "{refused}");
        // What keeps the host reachable is no app by itself, and may be one that was asked for.
        assert_eq!(
            protected(&suggestions, &["ssh".to_owned()]).unwrap().len(),
            1
        );
    }

    #[test]
    fn a_file_that_names_something_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("forebay.toml");
        assert_eq!(existing(&path), Ok(None));
        for text in ["[daemon]\nlease = \"2s\"\n", "no toml at all ["] {
            fs::write(&path, text).unwrap();
            let refused = existing(&path).unwrap_err();
            assert!(refused.contains("left as it is"), "{refused}");
        }
        fs::write(&path, "# only words\n").unwrap();
        assert_eq!(existing(&path), Ok(Some("# only words\n".to_owned())));
    }

    #[test]
    fn a_file_that_came_meanwhile_or_changed_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/forebay.toml");
        write(&path, "# one\n", None).unwrap();
        write(&path, "# two\n", None).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# one\n");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, "# three\n", Some("# other\n")).unwrap_err();
        write(&path, "# one\n# four\n", Some("# one\n")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# one\n# four\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "what was written beside is gone");
    }
}
