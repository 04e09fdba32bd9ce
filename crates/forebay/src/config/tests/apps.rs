//! Apps: from files, from `forebay run`, and changed by `forebay set`.

use forebay_core::app::{AppId, Binding, Class};

use super::super::*;
use super::{check, check_app, host};

#[test]
fn an_app_has_exactly_one_binding() {
    check(
        "[apps.a]\nclass = \"batch\"\n",
        &[
            "f:1: apps.a: nothing says which processes are the app's; add exec = [\"PROGRAM\", ...], systemd = \"NAME.service\", container = \"NAME\", cgroup = \"PATH\" or match = { executable = \"NAME\" }",
        ],
    );
    check_app(
        "cgroup = \"x\"\n",
        &[
            "f:3: apps.a.cgroup: the app has `exec` already; keep one of exec, systemd, container, cgroup, match",
        ],
    );
    check(
        "[apps.a]\nmatch = {}\n",
        &[
            "f:2: apps.a.match: no condition would match every process; add executable = \"NAME\" or command_line = \"TEXT\"",
        ],
    );
    check(
        "[apps.a]\nmatch.executable = \"bin/x\"\n",
        &["f:2: apps.a.match.executable: `bin/x` is a relative path; write the path from `/` on"],
    );
    check(
        "[apps.a]\nmatch.executable = \"\"\n",
        &["f:2: apps.a.match.executable: the text is empty; give a value or leave the key out"],
    );
    check(
        "[apps.a]\ncgroup = \"x\"\nuser = \"root\"\n",
        &[
            "f:3: apps.a.user: only an app that Forebay starts has this key; take it out, or bind the app with `exec`",
        ],
    );
    check(
        "[apps.a]\ncgroup = \"/\"\n",
        &[
            "f:2: apps.a.cgroup: `/` is the root, which holds the whole host; write the path as /proc/PID/cgroup shows it, such as \"system.slice/nginx.service\"",
        ],
    );
}

#[test]
fn a_container_goes_by_its_name() {
    let check_name = |name: &str, is_taken: bool| {
        let error = format!(
            "f:2: apps.a.container: `{name}` is not the name of a container; see `docker ps` or `podman ps` for the names"
        );
        let errors = [error.as_str()];
        let errors = if is_taken { &[] } else { &errors[..] };
        check(&format!("[apps.a]\ncontainer = '{name}'\n"), errors);
    };
    check_name("web", true);
    check_name("my_app.web-1", true);
    check_name("/web", false);
    check_name("../web/json", false);
    check_name("web?all", false);
    check(
        "[apps.a]\ncontainer = \"x\"\n[apps.b]\ncontainer = \"x\"\n",
        &[
            "f:3: apps.b: app `a` has the container `x`, so that processes would belong to both; give each app processes of its own",
        ],
    );
    check(
        "[daemon]\ncontainer_socket = \"/run/a:b\"\n",
        &[
            "f:2: daemon.container_socket: `/run/a:b` has a `:` in it; name the socket by a path without one, such as a symbolic link",
        ],
    );
}

#[test]
fn a_unit_is_named_in_full() {
    let check = |unit: &str, refused: Option<&str>| {
        let errors: Vec<String> = refused
            .map(|text| format!("f:2: apps.a.systemd: `{unit}` {text}"))
            .into_iter()
            .collect();
        let errors: Vec<&str> = errors.iter().map(String::as_str).collect();
        check(&format!("[apps.a]\nsystemd = '{unit}'\n"), &errors);
    };
    check("nginx.service", None);
    check("getty@tty1.service", None);
    check(r"dev-disk\x2dby.service", None);
    check("batch.slice", None);
    check(
        "nginx",
        Some(
            "does not say which kind of unit it is; write `nginx.service`, or a name that ends in .scope or .slice",
        ),
    );
    check(
        "system.slice/nginx.service",
        Some("is a path; write the unit's name alone, `nginx.service`"),
    );
    check(
        "getty@.service",
        Some("is a template, of which nothing runs; name an instance, such as `getty@1.service`"),
    );
    check(
        "a b.service",
        Some("is not the name of a unit; see `systemctl list-units` for the names"),
    );
    check(
        "-.slice",
        Some("holds the host itself; see `systemctl list-units` for the names"),
    );
}

#[test]
fn no_two_apps_share_processes() {
    let fix = "give each app processes of its own";
    check(
        "[apps.a]\ncgroup = \"x/y\"\n[apps.b]\ncgroup = \"/x\"\n",
        &[&format!(
            "f:3: apps.b: app `a` has the control group `x/y`, so that processes would belong to both; {fix}"
        )],
    );
    check("[apps.a]\ncgroup = \"x\"\n[apps.b]\ncgroup = \"xy\"\n", &[]);
    check(
        "[apps.a]\nsystemd = \"x.service\"\n[apps.b]\nsystemd = \"x.service\"\n",
        &[&format!(
            "f:3: apps.b: app `a` has the unit `x.service`, so that processes would belong to both; {fix}"
        )],
    );
    check(
        "[apps.a]\ncgroup = \"system.slice/x.service/y\"\n[apps.b]\nsystemd = \"x.service\"\n",
        &[&format!(
            "f:3: apps.b: app `a` has the unit `x.service`, which control group `system.slice/x.service/y` is in, so that processes would belong to both; {fix}"
        )],
    );
    check(
        "[apps.a]\nmatch.executable = \"x\"\n[apps.b]\nmatch.executable = \"x\"\n",
        &[&format!(
            "f:3: apps.b: app `a` has the same match, so that processes would belong to both; {fix}"
        )],
    );
    check(
        "[apps.a]\ncgroup = \"forebay.a\"\n",
        &[
            "f:1: apps.a: control group `forebay.a` is one of Forebay's own; name the group that the app's own manager made",
        ],
    );
}

#[test]
fn one_mistake_of_an_app_hides_no_other() {
    check(
        "[apps.a]\nexec = [\"gone\"]\nfloor.cpu = 9\nceiling.cpu = 8\nweigth = 1\n",
        &[
            "f:1: apps: the floors of a (9.00 CPU) add up to 9.00 CPU, and the host has 4.00 CPU; lower floor.cpu of some of them",
            "f:2: apps.a.exec: there is no program `gone` in /usr/local/bin:/usr/bin; install it or write its absolute path",
            "f:3: apps.a.floor.cpu: the floor (9.00 CPU) is above the ceiling (8.00 CPU); lower floor.cpu or raise ceiling.cpu",
            "f:5: unknown key `weigth` in [apps.a]; did you mean `io_weight`?",
        ],
    );
}

#[test]
fn names_users_programs_and_places_must_exist() {
    check(
        "[apps.\"../x\"]\nexec = [\"sh\"]\n",
        &[
            "f:1: apps.\"../x\": `../x` is not an app name; use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit",
        ],
    );
    check_app(
        "user = \"ghost\"\ngroup = \"ghosts\"\ndirectory = \"/gone\"\nstdout = \"log\"\n",
        &[
            "f:3: apps.a.user: there is no user `ghost` in /etc/passwd; create it with `useradd --system ghost`, or name another",
            "f:4: apps.a.group: there is no group `ghosts` in /etc/group; create it with `groupadd --system ghosts`, or name another",
            "f:5: apps.a.directory: there is no directory /gone; create it or name another",
            "f:6: apps.a.stdout: `log` is a relative path; write the path from `/` on",
        ],
    );
    check_app(
        "environment = { \"A=B\" = \"\" }\n",
        &[
            "f:3: apps.a.environment: \"A=B\" cannot be a variable's name; use letters, digits and `_`",
        ],
    );
    let check_program = |program: &str, expected: &str| {
        check(
            &format!("[apps.a]\nexec = [{program:?}]\n"),
            &[&format!("f:2: apps.a.exec: {expected}")],
        );
    };
    check_program(
        "ngimx",
        "there is no program `ngimx` in /usr/local/bin:/usr/bin; install it or write its absolute path",
    );
    check_program(
        "/opt/x",
        "`/opt/x` does not exist or cannot be reached; install it or correct the path",
    );
    check_program(
        "/srv",
        "`/srv` is not a file; install it or correct the path",
    );
    check_program(
        "/usr/bin/notes",
        "`/usr/bin/notes` is not executable; install it or correct the path",
    );
    check_program(
        "bin/x",
        "`bin/x` is neither a program's name nor an absolute path; write the path from `/` on",
    );
    // The app's own PATH is the one that counts.
    check_app(
        "environment.PATH = \"/srv\"\n",
        &[
            "f:2: apps.a.exec: there is no program `sh` in /srv; install it or write its absolute path",
        ],
    );
}

#[test]
fn limits_name_whole_devices() {
    let check = |device: &str, limits: &str, expected: &[&str]| {
        check_app(&format!("io_max.\"{device}\" = {{ {limits} }}\n"), expected);
    };
    check("8:0", "rbps = 1, wbps = \"max\"", &[]);
    check(
        "8:0",
        "rbps = 0, riops = 0",
        &[
            "f:3: apps.a.io_max.\"8:0\".riops: `0` is out of bounds; use a whole number from 1 to 9223372036854775807, or \"max\" for no limit",
            "f:3: apps.a.io_max.\"8:0\".rbps: a limit of zero lets nothing through; use at least 1",
        ],
    );
    check(
        "8:1",
        "rbps = 1",
        &[
            "f:3: apps.a.io_max.\"8:1\": 8:1 is a partition, and limits hold for whole devices; use its device, 8:0",
        ],
    );
    check(
        "9:9",
        "rbps = 1",
        &["f:3: apps.a.io_max.\"9:9\": there is no block device 9:9; see `lsblk` for the numbers"],
    );
    check(
        "sda",
        "rbps = 1",
        &[
            "f:3: apps.a.io_max.sda: `sda` is not a block device number such as `8:0` (see lsblk); write major:minor",
        ],
    );
}

#[test]
fn floors_fit_below_ceilings_and_into_the_host() {
    check_app(
        "floor = { cpu = 2, memory = \"2GiB\" }\nceiling = { cpu = 1, memory = \"1GiB\" }\n",
        &[
            "f:3: apps.a.floor.cpu: the floor (2.00 CPU) is above the ceiling (1.00 CPU); lower floor.cpu or raise ceiling.cpu",
            "f:3: apps.a.floor.memory: the floor (2.0 GiB) is above the ceiling (1.0 GiB); lower floor.memory or raise ceiling.memory",
        ],
    );
    check_app(
        "ceiling.cpu = 0\nceiling.memory = 0\nceiling.pids = 0\n",
        &[
            "f:3: apps.a.ceiling.cpu: a ceiling of 0m is below what the kernel takes; use at least \"10m\"",
            "f:4: apps.a.ceiling.memory: a ceiling of zero lets nothing run; give what the app needs, or leave the key out",
            "f:5: apps.a.ceiling.pids: `0` is out of bounds; use a whole number from 1 to 9223372036854775807, or \"max\" for no limit",
        ],
    );
    check_app(
        "uclamp_min = \"60%\"\nuclamp_max = \"40%\"\n",
        &[
            "f:3: apps.a.uclamp_min: the least (60%) is above the most (40%); lower uclamp_min or raise uclamp_max",
        ],
    );
    let two = |floor: &str| {
        format!(
            "[apps.a]\nexec = [\"sh\"]\nfloor.{floor}\n[apps.b]\nexec = [\"sh\"]\nfloor.{floor}\n[apps.c]\nexec = [\"sh\"]\n"
        )
    };
    check(&two("cpu = 2"), &[]);
    check(
        &two("cpu = 2.5"),
        &[
            "f:1: apps: the floors of a (2.50 CPU), b (2.50 CPU) add up to 5.00 CPU, and the host has 4.00 CPU; lower floor.cpu of some of them",
        ],
    );
    check(
        &two("memory = \"4GiB\""),
        &[
            "f:1: apps: the floors of a (4.0 GiB), b (4.0 GiB) and policy.system_memory (256.0 MiB) add up to 8.2 GiB, and the host has 8.0 GiB; lower floor.memory of some of them",
        ],
    );
    check(
        &two("memory = 18446744073709551615"),
        &[
            "f:3: apps.a.floor.memory: a number beyond 64 bits does not fit here; write an amount of memory, such as \"64MiB\"",
            "f:6: apps.b.floor.memory: a number beyond 64 bits does not fit here; write an amount of memory, such as \"64MiB\"",
        ],
    );
}

#[test]
fn settings_change_one_app_or_nothing() {
    let (host, _guard) = host();
    let text =
        "[apps.a]\nexec = [\"sh\"]\nceiling.cpu = 2\n[apps.b]\nexec = [\"sh\"]\nfloor.cpu = 3\n";
    let original = parse(text, "f", &host).unwrap().policy;
    let id: AppId = "a".parse().unwrap();
    let check = |key: &str, value: &str, error: Option<&str>| {
        let mut policy = original.clone();
        let result = set(&mut policy, &id, key, value, &host);
        assert_eq!(result.err().map(|e| e.to_string()).as_deref(), error);
        assert_eq!(policy == original, error.is_some());
    };
    check("class", "critical", None);
    check("floor.cpu", "1", None);
    check("floor.cpu", "0.5", None);
    check("floor.cpu", "500m", None);
    check("floor.memory", "64MiB", None);
    check("ceiling.cpu", "max", None);
    check("ceiling.memory", "1073741824", None);
    check("ceiling.pids", "10", None);
    check("io_weight", "10", None);
    check("uclamp_min", "30%", None);
    check("ceiling.zswap", "64MiB", None);
    check("uclamp_max", "60 %", None);
    check(
        "uclamp_max",
        "101%",
        Some("a.uclamp_max: 101% is more than a CPU has; use 0% to 100%"),
    );
    check("request.cpu", "1.5", None);
    check(
        "floor.cpu",
        "3",
        Some(
            "a.floor.cpu: the floor (3.00 CPU) is above the ceiling (2.00 CPU); lower floor.cpu or raise ceiling.cpu",
        ),
    );
    check(
        "floor.cpu",
        "1.5",
        Some(
            "a.floor.cpu: the floors of a (1.50 CPU), b (3.00 CPU) add up to 4.50 CPU, and the host has 4.00 CPU; lower floor.cpu of some of them",
        ),
    );
    check(
        "class",
        "crit",
        Some("a.class: `crit` is not a class; use critical, standard or batch"),
    );
    check(
        "ceiling.cpus",
        "1",
        Some(
            "a.ceiling.cpus: `ceiling.cpus` is not a key that can be set; did you mean `ceiling.cpu`?",
        ),
    );
    check(
        "exec",
        "x",
        Some(
            "a.exec: `exec` is not a key that can be set; use class, floor.cpu, floor.memory, ceiling.cpu, ceiling.memory, ceiling.swap, ceiling.zswap, ceiling.pids, ceiling.egress, uclamp_min, uclamp_max, io_weight or request.cpu",
        ),
    );
    let mut policy = original.clone();
    let gone = set(&mut policy, &"z".parse().unwrap(), "class", "batch", &host).unwrap_err();
    assert_eq!(
        gone.to_string(),
        "there is no app `z`; see `forebay apps` for the names"
    );
}

#[test]
fn command_lines_make_apps() {
    let (host, _guard) = host();
    let args = |name: &str, class: &str, command: &[&str]| {
        let command = command.iter().map(|&text| text.to_owned()).collect();
        app_from_args(
            AppArgs::new(name.to_owned(), class.to_owned(), command),
            &host,
        )
    };
    let app = args("job", "batch", &["sh", "-c", "true"]).unwrap();
    assert_eq!(app.class, Class::Batch);
    let Binding::Exec(exec) = app.binding else {
        panic!("{:?}", app.binding);
    };
    assert_eq!(exec.command, ["/usr/bin/sh", "-c", "true"]);
    assert_eq!(
        args("-", "crit", &[]).unwrap_err().to_string(),
        "name: `-` is not an app name; use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit\n\
         class: `crit` is not a class; use critical, standard or batch\n\
         command: `` is neither a program's name nor an absolute path; write the path from `/` on"
    );
}
