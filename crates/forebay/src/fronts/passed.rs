//! Sockets that systemd opened and passed to the daemon, for the fronts that listen on them.
//!
//! The daemon keeps all of them open for as long as it runs, whether a front uses them or not: they
//! are systemd's, and a front may be configured later. It never accepts anybody itself.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use forebay_core::app::AppId;
use forebay_core::report::EventKind;
use forebay_host::activation;
use forebay_shadow::listen::{Lender, Listen};

use crate::config::{Config, lender};
use crate::control::TellOf;

/// All that systemd passed.
#[derive(Debug)]
pub(crate) struct Passed(Vec<activation::Passed>);

impl Passed {
    /// Takes what was passed to this process, before anything else is opened.
    ///
    /// # Errors
    /// When what the environment says of it is not so.
    pub(crate) fn take() -> Result<Self, String> {
        let taken = activation::take().map_err(|error| error.explain())?;
        Ok(Self(taken))
    }

    /// Where fronts will ask; whoever starts them opens it before.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn lender(state_dir: &Path) -> Result<Lender, String> {
        let path = lender(state_dir);
        Lender::open(&path).map_err(|error| {
            let path = path.display();
            format!("listen on {path}: {error}; fronts ask there for sockets of systemd's")
        })
    }

    /// Says which fronts lack their sockets, and which sockets nobody uses; then gives fronts what
    /// they ask for.
    pub(crate) fn lend(self, lender: Lender, config: &Config, tell: &TellOf) {
        for (front, why) in self.lacks(config) {
            tracing::error!(%front, why, "it cannot be started with its sockets");
            tell(&front, EventKind::Shadow, why);
        }
        for name in self.unused(config) {
            tracing::warn!(name, "systemd passed a socket that no front listens on");
        }
        tokio::spawn(async move {
            if let Err(error) = lender.serve(|name| self.find(name)).await {
                tracing::error!(%error, "no front gets the sockets of systemd");
            }
        });
    }

    /// The sockets of a name.
    fn find(&self, name: &str) -> Result<Vec<BorrowedFd<'_>>, String> {
        let named: Vec<_> = self.0.iter().filter(|one| one.name == name).collect();
        if named.is_empty() {
            let names: BTreeSet<&str> = self.0.iter().map(|one| one.name.as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            let passed = match names.as_slice() {
                [] => "none at all".to_owned(),
                names => format!("only {}", names.join(", ")),
            };
            return Err(format!(
                "systemd passed no socket `{name}` to the daemon, and {passed}; give a socket unit \
                 FileDescriptorName={name} and the daemon's own Service=, and restart both"
            ));
        }
        let usable = named.iter().map(|one| {
            let checked = one.check();
            checked.map_err(|why| format!("systemd passed `{name}`, and {why}"))
        });
        usable.collect::<Result<(), String>>()?;
        Ok(named.into_iter().map(|one| one.as_fd()).collect())
    }

    fn lacks(&self, config: &Config) -> Vec<(AppId, String)> {
        let mut lacks = Vec::new();
        for front in config.fronts.values() {
            for listen in &front.listen {
                if let Listen::Passed(name) = listen
                    && let Err(why) = self.find(name)
                {
                    let why = format!("it is to listen on {listen}: {why}");
                    lacks.push((front.app.clone(), why));
                }
            }
        }
        lacks
    }

    fn unused(&self, config: &Config) -> BTreeSet<&str> {
        let wanted = |name: &str| {
            let mut listen = config.fronts.values().flat_map(|front| &front.listen);
            listen.any(|listen| matches!(listen, Listen::Passed(passed) if passed == name))
        };
        let names = self.0.iter().map(|one| one.name.as_str());
        names.filter(|name| !wanted(name)).collect()
    }
}
