//! A real container runtime of a test's own: its files in a directory of its own, its containers in
//! control groups of the test's, its /run in a mount namespace that goes with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::Signal;

use crate::place::{PATIENCE, Place, eventually, signal, wait_for_end};

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker,
    Podman,
}

/// What a container is made with, as both command lines have it.
const PLAIN: [&str; 4] = [
    "--network=none",
    "--ulimit=nofile=1000:1000",
    "--ulimit=nproc=1000:1000",
    "--stop-timeout=0",
];

/// The runtime's service, while it runs.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) kind: Kind,
    pub(crate) socket: PathBuf,
    /// The control group that its containers' groups are made in.
    parent: String,
    dir: tempfile::TempDir,
    /// How long a container sleeps: by that nobody mistakes its process.
    seconds: String,
    service: Option<Child>,
    made: Vec<String>,
}

/// What Podman starts containers with: crun, its own choice, knows hosts with v2 alone.
fn oci_runtime() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "crun"
    } else {
        "runc"
    }
}

/// What has to be there for a runtime.
fn missing(kind: Kind) -> Option<String> {
    let programs: &[&str] = match kind {
        Kind::Docker => &["dockerd", "docker", "containerd", "runc"],
        Kind::Podman => &["podman", "conmon", oci_runtime()],
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).exists());
    let programs = ["busybox", "unshare", "nsenter"].iter().chain(programs);
    let missing: Vec<&str> = programs.copied().filter(|name| !is_there(name)).collect();
    (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        format!("no {missing}; `cargo xtask setup containers` gets them")
    })
}

impl Runtime {
    /// None, with a line that says why, where there is no such runtime.
    pub(crate) fn new(test: &str, kind: Kind, place: &Place) -> Option<Self> {
        if let Some(reason) = missing(kind) {
            println!("SKIPPED: {test}: {reason}");
            return None;
        }
        let own = tempfile::tempdir().unwrap();
        let dir = own.path();
        let image = dir.join("image/bin");
        fs::create_dir_all(&image).unwrap();
        fs::create_dir_all(dir.join("image/etc")).unwrap();
        let busybox = which("busybox");
        fs::copy(&busybox, image.join("busybox")).unwrap();
        fs::set_permissions(image.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("busybox", image.join("sleep")).unwrap();
        fs::write(dir.join("docker.json"), docker_configuration(dir)).unwrap();
        let mut runtime = Self {
            kind,
            socket: dir.join("socket"),
            parent: format!("{}-containers", place.group),
            seconds: place.seconds(7),
            dir: own,
            service: None,
            made: Vec::new(),
        };
        runtime.start();
        if kind == Kind::Docker {
            let tar = runtime.dir.path().join("image.tar");
            let image = runtime.dir.path().join("image");
            let packed = Command::new("busybox")
                .args(["tar", "-cf"])
                .arg(&tar)
                .arg("-C")
                .arg(image)
                .arg(".")
                .output()
                .unwrap();
            assert!(packed.status.success(), "{packed:?}");
            runtime.command(&["import", &tar.display().to_string(), "image"]);
        }
        Some(runtime)
    }

    /// Starts the service and waits until it answers.
    fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let words = match self.kind {
            Kind::Docker => vec![
                "dockerd".to_owned(),
                format!(
                    "--config-file={}",
                    self.dir.path().join("docker.json").display()
                ),
                format!("--host=unix://{}", self.socket.display()),
            ],
            Kind::Podman => {
                let mut words = self.podman();
                words.extend(["system", "service", "--time=0"].map(str::to_owned));
                words.push(format!("unix://{}", self.socket.display()));
                words
            }
        };
        // What it mounts, and what it leaves in /run, goes with its namespace.
        let service = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .args(["mount -t tmpfs tmpfs /run && exec \"$@\"", "sh"])
            .args(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.service = Some(service);
        eventually("the runtime answers", || {
            let ended = self.service.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            UnixStream::connect(&self.socket).is_ok()
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Nobody finds it any more.
    pub(crate) fn hide(&self) {
        fs::rename(&self.socket, self.dir.path().join("hidden")).unwrap();
    }

    pub(crate) fn show(&self) {
        fs::rename(self.dir.path().join("hidden"), &self.socket).unwrap();
    }

    fn podman(&self) -> Vec<String> {
        let dir = |name: &str| self.dir.path().join(name).display().to_string();
        let words = [
            "podman".to_owned(),
            format!("--root={}", dir("root")),
            format!("--runroot={}", dir("runroot")),
            format!("--tmpdir={}", dir("tmp")),
            "--storage-driver=vfs".to_owned(),
            "--cgroup-manager=cgroupfs".to_owned(),
            format!("--runtime={}", oci_runtime()),
            "--events-backend=none".to_owned(),
        ];
        words.into()
    }

    /// Runs the runtime's own command line, which has to succeed; what it says.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {output:?}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn output(&self, arguments: &[&str]) -> Output {
        let service = self.service.as_ref().unwrap().id();
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{service}/ns/mnt"));
        match self.kind {
            Kind::Docker => {
                command.arg("docker");
                command.arg(format!("--host=unix://{}", self.socket.display()));
            }
            Kind::Podman => {
                command.args(self.podman());
            }
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Makes and starts a container.
    #[track_caller]
    pub(crate) fn run(&mut self, name: &str, arguments: &[&str]) {
        let parent = format!("--cgroup-parent=/{}", self.parent);
        let named = format!("--name={name}");
        let mut words = vec!["run", "--detach", &parent, &named];
        words.extend(PLAIN);
        words.extend(arguments);
        let root = self.dir.path().join("image").display().to_string();
        match self.kind {
            Kind::Docker => words.push("image"),
            Kind::Podman => words.extend(["--rootfs", &root]),
        }
        words.extend(["/bin/sleep", &self.seconds]);
        self.command(&words);
        if !self.made.iter().any(|made| made == name) {
            self.made.push(name.to_owned());
        }
    }

    #[track_caller]
    pub(crate) fn remove(&mut self, name: &str) {
        self.command(&["rm", "--force", name]);
        self.made.retain(|made| made != name);
    }

    /// The control group that a container is in, relative to each hierarchy's root.
    #[track_caller]
    pub(crate) fn group(&self, name: &str) -> String {
        let said = self.command(&["inspect", "--format", "{{.Id}} {{.State.Pid}}", name]);
        let (id, pid) = said.split_once(' ').unwrap();
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let line = groups.lines().find(|line| line.contains(id)).unwrap();
        let path = line.rsplit(':').next().unwrap();
        path.trim_start_matches('/').to_owned()
    }

    /// The directories of the group that its containers' groups are in.
    fn parents(&self) -> Vec<PathBuf> {
        // Also in hierarchies that Forebay has no use for, such as that of devices.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let of_groups = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            let (mount, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup")
                .then(|| Path::new(mount).join(&self.parent))
        };
        let dirs = mounts.lines().filter_map(of_groups);
        dirs.filter(|dir| dir.exists()).collect()
    }
}

fn which(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.exists())
        .unwrap()
}

fn docker_configuration(dir: &Path) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    serde_json::json!({
        "data-root": path("data"),
        "exec-root": path("exec"),
        "pidfile": path("pid"),
        "deprecated-key-path": path("key.json"),
        "bridge": "none",
        "iptables": false,
        "ip6tables": false,
        "live-restore": true,
        "storage-driver": "vfs",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
    })
    .to_string()
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if self.dir.path().join("hidden").exists() {
            self.show();
        }
        let made = std::mem::take(&mut self.made);
        if !made.is_empty() {
            let mut words = vec!["rm", "--force"];
            words.extend(made.iter().map(String::as_str));
            let removed = self.output(&words);
            if !removed.status.success() {
                println!("containers are left: {removed:?}\n{}", self.log());
            }
        }
        if let Some(mut service) = self.service.take() {
            signal(service.id(), Signal::TERM);
            if wait_for_end(&mut service).is_none() {
                println!("the runtime did not end in {PATIENCE:?}: {}", self.log());
                service.kill().unwrap();
                service.wait().unwrap();
            }
        }
        for dir in self.parents() {
            eventually("the containers' groups are empty", || {
                remove_tree(&dir);
                !dir.exists()
            });
        }
    }
}

/// Removes a control group with those in it, as far as they are empty.
fn remove_tree(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().is_dir()) {
        remove_tree(&entry.path());
    }
    fs::remove_dir(dir).ok();
}
