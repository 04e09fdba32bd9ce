//! What a member keeps on disk: which agent it is, and whether it is cordoned.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use forebay_host::regular;

/// Sixteen random bytes, in hexadecimal digits.
const AGENT: &str = "agent";
/// There while the host takes no more applications.
const CORDONED: &str = "cordoned";
const FILE_BYTES_MAX: u64 = 1024;

/// The fleet's directory in the state directory.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

fn failed(attempt: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{attempt} {}: {error}", path.display())
}

impl Files {
    pub(super) fn open(directory: &Path) -> Result<Self, String> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// What tells this agent from others; the same for as long as the file is there.
    pub(super) fn agent(&self) -> Result<String, String> {
        let file = self.directory.join(AGENT);
        match regular::read(&file, FILE_BYTES_MAX) {
            Ok((bytes, _)) => {
                let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                let right = text.len() == 32 && text.chars().all(|c| c.is_ascii_hexdigit());
                right.then_some(text).ok_or_else(|| {
                    format!(
                        "read which agent this is in {}: it is damaged; remove it",
                        file.display()
                    )
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0_u8; 16];
                rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
                    .map_err(|error| format!("draw a number for this agent: {error}"))?;
                let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                regular::replace(&file, text.as_bytes(), 0o600)
                    .map_err(|error| format!("keep which agent this is: {error}"))?;
                Ok(text)
            }
            Err(error) => Err(failed("read which agent this is in", &file)(error)),
        }
    }

    pub(super) fn is_cordoned(&self) -> Result<bool, String> {
        let file = self.directory.join(CORDONED);
        file.try_exists()
            .map_err(failed("look whether this host is cordoned in", &file))
    }

    /// Durable on return.
    pub(super) fn cordon(&self, cordoned: bool) -> Result<(), String> {
        let file = self.directory.join(CORDONED);
        if cordoned {
            return regular::replace(&file, b"", 0o600)
                .map_err(|error| format!("keep that this host is cordoned: {error}"));
        }
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &file)(error));
            }
            _ => {}
        }
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed("sync", &self.directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_stays_the_same_and_so_does_its_cordon() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("fleet");
        let files = Files::open(&directory).unwrap();
        let agent = files.agent().unwrap();
        assert!(!files.is_cordoned().unwrap());
        files.cordon(true).unwrap();
        let files = Files::open(&directory).unwrap();
        assert_eq!(files.agent().unwrap(), agent);
        assert!(files.is_cordoned().unwrap());
        files.cordon(false).unwrap();
        files.cordon(false).unwrap();
        assert!(!files.is_cordoned().unwrap());
        fs::write(directory.join(AGENT), "x").unwrap();
        let error = files.agent().unwrap_err();
        assert!(error.contains("damaged; remove it"), "{error}");
    }
}
