//! The files that CRIU wrote of a process as one stream: how many, then the name and the content of each behind
//! their lengths. A length has eight bytes, the least significant first.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::Path;

use crate::error::HostError;

/// What CRIU wrote counts with the images, its logs do not.
const IMAGE: &str = "img";
/// The longest name that is taken.
const NAME_MAX: u64 = 255;
/// Most files of one process.
const FILES_MAX: u64 = 4096;

/// The images in a directory: how many bytes they are on their way, and these.
///
/// # Errors
/// When one cannot be opened.
pub fn pack(dir: &Path) -> Result<(u64, impl Read + Send + use<>), HostError> {
    let mut files = Vec::new();
    let listed = fs::read_dir(dir).map_err(|e| HostError::file("list", dir, e))?;
    for entry in listed {
        let path = entry.map_err(|e| HostError::file("list", dir, e))?.path();
        if path.extension().is_some_and(|end| end == IMAGE) {
            files.push(path);
        }
    }
    let mut bytes = 8;
    let count = files.len() as u64;
    let mut from: Box<dyn Read + Send> = Box::new(Cursor::new(count.to_le_bytes()));
    for path in files {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let file = File::open(&path).map_err(|e| HostError::file("open", &path, e))?;
        let metadata = file.metadata();
        let length = metadata
            .map_err(|e| HostError::file("look at", &path, e))?
            .len();
        let mut head = (name.len() as u64).to_le_bytes().to_vec();
        head.extend(name);
        head.extend(length.to_le_bytes());
        bytes += head.len() as u64 + length;
        from = Box::new(from.chain(Cursor::new(head)).chain(file.take(length)));
    }
    Ok((bytes, from))
}

/// Takes images into a directory.
///
/// # Errors
/// When the stream is cut off or none of this kind, or a file cannot be written.
pub fn unpack(dir: &Path, from: &mut dyn Read) -> Result<(), HostError> {
    let take = |error| HostError::io("take in images of a process", error);
    let wrong = |what: &str| {
        HostError::invalid(
            format!("take in images of a process: {what}"),
            "update the source",
        )
    };
    let count = number(from).map_err(take)?;
    if count > FILES_MAX {
        return Err(wrong("they are too many"));
    }
    for _ in 0..count {
        let length = number(from).map_err(take)?;
        if length > NAME_MAX {
            return Err(wrong("a name is too long"));
        }
        let mut name = vec![0; usize::try_from(length).unwrap_or_default()];
        from.read_exact(&mut name).map_err(take)?;
        let name = String::from_utf8(name).map_err(|_| wrong("a name is no text"))?;
        let is_image = Path::new(&name).extension().is_some_and(|end| end == IMAGE);
        if name.contains('/') || !is_image {
            return Err(wrong("a name is none of an image"));
        }
        let length = number(from).map_err(take)?;
        let place = dir.join(name);
        let mut file = File::create(&place).map_err(|e| HostError::file("create", &place, e))?;
        let copied = io::copy(&mut from.take(length), &mut file);
        if copied.map_err(|e| HostError::file("write", &place, e))? != length {
            return Err(take(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(())
}

fn number(from: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_as_they_were_and_nothing_else_does() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(here.path().join("core-1.img"), "core").unwrap();
        fs::write(here.path().join("empty.img"), "").unwrap();
        fs::write(here.path().join("dump.log"), "log").unwrap();
        let (bytes, mut from) = pack(here.path()).unwrap();
        let mut stream = Vec::new();
        from.read_to_end(&mut stream).unwrap();
        assert_eq!(stream.len() as u64, bytes);
        unpack(there.path(), &mut stream.as_slice()).unwrap();
        assert_eq!(fs::read(there.path().join("core-1.img")).unwrap(), b"core");
        assert_eq!(fs::read(there.path().join("empty.img")).unwrap(), b"");
        assert!(!there.path().join("dump.log").exists());
        stream.pop();
        assert!(unpack(there.path(), &mut stream.as_slice()).is_err());
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, length: u64| {
            let mut stream = 1_u64.to_le_bytes().to_vec();
            stream.extend(length.to_le_bytes());
            stream.extend(name.as_bytes());
            stream.extend(0_u64.to_le_bytes());
            assert!(
                unpack(dir.path(), &mut stream.as_slice()).is_err(),
                "{name}"
            );
        };
        check("../a.img", 8);
        check("a.log", 5);
        check("a.img", 1 << 40);
        assert!(unpack(dir.path(), &mut u64::MAX.to_le_bytes().as_slice()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
