//! What is wrong is refused, in words that help, and harms nobody else.

use std::time::Duration;

use forebay_accel::client::{Client, Error};
use forebay_accel::task::{Grid, Scalar};

use super::Stage;

fn check(result: Result<impl std::fmt::Debug, Error>, wanted: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert!(error.to_string().contains(wanted), "{error}");
}

#[test]
fn tasks_that_do_not_fit_are_refused() {
    let stage = Stage::new(|_| {}, &[]);
    let client = stage.client();
    let a = client.memory(64).unwrap();
    let mut b = client.memory(64).unwrap();
    let other = stage.client();
    // A number that this client gave to nothing.
    let mut foreign: Vec<_> = (0..9).map(|_| other.memory(64).unwrap()).collect();
    let count = Scalar::U32(16);
    let wait = |task: forebay_accel::client::Task<'_>| task.submit().unwrap().wait();
    check(wait(client.task("none")), "no kernel \"none\"");
    check(wait(client.task("add").input(&a)), "takes 3 buffers");
    let add = |client| forebay_accel::client::Client::task(client, "add");
    let full = add(&client).input(&a).input(&a).output(&mut b);
    check(wait(full), "1 scalars");
    let full = add(&client).input(&a).input(&a).output(&mut b);
    check(wait(full.scalar(Scalar::F32(1.0))), "count is to be U32");
    let full = add(&client).input(&a).input(&a).output(&mut b);
    check(wait(full.scalar(Scalar::U32(17))), "17 elements");
    let out = add(&client).input_part(&a, 0..128).input(&a).output(&mut b);
    check(wait(out.scalar(count)), "not in its memory of 64 bytes");
    let odd = add(&client).input_part(&a, 2..62).input(&a).output(&mut b);
    check(wait(odd.scalar(count)), "whole elements");
    let read = add(&client).input(&a).input(&a).input(&b);
    check(wait(read.scalar(count)), "was given to read");
    let theirs = add(&client).input(&a).input(&a).output(&mut foreign[8]);
    check(wait(theirs.scalar(count)), "is not shared");
    check(client.set_price(0.5), "from 1 to 100");
    check(client.set_price(f64::INFINITY), "from 1 to 100");
    // And one that fits is answered as ever.
    let full = add(&client).input(&a).input(&a).output(&mut b);
    wait(full.scalar(count)).unwrap();
}

#[test]
fn kernels_that_are_wrong_are_refused() {
    let stage = Stage::new(|_| {}, &[]);
    let client = stage.client();
    let register = |change: fn(&mut forebay_accel::wire::Definition)| {
        let mut definition = super::clients::doubling("good");
        change(&mut definition);
        client.register(definition, Box::new(|_| Ok(())))
    };
    check(register(|d| d.name = "add".to_owned()), "built-in");
    check(register(|d| d.name = "a b".to_owned()), "C identifier");
    check(register(|d| d.name = String::new()), "C identifier");
    check(register(|d| d.per_item.clear()), "a number for each buffer");
    check(register(|d| d.signature.buffers.clear()), "1 to 16 buffers");
    check(
        register(|d| d.sources.cuda = Some("x".repeat(70_000).into())),
        "longer than",
    );
    register(|_| ()).unwrap();
    check(register(|_| ()), "registered already");
    let mut memory = client.memory(4).unwrap();
    let mut submit = |grid: [u32; 3]| {
        let task = client.task("doubling").output(&mut memory).grid(Grid(grid));
        task.scalar(Scalar::U32(1)).submit().unwrap().wait()
    };
    check(submit([0, 1, 1]), "no items");
    check(submit([2, 1, 1]), "too few for 2 items");
    check(submit([u32::MAX; 3]), "too few for");
    submit([1, 1, 1]).unwrap();
}

#[test]
fn a_client_that_speaks_nonsense_is_left_and_others_are_not() {
    use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};
    let stage = Stage::new(|_| {}, &[]);
    let client = stage.client();
    let long = vec![b'1'; 180_000];
    for text in [&b"nonsense"[..], b"{}", b"\xff\xfe", b"\"devices\"", &long] {
        for hello in [false, true] {
            let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None);
            let socket = socket.unwrap();
            rustix::net::connect(&socket, &SocketAddrUnix::new(&stage.path).unwrap()).unwrap();
            let send = |bytes: &[u8]| rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL);
            if hello {
                send(br#"{"hello":{"version":1}}"#).unwrap();
            }
            send(text).unwrap();
            if hello && text == b"\"devices\"" {
                continue;
            }
            let mut answer = [0; 65536];
            let mut heard = String::new();
            loop {
                let flags = rustix::net::RecvFlags::empty();
                let (bytes, _) = rustix::net::recv(&socket, &mut answer[..], flags).unwrap();
                if bytes == 0 {
                    break;
                }
                heard.push_str(std::str::from_utf8(&answer[..bytes]).unwrap());
            }
            assert!(heard.contains("refused"), "{heard}");
            let too_long =
                heard.contains("is longer than 163840 bytes; submit fewer tasks at once");
            assert_eq!(too_long, text.len() > 163_840, "{heard}");
        }
    }
    client.stats().unwrap();
}

/// The longest message bounds what is asked at once; what is beyond it harms nothing that was asked before.
#[test]
fn what_is_too_long_for_a_message_is_refused_and_not_waited_for() {
    let stage = Stage::new(|_| {}, &[]);
    for client in [
        stage.client(),
        Client::lasting(&stage.path, Duration::MAX).unwrap(),
    ] {
        let mut a = client.memory(64).unwrap();
        let mut b = client.memory(64).unwrap();
        let many = (0..3000).map(|_| client.task("add").input(&a)).collect();
        check(client.submit(many), "submit 3000 tasks: a message of ");
        a.slice_mut::<u32>().unwrap().fill(0);
        // JSON has six letters for such a one.
        let mut definition = super::clients::doubling("good");
        definition.sources.opencl = Some("\u{1}".repeat(60_000).into());
        let refused = client.register(definition, Box::new(|_| Ok(())));
        check(refused, "is longer than 163840");
        // And the connection is as before.
        let full = client.task("add").input(&a).input(&a).output(&mut b);
        let task = full.scalar(Scalar::U32(16)).submit().unwrap();
        task.wait().unwrap();
    }
}

#[test]
fn times_that_no_clock_holds_have_no_end() {
    let stage = Stage::new(|_| {}, &[]);
    for client in [
        stage.client(),
        Client::lasting(&stage.path, Duration::MAX).unwrap(),
    ] {
        let a = client.memory(64).unwrap();
        let mut b = client.memory(64).unwrap();
        for deadline in [Duration::MAX, Duration::from_micros(u64::MAX)] {
            let full = client.task("add").input(&a).input(&a).output(&mut b);
            let task = full.scalar(Scalar::U32(16)).deadline(deadline);
            let task = task.submit().unwrap();
            let run = task.wait_within(Duration::MAX).unwrap().unwrap();
            assert_eq!(run.place, "cpu");
        }
    }
}
