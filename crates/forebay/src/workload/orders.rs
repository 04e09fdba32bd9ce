//! An HTTP/1.1 service that takes orders: what it executed stands in a file.
//!
//! `GET /...` answers. `POST /order/ID` appends the line `ID` to the file, which all instances share,
//! and then answers: an order that was executed twice stands there twice. `POST /block/MS` blocks the
//! only thread, as a bug in an event loop does. One thread serves all connections.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Error, Lifetime, bind_to_parent};

/// Longest request.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Longest time that a request may block the service.
const BLOCK_MS_MAX: u64 = 60_000;
const PAGE_BYTES: usize = 4096;

/// `forebay workload orders`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Port on 127.0.0.1
    #[arg(long, value_name = "PORT")]
    port: u16,
    /// File that receives the number of each order
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Memory that it holds
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=65_536))]
    memory_mib: u64,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Serves until the process is killed.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let memory = hold(args.memory_mib);
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&args.log)
        .map_err(Error::system(
            "open",
            args.log.display(),
            "check that its directory exists and has room",
        ))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    let failed = |attempt| Error::system(attempt, address, "use another --port");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the runtime for"))?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address)
            .await
            .map_err(failed("listen on"))?;
        let log = Arc::new(log);
        loop {
            let (stream, _) = listener.accept().await.map_err(failed("accept on"))?;
            // It is there for as long as somebody is served.
            std::hint::black_box(&memory);
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                if let Err(error) = converse(stream, &log).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
    })
}

/// Memory whose pages are there.
fn hold(mib: u64) -> Vec<u8> {
    let bytes = usize::try_from(mib << 20).unwrap_or(usize::MAX);
    let mut memory = vec![0; bytes];
    for byte in memory.iter_mut().step_by(PAGE_BYTES) {
        *byte = 1;
    }
    memory
}

async fn converse(mut stream: TcpStream, log: &File) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    loop {
        let Some(length) = request_length(&pending) else {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await?;
            if read == 0 || pending.len() > REQUEST_BYTES_MAX {
                return Ok(());
            }
            pending.extend(buffer.iter().take(read));
            continue;
        };
        let request: Vec<u8> = pending.drain(..length).collect();
        let answer = execute(&String::from_utf8_lossy(&request), log)?;
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// The length of the request that is whole at the beginning of these bytes, if one is.
fn request_length(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(bytes.get(..head)?).to_lowercase();
    let body = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let body: usize = body.map_or(Some(0), |length| length.trim().parse().ok())?;
    (bytes.len() >= head + body).then_some(head + body)
}

fn execute(request: &str, mut log: &File) -> io::Result<String> {
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let mut parts = path.trim_start_matches('/').split('/');
    let status = match (method, parts.next(), parts.next()) {
        ("POST", Some("order"), Some(id)) => {
            log.write_all(format!("{id}\n").as_bytes())?;
            "200 OK"
        }
        ("POST", Some("block"), Some(ms)) => match ms.parse::<u64>() {
            Ok(ms) => {
                std::thread::sleep(Duration::from_millis(ms.min(BLOCK_MS_MAX)));
                "200 OK"
            }
            Err(_) => "400 Bad Request",
        },
        ("GET", ..) => "200 OK",
        _ => "404 Not Found",
    };
    let body = format!("{}\n", std::process::id());
    Ok(format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_with_its_body() {
        let text = b"POST /order/7 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET";
        assert_eq!(request_length(text), Some(text.len() - 3));
        for cut in 0..text.len() - 3 {
            assert_eq!(request_length(&text[..cut]), None, "{cut}");
        }
        assert_eq!(request_length(b"GET / HTTP/1.1\r\n\r\n"), Some(18));
    }

    #[test]
    fn an_order_is_written_before_it_is_answered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = OpenOptions::new().append(true).open(file.path()).unwrap();
        let answer = execute("POST /order/17 HTTP/1.1\r\n\r\n", &log).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            execute("POST /block/x HTTP/1.1", &log)
                .unwrap()
                .contains("400")
        );
        assert!(execute("PUT /", &log).unwrap().contains("404"));
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "17\n");
    }
}
