//! Whether somebody else wrote a knob since Forebay did.
//!
//! Every knob in force is read again in one period of ten. The files stay open: of what reading
//! one takes, looking its path up is nine tenths.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use forebay_core::slice::{Knob, Slice};

use crate::files::Reader;
use crate::knobs::{self, Way, Ways};

/// The files of knobs in one group, opened when first asked for.
#[derive(Debug, Default)]
pub(crate) struct KnobFiles {
    open: BTreeMap<(usize, &'static str), Reader>,
}

impl KnobFiles {
    /// The knobs in force that no longer hold what they held after our last write.
    pub(crate) fn written_since(
        &mut self,
        ways: &Ways,
        dirs: &[Option<PathBuf>],
        last: &BTreeMap<Knob, Vec<String>>,
        in_force: &Slice,
        buffer: &mut Vec<u8>,
    ) -> BTreeMap<Knob, String> {
        let mut foreign = BTreeMap::new();
        for setting in in_force.iter() {
            let knob = setting.knob();
            let (Some(way), Some(last)) = (ways.of(knob), last.get(&knob)) else {
                continue;
            };
            if let Some(texts) = self.texts(dirs, knob, way, buffer)
                && texts != *last
            {
                foreign.insert(knob, texts.join(" "));
            }
        }
        foreign
    }

    /// What a knob's files hold; none where one cannot be read.
    fn texts(
        &mut self,
        dirs: &[Option<PathBuf>],
        knob: Knob,
        way: &Way,
        buffer: &mut Vec<u8>,
    ) -> Option<Vec<String>> {
        let dir = dirs.get(way.hierarchy)?.as_ref()?;
        let mut texts = Vec::with_capacity(way.files.len());
        for file in &way.files {
            let reader = match self.open.entry((way.hierarchy, file)) {
                Entry::Occupied(open) => open.into_mut(),
                Entry::Vacant(place) => place.insert(Reader::open(&dir.join(file))?),
            };
            let Ok(text) = reader.read(buffer) else {
                // One that comes again, as with a disk's scheduler, is another file.
                self.open.remove(&(way.hierarchy, *file));
                return None;
            };
            texts.push(knobs::cut(file, knob.device(), text));
        }
        Some(texts)
    }
}
