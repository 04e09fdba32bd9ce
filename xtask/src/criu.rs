//! A CRIU that knows the kernel at hand, beside the system's own.
//!
//! Debian 12 has 3.17, which fails on kernels since 6.13, and Debian 13 has 4.1, which cannot take the
//! sockets of kernels since 6.16. Debian's unstable one is fetched with all libraries that it needs,
//! the C library included, and unpacked into a directory of its own: nothing of the system changes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, setup};

const PLACE: &str = "/var/cache/forebay-criu";
const SOURCE: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                      http://deb.debian.org/debian sid main\n";

/// Sees to it that one is there, and says which. Without one the tests that need it are skipped, by
/// name.
pub(crate) fn ensure() {
    let unpacked = Path::new(PLACE).join("criu");
    if let Some(found) = works(&unpacked) {
        println!("setup: CRIU is there ({})", found.display());
        return;
    }
    println!("setup: no CRIU that works here: unpacking one into {PLACE}");
    let result = if setup::is_root() && process::find_program("apt-get").is_some() {
        unpack(Path::new(PLACE), &unpacked)
    } else {
        Err("only root may, on a Debian system".to_owned())
    };
    match (result, works(&unpacked)) {
        (Ok(()), Some(_)) => {}
        (Ok(()), None) => println!("setup: CRIU was unpacked and does not work here"),
        (Err(error), _) => println!("setup: {error}; tests with images are skipped"),
    }
}

/// The first one that says it works with this kernel.
fn works(unpacked: &Path) -> Option<PathBuf> {
    let own = process::find_program("criu");
    own.into_iter()
        .chain([unpacked.to_owned()])
        .filter(|program| program.is_file())
        .find(|program| process::succeeds_quietly(Command::new(program).arg("check")))
}

fn unpack(place: &Path, program: &Path) -> Result<(), String> {
    let folder = |name: &str| {
        let folder = place.join(name);
        fs::create_dir_all(&folder)
            .map_err(|error| format!("make {}: {error}", folder.display()))?;
        Ok::<_, String>(folder)
    };
    let write = |path: &Path, text: &str| {
        fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))
    };
    let (lists, cache, root) = (folder("lists")?, folder("cache")?, folder("root")?);
    folder("lists/partial")?;
    let archives = folder("cache/archives")?;
    folder("cache/archives/partial")?;
    let (source, status) = (place.join("sources.list"), place.join("status"));
    write(&source, SOURCE)?;
    // Nothing counts as installed, so that every library is fetched.
    write(&status, "")?;
    let apt_get = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        for (key, value) in [
            ("Dir::Etc::sourcelist", source.as_path()),
            ("Dir::Etc::sourceparts", Path::new("/dev/null")),
            ("Dir::State::lists", &lists),
            ("Dir::State::status", &status),
            ("Dir::Cache", &cache),
        ] {
            command.args(["-o", &format!("{key}={}", value.display())]);
        }
        command
            .args(["-o", "APT::Sandbox::User=root", "-qq"])
            .args(words);
        process::succeed(&mut command)
    };
    apt_get(&["update"])?;
    apt_get(&[
        "install",
        "-y",
        "--download-only",
        "--no-install-recommends",
        "criu",
    ])?;
    let listed =
        fs::read_dir(&archives).map_err(|error| format!("list {}: {error}", archives.display()))?;
    for package in listed.flatten().map(|entry| entry.path()) {
        if package.extension().is_some_and(|end| end == "deb") {
            process::succeed(Command::new("dpkg").arg("-x").arg(package).arg(&root))?;
        }
    }
    // Its libraries are found by the loader that came with them.
    let root = root.display();
    let script = format!(
        "#!/bin/sh\nexec {root}/usr/lib64/ld-linux-x86-64.so.2 --library-path \
         {root}/usr/lib/x86_64-linux-gnu {root}/usr/sbin/criu \"$@\"\n"
    );
    write(program, &script)?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))
        .map_err(|error| format!("make {} executable: {error}", program.display()))
}
