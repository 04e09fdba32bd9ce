//! The first stage: from a text to typed values, each with its place in the text.
//!
//! What a value must look like by itself is checked here, against [`super::keys`]; what it must
//! be beside other values and on this host is [`super::resolve`]'s. A value that is refused is
//! noted and left out, and reading goes on: all mistakes are reported at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use forebay_core::units::{Bytes, Limit, MilliCpu, Rate};
use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Findings, Problem, either, nearest};
use super::keys::{Key, Kind, ROOT, names};
use super::quantity;

/// A value and the byte of the text where it starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// A value of one of the kinds of [`Kind`].
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Texts(Vec<String>),
    TextMap(BTreeMap<String, String>),
    Duration(Duration),
    Bytes(Bytes),
    Cpu(MilliCpu),
    Percent(u32),
    Rate(Rate),
    Bool(bool),
    Count(u64),
    Choice(&'static str),
    Address(SocketAddr),
    Max,
    Section(Section),
    Sections(BTreeMap<String, Section>),
    Rows(Vec<Section>),
}

/// The values of one section.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// Dotted name; empty for the whole file.
    pub(super) name: String,
    /// Where it starts in the text.
    pub(super) at: usize,
    /// Whether a key or a value was refused, so that what is absent may only be misspelt.
    pub(super) refused: bool,
    values: BTreeMap<&'static str, At<Value>>,
}

impl Section {
    /// Where the value of `key` starts; nothing when it was not given or was refused.
    pub(super) fn at(&self, key: &str) -> Option<usize> {
        self.values.get(key).map(|value| value.at)
    }

    /// The dotted name of one of its keys.
    pub(super) fn key(&self, key: &str) -> String {
        dotted(&self.name, key)
    }

    /// Takes a value out. Asserts that its kind is the one the caller wants.
    pub(super) fn take<T: TryFrom<Value, Error = Value>>(&mut self, key: &str) -> Option<At<T>> {
        let At { value, at } = self.values.remove(key)?;
        match T::try_from(value) {
            Ok(value) => Some(At { value, at }),
            Err(value) => panic!("{} is read as another kind than {value:?}", self.key(key)),
        }
    }

    /// Takes a section out; an empty one when it was not given.
    pub(super) fn take_section(&mut self, key: &str) -> Self {
        self.take(key).map_or_else(
            || Self {
                name: self.key(key),
                at: self.at,
                ..Self::default()
            },
            |section| section.value,
        )
    }
}

macro_rules! values {
    ($($variant:ident => $type:ty),* $(,)?) => {$(
        impl TryFrom<Value> for $type {
            type Error = Value;

            fn try_from(value: Value) -> Result<Self, Value> {
                match value {
                    Value::$variant(value) => Ok(value),
                    other => Err(other),
                }
            }
        }
    )*};
}

values! {
    Text => String,
    Texts => Vec<String>,
    TextMap => BTreeMap<String, String>,
    Duration => Duration,
    Bytes => Bytes,
    Cpu => MilliCpu,
    Percent => u32,
    Rate => Rate,
    Bool => bool,
    Count => u64,
    Choice => &'static str,
    Address => SocketAddr,
    Section => Section,
    Sections => BTreeMap<String, Section>,
    Rows => Vec<Section>,
}

impl<T: TryFrom<Value, Error = Value>> TryFrom<Value> for Limit<T> {
    type Error = Value;

    fn try_from(value: Value) -> Result<Self, Value> {
        match value {
            Value::Max => Ok(Self::Max),
            other => T::try_from(other).map(Self::At),
        }
    }
}

/// A value before its kind is known.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scalar<'a> {
    Text(&'a str),
    Whole(i64),
    Fraction(f64),
    Bool(bool),
    /// What no key takes by itself, by its name in a message.
    Other(&'static str),
}

impl<'a> Scalar<'a> {
    /// As given on a command line, where nothing tells a number from a text.
    pub(super) fn from_argument(text: &'a str) -> Self {
        match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(whole), _) => Self::Whole(whole),
            (_, Ok(fraction)) => Self::Fraction(fraction),
            _ => Self::Text(text),
        }
    }

    fn from_toml(value: &'a DeValue<'a>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("a number beyond 64 bits"), Self::Whole),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .map_or(Self::Other("a number"), Self::Fraction),
            DeValue::Boolean(value) => Self::Bool(*value),
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Array(_) => Self::Other("a list"),
            DeValue::Table(_) => Self::Other("a table"),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Text(text) => format!("`{text}`"),
            Self::Whole(number) => format!("`{number}`"),
            Self::Fraction(number) => format!("`{number}`"),
            Self::Bool(value) => format!("`{value}`"),
            Self::Other(name) => name.to_owned(),
        }
    }
}

/// Reads a whole file. After a mistake of syntax nothing but mistakes of syntax is noted: what
/// the rest means is then a guess.
pub(super) fn read(text: &str, findings: &mut Findings<'_>) -> Option<Section> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().trim().replace('\n', ", ");
        findings.add(
            at,
            "",
            Problem::new(message, "correct the syntax (https://toml.io)"),
        );
    }
    errors
        .is_empty()
        .then(|| read_section(ROOT, "", 0, table.get_ref(), findings))
}

/// Reads a single value of a kind that a scalar can hold.
pub(super) fn read_scalar(kind: &Kind, scalar: Scalar<'_>) -> Result<Value, Problem> {
    if let Scalar::Text(text) = scalar {
        refuse_nul(text)?;
    }
    match (kind, scalar) {
        (Kind::OrMax(_), Scalar::Text("max")) => Ok(Value::Max),
        (Kind::OrMax(inner), _) => read_scalar(inner, scalar).map_err(|problem| {
            let fix = format!("{}, or \"max\" for no limit", problem.fix);
            Problem::new(problem.message, fix)
        }),
        (Kind::Text, Scalar::Text("")) => Err(Problem::new(
            "the text is empty",
            "give a value or leave the key out",
        )),
        (Kind::Text, Scalar::Text(text)) => Ok(Value::Text(text.to_owned())),
        (Kind::Duration, Scalar::Text(text)) => quantity::duration(text).map(Value::Duration),
        (Kind::Duration, _) => {
            quantity::duration(scalar.describe().trim_matches('`')).map(Value::Duration)
        }
        (Kind::Rate, Scalar::Text(text)) => quantity::rate(text).map(Value::Rate),
        (Kind::Bytes, Scalar::Text(text)) => quantity::bytes(text).map(Value::Bytes),
        (Kind::Bytes, Scalar::Whole(number)) => {
            quantity::bytes(&number.to_string()).map(Value::Bytes)
        }
        (Kind::Cpu, Scalar::Text(text)) => quantity::cpu(text).map(Value::Cpu),
        (Kind::Cpu, Scalar::Whole(number)) => quantity::cpu(&number.to_string()).map(Value::Cpu),
        (Kind::Cpu, Scalar::Fraction(number)) => quantity::cpus(number).map(Value::Cpu),
        (Kind::Bool, Scalar::Bool(value)) => Ok(Value::Bool(value)),
        (Kind::Percent, Scalar::Text(text)) => quantity::percent(text).map(Value::Percent),
        (Kind::Percent, Scalar::Whole(number)) => {
            quantity::percent(&number.to_string()).map(Value::Percent)
        }
        (Kind::Count { min, max }, _) => match scalar {
            Scalar::Whole(number) => u64::try_from(number).ok(),
            _ => None,
        }
        .filter(|number| (min..=max).contains(&number))
        .map(Value::Count)
        .ok_or_else(|| {
            Problem::new(
                format!("{} is out of bounds", scalar.describe()),
                format!("use a whole number from {min} to {max}"),
            )
        }),
        (Kind::Choice { noun, words }, _) => words
            .iter()
            .find(|word| matches!(scalar, Scalar::Text(text) if text == **word))
            .map(|word| Value::Choice(word))
            .ok_or_else(|| {
                Problem::new(
                    format!("{} is not a {noun}", scalar.describe()),
                    format!("use {}", either(words)),
                )
            }),
        (Kind::Address, Scalar::Text(text)) => text.parse().map(Value::Address).map_err(|_| {
            Problem::new(
                format!("`{text}` is not an address and port"),
                "write an IP address and a port, such as \"127.0.0.1:9180\" or \"[::1]:9180\"",
            )
        }),
        (kind, scalar) => Err(Problem::new(
            format!("{} does not fit here", scalar.describe()),
            format!("write {}", expected(kind)),
        )),
    }
}

fn expected(kind: &Kind) -> &'static str {
    match kind {
        Kind::Text => "a text in quotes",
        Kind::Texts => "a list of texts, such as [\"nginx\", \"-g\", \"daemon off;\"]",
        Kind::TextMap => "texts by name, such as { LANG = \"C\" }",
        Kind::Duration => "a duration, such as \"5s\"",
        Kind::Rate => "a rate of data, such as \"100Mbit\"",
        Kind::Bytes => "an amount of memory, such as \"64MiB\"",
        Kind::Cpu => "an amount of processor time, such as 0.5 or \"500m\"",
        Kind::Percent => "a percentage, such as \"30%\"",
        Kind::Bool => "true or false",
        Kind::Count { .. } => "a whole number",
        Kind::Choice { .. } => "one of its words",
        Kind::Address => "an address and port, such as \"127.0.0.1:9180\"",
        Kind::OrMax(inner) => expected(inner),
        Kind::Section(_) | Kind::Sections(_) => "a table",
        Kind::Rows(_) => "tables, each headed by its name in double brackets",
        Kind::TextOrTexts => "a text, or a list of texts",
    }
}

fn read_section(
    keys: &'static [Key],
    name: &str,
    at: usize,
    table: &DeTable<'_>,
    findings: &mut Findings<'_>,
) -> Section {
    let mut section = Section {
        name: name.to_owned(),
        at,
        ..Section::default()
    };
    for (given, value) in table {
        let Some(key) = keys.iter().find(|key| key.name == given.get_ref()) else {
            findings.add(given.span().start, "", unknown_key(keys, name, given));
            section.refused = true;
            continue;
        };
        let value_name = section.key(key.name);
        let at = match value.get_ref() {
            // A table's own place is where its header or its first key stands.
            DeValue::Table(_) => given.span().start,
            _ => value.span().start,
        };
        match read_value(&key.kind, &value_name, at, value, findings) {
            Some(value) => {
                section.values.insert(key.name, At { value, at });
            }
            None => section.refused = true,
        }
    }
    section
}

fn unknown_key(keys: &[Key], section: &str, given: &Spanned<std::borrow::Cow<'_, str>>) -> Problem {
    let place = if section.is_empty() {
        "at the top of the file".to_owned()
    } else {
        format!("in [{section}]")
    };
    let names = names(keys);
    Problem::new(
        format!("unknown key `{}` {place}", given.get_ref()),
        match nearest(given.get_ref(), &names) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("use {}", either(&names)),
        },
    )
}

fn read_value(
    kind: &'static Kind,
    name: &str,
    at: usize,
    value: &Spanned<DeValue<'_>>,
    findings: &mut Findings<'_>,
) -> Option<Value> {
    match (kind, value.get_ref()) {
        (Kind::Section(keys), DeValue::Table(table)) => Some(Value::Section(read_section(
            keys, name, at, table, findings,
        ))),
        (Kind::Sections(keys), DeValue::Table(table)) => {
            let mut sections = BTreeMap::new();
            for (given, value) in table {
                let (name, at) = (dotted(name, given.get_ref()), given.span().start);
                if let DeValue::Table(table) = value.get_ref() {
                    let section = read_section(keys, &name, at, table, findings);
                    sections.insert(given.get_ref().to_string(), section);
                } else {
                    let message = format!(
                        "{} is no table",
                        Scalar::from_toml(value.get_ref()).describe()
                    );
                    findings.add(at, &name, Problem::new(message, format!("write [{name}]")));
                }
            }
            Some(Value::Sections(sections))
        }
        (Kind::Rows(keys), DeValue::Array(rows)) => {
            let rows = rows.iter().enumerate().map(|(index, row)| {
                let (name, at) = (format!("{name}.{}", index + 1), row.span().start);
                if let DeValue::Table(table) = row.get_ref() {
                    return Some(read_section(keys, &name, at, table, findings));
                }
                let message = format!(
                    "{} is no table",
                    Scalar::from_toml(row.get_ref()).describe()
                );
                findings.add(
                    at,
                    name,
                    Problem::new(message, "write a table in its place"),
                );
                None
            });
            Some(Value::Rows(rows.flatten().collect()))
        }
        (Kind::TextOrTexts, DeValue::Array(_)) => {
            read_value(&Kind::Texts, name, at, value, findings)
        }
        (Kind::TextOrTexts, one) => {
            let scalar = read_scalar(&Kind::Text, Scalar::from_toml(one));
            match findings.keep(at, name, scalar)? {
                Value::Text(text) => Some(Value::Texts(vec![text])),
                other => Some(other),
            }
        }
        (Kind::Texts, DeValue::Array(items)) => {
            let texts: Option<Vec<String>> = items
                .iter()
                .map(|item| findings.keep(item.span().start, name, read_text(item.get_ref())))
                .collect();
            let texts = texts?;
            if texts.is_empty() {
                let fix = format!("write {}", expected(kind));
                findings.add(at, name, Problem::new("the list is empty", fix));
                return None;
            }
            Some(Value::Texts(texts))
        }
        (Kind::TextMap, DeValue::Table(table)) => {
            let mut texts = BTreeMap::new();
            for (given, value) in table {
                let key = dotted(name, given.get_ref());
                let text = findings.keep(value.span().start, key, read_text(value.get_ref()))?;
                texts.insert(given.get_ref().to_string(), text);
            }
            Some(Value::TextMap(texts))
        }
        (kind, value) => findings.keep(at, name, read_scalar(kind, Scalar::from_toml(value))),
    }
}

/// A text that may be empty: an argument, or a variable's value.
fn read_text(value: &DeValue<'_>) -> Result<String, Problem> {
    match Scalar::from_toml(value) {
        Scalar::Text(text) => refuse_nul(text).map(|()| text.to_owned()),
        other => Err(Problem::new(
            format!("{} is not a text", other.describe()),
            "put it in quotes",
        )),
    }
}

/// The kernel ends texts at a NUL, so that what it would see is another text.
pub(super) fn refuse_nul(text: &str) -> Result<(), Problem> {
    if text.contains('\0') {
        Err(Problem::new("the text has a NUL in it", "take it out"))
    } else {
        Ok(())
    }
}

/// `section.key`, quoted where TOML would need quotes.
fn dotted(section: &str, key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    let key = if bare {
        key.to_owned()
    } else {
        format!("{key:?}")
    };
    if section.is_empty() {
        key
    } else {
        format!("{section}.{key}")
    }
}
