//! Certificates that change while agents speak.

use super::super::renewal::{When, keep, renew};
use super::*;

/// The agent of the host that holds the authority, and host `b` that knows where it is.
async fn renewable(fleet: &Fleet, clock: fn() -> Clock) -> (Agent, Arc<Identity>) {
    fleet.host("a");
    let authority = Some(Arc::clone(&fleet.authority));
    let a = fleet.host_at("a", clock());
    let door = agent_with(a, authority, Keeper::default(), Patience::default()).await;
    let address = Some(door.address.clone());
    let dir = fleet.dir("b");
    fleet
        .authority
        .issue(&name("b"), (&dir, address), SystemTime::now())
        .unwrap();
    (door, fleet.host_at("b", clock()))
}

#[tokio::test]
async fn a_renewal_interrupts_nothing() {
    let fleet = Fleet::begin();
    let (_door, b) = renewable(&fleet, system_clock).await;
    let there = agent(fleet.host("c")).await;
    let (mut idle, mut busy) = (
        Link::connect(&b, &name("c"), &there.address, BOUND)
            .await
            .unwrap(),
        Link::connect(&b, &name("c"), &there.address, BOUND)
            .await
            .unwrap(),
    );
    let (progress, sent) = (Progress::default(), vec![9_u8; 24 << 20]);
    let all = u64::try_from(sent.len()).unwrap();
    let before = b.certificate();
    let renews = async {
        for _ in 0..3 {
            renew(&b, When::Now).await.unwrap().unwrap();
            let mut new = Link::connect(&b, &name("c"), &there.address, BOUND)
                .await
                .unwrap();
            new.ask(&question(), BOUND).await.unwrap();
        }
        progress.bytes()
    };
    let (request, mut source) = (content(Some(all)), sent.as_slice());
    let send = busy.send(&request, &mut source, sending(&progress, Compress::Never));
    let (answer, _) = tokio::join!(send, renews);
    assert_eq!(answer.unwrap(), Answer::Taken { bytes: all });
    assert_ne!(b.certificate().pem, before.pem);
    idle.ask(&question(), BOUND).await.unwrap();
    busy.ask(&question(), BOUND).await.unwrap();
    // What is on disk is what is used.
    let again = fleet.host("b");
    assert_eq!(again.certificate(), b.certificate());
    let mut link = Link::connect(&again, &name("c"), &there.address, BOUND)
        .await
        .unwrap();
    link.ask(&question(), BOUND).await.unwrap();
}

#[tokio::test]
async fn it_is_renewed_by_itself_in_the_last_third_and_not_before() {
    let fleet = Fleet::begin();
    let (_door, b) = renewable(&fleet, system_clock).await;
    let before = b.certificate();
    assert_eq!(renew(&b, When::Due).await.unwrap(), None);
    assert_eq!(b.certificate(), before);

    let fleet = Fleet::begin();
    let (_door, b) = renewable(&fleet, || ahead(21 * DAY)).await;
    let before = b.certificate();
    let kept = tokio::spawn(keep(Arc::clone(&b), Duration::from_millis(20)));
    until("it is renewed", || b.certificate() != before).await;
    let after = b.certificate();
    assert!(after.not_after_unix_s > before.not_after_unix_s + 20 * 86_400);
    kept.abort();
    assert!(kept.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn an_authority_that_is_away_leaves_everything_as_it_was() {
    let fleet = Fleet::begin();
    let (door, b) = renewable(&fleet, system_clock).await;
    let before = std::fs::read(fleet.dir("b").join("identity.json")).unwrap();
    let address = door.address.clone();
    drop(door);
    until("it is gone", || {
        std::net::TcpStream::connect(&address).is_err()
    })
    .await;
    let error = renew(&b, When::Now).await.unwrap_err();
    check(
        &error,
        Kind::Unreachable,
        &["a at 127.0.0.1", "look whether its agent runs"],
    );
    assert_eq!(
        std::fs::read(fleet.dir("b").join("identity.json")).unwrap(),
        before
    );
    // A host that holds no authority makes no certificates.
    let there = agent(fleet.host("c")).await;
    let mut link = Link::connect(&b, &name("c"), &there.address, BOUND)
        .await
        .unwrap();
    let answer = link
        .ask(&Request::Renew { signing: None }, BOUND)
        .await
        .unwrap();
    assert!(
        matches!(
            answer,
            Answer::Refused(Refused {
                why: Why::NotAllowed,
                ..
            })
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn the_host_that_holds_the_authority_renews_its_own() {
    let fleet = Fleet::begin();
    let a = fleet.host("a");
    let before = a.certificate();
    renew(&a, When::Now).await.unwrap().unwrap();
    assert_ne!(a.certificate().pem, before.pem);
    // By another process, too.
    let other = fleet.host("a");
    renew(&other, When::Now).await.unwrap().unwrap();
    a.look();
    assert_eq!(a.certificate(), other.certificate());
}

#[tokio::test]
async fn a_host_that_is_forgotten_is_refused_by_all_who_have_heard_of_it() {
    let fleet = Fleet::begin();
    let (door, b) = renewable(&fleet, system_clock).await;
    // c asks the same authority.
    let c_dir = fleet.dir("c");
    let address = Some(door.address.clone());
    fleet
        .authority
        .issue(&name("c"), (&c_dir, address), SystemTime::now())
        .unwrap();
    let c = fleet.host("c");
    let there = agent(Arc::clone(&c)).await;
    let mut old = Link::connect(&b, &name("c"), &there.address, BOUND)
        .await
        .unwrap();
    old.ask(&question(), BOUND).await.unwrap();

    let now = SystemTime::now();
    assert_eq!(fleet.authority.forget(&name("b"), now).unwrap(), 1);
    let a = fleet.host("a");
    a.deny(&fleet.authority.denied(now).unwrap()).unwrap();
    // The authority's agent looks at its files; c has not heard of it yet.
    let error = renew(&b, When::Now).await.unwrap_err();
    check(
        &error,
        Kind::Forgotten,
        &["a at", "was forgotten by the fleet", "join again"],
    );
    old.ask(&question(), BOUND).await.unwrap();
    renew(&c, When::Due).await.unwrap();
    let error = old.ask(&question(), BOUND).await.unwrap_err();
    check(&error, Kind::Cut, &["c at"]);
    let error = Link::connect(&b, &name("c"), &there.address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::Forgotten,
        &["c at", "was forgotten by the fleet"],
    );
    // Nor is it spoken to.
    let listens = agent(Arc::clone(&b)).await;
    let error = Link::connect(&c, &name("b"), &listens.address, BOUND)
        .await
        .unwrap_err();
    check(
        &error,
        Kind::Forgotten,
        &["b at", "was forgotten by the fleet"],
    );
    // It may come back, as itself.
    let token = fleet.authority.token(&name("b"), BOUND, now).unwrap();
    let b = join::join(&fleet.dir("b"), &door.address, &token, system_clock())
        .await
        .unwrap();
    let mut link = Link::connect(&Arc::new(b), &name("c"), &there.address, BOUND)
        .await
        .unwrap();
    link.ask(&question(), BOUND).await.unwrap();
}

#[tokio::test]
async fn who_has_ended_or_was_forgotten_is_asked_nothing_more() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    fleet.host("c");
    let clock = Arc::new(Set::default());
    let c = fleet.host_at("c", clock.clone());
    let connect = async || Link::connect(&c, &name("b"), &there.address, BOUND).await;
    let mut link = connect().await.unwrap();
    link.ask(&question(), BOUND).await.unwrap();
    assert!(link.is_usable());
    clock.0.store(40 * DAY, Ordering::Relaxed);
    assert!(!link.is_usable());
    let error = link.ask(&question(), BOUND).await.unwrap_err();
    let words = ["b at", "its certificate ended at", "set both clocks"];
    check(&error, Kind::Validity, &words);

    clock.0.store(0, Ordering::Relaxed);
    let mut link = connect().await.unwrap();
    c.deny(&[fleet.host("b").serial()]).unwrap();
    assert!(!link.is_usable());
    let (progress, request) = (Progress::default(), content(None));
    let mut source = [7_u8; 100].as_slice();
    let sent = link.send(&request, &mut source, sending(&progress, Compress::Never));
    let error = sent.await.unwrap_err();
    check(
        &error,
        Kind::Forgotten,
        &["b at", "was forgotten by the fleet"],
    );
    assert_eq!((progress.bytes(), there.keeper.asked()), (0, 1));
}

#[tokio::test]
async fn who_has_ended_in_the_middle_is_answered_nothing_more() {
    let fleet = Fleet::begin();
    fleet.host("b");
    let clock = Arc::new(Set::default());
    let there = agent(fleet.host_at("b", clock.clone())).await;
    let mut link = Link::connect(&fleet.host("c"), &name("b"), &there.address, BOUND)
        .await
        .unwrap();
    link.ask(&question(), BOUND).await.unwrap();
    clock.0.store(40 * DAY, Ordering::Relaxed);
    let error = link.ask(&question(), BOUND).await.unwrap_err();
    check(&error, Kind::Cut, &["b at"]);
    assert_eq!(there.keeper.asked(), 1);
}

#[test]
fn of_many_processes_that_renew_at_a_time_one_does_and_the_others_use_its_own() {
    let fleet = Fleet::begin();
    let old = fleet.host("b").certificate();
    let both = std::sync::Barrier::new(6);
    let all: Vec<_> = std::thread::scope(|scope| {
        let renews = || {
            let (b, key) = (fleet.host("b"), identity::Key::generate().unwrap());
            let (host, request) = (b.host(), key.request(&b.host()).unwrap());
            let now = SystemTime::now();
            let authority = &fleet.authority;
            let renewed = authority.renew((&host, &b.serial()), Some(&request), now);
            let certificate = renewed.unwrap().certificate.unwrap();
            both.wait();
            let kept = b.renew(&old, (key, certificate)).unwrap();
            (kept, b)
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(renews)).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert_eq!(all.iter().filter(|(kept, _)| *kept).count(), 1);
    let there = fleet.host("b").certificate();
    assert!(there != old && all.iter().all(|(_, b)| b.certificate() == there));
}
