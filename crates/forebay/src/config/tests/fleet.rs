//! Who this host is among others.

use super::*;

/// Parses the section `fleet` with some files that it names, and compares the errors.
#[track_caller]
fn refuses(keys: &str, expected: &[&str]) {
    let (host, _guard) = host();
    hostname(&host, "node-1\n");
    let write = |name: &str, text: &str, mode| {
        let path = host.root.join("etc").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("password", "secret\n", 0o600);
    write("open", "secret\n", 0o644);
    write("ca.pem", "-----BEGIN CERTIFICATE-----\n", 0o644);
    write("none.pem", "nothing\n", 0o600);
    let errors: Vec<String> = match parse(&format!("[fleet]\n{keys}"), "f", &host) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(Error::to_string).collect(),
    };
    assert_eq!(errors, expected, "{keys}");
}

fn hostname(host: &HostFacts, name: &str) {
    let kernel = host.root.join("proc/sys/kernel");
    fs::create_dir_all(&kernel).unwrap();
    fs::write(kernel.join("hostname"), name).unwrap();
}

#[test]
fn without_a_section_a_host_is_alone() {
    assert_eq!(config("").fleet, None);
}

#[test]
fn a_host_takes_its_own_name() {
    let (host, _guard) = host();
    hostname(&host, "node-1\n");
    let config = parse("[fleet]\n", "f", &host).unwrap().fleet.unwrap();
    assert_eq!(config.host.as_str(), "node-1");
    assert_eq!(config.lease, Duration::from_secs(10));
    assert_eq!(config.etcd, None);
    assert_eq!(config.link.listen, None);
    hostname(&host, "not a name\n");
    let errors = parse("[fleet]\n", "f", &host).unwrap_err().to_string();
    assert_eq!(
        errors,
        "f:1: fleet.host: `not a name` is not a host name; give it one with `host`"
    );
}

#[test]
fn what_moves_by_itself_can_be_bounded_and_ended() {
    let (host, _guard) = host();
    hostname(&host, "node-1\n");
    let moves = |keys: &str| {
        let text = format!("[fleet]\n{keys}");
        parse(&text, "f", &host).unwrap().fleet.unwrap().moves
    };
    let defaults = moves("");
    assert!(defaults.by_itself);
    assert_eq!(
        defaults.rules,
        forebay_core::fleet::policy::Rules::default()
    );
    let set = moves(
        "[fleet.moves]\nby_itself = false\nper_hour = 3\nrest = \"1m\"\nhold = \"2h\"\nforeseen_for = \"90s\"",
    );
    assert!(!set.by_itself);
    let rules = set.rules;
    assert_eq!((rules.moves_per_hour, rules.ahead_per_hour), (3, 2));
    let times = [rules.rest, rules.hold, rules.persistence_ahead];
    assert_eq!(times.map(|time| time.as_secs()), [60, 7200, 90]);
    refuses(
        "[fleet.moves]\nrest = \"0s\"",
        &["f:3: fleet.moves.rest: 0ns is out of bounds; use 1s to 86400s"],
    );
}

#[test]
fn what_cannot_be_a_member_is_refused() {
    refuses("host = \"db-1\"\nlease = \"30s\"", &[]);
    refuses(
        "host = \"a/b\"",
        &[
            "f:2: fleet.host: `a/b` is not a host name; use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit",
        ],
    );
    refuses(
        "lease = \"1s\"",
        &["f:2: fleet.lease: 1s is out of bounds; use 5s to 300s"],
    );
    refuses(
        "hosts = \"a\"",
        &["f:2: unknown key `hosts` in [fleet]; did you mean `host`?"],
    );
    refuses(
        "[fleet.link]\nlisten = \"0.0.0.0:9476\"",
        &[
            "f:3: fleet.link.listen: nobody can tell from `0.0.0.0:9476` where others reach this host; say so with `address`, such as address = \"10.0.0.5:9476\"",
        ],
    );
    refuses(
        "[fleet.link]\nlisten = \"0.0.0.0:9476\"\naddress = \"node-1\"",
        &[
            "f:4: fleet.link.address: `node-1` is not a host and a port; write HOST:PORT, such as \"10.0.0.5:9476\"",
        ],
    );
    refuses(
        "[fleet.link]\nkey = \"host.key\"",
        &["f:3: unknown key `key` in [fleet.link]; use listen, address or rdma"],
    );
    refuses(
        "[apps.web]\nexec = [\"sh\"]\nmove = { mode = \"restart\" }\n[fleet.link]\nlisten = \"127.0.0.1:9476\"",
        &[],
    );
}

/// Whichever way an app moves.
#[test]
fn files_go_along_by_their_plain_paths() {
    for mode in ["restart", "checkpoint"] {
        let check = |files: &str, expected: &[&str]| {
            let keys = format!("move = {{ mode = \"{mode}\", files = [{files}] }}");
            super::check_app(&keys, expected);
        };
        check("\"/srv/a\", \"/srv/b\"", &[]);
        check(
            "\"/srv/a\", \"/srv/a/b\"",
            &["f:3: apps.a.move.files: `/srv/a` and `/srv/a/b` overlap; keep the outer one"],
        );
    }
}

#[test]
fn an_address_goes_along_with_one_app() {
    let check = |keys: &str, expected: &[&str]| {
        super::check_app(&format!("move = {{ {keys} }}"), expected);
    };
    for mode in ["restart", "checkpoint"] {
        let keys = format!("mode = \"{mode}\", address = \"10.77.0.5/24\", device = \"eth1\"");
        check(&keys, &[]);
        check(&format!("mode = \"{mode}\", address = \"fd77::5/64\""), &[]);
    }
    check(
        "mode = \"restart\", address = \"10.77.0.5\"",
        &[
            "f:3: apps.a.move.address: `10.77.0.5` has no length of a prefix; write one address of a host with its prefix, such as 10.77.0.5/24",
        ],
    );
    check(
        "mode = \"handoff\", address = \"10.77.0.5/24\"",
        &[
            "f:3: apps.a.move.address: 10.77.0.5/24 goes along with nothing; an address goes along by mode \"restart\" or \"checkpoint\"; leave it out",
        ],
    );
    check(
        "mode = \"restart\", device = \"eth1\"",
        &[
            "f:3: apps.a.move.device: `eth1` is the device of no address; give the `address` that goes along, or leave `device` out",
        ],
    );
    check(
        "mode = \"restart\", address = \"10.77.0.5/24\", device = \"a/b\"",
        &[
            "f:3: apps.a.move.device: `a/b` is no name of a network device; name one that `ip link` shows, or leave it out",
        ],
    );
    let app = |name: &str, address: &str| {
        format!(
            "[apps.{name}]\nexec = [\"sh\"]\nmove = {{ mode = \"restart\", address = \"{address}\" }}\n"
        )
    };
    super::check(
        &(app("a", "10.77.0.5/24") + &app("b", "10.77.0.5/16")),
        &[
            "f:4: apps.b.move.address: app `a` has the address 10.77.0.5, too; give each app one of its own: it goes where that app goes",
        ],
    );
}

#[test]
fn fleet_lock_is_spoken_where_it_is_said_and_nowhere_else() {
    let (host, _guard) = host();
    hostname(&host, "node-1\n");
    let lock = |keys: &str| {
        let text = format!("[fleet]\n{keys}");
        parse(&text, "f", &host).unwrap().fleet.unwrap().lock
    };
    assert_eq!(lock(""), None);
    let set = lock("[fleet.lock]\nlisten = \"10.0.0.5:3333\"").unwrap();
    assert_eq!(
        (set.at_once, &*set.groups),
        (1, &["default".to_owned()][..])
    );
    let set = lock("[fleet.lock]\nlisten = \"[::1]:3333\"\nat_once = 3\ngroups = [\"a\", \"b\"]")
        .unwrap();
    assert_eq!((set.at_once, set.groups.len()), (3, 2));
    refuses(
        "[fleet.lock]\nat_once = 2",
        &[
            "f:2: fleet.lock.listen: it is not said where FleetLock is to be spoken; write listen = \"IP:PORT\", an address that only hosts of the fleet reach",
        ],
    );
    refuses(
        "[fleet.lock]\nlisten = \"10.0.0.5:3333\"\ngroups = [\"a b\"]",
        &[
            "f:4: fleet.lock.groups: `a b` is not a group; use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit",
        ],
    );
    refuses(
        "[fleet.lock]\nlisten = \"10.0.0.5:3333\"\nslots = 2",
        &["f:4: unknown key `slots` in [fleet.lock]; use listen, at_once or groups"],
    );
}

#[cfg(not(feature = "etcd"))]
#[test]
fn a_build_without_etcd_says_how_to_get_one() {
    refuses(
        "[fleet.etcd]\nendpoints = [\"http://127.0.0.1:2379\"]",
        &[
            "f:2: fleet.etcd: this program was built without etcd; build it with `cargo build --release --features etcd`, which needs Debian's protobuf-compiler and libprotobuf-dev, or leave the section out",
        ],
    );
}

#[cfg(feature = "etcd")]
#[test]
fn every_key_of_etcd_arrives() {
    let (host, _guard) = host();
    hostname(&host, "a");
    let password = host.root.join("etc/password");
    fs::write(&password, "secret\n").unwrap();
    fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
    let text = "[fleet.etcd]\nendpoints = [\"http://a:2379\", \"http://[::1]:2379\"]\nprefix = \"/x/y\"\nuser = \"u\"\npassword_file = \"/etc/password\"\n";
    let etcd = parse(text, "f", &host)
        .unwrap()
        .fleet
        .unwrap()
        .etcd
        .unwrap();
    assert_eq!(etcd.endpoints, ["http://a:2379", "http://[::1]:2379"]);
    assert_eq!(etcd.prefix, "/x/y");
    let (user, password) = etcd.user.clone().unwrap();
    assert_eq!((user.as_str(), password.0.as_str()), ("u", "secret"));
    assert!(!format!("{etcd:?}").contains("secret"));
}

#[cfg(feature = "etcd")]
#[test]
fn an_etcd_that_cannot_be_reached_as_described_is_refused() {
    let at = |rest: &str| format!("[fleet.etcd]\nendpoints = [\"http://a:2379\"]\n{rest}");
    let secure = |rest: &str| format!("[fleet.etcd]\nendpoints = [\"https://a:2379\"]\n{rest}");
    refuses(
        "[fleet.etcd]\n",
        &[
            "f:2: fleet.etcd.endpoints: it is not said where etcd is; write endpoints = [\"https://HOST:2379\"], one for each member",
        ],
    );
    for wrong in [
        "a:2379",
        "http://a",
        "http://a:2379/x",
        "http://u:p@a:2379",
        "http://:2379",
    ] {
        refuses(
            &format!("[fleet.etcd]\nendpoints = [\"{wrong}\"]"),
            &[&format!(
                "f:3: fleet.etcd.endpoints: `{wrong}` is not where an etcd member is; write https://HOST:PORT or http://HOST:PORT"
            )],
        );
    }
    refuses(
        &at("user = \"u\""),
        &[
            "f:4: fleet.etcd.user: a user and a password belong together; give both `user` and `password_file`, or none of them",
        ],
    );
    refuses(
        &at("user = \"u\"\npassword_file = \"/etc/open\""),
        &["f:5: fleet.etcd.password_file: others than its owner may use /etc/open; chmod 600 it"],
    );
    refuses(
        &at("ca = \"/etc/ca.pem\""),
        &[
            "f:4: fleet.etcd.ca: etcd is spoken with in cleartext, so that no certificate is asked for; write https:// in `endpoints`, or leave this out",
        ],
    );
    refuses(
        &at("prefix = \"x/\""),
        &[
            "f:4: fleet.etcd.prefix: `x/` is not what names of keys can begin with; write a path such as \"/forebay\": at most 128 letters, digits, `-`, `_`, `.` and `/`, with a `/` at its beginning and none at its end",
        ],
    );
    refuses(
        &secure(""),
        &[
            "f:2: fleet.etcd.ca: it is not said by which certificates etcd's own is known; name the file of its CA with `ca`",
        ],
    );
    refuses(
        &secure("ca = \"/etc/none.pem\""),
        &[
            "f:4: fleet.etcd.ca: read the certificates in /etc/none.pem: it holds none; write them there in PEM, where the daemon may read them",
        ],
    );
    refuses(
        &secure("ca = \"/etc/ca.pem\"\nkey = \"/etc/none.pem\""),
        &[
            "f:5: fleet.etcd.key: a certificate and its key belong together; give both `certificate` and `key`, or none of them",
        ],
    );
    refuses(&secure("ca = \"/etc/ca.pem\""), &[]);
}

#[test]
fn an_app_is_kept_apart_from_others_and_not_from_itself() {
    let check = |apart: &str, expected: &[&str]| {
        super::check_app(
            &format!("move = {{ mode = \"restart\", apart = [{apart}] }}"),
            expected,
        );
    };
    // Other hosts may have them alone.
    check("\"b\", \"c\"", &[]);
    check(
        "\"a\"",
        &["f:3: apps.a.move.apart: `a` is this app; write the names of others, as in [apps.NAME]"],
    );
    check(
        "\"b c\"",
        &[
            "f:3: apps.a.move.apart: `b c` is not an app name: use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit; write the names of others, as in [apps.NAME]",
        ],
    );
}
