//! Tells the others of a network that an address is here now: whoever knew it elsewhere speaks to this host from
//! then on.
//!
//! Sources: RFC 5227, section 3 (announcements of ARP, as a request and as an answer, since some listen to one of
//! the two alone); RFC 4861, section 7.2.6 (unsolicited neighbour advertisements).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd as _, AsRawFd as _};

use rustix::net::{
    AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with,
};

use super::links::Link;

const EVERYBODY: [u8; 6] = [0xff; 6];
const ETHERTYPE_ARP: u16 = 0x0806;
const REQUEST: u16 = 1;
const ANSWER: u16 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Announces an address once. On a device on which nobody asks for addresses nothing is to be done.
pub(super) fn announce(ip: IpAddr, link: &Link) -> io::Result<()> {
    let Some(mac) = link.mac else {
        return Ok(());
    };
    match ip {
        IpAddr::V4(ip) => [REQUEST, ANSWER]
            .into_iter()
            .try_for_each(|kind| send(&arp(kind, ip, mac), link.number)),
        IpAddr::V6(ip) => advertise(ip, mac, link.number),
    }
}

fn arp(kind: u16, ip: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(kind.to_be_bytes());
    packet.extend(mac);
    packet.extend(ip.octets());
    packet.extend(match kind {
        ANSWER => mac,
        _ => [0; 6],
    });
    packet.extend(ip.octets());
    packet
}

#[expect(unsafe_code, reason = "rustix has no addresses of packet sockets")]
fn send(packet: &[u8], link: u32) -> io::Result<()> {
    let protocol = ETHERTYPE_ARP.to_be();
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut to = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(link).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    to.sll_addr[..6].copy_from_slice(&EVERYBODY);
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>());
    // SAFETY: the kernel reads the packet and the address, which live, in the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            length.map_err(io::Error::other)?,
        )
    };
    match sent {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn advertise(ip: Ipv6Addr, mac: [u8; 6], link: u32) -> io::Result<()> {
    let protocol: Protocol = ipproto::ICMPV6;
    let socket = socket_with(
        AddressFamily::INET6,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(protocol),
    )?;
    // Others believe only what did not come by way of a router.
    rustix::net::sockopt::set_ipv6_multicast_hops(&socket, 255)?;
    bind(&socket, &SocketAddrV6::new(ip, 0, 0, link))?;
    let to = SocketAddrV6::new(ALL_NODES, 0, 0, link);
    sendto(
        socket.as_fd(),
        &advertisement(ip, mac),
        SendFlags::empty(),
        &to,
    )?;
    Ok(())
}

/// Its checksum is the kernel's to fill in.
fn advertisement(ip: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    // A neighbour advertisement that takes the place of what is known.
    let mut packet = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    packet.extend(ip.octets());
    packet.extend([2, 1]);
    packet.extend(mac);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_are_as_long_as_the_protocols_say() {
        let mac = [2, 0, 0, 0, 0, 7];
        let ip = Ipv4Addr::new(10, 77, 0, 5);
        let request = arp(REQUEST, ip, mac);
        assert_eq!(request.len(), 28);
        assert_eq!(request[14..18], request[24..28], "it asks for itself");
        assert_eq!(request[18..24], [0; 6]);
        assert_eq!(arp(ANSWER, ip, mac)[18..24], mac);
        assert_eq!(advertisement(Ipv6Addr::LOCALHOST, mac).len(), 32);
    }
}
