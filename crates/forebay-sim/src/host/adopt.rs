//! Processes that come from other hosts.

use forebay_core::app::App;

use super::{SimHost, Started};

impl SimHost {
    /// A process that came from elsewhere is the app's program.
    pub(super) fn adopt(&mut self, app: &App, pid: u32) -> Result<(), String> {
        self.bind(app);
        let running = self.apps[&app.id].started.as_ref();
        let running = running.filter(|started| started.ending.is_none());
        if let Some(started) = running {
            return match started.pid == pid {
                true => Ok(()),
                false => Err("it runs already".to_owned()),
            };
        }
        self.enter(&app.id, &[pid])?;
        if let Some(app) = self.apps.get_mut(&app.id) {
            app.started = Some(Started { pid, ending: None });
        }
        Ok(())
    }
}
