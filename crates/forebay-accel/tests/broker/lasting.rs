//! Clients that outlive a worker: what was not answered is sent to the next one, and answered once.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_accel::broker;
use forebay_accel::client::{Client, Error, Memory};
use forebay_accel::task::Scalar;
use forebay_accel::wire::Wish;

use super::clients::{self, DOUBLE};
use super::fake::{Fake, Fault, Threads};
use super::{BOUND, Stage};

const ELEMENTS: usize = 256;
/// So long a broker that is ended waits for a device that hangs.
const HANG: Duration = Duration::from_secs(1);

impl Stage {
    /// Ends the broker, and has another one begin at the same place, which knows nothing of its clients.
    fn replace(&mut self, devices: &[Fake]) {
        let options = self.options.clone();
        if let Some(broker) = self.broker.take() {
            broker.stop();
        }
        std::fs::remove_file(&self.path).unwrap();
        let infos = devices.iter().map(|device| device.info.clone()).collect();
        let launcher = Arc::new(Threads(devices.to_vec()));
        self.broker = Some(broker::start(options, infos, launcher).unwrap());
    }
}

#[test]
fn tasks_that_a_worker_took_along_are_answered_once_by_the_next() {
    let fakes = [Fake::new("made-up:0")];
    let change = |options: &mut broker::Options| {
        options.verify_one_in = 1;
        options.run_max = HANG;
    };
    let mut stage = Stage::new(change, &fakes);
    let client = Client::lasting(&stage.path, BOUND).unwrap();
    let computed = Arc::new(AtomicU32::new(0));
    clients::register(&client, DOUBLE, &computed);
    let mut memories: Vec<_> = (0..8)
        .map(|_| client.memory(ELEMENTS * 4).unwrap())
        .collect();
    let count = Scalar::U32(u32::try_from(ELEMENTS).unwrap());
    for round in 1..=3_u32 {
        // One of them hangs there while the worker goes, the others wait behind it.
        *fakes[0].faults.lock().unwrap() = [Some(Fault::Hang)].into();
        let runs = fakes[0].runs.load(Ordering::SeqCst);
        let mut handles = Vec::new();
        for (number, memory) in (0_u32..).zip(&mut memories) {
            memory
                .slice_mut::<u32>()
                .unwrap()
                .fill(round * 100 + number);
            let task = clients::double(&client, memory, count);
            let task = task.place(Wish::Device(fakes[0].info.id.clone()));
            handles.push(task.submit().unwrap());
        }
        super::wait_until("one of them runs", || {
            fakes[0].runs.load(Ordering::SeqCst) > runs
        });
        stage.replace(&fakes);
        for handle in handles {
            handle.wait().unwrap();
        }
        for (number, memory) in (0_u32..).zip(&memories) {
            let doubled = 2 * (round * 100 + number);
            let numbers = memory.slice::<u32>().unwrap();
            assert!(
                numbers.iter().all(|found| *found == doubled),
                "{number}: {}",
                numbers[0]
            );
        }
        // Questions go on, too.
        let stats = client.stats().unwrap();
        assert_eq!((stats.failed, stats.queued), (0, 0));
    }
}

#[test]
fn what_would_be_begun_twice_is_refused_and_a_worker_that_never_comes_is_told() {
    let fakes = [Fake::new("made-up:0")];
    let mut stage = Stage::new(|options| options.run_max = HANG, &fakes);
    let client = Client::lasting(&stage.path, Duration::from_millis(100)).unwrap();
    let computed = Arc::new(AtomicU32::new(0));
    clients::register(&client, DOUBLE, &computed);
    let mut memory = client.memory(ELEMENTS * 4).unwrap();
    let count = Scalar::U32(u32::try_from(ELEMENTS).unwrap());
    let device = Wish::Device(fakes[0].info.id.clone());
    *fakes[0].faults.lock().unwrap() = [Some(Fault::Hang)].into();
    let task = clients::double(&client, &mut memory, count).place(device);
    let first = task.submit().unwrap();
    let second = clients::double(&client, &mut memory, count).submit();
    assert!(matches!(second, Err(Error::Memory(_))), "{second:?}");
    stage.broker.take().unwrap().stop();
    std::fs::remove_file(&stage.path).unwrap();
    let lost = first.wait();
    assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
    let asked = client.stats();
    assert!(matches!(asked, Err(Error::Lost(_))), "{asked:?}");
    // The memory is this process's own, whoever is lost.
    assert_eq!(memory.slice::<u32>().unwrap().len(), ELEMENTS);
}

/// A worker that closes the connection when it has its first task, and is at work still: the memory that it
/// was given, to write to. The socket stays behind.
fn lost_at_work(path: &Path) -> JoinHandle<OwnedFd> {
    use rustix::net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags,
        SocketAddrUnix, SocketType, accept, bind, listen, recvmsg, send, socket,
    };
    let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&listener, 1).unwrap();
    std::thread::spawn(move || {
        let client = accept(&listener).unwrap();
        drop(listener);
        let mut memory = None;
        loop {
            let mut bytes = vec![0; 1 << 16];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &client,
                &mut [std::io::IoSliceMut::new(&mut bytes)],
                &mut beside,
                RecvFlags::CMSG_CLOEXEC,
            );
            let length = received.unwrap().bytes;
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(mut files) = message {
                    memory = files.next();
                }
            }
            let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let reply = match said.split('"').nth(1).unwrap() {
                "hello" => r#"{"welcome":{"version":1}}"#,
                "register" => r#"{"registered":{"builds":[]}}"#,
                "share" => r#""done""#,
                "submit" => {
                    let memory = memory.unwrap();
                    scribble(&memory, 1000);
                    return memory;
                }
                other => panic!("{other}"),
            };
            send(&client, reply.as_bytes(), SendFlags::NOSIGNAL).unwrap();
        }
    })
}

/// As a task does that writes all of its memory.
fn scribble(memory: &OwnedFd, number: u32) {
    let bytes = number.to_ne_bytes().repeat(ELEMENTS);
    assert_eq!(rustix::io::pwrite(memory, &bytes, 0).unwrap(), bytes.len());
}

impl Stage {
    /// Ends the broker, and has one that will be lost take its place.
    fn with_lost_at_work(&mut self) -> JoinHandle<OwnedFd> {
        self.broker.take().unwrap().stop();
        std::fs::remove_file(&self.path).unwrap();
        lost_at_work(&self.path)
    }
}

#[test]
fn a_worker_that_is_lost_and_at_work_spoils_no_result_of_the_next() {
    let mut stage = Stage::new(|_| {}, &[]);
    let lost = stage.with_lost_at_work();
    // And it waits for another one for as long as there is time.
    let client = Client::lasting(&stage.path, Duration::MAX).unwrap();
    clients::register(&client, DOUBLE, &Arc::new(AtomicU32::new(0)));
    let mut memory = client.memory(ELEMENTS * 4).unwrap();
    memory.slice_mut::<u32>().unwrap().fill(3);
    let count = Scalar::U32(u32::try_from(ELEMENTS).unwrap());
    let task = clients::double(&client, &mut memory, count);
    let task = task.submit().unwrap();
    let held = lost.join().unwrap();
    stage.replace(&[]);
    task.wait().unwrap();
    let holds = |memory: &Memory, wanted: u32| {
        let numbers = memory.slice::<u32>().unwrap();
        assert!(numbers.iter().all(|one| *one == wanted), "{}", numbers[0]);
    };
    holds(&memory, 6);
    scribble(&held, 77);
    holds(&memory, 6);
    // It is memory as before, of the client and of the worker that it has now.
    memory.slice_mut::<u32>().unwrap()[0] = 6;
    let task = clients::double(&client, &mut memory, count);
    task.submit().unwrap().wait().unwrap();
    scribble(&held, 78);
    holds(&memory, 12);
}

#[test]
fn what_a_lost_worker_may_still_write_is_not_given_back() {
    let mut stage = Stage::new(|_| {}, &[]);
    for lasting in [false, true] {
        if stage.broker.is_none() {
            stage.replace(&[]);
        }
        let lost = stage.with_lost_at_work();
        let client = if lasting {
            Client::lasting(&stage.path, Duration::from_millis(10))
        } else {
            Client::connect(&stage.path)
        };
        let client = client.unwrap();
        let mut memory = client.memory(ELEMENTS * 4).unwrap();
        let count = Scalar::U32(u32::try_from(ELEMENTS).unwrap());
        let task = clients::double(&client, &mut memory, count);
        let outcome = task.submit().unwrap().wait();
        assert!(matches!(outcome, Err(Error::Lost(_))), "{outcome:?}");
        let held = lost.join().unwrap();
        memory.slice_mut::<u32>().unwrap().fill(5);
        scribble(&held, 77);
        let numbers = memory.slice::<u32>().unwrap();
        assert!(numbers.iter().all(|one| *one == 5), "{}", numbers[0]);
    }
}

#[test]
fn a_task_that_would_write_outside_of_its_memory_is_refused() {
    let stage = Stage::new(|_| {}, &[]);
    let client = Client::lasting(&stage.path, BOUND).unwrap();
    let mut memory = client.memory(64).unwrap();
    for part in [0..65, 64..65, usize::MAX - 1..usize::MAX] {
        let task = client.task("sort").output_part(&mut memory, part);
        let error = task.submit().unwrap_err().to_string();
        assert!(error.contains("not in its memory of 64 bytes"), "{error}");
    }
    assert_eq!(memory.slice::<u8>().unwrap().len(), 64);
}
