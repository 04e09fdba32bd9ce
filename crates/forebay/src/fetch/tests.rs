//! Against a server of the test's own, over loopback.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};

use forebay_core::outlook::Resource;
use forebay_core::signals::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::signals::{Listener, board};

const PATIENCE: Duration = Duration::from_secs(30);

/// Serves these answers one after the other, the last one again and again; gives its port.
fn serve(answers: Vec<String>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut answers: VecDeque<String> = answers.into();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                assert!(read > 0, "a request is one packet");
                let answer = match answers.len() {
                    1 => answers[0].clone(),
                    _ => answers.pop_front().unwrap(),
                };
                // Whoever takes no more has seen enough.
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
    });
    port
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn metrics(port: u16, requests: &str) -> Sources {
    let scrape = Scrape {
        url: format!("http://127.0.0.1:{port}/metrics").parse().unwrap(),
        every: Duration::from_millis(100),
        requests: Some(requests.parse().unwrap()),
        response_time: None,
    };
    Sources {
        metrics: BTreeMap::from([("web".parse().unwrap(), scrape)]),
        forecasts: Vec::new(),
    }
}

struct Fixture {
    fetcher: Fetcher,
    listener: Listener,
    foretold: Foretold,
    events: Receiver<(AppId, String)>,
}

fn start(sources: Sources) -> Fixture {
    let (teller, listener) = board();
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let foretold = Foretold::default();
    let tell: TellOf = Arc::new(move |app: &AppId, kind, message| {
        assert_eq!(kind, EventKind::Failed);
        sender.lock().unwrap().send((app.clone(), message)).unwrap();
    });
    Fixture {
        fetcher: Fetcher::start(sources, teller, foretold.clone(), tell).unwrap(),
        listener,
        foretold,
        events,
    }
}

impl Fixture {
    fn await_signal(&mut self, wanted: impl Fn(Signal) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let web = "web".parse().unwrap();
        while !wanted(self.listener.now().of(&web)) {
            assert!(Instant::now() < deadline, "{:?}", self.listener.now());
            std::thread::yield_now();
        }
    }

    fn await_event(&self, words: &[&str]) {
        let (app, message) = self.events.recv_timeout(PATIENCE).unwrap();
        assert_eq!(app.as_str(), "web");
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}

#[test]
fn a_counter_that_is_served_becomes_a_signal() {
    // It stands still, then grows with every answer and for as long as anybody asks.
    let still = vec![ok("hits 100\n"); 2];
    let grows = (1..500).map(|answer| ok(&format!("hits {}\n", 100 + 1000 * answer)));
    let port = serve(still.into_iter().chain(grows).collect());
    let mut fixture = start(metrics(port, "hits"));
    fixture.await_signal(|signal| signal.requests_per_second > Some(100.0));
    assert!(fixture.events.try_recv().is_err());
    fixture.fetcher.stop();
}

#[test]
fn trouble_is_told_once_with_app_and_address_until_it_is_over() {
    let bad = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_owned();
    let good = ok("hits 1\n");
    let mut answers = vec![bad.clone(); 4];
    answers.push(good.clone());
    answers.extend(vec![bad; 3]);
    answers.push(good);
    let port = serve(answers);
    let mut fixture = start(metrics(port, "hits"));
    let url = format!("http://127.0.0.1:{port}/metrics");
    fixture.await_event(&[&url, "500", "correct the URL"]);
    fixture.await_event(&[&url, "500"]);
    fixture.await_signal(|signal| signal.requests_per_second.is_some());
    assert!(fixture.events.try_recv().is_err(), "told twice");
    fixture.fetcher.stop();
}

#[test]
fn answers_that_are_too_large_moved_or_cut_off_are_refused_with_the_reason() {
    let large = ok(&" ".repeat((1 << 20) + 1));
    let endless = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(2 << 20));
    let moved = "HTTP/1.1 301 Moved\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n".to_owned();
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhits".to_owned();
    for (answer, words) in [
        (large, "larger than 1048576 bytes"),
        (endless, "larger than 1048576 bytes"),
        (moved, "give the URL that it leads to"),
        (cut, "see what serves it"),
        ("nonsense\r\n\r\n".to_owned(), "see what serves it"),
        (ok("other 1\n"), "no sample of `hits`"),
    ] {
        let fixture = start(metrics(serve(vec![answer]), "hits"));
        fixture.await_event(&[words]);
        fixture.fetcher.stop();
    }
}

#[test]
fn nobody_there_and_one_who_never_answers_are_told() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    // It takes connections and says nothing.
    let fixture = start(metrics(port, "hits"));
    fixture.await_event(&["no whole answer within 2 s"]);
    fixture.fetcher.stop();
    drop(free);
    let fixture = start(metrics(port, "hits"));
    fixture.await_event(&["refused", "start what serves it"]);
    fixture.fetcher.stop();
}

#[test]
fn forecasts_come_from_files_and_addresses_and_a_bad_one_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forecast.json");
    let soon = unix_ms() / 1000 + 60;
    let text = |q50: f64| {
        format!(
            "{{\"issued\": {}, \"points\": [{{\"from\": {soon}, \"until\": {}, \"q50\": {q50}}}]}}",
            soon - 60,
            soon + 60
        )
    };
    std::fs::write(&path, text(200.0)).unwrap();
    let url: Url = format!(
        "http://127.0.0.1:{}/f",
        serve(vec![ok(&text(100.0)), ok("{}")])
    )
    .parse()
    .unwrap();
    let of = |place: Place| ForecastSource {
        app: "web".parse().unwrap(),
        resource: Resource::Requests,
        place,
        every: Duration::from_millis(100),
    };
    let fixture = start(Sources {
        metrics: BTreeMap::new(),
        forecasts: vec![of(Place::File(path.clone())), of(Place::Url(url.clone()))],
    });
    fixture.await_event(&[
        "forecast of its requests",
        &url.to_string(),
        "missing field `issued`",
    ]);
    let web: AppId = "web".parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let peaks = |fixture: &Fixture| -> Vec<f64> {
        let outlook = fixture.foretold.lock().expected(unix_ms(), PATIENCE * 4);
        let of_web = outlook.expected.get(&web);
        of_web
            .into_iter()
            .flatten()
            .map(|span| span.peak.q50())
            .collect()
    };
    // Half of what each says; the one that went bad keeps what it said.
    while peaks(&fixture) != [100.0, 50.0] {
        assert!(Instant::now() < deadline, "{:?}", peaks(&fixture));
        std::thread::yield_now();
    }
    let said = fixture.foretold.explain(&web).join("\n");
    assert!(
        said.contains(&path.display().to_string()) && said.contains("was refused"),
        "{said}"
    );
    fixture
        .fetcher
        .sources()
        .send_replace(Some(Sources::default()));
    while !fixture.foretold.explain(&web).is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    fixture.fetcher.stop();
}

#[test]
fn reasons_are_short_and_plain_whatever_was_read() {
    let foretold = Foretold::default();
    let source = Source {
        app: "web".parse().unwrap(),
        resource: Resource::Requests,
        place: "/srv/forecast.json".to_owned(),
    };
    foretold.lock().set_sources([source.clone()]);
    let key = format!("{{\"\\u001b]0;{}\\u0007\": 1}}", "x".repeat(900_000));
    let why = take(&foretold, &source, Ok(key)).unwrap_err();
    assert!(
        why.contains("unknown field") && why.len() < 1000,
        "{}",
        why.len()
    );
    let explained = foretold.explain(&source.app).join("\n");
    assert!(explained.len() < 1000, "{}", explained.len());
    for told in [why, explained] {
        assert!(
            !told.contains(|c: char| c.is_control() && c != '\n'),
            "{told}"
        );
    }
}

#[test]
fn who_fails_is_asked_ever_less() {
    let mut pace = Pace::new(Duration::from_secs(1), 2);
    assert_eq!(pace.wait(), Duration::from_secs(1));
    assert!(!pace.failed());
    assert_eq!(pace.wait(), Duration::from_secs(2));
    assert!(pace.failed());
    assert!(!pace.failed());
    assert_eq!(pace.wait(), Duration::from_secs(8));
    for _ in 0..40 {
        assert!(!pace.failed());
    }
    assert_eq!(pace.wait(), WAIT_MAX);
    pace.succeeded();
    assert_eq!(pace.wait(), Duration::from_secs(1));
    let rare = Pace::new(Duration::from_secs(600), 1);
    assert_eq!(rare.wait(), Duration::from_secs(600));
}
