//! Memory of a device for the buffers of a run, whatever the backend: copies of constants stay there, all
//! else is the run's own.

use std::collections::HashMap;

use crate::device::{Constant, DeviceError};
use crate::task::{Launch, View};

/// Makes memory of a device.
pub(super) trait Allocator {
    type Buffer;

    /// Memory for a buffer, with its content where that is read.
    fn copied(&self, view: &View<'_>) -> Result<Self::Buffer, DeviceError>;

    /// Memory of so many bytes, which only kernels read, after they wrote it.
    fn scratch(&self, bytes: usize) -> Result<Self::Buffer, DeviceError>;
}

/// Copies of memory that does not change. The broker bounds them.
#[derive(Debug)]
pub(super) struct Copies<B>(HashMap<Constant, B>);

/// The memory of one run.
#[derive(Debug)]
pub(super) struct Placed<'a, B> {
    kept: &'a HashMap<Constant, B>,
    keys: Vec<Option<Constant>>,
    own: Vec<B>,
}

impl<B> Default for Copies<B> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<B> Copies<B> {
    /// Copies to a device what a run needs there: of what is kept only what is not there yet.
    pub(super) fn place(
        &mut self,
        allocator: &impl Allocator<Buffer = B>,
        buffers: &[View<'_>],
        kept: &[Option<Constant>],
        launches: &[Launch],
    ) -> Result<Placed<'_, B>, DeviceError> {
        let keys = keys(buffers, kept);
        for (view, key) in buffers.iter().zip(&keys) {
            if let Some(key) = key.filter(|key| !self.0.contains_key(key)) {
                self.0.insert(key, allocator.copied(view)?);
            }
        }
        let mut own = Vec::with_capacity(buffers.len());
        for (view, key) in buffers.iter().zip(&keys) {
            if key.is_none() {
                own.push(allocator.copied(view)?);
            }
        }
        for size in scratch_sizes(launches) {
            own.push(allocator.scratch(size)?);
        }
        Ok(Placed {
            kept: &self.0,
            keys,
            own,
        })
    }

    /// Frees copies; some may not be there.
    pub(super) fn forget(&mut self, constants: &[Constant]) {
        for constant in constants {
            self.0.remove(constant);
        }
    }
}

impl<B> Placed<'_, B> {
    /// All memory in the order of the arguments: buffers, then scratch buffers.
    pub(super) fn in_order(&self) -> Vec<&B> {
        let mut own = self.own.iter();
        let mut all: Vec<&B> = Vec::new();
        for key in &self.keys {
            all.extend(key.map_or_else(|| own.next(), |key| self.kept.get(&key)));
        }
        all.extend(own);
        all
    }
}

/// What buffers are kept by, one for each: only what is read can be.
fn keys(buffers: &[View<'_>], kept: &[Option<Constant>]) -> Vec<Option<Constant>> {
    let named = kept.iter().copied().chain(std::iter::repeat(None));
    let each = buffers.iter().zip(named);
    each.map(|(view, key)| key.filter(|_| matches!(view, View::Read(_))))
        .collect()
}

/// Each scratch buffer is as large as the largest of any launch.
pub(super) fn scratch_sizes(launches: &[Launch]) -> Vec<usize> {
    let mut sizes = Vec::new();
    for launch in launches {
        sizes.resize(sizes.len().max(launch.scratch.len()), 0);
        for (size, wanted) in sizes.iter_mut().zip(&launch.scratch) {
            *size = (*size).max(*wanted);
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Memory as texts: what was copied, and how much was made.
    #[derive(Default)]
    struct Texts {
        copied: Cell<usize>,
        left: Option<Cell<usize>>,
    }

    impl Allocator for Texts {
        type Buffer = String;

        fn copied(&self, view: &View<'_>) -> Result<String, DeviceError> {
            if let Some(left) = &self.left {
                let more = left.get().checked_sub(1).ok_or(DeviceError::OutOfMemory)?;
                left.set(more);
            }
            self.copied.set(self.copied.get() + 1);
            Ok(String::from_utf8_lossy(view.bytes()).into_owned())
        }

        fn scratch(&self, bytes: usize) -> Result<String, DeviceError> {
            Ok("_".repeat(bytes))
        }
    }

    fn launch(scratch: &[usize]) -> Launch {
        Launch {
            entry: "x".into(),
            grid: crate::task::Grid::line(1),
            local: None,
            scratch: scratch.to_vec(),
            scalars: Vec::new(),
        }
    }

    fn constant(memory: u64) -> Constant {
        Constant {
            memory,
            offset: 0,
            length: 1,
        }
    }

    #[test]
    fn scratch_is_as_large_as_the_largest_launch_needs() {
        let launches = [launch(&[4]), launch(&[]), launch(&[2, 8])];
        assert_eq!(scratch_sizes(&launches), [4, 8]);
        assert!(scratch_sizes(&[]).is_empty());
    }

    #[test]
    fn what_is_kept_is_copied_once_and_the_rest_for_each_run_in_the_order_of_the_arguments() {
        let (texts, mut copies) = (Texts::default(), Copies::default());
        let mut run = |words: [&str; 3], kept: &[Option<Constant>]| {
            let mut written = words[2].as_bytes().to_vec();
            let buffers = [
                View::Read(words[0].as_bytes()),
                View::Read(words[1].as_bytes()),
                View::ReadWrite(&mut written),
            ];
            let before = texts.copied.get();
            let launches = [launch(&[2])];
            let placed = copies.place(&texts, &buffers, kept, &launches).unwrap();
            let all: Vec<String> = placed.in_order().into_iter().cloned().collect();
            (all.join(" "), texts.copied.get() - before)
        };
        let keep = [None, Some(constant(1)), None];
        assert_eq!(run(["a", "b", "c"], &keep), ("a b c __".to_owned(), 3));
        assert_eq!(run(["d", "-", "e"], &keep), ("d b e __".to_owned(), 2));
        // One that is named twice is there once; what is written is never kept.
        let twice = [Some(constant(2)), Some(constant(2)), Some(constant(3))];
        assert_eq!(run(["f", "g", "h"], &twice), ("f f h __".to_owned(), 2));
        assert_eq!(run(["-", "-", "i"], &twice), ("f f i __".to_owned(), 1));
        copies.forget(&[constant(1), constant(9)]);
        let buffers = [View::Read(b"j")];
        let placed = copies.place(&texts, &buffers, &[Some(constant(1))], &[]);
        assert_eq!(placed.unwrap().in_order(), ["j"]);
    }

    #[test]
    fn without_memory_there_is_an_error_and_what_was_copied_may_stay() {
        let texts = Texts {
            left: Some(Cell::new(1)),
            ..Texts::default()
        };
        let mut copies = Copies::default();
        let buffers = [View::Read(b"a"), View::Read(b"b")];
        let kept = [Some(constant(1)), None];
        let placed = copies.place(&texts, &buffers, &kept, &[]);
        assert_eq!(placed.unwrap_err(), DeviceError::OutOfMemory);
        texts.left.as_ref().unwrap().set(1);
        let placed = copies.place(&texts, &buffers, &kept, &[]).unwrap();
        assert_eq!(placed.in_order(), ["a", "b"]);
    }
}
