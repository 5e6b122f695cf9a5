//! Who could be reached from here.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use kage_shim::containment::Answer;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::proof::{NOT_TRIED, answer, text};

/// How long a datagram's refusal is waited for. On a loopback it is there at once.
const REFUSED_WITHIN: Duration = Duration::from_millis(5);

pub fn interfaces() -> Vec<String> {
    let lines = |table: String| {
        let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
        names.map(|(name, _)| name.trim().to_owned()).collect()
    };
    text("/proc/net/dev").map_or_else(|error| vec![error], lines)
}

/// Routes by another device than the loopback. A kernel without IPv6 has no second table.
pub fn routes() -> Vec<String> {
    let (first, last) = (0, 9);
    let mut found = Vec::new();
    match text("/proc/net/route") {
        Ok(table) => found.extend(leading_out(table.lines().skip(1), first)),
        Err(error) => found.push(error),
    }
    if let Ok(table) = text("/proc/net/ipv6_route") {
        found.extend(leading_out(table.lines(), last));
    }
    found
}

fn leading_out<'t>(lines: impl Iterator<Item = &'t str>, device: usize) -> Vec<String> {
    let leads_out = |line: &&str| line.split_whitespace().nth(device).is_some_and(|name| name != "lo");
    lines.filter(leads_out).map(str::to_owned).collect()
}

pub fn resolvers() -> Vec<String> {
    let addresses = |text: String| {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        lines.map(|address| address.trim().to_owned()).collect()
    };
    text("/etc/resolv.conf").map_or_else(|error| vec![error], addresses)
}

/// A name asked of every resolver that an engine is known to offer, and connections to a host of the internet, to
/// the clouds' metadata service and to the engine's usual bridge.
pub fn reached(alone: bool) -> BTreeMap<String, Answer> {
    if !alone {
        return BTreeMap::from([("all".to_owned(), NOT_TRIED.to_owned())]);
    }
    let mut reached = BTreeMap::new();
    for resolver in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(127, 0, 0, 53)] {
        reached.insert(format!("name lookup at {resolver}"), lookup(resolver));
    }
    let v4 = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(172, 17, 0, 1)];
    let v6 = Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111);
    for address in v4.map(IpAddr::from).into_iter().chain([IpAddr::from(v6)]) {
        reached.insert(address.to_string(), connection(SocketAddr::new(address, 80)));
    }
    reached
}

/// The question for `example.com`, in the protocol's form (RFC 1035).
const QUESTION: &[u8] =
    b"\x4b\x42\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";

fn lookup(resolver: Ipv4Addr) -> Answer {
    let ask = || -> std::io::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(REFUSED_WITHIN))?;
        socket.connect((resolver, 53))?;
        socket.send(QUESTION)?;
        socket.recv(&mut [0; 512]).map(|_| ())
    };
    let errno = |error: std::io::Error| rustix::io::Errno::from_io_error(&error);
    answer(ask().map_err(|error| errno(error).unwrap_or(rustix::io::Errno::IO)))
}

fn connection(to: SocketAddr) -> Answer {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None);
    answer(socket.and_then(|socket| rustix::net::connect(&socket, &to)))
}
