//! Fronts: what each listens on, and which apps stand behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Exec};
use forebay_core::fleet::HostName;
use forebay_shadow::front::Plan;
use forebay_shadow::listen::{Listen, ListenError};
use forebay_shadow::mode::Mode;
use forebay_shadow::proxy;
use forebay_shadow::stream::Address;
use forebay_shadow::switchboard::{INSTANCES_MAX, Instance};

use super::error::{Findings, Problem, nearest};
use super::facts::HostFacts;
use super::mode;
use super::resolve::{Bounds, bounded};
use super::text::{At, Section};

const CONNECTIONS_MAX: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(5);
const DRAIN: Duration = Duration::from_secs(3600);
const DRAIN_MAX: Duration = Duration::from_secs(7 * 86_400);
const USER: &str = "nobody";
/// The longest path of a Unix socket that the kernel takes.
const SOCKET_PATH_MAX: usize = 107;

/// What a front reads of what it has to do, in its directory.
pub(crate) const PLAN_FILE: &str = "plan.json";

/// Where the directories of all fronts are.
pub(crate) fn fronts_directory(state_dir: &Path) -> PathBuf {
    state_dir.join("fronts")
}

/// Where fronts get the sockets that systemd opened.
pub(crate) fn lender(state_dir: &Path) -> PathBuf {
    state_dir.join("sockets")
}

/// One front as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrontConfig {
    pub(crate) name: AppId,
    /// The app that the front itself is.
    pub(crate) app: AppId,
    pub(crate) mode: Mode,
    pub(crate) listen: Vec<Listen>,
    /// Who serves; the first one at the very beginning.
    pub(crate) instances: Vec<(AppId, Address)>,
    /// Groups of instances that Forebay does not start.
    pub(crate) groups: BTreeMap<AppId, PathBuf>,
    /// The hosts of instances that others run.
    pub(crate) elsewhere: BTreeMap<AppId, HostName>,
    pub(crate) user: String,
    pub(crate) connections_max: usize,
    pub(crate) patience: Duration,
    pub(crate) grace: Duration,
    pub(crate) drain: Duration,
    pub(crate) proxy: proxy::Options,
}

impl FrontConfig {
    /// Where the front's own files are.
    pub(crate) fn directory(&self, state_dir: &Path) -> PathBuf {
        fronts_directory(state_dir).join(self.name.as_str())
    }

    /// The socket on which it is asked.
    pub(crate) fn control(&self, state_dir: &Path) -> PathBuf {
        self.directory(state_dir).join("control")
    }

    /// Where it reads what it has to do.
    pub(crate) fn plan_file(&self, state_dir: &Path) -> PathBuf {
        self.directory(state_dir).join(PLAN_FILE)
    }

    /// Whether it listens on sockets that systemd opens.
    fn is_passed(&self) -> bool {
        let mut listen = self.listen.iter();
        listen.any(|listen| matches!(listen, Listen::Passed(_)))
    }

    /// What works, and may not be what is meant.
    pub(crate) fn advice(&self) -> Vec<String> {
        let local = |address: &Address| match address {
            Address::Tcp(socket) => socket.ip().is_loopback(),
            Address::Unix(_) => true,
        };
        let trusts = match &self.mode {
            Mode::Redis(_) => "redis in its protected mode trusts whoever comes from there",
            Mode::Postgres(_) => "pg_hba.conf may trust whoever comes from there",
            Mode::Tcp | Mode::Http(_) => return Vec::new(),
        };
        let open: Vec<String> = self
            .listen
            .iter()
            .filter(|listen| match listen {
                Listen::At(address) => !local(address),
                // Where that is, the configuration does not say.
                Listen::Passed(_) => true,
            })
            .map(ToString::to_string)
            .collect();
        if open.is_empty() || !self.instances.iter().any(|(_, address)| local(address)) {
            return Vec::new();
        }
        vec![format!(
            "front {} listens on {} and reaches its instances from this host: {trusts}, and that is \
             every client of the front; have the instances ask for a password",
            self.name,
            open.join(" "),
        )]
    }

    /// The app that the front is: started, supervised and partitioned like any other.
    pub(super) fn app(&self, state_dir: &Path, executable: &Path) -> App {
        let command = [
            executable.display().to_string(),
            "front".to_owned(),
            self.plan_file(state_dir).display().to_string(),
        ];
        let exec = Exec::of(command.into());
        App::new(self.app.clone(), Class::Critical, Binding::Exec(exec))
    }

    /// The command that begins an instance, after it was made a standby unless it serves. Only
    /// root may read the plan and ask the front; the user is the app's again once that is done.
    pub(super) fn prepared(&self, app: &AppId, exec: &Exec, own: (&Path, &Path)) -> Option<Exec> {
        let (state_dir, executable) = own;
        let Mode::Postgres(options) = &self.mode else {
            return None;
        };
        options.data.get(app.as_str())?;
        let mut command = vec![
            executable.display().to_string(),
            "instance".to_owned(),
            self.plan_file(state_dir).display().to_string(),
            app.to_string(),
        ];
        if let Some(user) = &exec.user {
            command.extend(["--user".to_owned(), user.clone()]);
        }
        command.push("--".to_owned());
        command.extend(exec.command.iter().cloned());
        Some(Exec {
            command,
            user: None,
            ..exec.clone()
        })
    }

    /// What the front is told.
    pub(crate) fn plan(&self, state_dir: &Path) -> Plan {
        let instance = |(app, address): &(AppId, Address)| Instance {
            app: app.to_string(),
            address: address.clone(),
            elsewhere: self.elsewhere.get(app).map(ToString::to_string),
        };
        Plan {
            name: self.name.to_string(),
            mode: self.mode.clone(),
            listen: self.listen.clone(),
            instances: self.instances.iter().map(instance).collect(),
            user: self.user.clone(),
            connections_max: self.connections_max,
            patience: self.patience,
            grace: self.grace,
            drain: self.drain,
            proxy: self.proxy,
            control: self.control(state_dir),
            epoch_file: self.directory(state_dir).join("epoch"),
            lender: self.is_passed().then(|| lender(state_dir)),
        }
    }
}

/// Resolves all fronts beside the apps.
pub(super) fn fronts(
    sections: Option<At<BTreeMap<String, Section>>>,
    apps: &BTreeMap<AppId, App>,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> BTreeMap<AppId, FrontConfig> {
    let mut fronts = BTreeMap::new();
    let mut taken = Taken::default();
    for (name, section) in sections.map_or_else(BTreeMap::new, |v| v.value) {
        let (at, key) = (section.at, section.name.clone());
        let own = format!("{name}.front").parse::<AppId>();
        let (Ok(id), Ok(app)) = (name.parse::<AppId>(), own) else {
            let problem = Problem::new(
                format!("`{name}` is not a name for a front"),
                "use 1 to 58 letters, digits, `-`, `_` or `.`, starting with a letter or digit",
            );
            findings.add(at, key, problem);
            continue;
        };
        if apps.contains_key(&app) {
            let problem = Problem::new(
                format!("the front is itself the app `{app}`, and there is one of that name"),
                "rename that app or the front",
            );
            findings.add(at, key, problem);
            continue;
        }
        if let Some(front) = resolve(id.clone(), app, section, (apps, host), &mut taken, findings) {
            fronts.insert(id, front);
        }
    }
    fronts
}

/// What fronts before have taken.
#[derive(Default)]
struct Taken {
    addresses: BTreeSet<Listen>,
    apps: BTreeSet<AppId>,
}

fn resolve(
    name: AppId,
    app: AppId,
    mut section: Section,
    (apps, host): (&BTreeMap<AppId, App>, &HostFacts),
    taken: &mut Taken,
    findings: &mut Findings<'_>,
) -> Option<FrontConfig> {
    let (at, refused) = (section.at, section.refused);
    let mode = section.take::<&str>("mode");
    let listen = section.take::<Vec<String>>("listen");
    let instances = section.take::<BTreeMap<String, String>>("instances");
    let lacks: Vec<&str> = [
        ("mode", mode.is_none()),
        ("listen", listen.is_none()),
        ("instances", instances.is_none()),
    ]
    .into_iter()
    .filter_map(|(key, lacks)| lacks.then_some(key))
    .collect();
    // What was refused has been said already.
    if !lacks.is_empty() && !refused {
        let problem = Problem::new(
            format!("the front lacks {}", lacks.join(", ")),
            "a front needs mode, listen and instances",
        );
        findings.add(at, section.name.clone(), problem);
    }
    // All that is there is looked at, so that all mistakes are told at once.
    let proxy = mode::proxy(mode.as_ref().map(|word| word.value), &mut section, findings);
    let mode = mode.and_then(|word| mode::mode(word.value, &mut section, host, findings));
    let key = section.key("listen");
    let listen = listen.map(|listen| addresses(&listen, &key, taken, findings));
    if let (Some(mode), Some(listen)) = (&mode, &listen) {
        mode::check_addresses(mode, listen, &section, findings);
    }
    let named = instances.as_ref().map(|given| &given.value);
    let elsewhere = elsewhere(&mut section, named, apps, findings);
    let key = section.key("instances");
    // Servers that replicate are in step with each other; an image would take them back.
    let may_be_alone = matches!(mode, None | Some(Mode::Tcp | Mode::Http(_)));
    let members = instances.map(|given| {
        if !(may_be_alone && has_image(&given.value, apps)) {
            expect_two(&given, &key, findings);
        }
        members(given, &key, (apps, &elsewhere), taken, findings)
    });
    let is_complete = members.is_some();
    let mut instances = members.unwrap_or_default();
    if let Some(At { value, at }) = section.take::<String>("primary") {
        match instances.iter().position(|(app, _)| app.as_str() == value) {
            Some(place) => instances.swap(0, place),
            None if !is_complete => {}
            None => findings.add(
                at,
                section.key("primary"),
                Problem::new(
                    format!("`{value}` is not one of the instances"),
                    "name one of them",
                ),
            ),
        }
    }
    let user = section.take::<String>("user");
    if let Some(At { value, at }) = &user {
        findings.keep(*at, section.key("user"), host.check_user(value));
    }
    let patience = Bounds {
        min: Duration::from_millis(100),
        max: Duration::from_secs(600),
    };
    let grace = Bounds {
        min: Duration::ZERO,
        max: Duration::from_secs(60),
    };
    let drain = Bounds {
        min: Duration::ZERO,
        max: DRAIN_MAX,
    };
    let replicates = matches!(mode, Some(Mode::Redis(_) | Mode::Postgres(_)));
    let of_image =
        |(app, _): &&(AppId, Address)| apps.get(app).is_some_and(|app| app.images.is_some());
    if let Some((app, _)) = instances.iter().find(of_image).filter(|_| replicates) {
        let problem = Problem::new(
            format!(
                "app `{app}` has `images`, and would begin with what it had before others took over"
            ),
            "leave `images` out: it gets what it lacks from the primary",
        );
        findings.add(section.at, section.key("instances"), problem);
    }
    let mode = mode.map(|mode| with_programs(mode, &instances, apps));
    if let (Some(Mode::Postgres(options)), true) = (&mode, is_complete) {
        let key = format!("{}.data", section.key("postgres"));
        let here = instances.iter().map(|(app, _)| app);
        let here: Vec<&AppId> = here.filter(|app| !elsewhere.contains_key(*app)).collect();
        check_data(options, &here, (at, &key), findings);
    }
    let patience = bounded(&mut section, "patience", patience, findings);
    let grace = bounded(&mut section, "grace", grace, findings);
    let drain = bounded(&mut section, "drain", drain, findings);
    let group = |(id, _): &(AppId, Address)| match &apps.get(id)?.binding {
        Binding::Cgroup(group) => Some((id.clone(), group.clone())),
        _ => None,
    };
    Some(FrontConfig {
        name,
        app,
        mode: mode?,
        listen: listen?,
        groups: instances.iter().filter_map(group).collect(),
        elsewhere,
        instances: is_complete.then_some(instances)?,
        user: user.map_or_else(|| USER.to_owned(), |user| user.value),
        connections_max: section
            .take::<u64>("connections_max")
            .and_then(|count| usize::try_from(count.value).ok())
            .unwrap_or(CONNECTIONS_MAX),
        patience: patience.unwrap_or(PATIENCE),
        grace: grace.unwrap_or_default(),
        drain: drain.unwrap_or(DRAIN),
        proxy,
    })
}

/// PostgreSQL's programs are beside the one that an instance runs, unless it is said where.
fn with_programs(mode: Mode, instances: &[(AppId, Address)], apps: &BTreeMap<AppId, App>) -> Mode {
    let mut options = match mode {
        Mode::Postgres(options) => options,
        other => return other,
    };
    if options.programs.as_os_str().is_empty() {
        let mut directories = instances.iter().filter_map(|(app, _)| {
            let Binding::Exec(exec) = &apps.get(app)?.binding else {
                return None;
            };
            Path::new(exec.command.first()?).parent()
        });
        options.programs = directories
            .next()
            .map(Path::to_path_buf)
            .unwrap_or_default();
    }
    Mode::Postgres(options)
}

/// `here` is the instances of this host: data of others are theirs.
fn check_data(
    options: &forebay_shadow::postgres::Options,
    here: &[&AppId],
    (at, key): (usize, &str),
    findings: &mut Findings<'_>,
) {
    if options.data.is_empty() {
        return;
    }
    let is_here = |name: &String| here.iter().any(|app| app.as_str() == name);
    for name in options.data.keys().filter(|name| !is_here(name)) {
        let problem = Problem::new(
            format!("`{name}` is not one of the instances of this host"),
            "name those, and no others",
        );
        findings.add(at, format!("{key}.{name}"), problem);
    }
    for app in here
        .iter()
        .filter(|app| !options.data.contains_key(app.as_str()))
    {
        let problem = Problem::new(
            format!("the data directory of `{app}` is not given"),
            "give those of all instances of this host: any of them may have to follow another",
        );
        findings.add(at, key.to_owned(), problem);
    }
    let mut seen = BTreeSet::new();
    for (name, _) in options.data.iter().filter(|(_, path)| !seen.insert(*path)) {
        let problem = Problem::new(
            "two instances have the same data directory".to_owned(),
            "give each one of its own",
        );
        findings.add(at, format!("{key}.{name}"), problem);
    }
}

fn addresses(
    texts: &At<Vec<String>>,
    key: &str,
    taken: &mut Taken,
    findings: &mut Findings<'_>,
) -> Vec<Listen> {
    let mut all = Vec::new();
    for text in &texts.value {
        let Some(listen) = findings.keep(texts.at, key.to_owned(), listen(text)) else {
            continue;
        };
        if taken.addresses.insert(listen.clone()) {
            all.push(listen);
        } else {
            let problem = Problem::new(
                format!("`{listen}` is used twice"),
                "give each front and each instance an address of its own",
            );
            findings.add(texts.at, key.to_owned(), problem);
        }
    }
    all
}

fn listen(text: &str) -> Result<Listen, Problem> {
    match text.parse::<Listen>() {
        Ok(listen @ Listen::Passed(_)) => Ok(listen),
        Err(ListenError::Name(_)) => Err(Problem::new(
            format!("`{text}` is no name of a socket"),
            "write systemd:NAME with the FileDescriptorName= of its unit, which has no `:`",
        )),
        // More is asked of an address than to be one.
        Ok(Listen::At(_)) | Err(ListenError::Address(_)) => address(text).map(Listen::At),
    }
}

fn address(text: &str) -> Result<Address, Problem> {
    let address: Address = text.parse().map_err(|_| {
        Problem::new(
            format!("`{text}` is no address"),
            "write ADDRESS:PORT, [ADDRESS]:PORT for IPv6, or the absolute path of a Unix socket",
        )
    })?;
    match &address {
        Address::Tcp(socket) if socket.port() == 0 => Err(Problem::new(
            format!("`{text}` has no port"),
            "write the port that is meant, 1 to 65535",
        )),
        Address::Unix(path) if path.as_os_str().len() > SOCKET_PATH_MAX => Err(Problem::new(
            format!("`{text}` is longer than {SOCKET_PATH_MAX} bytes"),
            "the kernel takes no longer path of a socket",
        )),
        Address::Tcp(_) | Address::Unix(_) => Ok(address),
    }
}

/// Whether an instance is alone, and begins from an image of itself when it is lost.
fn has_image(given: &BTreeMap<String, String>, apps: &BTreeMap<AppId, App>) -> bool {
    let mut names = given.keys();
    let (Some(name), None) = (names.next(), names.next()) else {
        return false;
    };
    let mut apps = apps.iter();
    apps.any(|(id, app)| id.as_str() == name && app.images.is_some())
}

fn expect_two(given: &At<BTreeMap<String, String>>, key: &str, findings: &mut Findings<'_>) {
    if given.value.len() < 2 {
        let problem = Problem::new(
            "fewer than two instances".to_owned(),
            "name the app that serves and the one that is its shadow; one alone needs `images`",
        );
        findings.add(given.at, key.to_owned(), problem);
    }
}

fn members(
    given: At<BTreeMap<String, String>>,
    key: &str,
    (apps, elsewhere): (&BTreeMap<AppId, App>, &BTreeMap<AppId, HostName>),
    taken: &mut Taken,
    findings: &mut Findings<'_>,
) -> Vec<(AppId, Address)> {
    let at = given.at;
    if given.value.len() > INSTANCES_MAX {
        let problem = Problem::new(
            format!("more than {INSTANCES_MAX} instances"),
            "divide them among several fronts",
        );
        findings.add(at, key.to_owned(), problem);
    }
    let mut members = Vec::new();
    for (name, text) in given.value {
        let key = format!("{key}.{name}");
        let address = findings.keep(at, key.clone(), address(&text));
        let known = apps.iter().find(|(id, _)| id.as_str() == name);
        let other = elsewhere.keys().find(|id| id.as_str() == name);
        let problem = match known {
            None if other.is_some() => None,
            None => {
                let names: Vec<&str> = apps.keys().map(AppId::as_str).collect();
                Some(Problem::new(
                    format!("there is no app `{name}`"),
                    nearest(&name, &names).map_or_else(
                        || {
                            "configure it under [apps], or name the host that runs it in `elsewhere`"
                                .to_owned()
                        },
                        |near| format!("did you mean `{near}`?"),
                    ),
                ))
            }
            Some((_, app)) if !matches!(app.binding, Binding::Exec(_) | Binding::Cgroup(_)) => {
                Some(Problem::new(
                    format!(
                        "app `{name}` cannot be stopped where it stands: its group is its \
                         manager's, or it has none of its own"
                    ),
                    "give it `exec`, or `cgroup` if somebody else starts it in a group of its own",
                ))
            }
            Some((id, _)) if !taken.apps.insert(id.clone()) => Some(Problem::new(
                format!("app `{name}` stands behind another front"),
                "give each front apps of its own",
            )),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            findings.add(at, key.clone(), problem);
        }
        let Some(address) = address else { continue };
        if !taken.addresses.insert(address.clone().into()) {
            let problem = Problem::new(
                format!("`{address}` is used twice"),
                "give each front and each instance an address of its own",
            );
            findings.add(at, key, problem);
        }
        let id = known.map(|(id, _)| id).or(other);
        members.extend(id.map(|id| (id.clone(), address)));
    }
    members
}

/// The instances that other hosts run, and which these are.
fn elsewhere(
    section: &mut Section,
    instances: Option<&BTreeMap<String, String>>,
    apps: &BTreeMap<AppId, App>,
    findings: &mut Findings<'_>,
) -> BTreeMap<AppId, HostName> {
    let key = section.key("elsewhere");
    let mut hosts = BTreeMap::new();
    let Some(given) = section.take::<BTreeMap<String, String>>("elsewhere") else {
        return hosts;
    };
    for (name, host) in given.value {
        let key = format!("{key}.{name}");
        let known = apps.keys().any(|id| id.as_str() == name);
        let problem = if instances.is_none_or(|all| !all.contains_key(&name)) {
            Some(Problem::new(
                format!("`{name}` is not one of the instances"),
                "name it with its address in `instances`, too",
            ))
        } else if known {
            Some(Problem::new(
                format!("app `{name}` is one of this host's"),
                "leave it out here, or give the one that another host runs a name of its own",
            ))
        } else {
            None
        };
        if let Some(problem) = problem {
            findings.add(given.at, key, problem);
            continue;
        }
        let id = name.parse::<AppId>().map_err(|error| error.to_string());
        let host = host.parse::<HostName>().map_err(|error| error.to_string());
        match id.and_then(|id| Ok((id, host?))) {
            Ok((id, host)) => {
                hosts.insert(id, host);
            }
            Err(error) => findings.add(given.at, key, Problem::new(error, "write NAME = \"HOST\"")),
        }
    }
    hosts
}
