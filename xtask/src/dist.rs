//! `cargo xtask dist`: the Debian package.
//!
//! `dpkg-deb` makes it of a tree that is laid out here: the program with the dashboard's charts, its unit,
//! manual page, completions, and what `dist/` has for Grafana and Prometheus.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, web, workspace};

/// The scripts of a package's life.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Where each shell looks for completions, below the package's root.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/forebay"),
    ("zsh", "usr/share/zsh/vendor-completions/_forebay"),
    ("fish", "usr/share/fish/vendor_completions.d/forebay.fish"),
];

/// Makes the package; where it is.
pub(crate) fn run(program: impl FnOnce() -> Result<PathBuf, String>) -> Result<PathBuf, String> {
    web::build()?;
    let program = program()?;
    let architecture = said(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let version = env!("CARGO_PKG_VERSION");
    let target = workspace::read()?.target_directory.join("dist");
    let root = target.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).map_err(|error| format!("empty {}: {error}", root.display()))?;
    }
    lay_out(&root, &program)?;
    let kib = said(
        Command::new("du")
            .args(["-sk", "--apparent-size"])
            .arg(&root),
    )?;
    let kib = kib.split_whitespace().next().unwrap_or("0").to_owned();
    put(
        &root,
        "DEBIAN/control",
        &control(version, architecture, &kib),
        0o644,
    )?;
    let package = target.join(format!("forebay_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]);
    process::succeed(build.arg(&root).arg(&package))?;
    let bytes = fs::metadata(&program)
        .map_err(|error| format!("look at {}: {error}", program.display()))?;
    println!(
        "{}: the program has {} bytes",
        package.display(),
        bytes.len()
    );
    Ok(package)
}

fn lay_out(root: &Path, program: &Path) -> Result<(), String> {
    let dist = process::repository().join("dist");
    let read = |path: PathBuf| {
        fs::read_to_string(&path).map_err(|error| format!("read {}: {error}", path.display()))
    };
    let place = root.join("usr/bin");
    fs::create_dir_all(&place).map_err(|error| format!("make {}: {error}", place.display()))?;
    let installed = place.join("forebay");
    let mut strip = Command::new("strip");
    process::succeed(strip.arg("-o").arg(&installed).arg(program))?;
    for (shell, path) in COMPLETIONS {
        let text = said(Command::new(&installed).args(["completions", shell]))?;
        put(root, path, &text, 0o644)?;
    }
    let manual = said(Command::new(&installed).arg("man"))?;
    put(root, "usr/share/man/man1/forebay.1", &manual, 0o644)?;
    let mut gzip = Command::new("gzip");
    process::succeed(
        gzip.arg("-9n")
            .arg(root.join("usr/share/man/man1/forebay.1")),
    )?;
    for (from, to) in [
        (
            "systemd/forebay.service",
            "lib/systemd/system/forebay.service",
        ),
        ("forebay.toml", "etc/forebay/forebay.toml"),
        (
            "grafana/forebay.json",
            "usr/share/forebay/grafana/forebay.json",
        ),
        (
            "prometheus/alerts.yml",
            "usr/share/forebay/prometheus/alerts.yml",
        ),
    ] {
        put(root, to, &read(dist.join(from))?, 0o644)?;
    }
    let license = read(process::repository().join("LICENSE"))?;
    put(root, "usr/share/doc/forebay/copyright", &license, 0o644)?;
    put(
        root,
        "DEBIAN/conffiles",
        "/etc/forebay/forebay.toml\n",
        0o644,
    )?;
    for script in SCRIPTS {
        let text = read(dist.join("deb").join(script))?;
        put(root, &format!("DEBIAN/{script}"), &text, 0o755)?;
    }
    Ok(())
}

fn control(version: &str, architecture: &str, kib: &str) -> String {
    format!(
        "Package: forebay\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: The Forebay authors <maintainers@forebay.invalid>\n\
         Installed-Size: {kib}\n\
         Depends: libc6, libgcc-s1, passwd\n\
         Suggests: criu, ibverbs-providers, librdmacm1\n\
         Section: admin\n\
         Priority: optional\n\
         Description: forecasts, partitions and protects the applications of a host\n \
         Forebay forecasts what each application will need, gives each its share of\n \
         CPUs, memory and I/O before the need arises, leaves the rest to batch work,\n \
         and puts every kernel setting back when it stops.\n"
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_says_what_it_is() {
        let text = control("1.2.3", "amd64", "42");
        for line in [
            "Package: forebay",
            "Version: 1.2.3",
            "Architecture: amd64",
            "Installed-Size: 42",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        // What goes on with a description is indented.
        let rest = text.split_once("Description:").unwrap().1;
        assert!(
            rest.lines().skip(1).all(|line| line.starts_with(' ')),
            "{rest}"
        );
    }

    #[test]
    fn the_scripts_are_right_for_the_shell() {
        for script in SCRIPTS {
            let path = process::repository().join("dist/deb").join(script);
            process::succeed(Command::new("sh").arg("-n").arg(path)).unwrap();
        }
    }
}
