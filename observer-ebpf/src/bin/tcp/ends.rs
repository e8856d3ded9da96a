//! Both ends of a connection over loopback: each counts for the cgroup of the other.

use core::mem::MaybeUninit;

use observer_common::edge::{EdgeKey, Role, flags};

use crate::{
    edges,
    maps::{SKC_NET, SKC_RCV_SADDR, SKC_V6_RCV_SADDR},
    slot::{NONE, TCP},
    sock::{self, Peer, Sock},
};

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
