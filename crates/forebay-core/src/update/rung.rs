//! How each app is carried through an update: the least disruptive way there is for it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One step of the ladder of updates, the least disruptive first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// It runs on; where it runs outdated code afterwards, its front hands over to a new process.
    Userspace,
    /// It is stopped and started again, in order.
    Restart,
    /// It ends with the host, and begins with it.
    Reboot,
}

/// What decides about one app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Its place behind a front, if it has one.
    pub front: Option<Front>,
    /// Forebay starts it.
    pub is_started: bool,
    /// The user wants it restarted.
    pub restart: bool,
    /// The host begins anew.
    pub reboot: bool,
}

/// What stands behind a front besides the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Front {
    /// Another instance on this host could take over.
    pub shadow: bool,
    /// What planned hand-overs of it took: the median and the longest, where there were any.
    pub took: Option<(Duration, Duration)>,
}

/// How an app is carried through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The way.
    pub rung: Rung,
    /// Why this one.
    pub reason: String,
    /// The pause that clients are expected to see, in milliseconds: the median and what one in a hundred
    /// exceeds. Absent where nothing was measured that it could be predicted by.
    pub pause_ms: Option<(f64, f64)>,
    /// What is not done to this app, and why.
    pub refused: Vec<String>,
}

/// Chooses for one app.
#[must_use]
pub fn choose(subject: &Subject) -> Choice {
    let nothing = Some((0.0, 0.0));
    if subject.reboot {
        let mut refused = vec![
            "soft reboot with surviving slices: not in this release".to_owned(),
            "checkpoint, kexec and restore: not in this release".to_owned(),
        ];
        refused.push("hand-over to another host for an update: not in this release; `forebay move` moves single apps".to_owned());
        return Choice {
            rung: Rung::Reboot,
            reason: "the host begins anew, and so does it".to_owned(),
            pause_ms: None,
            refused,
        };
    }
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    match subject.front {
        Some(Front { shadow: true, took }) => Choice {
            rung: Rung::Userspace,
            reason: match subject.restart {
                true => "it is restarted behind its front: the shadow takes over in order first",
                false => "it runs on; should it need a restart, its shadow takes over in order first",
            }
            .to_owned(),
            pause_ms: match took {
                Some((median, longest)) => Some((ms(median), ms(longest))),
                None if subject.restart => None,
                None => nothing,
            },
            refused: Vec::new(),
        },
        _ if subject.restart && subject.is_started => Choice {
            rung: Rung::Restart,
            reason: "it is to be restarted, and no shadow could serve meanwhile".to_owned(),
            pause_ms: None,
            refused: Vec::new(),
        },
        _ if subject.restart => Choice {
            rung: Rung::Userspace,
            reason: "it runs on".to_owned(),
            pause_ms: nothing,
            refused: vec![
                "restart: its manager owns it (systemd, a container runtime or its user); restart it there"
                    .to_owned(),
            ],
        },
        _ => Choice {
            rung: Rung::Userspace,
            reason: "it runs on; should it run outdated code afterwards, the receipt says so, and \
                     `--restart` restarts it"
                .to_owned(),
            pause_ms: nothing,
            refused: Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_disruptive_way_is_chosen() {
        const MS: Duration = Duration::from_millis(1);
        let shadow = |took| Some(Front { shadow: true, took });
        let alone = Some(Front {
            shadow: false,
            took: None,
        });
        let check = |front, is_started, restart, reboot, expected: Rung, pause| {
            let choice = choose(&Subject {
                front,
                is_started,
                restart,
                reboot,
            });
            assert_eq!(choice.rung, expected, "{choice:?}");
            assert_eq!(choice.pause_ms, pause, "{choice:?}");
            assert!(!choice.reason.is_empty());
            choice
        };
        let none = Some((0.0, 0.0));
        check(None, true, false, false, Rung::Userspace, none);
        check(alone, true, false, false, Rung::Userspace, none);
        check(alone, true, true, false, Rung::Restart, None);
        check(shadow(None), true, false, false, Rung::Userspace, none);
        check(shadow(None), true, true, false, Rung::Userspace, None);
        let took = shadow(Some((MS * 3, MS * 9)));
        check(took, true, true, false, Rung::Userspace, Some((3.0, 9.0)));
        let choice = check(None, false, true, false, Rung::Userspace, none);
        assert!(choice.refused[0].contains("its manager owns it"));
        let choice = check(took, true, false, true, Rung::Reboot, None);
        assert_eq!(choice.refused.len(), 3);
    }
}
