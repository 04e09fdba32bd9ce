//! A process moves to another network under its client, as `bench move` does it.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::place::EXE;

/// It keeps its connection and every page, by pre-copy and by CRIU alone, and nothing of it is left.
#[test]
fn a_process_that_moves_keeps_its_memory_and_its_client() {
    let skip = |reason: &str| {
        println!("SKIPPED: a_process_that_moves_keeps_its_memory_and_its_client: {reason}");
    };
    if !rustix::process::geteuid().is_root() {
        return skip("not root");
    }
    for (program, word) in [("ip", "-V"), ("bash", "--version"), ("unshare", "-V")] {
        if !Command::new(program)
            .arg(word)
            .output()
            .is_ok_and(|o| o.status.success())
        {
            return skip(&format!("no {program}"));
        }
    }
    let own = ["--net", "--pid", "--fork", "--mount-proc", "true"];
    let tried = Command::new("unshare").args(own).output().unwrap();
    if !tried.status.success() {
        return skip("no networks and process numbers of its own");
    }
    let dir = tempfile::tempdir().unwrap();
    let result = dir.path().join("result.json");
    let output = Command::new(&*EXE)
        .args(["bench", "move", "--memory", "16", "--repetitions", "1"])
        .arg("--json")
        .arg(&result)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("none works with this kernel") {
        return skip("no CRIU that works with this kernel");
    }
    // How long it stood is for whoever measures on a machine that is idle.
    let text = fs::read_to_string(&result).unwrap_or_else(|error| panic!("{error}: {said}"));
    let result: Value = serde_json::from_str(&text).unwrap();
    let moves = result["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 2);
    for moved in moves {
        assert_eq!(moved["is_whole"], true, "{moved}");
        assert_eq!(moved["is_monotonic"], true, "{moved}");
        assert_eq!(moved["source_is_gone"], true, "{moved}");
    }
    let filled = moves[0]["target"]["filled_mib"].as_f64().unwrap();
    assert!(filled >= 16.0, "{filled}");
    let left = fs::read_dir("/dev/shm").unwrap().flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Others may measure meanwhile; those have processes.
        name.strip_prefix("forebay-bench-move-")
            .is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists())
    });
    assert_eq!(left.count(), 0);
}
