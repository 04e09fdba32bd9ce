//! Fronts and the apps behind them.

use forebay_core::app::Class;
use forebay_shadow::mode::Mode;

use super::*;

const APPS: &str =
    "[apps.a]\nexec = [\"sh\"]\n[apps.b]\nexec = [\"sh\"]\n[apps.g]\ncgroup = \"g\"\n";

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
            "f:10: fronts.w.instances: fewer than two instances; name the app that serves and the one that is its shadow",
        ],
    );
    check_front(
        &format!(
            "{good}instances = {{ a = \"127.0.0.1:1\", g = \"127.0.0.1:3\", bb = \"b:4\" }}\n"
        ),
        &[
            "f:10: fronts.w.instances.a: `127.0.0.1:1` is used twice; give each front and each instance an address of its own",
            "f:10: fronts.w.instances.bb: `b:4` is no address; write ADDRESS:PORT, [ADDRESS]:PORT for IPv6, or the absolute path of a Unix socket",
            "f:10: fronts.w.instances.bb: there is no app `bb`; did you mean `b`?",
            "f:10: fronts.w.instances.g: app `g` is not started by Forebay, so its end is seen too late; give it `exec`",
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
                confirm = \"1s\"\nlong = \"3s\"\nread_from_shadow = true\n\
                command_bytes_max = \"1MiB\"\nuser = \"f\"\n";
    let Mode::Redis(redis) = mode("redis", keys) else {
        panic!("another mode");
    };
    assert_eq!(redis.guarantee, forebay_shadow::redis::Guarantee::Strict);
    assert_eq!((redis.confirm_ms, redis.long_ms), (1000, 3000));
    assert_eq!(redis.command_bytes_max, 1 << 20);
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
