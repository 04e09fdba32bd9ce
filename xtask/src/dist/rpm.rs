//! The package for Fedora, Red Hat and what comes from them, by `rpmbuild`, which Debian has, too.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{DESCRIPTION, Places, SUMMARY, VERSION, files, lay_out, put, read, said};
use crate::process;

/// The scripts of a package's life, by rpm's names for them.
const SCRIPTS: [&str; 4] = ["pre", "post", "preun", "postun"];

const PLACES: Places = Places {
    units: "usr/lib/systemd/system",
    completions: [
        ("bash", "usr/share/bash-completion/completions/forebay"),
        ("zsh", "usr/share/zsh/site-functions/_forebay"),
        ("fish", "usr/share/fish/vendor_completions.d/forebay.fish"),
    ],
    license: "usr/share/licenses/forebay/LICENSE",
};

/// Makes the package in a directory; where it is.
pub(super) fn make(program: &Path, target: &Path) -> Result<PathBuf, String> {
    let root = target.join("rpm/root");
    lay_out(&root, program, &PLACES)?;
    let scripts: Vec<_> = SCRIPTS
        .into_iter()
        .map(|name| Ok((name, read(&format!("dist/rpm/{name}"))?)))
        .collect::<Result<_, String>>()?;
    let spec = spec(&root, &files(&root)?, &scripts);
    put(target, "rpm/forebay.spec", &spec, 0o644)?;
    let define = |name: &str, value: &Path| format!("{name} {}", value.display());
    let mut build = Command::new("rpmbuild");
    build
        .args(["-bb", "--quiet", "--define"])
        .arg(define("_topdir", &target.join("rpm")))
        .arg("--define")
        .arg(define("_rpmdir", target))
        .args([
            "--define",
            "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
        ])
        .arg(target.join("rpm/forebay.spec"));
    process::succeed(&mut build)?;
    let architecture = said(Command::new("rpm").args(["--eval", "%{_arch}"]))?;
    let package = target.join(format!("forebay-{VERSION}-1.{}.rpm", architecture.trim()));
    check(&package, &root)?;
    Ok(package)
}

fn spec(root: &Path, files: &[String], scripts: &[(&str, String)]) -> String {
    let description = DESCRIPTION.join("\n");
    let scripts: String = scripts
        .iter()
        .map(|(name, text)| format!("%{name}\n{}\n", text.trim_start_matches("#!/bin/sh\n")))
        .collect();
    let files: String = files
        .iter()
        .map(|file| match file.starts_with("/etc/") {
            // What an administrator changed stays.
            true => format!("%config(noreplace) {file}\n"),
            false => format!("{file}\n"),
        })
        .collect();
    format!(
        "%global debug_package %{{nil}}\n\
         %global __os_install_post %{{nil}}\n\
         %global _build_id_links none\n\
         Name: forebay\n\
         Version: {VERSION}\n\
         Release: 1\n\
         Summary: {SUMMARY}\n\
         License: Apache-2.0\n\
         AutoReq: no\n\
         Requires: glibc, libgcc, shadow-utils\n\
         %description\n{description}\n\
         %install\n\
         mkdir -p %{{buildroot}}\n\
         cp -a {root}/. %{{buildroot}}/\n\
         {scripts}\
         %files\n\
         %defattr(-,root,root)\n\
         %dir /etc/forebay\n\
         %dir /usr/share/forebay\n\
         {files}",
        root = root.display(),
    )
}

/// Looks into the package: it has all files that were laid out, and its scripts.
fn check(package: &Path, root: &Path) -> Result<(), String> {
    let has = |what: &str| said(Command::new("rpm").args(["-qp", what]).arg(package));
    let listed = has("--list")?;
    for file in files(root)? {
        if !listed.lines().any(|line| line == file) {
            return Err(format!("{} lacks {file}", package.display()));
        }
    }
    let scripts = has("--scripts")?;
    if scripts.contains("systemctl enable --now forebay.service") {
        Ok(())
    } else {
        Err(format!(
            "{} lacks its scripts: {scripts}",
            package.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_says_what_is_in_it() {
        let files = ["/etc/forebay/forebay.toml", "/usr/bin/forebay"].map(str::to_owned);
        let scripts = [("post", "#!/bin/sh\nset -e\n".to_owned())];
        let text = spec(Path::new("/r"), &files, &scripts);
        for line in [
            "Name: forebay",
            "%config(noreplace) /etc/forebay/forebay.toml",
            "/usr/bin/forebay",
            "%post",
            "cp -a /r/. %{buildroot}/",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("#!/bin/sh"), "{text}");
    }

    #[test]
    fn the_scripts_are_right_for_the_shell() {
        super::super::check_scripts("rpm", &SCRIPTS);
    }
}
