//! Every path of an update, with a crash at every moment of it.
//!
//! The world below is what outlives a daemon: what is on disk, commands that run, programs, who serves.
//! Deeds are carried out in small effects; before each effect and before and after each write the daemon
//! may die, and then everything of it but the world is lost. Each path is run once without a crash, to
//! count its moments, and once with a crash at each of them, and with a second one at each moment after.

use std::collections::BTreeMap;

use super::*;

mod cuts;
mod paths;

use paths::paths;

/// What the surroundings answer on one path.
#[derive(Debug, Clone)]
struct Path {
    name: &'static str,
    proof: Result<(), &'static str>,
    sync: Result<(), &'static str>,
    /// How the command and its rollbacks end, in order.
    endings: Vec<Ending>,
    /// What the looks after it say, in order.
    looks: Vec<bool>,
    has_rollback: bool,
    reboot: bool,
    /// Whether apps are told, and what they answer.
    tells: Option<Result<(), &'static str>>,
    /// Whether apps go to other hosts, and what they meet there.
    elsewhere: Option<Result<(), &'static str>>,
    /// Whether apps are kept over a boot, and how that goes.
    keep: Option<Keeping>,
    /// Whether the kernel is rehearsed first, and what that comes to; none where the one that runs comes again.
    rehearsal: Option<(Rehearse, Option<Verdict>)>,
    /// Whether userspace begins anew but for `a`, and how that goes.
    soft: Option<Softly>,
    ends: Outcome,
}

impl Path {
    /// Whether the rehearsal keeps the host up.
    fn is_blocked(&self) -> bool {
        match &self.rehearsal {
            Some((_, Some(Verdict::Failed(_)))) => true,
            Some((rehearse, Some(Verdict::Impossible(_)))) => *rehearse == Rehearse::Required,
            _ => false,
        }
    }
}

/// How keeping apps over a boot goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    Well,
    /// The image of `b` cannot be taken.
    Refused,
    /// The image of `b` turns out to be damaged.
    Damaged,
    /// The kernel that was meant does not come up.
    FellBack,
}

/// How a new beginning of userspace goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Softly {
    Well,
    /// Nobody has userspace begin anew.
    Refused,
    /// The command is `systemctl soft-reboot` itself.
    ByCommand,
}

/// What there is of an app that is kept, or runs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Memory {
    /// What it has: how many of its clients' requests were answered. Absent while it does not run.
    has: Option<u32>,
    /// The same in its newest image, which is good for this boot and the next.
    image: Option<u32>,
    /// All that its clients were ever told.
    told: u32,
    /// It began with nothing.
    fresh: bool,
}

#[derive(Debug, Default)]
struct World {
    disk: Option<Record>,
    /// Starts of each run.
    begun: BTreeMap<u32, u32>,
    ended: BTreeMap<u32, Ending>,
    slice: bool,
    frozen: bool,
    /// The host takes no more applications.
    cordoned: bool,
    /// Apps that were told and ended, and that nobody may start until it is over.
    kept_ended: BTreeSet<AppId>,
    /// Apps that are on another host.
    away: BTreeSet<AppId>,
    /// Those that are kept over a boot, or are there while userspace begins anew.
    memories: BTreeMap<AppId, Memory>,
    boots: u32,
    userspaces: u32,
    /// Rehearsals that were begun.
    rehearsals: u32,
    primary: &'static str,
    lives: BTreeMap<AppId, Life>,
    /// Moments so far, and those at which the daemon dies.
    moments: u32,
    deaths: Vec<u32>,
}

#[derive(Debug)]
struct Died;

impl World {
    fn moment(&mut self) -> Result<(), Died> {
        self.moments += 1;
        match self.deaths.contains(&self.moments) {
            true => Err(Died),
            false => Ok(()),
        }
    }

    fn write(&mut self, record: &Record) -> Result<(), Died> {
        self.moment()?;
        self.disk = Some(record.clone());
        self.moment()
    }

    fn owners(&self) -> usize {
        ["a", "b"]
            .iter()
            .filter(|app| **app == self.primary)
            .count()
    }

    fn run(&mut self, record: &Record, path: &Path) -> Result<Fact, Died> {
        let run = record.runs;
        self.moment()?;
        if let Some(ending) = self.ended.get(&run).cloned() {
            return Ok(self.ran(ending));
        }
        self.slice = true;
        // What makes a step happen once is on disk before the command begins.
        if !self.begun.contains_key(&run) {
            self.moment()?;
            *self.begun.entry(run).or_default() += 1;
        }
        self.moment()?;
        self.frozen = true;
        self.moment()?;
        self.frozen = false;
        self.moment()?;
        // One that a power cut came before has another undone than the path foresaw.
        let ending = path.endings.get(run as usize - 1).cloned();
        let ending = ending.unwrap_or(Ending::Status(0));
        self.ended.insert(run, ending.clone());
        self.moment()?;
        Ok(self.ran(ending))
    }

    fn ran(&self, ending: Ending) -> Fact {
        let old = match ending {
            Ending::NotStarted(_) => BTreeMap::new(),
            _ => self.lives.clone(),
        };
        Fact::Ran(ending, old)
    }

    /// The power of the host goes, and comes back: what runs is gone, and what is on disk is there.
    fn cut(&mut self) {
        self.boots += 1;
        self.slice = false;
        self.frozen = false;
        for run in self.begun.keys() {
            self.ended.entry(*run).or_insert(Ending::Lost);
        }
        for memory in self.memories.values_mut() {
            memory.has = None;
        }
        for life in self.lives.values_mut() {
            life.began_ticks += 1000;
        }
    }

    /// What goes is on disk before the first one does.
    fn leave(&mut self, record: &mut Record, path: &Path) -> Result<Fact, Died> {
        let all: BTreeSet<AppId> = self.lives.keys().cloned().collect();
        record.away = all.clone();
        self.write(record)?;
        self.cordoned = true;
        self.moment()?;
        for app in all {
            if let Some(Err(why)) = path.elsewhere
                && app.as_str() == "b"
            {
                return Ok(Fact::Refused(why.to_owned()));
            }
            self.away.insert(app);
            self.moment()?;
        }
        Ok(Fact::Left(Vec::new()))
    }

    fn come_back(&mut self, record: &Record) -> Result<Fact, Died> {
        self.cordoned = false;
        self.moment()?;
        for app in &record.away {
            self.away.remove(app);
            self.moment()?;
        }
        Ok(Fact::Returned(Vec::new()))
    }

    /// Clients of those that run are answered.
    fn serve(&mut self) {
        for memory in self.memories.values_mut() {
            if let Some(has) = &mut memory.has {
                *has += 1;
                memory.told = *has;
            }
        }
    }

    /// Whoever does not run begins: from its image, where that is whole. As supervision does with every
    /// daemon that begins.
    fn supervise(&mut self, keeping: Keeping) {
        for (app, memory) in &mut self.memories {
            if memory.has.is_some() || self.kept_ended.contains(app) {
                continue;
            }
            let damaged = keeping == Keeping::Damaged && app.as_str() == "b" && self.boots > 0;
            memory.fresh = memory.image.is_none() || damaged;
            memory.has = Some(memory.image.filter(|_| !damaged).unwrap_or_default());
            if memory.fresh {
                memory.told = 0;
            }
        }
    }

    /// Writes down and ends whoever is kept and runs, and has the host begin anew, which ends the daemon.
    fn depart(&mut self, record: &mut Record, keeping: Keeping) -> Result<Fact, Died> {
        match &record.departs_from {
            None => {
                record.departs_from = Some(self.boots.to_string());
                record.departs_to = Some("new".to_owned());
                self.write(record)?;
            }
            Some(boot) if *boot != self.boots.to_string() => {
                return Ok(match keeping {
                    Keeping::FellBack => Fact::FellBack("old".to_owned()),
                    _ => Fact::Booted(Ok(())),
                });
            }
            Some(_) => {}
        }
        for app in record.kept() {
            let is_refused = keeping == Keeping::Refused && app.as_str() == "b";
            let Some(memory) = self.memories.get_mut(app) else {
                unreachable!("all that are kept have a memory")
            };
            if memory.has.is_none() {
                continue;
            }
            if is_refused {
                self.supervise(keeping);
                return Ok(Fact::Booted(Err("no".to_owned())));
            }
            memory.image = memory.has;
            self.moment()?;
            if let Some(memory) = self.memories.get_mut(app) {
                memory.has = None;
            }
            self.moment()?;
        }
        self.boots += 1;
        for memory in self.memories.values_mut() {
            memory.has = None;
        }
        self.deaths.push(self.moments + 1);
        self.moment()?;
        unreachable!("the host began anew")
    }

    /// Ends in order whoever does not run on, and has userspace begin anew, which ends the daemon.
    fn depart_softly(&mut self, record: &mut Record, softly: Softly) -> Result<Fact, Died> {
        let here = format!("{}+{}", self.boots, self.userspaces);
        match &record.departs_from {
            None => {
                record.departs_from = Some(here);
                let lives = record.survivors().cloned();
                record.lives = lives.map(|app| (app.clone(), self.lives[&app])).collect();
                let others = self
                    .lives
                    .keys()
                    .filter(|app| !record.lives.contains_key(*app));
                let others = others.map(|app| (app.clone(), Call::End));
                record.prepared.extend(others);
                for app in record.lives.keys() {
                    // What it had before that is nobody's to keep.
                    if let Some(memory) = self.memories.get_mut(app) {
                        memory.fresh = false;
                    }
                }
                self.write(record)?;
            }
            Some(departed) if *departed != here => return Ok(Fact::Booted(Ok(()))),
            Some(_) => {}
        }
        for app in record.prepared.keys() {
            self.kept_ended.insert(app.clone());
            if let Some(memory) = self.memories.get_mut(app) {
                memory.has = None;
            }
            self.moment()?;
        }
        if softly == Softly::Refused {
            return Ok(Fact::Booted(Err("no".to_owned())));
        }
        self.userspaces += 1;
        self.deaths.push(self.moments + 1);
        self.moment()?;
        unreachable!("userspace began anew")
    }

    /// Tries a kernel out, which takes a while; whoever is kept goes on meanwhile.
    fn rehearse(&mut self, record: &mut Record, path: &Path) -> Result<Fact, Died> {
        self.serve();
        let Some((_, verdict)) = &path.rehearsal else {
            unreachable!("it is not wanted")
        };
        let Some(verdict) = verdict.clone() else {
            return Ok(Fact::Rehearsed(None));
        };
        record.rehearsals += 1;
        self.write(record)?;
        self.rehearsals += 1;
        self.moment()?;
        Ok(Fact::Rehearsed(Some(Rehearsal {
            kernel: "new".to_owned(),
            verdict,
            took: Duration::from_secs(30),
        })))
    }

    fn revive(&mut self, record: &Record) -> Fact {
        let all = record.kept().chain(record.survivors());
        let lost = all.filter(|app| self.memories[*app].fresh);
        Fact::Revived(lost.map(ToString::to_string).collect())
    }

    fn tell(&mut self, record: &mut Record, path: &Path) -> Result<Fact, Died> {
        self.moment()?;
        if let Some(Err(why)) = path.tells {
            return Ok(Fact::Refused(why.to_owned()));
        }
        record.prepared = record.order.told.clone();
        self.write(record)?;
        for (app, _) in record
            .prepared
            .iter()
            .filter(|(_, call)| **call == Call::End)
        {
            self.kept_ended.insert(app.clone());
            self.moment()?;
        }
        Ok(Fact::Told(Vec::new()))
    }

    fn resume(&mut self, record: &mut Record) -> Result<(), Died> {
        for app in record.prepared.keys() {
            self.kept_ended.remove(app);
            let is_ended = self
                .memories
                .get(app)
                .is_some_and(|memory| memory.has.is_none());
            if let Some(life) = self.lives.get_mut(app).filter(|_| is_ended) {
                life.began_ticks += 1;
            }
            self.supervise(Keeping::Well);
            self.moment()?;
        }
        record.prepared.clear();
        Ok(())
    }

    fn restore(&mut self, record: &Record) -> Result<Fact, Died> {
        for (app, old) in &record.old {
            self.moment()?;
            if self.lives[app] != *old {
                continue;
            }
            if self.primary == app.as_str() {
                self.primary = if self.primary == "a" { "b" } else { "a" };
                self.moment()?;
            }
            let next = Life {
                pid: old.pid + 10,
                began_ticks: old.began_ticks + 1,
            };
            self.lives.insert(app.clone(), next);
        }
        self.moment()?;
        Ok(Fact::Restored(Vec::new()))
    }

    fn carry_out(&mut self, record: &mut Record, path: &Path) -> Result<Fact, Died> {
        let Some(deed) = record.deed() else {
            unreachable!("it is over")
        };
        Ok(match deed {
            Deed::Lock | Deed::Begin => Fact::Done,
            Deed::Prove => {
                self.slice = true;
                self.moment()?;
                match path.proof {
                    Ok(()) => Fact::Proved(BTreeMap::new()),
                    Err(why) => Fact::Refused(why.to_owned()),
                }
            }
            Deed::Sync => match path.sync {
                Ok(()) => Fact::Done,
                Err(why) => Fact::Refused(why.to_owned()),
            },
            Deed::Leave => return self.leave(record, path),
            Deed::Tell => return self.tell(record, path),
            Deed::Return => return self.come_back(record),
            Deed::Update | Deed::Undo => {
                assert_eq!(self.cordoned, path.elsewhere.is_some());
                let ends = record.prepared.values();
                let ends = ends.filter(|call| **call == Call::End).count();
                assert_eq!(self.kept_ended.len(), ends);
                assert_eq!(
                    ends > 0 || record.rollbacks > 0,
                    path.tells.is_some() || record.rollbacks > 0
                );
                let fact = self.run(record, path)?;
                if deed == Deed::Update && path.reboot {
                    record.departs_from = Some(self.boots.to_string());
                }
                return Ok(fact);
            }
            Deed::Rehearse => return self.rehearse(record, path),
            Deed::AwaitBoot if record.began_anew(&self.boots.to_string()) => Fact::Booted(Ok(())),
            Deed::AwaitBoot => {
                self.boots += 1;
                self.deaths.push(self.moments + 1);
                self.moment()?;
                unreachable!("the host began anew")
            }
            Deed::Depart => {
                self.serve();
                if let Some(softly) = path.soft {
                    return self.depart_softly(record, softly);
                }
                let keeping = path.keep.unwrap_or(Keeping::Well);
                return self.depart(record, keeping);
            }
            Deed::Revive => self.revive(record),
            Deed::Restore => {
                self.resume(record)?;
                return self.restore(record);
            }
            Deed::Verify => match path.looks.get(record.rollbacks as usize) {
                Some(true) | None => Fact::Judged(Ok(())),
                Some(false) => Fact::Judged(Err("sick".to_owned())),
            },
            Deed::Close => {
                self.resume(record)?;
                self.slice = false;
                self.frozen = false;
                self.moment()?;
                Fact::Done
            }
        })
    }

    /// One daemon's life: from what is on disk to the end, or to its death.
    fn live(&mut self, path: &Path) -> Result<(), Died> {
        let mut record = match self.disk.clone() {
            Some(record) => record,
            None => {
                let mut record = Record::new(1, 0, "boot".to_owned(), order(path));
                let keeps = |app: &AppId| {
                    let choice = Choice {
                        rung: match (path.soft, app.as_str()) {
                            (None, _) => Rung::Checkpoint,
                            (Some(_), "a") => Rung::SoftReboot,
                            (Some(_), _) => Rung::Restart,
                        },
                        reason: String::new(),
                        pause_ms: None,
                        refused: Vec::new(),
                    };
                    (app.clone(), choice)
                };
                record.plan = self.memories.keys().map(keeps).collect();
                self.write(&record)?;
                record
            }
        };
        // Whoever comes first lets go of what an earlier one held.
        self.frozen = false;
        self.supervise(path.keep.unwrap_or(Keeping::Well));
        self.serve();
        while record.deed().is_some() {
            let fact = self.carry_out(&mut record, path)?;
            record = record.after(fact);
            self.write(&record)?;
        }
        Ok(())
    }
}

fn order(path: &Path) -> Order {
    let command: &[&str] = match path.soft {
        Some(Softly::ByCommand) => &["systemctl", "soft-reboot"],
        _ => &["update"],
    };
    Order {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        directory: PathBuf::from("/"),
        rollback: path.has_rollback.then(|| vec!["undo".to_owned()]),
        limit: Duration::from_secs(60),
        well_within: WELL_WITHIN_USUAL,
        restart: BTreeSet::new(),
        reboot: path.reboot,
        unproved: false,
        elsewhere: path.elsewhere.is_some(),
        keep: path.keep.is_some(),
        rehearse: path
            .rehearsal
            .as_ref()
            .map_or(Rehearse::Off, |(rehearse, _)| *rehearse),
        soft: path.soft.is_some(),
        told: match path.tells {
            Some(_) => [("a", Call::Detach), ("b", Call::End)]
                .map(|(app, call)| (app.parse().unwrap(), call))
                .into(),
            None => BTreeMap::new(),
        },
    }
}

/// A record of an update that was asked for.
pub(super) fn record() -> Record {
    Record::new(1, 0, "boot".to_owned(), order(&paths()[0]))
}

#[test]
fn without_the_reboot_that_it_waited_for_outdated_programs_are_replaced_and_it_is_told() {
    let life = Life {
        pid: 1,
        began_ticks: 100,
    };
    let waiting = || {
        let mut record = record();
        record.stage = Stage::RebootPending;
        record.old = BTreeMap::from([("a".parse().unwrap(), life)]);
        record
    };
    let booted = waiting().after(Fact::Booted(Ok(())));
    assert_eq!(booted.stage, Stage::Restoring);
    assert!(booted.old.is_empty() && booted.troubles.is_empty());
    let resumed = waiting().after(Fact::Done);
    assert_eq!(resumed.stage, Stage::Restoring);
    assert_eq!(resumed.old.len(), 1, "it runs what it ran");
    assert!(resumed.troubles[0].contains("without the reboot"));
}

/// How it is before anything of a path.
fn world(path: &Path, deaths: &[u32]) -> World {
    let lives = [("a", 1), ("b", 2)].map(|(app, pid)| {
        let life = Life {
            pid,
            began_ticks: 100,
        };
        (app.parse().unwrap(), life)
    });
    let lives: BTreeMap<AppId, Life> = lives.into_iter().collect();
    let memory = Memory {
        has: Some(0),
        ..Memory::default()
    };
    let memories = lives.keys().map(|app| (app.clone(), memory));
    World {
        primary: "a",
        memories: memories
            .filter(|_| path.keep.is_some() || path.soft.is_some())
            .collect(),
        lives,
        deaths: deaths.to_vec(),
        ..World::default()
    }
}

/// Runs a path with deaths at these moments; how many moments it had.
fn check(path: &Path, deaths: &[u32]) -> u32 {
    let mut world = world(path, deaths);
    let mut daemons = 0;
    while world.live(path).is_err() {
        daemons += 1;
        // A reboot ends the daemon as well.
        assert!(
            daemons <= world.deaths.len(),
            "more deaths than were planned"
        );
    }
    let said = format!("{} with deaths at {deaths:?}", path.name);
    // A death before the first write leaves nothing, and nothing was promised.
    let Some(record) = &world.disk else {
        panic!("{said}: nothing on disk")
    };
    assert_eq!(record.stage, Stage::Over(path.ends), "{said}: {record:?}");
    assert_eq!(world.owners(), 1, "{said}");
    assert!(!world.slice && !world.frozen, "{said}: {world:?}");
    assert!(
        !world.cordoned && world.away.is_empty() && world.kept_ended.is_empty(),
        "{said}: {world:?}"
    );
    for (app, memory) in &world.memories {
        assert_eq!(memory.has, Some(memory.told), "{said}: {app} {memory:?}");
        let loses = path.keep == Some(Keeping::Damaged) || path.soft.is_some();
        let loses = loses && app.as_str() == "b";
        assert_eq!(memory.fresh, loses, "{said}: {app} {memory:?}");
    }
    let userspaces = matches!(path.soft, Some(Softly::Well | Softly::ByCommand));
    assert_eq!(world.userspaces, u32::from(userspaces), "{said}");
    let is_blocked = record.failed_rehearsal().is_some();
    assert_eq!(is_blocked, path.is_blocked(), "{said}: {record:?}");
    // Each death repeats it once at most.
    let rehearsed = matches!(&path.rehearsal, Some((_, Some(_))));
    let most = u32::from(rehearsed) * (1 + u32::try_from(deaths.len()).unwrap());
    assert!(
        (u32::from(rehearsed)..=most).contains(&world.rehearsals),
        "{said}"
    );
    assert_eq!(
        record.departs_from.is_none() && path.keep.is_some(),
        is_blocked,
        "{said}"
    );
    let boots = path.keep.is_some_and(|keep| keep != Keeping::Refused) && !is_blocked;
    let boots = path.reboot || boots;
    assert_eq!(world.boots, u32::from(boots), "{said}");
    for (run, starts) in &world.begun {
        assert_eq!(*starts, 1, "{said}: run {run}");
    }
    assert!(
        u32::try_from(world.begun.len()).unwrap() <= 1 + ROLLBACKS_MAX,
        "{said}"
    );
    for (app, life) in &world.lives {
        let is_new = life.began_ticks > 100;
        let ends = path.soft.is_some() && app.as_str() == "b";
        assert_eq!(
            is_new,
            ends || !record.old.is_empty(),
            "{said}: {app} {life:?}"
        );
    }
    world.moments
}

#[test]
fn no_crash_leaves_an_update_half_done() {
    let mut runs = 0;
    for path in paths() {
        // After a reboot nobody restarts what began anew: lives are those of before in this world.
        let moments = check(&path, &[]);
        for first in 1..=moments {
            let moments = check(&path, &[first]);
            runs += 1;
            for second in first + 1..=moments {
                check(&path, &[first, second]);
                runs += 1;
            }
        }
    }
    assert!(runs > 5000, "{runs}");
}

#[test]
fn it_can_be_called_off_until_the_command_begins() {
    let mut record = record();
    let facts = [
        Fact::Done,
        Fact::Proved(BTreeMap::new()),
        Fact::Done,
        Fact::Done,
    ];
    for fact in facts {
        assert!(record.can_be_called_off());
        let off = record.clone().after(Fact::Aborted);
        assert_eq!(off.stage, Stage::Closing(Outcome::RolledBack));
        assert_eq!(off.runs, 0);
        record = record.after(fact);
    }
    assert_eq!(record.stage, Stage::Updating);
    assert!(!record.can_be_called_off());
    assert_eq!(record.step().run, 1);
}

#[test]
fn troubles_have_a_bound() {
    let mut record = record();
    for n in 0..TROUBLES_MAX + 5 {
        record.trouble(n.to_string());
    }
    assert_eq!(record.troubles.len(), TROUBLES_MAX);
    assert_eq!(record.troubles[0], "5");
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let mut record = Record::new(7, 3, "boot".to_owned(), order(&paths()[2]));
    record.stage = Stage::Closing(Outcome::Alarmed);
    record
        .proof
        .insert("web".parse().unwrap(), AppProof::default());
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
}
