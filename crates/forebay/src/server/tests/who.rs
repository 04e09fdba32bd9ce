//! Who gets in, and who may do what.

use std::os::unix::fs::PermissionsExt as _;

use axum::body::Body;
use axum::http::{Request, header};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use rustix::process::Uid;

use super::*;
use crate::server::peer::Peer;
use crate::server::ticks::Ticks;

/// Nobody in particular.
const SOMEBODY: u32 = 65_534;

/// How many of some connections are answered, which stay open, and how the others are refused.
fn connect(path: &std::path::Path, count: usize) -> (Vec<UnixStream>, Vec<String>) {
    let request = b"GET /v1/status HTTP/1.1\r\nhost: forebay\r\n\r\n";
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut stream = UnixStream::connect(path).unwrap();
        // One that is refused may be closed already.
        stream.write_all(request).ok();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        if &status == b"HTTP/1.1 200" {
            open.push(stream);
        } else {
            // It ends in a reset, since the request was not read.
            let mut answer = status.to_vec();
            stream.read_to_end(&mut answer).ok();
            refused.push(String::from_utf8_lossy(&answer).into_owned());
        }
    }
    (open, refused)
}

/// Who takes all that it may have leaves room for others, over TCP as well.
#[tokio::test]
async fn one_user_cannot_have_all_connections() {
    if !rustix::process::geteuid().is_root() {
        println!(
            "SKIPPED: one_user_cannot_have_all_connections: it becomes another user, as only root may"
        );
        return;
    }
    let fixture = Fixture::start().await;
    let path = fixture.client.path().to_owned();
    let tcp = fixture.tcp;
    let open_to_all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path.parent().unwrap(), open_to_all).unwrap();
    let asked = tokio::task::spawn_blocking(move || {
        let all = &path;
        let other = std::thread::scope(|scope| {
            let other = scope.spawn(move || {
                // It is this thread alone that is somebody else from now on.
                rustix::thread::set_thread_uid(Uid::from_raw(SOMEBODY)).unwrap();
                let (open, refused) = connect(all, 28);
                // It has its share, by whichever way it comes.
                let mut stream = std::net::TcpStream::connect(tcp).unwrap();
                let mut over_tcp = String::new();
                stream.read_to_string(&mut over_tcp).unwrap();
                (open, refused, over_tcp)
            });
            other.join().unwrap()
        });
        let (open, refused) = connect(&path, 48);
        (other, open.len(), refused.len())
    });
    let ((others, refused, over_tcp), root, root_refused) = asked.await.unwrap();
    assert_eq!((others.len(), refused.len()), (24, 4));
    for refusal in refused.iter().chain([&over_tcp]) {
        assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
        assert!(refusal.contains("you have 24 connections"), "{refusal}");
    }
    assert_eq!((root, root_refused), (40, 8));
    // What was ended makes room.
    drop(others);
    fixture.stop().await;
}

/// The document of the API says of each operation who may ask for it, and the server keeps to that.
#[tokio::test]
async fn the_document_says_who_may_do_what() {
    let group = 990;
    let peers = |uid, gid| Peer::Process {
        uid,
        gid,
        groups: Vec::new(),
    };
    for readers in [Readers::Anyone, Readers::Group] {
        let rules = Rules {
            group: Some(group),
            readers,
        };
        let (commands, received) = sync_channel(1);
        // Nothing is to come of it.
        drop(received);
        let (_reports, latest) = watch::channel(None);
        let (teller, _listener) = crate::signals::board();
        let server = Arc::new(Server {
            state: state(latest, commands, rules, teller),
            feed: Feed::new(),
            ticks: Ticks::default(),
        });
        let service = TowerToHyperService::new(routes::router(&server));
        let document = openapi();
        let mut operations = 0;
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                operations += 1;
                let access = operation["x-forebay-access"].as_str().unwrap();
                let told = operation["responses"]["403"].is_object();
                assert_eq!(told, access != "look", "{method} {path}");
                let look = readers == Readers::Anyone && access == "look";
                for (who, peer, may) in [
                    ("root", peers(0, 0), true),
                    ("the group", peers(1000, group), access != "root"),
                    ("somebody", peers(1000, 1000), look),
                    ("somebody over TCP", Peer::Loopback, access == "look"),
                ] {
                    let mut request = Request::builder()
                        .method(method.to_ascii_uppercase().as_str())
                        .uri(path.replace(['{', '}'], ""))
                        .header(header::HOST, "localhost")
                        .body(Body::empty())
                        .unwrap();
                    request.extensions_mut().insert(peer);
                    let answer = service.call(request).await.unwrap();
                    let allowed = answer.status() != 403;
                    assert_eq!(allowed, may, "{method} {path} for {who}, {readers:?}");
                }
            }
        }
        assert!(operations > 40, "{operations}");
    }
}
