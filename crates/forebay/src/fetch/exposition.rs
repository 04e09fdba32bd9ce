//! Samples of the Prometheus text format (0.0.4) and of OpenMetrics, as far as they are wanted.
//!
//! A line is read only when it begins with a wanted name: `name{label="value",...} number`, with
//! a timestamp or an exemplar after it that is left alone. A wanted line that is not that is
//! refused with its number, since what it means would be a guess.

use std::str::FromStr;

/// Labels of one series or selector at most.
const LABELS_MAX: usize = 64;

/// Which samples count: those of this name whose labels agree with all matchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(super) name: String,
    matchers: Vec<Matcher>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Matcher {
    label: String,
    value: String,
    /// Whether the value has to be that, or has to be another.
    equal: bool,
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` selects no metric")]
pub(crate) struct SelectorError(String);

impl FromStr for Selector {
    type Err = SelectorError;

    /// `requests_total` or `requests_total{code="200",method!="HEAD"}`.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let wrong = || SelectorError(text.to_owned());
        let (name, rest) = split_name(text.trim()).ok_or_else(wrong)?;
        let (matchers, rest) = braces(rest).ok_or_else(wrong)?;
        if !rest.trim().is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            name: name.to_owned(),
            matchers,
        })
    }
}

impl Selector {
    /// A label that is absent is empty, as for Prometheus.
    fn fits(&self, labels: &[Matcher]) -> bool {
        self.matchers.iter().all(|wanted| {
            let label = labels.iter().find(|label| label.label == wanted.label);
            let value = label.map_or("", |label| label.value.as_str());
            (value == wanted.value) == wanted.equal
        })
    }

    /// The values of all samples that fit, of the name with something after it. What is no
    /// finite number is left out: a summary that saw nothing says NaN.
    ///
    /// # Errors
    /// The number of a line that is not understood.
    pub(super) fn values(&self, text: &str, suffix: &str) -> Result<Vec<f64>, usize> {
        let mut values = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let Some(rest) = line
                .trim_start()
                .strip_prefix(self.name.as_str())
                .and_then(|rest| rest.strip_prefix(suffix))
                .filter(|rest| !rest.starts_with(is_name))
            else {
                continue;
            };
            let (labels, value) = sample(rest).ok_or(index + 1)?;
            if self.fits(&labels) && value.is_finite() {
                values.push(value);
            }
        }
        Ok(values)
    }
}

/// What follows a name on a line.
fn sample(rest: &str) -> Option<(Vec<Matcher>, f64)> {
    let (labels, rest) = braces(rest)?;
    if labels.iter().any(|label| !label.equal) {
        return None;
    }
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?;
    // Rust reads `infinity` and the like as well, which are no samples here; they are not finite.
    Some((labels, value.parse().ok()?))
}

/// Labels with their values.
pub(crate) type Labels = Vec<(String, String)>;

/// The name, labels and value of a line that is one finite sample.
pub(crate) fn read(line: &str) -> Option<(&str, Labels, f64)> {
    let (name, rest) = split_name(line)?;
    let (labels, value) = sample(rest)?;
    let labels = labels.into_iter().map(|label| (label.label, label.value));
    value.is_finite().then(|| (name, labels.collect(), value))
}

const fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':')
}

fn split_name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let fits = name.starts_with(|c: char| !c.is_ascii_digit());
    fits.then_some((name, rest))
}

/// `{label="value",...}` or nothing, and what follows it.
fn braces(text: &str) -> Option<(Vec<Matcher>, &str)> {
    let mut labels = Vec::new();
    let Some(mut rest) = text.trim_start().strip_prefix('{') else {
        return Some((labels, text));
    };
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (label, after) = split_name(rest)?;
        let after = after.trim_start();
        let (equal, after) = match after.strip_prefix("!=") {
            Some(after) => (false, after),
            None => (true, after.strip_prefix('=')?),
        };
        let (value, after) = quoted(after.trim_start())?;
        if labels.len() == LABELS_MAX {
            return None;
        }
        labels.push(Matcher {
            label: label.to_owned(),
            value,
            equal,
        });
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after,
            None if after.starts_with('}') => after,
            None => return None,
        };
    }
}

/// A text in quotes, in which `\\`, `\"` and `\n` stand for others, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP http_requests_total What was served.
# TYPE http_requests_total counter
http_requests_total{code="200",method="GET"} 1027 1395066363000
http_requests_total{ code = "500" , method="GET", } 3
http_requests_total_other 7
http_requests_total{path="C:\\DIR\"} x",code="200"} 4.5e1
plain 12
  spaced	 13  # {trace="a"} 1
nothing NaN
endless +Inf
broken{code="200 5
"#;

    #[test]
    fn samples_are_selected_by_name_and_labels() {
        let check = |selector: &str, expected: Result<&[f64], usize>| {
            let parsed: Selector = selector.parse().unwrap();
            let values = parsed.values(TEXT, "");
            assert_eq!(values, expected.map(<[f64]>::to_vec), "{selector}");
        };
        check("http_requests_total", Ok(&[1027.0, 3.0, 45.0]));
        check("http_requests_total{code=\"200\"}", Ok(&[1027.0, 45.0]));
        check("http_requests_total{code!=\"200\"}", Ok(&[3.0]));
        check("http_requests_total{path=\"\"}", Ok(&[1027.0, 3.0]));
        check(r#"http_requests_total{path="C:\\DIR\"} x"}"#, Ok(&[45.0]));
        check("plain", Ok(&[12.0]));
        check("spaced", Ok(&[13.0]));
        check("nothing", Ok(&[]));
        check("endless", Ok(&[]));
        check("absent", Ok(&[]));
        check("broken", Err(12));
    }

    #[test]
    fn a_suffix_is_part_of_the_name() {
        let text = "t_sum{a=\"1\"} 5\nt_count{a=\"1\"} 2\nt_sum_x 9\nt{quantile=\"0.5\"} 1\n";
        let selector: Selector = "t".parse().unwrap();
        assert_eq!(selector.values(text, "_sum"), Ok(vec![5.0]));
        assert_eq!(selector.values(text, "_count"), Ok(vec![2.0]));
        assert_eq!(selector.values(text, ""), Ok(vec![1.0]));
    }

    #[test]
    fn what_selects_nothing_is_refused() {
        for text in [
            "",
            "7up",
            "a b",
            "a{",
            "a{b}",
            "a{b=c}",
            "a{b=\"c\"",
            "a{b=~\"c\"}",
            "a{=\"c\"}",
            "a{b=\"c\"} 7",
            "{b=\"c\"}",
            "a{b=\"c\" d=\"e\"}",
        ] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        let selector: Selector = "a".parse().unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let letters: Vec<char> = "a{}=\"\\, \n1.e+#N\u{e9}".chars().collect();
        for _ in 0..20_000 {
            let length = random.usize(..40);
            let text: String = (0..length)
                .map(|_| letters[random.usize(..letters.len())])
                .collect();
            drop(selector.values(&text, ""));
            drop(text.parse::<Selector>());
        }
    }
}
