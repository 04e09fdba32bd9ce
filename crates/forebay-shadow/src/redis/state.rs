//! What a connection to the server is, so that another one can be made the same.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::commands::{Channels, Session};
use super::replies::elements;
use super::requests::{Command, decimal};

/// Bytes of the names of channels that one client may listen to.
pub(super) const CHANNEL_BYTES_MAX: usize = 1024 * 1024;

/// Longest command about the connection: what it says is kept for as long as the client is there.
pub(super) const SESSION_BYTES_MAX: usize = 16 * 1024;

/// The protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Protocol {
    /// RESP2.
    #[default]
    Two,
    /// RESP3.
    Three,
}

impl Protocol {
    /// What says that there is nothing.
    pub(super) const fn nothing(self) -> &'static [u8] {
        match self {
            Self::Two => b"*-1\r\n",
            Self::Three => b"_\r\n",
        }
    }
}

/// What a client made of its connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Arguments of `AUTH`.
    auth: Option<Vec<Vec<u8>>>,
    pub(super) protocol: Protocol,
    database: i64,
    name: Option<Vec<u8>>,
    /// The commands as they were sent.
    tracking: Option<Vec<u8>>,
    no_evict: Option<Vec<u8>>,
    no_touch: Option<Vec<u8>>,
    channels: BTreeSet<(Channels, Vec<u8>)>,
    channel_bytes: usize,
    /// Grows with every change.
    #[serde(skip)]
    pub(super) version: u64,
}

/// What is sent first to a new server.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// Bytes of commands.
    pub(super) bytes: Vec<u8>,
    /// How many replies come.
    pub(super) replies: usize,
}

impl Replay {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.replies += 1;
    }
}

impl State {
    /// A command was answered: it may have changed the connection.
    pub(super) fn answered(&mut self, session: Session, command: &Command, reply: &[u8]) {
        if matches!(reply.first(), None | Some(b'-' | b'!')) {
            return;
        }
        self.version += 1;
        let argument = |place| command.argument(place).map(<[u8]>::to_vec);
        let is = |place, word: &[u8]| {
            let given = command.argument(place);
            given.is_some_and(|given| given.eq_ignore_ascii_case(word))
        };
        match session {
            Session::Auth => {
                self.auth = Some(command.arguments().skip(1).map(<[u8]>::to_vec).collect());
            }
            Session::Hello => self.greeted(command),
            Session::Select => {
                self.database = command.argument(1).and_then(decimal).unwrap_or(0);
            }
            Session::Name => self.name = argument(2),
            Session::Tracking => {
                self.tracking = is(2, b"ON").then(|| command.bytes.clone());
            }
            Session::NoEvict => {
                self.no_evict = is(2, b"ON").then(|| command.bytes.clone());
            }
            Session::NoTouch => {
                self.no_touch = is(2, b"ON").then(|| command.bytes.clone());
            }
            Session::Reset => {
                // Redis 7.0 keeps `NO-EVICT` here, as it keeps its clients' numbers.
                *self = Self {
                    version: self.version,
                    no_evict: self.no_evict.take(),
                    ..Self::default()
                };
            }
        }
    }

    fn greeted(&mut self, command: &Command) {
        match command.argument(1) {
            Some(b"3") => self.protocol = Protocol::Three,
            Some(_) => self.protocol = Protocol::Two,
            None => {}
        }
        let words: Vec<&[u8]> = command.arguments().skip(2).collect();
        let mut rest = words.as_slice();
        while let [word, after @ ..] = rest {
            rest = match after {
                [user, password, more @ ..] if word.eq_ignore_ascii_case(b"AUTH") => {
                    self.auth = Some(vec![user.to_vec(), password.to_vec()]);
                    more
                }
                [name, more @ ..] if word.eq_ignore_ascii_case(b"SETNAME") => {
                    self.name = Some(name.to_vec());
                    more
                }
                _ => after,
            };
        }
    }

    /// Takes in what may be the confirmation of a subscription; whether it is one.
    pub(super) fn confirmed(&mut self, reply: &[u8]) -> bool {
        let elements = elements(reply);
        let [word, channel, ..] = elements.as_slice() else {
            return false;
        };
        let (of, adds) = match *word {
            b"subscribe" => (Channels::Plain, true),
            b"psubscribe" => (Channels::Pattern, true),
            b"ssubscribe" => (Channels::Shard, true),
            b"unsubscribe" => (Channels::Plain, false),
            b"punsubscribe" => (Channels::Pattern, false),
            b"sunsubscribe" => (Channels::Shard, false),
            _ => return false,
        };
        let entry = (of, channel.to_vec());
        if adds {
            if self.channels.insert(entry) {
                self.channel_bytes += channel.len();
            }
        } else if self.channels.remove(&entry) {
            self.channel_bytes -= channel.len();
        }
        true
    }

    /// Whether the client said who it is.
    pub(super) const fn is_logged_in(&self) -> bool {
        self.auth.is_some()
    }

    /// Whether the names of so many bytes may be listened to as well.
    pub(super) const fn has_room(&self, bytes: usize) -> bool {
        self.channel_bytes + bytes <= CHANNEL_BYTES_MAX
    }

    /// How many channels of a kind are listened to.
    pub(super) fn channels(&self, of: Channels) -> usize {
        let channels = self.channels.iter();
        channels.filter(|(kind, _)| *kind == of).count()
    }

    /// Whether something may come without having been asked for.
    pub(super) fn listens(&self) -> bool {
        !self.channels.is_empty() || self.tracking.is_some()
    }

    /// Whether a reply of RESP2 is in truth a message from a channel.
    pub(super) fn is_message(&self, reply: &[u8]) -> bool {
        const WORDS: [&[u8]; 3] = [b"message", b"pmessage", b"smessage"];
        if self.protocol == Protocol::Three || self.channels.is_empty() {
            return false;
        }
        let elements = elements(reply);
        let first = elements.first();
        reply.first() == Some(&b'*') && first.is_some_and(|first| WORDS.contains(first))
    }

    /// What a client has to be told that keeps what it read: nobody will say what changed meanwhile.
    pub(super) const fn forget(&self) -> &'static [u8] {
        match (&self.tracking, self.protocol) {
            (Some(_), Protocol::Three) => b">2\r\n$10\r\ninvalidate\r\n_\r\n",
            _ => b"",
        }
    }

    /// What makes a new connection to `server` what the old one was, for commands of any kind or
    /// for reads alone.
    pub(super) fn replay(&self, listens: Listens) -> Replay {
        let mut replay = Replay::default();
        if let Some(auth) = &self.auth {
            let mut words = vec![b"AUTH".to_vec()];
            words.extend(auth.iter().cloned());
            replay.add(&Command::new(&words).bytes);
        }
        if self.protocol == Protocol::Three {
            replay.add(&Command::new(&["HELLO", "3"]).bytes);
        }
        if self.database != 0 {
            let database = self.database.to_string();
            replay.add(&Command::new(&["SELECT", &database]).bytes);
        }
        if let Some(name) = &self.name {
            replay.add(&Command::new(&[b"CLIENT".as_slice(), b"SETNAME", name]).bytes);
        }
        for bytes in [&self.no_evict, &self.no_touch].into_iter().flatten() {
            replay.add(bytes);
        }
        if listens == Listens::No {
            return replay;
        }
        if let Some(bytes) = &self.tracking {
            replay.add(bytes);
        }
        for (of, command) in Channels::ALL {
            let channels = self.channels.iter().filter(|(kind, _)| *kind == of);
            let mut words = vec![command.as_bytes()];
            words.extend(channels.map(|(_, name)| name.as_slice()));
            if words.len() > 1 {
                replay.bytes.extend(Command::new(&words).bytes);
                replay.replies += words.len() - 1;
            }
        }
        replay
    }
}

/// Whether a connection is to bring what comes unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listens {
    /// It is.
    Yes,
    /// Another one does.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(state: &mut State, session: Session, text: &str, reply: &str) {
        let words: Vec<&str> = text.split(' ').collect();
        state.answered(session, &Command::new(&words), reply.as_bytes());
    }

    fn replay(state: &State) -> (Vec<String>, usize) {
        let replay = state.replay(Listens::Yes);
        let mut requests = super::super::requests::Requests::new(1 << 20);
        requests.push(&replay.bytes);
        let mut texts = Vec::new();
        while let Some(command) = requests.next().unwrap() {
            let words: Vec<_> = command.arguments().map(String::from_utf8_lossy).collect();
            texts.push(words.join(" "));
        }
        (texts, replay.replies)
    }

    #[test]
    fn what_succeeded_is_replayed() {
        let mut state = State::default();
        assert_eq!(replay(&state), (vec![], 0));
        answered(&mut state, Session::Auth, "AUTH wrong", "-WRONGPASS\r\n");
        answered(
            &mut state,
            Session::Hello,
            "HELLO 3 AUTH u p SETNAME n",
            "%0\r\n",
        );
        answered(&mut state, Session::Select, "SELECT 3", "+OK\r\n");
        answered(
            &mut state,
            Session::Select,
            "SELECT 99",
            "-ERR DB index\r\n",
        );
        answered(
            &mut state,
            Session::Tracking,
            "CLIENT TRACKING on",
            "+OK\r\n",
        );
        answered(
            &mut state,
            Session::NoEvict,
            "CLIENT NO-EVICT ON",
            "+OK\r\n",
        );
        assert!(state.confirmed(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"));
        assert!(state.confirmed(b">3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n"));
        assert!(state.confirmed(b">3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:3\r\n"));
        assert!(state.confirmed(b">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:2\r\n"));
        assert!(!state.confirmed(b">3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$1\r\nx\r\n"));
        let (texts, replies) = replay(&state);
        let expected = [
            "AUTH u p",
            "HELLO 3",
            "SELECT 3",
            "CLIENT SETNAME n",
            "CLIENT NO-EVICT ON",
            "CLIENT TRACKING on",
            "SUBSCRIBE b",
            "PSUBSCRIBE *",
        ];
        assert_eq!(
            (
                texts.iter().map(String::as_str).collect::<Vec<_>>(),
                replies
            ),
            (expected.to_vec(), 8)
        );
        assert!(!state.forget().is_empty());
        answered(&mut state, Session::Reset, "RESET", "+RESET\r\n");
        assert_eq!(
            replay(&state),
            (vec!["CLIENT NO-EVICT ON".to_owned()], 1),
            "as the server, a test tells"
        );
    }

    #[test]
    fn messages_are_told_from_replies_only_while_listening() {
        let message = b"*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$1\r\nx\r\n";
        let mut state = State::default();
        assert!(!state.is_message(message));
        assert!(state.confirmed(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:1\r\n"));
        assert!(state.is_message(message));
        assert!(!state.is_message(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"));
    }
}
