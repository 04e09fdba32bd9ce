//! How fast contents go over loopback, by hand:
//! `cargo nextest run --release -p forebay -E 'test(contents_per_second)' --run-ignored only --no-capture`.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncReadExt as _;

use super::*;

/// Takes contents in and drops them, as fast as they come.
struct Sink;

impl Handler for Sink {
    async fn answer(&self, _: &Peer, _: Request, body: &mut Body<'_>) -> Answer {
        let bytes = body.copy_to(&mut tokio::io::sink()).await.unwrap();
        Answer::Taken { bytes }
    }
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let nanos = u32::try_from(time.tv_nsec).unwrap();
    std::time::Duration::new(u64::try_from(time.tv_sec).unwrap(), nanos).as_secs_f64()
}

/// A megabyte that is sent again and again; every page differs a little from the next.
struct Pages(Vec<u8>);

impl Pages {
    /// Noise, of which so many bytes of each page are zero.
    fn new(zero: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(5);
        let page = |rng: &mut fastrand::Rng| -> Vec<u8> {
            (0..4096)
                .map(|at| if at < zero { 0 } else { rng.u8(..) })
                .collect()
        };
        Self((0..256).flat_map(|_| page(&mut rng)).collect())
    }

    fn source(&self, megabytes: u64) -> impl tokio::io::AsyncRead + Unpin {
        Cycle {
            bytes: self.0.clone(),
            at: 0,
        }
        .take(megabytes << 20)
    }
}

struct Cycle {
    bytes: Vec<u8>,
    at: usize,
}

impl tokio::io::AsyncRead for Cycle {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let take = buffer.remaining().min(self.bytes.len() - self.at);
        buffer.put_slice(&self.bytes[self.at..self.at + take]);
        self.at = (self.at + take) % self.bytes.len();
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
#[ignore = "a measurement, worth something in a release build on a machine at rest"]
async fn contents_per_second() {
    const MEGABYTES: u64 = 1024;
    let fleet = Fleet::begin();
    // Each side has a thread of its own, as it has on two hosts.
    let (tell, address) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let b = fleet.host("b");
    let sinks = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = Listener::bind(b, None, "127.0.0.1:0").await.unwrap();
            tell.send(listener.address().to_string()).unwrap();
            let end = async {
                ended.await.ok();
            };
            listener.serve(Arc::new(Sink), end).await;
        });
    });
    let address = address.await.unwrap();
    println!("content              way         MiB/s  wire/raw  CPU s per GiB, both sides");
    for (what, zero) in [
        ("noise", 0),
        ("pages, 2/3 zeros", 2730),
        ("pages, 9/10 zeros", 3686),
    ] {
        let pages = Pages::new(zero);
        for compress in [Compress::Never, Compress::Always, Compress::Measured] {
            let mut link = Link::connect(&fleet.host("c"), &name("b"), &address, BOUND)
                .await
                .unwrap();
            let progress = Progress::default();
            let (began, cpu) = (Instant::now(), cpu_s());
            let mut source = pages.source(MEGABYTES);
            let sent = link
                .send(&content(None), &mut source, sending(&progress, compress))
                .await;
            assert_eq!(
                sent.unwrap(),
                Answer::Taken {
                    bytes: MEGABYTES << 20
                }
            );
            let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_s() - cpu);
            let (rate, left) = (
                MEGABYTES as f64 / took,
                progress.wire_bytes() as f64 / progress.bytes() as f64,
            );
            println!("{what:<20} {compress:<10?} {rate:>6.0}  {left:>8.2}  {cpu:>6.2}");
        }
    }
    end.send(()).unwrap();
    sinks.join().unwrap();
}
