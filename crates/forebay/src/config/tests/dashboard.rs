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
            "f:2: dashboard.listen: `0.0.0.0:9476` can be reached from other hosts, and the page is served without TLS; use \"127.0.0.1:9476\" or \"[::1]:9476\", and reach it from other hosts through `ssh -L`",
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
