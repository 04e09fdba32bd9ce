//! What a client was told of its server's settings, and how its texts are read by them.

use std::collections::BTreeMap;

/// Encodings in which a byte that looks like a backslash may be a part of a character.
const HIDING: [&[u8]; 7] = [
    b"BIG5",
    b"GB18030",
    b"GBK",
    b"JOHAB",
    b"SHIFT_JIS_2004",
    b"SJIS",
    b"UHC",
];

/// Names and values of settings.
pub(crate) type Told = BTreeMap<Vec<u8>, Vec<u8>>;

/// The settings that a client knows. How texts are read is kept beside them: it is asked for with every
/// text, and changes hardly ever.
#[derive(Debug)]
pub(crate) struct Parameters {
    told: Told,
    hides: bool,
    is_standard: bool,
}

impl Parameters {
    pub(crate) fn new(told: Told) -> Self {
        let mut this = Self {
            told,
            hides: true,
            is_standard: false,
        };
        this.note();
        this
    }

    /// The client is told a value; whether it is another one than before.
    pub(crate) fn tell(&mut self, name: &[u8], value: &[u8]) -> bool {
        match self.told.get_mut(name) {
            Some(before) if before == value => return false,
            Some(before) => {
                before.clear();
                before.extend_from_slice(value);
            }
            None => {
                self.told.insert(name.to_vec(), value.to_vec());
            }
        }
        self.note();
        true
    }

    /// A byte that looks like a backslash may be none.
    pub(crate) const fn hides_backslash(&self) -> bool {
        self.hides
    }

    /// A backslash within plain quotes is one (`standard_conforming_strings`).
    pub(crate) const fn is_standard(&self) -> bool {
        self.is_standard
    }

    fn note(&mut self) {
        let get = |name: &[u8]| self.told.get(name).map(Vec::as_slice);
        let encoding = get(b"client_encoding");
        self.hides = encoding.is_none_or(|encoding| HIDING.contains(&encoding));
        self.is_standard = get(b"standard_conforming_strings") == Some(b"on");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_by_the_latest_settings() {
        let mut parameters = Parameters::new(Told::new());
        assert!(parameters.hides_backslash() && !parameters.is_standard());
        assert!(parameters.tell(b"client_encoding", b"UTF8"));
        assert!(parameters.tell(b"standard_conforming_strings", b"on"));
        assert!(!parameters.hides_backslash() && parameters.is_standard());
        assert!(!parameters.tell(b"client_encoding", b"UTF8"));
        assert!(parameters.tell(b"client_encoding", b"SJIS"));
        assert!(parameters.tell(b"standard_conforming_strings", b"off"));
        assert!(parameters.hides_backslash() && !parameters.is_standard());
        let told = Parameters::new(parameters.told);
        assert!(told.hides_backslash() && !told.is_standard());
    }
}
