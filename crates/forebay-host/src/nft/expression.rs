//! What rules of nftables are made of: each loads something about a packet, goes on where that is so, or ends it.
//!
//! Source: linux/netfilter/nf_tables.h.

use super::{named, number};
use crate::netlink::{attribute, nested};

/// Registers of four bytes begin at this one; longer values fill those behind it.
pub(crate) const REGISTER: u32 = 8;
/// An element of a list, and a value that is bytes.
pub(crate) const ELEMENT: u16 = 1;
pub(crate) const VALUE: u16 = 1;
/// Heads of a packet.
pub(crate) const NETWORK: u32 = 1;
pub(crate) const TRANSPORT: u32 = 2;
/// What is known of it: the numbers of its network's and its transport's protocol.
pub(crate) const META_PROTOCOL: u32 = 15;
pub(crate) const META_TRANSPORT: u32 = 16;

/// One of this name.
pub(crate) fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    nested(ELEMENT, &[named(NAME, name), nested(DATA, data)])
}

/// Loads something about the packet.
pub(crate) fn meta(key: u32) -> Vec<u8> {
    const REGISTER_TO: u16 = 1;
    const KEY: u16 = 2;
    expression("meta", &[number(REGISTER_TO, REGISTER), number(KEY, key)])
}

/// Goes on where what was loaded begins with these bytes.
pub(crate) fn equals(value: &[u8]) -> Vec<u8> {
    const REGISTER_FROM: u16 = 1;
    const OPERATION: u16 = 2;
    const DATA: u16 = 3;
    const EQUAL: u32 = 0;
    expression(
        "cmp",
        &[
            number(REGISTER_FROM, REGISTER),
            number(OPERATION, EQUAL),
            nested(DATA, &[attribute(VALUE, value)]),
        ],
    )
}

/// Loads bytes of a head: which one, where they are, and how many.
pub(crate) fn payload(register: u32, (base, at, length): (u32, u32, u32)) -> Vec<u8> {
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

/// Drops the packet.
pub(crate) fn drop_it() -> Vec<u8> {
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
