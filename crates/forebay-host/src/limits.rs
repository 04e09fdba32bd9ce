//! Limits of block devices that a group has, and had before Forebay.

use std::collections::BTreeSet;
use std::path::Path;

use forebay_core::app::{App, Device, IoMax};
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_core::units::Limit;

use crate::files::read_text;
use crate::host::Group;
use crate::knobs::{self, PERIOD_US_DEFAULT, Way, Ways};
use crate::ledger::{AppRecord, Spot};
use crate::owner::{Values, systemd};

/// Devices of a group whose limits are followed.
const DEVICES_MAX: usize = 64;
const ANY: Device = Device { major: 0, minor: 0 };
/// Each kind of knob that is of a device.
const KINDS: [fn(Device) -> Knob; 2] = [Knob::IoMax, Knob::IoLatency];

/// Knobs that are set only where the configuration asks for them, and not of single devices.
const OPTIONAL: [Knob; 2] = [Knob::CpuUclampMin, Knob::CpuUclampMax];

/// What an app's group has set for single block devices, or is to have by the user's wish.
pub(crate) fn of_devices(ways: &Ways, group: &Group, app: &App) -> BTreeSet<Knob> {
    let mut knobs: BTreeSet<Knob> = app.io_max.keys().copied().map(Knob::IoMax).collect();
    for one in KINDS {
        if let Some((way, dir)) = place(ways, group, one(ANY)) {
            for file in &way.files {
                let text = read_text(&dir.join(file)).unwrap_or_default();
                knobs.extend(named(&text).map(one));
            }
        }
    }
    knobs
}

/// What a group that is not Forebay's had before Forebay wrote to it: the ledger knows it of
/// what was written, by file or, in `owned`, by the property of its manager, and the files know
/// the rest.
pub(crate) fn before(
    ways: &Ways,
    group: &Group,
    app: &App,
    record: Option<&AppRecord>,
    owned: &Values,
) -> Slice {
    let mut before = Slice::default();
    if !app.binding.is_of_others() {
        return before;
    }
    for knob in of_devices(ways, group, app).into_iter().chain(OPTIONAL) {
        let Some((way, dir)) = place(ways, group, knob) else {
            continue;
        };
        let original = |file: &&'static str| {
            let spot = Spot {
                file: dir.join(file),
                device: knob.device(),
            };
            let known =
                record.and_then(|record| record.originals.iter().find(|(known, _)| *known == spot));
            match known {
                Some((_, text)) => Some(text.clone()),
                None => {
                    let text = read_text(&spot.file).ok()?;
                    Some(knobs::cut(file, knob.device(), &text))
                }
            }
        };
        let texts: Option<Vec<String>> = way.files.iter().map(original).collect();
        let by_owner = systemd::limit_before(knob, owned);
        let by_file = || texts.and_then(|texts| knobs::parse(knob, way, &texts, PERIOD_US_DEFAULT));
        let setting = by_owner.or_else(by_file);
        match setting {
            None | Some(Setting::IoMax(_, IoMax::NONE) | Setting::IoLatency(_, Limit::Max)) => {}
            Some(setting) => before.set(setting),
        }
    }
    before
}

fn place<'a>(ways: &'a Ways, group: &'a Group, knob: Knob) -> Option<(&'a Way, &'a Path)> {
    let way = ways.of(knob)?;
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
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::time::Duration;

    use forebay_core::app::{Binding, Match};

    use super::*;
    use crate::app_meters::Meters;
    use crate::fixtures::{self, DEBIAN_13, HYBRID, Tree};
    use crate::owner::Value;

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
        let expected: Slice = [Setting::IoMax(device, owners)].into_iter().collect();
        assert_eq!(
            before(&ways, &group, &bound(), None, &Values::new()),
            expected
        );
        let (way, dir) = place(&ways, &group, Knob::IoMax(ANY)).unwrap();
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
        assert_eq!(
            before(&ways, &group, &bound(), Some(&record), &Values::new()),
            expected
        );
        let limited = of_devices(&ways, &group, &bound());
        assert_eq!(limited, [Knob::IoMax(device)].into());
    }

    #[test]
    fn a_target_of_the_owner_is_known_before_and_after_forebay_wrote() {
        let tree = Tree::unpack(DEBIAN_13);
        let dirs = tree.dirs();
        let dir = dirs[0].clone().unwrap();
        // Debian builds its kernels without it.
        let file = dir.join("io.latency");
        std::fs::write(&file, "253:0 target=5000\n").unwrap();
        let (ways, group) = group(&tree);
        let device: Device = "253:0".parse().unwrap();
        let owners = Setting::IoLatency(device, Limit::At(Duration::from_millis(5)));
        let is_owners = |before: Slice| before.get(owners.knob()) == Some(&owners);
        assert!(is_owners(before(
            &ways,
            &group,
            &bound(),
            None,
            &Values::new()
        )));
        let mut record = AppRecord::default();
        let spot = Spot {
            file: file.clone(),
            device: Some(device),
        };
        record
            .originals
            .push((spot, "253:0 target=5000".to_owned()));
        std::fs::write(&file, "253:0 target=2000\n").unwrap();
        assert!(is_owners(before(
            &ways,
            &group,
            &bound(),
            Some(&record),
            &Values::new()
        )));
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            before(&ways, &group, &bound(), None, &Values::new()).get(owners.knob()),
            None
        );
    }

    #[test]
    fn what_was_asked_of_a_manager_is_not_taken_for_its_own() {
        let tree = Tree::unpack(DEBIAN_13);
        let (ways, group) = group(&tree);
        let device: Device = "253:0".parse().unwrap();
        let before = |owned: &Values| {
            let before = before(&ways, &group, &bound(), None, owned);
            before.get(Knob::IoMax(device)).copied()
        };
        // The file has a limit; by the ledger it was Forebay that asked for it, where there was
        // none, or only another device's.
        assert!(before(&Values::new()).is_some());
        let rates = |rates: &[(&str, u64)]| -> Values {
            let rates = rates.iter().map(|(path, rate)| ((*path).to_owned(), *rate));
            let rates = Value::Rates(rates.collect());
            [("IOReadBandwidthMax".to_owned(), rates)].into()
        };
        assert_eq!(before(&rates(&[])), None);
        assert_eq!(before(&rates(&[("/dev/block/7:77", 5)])), None);
        let owners = IoMax {
            rbps: Limit::At(4096),
            ..IoMax::NONE
        };
        assert_eq!(
            before(&rates(&[("/dev/block/253:0", 4096)])),
            Some(Setting::IoMax(device, owners))
        );
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
        assert_eq!(
            before(&ways, &group, &ours, None, &Values::new()),
            Slice::default()
        );
    }

    #[test]
    fn v1_has_its_limits_in_four_files() {
        let tree = Tree::unpack(HYBRID);
        let (ways, group) = group(&tree);
        assert_eq!(
            before(&ways, &group, &bound(), None, &Values::new()),
            Slice::default()
        );
        let (way, dir) = place(&ways, &group, Knob::IoMax(ANY)).unwrap();
        std::fs::write(dir.join(way.files[3]), "254:0 77\n").unwrap();
        let owners = IoMax {
            wiops: Limit::At(77),
            ..IoMax::NONE
        };
        let device: Device = "254:0".parse().unwrap();
        let expected: Slice = [Setting::IoMax(device, owners)].into_iter().collect();
        assert_eq!(
            before(&ways, &group, &bound(), None, &Values::new()),
            expected
        );
    }
}
