//! What the demo and the benchmarks say while they run.

use std::fmt::Arguments;
use std::io::{IsTerminal, Write};

/// One line of the result.
#[expect(clippy::print_stdout, reason = "this is the command's output")]
pub(crate) fn line(text: Arguments<'_>) {
    println!("{text}");
}

/// The present state: replaces the one before on a terminal, a line of its own elsewhere.
pub(crate) fn progress(text: Arguments<'_>) {
    let mut error = std::io::stderr();
    let result = if error.is_terminal() {
        write!(error, "\r\x1b[K{text}").and_then(|()| error.flush())
    } else {
        writeln!(error, "{text}")
    };
    // Nobody reads it; the work goes on.
    result.ok();
}
