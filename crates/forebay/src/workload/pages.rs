//! An application whose memory can be checked: every page says how often it was written, and all of them
//! together how often pages were written at all.
//!
//! A page that was lost, or is one of earlier, does not agree with the count, which is elsewhere. Clients
//! ask over TCP, one letter for each request: `p` for the count, `c` for the count after all pages were
//! looked at, or the largest number if they do not agree. It keeps nothing open but its socket, is a
//! session of its own, and has no files: so it can be moved.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::time::ClockId;

use super::{Error, now, sleep_until};

const WORDS: usize = 512;
const MIB_PAGES: usize = 256;
/// How often pages are written.
const PERIOD: Duration = Duration::from_millis(1);
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
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
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
    rustix::process::setsid().map_err(Error::system(
        "make a session for",
        "this process",
        "start it as a child of another",
    ))?;
    let memory = Mutex::new(Memory::new(args.memory as usize * MIB_PAGES));
    let listener = TcpListener::bind(args.listen).map_err(Error::system(
        "listen on",
        args.listen,
        "choose an address of this host",
    ))?;
    std::thread::scope(|scope| {
        scope.spawn(|| write_on(&memory, args.rate));
        for stream in listener.incoming() {
            let stream = stream.map_err(Error::system(
                "take a client at",
                args.listen,
                "raise the limit on open files",
            ))?;
            let memory = &memory;
            scope.spawn(move || {
                // A client that is gone is nobody's loss.
                serve(&stream, memory).ok();
            });
        }
        Ok(())
    })
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
