//! The address of an application that goes where it goes.
//!
//! It is on the host that owns the application: taken away once that stands still, put there before it goes on or
//! begins. So while a move is under way it is on no host, or quiet on the target, where nobody knows of it.

use forebay_core::app::AppId;
use forebay_core::fleet::mobility::{Mobility, ServiceAddress};

use crate::fleet::moves::{Apps, Trouble};

/// What a target has to have of it.
const ADDRESS: &str = "address";

/// What a target has to have of an application's address; none where it has none.
pub(super) fn need(mobility: &Mobility) -> Option<String> {
    mobility.address.as_ref().map(named)
}

pub(super) fn named(address: &ServiceAddress) -> String {
    format!("{ADDRESS}:{address}")
}

/// Whether a target has what is needed of an address; none where it is no need of one.
pub(super) fn has(
    app: &AppId,
    apps: &dyn Apps,
    (kind, what): (&str, &str),
) -> Option<Result<(), String>> {
    if kind != ADDRESS {
        return None;
    }
    let own = apps.app(app).and_then(|app| app.mobility?.address);
    if own.map(|own| own.to_string()).as_deref() != Some(what) {
        return Some(Err(format!(
            "{app} has not `move.address` = \"{what}\" on the target; write the same on all hosts"
        )));
    }
    let could = apps.could_answer(app);
    Some(could.map_err(|why| format!("on the target: {why}")))
}

/// It goes on, and has to be reached; where that cannot be, whoever keeps it tries again.
pub(super) fn answer(apps: &dyn Apps, app: &AppId) {
    if let Err(trouble) = apps.answer(app) {
        apps.warn(app, format!("goes on without its address: {trouble}"));
    }
}

/// Only what is here goes along.
pub(super) fn is_here(apps: &dyn Apps, app: &AppId) -> Result<(), Trouble> {
    match apps.answers(app) {
        true => Ok(()),
        false => apps.answer(app),
    }
}
