//! What moves. Each way to move is a [`Leaving`] on the source and a [`Coming`] on the target.

mod address;
pub(super) mod checkpoint;
mod files;
mod handoff;
mod luggage;
pub(super) mod restart;
mod staged;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use forebay_core::app::{App, Binding};
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::taking::Taking;
use sha2::{Digest as _, Sha256};

use super::{Apps, Coming, Leaving};

/// So much of a checksum tells two applications of one name apart.
const LIKE_BYTES: usize = 8;

/// What of an application leaves this host.
///
/// # Errors
/// There is nothing here that moves it so: why, and what to do.
pub(super) fn leaving(app: &App, apps: &Arc<dyn Apps>) -> Result<Box<dyn Leaving>, String> {
    let (mobility, way) = way(app)?;
    match way {
        Way::Restart => Ok(Box::new(restart::Leaves::new(
            app.id.clone(),
            address::need(mobility),
            luggage::Leaves::new(app.id.clone(), mobility.files.clone()),
            Arc::clone(apps),
        ))),
        Way::Handoff => Ok(Box::new(handoff::Leaves::new(
            app.id.clone(),
            Arc::clone(apps),
        ))),
        Way::Checkpoint => Ok(Box::new(checkpoint::leaves::Leaves::new(
            app.id.clone(),
            (
                mobility.connections,
                mobility.memory,
                mobility.address.clone(),
            ),
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
            (
                mobility.connections,
                mobility.memory,
                mobility.address.clone(),
            ),
            luggage::Comes::new(&app.id, &mobility.files, state_dir),
            Arc::clone(apps),
        ))),
    }
}

/// What of an application has to be the same on two hosts for it to move between them.
///
/// # Errors
/// It does not move: why, and what to do.
pub(super) fn like(app: &App) -> Result<Taking, String> {
    let (mobility, way) = way(app)?;
    // An instance of what is handed over is begun on each host, with words of its own.
    let like = match (&app.binding, way) {
        (Binding::Exec(exec), Way::Restart | Way::Checkpoint) => {
            let mut all = luggage::places(&mobility.files);
            all.extend(restart::needs(exec));
            all.extend(address::need(mobility));
            if way == Way::Checkpoint {
                all.insert(checkpoint::connections(mobility.connections));
                all.extend(checkpoint::memory(mobility.memory));
            }
            let mut sum = Sha256::new();
            for one in &all {
                sum.update(one.len().to_le_bytes());
                sum.update(one);
            }
            let sum = sum.finalize();
            let start = sum.iter().take(LIKE_BYTES);
            start.map(|byte| format!("{byte:02x}")).collect()
        }
        _ => String::new(),
    };
    Ok(Taking::new(way, like))
}

/// How an application would be taken in here, as far as that can be told before anybody asks.
///
/// # Errors
/// It does not move: why, and what to do.
pub(super) fn taking(
    app: &App,
    apps: &Arc<dyn Apps>,
    (state_dir, criu): (&Path, &Result<(), String>),
) -> Result<Taking, String> {
    let own = like(app)?;
    let (mobility, way) = way(app)?;
    let needs = match &app.binding {
        Binding::Exec(exec) => {
            let mut needs = luggage::places(&mobility.files);
            needs.extend(restart::needs(exec));
            needs.extend(address::need(mobility));
            needs
        }
        _ => BTreeSet::new(),
    };
    let fits = |needs| coming(app, apps, state_dir).and_then(|body| body.fits(needs));
    match way {
        Way::Restart => Ok(Taking {
            obstacle: fits(&needs).err(),
            ..own
        }),
        Way::Checkpoint => Ok(Taking {
            obstacle: criu.clone().and_then(|()| fits(&needs)).err(),
            ..own
        }),
        Way::Handoff => {
            let service = apps.service();
            let stand = service.and_then(|service| {
                let stand = service.stand(&app.id).ok().flatten();
                stand.map(|stand| (service.here(), stand))
            });
            Ok(match stand {
                None => own,
                Some((here, stand)) => Taking {
                    has_front: true,
                    obstacle: match stand.serves == here {
                        true => None,
                        false => stand.can_take(&app.id, &here).err(),
                    },
                    ..own
                },
            })
        }
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
