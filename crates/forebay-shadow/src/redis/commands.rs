//! What a command may do: whether it may be sent twice, and what it changes about a connection.
//!
//! The tables are those of Redis 7.0, and a test holds them against a server. A command that is not
//! known here is taken for a write.

use super::requests::Command;

/// What a command is to a front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It changes nothing: it may be sent again.
    Read,
    /// It may change data.
    Write,
    /// It changes the server or the connection, and no data: it is sent at most once, and there is
    /// nothing that a shadow would have to have.
    Once,
    /// It waits for others as long as it likes, and changes data if so said.
    Blocking {
        /// It takes what it waited for.
        writes: bool,
    },
    /// It asks how far writes got that were made through the same connection.
    Wait,
    /// It changes what the connection is.
    Session(Session),
    /// It adds to or takes from what the connection listens to.
    Subscribe(Subscribe),
    /// It belongs to a transaction.
    Transaction(Transaction),
    /// The client takes its leave.
    Quit,
    /// It does not go through a front, for this reason.
    Refused(&'static str),
}

/// A part of what a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// Whoever it is.
    Auth,
    /// The protocol, and perhaps who it is and its name.
    Hello,
    /// The database.
    Select,
    /// Its name.
    Name,
    /// `CLIENT TRACKING`.
    Tracking,
    /// `CLIENT NO-EVICT`.
    NoEvict,
    /// `CLIENT NO-TOUCH`.
    NoTouch,
    /// All of it goes.
    Reset,
}

/// A command about what is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscribe {
    /// Names, patterns, or names of shards.
    pub(super) of: Channels,
    /// More, or less.
    pub(super) adds: bool,
}

/// What channels are named by.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub(super) enum Channels {
    /// Their names.
    Plain,
    /// Patterns.
    Pattern,
    /// Their names, within a shard.
    Shard,
}

impl Channels {
    /// All kinds, with the command that listens to them.
    pub(super) const ALL: [(Self, &'static str); 3] = [
        (Self::Plain, "SUBSCRIBE"),
        (Self::Pattern, "PSUBSCRIBE"),
        (Self::Shard, "SSUBSCRIBE"),
    ];
}

/// A step of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transaction {
    /// Begins one.
    Multi,
    /// Executes it.
    Exec,
    /// Gives it up.
    Discard,
    /// Makes it fail when keys change.
    Watch,
    /// Does not.
    Unwatch,
}

/// Commands that only read.
const READS: &[&str] = &[
    "BITCOUNT",
    "BITFIELD_RO",
    "BITPOS",
    "COMMAND",
    "DBSIZE",
    "DUMP",
    "ECHO",
    "EVALSHA_RO",
    "EVAL_RO",
    "EXISTS",
    "EXPIRETIME",
    "FCALL_RO",
    "GEODIST",
    "GEOHASH",
    "GEOPOS",
    "GEORADIUSBYMEMBER_RO",
    "GEORADIUS_RO",
    "GEOSEARCH",
    "GET",
    "GETBIT",
    "GETRANGE",
    "HEXISTS",
    "HGET",
    "HGETALL",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HRANDFIELD",
    "HSCAN",
    "HSTRLEN",
    "HVALS",
    "INFO",
    "KEYS",
    "LASTSAVE",
    "LCS",
    "LINDEX",
    "LLEN",
    "LOLWUT",
    "LPOS",
    "LRANGE",
    "MGET",
    "PEXPIRETIME",
    "PFCOUNT",
    "PING",
    "PTTL",
    "RANDOMKEY",
    "ROLE",
    "SCAN",
    "SCARD",
    "SDIFF",
    "SINTER",
    "SINTERCARD",
    "SISMEMBER",
    "SMEMBERS",
    "SMISMEMBER",
    "SORT_RO",
    "SRANDMEMBER",
    "SSCAN",
    "STRLEN",
    "SUBSTR",
    "SUNION",
    "TIME",
    "TOUCH",
    "TTL",
    "TYPE",
    "XLEN",
    "XPENDING",
    "XRANGE",
    "XREVRANGE",
    "ZCARD",
    "ZCOUNT",
    "ZDIFF",
    "ZINTER",
    "ZINTERCARD",
    "ZLEXCOUNT",
    "ZMSCORE",
    "ZRANDMEMBER",
    "ZRANGE",
    "ZRANGEBYLEX",
    "ZRANGEBYSCORE",
    "ZRANK",
    "ZREVRANGE",
    "ZREVRANGEBYLEX",
    "ZREVRANGEBYSCORE",
    "ZREVRANK",
    "ZSCAN",
    "ZSCORE",
    "ZUNION",
];

/// Commands with a second word that only read with it.
const READS_OF_TWO: &[(&str, &[&str])] = &[
    ("ACL", &["CAT", "GETUSER", "LIST", "USERS", "WHOAMI"]),
    (
        "CLIENT",
        &["GETNAME", "GETREDIR", "ID", "INFO", "LIST", "TRACKINGINFO"],
    ),
    ("CONFIG", &["GET"]),
    ("FUNCTION", &["DUMP", "LIST", "STATS"]),
    (
        "LATENCY",
        &["DOCTOR", "GRAPH", "HISTOGRAM", "HISTORY", "LATEST"],
    ),
    ("MEMORY", &["DOCTOR", "MALLOC-STATS", "STATS", "USAGE"]),
    ("OBJECT", &["ENCODING", "FREQ", "IDLETIME", "REFCOUNT"]),
    (
        "PUBSUB",
        &[
            "CHANNELS",
            "NUMPAT",
            "NUMSUB",
            "SHARDCHANNELS",
            "SHARDNUMSUB",
        ],
    ),
    ("SCRIPT", &["EXISTS"]),
    ("SLOWLOG", &["GET", "LEN"]),
    ("XINFO", &["CONSUMERS", "GROUPS", "STREAM"]),
];

/// Commands that wait, and take what they waited for.
const BLOCKING: &[&str] = &[
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
];

/// Writes that often come, each of which has a latency of its own to learn.
const WRITES: &[&str] = &[
    "APPEND", "DECR", "DEL", "EVAL", "EVALSHA", "EXPIRE", "FCALL", "HDEL", "HINCRBY", "HSET",
    "INCR", "INCRBY", "LPOP", "LPUSH", "MSET", "PUBLISH", "RPOP", "RPUSH", "SADD", "SET", "SETEX",
    "SPOP", "SREM", "XADD", "ZADD", "ZREM",
];

/// Commands that may keep the server busy for long, for their arguments or for all data there is.
const LONG: &[&str] = &[
    "BGREWRITEAOF",
    "BGSAVE",
    "DEBUG",
    "DEL",
    "EVAL",
    "EVALSHA",
    "EVALSHA_RO",
    "EVAL_RO",
    "EXEC",
    "FCALL",
    "FCALL_RO",
    "FLUSHALL",
    "FLUSHDB",
    "FUNCTION",
    "KEYS",
    "LCS",
    "MEMORY",
    "MIGRATE",
    "MODULE",
    "RENAME",
    "RESTORE",
    "SAVE",
    "SCRIPT",
    "SDIFF",
    "SDIFFSTORE",
    "SINTER",
    "SINTERCARD",
    "SINTERSTORE",
    "SORT",
    "SORT_RO",
    "SUNION",
    "SUNIONSTORE",
    "SWAPDB",
    "ZDIFF",
    "ZDIFFSTORE",
    "ZINTER",
    "ZINTERCARD",
    "ZINTERSTORE",
    "ZUNION",
    "ZUNIONSTORE",
];

const REPLICATION: &str = "the front decides who is the primary; use `forebay shadow`";

/// Whether a read means something on the server alone that answered the one before it: cursors are of
/// one server's table, and scripts are known where they were loaded.
pub(super) fn is_of_one_server(command: &Command) -> bool {
    const NAMES: [&str; 7] = [
        "EVALSHA_RO",
        "EVAL_RO",
        "FCALL_RO",
        "HSCAN",
        "SCAN",
        "SSCAN",
        "ZSCAN",
    ];
    NAMES.contains(&upper(command.argument(0)).as_str())
}

/// What is known of a command.
pub(super) fn kind(command: &Command) -> Kind {
    let name = upper(command.argument(0));
    let name = name.as_str();
    if READS.binary_search(&name).is_ok() {
        return Kind::Read;
    }
    let second = upper(command.argument(1));
    if let Ok(place) = READS_OF_TWO.binary_search_by_key(&name, |(name, _)| *name)
        && let Some((_, seconds)) = READS_OF_TWO.get(place)
        && (seconds.contains(&second.as_str()) || second.as_str() == "HELP")
    {
        return Kind::Read;
    }
    if BLOCKING.binary_search(&name).is_ok() {
        return Kind::Blocking { writes: true };
    }
    let subscribe = |of, adds| Kind::Subscribe(Subscribe { of, adds });
    match name {
        "XREAD" if blocks(command) => Kind::Blocking { writes: false },
        "XREAD" => Kind::Read,
        "XREADGROUP" if blocks(command) => Kind::Blocking { writes: true },
        "WAIT" | "WAITAOF" => Kind::Wait,
        "AUTH" => Kind::Session(Session::Auth),
        "HELLO" => Kind::Session(Session::Hello),
        "SELECT" => Kind::Session(Session::Select),
        "RESET" => Kind::Session(Session::Reset),
        "CLIENT" => client(second.as_str(), command),
        "SUBSCRIBE" => subscribe(Channels::Plain, true),
        "PSUBSCRIBE" => subscribe(Channels::Pattern, true),
        "SSUBSCRIBE" => subscribe(Channels::Shard, true),
        "UNSUBSCRIBE" => subscribe(Channels::Plain, false),
        "PUNSUBSCRIBE" => subscribe(Channels::Pattern, false),
        "SUNSUBSCRIBE" => subscribe(Channels::Shard, false),
        "MULTI" => Kind::Transaction(Transaction::Multi),
        "EXEC" => Kind::Transaction(Transaction::Exec),
        "DISCARD" => Kind::Transaction(Transaction::Discard),
        "WATCH" => Kind::Transaction(Transaction::Watch),
        "UNWATCH" => Kind::Transaction(Transaction::Unwatch),
        "ACL" | "ASKING" | "BGREWRITEAOF" | "BGSAVE" | "CLUSTER" | "CONFIG" | "DEBUG"
        | "LATENCY" | "MEMORY" | "MODULE" | "READONLY" | "READWRITE" | "SAVE" | "SHUTDOWN"
        | "SLOWLOG" => Kind::Once,
        "QUIT" => Kind::Quit,
        "MONITOR" => Kind::Refused("MONITOR has no end; connect to an instance itself"),
        "SYNC" | "PSYNC" | "REPLCONF" => {
            Kind::Refused("a replica has to connect to an instance itself")
        }
        "REPLICAOF" | "SLAVEOF" | "FAILOVER" => Kind::Refused(REPLICATION),
        _ => Kind::Write,
    }
}

fn client(second: &str, command: &Command) -> Kind {
    let redirects = || {
        let mut words = command.arguments();
        words.any(|word| word.eq_ignore_ascii_case(b"REDIRECT"))
    };
    match second {
        "SETNAME" => Kind::Session(Session::Name),
        "TRACKING" if redirects() => Kind::Refused(
            "CLIENT TRACKING with REDIRECT names a connection that would not live through a \
             change of the primary; use RESP3",
        ),
        "TRACKING" => Kind::Session(Session::Tracking),
        "NO-EVICT" => Kind::Session(Session::NoEvict),
        "NO-TOUCH" => Kind::Session(Session::NoTouch),
        "REPLY" => Kind::Refused("CLIENT REPLY leaves the front without answers to count"),
        _ => Kind::Once,
    }
}

/// `XREAD` and `XREADGROUP` wait when they are told to, before the streams are named.
fn blocks(command: &Command) -> bool {
    let mut words = command.arguments().skip(1);
    let word = words
        .find(|word| word.eq_ignore_ascii_case(b"BLOCK") || word.eq_ignore_ascii_case(b"STREAMS"));
    word.is_some_and(|word| word.eq_ignore_ascii_case(b"BLOCK"))
}

/// Whether a command may keep the server from answering anybody for long.
pub(super) fn is_long(command: &Command) -> bool {
    let name = upper(command.argument(0));
    LONG.binary_search(&name.as_str()).is_ok()
}

/// The place of a command's name among those whose latency is learnt.
pub(super) fn route(command: &Command) -> usize {
    let name = upper(command.argument(0));
    let name = name.as_str();
    let places = [READS, WRITES];
    let mut before = 0;
    for names in places {
        if let Ok(place) = names.binary_search(&name) {
            return before + place;
        }
        before += names.len();
    }
    before
}

/// How many places there are.
pub(super) const ROUTES: usize = READS.len() + WRITES.len() + 1;

/// The name of a place.
pub(super) fn route_name(place: usize) -> &'static str {
    let names = READS.iter().chain(WRITES);
    names.copied().nth(place).unwrap_or("other")
}

/// Sent by browsers that were lured here; the server ends such connections, too.
pub(super) fn is_http(command: &Command) -> bool {
    let name = upper(command.argument(0));
    matches!(name.as_str(), "POST" | "HOST:")
}

/// A short word in upper case, without a place on the heap.
#[derive(Debug, Clone, Copy)]
struct Word {
    bytes: [u8; 24],
    length: usize,
}

impl Word {
    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// A word in upper case; nothing where it is longer than any that is known.
fn upper(word: Option<&[u8]>) -> Word {
    let mut upper = Word {
        bytes: [0; 24],
        length: 0,
    };
    let word = word.unwrap_or_default();
    if let Some(place) = upper.bytes.get_mut(..word.len()) {
        place.copy_from_slice(word);
        place.make_ascii_uppercase();
        upper.length = word.len();
    }
    upper
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Kind) {
        let words: Vec<&str> = text.split(' ').collect();
        assert_eq!(kind(&Command::new(&words)), expected, "{text}");
    }

    #[test]
    fn commands_are_known_by_their_words() {
        check("get a", Kind::Read);
        check("Set a b", Kind::Write);
        check("nosuch", Kind::Write);
        check("config get maxmemory", Kind::Read);
        check("config set maxmemory 1", Kind::Once);
        check("client caching yes", Kind::Once);
        check("object help", Kind::Read);
        check("xread count 1 streams block 0", Kind::Read);
        check(
            "xread block 0 streams a 0",
            Kind::Blocking { writes: false },
        );
        check("blpop a 0", Kind::Blocking { writes: true });
        check("sort a store b", Kind::Write);
        check("client setname a", Kind::Session(Session::Name));
        check("client tracking on", Kind::Session(Session::Tracking));
        assert!(matches!(
            kind(&Command::new(&[
                "CLIENT", "TRACKING", "ON", "REDIRECT", "7"
            ])),
            Kind::Refused(_)
        ));
        check("a_name_that_is_longer_than_any_that_is_known", Kind::Write);
    }

    /// What a server of whatever version says of the commands that are held for reads.
    #[test]
    fn a_server_agrees() {
        use std::io::{BufRead, BufReader, Read, Write};
        use std::process::{Command as Process, Stdio};

        /// They change nothing, and are not called reads because they touch no key.
        const KEYLESS: &[&str] = &[
            "COMMAND", "ECHO", "INFO", "LASTSAVE", "PING", "ROLE", "TIME",
        ];

        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let mut process = Process::new("redis-server");
        process
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket);
        process
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let Ok(mut server) = process.spawn() else {
            println!(
                "SKIPPED: a_server_agrees: redis-server is missing; `cargo xtask setup` installs it"
            );
            return;
        };
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("eady to accept connections")));
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        let mut wrong = Vec::new();
        for name in READS.iter().filter(|name| !KEYLESS.contains(name)) {
            let ask = [
                Command::new(&["COMMAND", "INFO", name]).bytes,
                Command::new(&["PING"]).bytes,
            ];
            stream.write_all(&ask.concat()).unwrap();
            let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
            while !answer.ends_with(b"+PONG\r\n") {
                let length = stream.read(&mut buffer).unwrap();
                answer.extend_from_slice(&buffer[..length]);
            }
            if !String::from_utf8_lossy(&answer).contains("+readonly\r\n") {
                wrong.push(name);
            }
        }
        server.kill().unwrap();
        server.wait().unwrap();
        assert_eq!(wrong, Vec::<&&str>::new());
    }

    #[test]
    fn tables_are_in_order() {
        assert!(READS.is_sorted() && WRITES.is_sorted());
        assert!(BLOCKING.is_sorted() && LONG.is_sorted());
        assert!(READS_OF_TWO.is_sorted_by_key(|(name, _)| *name));
        let place = route(&Command::new(&["zadd", "a"]));
        assert_eq!(route_name(place), "ZADD");
        assert_eq!(route(&Command::new(&["nosuch"])), ROUTES - 1);
        assert_eq!(route_name(ROUTES - 1), "other");
    }
}
