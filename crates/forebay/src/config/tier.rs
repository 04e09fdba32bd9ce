//! Tiered directories: each by itself, and that no two share a place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forebay_core::app::AppId;
use forebay_core::units::Bytes;
use forebay_host::tier::TierPlace;

use super::error::{Findings, Problem};
use super::resolve::absolute_path;
use super::text::{At, Section};

/// Below this a file of some megabytes would hold its lease for minutes.
const BANDWIDTH_MIN: Bytes = Bytes(64 << 10);

/// Resolves all tiers. What is on which file system is found out when a tier is used.
pub(super) fn tiers(
    sections: Option<At<BTreeMap<String, Section>>>,
    findings: &mut Findings<'_>,
) -> BTreeMap<String, TierPlace> {
    let mut tiers: BTreeMap<String, TierPlace> = BTreeMap::new();
    for (name, section) in sections.map_or_else(BTreeMap::new, |v| v.value) {
        let (at, key) = (section.at, section.name.clone());
        if name.parse::<AppId>().is_err() {
            let problem = Problem::new(
                format!("`{name}` is not a name for a tier"),
                "use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit",
            );
            findings.add(at, key, problem);
            continue;
        }
        let Some(tier) = resolve(&name, section, findings) else {
            continue;
        };
        if let Some((what, other)) = tiers.values().find_map(|other| clash(&tier, other)) {
            let problem = Problem::new(
                format!("{} lies in a directory of tier `{other}`", what.display()),
                "give each tier directories of its own",
            );
            findings.add(at, key, problem);
            continue;
        }
        tiers.insert(name, tier);
    }
    tiers
}

fn resolve(name: &str, mut section: Section, findings: &mut Findings<'_>) -> Option<TierPlace> {
    let (at, refused) = (section.at, section.refused);
    let directory = absolute_path(&mut section, "directory", findings);
    let fast = absolute_path(&mut section, "fast", findings);
    let slow = absolute_path(&mut section, "slow", findings);
    let fast_size_max = section.take::<Bytes>("fast_size_max");
    let missing: Vec<&str> = [
        ("directory", directory.is_none()),
        ("fast", fast.is_none()),
        ("slow", slow.is_none()),
        ("fast_size_max", fast_size_max.is_none()),
    ]
    .into_iter()
    .filter_map(|(key, missing)| missing.then_some(key))
    .collect();
    let bandwidth_max = section.take::<Bytes>("bandwidth_max");
    if let Some(At { value, at }) = bandwidth_max
        && value < BANDWIDTH_MIN
    {
        let problem = Problem::new(
            format!("{value} in a second is too little to move a file in reasonable time"),
            format!("use at least {BANDWIDTH_MIN}"),
        );
        findings.add(at, section.key("bandwidth_max"), problem);
    }
    let volatile = section.take::<bool>("volatile").is_some_and(|v| v.value);
    match (directory, fast, slow, fast_size_max) {
        (Some(directory), Some(fast), Some(slow), Some(size)) => Some(TierPlace {
            name: name.to_owned(),
            directory,
            fast,
            slow,
            fast_size_max: size.value.0,
            bandwidth_max: bandwidth_max.map(|v| v.value.0),
            volatile,
        }),
        _ => {
            // What was refused has been said already.
            if !refused && missing.iter().all(|key| section.at(key).is_none()) {
                let problem = Problem::new(
                    format!("the tier lacks {}", missing.join(", ")),
                    "a tier needs directory, fast, slow and fast_size_max",
                );
                findings.add(at, section.name, problem);
            }
            None
        }
    }
}

/// A path of the one that lies in, or holds, one of the other's.
fn clash(tier: &TierPlace, other: &TierPlace) -> Option<(PathBuf, String)> {
    let paths = |tier: &TierPlace| [tier.directory.clone(), tier.fast.clone(), tier.slow.clone()];
    let meets = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
    paths(tier)
        .into_iter()
        .find(|path| paths(other).iter().any(|theirs| meets(path, theirs)))
        .map(|path| (path, other.name.clone()))
}
