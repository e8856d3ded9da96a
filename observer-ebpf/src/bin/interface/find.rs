//! The slot of a packet that has no socket: what the packet is, who began the conversation, and which edge it belongs to.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use observer_common::{
    cache,
    counters::Loss,
    edge::{EdgeKey, Role, flags},
    packet::frame::ETHERNET,
};

use crate::{
    edges,
    maps::{EPHEMERAL_MIN, PEERS, lose},
    opaque,
    packet::{self, Packet, SCTP, tcp},
};

/// Finds or makes the slot, and remembers it for the packets that follow.
#[inline(never)]
pub fn find(skb: *mut __sk_buff, link: u32, egress: bool, cgroup: u64) -> u32 {
    let mut packet = MaybeUninit::<Packet>::uninit();
    // SAFETY: `skb` is the context of the running program.
    let readable = unsafe {
        if link == ETHERNET {
            packet::parse_at::<{ ETHERNET as usize }>(skb, egress, &mut packet)
        } else {
            packet::parse_copied(skb, link, egress, &mut packet)
        }
    };
    if !readable {
        lose(Loss::Unparsed);
        return edges::overflow(cgroup, 0);
    }
    // SAFETY: the parser said that the packet is complete.
    let packet = unsafe { packet.assume_init_ref() };
    let tag = cache::peer_tag(cgroup, packet.protocol(), &packet.remote, packet.remote_port, packet.local_port);
    let by_peer = packet.is_tcp() || packet.is_udp();
    if by_peer && !begins(packet) {
        let slot = PEERS.get(cache::peer_index(tag)).map_or(0, |line| cache::slot_of(*line, tag));
        if slot != 0 {
            return slot;
        }
    }
    let slot = resolve(packet, egress, cgroup);
    if by_peer {
        if let Some(line) = PEERS.get_ptr_mut(cache::peer_index(tag)) {
            // SAFETY: the map gave a valid, aligned pointer; a line is one word, so a reader sees old or new.
            unsafe { *line = cache::line(tag, slot) };
        }
    }
    slot
}

/// A SYN without ACK: a connection begins, perhaps one between the same ports the other way round.
#[inline(always)]
fn begins(packet: &Packet) -> bool {
    packet.is_tcp() && packet.tcp_flags() & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Makes the key and finds its edge.
#[inline(never)]
fn resolve(packet: &Packet, egress: bool, cgroup: u64) -> u32 {
    let mut key = EdgeKey { cgroup, peer: packet.remote, port: 0, protocol: packet.protocol(), flags: 0, zero: 0 };
    if packet.is_ipv6() {
        key.flags = flags::IPV6;
    }
    set_role(&mut key, packet, egress);
    // SAFETY: a key is integers without padding, aligned and sized by 8.
    unsafe { opaque::forget(&raw mut key) };
    edges::slot(&key)
}

/// Says who called whom, and by which port. A later fragment has no port, and so no role.
#[inline(always)]
fn set_role(key: &mut EdgeKey, packet: &Packet, egress: bool) {
    let has_ports = packet.is_tcp() || packet.is_udp() || packet.protocol() == SCTP;
    if !has_ports || packet.remote_port | packet.local_port == 0 {
        return;
    }
    match handshake(packet, egress) {
        Role::Client => as_client(key, packet),
        Role::Server => as_server(key, packet),
        // The edge that was made before says it; without one the ports do, and at last who speaks first.
        Role::None => {
            as_client(key, packet);
            let client = edges::known(key) != 0;
            as_server(key, packet);
            let server = edges::known(key) != 0;
            if client != server {
                if client {
                    as_client(key, packet);
                }
                return;
            }
            let by_ports = by_ports(packet);
            if by_ports == Role::Client || by_ports == Role::None && egress {
                as_client(key, packet);
            }
        }
    }
}

/// SYN out or SYN-ACK in: the client. SYN in or SYN-ACK out: the server. `Role::None` for anything else.
#[inline(always)]
fn handshake(packet: &Packet, egress: bool) -> Role {
    let flags = packet.tcp_flags();
    if !packet.is_tcp() || flags & tcp::SYN == 0 {
        Role::None
    } else if egress == (flags & tcp::ACK == 0) {
        Role::Client
    } else {
        Role::Server
    }
}

/// A port that the kernel chose is the client's.
#[inline(always)]
fn by_ports(packet: &Packet) -> Role {
    let ephemeral = EPHEMERAL_MIN.load();
    let local_chosen = u32::from(packet.local_port) >= ephemeral;
    let remote_chosen = u32::from(packet.remote_port) >= ephemeral;
    match (local_chosen, remote_chosen) {
        (true, false) => Role::Client,
        (false, true) => Role::Server,
        _ => Role::None,
    }
}

#[inline(always)]
fn as_client(key: &mut EdgeKey, packet: &Packet) {
    key.flags = key.flags & !flags::ROLE_MASK | Role::Client as u8;
    key.port = packet.remote_port;
}

#[inline(always)]
fn as_server(key: &mut EdgeKey, packet: &Packet) {
    key.flags = key.flags & !flags::ROLE_MASK | Role::Server as u8;
    key.port = packet.local_port;
}
