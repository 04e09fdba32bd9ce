//! The real etcd, crashed, paused, and cut off in the middle of a transaction.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Condvar;
use std::sync::Mutex;
use std::thread::JoinHandle;

use forebay_shadow::secret::Secret;

use super::super::etcd::Etcd;
use super::*;
use crate::config::{EtcdConfig, EtcdTls};

#[expect(
    dead_code,
    reason = "the rest is for the tests of the daemon, which share it"
)]
#[path = "../../../../tests/daemon/etcd.rs"]
mod server;

/// What a test has of the time that all is bounded by: scheduling, on a loaded machine.
const SLACK: Duration = Duration::from_secs(2);

fn client(endpoints: &[&str]) -> Etcd {
    Etcd::start(&EtcdConfig {
        endpoints: endpoints.iter().map(ToString::to_string).collect(),
        prefix: "/forebay/test".to_owned(),
        user: None,
        tls: None,
    })
    .unwrap()
}

pub(super) fn pair(test: &str) -> Option<Pair> {
    let server = server::Etcd::start(test)?;
    let client = || Arc::new(client(&[&server.endpoint()]));
    Some(Pair {
        a: client(),
        b: client(),
        _keep: Box::new(server),
    })
}

/// Between a client and etcd. When a needle is on its way to etcd, it does what was asked.
struct Proxy {
    address: String,
    state: Arc<State>,
    listening: Option<JoinHandle<()>>,
}

struct State {
    needle: &'static str,
    cut: Cut,
    seen: Mutex<bool>,
    released: Mutex<bool>,
    changed: Condvar,
    delivered: Mutex<bool>,
    ended: std::sync::atomic::AtomicBool,
}

#[derive(Clone, Copy, PartialEq)]
enum Cut {
    /// From then on no answer comes back.
    Answers,
    /// It arrives when it is released, and nothing after it.
    Late,
}

impl Proxy {
    fn start(to: String, needle: &'static str, cut: Cut) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            needle,
            cut,
            seen: Mutex::new(false),
            released: Mutex::new(false),
            changed: Condvar::new(),
            delivered: Mutex::new(false),
            ended: std::sync::atomic::AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        let listening = std::thread::spawn(move || {
            let mut passing = Vec::new();
            for client in listener.incoming() {
                if shared.ended.load(std::sync::atomic::Ordering::SeqCst) {
                    break;
                }
                let client = client.unwrap();
                let server = TcpStream::connect(&to).unwrap();
                let (own, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let state = Arc::clone(&shared);
                passing.push(std::thread::spawn(move || state.there(own, back)));
                let state = Arc::clone(&shared);
                passing.push(std::thread::spawn(move || state.back(server, client)));
            }
            for thread in passing {
                thread.join().unwrap();
            }
        });
        Self {
            address,
            state,
            listening: Some(listening),
        }
    }

    fn release(&self) {
        *self.state.released.lock().unwrap() = true;
        self.state.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
        self.state
            .ended
            .store(true, std::sync::atomic::Ordering::SeqCst);
        // Wakes it.
        TcpStream::connect(&self.address).unwrap();
        self.listening.take().unwrap().join().unwrap();
    }
}

impl State {
    fn there(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let bytes = &buffer[..read];
            let needle = self.needle.as_bytes();
            if bytes.windows(needle.len()).any(|part| part == needle) {
                *self.seen.lock().unwrap() = true;
                if self.cut == Cut::Late {
                    let mut released = self.released.lock().unwrap();
                    while !*released {
                        released = self.changed.wait(released).unwrap();
                    }
                    to.write_all(bytes).unwrap();
                    *self.delivered.lock().unwrap() = true;
                    // What comes after may call it off.
                    while let Ok(1..) = from.read(&mut buffer) {}
                    break;
                }
            }
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        // The other side may have gone first.
        to.shutdown(Shutdown::Write).ok();
    }

    fn back(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 65536];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let cut = self.cut == Cut::Answers && *self.seen.lock().unwrap();
            if !cut && to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Both).ok();
    }
}

#[test]
fn a_lost_answer_is_resolved_by_reading() {
    let Some(server) = server::Etcd::start("a_lost_answer_is_resolved_by_reading") else {
        return;
    };
    let direct = client(&[&server.endpoint()]);
    let proxy = Proxy::start(server.address(), "\"owner\":\"b\"", Cut::Answers);
    let cut_off = client(&[&format!("http://{}", proxy.address)]);
    let web = app("web");
    let first = Ownership::first(host("a"));
    cut_off.create(&web, &first).unwrap();
    let began = Instant::now();
    let given = first.given_to(&host("b"));
    let error = cut_off.change(&web, 1, &given).unwrap_err();
    assert!(
        began.elapsed() < REQUEST_MAX + SLACK,
        "{:?}",
        began.elapsed()
    );
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert!(error.to_string().contains(&proxy.address), "{error}");
    // It took effect, and what is asked next finds that out.
    let error = direct.change(&web, 1, &first.recalled()).unwrap_err();
    assert_eq!(error.outcome(), Outcome::Refused, "{error}");
    assert_eq!(direct.record(&web).unwrap(), Some(given));
    drop(cut_off);
}

#[test]
fn a_command_whose_answer_was_lost_is_not_asked_for_twice() {
    let Some(server) =
        server::Etcd::start("a_command_whose_answer_was_lost_is_not_asked_for_twice")
    else {
        return;
    };
    let direct = client(&[&server.endpoint()]);
    let proxy = Proxy::start(server.address(), "\"ask\":\"drain\"", Cut::Answers);
    let cut_off = client(&[&format!("http://{}", proxy.address), &server.endpoint()]);
    let a = host("a");
    let how = |what: &str| Completed::Done {
        what: what.to_owned(),
    };
    let mut view = direct.watch(&a);
    let id = std::thread::scope(|scope| {
        let asking = scope.spawn(|| cut_off.post(&a, &Command::Drain));
        // Carried out before whoever asked tries the next member.
        let mut seen = || {
            let view = view.borrow_and_update();
            view.commands.first().map(|(id, _)| id.clone())
        };
        let mut id = None;
        eventually("the command is seen", || {
            id = seen();
            id.is_some()
        });
        let id = id.unwrap();
        direct.complete(&a, &id, &how("once")).unwrap();
        assert_eq!(asking.join().unwrap().unwrap(), id);
        id
    });
    assert!(*proxy.state.seen.lock().unwrap(), "an answer was lost");
    // Of one that waits again this would be the end.
    direct.complete(&a, &id, &how("twice")).unwrap();
    assert_eq!(direct.completed(&a, &id).unwrap(), Some(how("once")));
    drop(cut_off);
}

#[test]
fn commands_are_in_the_order_in_which_they_were_asked_for() {
    let Some(server) =
        server::Etcd::start("commands_are_in_the_order_in_which_they_were_asked_for")
    else {
        return;
    };
    let etcd = client(&[&server.endpoint()]);
    let a = host("a");
    let late = |etcd: &Etcd| etcd.watch(&a);
    let mut early = late(&etcd);
    eventually("it is heard", || early.borrow_and_update().lost.is_none());
    let by_hand = |digits: &str, ask: &str| {
        let key = format!("/forebay/test/commands/a/{digits}-00000000");
        server.put(&key, &format!("{{\"ask\": \"{ask}\"}}"));
    };
    // By a clock that is ahead, by a right one, and by one that is behind.
    by_hand("9999999999999", "cordon");
    etcd.post(&a, &Command::Uncordon).unwrap();
    by_hand("0000000000000", "drain");
    let order = [Command::Cordon, Command::Uncordon, Command::Drain];
    for view in [&mut early, &mut late(&etcd)] {
        eventually("all are heard in order", || {
            let view = view.borrow_and_update();
            view.commands.iter().map(|(_, asked)| asked).eq(&order)
        });
    }
}

#[test]
fn a_transaction_that_comes_late_takes_no_effect_after_another() {
    let Some(server) =
        server::Etcd::start("a_transaction_that_comes_late_takes_no_effect_after_another")
    else {
        return;
    };
    let direct = client(&[&server.endpoint()]);
    let proxy = Proxy::start(server.address(), "\"owner\":\"b\"", Cut::Late);
    let slow = client(&[&format!("http://{}", proxy.address)]);
    let web = app("web");
    let first = Ownership::first(host("a"));
    slow.create(&web, &first).unwrap();
    let error = slow
        .change(&web, 1, &first.given_to(&host("b")))
        .unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert!(*proxy.state.seen.lock().unwrap(), "it was on its way");
    assert_eq!(direct.record(&web).unwrap(), Some(first.clone()));
    direct.change(&web, 1, &first.recalled()).unwrap();
    proxy.release();
    eventually("it arrived", || *proxy.state.delivered.lock().unwrap());
    // etcd answers in order: what is asked now is answered after what arrived.
    for _ in 0..50 {
        assert_eq!(direct.record(&web).unwrap(), Some(first.recalled()));
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(slow);
}

#[test]
fn who_was_removed_by_hand_is_told_so_by_its_renewal() {
    let Some(server) = server::Etcd::start("who_was_removed_by_hand_is_told_so_by_its_renewal")
    else {
        return;
    };
    let (a, b) = (client(&[&server.endpoint()]), client(&[&server.endpoint()]));
    let ttl = Duration::from_secs(60);
    let (web, first) = (app("web"), Ownership::first(host("a")));
    a.create(&web, &first).unwrap();
    let held = a.join(&member("a", "1"), ttl).unwrap();
    let held = a.renew(&held).unwrap().unwrap();
    server.delete("/forebay/test/hosts/a");
    b.take_over(&web, &first, &first.given_to(&host("b")))
        .unwrap();
    assert_eq!(a.renew(&held).unwrap(), None);
    let again = a.join(&member("a", "1"), ttl).unwrap();
    assert!(a.renew(&again).unwrap().is_some());
}

#[test]
fn a_watch_outlives_a_crash_and_misses_nothing() {
    let Some(mut server) = server::Etcd::start("a_watch_outlives_a_crash_and_misses_nothing")
    else {
        return;
    };
    let (a, b) = (client(&[&server.endpoint()]), client(&[&server.endpoint()]));
    let held = a.join(&member("a", "1"), Duration::from_secs(30)).unwrap();
    let mut view = a.watch(&host("a"));
    let web = app("web");
    let mut record = Ownership::first(host("a"));
    b.create(&web, &record).unwrap();
    eventually("it is seen", || {
        let view = view.borrow_and_update();
        view.lost.is_none()
            && view
                .records
                .as_ref()
                .is_some_and(|r| r.get(&web) == Some(&record))
    });
    for round in 0..3 {
        server.crash();
        eventually("the loss is noticed", || {
            view.borrow_and_update().lost.is_some()
        });
        let known = view.borrow().records.clone().unwrap();
        assert_eq!(known.get(&web), Some(&record), "what was known stays");
        let (_, why) = view.borrow().lost.clone().unwrap();
        assert!(why.contains(&server.endpoint()), "{why}");
        let error = a.record(&web).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        assert!(error.to_string().contains(&server.endpoint()), "{error}");
        server.restart();
        // At once, before whoever watches is back; and nothing is left to catch up by.
        let next = record.recalled();
        b.change(&web, record.epoch, &next).unwrap();
        record = next;
        let id = b.post(&host("a"), &Command::Drain).unwrap();
        server.compact();
        eventually("all is seen", || {
            let view = view.borrow_and_update();
            let records = view.records.as_ref();
            view.lost.is_none()
                && records.is_some_and(|records| records.get(&web) == Some(&record))
                && asked(&view, &id).is_some()
                && view.commands.len() == round + 1
        });
    }
    // And goes on.
    b.change(&web, record.epoch, &record.recalled()).unwrap();
    eventually("it goes on", || {
        let view = view.borrow_and_update();
        view.records
            .as_ref()
            .is_some_and(|r| r.get(&web) == Some(&record.recalled()))
    });
    assert!(a.renew(&held).unwrap().is_some(), "leases outlive a crash");
}

#[test]
fn requests_to_an_etcd_that_stands_still_end_and_the_lease_runs_out_here_first() {
    let Some(server) = server::Etcd::start(
        "requests_to_an_etcd_that_stands_still_end_and_the_lease_runs_out_here_first",
    ) else {
        return;
    };
    let a = client(&[&server.endpoint()]);
    let held = a.join(&member("a", "1"), Duration::from_secs(5)).unwrap();
    let mut view = a.watch(&host("a"));
    let web = app("web");
    let first = Ownership::first(host("a"));
    a.create(&web, &first).unwrap();
    eventually("it is seen", || view.borrow_and_update().lost.is_none());
    server.pause();
    let asks: [(&str, &dyn Fn() -> Outcome); 4] = [
        ("change", &|| outcome(&a.change(&web, 1, &first.recalled()))),
        ("record", &|| outcome(&a.record(&web).map(drop))),
        ("renew", &|| outcome(&a.renew(&held).map(drop))),
        ("hosts", &|| outcome(&a.hosts().map(drop))),
    ];
    for (what, ask) in asks {
        let began = Instant::now();
        assert_eq!(ask(), Outcome::Unknown, "{what}");
        let took = began.elapsed();
        assert!(took < REQUEST_MAX + SLACK, "{what} took {took:?}");
    }
    eventually("whoever watches knows", || {
        view.borrow_and_update().lost.is_some()
    });
    // Nobody can have taken anything over: etcd stood still, and counts on from there.
    eventually("the lease is over here", || now() >= held.lease.run_until());
    server.go_on();
    eventually("whoever watches hears again", || {
        view.borrow_and_update().lost.is_none()
    });
    // What was asked of it may have taken effect or not, and one look tells.
    let record = a.record(&web).unwrap().unwrap();
    assert!(record == first || record == first.recalled(), "{record:?}");
}

#[test]
fn a_member_that_does_not_answer_is_left_for_another() {
    let Some(server) = server::Etcd::start("a_member_that_does_not_answer_is_left_for_another")
    else {
        return;
    };
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    // One that takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("http://{}", silent.local_addr().unwrap());
    let etcd = client(&[&closed, &mute, &server.endpoint()]);
    assert_eq!(etcd.record(&app("web")).unwrap(), None);
    let mut view = etcd.watch(&host("a"));
    eventually("it is heard", || view.borrow_and_update().lost.is_none());
    let alone = client(&[&closed]);
    let began = Instant::now();
    let error = alone.hosts().unwrap_err().to_string();
    assert!(began.elapsed() < REQUEST_MAX + SLACK);
    assert!(
        error.contains(&format!("list the hosts at etcd at {closed}")),
        "{error}"
    );
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn a_record_that_cannot_be_read_is_named_and_hides_no_other() {
    let Some(server) =
        server::Etcd::start("a_record_that_cannot_be_read_is_named_and_hides_no_other")
    else {
        return;
    };
    let etcd = client(&[&server.endpoint()]);
    let (web, db) = (app("web"), app("db"));
    let first = Ownership::first(host("a"));
    etcd.create(&db, &first).unwrap();
    let others: Records = [(db.clone(), first.clone())].into();
    let all: Records = [(db.clone(), first.clone()), (web.clone(), first.clone())].into();
    let check = |key: &str, value: &str, words: &[&str]| {
        etcd.create(&web, &first).unwrap();
        let before = etcd.watch(&host("a"));
        let shows = |view: &watch::Receiver<View>, records: &Records, bad: bool| {
            let view = view.borrow();
            let named = view.unreadable.get(key);
            let named = named.is_some_and(|why| words.iter().all(|word| why.contains(word)));
            view.lost.is_none() && view.records.as_deref() == Some(records) && named == bad
        };
        eventually("all is well", || shows(&before, &all, false));
        server.put(key, value);
        let left = match key.ends_with("/web") {
            true => &others,
            false => &all,
        };
        assert_eq!(etcd.records().unwrap().1, *left);
        let after = etcd.watch(&host("a"));
        for view in [&before, &after] {
            eventually("it is named", || shows(view, left, true));
        }
        if key.ends_with("/web") {
            for asked in [
                etcd.record(&web).map(drop),
                etcd.create(&web, &first),
                etcd.change(&web, 1, &first.recalled()),
                etcd.take_over(&web, &first, &first.given_to(&host("b"))),
                etcd.forget(&web, 1),
            ] {
                refused(asked, words[0]);
            }
        }
        // Others go on.
        etcd.change(&db, 1, &first).unwrap();
        server.delete(key);
        let left = etcd.records().unwrap().1;
        for view in [&before, &after] {
            eventually("it is over", || {
                shows(view, &left, false) && view.borrow().unreadable.is_empty()
            });
        }
        if left.contains_key(&web) {
            etcd.forget(&web, 1).unwrap();
        }
    };
    let key = "/forebay/test/apps/web";
    check(key, "{", &["/forebay/test/apps/web", "look who wrote it"]);
    check(
        "/forebay/test/apps/a b",
        "{}",
        &["/forebay/test/apps/a b", "another prefix"],
    );
    let long = format!("\"{}\"", "x".repeat(VALUE_MAX));
    check(
        key,
        &long,
        &["/forebay/test/apps/web", "longer than 262144 bytes"],
    );
}

#[test]
fn a_command_that_cannot_be_read_hides_no_other() {
    let Some(server) = server::Etcd::start("a_command_that_cannot_be_read_hides_no_other") else {
        return;
    };
    let etcd = client(&[&server.endpoint()]);
    let a = host("a");
    let before = etcd.watch(&a);
    eventually("it is heard", || before.borrow().lost.is_none());
    server.put("/forebay/test/commands/a/1-x", "{");
    // Of a release that wants to know more.
    server.put("/forebay/test/commands/a/2-x", r#"{"ask": "move"}"#);
    let id = etcd.post(&a, &Command::Drain).unwrap();
    let named = |name: &str| name.parse::<CommandId>().unwrap();
    let all = [
        (named("1-x"), Command::Other),
        (named("2-x"), Command::Other),
        (id, Command::Drain),
    ];
    let after = etcd.watch(&a);
    for view in [&before, &after] {
        eventually("all are there", || *view.borrow().commands == all);
        assert!(view.borrow().lost.is_none());
    }
    let how = Completed::Refused {
        why: "nobody can read it".to_owned(),
    };
    etcd.complete(&a, &all[0].0, &how).unwrap();
    assert_eq!(etcd.completed(&a, &all[0].0).unwrap(), Some(how));
    for view in [&before, &after] {
        eventually("it is gone", || view.borrow().commands.len() == 2);
    }
}

#[test]
fn a_user_that_is_not_known_is_refused() {
    let Some(server) = server::Etcd::start("a_user_that_is_not_known_is_refused") else {
        return;
    };
    server.ask(|mut client| async move {
        client.user_add("root", "right", None).await?;
        client.user_grant_role("root", "root").await?;
        client.auth_enable().await.map(drop)
    });
    let as_user = |user: Option<&str>| {
        Etcd::start(&EtcdConfig {
            endpoints: vec![server.endpoint()],
            prefix: "/forebay".to_owned(),
            user: user.map(|password| ("root".to_owned(), Secret(password.to_owned()))),
            tls: None,
        })
        .unwrap()
    };
    let record = Ownership::first(host("a"));
    let right = as_user(Some("right"));
    right.create(&app("web"), &record).unwrap();
    let ttl = Duration::from_secs(60);
    let held = right.join(&member("a", "1"), ttl).unwrap();
    for wrong in [Some("wrong"), None] {
        let error = as_user(wrong).create(&app("web"), &record).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Refused, "{wrong:?}: {error}");
        assert!(error.to_string().contains("user"), "{error}");
        assert!(!format!("{:?}", as_user(wrong)).contains("wrong"));
        // Its lease stands, and nothing else is said.
        let error = as_user(wrong).leave(&held).unwrap_err();
        assert_eq!(error.outcome(), Outcome::Refused, "{wrong:?}: {error}");
        assert!(right.hosts().unwrap().contains_key(&host("a")));
    }
    right.leave(&held).unwrap();
    assert!(right.hosts().unwrap().is_empty());
    right.leave(&held).unwrap();
}

#[test]
fn tls_shows_who_either_side_is() {
    let test = "tls_shows_who_either_side_is";
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl")
            .args(arguments)
            .current_dir(directory.path())
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    let authority = |name: &str| {
        let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &pem,
            "-days",
            "2",
            "-subj",
            &format!("/CN={name}"),
        ])
    };
    if !authority("ca") || !authority("other") {
        println!("SKIPPED: {test}: no openssl");
        return;
    }
    std::fs::write(
        directory.path().join("names"),
        "subjectAltName=IP:127.0.0.1\n",
    )
    .unwrap();
    for (name, by) in [("server", "ca"), ("client", "ca"), ("stranger", "other")] {
        let (key, csr, pem) = (
            format!("{name}.key"),
            format!("{name}.csr"),
            format!("{name}.pem"),
        );
        assert!(openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &csr,
            "-subj",
            &format!("/CN={name}"),
        ]));
        assert!(openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            &format!("{by}.pem"),
            "-CAkey",
            &format!("{by}.key"),
            "-CAcreateserial",
            "-out",
            &pem,
            "-days",
            "2",
            "-extfile",
            "names",
        ]));
    }
    let more = [
        "--cert-file",
        &at("server.pem"),
        "--key-file",
        &at("server.key"),
        "--trusted-ca-file",
        &at("ca.pem"),
        "--client-cert-auth",
    ];
    let Some(server) = server::Etcd::start_with(test, "https", &more) else {
        return;
    };
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let with = |ca: &str, own: Option<&str>| {
        Etcd::start(&EtcdConfig {
            endpoints: vec![server.endpoint()],
            prefix: "/forebay".to_owned(),
            user: None,
            tls: Some(EtcdTls {
                ca: read(ca),
                own: own.map(|name| forebay_shadow::tls::Pem {
                    chain: read(&format!("{name}.pem")),
                    key: Secret(read(&format!("{name}.key"))),
                }),
            }),
        })
        .unwrap()
        .record(&app("web"))
    };
    eventually("etcd is there", || {
        with("ca.pem", Some("client")) == Ok(None)
    });
    let wrong = with("other.pem", Some("client")).unwrap_err().to_string();
    assert!(wrong.contains("certificate"), "{wrong}");
    for own in [None, Some("stranger")] {
        let error = with("ca.pem", own).unwrap_err();
        assert!(error.to_string().contains(&server.endpoint()), "{error}");
    }
}

impl server::Etcd {
    /// Does something with the client itself.
    fn ask<F>(&self, work: impl FnOnce(etcd_client::Client) -> F)
    where
        F: Future<Output = Result<(), etcd_client::Error>>,
    {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let client = etcd_client::Client::connect([self.endpoint()], None).await?;
                work(client).await
            })
            .unwrap();
    }

    fn put(&self, key: &str, value: &str) {
        self.ask(|mut client| async move { client.put(key, value, None).await.map(drop) });
    }

    fn delete(&self, key: &str) {
        self.ask(|mut client| async move { client.delete(key, None).await.map(drop) });
    }

    /// Forgets all that is past.
    fn compact(&self) {
        self.ask(|mut client| async move {
            let now = client.get("x", None).await?;
            let revision = now.header().unwrap().revision();
            client.compact(revision, None).await.map(drop)
        });
    }
}
