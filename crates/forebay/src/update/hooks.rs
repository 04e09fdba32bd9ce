//! Hooks of package managers and of the system: files that `forebay update hooks` writes and takes away again.
//!
//! They fail open: where Forebay is gone, or no daemon runs, packages are installed all the same, and one
//! line says where an update stands. With `--fail closed` they refuse while another update is under way or
//! nobody can say. Hooks of kernels never refuse: a package that is half configured protects nobody.
//!
//! A file whose reader is not there is not written. One whose directory is not there is written into one of
//! its own, says so in its heading, and takes it along when it is removed.

mod files;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use clap::ValueEnum;
use forebay_api as api;
use forebay_host::regular;

use files::{Asked, DROP_IN, Hook, UNITS};

/// Our files have this in their heading, behind the mark of a comment; others are left alone.
const MARK: &str = "forebay update hooks 1";
/// Behind it where the directory was made for it.
const OWN_DIRECTORY: &str = ", in a directory of its own";
const BYTES_MAX: u64 = 64 << 10;

/// What a hook does where it cannot protect anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fail {
    /// Lets packages be installed all the same
    Open,
    /// Has the package manager stop before it begins
    Closed,
}

impl Fail {
    const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// How it stands with one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is as it would be written.
    Installed,
    /// It is ours, of another release or with other options.
    Outdated,
    /// Somebody else's.
    Foreign,
    Absent,
    /// Nobody would read it.
    Unread,
}

impl Hook {
    fn read(&self) -> io::Result<Option<String>> {
        match regular::read(&self.path, BYTES_MAX) {
            Ok((bytes, _)) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn standing(&self) -> io::Result<Standing> {
        let Some(text) = self.read()? else {
            return Ok(match self.readers.iter().any(|reader| reader.exists()) {
                true => Standing::Absent,
                false => Standing::Unread,
            });
        };
        Ok(if text.replacen(OWN_DIRECTORY, "", 1) == self.text {
            Standing::Installed
        } else if is_ours(&text) {
            Standing::Outdated
        } else {
            Standing::Foreign
        })
    }

    fn write(&self) -> Result<(), String> {
        let dir = self.path.parent().unwrap_or_else(|| Path::new("/"));
        let had = self.tried("look at", self.read())?.unwrap_or_default();
        let is_own = !dir.exists() || had.contains(OWN_DIRECTORY);
        if !dir.exists() {
            self.tried("make the directory of", std::fs::create_dir_all(dir))?;
        }
        let text = match is_own {
            true => self
                .text
                .replacen(MARK, &format!("{MARK}{OWN_DIRECTORY}"), 1),
            false => self.text.clone(),
        };
        let mode = if self.is_program { 0o755 } else { 0o644 };
        let written = regular::replace(&self.path, text.as_bytes(), mode);
        written.map_err(|error| format!("{error}; run it as root"))?;
        // What was there may have had another one.
        let permissions = std::fs::Permissions::from_mode(mode);
        self.tried("permit", std::fs::set_permissions(&self.path, permissions))
    }

    fn remove(&self) -> Result<(), String> {
        let had = self.tried("look at", self.read())?.unwrap_or_default();
        self.tried("remove", std::fs::remove_file(&self.path))?;
        let dir = self.path.parent().filter(|_| had.contains(OWN_DIRECTORY));
        match dir.map(std::fs::remove_dir) {
            // Somebody else has put something there since.
            Some(Err(error)) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Some(removed) => self.tried("remove the directory of", removed),
            None => Ok(()),
        }
    }

    fn tried<T>(&self, attempt: &str, result: io::Result<T>) -> Result<T, String> {
        result
            .map_err(|error| format!("{attempt} {}: {error}; run it as root", self.path.display()))
    }
}

/// Whether a file's heading is one of ours: its first line, or the second of a program.
fn is_ours(text: &str) -> bool {
    text.lines().take(2).any(|line| line.contains(MARK))
}

/// Units that a drop-in of ours waits in, whatever is configured now.
fn units_there(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(UNITS)) else {
        return Vec::new();
    };
    let unit = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let unit = name.strip_suffix(".d")?.to_owned();
        let text = std::fs::read_to_string(entry.path().join(DROP_IN)).ok()?;
        (is_ours(&text) && text.contains("forebay-restore")).then_some(unit)
    };
    let mut units: Vec<String> = entries.flatten().filter_map(unit).collect();
    units.sort();
    units
}

/// Where hooks are, and which program they run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct System<'a> {
    /// The root of the system.
    pub(crate) root: &'a Path,
    /// This program, as the hooks call it.
    pub(crate) program: &'a Path,
}

impl System<'_> {
    fn hooks(&self, fail: Fail, units: &[String]) -> Vec<Hook> {
        let asked = Asked {
            root: self.root,
            program: self.program,
            fail,
            units,
        };
        asked.hooks()
    }

    /// Writes all hooks whose readers are there, so that these units wait for what is put back; what was
    /// done.
    ///
    /// # Errors
    /// What could not be written. What was, stays, and `remove` removes it.
    pub(crate) fn install(&self, fail: Fail, units: &[String]) -> Result<Vec<String>, String> {
        let program = self.program.display().to_string();
        if program.contains(['\'', '"', '\\', '\n', ':', '%', '$']) {
            return Err(format!(
                "write hooks: {program} has quotes or `:`, `%`, `$` in its name; install forebay elsewhere"
            ));
        }
        if let Some(odd) = units
            .iter()
            .find(|unit| unit.contains('/') || unit.starts_with('.'))
        {
            return Err(format!("write hooks: {odd} is no unit of systemd"));
        }
        let hooks = self.hooks(fail, units);
        // Nothing is written where one of them would not do what it is for.
        for hook in &hooks {
            let Some(why) = &hook.obstacle else {
                continue;
            };
            let standing = hook.tried("look at", hook.standing())?;
            if !matches!(standing, Standing::Unread | Standing::Foreign) {
                return Err(format!("write {}: {why}", hook.path.display()));
            }
        }
        let mut said = Vec::new();
        for hook in hooks {
            let path = hook.path.display();
            said.push(match hook.tried("look at", hook.standing())? {
                Standing::Installed => format!("{path}: is there"),
                Standing::Foreign => format!("{path}: somebody else's, and left as it is"),
                Standing::Unread => format!("{path}: nobody reads it here"),
                Standing::Outdated | Standing::Absent => {
                    hook.write()?;
                    format!("{path}: written")
                }
            });
        }
        // Units that are not critical any more wait for nothing.
        let mut gone = units_there(self.root);
        gone.retain(|unit| !units.contains(unit));
        said.extend(self.remove_of(&gone, units.is_empty())?);
        Ok(said)
    }

    /// Removes what units wait for: the drop-ins of these, and the unit itself where none is left.
    fn remove_of(&self, units: &[String], is_last: bool) -> Result<Vec<String>, String> {
        let all = self.hooks(Fail::Open, units);
        let of_units = all.iter().filter(|hook| {
            let path = hook.path.to_string_lossy();
            let is_drop_in = units
                .iter()
                .any(|unit| path.contains(&format!("/{unit}.d/")));
            is_drop_in || is_last && path.ends_with("/forebay-restore.service")
        });
        let mut said = Vec::new();
        for hook in of_units {
            if let Standing::Installed | Standing::Outdated =
                hook.tried("look at", hook.standing())?
            {
                hook.remove()?;
                said.push(format!("{}: removed", hook.path.display()));
            }
        }
        Ok(said)
    }

    /// Takes away what `install` wrote, and nothing else.
    ///
    /// # Errors
    /// What could not be removed.
    pub(crate) fn remove(&self) -> Result<Vec<String>, String> {
        let mut said = Vec::new();
        for hook in self.hooks(Fail::Open, &units_there(self.root)) {
            let path = hook.path.display();
            said.push(match hook.tried("look at", hook.standing())? {
                Standing::Installed | Standing::Outdated => {
                    hook.remove()?;
                    format!("{path}: removed")
                }
                Standing::Foreign => format!("{path}: somebody else's, and left as it is"),
                Standing::Absent | Standing::Unread => format!("{path}: is not there"),
            });
        }
        Ok(said)
    }

    /// How it stands with all hooks.
    ///
    /// # Errors
    /// What could not be read.
    pub(crate) fn status(&self) -> Result<Vec<String>, String> {
        let units = units_there(self.root);
        let closed = self.hooks(Fail::Closed, &units);
        let mut said = Vec::new();
        for (open, closed) in self.hooks(Fail::Open, &units).iter().zip(&closed) {
            let standing = open.tried("look at", open.standing())?;
            let what = match standing {
                Standing::Installed => "installed",
                Standing::Outdated
                    if closed.tried("look at", closed.standing())? == Standing::Installed =>
                {
                    "installed, fails closed"
                }
                Standing::Outdated => {
                    "of another release or program: `forebay update hooks install` renews it"
                }
                Standing::Foreign => "somebody else's",
                Standing::Absent => "not installed",
                Standing::Unread => "nobody reads it here",
            };
            said.push(format!("{}: {what}", open.path.display()));
        }
        Ok(said)
    }
}

/// What a hook says before packages are touched, and whether they may be.
///
/// `inside` is whether the package manager is the command of an update itself.
pub(crate) fn before(
    inside: bool,
    known: Result<&api::Updates, &str>,
    fail: Fail,
) -> (Option<String>, bool) {
    if inside {
        return (None, true);
    }
    let closed = fail == Fail::Closed;
    match known {
        Err(why) => (
            Some(format!(
                "no daemon and no journal to say whether an update is under way ({why})"
            )),
            !closed,
        ),
        Ok(updates) => match &updates.current {
            None => (None, true),
            Some(current) => (
                Some(format!(
                    "update {} is under way ({}): {}",
                    current.number, current.stage, current.next
                )),
                !closed,
            ),
        },
    }
}

/// What is said when a kernel was installed.
pub(crate) fn kernel(inside: bool, version: &str) -> Option<String> {
    // Whoever runs the update knows.
    (!inside).then(|| {
        format!(
            "kernel {version} runs from the next boot on; `forebay update run --reboot -- true` has apps that can \
             leave before it, `forebay update fleet run --reboot -- true` does so host by host"
        )
    })
}

/// Why a shutdown is held up now, if it is.
pub(crate) fn holds(known: Result<&api::Updates, &str>) -> Option<String> {
    let current = known.ok()?.current.as_ref()?;
    // These wait for just that, or bring it about.
    let is_to_end = matches!(current.stage.as_str(), "reboot_pending" | "departing");
    (!is_to_end).then(|| {
        format!(
            "update {} is under way ({}); `forebay update status` shows it",
            current.number, current.stage
        )
    })
}

/// Whether what an update left is put back, so that units may start, or what it waits for.
pub(crate) fn put_back(known: Result<&api::Updates, &str>) -> Result<(), String> {
    let updates = known.map_err(|why| format!("no daemon answers yet ({why})"))?;
    match &updates.current {
        // Apps are compared with their past afterwards, and these units are among them.
        Some(current)
            if matches!(
                current.stage.as_str(),
                "reboot_pending" | "departing" | "reviving" | "restoring"
            ) =>
        {
            Err(format!("update {} is {}", current.number, current.stage))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUGIN: &str = "usr/lib64/libdnf5/plugins/actions.so";

    /// Where a system has everything that hooks are for.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in [
            "etc/apt/apt.conf.d",
            "etc/dnf/libdnf5-plugins/actions.d",
            "etc/kernel/postinst.d",
            "etc/systemd/system",
            "usr/lib/kernel/install.d",
            "usr/lib/systemd/system",
            "usr/lib64/libdnf5/plugins",
        ] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        std::fs::write(root.path().join(PLUGIN), "\x7fELF enabled\0raise_error\0").unwrap();
        let unit = "usr/lib/systemd/system/apt-daily-upgrade.service";
        std::fs::write(root.path().join(unit), "").unwrap();
        root
    }

    fn all_below(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![root.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() {
                    dirs.push(path);
                }
            }
        }
        found.sort();
        found
    }

    fn check(said: Result<Vec<String>, String>, expected: &str) {
        let said = said.unwrap().join("\n");
        assert!(said.contains(expected), "`{expected}` is not in {said}");
    }

    #[test]
    fn a_dnf5_that_would_not_stop_is_not_said_to() {
        let root = root();
        let system = System {
            root: root.path(),
            program: Path::new("/usr/bin/forebay"),
        };
        let actions = "etc/dnf/libdnf5-plugins/actions.d/forebay.actions";
        check(
            system.install(Fail::Closed, &[]),
            "forebay.actions: written",
        );
        let text = || std::fs::read_to_string(root.path().join(actions)).unwrap();
        assert!(text().contains(":raise_error=1:"), "{}", text());
        check(system.remove(), "forebay.actions: removed");
        let refused = |words: &str| {
            let why = system.install(Fail::Closed, &[]).unwrap_err();
            assert!(why.contains(words) && why.contains("--fail open"), "{why}");
            let there = all_below(root.path());
            assert!(
                !there.iter().any(|file| file.contains("forebay")),
                "{there:?}"
            );
        };
        std::fs::write(root.path().join(PLUGIN), "\x7fELF enabled\0").unwrap();
        refused("actions.so does not know raise_error");
        std::fs::remove_file(root.path().join(PLUGIN)).unwrap();
        refused("its actions plugin is not found");
        check(system.install(Fail::Open, &[]), "forebay.actions: written");
        assert!(!text().contains("raise_error"), "{}", text());
        check(system.remove(), "forebay.actions: removed");
        // Where nobody reads it the others are closed all the same.
        std::fs::remove_dir(root.path().join("etc/dnf/libdnf5-plugins/actions.d")).unwrap();
        check(system.install(Fail::Closed, &[]), "50forebay: written");
    }

    /// Perl reads what needrestart reads, and matches names of units as that one does.
    #[test]
    fn needrestart_keeps_its_hands_off_critical_units_and_no_others() {
        let root = root();
        std::fs::create_dir_all(root.path().join("etc/needrestart/conf.d")).unwrap();
        let system = System {
            root: root.path(),
            program: Path::new("/usr/bin/forebay"),
        };
        let units = ["nginx.service", "db@a\\x2db.service"].map(str::to_owned);
        check(system.install(Fail::Open, &units), "forebay.conf: written");
        let file = root.path().join("etc/needrestart/conf.d/forebay.conf");
        let names = [
            "nginxXservice",
            "nginx.service.d",
            "a-nginx.service",
            "ssh.service",
        ];
        let matched = std::process::Command::new("perl")
            .args([
                "-e",
                "our %nrconf; defined(do shift) or die $@; for my $u (@ARGV) { print \"$u\\n\" if \
                    grep { $u =~ /$_/ } keys %{$nrconf{override_rc}} }",
            ])
            .arg(&file)
            .arg("forebay.service")
            .args(&units)
            .args(names)
            .output();
        let matched = match matched {
            Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
            other => panic!("perl: {other:?}"),
        };
        let matched: Vec<&str> = matched.lines().collect();
        assert_eq!(matched, ["forebay.service", &units[0], &units[1]]);
    }

    #[test]
    fn hooks_come_and_go_and_others_files_stay() {
        let root = root();
        let system = System {
            root: root.path(),
            program: Path::new("/usr/bin/forebay"),
        };
        let file = root.path().join("etc/apt/apt.conf.d/50forebay");
        check(system.status(), "50forebay: not installed");
        check(system.install(Fail::Open, &[]), "50forebay: written");
        check(system.install(Fail::Open, &[]), "50forebay: is there");
        check(system.status(), "50forebay: installed");
        check(system.status(), "forebay.conf: nobody reads it here");
        assert!(!root.path().join("etc/needrestart").exists());
        check(system.install(Fail::Closed, &[]), "50forebay: written");
        check(system.status(), "fails closed");
        check(system.remove(), "50forebay: removed");
        assert!(!file.exists());
        check(system.remove(), "50forebay: is not there");
        std::fs::write(&file, "// mine\n").unwrap();
        check(system.install(Fail::Open, &[]), "left as it is");
        check(system.remove(), "left as it is");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "// mine\n");
        for odd in ["/tmp/it's", "/tmp/a:b", "/tmp/100%"] {
            let odd = System {
                program: Path::new(odd),
                ..system
            };
            let why = odd.install(Fail::Open, &[]).unwrap_err();
            assert!(why.contains("elsewhere"), "{why}");
        }
    }

    #[test]
    fn what_was_made_is_gone_afterwards_and_nothing_else() {
        let root = root();
        let before = all_below(root.path());
        let system = System {
            root: root.path(),
            program: Path::new("/usr/bin/forebay"),
        };
        let units = ["postgresql@15-main.service", "nginx.service"].map(str::to_owned);
        check(
            system.install(Fail::Open, &units),
            "nginx.service.d/50-forebay.conf: written",
        );
        // A directory of its own, and one that somebody else uses since.
        let shared = root.path().join("etc/systemd/system/nginx.service.d");
        std::fs::write(shared.join("mine.conf"), "").unwrap();
        check(
            system.install(Fail::Closed, &units),
            "90-forebay.install: is there",
        );
        check(
            system.status(),
            "nginx.service.d/50-forebay.conf: installed, fails closed",
        );
        // One that is critical no more waits for nothing.
        check(
            system.install(Fail::Closed, &units[1..]),
            "postgresql@15-main.service.d/50-forebay.conf: removed",
        );
        assert!(
            root.path()
                .join("etc/systemd/system/forebay-restore.service")
                .exists()
        );
        check(
            system.install(Fail::Closed, &[]),
            "forebay-restore.service: removed",
        );
        check(
            system.install(Fail::Closed, &units),
            "forebay-restore.service: written",
        );
        check(system.remove(), "zz-forebay: removed");
        std::fs::remove_file(shared.join("mine.conf")).unwrap();
        std::fs::remove_dir(&shared).unwrap();
        assert_eq!(all_below(root.path()), before);
    }

    #[test]
    fn programs_can_be_run_and_all_fail_as_they_were_asked_to() {
        let root = root();
        let system = System {
            root: root.path(),
            program: Path::new("/usr/bin/forebay"),
        };
        let text = |file: &str| std::fs::read_to_string(root.path().join(file)).unwrap();
        let dnf = "etc/dnf/libdnf5-plugins/actions.d/forebay.actions";
        let upgrade = "etc/systemd/system/apt-daily-upgrade.service.d/50-forebay.conf";
        let nginx = "etc/systemd/system/nginx.service.d/50-forebay.conf";
        let units = ["nginx.service".to_owned()];
        system.install(Fail::Open, &units).unwrap();
        assert!(
            text(dnf).contains("pre_transaction::::/usr/bin/forebay update hook pre --fail open\n")
        );
        assert!(text(upgrade).contains("--fail open || true"));
        assert!(
            text(nginx).contains("Wants=forebay-restore.service\nAfter=forebay-restore.service")
        );
        system.install(Fail::Closed, &units).unwrap();
        assert!(text(dnf).contains("pre_transaction:::raise_error=1:/usr/bin/forebay"));
        assert!(text(upgrade).contains("--fail closed; fi"));
        assert!(text(nginx).contains("Requires=forebay-restore.service"));
        for file in [
            "etc/kernel/postinst.d/zz-forebay",
            "etc/kernel/install.d/90-forebay.install",
        ] {
            let path = root.path().join(file);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755, "{file}");
            // The program is not there, and nobody is stopped by that.
            let run = std::process::Command::new(&path)
                .args(["add", "6.1"])
                .status();
            assert!(run.unwrap().success(), "{file}");
            assert!(!text(file).contains("closed"), "{file}");
        }
    }

    #[test]
    fn a_shutdown_is_held_up_and_units_wait_only_while_that_is_of_use() {
        let at = |stage: &str| api::Updates {
            current: Some(api::Update {
                number: 3,
                stage: stage.to_owned(),
                ..api::Update::default()
            }),
            ..api::Updates::default()
        };
        for (stage, held, waits) in [
            ("updating", true, false),
            ("reboot_pending", false, true),
            ("departing", false, true),
            ("reviving", true, true),
            ("restoring", true, true),
            ("verifying", true, false),
        ] {
            let known = at(stage);
            assert_eq!(holds(Ok(&known)).is_some(), held, "{stage}");
            assert_eq!(put_back(Ok(&known)).is_err(), waits, "{stage}");
        }
        let idle = api::Updates::default();
        assert_eq!(holds(Ok(&idle)), None);
        assert_eq!(holds(Err("x")), None);
        assert_eq!(put_back(Ok(&idle)), Ok(()));
        assert!(put_back(Err("x")).unwrap_err().contains("no daemon"));
        assert_eq!(kernel(true, "6.1"), None);
        assert!(kernel(false, "6.1").unwrap().contains("kernel 6.1"));
    }

    #[test]
    fn a_hook_stops_packages_only_where_it_is_to() {
        let idle = api::Updates::default();
        let busy = api::Updates {
            current: Some(api::Update {
                number: 3,
                stage: "updating".to_owned(),
                next: "wait".to_owned(),
                ..api::Update::default()
            }),
            ..api::Updates::default()
        };
        let check = |inside, known, fail, says: &str, goes_on| {
            let (said, goes) = before(inside, known, fail);
            assert_eq!(goes, goes_on);
            let said = said.unwrap_or_default();
            assert!(
                said.contains(says) && (says.is_empty() == said.is_empty()),
                "{said}"
            );
        };
        check(true, Err("x"), Fail::Closed, "", true);
        check(false, Ok(&idle), Fail::Closed, "", true);
        check(
            false,
            Ok(&busy),
            Fail::Open,
            "update 3 is under way (updating): wait",
            true,
        );
        check(false, Ok(&busy), Fail::Closed, "update 3", false);
        check(false, Err("x"), Fail::Open, "no daemon", true);
        check(false, Err("x"), Fail::Closed, "no daemon", false);
    }
}
