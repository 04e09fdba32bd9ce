//! How each app is carried through an update: the least disruptive way there is for it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Call;

/// One step of the ladder of updates, the least disruptive first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// It runs on; where it runs outdated code afterwards, its front hands over to a new process.
    Userspace,
    /// It runs on while all else of userspace begins anew.
    SoftReboot,
    /// It is on another host of the fleet meanwhile.
    OtherHost,
    /// It is written down, ends with the host, and goes on from there.
    Checkpoint,
    /// It is told, saves what it needs, is ended, and started again afterwards.
    Cooperative,
    /// It is stopped and started again, in order.
    Restart,
    /// It ends with the host, and begins with it.
    Reboot,
}

/// The ways to update a host, the least disruptive first: also those that are not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The command runs beside the apps; what runs outdated code afterwards is replaced behind its front.
    Userspace,
    /// All of userspace begins anew, but for the slices of critical apps.
    SoftReboot,
    /// Apps move to another host of the fleet, and back.
    OtherHost,
    /// Apps are written down, the host begins anew, and they go on where they were.
    Checkpoint,
    /// Apps are told, save what they need, end, and begin again.
    Cooperative,
    /// Apps end with the host, and begin with it.
    Reboot,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Userspace,
        Self::SoftReboot,
        Self::OtherHost,
        Self::Checkpoint,
        Self::Cooperative,
        Self::Reboot,
    ];

    /// What it is asked for by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::SoftReboot => "soft-reboot",
            Self::OtherHost => "other-host",
            Self::Checkpoint => "checkpoint",
            Self::Cooperative => "cooperative",
            Self::Reboot => "reboot",
        }
    }

    /// The way of that name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.name() == name)
    }

    /// Whether it can be asked for; `fleet`: others may take apps of this host.
    #[must_use]
    pub const fn is_offered(self, fleet: bool) -> bool {
        match self {
            Self::Userspace
            | Self::SoftReboot
            | Self::Checkpoint
            | Self::Cooperative
            | Self::Reboot => true,
            Self::OtherHost => fleet,
        }
    }

    /// What it comes to, or why it is not offered and what to do instead.
    #[must_use]
    pub const fn reason(self, fleet: bool) -> &'static str {
        match self {
            Self::Userspace => {
                "the command runs in a small slice beside the apps, and programs are replaced behind their fronts"
            }
            Self::SoftReboot => {
                "once the command is done Forebay has systemd begin userspace anew (`systemctl soft-reboot`): \
                 critical apps run on in their slices, all others end in order and begin again; the kernel stays; \
                 taken by itself where the command is `systemctl soft-reboot`"
            }
            Self::OtherHost if fleet => {
                "apps with `move` go to other hosts before the command begins, and come back when it is over; \
                 with --reboot it is taken by itself"
            }
            Self::OtherHost => {
                "no other host takes apps of this one: give it a place in a fleet with `fleet.link.listen`"
            }
            Self::Checkpoint => {
                "apps with `images` are written down and ended once the command is done, Forebay has the host \
                 begin anew, and they go on where they were; their connections are closed"
            }
            Self::Cooperative => {
                "apps with `update` are told, save what they need, are ended before the command, and started again \
                 when it, or the reboot after it, is over"
            }
            Self::Reboot => {
                "with --reboot: the update waits until somebody reboots the host, and goes on by itself afterwards"
            }
        }
    }
}

/// The ways to have a host begin anew, the least disruptive first: who is to choose takes the first that carries its
/// apps.
pub const WAYS_OF_A_BOOT: [Way; 4] = [
    Way::OtherHost,
    Way::Checkpoint,
    Way::Cooperative,
    Way::Reboot,
];

/// Why a way over a boot that could be gone is not the one to be chosen; of each app that it is chosen for, how it would
/// be carried.
///
/// Moving away has to carry all of them: one that stays behind ends. Writing down, or telling, is worth it for one.
#[must_use]
pub fn falls_short(way: Way, apps: &[(&str, Rung)]) -> Option<String> {
    let names = |fits: &dyn Fn(Rung) -> bool| {
        let named = apps.iter().filter(|(_, rung)| fits(*rung));
        named.map(|(app, _)| *app).collect::<Vec<_>>().join(", ")
    };
    let none = |wanted: Rung, what: &str| {
        let carried = apps.iter().any(|(_, rung)| *rung == wanted);
        let all = names(&|_| true);
        match (carried, all.is_empty()) {
            (true, _) => None,
            (false, true) => Some("there is no app but batch".to_owned()),
            (false, false) => Some(format!("of {all} none {what}")),
        }
    };
    match way {
        Way::OtherHost => {
            let stays = names(&|rung| rung != Rung::OtherHost);
            (!stays.is_empty()).then(|| format!("the reboot would end {stays}, which cannot leave"))
        }
        Way::Checkpoint => none(Rung::Checkpoint, "has `images` and runs"),
        Way::Cooperative => none(Rung::Cooperative, "is told of updates"),
        Way::Userspace | Way::SoftReboot | Way::Reboot => None,
    }
}

/// Programs that end the host's boot: run as an update they would end it behind the apps' back.
const ENDERS: [&str; 7] = [
    "reboot", "shutdown", "poweroff", "halt", "kexec", "init", "telinit",
];
/// The same as words for `systemctl`.
const ENDING: [&str; 6] = [
    "reboot",
    "soft-reboot",
    "kexec",
    "poweroff",
    "halt",
    "isolate",
];

/// Whether a command is plainly one that ends the host. A script that does so is not seen.
#[must_use]
pub fn ends_the_host(command: &[String]) -> bool {
    let Some((program, words)) = command.split_first() else {
        return false;
    };
    let program = program.rsplit('/').next().unwrap_or_default();
    ENDERS.contains(&program)
        || program == "systemctl" && words.iter().any(|word| ENDING.contains(&word.as_str()))
}

/// Whether a command is nothing but one that has userspace begin anew.
#[must_use]
pub fn ends_userspace(command: &[String]) -> bool {
    let Some((program, words)) = command.split_first() else {
        return false;
    };
    program.rsplit('/').next() == Some("systemctl")
        && matches!(words, [word] if word == "soft-reboot")
}

/// What becomes of an app while userspace begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Soft {
    /// It is to run on; what stands against it.
    Survives(Vec<String>),
    /// It ends with all else.
    Ends,
}

/// What decides about one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Its place behind a front, if it has one.
    pub front: Option<Front>,
    /// Forebay starts it.
    pub is_started: bool,
    /// The user wants it restarted.
    pub restart: bool,
    /// The host begins anew.
    pub reboot: bool,
    /// It goes to another host meanwhile.
    pub leaves: bool,
    /// It is kept over the reboot, where that is wanted and images of it are taken.
    pub keeps: Option<Keeps>,
    /// It is told of the update.
    pub told: Option<Call>,
    /// What becomes of it while userspace begins anew, where that is wanted.
    pub soft: Option<Soft>,
}

/// What is known of an app that is to be kept over a boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeps {
    /// What stands against it.
    pub obstacles: Vec<String>,
    /// What it took before: the median and the longest, where there was any.
    pub took: Option<(Duration, Duration)>,
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

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// One that is kept. What stands against it is no reason to lose what it has: then nothing is done.
fn keep(keeps: &Keeps) -> Choice {
    Choice {
        rung: Rung::Checkpoint,
        reason: match keeps.took {
            Some(_) => "it goes on after the reboot from its image, and took so long before",
            None => "it goes on after the reboot from its image; how long that takes was never measured here",
        }
        .to_owned(),
        pause_ms: keeps.took.map(|(median, longest)| (ms(median), ms(longest))),
        refused: keeps
            .obstacles
            .iter()
            .map(|why| format!("keep it over a reboot: {why}"))
            .collect(),
    }
}

/// One that is there while userspace begins anew.
fn soft(soft: &Soft, is_started: bool) -> Choice {
    match soft {
        Soft::Survives(obstacles) => Choice {
            rung: Rung::SoftReboot,
            reason: "it runs on in its slice while all else of userspace begins anew".to_owned(),
            pause_ms: Some((0.0, 0.0)),
            refused: obstacles
                .iter()
                .map(|why| format!("have it run on over a soft reboot: {why}"))
                .collect(),
        },
        Soft::Ends => Choice {
            rung: Rung::Restart,
            reason: if is_started {
                "userspace begins anew, and so does it: it ends in order before, and begins again afterwards"
            } else {
                "userspace begins anew, and it ends with that: whoever started it starts it again"
            }
            .to_owned(),
            pause_ms: None,
            refused: Vec::new(),
        },
    }
}

/// Chooses for one app.
#[must_use]
pub fn choose(subject: &Subject) -> Choice {
    let nothing = Some((0.0, 0.0));
    if subject.leaves {
        return Choice {
            rung: Rung::OtherHost,
            reason: "it moves to another host before the command begins, and back when it is over"
                .to_owned(),
            pause_ms: None,
            refused: Vec::new(),
        };
    }
    if let Some(keeps) = &subject.keeps {
        return keep(keeps);
    }
    if let Some(what) = &subject.soft
        && subject.told != Some(Call::Detach)
    {
        return soft(what, subject.is_started);
    }
    if subject.told == Some(Call::End) {
        return Choice {
            rung: Rung::Cooperative,
            reason: "it is told, saves what it needs, is ended before the command, and started again afterwards"
                .to_owned(),
            pause_ms: None,
            refused: Vec::new(),
        };
    }
    if subject.told == Some(Call::Detach) {
        let mut choice = choose(&Subject {
            told: None,
            ..subject.clone()
        });
        choice.reason += "; it is told before, and has its CPUs to itself meanwhile";
        return choice;
    }
    if subject.reboot {
        return Choice {
            rung: Rung::Reboot,
            reason: "the host begins anew, and so does it".to_owned(),
            pause_ms: None,
            refused: Vec::new(),
        };
    }
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
                leaves: false,
                keeps: None,
                told: None,
                soft: None,
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
        check(took, true, false, true, Rung::Reboot, None);
        let leaves = choose(&Subject {
            front: took,
            is_started: true,
            restart: false,
            reboot: true,
            leaves: true,
            keeps: None,
            told: None,
            soft: None,
        });
        assert_eq!(leaves.rung, Rung::OtherHost);
        let told = |call| {
            choose(&Subject {
                front: None,
                is_started: true,
                restart: false,
                reboot: false,
                leaves: false,
                keeps: None,
                told: Some(call),
                soft: None,
            })
        };
        assert_eq!(told(Call::End).rung, Rung::Cooperative);
        let detached = told(Call::Detach);
        assert_eq!((detached.rung, detached.pause_ms), (Rung::Userspace, none));
        assert!(detached.reason.contains("it is told before"));
    }

    #[test]
    fn an_app_runs_on_over_a_soft_reboot_or_is_restarted() {
        let with = |soft, told, is_started| {
            choose(&Subject {
                front: None,
                is_started,
                restart: false,
                reboot: false,
                leaves: false,
                keeps: None,
                told,
                soft: Some(soft),
            })
        };
        let choose = |soft, told| with(soft, told, true);
        for told in [None, Some(Call::Detach)] {
            let choice = choose(Soft::Survives(Vec::new()), told);
            assert_eq!(choice.rung, Rung::SoftReboot);
            assert_eq!(
                (choice.pause_ms, choice.refused),
                (Some((0.0, 0.0)), Vec::new())
            );
        }
        let choice = choose(
            Soft::Survives(vec!["it is in a container".to_owned()]),
            None,
        );
        assert_eq!(
            choice.refused,
            ["have it run on over a soft reboot: it is in a container"]
        );
        assert_eq!(choose(Soft::Ends, None).rung, Rung::Restart);
        let others = with(Soft::Ends, None, false);
        assert!(others.reason.contains("whoever started it"), "{others:?}");
    }

    #[test]
    fn what_has_userspace_begin_anew_and_nothing_else_is_known() {
        let is = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            ends_userspace(&words)
        };
        assert!(is("systemctl soft-reboot") && is("/usr/bin/systemctl soft-reboot"));
        for words in [
            "",
            "systemctl",
            "systemctl reboot",
            "systemctl soft-reboot --force",
            "echo soft-reboot",
        ] {
            assert!(!is(words), "{words}");
        }
    }

    #[test]
    fn a_way_over_a_boot_has_to_carry_apps() {
        let short = |way, rungs: &[Rung]| {
            let named = ["db", "web"].into_iter().zip(rungs.iter().copied());
            falls_short(way, &named.collect::<Vec<_>>())
        };
        let away = Rung::OtherHost;
        assert_eq!(short(Way::OtherHost, &[away, away]), None);
        let why = short(Way::OtherHost, &[away, Rung::Reboot]).unwrap();
        assert!(why.contains("end web,"), "{why}");
        for (way, carries) in [
            (Way::Checkpoint, Rung::Checkpoint),
            (Way::Cooperative, Rung::Cooperative),
        ] {
            assert_eq!(short(way, &[Rung::Reboot, carries]), None);
            assert!(short(way, &[Rung::Reboot, Rung::Reboot]).is_some());
            assert!(short(way, &[]).unwrap().contains("no app but batch"));
        }
        assert_eq!(short(Way::Reboot, &[Rung::Reboot]), None);
        assert_eq!(WAYS_OF_A_BOOT.last(), Some(&Way::Reboot));
    }

    #[test]
    fn what_stands_against_keeping_an_app_refuses_it() {
        let choose = |keeps| {
            choose(&Subject {
                front: None,
                is_started: true,
                restart: false,
                reboot: true,
                leaves: false,
                keeps: Some(keeps),
                told: None,
                soft: None,
            })
        };
        let choice = choose(Keeps::default());
        assert_eq!(choice.rung, Rung::Checkpoint);
        assert_eq!((choice.pause_ms, choice.refused), (None, Vec::new()));
        let choice = choose(Keeps {
            obstacles: vec!["it has a device open".to_owned()],
            took: Some((Duration::from_secs(2), Duration::from_secs(3))),
        });
        assert_eq!(choice.pause_ms, Some((2000.0, 3000.0)));
        assert_eq!(
            choice.refused,
            ["keep it over a reboot: it has a device open"]
        );
    }

    #[test]
    fn every_way_has_a_name_and_a_reason() {
        for way in Way::ALL {
            assert_eq!(Way::of(way.name()), Some(way));
            assert!(!way.reason(false).is_empty() && !way.reason(true).is_empty());
        }
        assert_eq!(Way::of("telepathy"), None);
    }

    #[test]
    fn a_command_that_ends_the_host_is_known() {
        let ends = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            ends_the_host(&words)
        };
        for words in [
            "reboot",
            "/sbin/shutdown -r now",
            "systemctl --force reboot",
            "kexec -e",
        ] {
            assert!(ends(words), "{words}");
        }
        for words in [
            "",
            "apt-get -y upgrade",
            "systemctl restart web",
            "echo reboot",
        ] {
            assert!(!ends(words), "{words}");
        }
    }
}
