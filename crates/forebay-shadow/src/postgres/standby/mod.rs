//! Makes an instance a standby of the primary, before its server is begun.
//!
//! Problem: an instance that comes back may be a former primary, with commits that nobody else has,
//! and must not serve them; and what has to be done about it needs the rights of whoever owns the
//! data, which a front does not have.
//!
//! Approach: whoever begins the server asks first. It is told by the front who serves, or, where that
//! does not run, by the epoch that is on disk. The primary is begun as it is. Anybody else is made to
//! follow: a standby that the primary can still give all it lacks goes on; a former primary is
//! rewound (`pg_rewind`); what neither goes for is copied anew (`pg_basebackup`), beside the old
//! directory, which is kept until the new one receives.
//!
//! Properties: no server is begun as a primary but the one that serves by the front. Only the
//! directory that is configured is touched, only while it holds this very cluster, and only when it
//! is noted ([`Mark`]) that its server stood behind this front before. What was interrupted is noticed
//! by the mark. Nothing is done while a server runs in the directory. When anything fails, the primary
//! has lost nothing by it, and the error has the last that the program said.

mod directory;
mod program;
mod running;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

pub use directory::Mark;
use directory::{Control, Directory, Found, Lsn, Note, Room, State};
use program::Program;

use super::Options;
use super::client::{Connection, Credential};
use super::frame::Opening;
use super::sql::literal;
use crate::control::{Answer, Line, PATIENCE, Request};
use crate::epoch::EpochFile;
use crate::front::Plan;
use crate::mode::Mode;
use crate::status::Status;
use crate::stream::{Address, Stream};

/// How long a change of the primary may go on until it is known who serves.
const DECIDED_BOUND: Duration = Duration::from_secs(30);
/// How long the primary may take to be one.
const PRIMARY_BOUND: Duration = Duration::from_secs(60);
/// And for one that is a standby already, which can begin without.
const STANDBY_BOUND: Duration = Duration::from_secs(3);
/// How often it is asked.
const PRIMARY_POLL: Duration = Duration::from_millis(100);
/// How long it may take for a checkpoint.
const CHECKPOINT_BOUND: Duration = Duration::from_secs(1800);
/// How long a standby may take until it receives, before what it replaces is left where it is.
const STREAMS_BOUND: Duration = Duration::from_secs(3600);
/// How often that is asked.
const STREAMS_POLL: Duration = Duration::from_millis(500);

/// How long a server may take to end in whose directory another one is to begin.
const ENDS_BOUND: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const ENDS_POLL: Duration = Duration::from_millis(20);

/// Why an instance was not made a standby.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self(why)
    }
}

/// How an instance was made a standby.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It was one, and goes on.
    Follows,
    /// What it had and the primary has not was undone.
    Rewound,
    /// It is a copy of the primary; why it could not be had for less.
    Copied(String),
}

/// An instance, before its server is begun.
#[derive(Debug, Clone)]
pub struct Instance<'a> {
    plan: &'a Plan,
    options: &'a Options,
    app: &'a str,
    directory: Directory,
    /// Where its settings are, if not in the directory.
    config_file: Option<&'a str>,
}

impl<'a> Instance<'a> {
    /// An instance of a front, by the command that begins its server.
    ///
    /// # Errors
    /// When the front is of another mode, or has no directory for it.
    pub fn new(plan: &'a Plan, app: &'a str, command: &'a [String]) -> Result<Self, Failed> {
        let Mode::Postgres(options) = &plan.mode else {
            return Err(Failed(format!("front {} is not of postgres", plan.name)));
        };
        let data = options.data.get(app);
        let data =
            data.ok_or_else(|| Failed(format!("front {} has no `data.{app}`", plan.name)))?;
        let file = |argument: &'a String| {
            let argument = argument.strip_prefix("--").unwrap_or(argument);
            argument.strip_prefix("config_file=")
        };
        Ok(Self {
            plan,
            options,
            app,
            directory: Directory::new(data)?,
            config_file: command.iter().find_map(file),
        })
    }

    /// The directory with its data.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// The app that serves, or is to.
    ///
    /// # Errors
    /// When nobody knows, or the primary is changing for too long.
    pub async fn primary(&self) -> Result<String, Failed> {
        let deadline = Instant::now() + DECIDED_BOUND;
        let mut known = None;
        loop {
            let Some(status) = self.status(known).await? else {
                return self.recorded();
            };
            if matches!(status.stage.as_str(), "warm" | "down") {
                let primary = status.members.get(status.primary);
                let primary = primary.map(|member| member.app.clone());
                return primary
                    .ok_or_else(|| Failed(format!("front {} has no primary", self.plan.name)));
            }
            if Instant::now() >= deadline {
                return Err(Failed(format!(
                    "front {} has been {} for {} s, so that it is not known who serves",
                    self.plan.name,
                    status.stage,
                    DECIDED_BOUND.as_secs()
                )));
            }
            known = Some(Box::new(status));
        }
    }

    /// What the front says, as soon as it is anything else than this; none where it does not run.
    async fn status(&self, known: Option<Box<Status>>) -> Result<Option<Status>, Failed> {
        let failed = |why: String| {
            Failed(format!(
                "ask front {} who serves: {why}; {} is not begun before that is known",
                self.plan.name, self.app
            ))
        };
        let asked = async {
            let mut line = match Line::connect(&self.plan.control).await {
                Ok(line) => line,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            line.ask(&Request::Status { known }, &[]).await.map(Some)
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(Answer::Status(status)))) => Ok(Some(*status)),
            Ok(Ok(Some(other))) => Err(failed(format!("it answered {other:?}"))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("no answer".to_owned())),
        }
    }

    /// Who served last, by what is on disk; the first instance, if nobody ever did.
    fn recorded(&self) -> Result<String, Failed> {
        let path = &self.plan.epoch_file;
        let latest = EpochFile::look(path)
            .map_err(|error| Failed(format!("read {}: {error}", path.display())))?;
        let instances = &self.plan.instances;
        let latest = latest.map(|latest| latest.primary);
        let latest = latest.filter(|app| instances.iter().any(|one| one.app == *app));
        let first = instances.first().map(|one| one.app.clone());
        latest
            .or(first)
            .ok_or_else(|| Failed(format!("front {} has no instances", self.plan.name)))
    }

    /// Waits until no server runs in the directory.
    async fn vacant(&self) -> Result<(), Failed> {
        let deadline = Instant::now() + ENDS_BOUND;
        while let Some(pid) = running::server_in(self.directory.path()) {
            if Instant::now() >= deadline {
                return Err(Failed(format!(
                    "process {pid} is of a server that runs in {0}; stop it (pg_ctl stop -D {0}), and leave \
                     it to front {1} to begin {2}",
                    self.directory, self.plan.name, self.app
                )));
            }
            tokio::time::sleep(ENDS_POLL).await;
        }
        Ok(())
    }

    /// Notes that the server that is about to begin is the primary's.
    ///
    /// # Errors
    /// When a server runs in its directory, that holds no cluster, or it cannot be noted.
    pub async fn serves(&self, mark: &Mark) -> Result<(), Failed> {
        self.vacant().await?;
        let found = self.directory.look(self.program("pg_controldata"))?;
        let Found::Cluster(control) = found else {
            return Err(Failed(format!(
                "{} is to serve, and there is no cluster in {}; make one with initdb, or name another `primary`",
                self.app, self.directory
            )));
        };
        let noted = mark.read()?.map(|note| note.state);
        if noted.is_some_and(State::is_worthless) {
            return Err(Failed(format!(
                "{} is to serve, and its data in {} were being rewound or replaced; name another `primary`",
                self.app, self.directory
            )));
        }
        self.directory.keep(noted)?;
        mark.write(&Note::new(State::Serves, &control.system))
    }

    /// Makes it a standby of the primary.
    ///
    /// # Errors
    /// When it cannot be made one, or a server runs already; its directory is as it was, or what is
    /// wrong with it is noted.
    pub async fn follow(&self, primary: &str, mark: &Mark) -> Result<Made, Failed> {
        self.vacant().await?;
        let noted = mark.read()?;
        self.directory
            .resume(noted.as_ref().map(|note| note.state))?;
        let found = self.directory.look(self.program("pg_controldata"))?;
        let is_whole = noted.as_ref().is_none_or(|note| !note.state.is_worthless());
        let is_standby = matches!(&found, Found::Cluster(control) if control.is_standby);
        let goes_on = is_standby && is_whole;
        let bound = if goes_on {
            STANDBY_BOUND
        } else {
            PRIMARY_BOUND
        };
        let mut source = match Source::reach(self, primary, bound).await {
            Ok(source) => source,
            // It may be the only one that is left, and serves only if the front says so.
            Err(why) if goes_on => {
                tracing::warn!(app = self.app, %why, "it goes on as the standby that it was");
                return Ok(Made::Follows);
            }
            Err(why) => return Err(why),
        };
        let control = match found {
            Found::Nothing => {
                let why = format!("there was nothing in {}", self.directory);
                return self.copy(&source, None, mark, why);
            }
            Found::Foreign => {
                return Err(Failed(format!(
                    "{} holds something else than a cluster; move it away, or configure another directory",
                    self.directory
                )));
            }
            Found::Cluster(control) => control,
        };
        if control.system != source.system {
            return Err(Failed(format!(
                "{} holds the cluster {}, and {primary} serves {}; move it away, or configure another directory",
                self.directory, control.system, source.system
            )));
        }
        if goes_on {
            return match source.lacks(&control).await? {
                None => {
                    self.connects_to(&source)?;
                    mark.write(&Note::new(State::Follows, &source.system))?;
                    Ok(Made::Follows)
                }
                // Nobody knows what one has that never stood behind this front, or is ahead.
                Some(why)
                    if control.timeline > source.timeline
                        || noted
                            .as_ref()
                            .is_none_or(|note| note.system != control.system) =>
                {
                    Err(Failed(format!(
                        "{} does not follow {primary} ({why}), and its server never stood behind front {}, \
                         or is ahead of {primary}; move it away, or configure another directory",
                        self.directory, self.plan.name
                    )))
                }
                Some(why) => self.copy(&source, Some(&control), mark, why),
            };
        }
        let Some(note) = noted.filter(|note| note.system == control.system) else {
            return Err(Failed(format!(
                "{} is no standby, and its server never stood behind front {}; its data may be newer \
                 than those of {primary}: name it the `primary`, or move it away",
                self.directory, self.plan.name
            )));
        };
        if note.state.is_worthless() {
            let why = "a rewind or a copy was interrupted".to_owned();
            return self.copy(&source, Some(&control), mark, why);
        }
        source.checkpoint().await?;
        mark.write(&Note::new(State::Rewinding, &source.system))?;
        match self.rewind(&source) {
            Ok(()) => {
                self.connects_to(&source)?;
                mark.write(&Note::new(State::Follows, &source.system))?;
                Ok(Made::Rewound)
            }
            Err(why) => self.copy(&source, Some(&control), mark, why.0),
        }
    }

    fn program(&self, name: &str) -> Program {
        Program::new(self.options.programs.join(name))
    }

    fn rewind(&self, source: &Source<'_>) -> Result<(), Failed> {
        let mut program = self.program("pg_rewind");
        program.option("--target-pgdata", self.directory.path());
        program.option(
            "--source-server",
            source.conninfo("postgres", self.app, Secrets::Left),
        );
        if let Some(file) = self.config_file {
            program.option("--config-file", file);
        }
        program.secret("PGPASSWORD", source.password());
        program.run()
    }

    /// Copies the primary, and puts the copy in the place of what was there.
    fn copy(
        &self,
        source: &Source<'_>,
        before: Option<&Control>,
        mark: &Mark,
        why: String,
    ) -> Result<Made, Failed> {
        let program = self.program("pg_controldata");
        let room = self
            .directory
            .look_for_room(source.bytes, before, &program)?;
        let worthless = mark.read()?.is_some_and(|note| note.state.is_worthless());
        let state = if worthless || room == Room::Instead {
            State::Replacing
        } else {
            State::Copying
        };
        mark.write(&Note::new(state, &source.system))?;
        if room == Room::Instead {
            self.directory.clear()?;
        }
        let mut program = self.program("pg_basebackup");
        program.option("--pgdata", self.directory.copy());
        program.option(
            "--dbname",
            source.conninfo("postgres", self.app, Secrets::Left),
        );
        program.option("--wal-method", "stream");
        program.option("--checkpoint", "fast");
        program.secret("PGPASSWORD", source.password());
        if let Err(failed) = program.run() {
            // What was copied takes room that others need.
            self.directory.drop_copy()?;
            return Err(Failed(format!(
                "{failed}; {} stays as it was; what was tried first: {why}",
                self.directory
            )));
        }
        let settings = self.settings(source);
        self.directory.set(self.directory.copy(), &settings)?;
        mark.write(&Note::new(State::Placing, &source.system))?;
        self.directory.place()?;
        mark.write(&Note::new(State::Follows, &source.system))?;
        Ok(Made::Copied(why))
    }

    /// Has the server follow the primary once it begins.
    fn connects_to(&self, source: &Source<'_>) -> Result<(), Failed> {
        let settings = self.settings(source);
        self.directory.set(self.directory.path(), &settings)
    }

    fn settings(&self, source: &Source<'_>) -> String {
        source.conninfo("replication", self.app, Secrets::Written)
    }

    /// Whether a directory is kept that was replaced.
    #[must_use]
    pub fn has_old(&self) -> bool {
        self.directory.old().exists()
    }

    /// Waits until the standby receives, and removes what it replaced.
    ///
    /// # Errors
    /// When it does not receive for too long, or something cannot be removed: that stays.
    pub async fn clear(&self) -> Result<(), Failed> {
        let deadline = Instant::now() + STREAMS_BOUND;
        let address = self.address(self.app)?;
        loop {
            let sql = "SELECT system_identifier, \
                 (SELECT status FROM pg_catalog.pg_stat_wal_receiver) \
                 FROM pg_catalog.pg_control_system()";
            let asked = async {
                let mut connection = self.connect(&address).await?;
                connection.query(sql).await
            };
            let asked = tokio::time::timeout(PATIENCE, asked).await;
            let row = asked.ok().and_then(Result::ok);
            let row = row.and_then(|rows| rows.into_iter().next());
            if let Some([Some(system), Some(status)]) = row.as_deref()
                && status == "streaming"
            {
                return self
                    .directory
                    .drop_old(system, &self.program("pg_controldata"));
            }
            if Instant::now() >= deadline {
                return Err(Failed(format!(
                    "{} has not received anything for {} s; {} stays",
                    self.app,
                    STREAMS_BOUND.as_secs(),
                    self.directory.old().display()
                )));
            }
            tokio::time::sleep(STREAMS_POLL).await;
        }
    }

    fn address(&self, app: &str) -> Result<Address, Failed> {
        let mut instances = self.plan.instances.iter();
        let instance = instances.find(|instance| instance.app == app);
        let instance = instance.map(|instance| instance.address.clone());
        instance.ok_or_else(|| Failed(format!("{app} is no instance of front {}", self.plan.name)))
    }

    async fn connect(&self, address: &Address) -> Result<Connection, super::client::Trouble> {
        let stream = Stream::connect(address).await?;
        let opening = Opening::own(&self.options.user, &self.options.database);
        let password = self.options.password.as_ref();
        let credential = password.map_or(Credential::None, |password| {
            Credential::Password(password.0.clone())
        });
        Connection::open(stream, &opening, &credential).await
    }
}

/// Whether a connection's description has the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Written,
    /// Others may see the description; it is handed over by itself.
    Left,
}

/// The primary that is to be followed.
#[derive(Debug)]
struct Source<'a> {
    options: &'a Options,
    connection: Connection,
    app: String,
    /// Directory or address, and port.
    place: (String, u16),
    system: String,
    timeline: u32,
    /// The timeline of its last checkpoint.
    checkpoint: u32,
    /// All its data, and the log that it keeps.
    bytes: u64,
}

impl<'a> Source<'a> {
    async fn reach(instance: &Instance<'a>, app: &str, bound: Duration) -> Result<Self, Failed> {
        let address = instance.address(app)?;
        let failed = |why: String| Failed(format!("ask {app} at {address}: {why}"));
        let deadline = Instant::now() + bound;
        let mut connection = loop {
            let asked = async {
                let mut connection = instance.connect(&address).await?;
                let rows = connection
                    .query("SELECT pg_catalog.pg_is_in_recovery()")
                    .await?;
                let first = rows
                    .into_iter()
                    .next()
                    .and_then(|row| row.into_iter().next());
                Ok::<_, super::client::Trouble>((connection, first.flatten()))
            };
            let why = match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok((connection, Some(standby)))) if standby == "f" => break connection,
                Ok(Ok(_)) => "it is a standby".to_owned(),
                Ok(Err(trouble)) if trouble.is_final() => return Err(failed(trouble.to_string())),
                Ok(Err(trouble)) => trouble.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(failed(format!("{why}, for {} s", bound.as_secs())));
            }
            tokio::time::sleep(PRIMARY_POLL).await;
        };
        let rows = connection
            .query(FACTS)
            .await
            .map_err(|trouble| failed(trouble.to_string()))?;
        let row = rows.into_iter().next().unwrap_or_default();
        let facts = match row.as_slice() {
            [Some(system), Some(timeline), Some(checkpoint), Some(bytes)] => {
                let numbers = (timeline.parse(), checkpoint.parse(), bytes.parse());
                match numbers {
                    (Ok(timeline), Ok(checkpoint), Ok(bytes)) => {
                        Some((system.clone(), timeline, checkpoint, bytes))
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        let (system, timeline, checkpoint, bytes) =
            facts.ok_or_else(|| failed(format!("it answered {row:?}")))?;
        Ok(Self {
            options: instance.options,
            connection,
            app: app.to_owned(),
            place: place(&address).map_err(failed)?,
            system,
            timeline,
            checkpoint,
            bytes,
        })
    }

    async fn ask(&mut self, sql: &str, bound: Duration) -> Result<Option<String>, Failed> {
        let failed = |why: String, app: &str| Failed(format!("ask {app}: {why}"));
        match tokio::time::timeout(bound, self.connection.query(sql)).await {
            Ok(Ok(rows)) => Ok(rows
                .into_iter()
                .next()
                .and_then(|row| row.into_iter().next().flatten())),
            Ok(Err(trouble)) => Err(failed(trouble.to_string(), &self.app)),
            Err(_) => {
                let why = format!("no answer within {} s", bound.as_secs());
                Err(failed(why, &self.app))
            }
        }
    }

    /// `pg_rewind` reads the timeline off the last checkpoint, which may be from before the promotion.
    async fn checkpoint(&mut self) -> Result<(), Failed> {
        if self.checkpoint != self.timeline {
            self.ask("CHECKPOINT", CHECKPOINT_BOUND).await?;
        }
        Ok(())
    }

    /// Why a standby cannot get from here what it lacks.
    async fn lacks(&mut self, control: &Control) -> Result<Option<String>, Failed> {
        if control.timeline != self.timeline {
            return Ok(Some(format!(
                "it stood in timeline {}, and {} is in {}",
                control.timeline, self.app, self.timeline
            )));
        }
        let Lsn(needs) = control.needs;
        let needs = format!("{:X}/{:X}", needs >> 32, needs & 0xffff_ffff);
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_ls_waldir() \
               WHERE name ~ '^[0-9A-F]{{24}}$' \
               AND right(name, 16) <= right(pg_catalog.pg_walfile_name({}::pg_lsn), 16))",
            literal(&needs)
        );
        let kept = self.ask(&sql, PATIENCE).await?;
        let lost = format!("{} keeps no log from {needs} on", self.app);
        Ok((kept.as_deref() != Some("t")).then_some(lost))
    }

    fn password(&self) -> Option<&str> {
        self.options
            .password
            .as_ref()
            .map(|password| password.0.as_str())
    }

    /// What `libpq` connects with.
    fn conninfo(&self, database: &str, name: &str, secrets: Secrets) -> String {
        let (host, port) = &self.place;
        let port = port.to_string();
        let mut pairs = vec![
            ("host", host.as_str()),
            ("port", &port),
            ("user", &self.options.user),
            ("application_name", name),
        ];
        if database != "replication" {
            pairs.push(("dbname", database));
        }
        if let (Some(password), Secrets::Written) = (self.password(), secrets) {
            pairs.push(("password", password));
        }
        let pairs = pairs.into_iter().map(|(key, value)| {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            format!("{key}='{value}'")
        });
        pairs.collect::<Vec<_>>().join(" ")
    }
}

const FACTS: &str = "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
     ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int, \
     (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()), \
     (SELECT sum(pg_catalog.pg_database_size(oid)) FROM pg_catalog.pg_database)::bigint \
       + (SELECT coalesce(sum(size), 0) FROM pg_catalog.pg_ls_waldir())::bigint";

/// Where `libpq` finds a server.
fn place(address: &Address) -> Result<(String, u16), String> {
    match address {
        Address::Tcp(address) => Ok((address.ip().to_string(), address.port())),
        Address::Unix(path) => {
            let name = path.file_name().map(|name| name.to_string_lossy());
            let port = name.and_then(|name| name.strip_prefix(".s.PGSQL.")?.parse().ok());
            let directory = path.parent().map(PathBuf::from).unwrap_or_default();
            port.map(|port| (directory.display().to_string(), port))
                .ok_or_else(|| "its socket is not called .s.PGSQL.PORT".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libpq_finds_the_server() {
        let check = |text: &str, expected: Result<(&str, u16), ()>| {
            let found = place(&text.parse().unwrap()).map_err(|_| ());
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(found, expected, "{text}");
        };
        check("127.0.0.1:5432", Ok(("127.0.0.1", 5432)));
        check("[::1]:5433", Ok(("::1", 5433)));
        check(
            "/run/postgresql/.s.PGSQL.5434",
            Ok(("/run/postgresql", 5434)),
        );
        check("/run/pg.sock", Err(()));
    }
}
