//! What clients saw, as the fronts counted it, and how apps look.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::report::TickReport;
use forebay_core::snapshot::RunState;
use forebay_core::update::Pace;
use forebay_shadow::answers::Answers;
use forebay_shadow::stream::Address;
use tokio::net::{TcpStream, UnixStream};

use super::journal::{Counted, Was};
use super::plan;
use crate::fronts::Desk;

/// How long a connection to an app may take.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Counts as response times.
pub(super) fn pace(answers: &Answers) -> Pace {
    let ms = |part: f64| {
        answers
            .quantile(part)
            .map(|took| took.as_secs_f64() * 1000.0)
    };
    Pace {
        answers: answers.count(),
        errors: answers.errors(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        max_ms: ms(1.0),
    }
}

/// What all fronts have counted so far; those that cannot tell are left out.
pub(super) async fn counted(fronts: &Desk) -> BTreeMap<AppId, Counted> {
    let mut all = BTreeMap::new();
    for name in fronts.all().into_keys() {
        let answers = fronts.answered(name.as_str()).await;
        let counts = fronts.counts(name.as_str()).await;
        if let (Ok(answers), Ok(counts)) = (answers, counts) {
            let counted = Counted {
                answers,
                requests: counts.requests,
                held: counts.held,
                failed: counts.failed,
                unknown: counts.unknown,
            };
            all.insert(name, counted);
        }
    }
    all
}

/// What came between; none where the front is another process since.
pub(super) fn between(before: &Counted, after: &Counted) -> Option<Counted> {
    Some(Counted {
        answers: after.answers.since(&before.answers)?,
        requests: after.requests.checked_sub(before.requests)?,
        held: after.held.checked_sub(before.held)?,
        failed: after.failed.checked_sub(before.failed)?,
        unknown: after.unknown.checked_sub(before.unknown)?,
    })
}

/// What each front counts over this time.
pub(super) async fn counted_over(fronts: &Desk, over: Duration) -> BTreeMap<AppId, Counted> {
    let before = counted(fronts).await;
    tokio::time::sleep(over).await;
    let after = counted(fronts).await;
    let all = before
        .iter()
        .filter_map(|(name, before)| Some((name.clone(), between(before, after.get(name)?)?)));
    all.collect()
}

/// What clients of each front see over this time.
pub(super) async fn paces(fronts: &Desk, over: Duration) -> BTreeMap<AppId, Pace> {
    let all = counted_over(fronts, over).await.into_iter();
    all.map(|(name, counted)| (name, pace(&counted.answers)))
        .collect()
}

/// The front that an app serves behind.
pub(super) fn front_of(fronts: &Desk, app: &AppId) -> Option<AppId> {
    let fronts = fronts.all();
    let found = fronts.iter().find(|(_, known)| plan::serves(known, app));
    found.map(|(name, _)| name.clone())
}

/// Whether apps run, and whether those behind fronts take connections.
pub(super) async fn look(fronts: &Desk, report: &TickReport) -> BTreeMap<AppId, Was> {
    let fronts = fronts.all();
    let mut all = BTreeMap::new();
    for (id, app) in &report.apps {
        if id.as_str().starts_with(super::PREFIX) {
            continue;
        }
        let mut instances = fronts.values().flat_map(|known| &known.config.instances);
        let address = instances.find(|(instance, _)| instance == id);
        let address = address.map(|(_, address)| address);
        let was = Was {
            runs: app.state == RunState::Running,
            port: match address {
                Some(address) => Some(connects(address).await),
                None => None,
            },
        };
        all.insert(id.clone(), was);
    }
    all
}

async fn connects(address: &Address) -> bool {
    let connecting = async {
        match address {
            Address::Tcp(address) => TcpStream::connect(address).await.is_ok(),
            Address::Unix(path) => UnixStream::connect(Path::new(path)).await.is_ok(),
        }
    };
    tokio::time::timeout(CONNECT_MAX, connecting).await == Ok(true)
}
