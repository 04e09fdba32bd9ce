//! `cargo xtask dist`: the packages for Debian's family and for Red Hat's, and the API's description.
//!
//! `dpkg-deb` and `rpmbuild` make them of trees that are laid out here: the program with the dashboard's
//! charts, its unit, manual pages, completions, and what `dist/` has for Grafana, Prometheus and clients.

mod deb;
mod rpm;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{docs, process, setup, web, workspace};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What both package managers say of it.
const SUMMARY: &str = "forecasts, partitions and protects the applications of a host";
const DESCRIPTION: [&str; 4] = [
    "Forebay forecasts what each application will need, gives each its share of",
    "CPUs, memory and I/O before the need arises, leaves the rest to batch work,",
    "and puts every kernel setting back when it stops.",
    "As it is installed it only observes; `forebay setup` is the next step.",
];

/// Times that the program is started to say how long that takes.
const STARTS: usize = 21;

/// Where a family of distributions has what is not at one place everywhere, below the root.
struct Places {
    units: &'static str,
    /// Where each shell looks for completions.
    completions: [(&'static str, &'static str); 3],
    license: &'static str,
}

/// Makes the packages, the book, and says what the program comes to.
pub(crate) fn run(program: impl FnOnce() -> Result<PathBuf, String>) -> Result<(), String> {
    setup::ensure(setup::Group::Dist)?;
    web::build()?;
    docs::build(&docs::mdbook()?)?;
    let program = program()?;
    let target = workspace::read()?.target_directory.join("dist");
    let debian = deb::make(&program, &target)?;
    let red_hat = rpm::make(&program, &target)?;
    let api = target.join("openapi.json");
    let described = process::repository().join("dist/openapi.json");
    fs::copy(&described, &api).map_err(|error| format!("copy {}: {error}", described.display()))?;
    for file in [&debian, &red_hat, &api] {
        println!("{}: {} bytes", file.display(), length(file)?);
    }
    let installed = target.join("deb/usr/bin/forebay");
    println!(
        "the program has {} bytes as installed, and says its version within {:.1} ms (median of {STARTS} starts)",
        length(&installed)?,
        start_time(&installed)?.as_secs_f64() * 1e3
    );
    Ok(())
}

/// The Debian package of a program, in a directory; for the guests, too.
pub(crate) fn debian(program: &Path, target: &Path) -> Result<PathBuf, String> {
    deb::make(program, target)
}

fn length(file: &Path) -> Result<u64, String> {
    let metadata = fs::metadata(file);
    let metadata = metadata.map_err(|error| format!("look at {}: {error}", file.display()))?;
    Ok(metadata.len())
}

/// How long the program takes from its start to its end when it has nothing to do.
fn start_time(program: &Path) -> Result<Duration, String> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        said(Command::new(program).arg("--version"))?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[STARTS / 2])
}

/// Lays out what is in the package, below an empty root.
fn lay_out(root: &Path, program: &Path, places: &Places) -> Result<(), String> {
    if root.exists() {
        fs::remove_dir_all(root).map_err(|error| format!("empty {}: {error}", root.display()))?;
    }
    let place = root.join("usr/bin");
    fs::create_dir_all(&place).map_err(|error| format!("make {}: {error}", place.display()))?;
    let installed = place.join("forebay");
    let mut strip = Command::new("strip");
    process::succeed(strip.arg("-o").arg(&installed).arg(program))?;
    for (shell, path) in places.completions {
        let text = said(Command::new(&installed).args(["completions", shell]))?;
        put(root, path, &text, 0o644)?;
    }
    let pages = root.join("usr/share/man/man1");
    fs::create_dir_all(&pages).map_err(|error| format!("make {}: {error}", pages.display()))?;
    said(
        Command::new(&installed)
            .args(["man", "--directory"])
            .arg(&pages),
    )?;
    compress(&pages)?;
    let unit = format!("{}/forebay.service", places.units);
    let early = format!("{}/forebay-early.service", places.units);
    let connections = format!("{}/forebay-connections.service", places.units);
    for (from, to) in [
        ("dist/systemd/forebay.service", unit.as_str()),
        ("dist/systemd/forebay-early.service", early.as_str()),
        (
            "dist/systemd/forebay-connections.service",
            connections.as_str(),
        ),
        ("dist/forebay.toml", "etc/forebay/forebay.toml"),
        (
            "dist/tmpfiles.d/forebay.conf",
            "usr/lib/tmpfiles.d/forebay.conf",
        ),
        ("dist/openapi.json", "usr/share/forebay/openapi.json"),
        (
            "dist/grafana/forebay.json",
            "usr/share/forebay/grafana/forebay.json",
        ),
        (
            "dist/prometheus/alerts.yml",
            "usr/share/forebay/prometheus/alerts.yml",
        ),
        ("LICENSE", places.license),
    ] {
        put(root, to, &read(from)?, 0o644)?;
    }
    Ok(())
}

/// Compresses the manual pages of all commands, as Debian's policy (12.1) has it: as small as can be, and the
/// same whenever it is done.
fn compress(pages: &Path) -> Result<(), String> {
    let found = files(pages)?;
    if found.is_empty() {
        return Err(format!("no manual page was written to {}", pages.display()));
    }
    let mut gzip = Command::new("gzip");
    gzip.arg("-9n").current_dir(pages);
    process::succeed(gzip.args(found.iter().map(|page| page.trim_start_matches('/'))))
}

/// Every file below the root, as it will stand on the host.
fn files(root: &Path) -> Result<Vec<String>, String> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let failed = |error| format!("read {}: {error}", directory.display());
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                directories.push(path);
            } else if let Ok(below) = path.strip_prefix(root) {
                files.push(format!("/{}", below.display()));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// A file of this checkout.
fn read(path: &str) -> Result<String, String> {
    let path = process::repository().join(path);
    fs::read_to_string(&path).map_err(|error| format!("read {}: {error}", path.display()))
}

/// Writes a file of the package.
fn put(root: &Path, path: &str, text: &str, mode: u32) -> Result<(), String> {
    let path = root.join(path);
    let failed = |error| format!("write {}: {error}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    fs::write(&path, text).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// What a command prints.
fn said(command: &mut Command) -> Result<String, String> {
    let text = process::describe(command);
    let output = command
        .output()
        .map_err(|error| format!("run `{text}`: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{text}` failed: {}: {why}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("`{text}`: {error}"))
}

/// Whether each script of `dist/KIND` is one that the shell takes.
#[cfg(test)]
fn check_scripts(kind: &str, scripts: &[&str]) {
    for script in scripts {
        let path = process::repository().join("dist").join(kind).join(script);
        process::succeed(Command::new("sh").arg("-n").arg(path)).unwrap();
    }
}

/// A program in a directory that says nothing and writes two manual pages: all else in a package of it is as
/// it will be.
#[cfg(test)]
fn stand_in(target: &Path) -> PathBuf {
    let source = target.join("stand-in.c");
    let text = r#"
        #include <stdio.h>
        #include <string.h>
        int main(int count, char **words) {
            if (count != 4 || strcmp(words[1], "man")) return 0;
            const char *pages[] = {"forebay.1", "forebay-update-plan.1"};
            for (int each = 0; each < 2; each++) {
                char path[4096];
                snprintf(path, sizeof path, "%s/%s", words[3], pages[each]);
                FILE *page = fopen(path, "w");
                if (!page || fputs(".TH FOREBAY 1\n", page) < 0 || fclose(page)) return 1;
            }
            return 0;
        }
    "#;
    fs::create_dir_all(target).unwrap();
    fs::write(&source, text).unwrap();
    let program = target.join("stand-in");
    // What links Rust's programs.
    process::succeed(Command::new("cc").arg("-o").arg(&program).arg(&source)).unwrap();
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: [&str; 2] = [
        "/usr/share/man/man1/forebay.1.gz",
        "/usr/share/man/man1/forebay-update-plan.1.gz",
    ];

    #[test]
    fn both_packages_have_all_files_and_their_scripts() {
        let target = std::env::temp_dir().join(format!("forebay-dist-{}", std::process::id()));
        let program = stand_in(&target);
        for (tool, make, list, root) in [
            (
                "dpkg-deb",
                deb::make as fn(&Path, &Path) -> Result<PathBuf, String>,
                ["dpkg-deb", "--contents"],
                "deb",
            ),
            ("rpmbuild", rpm::make, ["rpm", "-qpl"], "rpm/root"),
        ] {
            if process::find_program(tool).is_none() {
                println!("SKIPPED: packages: no {tool}; `cargo xtask setup dist` installs it");
                continue;
            }
            let package = make(&program, &target).unwrap();
            assert!(length(&package).unwrap() > 1000, "{}", package.display());
            let listed = said(Command::new(list[0]).arg(list[1]).arg(&package)).unwrap();
            for file in PAGES
                .into_iter()
                .chain(["/usr/lib/tmpfiles.d/forebay.conf"])
            {
                let is_there = listed.lines().any(|line| line.ends_with(file));
                assert!(is_there, "{tool}: {file} in {listed}");
            }
            for page in PAGES {
                let page = fs::read(target.join(root).join(&page[1..])).unwrap();
                // RFC 1952: no name and no time, and the slowest compression.
                assert_eq!(page[..9], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2], "{tool}");
            }
        }
        fs::remove_dir_all(&target).unwrap();
    }
}
