//! Fronts: what each listens on, and which apps stand behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Exec, Restart};
use forebay_shadow::front::Plan;
use forebay_shadow::mode::Mode;
use forebay_shadow::proxy;
use forebay_shadow::stream::Address;
use forebay_shadow::switchboard::Instance;

use super::error::{Findings, Problem, nearest};
use super::facts::HostFacts;
use super::mode;
use super::resolve::{Bounds, bounded};
use super::text::{At, Section};

const CONNECTIONS_MAX: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(5);
const USER: &str = "nobody";
/// The longest path of a Unix socket that the kernel takes.
const SOCKET_PATH_MAX: usize = 107;

/// One front as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrontConfig {
    pub(crate) name: AppId,
    /// The app that the front itself is.
    pub(crate) app: AppId,
    pub(crate) mode: Mode,
    pub(crate) listen: Vec<Address>,
    /// Who serves; the first one at the very beginning.
    pub(crate) instances: Vec<(AppId, Address)>,
    pub(crate) user: String,
    pub(crate) connections_max: usize,
    pub(crate) patience: Duration,
    pub(crate) grace: Duration,
    pub(crate) proxy: proxy::Options,
}

impl FrontConfig {
    /// Where the front's own files are.
    pub(crate) fn directory(&self, state_dir: &Path) -> PathBuf {
        state_dir.join("fronts").join(self.name.as_str())
    }

    /// The socket on which it is asked.
    pub(crate) fn control(&self, state_dir: &Path) -> PathBuf {
        self.directory(state_dir).join("control")
    }

    /// Where it reads what it has to do.
    pub(crate) fn plan_file(&self, state_dir: &Path) -> PathBuf {
        self.directory(state_dir).join("plan.json")
    }

    /// The app that the front is: started, supervised and partitioned like any other.
    pub(super) fn app(&self, state_dir: &Path, executable: &Path) -> App {
        let command = [
            executable.display().to_string(),
            "front".to_owned(),
            self.plan_file(state_dir).display().to_string(),
        ];
        let exec = Exec {
            command: command.into(),
            user: None,
            group: None,
            directory: None,
            environment: BTreeMap::new(),
            stdout: None,
            stderr: None,
            restart: Restart::Always,
        };
        App::new(self.app.clone(), Class::Critical, Binding::Exec(exec))
    }

    /// What the front is told.
    pub(crate) fn plan(&self, state_dir: &Path) -> Plan {
        let instance = |(app, address): &(AppId, Address)| Instance {
            app: app.to_string(),
            address: address.clone(),
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
            proxy: self.proxy,
            control: self.control(state_dir),
            epoch_file: self.directory(state_dir).join("epoch"),
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
    addresses: BTreeSet<Address>,
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
    let key = section.key("instances");
    let members = instances.map(|given| members(given, &key, apps, taken, findings));
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
    let patience = bounded(&mut section, "patience", patience, findings);
    let grace = bounded(&mut section, "grace", grace, findings);
    Some(FrontConfig {
        name,
        app,
        mode: mode?,
        listen: listen?,
        instances: is_complete.then_some(instances)?,
        user: user.map_or_else(|| USER.to_owned(), |user| user.value),
        connections_max: section
            .take::<u64>("connections_max")
            .and_then(|count| usize::try_from(count.value).ok())
            .unwrap_or(CONNECTIONS_MAX),
        patience: patience.unwrap_or(PATIENCE),
        grace: grace.unwrap_or_default(),
        proxy,
    })
}

fn addresses(
    texts: &At<Vec<String>>,
    key: &str,
    taken: &mut Taken,
    findings: &mut Findings<'_>,
) -> Vec<Address> {
    let mut addresses = Vec::new();
    for text in &texts.value {
        let Some(address) = findings.keep(texts.at, key.to_owned(), address(text)) else {
            continue;
        };
        if taken.addresses.insert(address.clone()) {
            addresses.push(address);
        } else {
            let problem = Problem::new(
                format!("`{address}` is used twice"),
                "give each front and each instance an address of its own",
            );
            findings.add(texts.at, key.to_owned(), problem);
        }
    }
    addresses
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

fn members(
    given: At<BTreeMap<String, String>>,
    key: &str,
    apps: &BTreeMap<AppId, App>,
    taken: &mut Taken,
    findings: &mut Findings<'_>,
) -> Vec<(AppId, Address)> {
    let at = given.at;
    if given.value.len() < 2 {
        let problem = Problem::new(
            "fewer than two instances".to_owned(),
            "name the app that serves and the one that is its shadow",
        );
        findings.add(at, key.to_owned(), problem);
    }
    let mut members = Vec::new();
    for (name, text) in given.value {
        let key = format!("{key}.{name}");
        let address = findings.keep(at, key.clone(), address(&text));
        let known = apps.iter().find(|(id, _)| id.as_str() == name);
        let problem = match known {
            None => {
                let names: Vec<&str> = apps.keys().map(AppId::as_str).collect();
                Some(Problem::new(
                    format!("there is no app `{name}`"),
                    nearest(&name, &names).map_or_else(
                        || "configure it under [apps]".to_owned(),
                        |near| format!("did you mean `{near}`?"),
                    ),
                ))
            }
            Some((_, app)) if !matches!(app.binding, Binding::Exec(_)) => Some(Problem::new(
                format!("app `{name}` is not started by Forebay, so its end is seen too late"),
                "give it `exec`",
            )),
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
        if !taken.addresses.insert(address.clone()) {
            let problem = Problem::new(
                format!("`{address}` is used twice"),
                "give each front and each instance an address of its own",
            );
            findings.add(at, key, problem);
        }
        members.extend(known.map(|(id, _)| (id.clone(), address)));
    }
    members
}
