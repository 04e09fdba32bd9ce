#![no_main]

// Of the binary, which is no library: the parser stands alone.
#[path = "../../crates/forebay/src/fleet/link/frame.rs"]
mod frame;

use frame::{CHUNK_HEAD, CHUNK_MAX, FrameKind, HEAD};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
        let Ok((kind, length)) = frame::parse_head(*head) else {
            break;
        };
        assert!(length <= kind.bytes_max());
        let (payload, after) = after.split_at(length.min(after.len()));
        match kind {
            FrameKind::Chunk => chunk(payload),
            FrameKind::End => {
                if let Ok(total) = frame::parse_end(payload) {
                    assert_eq!(frame::end(total), payload);
                }
            }
            FrameKind::Message | FrameKind::Abort => {}
        }
        rest = after;
    }
});

/// What comes out of a chunk is within its bound, and comes out again when it is sent on.
fn chunk(payload: &[u8]) {
    let Ok(raw) = frame::parse_chunk(payload.to_vec()) else {
        return;
    };
    assert!(raw.len() <= CHUNK_MAX);
    for compress in [false, true] {
        let mut buffer = vec![0; CHUNK_HEAD];
        buffer.extend(&raw);
        let sealed = frame::seal(buffer, compress);
        assert_eq!(frame::parse_chunk(sealed).as_ref(), Ok(&raw));
    }
}
