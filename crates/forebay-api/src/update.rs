//! Updates of the operating system on the wire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for an update, or for what one would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// What updates: a program and its arguments.
    pub command: Vec<String>,
    /// Where it runs; `/` when absent.
    #[serde(default)]
    pub directory: Option<String>,
    /// What undoes it, if something does.
    #[serde(default)]
    pub rollback: Option<Vec<String>>,
    /// How long it may take, in seconds; an hour when absent.
    #[serde(default)]
    pub limit_seconds: Option<u64>,
    /// How long each program that is restarted may take to run, and then all apps to be well, before it is undone, in
    /// seconds; a minute when absent.
    #[serde(default)]
    pub well_within_seconds: Option<u64>,
    /// Apps that are restarted whether they run outdated code or not.
    #[serde(default)]
    pub restart: Vec<String>,
    /// It is complete only after the host began anew.
    #[serde(default)]
    pub reboot: bool,
    /// The way that it is to go, by the names that a plan shows, or `auto`: the least disruptive way over a boot that
    /// carries critical apps (all but batch, where none is), which may have Forebay reboot the host. When absent,
    /// without a boot, or with `reboot` by other hosts where apps can leave.
    #[serde(default)]
    pub rung: Option<String>,
    /// Whether the kernel that comes is tried out in a virtual machine, with the rung `checkpoint`: `auto` (where that is
    /// possible), `required` or `off`; `auto` when absent.
    #[serde(default)]
    pub rehearse: Option<String>,
    /// Go on where critical apps were slower while the slice of the update was full of work.
    #[serde(default)]
    pub unproved: bool,
}

/// What came of trying a kernel out in a virtual machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateRehearsal {
    /// The kernel, by its release, or by its file where that does not say.
    pub kernel: String,
    /// `passed`, `failed` or `impossible`.
    pub verdict: String,
    /// Why, where it did not pass.
    pub why: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Where what the machine said is, if one was started.
    pub console: Option<String>,
}

/// What an update would do to each app.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdatePlan {
    /// The apps by name.
    pub apps: Vec<UpdateChoice>,
    /// All ways that there are, the least disruptive first.
    pub rungs: Vec<UpdateRung>,
    /// The way over a boot that was chosen for the host, where that was left to it (`auto`).
    #[serde(default)]
    pub chosen: Option<String>,
    /// Less disruptive ones than that, and why they were not.
    #[serde(default)]
    pub passed_over: Vec<UpdatePassedOver>,
    /// Why it would not begin.
    pub refused: Vec<String>,
    /// Whether the kernel that comes would be tried out, where that is a part of it.
    #[serde(default)]
    pub rehearsal: Option<UpdateRehearsalPlan>,
}

/// A way that an update would not go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdatePassedOver {
    /// Its name.
    pub rung: String,
    /// Why not.
    pub reason: String,
}

/// Whether a kernel would be tried out in a virtual machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateRehearsalPlan {
    /// It would.
    pub rehearsed: bool,
    /// Of which kernel, or why not.
    pub reason: String,
    /// The last one on this host.
    pub last: Option<UpdateRehearsal>,
}

/// A way to update a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateRung {
    /// `userspace`, `soft-reboot`, `other-host`, `checkpoint`, `cooperative` or `reboot`.
    pub rung: String,
    /// Whether it can be asked for.
    pub offered: bool,
    /// What it comes to, or why it is not offered.
    pub reason: String,
}

/// How an app is carried through an update.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateChoice {
    /// The app.
    pub app: String,
    /// `userspace`, `soft-reboot`, `other-host`, `checkpoint`, `cooperative`, `restart` or `reboot`.
    pub rung: String,
    /// Why.
    pub reason: String,
    /// The median of the pause that its clients are expected to see; absent where nothing is known.
    pub pause_p50_ms: Option<f64>,
    /// What one in a hundred exceeds.
    pub pause_p99_ms: Option<f64>,
    /// What is not done to it, and why.
    pub refused: Vec<String>,
}

/// Updates of this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Updates {
    /// The one under way.
    pub current: Option<Update>,
    /// Those that are over, the latest last.
    pub history: Vec<UpdateReceipt>,
    /// Why none can begin, if so.
    pub trouble: Option<String>,
    /// Apps that run code that was replaced since they began.
    #[serde(default)]
    pub outdated: Vec<String>,
}

/// An update that began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateBegun {
    /// Its number.
    pub number: u64,
}

/// An update under way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Update {
    /// Its number.
    pub number: u64,
    /// What updates.
    pub command: Vec<String>,
    /// When it was asked for, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// `planned`, `locked`, `isolated`, `leaving`, `telling`, `synced`, `updating`, `rehearsing`, `reboot_pending`,
    /// `departing`, `reviving`, `undoing`, `restoring`, `verifying`, `returning` or `closing`.
    pub stage: String,
    /// What it does now, and what to type next if that is somebody's turn.
    pub next: String,
    /// Where the command writes to.
    pub output: Option<String>,
    /// Whether it stands still because a critical app suffers, and which.
    pub held: Option<String>,
    /// What went wrong so far.
    pub troubles: Vec<String>,
    /// What came of trying the kernel out, once it was.
    #[serde(default)]
    pub rehearsal: Option<UpdateRehearsal>,
    /// What was measured of the isolation of critical apps, once it was.
    #[serde(default)]
    pub isolation: Vec<UpdateIsolation>,
    /// Apps that were told, are prepared, and wait for its end: on detached, or ended.
    #[serde(default)]
    pub prepared: Vec<UpdatePrepared>,
}

/// An app that is prepared for an update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdatePrepared {
    /// The app.
    pub app: String,
    /// `detach`: it runs on, alone on CPUs of its own. `end`: it was ended, and is started again.
    pub how: String,
}

/// What was measured of a critical app while the slice of an update was full of work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateIsolation {
    /// The app.
    pub app: String,
    /// CPUs that were its own and not the update's, as the kernel had them.
    pub exclusive_cpus: Option<String>,
    /// CPUs that the work was seen to run on.
    pub load_cpus: Option<String>,
    /// Memory that is never taken from it, as the kernel has it; absent where it has none.
    pub memory_floor_bytes: Option<u64>,
    /// Share of time in which its tasks waited for a CPU before; absent where that is not known.
    pub waited: Option<f64>,
    /// The same under the work.
    pub waited_loaded: Option<f64>,
    /// One answer in a hundred took so long before; absent where no front measures it.
    pub p99_before_ms: Option<f64>,
    /// The same under the work.
    pub p99_loaded_ms: Option<f64>,
}

/// What came of an update.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateReceipt {
    /// Its number.
    pub number: u64,
    /// What updated.
    pub command: Vec<String>,
    /// `committed`, `rolled_back` or `alarmed`.
    pub outcome: String,
    /// The attempt of a rolling update that it was, if it was one's.
    #[serde(default)]
    pub rollout: Option<String>,
    /// When it was asked for, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// When it was over.
    pub ended_unix_ms: u64,
    /// How often it stood still because a critical app suffered.
    pub held_times: u32,
    /// How long it did.
    pub held_ms: u64,
    /// What clients saw, by front.
    pub fronts: Vec<UpdateFront>,
    /// What was done to apps.
    pub apps: Vec<UpdateApp>,
    /// What became of clients' connections over a boot, by front.
    #[serde(default)]
    pub clients: Vec<UpdateClients>,
    /// What went wrong.
    pub troubles: Vec<String>,
    /// What came of trying the kernel out, where it was.
    #[serde(default)]
    pub rehearsal: Option<UpdateRehearsal>,
    /// Where that leaves the host, and what to type next.
    #[serde(default)]
    pub next: String,
}

/// Connections of a front's clients that were kept over a boot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateClients {
    /// The front.
    pub front: String,
    /// So many were written down.
    pub kept: u64,
    /// Of these, so many went on afterwards; the others were closed.
    pub back: u64,
    /// So many could not be written down, and were closed: over TLS, with HTTP/2, or with something under way.
    pub left: u64,
    /// From when they were taken from the front until they went on; absent where none did.
    pub pause_ms: Option<f64>,
}

/// What clients of a front saw of an update.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateFront {
    /// The front.
    pub front: String,
    /// Before anything began.
    pub before: UpdatePace,
    /// From the first command until the apps were found well, or not.
    pub during: UpdatePace,
    /// Requests that waited for a hand-over.
    pub held: u64,
    /// Requests that got no answer and surely were not executed.
    pub failed: u64,
    /// Requests that got no answer and of which nobody knows.
    pub unknown: u64,
    /// Hand-overs for it, with how long each took.
    pub hand_overs: Vec<String>,
    /// The longest time that new requests waited for a hand-over; absent without one.
    pub pause_ms: Option<f64>,
}

/// Response times over some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdatePace {
    /// Answers.
    pub answers: u64,
    /// Of these, errors.
    pub errors: u64,
    /// The median; absent without answers.
    pub p50_ms: Option<f64>,
    /// What one in a hundred exceeds.
    pub p99_ms: Option<f64>,
    /// The slowest.
    pub max_ms: Option<f64>,
}

/// What an update did to an app, beside what was planned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateApp {
    /// What was planned.
    #[serde(flatten)]
    pub planned: UpdateChoice,
    /// It was restarted.
    pub restarted: bool,
    /// CPUs that were its own and not the update's, as the kernel had them.
    pub exclusive_cpus: Option<String>,
    /// Memory that was never taken away.
    pub memory_floor_bytes: Option<u64>,
    /// How long it stood that was kept over a reboot, by the host's clock; absent where it was not.
    #[serde(default)]
    pub pause_ms: Option<f64>,
    /// One answer in a hundred took so long before the isolation was tried.
    pub p99_before_ms: Option<f64>,
    /// The same while the slice of the update was full of work.
    pub p99_loaded_ms: Option<f64>,
    /// CPUs that the work in that slice was seen to run on.
    #[serde(default)]
    pub load_cpus: Option<String>,
    /// Share of time in which its tasks waited for a CPU before; absent where that is not known.
    #[serde(default)]
    pub waited: Option<f64>,
    /// The same while that slice was full of work.
    #[serde(default)]
    pub waited_loaded: Option<f64>,
    /// What it was told to prepare for, where it takes part: `detach` or `end`.
    #[serde(default)]
    pub told: Option<String>,
}
