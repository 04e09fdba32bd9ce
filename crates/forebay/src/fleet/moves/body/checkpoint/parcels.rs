//! Runs of pages as contents of some size: each ends with a whole run, so that it can be taken in by itself.

use std::io::{self, Write};

use forebay_host::checkpoint::runs;

use super::MEMORY;
use crate::fleet::moves::note::Counted;
use crate::fleet::moves::{Content, Phase, Road, Trouble};

/// A content is sent when it has so many bytes.
const PARCEL: usize = 4 << 20;
/// Bytes before the pages of a run: its address and its length.
const HEAD: usize = 16;

/// Takes runs of pages and sends them.
pub(super) struct Parcels<'a> {
    road: &'a Road<'a>,
    phase: Phase,
    buffer: Vec<u8>,
    /// Where the last whole run in it ends.
    whole: usize,
    /// Why nothing more can be sent.
    trouble: Option<Trouble>,
}

impl<'a> Parcels<'a> {
    pub(super) fn new(road: &'a Road<'a>, phase: Phase) -> Self {
        Self {
            road,
            phase,
            buffer: Vec::new(),
            whole: 0,
            trouble: None,
        }
    }

    /// Sends what is left, after this wrote all.
    pub(super) fn finish<T>(mut self, wrote: Result<T, String>) -> Result<T, Trouble> {
        let sent = self.send();
        match (self.trouble, wrote) {
            (Some(trouble), _) => Err(trouble),
            (None, Err(why)) => Err(Trouble::Refused(why)),
            (None, Ok(done)) => sent
                .map(|()| done)
                .map_err(|e| Trouble::Refused(e.to_string())),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.trouble.is_some() || self.whole == 0 {
            return Ok(());
        }
        let rest = self.buffer.split_off(self.whole);
        let mut parcel = std::mem::replace(&mut self.buffer, rest);
        self.whole = 0;
        runs::end(&mut parcel)?;
        let content = Content {
            name: MEMORY.to_owned(),
            kind: MEMORY.to_owned(),
        };
        let Road { peer, to, of, note } = self.road;
        let bytes = u64::try_from(parcel.len()).unwrap_or(u64::MAX);
        let mut from = Counted {
            from: parcel.as_slice(),
            note,
        };
        peer.send(to, of, (self.phase, &content, bytes), &mut from)
            .map_err(|trouble| {
                let said = io::Error::other(trouble.to_string());
                self.trouble = Some(trouble);
                said
            })
    }
}

impl Write for Parcels<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        while let Some(head) = self.buffer.get(self.whole..self.whole + HEAD) {
            let length = head[HEAD / 2..].try_into().map(u64::from_le_bytes);
            let length = length.ok().and_then(|length| usize::try_from(length).ok());
            let end = length.and_then(|length| length.checked_add(self.whole + HEAD));
            match end {
                Some(end) if end <= self.buffer.len() => self.whole = end,
                _ => break,
            }
        }
        if self.whole >= PARCEL {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
