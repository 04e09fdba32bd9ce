//! The rehearsal of a kernel as a part of an update, and what is kept of one.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_api as api;
use forebay_core::app::App;
use forebay_core::units::{Bytes, Limit};
use forebay_core::update::{
    Ending, Fact, Kernel, Order, Record, Rehearsal, Rehearse, Verdict, Way,
};
use forebay_host::reboot;
use forebay_host::rehearsal::{self, CONSOLE, image};
use serde::{Deserialize, Serialize};

use super::errand::{self, Standing};
use super::journal::Entry;
use super::keep::{RESUMED, blocking};
use super::run::{PROC, Runner, forget};
use super::{Errands, Place, Refused, Shared};

/// How long a machine may take unless somebody says so.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);
/// Machines that one rehearsal starts at most, and what is done around them.
const MACHINES_MAX: u32 = 3;
const AROUND: Duration = Duration::from_secs(300);
/// A report is no longer.
const REPORT_BYTES_MAX: u64 = 1 << 20;
/// Of what is said last, what is kept.
const WORDS_BYTES_MAX: u64 = 1 << 10;

/// Where rehearsals are made, below the state directory.
pub(crate) fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("update/rehearsal")
}

/// The same, by a file that an update's command writes to.
pub(super) fn beside(output: &Path) -> PathBuf {
    output.with_file_name("rehearsal")
}

/// What the last one came to.
pub(crate) fn last(directory: &Path) -> PathBuf {
    directory.join("last.json")
}

/// What is kept of a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) rehearsal: Rehearsal,
    /// Where what the machine said is.
    pub(crate) console: Option<PathBuf>,
}

impl Report {
    pub(crate) fn new(rehearsal: &Rehearsal, directory: &Path) -> Self {
        let console = directory.join(CONSOLE);
        // Where none was made, it is that of another one.
        let has_any = rehearsal.verdict != Verdict::Passed && !rehearsal.took.is_zero();
        Self {
            rehearsal: rehearsal.clone(),
            console: (has_any && console.is_file()).then_some(console),
        }
    }

    /// Writes it, all or nothing.
    pub(crate) fn write(&self, file: &Path) -> Result<(), String> {
        let part = file.with_extension("part");
        let fail = |error| format!("write {}: {error}", file.display());
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        let mut written = File::create(&part).map_err(fail)?;
        written.write_all(&text).map_err(fail)?;
        written.sync_all().map_err(fail)?;
        fs::rename(&part, file).map_err(fail)
    }

    /// Reads it; none where there is none.
    pub(crate) fn read(file: &Path) -> Option<Self> {
        let bytes = fs::metadata(file).ok()?.len();
        let text = fs::read(file).ok().filter(|_| bytes <= REPORT_BYTES_MAX)?;
        serde_json::from_slice(&text).ok()
    }

    /// As others see it.
    pub(crate) fn shown(&self) -> api::UpdateRehearsal {
        let console = self.console.as_ref();
        api::UpdateRehearsal {
            console: console.map(|file| file.display().to_string()),
            ..shown(&self.rehearsal)
        }
    }
}

/// A rehearsal as others see it.
pub(super) fn shown(found: &Rehearsal) -> api::UpdateRehearsal {
    api::UpdateRehearsal {
        kernel: found.kernel.clone(),
        verdict: found.verdict.word().to_owned(),
        why: found.verdict.why().map(str::to_owned),
        seconds: found.took.as_secs_f64(),
        console: None,
    }
}

/// Whether the kernel that comes is to be rehearsed, as a request says.
pub(super) fn wanted(name: Option<&str>, way: Option<Way>) -> Result<Rehearse, Refused> {
    let Some(name) = name else {
        return Ok(Rehearse::Auto);
    };
    let names = Rehearse::ALL.map(Rehearse::name).join(", ");
    let wanted = Rehearse::of(name).ok_or_else(|| {
        Refused::Mistake(format!(
            "rehearse {name}: there is none of that name; give one of {names}"
        ))
    })?;
    match way {
        Some(Way::Checkpoint) => Ok(wanted),
        _ => Err(Refused::Mistake(
            "rehearse: that is for the rung checkpoint; give --rung checkpoint, or leave it out"
                .to_owned(),
        )),
    }
}

impl Place {
    /// What a rehearsal for an update writes: how far it is, what it says, what it came to.
    pub(super) fn of_rehearsal(&self, update: u64) -> [PathBuf; 3] {
        ["errand", "output", "json"].map(|end| self.dir().join(format!("{update}.rehearsal.{end}")))
    }

    /// The app that rehearses the kernel of an update, once that is known.
    pub(super) fn rehearsal(&self, record: &Record) -> Option<App> {
        let [file, output, report] = self.of_rehearsal(record.number);
        let errands = Errands {
            name: format!("{}.rehearsal", record.number),
            file,
            output,
            directory: "/".into(),
            limit: LIMIT * MACHINES_MAX + AROUND,
        };
        let mut words = vec![self.executable.clone()];
        words.extend(["update", "rehearse", "--kernel"].map(PathBuf::from));
        words.push(record.rehearses.clone()?);
        words.extend(["--state-dir".into(), self.state_dir.clone()]);
        words.extend(["--report".into(), report]);
        for (option, program) in [("--criu", &self.criu), ("--qemu", &self.qemu)] {
            let program = program.clone();
            words.extend(
                program
                    .into_iter()
                    .flat_map(|program| [option.into(), program]),
            );
        }
        let words: Vec<String> = words
            .iter()
            .map(|word| word.display().to_string())
            .collect();
        let mut app = self.small(errands, &record.step(), &words)?;
        if let Limit::At(Bytes(usual)) = app.ceiling.memory {
            let needed = rehearsal::memory(&self.executable).0;
            app.ceiling.memory = Limit::At(Bytes(usual.max(needed)));
        }
        Some(app)
    }
}

impl Shared {
    /// Whether the kernel that comes would be rehearsed, where apps are kept.
    pub(super) fn rehearsed(&self, order: &Order) -> Option<api::UpdateRehearsalPlan> {
        if !order.keep {
            return None;
        }
        let obstacle = rehearsal::obstacle(self.place.qemu.as_deref());
        let (rehearsed, reason) = match (order.rehearse, obstacle) {
            (Rehearse::Off, _) => (false, "it is not wanted".to_owned()),
            (_, Some(why)) => (false, format!("it is not possible here: {why}")),
            (_, None) => (
                true,
                "once the command is done the newest kernel is tried out in a virtual machine, unless it is the one \
                 that runs; where it does not pass, the host does not begin anew"
                    .to_owned(),
            ),
        };
        let last = Report::read(&last(&directory(&self.place.state_dir)));
        Some(api::UpdateRehearsalPlan {
            rehearsed,
            reason,
            last: last.map(|report| report.shown()),
        })
    }

    /// Why a rehearsal that has to be cannot.
    pub(super) fn must_rehearse(&self, order: &Order) -> Option<String> {
        let is_required = order.keep && order.rehearse == Rehearse::Required;
        let obstacle = rehearsal::obstacle(self.place.qemu.as_deref()).filter(|_| is_required);
        obstacle.map(|why| format!("rehearse required: {why}"))
    }
}

/// What is known of a kernel that could not be tried out.
fn impossible(kernel: &Path, why: String) -> Fact {
    let found = Rehearsal::impossible(kernel.display().to_string(), why);
    Fact::Rehearsed(Some(found))
}

/// The kernel that the host begins anew with: the one that it is about to start, or the newest.
pub(super) fn next(started: Option<reboot::Kernel>) -> Result<Kernel, forebay_host::Error> {
    let image = match started {
        Some(kernel) => kernel.image,
        None => reboot::next()?.image,
    };
    let said = image::look(&image)?.ok();
    Ok(Kernel {
        image,
        runs: said.as_ref().is_some_and(|said| said.runs(PROC.as_ref())),
        build: said.map(|said| said.words),
    })
}

/// The last line of a file that somebody wrote to: the file itself goes with the update.
fn last_words(output: &Path) -> String {
    let read = || {
        let mut file = File::open(output)?;
        let begin = file.metadata()?.len().saturating_sub(WORDS_BYTES_MAX);
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => match text.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => line.trim().replace(char::is_control, " "),
            None => "it said nothing".to_owned(),
        },
        Err(error) => format!("what it said cannot be read: {error}"),
    }
}

impl Runner {
    /// Has the kernel that comes tried out in the slice of the update, where it is another one than that which runs.
    pub(super) async fn rehearse(&self, entry: &mut Entry) -> Result<Fact, String> {
        let fact = self.try_out(entry).await?;
        // Whatever it came to, and whoever ended it.
        self.end_rehearsal(&entry.record).await?;
        Ok(fact)
    }

    /// Ends what tries the kernel out, and takes away what that made.
    async fn end_rehearsal(&self, record: &Record) -> Result<(), String> {
        if let Some(app) = self.shared.place.rehearsal(record) {
            self.end(&app.id).await?;
        }
        let directory = directory(&self.shared.place.state_dir);
        let cleared = blocking(move || rehearsal::clear_up(&directory)).await?;
        cleared.map_err(|error| error.explain())
    }

    async fn try_out(&self, entry: &mut Entry) -> Result<Fact, String> {
        if self.is_to_go_on() {
            return Ok(Fact::Booted(Err(RESUMED.to_owned())));
        }
        let [file, output, report] = self.shared.place.of_rehearsal(entry.record.number);
        let standing =
            errand::look(&file).map_err(|error| format!("look at {}: {error}", file.display()))?;
        let is_lost = standing == Standing::Ended(Ending::Lost);
        if is_lost {
            // What it started may go on, and keep the next one out.
            self.end_rehearsal(&entry.record).await?;
        }
        if entry.record.rehearses.is_none() || is_lost {
            if let Some(fact) = self.choose(entry).await? {
                return Ok(fact);
            }
            forget(&file)?;
            forget(&report)?;
            self.keep(entry).await?;
        }
        let kernel = entry.record.rehearses.clone().unwrap_or_default();
        let app = self.shared.place.rehearsal(&entry.record);
        let app = app.ok_or("the rehearsal has no name")?;
        let id = app.id.clone();
        if !matches!(errand::look(&file), Ok(Standing::Ended(_))) {
            self.add(app).await?;
            self.tell(format!(
                "{} is tried out in a virtual machine",
                kernel.display()
            ));
        }
        let wish = &self.shared.wishes.resume;
        let step = entry.record.step();
        let ending = self.attend(entry, (&id, wish), &file, &step).await?;
        if self.is_to_go_on() {
            return Ok(Fact::Booted(Err(RESUMED.to_owned())));
        }
        if ending == Ending::Lost {
            return Err("the rehearsal was cut off".to_owned());
        }
        Ok(match Report::read(&report) {
            Some(report) => Fact::Rehearsed(Some(report.rehearsal)),
            None => {
                let said = last_words(&output);
                impossible(&kernel, format!("what tries it out {ending}: {said}"))
            }
        })
    }

    /// Chooses the kernel, unless there is none to rehearse.
    async fn choose(&self, entry: &mut Entry) -> Result<Option<Fact>, String> {
        let kernel = match blocking(|| next(None)).await? {
            Err(error) => return Ok(Some(impossible(Path::new("the next"), error.explain()))),
            Ok(kernel) if kernel.runs => return Ok(Some(Fact::Rehearsed(None))),
            Ok(kernel) => kernel,
        };
        let begun = entry.record.begin_rehearsal(&kernel);
        Ok(begun.err().map(|found| Fact::Rehearsed(Some(found))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("last.json");
        assert_eq!(Report::read(&file), None);
        let rehearsal = Rehearsal {
            kernel: "6.1".to_owned(),
            verdict: Verdict::Failed("it did not come up".to_owned()),
            took: Duration::from_millis(1500),
        };
        let report = Report::new(&rehearsal, directory.path());
        assert_eq!(report.console, None, "no machine was started");
        fs::write(directory.path().join(CONSOLE), "panic").unwrap();
        let report = Report::new(&rehearsal, directory.path());
        report.write(&file).unwrap();
        let read = Report::read(&file).unwrap();
        assert_eq!(read, report);
        let shown = read.shown();
        assert_eq!((shown.verdict.as_str(), shown.seconds), ("failed", 1.5));
        assert_eq!(shown.why.as_deref(), Some("it did not come up"));
        assert!(shown.console.unwrap().ends_with("/console"));
        fs::write(&file, "{").unwrap();
        assert_eq!(Report::read(&file), None);
    }

    #[test]
    fn what_was_said_last_is_a_line_with_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("output");
        let check = |text: &str, expected: &str| {
            fs::write(&file, text).unwrap();
            assert_eq!(last_words(&file), expected);
        };
        check("", "it said nothing");
        check("one\nforebay: no\troom\n\n", "forebay: no room");
        check(&"x".repeat(5000), &"x".repeat(1024));
        fs::remove_file(&file).unwrap();
        assert!(last_words(&file).contains("cannot be read"));
    }

    #[test]
    fn the_console_of_another_rehearsal_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(CONSOLE), "up").unwrap();
        let found = Rehearsal::impossible("6.3".to_owned(), "it came later".to_owned());
        assert_eq!(Report::new(&found, directory.path()).console, None);
    }

    #[test]
    fn it_is_asked_for_by_name_and_with_its_rung() {
        let check =
            |name, way, expected: Result<Rehearse, &str>| match (wanted(name, way), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(Refused::Mistake(said)), Err(part)) => assert!(said.contains(part), "{said}"),
                (found, _) => panic!("{name:?}, {way:?}: {found:?}"),
            };
        check(None, Some(Way::Userspace), Ok(Rehearse::Auto));
        check(
            Some("required"),
            Some(Way::Checkpoint),
            Ok(Rehearse::Required),
        );
        check(Some("off"), Some(Way::Checkpoint), Ok(Rehearse::Off));
        check(
            Some("never"),
            Some(Way::Checkpoint),
            Err("auto, required, off"),
        );
        check(Some("off"), None, Err("--rung checkpoint"));
    }
}
