//! What a front speaks, with what can be chosen of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::units::Bytes;
use forebay_host::regular;
use forebay_shadow::listen::Listen;
use forebay_shadow::mode::Mode;
use forebay_shadow::secret::Secret;
use forebay_shadow::stream::Address;
use forebay_shadow::{http, postgres, proxy, redis, tls};

use super::app::absolute;
use super::certificate;
use super::error::{Findings, Problem};
use super::facts::HostFacts;
use super::resolve::{Bounds, bounded};
use super::text::{At, Section};

/// The sections of modes, by the words of [`super::keys::MODES`] that have one.
const SECTIONS: [&str; 3] = ["http", "redis", "postgres"];
/// A longer password is none.
const PASSWORD_BYTES_MAX: u64 = 1024;
const SHORT: Bounds = Bounds {
    min: Duration::from_millis(1),
    max: Duration::from_secs(600),
};

/// Resolves the mode of a front; none when it lacks something, which was noted.
pub(super) fn mode(
    word: &str,
    front: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<Mode> {
    for name in SECTIONS.into_iter().filter(|name| *name != word) {
        if let Some(at) = front.at(name) {
            let speaks_tls = front.take_section(name).at("tls").is_some();
            let remedy = if word == "tcp" && speaks_tls {
                format!(
                    "leave this out: mode tcp passes TLS on as it comes, and the instances have the \
                     certificate; or set mode = \"{name}\""
                )
            } else {
                format!("leave this out, or set mode = \"{name}\"")
            };
            let problem = Problem::new(format!("the front's mode is {word}"), remedy);
            findings.add(at, front.key(name), problem);
        }
    }
    match word {
        "tcp" => Some(Mode::Tcp),
        "http" => {
            let section = front.take_section("http");
            Some(Mode::Http(of_http(section, host, findings)))
        }
        "redis" => {
            let section = front.take_section("redis");
            Some(Mode::Redis(of_redis(section, host, findings)))
        }
        "postgres" => {
            let section = front.take_section("postgres");
            of_postgres(section, host, findings).map(Mode::Postgres)
        }
        other => unreachable!("`{other}` is no word of the table of keys"),
    }
}

/// Where a front of this mode speaks the PROXY protocol.
pub(super) fn proxy(
    mode: Option<&str>,
    front: &mut Section,
    findings: &mut Findings<'_>,
) -> proxy::Options {
    let mut section = front.take_section("proxy_protocol");
    let accept = is_set(&mut section, "accept");
    let send = section.take::<bool>("send").filter(|send| send.value);
    let options = proxy::Options {
        accept,
        send: send.is_some(),
    };
    let (Some(mode), Some(At { at, .. })) = (mode, send) else {
        return options;
    };
    if mode != "tcp" {
        let remedy = if mode == "http" {
            "use http.forwarded_for: clients share the connections to an instance"
        } else {
            "leave it out: mode \"tcp\" alone has a connection to an instance for each client"
        };
        let problem = Problem::new(format!("mode {mode} sends no header"), remedy);
        findings.add(at, section.key("send"), problem);
    }
    options
}

fn of_http(mut section: Section, host: &HostFacts, findings: &mut Findings<'_>) -> http::Options {
    let defaults = http::Options::default();
    let mut share = |key: &str| {
        let At { value, at } = section.take::<u32>(key)?;
        if value <= 100 {
            return u16::try_from(value * 10).ok();
        }
        let problem = Problem::new(format!("{value}% is no share"), "write 0% to 100%");
        findings.add(at, section.key(key), problem);
        None
    };
    let (mirrored, spread) = (share("mirror"), share("spread"));
    let within = bounded(&mut section, "spread_within", SHORT, findings);
    let tls = encryption(&mut section, host, findings);
    http::Options {
        forwarded_for: is_set(&mut section, "forwarded_for"),
        mirror: http::mirror::Options {
            per_mille: mirrored.unwrap_or_default(),
            writes: is_set(&mut section, "mirror_writes"),
            ignore_bodies: section
                .take("mirror_ignore")
                .map_or_else(Vec::new, |paths| paths.value),
        },
        spread: http::spread::Options {
            per_mille: spread.unwrap_or_default(),
            within_ms: within.map_or(defaults.spread.within_ms, |time| {
                u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
            }),
        },
        tls,
    }
}

/// What TLS with clients needs.
fn encryption(
    section: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<tls::Options> {
    let tls = section.take::<Section>("tls")?;
    certificate::resolve(tls.value, host, findings)
}

/// Notes addresses of a mode at which the front does not listen.
pub(super) fn check_addresses(
    mode: &Mode,
    listen: &[Listen],
    front: &Section,
    findings: &mut Findings<'_>,
) {
    let Some(tls) = mode.tls() else {
        return;
    };
    let key = format!("{}.tls.listen", front.key(&mode.to_string()));
    let mut add = |problem| findings.add(front.at, key.clone(), problem);
    for address in tls.listen.iter().filter(|one| !listen.contains(one)) {
        add(Problem::new(
            format!("the front does not listen on {address}"),
            "name addresses that its own `listen` has, too",
        ));
    }
    let Mode::Postgres(_) = mode else { return };
    let is_local = |address: &&Listen| matches!(address, Listen::At(Address::Unix(_)));
    for address in tls.listen.iter().filter(is_local) {
        add(Problem::new(
            format!("clients of PostgreSQL do not speak TLS on a Unix socket, as {address} is"),
            "name addresses of TCP",
        ));
    }
}

fn of_redis(mut section: Section, host: &HostFacts, findings: &mut Findings<'_>) -> redis::Options {
    let defaults = redis::Options::default();
    let mut ms = |key, default| bounded(&mut section, key, SHORT, findings).map_or(default, millis);
    let (confirm_ms, long_ms, stuck_ms) = (
        ms("confirm", defaults.confirm_ms),
        ms("long", defaults.long_ms),
        ms("stuck", defaults.stuck_ms),
    );
    let bytes = section.take::<Bytes>("command_bytes_max");
    redis::Options {
        guarantee: match section.take::<&str>("guarantee") {
            Some(At {
                value: "strict", ..
            }) => redis::Guarantee::Strict,
            _ => redis::Guarantee::Fast,
        },
        without_shadow: match section.take::<&str>("without_shadow") {
            Some(At {
                value: "continue", ..
            }) => redis::WithoutShadow::Continue,
            _ => redis::WithoutShadow::Refuse,
        },
        confirm_ms,
        long_ms,
        stuck_ms,
        read_from_shadow: is_set(&mut section, "read_from_shadow"),
        command_bytes_max: bytes
            .and_then(|bytes| usize::try_from(bytes.value.0).ok())
            .unwrap_or(defaults.command_bytes_max),
        user: section.take::<String>("user").map(|user| user.value),
        password: password(&mut section, host, findings).map(Secret),
        tls: encryption(&mut section, host, findings),
    }
}

fn of_postgres(
    mut section: Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<postgres::Options> {
    let rebuild_after = bounded(&mut section, "rebuild_after", SHORT, findings);
    let password = password(&mut section, host, findings).map(Secret);
    let tls = encryption(&mut section, host, findings);
    let Some(user) = section.take::<String>("user") else {
        if !section.refused {
            let problem = Problem::new(
                "the front has no user to ask the servers as".to_owned(),
                "name a superuser: it promotes, and repeats logins",
            );
            findings.add(section.at, section.key("user"), problem);
        }
        return None;
    };
    let mut options = postgres::Options::new(user.value);
    options.password = password;
    options.tls = tls;
    options.guarantee = match section.take::<&str>("guarantee") {
        Some(At {
            value: "strict", ..
        }) => postgres::Guarantee::Strict,
        _ => postgres::Guarantee::Fast,
    };
    if let Some(database) = section.take::<String>("database") {
        options.database = database.value;
    }
    if let Some(lag) = section.take::<Bytes>("lag_max") {
        options.lag_bytes_max = lag.value.0;
    }
    if let Some(command) = section.take::<Vec<String>>("rebuild") {
        options.rebuild = command.value;
    }
    if let Some(At { value, at }) = section.take::<BTreeMap<String, String>>("data") {
        for (app, directory) in value {
            let path = PathBuf::from(directory);
            let key = format!("{}.{app}", section.key("data"));
            findings.keep(at, key, absolute(&path))?;
            options.data.insert(app, path);
        }
        if !options.rebuild.is_empty() {
            let problem = Problem::new(
                "with `data`, no `rebuild` is run".to_owned(),
                "leave out one of them",
            );
            findings.add(at, section.key("data"), problem);
        }
    }
    if let Some(At { value, at }) = section.take::<String>("bin") {
        let path = PathBuf::from(value);
        findings.keep(at, section.key("bin"), absolute(&path))?;
        options.programs = path;
    }
    if let Some(time) = rebuild_after {
        options.rebuild_after_ms = millis(time);
    }
    Some(options)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn is_set(section: &mut Section, key: &str) -> bool {
    section.take::<bool>(key).is_some_and(|set| set.value)
}

/// The first line of the file that is named. A password does not belong into a file that anybody
/// may read, as the configuration may be.
pub(super) fn password(
    section: &mut Section,
    host: &HostFacts,
    findings: &mut Findings<'_>,
) -> Option<String> {
    let At { value, at } = section.take::<String>("password_file")?;
    let key = section.key("password_file");
    let path = PathBuf::from(&value);
    findings.keep(at, key.clone(), absolute(&path))?;
    findings.keep(at, key, first_line(&path, host))
}

fn first_line(path: &Path, host: &HostFacts) -> Result<String, Problem> {
    let (bytes, mode) = regular::read(&host.at(path), PASSWORD_BYTES_MAX).map_err(|error| {
        Problem::new(
            format!("read the password in {}: {error}", path.display()),
            "write it there, on one line",
        )
    })?;
    if mode & 0o077 != 0 {
        return Err(Problem::new(
            format!("others than its owner may use {}", path.display()),
            "chmod 600 it",
        ));
    }
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        return Err(Problem::new(
            format!("there is no password in {}", path.display()),
            "write it there, on one line",
        ));
    }
    Ok(line.to_owned())
}
