//! A network of machines within one: a bridge, a cable to each of them, and clients where the bridge is.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::machine::Machine;
use crate::place::{eventually, signal};

/// Of the program whose address goes along.
const PORT: u16 = 7709;
/// The bridge's own; without one it takes another with each cable.
const MAC: &str = "02:77:00:00:00:fe";

/// Where etcd and the clients are: the thread that made it, and what it begins from then on.
pub(crate) struct Network {
    /// It is there while this process is.
    room: Child,
    /// Where machines reach it.
    pub(crate) centre: Ipv4Addr,
    /// The address that goes along.
    pub(crate) service: SocketAddr,
}

/// An address that goes along, of either kind.
pub(crate) const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 5));
pub(crate) const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 5));

impl Network {
    /// Moves this thread into a new one; none, with a line that says why, where there can be none.
    pub(crate) fn enter(test: &str, service: IpAddr) -> Option<Self> {
        let mut command = Command::new("setpriv");
        let room = command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "sleep",
                "infinity",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let mut room = room.ok()?;
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/net")).ok();
        let pid = room.id().to_string();
        eventually("it has a network", || {
            of(&pid) != of("self") || room.try_wait().unwrap().is_some()
        });
        if room.try_wait().unwrap().is_some() {
            println!("SKIPPED: {test}: no networks of its own");
            return None;
        }
        let place = File::open(format!("/proc/{pid}/ns/net")).unwrap();
        move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let centre = Ipv4Addr::new(10, 77, 0, 254);
        ip(
            None,
            &format!(
                "link set lo up\nlink add fleet address {MAC} type bridge\n\
                 address add {centre}/24 dev fleet\naddress add fd77::fe/64 dev fleet nodad\n\
                 link set fleet up\n"
            ),
        );
        Some(Self {
            room,
            centre,
            service: SocketAddr::new(service, PORT),
        })
    }

    /// A machine's own address.
    pub(crate) fn host(&self, index: usize) -> Ipv4Addr {
        let [a, b, c, _] = self.centre.octets();
        Ipv4Addr::new(a, b, c, u8::try_from(index + 1).unwrap())
    }

    /// Puts a cable between the bridge and a machine.
    pub(crate) fn connect(&self, index: usize, machine: &Machine) {
        let own = machine.init;
        ip(
            None,
            &format!(
                "link add to-{index} type veth peer name cable netns {own}\n\
                 link set to-{index} master fleet\nlink set to-{index} up\n"
            ),
        );
        let (v4, number) = (self.host(index), index + 1);
        ip(
            Some(machine),
            &format!(
                "link set lo up\naddress add {v4}/24 dev cable\n\
                 address add fd77::{number}/64 dev cable nodad\nlink set cable up\n"
            ),
        );
    }

    /// What the program that goes along is told, and what its `move` says.
    pub(crate) fn configuration(&self) -> (String, String) {
        let ip = self.service.ip();
        let prefix = if ip.is_ipv4() { 24 } else { 64 };
        (
            format!(", \"--listen\", \"{}\"", self.service),
            format!(", address = \"{ip}/{prefix}\""),
        )
    }

    /// Whether a machine has the address that goes along.
    pub(crate) fn is_at(&self, machine: &Machine) -> bool {
        has(machine, self.service.ip())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        signal(self.room.id(), Signal::KILL);
        self.room.wait().unwrap();
    }
}

/// Whether a machine has an address.
pub(crate) fn has(machine: &Machine, ip: IpAddr) -> bool {
    let read = |table: &str| fs::read_to_string(format!("/proc/{}/net/{table}", machine.init));
    match ip {
        IpAddr::V4(ip) => {
            let place = format!("|-- {ip}\n");
            read("fib_trie").unwrap().contains(&place)
        }
        IpAddr::V6(ip) => {
            let words = ip.octets().map(|octet| format!("{octet:02x}"));
            read("if_inet6").unwrap().contains(&words.concat())
        }
    }
}

/// Has `ip` carry out commands here, or on a machine.
#[track_caller]
pub(crate) fn ip(machine: Option<&Machine>, commands: &str) {
    let mut command = match machine {
        None => Command::new("ip"),
        Some(machine) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{}/ns/net", machine.init));
            command.args(["--", "ip"]);
            command
        }
    };
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(commands.as_bytes()).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success(), "{commands}");
}

/// The tables of nftables that a machine has, by `NFT_MSG_GETTABLE`.
pub(crate) fn tables(machine: &Machine) -> Vec<String> {
    const GET_TABLE: u16 = (10 << 8) | 1;
    const NEW_TABLE: u16 = 10 << 8;
    const DUMP: u16 = 0x301;
    let place = File::open(format!("/proc/{}/ns/net", machine.init)).unwrap();
    let look = move || {
        move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let protocol = Some(netlink::NETFILTER);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol).unwrap();
        let mut asked = 20_u32.to_ne_bytes().to_vec();
        asked.extend(GET_TABLE.to_ne_bytes());
        asked.extend(DUMP.to_ne_bytes());
        asked.extend([0; 12]);
        send(&socket, &asked, SendFlags::empty()).unwrap();
        let mut answer = vec![0; 16 << 10];
        let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).unwrap();
        let mut said = &answer[..length];
        let mut names = Vec::new();
        while let [a, b, c, d, low, high, ..] = *said {
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            if u16::from_ne_bytes([low, high]) != NEW_TABLE {
                break;
            }
            // After two heads and that of its first attribute.
            let name = said[24..length].split(|byte| *byte == 0).next().unwrap();
            names.push(String::from_utf8_lossy(name).into_owned());
            said = &said[length..];
        }
        names
    };
    // A thread that looked is of no other use.
    std::thread::spawn(look).join().unwrap()
}
