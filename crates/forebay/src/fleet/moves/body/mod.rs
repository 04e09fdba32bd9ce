//! What moves. Each way to move is a [`Leaving`] on the source and a [`Coming`] on the target.

pub(super) mod checkpoint;
mod files;
mod handoff;
mod luggage;
pub(super) mod restart;
mod staged;

use std::path::Path;
use std::sync::Arc;

use forebay_core::app::App;
use forebay_core::fleet::mobility::Way;

use super::{Apps, Coming, Leaving};

/// What of an application leaves this host.
///
/// # Errors
/// There is nothing here that moves it so: why, and what to do.
pub(super) fn leaving(app: &App, apps: &Arc<dyn Apps>) -> Result<Box<dyn Leaving>, String> {
    let (mobility, way) = way(app)?;
    match way {
        Way::Restart => Ok(Box::new(restart::Leaves::new(
            app.id.clone(),
            luggage::Leaves::new(app.id.clone(), mobility.files.clone()),
            Arc::clone(apps),
        ))),
        Way::Handoff => Ok(Box::new(handoff::Leaves::new(
            app.id.clone(),
            Arc::clone(apps),
        ))),
        Way::Checkpoint => Ok(Box::new(checkpoint::leaves::Leaves::new(
            app.id.clone(),
            mobility.connections,
            luggage::Leaves::summed(app.id.clone(), mobility.files.clone()),
            Arc::clone(apps),
        ))),
    }
}

/// What of an application comes to this host.
///
/// # Errors
/// There is nothing here that takes it in so: why, and what to do.
pub(super) fn coming(
    app: &App,
    apps: &Arc<dyn Apps>,
    state_dir: &Path,
) -> Result<Box<dyn Coming>, String> {
    let (mobility, way) = way(app)?;
    match way {
        Way::Restart => Ok(Box::new(restart::Comes::new(
            app,
            luggage::Comes::new(&app.id, &mobility.files, state_dir),
            Arc::clone(apps),
        ))),
        Way::Handoff => Ok(Box::new(handoff::Comes::new(
            app.id.clone(),
            Arc::clone(apps),
        ))),
        Way::Checkpoint => Ok(Box::new(checkpoint::comes::Comes::new(
            app,
            mobility.connections,
            luggage::Comes::new(&app.id, &mobility.files, state_dir),
            Arc::clone(apps),
        ))),
    }
}

fn way(app: &App) -> Result<(&forebay_core::fleet::mobility::Mobility, Way), String> {
    let mobility = app.mobility.as_ref().ok_or_else(|| {
        format!(
            "{} is pinned to its host; give it `move = {{ mode = \"restart\" }}` on all hosts that it may \
             run on",
            app.id
        )
    })?;
    Ok((mobility, mobility.way))
}
