//! How apps are told of an update, and what becomes of those that do not answer.
//!
//! An app that takes part is asked to `prepare`: it saves what it needs, ends threads that others can do
//! without, and answers `ready`. Then it either runs on detached, with CPUs to itself, or is ended and started
//! again afterwards. `resume` tells it that the update is over.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::AppId;

/// How an app takes part in updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// How long it has to answer `ready`.
    pub timeout: Duration,
    /// What is done where it does not.
    pub otherwise: Otherwise,
}

/// What is done where an app does not answer, or answers that it cannot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Otherwise {
    /// The update does not begin.
    #[default]
    Refuse,
    /// The app is carried through by the next rung, as if it were not told.
    Next,
}

/// What an app is told to prepare for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// It runs on, alone on CPUs of its own.
    Detach,
    /// It is ended, and started again afterwards.
    End,
}

impl Call {
    /// The word of the protocol.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Detach => "detach",
            Self::End => "end",
        }
    }
}

/// What one app did about being told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It is ready.
    Ready,
    /// It says that it cannot, and why.
    Cannot(String),
    /// It is there, and has not answered yet.
    Nothing,
    /// It is not there to be told.
    Absent,
}

/// What to do once these apps were told for some time: wait on, refuse the update, or go on with those that
/// are ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Somebody may yet answer.
    Wait,
    /// Why the update does not begin.
    Refuse(String),
    /// All have answered, or are done without: which are ready, and what is to be said of the others.
    All(BTreeMap<AppId, Call>, Vec<String>),
}

/// Judges what apps said within `waited` of being told.
#[must_use]
pub fn heard(told: &BTreeMap<AppId, (Call, Part, Heard)>, waited: Duration) -> Answered {
    let mut ready = BTreeMap::new();
    let mut troubles = Vec::new();
    let mut waits = false;
    for (app, (call, part, heard)) in told {
        let seconds = part.timeout.as_secs_f64();
        let why = match heard {
            Heard::Ready => {
                ready.insert(app.clone(), *call);
                continue;
            }
            Heard::Cannot(why) => format!("it says `{why}`"),
            Heard::Nothing | Heard::Absent if waited < part.timeout => {
                waits = true;
                continue;
            }
            Heard::Nothing => format!("it did not answer `ready` within {seconds} s"),
            Heard::Absent => format!("nobody registered for it within {seconds} s"),
        };
        match part.otherwise {
            Otherwise::Refuse => {
                return Answered::Refuse(format!(
                    "{app} is not prepared: {why}; see why, or give it a longer `update.timeout`, or \
                     `update.otherwise = \"next\"`"
                ));
            }
            Otherwise::Next => troubles.push(format!(
                "{app} was not prepared: {why}; it is carried through as if it had not been told"
            )),
        }
    }
    match waits {
        true => Answered::Wait,
        false => Answered::All(ready, troubles),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(all: &[(&str, Otherwise, Heard)]) -> BTreeMap<AppId, (Call, Part, Heard)> {
        let one = |(app, otherwise, heard): &(&str, Otherwise, Heard)| {
            let part = Part {
                timeout: Duration::from_secs(5),
                otherwise: *otherwise,
            };
            (app.parse().unwrap(), (Call::Detach, part, heard.clone()))
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn who_does_not_answer_refuses_the_update_or_is_done_without() {
        use Otherwise::{Next, Refuse};
        let check = |all: &[(&str, Otherwise, Heard)], seconds, expected: &str| {
            let answered = heard(&told(all), Duration::from_secs(seconds));
            let said = match answered {
                Answered::Wait => "wait".to_owned(),
                Answered::Refuse(why) => format!("refuse: {why}"),
                Answered::All(ready, troubles) => {
                    let ready: Vec<&str> = ready.keys().map(AppId::as_str).collect();
                    format!("ready {ready:?}, {troubles:?}")
                }
            };
            assert!(said.contains(expected), "{all:?} after {seconds} s: {said}");
        };
        let cannot = || Heard::Cannot("busy".to_owned());
        check(&[], 0, "ready [], []");
        check(&[("a", Refuse, Heard::Ready)], 0, "ready [\"a\"], []");
        check(&[("a", Refuse, Heard::Nothing)], 4, "wait");
        check(
            &[("a", Refuse, Heard::Nothing)],
            5,
            "refuse: a is not prepared: it did not answer `ready` within 5 s",
        );
        check(&[("a", Refuse, Heard::Absent)], 5, "nobody registered");
        check(&[("a", Refuse, cannot())], 0, "it says `busy`");
        check(
            &[("a", Next, cannot()), ("b", Next, Heard::Ready)],
            0,
            "ready [\"b\"], [\"a was not prepared: it says `busy`",
        );
        check(
            &[("a", Next, cannot()), ("b", Next, Heard::Nothing)],
            1,
            "wait",
        );
        // Whoever refuses does so at once, whatever others have time for.
        check(
            &[("a", Next, Heard::Nothing), ("b", Refuse, cannot())],
            1,
            "refuse: b",
        );
    }
}
