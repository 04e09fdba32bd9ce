//! The thread that speaks to one manager.
//!
//! Everything is bounded: what may wait, and how long one call may take. Answers come in the
//! order of the questions, so what is put back comes after what was written before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_core::app::AppId;

use super::book::{Entry, Managers, put_back};
use super::{Held, Kind, Object, Owner, Value, Values, owner};
use crate::error::HostError;
use crate::restore::Report;

/// Questions and answers that may wait, each; no app has more than two on their way.
const JOBS_MAX: usize = 256;

/// A question.
#[derive(Debug)]
pub(crate) enum Task {
    /// What does it hold?
    LookUp(String),
    /// Write, unless somebody else has.
    Write {
        name: String,
        values: Values,
        /// For each property, the values that mean that nobody else wrote it.
        mine: Vec<(String, Vec<Value>)>,
    },
    /// Put everything of an app back.
    PutBack(Vec<Entry>),
    /// Put back what an app had before it was another thing.
    Leave(Vec<Entry>),
}

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Written {
    /// It was done, and this is what the manager holds now.
    Done(Held),
    /// Somebody else set these, so nothing was written.
    Foreign(Values),
    Failed(HostError),
}

/// An answer.
#[derive(Debug)]
pub(crate) enum Heard {
    Seen(Result<Held, HostError>),
    Written(Written),
    PutBack(Report),
    Left(BTreeSet<Object>, Report),
}

/// The thread, while it runs.
#[derive(Debug)]
pub(crate) struct Link {
    questions: Option<SyncSender<(AppId, Task)>>,
    answers: Receiver<(AppId, Heard)>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    pub(crate) fn open(kind: Kind, address: &str) -> Result<Self, HostError> {
        let (questions, asked) = sync_channel::<(AppId, Task)>(JOBS_MAX);
        let (answer, answers) = sync_channel(JOBS_MAX);
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let mut owner = owner(kind, address);
        let thread = std::thread::Builder::new()
            .name(kind.to_string())
            .spawn(move || {
                for (app, task) in asked {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    if answer.send((app, work(owner.as_mut(), task))).is_err() {
                        break;
                    }
                }
            })
            .map_err(|error| HostError::io(format!("start the thread for {kind}"), error))?;
        Ok(Self {
            questions: Some(questions),
            answers,
            stopping,
            thread: Some(thread),
        })
    }

    /// Asks. False when too much waits already: then it is to be asked again.
    pub(crate) fn ask(&self, app: AppId, task: Task) -> bool {
        let questions = self.questions.as_ref();
        questions.is_some_and(|questions| questions.try_send((app, task)).is_ok())
    }

    /// The next answer, if it is there by `deadline`.
    pub(crate) fn hear(&self, deadline: Instant) -> Option<(AppId, Heard)> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            self.answers.try_recv().ok()
        } else {
            self.answers.recv_timeout(left).ok()
        }
    }
}

impl Drop for Link {
    /// Waits for the call under way, so that nothing is written after everything was put back.
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.questions = None;
        // An answer that nobody takes must not hold the thread up.
        while self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            if self
                .answers
                .recv_timeout(Duration::from_millis(10))
                .is_err()
            {
                continue;
            }
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a manager panicked");
        }
    }
}

fn work(owner: &mut dyn Owner, task: Task) -> Heard {
    match task {
        Task::LookUp(name) => Heard::Seen(owner.look_up(&name)),
        Task::Write { name, values, mine } => {
            Heard::Written(write(owner, &name, &values, &mine).unwrap_or_else(Written::Failed))
        }
        Task::PutBack(entries) => Heard::PutBack(put_back(&entries, &mut Managers::default())),
        Task::Leave(entries) => {
            let objects = entries.iter().map(|entry| entry.spot.object.clone());
            Heard::Left(
                objects.collect(),
                put_back(&entries, &mut Managers::default()),
            )
        }
    }
}

fn write(
    owner: &mut dyn Owner,
    name: &str,
    values: &Values,
    mine: &[(String, Vec<Value>)],
) -> Result<Written, HostError> {
    let before = owner.look_up(name)?;
    let mut foreign = Values::new();
    for (property, mine) in mine {
        if let Some(now) = before.values.get(property)
            && !mine.iter().any(|value| value.means(now))
        {
            foreign.insert(property.clone(), now.clone());
        }
    }
    if !foreign.is_empty() {
        return Ok(Written::Foreign(foreign));
    }
    owner.write(name, values)?;
    // It has carried out what was asked before by the time it answers this.
    owner.look_up(name).map(Written::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager that holds one number.
    #[derive(Debug)]
    struct Single(u64, u32);

    impl Owner for Single {
        fn look_up(&mut self, name: &str) -> Result<Held, HostError> {
            Ok(Held {
                name: name.to_owned(),
                at: String::new(),
                group: None,
                told: Values::new(),
                direct: [].into(),
                values: [("P".to_owned(), Value::Number(self.0))].into(),
                kept: [].into(),
                lacks: [].into(),
            })
        }

        fn write(&mut self, _: &str, values: &Values) -> Result<(), HostError> {
            self.1 += 1;
            if let Some(Value::Number(number)) = values.get("P") {
                self.0 = *number;
            }
            Ok(())
        }

        fn forget(&mut self, _: &str, _: &str) -> Result<(), HostError> {
            Ok(())
        }
    }

    #[test]
    fn what_somebody_else_set_is_not_written_over() {
        let mut owner = Single(5, 0);
        let values: Values = [("P".to_owned(), Value::Number(9))].into();
        let mine = |value| vec![("P".to_owned(), vec![Value::Number(value)])];
        let written = write(&mut owner, "x", &values, &mine(4)).unwrap();
        assert!(
            matches!(&written, Written::Foreign(found) if found["P"] == Value::Number(5)),
            "{written:?}"
        );
        assert_eq!((owner.0, owner.1), (5, 0));
        let written = write(&mut owner, "x", &values, &mine(5)).unwrap();
        assert!(matches!(written, Written::Done(_)), "{written:?}");
        assert_eq!((owner.0, owner.1), (9, 1));
    }

    #[test]
    fn a_link_answers_and_ends() {
        let link = Link::open(Kind::Systemd, "unix:path=/nowhere/at/all").unwrap();
        let app: AppId = "web".parse().unwrap();
        assert!(link.ask(app.clone(), Task::LookUp("web.service".to_owned())));
        let deadline = Instant::now() + Duration::from_secs(20);
        let (whose, heard) = link.hear(deadline).unwrap();
        assert_eq!(whose, app);
        let Heard::Seen(Err(error)) = heard else {
            panic!("{heard:?}")
        };
        let said = error.explain();
        assert!(
            said.contains("/nowhere/at/all") && !error.is_gone(),
            "{said}"
        );
    }
}
