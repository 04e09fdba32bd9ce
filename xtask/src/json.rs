//! A reader for the JSON that cargo writes.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As written: nothing here needs the value.
    Number(String),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// The member of an object, `Null` when there is none.
    pub(crate) fn get(&self, key: &str) -> &Json {
        match self {
            Self::Object(members) => members.get(key).unwrap_or(&Self::Null),
            _ => &Self::Null,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list, none for anything else.
    pub(crate) fn elements(&self) -> &[Json] {
        match self {
            Self::List(elements) => elements,
            _ => &[],
        }
    }
}

/// Reads one value and nothing after it; the error is the byte offset reached.
pub(crate) fn parse(input: &str) -> Result<Json, String> {
    let mut reader = Reader {
        characters: input.chars().peekable(),
    };
    let value = reader.value();
    reader.skip_blanks();
    match value {
        Some(value) if reader.characters.peek().is_none() => Ok(value),
        _ => {
            let left: usize = reader.characters.map(char::len_utf8).sum();
            Err(format!("not JSON at byte {}", input.len() - left))
        }
    }
}

struct Reader<'a> {
    characters: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    fn value(&mut self) -> Option<Json> {
        self.skip_blanks();
        match self.characters.peek()? {
            '{' => self.object(),
            '[' => self.list(),
            '"' => self.string().map(Json::Text),
            _ => self.word(),
        }
    }

    fn object(&mut self) -> Option<Json> {
        let mut members = BTreeMap::new();
        self.take('{')?;
        if self.take('}').is_some() {
            return Some(Json::Object(members));
        }
        loop {
            self.skip_blanks();
            let key = self.string()?;
            self.take(':')?;
            members.insert(key, self.value()?);
            if self.take(',').is_none() {
                self.take('}')?;
                return Some(Json::Object(members));
            }
        }
    }

    fn list(&mut self) -> Option<Json> {
        let mut elements = Vec::new();
        self.take('[')?;
        if self.take(']').is_some() {
            return Some(Json::List(elements));
        }
        loop {
            elements.push(self.value()?);
            if self.take(',').is_none() {
                self.take(']')?;
                return Some(Json::List(elements));
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        self.take('"')?;
        let mut text = String::new();
        loop {
            match self.characters.next()? {
                '"' => return Some(text),
                '\\' => text.push(self.escape()?),
                plain => text.push(plain),
            }
        }
    }

    /// Surrogate pairs become replacement characters: cargo writes UTF-8.
    fn escape(&mut self) -> Option<char> {
        Some(match self.characters.next()? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'u' => {
                let digits: String = self.characters.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok()?;
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            same => same,
        })
    }

    fn word(&mut self) -> Option<Json> {
        let mut word = String::new();
        let part = |c: &char| c.is_ascii_alphanumeric() || "+-.".contains(*c);
        while let Some(character) = self.characters.next_if(part) {
            word.push(character);
        }
        match word.as_str() {
            "null" => Some(Json::Null),
            "true" => Some(Json::Bool(true)),
            "false" => Some(Json::Bool(false)),
            number => number.parse::<f64>().ok().map(|_| Json::Number(word)),
        }
    }

    fn skip_blanks(&mut self) {
        while self.characters.next_if(char::is_ascii_whitespace).is_some() {}
    }

    fn take(&mut self, wanted: char) -> Option<char> {
        self.skip_blanks();
        self.characters.next_if_eq(&wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_kind_are_read() {
        let value = parse(r#" {"a": [1, -2.5e3, true, null], "b\n\u0041": {"c": []}} "#).unwrap();
        assert_eq!(value.get("a").elements().len(), 4);
        assert_eq!(value.get("a").elements()[1], Json::Number("-2.5e3".into()));
        assert_eq!(value.get("b\nA").get("c"), &Json::List(Vec::new()));
        assert_eq!(value.get("absent").text(), None);
        assert_eq!(parse(r#""é\"\\""#).unwrap().text(), Some("é\"\\"));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "{", "[1,]", "{\"a\" 1}", "nul", "1 2", "\"open"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
