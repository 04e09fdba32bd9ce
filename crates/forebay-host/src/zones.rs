//! Time zones as the host has them: /usr/share/zoneinfo and /etc/localtime.

use std::path::{Component, Path, PathBuf};

use jiff::tz::TimeZone;

use crate::regular;

/// Where zones are, below the root.
const ZONES: &str = "usr/share/zoneinfo";
/// The longest file that is read, in bytes; the longest there is has about 4 KiB.
const ZONE_BYTES_MAX: u64 = 1 << 16;

/// The zones of one host.
#[derive(Debug, Clone)]
pub struct ZoneFiles {
    root: PathBuf,
}

impl ZoneFiles {
    /// Those below `root`, which is `/` outside tests.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The zone of a name such as `Europe/Berlin`. None where the host has no such zone.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<TimeZone> {
        if name == "UTC" {
            return Some(TimeZone::UTC);
        }
        let path = Path::new(name);
        let is_plain = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !is_plain {
            return None;
        }
        read(&self.root.join(ZONES).join(path), name)
    }

    /// The host's own, and UTC where it has none, as for everybody else.
    #[must_use]
    pub fn local(&self) -> TimeZone {
        let file = self.root.join("etc/localtime");
        let target = std::fs::read_link(&file).ok();
        let name = target.as_deref().and_then(Path::to_str).and_then(|path| {
            let (_, name) = path.split_once("zoneinfo/")?;
            Some(name)
        });
        let named = name.and_then(|name| self.named(name));
        named
            .or_else(|| read(&file, name.unwrap_or_default()))
            .unwrap_or(TimeZone::UTC)
    }
}

fn read(path: &Path, name: &str) -> Option<TimeZone> {
    let (bytes, _) = regular::read(path, ZONE_BYTES_MAX).ok()?;
    TimeZone::tzif(name, &bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A zone file of version 2 that has no transitions, only this rule.
    fn zone_file(rule: &str) -> Vec<u8> {
        let header = |version: &[u8]| {
            let mut bytes = b"TZif".to_vec();
            bytes.extend(version);
            bytes.extend([0; 15]);
            for count in [0_u32, 0, 0, 0, 1, 4] {
                bytes.extend(count.to_be_bytes());
            }
            bytes.extend([0, 0, 0, 0, 0, 0]);
            bytes.extend(b"UTC\0");
            bytes
        };
        let mut bytes = header(b"2");
        bytes.extend(header(b"2"));
        bytes.extend(format!("\n{rule}\n").bytes());
        bytes
    }

    #[test]
    fn zones_are_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let zones = ZoneFiles::new(dir.path());
        assert_eq!(zones.local(), TimeZone::UTC);
        let at = dir.path().join(ZONES).join("Europe");
        fs::create_dir_all(&at).unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(at.join("Berlin"), zone_file("CET-1CEST,M3.5.0,M10.5.0/3")).unwrap();
        fs::write(at.join("Broken"), "no zone").unwrap();
        let berlin = zones.named("Europe/Berlin").unwrap();
        assert_eq!(berlin.iana_name(), Some("Europe/Berlin"));
        let summer = "2024-07-01T12:00:00Z".parse().unwrap();
        assert_eq!(berlin.to_offset(summer).seconds(), 7200);
        for name in [
            "",
            "/etc/passwd",
            "../Berlin",
            "Europe",
            "Europe/Broken",
            "Europe/None",
        ] {
            assert_eq!(zones.named(name), None, "{name}");
        }
        symlink(
            "/usr/share/zoneinfo/Europe/Berlin",
            dir.path().join("etc/localtime"),
        )
        .unwrap();
        assert_eq!(zones.local(), berlin);
    }
}
