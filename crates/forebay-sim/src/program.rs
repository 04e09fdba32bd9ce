//! What a simulated process does.

use std::time::Duration;

use forebay_core::snapshot::Ending;
use forebay_core::units::Bytes;

use crate::load::{Generator, Load};

/// A program that simulated processes run.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// CPUs wanted.
    pub cpu: Load,
    /// Threads: it never uses more CPUs than these.
    pub threads: u32,
    /// CPU time of work that could not be done in time and waits; beyond it, work is lost.
    pub backlog_max: Duration,
    /// Working set, in bytes.
    pub memory: Load,
    /// Memory that it holds beyond that, from its start, and never touches again.
    pub cold: Bytes,
    /// Bytes per second to and from block devices.
    pub io: Load,
    /// New child processes per second, on average.
    pub forks: f64,
    /// Children at one time.
    pub children_max: u32,
    /// Mean life of a child.
    pub child_life: Duration,
    /// Crashes (signal 11) per second, on average.
    pub crashes: f64,
    /// How long it runs.
    pub life: Life,
}

/// How long a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Until somebody ends it.
    Forever,
    /// It ends by itself.
    For(Duration, Ending),
}

impl Program {
    /// A program that takes the CPU time it can get, in `threads` threads.
    #[must_use]
    pub fn burner(threads: u32) -> Self {
        Self::steady(f64::from(threads), threads, Bytes::mib(16))
    }

    /// A program with one constant load.
    #[must_use]
    pub fn steady(cpus: f64, threads: u32, memory: Bytes) -> Self {
        Self {
            cpu: Load::Constant(cpus),
            threads,
            backlog_max: Duration::ZERO,
            memory: Load::Constant(memory.as_f64()),
            cold: Bytes(0),
            io: Load::Constant(0.0),
            forks: 0.0,
            children_max: 0,
            child_life: Duration::from_secs(1),
            crashes: 0.0,
            life: Life::Forever,
        }
    }
}

/// A process and its children.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) program: Program,
    /// Executable and command line, by which `match` finds it.
    pub(crate) executable: String,
    pub(crate) command_line: String,
    /// The group it is in, and the one it came from.
    pub(crate) group: String,
    pub(crate) home: String,
    pub(crate) children: Vec<Child>,
    /// Seconds since it started.
    pub(crate) age: f64,
    /// CPU seconds that wait to be done.
    pub(crate) backlog: f64,
    pub(crate) cpu: Generator,
    pub(crate) memory: Generator,
    pub(crate) io: Generator,
    /// Of this step: CPU seconds, bytes, bytes.
    pub(crate) wants: Wants,
}

/// What a process asks for in one step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wants {
    pub(crate) cpu: f64,
    pub(crate) fresh: f64,
    pub(crate) memory: f64,
    pub(crate) cold: f64,
    pub(crate) io: f64,
}

/// A forked process. It works as part of its parent; only its place is its own.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    pub(crate) group: String,
    pub(crate) home: String,
    /// Seconds it still lives.
    pub(crate) left: f64,
}

impl Task {
    pub(crate) fn new(program: Program, name: (&str, &str), group: &str) -> Self {
        Self {
            executable: name.0.to_owned(),
            command_line: name.1.to_owned(),
            group: group.to_owned(),
            home: group.to_owned(),
            children: Vec::new(),
            age: 0.0,
            backlog: 0.0,
            cpu: Generator::new(program.cpu.clone()),
            memory: Generator::new(program.memory.clone()),
            io: Generator::new(program.io.clone()),
            wants: Wants::default(),
            program,
        }
    }

    /// Moves it to the next step of `step` seconds and says what it asks for there.
    pub(crate) fn ask(&mut self, step: f64, rng: &mut fastrand::Rng) {
        let fresh = self.cpu.next(self.age, step, rng) * step;
        self.wants = Wants {
            cpu: (fresh + self.backlog).min(f64::from(self.program.threads) * step),
            fresh,
            memory: self.memory.next(self.age, step, rng),
            cold: self.program.cold.as_f64(),
            io: self.io.next(self.age, step, rng) * step,
        };
        self.age += step;
    }

    /// Asks for no more than the memory it has.
    pub(crate) fn stand_still(&mut self) {
        self.wants = Wants {
            memory: self.wants.memory,
            cold: self.wants.cold,
            ..Wants::default()
        };
    }

    /// Takes `got` CPU seconds; the rest waits, or is lost.
    pub(crate) fn receive(&mut self, got: f64) {
        let undone = (self.wants.fresh + self.backlog - got).max(0.0);
        self.backlog = undone.min(self.program.backlog_max.as_secs_f64());
    }
}
