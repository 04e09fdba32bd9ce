//! The real server against its own OpenAPI document: each path and method, with what the document allows
//! and with what it does not. It answers everything as documented, never with a 5xx, and lives on.

mod generate;
mod schema;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

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
const METHODS: [&str; 5] = ["get", "post", "patch", "put", "delete"];

#[test]
fn the_server_keeps_to_its_openapi_document_whatever_it_is_asked() {
    let name = "the_server_keeps_to_its_openapi_document_whatever_it_is_asked";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    place.configure(&format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n\
         [apps.crunch]\nclass = \"batch\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1),
        place.seconds(2)
    ));
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
                let status = match judge(&socket, &request, operation, &schemas) {
                    Ok(status) => status,
                    Err(why) => {
                        wrong.push(format!("round {round}: {request:?}: {why}"));
                        continue;
                    }
                };
                asked += u32::from(!operation.is_null());
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
    socket: &Path,
    request: &Request,
    operation: &Value,
    schemas: &Schemas<'_>,
) -> Result<u16, String> {
    let stream = send(socket, request);
    let content = operation["responses"]["200"]["content"]
        .as_object()
        .and_then(|content| content.iter().next());
    let (status, body) = match content {
        Some((kind, _)) if kind == "text/event-stream" => first_event(stream),
        _ => answer(stream),
    };
    let wrong = |why: &str| Err(format!("{status}: {why}: {body}"));
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

fn send(socket: &Path, request: &Request) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&request.head()).unwrap();
    // A daemon that refuses early does not read to the end.
    stream.write_all(&request.body).ok();
    stream
}

/// The status, and what the first event of a stream has; all of an answer that is none.
fn first_event(mut stream: UnixStream) -> (u16, String) {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = stream.read(&mut part).unwrap_or(0);
        bytes.extend_from_slice(&part[..length]);
        let text = String::from_utf8_lossy(&bytes);
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
