//! Hears of every change, and reads everything again after anything may have been missed.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Event, EventType, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use forebay_core::app::AppId;
use forebay_core::fleet::HostName;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::super::{CommandId, ErrorKind, REQUEST_MAX, View, now};
use super::connection::{Lent, deadline, trouble};
use super::{
    ANSWER_BYTES_MAX, Failed, Shared, command, name, readable, records, refused, rest, revision,
};

/// Between two attempts: at first, and at most. Doubles, and is spread, so that a fleet does not come
/// back all at once.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Follows for as long as somebody listens.
pub(super) async fn follow(shared: Arc<Shared>, host: HostName, tell: watch::Sender<View>) {
    let mut pause = PAUSE_MIN;
    loop {
        let failed = tokio::select! {
            () = tell.closed() => return,
            failed = once(&shared, &host, &tell, &mut pause) => failed,
        };
        let place = match failed.endpoint {
            Some(endpoint) => format!("etcd at {endpoint}: "),
            None => String::new(),
        };
        let (ErrorKind::Refused(why) | ErrorKind::Unknown(why)) = failed.kind;
        tell.send_modify(|view| {
            let since = view.lost.take().map_or_else(now, |(since, _)| since);
            view.lost = Some((since, format!("{place}{why}")));
        });
        tokio::select! {
            () = tell.closed() => return,
            () = sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Reads everything, and then hears of changes until something goes wrong.
async fn once(
    shared: &Shared,
    host: &HostName,
    tell: &watch::Sender<View>,
    pause: &mut Duration,
) -> Failed {
    let mut turns = shared.connection.turns();
    let lent = match shared.connection.client(deadline()).await {
        Ok(lent) => lent,
        Err(trouble) => return trouble.into(),
    };
    let failed = match listen(shared, host, &lent, tell, pause).await {
        Ok(stream) => tokio::select! {
            failed = hear(shared, host, &lent, stream, tell) => failed,
            _ = turns.changed() => return Failed {
                endpoint: Some(lent.endpoint),
                kind: ErrorKind::Unknown("it did not answer".to_owned()),
            },
        },
        Err(failed) => failed,
    };
    // By the same connection it would be silent again.
    if matches!(failed.kind, ErrorKind::Unknown(_)) {
        shared.connection.give_up(&lent).await;
    }
    failed
}

/// Reads everything, and asks to hear of what changes from then on.
async fn listen(
    shared: &Shared,
    host: &HostName,
    lent: &Lent,
    tell: &watch::Sender<View>,
    pause: &mut Duration,
) -> Result<WatchStream, Failed> {
    let (apps, commands) = (shared.apps(), shared.commands(host));
    let read_at = {
        let all = || Some(GetOptions::new().with_prefix());
        // One transaction, so that both are of one revision.
        let txn = Txn::new().and_then([
            TxnOp::get(apps.as_str(), all()),
            TxnOp::get(commands.as_str(), all()),
        ]);
        let mut kv = lent
            .client
            .kv_client()
            .max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = bounded(lent, kv.txn(txn)).await?;
        let found: Vec<Vec<KeyValue>> = answer
            .op_responses()
            .into_iter()
            .map(|answer| match answer {
                TxnOpResponse::Get(mut found) => found.take_kvs(),
                _ => Vec::new(),
            })
            .collect();
        let [found_apps, found_commands] = &found[..] else {
            return Err(refused("etcd answered something else than it was asked"));
        };
        let (read, unreadable) = records(found_apps, &apps);
        // As they were asked for: in their names are the clocks of whoever asked.
        let mut waiting: Vec<&KeyValue> = found_commands.iter().collect();
        waiting.sort_by_key(|found| found.create_revision());
        let waiting = waiting.into_iter();
        let waiting = waiting.map(|found| (CommandId(rest(found, &commands)), command(found)));
        let waiting = waiting.collect();
        let revision = revision(answer.header())?;
        let view = View {
            revision,
            records: Some(Arc::new(read)),
            unreadable: Arc::new(unreadable),
            commands: Arc::new(waiting),
            lost: tell.borrow().lost.clone(),
        };
        tell.send_replace(view);
        revision
    };
    let from = || {
        let options = WatchOptions::new().with_prefix();
        Some(options.with_start_revision(read_at + 1))
    };
    let mut client: Client = lent.client.clone();
    let mut stream = bounded(lent, client.watch(apps, from())).await?;
    bounded(lent, stream.watch(commands, from())).await?;
    *pause = PAUSE_MIN;
    tell.send_modify(|view| view.lost = None);
    Ok(stream)
}

async fn bounded<T>(
    lent: &Lent,
    asked: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failed> {
    match timeout(REQUEST_MAX, asked).await {
        Ok(answer) => answer.map_err(|error| trouble(&lent.endpoint, &error).into()),
        Err(_) => Err(Failed {
            endpoint: Some(lent.endpoint.clone()),
            kind: ErrorKind::Unknown("no answer in time".to_owned()),
        }),
    }
}

/// Hears of changes until something goes wrong.
async fn hear(
    shared: &Shared,
    host: &HostName,
    lent: &Lent,
    mut stream: WatchStream,
    tell: &watch::Sender<View>,
) -> Failed {
    let at = |kind| Failed {
        endpoint: Some(lent.endpoint.clone()),
        kind,
    };
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return at(ErrorKind::Unknown("the connection ended".to_owned())),
            Err(error) => return trouble(&lent.endpoint, &error).into(),
        };
        if message.canceled() {
            // What is past was compacted, or the member lost the others: everything is read again.
            let why = match message.cancel_reason() {
                "" => "it stopped telling of changes",
                why => why,
            };
            return at(ErrorKind::Unknown(why.to_owned()));
        }
        if message.events().is_empty() {
            continue;
        }
        let mut view = tell.borrow().clone();
        for event in message.events() {
            take_in(shared, host, &mut view, event);
        }
        tell.send_replace(view);
    }
}

fn take_in(shared: &Shared, host: &HostName, view: &mut View, event: &Event) {
    let Some(found) = event.kv() else {
        return;
    };
    let is_there = event.event_type() == EventType::Put;
    let commands = shared.commands(host);
    if found.key().starts_with(commands.as_bytes()) {
        let id = CommandId(rest(found, &commands));
        let known = Arc::make_mut(&mut view.commands);
        let at = known.iter().position(|(other, _)| *other == id);
        match (is_there, at) {
            (true, Some(at)) => known[at].1 = command(found),
            // It is heard of in the order in which it was asked for.
            (true, None) => known.push((id, command(found))),
            (false, Some(at)) => _ = known.remove(at),
            (false, None) => {}
        }
    } else {
        let apps = shared.apps();
        // Of records alone: the news of commands may be ahead of theirs.
        view.revision = view.revision.max(found.mod_revision());
        let known = Arc::make_mut(view.records.get_or_insert_default());
        let unreadable = Arc::make_mut(&mut view.unreadable);
        let key = String::from_utf8_lossy(found.key());
        unreadable.remove(&*key);
        // What was there before is so no longer, whatever is.
        if let Ok(app) = name::<AppId>(found, &apps) {
            known.remove(&app);
        }
        match is_there.then(|| readable(found, &apps)) {
            Some(Ok((app, record))) => _ = known.insert(app, record),
            Some(Err(why)) => _ = unreadable.insert(key.into_owned(), why),
            None => {}
        }
    }
}
