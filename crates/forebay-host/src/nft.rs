//! Tables of nftables: those by which CRIU holds connections up, which stay when its work does not end, and those by
//! which an address of this host is known to nobody but itself; and what others need to make one of their own.
//!
//! Source: linux/netfilter/nf_tables.h.

pub(crate) mod expression;

use std::ffi::CStr;
use std::io;
use std::net::IpAddr;

use rustix::net::netlink;

use self::expression::{
    META_TRANSPORT, NETWORK, REGISTER, TRANSPORT, drop_it, equals, meta, payload,
};
use crate::netlink::{
    ACKNOWLEDGE, APPEND, CREATE, ask, attribute, attributes, dump, message, nested,
};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
/// Messages, by their numbers among those of nftables.
pub(crate) const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
pub(crate) const DELETE_TABLE: u16 = 2;
pub(crate) const NEW_CHAIN: u16 = 3;
pub(crate) const NEW_RULE: u16 = 6;
/// Families of tables.
const INET: u8 = 1;
const IPV4: u8 = 2;
const ARP: u8 = 3;
const IPV6: u8 = 10;

/// One thing that is to be done: its number among the messages of nftables, and what it is about.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) message: u16,
    pub(crate) attributes: Vec<u8>,
}

/// Does all of it, in the family `inet`, or nothing.
///
/// # Errors
/// When the kernel refuses, as one without nftables does.
pub(crate) fn act(steps: &[Step]) -> io::Result<()> {
    let messages = steps.iter().map(|step| {
        let flags = match step.message {
            DELETE_TABLE => 0,
            _ => CREATE,
        };
        about(step.message, flags, INET, &step.attributes)
    });
    batch(&mut messages.collect::<Vec<_>>())
}

/// Removes a table of the family `inet`. One that is not there is removed, as all are on a kernel without nftables.
pub(crate) fn remove_table(name: &str) -> io::Result<()> {
    remove(INET, name)
}

fn remove(family: u8, name: &str) -> io::Result<()> {
    match batch(&mut [about(DELETE_TABLE, 0, family, &table(name))]) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) || is_without(&error) => Ok(()),
        done => done,
    }
}

/// The tables of the family `inet` of this network whose names begin so; none on a kernel without nftables.
pub(crate) fn tables(begin: &str) -> io::Result<Vec<String>> {
    let head = [INET, 0, 0, 0];
    let said = match dump(Some(netlink::NETFILTER), of_nftables(GET_TABLE), &head) {
        Err(error) if is_without(&error) => Vec::new(),
        said => said?,
    };
    let name = |body: &Vec<u8>| {
        let attributes = attributes(body.get(head.len()..)?);
        let (_, name) = attributes.into_iter().find(|(kind, _)| *kind == 1)?;
        let name = CStr::from_bytes_until_nul(name).ok()?;
        Some(name.to_str().ok()?.to_owned())
    };
    let mut names: Vec<String> = said.iter().filter_map(name).collect();
    names.retain(|name| name.starts_with(begin));
    Ok(names)
}

/// What a kernel without nftables answers, or one without netfilter.
fn is_without(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

/// The name of the tables of an address, one in each family that it takes.
fn name(ip: IpAddr) -> String {
    format!("forebay-{}", ip.to_string().replace(':', "-"))
}

const fn families(ip: IpAddr) -> &'static [u8] {
    match ip {
        IpAddr::V4(_) => &[IPV4, ARP],
        IpAddr::V6(_) => &[IPV6],
    }
}

/// Has nothing come to this host for an address or leave it from there, and nobody be told that it is here. What
/// uses it on this host goes on as if nobody answered.
///
/// # Errors
/// When the kernel refuses, as one without nftables does.
pub(crate) fn silence(ip: IpAddr) -> io::Result<()> {
    let name = name(ip);
    let mut messages = Vec::new();
    for family in families(ip) {
        let own = |kind, flags, body: &[u8]| about(kind, flags, *family, body);
        // Whatever is left of an earlier one goes; what is not there cannot be removed.
        messages.push(own(NEW_TABLE, CREATE, &table(&name)));
        messages.push(own(DELETE_TABLE, 0, &table(&name)));
        messages.push(own(NEW_TABLE, CREATE, &table(&name)));
        for (chain, hook, rules) in chains(*family, ip) {
            messages.push(own(
                NEW_CHAIN,
                CREATE,
                &base_chain((&name, chain), (hook, PRIORITY)),
            ));
            for rule in rules {
                let rule = [
                    attribute(1, &text(&name)),
                    attribute(2, &text(chain)),
                    nested(4, &rule),
                ];
                messages.push(own(NEW_RULE, CREATE | APPEND, &rule.concat()));
            }
        }
    }
    batch(&mut messages)
}

/// Takes back what [`silence`] did.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn unsilence(ip: IpAddr) -> io::Result<()> {
    let name = name(ip);
    let mut removed = Ok(());
    for family in families(ip) {
        if let Err(error) = remove(*family, &name) {
            removed = Err(error);
        }
    }
    removed
}

/// The hooks of a family by number. What comes is dropped before the host looks whose it is: a router would send it on.
const IN: u32 = 0;
const OUT: u32 = 3;
const ARP_IN: u32 = 0;
const ARP_OUT: u32 = 1;
/// Before connections are tracked.
const PRIORITY: i32 = -300;

type Rule = Vec<Vec<u8>>;

/// The chains of a family, their hooks, and what each rule drops.
fn chains(family: u8, ip: IpAddr) -> [(&'static str, u32, Vec<Rule>); 2] {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let at = |offset| [has(NETWORK, offset, &octets), vec![drop_it()]].concat();
    match family {
        IPV4 => [("in", IN, vec![at(16)]), ("out", OUT, vec![at(12)])],
        ARP => [("in", ARP_IN, vec![at(24)]), ("out", ARP_OUT, vec![at(14)])],
        _ => {
            // Who asks for it speaks to all whose addresses end alike.
            let asks = [
                is_icmp6(),
                has(TRANSPORT, 0, &[135]),
                has(TRANSPORT, 8, &octets),
                vec![drop_it()],
            ];
            [
                ("in", IN, vec![at(24), asks.concat()]),
                ("out", OUT, vec![at(8)]),
            ]
        }
    }
}

/// Goes on where these bytes of a packet are so.
fn has(base: u32, offset: u32, value: &[u8]) -> Rule {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    vec![payload(REGISTER, (base, offset, length)), equals(value)]
}

/// Goes on where it is ICMP of IPv6.
fn is_icmp6() -> Rule {
    vec![meta(META_TRANSPORT), equals(&[58])]
}

/// A number, as nftables takes them.
pub(crate) fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A name.
pub(crate) fn named(kind: u16, name: &str) -> Vec<u8> {
    attribute(kind, &text(name))
}

fn table(name: &str) -> Vec<u8> {
    named(1, name)
}

/// A chain of a table that a hook of the kernel asks, the one of the lowest priority first.
pub(crate) fn base_chain((table, chain): (&str, &str), (hook, priority): (u32, i32)) -> Vec<u8> {
    const OF_TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    let place = [
        number(HOOK_NUMBER, hook),
        number(HOOK_PRIORITY, priority.cast_unsigned()),
    ];
    [
        named(OF_TABLE, table),
        named(NAME, chain),
        nested(HOOK, &place),
        named(TYPE, "filter"),
    ]
    .concat()
}

/// A message about a family.
fn about(kind: u16, flags: u16, family: u8, body: &[u8]) -> Vec<u8> {
    let head = [family, 0, 0, 0];
    message(of_nftables(kind), flags, &[&head[..], body].concat())
}

const fn of_nftables(kind: u16) -> u16 {
    (SUBSYSTEM << 8) | kind
}

/// Does all or nothing.
fn batch(messages: &mut [Vec<u8>]) -> io::Result<()> {
    // The last one is answered when all are done; one that fails is before it.
    if let Some(last) = messages.last_mut()
        && let Some(flags) = last.get_mut(6..8)
    {
        let both = u16::from_ne_bytes([flags[0], flags[1]]) | ACKNOWLEDGE;
        flags.copy_from_slice(&both.to_ne_bytes());
    }
    let bound = |kind| {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        message(kind, 0, &[0, 0, high, low])
    };
    let all = [bound(BATCH_BEGIN), messages.concat(), bound(BATCH_END)].concat();
    ask(Some(netlink::NETFILTER), &all)
}
