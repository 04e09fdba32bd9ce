//! Apps of a host that is lost: another one starts them, once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::moves::{Fleet, status};
use crate::place::{Place, eventually, processes, signal};

/// Says that it is there, again and again.
const SAYS: &str = "while :; do echo $$ >> \"$1\"; sleep 0.02; done";

fn owner(fleet: &Fleet, app: &str) -> Option<&'static str> {
    let owns = |place: &Place| {
        let owns = &status(place)["owns"];
        owns.as_array().unwrap().contains(&app.into())
    };
    let owners = fleet.hosts.iter().filter(|(_, place)| owns(place));
    match owners.map(|(name, _)| *name).collect::<Vec<_>>()[..] {
        [owner] => Some(owner),
        _ => None,
    }
}

/// Those that said that they are there, in the order in which they did: each for one time, with no other between.
#[track_caller]
fn said(witness: &Path) -> Vec<String> {
    let text = fs::read_to_string(witness).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut turns: Vec<String> = Vec::new();
    for line in whole.lines() {
        if turns.last().map(String::as_str) != Some(line) {
            turns.push(line.to_owned());
        }
    }
    let each: BTreeSet<&String> = turns.iter().collect();
    assert_eq!(
        each.len(),
        turns.len(),
        "two of them ran at once: {turns:?}"
    );
    turns
}

#[test]
fn another_host_starts_what_a_lost_one_owned_once() {
    let mut file = None;
    let started = Fleet::start_with("a lost host", &["a", "b", "c"], |place| {
        let witness = place.path("says");
        let section = format!(
            "[apps.says]\nrestart = \"always\"\n\
             exec = [\"/bin/sh\", \"-c\", '{SAYS}', \"says\", \"{}\"]\n\
             move = {{ mode = \"restart\", takeover = \"after-lease\" }}\n",
            witness.display()
        );
        file = Some(witness);
        section
    });
    let Some(mut fleet) = started else { return };
    let witness = file.unwrap();
    let word = witness.display().to_string();
    let running = || processes(|words| words.contains(&word) && words.contains(&"says".to_owned()));
    eventually("somebody runs it", || {
        said(&witness).len() == 1 && owner(&fleet, "says").is_some()
    });
    let first = owner(&fleet, "says").unwrap();

    // Its daemon hangs: what it left running is frozen before another host starts it.
    let daemon = fleet.place(first).daemon_pid();
    signal(daemon, Signal::STOP);
    eventually("another one runs it", || said(&witness).len() == 2);
    assert_eq!(
        running().len(),
        2,
        "one that stands still, and one that runs"
    );
    let others: Vec<&(&str, Place)> = fleet
        .hosts
        .iter()
        .filter(|(name, _)| *name != first)
        .collect();
    let takes = |(_, place): &&&(&str, Place)| {
        let owns = &status(place)["owns"];
        owns.as_array().unwrap().contains(&"says".into())
    };
    let second = others.iter().find(takes).unwrap().0;
    let told = fleet.place(second).await_event("says", "move");
    assert!(
        told.contains(&format!("its host {first} is lost")),
        "{told}"
    );

    // It comes back, and runs no second one.
    signal(daemon, Signal::CONT);
    let told = fleet.place(first).await_event("says", "move");
    assert!(told.contains("is frozen"), "{told}");
    eventually("each knows whose it is", || {
        owner(&fleet, "says") == Some(second)
    });
    let before = fs::metadata(&witness).unwrap().len();
    eventually("it goes on", || {
        fs::metadata(&witness).unwrap().len() > before + 100
    });
    assert_eq!(said(&witness).len(), 2);

    // A daemon that dies: its guardian ends what it left, and the third host starts it.
    let index = fleet.index(second);
    fleet.hosts[index].1.crash();
    eventually("the third one runs it", || said(&witness).len() == 3);
    fleet.begin(index);
    let third = ["a", "b", "c"]
        .into_iter()
        .find(|name| *name != first && *name != second)
        .unwrap();
    eventually("each knows that the third one has it", || {
        owner(&fleet, "says") == Some(third)
    });
    let before = fs::metadata(&witness).unwrap().len();
    eventually("it goes on", || {
        fs::metadata(&witness).unwrap().len() > before + 100
    });
    assert_eq!(said(&witness).len(), 3);
}
