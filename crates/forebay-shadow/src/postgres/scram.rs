//! SCRAM-SHA-256 with keys in place of a password (RFC 5802, RFC 7677).
//!
//! Problem: a front that logs in anew on behalf of a client does not know its password.
//!
//! Approach: it heard the client prove it. The proof is `ClientKey XOR HMAC(StoredKey,
//! AuthMessage)`; the conversation is the `AuthMessage`, and `StoredKey` is in `pg_authid`, which
//! the front's own user may read. What comes out is the client's key if its hash is the stored
//! one, and a client's key proves anything to every server with the same `pg_authid`: a standby.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

/// Length of a hash.
const HASH_BYTES: usize = 32;
type Hash = [u8; HASH_BYTES];

/// The one mechanism without a channel to bind to.
pub(crate) const MECHANISM: &[u8] = b"SCRAM-SHA-256";

/// What a server stores of a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verifier {
    stored: Hash,
    server: Hash,
}

impl Verifier {
    /// `SCRAM-SHA-256$ITERATIONS:SALT$STORED:SERVER`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        Some(Self {
            stored: decode(stored)?,
            server: decode(server)?,
        })
    }
}

/// What proves to a server who one is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keys {
    client: Hash,
    verifier: Verifier,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

/// The conversation of a client and a server, as it was overheard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overheard {
    pub(crate) client_first: Vec<u8>,
    pub(crate) server_first: Vec<u8>,
    pub(crate) client_final: Vec<u8>,
}

impl Overheard {
    /// The client's key, if it proved the password behind this verifier.
    pub(crate) fn keys(&self, verifier: Verifier) -> Option<Keys> {
        let first = std::str::from_utf8(&self.client_first).ok()?;
        // The header says which channel is bound: `n,,` or `y,,`.
        let (_, rest) = first.split_once(',')?;
        let (_, bare) = rest.split_once(',')?;
        let server = std::str::from_utf8(&self.server_first).ok()?;
        let last = std::str::from_utf8(&self.client_final).ok()?;
        let (without_proof, proof) = last.rsplit_once(",p=")?;
        let message = format!("{bare},{server},{without_proof}");
        let client = xor(decode(proof)?, hmac(&verifier.stored, message.as_bytes()));
        (hash(&client) == verifier.stored).then_some(Keys { client, verifier })
    }
}

/// A login with keys.
#[derive(Debug)]
pub(crate) struct Login {
    keys: Keys,
    bare: String,
    message: String,
}

impl Login {
    /// Begins one; the nonce has to be random and of printable characters.
    pub(crate) fn new(keys: Keys, nonce: &str) -> Self {
        Self {
            keys,
            bare: format!("n=,r={nonce}"),
            message: String::new(),
        }
    }

    /// What the client says first.
    pub(crate) fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// What it answers to the server's first words.
    pub(crate) fn answer(&mut self, server_first: &[u8]) -> Option<String> {
        let server = std::str::from_utf8(server_first).ok()?;
        let nonce = server.strip_prefix("r=")?.split(',').next()?;
        let own = self.bare.strip_prefix("n=,r=")?;
        if !nonce.starts_with(own) || nonce.len() == own.len() {
            return None;
        }
        // `biws` is the header of `first`, encoded.
        let without_proof = format!("c=biws,r={nonce}");
        self.message = format!("{},{server},{without_proof}", self.bare);
        let signature = hmac(&self.keys.verifier.stored, self.message.as_bytes());
        let proof = STANDARD.encode(xor(self.keys.client, signature));
        Some(format!("{without_proof},p={proof}"))
    }

    /// Whether the server knows the password, too.
    pub(crate) fn is_answered_by(&self, server_final: &[u8]) -> bool {
        let signature = hmac(&self.keys.verifier.server, self.message.as_bytes());
        let expected = format!("v={}", STANDARD.encode(signature));
        server_final == expected.as_bytes()
    }
}

fn decode(text: &str) -> Option<Hash> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

fn hmac(key: &Hash, message: &[u8]) -> Hash {
    // Any length of key is taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return [0; HASH_BYTES];
    };
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn xor(mut one: Hash, other: Hash) -> Hash {
    for (one, other) in one.iter_mut().zip(other) {
        *one ^= other;
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, whose password is `pencil`.
    fn rfc7677() -> (Overheard, Verifier) {
        let overheard = Overheard {
            client_first: b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO".to_vec(),
            server_first: b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".to_vec(),
            client_final: b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=".to_vec(),
        };
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keyed = |message: &[u8]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(b"pencil").unwrap();
            mac.update(message);
            let bytes: Hash = mac.finalize().into_bytes().into();
            bytes
        };
        let mut round = keyed(&[&salt[..], &[0, 0, 0, 1]].concat());
        let mut salted = round;
        for _ in 1..4096 {
            round = keyed(&round);
            salted = xor(salted, round);
        }
        let verifier = Verifier {
            stored: hash(&hmac(&salted, b"Client Key")),
            server: hmac(&salted, b"Server Key"),
        };
        (overheard, verifier)
    }

    #[test]
    fn the_key_is_what_the_client_proved() {
        let (overheard, verifier) = rfc7677();
        let keys = overheard.keys(verifier).unwrap();
        let other = Verifier {
            stored: [1; HASH_BYTES],
            ..verifier
        };
        assert_eq!(overheard.keys(other), None);
        assert_eq!(Overheard::default().keys(verifier), None);

        let mut login = Login::new(keys, "abc");
        assert_eq!(login.first(), "n,,n=,r=abc");
        let answer = login.answer(b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        // Whoever hears this one can derive the same key.
        let again = Overheard {
            client_first: login.first().into_bytes(),
            server_first: b"r=abcdef,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".to_vec(),
            client_final: answer.unwrap().into_bytes(),
        };
        assert_eq!(again.keys(verifier), Some(keys));
        assert!(!login.is_answered_by(b"v=AAAA"));
    }

    #[test]
    fn a_server_that_does_not_extend_the_nonce_is_no_server() {
        let (overheard, verifier) = rfc7677();
        let keys = overheard.keys(verifier).unwrap();
        for wrong in [
            b"r=abc,s=,i=1".as_slice(),
            b"r=xbcdef,s=,i=1",
            b"e=x",
            b"\xff",
        ] {
            assert_eq!(Login::new(keys, "abc").answer(wrong), None);
        }
    }

    #[test]
    fn a_verifier_is_read() {
        let key = STANDARD.encode([7; HASH_BYTES]);
        let text = format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}");
        let expected = Verifier {
            stored: [7; HASH_BYTES],
            server: [7; HASH_BYTES],
        };
        assert_eq!(Verifier::parse(&text), Some(expected));
        for wrong in [
            "",
            "md5abc",
            "SCRAM-SHA-256$4096:c2FsdA==$AA==:AA==",
            "SCRAM-SHA-256$",
        ] {
            assert_eq!(Verifier::parse(wrong), None, "{wrong}");
        }
    }
}
