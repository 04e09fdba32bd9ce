//! The page of commands, from what parses the command line.

use clap::Command;

const HEAD: &str = "\
# Commands

`forebay help COMMAND` says the same at a terminal. Commands that ask the daemon find it by
`--socket`, by the variable `FOREBAY_SOCKET`, or at `/run/forebay/forebay.sock`.

";

pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut whole = crate::Cli::whole();
    whole.build();
    for command in visible(&whole) {
        tell(command, 2, &mut page);
    }
    page + "## Exit status\n\n```text\n" + crate::cli::Exit::DOCUMENTATION.trim() + "\n```\n"
}

/// One command, and those behind it.
fn tell(command: &Command, level: usize, page: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let help = command.clone().render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    *page += &format!(
        "{} `{name}`\n\n```text\n{}\n```\n\n",
        "#".repeat(level),
        help.join("\n").trim()
    );
    for own in visible(command) {
        tell(own, level + 1, page);
    }
}

/// What is not hidden, and not the help that each command has.
fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

#[test]
fn each_command_has_a_manual_page() {
    /// The names of a command's page and of those behind it.
    fn names(command: &Command, before: &str, found: &mut Vec<String>) {
        let name = format!("{before}{}", command.get_name());
        for own in visible(command) {
            names(own, &format!("{name}-"), found);
        }
        found.push(format!("{name}.1"));
    }

    let directory = tempfile::tempdir().unwrap();
    let place = Some(directory.path().to_owned());
    crate::local::man(&crate::local::ManArgs { directory: place }).unwrap();
    let entries = std::fs::read_dir(directory.path()).unwrap();
    let mut written: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    written.sort();
    let mut expected = Vec::new();
    names(&crate::Cli::whole(), "", &mut expected);
    expected.sort();
    assert_eq!(written, expected);
    assert!(expected.iter().any(|name| name == "forebay-update-plan.1"));
    let page = std::fs::read_to_string(directory.path().join("forebay-update-plan.1")).unwrap();
    assert!(page.contains("\\-\\-rung"), "{page}");
}
