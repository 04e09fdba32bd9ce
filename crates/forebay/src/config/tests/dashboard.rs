//! The section `dashboard`.

use super::*;

#[test]
fn the_page_has_a_place_rights_and_a_user() {
    assert_eq!(config("").dashboard, None);
    let kept = config("[dashboard]\n").dashboard.unwrap();
    assert_eq!(kept.listen, "127.0.0.1:9476".parse().unwrap());
    assert!(kept.read_only, "who wants more says so");
    assert_eq!(kept.user, "nobody");
    let text = "[dashboard]\nlisten = \"[::1]:80\"\nread_only = false\nuser = \"65534\"\n";
    let kept = config(text).dashboard.unwrap();
    assert_eq!(kept.listen, "[::1]:80".parse().unwrap());
    assert!(!kept.read_only);
    assert_eq!(kept.user, "65534");
}

#[test]
fn mistakes_of_the_page_are_told() {
    check(
        "[dashboard]\nlisten = \"0.0.0.0:9476\"\nreadonly = true\n",
        &[
            "f:2: dashboard.listen: `0.0.0.0:9476` can be reached from other hosts, and the page is served without TLS; give the page a certificate in [dashboard.tls]; or use \"127.0.0.1:9476\" or \"[::1]:9476\", and reach it from other hosts through `ssh -L`",
            "f:3: unknown key `readonly` in [dashboard]; did you mean `read_only`?",
        ],
    );
    check(
        "[dashboard]\nlisten = \"127.0.0.1:0\"\n",
        &["f:2: dashboard.listen: `127.0.0.1:0` is another port at each start; name the port"],
    );
    check(
        "[dashboard]\nuser = \"no-such\"\n",
        &[
            "f:2: dashboard.user: there is no user `no-such` in /etc/passwd; create it with `useradd --system no-such`, or name another",
        ],
    );
}

#[test]
fn with_a_certificate_the_page_may_be_for_other_hosts() {
    check(
        "[dashboard]\nlisten = \"0.0.0.0:9476\"\n[dashboard.tls]\ncertificate = \"/page.crt\"\n",
        &[
            "f:3: dashboard.tls.key: the page has no key to speak TLS with; name the file that holds it in PEM",
        ],
    );
    let (host, _guard) = host();
    let place = |name: &str| host.root.join(name);
    let output = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/CN=x"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout"])
        .arg(place("page.key"))
        .arg("-out")
        .arg(place("page.crt"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let section = "[dashboard]\nlisten = \"0.0.0.0:9476\"\n[dashboard.tls]\ncertificate = \"/page.crt\"\nkey = \"/page.key\"\n";
    let read = |more: &str| parse(&format!("{section}{more}"), "f", &host);
    let kept = read("client_ca = \"/page.crt\"\n")
        .unwrap()
        .dashboard
        .unwrap();
    let tls = kept.tls.unwrap();
    assert_eq!(tls.own.key, std::path::Path::new("/page.key"));
    assert!(tls.client_ca.is_some());
    assert_eq!(
        read("").unwrap().dashboard.unwrap().tls.unwrap().client_ca,
        None
    );

    std::fs::write(place("none.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let refused = read("client_ca = \"/none.pem\"\n").unwrap_err().to_string();
    let words =
        "f:6: dashboard.tls.client_ca: /none.pem: there is no authority in PEM to know clients by";
    assert!(refused.contains(words), "{refused}");
    let refused = read("client_ca = \"/page.key\"\n").unwrap_err().to_string();
    assert!(
        refused.contains("read the certificates in /page.key: it holds none"),
        "{refused}"
    );
}
