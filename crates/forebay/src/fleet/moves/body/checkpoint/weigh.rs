//! Whether copying a process would come to an end: judged before it is touched.
//!
//! Its pages and the link are measured ([`glance`], [`Peer::speed`]), and the rounds that would follow are worked out
//! by the rules by which they are judged ([`forebay_core::fleet::dirtying`]).
//!
//! [`Peer::speed`]: crate::fleet::moves::Peer::speed

use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::fleet::rounds::{Bounds, Verdict};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::glance;
use forebay_host::checkpoint::preflight::Speeds;

use crate::fleet::moves::{Copying, Foreseen, Road, Trouble, refuse};

/// What half a second says of a busy host is off by so much at times: what would come to an end over a link that is so
/// much faster is not refused here. Its rounds find out, and leave it running.
const DOUBT: f64 = 2.0;

/// What is weighed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) pid: u32,
    /// What is copied while it runs.
    pub(super) tracked: Bytes,
    /// What is copied while it stands.
    pub(super) untracked: Bytes,
}

/// How it would move; refused where it would stand for longer than it may, with what to do.
pub(super) fn weigh(
    app: &AppId,
    load: Load,
    bounds: Bounds,
    road: &Road<'_>,
) -> Result<Foreseen, Trouble> {
    let seen = glance(load.pid, load.tracked);
    let seen = seen.map_err(|error| Trouble::Refused(error.explain()))?;
    let measured = road.peer.speed(road.to)?;
    let link = measured.unwrap_or(Speeds::MEASURED.link);
    let found = seen.foresee(bounds, link);
    let copying = Copying {
        written: seen.rate(),
        link,
        is_measured: measured.is_some(),
        rounds: found.rounds,
    };
    let pause = match (found.verdict, seen.foresee(bounds, link * DOUBT).verdict) {
        (Verdict::Freeze(pause), _) => pause,
        (Verdict::Stay(_), Verdict::Freeze(_)) => bounds.most,
        (Verdict::Stay(pause), _) => {
            let pause = pause.map_or_else(String::new, |pause| {
                let (stands, most) = (pause.as_secs_f64(), bounds.most.as_secs_f64());
                format!(
                    ", so that it would stand still for {stands:.1} s, where {most:.0} s may be"
                )
            });
            return refuse(format!(
                "{app} writes its memory faster than it can be sent: {copying}{pause}; move it when it does less, \
                 give the hosts a faster link, let its memory come after it by `memory = \"post-copy\"`, or move it by \
                 `mode = \"restart\"`"
            ));
        }
        (Verdict::Again, _) => unreachable!("rounds that are foreseen come to an end"),
    };
    let rest = Duration::try_from_secs_f64(load.untracked.as_f64() / link);
    Ok(Foreseen {
        pause: pause.saturating_add(rest.unwrap_or(Duration::MAX)),
        copying: Some(copying),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::{AtomicBool, Ordering};

    use forebay_core::fleet::HostName;
    use forebay_core::fleet::mobility::Way;

    use super::*;
    use crate::fleet::moves::note::Note;
    use crate::fleet::moves::{Attempt, Content, Peer, Phase, Wish};

    /// A link of this speed, by which nothing but that is asked.
    #[derive(Debug)]
    struct Only(Option<f64>);

    impl Peer for Only {
        fn reserve(&self, _: &HostName, _: &Wish) -> Result<(), Trouble> {
            refuse("nothing but the speed")
        }

        fn send(
            &self,
            _: &HostName,
            _: &Attempt,
            _: (Phase, &Content, u64),
            _: &mut (dyn Read + Send),
        ) -> Result<(), Trouble> {
            refuse("nothing but the speed")
        }

        fn speed(&self, _: &HostName) -> Result<Option<f64>, Trouble> {
            Ok(self.0)
        }

        fn prepare(&self, _: &HostName, _: &Attempt, _: &[Content]) -> Result<(), Trouble> {
            refuse("nothing but the speed")
        }

        fn release(&self, _: &HostName, _: &Attempt) -> Result<(), Trouble> {
            refuse("nothing but the speed")
        }
    }

    /// This process, which writes 64 MiB again and again.
    #[test]
    fn what_writes_faster_than_the_link_is_refused_with_numbers_and_what_to_do() {
        const BYTES: usize = 64 << 20;
        let load = Load {
            pid: std::process::id(),
            tracked: Bytes(BYTES as u64),
            untracked: Bytes::mib(1),
        };
        let bounds = Bounds {
            aim: Duration::from_millis(170),
            most: Duration::from_secs(5),
            fixed: Duration::from_millis(120),
        };
        let weighed = |speed| {
            let (app, to): (AppId, HostName) = ("web".parse().unwrap(), "b".parse().unwrap());
            let (note, of) = (
                Note::new(app.clone(), to.clone(), Way::Checkpoint),
                Attempt {
                    app: app.clone(),
                    epoch: 1,
                },
            );
            let peer = Only(speed);
            let road = Road {
                peer: &peer,
                to: &to,
                of: &of,
                note: &note,
            };
            weigh(&app, load, bounds, &road)
        };
        let mut memory = vec![1_u8; BYTES];
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    for at in (0..BYTES).step_by(4096) {
                        let byte = &mut std::hint::black_box(&mut memory)[at];
                        *byte = byte.wrapping_add(1);
                    }
                }
            });
            let refused = weighed(Some(2e6)).map_err(|trouble| trouble.to_string());
            let (fast, usual) = (weighed(Some(1e9)), weighed(None));
            ends.store(true, Ordering::Relaxed);
            let refused = refused.unwrap_err();
            for part in [
                "web writes its memory faster",
                "2 MiB/s go to the target",
                "restart",
            ] {
                assert!(refused.contains(part), "{refused}");
            }
            let fast = fast.unwrap();
            assert!(fast.pause > bounds.fixed, "{fast}");
            assert!(
                fast.to_string()
                    .contains("in a second and 954 MiB/s go to the target, copied in"),
                "{fast}"
            );
            let usual = usual.unwrap();
            assert!(
                usual.to_string().contains("954 MiB/s are supposed to go"),
                "{usual}"
            );
        });
    }
}
