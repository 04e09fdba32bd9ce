//! `native`: shadows are replicas of the primary, kept by the servers themselves.
//!
//! A shadow is in step while its link to the primary is up. When the primary dies the link breaks
//! before anybody has asked the shadow to take over: one that was in step when it was last asked
//! stays so while its primary cannot be reached, and is behind as soon as it can.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
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
/// How long a shadow may take to have what a primary wrote that hands over in order.
const CATCH_UP_BOUND: Duration = Duration::from_millis(500);
/// How often it is asked whether it has.
const CATCH_UP_POLL: Duration = Duration::from_millis(1);
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// The synchroniser.
#[derive(Debug)]
pub(crate) struct Native {
    user: Option<String>,
    password: Option<super::Secret>,
    /// The primary with which each instance was in step when it was last asked.
    in_step: Mutex<BTreeMap<String, Address>>,
}

impl Native {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            user: options.user.clone(),
            password: options.password.clone(),
            in_step: Mutex::default(),
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
        let at = || format!("{} at {}", instance.app, instance.address);
        let asked = async {
            let mut stream = Stream::connect(&instance.address).await?;
            let auth = self.words_of_auth().map(|words| Command::new(&words));
            let all = auth.iter().chain(commands);
            let bytes: Vec<u8> = all.flat_map(|command| command.bytes.clone()).collect();
            stream.write_all(&bytes).await?;
            receive(&mut stream, commands.len() + usize::from(auth.is_some())).await
        };
        let mut answers = match tokio::time::timeout(ANSWER_BOUND, asked).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => return Err(format!("ask {}: {error}", at())),
            Err(_) => {
                let bound = ANSWER_BOUND.as_secs();
                return Err(format!("ask {}: no answer within {bound} s", at()));
            }
        };
        if self.password.is_some() {
            let auth = answers.remove(0);
            if auth.first() == Some(&b'-') {
                return Err(format!("log in to {}: {}", at(), text(&auth)));
            }
        }
        Ok(answers)
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
        if found.link_up {
            self.remember(shadow, primary);
            let offset = match self.replication(primary).await {
                Ok(primary) => primary.master_offset,
                Err(_) => None,
            };
            let bytes = offset.zip(found.replica_offset);
            return Standing::Ready {
                lag: Some(Lag {
                    bytes: bytes.map(|(all, has)| all.saturating_sub(has)),
                    time: found.heard.map(Duration::from_secs),
                }),
            };
        }
        let was_in_step = {
            let in_step = self.in_step.lock().unwrap_or_else(PoisonError::into_inner);
            in_step.get(&shadow.app) == Some(&primary.address)
        };
        if was_in_step && !found.syncing && !self.is_there(primary).await {
            return Standing::Ready { lag: None };
        }
        self.forget(shadow);
        Standing::Behind(if found.syncing {
            "it copies what the primary has".to_owned()
        } else {
            "its link to the primary is down".to_owned()
        })
    }

    async fn is_there(&self, instance: &Instance) -> bool {
        let ping = [Command::new(&["PING"])];
        let asked = self.ask(instance, &ping);
        matches!(tokio::time::timeout(PRESENCE_BOUND, asked).await, Ok(Ok(_)))
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
        let commands = [
            Command::new(&["REPLICAOF", "NO", "ONE"]),
            Command::new(&["ROLE"]),
        ];
        let answers = self.ask(to, &commands).await?;
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

    async fn has_all(&self, shadow: &Instance, primary: &Instance) -> Result<(), String> {
        let all = self.replication(primary).await?.master_offset;
        let caught_up = async {
            loop {
                let has = self.replication(shadow).await?.replica_offset;
                if has >= all && has.is_some() {
                    return Ok(());
                }
                tokio::time::sleep(CATCH_UP_POLL).await;
            }
        };
        match tokio::time::timeout(CATCH_UP_BOUND, caught_up).await {
            Ok(caught_up) => caught_up,
            Err(_) => Err(format!(
                "wait for {} to have all of {}: not within {} ms",
                shadow.app,
                primary.app,
                CATCH_UP_BOUND.as_millis()
            )),
        }
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

    fn catch_up<'a>(
        &'a self,
        shadow: &'a Instance,
        primary: &'a Instance,
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

    fn ping<'a>(&'a self, instance: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(self.answers(instance))
    }
}

async fn receive(stream: &mut Stream, count: usize) -> std::io::Result<Vec<Vec<u8>>> {
    use std::io::{Error, ErrorKind};
    let mut replies = Replies::new();
    let mut answers = Vec::new();
    let mut buffer = [0; 4096];
    let mut total = 0;
    while answers.len() < count {
        match replies.next(usize::MAX).map_err(Error::other)? {
            Some(Got::Whole(reply)) => {
                answers.push(reply.to_vec());
                continue;
            }
            Some(_) => return Err(ErrorKind::InvalidData.into()),
            None => {}
        }
        let length = stream.read(&mut buffer).await?;
        total += length;
        if length == 0 || total > ANSWER_BYTES_MAX {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        replies.push(buffer.get(..length).unwrap_or_default());
    }
    Ok(answers)
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
        };
        assert_eq!(found, expected);
        assert_eq!(found.follows(&"127.0.0.1:7001".parse().unwrap()), Ok(()));
        let other = found.follows(&"127.0.0.1:7002".parse().unwrap());
        assert_eq!(other, Err("it follows 127.0.0.1:7001".to_owned()));
        let none = Replication::parse("role:master\r\n").follows(&"/run/a".parse().unwrap());
        assert_eq!(none, Err("it is a primary itself".to_owned()));
    }
}
