//! The page that the daemon keeps by itself.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::fronts::free_port;
use crate::http::answer;
use crate::place::{PATIENCE, Place, eventually, signal};

/// The process of the page: the daemon's child that has `--kept` on its command line.
fn page(place: &Place) -> Option<u32> {
    let daemon = place.daemon_pid();
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let mut children = children.split_whitespace();
    let kept = children.find(|child| {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"--kept")
    });
    kept.map(|child| child.parse().unwrap())
}

fn ask(port: u16, method: &str, uri: &str, token: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{method} {uri} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
    )
    .unwrap();
    Some(answer(stream))
}

#[test]
fn the_daemon_keeps_a_page_with_fewer_rights_and_takes_it_away() {
    let test = "the_daemon_keeps_a_page_with_fewer_rights_and_takes_it_away";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let port = free_port();
    place.configure(&format!("[dashboard]\nlisten = \"127.0.0.1:{port}\"\n"));
    place.start();
    let file = place.path("dashboard.url");
    let address = fs::read_to_string(&file).unwrap();
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "others must not read it: {mode:o}");
    let head = format!("http://127.0.0.1:{port}/#token=");
    let token = address.trim().strip_prefix(&head).unwrap().to_owned();

    let well =
        |token: &str| ask(port, "GET", "/v1/status", token).is_some_and(|(code, _)| code == 200);
    eventually("the page answers", || well(&token));
    let (code, body) = ask(port, "GET", "/v1/status", "wrong").unwrap();
    assert_eq!(code, 401, "{body}");
    let (code, body) = ask(port, "POST", "/v1/pause", &token).unwrap();
    assert_eq!(code, 403, "{body}");

    // It is nobody, and no secret is where others look.
    let first = page(&place).unwrap();
    let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    let ids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert!(!ids.split_whitespace().skip(1).any(|id| id == "0"), "{ids}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let line = fs::read(format!("/proc/{first}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&line).contains(&token));

    // One that is lost is started again, at the same address.
    signal(first, Signal::KILL);
    eventually("another page", || {
        page(&place).is_some_and(|pid| pid != first)
    });
    eventually("it answers", || well(&token));

    place.stop_well();
    assert!(!file.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_page_goes_with_a_daemon_that_is_killed() {
    let Some(mut place) = Place::new("a_page_goes_with_a_daemon_that_is_killed") else {
        return;
    };
    let port = free_port();
    place.configure(&format!("[dashboard]\nlisten = \"127.0.0.1:{port}\"\n"));
    place.start();
    eventually("the page listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    place.crash();
    eventually("the page is gone", || {
        TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    // The next one has its address again.
    place.start();
    eventually("the page is back", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    place.stop_well();
}

#[test]
fn what_a_killed_daemon_had_beside_its_socket_goes() {
    let Some(mut place) = Place::new("what_a_killed_daemon_had_beside_its_socket_goes") else {
        return;
    };
    let port = free_port();
    place.configure(&format!(
        "[dashboard]\nlisten = \"127.0.0.1:{port}\"\n\
         [apps.kept]\nclass = \"standard\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    let files = ["socket", "socket.update", "dashboard.url"].map(|name| place.path(name));
    let are_there = || files.clone().map(|file| file.exists());
    place.start();
    place.await_pid("kept");
    assert_eq!(are_there(), [true; 3]);
    place.crash();
    // Before its lease is over another daemon may come, which has them again.
    place.start();
    assert_eq!(are_there(), [true; 3]);
    place.crash();
    eventually("nothing is left", || are_there() == [false; 3]);
    place.start();
    place.stop_well();
}

/// Makes a certificate of a name by openssl: its own authority, or one of another's.
fn certificate(place: &Place, name: &str, authority: Option<&str>) {
    let path = |name: &str, end: &str| place.path(&format!("{name}.{end}"));
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", &format!("/CN={name}"), "-keyout"])
        .arg(path(name, "key"))
        .arg("-out")
        .arg(path(name, "crt"));
    if let Some(authority) = authority {
        command
            .arg("-CA")
            .arg(path(authority, "crt"))
            .arg("-CAkey")
            .arg(path(authority, "key"))
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", "subjectAltName=DNS:localhost"]);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Asks the page by curl, which believes `ours`; with a certificate of its own where one is named.
fn curl(place: &Place, own: Option<&str>, token: &str, url: &str) -> Output {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "60"])
        .args(["--write-out", " %{http_code}", "--cacert"])
        .arg(place.path("ours.crt"))
        .args(["--header", &format!("authorization: Bearer {token}")]);
    if let Some(own) = own {
        command
            .arg("--cert")
            .arg(place.path(&format!("{own}.crt")))
            .arg("--key")
            .arg(place.path(&format!("{own}.key")));
    }
    command.arg(url).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_page_for_other_hosts_speaks_tls_and_knows_its_browsers() {
    let test = "a_page_for_other_hosts_speaks_tls_and_knows_its_browsers";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    if Command::new("curl").arg("--version").output().is_err() {
        println!("SKIPPED: {test}: no curl");
        return;
    }
    for (name, authority) in [
        ("ours", None),
        ("theirs", None),
        ("page", Some("ours")),
        ("other", Some("ours")),
        ("reader", Some("ours")),
        ("stranger", Some("theirs")),
    ] {
        certificate(&place, name, authority);
    }
    let port = free_port();
    place.configure(&format!(
        "[dashboard]\nlisten = \"0.0.0.0:{port}\"\n[dashboard.tls]\ncertificate = {}\nkey = {}\nclient_ca = {}\n",
        place.quoted("page.crt"),
        place.quoted("page.key"),
        place.quoted("ours.crt"),
    ));
    place.start();
    let address = fs::read_to_string(place.path("dashboard.url")).unwrap();
    let host = rustix::system::uname();
    let head = format!(
        "https://{}:{port}/#token=",
        host.nodename().to_str().unwrap()
    );
    let token = address.trim().strip_prefix(&head).unwrap().to_owned();
    let url = format!("https://localhost:{port}/v1/status");
    let well = || curl(&place, Some("reader"), &token, &url);
    eventually("the page answers", || well().status.success());
    let said = String::from_utf8(well().stdout).unwrap();
    assert!(
        said.ends_with(" 200") && said.contains("\"period\""),
        "{said}"
    );

    // A certificate is no token, and a token is no certificate.
    let said = curl(&place, Some("reader"), "wrong", &url).stdout;
    assert!(
        said.ends_with(b" 401"),
        "{}",
        String::from_utf8_lossy(&said)
    );
    for (own, why) in [(None, "certificate required"), (Some("stranger"), "alert")] {
        let refused = curl(&place, own, &token, &url);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains(why),
            "{own:?}: {said}"
        );
        assert!(refused.stdout.ends_with(b" 000"), "{refused:?}");
    }
    let cleartext = format!("http://localhost:{port}/v1/status");
    assert!(
        !curl(&place, Some("reader"), &token, &cleartext)
            .status
            .success()
    );

    // Another certificate in its files is another process, at the same address.
    let first = page(&place).unwrap();
    for end in ["key", "crt"] {
        let [from, to] = ["other", "page"].map(|name| place.path(&format!("{name}.{end}")));
        fs::rename(from, to).unwrap();
    }
    eventually("the page has the other certificate", || {
        page(&place).is_some_and(|pid| pid != first)
    });
    eventually("it answers", || well().status.success());
    place.stop_well();
}
