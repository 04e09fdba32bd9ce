//! Certificates of fronts are renewed while they run.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::fronts::{Stage, free_port};
use crate::place::{EXE, Place, eventually};

/// Makes a certificate that vouches for itself, with its key, under a name.
fn make(place: &Place, name: &str) {
    let path = |end: &str| place.path(&format!("{name}.{end}"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", &format!("/CN={name}"), "-keyout"])
        .arg(path("key"))
        .arg("-out")
        .arg(path("crt"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Puts one file in the place of another at once.
fn put(place: &Place, from: &str, to: &str) {
    let copy = place.path("copy");
    std::fs::copy(place.path(from), &copy).unwrap();
    std::fs::rename(copy, place.path(to)).unwrap();
}

/// The name in the certificate that a new client is shown.
fn shown(port: u16) -> String {
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    client.stdin.take().unwrap().write_all(b"Q\n").unwrap();
    let output = client.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let subject = text.lines().find(|line| line.starts_with("subject="));
    let subject = subject.unwrap_or_else(|| panic!("no certificate: {text}"));
    subject.rsplit('=').next().unwrap().trim().to_owned()
}

#[test]
fn a_certificate_is_renewed_from_its_files_and_a_broken_one_is_not() {
    let name = "a_certificate_is_renewed_from_its_files_and_a_broken_one_is_not";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    for certificate in ["first", "second"] {
        make(&place, certificate);
    }
    put(&place, "first.crt", "web.crt");
    put(&place, "first.key", "web.key");
    let [port, a, b] = [(); 3].map(|()| free_port());
    let service = |name: &str, port: u16| {
        format!(
            "[apps.{name}]\nclass = \"critical\"\nexec = [\"{}\", \"workload\", \"service\", \
             \"--port\", \"{port}\", \"--iterations\", \"1\"]\n",
            *EXE
        )
    };
    let [certificate, key] = ["web.crt", "web.key"].map(|file| place.path(file));
    place.configure(&format!(
        "{}{}[fronts.web]\nmode = \"http\"\nlisten = [\"127.0.0.1:{port}\"]\n\
         instances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n\
         [fronts.web.http.tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        service("a", a),
        service("b", b),
        certificate.display(),
        key.display(),
    ));
    place.start();
    let mut stage = Stage { place, port };
    eventually("it serves", || stage.front()["stage"] == "warm");
    let process = stage.place.await_pid("web.front");
    assert_eq!(shown(port), "first");
    // A certificate comes before its key: what does not fit is not taken, and said.
    put(&stage.place, "second.crt", "web.crt");
    eventually("it is said", || {
        stage.place.log().contains("its certificate is not renewed")
    });
    assert_eq!(shown(port), "first");
    put(&stage.place, "second.key", "web.key");
    eventually("the second one is shown", || shown(port) == "second");
    assert_eq!(stage.place.await_pid("web.front"), process);
    stage.place.stop_well();
}
