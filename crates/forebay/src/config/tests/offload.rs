//! When an app counts as constrained.

use std::time::Duration;

use forebay_core::offload::{Mode, Rules};

use super::*;

#[test]
fn every_key_of_offload_arrives() {
    let config = config(
        r#"
        [offload]
        mode = "act"
        cpu = "70%"
        memory = "71%"
        io = "72%"
        network = "73%"
        cpu_waits = "11%"
        memory_waits = "12%"
        io_waits = "13%"
        errors = "14%"
        response_time = "80ms"
        chance = "10%"
        persistence = "500ms"
        cool_down = "1min"
        settling = "2s"
        [apps.web]
        exec = ["sh"]
        response_time_max = "20ms"
        "#,
    );
    let expected = Rules {
        mode: Mode::Act,
        cpu_percent: 70,
        memory_percent: 71,
        io_percent: 72,
        network_percent: 73,
        cpu_stalled_percent: 11,
        memory_stalled_percent: 12,
        io_stalled_percent: 13,
        errors_percent: 14,
        response_time: Duration::from_millis(80),
        chance_percent: 10,
        persistence: Duration::from_millis(500),
        cool_down: Duration::from_secs(60),
        settling: Duration::from_secs(2),
    };
    assert_eq!(config.policy.offload, expected);
    let web: AppId = "web".parse().unwrap();
    let most = config.policy.apps[&web].response_time_max;
    assert_eq!(most, Some(Duration::from_millis(20)));
}

#[test]
fn what_cannot_be_a_constraint_is_refused() {
    check(
        "[offload]\nmode = \"on\"",
        &["f:2: offload.mode: `on` is not a mode; use off, watch or act"],
    );
    check(
        "[offload]\ncpu = \"0%\"",
        &["f:2: offload.cpu: 0% is no share; write 1% to 100%"],
    );
    check(
        "[offload]\nchance = \"60%\"",
        &["f:2: offload.chance: 60% is more than a forecast can tell; write 1% to 50%"],
    );
    check(
        "[offload]\nsettling = \"10ms\"",
        &["f:2: offload.settling: 10ms is out of bounds; use 1s to 3600s"],
    );
    check_app(
        "response_time_max = \"0s\"",
        &["f:3: apps.a.response_time_max: 0ns is out of bounds; use 1ms to 3600s"],
    );
}
