//! ARCHITECTURE.md stays short and quotes the tick as it is.

/// Longest ARCHITECTURE.md, in lines.
const LINES_MAX: usize = 250;

/// `page` is ARCHITECTURE.md, `code` is tick.rs (empty when there is none).
pub(super) fn check(page: &str, code: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = page.lines().count();
    if lines > LINES_MAX {
        findings.push(format!(
            "ARCHITECTURE.md: {lines} lines, at most {LINES_MAX}; say less or move it to docs/"
        ));
    }
    match tick(code) {
        None => findings.push(
            "crates/forebay-core/src/tick.rs: no `pub fn tick` for ARCHITECTURE.md to quote".into(),
        ),
        Some(tick) if !rust_blocks(page).iter().any(|block| block.contains(&tick)) => {
            findings.push(format!(
                "ARCHITECTURE.md: no ```rust block holds `tick` as crates/forebay-core/src/tick.rs \
                 has it; quote this:\n{tick}"
            ));
        }
        Some(_) => {}
    }
    findings
}

/// The function from `pub fn tick` to its closing brace.
fn tick(code: &str) -> Option<String> {
    let start = |line: &&str| line.starts_with("pub fn tick(") || line.starts_with("pub fn tick<");
    let mut function = String::new();
    for line in code.lines().skip_while(|line| !start(line)) {
        function += line.trim_end();
        function.push('\n');
        if line.starts_with('}') {
            return Some(function);
        }
    }
    None
}

fn rust_blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while lines.any(|line| line.trim_end() == "```rust") {
        let block = lines.by_ref().take_while(|line| line.trim_end() != "```");
        blocks.push(block.map(|line| format!("{}\n", line.trim_end())).collect());
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "//! Doc.\n\n/// One period.\npub fn tick(\n    state: &mut State,\n) -> Report {\n    if x {\n    }\n    plan()\n}\n\nfn other() {}\n";
    const QUOTE: &str =
        "pub fn tick(\n    state: &mut State,\n) -> Report {\n    if x {\n    }\n    plan()\n}\n";

    /// Checks that exactly one finding holds `wanted`, or none when it is empty.
    fn check_page(page: &str, code: &str, wanted: &str) {
        let findings = check(page, code);
        let expected = usize::from(!wanted.is_empty());
        assert_eq!(findings.len(), expected, "{findings:?}");
        assert!(
            findings.iter().all(|text| text.contains(wanted)),
            "{findings:?}"
        );
    }

    #[test]
    fn the_tick_must_be_quoted_verbatim() {
        let page =
            |quote: &str| format!("# A\n```rust\nlet a;\n```\n```rust\n/// Doc\n{quote}```\n");
        check_page(&page(QUOTE), CODE, "");
        check_page(
            &page(&QUOTE.replace("plan", "replan")),
            CODE,
            "quote this:\npub fn tick(",
        );
        check_page(&format!("```text\n{QUOTE}```\n"), CODE, "no ```rust block");
        check_page(&page(QUOTE), "", "no `pub fn tick`");
        check_page(&page(QUOTE), "pub fn ticker() {\n}\n", "no `pub fn tick`");
    }

    #[test]
    fn the_page_has_a_longest_length() {
        let quote = format!("```rust\n{QUOTE}```\n");
        let filled = |lines: usize| quote.clone() + &"x\n".repeat(lines - quote.lines().count());
        check_page(&filled(250), CODE, "");
        check_page(&filled(251), CODE, "251 lines");
    }
}
