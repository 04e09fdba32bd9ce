//! Has the kernel hear nothing of connections that it does not know yet.
//!
//! # Approach
//! A table of nftables drops what comes in over TCP to the addresses and ports of their ends here. Whoever connects
//! there anew waits as well, and is served once the rule is gone, where it would have been refused. The ends stand in
//! sets whose elements the kernel forgets after a while by itself, so that no end stays closed for want of somebody who
//! opens it.
//!
//! Source: the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use super::socket::canonical;
use crate::error::HostError;
use crate::netlink::{attribute, nested};
use crate::nft::{self, Step, named, number};

/// Tables are called so, with a number for the state directory that they belong to.
const TABLES: &str = "forebay-connections";
const CHAIN: &str = "in";
/// Most ends in a rule: an attribute has a length of 16 bits.
const ENDS_MAX: usize = 1024;

/// Messages.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
/// The table that anything else is in, and its own name.
const OF_TABLE: u16 = 1;
const NAME: u16 = 1;
/// An element of a list, and a value that is bytes.
const ELEMENT: u16 = 1;
const VALUE: u16 = 1;
/// Registers of four bytes begin at this one.
const REGISTER: u32 = 8;

/// What is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    table: String,
    ends: BTreeSet<(IpAddr, u16)>,
}

/// The two kinds of addresses.
struct Kind {
    set: &'static str,
    id: u32,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    protocol: u8,
    /// The number of the type, as nft(8) shows it.
    kind: u32,
    /// Where the address that a packet goes to stands in its head, and its length, in bytes.
    at: u32,
    length: u32,
}

const KINDS: [Kind; 2] = [
    Kind {
        set: "ends4",
        id: 1,
        protocol: 2,
        kind: 7,
        at: 16,
        length: 4,
    },
    Kind {
        set: "ends6",
        id: 2,
        protocol: 10,
        kind: 8,
        at: 24,
        length: 16,
    },
];
/// The type `inet_service`; types that are put together are shifted by so many bits.
const SERVICE: u32 = 13;
const TYPE_BITS: u32 = 6;

impl Rule {
    /// About these ends on this host, for the daemon of a state directory.
    ///
    /// # Errors
    /// When they are more than a rule takes.
    pub fn of(
        state_dir: &Path,
        ends: impl IntoIterator<Item = SocketAddr>,
    ) -> Result<Self, HostError> {
        let ends: BTreeSet<_> = ends.into_iter().map(canonical).collect();
        if ends.len() > ENDS_MAX {
            return Err(HostError::invalid(
                format!("hold {} addresses and ports closed", ends.len()),
                format!("a rule takes {ENDS_MAX}"),
            ));
        }
        let table = table(state_dir);
        Ok(Self { table, ends })
    }

    /// Puts it in force for so long, in place of one before.
    ///
    /// # Errors
    /// When the kernel refuses, as one without nftables does.
    pub fn put(&self, within: Duration) -> Result<(), HostError> {
        let table = &self.table;
        let own = || [named(NAME, table)];
        let mut steps = vec![
            // To remove what may not be there.
            step(NEW_TABLE, &own()),
            step(DELETE_TABLE, &own()),
            step(NEW_TABLE, &own()),
            chain(table),
        ];
        for kind in &KINDS {
            steps.push(set(table, kind));
            steps.extend(self.elements(kind, within));
            steps.push(rule(table, kind));
        }
        nft::act(&steps).map_err(|error| {
            HostError::io(format!("make the table {table} of nftables"), error)
                .advise("the kernel needs nftables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)")
        })
    }

    /// Takes away whatever is in force of a state directory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(state_dir: &Path) -> Result<(), HostError> {
        let table = table(state_dir);
        nft::remove_table(&table)
            .map_err(|error| HostError::io(format!("remove the table {table} of nftables"), error))
    }

    fn elements(&self, kind: &Kind, within: Duration) -> Option<Step> {
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        const KEY: u16 = 1;
        const TIMEOUT: u16 = 4;
        let timeout = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let of_kind = self.ends.iter().filter_map(|(address, port)| {
            let mut key = match (address, kind.protocol) {
                (IpAddr::V4(address), 2) => address.octets().to_vec(),
                (IpAddr::V6(address), 10) => address.octets().to_vec(),
                _ => return None,
            };
            key.extend(port.to_be_bytes());
            // Each part of a key fills registers.
            key.extend([0, 0]);
            Some(nested(
                ELEMENT,
                &[
                    nested(KEY, &[attribute(VALUE, &key)]),
                    attribute(TIMEOUT, &timeout.to_be_bytes()),
                ],
            ))
        });
        let elements: Vec<Vec<u8>> = of_kind.collect();
        let some = !elements.is_empty();
        some.then(|| {
            let parts = [
                named(OF_TABLE, &self.table),
                named(SET, kind.set),
                nested(ELEMENTS, &elements),
            ];
            step(NEW_ELEMENTS, &parts)
        })
    }
}

fn table(state_dir: &Path) -> String {
    let number = crc32fast::hash(state_dir.as_os_str().as_bytes());
    format!("{TABLES}-{number:08x}")
}

fn step(message: u16, attributes: &[Vec<u8>]) -> Step {
    Step {
        message,
        attributes: attributes.concat(),
    }
}

/// What is asked about each packet for this host, before what others have there.
fn chain(table: &str) -> Step {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const LOCAL_IN: u32 = 1;
    const EARLY: i32 = -400;
    let hook = [
        number(HOOK_NUMBER, LOCAL_IN),
        number(HOOK_PRIORITY, EARLY.cast_unsigned()),
    ];
    let parts = [
        named(OF_TABLE, table),
        named(NAME, CHAIN),
        nested(HOOK, &hook),
        named(TYPE, "filter"),
    ];
    step(NEW_CHAIN, &parts)
}

fn set(table: &str, kind: &Kind) -> Step {
    const NAME: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_TYPE: u16 = 4;
    const KEY_LENGTH: u16 = 5;
    const ID: u16 = 10;
    const HAS_TIMEOUTS: u32 = 0x10;
    let parts = [
        named(OF_TABLE, table),
        named(NAME, kind.set),
        number(FLAGS, HAS_TIMEOUTS),
        number(KEY_TYPE, kind.kind << TYPE_BITS | SERVICE),
        number(KEY_LENGTH, kind.length + 4),
        number(ID, kind.id),
    ];
    step(NEW_SET, &parts)
}

/// `ip daddr . tcp dport @ends4 drop`
fn rule(table: &str, kind: &Kind) -> Step {
    const CHAIN_NAME: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    const META_PROTOCOL: u32 = 15;
    const META_TRANSPORT: u32 = 16;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    const PORT_AT: u32 = 2;
    const TCP: u8 = 6;
    let expressions = [
        meta(META_PROTOCOL),
        equals(kind.protocol),
        meta(META_TRANSPORT),
        equals(TCP),
        payload(REGISTER, (NETWORK, kind.at, kind.length)),
        payload(REGISTER + kind.length / 4, (TRANSPORT, PORT_AT, 2)),
        lookup(kind),
        drop_it(),
    ];
    let parts = [
        named(OF_TABLE, table),
        named(CHAIN_NAME, CHAIN),
        nested(EXPRESSIONS, &expressions),
    ];
    step(NEW_RULE, &parts)
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    nested(ELEMENT, &[named(NAME, name), nested(DATA, data)])
}

/// Loads something about the packet.
fn meta(key: u32) -> Vec<u8> {
    const REGISTER_TO: u16 = 1;
    const KEY: u16 = 2;
    expression("meta", &[number(REGISTER_TO, REGISTER), number(KEY, key)])
}

/// Goes on where one byte that was loaded is this one.
fn equals(value: u8) -> Vec<u8> {
    const REGISTER_FROM: u16 = 1;
    const OPERATION: u16 = 2;
    const DATA: u16 = 3;
    const EQUAL: u32 = 0;
    expression(
        "cmp",
        &[
            number(REGISTER_FROM, REGISTER),
            number(OPERATION, EQUAL),
            nested(DATA, &[attribute(VALUE, &[value])]),
        ],
    )
}

/// Loads bytes of a head: which one, where they are, and how many.
fn payload(register: u32, (base, at, length): (u32, u32, u32)) -> Vec<u8> {
    const REGISTER_TO: u16 = 1;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    expression(
        "payload",
        &[
            number(REGISTER_TO, register),
            number(BASE, base),
            number(OFFSET, at),
            number(LENGTH, length),
        ],
    )
}

/// Goes on where what was loaded is in a set.
fn lookup(kind: &Kind) -> Vec<u8> {
    const SET: u16 = 1;
    const REGISTER_FROM: u16 = 2;
    const SET_ID: u16 = 4;
    expression(
        "lookup",
        &[
            named(SET, kind.set),
            number(REGISTER_FROM, REGISTER),
            number(SET_ID, kind.id),
        ],
    )
}

fn drop_it() -> Vec<u8> {
    const REGISTER_TO: u16 = 1;
    const DATA: u16 = 2;
    const VERDICT: u16 = 2;
    const CODE: u16 = 1;
    const THE_VERDICT: u32 = 0;
    const DROP: u32 = 0;
    expression(
        "immediate",
        &[
            number(REGISTER_TO, THE_VERDICT),
            nested(DATA, &[nested(VERDICT, &[number(CODE, DROP)])]),
        ],
    )
}
