//! A package of this demo's own: real to dpkg, of no use to anybody, and gone afterwards.
//!
//! It goes through the host's own database, as any package does. What stays is what dpkg keeps of each
//! operation of that database: the copy before the last one (`status-old`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::demo::Error;

/// Says which package whoever sweeps has to remove, in the demo's directory.
const MARK: &str = "package";
/// What all names begin with: nothing else is ever removed.
const PREFIX: &str = "forebay-demo-";
/// How long another package manager is waited for, and what dpkg says while there is one.
const LOCKED_MAX: Duration = Duration::from_secs(60);
const LOCKED: &str = "was locked by another process";
const LOOK: Duration = Duration::from_millis(100);
/// Files and bytes of each: enough that dpkg has something to unpack and to sync.
const FILES: u32 = 16;
const FILE_BYTES: usize = 512 << 10;

/// A package in two versions, of which the first is installed.
pub(super) struct Package {
    pub(super) name: String,
    dir: PathBuf,
    files: [PathBuf; 2],
}

impl Package {
    /// Builds both, and installs the first.
    pub(super) fn install(dir: &Path) -> Result<Self, Error> {
        let name = format!("{PREFIX}{}", std::process::id());
        let package = Self {
            files: [1, 2].map(|version| dir.join(format!("{name}_{version}.deb"))),
            dir: dir.to_owned(),
            name,
        };
        for (version, file) in (1..).zip(&package.files) {
            package.build(version, file)?;
        }
        // Before the first change of the database: from now on it has to be removed.
        write(&dir.join(MARK), package.name.as_bytes())?;
        run(&package.command(1))?;
        Ok(package)
    }

    fn build(&self, version: u32, file: &Path) -> Result<(), Error> {
        let tree = self.dir.join(format!("tree-{version}"));
        let content = tree.join("usr/share").join(&self.name);
        for dir in [&tree.join("DEBIAN"), &content] {
            fs::create_dir_all(dir).map_err(Error::system("make", dir.display(), "make room"))?;
        }
        let control = format!(
            "Package: {}\nVersion: {version}\nArchitecture: all\nMaintainer: Forebay <root@localhost>\n\
             Description: what `forebay demo update` installs and removes again\n",
            self.name
        );
        write(&tree.join("DEBIAN/control"), control.as_bytes())?;
        let mut random = fastrand::Rng::with_seed(version.into());
        for number in 0..FILES {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
                .take(FILE_BYTES)
                .collect();
            write(&content.join(number.to_string()), &bytes)?;
        }
        let words = ["dpkg-deb", "--build", "-Zgzip", "-z1"].map(str::to_owned);
        let paths = [&tree, file].map(|path| path.display().to_string());
        run(&words.into_iter().chain(paths).collect::<Vec<_>>())
    }

    /// What installs a version.
    pub(super) fn command(&self, version: usize) -> Vec<String> {
        let file = self.files[version.clamp(1, 2) - 1].display();
        dpkg(&self.dir, &["--install", &file.to_string()])
    }

    /// The version that the host's database has, if it has one.
    pub(super) fn installed(&self) -> Result<Option<String>, Error> {
        installed(&self.name)
    }

    /// Removes it.
    pub(super) fn remove(self) -> Result<(), Error> {
        sweep(&self.dir)
    }
}

/// Removes the package that a demo in this directory may have left, however far it is installed.
pub(in crate::demo) fn sweep(dir: &Path) -> Result<(), Error> {
    let mark = dir.join(MARK);
    let Ok(name) = fs::read_to_string(&mark) else {
        return Ok(());
    };
    if name.starts_with(PREFIX) && installed(&name)?.is_some() {
        run(&dpkg(dir, &["--force-remove-reinstreq", "--purge", &name]))?;
    }
    fs::remove_file(&mark).map_err(Error::system("remove", mark.display(), "remove it by hand"))
}

/// With a log of its own: what a demo does is no history of the host.
fn dpkg(dir: &Path, words: &[&str]) -> Vec<String> {
    let log = format!("--log={}", dir.join("dpkg.log").display());
    let words = ["dpkg", &log].into_iter().chain(words.iter().copied());
    words.map(str::to_owned).collect()
}

fn installed(name: &str) -> Result<Option<String>, Error> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Version}", name])
        .stdin(Stdio::null())
        .output()
        .map_err(Error::system(
            "run",
            "dpkg-query",
            "this demo needs dpkg: run it on Debian or what comes of it",
        ))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(output.status.success().then_some(version))
}

fn run(words: &[String]) -> Result<(), Error> {
    let text = words.join(" ");
    let (program, rest) = words
        .split_first()
        .ok_or_else(|| Error::part("the package", "there is no command"))?;
    let until = Instant::now() + LOCKED_MAX;
    let output = loop {
        let output = Command::new(program)
            .args(rest)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(Error::system(
                "run",
                program,
                "this demo needs dpkg: run it on Debian or what comes of it",
            ))?;
        let is_locked = String::from_utf8_lossy(&output.stderr).contains(LOCKED);
        if !is_locked || Instant::now() >= until {
            break output;
        }
        std::thread::sleep(LOOK);
    };
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let (status, why) = (output.status, why.trim());
    Err(Error::part(
        text,
        format!("{status}: {why}; `dpkg --audit` says what is left"),
    ))
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(file, bytes).map_err(Error::system("write", file.display(), "make room"))
}
