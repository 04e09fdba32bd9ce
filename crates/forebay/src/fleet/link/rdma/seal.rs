//! Frames that nobody else reads, and that come as they were sent or not at all.
//!
//! Problem: rsockets have no TLS, and what goes over them is the memory and the files of applications.
//!
//! Approach: both sides of a TLS connection export a secret from it that nobody else has (RFC 8446, 7.5; RFC
//! 5705). Each stream has keys of its own, derived from that secret and from the token that the stream was let in
//! by (HKDF-SHA-256, RFC 5869), one for each direction. Each frame is encrypted by AES-256-GCM with a number
//! that counts up, and its beginning is authenticated with it.
//!
//! ```text
//!   kind (1)   length of the payload (4)   payload, encrypted   tag (16)
//! ```
//!
//! Properties, tested: a frame that was changed, left out, repeated or put elsewhere is none, and ends the
//! stream; no number is used twice with a key, and no key for more than [`FRAMES_MAX`] frames, some 64 GiB,
//! within which the bounds of GCM are far away (NIST SP 800-38D); nothing is allocated for a length beyond
//! what a frame may have.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use tokio_rustls::rustls::{self, ConnectionCommon};

use super::super::frame::{self, FrameError, FrameKind, HEAD};

/// Bytes after a frame that say that it is what was sent.
pub(super) const TAG: usize = 16;
/// Frames that are encrypted with one key at most.
const FRAMES_MAX: u64 = 1 << 16;
/// What the secret is exported for; labels that begin like this are not registered with anybody.
const LABEL: &[u8] = b"EXPERIMENTAL forebay content streams";

/// What lets one stream in, once: it names the keys, and says nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token(pub(super) [u8; Self::BYTES]);

impl Token {
    pub(super) const BYTES: usize = 32;
}

/// A secret of the two sides of one TLS connection.
pub(in super::super) struct Exported([u8; 32]);

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exported")
    }
}

impl Exported {
    /// That of a connection whose sides have agreed.
    ///
    /// # Errors
    /// They have not yet.
    pub(in super::super) fn of<T>(connection: &ConnectionCommon<T>) -> Result<Self, rustls::Error> {
        connection
            .export_keying_material([0; 32], LABEL, None)
            .map(Self)
    }

    #[cfg(test)]
    pub(super) const fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The keys of the stream that a token lets in: of the side that asks, and of the one that answers.
    pub(super) fn lanes(&self, token: Token) -> (Lane, Lane) {
        let secret = || Salt::new(HKDF_SHA256, &token.0).extract(&self.0);
        (
            Lane::new(secret(), b"from the side that asks"),
            Lane::new(secret(), b"from the side that answers"),
        )
    }
}

/// One direction of one stream.
pub(super) struct Lane {
    secret: Prk,
    direction: &'static [u8],
    key: LessSafeKey,
    /// Frames that were sealed or opened.
    count: u64,
    frames_max: u64,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

fn key(secret: &Prk, direction: &[u8], generation: u64) -> LessSafeKey {
    let generation = generation.to_be_bytes();
    let info = [direction, &generation];
    let material = secret.expand(&info, &AES_256_GCM);
    // HKDF refuses what is longer than 255 hashes, and a key is one.
    let key = material.map(UnboundKey::from);
    LessSafeKey::new(key.expect("a key is as long as its algorithm says"))
}

impl Lane {
    fn new(secret: Prk, direction: &'static [u8]) -> Self {
        Self {
            key: key(&secret, direction, 0),
            secret,
            direction,
            count: 0,
            frames_max: FRAMES_MAX,
        }
    }

    /// The number of the next frame, whose key is in place.
    fn next(&mut self) -> Nonce {
        let (generation, number) = (self.count / self.frames_max, self.count % self.frames_max);
        if number == 0 && generation > 0 {
            self.key = key(&self.secret, self.direction, generation);
        }
        self.count += 1;
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.count.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// What goes over the wire for a frame: its beginning, and the payload followed by the tag.
    ///
    /// # Panics
    /// The payload is longer than its kind may be.
    pub(super) fn seal(&mut self, kind: FrameKind, mut payload: Vec<u8>) -> ([u8; HEAD], Vec<u8>) {
        assert!(
            payload.len() <= kind.bytes_max(),
            "a frame is within its bound"
        );
        let head = frame::head(kind, u32::try_from(payload.len()).unwrap_or(u32::MAX));
        let nonce = self.next();
        let sealed = self
            .key
            .seal_in_place_append_tag(nonce, Aad::from(head), &mut payload);
        // It refuses more than 64 GiB at once.
        sealed.expect("a frame is within the bounds of its cipher");
        (head, payload)
    }

    /// The payload of a frame, of what came after its beginning.
    ///
    /// # Errors
    /// It is not what was sent next.
    pub(super) fn open(
        &mut self,
        head: [u8; HEAD],
        mut sealed: Vec<u8>,
    ) -> Result<(FrameKind, Vec<u8>), FrameError> {
        let changed = || FrameError::Malformed("a frame is not what was sent next over RDMA");
        let (kind, length) = frame::parse_head(head)?;
        if sealed.len() != length + TAG {
            return Err(changed());
        }
        let nonce = self.next();
        let (payload, tag) = sealed.split_at_mut(length);
        let tag = Tag::try_from(&*tag).map_err(|_| changed())?;
        let opened = self
            .key
            .open_in_place_separate_tag(nonce, Aad::from(head), tag, payload, 0..);
        opened.map_err(|_| changed())?;
        sealed.truncate(length);
        Ok((kind, sealed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(token: u8) -> (Lane, Lane) {
        let lanes = || Exported::from([3; 32]).lanes(Token([token; 32]));
        (lanes().0, lanes().0)
    }

    fn frames() -> [(FrameKind, Vec<u8>); 3] {
        [
            (FrameKind::Message, Vec::new()),
            (FrameKind::Chunk, b"the memory of an app".to_vec()),
            (FrameKind::End, vec![0; 16]),
        ]
    }

    #[test]
    fn frames_come_as_they_were_sent_and_nobody_reads_them() {
        let (mut sends, mut hears) = pair(1);
        for (kind, payload) in frames() {
            let (head, sealed) = sends.seal(kind, payload.clone());
            assert_eq!(sealed.len(), payload.len() + TAG);
            let reads = |word: &[u8]| sealed.windows(word.len().max(1)).any(|part| part == word);
            assert!(
                payload.is_empty() || !reads(&payload),
                "it is not encrypted"
            );
            assert_eq!(hears.open(head, sealed), Ok((kind, payload)));
        }
        // The same frame never looks the same.
        let [_, (kind, payload), _] = frames();
        let (first, second) = (sends.seal(kind, payload.clone()), sends.seal(kind, payload));
        assert_ne!(first.1, second.1);
    }

    #[test]
    fn what_is_left_out_repeated_or_of_another_stream_is_no_frame() {
        let [first, second, _] = frames();
        let is_refused = |result: Result<_, FrameError>| {
            let error = result.map(|_: (FrameKind, Vec<u8>)| ()).unwrap_err();
            assert!(
                error.to_string().contains("not what was sent next"),
                "{error}"
            );
        };
        let (mut sends, mut hears) = pair(1);
        let (head, sealed) = sends.seal(first.0, first.1.clone());
        let (next_head, next_sealed) = sends.seal(second.0, second.1.clone());
        is_refused(hears.open(next_head, next_sealed));
        let (_, mut hears) = pair(1);
        hears.open(head, sealed.clone()).unwrap();
        is_refused(hears.open(head, sealed.clone()));
        let (_, mut another) = pair(2);
        is_refused(another.open(head, sealed.clone()));
        let (_, mut other_way) = Exported::from([3; 32]).lanes(Token([1; 32]));
        is_refused(other_way.open(head, sealed.clone()));
        let (mut other_secret, _) = Exported::from([4; 32]).lanes(Token([1; 32]));
        is_refused(other_secret.open(head, sealed));
    }

    #[test]
    fn keys_are_changed_in_time_by_both() {
        let (mut sends, mut hears) = pair(1);
        (sends.frames_max, hears.frames_max) = (2, 2);
        let (_, mut never_changes) = pair(1);
        let mut opened = 0;
        for number in 0..7_u8 {
            let (head, sealed) = sends.seal(FrameKind::Chunk, vec![number; 40]);
            opened += u32::from(never_changes.open(head, sealed.clone()).is_ok());
            let came = hears.open(head, sealed).unwrap();
            assert_eq!(came, (FrameKind::Chunk, vec![number; 40]));
        }
        assert_eq!(opened, 2, "the first key is for two frames");
    }

    proptest! {
        #[test]
        fn a_changed_frame_is_none(
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            bit in 0_u32..8,
        ) {
            let (mut sends, mut hears) = pair(1);
            let (mut head, mut sealed) = sends.seal(FrameKind::Chunk, payload);
            let at = at.index(HEAD + sealed.len());
            match at.checked_sub(HEAD) {
                None => head[at] ^= 1 << bit,
                Some(at) => sealed[at] ^= 1 << bit,
            }
            prop_assert!(hears.open(head, sealed).is_err());
        }
    }
}
