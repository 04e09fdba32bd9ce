//! What fronts measure of the answers of those who serve, told as signals of these.
//!
//! A front counts what it passed on by the time that it took; the daemon asks for these counts once a
//! second, and tells what came between: requests per second, the 95 % quantile of response times, the
//! share of errors. An app that says so itself goes before it ([`Source`]).
//!
//! [`Source`]: forebay_core::signals::Source

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use forebay_core::signals::{APPS_MAX, Signal, Told};
use forebay_shadow::answers::Answers;
use forebay_shadow::control::{ANSWER_BOUND, Answer, Line, Request};

use super::connect;
use crate::signals::Teller;

/// Time between two questions.
const EVERY: Duration = Duration::from_secs(1);

/// How long what was told stands: one question that is late changes nothing.
const STANDS: Duration = Duration::from_secs(3);

/// The part of all answers that take no longer than what is told as the response time.
const PART: f64 = 0.95;

/// Asks a front for as long as there is one. A front of a release that does not know this goes on
/// without.
pub(super) async fn measure(front: &AppId, control: &Path, teller: &Teller) -> Infallible {
    let mut told = None;
    loop {
        let trouble = match connect(control).await {
            Ok(line) => ask(line, teller).await,
            Err(error) => error,
        };
        let trouble = trouble.to_string();
        if told.as_ref() != Some(&trouble) {
            tracing::info!(%front, trouble, "what it measures of answers is not known");
            told = Some(trouble);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Until the front answers no more.
async fn ask(mut line: Line, teller: &Teller) -> io::Error {
    // Both begin here: times of another conversation have another origin.
    let mut meter = Meter::default();
    let origin = Instant::now();
    loop {
        let answer = line.ask_within(&Request::Answers, &[], ANSWER_BOUND).await;
        let (app, answers) = match answer {
            Ok(Answer::Answers { app, answers, .. }) => (app, answers),
            Ok(Answer::Refused(why)) => return io::Error::other(why),
            Ok(other) => return io::Error::other(format!("it answered {other:?}")),
            Err(error) => return error,
        };
        let signal = meter.read(origin.elapsed(), &app, answers);
        if let (Some(signal), Ok(app)) = (signal, app.parse::<AppId>())
            && !teller.tell(STANDS, &app, Told::by_front(signal))
        {
            tracing::warn!(%app, APPS_MAX, "signals of too many apps: not taken");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What has to be known of the answer before.
#[derive(Debug, Default)]
struct Meter {
    last: Option<(Duration, String, Answers)>,
}

impl Meter {
    /// Signals of the time between the answer before and this one, at `now`. None for the first of a
    /// process of the front, of a primary and of a conversation.
    fn read(&mut self, now: Duration, app: &str, answers: Answers) -> Option<Signal> {
        let last = self.last.replace((now, app.to_owned(), answers));
        let (_, _, answers) = self.last.as_ref()?;
        let (then, before_app, before) = last?;
        let elapsed = now.checked_sub(then).filter(|elapsed| !elapsed.is_zero())?;
        let since = answers.since(&before).filter(|_| before_app == app)?;
        let count = since.count() as f64;
        let took = since.quantile(PART);
        Some(Signal {
            requests_per_second: Some(count / elapsed.as_secs_f64()),
            response_time_ms: took.map(|took| took.as_secs_f64() * 1000.0),
            errors: (count > 0.0).then(|| since.errors() as f64 / count),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::signals::board;

    /// Counts as a front sends them: so many answers in the bucket that ends at 50 µs, and so many in
    /// the 79th, which ends at 0.5 s.
    fn answers(quick: u64, slow: u64, errors: u64) -> Answers {
        let mut times = vec![0; 79];
        times[0] = quick;
        times[78] = slow;
        let text = serde_json::json!({ "times": times, "errors": errors });
        serde_json::from_value(text).unwrap()
    }

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_came_between_two_answers_of_a_front_is_a_signal() {
        let mut meter = Meter::default();
        assert_eq!(
            meter.read(at(0), "a", answers(1000, 7, 3)),
            None,
            "the first"
        );
        let signal = meter.read(at(2000), "a", answers(1090, 17, 5)).unwrap();
        assert_eq!(signal.requests_per_second, Some(50.0));
        assert_eq!(signal.errors, Some(0.02));
        let ms = signal.response_time_ms.unwrap();
        assert!((480.0..500.0).contains(&ms), "{ms}");
        // One in twenty or less is not what is told.
        let signal = meter.read(at(3000), "a", answers(1185, 22, 5)).unwrap();
        let ms = signal.response_time_ms.unwrap();
        assert!((0.049..0.051).contains(&ms), "{ms}");
        assert_eq!(signal.errors, Some(0.0));
        // Nothing was asked: of answers nothing is known.
        let signal = meter.read(at(4000), "a", answers(1185, 22, 5)).unwrap();
        let nothing = Signal {
            requests_per_second: Some(0.0),
            ..Signal::default()
        };
        assert_eq!(signal, nothing);
    }

    #[test]
    fn another_process_or_another_primary_begins_anew() {
        let mut meter = Meter::default();
        meter.read(at(0), "a", answers(1000, 7, 3));
        assert_eq!(meter.read(at(1000), "a", answers(5, 0, 0)), None);
        assert!(meter.read(at(2000), "a", answers(6, 0, 0)).is_some());
        assert_eq!(meter.read(at(3000), "b", answers(9, 0, 0)), None);
        assert_eq!(
            meter.read(at(3000), "b", answers(9, 0, 0)),
            None,
            "no time has passed"
        );
    }

    /// The answer before was of another conversation, and its time counted from the beginning of that one.
    #[tokio::test]
    async fn another_conversation_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let control = directory.path().join("control");
        let socket = UnixListener::bind(&control).unwrap();
        let (teller, mut board) = board();
        let [front, web] = ["front", "web"].map(|name| name.parse::<AppId>().unwrap());
        let accept = async || Line::new(socket.accept().await.unwrap().0);
        let asked = async |line: &mut Line| {
            let (request, _) = line.receive::<Request>().await.unwrap().unwrap();
            assert_eq!(request, Request::Answers);
        };
        let answer = async |line: &mut Line, count: u64| {
            let app = "web".to_owned();
            let answers = answers(count, 0, 0);
            let all = None;
            let answer = Answer::Answers { app, answers, all };
            line.send(&answer, &[]).await.unwrap();
        };
        let story = async {
            let mut line = accept().await;
            asked(&mut line).await;
            answer(&mut line, 1000).await;
            drop(line);
            let mut line = accept().await;
            asked(&mut line).await;
            // It takes longer than in the conversation before.
            tokio::time::sleep(at(100)).await;
            answer(&mut line, 2000).await;
            asked(&mut line).await;
            // What the answer before says was told before it was asked again.
            assert_eq!(board.now().of(&web), Signal::default());
            answer(&mut line, 2090).await;
            asked(&mut line).await;
            let requests = board.now().of(&web).requests_per_second.unwrap();
            assert!(requests > 0.0 && requests <= 90.0, "{requests}");
        };
        tokio::select! {
            never = measure(&front, &control, &teller) => match never {},
            () = story => {}
        }
    }
}
