//! Hooks of package managers: files that `forebay update hooks` writes and takes away again.
//!
//! They fail open: where Forebay is gone, or no daemon runs, packages are installed all the same, and one
//! line says where an update stands. With `--fail closed` they refuse while another update is under way or
//! nobody can say.

use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use forebay_api as api;
use forebay_host::regular;

/// Our files begin with this, behind the mark of a comment; others are left alone.
const MARK: &str = "forebay update hooks 1";
const BYTES_MAX: u64 = 64 << 10;

/// What a hook does where it cannot protect anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fail {
    /// Lets packages be installed all the same
    Open,
    /// Has the package manager stop before it begins
    Closed,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hook {
    path: PathBuf,
    /// The directory that whoever reads it has; without it nobody does.
    reader: PathBuf,
    text: String,
}

fn hooks(root: &Path, executable: &Path, fail: Fail) -> Vec<Hook> {
    let program = executable.display();
    // A program that cannot even say what it was asked must not stop packages.
    let fail = match fail {
        Fail::Open => "open || true",
        Fail::Closed => "closed",
    };
    let apt = format!(
        "// {MARK}: `forebay update hooks remove` removes this file.\n\
         DPkg::Pre-Invoke {{ \"if [ -x '{program}' ]; then '{program}' update hook pre --fail {fail}; fi\"; }};\n\
         DPkg::Post-Invoke {{ \"if [ -x '{program}' ]; then '{program}' update hook post || true; fi\"; }};\n"
    );
    let needrestart = format!(
        "# {MARK}: `forebay update hooks remove` removes this file.\n\
         # Forebay restarts what it starts itself, behind its fronts.\n\
         $nrconf{{override_rc}}{{qr(^forebay)}} = 0;\n"
    );
    let hook = |reader: &str, file: &str, text| Hook {
        path: root.join(reader).join(file),
        reader: root.join(reader),
        text,
    };
    vec![
        hook("etc/apt/apt.conf.d", "50forebay", apt),
        hook("etc/needrestart/conf.d", "forebay.conf", needrestart),
    ]
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
    fn standing(&self) -> io::Result<Standing> {
        let text = match regular::read(&self.path, BYTES_MAX) {
            Ok((bytes, _)) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(match self.reader.is_dir() {
                    true => Standing::Absent,
                    false => Standing::Unread,
                });
            }
            Err(error) => return Err(error),
        };
        let first = text.lines().next().unwrap_or_default();
        Ok(if text == self.text {
            Standing::Installed
        } else if first.contains(MARK) {
            Standing::Outdated
        } else {
            Standing::Foreign
        })
    }

    fn tried<T>(&self, attempt: &str, result: io::Result<T>) -> Result<T, String> {
        result
            .map_err(|error| format!("{attempt} {}: {error}; run it as root", self.path.display()))
    }
}

/// Writes all hooks whose readers are there; what was done.
///
/// # Errors
/// What could not be written. What was, stays, and `remove` removes it.
pub(crate) fn install(root: &Path, executable: &Path, fail: Fail) -> Result<Vec<String>, String> {
    if executable
        .display()
        .to_string()
        .contains(['\'', '"', '\\', '\n'])
    {
        return Err(format!(
            "write hooks: {} has quotes in its name; install forebay elsewhere",
            executable.display()
        ));
    }
    let mut said = Vec::new();
    for hook in hooks(root, executable, fail) {
        let path = hook.path.display();
        said.push(match hook.tried("look at", hook.standing())? {
            Standing::Installed => format!("{path}: is there"),
            Standing::Foreign => format!("{path}: somebody else's, and left as it is"),
            Standing::Unread => format!("{path}: nobody reads it here"),
            Standing::Outdated | Standing::Absent => {
                let written = regular::replace(&hook.path, hook.text.as_bytes(), 0o644);
                written.map_err(|error| format!("{error}; run it as root"))?;
                format!("{path}: written")
            }
        });
    }
    Ok(said)
}

/// Takes away what `install` wrote, and nothing else.
///
/// # Errors
/// What could not be removed.
pub(crate) fn remove(root: &Path, executable: &Path) -> Result<Vec<String>, String> {
    let mut said = Vec::new();
    for hook in hooks(root, executable, Fail::Open) {
        let path = hook.path.display();
        said.push(match hook.tried("look at", hook.standing())? {
            Standing::Installed | Standing::Outdated => {
                hook.tried("remove", std::fs::remove_file(&hook.path))?;
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
pub(crate) fn status(root: &Path, executable: &Path) -> Result<Vec<String>, String> {
    let mut said = Vec::new();
    for hook in hooks(root, executable, Fail::Open) {
        let closed = hooks(root, executable, Fail::Closed);
        let closed = closed.into_iter().find(|other| other.path == hook.path);
        let standing = hook.tried("look at", hook.standing())?;
        let closed = match closed {
            Some(closed) => hook.tried("look at", closed.standing())? == Standing::Installed,
            None => false,
        };
        let what = match standing {
            Standing::Installed => "installed",
            Standing::Outdated if closed => "installed, fails closed",
            Standing::Outdated => {
                "of another release or program: `forebay update hooks install` renews it"
            }
            Standing::Foreign => "somebody else's",
            Standing::Absent => "not installed",
            Standing::Unread => "nobody reads it here",
        };
        said.push(format!("{}: {what}", hook.path.display()));
    }
    Ok(said)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/apt/apt.conf.d")).unwrap();
        root
    }

    #[test]
    fn hooks_come_and_go_and_others_files_stay() {
        let root = root();
        let program = Path::new("/usr/bin/forebay");
        let file = root.path().join("etc/apt/apt.conf.d/50forebay");
        let check = |said: Result<Vec<String>, String>, expected: &str| {
            let said = said.unwrap().join("\n");
            assert!(said.contains(expected), "{said}");
        };
        check(status(root.path(), program), "50forebay: not installed");
        check(
            install(root.path(), program, Fail::Open),
            "50forebay: written",
        );
        check(
            install(root.path(), program, Fail::Open),
            "50forebay: is there",
        );
        check(status(root.path(), program), "50forebay: installed");
        check(status(root.path(), program), "nobody reads it here");
        assert!(!root.path().join("etc/needrestart").exists());
        check(
            install(root.path(), program, Fail::Closed),
            "50forebay: written",
        );
        check(status(root.path(), program), "fails closed");
        check(remove(root.path(), program), "50forebay: removed");
        assert!(!file.exists());
        check(remove(root.path(), program), "50forebay: is not there");
        std::fs::write(&file, "// mine\n").unwrap();
        check(install(root.path(), program, Fail::Open), "left as it is");
        check(remove(root.path(), program), "left as it is");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "// mine\n");
        let odd = Path::new("/tmp/it's");
        assert!(
            install(root.path(), odd, Fail::Open)
                .unwrap_err()
                .contains("quotes")
        );
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
