//! What the simulated host has of Forebay's.

use forebay_core::app::AppId;

use crate::host::SimHost;

impl SimHost {
    /// Whether the ledger has anything of this app, or its group is Forebay's.
    #[must_use]
    pub fn has_record_of(&self, app: &AppId) -> bool {
        self.apps.get(app).is_some_and(|app| {
            let group = self.groups.get(&app.group);
            !app.originals.is_empty() || group.is_some_and(|group| !group.foreign)
        })
    }

    /// Everything that Forebay did and that is not undone.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        let mut left = self.interrupts.left_behind();
        let models = self.cost_models.in_force.keys();
        left.extend(models.map(|device| format!("cost model of {device}")));
        let watched = self.memory_watch.apps.iter();
        left.extend(watched.map(|app| format!("memory of {app} is watched")));
        for (path, group) in &self.groups {
            if !group.foreign {
                left.push(format!("group {path}"));
                continue;
            }
            if group.frozen {
                left.push(format!("{path} is frozen"));
            }
            for knob in group.written() {
                let is = group.read(knob, &self.topology);
                let was = group.read_outside(knob, &self.topology);
                if is != was {
                    left.push(format!("{path}: {is}, was {was}"));
                }
            }
        }
        for (pid, task) in &self.tasks {
            let places = task.children.iter().map(|c| (c.pid, &c.group, &c.home));
            for (pid, group, home) in places.chain([(*pid, &task.group, &task.home)]) {
                if group != home && self.groups.contains_key(home) {
                    left.push(format!("process {pid} in `{group}`, was in `{home}`"));
                }
            }
        }
        let recorded = self
            .apps
            .iter()
            .filter(|(_, app)| !app.originals.is_empty());
        left.extend(recorded.map(|(id, _)| format!("ledger entries of {id}")));
        left
    }
}
