//! What a kernel's file says of itself, without starting it.
//!
//! The layout is that of the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst).

use std::fs;
use std::path::Path;

use crate::error::HostError;

/// Where fields are.
const SETUP_SECTORS: usize = 0x1F1;
const PARAGRAPHS: usize = 0x1F4;
const MAGIC: usize = 0x202;
const VERSION_AT: usize = 0x20E;
/// A kernel's file is no larger.
const BYTES_MAX: u64 = 1 << 30;

/// A kernel's file that is whole as far as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its release, who built it, its version: as in /proc/version.
    pub words: String,
}

/// Looks at the file of a kernel; why it is damaged, where it is.
///
/// # Errors
/// When it cannot be read.
pub fn look(image: &Path) -> Result<Result<Said, String>, HostError> {
    let fail = |error| HostError::file("read", image, error);
    let bytes = fs::metadata(image).map_err(fail)?.len();
    if bytes > BYTES_MAX {
        return Ok(Err(format!("its file has {} MiB", bytes >> 20)));
    }
    Ok(said(&fs::read(image).map_err(fail)?))
}

fn said(file: &[u8]) -> Result<Said, String> {
    let damaged = "its file does not begin as that of a Linux kernel for x86";
    if file.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        return Err(damaged.to_owned());
    }
    let half = |at: usize| {
        let bytes = file.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(u16::from_le_bytes(bytes)))
    };
    let word = |at: usize| {
        let bytes = file.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    // Kernels of before the number was there have four.
    let sectors = match file.get(SETUP_SECTORS) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let whole = word(PARAGRAPHS).map(|count| count.saturating_mul(16) + (sectors + 1) * 512);
    let whole = whole.ok_or(damaged)?;
    if file.len() < whole {
        return Err(format!(
            "its file is not whole: it has {} bytes, and should have {whole}",
            file.len()
        ));
    }
    let at = half(VERSION_AT).ok_or(damaged)?;
    let text = file.get(at + 0x200..).unwrap_or_default();
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let words = String::from_utf8_lossy(&text[..text.len().min(512)]).into_owned();
    Ok(Said { words })
}

impl Said {
    /// Its release, as its modules' directory is named.
    #[must_use]
    pub fn release(&self) -> &str {
        self.words.split_whitespace().next().unwrap_or_default()
    }

    /// Whether the kernel that runs is this very build.
    #[must_use]
    pub fn runs(&self, proc_root: &Path) -> bool {
        let read = |name: &str| {
            let text = fs::read_to_string(proc_root.join("sys/kernel").join(name));
            text.map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        let (release, version) = (read("osrelease"), read("version"));
        !version.is_empty() && self.release() == release && self.words.contains(&version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(words: &str) -> Vec<u8> {
        let mut file = vec![0; 3 * 512 + 16 * 100];
        file[SETUP_SECTORS] = 2;
        file[PARAGRAPHS] = 100;
        file[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        file[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        file[0x300..0x300 + words.len()].copy_from_slice(words.as_bytes());
        file
    }

    #[test]
    fn a_kernel_is_known_by_what_it_says_of_itself() {
        let proc = tempfile::tempdir().unwrap();
        let kernel_dir = proc.path().join("sys/kernel");
        fs::create_dir_all(&kernel_dir).unwrap();
        fs::write(kernel_dir.join("osrelease"), "6.1.0-9-amd64\n").unwrap();
        fs::write(kernel_dir.join("version"), "#1 SMP Debian 6.1.27-1\n").unwrap();
        let check = |words: &str, runs: bool| {
            let said = said(&kernel(words)).unwrap();
            assert_eq!(said.release(), "6.1.0-9-amd64");
            assert_eq!(said.runs(proc.path()), runs, "{words}");
        };
        check("6.1.0-9-amd64 (a@b) #1 SMP Debian 6.1.27-1", true);
        // Distributions keep the release over updates of it.
        check("6.1.0-9-amd64 (a@b) #1 SMP Debian 6.1.38-2", false);
    }

    #[test]
    fn a_damaged_one_is_told_from_a_whole_one() {
        let whole = kernel("6.1");
        assert!(said(&whole).is_ok());
        let why = said(&whole[..2000]).unwrap_err();
        assert!(
            why.contains("has 2000 bytes, and should have 3136"),
            "{why}"
        );
        for length in [0, 1, 0x1F4, 0x203, 0x206, 0x20F] {
            assert!(said(&whole[..length]).is_err(), "{length}");
        }
        assert!(said(&[0x5A; 4096]).unwrap_err().contains("does not begin"));
        assert!(look(Path::new("/no/such/kernel")).is_err());
    }
}
