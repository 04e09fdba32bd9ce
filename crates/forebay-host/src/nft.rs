//! Tables of nftables: those by which CRIU holds connections up, which stay when its work does not end, and those by
//! which an address of this host is known to nobody but itself; and what others need to make one of their own.
//!
//! Source: linux/netfilter/nf_tables.h.

use std::ffi::CStr;
use std::io;
use std::net::IpAddr;

use rustix::net::netlink;

use crate::netlink::{
    ACKNOWLEDGE, APPEND, CREATE, ask, attribute, attributes, dump, message, nested,
};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = (SUBSYSTEM << 8) | 1;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
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
        let kind = (SUBSYSTEM << 8) | step.message;
        let flags = if kind == DELETE_TABLE { 0 } else { CREATE };
        about(kind, flags, INET, &step.attributes)
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
    let said = match dump(Some(netlink::NETFILTER), GET_TABLE, &head) {
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
            messages.push(own(NEW_CHAIN, CREATE, &base_chain(&name, chain, hook)));
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
/// Where an expression looks.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

type Rule = Vec<Vec<u8>>;

/// The chains of a family, their hooks, and what each rule drops.
fn chains(family: u8, ip: IpAddr) -> [(&'static str, u32, Vec<Rule>); 2] {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let at = |offset| [equals(NETWORK, offset, &octets), vec![drop_it()]].concat();
    match family {
        IPV4 => [("in", IN, vec![at(16)]), ("out", OUT, vec![at(12)])],
        ARP => [("in", ARP_IN, vec![at(24)]), ("out", ARP_OUT, vec![at(14)])],
        _ => {
            // Who asks for it speaks to all whose addresses end alike.
            let asks = [
                is_icmp6(),
                equals(TRANSPORT, 0, &[135]),
                equals(TRANSPORT, 8, &octets),
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
fn equals(base: u32, offset: u32, value: &[u8]) -> Rule {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let load = [
        number(1, 1),
        number(2, base),
        number(3, offset),
        number(4, length),
    ];
    vec![expression("payload", &load), compare(value)]
}

/// Goes on where it is ICMP of IPv6.
fn is_icmp6() -> Rule {
    const PROTOCOL: u32 = 16;
    vec![
        expression("meta", &[number(1, 1), number(2, PROTOCOL)]),
        compare(&[58]),
    ]
}

fn compare(value: &[u8]) -> Vec<u8> {
    expression(
        "cmp",
        &[
            number(1, 1),
            number(2, 0),
            nested(3, &[attribute(1, value)]),
        ],
    )
}

fn drop_it() -> Vec<u8> {
    let verdict = nested(2, &[number(1, 0)]);
    expression("immediate", &[number(1, 0), nested(2, &[verdict])])
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[attribute(1, &text(name)), nested(2, data)])
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

fn base_chain(table: &str, chain: &str, hook: u32) -> Vec<u8> {
    // Before connections are tracked.
    const PRIORITY: i32 = -300;
    let place = [number(1, hook), number(2, PRIORITY.cast_unsigned())];
    [
        attribute(1, &text(table)),
        attribute(3, &text(chain)),
        nested(4, &place),
        attribute(7, &text("filter")),
    ]
    .concat()
}

/// A message about a family.
fn about(kind: u16, flags: u16, family: u8, body: &[u8]) -> Vec<u8> {
    let head = [family, 0, 0, 0];
    message(kind, flags, &[&head[..], body].concat())
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
