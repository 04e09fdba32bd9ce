//! An app that moves, and its tasks with it: daemons of two hosts on one machine, a worker beside the app on
//! each, and an app that notes each answer in a file which moves along.

use std::fs;
use std::process::Command;

use forebay_accel::client::Client;

use crate::moves::{Fleet, SHARED, status};
use crate::place::{eventually, processes};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/accel");

/// Goes on from the last answer that is noted. Tasks that were under way when the program was ended are
/// submitted again, since nothing is noted of them.
const PROGRAM: &str = r#"
import os, struct, sys, time
sys.path.insert(0, sys.argv[1])
from forebay_accel import Worker
COUNT, TOGETHER = 4096, 8
folder, host = sys.argv[2], open(sys.argv[3]).read()
os.makedirs(folder, exist_ok=True)
answers, asked = (open(f"{folder}/{name}", "a+") for name in ("answers", "asked"))
answers.seek(0)
lines = answers.read().splitlines()
done = int(lines[-1].split()[0]) if lines else 0
while True:
    try:
        worker = Worker(os.environ["FOREBAY_ACCEL_SOCKET"])
        break
    except OSError:
        time.sleep(0.05)
half = worker.constant(struct.pack(f"{COUNT}f", *([0.5] * COUNT)))
inputs, sums = ([worker.memory(4 * COUNT) for _ in range(TOGETHER)] for _ in range(2))
while True:
    tasks = []
    for number, (a, to) in enumerate(zip(inputs, sums), done + 1):
        a[1][:] = struct.pack("f", number) * COUNT
        buffers = [(*a, False), (*half, False), (*to, True)]
        tasks.append(worker.task("add", buffers, [{"u32": COUNT}]))
    print(done + 1, done + TOGETHER, host, file=asked, flush=True)
    for task, to in zip(worker.submit(*tasks), sums):
        place = worker.wait(task)["place"]
        done += 1
        first, last = struct.unpack_from("f", to[1])[0], struct.unpack_from("f", to[1], 4 * COUNT - 4)[0]
        print(done, first, last, place, host, file=answers, flush=True)
        time.sleep(0.002)
"#;

/// What a host has of the answers: one for each number, none twice, each right. Hosts by number.
fn answered(fleet: &Fleet, name: &str) -> Vec<String> {
    let file = fleet.place(name).path("srv/tasks/answers");
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |(line, number): (&str, u32)| {
        let words: Vec<&str> = line.split(' ').collect();
        let [found, first, last, _, host] = words[..] else {
            panic!("{name}: {line}");
        };
        let wanted = f64::from(number) + 0.5;
        assert_eq!(found.parse(), Ok(number), "{name}: {line}");
        assert_eq!(
            (first.parse(), last.parse()),
            (Ok(wanted), Ok(wanted)),
            "{name}: {line}"
        );
        host.to_owned()
    };
    whole.lines().zip(1..).map(line).collect()
}

/// The workers of a host that listen for the app.
fn workers(fleet: &Fleet, name: &str) -> Vec<u32> {
    let socket = fleet
        .place(name)
        .path("accel/tasks/socket")
        .display()
        .to_string();
    processes(|words| words.contains(&socket))
}

#[test]
fn tasks_follow_an_app_that_moves_and_each_is_answered_once() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("SKIPPED: tasks that follow: no python3");
        return;
    }
    let started = Fleet::start_with("tasks that follow", &["a", "b"], |place| {
        let program = place.path("tasks.py");
        fs::write(&program, PROGRAM).unwrap();
        format!(
            "[apps.tasks]\nrestart = \"always\"\naccelerators = {{}}\nceiling = {{ cpu = 0.5 }}\n\
             exec = [\"python3\", \"-B\", \"{}\", \"{CLIENTS}\", \"{SHARED}/tasks\", \"{SHARED}/name\"]\n\
             move = {{ mode = \"restart\", files = [\"{SHARED}/tasks\"] }}\n",
            program.display()
        )
    });
    let Some(fleet) = started else { return };
    let owns = |name: &str| {
        let owns = &status(fleet.place(name))["owns"];
        owns.as_array().unwrap().contains(&"tasks".into())
    };
    eventually("its owner knows", || owns("a") != owns("b"));
    let [first, second] = if owns("a") { ["a", "b"] } else { ["b", "a"] };
    eventually("tasks are answered", || answered(&fleet, first).len() > 20);

    for (from, to) in [(first, second), (second, first)] {
        let moved = fleet.place(from).json(&["move", "tasks", "--to", to]);
        assert_eq!(moved["stage"], "moved", "{moved}");
        let before = answered(&fleet, from);
        eventually("tasks are answered there", || {
            answered(&fleet, to).len() > before.len() + 20
        });
        let after = answered(&fleet, to);
        assert_eq!(after[..before.len()], before, "what was answered stays so");
        assert!(after[before.len()..].iter().all(|host| host == to));
        let socket = fleet.place(to).path("accel/tasks/socket");
        let stats = Client::connect(socket).unwrap().stats().unwrap();
        assert!(stats.on_cpu + stats.on_devices >= 20, "{stats:?}");
        assert_eq!((stats.failed, stats.refused), (0, 0));
        assert_eq!(workers(&fleet, to).len(), 1);
        eventually("nobody works where it was", || {
            workers(&fleet, from).is_empty()
        });
        let asked = fs::read_to_string(fleet.place(to).path("srv/tasks/asked")).unwrap();
        let again = before.len() + 1;
        println!(
            "{from} to {to}: number {again} was the first there; submitted: {:?}",
            {
                let lines = asked.lines().filter(|line| {
                    let mut numbers = line.split(' ').map_while(|word| word.parse::<usize>().ok());
                    let (low, high) = (numbers.next().unwrap(), numbers.next().unwrap());
                    (low..=high).contains(&again)
                });
                lines.collect::<Vec<_>>()
            }
        );
    }
}
