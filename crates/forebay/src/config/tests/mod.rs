mod accel;
mod apps;
mod dashboard;
mod events;
mod fleet;
mod fronts;
mod offload;
mod properties;
mod sources;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use forebay_core::app::{
    AppId, Binding, Class, Device, Foresight, Images, IoProtection, OnStop, Partition, Restart,
    Sink,
};
use forebay_core::units::{Bytes, Limit, MilliCpu, Utilization};

use super::*;

/// A host of 4 CPUs and 8 GiB with a few users, programs and disks. Lives as long as the guard.
fn host() -> (HostFacts, tempfile::TempDir) {
    let guard = tempfile::tempdir().unwrap();
    let root = guard.path();
    let programs = "usr/lib/postgresql/15/bin";
    for directory in [
        "etc",
        "usr/bin",
        programs,
        "srv",
        "sys/dev/block",
        "disk/part",
    ] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/:\nredis:x:110:110::/:\npostgres:x:111:111::/:\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nforebay:x:990:\n").unwrap();
    for (program, mode) in [
        ("sh", 0o755),
        ("nginx", 0o755),
        ("redis-server", 0o755),
        ("notes", 0o644),
        ("../lib/postgresql/15/bin/postgres", 0o755),
    ] {
        let path = root.join("usr/bin").join(program);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(root.join("disk/dev"), "8:0\n").unwrap();
    fs::write(root.join("disk/part/partition"), "1\n").unwrap();
    symlink(root.join("disk"), root.join("sys/dev/block/8:0")).unwrap();
    symlink(root.join("disk/part"), root.join("sys/dev/block/8:1")).unwrap();
    let facts = HostFacts {
        cpus: 4,
        memory: Bytes::mib(8 << 10),
        root: root.to_owned(),
        executable: "/usr/bin/forebay".into(),
        search_path: "/usr/local/bin:/usr/bin".to_owned(),
    };
    (facts, guard)
}

/// Parses `text` as the file `f` and compares the errors as they are shown.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let (host, _guard) = host();
    let errors: Vec<String> = match parse(text, "f", &host) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(Error::to_string).collect(),
    };
    assert_eq!(errors, expected, "{text}");
}

/// As [`check`], for the keys of one app that is bound already. It starts in line 1.
#[track_caller]
fn check_app(keys: &str, expected: &[&str]) {
    check(&format!("[apps.a]\nexec = [\"sh\"]\n{keys}"), expected);
}

#[track_caller]
fn config(text: &str) -> Config {
    let (host, _guard) = host();
    parse(text, "f", &host).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn nothing_is_needed() {
    check("", &[]);
    assert_eq!(config("# nothing\n"), Config::default());
    let (host, _guard) = host();
    assert_eq!(load(None, &host), Ok(Config::default()));
}

#[test]
fn every_key_arrives() {
    let config = config(
        r#"
        [daemon]
        socket = "/run/f.sock"
        state_dir = "/srv/f"
        container_socket = "/run/c.sock"
        cgroup_root = "/fb"
        lease = "30s"
        group = "forebay"
        readers = "group"
        http = "[::1]:9180"
        criu = "/opt/criu"
        qemu = "/opt/qemu"
        otlp = { url = "http://127.0.0.1:4318/v1/metrics", every = "1m" }
        history = { 10s = "2d", 1min = "3d", 1h = "4d" }
        [forecast]
        training = "off"
        training_cpu = "12%"
        [policy]
        mode = "observe"
        period = "50ms"
        headroom = "20%"
        hold = "2s"
        horizon = "3s"
        forecast = "off"
        system_memory = "128MiB"
        partition = "isolated"
        io_protection = "cost"
        on_stop = "kill"
        [apps.web]
        class = "critical"
        exec = ["nginx", "-g", "daemon off;", ""]
        user = "www"
        group = "0"
        directory = "/srv"
        environment = { LANG = "C", EMPTY = "" }
        stdout = "/srv/out"
        stderr = "journal"
        restart = "always"
        images = { every = "30s" }
        floor = { cpu = "500m", memory = "64MiB" }
        ceiling = { cpu = 2, memory = "max", swap = "0B", zswap = "64MiB", pids = 100 }
        request = { cpu = 0.25 }
        uclamp_min = "30%"
        io_weight = 500
        io_max = { "8:0" = { rbps = "10MiB", wiops = 7 } }
        [apps."db.main"]
        cgroup = "/system.slice/./db.service"
        [apps.build]
        class = "batch"
        match.executable = "/usr/bin/cc1"
        match.command_line = "-O2"
        "#,
    );
    let days = |n: u64| Duration::from_secs(n * 86_400);
    assert_eq!(
        config.daemon,
        DaemonConfig {
            socket: "/run/f.sock".into(),
            state_dir: "/srv/f".into(),
            cgroup_root: "fb".into(),
            lease: Duration::from_secs(30),
            group: "forebay".into(),
            readers: Readers::Group,
            http: Some("[::1]:9180".parse().unwrap()),
            history: Retention {
                rollup_10s: days(2),
                rollup_1min: days(3),
                rollup_1h: days(4),
            },
            container_socket: Some("/run/c.sock".into()),
            criu: Some("/opt/criu".into()),
            qemu: Some("/opt/qemu".into()),
            otlp: Some(crate::server::Otlp {
                url: "http://127.0.0.1:4318/v1/metrics".parse().unwrap(),
                every: Duration::from_secs(60),
            }),
        }
    );
    let policy = config.policy;
    assert_eq!(policy.period, Duration::from_millis(50));
    assert_eq!(policy.headroom_percent, 20);
    assert_eq!(policy.hold, Duration::from_secs(2));
    assert_eq!(policy.horizon, Duration::from_secs(3));
    assert_eq!(policy.foresight, Foresight::Present);
    assert_eq!(policy.system_memory, Bytes::mib(128));
    assert_eq!(policy.partition, Partition::Isolated);
    assert!(policy.observe);
    assert_eq!(policy.io_protection, IoProtection::Cost);
    assert_eq!(policy.on_stop, OnStop::Kill);

    let training = config.training;
    assert_eq!((training.on, training.cpu_percent), (false, 12));
    let web = &policy.apps[&"web".parse::<AppId>().unwrap()];
    let Binding::Exec(exec) = &web.binding else {
        panic!("{web:?}");
    };
    assert_eq!(exec.command, ["/usr/bin/nginx", "-g", "daemon off;", ""]);
    assert_eq!(exec.user.as_deref(), Some("www"));
    assert_eq!(exec.group.as_deref(), Some("0"));
    assert_eq!(exec.directory.as_deref(), Some(Path::new("/srv")));
    assert_eq!(exec.stdout, Some(Sink::File("/srv/out".into())));
    assert_eq!(exec.stderr, Some(Sink::Journal));
    assert_eq!(exec.environment["LANG"], "C");
    assert_eq!(exec.environment["EMPTY"], "");
    assert_eq!(exec.restart, Restart::Always);
    assert_eq!(web.class, Class::Critical);
    assert_eq!(web.floor.cpu, MilliCpu(500));
    assert_eq!(web.floor.memory, Bytes::mib(64));
    assert_eq!(web.ceiling.cpu, Limit::At(MilliCpu::cpus(2)));
    assert_eq!(web.ceiling.memory, Limit::Max);
    assert_eq!(web.ceiling.swap, Limit::At(Bytes(0)));
    assert_eq!(web.ceiling.zswap, Limit::At(Bytes::mib(64)));
    let every = Duration::from_secs(30);
    assert_eq!(web.images, Some(Images { every }));
    assert_eq!(web.ceiling.pids, Limit::At(100));
    assert_eq!(web.request, Some(MilliCpu(250)));
    assert_eq!(web.uclamp.min, Some(Utilization::percent(30)));
    assert_eq!(web.uclamp.max, None);
    assert_eq!(web.io_weight, Some(500));
    let io_max = &web.io_max[&Device { major: 8, minor: 0 }];
    assert_eq!(io_max.rbps, Limit::At(10 << 20));
    assert_eq!(io_max.wbps, Limit::Max);
    assert_eq!(io_max.wiops, Limit::At(7));

    let db = &policy.apps[&"db.main".parse::<AppId>().unwrap()];
    assert_eq!(
        db.binding,
        Binding::Cgroup("system.slice/db.service".into())
    );
    assert_eq!(db.class, Class::Standard);
    let build = &policy.apps[&"build".parse::<AppId>().unwrap()];
    let Binding::Match(found) = &build.binding else {
        panic!("{build:?}");
    };
    assert_eq!(found.executable.as_deref(), Some("/usr/bin/cc1"));
    assert_eq!(found.command_line.as_deref(), Some("-O2"));
}

#[test]
fn all_mistakes_are_reported_at_once_in_order() {
    check(
        "[daemon]\nhttp = \"0.0.0.0:9180\"\n[apps.web]\nclass = \"crit\"\nexec = [\"sh\"]\nio_weigth = 1\n[polcy]\n",
        &[
            "f:2: daemon.http: `0.0.0.0:9180` can be reached from other hosts, and this port asks for no password; use \"127.0.0.1:9180\" or \"[::1]:9180\"",
            "f:4: apps.web.class: `crit` is not a class; use critical, standard or batch",
            "f:6: unknown key `io_weigth` in [apps.web]; did you mean `io_weight`?",
            "f:7: unknown key `polcy` at the top of the file; did you mean `policy`?",
        ],
    );
}

#[test]
fn cpus_of_a_partition_cannot_be_lent() {
    check(
        "[policy]\npartition = \"root\"\nlend = true\n",
        &[
            "f:2: policy.partition: CPUs in a `root` partition are nobody else's, so they cannot be lent; leave out `lend`, or set this to \"none\"",
        ],
    );
    check("[policy]\npartition = \"none\"\nlend = true\n", &[]);
}

#[test]
fn mistakes_of_syntax_have_a_line_each() {
    let (host, _guard) = host();
    let check = |text: &str, lines: &[usize]| {
        let errors = parse(text, "f", &host).unwrap_err();
        let found: Vec<usize> = errors.iter().filter_map(|error| error.line).collect();
        assert_eq!(found, lines, "{errors}");
    };
    check("[daemon", &[1]);
    check("\n\nx y\n", &[3]);
    check("[policy]\nhold = \"1s\"\nhold = \"2s\"\n", &[3]);
    check("[apps.a]\n[apps.a]\n", &[2]);
    check("[policy]\nhold = 1s\nperiod = =\n", &[2, 3]);
}

#[test]
fn unknown_keys_name_the_nearest_or_all() {
    check_app(
        "floor = { cpus = 1 }\n",
        &["f:3: unknown key `cpus` in [apps.a.floor]; did you mean `cpu`?"],
    );
    check_app(
        "weight = 7\n",
        &["f:3: unknown key `weight` in [apps.a]; did you mean `io_weight`?"],
    );
    check_app(
        "request = { speed = 1 }\n",
        &["f:3: unknown key `speed` in [apps.a.request]; use cpu"],
    );
    // A misspelt binding is one mistake, not two.
    check(
        "[apps.a]\nexce = [\"sh\"]\n",
        &["f:2: unknown key `exce` in [apps.a]; did you mean `exec`?"],
    );
}

#[test]
fn values_of_another_kind_say_what_fits() {
    check(
        "apps = 3\n",
        &["f:1: apps: `3` does not fit here; write a table"],
    );
    check(
        "apps.a = 3\n",
        &["f:1: apps.a: `3` is no table; write [apps.a]"],
    );
    check(
        "[apps.a]\nexec = \"sh -c true\"\n",
        &[
            "f:2: apps.a.exec: `sh -c true` does not fit here; write a list of texts, such as [\"nginx\", \"-g\", \"daemon off;\"]",
        ],
    );
    check(
        "[apps.a]\nexec = []\n",
        &[
            "f:2: apps.a.exec: the list is empty; write a list of texts, such as [\"nginx\", \"-g\", \"daemon off;\"]",
        ],
    );
    check(
        "[apps.a]\nexec = [\"sh\", 1]\n",
        &["f:2: apps.a.exec: `1` is not a text; put it in quotes"],
    );
    check(
        "[apps.a]\nexec = [\"sh\", \"\\u0000\"]\n",
        &["f:2: apps.a.exec: the text has a NUL in it; take it out"],
    );
    check(
        "[policy]\nhold = 5\n",
        &[
            "f:2: policy.hold: `5` is not a duration; write a number and a unit, such as \"100ms\", \"5s\", \"2m\", \"1h\" or \"14d\"",
        ],
    );
    check(
        "[policy]\nheadroom = 0.3\n",
        &["f:2: policy.headroom: `0.3` does not fit here; write a percentage, such as \"30%\""],
    );
    check_app(
        "io_weight = 0\n",
        &["f:3: apps.a.io_weight: `0` is out of bounds; use a whole number from 1 to 10000"],
    );
    check_app(
        "floor.cpu = -1\n",
        &[
            "f:3: apps.a.floor.cpu: `-1` is not an amount of processor time; write a number of CPUs or thousandths of one, such as 0.5, 2 or \"500m\"",
        ],
    );
    check_app(
        "ceiling.memory = true\n",
        &[
            "f:3: apps.a.ceiling.memory: `true` does not fit here; write an amount of memory, such as \"64MiB\", or \"max\" for no limit",
        ],
    );
}

#[test]
fn the_daemon_and_the_policy_have_bounds() {
    check(
        "[policy]\nperiod = \"5ms\"\n",
        &["f:2: policy.period: 5ms is out of bounds; use 20ms to 10s"],
    );
    check("[policy]\nperiod = \"10s\"\n", &[]);
    check(
        "[policy]\nperiod = \"5s\"\nhorizon = \"1s\"\n",
        &["f:3: policy.horizon: 1s is out of bounds; use 5s to 3600s"],
    );
    check(
        "[policy]\nheadroom = \"500%\"\n",
        &["f:2: policy.headroom: `500%` is more than a host can set aside; use at most \"400%\""],
    );
    check(
        "[policy]\nsystem_memory = \"8GiB\"\n",
        &["f:2: policy.system_memory: 8.0 GiB would leave nothing of the host's 8.0 GiB; lower it"],
    );
    check(
        "[daemon]\nlease = \"0s\"\nsocket = \"f.sock\"\ngroup = \"wheel\"\n",
        &[
            "f:2: daemon.lease: 0ns is out of bounds; use 1s to 600s",
            "f:3: daemon.socket: `f.sock` is a relative path; write the path from `/` on",
            "f:4: daemon.group: there is no group `wheel` in /etc/group; create it with `groupadd --system wheel`, or name another",
        ],
    );
    check(
        "[daemon]\ncgroup_root = \"../x\"\n",
        &[
            "f:2: daemon.cgroup_root: `../x` climbs out with `..`; write the path as /proc/PID/cgroup shows it, such as \"system.slice/nginx.service\"",
        ],
    );
}

#[test]
fn training_is_on_and_has_bounds() {
    let on = config("").training;
    assert_eq!((on.on, on.cpu_percent), (true, 5));
    for share in ["0%", "101%"] {
        check(
            &format!("[forecast]\ntraining_cpu = \"{share}\"\n"),
            &[&format!(
                "f:2: forecast.training_cpu: {share} is no share; write 1% to 100%"
            )],
        );
    }
    check(
        "[forecast]\ntraining = \"yes\"\n",
        &["f:2: forecast.training: `yes` is not a way to train; use on or off"],
    );
}

#[test]
fn files_are_read_whole_or_refused() {
    let (host, guard) = host();
    let path = guard.path().join("x.toml");
    let check = |bytes: &[u8], expected: &str| {
        fs::write(&path, bytes).unwrap();
        let shown = load(Some(&path), &host).map_err(|errors| errors.to_string());
        assert_eq!(shown, Err(format!("{}: {expected}", path.display())));
    };
    check(b"\n\n\xff", "line 3 is not UTF-8; save the file as UTF-8");
    check(
        &vec![b'#'; (1 << 20) + 1],
        "the configuration is longer than 1048576 bytes; name the right file",
    );
    let missing = load(Some(Path::new("/nonexistent.toml")), &host).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "/nonexistent.toml: read the configuration: No such file or directory (os error 2); name a file that exists and may be read, or start without one"
    );
    fs::create_dir(guard.path().join("etc/forebay")).unwrap();
    fs::write(
        guard.path().join("etc/forebay/forebay.toml"),
        "[policy]\nhold = \"7s\"\n",
    )
    .unwrap();
    assert_eq!(
        load(None, &host).unwrap().policy.hold,
        Duration::from_secs(7)
    );
}

#[test]
fn the_schema_has_every_key_with_a_description() {
    fn described(schema: &serde_json::Value) -> usize {
        let inner = schema["properties"].as_object();
        let properties = inner.into_iter().flat_map(|map| map.values());
        let more = properties.map(|property| {
            assert!(
                property["description"]
                    .as_str()
                    .is_some_and(|text| text.len() > 6)
            );
            1 + described(property)
        });
        more.sum::<usize>() + schema.get("additionalProperties").map_or(0, described)
    }
    let schema = schema();
    assert_eq!(
        schema["properties"]["apps"]["additionalProperties"]["properties"]["class"]["enum"][0],
        "critical"
    );
    assert_eq!(schema["additionalProperties"], false);
    assert!(described(&schema) > 40);
}

#[test]
fn every_example_is_right() {
    let (host, _guard) = host();
    let examples = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples"));
    let mut names = Vec::new();
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let config = load(Some(&path), &host).unwrap_or_else(|errors| panic!("{errors}"));
            assert!(
                config
                    .policy
                    .apps
                    .values()
                    .any(|app| app.class == Class::Critical)
            );
            names.push(path.file_stem().unwrap().to_owned());
        }
    }
    names.sort();
    assert_eq!(
        names,
        [
            "events",
            "http-front",
            "minimal",
            "nginx",
            "postgres",
            "postgres-front",
            "redis",
            "redis-front"
        ]
    );
}
