//! The program that is written down under one kernel and has to go on under another.
//!
//! It has what programs have: memory, threads that wait for work, a file that it writes to. Asked, its threads sum their
//! memory, beginning with a number that it did not know before, and it writes how often it was asked and the sum to its
//! file. What it has to answer anybody can compute; a program that began anew would count from one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::error::HostError;

/// Threads that have memory, each as many words of 8 bytes.
const THREADS: u64 = 3;
const WORDS: usize = 1 << 18;
/// Between two looks whether it is asked.
const LOOK: Duration = Duration::from_millis(20);
/// Then it ends: nobody asks any more.
const LOOKS_MAX: u32 = 30_000;

/// The files that it is asked by and answers to.
#[derive(Debug, Clone)]
pub(super) struct Files(PathBuf);

impl Files {
    pub(super) fn of(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    fn question(&self) -> PathBuf {
        self.0.join("asked")
    }

    fn answers(&self) -> PathBuf {
        self.0.join("answers")
    }
}

/// What it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// How often it was asked, this time included.
    pub(super) count: u64,
    pub(super) sum: u64,
}

impl Answer {
    /// What it has to answer to this number.
    pub(super) fn right(count: u64, number: u64) -> Self {
        let sums = (0..THREADS).map(|thread| sum(number, memory(thread)));
        Self {
            count,
            sum: sums.fold(0, u64::wrapping_add),
        }
    }

    /// As `COUNT SUM`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (count, sum) = text.trim().split_once(' ')?;
        Some(Self {
            count: count.parse().ok()?,
            sum: sum.parse().ok()?,
        })
    }
}

/// The words of one thread's memory: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift
/// generators, scrambled", 2016).
fn memory(thread: u64) -> impl Iterator<Item = u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(thread + 1);
    std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
    .take(WORDS)
}

/// In plain arithmetic: an instruction that the other processor lacks would end it.
fn sum(number: u64, words: impl Iterator<Item = u64>) -> u64 {
    words.fold(number, |sum, word| {
        (sum ^ word).wrapping_mul(0x0100_0000_01B3).rotate_left(5)
    })
}

/// A thread with its memory: what it is asked, and what it answers.
fn worker(thread: u64) -> io::Result<(mpsc::SyncSender<u64>, mpsc::Receiver<u64>)> {
    let (ask, asked) = mpsc::sync_channel::<u64>(1);
    let (answer, answers) = mpsc::sync_channel(1);
    let memory: Vec<u64> = memory(thread).collect();
    std::thread::Builder::new()
        .name(format!("canary-{thread}"))
        .spawn(move || {
            for number in asked {
                if answer.send(sum(number, memory.iter().copied())).is_err() {
                    return;
                }
            }
        })?;
    Ok((ask, answers))
}

/// Is the canary, until nobody asks any more.
///
/// # Errors
/// When its files cannot be written.
pub fn run(directory: &Path) -> io::Result<()> {
    // CRIU takes no program whose session is somebody else's.
    rustix::process::setsid()?;
    let files = Files::of(directory);
    let mut answers = OpenOptions::new()
        .append(true)
        .create(true)
        .open(files.answers())?;
    let workers: Vec<_> = (0..THREADS).map(worker).collect::<io::Result<_>>()?;
    let mut count = 0_u64;
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(LOOK);
        let Ok(text) = fs::read_to_string(files.question()) else {
            continue;
        };
        fs::remove_file(files.question())?;
        let number = text.trim().parse().map_err(io::Error::other)?;
        let gone = |_| io::Error::other("one of its threads is gone");
        for (ask, _) in &workers {
            ask.send(number)
                .map_err(|_| io::Error::other("one of its threads is gone"))?;
        }
        let mut sum = 0_u64;
        for (_, answers) in &workers {
            sum = sum.wrapping_add(answers.recv().map_err(gone)?);
        }
        count += 1;
        answers.write_all(format!("{count} {sum}\n").as_bytes())?;
    }
    Ok(())
}

/// Asks it; its last answer, once there are more than `before`.
///
/// # Errors
/// When it does not answer in time.
pub(super) fn ask(files: &Files, number: u64, patience: Duration) -> Result<Answer, HostError> {
    let lines = |path: &Path| -> Vec<String> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_owned).collect()
    };
    let before = lines(&files.answers()).len();
    let question = files.question();
    let part = question.with_extension("part");
    File::create(&part)
        .and_then(|mut file| file.write_all(number.to_string().as_bytes()))
        .and_then(|()| fs::rename(&part, &question))
        .map_err(|error| HostError::file("write", &question, error))?;
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let answers = lines(&files.answers());
        if let Some(last) = answers.get(before) {
            return Answer::parse(last).ok_or_else(|| {
                HostError::invalid(
                    format!("ask the canary: it answered `{last}`"),
                    "look at the memory of this host",
                )
            });
        }
        std::thread::sleep(LOOK);
    }
    Err(HostError::invalid(
        format!("ask the canary: no answer within {} s", patience.as_secs()),
        "it has ended, or this host is too busy for it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_has_to_answer_depends_on_what_it_is_asked_and_on_all_of_its_memory() {
        let right = Answer::right(2, 77);
        assert_eq!(right, Answer::right(2, 77));
        assert_ne!(right.sum, Answer::right(2, 78).sum);
        let mut damaged: Vec<u64> = memory(1).collect();
        damaged[WORDS / 2] ^= 1;
        assert_ne!(sum(77, damaged.into_iter()), sum(77, memory(1)));
        let said = format!("{} {}\n", right.count, right.sum);
        assert_eq!(Answer::parse(&said), Some(right));
        assert_eq!(Answer::parse("2"), None);
        assert_eq!(Answer::parse("x 1"), None);
    }
}
