//! The section `accelerators` of an app.

use forebay_accel::client::SOCKET_VARIABLE;
use forebay_core::accel::{Accelerators, Priority};
use forebay_core::app::Binding;
use forebay_core::units::{Bytes, Limit};

use super::{check, check_app, config};

#[test]
fn every_key_of_accelerators_arrives_and_the_program_is_told() {
    let config = config(
        r#"
        [daemon]
        socket = "/run/f/f.sock"
        [apps.a]
        exec = ["sh"]
        accelerators = { allow = ["opencl:0:0"], deny = ["cuda:0"], time = "40%", memory = "1GiB", priority = "low" }
        [apps.b]
        exec = ["sh"]
        environment = { FOREBAY_ACCEL_SOCKET = "/own" }
        accelerators = {}
        "#,
    );
    let app = |name: &str| &config.policy.apps[&name.parse().unwrap()];
    let variable = |name| match &app(name).binding {
        Binding::Exec(exec) => exec.environment[SOCKET_VARIABLE].clone(),
        other => panic!("{other:?}"),
    };
    let expected = Accelerators {
        allow: vec!["opencl:0:0".to_owned()],
        deny: vec!["cuda:0".to_owned()],
        time_percent: 40,
        memory: Limit::At(Bytes::mib(1024)),
        priority: Some(Priority::Low),
    };
    assert_eq!(app("a").accelerators, Some(expected));
    assert_eq!(variable("a"), "/run/f/accel/a/socket");
    assert_eq!(app("b").accelerators, Some(Accelerators::default()));
    assert_eq!(variable("b"), "/own");
}

#[test]
fn what_cannot_be_is_refused() {
    check_app(
        "accelerators = { time = \"0%\" }",
        &["f:3: apps.a.accelerators.time: 0% is no share; write 1% to 100%"],
    );
    check_app(
        "accelerators = { allow = [\"x\"], deny = [\"x\"] }",
        &["f:3: apps.a.accelerators: `x` is allowed and denied; keep one of the two"],
    );
    let copied = "apps.a.accelerators: a connection to a worker cannot be in an image, nor go along with \
                  its memory; leave out `accelerators`, or `images` and move.mode = \"checkpoint\"";
    check_app(
        "images = {}\naccelerators = {}",
        &[&format!("f:4: {copied}")],
    );
    check_app(
        "move = { mode = \"checkpoint\" }\naccelerators = {}",
        &[&format!("f:4: {copied}")],
    );
    check_app("move = { mode = \"restart\" }\naccelerators = {}", &[]);
    check(
        "[apps.a]\ncgroup = \"/x\"\naccelerators = {}",
        &[
            "f:3: apps.a.accelerators: only an app that Forebay starts has this key; take it out, or \
             bind the app with `exec`",
        ],
    );
    let long = "x".repeat(100);
    check(
        &format!(
            "[daemon]\nsocket = \"/run/{long}/f.sock\"\n[apps.a]\nexec = [\"sh\"]\naccelerators = {{}}"
        ),
        &[&format!(
            "f:3: apps.a.accelerators: /run/{long}/accel/a/socket is longer than 107 bytes; set \
             daemon.socket to a shorter path: workers listen beside it"
        )],
    );
}
