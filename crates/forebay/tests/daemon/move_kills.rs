//! An app whose files move with it, while whatever a move needs is lost: see [`losses`](crate::losses).

use crate::etcd::Etcd;
use crate::losses::{Ground, campaign};
use crate::moves::Fleet;
use crate::place::{Place, eventually};
use crate::relay::Relay;

/// How often, where nobody says.
const KILLS: u32 = 8;
/// Bytes that go along beside what the app counts, so that there is something to be in the middle of.
const LOAD: usize = 4 << 20;
/// What the link takes in a second: it is not what is waited for.
const SPEED: u64 = 1 << 30;

struct Files {
    fleet: Fleet,
    /// What is in the files that go along.
    load: Vec<u8>,
}

impl Ground for Files {
    const APP: &str = "counts";

    fn place(&self, host: &str) -> &Place {
        self.fleet.place(host)
    }

    fn daemon_of(&self, host: &str) -> u32 {
        self.fleet.place(host).daemon_pid()
    }

    fn crash_host(&mut self, host: &str) {
        let index = self.fleet.index(host);
        self.fleet.hosts[index].1.crash();
    }

    fn begin_host(&mut self, host: &str) {
        self.fleet.begin(self.fleet.index(host));
    }

    fn etcd(&mut self) -> &mut Etcd {
        &mut self.fleet.etcd
    }

    fn relays(&self) -> &[Relay] {
        &self.fleet.relays
    }

    fn await_rest(&self) {
        self.fleet.await_rest();
    }

    fn prepare(&mut self, host: &str) -> u64 {
        let before = self.fleet.await_owner(host);
        self.load = self.fleet.load(host, LOAD);
        before
    }

    fn await_whole(&self, owner: &str, before: u64) {
        let fleet = &self.fleet;
        let counted = fleet.await_owner(owner);
        assert!(counted >= before, "{counted} of {before}");
        // What was written for all to see is in its file, and nothing twice.
        let seen = fleet.witnessed();
        assert!(fleet.counted(owner) >= seen, "{seen} is not in its file");
        assert!(fleet.loaded(owner) == self.load, "its files are others");
    }
}

#[test]
fn whatever_is_lost_at_any_moment_one_host_owns_it() {
    let test = "whatever is lost at any moment";
    let Some(fleet) = Fleet::start_linked(test, &["a", "b"], SPEED) else {
        return;
    };
    eventually("somebody owns it", || fleet.processes().len() == 1);
    let owner = fleet.owner();
    let load = Vec::new();
    campaign(Files { fleet, load }, KILLS, owner);
}
