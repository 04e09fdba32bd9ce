use std::time::Duration;

use super::*;

fn place(name: &str) -> TierPlace {
    TierPlace {
        name: name.to_owned(),
        directory: "/nowhere/data".into(),
        fast: "/nowhere/fast".into(),
        slow: "/nowhere/slow".into(),
        fast_size_max: 1 << 20,
        bandwidth_max: None,
        volatile: false,
    }
}

/// A desk with one tier that nobody works at.
fn desk() -> (Desk, mpsc::Receiver<Order>) {
    let (orders, asked) = mpsc::sync_channel(ORDERS_MAX);
    let shared = Arc::new(Shared::new(place("data")));
    let tiers = BTreeMap::from([("data".to_owned(), (shared, orders))]);
    let desk = Desk {
        tiers: Arc::new(tiers),
    };
    (desk, asked)
}

#[test]
fn requests_are_bounded_and_answers_are_remembered() {
    let (desk, asked) = desk();
    let ask = || desk.ask("data", api::TierOrder::Drain, Vec::new());
    for number in 1..=ORDERS_MAX as u64 {
        let answer = ask().unwrap();
        assert_eq!((answer.request, answer.done), (number, false));
    }
    assert!(matches!(ask(), Err(Refused::Busy(why)) if why.contains("tier data has 16")));
    for _ in 0..ANSWERS_MAX {
        asked.recv().unwrap();
        ask().unwrap();
    }
    assert!(matches!(desk.answer("data", 1), Err(Refused::Unknown(_))));
    assert!(desk.answer("data", ANSWERS_MAX as u64).is_ok());
    drop(asked);
    assert!(matches!(ask(), Err(Refused::Busy(why)) if why.contains("stopping")));
}

#[test]
fn a_tier_that_is_not_there_is_named_beside_those_that_are() {
    let (desk, _asked) = desk();
    let unknown = |desk: &Desk| match desk.answer("date", 1) {
        Err(Refused::Unknown(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(unknown(&desk), "no tier `date`; use data");
    assert!(unknown(&Desk::default()).contains("started with none"));
}

#[test]
fn answers_name_a_bounded_number_of_files() {
    let mut answer = api::TierAnswer::default();
    for number in 0..1200_u32 {
        let moved = number % 2 == 0;
        answered(
            &mut answer,
            api::TierFile {
                file: number.to_string(),
                moved,
                bytes: moved.then_some(1),
                reason: None,
            },
        );
    }
    assert_eq!((answer.files.len(), answer.moved), (1000, 600));
    assert_eq!(answer.left_beyond, 100);
}

/// One tier that cannot be used: it says why, requests are answered, and it ends when told.
#[test]
fn a_broken_tier_answers_and_stops() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell: Tell = Arc::new({
        let told = Arc::clone(&told);
        move |kind, message| locked(&told).push((kind, message))
    });
    let places = BTreeMap::from([("data".to_owned(), place("data"))]);
    let movers = Movers::start(&places, &tell).unwrap();
    let desk = movers.desk();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while desk.status()[0].state != api::TierState::Broken && std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    let status = desk.status().remove(0);
    let trouble = status.trouble.unwrap();
    assert!(trouble.contains("/nowhere/data"), "{trouble}");
    assert!(
        trouble.contains("make that directory for tier data"),
        "{trouble}"
    );
    let asked = desk.ask("data", api::TierOrder::Drain, Vec::new()).unwrap();
    let mut answer = asked.clone();
    while !answer.done && std::time::Instant::now() < end {
        answer = desk.answer("data", asked.request).unwrap();
    }
    assert_eq!(answer.trouble.as_ref(), Some(&trouble));
    movers.hold(true);
    movers.stop();
    let told = locked(&told);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, EventKind::Failed);
    assert!(told[0].1.starts_with("tier data: "), "{}", told[0].1);
}
