//! Both ends of a connection over loopback: each counts for the cgroup of the other.

use core::mem::MaybeUninit;

use observer_common::{
    cache,
    edge::{EdgeKey, Role, flags},
};

use crate::{
    edges,
    maps::{PEERS, SKC_NET},
    slot::{NONE, TCP},
    sock::{self, Peer, Sock, same},
};

/// The socket at the address `other` is the other end: each has the other's address and port, in one namespace.
#[inline(never)]
pub fn are_ends(sock: &Sock, other: u64) -> bool {
    let mut common = MaybeUninit::uninit();
    let other = Sock::read(other, &mut common);
    let is_one_namespace = sock.field::<u64>(&SKC_NET) == other.field::<u64>(&SKC_NET);
    let (one, other) = (sock.ends(), other.ends());
    is_one_namespace
        && one.ports == (other.ports.1, other.ports.0)
        && same(&one.remote, &other.local)
        && same(&other.remote, &one.local)
}

/// The slot of one end in `cgroup` whose other end is in the cgroup `peer` (0: nobody's). [`NONE`] when it is not observed.
/// `sk` is this end.
#[inline(always)]
pub fn slot(sk: u64, cgroup: u64, peer: u64, port_and_flags: u32) -> u32 {
    let tag = cache::ends_tag(cgroup, peer, port_and_flags);
    match PEERS.get(cache::peer_index(tag)).map_or(0, |line| cache::slot_of(*line, tag)) {
        0 => find(sk, cgroup, peer, port_and_flags),
        slot => slot,
    }
}

/// The long way. What is found is kept in a line of the cache of peers, but not what an edge that is new was given: that may be
/// its container's spare slot.
#[inline(never)]
fn find(sk: u64, cgroup: u64, peer: u64, port_and_flags: u32) -> u32 {
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
        let tag = cache::ends_tag(cgroup, peer, port_and_flags);
        if let Some(line) = PEERS.get_ptr_mut(cache::peer_index(tag)) {
            // SAFETY: the map gave a valid, aligned pointer; a line is one word, so a reader sees old or new.
            unsafe { line.write_volatile(cache::line(tag, slot)) };
        }
        slot
    } else if sock::is_observed(sk) {
        edges::slot(&key)
    } else {
        NONE
    }
}

/// The last argument of [`slot`]: a function of the kernel's programs takes five at most.
#[inline(always)]
pub fn port_and_flags(port: u16, role: Role, is_ipv6: bool) -> u32 {
    let family = if is_ipv6 { flags::IPV6 } else { 0 };
    u32::from(port) | u32::from(role as u8 | flags::LOOPBACK | family) << 16
}
