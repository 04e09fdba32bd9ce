//! The clients in Python and C, as processes, with a worker that is one.

use std::process::Command;
use std::time::Instant;

use super::{BOUND, Worker};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/accel");

#[test]
fn a_client_in_python_is_served() {
    let mut worker = Worker::new(&[]);
    worker.client();
    let python = Command::new("python3")
        .arg("-B")
        .arg(format!("{CLIENTS}/forebay_accel.py"))
        .arg(&worker.socket)
        .output();
    let Ok(output) = python else {
        println!("SKIPPED: a client in Python: no python3");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("1024 sums on cpu"), "{output:?}");
    assert!(text.contains("4 tasks together"), "{output:?}");
}

/// Cancels a task, lets one be late, and prints how each ended.
const CANCELS: &str = r#"
import sys
from forebay_accel import Refused, Worker

worker = Worker(sys.argv[1])
count = 1 << 18
values, ordered, again = (worker.memory(4 * count) for _ in range(3))
values[1][:] = bytes(range(255, -1, -1)) * (4 * count // 256)

def sort(source, to, **more):
    buffers = [(*source, False), (*to, True)]
    return worker.task("sort", buffers, [{"u32": count}], place="cpu", **more)

def how(number):
    try:
        return worker.wait(number)["place"]
    except Refused as refused:
        return str(refused)

# What reads what another one writes waits for it.
first, second = worker.submit(sort(values, ordered), sort(ordered, again))
worker.cancel(second)
print("cancelled:", how(second), how(first), any(again[1][:]))
numbers = worker.submit(
    sort(values, ordered),
    sort(ordered, again, deadline=1e-6),
    sort(ordered, again, deadline=600),
)
print("deadlines:", *(how(number) for number in reversed(numbers)), any(again[1][:]))
# One that was answered cannot be taken back any more.
[last] = worker.submit(sort(values, again))
worker.wait(last)
worker.cancel(last)
print("after:", how(*worker.submit(sort(values, again, deadline=600))))
"#;

#[test]
fn a_client_in_python_cancels_and_has_deadlines() {
    let mut worker = Worker::new(&["--threads", "1"]);
    let watcher = worker.client();
    let python = Command::new("python3")
        .args(["-B", "-c", CANCELS])
        .arg(&worker.socket)
        .env("PYTHONPATH", CLIENTS)
        .output();
    let Ok(output) = python else {
        println!("SKIPPED: a client in Python that cancels: no python3");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "cancelled: cancelled cpu False\ndeadlines: cpu late cpu True\nafter: cpu\n"
    );
    let stats = watcher.stats().unwrap();
    assert_eq!((stats.cancelled, stats.late, stats.on_cpu), (1, 1, 5));
}

/// It looks at results itself: of a batch in any order, of constant memory, of its own kernel.
#[test]
fn a_client_in_c_submits_waits_cancels_and_is_told_what_is_wrong() {
    let mut worker = Worker::new(&[]);
    let watcher = worker.client();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("add");
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"])
        .arg("-o")
        .arg(&program)
        .arg(format!("{CLIENTS}/add.c"))
        .output();
    let Ok(compiled) = compiled else {
        println!("SKIPPED: a client in C: no cc");
        return;
    };
    assert!(compiled.status.success(), "{compiled:?}");
    let output = Command::new(&program).arg(&worker.socket).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "8 tasks of 1024 sums, the last on ",
        "refused: kernel add, sum: memory 11 is only for reading",
        "one cancelled, one late",
        "64 done, 6 busy",
        "connect to /nonexistent/socket: No such file or directory; is the worker running",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    let stats = watcher.stats().unwrap();
    assert_eq!((stats.busy, stats.cancelled, stats.late), (6, 1, 1));
    // The end of the program is seen a while later.
    let end = Instant::now() + BOUND;
    while watcher.stats().unwrap().regions > 0 {
        assert!(Instant::now() < end, "its memory is held");
        std::thread::yield_now();
    }
}
