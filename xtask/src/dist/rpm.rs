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
    build(target)?;
    let architecture = said(Command::new("rpm").args(["--eval", "%{_arch}"]))?;
    let package = target.join(format!("forebay-{VERSION}-1.{}.rpm", architecture.trim()));
    check(&package, &root)?;
    Ok(package)
}

/// Makes the package of the description that was written there.
fn build(target: &Path) -> Result<(), String> {
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
    process::succeed(&mut build)
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
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

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

    /// Lays out a root where programs that change a host only note how they were called.
    fn lay_out_host(root: &Path) {
        for directory in [
            "bin",
            "dev",
            "run/systemd/system",
            "run/forebay",
            "var/lib/forebay",
        ] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let busybox = process::find_program("busybox").unwrap();
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in ["sh", "rm"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        for (program, does) in [
            ("systemctl", "true"),
            ("groupadd", ">/group"),
            ("getent", "[ -e /group ]"),
        ] {
            let text = format!("#!/bin/sh\necho {program} \"$@\" >>/called\n{does}\n");
            put(root, &format!("bin/{program}"), &text, 0o755).unwrap();
        }
    }

    #[test]
    fn it_is_installed_upgraded_and_removed() {
        let test = "it_is_installed_upgraded_and_removed";
        let tools = ["rpmbuild", "rpm", "busybox"];
        let lacking = tools
            .iter()
            .find(|tool| process::find_program(tool).is_none());
        if let Some(tool) = lacking {
            println!("SKIPPED: {test}: no {tool}; `cargo xtask setup dist` installs it");
            return;
        }
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            println!("SKIPPED: {test}: not root, which its scripts run as");
            return;
        }
        let target = std::env::temp_dir().join(format!("forebay-rpm-{}", std::process::id()));
        let first = make(&super::super::stand_in(&target), &target).unwrap();
        // In these packages the program only notes how it was called.
        let text = "#!/bin/sh\necho forebay \"$@\" >>/called\n";
        put(&target, "rpm/root/usr/bin/forebay", text, 0o755).unwrap();
        build(&target).unwrap();
        let spec = target.join("rpm/forebay.spec");
        let later = fs::read_to_string(&spec)
            .unwrap()
            .replace("Release: 1\n", "Release: 2\n");
        fs::write(&spec, later).unwrap();
        build(&target).unwrap();
        let name = first.file_name().unwrap().to_str().unwrap();
        let second = target.join(name.replace("-1.", "-2."));

        let root = target.join("host");
        lay_out_host(&root);
        let rpm = |arguments: &[&str], package: &Path| {
            let mut rpm = Command::new("rpm");
            rpm.arg("--root").arg(&root).arg("--nodeps");
            process::succeed(rpm.args(arguments).arg(package)).unwrap();
            let called = root.join("called");
            let lines = fs::read_to_string(&called).unwrap_or_default();
            fs::remove_file(called).unwrap();
            lines
        };
        let called = rpm(&["--install"], &first);
        let expected = "getent group forebay\ngroupadd --system forebay\n\
                        forebay update hooks install\n\
                        systemctl daemon-reload\nsystemctl enable --now forebay.service\n";
        assert_eq!(called, expected);
        let installed = files(&target.join("rpm/root")).unwrap();
        let place = |file: &str| root.join(file.trim_start_matches('/'));
        for file in &installed {
            assert!(place(file).is_file(), "{file} is not installed");
        }

        fs::write(place("etc/forebay/forebay.toml"), "# an administrator's\n").unwrap();
        let called = rpm(&["--upgrade"], &second);
        let expected = "getent group forebay\nsystemctl daemon-reload\n\
                        systemctl -q is-enabled forebay.service\nsystemctl -q enable forebay.service\n\
                        systemctl daemon-reload\nsystemctl try-restart forebay.service\n";
        assert_eq!(
            called, expected,
            "applications go on, and nobody is stopped"
        );
        let text = fs::read_to_string(place("etc/forebay/forebay.toml")).unwrap();
        assert_eq!(text, "# an administrator's\n");

        let called = rpm(&["--erase"], Path::new("forebay"));
        let expected = "systemctl disable --now forebay.service\n\
                        forebay update hooks remove\nsystemctl daemon-reload\n";
        assert_eq!(called, expected);
        for file in &installed {
            assert!(!place(file).exists(), "{file} is left");
        }
        assert!(!root.join("run/forebay").exists());
        assert!(root.join("var/lib/forebay").exists(), "the history stays");
        fs::remove_dir_all(&target).unwrap();
    }
}
