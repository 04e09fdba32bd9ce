//! What a group's memory consists of: memory.stat of either version.

use forebay_core::units::Bytes;
use forebay_core::working_set::MemoryStat;

use crate::files::keyed;
use crate::mounts::Version;

/// Reads memory.stat. v1 counts a group alone and, after `total_`, with the groups inside it.
/// Kernels before 5.9 count file refaults only, under another name.
pub(crate) fn parse_stat(text: &str, version: Version) -> Option<MemoryStat> {
    let prefix = match version {
        Version::V1 => "total_",
        Version::V2 => "",
    };
    let number = |key: &str| keyed(text, &format!("{prefix}{key}"));
    let bytes = |key: &str| number(key).map(Bytes);
    let refaults = match number("workingset_refault_file") {
        Some(file) => Some(file.saturating_add(number("workingset_refault_anon").unwrap_or(0))),
        None => number("workingset_refault"),
    };
    Some(MemoryStat {
        active_anon: bytes("active_anon")?,
        inactive_anon: bytes("inactive_anon")?,
        active_file: bytes("active_file")?,
        inactive_file: bytes("inactive_file")?,
        unevictable: bytes("unevictable")?,
        refaults,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: &str =
        "inactive_anon 1\nactive_anon 2\ninactive_file 3\nactive_file 4\nunevictable 5\n";

    #[test]
    fn both_versions_are_understood() {
        let check = |text: &str, version, file: u64, refaults| {
            let stat = parse_stat(text, version).unwrap();
            assert_eq!(stat.inactive_file, Bytes(file));
            assert_eq!(stat.refaults, refaults);
        };
        let v2 = format!("anon 9\n{LISTS}workingset_refault_anon 6\nworkingset_refault_file 7\n");
        check(&v2, Version::V2, 3, Some(13));
        check(LISTS, Version::V2, 3, None);
        let old = format!("{LISTS}workingset_refault 8\n");
        check(&old, Version::V2, 3, Some(8));
        let total: String = LISTS
            .lines()
            .map(|line| format!("total_{line}0\n"))
            .collect();
        let v1 =
            format!("{LISTS}workingset_refault_file 1\n{total}total_workingset_refault_file 2\n");
        check(&v1, Version::V1, 30, Some(2));
        assert_eq!(parse_stat("cache 1\n", Version::V1), None);
    }
}
