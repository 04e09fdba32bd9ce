//! The areas of a process's memory, as `/proc/PID/maps` names them.

use std::fs;

use crate::error::HostError;

/// One area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Area {
    /// Its first address.
    pub(crate) start: u64,
    /// The first address behind it.
    pub(crate) end: u64,
    /// Whether what it writes there is its own.
    pub(crate) is_private: bool,
    /// Whether a file is behind it.
    pub(crate) is_file: bool,
    /// What the kernel calls it, or the file; often nothing.
    pub(crate) name: String,
}

impl Area {
    /// Whether CRIU leaves its pages to whoever restores the process; of the others it makes an image
    /// itself. The kernel's own areas are not restored, they are there.
    pub(crate) fn is_lazy(&self) -> bool {
        let is_kernels = ["[vdso]", "[vvar", "[vsyscall]", "[uprobes]"];
        self.is_private
            && !self.is_file
            && !is_kernels.iter().any(|name| self.name.starts_with(name))
    }
}

/// The areas of a process, by address.
pub(crate) fn read(pid: i32) -> Result<Vec<Area>, HostError> {
    let path = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&path).map_err(|e| HostError::io(format!("read {path}"), e))?;
    parse(&text).ok_or_else(|| {
        HostError::invalid(
            format!("read {path}: a line is none of an area"),
            "report this kernel's version",
        )
    })
}

fn parse(text: &str) -> Option<Vec<Area>> {
    text.lines().map(area).collect()
}

/// `7f0c0000-7f0c1000 rw-p 00000000 00:00 0    [heap]`
fn area(line: &str) -> Option<Area> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let (_, _, inode) = (words.next()?, words.next()?, words.next()?);
    Some(Area {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        is_private: rights.ends_with('p'),
        is_file: inode != "0",
        name: words.collect::<Vec<_>>().join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_told_apart() {
        let check = |line: &str, is_lazy: bool| {
            let areas = parse(line).unwrap();
            assert_eq!(areas[0].is_lazy(), is_lazy, "{line}");
            assert!(areas[0].start < areas[0].end);
        };
        check("559da000-559db000 rw-p 00000000 00:00 0   [heap]", true);
        check("559da000-559db000 ---p 00000000 00:00 0", true);
        check("559da000-559db000 rw-p 00000000 00:00 0 [anon:a b]", true);
        check(
            "559da000-559db000 rw-s 00000000 00:01 17 /dev/zero (deleted)",
            false,
        );
        check("559da000-559db000 rw-p 00000000 fe:00 17 /usr/bin/a", false);
        check(
            "7ffda000-7ffdb000 r--p 00000000 00:00 0 [vvar_vclock]",
            false,
        );
        check("7ffda000-7ffdb000 r-xp 00000000 00:00 0 [vdso]", false);
        assert_eq!(parse("559da000 rw-p"), None);
        assert_eq!(parse("x-y rw-p 0 0 0"), None);
    }
}
