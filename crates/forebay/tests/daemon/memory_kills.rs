//! A process that moves with its memory, and runs on when its daemon ends, while whatever a move needs is lost: see
//! [`losses`](crate::losses).

use crate::etcd::Etcd;
use crate::losses::{Ground, campaign};
use crate::memory_fleet::{Fleet, Load, MEMORY, RATE, index};
use crate::place::Place;
use crate::relay::Relay;

/// How often, where nobody says.
const KILLS: u32 = 2;
/// What the link takes in a second: some of a move is spent on it.
const SPEED: u64 = 64 << 20;

struct Memory(Fleet);

impl Ground for Memory {
    const APP: &str = "pages";

    fn place(&self, host: &str) -> &Place {
        self.0.place(host)
    }

    fn daemon_of(&self, host: &str) -> u32 {
        self.0.daemon(index(host))
    }

    fn crash_host(&mut self, host: &str) {
        self.0.crash(index(host));
    }

    fn begin_host(&mut self, host: &str) {
        self.0.begin(index(host));
    }

    fn etcd(&mut self) -> &mut Etcd {
        &mut self.0.etcd
    }

    fn relays(&self) -> &[Relay] {
        &self.0.relays
    }

    fn await_rest(&self) {
        self.0.await_rest();
    }

    fn prepare(&mut self, _: &str) -> u64 {
        self.counted()
    }

    fn await_whole(&self, owner: &str, before: u64) {
        // It goes on, all of its pages are as it left them, and it did not begin anew.
        assert_eq!(self.0.await_owner(), owner);
        assert!(self.counted() > before, "{} of {before}", self.counted());
        self.0.await_clean();
    }
}

impl Memory {
    /// How far it came, as it told whoever reads.
    fn counted(&self) -> u64 {
        self.0.witnessed().last().map_or(0, |(count, _)| *count)
    }
}

#[test]
fn whatever_is_lost_at_any_moment_its_memory_is_not() {
    let load = Load {
        memory: MEMORY,
        rate: RATE,
        speed: SPEED,
    };
    let Some(fleet) = Fleet::start_linked_keeping("whatever is lost its memory is not", load)
    else {
        return;
    };
    let owner = fleet.await_owner().to_owned();
    campaign(Memory(fleet), KILLS, owner);
}
