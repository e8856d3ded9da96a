//! The slot of a socket, as the traffic's programs have found it.

use core::mem::MaybeUninit;

use observer_common::{
    cache,
    edge::{EdgeKey, Role, flags},
};

use crate::{
    edges,
    maps::{PEERS, SOCKETS},
    sock::{self, Peer, Sock},
};

/// No slot: the socket is not observed. Beyond every map.
pub const NONE: u32 = u32::MAX;
/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;

/// Who began the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// This socket.
    Us,
    /// The other side.
    Them,
    /// Either.
    Unknown,
}

impl Caller {
    /// Of a connection that a socket has dialed, or not.
    #[inline(always)]
    pub fn of(dialed: bool) -> Self {
        if dialed { Self::Us } else { Self::Them }
    }
}

/// The slot of a full socket at this address. Not inlined: the copy of the socket is in this function's part of the stack
/// once, whoever asks, and the verifier of kernel 5.10 adds up the parts of all that call each other (512 bytes at most).
#[inline(never)]
pub fn find(sk: u64, caller: Caller) -> u32 {
    let mut sock = MaybeUninit::uninit();
    of(sk, Sock::read(sk, &mut sock), caller)
}

/// The slot of a full socket. Its packets have passed the traffic's programs, which have asked for its cookie and have left
/// a line for it. A connection that was just accepted has no cookie yet: its handshake went to the listener, and its peer
/// is remembered. One that was dialed without a single packet has none, either.
#[inline(always)]
fn of(sk: u64, sock: &Sock, caller: Caller) -> u32 {
    match cached(sock) {
        0 if sock.cookie() == 0 && caller == Caller::Unknown => NONE,
        // Nothing was left yet, or another socket took the line.
        0 => by_key(sk, sock, caller),
        slot => slot,
    }
}

/// The slot in the line that the traffic's programs have left for a socket, 0 when there is none.
#[inline(always)]
pub fn cached(socket: &impl Peer) -> u32 {
    let cookie = socket.cookie();
    if cookie == 0 {
        return 0;
    }
    let tag = cache::socket_tag(cookie, socket.v6_daddr(), socket.daddr(), socket.dport());
    let line = SOCKETS.get(cache::socket_index(cookie)).map_or(0, |line| *line);
    match (cache::slot_of(line, tag), cache::slot_of(line, tag ^ cache::DIALING)) {
        (0, slot) | (slot, _) => slot,
    }
}

/// The slot that the handshake with a listener in this cgroup has left for a socket's peer, 0 when there is none.
#[inline(always)]
pub fn by_peer(cgroup: u64, socket: &impl Peer) -> u32 {
    let tag = cache::peer_tag(cgroup, TCP, &socket.remote(), u16::from_be(socket.dport()), socket.num());
    PEERS.get(cache::peer_index(tag)).map_or(0, |line| cache::slot_of(*line, tag))
}

/// The long way, by peer and by edge. An observed socket always has a slot: one whose edge cannot be told gets an edge with
/// a peer that nobody knows, or its container's spare slot. `owner` is the full socket that the cgroup is read from.
#[inline(never)]
pub fn by_key(owner: u64, sock: &Sock, caller: Caller) -> u32 {
    let cgroup = sock::cgroup_id(owner);
    let remote = sock.remote();
    let (remote_port, local_port) = (u16::from_be(sock.dport()), sock.num());
    let slot = by_peer(cgroup, sock);
    if slot != 0 {
        return slot;
    }
    let mut key = EdgeKey { cgroup, peer: remote, port: 0, protocol: TCP, flags: 0, zero: 0 };
    if sock.is_ipv6() {
        key.flags |= flags::IPV6;
    }
    if sock.ends().is_loopback() {
        // Whose the other socket is cannot be asked here: this is the edge of those that nobody answers.
        key.peer = [0; 4];
        key.flags |= flags::LOOPBACK;
    }
    if caller != Caller::Them {
        key.flags = key.flags & !flags::ROLE_MASK | Role::Client as u8;
        key.port = remote_port;
        let slot = edges::known(&key);
        if slot != 0 {
            return slot;
        }
    }
    if caller != Caller::Us {
        key.flags = key.flags & !flags::ROLE_MASK | Role::Server as u8;
        key.port = local_port;
        let slot = edges::known(&key);
        if slot != 0 {
            return slot;
        }
    }
    // A container that met a full table.
    let spare =
        edges::known(&EdgeKey { cgroup, peer: [0; 4], port: 0, protocol: TCP, flags: flags::OVERFLOW, zero: 0 });
    if spare != 0 {
        spare
    } else if !sock::is_observed(owner) {
        NONE
    } else if caller == Caller::Unknown {
        edges::overflow(cgroup, TCP)
    } else {
        edges::slot(&key)
    }
}
