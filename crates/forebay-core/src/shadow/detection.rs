//! Telling a primary that is lost from one that is slow.
//!
//! Problem: a primary that was killed is known by its own state. One that hangs looks like one
//! that computes for long, waits for a slow disk, or gets no CPU; failing over from those makes
//! things worse.
//!
//! Approach: what the kernel says for certain (exiting, killed, stopped while somebody waits)
//! counts at once. Silence alone never counts: beyond `max(40 ms, 4 x p99.9)` without a byte it
//! needs a second, independent witness that the application has stopped taking its input: bytes
//! that lie unread in its sockets, or a ping that nobody answers. Processor use that stands still
//! strengthens neither: a service that waits for another one uses none either. What explains the
//! silence otherwise is a veto. Load ends: that tasks wait for a disk or a CPU explains no silence in
//! which, for 10 s, nobody got a byte and the witness stood.
//!
//! Properties: no evidence, no loss; whatever is vetoed is no stall; silence without a witness is
//! no stall; a certain loss is never vetoed; no wait for a disk or a CPU vetoes for ever.

use std::fmt;
use std::time::Duration;

/// Silence shorter than this is never suspicious.
pub const SILENCE_MIN: Duration = Duration::from_millis(40);

/// And of a route of which too little is known, shorter than this.
pub const SILENCE_UNLEARNT: Duration = Duration::from_secs(1);

/// Silence is measured in multiples of the longest answers seen.
pub const SILENCE_FACTOR: u32 = 4;

/// An observer that comes later than this was starved itself, and sees ghosts.
pub const LATE_MAX: Duration = Duration::from_millis(20);

/// Share of the time looked at that a task may wait for a CPU before that explains its silence.
pub const STARVED_MIN: f64 = 0.5;

/// A wait for a disk or a CPU excuses no silence that lasts longer than this: a disk that died keeps tasks
/// waiting for ever, and one thread that writes much waits at most looks. Load holds up single answers for
/// a second or two, not all of them and each ping for so long.
pub const EXCUSE_MAX: Duration = Duration::from_secs(10);

/// Stopped tasks are let go on at once by some debuggers and profilers.
pub const STOPPED_MIN: Duration = Duration::from_millis(5);

/// What the kernel says of a primary's main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It runs, or waits for something.
    Alive,
    /// It waits in the kernel without letting itself be disturbed: for a disk, as a rule.
    Blocked,
    /// It was stopped (SIGSTOP, a debugger).
    Stopped,
    /// It is on its way out or gone; it will execute nothing any more.
    Ending,
}

/// What was seen of a primary at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Its main process.
    pub life: Life,
    /// How long the request waits that waits longest for a byte; none when nobody waits.
    pub waiting: Option<Duration>,
    /// The 99.9 % quantile of that request's route, once learnt.
    pub usual: Option<Duration>,
    /// How long ago the latest byte came from the primary, to anybody.
    pub progress: Option<Duration>,
    /// How long it has left bytes or connections unread, if it has.
    pub unread: Option<Duration>,
    /// A ping has been without an answer for so long; none while no ping is out.
    pub ping: Option<Duration>,
    /// For so long, in all, pings were out that were given up since the latest that was answered.
    pub unanswered: Duration,
    /// Share of the time since the last look in which its tasks waited for a CPU, 0 to 1.
    pub starved: Option<f64>,
    /// How late the observer itself was.
    pub late: Duration,
    /// The least silence that this route's owner allows for.
    pub grace: Duration,
}

/// One thing that speaks for a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The main process is exiting or gone.
    Ended,
    /// It is stopped while requests wait.
    Stopped,
    /// Requests wait and no byte came, for so long.
    Silent(Duration),
    /// Bytes or connections lie unread, for so long.
    Unread(Duration),
    /// A ping is not answered, for so long.
    Ping(Duration),
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("its process ended"),
            Self::Stopped => f.write_str("its process is stopped while requests wait"),
            Self::Silent(time) => write!(f, "no byte for {} ms", time.as_millis()),
            Self::Unread(time) => write!(f, "input unread for {} ms", time.as_millis()),
            Self::Ping(time) => write!(f, "no answer to a ping for {} ms", time.as_millis()),
        }
    }
}

/// What explains a silence, so that it is not a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Veto {
    /// The observer came late.
    Late,
    /// The primary's tasks wait for a CPU: the answer is CPU, not another instance.
    Starved,
    /// It waits for a disk.
    Blocked,
    /// Others get answers.
    Progress,
}

impl fmt::Display for Veto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Late => "the observer itself came late",
            Self::Starved => "its tasks wait for a CPU",
            Self::Blocked => "it waits for a disk",
            Self::Progress => "other requests are answered",
        })
    }
}

/// What an observation says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Well,
    /// It is silent for longer than usual, and that is all. New requests go on: it may be busy with
    /// this one alone, and what becomes of them is the witness that is missing.
    Suspect(Evidence),
    /// It is silent for longer than usual, which something explains.
    Excused(Veto),
    /// It is lost, for these reasons.
    Lost(Vec<Evidence>),
}

/// The silence from which on a primary is suspect.
#[must_use]
pub fn silence_max(usual: Option<Duration>, grace: Duration) -> Duration {
    let learnt = usual.map_or(SILENCE_UNLEARNT, |usual| {
        usual.saturating_mul(SILENCE_FACTOR)
    });
    learnt.max(grace).max(SILENCE_MIN)
}

/// Judges an observation.
#[must_use]
pub fn judge(seen: &Observation) -> Verdict {
    match seen.life {
        Life::Ending => return Verdict::Lost(vec![Evidence::Ended]),
        Life::Stopped if seen.waiting.is_some_and(|waiting| waiting >= STOPPED_MIN) => {
            return Verdict::Lost(vec![Evidence::Stopped]);
        }
        Life::Alive | Life::Blocked | Life::Stopped => {}
    }
    let bound = silence_max(seen.usual, seen.grace);
    let Some(waiting) = seen.waiting.filter(|waiting| *waiting >= bound) else {
        return Verdict::Well;
    };
    if let Some(veto) = veto(seen, waiting, bound) {
        return Verdict::Excused(veto);
    }
    let silent = Evidence::Silent(waiting);
    // A witness has to have been there for as long as it takes to be no accident. Where it is not known
    // how long answers take, there may never be any: who only takes may do so in pieces.
    let witness_min = match seen.usual {
        Some(_) => SILENCE_MIN / 2,
        None => SILENCE_UNLEARNT / 2,
    };
    let lasting = |time: &Duration| *time >= witness_min;
    let mut witnesses = vec![silent];
    witnesses.extend(seen.unread.filter(lasting).map(Evidence::Unread));
    witnesses.extend(seen.ping.filter(lasting).map(Evidence::Ping));
    if witnesses.len() > 1 {
        Verdict::Lost(witnesses)
    } else {
        Verdict::Suspect(silent)
    }
}

fn veto(seen: &Observation, waiting: Duration, bound: Duration) -> Option<Veto> {
    if seen.late > LATE_MAX {
        return Some(Veto::Late);
    }
    if !has_lapsed(seen) {
        if seen.starved.is_some_and(|share| share >= STARVED_MIN) {
            return Some(Veto::Starved);
        }
        if seen.life == Life::Blocked {
            return Some(Veto::Blocked);
        }
    }
    // An answer to somebody who asked later than the one who waits.
    let recent = seen.progress.is_some_and(|ago| ago < bound.min(waiting));
    recent.then_some(Veto::Progress)
}

/// Whether it has been silent to everybody, and before a witness, for longer than load explains. Those who
/// wait may be others than those who waited first: clients give up, too.
fn has_lapsed(seen: &Observation) -> bool {
    let is_long = |time: Duration| time >= EXCUSE_MAX;
    seen.progress.is_none_or(is_long)
        && (is_long(seen.unanswered) || seen.unread.is_some_and(is_long))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    const WELL: Observation = Observation {
        life: Life::Alive,
        waiting: None,
        usual: None,
        progress: None,
        unread: None,
        ping: None,
        unanswered: Duration::ZERO,
        starved: None,
        late: Duration::ZERO,
        grace: Duration::ZERO,
    };

    #[test]
    fn each_case_has_its_verdict() {
        let silent = Observation {
            waiting: Some(ms(50)),
            usual: Some(ms(1)),
            ..WELL
        };
        let witnessed = Observation {
            unread: Some(ms(30)),
            ..silent
        };
        let lost = |second| Verdict::Lost(vec![Evidence::Silent(ms(50)), second]);
        let cases = [
            ("nothing in flight", WELL, Verdict::Well),
            (
                "a short wait",
                Observation {
                    waiting: Some(ms(39)),
                    unread: Some(ms(39)),
                    ..silent
                },
                Verdict::Well,
            ),
            (
                "a route of which nothing is known",
                Observation {
                    usual: None,
                    ..witnessed
                },
                Verdict::Well,
            ),
            (
                "silence alone",
                silent,
                Verdict::Suspect(Evidence::Silent(ms(50))),
            ),
            ("unread bytes", witnessed, lost(Evidence::Unread(ms(30)))),
            (
                "unread for a while, where answers may never come",
                Observation {
                    usual: None,
                    waiting: Some(ms(1000)),
                    unread: Some(ms(499)),
                    ..silent
                },
                Verdict::Suspect(Evidence::Silent(ms(1000))),
            ),
            (
                "unread for long, where answers may never come",
                Observation {
                    usual: None,
                    waiting: Some(ms(1000)),
                    unread: Some(ms(500)),
                    ..silent
                },
                Verdict::Lost(vec![Evidence::Silent(ms(1000)), Evidence::Unread(ms(500))]),
            ),
            (
                "a ping",
                Observation {
                    ping: Some(ms(25)),
                    ..silent
                },
                lost(Evidence::Ping(ms(25))),
            ),
            (
                "unread for a moment",
                Observation {
                    unread: Some(ms(3)),
                    ..silent
                },
                Verdict::Suspect(Evidence::Silent(ms(50))),
            ),
            (
                "a route that takes long",
                Observation {
                    usual: Some(ms(20)),
                    ..witnessed
                },
                Verdict::Well,
            ),
            (
                "a grace",
                Observation {
                    grace: ms(60),
                    ..witnessed
                },
                Verdict::Well,
            ),
            (
                "a late observer",
                Observation {
                    late: ms(21),
                    ..witnessed
                },
                Verdict::Excused(Veto::Late),
            ),
            (
                "no CPU",
                Observation {
                    starved: Some(0.6),
                    ..witnessed
                },
                Verdict::Excused(Veto::Starved),
            ),
            (
                "a slow disk",
                Observation {
                    life: Life::Blocked,
                    ..witnessed
                },
                Verdict::Excused(Veto::Blocked),
            ),
            (
                "others are answered",
                Observation {
                    progress: Some(ms(10)),
                    ..witnessed
                },
                Verdict::Excused(Veto::Progress),
            ),
            (
                "an old answer",
                Observation {
                    progress: Some(ms(45)),
                    ..witnessed
                },
                lost(Evidence::Unread(ms(30))),
            ),
            (
                "stopped, nobody waits",
                Observation {
                    life: Life::Stopped,
                    ..WELL
                },
                Verdict::Well,
            ),
            (
                "stopped, somebody waits",
                Observation {
                    life: Life::Stopped,
                    waiting: Some(ms(5)),
                    ..WELL
                },
                Verdict::Lost(vec![Evidence::Stopped]),
            ),
            (
                "ended, nobody waits",
                Observation {
                    life: Life::Ending,
                    late: ms(500),
                    ..WELL
                },
                Verdict::Lost(vec![Evidence::Ended]),
            ),
        ];
        for (name, seen, verdict) in cases {
            assert_eq!(judge(&seen), verdict, "{name}");
        }
    }

    /// A disk that died kept the processes of a database waiting, and that excused them for ever.
    #[test]
    fn no_excuse_lasts_for_ever() {
        let pinged = Observation {
            waiting: Some(ms(20_000)),
            usual: Some(ms(1)),
            progress: Some(ms(10_000)),
            ping: Some(ms(100)),
            unanswered: ms(10_000),
            ..WELL
        };
        let unread = Observation {
            ping: None,
            unanswered: Duration::ZERO,
            unread: Some(ms(10_000)),
            ..pinged
        };
        let excuses = [
            (Life::Blocked, None, Veto::Blocked),
            (Life::Alive, Some(1.0), Veto::Starved),
            (Life::Blocked, Some(1.0), Veto::Starved),
        ];
        for (life, starved, veto) in excuses {
            let excused = |seen: Observation| Observation {
                life,
                starved,
                ..seen
            };
            let waited = Evidence::Silent(ms(20_000));
            let lost = |second| Verdict::Lost(vec![waited, second]);
            let spared = Verdict::Excused(veto);
            let cases = [
                ("pings in vain", pinged, lost(Evidence::Ping(ms(100)))),
                (
                    "nothing was ever heard",
                    Observation {
                        progress: None,
                        ..pinged
                    },
                    lost(Evidence::Ping(ms(100))),
                ),
                (
                    "who waited first gave up",
                    Observation {
                        waiting: Some(ms(50)),
                        ..pinged
                    },
                    Verdict::Lost(vec![Evidence::Silent(ms(50)), Evidence::Ping(ms(100))]),
                ),
                ("unread", unread, lost(Evidence::Unread(ms(10_000)))),
                (
                    "pings not in vain for long",
                    Observation {
                        unanswered: ms(9_999),
                        ..pinged
                    },
                    spared.clone(),
                ),
                (
                    "one ping that is out for long",
                    Observation {
                        unanswered: Duration::ZERO,
                        ping: Some(ms(900)),
                        ..pinged
                    },
                    spared.clone(),
                ),
                (
                    "not unread for long",
                    Observation {
                        unread: Some(ms(9_999)),
                        ..unread
                    },
                    spared.clone(),
                ),
                (
                    "somebody got a byte",
                    Observation {
                        progress: Some(ms(9_999)),
                        ..pinged
                    },
                    spared,
                ),
                (
                    "the next ping is just out",
                    Observation {
                        ping: None,
                        ..pinged
                    },
                    Verdict::Suspect(waited),
                ),
                (
                    "a late observer",
                    Observation {
                        late: ms(21),
                        ..pinged
                    },
                    Verdict::Excused(Veto::Late),
                ),
            ];
            for (name, seen, verdict) in cases {
                assert_eq!(judge(&excused(seen)), verdict, "{veto:?}: {name}");
            }
        }
    }

    fn times() -> impl Strategy<Value = Option<Duration>> {
        proptest::option::of(prop_oneof![3 => 0_u64..400, 1 => 9_000_u64..12_000].prop_map(ms))
    }

    prop_compose! {
        fn observations()(
            life in prop_oneof![Just(Life::Alive), Just(Life::Blocked), Just(Life::Stopped)],
            waiting in times(), usual in times(), progress in times(), unread in times(), ping in times(),
            unanswered in times(),
            starved in proptest::option::of(0.0..1.0_f64), late in (0_u64..40).prop_map(ms),
            grace in (0_u64..200).prop_map(ms),
        ) -> Observation {
            let unanswered = unanswered.unwrap_or_default();
            Observation { life, waiting, usual, progress, unread, ping, unanswered, starved, late, grace }
        }
    }

    proptest! {
        #[test]
        fn a_stall_takes_a_wait_and_a_witness_and_no_excuse(seen in observations()) {
            let Verdict::Lost(evidence) = judge(&seen) else { return Ok(()) };
            prop_assert!(seen.waiting.is_some());
            if seen.life != Life::Stopped || evidence != [Evidence::Stopped] {
                prop_assert!(evidence.len() > 1);
                prop_assert!(seen.late <= LATE_MAX);
                let starved = seen.starved.is_some_and(|share| share >= STARVED_MIN);
                if starved || seen.life == Life::Blocked {
                    prop_assert!(seen.progress.is_none_or(|ago| ago >= EXCUSE_MAX));
                    prop_assert!(seen.unread.unwrap_or_default().max(seen.unanswered) >= EXCUSE_MAX);
                }
                prop_assert!(seen.waiting >= Some(silence_max(seen.usual, seen.grace)));
            }
        }

        #[test]
        fn what_ends_is_lost_whatever_else_is_seen(seen in observations()) {
            let ending = Observation { life: Life::Ending, ..seen };
            prop_assert_eq!(judge(&ending), Verdict::Lost(vec![Evidence::Ended]));
        }

        #[test]
        fn more_silence_never_makes_it_well(seen in observations(), more in 0_u64..500) {
            if judge(&seen) != Verdict::Well {
                let longer = Observation { waiting: seen.waiting.map(|time| time + ms(more)), ..seen };
                prop_assert_ne!(judge(&longer), Verdict::Well);
            }
        }
    }
}
