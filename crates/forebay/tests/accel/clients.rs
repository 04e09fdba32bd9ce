//! The clients in Python and C, as processes, with a worker that is one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use forebay_accel::device::Backend;

use super::{BOUND, Worker, first};

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

/// Registers kernels of its own, and prints what came of them. A device is given if there is one.
const OWN_KERNELS: &str = r#"
import sys
from forebay_accel import Refused, Worker, f32

worker = Worker(sys.argv[1])
devices = [one["info"]["id"] for one in worker.ask("devices")["devices"]]
device = next((id for id in devices if id.startswith("opencl:")), None)
count = 1000
numbers = worker.memory(4 * count)
computed = 0

def scale(buffers, scalars, grid):
    global computed
    computed += 1
    [values], [factor, length] = buffers, scalars
    assert len(values) == length == grid[0], (len(values), scalars, grid)
    for index in range(length):
        values[index] *= factor

def fail(buffers, scalars, grid):
    raise RuntimeError("it was not to be")

source = """__kernel void %s(__global float *values, float factor, uint length) {
    size_t i = get_global_id(0);
    if (i < length) values[i] %s;
}"""

def register(name, body, compute):
    about = [("values", "read_write", "f32")], [("factor", "f32"), ("length", "u32")]
    return worker.register(name, *about, compute, opencl=source % (name, body))

def run(kernel, place):
    values = memoryview(numbers[1]).cast("f")
    for index in range(count):
        values[index] = index
    scalars = [f32(0.5), {"u32": count}]
    try:
        ran = worker.run(kernel, [(*numbers, True)], scalars, (count, 1, 1), place=place)
    except Refused as refused:
        return str(refused)
    right = all(values[index] == index / 2 for index in range(count))
    return f"right on {'the device' if ran['place'] == device else ran['place']}" if right else "wrong"

there = {"device": device} if device else "cpu"
built = register("scale", "*= factor", scale)
print("built:", built.get(device), run("scale", "cpu"), computed)
print("there:", run("scale", there), computed)
# It is told in the words of the compiler, and the CPU computes.
broken = register("broken", "*= undeclared_thing", scale)
print("compile:", device is None or broken[device].startswith("compile: "),
      device is None or "undeclared_thing" in broken[device], run("broken", there))
register("fails", "*= factor", fail)
print("fails:", run("fails", "cpu"))
try:
    register("scale", "*= factor", scale)
except Refused as refused:
    print("twice:", refused)

def wrong(attempt):
    try:
        print(attempt())
    except ValueError as error:
        print("wrong:", error)

wrong(lambda: worker.task("add", [], deadline=float("inf")))
wrong(lambda: worker.task("add", [], deadline=-1.0))
wrong(lambda: worker.wait(10_000))
many = [worker.task("add", [(*numbers, False)] * 3) for _ in range(1000)]
wrong(lambda: worker.submit(*many))
other = worker.memory(8)
worker.forget(other)
print("after:", run("scale", "cpu"), len(worker.pending), len(worker.answers))
print("device" if device else "no device")
"#;

/// A kernel in the language of a device, and the same in Python: each result of the device is compared.
#[test]
fn a_client_in_python_has_kernels_of_its_own() {
    let mut worker = Worker::new(&["--verify-one-in", "1"]);
    let watcher = worker.client();
    let python = Command::new("python3")
        .args(["-B", "-c", OWN_KERNELS])
        .arg(&worker.socket)
        .env("PYTHONPATH", CLIENTS)
        .output();
    let Ok(output) = python else {
        println!("SKIPPED: kernels of a client in Python: no python3");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let there = if text.ends_with("\nno device\n") {
        println!("SKIPPED: kernels of a client in Python on a device: there is none");
        "cpu"
    } else {
        "the device"
    };
    for line in [
        "built: None right on cpu 1\n".to_owned(),
        format!("there: right on {there} 2\n"),
        "compile: True True right on cpu\n".to_owned(),
        "fails: {'failed': 'RuntimeError: it was not to be'}\n".to_owned(),
        "twice: register kernel \"scale\": it was registered already\n".to_owned(),
        "wrong: a deadline of inf s is none; name one from 0 to 1e+13\n".to_owned(),
        "wrong: a deadline of -1.0 s is none; name one from 0 to 1e+13\n".to_owned(),
        "wrong: no task 10000 is waited for; each is waited for once\n".to_owned(),
        "is longer than 163840; submit fewer tasks at once\n".to_owned(),
        "after: right on cpu 0 0\n".to_owned(),
    ] {
        assert!(text.contains(&line), "{line:?} in {text}");
    }
    if let Some(device) = first(&watcher, Backend::Opencl) {
        assert_eq!((device.tasks, device.verified, device.faults), (1, 1, 0));
    }
}

/// What a worker that is no worker would say: texts in UTF-8, and numbers in a locale that has commas.
const WORDS: &str = r#"
#define FOREBAY_ACCEL_IMPLEMENTATION
#include "forebay_accel.h"
#include <locale.h>

static fb_client client;

static void put(const char *text) {
    fb_begin(&client);
    fb_put_text(&client, text);
    printf("%.*s\n", (int)client.used, client.out);
}

static void copied(const char *text, size_t room) {
    char to[64];
    fb_copy_text(text, to, room);
    printf("<%s>\n", to);
}

int main(void) {
    printf("%s\n", setlocale(LC_ALL, "de_DE.UTF-8") ? "commas" : "no such locale");
    put("a\"\\\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\n");
    /* Neither of these is a character, nor is half of one at the end. */
    put("\xff\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80.\xc3");
    copied("\"\\u00e9\\ud83d\\ude00\\ud83dx\\n\\t\\/\\u20AC\xc3\xa9\"", 64);
    copied("\"abc\xc3\xa9\"", 5);
    copied("\"abc\xc3\xa9\"", 6);
    copied("\"\\u12", 64);
    copied("null", 64);
    printf("%d\n", fb_number("12.5,") == 12.5 && fb_number("-1e-7") == -1e-7 &&
                   fb_number("1.5e3}") == 1500 && fb_number("0") == 0 && fb_number(NULL) == 0);
    return 0;
}
"#;

/// By the header in this folder, with everything that a compiler can find fault with.
fn compile_c(source: &Path, program: &Path) -> Option<Output> {
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"])
        .args(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"])
        .arg(format!("-I{CLIENTS}"))
        .arg("-o")
        .arg(program)
        .arg(source)
        .output();
    compiled.ok()
}

#[test]
fn a_client_in_c_reads_and_writes_texts_and_numbers_of_every_language() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("words.c"), folder.path().join("words"));
    std::fs::write(&source, WORDS).unwrap();
    let Some(compiled) = compile_c(&source, &program) else {
        println!("SKIPPED: texts of a client in C: no cc");
        return;
    };
    assert!(compiled.status.success(), "{compiled:?}");
    let output = Command::new(&program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (locale, rest) = text.split_once('\n').unwrap();
    println!("locale of the client in C: {locale}");
    let wanted = "\"a\\\"\\\\é€😀\\u000a\"\n\
                  \"\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd.\\ufffd\"\n\
                  <é😀\u{fffd}x\n\t/€é>\n<abc>\n<abcé>\n<u12>\n<>\n1\n";
    assert_eq!(rest, wanted);
}

/// It looks at results itself: of a batch in any order, of constant memory, of its own kernel.
#[test]
fn a_client_in_c_submits_waits_cancels_and_is_told_what_is_wrong() {
    let mut worker = Worker::new(&[]);
    let watcher = worker.client();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("add");
    let source = PathBuf::from(format!("{CLIENTS}/add.c"));
    let Some(compiled) = compile_c(&source, &program) else {
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
