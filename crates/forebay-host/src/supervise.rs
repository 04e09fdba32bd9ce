//! Starting programs inside their slices, and noticing how they end.
//!
//! A program has to be in its groups before it runs its first instruction, or a child forked
//! early would escape. So the forked child enters the groups itself, between fork and exec,
//! through descriptors of cgroup.procs that were opened before: writing `0` moves the writer.
//! Only system calls are made there. Everything that can be wrong with the request (unknown
//! user, missing program) is found out before the fork.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use forebay_core::app::{AppId, Exec, Sink};
use forebay_core::snapshot::Ending;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, WaitId, WaitIdOptions, getrlimit, pidfd_open, setrlimit,
    waitid,
};

use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::groups;
use crate::ledger::Process;
use crate::outside;
use crate::procs;

/// A request to start a program, checked and resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    executable: PathBuf,
    /// The command as it was asked for, its name first.
    pub(crate) arguments: Vec<String>,
    identity: Option<Identity>,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
}

/// All that a program is begun with, to tell one from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    executable: PathBuf,
    arguments: Vec<String>,
    /// User, group and all groups.
    identity: Option<(u32, u32, Vec<u32>)>,
    directory: PathBuf,
    environment: Vec<(String, String)>,
}

impl Begun {
    /// Its arguments, its name first.
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }
}

impl Program {
    /// What it is begun with.
    pub(crate) fn begun(&self) -> Begun {
        let identity = self.identity.as_ref();
        Begun {
            executable: self.executable.clone(),
            arguments: self.arguments.clone(),
            identity: identity.map(|who| (who.uid, who.gid, who.groups.clone())),
            directory: self.directory.clone(),
            environment: self.environment.clone(),
        }
    }

    /// A tool of ours, run as the daemon is.
    pub(crate) fn tool(arguments: Vec<String>) -> Self {
        Self {
            executable: arguments.first().map(PathBuf::from).unwrap_or_default(),
            arguments,
            identity: None,
            directory: PathBuf::from("/"),
            environment: Vec::new(),
            stdout: None,
            stderr: None,
        }
    }
}

/// Whom a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// All groups, the first one included.
    pub groups: Vec<u32>,
}

/// The identity of a user, by name or number.
///
/// # Errors
/// When there is no user of that name.
pub fn identity(user: &str) -> Result<Identity, HostError> {
    let exec = Exec {
        user: Some(user.to_owned()),
        ..Exec::of(Vec::new())
    };
    let identity = identity_of(&exec)?;
    identity.ok_or_else(|| HostError::invalid(format!("run as `{user}`"), "name a user"))
}

/// The identity that a program is started with; none where it has the daemon's own.
///
/// # Errors
/// When there is no such user or group.
pub fn identity_of(exec: &Exec) -> Result<Option<Identity>, HostError> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    Ok(resolve_identity(exec, &passwd, &group)?.0)
}

/// Checks a request: the program exists, the user and group are known, the directory is there.
pub(crate) fn resolve(exec: &Exec) -> Result<Program, HostError> {
    let directory = exec.directory.clone().unwrap_or_else(|| PathBuf::from("/"));
    if !directory.is_dir() {
        return Err(HostError::invalid(
            format!("use {} as working directory", directory.display()),
            "it is not a directory: make it, or set another `directory`",
        ));
    }
    let name = exec
        .command
        .first()
        .ok_or_else(|| HostError::invalid("start an empty command", "set `command`"))?;
    let path = exec
        .environment
        .get("PATH")
        .cloned()
        .or_else(|| std::env::var("PATH").ok())
        .unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let executable = find_executable(name, &directory, &path)?;
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let (identity, account) = resolve_identity(exec, &passwd, &group)?;
    let mut environment = Vec::new();
    if let Some(account) = account {
        environment.push(("HOME".to_owned(), account.home));
        environment.push(("USER".to_owned(), account.name.clone()));
        environment.push(("LOGNAME".to_owned(), account.name));
    }
    environment.extend(
        exec.environment
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    Ok(Program {
        executable,
        arguments: exec.command.clone(),
        identity,
        directory,
        environment,
        stdout: exec.stdout.clone(),
        stderr: exec.stderr.clone(),
    })
}

fn find_executable(name: &str, directory: &Path, path: &str) -> Result<PathBuf, HostError> {
    let runs = |file: &Path| {
        fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![directory.join(name)]
    } else {
        path.split(':')
            .map(|dir| Path::new(dir).join(name))
            .collect()
    };
    match candidates.iter().find(|file| runs(file)) {
        Some(file) => Ok(file.clone()),
        None if name.contains('/') && candidates.iter().any(|file| file.exists()) => {
            Err(HostError::invalid(
                format!("run `{name}`: it is not an executable file"),
                "make it executable (chmod +x), or name another program",
            ))
        }
        None => Err(HostError::invalid(
            format!("run `{name}`: no such program"),
            if name.contains('/') {
                "check the path in `command`".to_owned()
            } else {
                format!("install it, or give its full path (searched {path})")
            },
        )),
    }
}

/// One line of /etc/passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn parse_passwd(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    Some(Account {
        name: (*fields.first()?).to_owned(),
        uid: fields.get(2)?.parse().ok()?,
        gid: fields.get(3)?.parse().ok()?,
        home: (*fields.get(5)?).to_owned(),
    })
}

fn resolve_identity(
    exec: &Exec,
    passwd: &str,
    group: &str,
) -> Result<(Option<Identity>, Option<Account>), HostError> {
    let account = match &exec.user {
        None => None,
        Some(user) => {
            let known = passwd
                .lines()
                .filter_map(parse_passwd)
                .find(|account| account.name == *user || account.uid.to_string() == *user);
            match (known, user.parse()) {
                (Some(account), _) => Some(account),
                (None, Ok(uid)) => Some(Account {
                    name: user.clone(),
                    uid,
                    gid: uid,
                    home: "/".to_owned(),
                }),
                (None, Err(_)) => {
                    return Err(HostError::invalid(
                        format!("run as user `{user}`: no such user"),
                        "create it (useradd), or set another `user`",
                    ));
                }
            }
        }
    };
    let groups: Vec<(&str, u32, &str)> = group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            Some((name, gid, fields.next().unwrap_or_default()))
        })
        .collect();
    let gid = match &exec.group {
        None => None,
        Some(wanted) => {
            let known = groups
                .iter()
                .find(|(name, gid, _)| name == wanted || gid.to_string() == *wanted)
                .map(|(_, gid, _)| *gid);
            match (known, wanted.parse()) {
                (Some(gid), _) | (None, Ok(gid)) => Some(gid),
                (None, Err(_)) => {
                    return Err(HostError::invalid(
                        format!("run as group `{wanted}`: no such group"),
                        "create it (groupadd), or set another `group`",
                    ));
                }
            }
        }
    };
    let identity = match (&account, gid) {
        (None, None) => None,
        (None, Some(gid)) => Some(Identity {
            uid: rustix::process::getuid().as_raw(),
            gid,
            groups: vec![gid],
        }),
        (Some(account), gid) => {
            let gid = gid.unwrap_or(account.gid);
            let mut all = vec![gid];
            all.extend(
                groups
                    .iter()
                    .filter(|(_, _, members)| members.split(',').any(|m| m == account.name))
                    .map(|(_, gid, _)| *gid)
                    .filter(|other| *other != gid),
            );
            Some(Identity {
                uid: account.uid,
                gid,
                groups: all,
            })
        }
    };
    Ok((identity, account))
}

/// Starts a program in the groups whose directories are given. It has its own session and
/// no terminal, so that nothing sent to the daemon's group reaches it, and it outlives the
/// daemon.
pub(crate) fn start(app: &AppId, program: &Program, groups: &[&Path]) -> Result<u32, HostError> {
    let mut doors = Vec::new();
    for dir in groups {
        let file = dir.join("cgroup.procs");
        let door = OpenOptions::new()
            .write(true)
            .open(&file)
            .map_err(|e| HostError::file("open", &file, e))?;
        doors.push(door);
    }
    let mut command = Command::new(&program.executable);
    if let Some(name) = program.arguments.first() {
        command.arg0(OsStr::new(name));
    }
    command
        .args(program.arguments.iter().skip(1))
        .current_dir(&program.directory)
        .envs(program.environment.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null());
    if let Some(sink) = &program.stdout {
        command.stdout(open_sink(sink, app, PRIORITY_INFO)?);
    }
    if let Some(sink) = &program.stderr {
        command.stderr(open_sink(sink, app, PRIORITY_WARNING)?);
    }
    let (mut step_in, step_out) = steps()?;
    enter_before_exec(&mut command, doors, program, step_out)?;
    let spawned = command.spawn();
    // The child's end is in the command: without it the read below ends.
    drop(command);
    match spawned {
        Ok(child) => Ok(child.id()),
        Err(error) => {
            let mut step = Vec::new();
            // The step only refines the message; without it, it was the exec.
            if let Err(error) = step_in.read_to_end(&mut step) {
                tracing::debug!(%error, "the failed step is unknown");
            }
            Err(describe(program, groups, step.first().copied(), error))
        }
    }
}

/// Where systemd-journald takes streams.
const JOURNAL: &str = "/run/systemd/journal/stdout";
/// Levels of syslog(3) for what a program prints.
const PRIORITY_INFO: u8 = 6;
const PRIORITY_WARNING: u8 = 4;

const STEP_VIEW: u8 = 252;
const STEP_SESSION: u8 = 253;
const STEP_IDENTITY: u8 = 254;

fn describe(program: &Program, groups: &[&Path], step: Option<u8>, error: io::Error) -> HostError {
    let name = program.executable.display();
    match step {
        None => HostError::io(format!("run {name}"), error),
        Some(STEP_VIEW) => HostError::io(
            format!(
                "start {name} in the host's view of {}",
                program.directory.display()
            ),
            error,
        ),
        Some(STEP_SESSION) => HostError::io(format!("give {name} a session of its own"), error),
        Some(STEP_IDENTITY) => HostError::io(format!("run {name} as the user asked for"), error),
        Some(group) => match groups.get(usize::from(group)) {
            Some(dir) => HostError::io(format!("start {name} in {}", dir.display()), error),
            None => HostError::io(format!("start {name} in its groups"), error),
        },
    }
}

fn steps() -> Result<(File, OwnedFd), HostError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| HostError::io("make a pipe", e))?;
    Ok((File::from(read), write))
}

fn open_sink(sink: &Sink, app: &AppId, priority: u8) -> Result<Stdio, HostError> {
    match sink {
        Sink::File(path) => append_to(path),
        Sink::Journal => to_journal(Path::new(JOURNAL), app, priority),
    }
}

/// A stream into the journal, by the protocol that systemd uses for its own services: a few
/// lines that say who writes, then the output, line by line. See sd_journal_stream_fd(3).
fn to_journal(socket: &Path, app: &AppId, priority: u8) -> Result<Stdio, HostError> {
    let refused = |e| {
        HostError::file("connect to the journal at", socket, e)
            .advise("start systemd-journald, or name a file instead of \"journal\"")
    };
    let mut stream = UnixStream::connect(socket).map_err(refused)?;
    // Name, unit, priority, then: levels in the lines are heeded, nothing is passed on.
    let header = format!("{app}\n\n{priority}\n1\n0\n0\n0\n");
    stream.write_all(header.as_bytes()).map_err(refused)?;
    Ok(Stdio::from(OwnedFd::from(stream)))
}

fn append_to(path: &Path) -> Result<Stdio, HostError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map(Stdio::from)
        .map_err(|e| {
            HostError::file("open", path, e).advise("make its directory, or set another file")
        })
}

const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";

#[expect(
    unsafe_code,
    reason = "only code between fork and exec can put a child into v1 groups before it runs"
)]
fn enter_before_exec(
    command: &mut Command,
    doors: Vec<File>,
    program: &Program,
    step_out: OwnedFd,
) -> Result<(), HostError> {
    let identity = program.identity.clone();
    let directory = CString::new(program.directory.as_os_str().as_bytes())
        .map_err(|e| HostError::file("start in", &program.directory, io::Error::from(e)))?;
    let daemon = rustix::process::getpid();
    let open_files = OPEN_FILES.get().cloned();
    let every_cpu = every_cpu();
    let mut step_out = File::from(step_out);
    let mut fail = move |step: u8, error: io::Error| -> io::Error {
        // Nobody can be told that the telling failed.
        match step_out.write(&[step]) {
            Ok(_) | Err(_) => error,
        }
    };
    let enter = move || -> io::Result<()> {
        for (index, mut door) in doors.iter().enumerate() {
            if let Err(error) = door.write(b"0\n") {
                return Err(fail(u8::try_from(index).unwrap_or(STEP_VIEW - 1), error));
            }
        }
        // Without the daemon nobody would know of this child: the next daemon knows only
        // those that were in their groups before it looked.
        if rustix::process::getppid() != Some(daemon) {
            leave();
        }
        if let Err(error) = rustix::process::setsid() {
            return Err(fail(STEP_SESSION, error.into()));
        }
        let stepped = outside::step_out().and_then(|moved| match moved {
            true => Ok(rustix::process::chdir(&*directory)?),
            false => Ok(()),
        });
        if let Err(error) = stepped {
            return Err(fail(STEP_VIEW, error));
        }
        if let Some(open_files) = &open_files
            && let Err(error) = setrlimit(Resource::Nofile, *open_files)
        {
            return Err(fail(STEP_SESSION, error.into()));
        }
        // The daemon's control thread goes ahead of others and stays off others' CPUs; its
        // children shall not. What refuses this takes nothing from the program.
        rustix::process::setpriority_process(None, 0).ok();
        rustix::thread::sched_setaffinity(None, &every_cpu).ok();
        // Nor is it what the daemon is when memory is out.
        if let Ok(own) = rustix::fs::open(OOM_SCORE, OFlags::WRONLY, Mode::empty()) {
            rustix::io::write(own, b"0").ok();
        }
        if let Some(identity) = &identity
            && let Err(error) = become_identity(identity)
        {
            return Err(fail(STEP_IDENTITY, error));
        }
        Ok(())
    };
    // SAFETY: `enter` runs in the forked child, where only async-signal-safe calls are allowed
    // because other threads' locks may be held for ever. It makes plain system calls (write,
    // getppid, setsid, setns, chdir, prlimit, setpriority, sched_setaffinity, open, setgroups, setgid, setuid), allocates nothing and takes no lock:
    // the descriptors and the identity were made before the fork, and errors from raw numbers
    // do not allocate. There is no safe way to run code there.
    unsafe {
        command.pre_exec(enter);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "no safe call ends a forked child at once")]
fn leave() -> ! {
    // SAFETY: _exit ends the process without running anything of the parent's copied state,
    // which is what it is for. There is nobody left to tell why.
    unsafe { libc::_exit(1) }
}

#[expect(
    unsafe_code,
    reason = "rustix leaves changing the user of a process to libc"
)]
fn become_identity(identity: &Identity) -> io::Result<()> {
    // SAFETY: setgroups reads `len` group numbers from a live vector of u32, which is gid_t;
    // setgid and setuid take plain numbers. The child has one thread.
    let refused = unsafe {
        libc::setgroups(identity.groups.len(), identity.groups.as_ptr()) != 0
            || libc::setgid(identity.gid) != 0
            || libc::setuid(identity.uid) != 0
    };
    if refused {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Every CPU there could be: the kernel cuts it to the group's CPUs.
fn every_cpu() -> CpuSet {
    let mut cpus = CpuSet::new();
    for cpu in 0..CpuSet::MAX_CPU {
        cpus.set(cpu);
    }
    cpus
}

/// A program that was started, by this daemon or by one before it.
#[derive(Debug)]
pub(crate) struct Main {
    pub(crate) process: Process,
    pidfd: OwnedFd,
}

impl Main {
    /// Holds on to a process; none when it is gone.
    pub(crate) fn open(process: Process) -> Option<Self> {
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { process, pidfd })
    }

    /// What can be waited on for its end.
    pub(crate) const fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// How it ended, if it did. Reaps it when it is a child of ours.
    pub(crate) fn ended(&self) -> Option<Ending> {
        // While a thread of this process traces it to move it, a wait would be told of its stops, and that thread
        // would not.
        if !has_ended(&self.pidfd) {
            return None;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) => None,
            Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => Ending::Status(status),
                (None, Some(signal)) => Ending::Signal(signal),
                (None, None) => Ending::Unknown,
            }),
            // A child of an earlier daemon: its status went elsewhere.
            Err(_) => Some(Ending::Unknown),
        }
    }
}

/// Lets orphans of started programs come to this process, not to an init that may be slow to
/// reap them.
pub(crate) fn become_subreaper() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!(%error, "orphans go to init");
    }
}

/// Reaps orphans that ended in a group of ours, but those given: these are waited for by
/// themselves. Other children belong to whoever started them.
pub(crate) fn reap_orphans(proc_root: &Path, group: &Path, except: &[u32]) {
    let anchor = Path::new("/").join(group);
    for pid in procs::children(proc_root, std::process::id()) {
        let ended = || procs::read_stat(proc_root, pid).is_some_and(|stat| stat.state == 'Z');
        if except.contains(&pid) || !ended() {
            continue;
        }
        // Only v2 still knows the group of the dead.
        let groups = fs::read_to_string(proc_root.join(format!("{pid}/cgroup")));
        let is_ours = groups.is_ok_and(|text| {
            text.lines()
                .filter_map(|line| line.strip_prefix("0::"))
                .any(|path| groups::is_ours(&anchor, Path::new(path)))
        });
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let (true, Some(pid)) = (is_ours, pid) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Err(error) = waitid(WaitId::Pid(pid), options) {
                tracing::debug!(%error, "orphan not reaped");
            }
        }
    }
}

/// The open files this process might have before it asked for more.
static OPEN_FILES: OnceLock<Rlimit> = OnceLock::new();

/// Asks for as many open files as are allowed: each app takes about ten. Programs that are
/// started get back what there was before, for the sake of those that use select().
pub(crate) fn raise_open_files() {
    let before = OPEN_FILES.get_or_init(|| getrlimit(Resource::Nofile));
    let most = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::debug!(%error, "limit of open files stays");
    }
}

/// What a daemon that died while it was starting a program had started: the oldest leader of a
/// session in the groups that is not older than the attempt.
pub(crate) fn just_started(proc_root: &Path, dirs: &[&Path], at: u64) -> Option<Process> {
    dirs.iter()
        .flat_map(|dir| groups::members(dir))
        .filter_map(|pid| Some((pid, procs::read_stat(proc_root, pid)?)))
        .filter(|(_, stat)| stat.start_time >= at && !matches!(stat.state, 'Z' | 'X'))
        .min_by_key(|(pid, stat)| (stat.session != *pid, stat.start_time, *pid))
        .map(|(pid, stat)| Process {
            pid,
            start_time: stat.start_time,
        })
}

/// Whether the process behind a pidfd has ended.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_core::app::Restart;

    fn exec(command: &[&str]) -> Exec {
        Exec {
            command: command.iter().map(|s| (*s).to_owned()).collect(),
            user: None,
            group: None,
            directory: None,
            environment: std::collections::BTreeMap::new(),
            stdout: None,
            stderr: None,
            restart: Restart::Never,
        }
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nssl:x:110:db,web\n";

    #[test]
    fn users_and_groups_resolve() {
        let check =
            |user: Option<&str>, group: Option<&str>, expected: Option<(u32, u32, &[u32])>| {
                let exec = Exec {
                    user: user.map(str::to_owned),
                    group: group.map(str::to_owned),
                    ..exec(&["true"])
                };
                let identity = resolve_identity(&exec, PASSWD, GROUP).unwrap().0;
                let expected = expected.map(|(uid, gid, groups)| Identity {
                    uid,
                    gid,
                    groups: groups.to_vec(),
                });
                assert_eq!(identity, expected, "{user:?} {group:?}");
            };
        check(None, None, None);
        check(Some("web"), None, Some((33, 34, &[34, 110])));
        check(Some("33"), Some("ssl"), Some((33, 110, &[110])));
        check(Some("4000"), None, Some((4000, 4000, &[4000])));
    }

    #[test]
    fn bad_requests_say_what_to_do() {
        let check = |exec: Exec, part: &str| {
            let error = resolve(&exec).unwrap_err().explain();
            assert!(error.contains(part), "{error}");
        };
        let base = || exec(&["true"]);
        check(
            Exec {
                user: Some("no-such-user".to_owned()),
                ..base()
            },
            "no such user",
        );
        check(
            Exec {
                group: Some("no-such-group".to_owned()),
                ..base()
            },
            "no such group",
        );
        check(exec(&["no-such-program"]), "no such program");
        check(exec(&["/etc/passwd"]), "not an executable");
        check(exec(&["/no/such/file"]), "check the path");
        check(exec(&[]), "empty command");
        check(
            Exec {
                directory: Some(PathBuf::from("/no/such/dir")),
                ..base()
            },
            "not a directory",
        );
    }

    #[test]
    fn a_program_outside_any_group_starts_and_ends() {
        let program = resolve(&exec(&["sh", "-c", "exit 3"])).unwrap();
        let pid = start(&"a".parse().unwrap(), &program, &[]).unwrap();
        let process = Process { pid, start_time: 0 };
        let main = Main::open(process).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            if let Some(ending) = main.ended() {
                assert_eq!(ending, Ending::Status(3));
                break;
            }
            assert!(std::time::Instant::now() < deadline, "sh did not end");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_group_that_is_not_there_is_named() {
        let program = resolve(&exec(&["true"])).unwrap();
        let error = start(&"a".parse().unwrap(), &program, &[Path::new("/no/group")]).unwrap_err();
        assert!(error.explain().contains("/no/group/cgroup.procs"));
    }

    #[test]
    fn the_journal_hears_who_writes_and_what() {
        let dir = std::env::temp_dir().join(format!("forebay-journal-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let socket = dir.join("stdout");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let app = "web".parse().unwrap();

        let sink = to_journal(&socket, &app, PRIORITY_INFO).unwrap();
        let mut child = Command::new("echo")
            .arg("hello")
            .stdout(sink)
            .spawn()
            .unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(heard, "web\n\n6\n1\n0\n0\n0\nhello\n");

        let error = to_journal(&socket, &app, PRIORITY_INFO).unwrap_err();
        assert!(
            error.explain().contains("start systemd-journald"),
            "{error}"
        );
    }
}
