//! The package for Debian and what comes from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{DESCRIPTION, Places, SUMMARY, VERSION, files, lay_out, put, read, said};
use crate::process;

/// The scripts of a package's life.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

const PLACES: Places = Places {
    units: "usr/lib/systemd/system",
    completions: [
        ("bash", "usr/share/bash-completion/completions/forebay"),
        ("zsh", "usr/share/zsh/vendor-completions/_forebay"),
        ("fish", "usr/share/fish/vendor_completions.d/forebay.fish"),
    ],
    license: "usr/share/doc/forebay/copyright",
};

/// Makes the package in a directory; where it is.
pub(super) fn make(program: &Path, target: &Path) -> Result<PathBuf, String> {
    let architecture = said(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let root = target.join("deb");
    lay_out(&root, program, &PLACES)?;
    let kib = said(
        Command::new("du")
            .args(["-sk", "--apparent-size"])
            .arg(&root),
    )?;
    let kib = kib.split_whitespace().next().unwrap_or("0");
    put(&root, "DEBIAN/control", &control(architecture, kib), 0o644)?;
    put(
        &root,
        "DEBIAN/conffiles",
        "/etc/forebay/forebay.toml\n",
        0o644,
    )?;
    for script in SCRIPTS {
        let text = read(&format!("dist/deb/{script}"))?;
        put(&root, &format!("DEBIAN/{script}"), &text, 0o755)?;
    }
    let package = target.join(format!("forebay_{VERSION}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]);
    process::succeed(build.arg(&root).arg(&package))?;
    let listed = said(Command::new("dpkg-deb").arg("--contents").arg(&package))?;
    for file in files(&root)?
        .iter()
        .filter(|file| !file.starts_with("/DEBIAN/"))
    {
        if !listed.contains(file.as_str()) {
            return Err(format!("{} lacks {file}", package.display()));
        }
    }
    Ok(package)
}

fn control(architecture: &str, kib: &str) -> String {
    let description: String = DESCRIPTION.map(|line| format!(" {line}\n")).concat();
    format!(
        "Package: forebay\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: The Forebay authors <maintainers@forebay.invalid>\n\
         Installed-Size: {kib}\n\
         Depends: libc6, libgcc-s1, passwd\n\
         Suggests: criu, ibverbs-providers, librdmacm1\n\
         Section: admin\n\
         Priority: optional\n\
         Description: {SUMMARY}\n{description}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_says_what_it_is() {
        let text = control("amd64", "42");
        for line in [
            "Package: forebay",
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
        super::super::check_scripts("deb", &SCRIPTS);
    }
}
