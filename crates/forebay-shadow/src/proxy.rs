//! The PROXY protocol: who a client is, said before its first byte by whoever passes it on.
//!
//! Version 2 is sent; versions 2 and 1 are understood, by the specification of haproxy
//! (doc/proxy-protocol.txt, 2020-03-05). Where a header is expected, a connection without one is refused:
//! to guess would let everybody say who they are.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

use crate::stream::Stream;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const SIGNATURE_V1: &[u8] = b"PROXY ";
/// The fixed part of version 2.
const FIXED_BYTES: usize = 16;
/// So much can be read of either version without reading beyond: `PROXY UNKNOWN` and its end are 15.
const SAFE_BYTES: usize = 13;
/// Longest header of version 2: the addresses, and what may be said besides, which is not looked at.
const BYTES_MAX: usize = 4096;
/// Longest line of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
/// How long a header may take.
const BOUND: Duration = Duration::from_secs(5);

/// Where the protocol is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Each client begins with a header.
    pub accept: bool,
    /// Each connection to an instance begins with one. Mode `tcp` alone has a connection for each
    /// client.
    pub send: bool,
}

impl Options {
    /// Whether it is spoken nowhere.
    #[must_use]
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The client.
    pub(crate) source: SocketAddr,
    /// Where it connected to.
    pub(crate) destination: SocketAddr,
}

/// Who a client is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Introduction {
    /// Its ends, as far as they are known: those of a Unix socket are not.
    pub(crate) ends: Option<Ends>,
    /// What an instance is told before anything else; nothing where nothing is.
    pub(crate) header: Vec<u8>,
}

impl Introduction {
    /// Waits for what the client begins with, if it has to.
    ///
    /// # Errors
    /// When no proper header came in time.
    pub(crate) async fn of(client: &Stream, options: Options) -> io::Result<Self> {
        let mut ends = Ends::of(client);
        if options.accept {
            let late = |_| invalid(format!("no header within {} s", BOUND.as_secs()));
            let told = tokio::time::timeout(BOUND, accept(client)).await;
            match told.map_err(late)?? {
                Told::Ends(told) => ends = Some(told),
                Told::Own => {}
                Told::Unknown => ends = None,
            }
        }
        let header = if options.send {
            header(ends)
        } else {
            Vec::new()
        };
        Ok(Self { ends, header })
    }

    /// The client's address.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.ends.map(|ends| ends.source.ip())
    }
}

impl Ends {
    /// Of a connection, as the kernel knows them.
    fn of(stream: &Stream) -> Option<Self> {
        let Stream::Tcp(stream) = stream else {
            return None;
        };
        Some(Self {
            source: stream.peer_addr().ok()?,
            destination: stream.local_addr().ok()?,
        })
    }
}

/// The header of version 2 for a client with these ends, or for one of which nothing is known.
pub(crate) fn header(ends: Option<Ends>) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    let Some(Ends {
        source,
        destination,
    }) = ends
    else {
        // Version 2, LOCAL: the connection speaks for itself.
        bytes.extend([0x20, 0, 0, 0]);
        return bytes;
    };
    let ips = (source.ip().to_canonical(), destination.ip().to_canonical());
    match ips {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x21, 0x11, 0, 12]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        (source, destination) => {
            bytes.extend([0x21, 0x21, 0, 36]);
            bytes.extend(wide(source).octets());
            bytes.extend(wide(destination).octets());
        }
    }
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes
}

fn wide(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Ends(Ends),
    /// Whoever connects speaks for itself, as a check of its health does.
    Own,
    /// It is somebody of whom nothing can be said here.
    Unknown,
}

/// Reads a header, and not a byte more.
async fn accept(client: &Stream) -> io::Result<Told> {
    let mut bytes = Vec::new();
    loop {
        let need = need(&bytes)?;
        if need == Need::Nothing {
            return read(&bytes);
        }
        client.ready(Interest::READABLE).await?;
        let took = client.try_io(Interest::READABLE, || take(client, need, &mut bytes));
        match took {
            Ok(0) => return Err(invalid("the connection ended within its header")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What has to be read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The rest of a line, no more than so many bytes.
    Line(usize),
}

fn need(bytes: &[u8]) -> io::Result<Need> {
    let begins = |signature: &[u8]| {
        let length = bytes.len().min(signature.len());
        bytes.get(..length) == signature.get(..length)
    };
    if begins(SIGNATURE_V1) && bytes.len() >= SAFE_BYTES {
        return match (bytes.last(), bytes.len()) {
            (Some(b'\n'), _) => Ok(Need::Nothing),
            (_, LINE_BYTES_MAX..) => Err(invalid("a line of version 1 that does not end")),
            (_, length) => Ok(Need::Line(LINE_BYTES_MAX - length)),
        };
    }
    if !begins(&SIGNATURE) && !begins(SIGNATURE_V1) {
        return Err(invalid("the connection does not begin with a header"));
    }
    let whole = match bytes {
        [_, _, _, _, _, _, _, _, _, _, _, _, _, _, high, low, ..] => {
            FIXED_BYTES + usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ if bytes.len() >= SAFE_BYTES => FIXED_BYTES,
        _ => SAFE_BYTES,
    };
    if whole > BYTES_MAX {
        return Err(invalid(format!(
            "a header of {whole} bytes; {BYTES_MAX} are taken"
        )));
    }
    Ok(match whole.saturating_sub(bytes.len()) {
        0 => Need::Nothing,
        more => Need::Bytes(more),
    })
}

/// Appends what was needed, as far as it is there; how much.
fn take(client: &Stream, need: Need, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; BYTES_MAX];
    let length = match need {
        Need::Nothing => return Ok(0),
        Need::Bytes(length) => length,
        Need::Line(most) => {
            let room = buffer.get_mut(..most).unwrap_or_default();
            let (length, _) = rustix::net::recv(client, room, RecvFlags::PEEK)?;
            let there = buffer.get(..length).unwrap_or_default();
            let end = there.iter().position(|byte| *byte == b'\n');
            end.map_or(length, |end| end + 1)
        }
    };
    if length == 0 {
        return Ok(0);
    }
    let room = buffer.get_mut(..length).unwrap_or_default();
    let (length, _) = rustix::net::recv(client, room, RecvFlags::empty())?;
    bytes.extend(buffer.get(..length).unwrap_or_default());
    Ok(length)
}

/// What a whole header says.
fn read(bytes: &[u8]) -> io::Result<Told> {
    if bytes.starts_with(SIGNATURE_V1) {
        return read_line(bytes);
    }
    let (fixed, rest) = bytes.split_at_checked(FIXED_BYTES).unwrap_or_default();
    let (Some(command), Some(family)) = (fixed.get(12), fixed.get(13)) else {
        return Err(invalid("the header is incomplete"));
    };
    match command {
        0x20 => return Ok(Told::Own),
        0x21 => {}
        other => return Err(invalid(format!("unknown version and command {other:#04x}"))),
    }
    let short = || invalid("the header is too short for its addresses");
    match family {
        // TCP over IPv4.
        0x11 => {
            let (source, destination, ports) = parts::<4>(rest).ok_or_else(short)?;
            Ok(told(source.into(), destination.into(), ports))
        }
        // TCP over IPv6.
        0x21 => {
            let (source, destination, ports) = parts::<16>(rest).ok_or_else(short)?;
            Ok(told(source.into(), destination.into(), ports))
        }
        // Unspecified, or a Unix socket of type stream.
        0x00 | 0x31 => Ok(Told::Unknown),
        other => Err(invalid(format!(
            "no connections over {other:#04x} come here"
        ))),
    }
}

/// Two addresses and two ports.
fn parts<const N: usize>(bytes: &[u8]) -> Option<([u8; N], [u8; N], [u8; 4])> {
    let (source, bytes) = bytes.split_first_chunk()?;
    let (destination, bytes) = bytes.split_first_chunk()?;
    let (ports, _) = bytes.split_first_chunk()?;
    Some((*source, *destination, *ports))
}

fn told(source: IpAddr, destination: IpAddr, [a, b, c, d]: [u8; 4]) -> Told {
    Told::Ends(Ends {
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    })
}

/// Version 1: `PROXY TCP4 SOURCE DESTINATION PORT PORT`, or `PROXY UNKNOWN` and anything.
fn read_line(bytes: &[u8]) -> io::Result<Told> {
    let wrong = || invalid("a line of version 1 that says nothing proper");
    let text = std::str::from_utf8(bytes).map_err(|_| wrong())?;
    let text = text.strip_suffix("\r\n").ok_or_else(wrong)?;
    let mut words = text.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Told::Unknown);
    }
    let rest: Vec<&str> = words.collect();
    let (Some(family), [source, destination, from, to]) = (family, rest.as_slice()) else {
        return Err(wrong());
    };
    let ip = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse().ok().map(IpAddr::V4),
            "TCP6" => text.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    // A sign is no digit, though it can be read.
    let port = |text: &str| -> Option<u16> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    let ends = || {
        Some(Ends {
            source: SocketAddr::new(ip(source)?, port(from)?),
            destination: SocketAddr::new(ip(destination)?, port(to)?),
        })
    };
    ends().map(Told::Ends).ok_or_else(wrong)
}

fn invalid(why: impl Into<String>) -> io::Error {
    let why: String = why.into();
    io::Error::new(io::ErrorKind::InvalidData, format!("PROXY protocol: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    /// What comes in these pieces is read as a header; with what follows it.
    fn arrive(pieces: Vec<Vec<u8>>) -> (io::Result<Told>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut one, other) = UnixStream::pair().unwrap();
            let mut stream = Stream::Unix(other);
            let sending = async move {
                for piece in pieces {
                    // The other side closes as soon as it knows that this is no header.
                    if one.write_all(&piece).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let receiving = async move {
                let told = accept(&stream).await;
                let mut rest = Vec::new();
                if told.is_ok() {
                    stream.read_to_end(&mut rest).await.unwrap();
                }
                (told, rest)
            };
            let (_, received) = tokio::join!(sending, receiving);
            received
        })
    }

    fn whole(bytes: &[u8]) -> io::Result<Told> {
        arrive(vec![bytes.to_vec()]).0
    }

    fn ends(source: &str, destination: &str) -> Ends {
        Ends {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn any_ends() -> impl Strategy<Value = Ends> {
        let v4 = any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        // Those that stand for IPv4 are written as such.
        let v6 = any::<([u16; 8], u16)>().prop_filter_map("mapped", |(ip, port)| {
            let ip = Ipv6Addr::from(ip);
            ip.to_ipv4_mapped()
                .is_none()
                .then(|| SocketAddr::from((ip, port)))
        });
        let pair = |(source, destination)| Ends {
            source,
            destination,
        };
        prop_oneof![
            (v4.clone(), v4).prop_map(pair),
            (v6.clone(), v6).prop_map(pair)
        ]
    }

    /// Cuts bytes at these places.
    fn cut(bytes: &[u8], mut places: Vec<usize>) -> Vec<Vec<u8>> {
        places
            .iter_mut()
            .for_each(|place| *place %= bytes.len() + 1);
        places.extend([0, bytes.len()]);
        places.sort_unstable();
        let pieces = places
            .windows(2)
            .map(|pair| bytes[pair[0]..pair[1]].to_vec());
        pieces.filter(|piece| !piece.is_empty()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_sent_is_understood_in_any_pieces_and_nothing_more_is_read(
            ends in any_ends(),
            rest in prop::collection::vec(any::<u8>(), 0..40),
            places in prop::collection::vec(any::<usize>(), 0..6),
            old in any::<bool>(),
        ) {
            let family = if ends.source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (source, destination) = (ends.source, ends.destination);
            let line = format!(
                "PROXY {family} {} {} {} {}\r\n",
                source.ip(), destination.ip(), source.port(), destination.port()
            );
            let mut bytes = if old { line.into_bytes() } else { header(Some(ends)) };
            bytes.extend(&rest);
            let (told, after) = arrive(cut(&bytes, places));
            prop_assert_eq!(told.unwrap(), Told::Ends(ends));
            prop_assert_eq!(after, rest);
        }

        #[test]
        fn whatever_comes_is_told_or_refused(
            begin in prop_oneof![
                Just(SIGNATURE.to_vec()),
                Just([&SIGNATURE[..], &[0x21, 0x11, 0, 20]].concat()),
                Just(b"PROXY TCP4 ".to_vec()),
                Just(Vec::new()),
            ],
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [begin, rest].concat();
            if let Err(error) = whole(&bytes) {
                prop_assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            }
        }
    }

    #[test]
    fn what_says_nothing_of_the_client_is_understood() {
        assert_eq!(whole(&header(None)).unwrap(), Told::Own);
        let unknown = b"PROXY UNKNOWN\r\n";
        assert_eq!(whole(unknown).unwrap(), Told::Unknown);
        assert_eq!(
            whole(b"PROXY UNKNOWN ff::1 ff::2 1 2\r\n").unwrap(),
            Told::Unknown
        );
        let unspecified = [&SIGNATURE[..], &[0x21, 0, 0, 2, 9, 9]].concat();
        assert_eq!(whole(&unspecified).unwrap(), Told::Unknown);
    }

    #[test]
    fn what_is_said_besides_is_skipped() {
        let mut bytes = header(Some(ends("192.0.2.1:5", "192.0.2.2:6")));
        bytes[15] += 7;
        bytes.extend([4, 0, 4, 1, 2, 3, 4]);
        let (told, rest) = arrive(vec![[bytes, b"GET".to_vec()].concat()]);
        let expected = ends("192.0.2.1:5", "192.0.2.2:6");
        assert_eq!(told.unwrap(), Told::Ends(expected));
        assert_eq!(rest, b"GET");
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let v2 = |bytes: &[u8]| [&SIGNATURE[..], bytes].concat();
        let long = v2(&[0x21, 0x11, 0xff, 0xff]);
        let endless = [b"PROXY UNKNOWN".to_vec(), vec![b' '; 100]].concat();
        let cases: [(&[u8], &str); 11] = [
            (b"GET / HTTP/1.1\r\n", "does not begin"),
            (b"\r\n\r\nGET / HTTP", "does not begin"),
            (b"", "ended within"),
            (b"PROXY", "ended within"),
            (&v2(&[0x21, 0x11, 0, 12, 1]), "ended within"),
            (&v2(&[0x21, 0x11, 0, 4, 1, 2, 3, 4]), "too short"),
            (&v2(&[0x22, 0x11, 0, 0]), "unknown version"),
            (&v2(&[0x21, 0x12, 0, 0]), "no connections over"),
            (&long, "65551 bytes"),
            (&endless, "does not end"),
            (b"PROXY TCP4 1.2.3.4 1.2.3.4 +5 6\r\n", "nothing proper"),
        ];
        for (bytes, expected) in cases {
            let error = whole(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}: {expected}");
        }
    }

    #[test]
    fn addresses_of_two_kinds_become_of_one() {
        let mixed = ends("[::ffff:192.0.2.1]:5", "[2001:db8::1]:6");
        assert_eq!(whole(&header(Some(mixed))).unwrap(), Told::Ends(mixed));
        let mapped = ends("[::ffff:192.0.2.1]:5", "[::ffff:192.0.2.2]:6");
        let plain = ends("192.0.2.1:5", "192.0.2.2:6");
        assert_eq!(whole(&header(Some(mapped))).unwrap(), Told::Ends(plain));
    }
}
