//! Limits of block devices that a group has, and had before Forebay.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use forebay_core::app::{App, Device, IoMax};
use forebay_core::slice::{Knob, Setting};

use crate::files::read_text;
use crate::host::Group;
use crate::knobs::{self, PERIOD_US_DEFAULT, Way, Ways};
use crate::ledger::{AppRecord, Spot};

/// Devices of a group whose limits are followed.
const DEVICES_MAX: usize = 64;
const ANY: Knob = Knob::IoMax(Device { major: 0, minor: 0 });

/// The devices that an app's group has a limit for, or is to have by the user's wish.
pub(crate) fn limited(ways: &Ways, group: &Group, app: &App) -> BTreeSet<Device> {
    let mut devices: BTreeSet<Device> = app.io_max.keys().copied().collect();
    if let Some((way, dir)) = place(ways, group) {
        for file in &way.files {
            devices.extend(named(&read_text(&dir.join(file)).unwrap_or_default()));
        }
    }
    devices
}

/// What a group that is not Forebay's had before Forebay wrote to it: the ledger knows it of
/// what was written, and the files of the rest.
pub(crate) fn before(
    ways: &Ways,
    group: &Group,
    app: &App,
    record: Option<&AppRecord>,
) -> BTreeMap<Device, IoMax> {
    let place = place(ways, group).filter(|_| app.binding.is_of_others());
    let Some((way, dir)) = place else {
        return BTreeMap::new();
    };
    let mut before = BTreeMap::new();
    for device in limited(ways, group, app) {
        let original = |file: &&'static str| {
            let spot = Spot {
                file: dir.join(file),
                device: Some(device),
            };
            let known =
                record.and_then(|record| record.originals.iter().find(|(known, _)| *known == spot));
            match known {
                Some((_, text)) => Some(text.clone()),
                None => {
                    let text = read_text(&spot.file).ok()?;
                    Some(knobs::cut(file, Some(device), &text))
                }
            }
        };
        let texts: Option<Vec<String>> = way.files.iter().map(original).collect();
        let setting = texts
            .and_then(|texts| knobs::parse(Knob::IoMax(device), way, &texts, PERIOD_US_DEFAULT));
        if let Some(Setting::IoMax(device, max)) = setting
            && max != IoMax::NONE
        {
            before.insert(device, max);
        }
    }
    before
}

fn place<'a>(ways: &'a Ways, group: &'a Group) -> Option<(&'a Way, &'a Path)> {
    let way = ways.of(ANY)?;
    Some((way, group.dir(way.hierarchy)?))
}

/// The devices that a text has lines for.
fn named(text: &str) -> impl Iterator<Item = Device> + '_ {
    text.lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .take(DEVICES_MAX)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use forebay_core::app::{Binding, Match};
    use forebay_core::units::Limit;

    use super::*;
    use crate::fixtures::{self, DEBIAN_13, HYBRID, Tree};
    use crate::observe::Meters;

    fn group(tree: &Tree) -> (Ways, Group) {
        let dirs = tree.dirs();
        let ways = Ways::probe(&tree.hierarchies, |index| dirs.get(index)?.as_deref());
        let meters = Meters::open(&tree.hierarchies, &dirs);
        (ways, Group::new(dirs, meters))
    }

    fn bound() -> App {
        App {
            binding: Binding::Cgroup(PathBuf::from("fixture.web")),
            io_max: BTreeMap::new(),
            ..fixtures::app()
        }
    }

    #[test]
    fn an_owners_limit_is_known_before_and_after_forebay_wrote() {
        let tree = Tree::unpack(DEBIAN_13);
        let (ways, group) = group(&tree);
        let device: Device = "253:0".parse().unwrap();
        let owners = IoMax {
            rbps: Limit::At(1 << 20),
            ..IoMax::NONE
        };
        let expected = BTreeMap::from([(device, owners)]);
        assert_eq!(before(&ways, &group, &bound(), None), expected);
        let (way, dir) = place(&ways, &group).unwrap();
        let file = dir.join(way.files[0]);
        let text = std::fs::read_to_string(&file).unwrap();
        let spot = Spot {
            file: file.clone(),
            device: Some(device),
        };
        let mut record = AppRecord::default();
        record
            .originals
            .push((spot, knobs::cut("io.max", Some(device), &text)));
        std::fs::write(&file, "253:0 rbps=4096 wbps=max riops=max wiops=max\n").unwrap();
        assert_eq!(before(&ways, &group, &bound(), Some(&record)), expected);
        assert_eq!(limited(&ways, &group, &bound()), [device].into());
    }

    #[test]
    fn a_group_of_ours_had_nothing_before() {
        let tree = Tree::unpack(DEBIAN_13);
        let (ways, group) = group(&tree);
        let ours = App {
            binding: Binding::Match(Match {
                executable: Some("web".to_owned()),
                command_line: None,
            }),
            ..bound()
        };
        assert_eq!(before(&ways, &group, &ours, None), BTreeMap::new());
    }

    #[test]
    fn v1_has_its_limits_in_four_files() {
        let tree = Tree::unpack(HYBRID);
        let (ways, group) = group(&tree);
        assert_eq!(before(&ways, &group, &bound(), None), BTreeMap::new());
        let (way, dir) = place(&ways, &group).unwrap();
        std::fs::write(dir.join(way.files[3]), "254:0 77\n").unwrap();
        let owners = IoMax {
            wiops: Limit::At(77),
            ..IoMax::NONE
        };
        let device: Device = "254:0".parse().unwrap();
        let expected = BTreeMap::from([(device, owners)]);
        assert_eq!(before(&ways, &group, &bound(), None), expected);
    }
}
