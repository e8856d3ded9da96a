//! Both ends of a connection over loopback.
//!
//! No packet is seen in this mode, so nobody can be asked whose socket the other end is. But both ends become established
//! on this machine, the client first: it leaves its address in a line, and the server finds it there. The line is chosen by
//! the namespace and the client's port. It says nothing by itself: the socket that it leads to is the other end when its
//! addresses and ports say so.

use core::mem::MaybeUninit;

use observer_common::{
    cache::SPREAD,
    edge::{EdgeKey, Role, flags},
    sockets::PAIR_LINES,
};

use crate::{
    edges,
    maps::{SKC_RCV_SADDR, SKC_V6_RCV_SADDR},
    own::{INET_SPORT, SKC_NET, SOCKET_PAIRS},
    slot::NONE,
    sock::{self, Peer, Sock},
};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

#[inline(always)]
fn line(sock: &Sock, client_port: u16) -> Option<*mut u64> {
    let namespace: u64 = sock.field(&SKC_NET);
    let spread = (namespace >> 6).wrapping_mul(SPREAD) >> 48;
    SOCKET_PAIRS.get_ptr_mut((u32::from(client_port) ^ spread as u32) & (PAIR_LINES - 1))
}

/// A client waits for its server.
#[inline(always)]
pub fn leave(sk: u64, sock: &Sock) {
    if let Some(line) = line(sock, sock.num()) {
        // SAFETY: the map gave a valid, aligned pointer; one word, so a reader sees old or new.
        unsafe { line.write_volatile(sk) };
    }
}

/// A client that no server has found: true once.
#[inline(always)]
pub fn take_back(sk: u64, sock: &Sock) -> bool {
    // The socket may have given its port back already.
    let client_port = u16::from_be(sock::read(sk, &INET_SPORT));
    let Some(line) = line(sock, client_port) else { return false };
    // SAFETY: as above.
    unsafe {
        if line.read_volatile() != sk {
            return false;
        }
        line.write_volatile(0);
    }
    true
}

/// The client of a server that is established now, or 0.
#[inline(never)]
pub fn meet(sock: &Sock) -> u64 {
    let port = u16::from_be(sock.dport());
    let Some(line) = line(sock, port) else { return 0 };
    // SAFETY: as above.
    let client = unsafe { line.read_volatile() };
    if client == 0 {
        return 0;
    }
    if !are_ends(sock, client) {
        return 0;
    }
    // SAFETY: as above.
    unsafe { line.write_volatile(0) };
    client
}

/// The socket at the address `other` is the other end.
#[inline(never)]
pub fn are_ends(sock: &Sock, other: u64) -> bool {
    let mut common = MaybeUninit::uninit();
    let other = Sock::read(other, &mut common);
    other.num() == u16::from_be(sock.dport()) && u16::from_be(other.dport()) == sock.num() && are_mirrored(sock, other)
}

/// Each has the other's address, in one namespace.
#[inline(always)]
fn are_mirrored(one: &Sock, other: &Sock) -> bool {
    if one.field::<u64>(&SKC_NET) != other.field::<u64>(&SKC_NET) || one.is_ipv6() != other.is_ipv6() {
        return false;
    }
    if !one.is_ipv6() {
        return one.daddr() == other.field(&SKC_RCV_SADDR) && other.daddr() == one.field(&SKC_RCV_SADDR);
    }
    let same = |one: [u32; 4], other: [u32; 4]| {
        (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]) == 0
    };
    same(one.v6_daddr(), other.field(&SKC_V6_RCV_SADDR)) && same(other.v6_daddr(), one.field(&SKC_V6_RCV_SADDR))
}

/// The slot of one end in `cgroup` whose other end is in the cgroup `peer` (0: nobody's). [`NONE`] when it is not observed.
/// `sk` is this end.
#[inline(never)]
pub fn slot(sk: u64, cgroup: u64, peer: u64, port_and_flags: u32) -> u32 {
    let key = EdgeKey {
        cgroup,
        peer: [peer as u32, (peer >> 32) as u32, 0, 0],
        port: port_and_flags as u16,
        protocol: TCP,
        flags: (port_and_flags >> 16) as u8,
        zero: 0,
    };
    let slot = edges::known(&key);
    if slot != 0 {
        slot
    } else if sock::is_observed(sk) {
        edges::slot(&key)
    } else {
        NONE
    }
}

/// The last argument of [`slot`]: a function of the kernel's programs takes five at most.
#[inline(always)]
pub fn port_and_flags(port: u16, role: Role, sock: &Sock) -> u32 {
    let family = if sock.is_ipv6() { flags::IPV6 } else { 0 };
    u32::from(port) | u32::from(role as u8 | flags::LOOPBACK | family) << 16
}
