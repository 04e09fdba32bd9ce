//! Addresses of this host and the devices that they are on, asked of the kernel and changed by rtnetlink(7).
//!
//! Of the addresses of IPv4 that a device has in one network the kernel calls the first one primary. With it go the
//! others, and the routes of the device, unless the device has `promote_secondaries`; many distributions set that, the
//! kernel does not. Where it is off, it is on for as long as an address is taken away, within one call to the kernel:
//! whoever is killed leaves it as it was.
//!
//! Source: linux/if_link.h and linux/ip.h; Documentation/networking/ip-sysctl of the kernel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use forebay_core::fleet::mobility::ServiceAddress;

use crate::netlink::{
    ACKNOWLEDGE, CREATE, EXCLUSIVE, ask, attribute, attributes, dump, message, nested,
};

const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// Nobody is asked whether another one has it: that is what the record of its owner is for.
const IFA_F_NODAD: u32 = 2;
const IFLA_ADDRESS: u16 = 1;
const IFLA_NAME: u16 = 3;
/// What each family of addresses has of a device; of IPv4, its settings by number, which begin at 1.
const IFLA_AF_SPEC: u16 = 26;
const INET: u16 = 2;
const IFLA_INET_CONF: u16 = 1;
const PROMOTE_SECONDARIES: u16 = 20;
/// Another address of the device has its network, and was there first.
const IFA_F_SECONDARY: u8 = 1;
const IFF_NOARP: u32 = 0x80;
const IFF_LOOPBACK: u32 = 8;
/// Bytes before the attributes: `struct ifaddrmsg` and `struct ifinfomsg`.
const ADDRESS_HEAD: usize = 8;
const LINK_HEAD: usize = 16;

/// An address of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
    /// The number of its device.
    pub(super) link: u32,
    /// It goes when another one goes.
    pub(super) is_secondary: bool,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) number: u32,
    pub(super) name: String,
    /// Its own address, where it has one of six bytes by which others find it.
    pub(super) mac: Option<[u8; 6]>,
    /// Whether secondary addresses stay when the primary one goes.
    pub(super) keeps_secondaries: bool,
}

/// All addresses of this host.
pub(super) fn addresses() -> io::Result<Vec<Present>> {
    let found = dump(None, GET_ADDRESS, &[0; ADDRESS_HEAD])?;
    Ok(found.iter().filter_map(|body| address(body)).collect())
}

fn address(body: &[u8]) -> Option<Present> {
    let head: [u8; ADDRESS_HEAD] = *body.first_chunk()?;
    let link = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    let all = attributes(body.get(ADDRESS_HEAD..)?);
    let of = |kind| all.iter().find(|(known, _)| *known == kind);
    // Of a link between two, IFA_ADDRESS is the other end.
    let (_, value) = of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS))?;
    let ip = match value.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(*value).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(*value).ok()?)),
        _ => return None,
    };
    Some(Present {
        ip,
        prefix: head[1],
        link,
        is_secondary: ip.is_ipv4() && head[2] & IFA_F_SECONDARY != 0,
    })
}

/// All network devices.
pub(super) fn links() -> io::Result<Vec<Link>> {
    let found = dump(None, GET_LINK, &[0; LINK_HEAD])?;
    Ok(found.iter().filter_map(|body| link(body)).collect())
}

fn link(body: &[u8]) -> Option<Link> {
    let head: [u8; LINK_HEAD] = *body.first_chunk()?;
    let at = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let all = attributes(body.get(LINK_HEAD..)?);
    let of = |kind| all.iter().find(|(known, _)| *known == kind);
    let (_, name) = of(IFLA_NAME)?;
    let name = String::from_utf8_lossy(name)
        .trim_end_matches('\0')
        .to_owned();
    let is_found = at(8) & (IFF_NOARP | IFF_LOOPBACK) == 0;
    let mac = of(IFLA_ADDRESS).filter(|_| is_found);
    Some(Link {
        number: at(4),
        name,
        mac: mac.and_then(|(_, mac)| <[u8; 6]>::try_from(*mac).ok()),
        keeps_secondaries: of(IFLA_AF_SPEC).is_some_and(|(_, families)| keeps(families)),
    })
}

fn keeps(families: &[u8]) -> bool {
    let within = |bytes, kind| {
        let mut all = attributes(bytes).into_iter();
        all.find(|(known, _)| *known == kind)
            .map(|(_, value)| value)
    };
    let settings = within(families, INET).and_then(|inet| within(inet, IFLA_INET_CONF));
    let at = usize::from(PROMOTE_SECONDARIES - 1) * 4;
    let value = settings.and_then(|all| all.get(at..at + 4));
    value.is_some_and(|value| value.iter().any(|byte| *byte != 0))
}

/// Puts an address on a device. It is on it then, whoever put it there.
pub(super) fn add(address: &ServiceAddress, link: u32) -> io::Result<()> {
    let flags = attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
    match change(NEW_ADDRESS, CREATE | EXCLUSIVE, (address, link), &flags) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Takes an address from a device; others that the device has stay. Done as well where it is not there, or the device
/// is gone.
pub(super) fn remove(address: &ServiceAddress, link: &Link) -> io::Result<()> {
    let would_go = |other: &Present| other.link == link.number && other.is_secondary;
    let takes_others = !link.keeps_secondaries && address.ip.is_ipv4();
    let done = match takes_others && addresses()?.iter().any(would_go) {
        true => remove_alone(address, link.number),
        false => change(DELETE_ADDRESS, 0, (address, link.number), &[]),
    };
    match done {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENOENT)
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Of the addresses that would go with it the kernel makes one primary.
fn remove_alone(address: &ServiceAddress, link: u32) -> io::Result<()> {
    // As it is: a kernel that refuses this would take the others along.
    ask(None, &promote(link, 0, ACKNOWLEDGE))?;
    let all = [
        promote(link, 1, 0),
        about(DELETE_ADDRESS, ACKNOWLEDGE, (address, link), &[]),
        promote(link, 0, 0),
    ];
    ask(None, &all.concat())
}

/// Sets whether a device keeps secondary addresses when the primary one goes.
fn promote(link: u32, value: u32, flags: u16) -> Vec<u8> {
    let mut body = vec![0; LINK_HEAD];
    body[4..8].copy_from_slice(&link.to_ne_bytes());
    let setting = nested(
        IFLA_INET_CONF,
        &[attribute(PROMOTE_SECONDARIES, &value.to_ne_bytes())],
    );
    body.extend(nested(IFLA_AF_SPEC, &[nested(INET, &[setting])]));
    message(SET_LINK, flags, &body)
}

fn change(kind: u16, flags: u16, target: (&ServiceAddress, u32), more: &[u8]) -> io::Result<()> {
    ask(None, &about(kind, ACKNOWLEDGE | flags, target, more))
}

/// A message about an address of a device.
fn about(kind: u16, flags: u16, (address, link): (&ServiceAddress, u32), more: &[u8]) -> Vec<u8> {
    let (family, octets) = match address.ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let mut body = vec![u8::try_from(family).unwrap_or(0), address.prefix, 0, 0];
    body.extend(link.to_ne_bytes());
    body.extend(attribute(IFA_LOCAL, &octets));
    body.extend(attribute(IFA_ADDRESS, &octets));
    body.extend(more);
    message(kind, flags, &body)
}
