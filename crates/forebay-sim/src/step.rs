//! How simulated time passes: processes live and work, groups share what there is, faults
//! strike.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::Ending;
use forebay_core::units::{Limit, MilliCpu};

use crate::cpu::{self, Claim};
use crate::fault::EPISODE;
use crate::group::Group;
use crate::host::{ROOT, SimHost};
use crate::program::{Child, Life, Task, Wants};

/// The longest time in which nothing is thought to change.
const STEP_MAX: Duration = Duration::from_millis(100);

impl SimHost {
    /// Lets time pass.
    pub fn advance(&mut self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(STEP_MAX);
            left -= step;
            self.now += step;
            let seconds = step.as_secs_f64();
            self.go_wrong(seconds);
            self.live(seconds);
            self.reclaim(seconds);
            self.work(seconds);
        }
    }

    fn go_wrong(&mut self, step: f64) {
        let faults = self.faults;
        let now = self.now.as_secs_f64();
        if self.strikes(faults.ledger_full * step) {
            self.full_until = now + EPISODE;
        }
        if self.strikes(faults.steal * step) {
            self.steal_until = now + EPISODE;
            self.stolen = self.rng.f64() * 0.5;
        }
        if faults.group_vanishes > 0.0 || faults.foreign_write > 0.0 {
            let paths: Vec<String> = self.groups.keys().filter(|p| *p != ROOT).cloned().collect();
            for path in paths {
                if self.strikes(faults.foreign_write * step) {
                    self.write_something(&path);
                }
                if self.strikes(faults.group_vanishes * step) {
                    self.remove_group(&path);
                }
            }
        }
        if faults.process_vanishes > 0.0 {
            let pids: Vec<u32> = self.tasks.keys().copied().collect();
            for pid in pids {
                if self.strikes(faults.process_vanishes * step) {
                    self.end(pid, Ending::Signal(15));
                }
            }
        }
    }

    /// Somebody else writes a knob. A value that the kernel refuses changes nothing.
    fn write_something(&mut self, path: &str) {
        let setting = match self.rng.u8(0..4) {
            0 => Setting::CpuWeight(self.rng.u32(1..=10_000)),
            1 => Setting::CpuMax(Limit::At(MilliCpu(self.rng.u64(10..4000)))),
            2 => Setting::MemoryHigh(Limit::Max),
            _ => {
                let cpus = self.topology.cpus().iter().map(|cpu| cpu.id);
                Setting::Cpus(cpus.filter(|_| self.rng.bool()).collect())
            }
        };
        if self.supports(setting.knob()) && setting.knob() != Knob::Mems {
            // Refused by the kernel is as good as not written.
            self.write(path, setting).ok();
        }
    }

    /// Processes fork, exit and crash.
    fn live(&mut self, step: f64) {
        let mut ended = Vec::new();
        let mut forks = Vec::new();
        for (&pid, task) in &mut self.tasks {
            if is_frozen(&self.groups, task) {
                continue;
            }
            task.children.retain_mut(|child| {
                child.left -= step;
                child.left > 0.0
            });
            let program = &task.program;
            if program.crashes > 0.0 && self.rng.f64() < program.crashes * step {
                ended.push((pid, Ending::Signal(11)));
            } else if let Life::For(life, ending) = program.life
                && task.age >= life.as_secs_f64()
            {
                ended.push((pid, ending));
            }
            let room = task.children.len() < program.children_max as usize;
            if room && program.forks > 0.0 && self.rng.f64() < program.forks * step {
                forks.push(pid);
            }
        }
        for (pid, ending) in ended {
            self.end(pid, ending);
        }
        for pid in forks {
            self.fork(pid);
        }
    }

    fn fork(&mut self, parent: u32) {
        let Some(task) = self.tasks.get(&parent) else {
            return;
        };
        let here = |group: &str| u64::from(group == task.group);
        let count: u64 = self
            .tasks
            .values()
            .map(|t| here(&t.group) + t.children.iter().map(|c| here(&c.group)).sum::<u64>())
            .sum();
        if !self.may_fork(&task.group, count) {
            return;
        }
        let pid = self.new_pid();
        let luck = 1.0 - self.rng.f64();
        if let Some(task) = self.tasks.get_mut(&parent) {
            task.children.push(Child {
                pid,
                group: task.group.clone(),
                home: task.home.clone(),
                left: -luck.ln() * task.program.child_life.as_secs_f64(),
            });
        }
    }

    /// Groups share the CPUs, the memory and the devices.
    fn work(&mut self, step: f64) {
        let mut wants: BTreeMap<&str, Wants> = BTreeMap::new();
        for task in self.tasks.values_mut() {
            if is_frozen(&self.groups, task) {
                task.stand_still();
            } else {
                task.ask(step, &mut self.rng);
            }
            let sum = wants.entry(&task.group).or_default();
            sum.cpu += task.wants.cpu;
            sum.memory += task.wants.memory;
            sum.cold += task.wants.cold;
            sum.io += task.wants.io;
        }
        let wants: Vec<Wants> = self
            .groups
            .keys()
            .map(|path| wants.get(path.as_str()).copied().unwrap_or_default())
            .collect();

        let stolen = if self.now.as_secs_f64() < self.steal_until {
            self.stolen
        } else {
            0.0
        };
        let cpus = self.topology.cpus();
        let capacity = vec![step * (1.0 - stolen); cpus.len()];
        self.steal += stolen * step * f64::from(u32::try_from(cpus.len()).unwrap_or(u32::MAX));
        let taken = self.all_taken();
        let claims: Vec<Claim> = self
            .groups
            .iter()
            .zip(&wants)
            .map(|((path, group), wants)| Claim {
                cpus: self.effective_cpus(path, &taken),
                wanted: wants.cpu.min(group.allowance(step)),
                weight: group.limits.weight,
                idle: group.limits.idle,
            })
            .collect();
        let same = claims.len() == self.regions.0.len()
            && claims
                .iter()
                .zip(&self.regions.0)
                .all(|(c, set)| c.cpus == *set);
        if !same {
            let sets: Vec<_> = claims.iter().map(|claim| claim.cpus).collect();
            let ids: Vec<usize> = cpus.iter().map(|cpu| cpu.id).collect();
            let regions = cpu::regions(&ids, &sets);
            self.regions = (sets, regions);
        }
        let shares = cpu::share(&self.regions.1, &capacity, &claims);
        for (sum, busy) in self.busy.iter_mut().zip(&shares.busy) {
            *sum += busy;
        }

        let limited = self.groups.values().zip(&wants);
        let sent: Vec<f64> = limited
            .map(|(group, wants)| group.io_allowed(step, wants.io))
            .collect();
        let (part, wait) = match &mut self.disk {
            Some(disk) => disk.serve(step, sent.iter().sum()),
            None => (1.0, 0.0),
        };
        let (room, lacks) = self.room(&wants);
        let mut ratios: BTreeMap<&str, f64> = BTreeMap::new();
        for (i, (path, group)) in self.groups.iter_mut().enumerate() {
            let (wants, got) = (wants[i], shares.got[i]);
            group.book_cpu(step, wants.cpu, got, shares.waited[i]);
            group.book_io(step, wants.io, sent[i] * part, wait);
            group.book_memory(step, wants.memory, wants.cold, room[i], lacks);
            if wants.cpu > 0.0 {
                ratios.insert(path, got / wants.cpu);
            }
        }
        for task in self.tasks.values_mut() {
            let ratio = ratios.get(task.group.as_str()).copied().unwrap_or(0.0);
            task.receive(task.wants.cpu * ratio);
        }
    }

    /// What each group may hold: all it wants while there is memory; else reclaim takes
    /// from each in proportion to what it holds above its protection. And what the host lacks.
    fn room(&self, wants: &[Wants]) -> (Vec<f64>, f64) {
        let held: Vec<(f64, f64)> = self
            .groups
            .values()
            .zip(wants)
            .map(|(group, wants)| {
                let wanted = group.memory_wanted(wants.memory, wants.cold);
                let held = wanted.min(group.limits.memory);
                (held, (held - group.limits.protected).max(0.0))
            })
            .collect();
        let sum: f64 = held.iter().map(|(held, _)| held).sum();
        let over = sum - self.topology.memory().as_f64();
        let open: f64 = held.iter().map(|(_, open)| open).sum();
        if over <= 0.0 {
            return (vec![f64::INFINITY; held.len()], 0.0);
        }
        if over <= open {
            let part = over / open;
            let left = held.iter().map(|(held, open)| held - part * open);
            return (left.collect(), over);
        }
        let left = held.iter().map(|(held, _)| held * (1.0 - over / sum));
        (left.collect(), over)
    }
}

fn is_frozen(groups: &BTreeMap<String, Group>, task: &Task) -> bool {
    groups.get(&task.group).is_some_and(|group| group.frozen)
}
