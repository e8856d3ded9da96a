//! The slot of a packet whose socket is not in the cache: what the packet is, and which edge it belongs to.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_cgroup_id};
use observer_common::{
    cache,
    counters::Loss,
    edge::{EdgeKey, Role, flags},
};

use crate::{
    edges,
    maps::{EPHEMERAL_MIN, PEERS, RARE, SOCKETS, add, lose},
    packet::{self, Packet, SCTP, TCP, UDP, UDPLITE, tcp},
    socket::{self, Socket, SocketLine},
};

/// The index of the loopback interface: the first of every network namespace (`net/core/dev.c`).
const LOOPBACK_IFINDEX: u32 = 1;

/// Finds or makes the slot, and remembers it for the packets that follow.
#[inline(never)]
pub fn find(skb: *mut __sk_buff, egress: bool, cookie: u64) -> u32 {
    let mut packet = MaybeUninit::<Packet>::uninit();
    // SAFETY: `skb` is the context of the running program.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    // SAFETY: as above.
    if !unsafe { packet::parse(skb, egress, &mut packet) } {
        lose(Loss::Unparsed);
        return edges::overflow(cgroup, 0);
    }
    // SAFETY: `parse` said that the packet is complete.
    let packet = unsafe { packet.assume_init_ref() };
    // SAFETY: `skb` is the context of the running program.
    let socket = unsafe { Socket::of(skb) };
    let is_tcp = packet.protocol == TCP;
    let is_udp = packet.protocol == UDP || packet.protocol == UDPLITE;
    let connected = socket.connected && !socket.listening;
    let begins = is_tcp && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
    let role = if is_udp || packet.protocol == SCTP { datagram_role(packet, connected) } else { Role::None };
    let unclear = is_udp && role == Role::None;

    // Sockets with many peers (listeners in a handshake, unconnected UDP) are cached by peer. What is looked for
    // by the client in `forget_peer` must be what is written here by the server: hence the cgroup, not the cookie.
    let who = if is_tcp || role == Role::Server { cgroup } else { cookie };
    let tag = peer_tag(who, &packet.remote, packet.remote_port, packet.local_port, packet.protocol);
    let line = peer_index(tag);
    let by_peer = is_tcp || (is_udp && !connected);
    let mut slot = 0;
    if by_peer && !begins {
        slot = PEERS.get(line).map_or(0, |line| cache::slot_of(*line, tag));
        if slot == 0 && unclear {
            // It may have been remembered as a server's.
            let tag = peer_tag(cgroup, &packet.remote, packet.remote_port, packet.local_port, packet.protocol);
            slot = PEERS.get(peer_index(tag)).map_or(0, |line| cache::slot_of(*line, tag));
        }
    }
    let mut cacheable = true;
    if slot == 0 {
        // SAFETY: `skb` is the context of the running program.
        let loopback = unsafe { (*skb).ifindex } == LOOPBACK_IFINDEX;
        // SAFETY: as above.
        let mut key = unsafe { key(skb, packet, &socket, cgroup, role, egress, loopback) };
        if unclear {
            who_spoke_first(&mut key, packet, egress);
        }
        cacheable = key.loopback_peer() != Some(0);
        if loopback && egress && is_udp {
            forget_peer(&key, packet);
        }
        slot = edges::slot(&key);
        if by_peer && (!connected || begins) && cacheable {
            if unclear && key.role() == Role::Server {
                let tag = peer_tag(cgroup, &packet.remote, packet.remote_port, packet.local_port, packet.protocol);
                remember_peer(peer_index(tag), cache::line(tag, slot));
            } else {
                remember_peer(line, cache::line(tag, slot));
            }
        }
    }
    // Not for a first SYN: the answer must come here too, to be counted.
    if connected && cacheable && !begins && (is_tcp || is_udp) {
        // SAFETY: `skb` is the context of the running program.
        let socket = unsafe { SocketLine::new(skb, cookie) };
        if let Some(line) = SOCKETS.get_ptr_mut(socket.index) {
            // SAFETY: the map gave a valid, aligned pointer; a line is one word, so a reader sees old or new.
            unsafe { *line = cache::line(socket.tag, slot) };
        }
    }
    // A connection counts for the client when the answer to its SYN arrives, for the server when the ACK that ends the
    // handshake meets the listener.
    let answered = socket.connecting && packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK;
    let accepted = socket.listening && packet.tcp_flags & (tcp::SYN | tcp::RST | tcp::ACK) == tcp::ACK;
    if is_tcp && !egress && (answered || accepted) {
        if let Some(rare) = RARE.get_ptr_mut(slot) {
            // SAFETY: the map gave a valid, aligned pointer.
            unsafe { add(&raw mut (*rare).tcp_opened, 1) };
        }
    }
    slot
}

/// Makes the key of the packet's edge.
#[inline(always)]
unsafe fn key(
    skb: *mut __sk_buff,
    packet: &Packet,
    socket: &Socket,
    cgroup: u64,
    role: Role,
    egress: bool,
    loopback: bool,
) -> EdgeKey {
    let has_sockets = packet.protocol == TCP || packet.protocol == UDP || packet.protocol == UDPLITE;
    // SAFETY: `skb` is the context of the running program.
    let role = if packet.protocol == TCP { unsafe { tcp_role(skb, packet, socket, egress) } } else { role };
    let port = match role {
        Role::Client => packet.remote_port,
        Role::Server => packet.local_port,
        Role::None => 0,
    };
    let mut key = EdgeKey {
        cgroup,
        peer: packet.remote,
        port,
        protocol: packet.protocol,
        flags: role as u8 | if packet.ipv6 { flags::IPV6 } else { 0 },
        zero: 0,
    };
    if loopback {
        // SAFETY: `skb` is the context of the running program.
        let peer = if has_sockets { unsafe { socket::peer_cgroup(skb, packet) } } else { 0 };
        key.peer = [peer as u32, (peer >> 32) as u32, 0, 0];
        key.flags |= flags::LOOPBACK;
    }
    key
}

/// Who called whom. The handshake says it; for a connection that is older than the agent the kernel is asked
/// whether somebody listens here.
#[inline(always)]
unsafe fn tcp_role(skb: *mut __sk_buff, packet: &Packet, socket: &Socket, egress: bool) -> Role {
    let syn = packet.tcp_flags & tcp::SYN != 0;
    let ack = packet.tcp_flags & tcp::ACK != 0;
    if syn {
        // SYN out or SYN-ACK in: the client. SYN in or SYN-ACK out: the server.
        if egress != ack { Role::Client } else { Role::Server }
    } else if socket.listening {
        Role::Server
    // SAFETY: `skb` is the context of the running program.
    } else if unsafe { socket::local_listener(skb, packet) } {
        Role::Server
    } else {
        Role::Client
    }
}

/// Datagrams have no handshake: a port that the kernel chose is the client's; where that does not tell, who is
/// connected is the client. `Role::None` when nothing tells.
#[inline(always)]
fn datagram_role(packet: &Packet, connected: bool) -> Role {
    let ephemeral = EPHEMERAL_MIN.load();
    let local_chosen = u32::from(packet.local_port) >= ephemeral;
    let remote_chosen = u32::from(packet.remote_port) >= ephemeral;
    if local_chosen != remote_chosen {
        if local_chosen { Role::Client } else { Role::Server }
    } else if connected {
        Role::Client
    } else {
        Role::None
    }
}

/// Two unconnected sockets whose ports say nothing: who speaks first is the client. Afterwards the edge that was made
/// then says it, whichever packet asks.
#[inline(never)]
fn who_spoke_first(key: &mut EdgeKey, packet: &Packet, egress: bool) {
    let (first, port, other, other_port) = if egress {
        (Role::Client, packet.remote_port, Role::Server, packet.local_port)
    } else {
        (Role::Server, packet.local_port, Role::Client, packet.remote_port)
    };
    key.flags |= other as u8;
    key.port = other_port;
    if !edges::exists(key) {
        key.flags = key.flags & !flags::ROLE_MASK | first as u8;
        key.port = port;
    }
}

/// A tag for a peer of an unconnected socket, good in its upper 40 bits and in those that `peer_index` takes.
#[inline(always)]
fn peer_tag(who: u64, remote: &[u32; 4], remote_port: u16, local_port: u16, protocol: u8) -> u64 {
    let mut hash = who.wrapping_mul(cache::SPREAD);
    hash = (hash ^ (u64::from(remote[0]) << 32 | u64::from(remote[1]))).wrapping_mul(cache::SPREAD);
    hash ^= hash >> 29;
    hash = (hash ^ (u64::from(remote[2]) << 32 | u64::from(remote[3]))).wrapping_mul(cache::SPREAD);
    hash ^= hash >> 29;
    let ports = u64::from(protocol) << 32 | u64::from(remote_port) << 16 | u64::from(local_port);
    hash = (hash ^ ports).wrapping_mul(cache::SPREAD);
    hash ^ hash >> 32
}

#[inline(always)]
fn peer_index(tag: u64) -> u32 {
    (tag >> (cache::SLOT_BITS - cache::PEER_LINES.ilog2())) as u32 & (cache::PEER_LINES - 1)
}

#[inline(always)]
fn remember_peer(index: u32, value: u64) {
    if let Some(line) = PEERS.get_ptr_mut(index) {
        // SAFETY: the map gave a valid, aligned pointer; a line is one word, so a reader sees old or new.
        unsafe { *line = value };
    }
}

/// A UDP socket sends over loopback for the first time: what the other side remembers of this address and port was
/// another socket, perhaps of another container.
#[inline(always)]
fn forget_peer(key: &EdgeKey, packet: &Packet) {
    let Some(other) = key.loopback_peer() else { return };
    let tag = peer_tag(other, &packet.local, packet.local_port, packet.remote_port, packet.protocol);
    let index = peer_index(tag);
    if PEERS.get(index).map_or(0, |line| cache::slot_of(*line, tag)) != 0 {
        remember_peer(index, 0);
    }
}
