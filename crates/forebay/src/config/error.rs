//! What is wrong with a configuration: where, what, and what to do.

use std::fmt;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    /// The file as the user named it; empty when the text came from a command line.
    pub(crate) file: String,
    /// Line in the file, from 1, where one is known.
    pub(crate) line: Option<usize>,
    /// Dotted key, such as `apps.web.class`; empty when the mistake is no key's.
    pub(crate) key: String,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) fix: String,
}

/// `forebay.toml:12: apps.web.class: ...; use ...`
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            match self.line {
                Some(line) => write!(f, "{}:{line}: ", self.file)?,
                None => write!(f, "{}: ", self.file)?,
            }
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.message, self.fix)
    }
}

impl std::error::Error for Error {}

/// Every mistake of one text, in the order of its lines. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Errors(Vec<Error>);

impl Errors {
    /// Mistakes in arguments, by key.
    pub(super) fn from_arguments(problems: Vec<(&'static str, Problem)>) -> Self {
        let located = problems.into_iter().map(|(key, p)| p.in_argument(key));
        Self(located.collect())
    }

    /// The mistakes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Error> {
        self.0.iter()
    }
}

/// One mistake a line.
impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for error in &self.0 {
            write!(f, "{separator}{error}")?;
            separator = "\n";
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

impl From<Error> for Errors {
    fn from(error: Error) -> Self {
        Self(vec![error])
    }
}

/// A mistake before it is known where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) fix: String,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            fix: fix.into(),
        }
    }

    /// As a mistake in an argument, which has no file.
    pub(super) fn in_argument(self, key: impl Into<String>) -> Error {
        Error {
            file: String::new(),
            line: None,
            key: key.into(),
            message: self.message,
            fix: self.fix,
        }
    }
}

/// Collects the mistakes of one file.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    file: &'a str,
    text: &'a str,
    errors: Vec<Error>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self {
            file,
            text,
            errors: Vec::new(),
        }
    }

    /// Notes a mistake that stands at byte `at` of the text.
    pub(super) fn add(&mut self, at: usize, key: impl Into<String>, problem: Problem) {
        let before = self.text.as_bytes().iter().take(at);
        let line = 1 + before.filter(|&&byte| byte == b'\n').count();
        self.errors.push(Error {
            file: self.file.to_owned(),
            line: Some(line),
            ..problem.in_argument(key)
        });
    }

    /// The value, or nothing after noting why there is none.
    pub(super) fn keep<T>(
        &mut self,
        at: usize,
        key: impl Into<String>,
        result: Result<T, Problem>,
    ) -> Option<T> {
        result.map_err(|problem| self.add(at, key, problem)).ok()
    }

    /// How many mistakes were found so far.
    pub(super) fn count(&self) -> usize {
        self.errors.len()
    }

    /// `value`, unless a mistake was found.
    pub(super) fn finish<T>(mut self, value: T) -> Result<T, Errors> {
        if self.errors.is_empty() {
            return Ok(value);
        }
        self.errors.sort_by_key(|error| error.line);
        Err(Errors(self.errors))
    }
}

/// `a`, `a or b`, `a, b or c`: the choices of a fix.
pub(super) fn either(choices: &[&str]) -> String {
    match choices {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The choice that `text` most likely meant, if it is near enough to one. A word of a choice
/// counts as well, at some distance: `weigth` is near `io_weight`.
pub(super) fn nearest<'a>(text: &str, choices: &[&'a str]) -> Option<&'a str> {
    let bound = (text.chars().count() / 2).max(1);
    let distance = |choice: &str| {
        let words = choice.split(['_', '.']);
        let by_word = words.map(|word| strsim::osa_distance(text, word) + 1).min();
        strsim::osa_distance(text, choice).min(by_word.unwrap_or(usize::MAX))
    };
    choices
        .iter()
        .map(|choice| (distance(choice), *choice))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, choice)| choice)
}
