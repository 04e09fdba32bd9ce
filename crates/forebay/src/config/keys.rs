//! Every key of the configuration: its name, its kind and what it is for.
//!
//! This table is the one source of truth. The reader of texts ([`super::text`]) accepts what
//! stands here and nothing else, `forebay set` finds its keys here, and the JSON Schema of
//! `forebay check --schema` is this table in other words.

use serde_json::{Value as Json, json};

mod dashboard;
mod event;
mod fleet;
mod front;
mod offload;
mod program;

use dashboard::DASHBOARD;
use event::{CALENDAR, EVENT};
use fleet::FLEET;
use front::FRONT;
use offload::OFFLOAD;
use program::{ACCELERATORS, IMAGES, MOVE, UPDATE};

use super::quantity::{
    BYTES_PATTERN, CPU_PATTERN, DURATION_PATTERN, PERCENT_PATTERN, RATE_PATTERN,
};

/// One key of a section.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// A sentence without its full stop. The default stands at its end, in parentheses.
    pub(crate) doc: &'static str,
}

/// What may stand behind a key.
#[derive(Debug)]
pub(crate) enum Kind {
    Text,
    /// A list of at least one text.
    Texts,
    /// Texts by name.
    TextMap,
    Duration,
    Bytes,
    Cpu,
    Rate,
    Percent,
    Bool,
    /// A whole number within these bounds, both included.
    Count {
        min: u64,
        max: u64,
    },
    /// One of a few words.
    Choice {
        noun: &'static str,
        words: &'static [&'static str],
    },
    /// IP address and port.
    Address,
    /// `"max"`, or what the inner kind takes.
    OrMax(&'static Kind),
    Section(&'static [Key]),
    /// Sections by a name that the user chooses.
    Sections(&'static [Key]),
    /// Sections in a row, each headed `[[key]]`.
    Rows(&'static [Key]),
    /// A text or a list of at least one.
    TextOrTexts,
}

pub(super) const CLASSES: &[&str] = &["critical", "standard", "batch"];

const COUNT_MAX: u64 = i64::MAX.unsigned_abs();
const LIMIT_CPU: Kind = Kind::OrMax(&Kind::Cpu);
const LIMIT_BYTES: Kind = Kind::OrMax(&Kind::Bytes);
const LIMIT_RATE: Kind = Kind::OrMax(&Kind::Rate);
const LIMIT_COUNT: Kind = Kind::OrMax(&Kind::Count {
    min: 1,
    max: COUNT_MAX,
});

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, kind, doc }
}

/// The whole file.
pub(crate) const ROOT: &[Key] = &[
    key("daemon", Kind::Section(DAEMON), "The daemon itself"),
    key(
        "policy",
        Kind::Section(POLICY),
        "How the host is partitioned",
    ),
    key("forecast", Kind::Section(FORECAST), "How forecasts learn"),
    key(
        "offload",
        Kind::Section(OFFLOAD),
        "When an app counts as constrained, and what is done about it",
    ),
    key(
        "apps",
        Kind::Sections(APP),
        "The apps by name: 1 to 64 letters, digits, `-`, `_` or `.`",
    ),
    key(
        "tiers",
        Kind::Sections(TIER),
        "Tiered directories by name: 1 to 64 letters, digits, `-`, `_` or `.`",
    ),
    key(
        "fronts",
        Kind::Sections(FRONT),
        "Fronts by name: each owns a service's address, and lets a shadow take over when the primary is lost",
    ),
    key(
        "event",
        Kind::Rows(EVENT),
        "Events that are known to come, at most 64",
    ),
    key(
        "calendars",
        Kind::Sections(CALENDAR),
        "Days that are unlike others, by name, at most 16; each is watched for how much it changes a day",
    ),
    key(
        "external_forecast",
        Kind::Rows(EXTERNAL_FORECAST),
        "Forecasts that others make; each is believed as far as it was right",
    ),
    key(
        "dashboard",
        Kind::Section(DASHBOARD),
        "The page that the daemon keeps; without this section it keeps none",
    ),
    key(
        "fleet",
        Kind::Section(FLEET),
        "The hosts that share applications with this one; without this section it is alone",
    ),
];

const DAEMON: &[Key] = &[
    key(
        "socket",
        Kind::Text,
        "Unix socket of the API (default /run/forebay/forebay.sock)",
    ),
    key(
        "state_dir",
        Kind::Text,
        "Where the ledger and the history are kept (default /var/lib/forebay)",
    ),
    key(
        "cgroup_root",
        Kind::Text,
        "Control group, below each hierarchy's root, that holds the slices (default \"forebay\")",
    ),
    key(
        "lease",
        Kind::Duration,
        "How long the guardian waits for a lost daemon before it restores the host, 1s to 10m (default 10s)",
    ),
    key(
        "group",
        Kind::Text,
        "Group whose members may change things beside root (default \"forebay\")",
    ),
    key(
        "readers",
        Kind::Choice {
            noun: "kind of reader",
            words: &["anyone", "group"],
        },
        "Who may read: anyone on the host, or only root and the group (default \"anyone\")",
    ),
    key(
        "http",
        Kind::Address,
        "Loopback address and port of /metrics and the event stream; off when absent",
    ),
    key(
        "container_socket",
        Kind::Text,
        "Unix socket of the container runtime (default /run/docker.sock and /run/podman/podman.sock)",
    ),
    key(
        "criu",
        Kind::Text,
        "CRIU's program, for images of apps (default: `criu` where programs are)",
    ),
    key(
        "qemu",
        Kind::Text,
        "QEMU's program, for rehearsals of kernels (default: `qemu-system-x86_64` where programs are)",
    ),
    key(
        "otlp",
        Kind::Section(OTLP),
        "A collector of OpenTelemetry that metrics are sent to; without this section they are not",
    ),
    key(
        "history",
        Kind::Section(HISTORY),
        "How long each roll-up of the history is kept",
    ),
];

const OTLP: &[Key] = &[
    key(
        "url",
        Kind::Text,
        "Where it takes metrics, as JSON over plain HTTP, such as \"http://127.0.0.1:4318/v1/metrics\"",
    ),
    key(
        "every",
        Kind::Duration,
        "From one delivery to the next, 1s to 1h (default 10s)",
    ),
];

const HISTORY: &[Key] = &[
    key(
        "10s",
        Kind::Duration,
        "Retention of the 10-second roll-up (default 1d)",
    ),
    key(
        "1min",
        Kind::Duration,
        "Retention of the 1-minute roll-up (default 14d)",
    ),
    key(
        "1h",
        Kind::Duration,
        "Retention of the 1-hour roll-up (default 400d)",
    ),
];

const POLICY: &[Key] = &[
    key(
        "mode",
        Kind::Choice {
            noun: "mode",
            words: &["act", "observe"],
        },
        "Whether slices are put in force; \"observe\" changes nothing, and forecasts and plans all the same (default \"act\")",
    ),
    key(
        "period",
        Kind::Duration,
        "Length of the control period, 20ms to 10s (default 100ms)",
    ),
    key(
        "headroom",
        Kind::Percent,
        "What a plan leaves above demand, at most 400% (default 30%)",
    ),
    key(
        "hold",
        Kind::Duration,
        "Shortest time between two reductions of one slice, at most 1h (default 5s)",
    ),
    key(
        "horizon",
        Kind::Duration,
        "How far ahead demand is planned for, one period to 1h (default 1s)",
    ),
    key(
        "forecast",
        Kind::Choice {
            noun: "way to look ahead",
            words: &["on", "off"],
        },
        "Whether plans are made by forecasts of demand; \"off\" plans by what each app uses now and only reacts (default \"on\")",
    ),
    key(
        "system_memory",
        Kind::Bytes,
        "Memory kept for the system itself (default 256MiB)",
    ),
    key(
        "lend",
        Kind::Bool,
        "Whether batch may use critical apps' own CPUs while those leave them idle: more batch work for a longer tail of response times (default false)",
    ),
    key(
        "reclaim_cold",
        Kind::Bool,
        "Whether memory that batch apps do not seem to use is taken back slowly, to swap where it is anonymous; it costs them a little time and the swap device some traffic (default false)",
    ),
    key(
        "hot_memory",
        Kind::Choice {
            noun: "way to tell hot memory",
            words: &["listed", "watched"],
        },
        "How it is told which memory batch works with: \"listed\" goes by the kernel's lists in memory.stat, which say little of anonymous memory; \"watched\" has the kernel watch the largest batch apps, at most 8, with a thread for each (DAMON), where nobody else uses that (default \"listed\")",
    ),
    key(
        "oom_protection",
        Kind::Bool,
        "Whether the kernel ends critical apps last and batch apps first when memory is out, by oom_score_adj of those processes that nobody set it for (default true)",
    ),
    key(
        "partition",
        Kind::Choice {
            noun: "partition",
            words: &["none", "root", "isolated"],
        },
        "Whether critical apps' own CPUs are taken from everybody else on the host, by a cpuset partition of cgroup v2; \"isolated\" is without load balancing, for programs that pin their threads (default \"none\")",
    ),
    key(
        "interrupts",
        Kind::Choice {
            noun: "place for interrupts",
            words: &["anywhere", "shared"],
        },
        "Where the interrupts of devices are served: \"shared\" moves them off critical apps' own CPUs, which can crowd a network card's queues onto few CPUs (default \"anywhere\")",
    ),
    key(
        "io_protection",
        Kind::Choice {
            noun: "protection of I/O",
            words: &["none", "latency", "cost"],
        },
        "What else holds others back for critical apps' I/O on devices that `forebay calibrate` measured, beside the limits of batch: \"latency\" gives critical apps a target in io.latency of cgroup v2, and the kernel holds back every group beside them, also those that are no apps, while it is missed; \"cost\" tells the kernel what requests cost (io.cost), which then divides the device's time by io.weight among all groups (default \"none\")",
    ),
    key(
        "batch_cache",
        Kind::Percent,
        "Share of the last-level cache that batch may fill while a critical app runs, by resctrl (default: not managed)",
    ),
    key(
        "batch_bandwidth",
        Kind::Percent,
        "Share of the memory bandwidth that batch may use while a critical app runs, by resctrl (default: not managed)",
    ),
    key(
        "on_stop",
        Kind::Choice {
            noun: "thing to do on stop",
            words: &["keep", "kill"],
        },
        "Whether apps that Forebay started keep running when it stops (default \"keep\")",
    ),
];

const FORECAST: &[Key] = &[
    key(
        "training",
        Kind::Choice {
            noun: "way to train",
            words: &["on", "off"],
        },
        "Whether the network that forecasts all apps is trained on this host's history, beside everything else; \"off\" uses the weights that were trained before or come with the program (default \"on\")",
    ),
    key(
        "training_cpu",
        Kind::Percent,
        "Share of one CPU that training may use on average over a minute, 1% to 100% (default 5%)",
    ),
];

/// One app.
pub(super) const APP: &[Key] = &[
    key(
        "class",
        Kind::Choice {
            noun: "class",
            words: CLASSES,
        },
        "How much the app matters (default \"standard\")",
    ),
    key(
        "exec",
        Kind::Texts,
        "Program and arguments that Forebay starts and supervises, without a shell",
    ),
    key(
        "cgroup",
        Kind::Text,
        "Existing control group that holds the app's processes, relative to each hierarchy's root",
    ),
    key(
        "systemd",
        Kind::Text,
        "Unit of systemd that holds the app's processes, such as \"nginx.service\"; written to through systemd",
    ),
    key(
        "container",
        Kind::Text,
        "Name of the Docker or Podman container that holds the app's processes; written to through its runtime",
    ),
    key(
        "match",
        Kind::Section(MATCH),
        "Running processes that belong to the app",
    ),
    key(
        "user",
        Kind::Text,
        "With exec: user to run as, by name or number",
    ),
    key(
        "group",
        Kind::Text,
        "With exec: group to run as, by name or number",
    ),
    key(
        "directory",
        Kind::Text,
        "With exec: working directory (default /)",
    ),
    key(
        "environment",
        Kind::TextMap,
        "With exec: variables added to the daemon's environment",
    ),
    key(
        "stdout",
        Kind::Text,
        "With exec: file that standard output is appended to, or \"journal\" for the system's journal",
    ),
    key(
        "stderr",
        Kind::Text,
        "With exec: file that standard error is appended to, or \"journal\" for the system's journal",
    ),
    key(
        "restart",
        Kind::Choice {
            noun: "time to restart",
            words: &["always", "on-failure", "never"],
        },
        "With exec: when to start it again after it ended (default \"on-failure\")",
    ),
    key(
        "images",
        Kind::Section(IMAGES),
        "With exec: images of the program, which begins from the newest one when it has ended",
    ),
    key(
        "move",
        Kind::Section(MOVE),
        "With exec: whether and how it changes hosts",
    ),
    key(
        "accelerators",
        Kind::Section(ACCELERATORS),
        "With exec: a worker beside it, which gives its compute tasks to accelerators or to the CPU; it finds it by FOREBAY_ACCEL_SOCKET",
    ),
    key(
        "update",
        Kind::Section(UPDATE),
        "With exec: it is told of updates of the operating system; it finds where to listen by FOREBAY_UPDATE_SOCKET",
    ),
    key(
        "response_time_max",
        Kind::Duration,
        "Time until an answer above which it is constrained, 1ms to 1h (default: `offload.response_time`)",
    ),
    key("floor", Kind::Section(FLOOR), "Never taken away"),
    key("ceiling", Kind::Section(CEILING), "Never exceeded"),
    key(
        "request",
        Kind::Section(REQUEST),
        "Expected use before history exists",
    ),
    key(
        "uclamp_min",
        Kind::Percent,
        "Utilization that its tasks count for at least when the governor schedutil chooses a CPU's frequency, for critical apps (default: left as it is)",
    ),
    key(
        "uclamp_max",
        Kind::Percent,
        "Utilization that its tasks count for at most when the governor schedutil chooses a CPU's frequency, for batch (default: left as it is)",
    ),
    key(
        "io_weight",
        Kind::Count {
            min: 1,
            max: 10_000,
        },
        "I/O weight among the apps (default by class)",
    ),
    key(
        "io_max",
        Kind::Sections(IO_MAX),
        "Limits for whole block devices, by `major:minor` as lsblk shows it",
    ),
    key(
        "metrics",
        Kind::Section(METRICS),
        "Where the app tells how many requests it serves and how fast",
    ),
];

const METRICS: &[Key] = &[
    key(
        "url",
        Kind::Text,
        "Where the metrics are, in the text format of Prometheus over plain HTTP",
    ),
    key(
        "every",
        Kind::Duration,
        "Time between two readings, 100ms to 1h (default 1s)",
    ),
    key(
        "requests",
        Kind::Text,
        "Counter of requests served, with the labels that count if not all do, such as http_requests_total{code=\"200\"}",
    ),
    key(
        "response_time",
        Kind::Text,
        "Histogram or summary of response times, of which the mean between two readings counts, or a gauge or a summary's quantile; in seconds unless its name ends in _ms or _us",
    ),
];

const RESOURCES: &[&str] = &[
    "cpu",
    "memory",
    "io",
    "received",
    "sent",
    "requests",
    "response_time",
];

/// One forecast of others.
const EXTERNAL_FORECAST: &[Key] = &[
    key("app", Kind::Text, "The app that it is about"),
    key(
        "resource",
        Kind::Choice {
            noun: "resource",
            words: RESOURCES,
        },
        "What of the app: CPUs, bytes, bytes per second (io, received, sent), requests per second or milliseconds",
    ),
    key(
        "source",
        Kind::Text,
        "Absolute path of a file, or an address of plain HTTP; docs/external-forecasts.md has the format",
    ),
    key(
        "every",
        Kind::Duration,
        "Time between two readings, 1s to 1d (default 60s)",
    ),
];

/// One tiered directory.
pub(super) const TIER: &[Key] = &[
    key(
        "directory",
        Kind::Text,
        "The directory that applications see, on the slow file system",
    ),
    key(
        "fast",
        Kind::Text,
        "Directory of Forebay's own on the fast file system, where promoted files are",
    ),
    key(
        "slow",
        Kind::Text,
        "Directory of Forebay's own on the file system of `directory`, for moves under way",
    ),
    key(
        "fast_size_max",
        Kind::Bytes,
        "The most that promoted files may take",
    ),
    key(
        "bandwidth_max",
        Kind::Bytes,
        "The most bytes moved in a second, at least 64KiB (without bound when absent)",
    ),
    key(
        "volatile",
        Kind::Bool,
        "Whether `fast` may be in memory (tmpfs), so that a power failure loses what was promoted (default false)",
    ),
];

const MATCH: &[Key] = &[
    key(
        "executable",
        Kind::Text,
        "The executable's absolute path, or its file name alone",
    ),
    key(
        "command_line",
        Kind::Text,
        "A text that the command line (arguments joined by spaces) contains",
    ),
];

const FLOOR: &[Key] = &[
    key("cpu", Kind::Cpu, "Processor time"),
    key("memory", Kind::Bytes, "Memory"),
];

const CEILING: &[Key] = &[
    key("cpu", LIMIT_CPU, "Processor time, at least 10m"),
    key("memory", LIMIT_BYTES, "Memory"),
    key(
        "swap",
        LIMIT_BYTES,
        "Memory that may be in swap; 0 is none (cgroup v2)",
    ),
    key(
        "zswap",
        LIMIT_BYTES,
        "Compressed memory that zswap may hold in front of the swap device; 0 swaps past it (cgroup v2)",
    ),
    key("pids", LIMIT_COUNT, "Processes and threads"),
    key(
        "egress",
        LIMIT_RATE,
        "Data sent over the network, loopback left out, such as \"100Mbit\" (needs BPF)",
    ),
];

const REQUEST: &[Key] = &[key("cpu", Kind::Cpu, "Processor time")];

const IO_MAX: &[Key] = &[
    key("rbps", LIMIT_BYTES, "Bytes read per second"),
    key("wbps", LIMIT_BYTES, "Bytes written per second"),
    key("riops", LIMIT_COUNT, "Reads per second"),
    key("wiops", LIMIT_COUNT, "Writes per second"),
];

/// The names of a section's keys.
pub(super) fn names(keys: &[Key]) -> Vec<&'static str> {
    keys.iter().map(|key| key.name).collect()
}

/// The JSON Schema of the configuration's text.
pub(crate) fn schema() -> Json {
    let mut schema = section_schema(ROOT);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Forebay configuration");
    schema
}

fn section_schema(keys: &[Key]) -> Json {
    let property = |key: &Key| {
        let mut schema = kind_schema(&key.kind);
        schema["description"] = json!(format!("{}.", key.doc));
        (key.name.to_owned(), schema)
    };
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": keys.iter().map(property).collect::<serde_json::Map<_, _>>(),
    })
}

fn kind_schema(kind: &Kind) -> Json {
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    match kind {
        Kind::Text => json!({ "type": "string", "minLength": 1 }),
        Kind::Texts => json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 }),
        Kind::TextMap => {
            json!({ "type": "object", "additionalProperties": { "type": "string" } })
        }
        Kind::Duration => text(DURATION_PATTERN),
        Kind::Bytes => {
            json!({ "anyOf": [{ "type": "integer", "minimum": 0 }, text(BYTES_PATTERN)] })
        }
        Kind::Cpu => json!({ "anyOf": [{ "type": "number", "minimum": 0 }, text(CPU_PATTERN)] }),
        Kind::Percent => text(PERCENT_PATTERN),
        Kind::Rate => text(RATE_PATTERN),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Choice { words, .. } => json!({ "enum": words }),
        Kind::Address => json!({ "type": "string" }),
        Kind::OrMax(inner) => json!({ "anyOf": [{ "const": "max" }, kind_schema(inner)] }),
        Kind::Section(keys) => section_schema(keys),
        Kind::Sections(keys) => {
            json!({ "type": "object", "additionalProperties": section_schema(keys) })
        }
        Kind::Rows(keys) => json!({ "type": "array", "items": section_schema(keys) }),
        Kind::TextOrTexts => {
            json!({ "anyOf": [kind_schema(&Kind::Text), kind_schema(&Kind::Texts)] })
        }
    }
}
