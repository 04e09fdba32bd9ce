//! What a front listens on, opened or taken from whoever has it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use super::{Error, Plan, failed};
use crate::listen::{self, Listen, Listener, Passed};
use crate::stream::Address;

/// The sockets that systemd opened for the front, which the daemon has.
pub(super) async fn passed(plan: &Plan) -> Result<Passed, Error> {
    const REMEDY: &str = "let the daemon start the front";
    let lender = plan.lender.as_deref();
    let object = lender.map_or_else(String::new, |path| path.display().to_string());
    let asked = listen::ask(lender, &plan.listen).await;
    asked.map_err(failed("ask for the sockets of systemd at", object, REMEDY))
}

/// Everything that clients connect to: what is passed, what a process before has, and what nobody
/// has opened yet.
pub(super) fn listeners(
    plan: &Plan,
    mut passed: Passed,
    mut taken: BTreeMap<Listen, Vec<OwnedFd>>,
) -> Result<Vec<(Listen, Listener)>, Error> {
    const REMEDY: &str = "start the daemon by systemd, with a socket unit of that name";
    let mut listeners = Vec::new();
    for listen in &plan.listen {
        let before = taken.remove(listen).unwrap_or_default();
        match listen {
            Listen::At(address) => {
                let listener = match (before.into_iter().next(), address) {
                    (Some(socket), Address::Tcp(_)) => Listener::Tcp(socket.into()),
                    (Some(socket), Address::Unix(_)) => Listener::Unix(socket.into()),
                    (None, _) => Listener::bind(address)?,
                };
                listeners.push((listen.clone(), listener));
            }
            Listen::Passed(name) => {
                let failed = |error| failed("listen on", listen, REMEDY)(error);
                // systemd may have opened another one since; a daemon that it did not start has none.
                let sockets = match passed.remove(name) {
                    Some(Ok(sockets)) => sockets,
                    Some(Err(_)) | None if !before.is_empty() => before,
                    Some(Err(why)) => return Err(failed(io::Error::other(why))),
                    None => return Err(failed(io::ErrorKind::NotFound.into())),
                };
                for socket in sockets {
                    let listener = Listener::shared(socket).map_err(failed)?;
                    listeners.push((listen.clone(), listener));
                }
            }
        }
    }
    Ok(listeners)
}
