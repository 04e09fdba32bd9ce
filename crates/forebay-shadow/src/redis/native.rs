//! `native`: shadows are replicas of the primary, kept by the servers themselves.
//!
//! A shadow is in step when its link to the primary is up and it soon has all that the primary had
//! when it was asked. The link alone says too little: it is up as soon as a copy was loaded, and what
//! was written meanwhile follows only after the primary heard of that (up to a second, Redis 7.0).
//!
//! When the primary dies the link breaks before anybody has asked the shadow to take over: one that
//! was in step when it was last asked stays so while its primary cannot be reached, and is behind as
//! soon as it can.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Options;
use super::replies::{Got, Replies};
use super::requests::Command;
use crate::stream::{Address, Stream};
use crate::switchboard::Instance;
use crate::synchronise::{Lag, Pending, Standing, Synchroniser};

/// How long a server may take to answer the front itself.
const ANSWER_BOUND: Duration = Duration::from_secs(1);
/// How long a primary may take to say that it is there, before its shadow's word counts.
const PRESENCE_BOUND: Duration = Duration::from_millis(100);
/// How long a shadow may take to have what its primary wrote.
const CATCH_UP_BOUND: Duration = Duration::from_millis(500);
/// How often it is asked whether it has.
const CATCH_UP_POLL: Duration = Duration::from_millis(1);
/// How often a shadow that takes over is asked whether it still reads what the lost one sent. Each
/// time is a turn of its event loop, and tens of microseconds.
const TAKE_IN_ROUNDS: usize = 16;
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// The synchroniser.
#[derive(Debug)]
pub(crate) struct Native {
    user: Option<String>,
    password: Option<super::Secret>,
    /// The primary with which each instance was in step when it was last asked.
    in_step: Mutex<BTreeMap<String, Address>>,
    /// Where all instances are.
    addresses: Vec<Address>,
    /// How many replicas the primary has that are none of them.
    strangers: Arc<AtomicUsize>,
}

impl Native {
    pub(crate) fn new(options: &Options, instances: &[Instance]) -> Self {
        let addresses = instances.iter().map(|instance| instance.address.clone());
        Self {
            addresses: addresses.collect(),
            strangers: Arc::default(),
            user: options.user.clone(),
            password: options.password.clone(),
            in_step: Mutex::default(),
        }
    }

    /// How many replicas the primary has that are no instances of the front, as it was last asked.
    pub(super) fn strangers(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.strangers)
    }

    /// Looks who replicates the primary.
    fn note_strangers(&self, primary: &Instance, found: &Replication) {
        let strangers = found.replicas.iter().filter(|replica| {
            let is_it = |address: &&Address| replica.is_at(address);
            replica.counts && !self.addresses.iter().any(|address| is_it(&address))
        });
        let strangers: Vec<&Replica> = strangers.collect();
        let before = self.strangers.swap(strangers.len(), Ordering::Relaxed);
        if before < strangers.len() {
            tracing::warn!(
                primary = primary.app,
                ?strangers,
                "replicas that are none of this front's: with guarantee `strict`, writes wait for \
                 them as well, since WAIT does not say whose word it has"
            );
        }
    }

    fn words_of_auth(&self) -> Option<Vec<String>> {
        let password = self.password.as_ref()?;
        let mut words = vec!["AUTH".to_owned()];
        words.extend(self.user.clone());
        words.push(password.0.clone());
        Some(words)
    }

    /// Sends commands to an instance at once; the answers to all of them.
    async fn ask(&self, instance: &Instance, commands: &[Command]) -> Result<Vec<Vec<u8>>, String> {
        let asked = async { self.open(instance).await?.ask(commands).await };
        bounded(instance, asked).await
    }

    /// Connects and logs in.
    async fn open(&self, instance: &Instance) -> io::Result<Link> {
        let mut link = Link {
            stream: Stream::connect(&instance.address).await?,
            replies: Replies::new(),
        };
        if let Some(words) = self.words_of_auth() {
            let answers = link.ask(&[Command::new(&words)]).await?;
            let answer = answers.first().map(Vec::as_slice).unwrap_or_default();
            if answer.first() == Some(&b'-') {
                let why = format!("it refuses the front's password: {}", text(answer));
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
        }
        Ok(link)
    }

    async fn replication(&self, instance: &Instance) -> Result<Replication, String> {
        let answers = self
            .ask(instance, &[Command::new(&["INFO", "replication"])])
            .await?;
        let answer = answers.first().map(Vec::as_slice).unwrap_or_default();
        if answer.first() == Some(&b'-') {
            return Err(format!("ask {}: {}", instance.app, text(answer)));
        }
        Ok(Replication::parse(&String::from_utf8_lossy(answer)))
    }

    async fn stands(&self, shadow: &Instance, primary: &Instance) -> Standing {
        let found = match self.replication(shadow).await {
            Ok(found) => found,
            Err(why) => return Standing::Away(why),
        };
        if let Err(why) = found.follows(&primary.address) {
            self.forget(shadow);
            return Standing::Behind(why);
        }
        let was_in_step = self.was_in_step(shadow, primary);
        let asked = self.written(primary, !was_in_step && found.link_up);
        let all = tokio::time::timeout(PRESENCE_BOUND, asked).await;
        let all = all.ok().and_then(Result::ok);
        let Some(all) = all else {
            // Nothing is written any more that it could miss.
            if was_in_step && !found.syncing {
                return Standing::Ready { lag: None };
            }
            self.forget(shadow);
            return Standing::Behind("its primary cannot be asked what it lacks".to_owned());
        };
        if found.link_up && self.reaches(shadow, all).await {
            self.remember(shadow, primary);
            let has = found.replica_offset;
            return Standing::Ready {
                lag: Some(Lag {
                    bytes: has.map(|has| all.saturating_sub(has)),
                    time: found.heard.map(Duration::from_secs),
                }),
            };
        }
        // It may have died since it was asked.
        if was_in_step && !self.is_there(primary).await {
            return Standing::Ready { lag: None };
        }
        self.forget(shadow);
        Standing::Behind(if found.syncing {
            "it copies what the primary has".to_owned()
        } else if found.link_up {
            "it does not catch up with the primary".to_owned()
        } else {
            "its link to the primary is down".to_owned()
        })
    }

    /// How much a primary has written. On an idle one nothing would show that a shadow gets what is
    /// written; a message that nobody listens to does, and changes no data.
    async fn written(&self, primary: &Instance, probes: bool) -> Result<u64, String> {
        let probe = Command::new(&["PUBLISH", "__forebay__", "probe"]);
        let ask = Command::new(&["INFO", "replication"]);
        let commands = if probes { vec![probe, ask] } else { vec![ask] };
        let answers = self.ask(primary, &commands).await?;
        let answer = answers.last().map(Vec::as_slice).unwrap_or_default();
        let found = Replication::parse(&String::from_utf8_lossy(answer));
        self.note_strangers(primary, &found);
        let offset = found.master_offset;
        offset.ok_or_else(|| format!("{} does not say what it wrote", primary.app))
    }

    async fn is_there(&self, instance: &Instance) -> bool {
        let ping = [Command::new(&["PING"])];
        let asked = self.ask(instance, &ping);
        matches!(tokio::time::timeout(PRESENCE_BOUND, asked).await, Ok(Ok(_)))
    }

    /// Whether a shadow soon has as much as this.
    async fn reaches(&self, shadow: &Instance, offset: u64) -> bool {
        let reached = async {
            loop {
                match self.replication(shadow).await {
                    Ok(found) if found.replica_offset >= Some(offset) => return found.link_up,
                    Ok(_) => tokio::time::sleep(CATCH_UP_POLL).await,
                    Err(_) => return false,
                }
            }
        };
        tokio::time::timeout(CATCH_UP_BOUND, reached).await == Ok(true)
    }

    fn was_in_step(&self, shadow: &Instance, primary: &Instance) -> bool {
        let in_step = self.in_step.lock().unwrap_or_else(PoisonError::into_inner);
        in_step.get(&shadow.app) == Some(&primary.address)
    }

    fn remember(&self, shadow: &Instance, primary: &Instance) {
        let mut in_step = self.in_step.lock().unwrap_or_else(PoisonError::into_inner);
        in_step.insert(shadow.app.clone(), primary.address.clone());
    }

    fn forget(&self, shadow: &Instance) {
        let mut in_step = self.in_step.lock().unwrap_or_else(PoisonError::into_inner);
        in_step.remove(&shadow.app);
    }

    async fn make_primary(&self, to: &Instance) -> Result<(), String> {
        let made = async {
            let mut link = self.open(to).await?;
            link.take_in().await?;
            let commands = [
                Command::new(&["REPLICAOF", "NO", "ONE"]),
                Command::new(&["ROLE"]),
            ];
            link.ask(&commands).await
        };
        let answers = bounded(to, made).await?;
        expect(to, &answers, 0, b"+OK")?;
        expect(to, &answers, 1, b"*3\r\n$6\r\nmaster")?;
        self.forget(to);
        Ok(())
    }

    async fn make_replica(&self, shadow: &Instance, primary: &Instance) -> Result<(), String> {
        let Address::Tcp(address) = &primary.address else {
            return Err(format!(
                "make {} follow {}: a server replicates over TCP alone; give {} an ADDRESS:PORT",
                shadow.app, primary.app, primary.app
            ));
        };
        let mut commands = Vec::new();
        if let Some(password) = &self.password {
            commands.push(Command::new(&["CONFIG", "SET", "masterauth", &password.0]));
            if let Some(user) = &self.user {
                commands.push(Command::new(&["CONFIG", "SET", "masteruser", user]));
            }
        }
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        commands.push(Command::new(&["REPLICAOF", &host, &port]));
        let answers = self.ask(shadow, &commands).await?;
        (0..answers.len()).try_for_each(|place| expect(shadow, &answers, place, b"+OK"))
    }

    /// Whether a server has no data at all.
    async fn is_blank(&self, instance: &Instance) -> Result<bool, String> {
        let ask = [
            Command::new(&["INFO", "persistence"]),
            Command::new(&["INFO", "keyspace"]),
        ];
        let answers = self.ask(instance, &ask).await?;
        let mut said = String::new();
        for answer in &answers {
            if answer.first() == Some(&b'-') {
                return Err(format!("ask {}: {}", instance.app, text(answer)));
            }
            said.push_str(&String::from_utf8_lossy(answer));
        }
        // One that still reads what it kept has keys later.
        if said.lines().any(|line| line.trim() == "loading:1") {
            return Err(format!("{} still loads its data", instance.app));
        }
        Ok(!said.lines().any(|line| line.starts_with("db")))
    }

    /// The last primary comes first when nobody serves, since it knows most. One that was begun anew
    /// without what it had knows nothing: whoever has data comes before it, before the servers
    /// themselves make that one empty as well.
    async fn stands_vacant(&self, this: &Instance, last: &Instance, all: &[Instance]) -> Standing {
        if this.app != last.app {
            let stands = self.stands(this, last).await;
            let forgot = self.is_blank(last).await == Ok(true);
            if matches!(stands, Standing::Behind(_))
                && forgot
                && self.is_blank(this).await == Ok(false)
            {
                return Standing::Ready { lag: None };
            }
            return stands;
        }
        if let Err(why) = self.answers(this).await {
            return Standing::Away(why);
        }
        match self.is_blank(this).await {
            Ok(false) => return Standing::Ready { lag: None },
            Ok(true) => {}
            Err(why) => return Standing::Away(why),
        }
        for other in all.iter().filter(|other| other.app != this.app) {
            if self.is_blank(other).await == Ok(false) {
                return Standing::Behind(format!("it is empty, and {} has data", other.app));
            }
        }
        Standing::Ready { lag: None }
    }

    async fn has_all(&self, shadow: &Instance, primary: &Instance) -> Result<(), String> {
        let all = self.written(primary, false).await?;
        if self.reaches(shadow, all).await {
            return Ok(());
        }
        Err(format!(
            "wait for {} to have all of {}: not within {} ms",
            shadow.app,
            primary.app,
            CATCH_UP_BOUND.as_millis()
        ))
    }

    async fn answers(&self, instance: &Instance) -> Result<(), String> {
        let answers = self.ask(instance, &[Command::new(&["PING"])]).await?;
        expect(instance, &answers, 0, b"+PONG")
    }
}

impl Synchroniser for Native {
    fn promote<'a>(&'a self, to: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(self.make_primary(to))
    }

    fn settle<'a>(
        &'a self,
        primary: &'a Instance,
        shadow: &'a Instance,
    ) -> Pending<'a, Result<(), String>> {
        Box::pin(self.has_all(shadow, primary))
    }

    fn follow<'a>(
        &'a self,
        shadow: &'a Instance,
        primary: &'a Instance,
    ) -> Pending<'a, Result<(), String>> {
        Box::pin(self.make_replica(shadow, primary))
    }

    fn standing<'a>(
        &'a self,
        shadow: &'a Instance,
        primary: &'a Instance,
    ) -> Pending<'a, Standing> {
        Box::pin(self.stands(shadow, primary))
    }

    fn vacant<'a>(
        &'a self,
        this: &'a Instance,
        last: &'a Instance,
        all: &'a [Instance],
    ) -> Pending<'a, Standing> {
        Box::pin(self.stands_vacant(this, last, all))
    }

    fn ping<'a>(&'a self, instance: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(self.answers(instance))
    }
}

/// A connection of the front itself.
struct Link {
    stream: Stream,
    replies: Replies,
}

impl Link {
    async fn ask(&mut self, commands: &[Command]) -> io::Result<Vec<Vec<u8>>> {
        let bytes: Vec<u8> = commands
            .iter()
            .flat_map(|command| command.bytes.clone())
            .collect();
        self.stream.write_all(&bytes).await?;
        let mut answers = Vec::new();
        let mut buffer = [0; 4096];
        let mut total = 0;
        while answers.len() < commands.len() {
            match self.replies.next(usize::MAX).map_err(io::Error::other)? {
                Some(Got::Whole(reply)) => {
                    answers.push(reply.to_vec());
                    continue;
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => {}
            }
            let length = self.stream.read(&mut buffer).await?;
            total += length;
            if length == 0 || total > ANSWER_BYTES_MAX {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.replies.push(buffer.get(..length).unwrap_or_default());
        }
        Ok(answers)
    }

    /// Waits until a shadow has read what its lost primary still sent: it lies in its socket, and
    /// would be thrown away with the link.
    async fn take_in(&mut self) -> io::Result<()> {
        let mut before = None;
        for _ in 0..TAKE_IN_ROUNDS {
            let answers = self.ask(&[Command::new(&["INFO", "replication"])]).await?;
            let answer = answers.first().map(Vec::as_slice).unwrap_or_default();
            let found = Replication::parse(&String::from_utf8_lossy(answer));
            // A shadow that saw the link end has read all before that end.
            if !found.link_up || found.replica_offset == before {
                return Ok(());
            }
            before = found.replica_offset;
        }
        Ok(())
    }
}

async fn bounded(
    instance: &Instance,
    asked: impl Future<Output = io::Result<Vec<Vec<u8>>>>,
) -> Result<Vec<Vec<u8>>, String> {
    let at = || format!("{} at {}", instance.app, instance.address);
    match tokio::time::timeout(ANSWER_BOUND, asked).await {
        Ok(Ok(answers)) => Ok(answers),
        Ok(Err(error)) => Err(format!("ask {}: {error}", at())),
        Err(_) => Err(format!(
            "ask {}: no answer within {} s",
            at(),
            ANSWER_BOUND.as_secs()
        )),
    }
}

fn expect(of: &Instance, answers: &[Vec<u8>], place: usize, word: &[u8]) -> Result<(), String> {
    let answer = answers.get(place).map(Vec::as_slice).unwrap_or_default();
    if answer.starts_with(word) {
        return Ok(());
    }
    Err(format!("{} at {}: {}", of.app, of.address, text(answer)))
}

fn text(reply: &[u8]) -> String {
    let line = reply
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = line.strip_prefix(b"-").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}

/// What `INFO replication` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Replication {
    /// Whom it replicates; nobody when it is a primary itself.
    master: Option<(String, u16)>,
    link_up: bool,
    syncing: bool,
    replica_offset: Option<u64>,
    master_offset: Option<u64>,
    /// Seconds since it heard from its primary.
    heard: Option<u64>,
    /// Who replicates it.
    replicas: Vec<Replica>,
}

/// A replica, as its primary tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Replica {
    host: String,
    port: u16,
    /// It has its copy, and has said what it has: its word counts for `WAIT`.
    counts: bool,
}

impl Replica {
    /// From `ip=127.0.0.1,port=7002,state=online,offset=42,lag=0`.
    fn parse(text: &str) -> Option<Self> {
        let fields = text.split(',').filter_map(|field| field.split_once('='));
        let fields: BTreeMap<&str, &str> = fields.collect();
        Some(Self {
            host: (*fields.get("ip")?).to_owned(),
            port: fields.get("port")?.parse().ok()?,
            counts: fields.get("state") == Some(&"online") && fields.get("offset") != Some(&"0"),
        })
    }

    fn is_at(&self, address: &Address) -> bool {
        match address {
            Address::Tcp(address) => {
                self.host == address.ip().to_string() && self.port == address.port()
            }
            Address::Unix(_) => false,
        }
    }
}

impl Replication {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        let fields: BTreeMap<&str, &str> = lines.collect();
        let number = |name| fields.get(name).and_then(|value: &&str| value.parse().ok());
        let host = fields.get("master_host").map(|host| (*host).to_owned());
        let port = fields.get("master_port").and_then(|port| port.parse().ok());
        Self {
            master: host.zip(port),
            link_up: fields.get("master_link_status") == Some(&"up"),
            syncing: fields.get("master_sync_in_progress") == Some(&"1"),
            replica_offset: number("slave_repl_offset"),
            master_offset: number("master_repl_offset"),
            heard: number("master_last_io_seconds_ago"),
            replicas: fields
                .iter()
                .filter(|(name, _)| is_replica(name))
                .filter_map(|(_, value)| Replica::parse(value))
                .collect(),
        }
    }

    /// Whether it replicates this address, and if not, what it does.
    fn follows(&self, address: &Address) -> Result<(), String> {
        let Some((host, port)) = &self.master else {
            return Err("it is a primary itself".to_owned());
        };
        let is_it = match address {
            Address::Tcp(address) => *host == address.ip().to_string() && *port == address.port(),
            Address::Unix(_) => false,
        };
        if is_it {
            Ok(())
        } else {
            Err(format!("it follows {host}:{port}"))
        }
    }
}

/// Whether a field is one of `slave0`, `slave1`, ...
fn is_replica(name: &str) -> bool {
    let number = name.strip_prefix("slave");
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replica_says_is_read() {
        let text = "$400\r\n# Replication\r\nrole:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:7001\r\n\
                    master_link_status:up\r\nmaster_last_io_seconds_ago:2\r\n\
                    master_sync_in_progress:0\r\nslave_repl_offset:42\r\nmaster_repl_offset:42\r\n";
        let found = Replication::parse(text);
        let expected = Replication {
            master: Some(("127.0.0.1".to_owned(), 7001)),
            link_up: true,
            syncing: false,
            replica_offset: Some(42),
            master_offset: Some(42),
            heard: Some(2),
            replicas: Vec::new(),
        };
        assert_eq!(found, expected);
        assert_eq!(found.follows(&"127.0.0.1:7001".parse().unwrap()), Ok(()));
        let other = found.follows(&"127.0.0.1:7002".parse().unwrap());
        assert_eq!(other, Err("it follows 127.0.0.1:7001".to_owned()));
        let text = "role:master\r\nconnected_slaves:2\r\n\
                    slave0:ip=127.0.0.1,port=7002,state=online,offset=42,lag=0\r\n\
                    slave1:ip=::1,port=7003,state=wait_bgsave,offset=0,lag=0\r\n\
                    slave_read_only:1\r\nmaster_repl_offset:42\r\n";
        let [first, second] = Replication::parse(text).replicas.try_into().unwrap();
        assert!(first.counts && first.is_at(&"127.0.0.1:7002".parse().unwrap()));
        assert!(!first.is_at(&"127.0.0.1:7003".parse().unwrap()));
        assert!(!second.counts && second.is_at(&"[::1]:7003".parse().unwrap()));
        let none = Replication::parse("role:master\r\n").follows(&"/run/a".parse().unwrap());
        assert_eq!(none, Err("it is a primary itself".to_owned()));
    }
}
