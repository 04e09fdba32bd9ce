//! The real server against its own OpenAPI document: each path and method, with what the document allows
//! and with what it does not, by root at its socket and by somebody over TCP. It answers everything as
//! documented, refuses who may not by what the document says and nobody else, never answers with a 5xx, and lives on.

mod generate;
mod schema;

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fronts::free_port;
use crate::http::answer;
use crate::place::{PATIENCE, Place};
use generate::Request;
use schema::Schemas;

/// Rounds through all operations that are always made.
const ROUNDS_MIN: u64 = 4;
/// More are made until then.
const TIME: Duration = Duration::from_secs(8);
/// Reproduces a run: what fails says the number of its round, which is its seed.
const SEED: u64 = 0x0f0e_bae5;
/// Longer ones are asked at the socket alone: over TCP the answer to one that is refused unread may be lost.
const OVER_TCP_MAX: usize = 4096;
const METHODS: [&str; 5] = ["get", "post", "patch", "put", "delete"];

/// By which way something is asked.
#[derive(Debug, Clone, Copy)]
enum Way<'a> {
    /// As root, who may do everything.
    Socket(&'a Path),
    /// As somebody, who may only look.
    Tcp(SocketAddr),
}

#[test]
fn the_server_keeps_to_its_openapi_document_whatever_it_is_asked() {
    let name = "the_server_keeps_to_its_openapi_document_whatever_it_is_asked";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let tcp = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let apps = format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n\
         [apps.crunch]\nclass = \"batch\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1),
        place.seconds(2)
    );
    place.configure_daemon(&format!("http = \"{tcp}\""), &apps);
    let daemon = place.start();
    place.await_pid("web");
    let socket = place.path("socket");
    let (status, document) = crate::http::request(&socket, "GET", "/openapi.json", "");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&document).unwrap();
    let schemas = Schemas::new(&document);
    assert_eq!(
        schemas.unknown(),
        Vec::<String>::new(),
        "the check would pass over these"
    );

    let beginning = Instant::now();
    let mut wrong: Vec<String> = Vec::new();
    let (mut round, mut asked, mut succeeded) = (0, 0, 0);
    while wrong.is_empty() && (round < ROUNDS_MIN || beginning.elapsed() < TIME) {
        let mut random = fastrand::Rng::with_seed(SEED ^ round);
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in METHODS {
                let operation = &operations[method];
                // What a path does not take is refused alike each time.
                if operation.is_null() && round > 0 {
                    continue;
                }
                let request = Request::make(path, method, operation, &schemas, &mut random);
                let way = match round % 2 == 1 && request.body.len() < OVER_TCP_MAX {
                    true => Way::Tcp(tcp),
                    false => Way::Socket(&socket),
                };
                let status = match judge(way, &request, operation, &schemas) {
                    Ok(status) => status,
                    Err(why) => {
                        wrong.push(format!("round {round}: {way:?}: {request:?}: {why}"));
                        continue;
                    }
                };
                asked += u32::from(!operation.is_null() && status != 403);
                succeeded += u32::from(status == 200);
            }
        }
        round += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{asked} requests in {round} rounds, {succeeded} of them done");
    // Were all refused at the door, nothing would have been tried.
    assert!(
        succeeded * 10 > asked,
        "only {succeeded} of {asked} were done"
    );
    assert!(!place.log().contains("panicked"), "{}", place.log());
    assert_eq!(place.daemon_pid(), daemon);
    place.json(&["status"]);
    place.stop_well();
}

/// Sends a request and holds the answer against the document; its status, or what is wrong.
fn judge(
    way: Way<'_>,
    request: &Request,
    operation: &Value,
    schemas: &Schemas<'_>,
) -> Result<u16, String> {
    let stream = send(way, request);
    let content = operation["responses"]["200"]["content"]
        .as_object()
        .and_then(|content| content.iter().next());
    let (status, body) = match content {
        Some((kind, _)) if kind == "text/event-stream" => first_event(stream),
        _ => answer(stream),
    };
    let wrong = |why: &str| Err(format!("{status}: {why}: {body}"));
    let may = match way {
        Way::Socket(_) => true,
        Way::Tcp(_) => operation["x-forebay-access"] == "look",
    };
    // An empty part of a path makes it another one, which is not there.
    let kept_to = match may {
        true => status != 403,
        false => matches!(status, 403..=405),
    };
    if !operation.is_null() && !kept_to {
        return wrong("the document says otherwise of who may");
    }
    let expected = match (operation.is_null(), status) {
        (_, 500..) => return wrong("the server is at fault"),
        (true, ..400) => return wrong("the document has nothing of it"),
        (false, 200) => match content {
            Some((kind, content))
                if kind.starts_with("application/json") || kind == "text/event-stream" =>
            {
                &content["schema"]
            }
            // Metrics, and the document itself.
            _ => return Ok(status),
        },
        _ => &schemas.problem,
    };
    let value = match serde_json::from_str(&body) {
        Ok(value) => value,
        Err(error) => return wrong(&error.to_string()),
    };
    match schemas.check(&value, expected) {
        Ok(()) => Ok(status),
        Err(why) => wrong(&why),
    }
}

fn send(way: Way<'_>, request: &Request) -> Box<dyn Read> {
    match way {
        Way::Socket(socket) => {
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&request.head()).unwrap();
            // A daemon that refuses early does not read to the end.
            stream.write_all(&request.body).ok();
            Box::new(stream)
        }
        Way::Tcp(address) => {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let whole = [request.head(), request.body.clone()].concat();
            stream.write_all(&whole).unwrap();
            Box::new(stream)
        }
    }
}

/// The status, and what the first event of a stream has; all of an answer that is none.
fn first_event(mut stream: Box<dyn Read>) -> (u16, String) {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = stream.read(&mut part).unwrap_or(0);
        bytes.extend_from_slice(&part[..length]);
        let text = unchunked(&bytes);
        let event = text
            .split_once("data:")
            .and_then(|(_, rest)| rest.split_once("\n\n"));
        if let Some((data, _)) = event {
            let (status, _) = answer(bytes.as_slice());
            return (status, data.trim().to_owned());
        }
        if length == 0 {
            return answer(bytes.as_slice());
        }
    }
}

/// As much of a body in chunks as is there whole.
fn unchunked(answer: &[u8]) -> String {
    let end_of = |bytes: &[u8], end: &[u8]| bytes.windows(end.len()).position(|part| part == end);
    let mut body = Vec::new();
    let mut rest = match end_of(answer, b"\r\n\r\n") {
        Some(end) => &answer[end + 4..],
        None => return String::new(),
    };
    while let Some(end) = end_of(rest, b"\r\n") {
        let length = std::str::from_utf8(&rest[..end]).ok();
        let length = length.and_then(|length| usize::from_str_radix(length, 16).ok());
        let Some(chunk) = length.and_then(|length| rest.get(end + 2..end + 2 + length)) else {
            break;
        };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 2 + chunk.len() + 2..).unwrap_or_default();
    }
    String::from_utf8_lossy(&body).into_owned()
}
