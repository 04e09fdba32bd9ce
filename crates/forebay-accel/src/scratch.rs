//! Memory for a result of the CPU, beside that of a device.

/// Memory for elements of any kind.
#[derive(Debug)]
pub(crate) struct Scratch {
    words: Vec<u64>,
    length: usize,
}

impl Scratch {
    pub(crate) fn new(length: usize) -> Self {
        Self {
            words: vec![0; length.div_ceil(8)],
            length,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.length]
    }
}
