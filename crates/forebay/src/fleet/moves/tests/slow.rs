//! Contents that take longer than a source may be silent.

use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

use forebay_core::fleet::arrival::Stage;
use forebay_core::fleet::departure;
use forebay_core::fleet::promises::PROMISE_TTL;

use super::World;
use crate::fleet::moves::{Content, Phase};

/// Each read of it takes so long, by a clock that it moves on.
struct Slow(Rc<Cell<Duration>>, Duration);

impl Read for Slow {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.set(self.0.get() + self.1);
        into[0] = b'x';
        Ok(1)
    }
}

#[test]
fn whoever_sends_one_content_for_long_was_heard_when_it_ended() {
    let mut world = World::new(3);
    world.luck.lock().unwrap().faults = false;
    world.begin();
    while world.depart.as_ref().unwrap().stage() != departure::Stage::Copying {
        world.turn_source();
    }
    let file = world.source.apps.data.join("fixed");
    let name = file.to_str().unwrap().replace("/source/", "/target/");
    let content = Content {
        name,
        kind: "file".to_owned(),
    };
    let clock = Rc::new(Cell::new(*world.link.clock.lock().unwrap()));
    let mut slot = world.link.arrive.lock().unwrap();
    let arrive = slot.as_mut().unwrap();
    let mut slow = Slow(Rc::clone(&clock), PROMISE_TTL * 2);
    let parcel = (Phase::Copy(1), &content, 3);
    arrive.take(parcel, &mut slow, || clock.get()).unwrap();
    arrive.turn(clock.get() + PROMISE_TTL / 2);
    assert_eq!(arrive.stage(), Stage::Receiving, "{:?}", arrive.why);
    // A source that is silent is given up as before.
    arrive.turn(clock.get() + PROMISE_TTL * 2);
    assert_ne!(arrive.stage(), Stage::Receiving);
}
