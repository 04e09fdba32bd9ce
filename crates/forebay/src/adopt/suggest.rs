//! Which class suits what was found, and how a configuration says so.
//!
//! A suggestion is a guess that a person reads: each carries its reason, and what the host
//! itself needs to be reached and repaired is left alone.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use forebay_core::app::Class;
use forebay_host::discover::{Found, Owner, Place, PodQuality};
use forebay_host::owner::Addresses;

use crate::config::is_container_name;

/// More use than this without anybody to answer looks like batch work.
const BUSY_CPUS: f64 = 0.5;
/// Less memory than this and no CPU use is not worth a slice of its own.
const SMALL_BYTES: u64 = 4 << 20;
/// Programs and units by which a host is reached, repaired and kept in order.
const SYSTEM: [&str; 20] = [
    "agetty",
    "bash",
    "chronyd",
    "cron",
    "dbus",
    "dbus-daemon",
    "dash",
    "forebay",
    "forebay-guard",
    "getty",
    "init",
    "login",
    "networkd",
    "polkit",
    "rsyslog",
    "rsyslogd",
    "sh",
    "ssh",
    "sshd",
    "sudo",
];

/// What to do with one thing that was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Suggestion {
    /// What it would be called.
    pub(crate) app: String,
    /// None when it had better be left alone.
    pub(crate) class: Option<Class>,
    /// Why.
    pub(crate) because: &'static str,
    /// What it is.
    pub(crate) found: Found,
}

/// A suggestion for each, the busiest first.
pub(crate) fn suggest(mut found: Vec<Found>) -> Vec<Suggestion> {
    found.sort_by(|a, b| b.cpus.total_cmp(&a.cpus).then_with(|| a.name.cmp(&b.name)));
    let mut taken = BTreeSet::new();
    found
        .into_iter()
        .map(|found| {
            let (class, because) = judge(&found);
            Suggestion {
                app: app_name(&found.name, &mut taken),
                class,
                because,
                found,
            }
        })
        .collect()
}

fn judge(found: &Found) -> (Option<Class>, &'static str) {
    let listens = !found.ports.is_empty();
    match found.owner {
        Owner::Pod(PodQuality::Guaranteed) => {
            return (
                None,
                "the kubelet owns its group; a guaranteed pod would be critical",
            );
        }
        Owner::Pod(PodQuality::Burstable) => {
            return (
                None,
                "the kubelet owns its group; a burstable pod would be standard",
            );
        }
        Owner::Pod(PodQuality::BestEffort) => {
            return (
                None,
                "the kubelet owns its group; a best-effort pod would be batch",
            );
        }
        Owner::Scope => return (None, "somebody's session or scope, gone with it"),
        _ => {}
    }
    if let Place::Program { executable, .. } = &found.place
        && !executable.exists()
    {
        return (None, "its program is no file that could be named");
    }
    // A service goes by its unit: its first process is often a shell.
    if is_of_the_system(&found.name) {
        return (None, "part of how this host is reached and kept in order");
    }
    if found.yields {
        return (
            Some(Class::Batch),
            "it yields to others already (nice, or a batch policy)",
        );
    }
    if listens {
        return (
            Some(Class::Critical),
            "somebody waits for its answers (it listens)",
        );
    }
    if found.cpus >= BUSY_CPUS {
        return (
            Some(Class::Batch),
            "it keeps CPUs busy and nobody asks it over TCP",
        );
    }
    if found.cpus < 0.001 && found.resident.0 < SMALL_BYTES {
        return (None, "it is idle and small");
    }
    (Some(Class::Standard), "nothing speaks for another class")
}

fn is_of_the_system(name: &str) -> bool {
    let base = name.split('@').next().unwrap_or(name);
    SYSTEM.contains(&base) || base.starts_with("systemd")
}

/// A name that an app can have and no other has.
fn app_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    let plain: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') {
                c
            } else {
                '-'
            }
        })
        .collect();
    let plain = plain.trim_start_matches(['-', '_']);
    let plain = plain.trim_end_matches(['-', '_']);
    let base: String = match plain {
        "" => "app".to_owned(),
        plain => plain.chars().take(56).collect(),
    };
    let mut name = base.clone();
    let mut number = 2_u32;
    while !taken.insert(name.clone()) {
        name = format!("{base}-{number}");
        number = number.saturating_add(1);
    }
    name
}

/// The group, or else the executable and an interpreter's arguments, as text.
pub(crate) fn place(place: &Place) -> (Option<String>, Option<String>, Option<&str>) {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    match place {
        Place::Group(group) => (Some(text(group)), None, None),
        Place::Program {
            executable,
            command_line,
        } => (None, Some(text(executable)), command_line.as_deref()),
    }
}

/// Whose it is, in a word or two.
pub(crate) const fn owner(owner: Owner) -> &'static str {
    match owner {
        Owner::Systemd => "systemd service",
        Owner::Scope => "systemd scope",
        Owner::Docker => "docker container",
        Owner::Containerd => "containerd container",
        Owner::Podman => "podman container",
        Owner::Pod(_) => "kubernetes pod",
        Owner::Plain => "control group",
        Owner::None => "program",
    }
}

/// A configuration with all that has a class; the rest and every reason are comments.
pub(crate) fn configuration(suggestions: &[Suggestion]) -> String {
    let mut text = String::from(
        "# Suggested by `forebay adopt --suggest`: read it, change it, and let `forebay check` \
         read it.\n# Nothing has been changed.\n",
    );
    if let Some(socket) = unusual_socket(suggestions) {
        write!(text, "\n[daemon]\ncontainer_socket = {}\n", quoted(socket)).ok();
    }
    for suggestion in suggestions {
        if let Some(class) = suggestion.class {
            text.push('\n');
            text += &section(suggestion, class, suggestion.because);
        }
    }
    text + &left_alone(suggestions)
}

/// The section that makes an app of it.
pub(super) fn section(suggestion: &Suggestion, class: Class, because: &str) -> String {
    let mut text = String::new();
    let found = &suggestion.found;
    // Writing to a text cannot fail.
    write!(text, "[apps.{}]  # {}", suggestion.app, told(found)).ok();
    write!(text, "\nclass = \"{class}\"  # {because}\n").ok();
    match &found.place {
        Place::Group(group) if unit_of(found).is_some() => {
            let unit = unit_of(found).unwrap_or_default();
            writeln!(
                text,
                "systemd = {}  # in {}",
                toml::Value::from(unit),
                quoted(group)
            )
            .ok();
        }
        Place::Group(group) if container_of(found).is_some() => {
            let name = container_of(found).unwrap_or_default();
            writeln!(
                text,
                "container = {}  # in {}",
                toml::Value::from(name),
                quoted(group)
            )
            .ok();
        }
        Place::Group(group) => {
            if matches!(found.owner, Owner::Docker | Owner::Podman) {
                text += "# No runtime said its name (`forebay doctor`), so this is its group. Forebay \
                         yields where\n# the runtime writes to it, and a restart makes another.\n";
            } else if is_managed(found.owner) {
                text +=
                    "# Its manager may write to this group too: Forebay yields where it does.\n";
            }
            writeln!(text, "cgroup = {}", quoted(group)).ok();
        }
        Place::Program {
            executable,
            command_line,
        } => {
            write!(text, "match = {{ executable = {}", quoted(executable)).ok();
            if let Some(words) = command_line {
                let words = toml::Value::String(words.clone());
                write!(text, ", command_line = {words}").ok();
            }
            text += " }\n";
        }
    }
    text
}

/// Comments on those that no section is suggested for.
pub(super) fn left_alone(suggestions: &[Suggestion]) -> String {
    let mut text = String::new();
    let left: Vec<&Suggestion> = suggestions.iter().filter(|s| s.class.is_none()).collect();
    if !left.is_empty() {
        text += "\n# Left alone:\n";
    }
    for suggestion in left {
        let found = &suggestion.found;
        writeln!(
            text,
            "#   {}: {}; {}",
            found.name.replace(char::is_control, "?"),
            told(found),
            suggestion.because
        )
        .ok();
    }
    text
}

/// The unit that the system's own manager has for a service; a user's manager has others.
pub(crate) fn unit_of(found: &Found) -> Option<&str> {
    let Place::Group(group) = &found.place else {
        return None;
    };
    let of_a_user = group.iter().any(|part| {
        let part = part.to_string_lossy();
        part.starts_with("user@")
    });
    let unit = group.file_name()?.to_str()?;
    (found.owner == Owner::Systemd && !of_a_user).then_some(unit)
}

/// The name that a container's runtime takes updates under.
pub(crate) fn container_of(found: &Found) -> Option<&str> {
    let container = found.container.as_ref()?;
    is_container_name(&container.name).then_some(container.name.as_str())
}

/// The socket of the containers' runtime where the daemon would look elsewhere by itself.
pub(super) fn unusual_socket(suggestions: &[Suggestion]) -> Option<&Path> {
    let usual = Addresses::default().containers;
    let is_usual = |socket: &Path| usual.split(':').any(|usual| Path::new(usual) == socket);
    suggestions
        .iter()
        .filter(|suggestion| suggestion.class.is_some())
        .filter_map(|suggestion| Some(suggestion.found.container.as_ref()?.socket.as_path()))
        .find(|socket| !is_usual(socket))
}

/// Whether somebody may write to the group of such a thing.
const fn is_managed(owner: Owner) -> bool {
    matches!(owner, Owner::Systemd | Owner::Containerd)
}

pub(super) fn told(found: &Found) -> String {
    let mut text = format!(
        "{}, {} process(es), {:.2} CPU, {}",
        owner(found.owner),
        found.pids.len(),
        found.cpus,
        found.resident
    );
    if !found.ports.is_empty() {
        let ports: Vec<String> = found.ports.iter().map(u16::to_string).collect();
        text += &format!(", port {}", ports.join(", "));
    }
    text
}

/// A path as a TOML string.
pub(super) fn quoted(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use forebay_core::units::Bytes;
    use forebay_host::owner::Container;

    use super::*;

    fn found(name: &str, owner: Owner, place: Place) -> Found {
        Found {
            name: name.to_owned(),
            place,
            owner,
            container: None,
            pids: vec![7],
            program: name.to_owned(),
            cpus: 0.1,
            resident: Bytes::mib(50),
            ports: Vec::new(),
            yields: false,
        }
    }

    fn service(name: &str) -> Found {
        let group = PathBuf::from(format!("system.slice/{name}.service"));
        found(name, Owner::Systemd, Place::Group(group))
    }

    #[test]
    fn classes_follow_what_is_seen() {
        let check = |found: Found, class: Option<Class>| {
            assert_eq!(judge(&found).0, class, "{found:?}");
        };
        check(service("app"), Some(Class::Standard));
        check(service("systemd-journald"), None);
        check(service("getty@tty1"), None);
        check(service("forebay"), None);
        check(service("forebay-guard"), None);
        let mut web = service("web");
        web.ports = vec![80];
        check(web.clone(), Some(Class::Critical));
        web.yields = true;
        check(web, Some(Class::Batch));
        let mut crunch = service("crunch");
        crunch.cpus = 1.5;
        crunch.program = "sh".to_owned();
        check(crunch, Some(Class::Batch));
        let mut small = service("small");
        (small.cpus, small.resident) = (0.0, Bytes::mib(1));
        check(small, None);
        let mut pod = service("pod");
        pod.owner = Owner::Pod(PodQuality::Guaranteed);
        check(pod, None);
    }

    #[test]
    fn names_are_valid_and_differ() {
        let mut taken = BTreeSet::new();
        let mut name = |from: &str| app_name(from, &mut taken);
        assert_eq!(name("web"), "web");
        assert_eq!(name("web"), "web-2");
        assert_eq!(name("a.b c\n"), "a-b-c");
        assert_eq!(name("--"), "app");
        let long = name(&"x".repeat(100));
        assert!(long.parse::<forebay_core::app::AppId>().is_ok());
    }

    #[test]
    fn containers_are_suggested_by_name_where_their_runtime_said_it() {
        let container = |name: &str, socket: &str| {
            let group = Place::Group(PathBuf::from(format!("docker/{name}")));
            let mut found = found(name, Owner::Docker, group);
            found.container = Some(Container {
                name: name.to_owned(),
                socket: PathBuf::from(socket),
                is_of_podman: false,
            });
            found
        };
        let usual = "/run/docker.sock";
        let mut silent = container("silent", usual);
        silent.container = None;
        // The configuration would refuse it.
        let odd = container("-odd", usual);
        let text = configuration(&suggest(vec![container("shop.web", usual), silent, odd]));
        let table: toml::Table = text.parse().unwrap();
        let apps = table["apps"].as_table().unwrap();
        assert_eq!(apps["shop-web"]["container"].as_str(), Some("shop.web"));
        assert_eq!(apps["silent"]["cgroup"].as_str(), Some("docker/silent"));
        assert_eq!(apps["odd"]["cgroup"].as_str(), Some("docker/-odd"));
        assert!(!table.contains_key("daemon"), "{text}");
        let text = configuration(&suggest(vec![container("web", "/srv/docker.sock")]));
        let table: toml::Table = text.parse().unwrap();
        let socket = table["daemon"]["container_socket"].as_str();
        assert_eq!(socket, Some("/srv/docker.sock"), "{text}");
    }

    #[test]
    fn the_configuration_is_one_that_forebay_takes() {
        let mut odd = service("odd");
        odd.owner = Owner::Podman;
        odd.place = Place::Group(PathBuf::from("a \"b\"\\c/odd.service"));
        let mut user = service("build");
        user.place = Place::Group("user.slice/user@1.service/app.slice/build.service".into());
        let mut web = service("web");
        web.ports = vec![80, 443];
        let file = std::env::current_exe().unwrap();
        let program = found(
            "tool.x",
            Owner::None,
            Place::Program {
                executable: file,
                command_line: Some("serve --what \"x\"".to_owned()),
            },
        );
        let text = configuration(&suggest(vec![odd, user, web, program, service("ssh")]));
        let table: toml::Table = text.parse().unwrap();
        let apps = table["apps"].as_table().unwrap();
        assert_eq!(apps.len(), 4, "{text}");
        assert_eq!(apps["web"]["systemd"].as_str(), Some("web.service"));
        assert_eq!(
            apps["build"]["cgroup"].as_str(),
            Some("user.slice/user@1.service/app.slice/build.service")
        );
        assert_eq!(apps["web"]["class"].as_str(), Some("critical"));
        assert_eq!(
            apps["odd"]["cgroup"].as_str(),
            Some("a \"b\"\\c/odd.service")
        );
        assert!(text.contains("#   ssh: "), "{text}");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("forebay.toml");
        std::fs::write(&file, &text).unwrap();
        let facts = crate::daemon::facts().unwrap();
        let config = crate::config::load(Some(&file), &facts).unwrap();
        assert_eq!(config.policy.apps.len(), 4);
    }
}
