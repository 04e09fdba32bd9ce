//! Rules for the text of source files and documents.

use std::path::Path;

/// Longest source file, in lines: beyond it is asking to be two.
const LINES_MAX: usize = 800;

/// Marks of unfinished work. Written in two parts so that this file, which is
/// checked too, does not hold them.
const UNFINISHED: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("FIX", "ME"),
];

/// Module names that say nothing of their content.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "manager", "util", "utils"];

/// Words that praise instead of saying what was measured.
const PRAISE: &[&str] = &[
    concat!("blazing", "ly"),
    concat!("cutting", "-edge"),
    concat!("effort", "lessly"),
    concat!("game", "-changing"),
    concat!("light", "ning-fast"),
    concat!("revol", "utionary"),
    concat!("seam", "lessly"),
    concat!("state-of", "-the-art"),
    concat!("world", "-class"),
];

pub(super) fn check_rust(name: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!(
            "{}: {lines} lines, at most {LINES_MAX}; split it by what it does",
            name.display()
        ));
    }
    if let Some(module) = module_name(name).filter(|module| EMPTY_NAMES.contains(module)) {
        findings.push(format!(
            "{}: `{module}` does not say what is in it; name the module after its content",
            name.display()
        ));
    }
    findings.extend(occurrences(name, text, UNFINISHED, "finish it or file it"));
    findings
}

pub(super) fn check_prose(name: &Path, text: &str) -> Vec<String> {
    let advice = "say what was measured instead";
    occurrences(name, &text.to_lowercase(), PRAISE, advice)
}

/// `a` for both a.rs and a/mod.rs.
fn module_name(name: &Path) -> Option<&str> {
    let stem = name.file_stem()?.to_str()?;
    match stem {
        "mod" | "lib" | "main" => name.parent()?.file_name()?.to_str(),
        _ => Some(stem),
    }
}

fn occurrences(name: &Path, text: &str, words: &[&str], advice: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in words.iter().filter(|word| line.contains(**word)) {
            let place = format!("{}:{}", name.display(), index + 1);
            findings.push(format!(
                "{place}: `{}`: {advice}",
                word.trim_end_matches('(')
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the findings about a Rust file, each by its beginning.
    fn check(name: &str, text: &str, wanted: &[&str]) {
        let findings = check_rust(Path::new(name), text);
        assert_eq!(findings.len(), wanted.len(), "{findings:?}");
        for (finding, start) in findings.iter().zip(wanted) {
            assert!(finding.starts_with(start), "{finding}");
        }
    }

    #[test]
    fn files_have_a_longest_length() {
        check("a.rs", &"x\n".repeat(800), &[]);
        check("a.rs", &"x\n".repeat(801), &["a.rs: 801 lines"]);
    }

    #[test]
    fn unfinished_work_is_found_with_its_line() {
        let [todo, unimplemented, fix] = UNFINISHED else {
            panic!("three marks")
        };
        check("a.rs", &format!("\n{todo});"), &["a.rs:2: `todo!`"]);
        check("a.rs", &format!("{unimplemented});"), &["a.rs:1: "]);
        check("a.rs", &format!("// {fix} later"), &["a.rs:1: "]);
        check("a.rs", "// the todo list is empty", &[]);
    }

    #[test]
    fn modules_are_named_after_their_content() {
        check("a/src/utils.rs", "", &["a/src/utils.rs: `utils`"]);
        check(
            "a/tests/common/mod.rs",
            "",
            &["a/tests/common/mod.rs: `common`"],
        );
        check("a/src/lib.rs", "", &[]);
        check("a/src/manager_events.rs", "", &[]);
    }

    #[test]
    fn documents_do_not_praise() {
        let [word, ..] = PRAISE else {
            panic!("no words")
        };
        let findings = check_prose(
            Path::new("A.md"),
            &format!("x\nIt is {} fast", word.to_uppercase()),
        );
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with("A.md:2: "));
        assert!(check_prose(Path::new("A.md"), "p99 is 1.2 x alone").is_empty());
    }
}
