//! The messages of the stream.
//!
//! A period is rendered once, whoever follows and however many: what is a follower's own is the events since its
//! last message, and they stand in front of what all share. An app of which nothing changed since the period
//! that was rendered last keeps its text, so that a host whose apps sleep costs little to look at.

use std::convert::Infallible;
use std::future::Future as _;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use forebay_api as api;
use forebay_core::report::Event;
use hyper::body::Bytes;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;

use super::feed::View;
use super::routes::Shared;
use super::{AgentUse, convert, fronts};
use crate::control::Published;

/// How often a silent stream says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Said by who has nothing to say.
const ALIVE: &[u8] = b":\n\n";

/// The period that was rendered last.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    latest: Mutex<Option<Arc<Rendered>>>,
}

/// What all are told of one period.
#[derive(Debug)]
struct Rendered {
    of: Arc<Published>,
    /// A message from behind its events to its end.
    text: Bytes,
    /// Where in it each app stands, in the order of their names.
    apps: Vec<Range<usize>>,
}

impl Ticks {
    /// What all are told of a period: rendered by the first who asks.
    fn rendered(
        &self,
        view: &View,
        agent: impl FnOnce() -> AgentUse,
        fronts: impl FnOnce() -> Vec<api::Front>,
    ) -> Result<Arc<Rendered>, serde_json::Error> {
        // Whoever asks meanwhile wants the same.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = latest.as_ref()
            && Arc::ptr_eq(&known.of, &view.published)
        {
            return Ok(Arc::clone(known));
        }
        let made = render(view, agent(), &fronts(), latest.as_deref())?;
        Ok(Arc::clone(latest.insert(Arc::new(made))))
    }
}

/// Renders a period, with the help of an earlier one.
fn render(
    view: &View,
    agent: AgentUse,
    fronts: &[api::Front],
    before: Option<&Rendered>,
) -> Result<Rendered, serde_json::Error> {
    let mut text = Vec::with_capacity(before.map_or(0, |before| before.text.len() + 1024));
    add(&mut text, b"\"status\":", &convert::status(view, agent))?;
    text.extend_from_slice(b",\"apps\":[");
    let reports = &view.published.report.apps;
    let mut apps = Vec::with_capacity(reports.len());
    let earlier = before.into_iter().flat_map(|before| {
        let reports = before.of.report.apps.iter();
        let texts = before.apps.iter().map(|range| &before.text[range.clone()]);
        reports.zip(texts)
    });
    let mut earlier = earlier.peekable();
    for (id, report) in reports {
        if !apps.is_empty() {
            text.push(b',');
        }
        let begin = text.len();
        // Both are in the order of their names.
        while earlier.next_if(|((known, _), _)| *known < id).is_some() {}
        let same = earlier.next_if(|((known, then), _)| *known == id && *then == report);
        match same {
            Some((_, same)) => text.extend_from_slice(same),
            None => add(&mut text, b"", &convert::app(id, report))?,
        }
        apps.push(begin..text.len());
    }
    add(&mut text, b"],\"fronts\":", &fronts)?;
    text.extend_from_slice(b"}\n\n");
    Ok(Rendered {
        of: Arc::clone(&view.published),
        text: text.into(),
        apps,
    })
}

fn add(text: &mut Vec<u8>, key: &[u8], value: &impl Serialize) -> Result<(), serde_json::Error> {
    text.extend_from_slice(key);
    serde_json::to_writer(text, value)
}

/// A message up to the end of its events.
fn beginning(period: u64, events: &[Event]) -> Result<Bytes, serde_json::Error> {
    let mut text = format!("event: tick\nid: {period}\ndata: {{").into_bytes();
    let events: Vec<api::Event> = events.iter().map(convert::event).collect();
    add(&mut text, b"\"events\":", &events)?;
    text.push(b',');
    Ok(text.into())
}

/// When the message after one that is sent now is due; none where it is too early for one now. Those that come late,
/// since a period ends when it ends, do not put off all that follow: as many are sent as were asked for.
fn due_after(due: Option<Instant>, now: Instant, every: Duration) -> Option<Instant> {
    let Some(due) = due else {
        return Some(now + every);
    };
    // A period that comes a little early is the one that was waited for.
    let is_due = now + every / 10 >= due;
    is_due.then(|| (due + every).max(now + every / 2))
}

/// What one follower is told: parts of messages, one behind the other.
pub(super) struct Messages {
    server: Shared,
    every: Duration,
    periods: WatchStream<Option<u64>>,
    /// Events before this one were told, or were there before it asked.
    seen: u64,
    /// When the next message is due; none before the first one.
    due: Option<Instant>,
    /// The rest of the message that was begun.
    rest: Option<Bytes>,
    silence: Pin<Box<Sleep>>,
}

impl Messages {
    /// From the next period on, at most so often.
    pub(super) fn new(server: Shared, every: Duration) -> Self {
        let (_, seen) = server.feed.events_after(u64::MAX);
        Self {
            every,
            periods: WatchStream::from_changes(server.feed.periods()),
            seen,
            due: None,
            rest: None,
            silence: Box::pin(sleep_until(Instant::now() + KEEP_ALIVE)),
            server,
        }
    }

    /// The beginning of a message about the latest period, where one is due; the rest of it comes next.
    fn begin(&mut self) -> Option<Bytes> {
        let due = due_after(self.due, Instant::now(), self.every)?;
        let server = &self.server;
        let view = server.feed.view()?;
        let (events, seen) = server.feed.events_after(self.seen);
        let fronts = || fronts::known(&server.state.fronts);
        let rendered = server.ticks.rendered(&view, || server.agent(), fronts);
        let message = rendered.and_then(|rendered| {
            let first = beginning(rendered.of.report.period, &events)?;
            Ok((first, rendered.text.clone()))
        });
        let (first, rest) = message
            .inspect_err(|error| tracing::error!(%error, "tick not sent"))
            .ok()?;
        (self.seen, self.due, self.rest) = (seen, Some(due), Some(rest));
        Some(first)
    }

    fn spoke(&mut self) {
        self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
    }
}

impl Stream for Messages {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(rest) = this.rest.take() {
            return Poll::Ready(Some(Ok(rest)));
        }
        while let Poll::Ready(period) = Pin::new(&mut this.periods).poll_next(context) {
            // The daemon stops.
            if period.flatten().is_none() {
                return Poll::Ready(None);
            }
            if let Some(first) = this.begin() {
                this.spoke();
                return Poll::Ready(Some(Ok(first)));
            }
        }
        match this.silence.as_mut().poll(context) {
            Poll::Ready(()) => {
                this.spoke();
                Poll::Ready(Some(Ok(Bytes::from_static(ALIVE))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use forebay_core::report::AppReport;

    use super::*;
    use crate::server::tests::{event, published};

    fn view(period: u64, change: impl FnOnce(&mut BTreeMap<String, AppReport>)) -> View {
        let mut published = published(period);
        let apps = std::mem::take(&mut published.report.apps);
        let mut apps = apps
            .into_iter()
            .map(|(id, app)| (id.to_string(), app))
            .collect();
        change(&mut apps);
        let apps = apps.into_iter().map(|(id, app)| (id.parse().unwrap(), app));
        published.report.apps = apps.collect();
        View {
            published: Arc::new(published),
            busy: BTreeMap::new(),
        }
    }

    fn rendered(ticks: &Ticks, view: &View) -> Arc<Rendered> {
        let fronts = || vec![api::Front::default()];
        ticks.rendered(view, AgentUse::default, fronts).unwrap()
    }

    /// Whatever is added to a message is in what is put together here.
    #[test]
    fn a_message_is_a_tick_with_all_its_fields() {
        let view = view(7, |_| ());
        let events = [event("<one>\n"), event("two")];
        let mut message = beginning(7, &events).unwrap().to_vec();
        message.extend_from_slice(&rendered(&Ticks::default(), &view).text);
        let message = String::from_utf8(message).unwrap();
        let data = message.strip_prefix("event: tick\nid: 7\ndata: ").unwrap();
        let data = data.strip_suffix("\n\n").unwrap();
        assert!(!data.contains('\n'), "{data}");
        let expected = api::Tick {
            status: convert::status(&view, AgentUse::default()),
            apps: convert::apps(&view),
            events: events.iter().map(convert::event).collect(),
            fronts: vec![api::Front::default()],
        };
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(data).unwrap(),
            serde_json::to_value(&expected).unwrap()
        );
    }

    #[test]
    fn as_many_messages_are_sent_as_were_asked_for() {
        let check = |every_ms: u64, expected: usize| {
            let (begin, every) = (Instant::now(), Duration::from_millis(every_ms));
            let mut due = None;
            let mut sent = Vec::new();
            for period in 0..600u64 {
                // Each is late by something else.
                let now = begin + Duration::from_millis(period * 100 + period * 7 % 13);
                if let Some(next) = due_after(due, now, every) {
                    (due, sent) = (Some(next), [sent, vec![now]].concat());
                }
            }
            let about = expected.abs_diff(sent.len()) <= 1;
            assert!(about, "{} in a minute of every {every_ms} ms", sent.len());
            for two in sent.windows(2) {
                assert!(two[1] - two[0] >= every / 2, "every {every_ms} ms");
            }
        };
        check(0, 600);
        check(100, 600);
        check(250, 240);
        check(1000, 60);
        check(60_000, 1);
        // Nobody is told all at once what was missed while nothing came.
        let (begin, every) = (Instant::now(), Duration::from_secs(1));
        let late = begin + Duration::from_secs(100);
        let next = due_after(Some(begin), late, every).unwrap();
        assert_eq!(due_after(Some(next), late + every / 3, every), None);
    }

    #[test]
    fn all_who_follow_share_one_text_of_a_period() {
        let ticks = Ticks::default();
        let first = view(1, |_| ());
        let one = rendered(&ticks, &first);
        assert!(Arc::ptr_eq(&one, &rendered(&ticks, &first)));
        let never = || -> AgentUse { unreachable!("it was rendered") };
        ticks.rendered(&first, never, Vec::new).unwrap();
        let other = rendered(&ticks, &view(1, |_| ()));
        assert!(!Arc::ptr_eq(&one, &other), "another report of one number");
    }

    #[test]
    fn what_is_taken_over_from_the_period_before_is_what_would_be_rendered() {
        let ticks = Ticks::default();
        let add = |name: &'static str| {
            move |apps: &mut BTreeMap<String, AppReport>| {
                let app = apps["web"].clone();
                apps.insert(name.to_owned(), app);
            }
        };
        let views = [
            view(1, |_| ()),
            view(2, |apps| apps.get_mut("web").unwrap().starts = 9),
            view(3, add("alone")),
            view(4, add("zeta")),
            view(5, |apps| drop(apps.remove("crunch"))),
            view(6, |apps| apps.clear()),
            view(7, add("web2")),
        ];
        for view in views {
            let shared = rendered(&ticks, &view);
            let anew = rendered(&Ticks::default(), &view);
            assert_eq!(shared.text, anew.text);
            assert_eq!(shared.apps, anew.apps);
        }
    }
}
