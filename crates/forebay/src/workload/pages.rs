//! An application whose memory can be checked: every page says how often it was written, and all of them
//! together how often pages were written at all.
//!
//! A page that was lost, or is one of earlier, does not agree with the count, which is elsewhere. Clients
//! ask over TCP, one letter for each request: `p` for the count, `c` for the count after all pages were
//! looked at, or the largest number if they do not agree. Or it says so by itself: with a witness it adds a line
//! with the count and the time to a file again and again, or `wrong`. It keeps nothing open but its socket and, if it
//! is asked to, a journal, to which it adds a number again and again at the place where it stands, and is a session of
//! its own: so it can be moved.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::time::ClockId;

use super::{Error, now, sleep_until};

const WORDS: usize = 512;
const MIB_PAGES: usize = 256;
/// How often pages are written.
const PERIOD: Duration = Duration::from_millis(1);
/// From one line of a witness to the next.
const LINES: Duration = Duration::from_millis(10);
/// Pages are written in an order that jumps: the next one is so many further on.
const STRIDE: usize = 7919;

/// `forebay workload pages`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=65536))]
    memory: u32,
    /// Memory that is written in a second, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(0..=65536))]
    rate: u32,
    /// Where clients ask
    #[arg(long, value_name = "ADDRESS:PORT", required_unless_present = "witness")]
    listen: Option<SocketAddr>,
    /// A file that a line is added to again and again
    #[arg(long, value_name = "FILE")]
    witness: Option<PathBuf>,
    /// All pages are looked at for every so many lines; for none without
    #[arg(long, value_name = "LINES", requires = "witness")]
    check_every: Option<NonZeroU64>,
    /// A file that is kept open and counted into, one line after the other
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

type Page = [u64; WORDS];

struct Memory {
    pages: Vec<Page>,
    next: usize,
    /// How often a page was written.
    count: u64,
}

/// Works until it is killed.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    // A session of another would have to move along.
    if !leads_session() {
        rustix::process::setsid().map_err(Error::system(
            "make a session for",
            "this process",
            "start it as a child of another",
        ))?;
    }
    let journal = args.journal.as_deref().map(|path| {
        let opened = File::create(path);
        opened.map_err(Error::system("make", path.display(), "make its directory"))
    });
    let journal = journal.transpose()?;
    let memory = Mutex::new(Memory::new(args.memory as usize * MIB_PAGES));
    std::thread::scope(|scope| {
        if let Some(journal) = &journal {
            scope.spawn(|| keep(journal));
        }
        scope.spawn(|| write_on(&memory, args.rate));
        if let Some(witness) = &args.witness {
            scope.spawn(|| bear_witness(&memory, witness, args.check_every));
        }
        match args.listen {
            Some(address) => listen(address, &memory),
            None => Ok(()),
        }
    })
}

/// Whether it is a session already. The kernel names no leader that is in another room of process numbers.
fn leads_session() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let session = rest.split_whitespace().nth(3);
    session == Some(std::process::id().to_string().as_str())
}

fn listen(address: SocketAddr, memory: &Mutex<Memory>) -> Result<(), Error> {
    let listener = TcpListener::bind(address).map_err(Error::system(
        "listen on",
        address,
        "choose an address of this host",
    ))?;
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let stream = stream.map_err(Error::system(
                "take a client at",
                address,
                "raise the limit on open files",
            ))?;
            scope.spawn(move || {
                // A client that is gone is nobody's loss.
                serve(&stream, memory).ok();
            });
        }
        Ok(())
    })
}

fn bear_witness(memory: &Mutex<Memory>, file: &Path, check_every: Option<NonZeroU64>) {
    let mut at = now(ClockId::Monotonic);
    for line in 0_u64.. {
        let is_checked = check_every.is_some_and(|every| line.is_multiple_of(every.get()));
        let count = match is_checked {
            true => lock(memory).checked(),
            false => Some(lock(memory).count),
        };
        let count = count.map_or_else(|| "wrong".to_owned(), |count| count.to_string());
        let ms = now(ClockId::Realtime).as_millis();
        // Whoever reads it misses what could not be written.
        let opened = OpenOptions::new().append(true).create(true).open(file);
        opened
            .and_then(|mut file| file.write_all(format!("{count} {ms}\n").as_bytes()))
            .ok();
        at = (at + LINES).max(now(ClockId::Monotonic));
        if sleep_until(at).is_err() {
            return;
        }
    }
}

/// Where it writes is what the kernel keeps of an open file, and what it writes is in memory.
fn keep(mut journal: &File) {
    let mut at = now(ClockId::Monotonic);
    for line in 1_u64.. {
        // Whoever reads it misses what could not be written.
        journal.write_all(format!("{line}\n").as_bytes()).ok();
        at = (at + LINES).max(now(ClockId::Monotonic));
        if sleep_until(at).is_err() {
            return;
        }
    }
}

fn write_on(memory: &Mutex<Memory>, rate: u32) {
    let pages = f64::from(rate) * 256.0 * PERIOD.as_secs_f64();
    let mut due = 0.0;
    let mut at = now(ClockId::Monotonic);
    loop {
        due += pages;
        while due >= 1.0 {
            lock(memory).write();
            due -= 1.0;
        }
        // What was missed while it stood is not made up for.
        at = (at + PERIOD).max(now(ClockId::Monotonic));
        if sleep_until(at).is_err() {
            return;
        }
    }
}

fn serve(mut stream: &TcpStream, memory: &Mutex<Memory>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut word = [0];
    loop {
        stream.read_exact(&mut word)?;
        let answer = match &word {
            b"c" => lock(memory).checked().unwrap_or(u64::MAX),
            _ => lock(memory).count,
        };
        stream.write_all(&answer.to_le_bytes())?;
    }
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    fn new(pages: usize) -> Self {
        let mut memory = Self {
            pages: vec![[0; WORDS]; pages],
            next: 0,
            count: 0,
        };
        for _ in 0..pages {
            memory.write();
        }
        memory
    }

    /// Writes the next page.
    fn write(&mut self) {
        let number = self.next;
        let page = &mut self.pages[number];
        let count = page[0] + 1;
        for (place, word) in page.iter_mut().enumerate() {
            *word = content(number, count, place);
        }
        page[0] = count;
        self.count += 1;
        self.next = (number + STRIDE) % self.pages.len();
    }

    /// The count, if all pages agree with it.
    fn checked(&self) -> Option<u64> {
        let mut sum = 0;
        for (number, page) in self.pages.iter().enumerate() {
            let count = page[0];
            let words = page.iter().enumerate().skip(1);
            if words
                .into_iter()
                .any(|(place, word)| *word != content(number, count, place))
            {
                return None;
            }
            sum += count;
        }
        (sum == self.count).then_some(sum)
    }
}

/// What stands at a place of a page that was written so often.
const fn content(page: usize, count: u64, place: usize) -> u64 {
    let seed = (page as u64) << 32 ^ count << 10 ^ place as u64;
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_was_lost_or_is_old_is_noticed() {
        let fresh = || {
            let mut memory = Memory::new(100);
            for _ in 0..250 {
                memory.write();
            }
            memory
        };
        assert_eq!(fresh().checked(), Some(350));
        let mut lost = fresh();
        lost.pages[7] = [0; WORDS];
        assert_eq!(lost.checked(), None);
        let mut old = fresh();
        let before = old.pages[old.next];
        let number = old.next;
        old.write();
        assert_eq!(old.checked(), Some(351));
        old.pages[number] = before;
        assert_eq!(old.checked(), None);
        let mut torn = fresh();
        torn.pages[9][300] ^= 1;
        assert_eq!(torn.checked(), None);
    }
}
