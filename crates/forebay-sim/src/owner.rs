//! Managers that own groups: they have done what they are asked when they are asked again.

use forebay_core::app::{AppId, Binding};
use forebay_core::slice::Setting;

use crate::host::SimHost;

impl SimHost {
    /// A manager that owns the group is asked now, and has done it when it is asked again.
    pub(crate) fn is_first_asked(&mut self, app: &AppId, setting: Setting) -> bool {
        let Some(app) = self.apps.get_mut(app) else {
            return false;
        };
        let managed = matches!(app.binding, Binding::Systemd(_) | Binding::Container(_));
        managed && app.asked.insert(setting.knob(), setting) != Some(setting)
    }
}
