//! Fronts and the apps behind them.

use forebay_core::app::Class;
use forebay_shadow::mode::Mode;

use super::*;

const APPS: &str = "[apps.a]\nexec = [\"sh\"]\n[apps.b]\nexec = [\"sh\"]\n[apps.g]\nmatch = { executable = \"g\" }\n";

/// The keys of a front `w` before the apps `a` and `b`, that start in line 8.
#[track_caller]
fn check_front(keys: &str, expected: &[&str]) {
    check(&format!("{APPS}[fronts.w]\n{keys}"), expected);
}

#[test]
fn a_front_arrives_and_is_an_app() {
    let config = config(&format!(
        "{APPS}{}",
        r#"
        [fronts.shop]
        mode = "tcp"
        listen = ["0.0.0.0:80", "[::1]:8080", "/run/shop.sock"]
        instances = { a = "127.0.0.1:1001", b = "/run/b.sock" }
        primary = "b"
        user = "12"
        connections_max = 77
        patience = "250ms"
        grace = "1s"
        drain = "2h"
        proxy_protocol = { accept = true, send = true }
        "#
    ));
    let [front] = &config.fronts.values().collect::<Vec<_>>()[..] else {
        panic!("{:?}", config.fronts);
    };
    assert_eq!(front.mode, Mode::Tcp);
    let listen: Vec<String> = front.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["0.0.0.0:80", "[::1]:8080", "/run/shop.sock"]);
    let instances = front.instances.iter();
    let instances: Vec<String> = instances.map(|(app, at)| format!("{app} {at}")).collect();
    assert_eq!(instances, ["b /run/b.sock", "a 127.0.0.1:1001"]);
    assert_eq!((front.user.as_str(), front.connections_max), ("12", 77));
    assert_eq!(front.patience, Duration::from_millis(250));
    assert_eq!(front.grace, Duration::from_secs(1));
    assert_eq!(front.drain, Duration::from_secs(7200));
    assert!(front.proxy.accept && front.proxy.send);
    let app = &config.policy.apps[&"shop.front".parse::<AppId>().unwrap()];
    assert_eq!(app.class, Class::Critical);
    let Binding::Exec(exec) = &app.binding else {
        panic!("{app:?}");
    };
    let plan = "/var/lib/forebay/fronts/shop/plan.json";
    assert_eq!(exec.command, ["/usr/bin/forebay", "front", plan]);
    assert_eq!(
        front.plan("/var/lib/forebay".as_ref()).control,
        PathBuf::from("/var/lib/forebay/fronts/shop/control")
    );
}

#[test]
fn what_is_left_out_has_defaults() {
    let config = config(&format!(
        "{APPS}[fronts.w]\nmode = \"tcp\"\nlisten = [\"127.0.0.1:1\"]\n\
         instances = {{ a = \"127.0.0.1:2\", b = \"127.0.0.1:3\" }}\n"
    ));
    let front = config.fronts.values().next().unwrap();
    assert_eq!(front.instances[0].0.as_str(), "a");
    assert_eq!(
        (front.user.as_str(), front.connections_max),
        ("nobody", 10_000)
    );
    assert_eq!(
        (front.patience, front.grace),
        (Duration::from_secs(5), Duration::ZERO)
    );
    assert!(front.proxy.is_off());
    assert_eq!(front.drain, Duration::from_secs(3600));
}

#[test]
fn instances_that_would_take_every_client_for_their_own_host_are_pointed_out() {
    let check = |mode: &str, listen: &str, first: &str, expected: bool| {
        let config = config(&format!(
            "{APPS}[fronts.w]\nmode = \"{mode}\"\nlisten = [\"{listen}\"]\n\
             instances = {{ a = \"{first}\", b = \"192.0.2.1:3\" }}\n"
        ));
        let advice = config.fronts.values().next().unwrap().advice();
        assert_eq!(
            !advice.is_empty(),
            expected,
            "{mode} {listen} {first}: {advice:?}"
        );
    };
    check("redis", "0.0.0.0:1", "127.0.0.1:2", true);
    check("redis", "[::]:1", "/run/a.sock", true);
    check("redis", "127.0.0.1:1", "127.0.0.1:2", false);
    check("redis", "/run/w.sock", "127.0.0.1:2", false);
    check("redis", "0.0.0.0:1", "192.0.2.2:2", false);
    check("tcp", "0.0.0.0:1", "127.0.0.1:2", false);
}

#[test]
fn only_mode_tcp_sends_a_header() {
    let rest = "listen = [\"127.0.0.1:1\"]\ninstances = { a = \"127.0.0.1:2\", b = \"127.0.0.1:3\" }\n\
                proxy_protocol = { accept = true, send = true }\n";
    check_front(&format!("mode = \"tcp\"\n{rest}"), &[]);
    check_front(
        &format!("mode = \"http\"\n{rest}"),
        &[
            "f:11: fronts.w.proxy_protocol.send: mode http sends no header; use http.forwarded_for: clients share the connections to an instance",
        ],
    );
    check_front(
        &format!("mode = \"redis\"\n{rest}"),
        &[
            "f:11: fronts.w.proxy_protocol.send: mode redis sends no header; leave it out: mode \"tcp\" alone has a connection to an instance for each client",
        ],
    );
}

#[test]
fn fronts_that_cannot_be_are_refused() {
    let good = "mode = \"tcp\"\nlisten = [\"127.0.0.1:1\"]\n";
    check_front(
        "mode = \"tcp\"\n",
        &[
            "f:7: fronts.w: the front lacks listen, instances; a front needs mode, listen and instances",
        ],
    );
    check_front(
        &format!("{good}instances = {{ a = \"127.0.0.1:2\" }}\n"),
        &[
            "f:10: fronts.w.instances: fewer than two instances; name the app that serves and the one that is its shadow; one alone needs `images`",
        ],
    );
    let many: Vec<String> = (0..17)
        .map(|n| format!("x{n:03} = \"127.0.0.1:{}\"", n + 2))
        .collect();
    let mut findings = vec![
        "f:10: fronts.w.instances: more than 16 instances; divide them among several fronts"
            .to_owned(),
    ];
    findings.extend((0..17).map(|n| {
        format!(
            "f:10: fronts.w.instances.x{n:03}: there is no app `x{n:03}`; configure it under [apps], or name the host that runs it in `elsewhere`"
        )
    }));
    let findings: Vec<&str> = findings.iter().map(String::as_str).collect();
    check_front(
        &format!("{good}instances = {{ {} }}\n", many.join(", ")),
        &findings,
    );
    check_front(
        &format!(
            "{good}instances = {{ a = \"127.0.0.1:1\", g = \"127.0.0.1:3\", bb = \"b:4\" }}\n"
        ),
        &[
            "f:10: fronts.w.instances.a: `127.0.0.1:1` is used twice; give each front and each instance an address of its own",
            "f:10: fronts.w.instances.bb: `b:4` is no address; write ADDRESS:PORT, [ADDRESS]:PORT for IPv6, or the absolute path of a Unix socket",
            "f:10: fronts.w.instances.bb: there is no app `bb`; did you mean `b`?",
            "f:10: fronts.w.instances.g: app `g` cannot be stopped where it stands: its group is its manager's, or it has none of its own; give it `exec`, or `cgroup` if somebody else starts it in a group of its own",
        ],
    );
    check_front(
        "mode = \"ftp\"\nlisten = [\"127.0.0.1:0\"]\ninstances = { a = \"x\", b = \"127.0.0.1:3\" }\npatience = \"1ms\"\n",
        &[
            "f:8: fronts.w.mode: `ftp` is not a mode; use tcp, http, redis or postgres",
            "f:9: fronts.w.listen: `127.0.0.1:0` has no port; write the port that is meant, 1 to 65535",
            "f:10: fronts.w.instances.a: `x` is no address; write ADDRESS:PORT, [ADDRESS]:PORT for IPv6, or the absolute path of a Unix socket",
            "f:11: fronts.w.patience: 1ms is out of bounds; use 100ms to 600s",
        ],
    );
    let instances = "instances = { a = \"127.0.0.1:2\", b = \"127.0.0.1:3\" }\n";
    check_front(
        &format!(
            "mode = \"tcp\"\nlisten = [\"127.0.0.1:0\", \"/{}\"]\n{instances}primary = \"c\"\npatience = \"1ms\"\nuser = \"nobody-of-that-name\"\n",
            "x".repeat(107)
        ),
        &[
            "f:9: fronts.w.listen: `127.0.0.1:0` has no port; write the port that is meant, 1 to 65535",
            &format!(
                "f:9: fronts.w.listen: `/{}` is longer than 107 bytes; the kernel takes no longer path of a socket",
                "x".repeat(107)
            ),
            "f:11: fronts.w.primary: `c` is not one of the instances; name one of them",
            "f:12: fronts.w.patience: 1ms is out of bounds; use 100ms to 600s",
            "f:13: fronts.w.user: there is no user `nobody-of-that-name` in /etc/passwd; create it with `useradd --system nobody-of-that-name`, or name another",
        ],
    );
}

#[test]
fn a_front_may_listen_on_sockets_of_systemd() {
    let front = |listen: &str| front_of("tcp", "").replace("\"127.0.0.1:1\"", listen);
    let config = config(&front(
        "\"systemd:shop\", \"systemd:shop-tls\", \"127.0.0.1:1\"",
    ));
    let front_config = config.fronts.into_values().next().unwrap();
    let listen: Vec<String> = front_config
        .listen
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(listen, ["systemd:shop", "systemd:shop-tls", "127.0.0.1:1"]);
    let plan = front_config.plan("/state".as_ref());
    assert_eq!(plan.lender, Some(PathBuf::from("/state/sockets")));
    let text = serde_json::to_string(&plan).unwrap();
    let read: forebay_shadow::front::Plan = serde_json::from_str(&text).unwrap();
    assert_eq!(read, plan);
    let long = format!("systemd:{}", "x".repeat(256));
    for wrong in [
        "systemd:",
        "systemd:a:b",
        "systemd:\\u0001",
        "systemd:ä",
        &long,
    ] {
        let text = front(&format!("\"{wrong}\""));
        let errors = parse(&text, "f", &host().0).unwrap_err().to_string();
        assert!(
            errors.contains("is no name of a socket"),
            "{wrong}: {errors}"
        );
    }
    check(
        &front("\"systemd:shop\", \"systemd:shop\""),
        &[
            "f:9: fronts.w.listen: `systemd:shop` is used twice; give each front and each instance an address of its own",
        ],
    );
}

#[test]
fn an_app_stands_behind_one_front() {
    let front = |name: &str, port: u16| {
        format!(
            "[fronts.{name}]\nmode = \"tcp\"\nlisten = [\"127.0.0.1:{port}\"]\n\
             instances = {{ a = \"127.0.0.1:{}\", b = \"127.0.0.1:{}\" }}\n",
            port + 1,
            port + 2
        )
    };
    check(
        &format!("{APPS}{}{}", front("v", 10), front("w", 20)),
        &[
            "f:14: fronts.w.instances.a: app `a` stands behind another front; give each front apps of its own",
            "f:14: fronts.w.instances.b: app `b` stands behind another front; give each front apps of its own",
        ],
    );
    check(
        &format!(
            "{APPS}[apps.'w.front']\nexec = [\"sh\"]\n{}",
            front("w", 20)
        ),
        &[
            "f:9: fronts.w: the front is itself the app `w.front`, and there is one of that name; rename that app or the front",
        ],
    );
}

#[test]
fn instances_of_other_hosts_are_named_with_them() {
    let front = |elsewhere: &str| {
        format!(
            "{APPS}[fronts.w]\nmode = \"tcp\"\nlisten = [\"127.0.0.1:1\"]\n\
             instances = {{ a = \"127.0.0.1:2\", far = \"10.0.0.2:80\" }}\nelsewhere = {elsewhere}\n"
        )
    };
    let config = config(&front("{ far = \"host-b\" }"));
    let front_config = config.fronts.values().next().unwrap();
    let plan = front_config.plan("/var/lib/forebay".as_ref());
    let hosts: Vec<_> = plan
        .instances
        .iter()
        .map(|one| one.elsewhere.as_deref())
        .collect();
    assert_eq!(hosts, [None, Some("host-b")]);
    check(
        &front("{ far = \"host-b\", a = \"host-b\", none = \"host-b\" }"),
        &[
            "f:11: fronts.w.elsewhere.a: app `a` is one of this host's; leave it out here, or give the one that another host runs a name of its own",
            "f:11: fronts.w.elsewhere.none: `none` is not one of the instances; name it with its address in `instances`, too",
        ],
    );
    check(
        &front("{ far = \"-b\" }"),
        &[
            "f:10: fronts.w.instances.far: there is no app `far`; configure it under [apps], or name the host that runs it in `elsewhere`",
            "f:11: fronts.w.elsewhere.far: `-b` is not a host name: use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit; write NAME = \"HOST\"",
        ],
    );
}

fn front_of(mode: &str, keys: &str) -> String {
    format!(
        "{APPS}[fronts.w]\nmode = \"{mode}\"\nlisten = [\"127.0.0.1:1\"]\n\
         instances = {{ a = \"127.0.0.1:2\", b = \"127.0.0.1:3\" }}\n{keys}"
    )
}

#[test]
fn what_is_chosen_of_a_mode_arrives() {
    let mode = |mode: &str, keys: &str| {
        let config = config(&front_of(mode, keys));
        config.fronts.into_values().next().unwrap().mode
    };
    let keys = "[fronts.w.http]\nforwarded_for = true\nmirror = \"5%\"\nmirror_writes = true\n\
                mirror_ignore = [\"/now\"]\nspread = \"20%\"\nspread_within = \"50ms\"\n";
    let Mode::Http(http) = mode("http", keys) else {
        panic!("another mode");
    };
    assert!(http.forwarded_for && http.mirror.writes);
    assert_eq!((http.mirror.per_mille, http.spread.per_mille), (50, 200));
    assert_eq!(http.mirror.ignore_bodies, ["/now"]);
    assert_eq!(http.spread.within_ms, 50);
    let keys = "[fronts.w.redis]\nguarantee = \"strict\"\nwithout_shadow = \"continue\"\n\
                confirm = \"1s\"\nlong = \"3s\"\nstuck = \"10s\"\nread_from_shadow = true\n\
                command_bytes_max = \"1MiB\"\nuser = \"f\"\n";
    let Mode::Redis(redis) = mode("redis", keys) else {
        panic!("another mode");
    };
    assert_eq!(redis.guarantee, forebay_shadow::redis::Guarantee::Strict);
    assert_eq!((redis.confirm_ms, redis.long_ms), (1000, 3000));
    assert_eq!(redis.command_bytes_max, 1 << 20);
    assert_eq!(redis.stuck_ms, 10_000);
    assert!(redis.read_from_shadow && redis.password.is_none());
    let keys = "[fronts.w.postgres]\nuser = \"admin\"\ndatabase = \"d\"\nguarantee = \"strict\"\n\
                lag_max = \"1MiB\"\nrebuild = [\"/usr/bin/rebuild\", \"x\"]\nrebuild_after = \"9s\"\n";
    let Mode::Postgres(postgres) = mode("postgres", keys) else {
        panic!("another mode");
    };
    assert_eq!(
        (postgres.user.as_str(), postgres.database.as_str()),
        ("admin", "d")
    );
    assert_eq!(postgres.lag_bytes_max, 1 << 20);
    assert_eq!(postgres.rebuild, ["/usr/bin/rebuild", "x"]);
    assert_eq!(postgres.rebuild_after_ms, 9000);
}

/// Instances whose data directories are known are begun by way of Forebay.
#[test]
fn instances_with_data_are_made_to_follow_before_they_begin() {
    let front = |keys: &str| {
        let apps = "[apps.a]\nexec = [\"sh\", \"-D\", \"/a\"]\nuser = \"www\"\n[apps.b]\nexec = [\"sh\"]\n";
        format!(
            "{apps}[fronts.w]\nmode = \"postgres\"\nlisten = [\"127.0.0.1:1\"]\n\
             instances = {{ a = \"127.0.0.1:2\", b = \"127.0.0.1:3\" }}\n\
             [fronts.w.postgres]\nuser = \"admin\"\n{keys}"
        )
    };
    let of = |keys: &str| {
        let config = config(&front(keys));
        let Binding::Exec(exec) = config.policy.apps[&"a".parse::<AppId>().unwrap()]
            .binding
            .clone()
        else {
            panic!("it is started");
        };
        let Mode::Postgres(options) = config.fronts.into_values().next().unwrap().mode else {
            panic!("another mode");
        };
        (exec, options)
    };
    let (exec, options) = of("data = { a = \"/a\", b = \"/b\" }\n");
    let plan = "/var/lib/forebay/fronts/w/plan.json";
    let before = [
        "/usr/bin/forebay",
        "instance",
        plan,
        "a",
        "--user",
        "www",
        "--",
    ];
    assert_eq!(
        exec.command,
        [&before[..], &["/usr/bin/sh", "-D", "/a"]].concat()
    );
    assert_eq!(
        (exec.user, options.programs),
        (None, PathBuf::from("/usr/bin"))
    );
    let (_, options) = of("data = { a = \"/a\", b = \"/b\" }\nbin = \"/opt/pg\"\n");
    assert_eq!(options.programs, PathBuf::from("/opt/pg"));
    let (exec, _) = of("");
    assert_eq!(exec.command, ["/usr/bin/sh", "-D", "/a"]);
    check(
        &front("data = { a = \"/a\", c = \"/a\" }\nrebuild = [\"x\"]\n"),
        &[
            "f:6: fronts.w.postgres.data.c: `c` is not one of the instances of this host; name those, and no others",
            "f:6: fronts.w.postgres.data: the data directory of `b` is not given; give those of all instances of this host: any of them may have to follow another",
            "f:6: fronts.w.postgres.data.c: two instances have the same data directory; give each one of its own",
            "f:12: fronts.w.postgres.data: with `data`, no `rebuild` is run; leave out one of them",
        ],
    );
}

#[test]
fn what_is_chosen_of_another_mode_is_refused() {
    check(
        &front_of("http", "[fronts.w.redis]\nlong = \"1s\"\n"),
        &[
            "f:11: fronts.w.redis: the front's mode is http; leave this out, or set mode = \"redis\"",
        ],
    );
    check(
        &front_of("postgres", ""),
        &[
            "f:7: fronts.w.postgres.user: the front has no user to ask the servers as; name a superuser: it promotes, and repeats logins",
        ],
    );
    check(
        &front_of("http", "[fronts.w.http]\nmirror = \"101%\"\n"),
        &["f:12: fronts.w.http.mirror: 101% is no share; write 0% to 100%"],
    );
}

#[test]
fn a_password_is_in_a_file_for_its_owner_alone() {
    let (host, _guard) = host();
    let file = host.root.join("secret");
    let text = front_of("redis", "[fronts.w.redis]\npassword_file = \"/secret\"\n");
    let check = |expected: Result<&str, &str>| match (parse(&text, "f", &host), expected) {
        (Ok(config), Ok(password)) => {
            let front = config.fronts.into_values().next().unwrap();
            let Mode::Redis(redis) = &front.mode else {
                panic!("another mode");
            };
            assert_eq!(redis.password.as_ref().unwrap().0, password);
            assert!(
                !format!("{front:?}").contains(password),
                "it would reach logs"
            );
        }
        (Err(errors), Err(words)) => assert!(errors.to_string().contains(words), "{errors}"),
        (found, _) => panic!("{found:?}"),
    };
    check(Err("read the password in /secret"));
    let write = |text: &str, mode: u32| {
        std::fs::write(&file, text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&file, mode).unwrap();
    };
    write("sesame\n", 0o644);
    check(Err("others than its owner may use /secret; chmod 600 it"));
    write("\n", 0o600);
    check(Err("there is no password in /secret"));
    write("sesame\nanother line\n", 0o600);
    check(Ok("sesame"));
}

#[test]
fn a_certificate_and_its_key_are_read_and_judged() {
    let (host, _guard) = host();
    let file = |name: &str| host.root.join(name);
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(file(name), text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(file(name), mode).unwrap();
    };
    let section = "[fronts.w.http.tls]\ncertificate = \"/crt\"\nkey = \"/key\"\n";
    let refused = |more: &str, words: &str| {
        let text = front_of("http", &format!("{section}{more}"));
        let errors = parse(&text, "f", &host).unwrap_err().to_string();
        assert!(errors.contains(words), "{errors}");
    };
    refused(
        "",
        "fronts.w.http.tls.certificate: read the certificate in /crt",
    );
    let output = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/CN=test",
        ])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .arg("-keyout")
        .arg(file("key"))
        .arg("-out")
        .arg(file("crt"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let key = std::fs::read_to_string(file("key")).unwrap();
    write("key", &key, 0o644);
    refused(
        "",
        "fronts.w.http.tls.key: everybody may use the key in /key; chmod 600 it",
    );
    write("key", "no key", 0o600);
    refused(
        "",
        "fronts.w.http.tls.key: /key: there is no private key in PEM",
    );
    write("key", &key, 0o640);
    refused(
        "listen = [\"127.0.0.1:9\"]\n",
        "fronts.w.http.tls.listen: the front does not listen on 127.0.0.1:9",
    );
    // The others have the same keys, and postgres one more.
    let config = |mode: &str, section: &str| {
        let config = parse(&front_of(mode, section), "f", &host).unwrap();
        config.fronts.into_values().next().unwrap()
    };
    let of_redis = section.replace("http", "redis");
    let of_postgres = format!(
        "[fronts.w.postgres]\nuser = \"p\"\n{}require = true\n",
        section.replace("http", "postgres")
    );
    for (mode, section) in [
        ("http", section),
        ("redis", &of_redis),
        ("postgres", &of_postgres),
    ] {
        let front = config(mode, section);
        let tls = front.mode.tls().unwrap();
        assert_eq!(tls.pem.key.0, key);
        assert_eq!(tls.certificate_file, PathBuf::from("/crt"));
        assert_eq!(tls.require, mode == "postgres");
        assert!(
            !format!("{front:?}").contains("PRIVATE"),
            "it would reach logs"
        );
        let plan = front.plan("/var/lib/forebay".as_ref());
        let without = plan.without_secrets();
        assert_eq!(without.mode.tls().unwrap().pem.key.0, "");
        let text = serde_json::to_string(&plan).unwrap();
        let read: forebay_shadow::front::Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(read, plan);
    }
    let text = front_of("redis", &format!("{of_redis}require = true\n"));
    let errors = parse(&text, "f", &host).unwrap_err().to_string();
    assert_eq!(
        errors,
        "f:14: unknown key `require` in [fronts.w.redis.tls]; use certificate, key or listen"
    );
    let text = front_of("postgres", &format!("{of_postgres}listen = [\"/run/w\"]\n"));
    let text = text.replace("listen = [\"127.0.0.1:1\"]", "listen = [\"/run/w\"]");
    let errors = parse(&text, "f", &host).unwrap_err().to_string();
    assert!(
        errors.contains("clients of PostgreSQL do not speak TLS on a Unix socket, as /run/w is"),
        "{errors}"
    );
    check(
        &front_of("http", "[fronts.w.http.tls]\nkey = \"/key\"\n"),
        &[
            "f:11: fronts.w.http.tls.certificate: the front has no certificate to speak TLS with; name the file that holds it in PEM",
        ],
    );
    check(
        &front_of("tcp", "[fronts.w.redis.tls]\nkey = \"/key\"\n"),
        &[
            "f:11: fronts.w.redis: the front's mode is tcp; leave this out: mode tcp passes TLS on as it comes, and the instances have the certificate; or set mode = \"redis\"",
        ],
    );
}
