//! What people read.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: ClientCommand,
}

fn band(q50: f64) -> api::Band {
    api::Band {
        q50,
        q90: q50 * 1.2,
        q95: q50 * 1.5,
        q99: q50 * 2.0,
        model: "seasonal".to_owned(),
        cold: false,
    }
}

/// A critical app that runs on CPU 1 of 2.
pub(crate) fn web() -> api::App {
    api::App {
        name: "web".to_owned(),
        class: api::Class::Critical,
        state: api::RunState::Running,
        ending: None,
        main_pid: Some(42),
        starts: 1,
        usage: api::Usage {
            cpu_cores: Some(0.41),
            cpu_stalled: Some(0.02),
            memory_bytes: Some(100 << 20),
            ..api::Usage::default()
        },
        io: api::Io::default(),
        traffic: None,
        demand: Some(api::Demand {
            cpu: band(0.4),
            memory: band(1e8),
            memory_cold_bytes: 0,
            memory_cold_anonymous_bytes: 0,
            memory_witness: api::MemoryWitness::Lists,
        }),
        slice: api::Slice {
            cpus: Some("1".to_owned()),
            cpu_weight: Some(10_000),
            memory_low_bytes: Some(150 << 20),
            memory_high_bytes: Some(api::Limit::MAX),
            ..api::Slice::default()
        },
        reason: Some(api::Reason {
            cpu_demand_cores: 0.6,
            cpu_wanted_cores: 0.78,
            cpu_extra_cores: 0.0,
            exclusive_cpus: "1".to_owned(),
            spills: false,
            held_cpus: 0,
            memory_demand_bytes: 150 << 20,
        }),
        reclaim: None,
        page_move: None,
        accelerator: None,
    }
}

/// A batch app that ended.
pub(crate) fn crunch() -> api::App {
    api::App {
        name: "crunch".to_owned(),
        class: api::Class::Batch,
        state: api::RunState::Ended,
        ending: Some("status 1".to_owned()),
        main_pid: None,
        starts: 3,
        usage: api::Usage::default(),
        io: api::Io::default(),
        traffic: None,
        demand: None,
        slice: api::Slice::default(),
        reason: None,
        reclaim: None,
        page_move: None,
        accelerator: None,
    }
}

pub(crate) fn explanation(app: api::App) -> api::Explanation {
    api::Explanation {
        app,
        rules: api::Rules {
            binding: "exec nginx".to_owned(),
            floor_cpu_cores: 0.5,
            floor_memory_bytes: 64 << 20,
            ceiling_cpu_cores: api::Limit::MAX,
            ceiling_memory_bytes: api::Limit::At(1 << 30),
            ceiling_swap_bytes: None,
            ceiling_pids: api::Limit::MAX,
            request_cpu_cores: None,
            headroom_percent: 30,
            horizon_seconds: 1.0,
            hold_seconds: 5.0,
            response_time_max_ms: Some(50.0),
            moves_by: None,
        },
        models: None,
        shared_cpus: "0".to_owned(),
        host_cpus: 2,
        devices: Vec::new(),
        external_forecasts: Vec::new(),
        offload: Vec::new(),
        paused: false,
        shortfalls: Vec::new(),
    }
}

pub(crate) fn status() -> api::Status {
    api::Status {
        version: "0.1.0".to_owned(),
        period: 599,
        time_unix_ms: 1_700_000_000_000,
        uptime_seconds: 60.0,
        paused: false,
        timing: api::Timing {
            late_seconds: 0.0001,
            took_seconds: 0.0008,
            late_p99_seconds: 0.0004,
            overruns: 2,
        },
        agent: api::Agent {
            cpu_seconds: 0.3,
            resident_bytes: 20 << 20,
        },
        host: api::Host {
            cpus: vec![
                api::Cpu {
                    id: 0,
                    busy: Some(1.0),
                    owner: None,
                    node: None,
                    l3: None,
                },
                api::Cpu {
                    id: 1,
                    busy: Some(0.41),
                    owner: Some("web".to_owned()),
                    node: None,
                    l3: None,
                },
            ],
            shared_cpus: "0".to_owned(),
            memory_available_bytes: Some(3 << 30),
        },
        apps: 2,
        apps_running: 1,
        shortfalls: Vec::new(),
        fleet: None,
    }
}

#[test]
fn status_reads_at_a_glance() {
    assert_eq!(
        render::status(&status()),
        "forebay      0.1.0, partitioning\n\
         running      1 min 0 s, 600 periods\n\
         punctuality  late by 0.1 ms (p99 0.4 ms), took 0.8 ms, 2 overruns\n\
         own use      0.50% of one CPU since it started, 20.0 MiB\n\
         CPUs         2, 1.41 busy, 1 exclusive, shared: 0\n\
         memory       3.0 GiB available\n\
         apps         2, 1 running\n"
    );
}

#[test]
fn apps_are_a_table() {
    let text = render::apps(&[crunch(), web()]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "APP     CLASS     STATE              CPU  DEMAND q50-q95-q99  CPUS  WEIGHT     MEMORY        LOW  HIGH",
            "crunch  batch     ended (status 1)     -                   -  -          -          -          -     -",
            "web     critical  running           0.41      0.40-0.60-0.80  1      10000  100.0 MiB  150.0 MiB   max",
        ]
    );
    assert!(render::apps(&[]).starts_with("no apps; start one with `forebay run"));
}

#[test]
fn an_explanation_names_the_numbers_that_decided() {
    let check = |change: fn(&mut api::Explanation), expected: &[&str]| {
        let mut explained = explanation(web());
        change(&mut explained);
        let text = explain(&explained);
        for part in expected {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
    };
    check(
        |_| {},
        &[
            "web is critical and runs as process 42 (exec nginx).",
            "It uses 0.41 CPU now, and some task waited for a CPU 2% of the time.",
            "peak at 0.40 (q50), 0.60 (q95), 0.80 CPU (q99), says the model `seasonal`.",
            "The plan goes by q95: 0.60 CPU, within its floor of 0.50 and its ceiling of max.",
            "With 30% headroom that wants 0.78 CPU.",
            "CPU 1 of 2 is its own",
            "memory.low = 150.0 MiB, memory.high = max",
            "as soon as its demand exceeds 0.77 CPU",
        ],
    );
    check(
        |explained| {
            explained.rules.floor_cpu_cores = 1.5;
            let reason = explained.app.reason.as_mut().unwrap();
            reason.cpu_demand_cores = 1.5;
            reason.spills = true;
            reason.held_cpus = 1;
            explained.paused = true;
            explained.shortfalls = vec!["lower a floor".to_owned()];
        },
        &[
            "raised to its floor of 1.50 CPU",
            "it also runs on shared CPUs",
            "1 of its CPUs it would not be given anew",
            "when other critical apps want less",
            "Forebay is paused",
            "A promise cannot be kept: lower a floor.",
        ],
    );
    check(
        |explained| {
            explained.rules.ceiling_cpu_cores = api::Limit::At(0.5);
            explained.app.reason.as_mut().unwrap().cpu_demand_cores = 0.5;
        },
        &["cut to its ceiling of 0.50 CPU"],
    );
    check(
        |explained| {
            explained.app.reason.as_mut().unwrap().cpu_extra_cores = 1.0;
            explained.offload = vec![
                "It is constrained: so.".to_owned(),
                "Tried: that.".to_owned(),
            ];
        },
        &[
            "With 30% headroom and 1.00 CPU more, since it is constrained, that wants",
            "\n\nIt is constrained: so. Tried: that.\n\n",
        ],
    );
    check(
        |explained| explained.app.demand.as_mut().unwrap().cpu.cold = true,
        &["too little history yet: the forecast starts from its floor of 0.50 CPU"],
    );
    check(
        |explained| {
            let demand = explained.app.demand.as_mut().unwrap();
            demand.cpu.model = "present".to_owned();
            demand.memory.model = "present".to_owned();
        },
        &[
            "Nothing is forecast (`forecast = \"off\"`). The plan goes by present use: 0.60 CPU",
            "is planned for (present use, floor",
        ],
    );
    check(
        |explained| explained.app.reason.as_mut().unwrap().exclusive_cpus = String::new(),
        &["It has no CPU of its own"],
    );
    check(
        |explained| explained.app.demand.as_mut().unwrap().memory_cold_bytes = 40 << 20,
        &["It holds 100.0 MiB now, of which 40.0 MiB are page cache that was not used again"],
    );
    check(
        |explained| {
            explained
                .app
                .demand
                .as_mut()
                .unwrap()
                .memory_cold_anonymous_bytes = 30 << 20;
        },
        &["30.0 MiB of its anonymous memory seem cold, by the kernel's lists (memory.stat)"],
    );
    check(
        |explained| {
            let demand = explained.app.demand.as_mut().unwrap();
            demand.memory_cold_anonymous_bytes = 30 << 20;
            demand.memory_witness = api::MemoryWitness::Accesses;
        },
        &["30.0 MiB of its anonymous memory are cold: watched by DAMON, and not touched lately"],
    );
    check(
        |explained| {
            explained.app.reclaim = Some(api::Reclaim {
                asked_bytes: 64 << 20,
                got_bytes: 16 << 20,
                state: api::ReclaimState::Short,
            });
        },
        &["asked to give back 64.0 MiB; 16.0 MiB came, the kernel found no more in time."],
    );
    check(
        |explained| explained.app = crunch(),
        &[
            "crunch is batch and ended with status 1, started 3 times",
            "It has no slice: only apps that run get one.",
        ],
    );
}

#[test]
fn a_plan_says_that_nothing_was_changed() {
    let mut plan = api::Plan {
        slices: vec![api::PlannedSlice {
            app: "web".to_owned(),
            slice: web().slice,
            reason: web().reason,
        }],
        shared_cpus: "0".to_owned(),
        shortfalls: Vec::new(),
        actions: vec![api::Action {
            app: Some("web".to_owned()),
            what: "web: cpuset.cpus = 1".to_owned(),
        }],
    };
    assert_eq!(
        render::plan(&plan),
        "APP  WANTS CPU  CPUS  EXCLUSIVE  MEMORY LOW  HIGH\n\
         web       0.78  1     1           150.0 MiB   max\n\n\
         would change (nothing was):\n  web: cpuset.cpus = 1\n"
    );
    plan.actions.clear();
    assert!(render::plan(&plan).ends_with("\nnothing would change\n"));
}

#[test]
fn forecasts_and_histories_have_units() {
    let forecast = api::Forecast {
        app: "web".to_owned(),
        horizon_seconds: 1.0,
        demand: web().demand,
        usage: web().usage,
        models: Some(api::Models {
            cpu: vec![api::ModelScore {
                model: "seasonal".to_owned(),
                horizon_seconds: 1.0,
                peak: true,
                pinball: Some(0.0123),
                samples: 80,
                used: true,
            }],
            memory: Vec::new(),
        }),
        resources: Vec::new(),
        known: Vec::new(),
    };
    let text = render::forecast(&forecast);
    assert!(text.starts_with("peak of web within 1 s:\n"), "{text}");
    assert!(text.contains("memory    100.0 MiB  95.4 MiB"), "{text}");
    assert!(
        text.contains("*  seasonal  1 s      0.0123 CPU      80\n"),
        "{text}"
    );

    let history = api::History {
        app: "web".to_owned(),
        resource: api::Resource::Memory,
        step: api::Step::Minute,
        rows: vec![api::HistoryRow {
            time_unix_ms: 1_700_000_000_000,
            min: 0.0,
            mean: 1024.0,
            max: 2048.0,
            samples: 600,
            demand_q95: None,
        }],
    };
    let text = render::history(&history);
    assert!(
        text.ends_with("2023-11-14 22:13:20  0 B  1.0 KiB  2.0 KiB           -      600\n"),
        "{text}"
    );
}

#[test]
fn what_if_takes_several_apps() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let parsed = changes(&words("web floor.cpu=2 class=batch crunch floor.cpu=0")).unwrap();
    assert_eq!(parsed.len(), 2);
    assert_eq!((parsed[0].app.as_str(), parsed[0].set.len()), ("web", 2));
    assert_eq!(parsed[1].set[0].value, "0");
    assert_eq!(changes(&[]).unwrap(), []);
    assert!(changes(&words("floor.cpu=2")).is_err());
    assert!(changes(&words("web crunch floor.cpu=2")).is_err());
    assert!(changes(&words("web =2")).is_err());
}

#[test]
fn command_lines_are_taken_as_documented() {
    let check = |line: &str, taken: bool| {
        let binary = with_connection(<Cli as clap::CommandFactory>::command());
        let parsed = binary
            .try_get_matches_from(line.split(' '))
            .and_then(|matches| <Cli as clap::FromArgMatches>::from_arg_matches(&matches));
        assert_eq!(parsed.is_ok(), taken, "{line}: {parsed:?}");
    };
    check("forebay status --json --socket /tmp/x", true);
    check("forebay apps --json", true);
    check("forebay explain web", true);
    check("forebay explain ../web", false);
    check("forebay events --follow -n 5 --app web", true);
    check("forebay events -n 0", false);
    check("forebay history web cpu --step 1m --since 30", true);
    check("forebay history web cpu_stalled", true);
    check("forebay history web smell", false);
    check("forebay plan --what-if", true);
    check("forebay plan --what-if web floor.cpu=2", true);
    check("forebay run --name x --class batch -- make -j 4", true);
    check("forebay run --name x --class batch", false);
    check("forebay run --name x --class urgent -- make", false);
    check("forebay set web floor.cpu=1 class=batch", true);
    check("forebay set web", false);
    check("forebay set web floor.cpu", false);
    for command in ["pause", "resume", "reload", "top"] {
        check(&format!("forebay {command}"), true);
    }
}

#[test]
fn a_program_gets_the_directory_and_the_keys() {
    let line = "forebay run --name x --class batch --floor-cpu 0.5 --directory /srv -- make -j 4";
    let ClientCommand::Run(args) = Cli::parse_from(line.split(' ')).command else {
        panic!("not run");
    };
    let request = run_request(args).unwrap();
    assert_eq!(request.command, ["make", "-j", "4"]);
    assert_eq!(request.directory.as_deref(), Some("/srv"));
    assert_eq!(request.set[0].key, "floor.cpu");
    assert_eq!(request.user, None);
}
