//! What the firmware's boot loader starts once, should the kernel that is started past it not come up.
//!
//! A package that brings a kernel makes it the one that GRUB starts. Started by kexec and gone again, it would be started
//! once more by GRUB, and so on. `grub-reboot` names an entry for the next boot alone, and GRUB forgets it when it starts
//! that. Where the new kernel came up, whoever runs then takes it back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{BOOT, KERNEL, program, run};
use crate::error::HostError;

/// How distributions name GRUB's directory below /boot, and what its programs begin with.
const GRUBS: [&str; 2] = ["grub", "grub2"];

/// Has the boot loader start the kernel of this version at the next boot through the firmware, and only then.
///
/// # Errors
/// Why it starts what it always does.
pub fn prefer_once(version: &str) -> Result<(), HostError> {
    let (name, directory) = grub().ok_or_else(|| {
        HostError::missing(
            format!("have the boot loader start kernel {version} once"),
            "there is no GRUB: see that what it starts by itself comes up",
        )
    })?;
    let file = directory.join("grub.cfg");
    let menu = fs::read_to_string(&file).map_err(|e| HostError::file("read", &file, e))?;
    let entry = entry(&menu, version).ok_or_else(|| {
        HostError::missing(
            format!("find kernel {version} in {}", file.display()),
            "run `update-grub`, or keep another kernel that comes up as the default",
        )
    })?;
    run(Command::new(format!("{name}-reboot")).arg(entry))
}

/// Takes that back.
///
/// # Errors
/// When GRUB's program does not.
pub fn prefer_no_more() -> Result<(), HostError> {
    let Some((name, directory)) = grub() else {
        return Ok(());
    };
    let environment = directory.join("grubenv");
    if !environment.is_file() {
        return Ok(());
    }
    let mut command = Command::new(format!("{name}-editenv"));
    run(command.arg(environment).args(["unset", "next_entry"]))
}

/// What GRUB's programs are called here, and where its files are.
fn grub() -> Option<(&'static str, PathBuf)> {
    let places = GRUBS.map(|name| (name, Path::new(BOOT).join(name)));
    let is_here = |name: &str| program(&format!("{name}-reboot")).is_some();
    places
        .into_iter()
        .find(|(name, directory)| is_here(name) && directory.join("grub.cfg").is_file())
}

/// The entry of a menu that starts a kernel of this version as usual, by its identifiers: `SUBMENU>ENTRY`.
fn entry(menu: &str, version: &str) -> Option<String> {
    let image = format!("{KERNEL}{version}");
    // What is open, with the name of what can be chosen.
    let mut open: Vec<Option<String>> = Vec::new();
    for line in menu.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let is_ours = words
            .next()
            .is_some_and(|path| path.rsplit('/').next() == Some(&image));
        let names: Vec<&str> = open.iter().flatten().map(String::as_str).collect();
        let is_usual = names.last().is_some_and(|name| !name.contains("recovery"));
        if first.starts_with("linux") && is_ours && is_usual {
            return Some(names.join(">"));
        }
        if line.ends_with('{') {
            let can_be_chosen = matches!(first, "menuentry" | "submenu");
            open.push(can_be_chosen.then(|| name(line)).flatten());
        } else if line == "}" {
            open.pop();
        }
    }
    None
}

/// The identifier of a line that begins an entry, or its title where it has none.
fn name(line: &str) -> Option<String> {
    let after = line
        .split_once("menuentry_id_option")
        .map_or(line, |(_, rest)| rest);
    let mut quoted = after.split(['\'', '"']);
    quoted.nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MENU: &str = r#"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
fi
function gfxmode {
	set gfxpayload="${1}"
}
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-1234' {
	if [ x$grub_platform = xxen ]; then insmod xzio; fi
	linux	/boot/vmlinuz-6.12.1-amd64 root=UUID=1234 ro quiet
	initrd	/boot/initrd.img-6.12.1-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-1234' {
	menuentry 'Debian, with Linux 6.12.1-amd64' $menuentry_id_option 'gnulinux-6.12.1-amd64-advanced-1234' {
		linux	/boot/vmlinuz-6.12.1-amd64 root=UUID=1234 ro quiet
	}
	menuentry 'Debian, with Linux 6.1.0-9-amd64 (recovery mode)' $menuentry_id_option 'gnulinux-6.1.0-9-amd64-recovery-1234' {
		linux	/boot/vmlinuz-6.1.0-9-amd64 root=UUID=1234 ro single
	}
	menuentry 'Debian, with Linux 6.1.0-9-amd64' $menuentry_id_option 'gnulinux-6.1.0-9-amd64-advanced-1234' {
		linux	/boot/vmlinuz-6.1.0-9-amd64 root=UUID=1234 ro quiet
	}
	menuentry "Without an identifier" {
		linuxefi /vmlinuz-5.10 root=/dev/sda1
	}
}
"#;

    #[test]
    fn an_entry_is_found_by_the_kernel_that_it_starts() {
        let check = |version: &str, expected: Option<&str>| {
            assert_eq!(entry(MENU, version).as_deref(), expected, "{version}");
        };
        check(
            "6.1.0-9-amd64",
            Some("gnulinux-advanced-1234>gnulinux-6.1.0-9-amd64-advanced-1234"),
        );
        check("6.12.1-amd64", Some("gnulinux-simple-1234"));
        check("5.10", Some("gnulinux-advanced-1234>Without an identifier"));
        check("6.1.0", None);
        check("6.12.1", None);
    }
}
