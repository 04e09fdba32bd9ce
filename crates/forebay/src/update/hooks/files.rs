//! The files of hooks: where each is, who reads it, and what is in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use forebay_host::regular;

use super::{Fail, MARK};

/// Where distributions put the actions plugin of dnf5.
const PLUGINS: [&str; 4] = [
    "usr/lib64/libdnf5/plugins/actions.so",
    "usr/lib/libdnf5/plugins/actions.so",
    "usr/lib/x86_64-linux-gnu/libdnf5/plugins/actions.so",
    "usr/lib/aarch64-linux-gnu/libdnf5/plugins/actions.so",
];
/// The name of the option by which an action that fails stops a transaction.
const RAISE_ERROR: &[u8] = b"raise_error";
const PLUGIN_BYTES_MAX: u64 = 64 << 20;

/// The directory of units and of drop-ins for those of others.
pub(super) const UNITS: &str = "etc/systemd/system";
/// What a drop-in of ours is called.
pub(super) const DROP_IN: &str = "50-forebay.conf";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) path: PathBuf,
    /// What whoever reads it has; without any of them nobody does.
    pub(super) readers: Vec<PathBuf>,
    pub(super) text: String,
    /// It is run.
    pub(super) is_program: bool,
    /// Why it would not do what it is to do here.
    pub(super) obstacle: Option<String>,
}

/// What the files depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) root: &'a Path,
    pub(super) program: &'a Path,
    pub(super) fail: Fail,
    /// Units that critical applications are.
    pub(super) units: &'a [String],
}

impl Asked<'_> {
    fn hook(&self, file: &str, readers: &[&str], text: String) -> Hook {
        Hook {
            path: self.root.join(file),
            readers: readers.iter().map(|one| self.root.join(one)).collect(),
            text,
            is_program: false,
            obstacle: None,
        }
    }

    fn heading(&self, comment: &str) -> String {
        format!("{comment} {MARK}: `forebay update hooks remove` removes this file.\n")
    }

    /// Runs this program where it is there; what is not must not stop anybody.
    fn shell(&self, words: &str) -> String {
        let program = self.program.display();
        match self.fail {
            // A program that cannot even say what it was asked must not stop packages.
            Fail::Open => {
                format!("if [ -x '{program}' ]; then '{program}' {words} --fail open || true; fi")
            }
            Fail::Closed => {
                format!("if [ -x '{program}' ]; then '{program}' {words} --fail closed; fi")
            }
        }
    }

    fn apt(&self) -> Hook {
        let pre = self.shell("update hook pre");
        let post = Asked {
            fail: Fail::Open,
            ..*self
        }
        .shell("update hook post");
        let text = format!(
            "{}DPkg::Pre-Invoke {{ \"{pre}\"; }};\nDPkg::Post-Invoke {{ \"{post}\"; }};\n",
            self.heading("//")
        );
        let dir = "etc/apt/apt.conf.d";
        self.hook(&format!("{dir}/50forebay"), &[dir], text)
    }

    /// Upgrades that nobody asked for do not begin while an update is under way.
    fn unattended(&self) -> Hook {
        let unit = "apt-daily-upgrade.service";
        let text = format!(
            "{}[Service]\nExecCondition=/bin/sh -c \"{}\"\n",
            self.heading("#"),
            self.shell("update hook pre")
        );
        let readers = [
            "usr/lib/systemd/system/apt-daily-upgrade.service",
            "lib/systemd/system/apt-daily-upgrade.service",
        ];
        self.hook(&format!("{UNITS}/{unit}.d/{DROP_IN}"), &readers, text)
    }

    fn needrestart(&self) -> Hook {
        let mut text = format!(
            "{}# Forebay restarts what it starts itself, behind its fronts; of critical units it says that they run \
             outdated code.\n\
             $nrconf{{override_rc}}{{qr(^forebay)}} = 0;\n",
            self.heading("#")
        );
        let units: BTreeSet<&String> = self.units.iter().collect();
        for unit in units {
            let exact: String = unit.chars().map(in_pattern).collect();
            text += &format!("$nrconf{{override_rc}}{{qr(^{exact}\\z)}} = 0;\n");
        }
        let dir = "etc/needrestart/conf.d";
        self.hook(&format!("{dir}/forebay.conf"), &[dir], text)
    }

    /// Actions of dnf5: callback, filter, direction, options, command, in which spaces are escaped. What they
    /// write to standard output would be settings, and they write none.
    fn dnf(&self) -> Hook {
        let program = self.program.display().to_string().replace(' ', "\\ ");
        let pre = match self.fail {
            Fail::Open => format!("pre_transaction::::{program} update hook pre --fail open"),
            Fail::Closed => {
                format!("pre_transaction:::raise_error=1:{program} update hook pre --fail closed")
            }
        };
        let text = format!(
            "{}{pre}\npost_transaction::::{program} update hook post\n",
            self.heading("#")
        );
        let dir = "etc/dnf/libdnf5-plugins/actions.d";
        Hook {
            obstacle: match self.fail {
                Fail::Open => None,
                Fail::Closed => self.dnf_obstacle(),
            },
            ..self.hook(&format!("{dir}/forebay.actions"), &[dir], text)
        }
    }

    /// Why an action could not stop dnf5. A plugin from before `raise_error` (its version 1.4.0, of dnf5 5.2.11) goes
    /// on after an action that failed, or takes the whole file for wrong, and then no dnf5 command works.
    fn dnf_obstacle(&self) -> Option<String> {
        let knows = |file: &str| {
            let bytes = regular::read(&self.root.join(file), PLUGIN_BYTES_MAX)
                .ok()?
                .0;
            Some(
                bytes
                    .windows(RAISE_ERROR.len())
                    .any(|part| part == RAISE_ERROR),
            )
        };
        let found = PLUGINS.iter().find_map(|file| Some((file, knows(file)?)));
        let what = match found {
            Some((_, true)) => return None,
            Some((file, false)) => format!(
                "{} does not know raise_error",
                self.root.join(file).display()
            ),
            None => "its actions plugin is not found".to_owned(),
        };
        Some(format!(
            "{what}, so that dnf5 would not stop: install libdnf5-plugin-actions of dnf5 5.2.11 or later, or use \
             --fail open"
        ))
    }

    /// Kernels of Debian. Whatever becomes of it, the package must be configured.
    fn kernel(&self) -> Hook {
        let program = self.program.display();
        let text = format!(
            "#!/bin/sh\n{}if [ -x '{program}' ]; then '{program}' update hook kernel --kernel \"$1\" || true; fi\nexit 0\n",
            self.heading("#")
        );
        let dir = "etc/kernel/postinst.d";
        Hook {
            is_program: true,
            ..self.hook(&format!("{dir}/zz-forebay"), &[dir], text)
        }
    }

    /// Kernels of everybody else.
    fn kernel_install(&self) -> Hook {
        let program = self.program.display();
        let text = format!(
            "#!/bin/sh\n{}if [ \"$1\" = add ] && [ -x '{program}' ]; then\n    \
             '{program}' update hook kernel --kernel \"$2\" || true\nfi\nexit 0\n",
            self.heading("#")
        );
        Hook {
            is_program: true,
            ..self.hook(
                "etc/kernel/install.d/90-forebay.install",
                &["usr/lib/kernel/install.d", "lib/kernel/install.d"],
                text,
            )
        }
    }

    fn unit(&self, file: &str, text: &str) -> Hook {
        let readers = ["usr/lib/systemd/system", "lib/systemd/system"];
        self.hook(
            &format!("{UNITS}/{file}"),
            &readers,
            self.heading("#") + text,
        )
    }

    /// A shutdown is held up while an update is under way.
    fn guard(&self) -> [Hook; 2] {
        let program = self.program.display();
        let fail = self.fail.name();
        let unit = format!(
            "[Unit]\nDescription=Holds up a shutdown while an update of the system is under way\n\
             PartOf=forebay.service\nAfter=forebay.service\n\n[Service]\nType=exec\n\
             ExecStart=\"{program}\" update hook guard --fail {fail}\nRestart=on-failure\nRestartSec=5s\n"
        );
        [
            self.unit("forebay-guard.service", &unit),
            self.unit(
                "forebay.service.d/50-forebay-guard.conf",
                "[Unit]\nWants=forebay-guard.service\n",
            ),
        ]
    }

    /// Critical units begin once the daemon has their slices, and what an update left is put back.
    fn restore(&self) -> Vec<Hook> {
        if self.units.is_empty() {
            return Vec::new();
        }
        let program = self.program.display();
        let (bond, fail) = match self.fail {
            Fail::Open => ("Wants", "open"),
            Fail::Closed => ("Requires", "closed"),
        };
        let unit = format!(
            "[Unit]\nDescription=Waits for what Forebay puts back before critical units start\n\
             Wants=forebay.service\nAfter=forebay.service\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=\"{program}\" update hook restore --fail {fail}\n"
        );
        let drop_in =
            format!("[Unit]\n{bond}=forebay-restore.service\nAfter=forebay-restore.service\n");
        let units = self.units.iter();
        let units = units.map(|unit| self.unit(&format!("{unit}.d/{DROP_IN}"), &drop_in));
        [self.unit("forebay-restore.service", &unit)]
            .into_iter()
            .chain(units)
            .collect()
    }

    pub(super) fn hooks(&self) -> Vec<Hook> {
        let mut hooks = vec![
            self.apt(),
            self.unattended(),
            self.needrestart(),
            self.dnf(),
            self.kernel(),
            self.kernel_install(),
        ];
        hooks.extend(self.guard());
        hooks.extend(self.restore());
        hooks
    }
}

/// A character as a pattern of Perl has it that means nothing but that character.
fn in_pattern(character: char) -> String {
    match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => character.to_string(),
        other => format!("\\x{{{:x}}}", u32::from(other)),
    }
}
