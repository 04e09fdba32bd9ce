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
use crate::nft::expression::{
    ELEMENT, META_PROTOCOL, META_TRANSPORT, NETWORK, REGISTER, TRANSPORT, VALUE, drop_it, equals,
    expression, meta, payload,
};
use crate::nft::{self, DELETE_TABLE, NEW_CHAIN, NEW_RULE, NEW_TABLE, Step, named, number};

/// Tables are called so, with a number for the state directory that they belong to.
const TABLES: &str = "forebay-connections";
const CHAIN: &str = "in";
/// Most ends in a rule: an attribute has a length of 16 bits.
const ENDS_MAX: usize = 1024;

/// Messages.
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
/// The table that anything else is in, and its own name.
const OF_TABLE: u16 = 1;
const NAME: u16 = 1;

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
    const LOCAL_IN: u32 = 1;
    const EARLY: i32 = -400;
    step(
        NEW_CHAIN,
        &[nft::base_chain((table, CHAIN), (LOCAL_IN, EARLY))],
    )
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
    const PORT_AT: u32 = 2;
    const TCP: &[u8] = &[6];
    let expressions = [
        meta(META_PROTOCOL),
        equals(&[kind.protocol]),
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
