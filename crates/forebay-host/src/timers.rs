//! What the host says of its own future: crontabs and systemd's timers.
//!
//! Changes nothing. Files and a bus that are not there are no error: then there is less to know.
//! Everything is bounded: files, lines, timers, and the time that systemd may take.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::calendar::{Schedule, Zones};
use jiff::tz::TimeZone;
use rustix::time::ClockId;
use zbus::{OwnedObjectPath, OwnedVariant};

use crate::error::HostError;
use crate::owner::systemd::{MANAGER, PATH, Systemd};
use crate::regular;
use crate::zones::ZoneFiles;

/// Crontabs that are read.
pub const FILES_MAX: usize = 64;
/// Entries of all crontabs that are told.
pub const ENTRIES_MAX: usize = 256;
/// Timers that are asked for.
pub const TIMERS_MAX: usize = 64;
/// Bytes of one crontab that are read.
const FILE_BYTES_MAX: u64 = 1 << 18;
/// How long systemd may take for all timers.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Characters of a command that name an entry.
const COMMAND_CHARS_MAX: usize = 60;
/// Whether everybody may read a file.
const MODE_OTHERS_READ: u32 = 0o004;
/// The interface with the properties of a timer.
const TIMER: &str = "org.freedesktop.systemd1.Timer";

/// One line of a crontab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronEntry {
    /// `USER COMMAND`, the start of it; `USER FILE:LINE` where not everybody may read the crontab.
    pub name: String,
    /// The crontab, as the host names it.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// When it runs.
    pub schedule: Schedule,
    /// Whose time that is.
    pub zone: TimeZone,
}

/// What crontabs say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crontabs {
    /// In the order of files and lines.
    pub entries: Vec<CronEntry>,
    /// Lines that were not understood, and those beyond the bounds.
    pub skipped: usize,
    /// Lines that run when the host starts, at no time that could be known.
    pub at_boot: usize,
}

/// One timer of systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// `logrotate.timer`.
    pub unit: String,
    /// What it starts.
    pub triggers: String,
    /// Its expressions of `OnCalendar=`, as systemd writes them.
    pub on_calendar: Vec<String>,
    /// When it elapses next, in milliseconds since 1970-01-01 UTC, as far as systemd knows. For
    /// timers that count from something else than the calendar, too.
    pub next_unix_ms: Option<u64>,
    /// How long after its time it may elapse, as systemd draws it: `RandomizedDelaySec=`.
    pub delay: Duration,
}

/// A crontab that is read.
struct Crontab<'a> {
    /// As the host names it.
    file: &'a Path,
    runs: Runs,
    is_public: bool,
}

/// Who runs the lines of a crontab.
enum Runs {
    /// A column says it.
    Column,
    /// The file's name.
    User(String),
}

/// Reads the crontabs below `root`, which is `/` outside tests: /etc/crontab, /etc/cron.d and
/// those of users. The daily directories count by the line that runs them.
#[must_use]
pub fn crontabs(root: &Path) -> Crontabs {
    let zones = ZoneFiles::new(root);
    let mut found = Crontabs::default();
    let system = [PathBuf::from("/etc/crontab")].into_iter();
    let system = system
        .chain(files(root, "/etc/cron.d"))
        .map(|file| (file, Runs::Column));
    let users = files(root, "/var/spool/cron/crontabs").into_iter();
    let users = users.map(|file| {
        let user = file
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        (file, Runs::User(user.unwrap_or_default()))
    });
    for (file, runs) in system.chain(users).take(FILES_MAX) {
        let (bytes, mode) = match regular::read(&below(root, &file), FILE_BYTES_MAX) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                tracing::debug!(file = %file.display(), %error, "a crontab is left out");
                found.skipped += 1;
                continue;
            }
        };
        let crontab = Crontab {
            file: &file,
            // Commands may hold what only their owner is to know, and names are told to everybody.
            // Those of users are in a directory that others may not enter.
            is_public: matches!(runs, Runs::Column) && mode & MODE_OTHERS_READ != 0,
            runs,
        };
        crontab.read(&String::from_utf8_lossy(&bytes), &zones, &mut found);
    }
    found
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The files of a directory that cron reads, by name: none with a dot or a `~`, as packages leave
/// them behind.
fn files(root: &Path, dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(below(root, Path::new(dir)));
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.contains(['.', '~', '#']))
        .collect();
    names.sort();
    names.iter().map(|name| Path::new(dir).join(name)).collect()
}

impl Crontab<'_> {
    fn read(&self, text: &str, zones: &ZoneFiles, found: &mut Crontabs) {
        let mut zone = zones.local();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some((name, value)) = variable(line) {
                if name == "CRON_TZ" {
                    zone = zones.named(value).unwrap_or(zone);
                }
                continue;
            }
            if line.to_ascii_lowercase().starts_with("@reboot") {
                found.at_boot += 1;
                continue;
            }
            match entry(line, &self.runs, &zone) {
                Some(entry) if found.entries.len() < ENTRIES_MAX => {
                    found.entries.push(CronEntry {
                        name: match self.is_public {
                            true => format!("{} {}", entry.user, start_of(entry.command)),
                            false => {
                                format!("{} {}:{}", entry.user, self.file.display(), index + 1)
                            }
                        },
                        file: self.file.to_owned(),
                        line: index + 1,
                        schedule: entry.schedule,
                        zone: zone.clone(),
                    });
                }
                _ => found.skipped += 1,
            }
        }
    }
}

/// `NAME = "value"`.
fn variable(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim();
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then(|| (name, value.trim().trim_matches(['"', '\''])))
}

/// Who and what, and when.
struct Entry<'a> {
    user: String,
    command: &'a str,
    schedule: Schedule,
}

fn entry<'a>(line: &'a str, runs: &Runs, zone: &TimeZone) -> Option<Entry<'a>> {
    let fields = if line.starts_with('@') { 1 } else { 5 };
    let mut rest = line;
    let mut next = || {
        let (word, left) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        rest = left.trim_start();
        word
    };
    let when: Vec<&str> = (0..fields).map(|_| next()).collect();
    let user = match runs {
        Runs::Column => next().to_owned(),
        Runs::User(user) => user.clone(),
    };
    // Whatever stands behind a `%` is what the command reads.
    let command = rest.split('%').next().unwrap_or_default().trim();
    if command.is_empty() {
        return None;
    }
    let zones = Zones {
        local: zone,
        named: &|_| None,
    };
    Some(Entry {
        user,
        command,
        schedule: Schedule::cron(&when.join(" "), zones).ok()?,
    })
}

/// The words of a command that fit a name, and a sign that there are more.
fn start_of(command: &str) -> String {
    let mut start = String::new();
    let mut left = COMMAND_CHARS_MAX;
    let command: String = command.chars().filter(|c| !c.is_control()).collect();
    for word in command.split_whitespace() {
        let space = usize::from(!start.is_empty());
        let Some(rest) = left.checked_sub(space + word.chars().count()) else {
            // A word that is too long by itself is cut: a name says something in any case.
            if start.is_empty() {
                start.extend(word.chars().take(COMMAND_CHARS_MAX));
            }
            return start + " …";
        };
        left = rest;
        if !start.is_empty() {
            start.push(' ');
        }
        start += word;
    }
    start
}

/// What `ListUnits` says of a unit: its name, and its object further on.
type Listed = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

/// Asks systemd on the bus at `address` for its timers. One that goes meanwhile is left out, and
/// so is what is not told within ten seconds.
///
/// # Errors
/// When systemd does not answer, as where it is not there: then there are no timers.
pub fn timers(address: &str) -> Result<Vec<Timer>, HostError> {
    let start = Instant::now();
    let mut systemd = Systemd::new(address);
    let states: [&str; 1] = ["active"];
    let patterns: [&str; 1] = ["*.timer"];
    let listed: Vec<Listed> = systemd.call(
        (PATH, MANAGER, "ListUnitsByPatterns"),
        &(&states[..], &patterns[..]),
        "ask systemd for its timers",
    )?;
    let mut timers = Vec::new();
    for unit in listed.into_iter().take(TIMERS_MAX) {
        if start.elapsed() > TIME_MAX {
            break;
        }
        let (unit, object) = (unit.0, unit.6);
        let attempt = format!("ask systemd for {unit}");
        let own = match systemd.properties(&object, TIMER, &attempt) {
            Ok(own) => own,
            Err(error) if error.is_gone() => continue,
            Err(error) => {
                tracing::debug!(timer = unit, error = error.explain(), "a timer is left out");
                continue;
            }
        };
        timers.push(timer(unit, own, now_us()));
    }
    Ok(timers)
}

/// Microseconds of the clock, and since the host began.
fn now_us() -> (u64, u64) {
    let us = |clock| {
        let now = rustix::time::clock_gettime(clock);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let part = u64::try_from(now.tv_nsec).unwrap_or_default() / 1000;
        seconds.saturating_mul(1_000_000).saturating_add(part)
    };
    (us(ClockId::Realtime), us(ClockId::Monotonic))
}

fn timer(unit: String, mut own: HashMap<String, OwnedVariant>, (now, up): (u64, u64)) -> Timer {
    let mut number = |name: &str| own.remove(name).and_then(|value| u64::try_from(value).ok());
    // Both mean that there is none.
    let is_time = |time: &u64| *time != 0 && *time != u64::MAX;
    let by_clock = number("NextElapseUSecRealtime").filter(is_time);
    // A timer that counts from a start has its next time on the clock that began with the host.
    let counted = number("NextElapseUSecMonotonic").filter(is_time);
    let counted = counted.map(|next| now.saturating_add(next.saturating_sub(up)));
    let next = by_clock.into_iter().chain(counted).min();
    let delay = Duration::from_micros(number("RandomizedDelayUSec").unwrap_or_default());
    let triggers = own
        .remove("Unit")
        .and_then(|value| String::try_from(value).ok());
    let calendar = own.remove("TimersCalendar");
    let calendar = calendar.and_then(|value| Vec::<(String, String, u64)>::try_from(value).ok());
    Timer {
        triggers: triggers.unwrap_or_default(),
        on_calendar: calendar
            .unwrap_or_default()
            .into_iter()
            .filter(|(base, _, _)| base == "OnCalendar")
            .map(|(_, expression, _)| expression)
            .collect(),
        next_unix_ms: next.map(|next| next.div_ceil(1000)),
        delay,
        unit,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_long_command_is_named_by_its_first_words() {
        let check = |command: &str, expected: &str| assert_eq!(start_of(command), expected);
        check("/usr/bin/backup  --all\t", "/usr/bin/backup --all");
        check(
            "test -x /usr/bin/certbot -a \\! -d /run/systemd/system && perl -e 'sleep int'",
            "test -x /usr/bin/certbot -a \\! -d /run/systemd/system && …",
        );
        let long = "x".repeat(100);
        check(&long, &format!("{} …", &long[..COMMAND_CHARS_MAX]));
        check("", "");
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn crontabs_are_read_as_cron_reads_them() {
        let root = tree(&[
            (
                "etc/crontab",
                "# system\nSHELL=/bin/sh\nPATH = \"/bin:/usr/bin\"\n\n\
                 17 * * * * root cd / && run-parts --report /etc/cron.hourly\n\
                 25 6 * * * root test -x /usr/sbin/anacron || run-parts /etc/cron.daily\n\
                 61 * * * * root never\n* * * root\n@reboot root once\n",
            ),
            (
                "etc/cron.d/backup",
                "CRON_TZ=UTC\n@daily backup /usr/bin/backup %in\n",
            ),
            ("etc/cron.d/backup.dpkg-old", "@daily root old\n"),
            (
                "var/spool/cron/crontabs/alice",
                "CRON_TZ=Nowhere/Else\n*/5 9-17 * * mon-fri /home/alice/sync A=1\n",
            ),
        ]);
        // What its commands say is nobody else's business.
        let private = root.path().join("etc/cron.d/private");
        fs::write(&private, "0 1 * * * root tool --password secret\n").unwrap();
        fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
        let found = crontabs(root.path());
        let names: Vec<&str> = found
            .entries
            .iter()
            .map(|entry| entry.name.as_str())
            .collect();
        assert_eq!(
            names,
            [
                "root cd / && run-parts --report /etc/cron.hourly",
                "root test -x /usr/sbin/anacron || run-parts /etc/cron.daily",
                "backup /usr/bin/backup",
                "root /etc/cron.d/private:1",
                "alice /var/spool/cron/crontabs/alice:2",
            ]
        );
        assert_eq!((found.skipped, found.at_boot), (2, 1));
        let daily = &found.entries[1];
        assert_eq!(
            (daily.file.as_path(), daily.line),
            (Path::new("/etc/crontab"), 6)
        );
        let after = "2024-01-01T00:00:00Z".parse().unwrap();
        let next = daily.schedule.next_after(after).unwrap();
        assert_eq!(next.to_string(), "2024-01-01T06:25:00Z");
    }

    #[test]
    fn hosts_without_cron_and_long_crontabs_are_fine() {
        let none = tempfile::tempdir().unwrap();
        assert_eq!(crontabs(none.path()), Crontabs::default());
        let root = tree(&[("etc/crontab", &"0 * * * * root x\n".repeat(ENTRIES_MAX + 5))]);
        let found = crontabs(root.path());
        assert_eq!((found.entries.len(), found.skipped), (ENTRIES_MAX, 5));
    }

    #[test]
    fn a_bus_that_is_not_there_is_said() {
        let error = timers("unix:path=/nowhere/at/all").unwrap_err().explain();
        assert!(error.contains("ask systemd for its timers"), "{error}");
    }

    #[test]
    fn properties_become_a_timer() {
        let value = |text: &str| OwnedVariant::try_from(zbus::Variant::from(text)).unwrap();
        let own = HashMap::from([
            ("Unit".to_owned(), value("logrotate.service")),
            (
                "NextElapseUSecRealtime".to_owned(),
                OwnedVariant::from(1_700_000_000_000_001_u64),
            ),
        ]);
        let clocks = (1_600_000_000_000_000, 5_000_000);
        let found = timer("logrotate.timer".to_owned(), own, clocks);
        assert_eq!(found.triggers, "logrotate.service");
        assert_eq!(found.next_unix_ms, Some(1_700_000_000_001));
        assert_eq!(found.delay, Duration::ZERO);
        let counted = HashMap::from([
            ("NextElapseUSecRealtime", u64::MAX),
            ("NextElapseUSecMonotonic", 65_000_000),
            ("RandomizedDelayUSec", 2_000_000),
        ]);
        let counted = counted.into_iter();
        let counted = counted.map(|(name, value)| (name.to_owned(), OwnedVariant::from(value)));
        let found = timer("clean.timer".to_owned(), counted.collect(), clocks);
        assert_eq!(found.next_unix_ms, Some(1_600_000_060_000));
        assert_eq!(found.delay, Duration::from_secs(2));
        let none = HashMap::from([(
            "NextElapseUSecRealtime".to_owned(),
            OwnedVariant::from(u64::MAX),
        )]);
        assert_eq!(timer("a.timer".to_owned(), none, clocks).next_unix_ms, None);
    }
}
