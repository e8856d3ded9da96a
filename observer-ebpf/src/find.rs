//! The slot of a packet whose socket is not in the cache: what the packet is, and which edge it belongs to.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_get_smp_processor_id, bpf_skb_cgroup_id},
};
use observer_common::{
    cache,
    counters::Loss,
    edge::{EdgeKey, Role, flags, state},
    tcp::live_index,
};

use crate::{
    add::add,
    again, dialed, dns, edges,
    maps::{EPHEMERAL_MIN, FINDS_CONNECTIONS, PEERS, ROWS, SOCKETS, TCP_LINES, TCP_LIVE, TCP_OWNER, TCP_QUALITY, lose},
    opaque,
    packet::{self, Packet, SCTP, tcp},
    socket::{self, Socket, SocketLine},
};

/// The index of the loopback interface: the first of every network namespace (`net/core/dev.c`).
const LOOPBACK_IFINDEX: u32 = 1;
/// In a slot that must not be remembered: the socket at the other end was not to be found yet.
const TRANSIENT: u32 = 1 << 31;

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

    // Before the caches: each of these packets is handed over.
    if dns::is_dns(packet) {
        dns::hand_over(skb, packet, cgroup, egress);
    }
    // Sockets with many peers (listeners in a handshake, unconnected UDP) are cached by peer.
    let by_peer = packet.is_tcp() || (packet.is_udp() && !socket.is_connected());
    let mut slot = if by_peer && !begins(packet) { remembered(packet, &socket, cgroup, cookie) } else { 0 };
    if slot != 0 && packet.is_udp() {
        // A UDP server has no faster way than this one: nothing more is asked.
        return slot;
    }
    if slot == 0 && FINDS_CONNECTIONS.load() != 0 && packet.is_tcp() && socket.is_established() {
        slot = began_in(skb, packet);
    }
    if slot == 0 {
        // SAFETY: `skb` is the context of the running program.
        slot = unsafe { resolve(skb, packet, &socket, cgroup, egress, cookie) };
    }
    let transient = slot & TRANSIENT != 0;
    let slot = slot & !TRANSIENT;
    if (packet.is_tcp() || packet.is_udp()) && socket.is_connected() {
        // SAFETY: `skb` is the context of the running program.
        let line = unsafe { SocketLine::new(skb, cookie) };
        // What follows a SYN that crosses ours does not say who has dialed, so its line is one for packets.
        if begins(packet) && (egress || !socket.is_connecting()) {
            // The answer to a first SYN must come here too, to be counted, so the line is one that packets do not find.
            // The TCP probe does, when no answer comes. A socket that talks to a resolver keeps it: all its packets come here.
            write(SOCKETS.get_ptr_mut(line.index), cache::line(line.tag ^ cache::DIALING, slot));
        } else if !transient && !dns::is_dns(packet) {
            write(SOCKETS.get_ptr_mut(line.index), cache::line(line.tag, slot));
        }
    }
    if !egress && packet.is_tcp() && socket.is_listening() && !begins(packet) {
        // SAFETY: `skb` is the context of the running program.
        unsafe { again::remember(skb, bpf_get_smp_processor_id(), packet) };
    }
    if !egress && packet.is_tcp() && established(packet, &socket) && nobody_follows_connections() {
        if let Some(counters) = TCP_QUALITY.get_ptr_mut(slot) {
            // SAFETY: the map gave a valid, aligned pointer.
            unsafe { add(&raw mut (*counters).opened, 1) };
        }
    }
    slot
}

/// A SYN without ACK: a connection begins.
#[inline(always)]
fn begins(packet: &Packet) -> bool {
    packet.is_tcp() && packet.tcp_flags() & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// A connection counts for the client when the answer to its SYN arrives, for the server when the ACK that ends the
/// handshake meets the listener. That is all that packets say: an ACK that the listener has no room for, or lets go because
/// it waits for data (`TCP_DEFER_ACCEPT`), comes again and looks the same.
#[inline(always)]
fn established(packet: &Packet, socket: &Socket) -> bool {
    let flags = packet.tcp_flags() & (tcp::SYN | tcp::RST | tcp::ACK);
    (flags == tcp::SYN | tcp::ACK && socket.is_connecting()) || (flags == tcp::ACK && socket.is_listening())
}

/// True without the TCP probe: it sees the state of sockets, and counts each connection once. One store to this word
/// changes who counts, and it is made before these programs are attached: a kernel that runs the probe does so from the
/// first agent on.
#[inline(always)]
fn nobody_follows_connections() -> bool {
    TCP_OWNER.get(0).is_none_or(|owner| *owner == 0)
}

/// The slot that the packet's connection began in, if the TCP probe has written that down and its connections still count there;
/// else 0. Who had the peer's address then may not be who has it now, so this comes before the edge.
#[inline(never)]
fn began_in(skb: *mut __sk_buff, packet: &Packet) -> u32 {
    if nobody_follows_connections() {
        return 0;
    }
    // SAFETY: `skb` is the context of the running program.
    let address = unsafe { socket::address(skb) };
    let connection = match TCP_LINES.get_ptr(live_index(address as u32)) {
        // SAFETY: the map gave a valid, aligned pointer.
        Some(line) if unsafe { (*line).socket } == address => Some(unsafe { &raw const (*line).connection }),
        _ => TCP_LIVE.get_ptr(address),
    };
    // SAFETY: as above.
    let slot = connection.map_or(0, |connection| unsafe { (*connection).slot });
    let Some(row) = ROWS.get_ptr(slot) else { return 0 };
    // SAFETY: as above. The agent changes the state before it takes a slot from connections.
    let (key, state) = unsafe { (&raw const (*row).key, (*row).state) };
    if state != state::USED && state != state::CLOSED {
        return 0;
    }
    // The probe may not have known whom the connection is with: then it has a spare slot, or, over loopback, that of nobody.
    // SAFETY: as above.
    let (peer, flags) = unsafe { ((*key).peer, (*key).flags) };
    let known = if flags & flags::LOOPBACK != 0 {
        peer[0] | peer[1] != 0
    } else {
        // SAFETY: `skb` is the context of the running program.
        let outside = unsafe { (*skb).ifindex } != LOOPBACK_IFINDEX;
        let differs = (peer[0] ^ packet.remote[0])
            | (peer[1] ^ packet.remote[1])
            | (peer[2] ^ packet.remote[2])
            | (peer[3] ^ packet.remote[3]);
        outside && differs == 0
    };
    if known && flags & flags::OVERFLOW == 0 { slot } else { 0 }
}

/// Looks into the cache of peers; 0 when it is not there.
#[inline(always)]
fn remembered(packet: &Packet, socket: &Socket, cgroup: u64, cookie: u64) -> u32 {
    let role = if packet.is_tcp() { Role::Server } else { datagram_role(packet, socket) };
    let mut slot = 0;
    if role != Role::Server {
        slot = peer_line(peer_tag(cookie, packet, false));
    }
    if slot == 0 && role != Role::Client {
        slot = peer_line(peer_tag(cgroup, packet, false));
    }
    slot
}

/// Makes the key and finds its edge, the long way.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
unsafe fn resolve(
    skb: *mut __sk_buff,
    packet: &Packet,
    socket: &Socket,
    cgroup: u64,
    egress: bool,
    cookie: u64,
) -> u32 {
    let mut key = EdgeKey { cgroup, peer: packet.remote, port: 0, protocol: packet.protocol(), flags: 0, zero: 0 };
    if packet.is_ipv6() {
        key.flags = flags::IPV6;
    }
    // SAFETY: the caller's promise.
    if unsafe { (*skb).ifindex } == LOOPBACK_IFINDEX {
        // SAFETY: the caller's promise.
        let peer = unsafe { other_end(skb, packet, cgroup, egress) };
        key.peer = [peer as u32, (peer >> 32) as u32, 0, 0];
        key.flags |= flags::LOOPBACK;
        if egress && packet.is_udp() {
            forget_peer(peer, packet);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { set_role(skb, &mut key, packet, socket, egress) };
    // SAFETY: a key is integers without padding, aligned and sized by 8.
    unsafe { opaque::forget(&raw mut key) };
    let slot = edges::slot(&key);
    if key.loopback_peer() == Some(0) {
        return slot | TRANSIENT;
    }
    // What is looked for by the client in `forget_peer` must be what is written here for the server: hence its cgroup.
    let by_peer = packet.is_tcp() || packet.is_udp();
    if by_peer && (!socket.is_connected() || begins(packet)) {
        let who = if packet.is_tcp() || key.role() == Role::Server { cgroup } else { cookie };
        let tag = peer_tag(who, packet, false);
        write(PEERS.get_ptr_mut(cache::peer_index(tag)), cache::line(tag, slot));
    }
    slot
}

/// The cgroup of the socket at the other end of a loopback packet, of one in `cgroup`; 0 when there is none (yet).
#[inline(always)]
unsafe fn other_end(skb: *mut __sk_buff, packet: &Packet, cgroup: u64, egress: bool) -> u64 {
    let mut peer = 0;
    // SAFETY: the caller's promise, here and below.
    unsafe {
        if begins(packet) {
            if egress {
                dialed::leave(skb, packet, cgroup);
            } else {
                peer = dialed::sender(skb, packet);
            }
        }
        if peer == 0 && (packet.is_tcp() || packet.is_udp()) {
            peer = socket::peer_cgroup(skb, packet);
        }
    }
    peer
}

/// Says who called whom, and by which port.
#[inline(always)]
unsafe fn set_role(skb: *mut __sk_buff, key: &mut EdgeKey, packet: &Packet, socket: &Socket, egress: bool) {
    let role = if packet.is_tcp() {
        // SAFETY: the caller's promise.
        unsafe { tcp_role(skb, packet, socket, egress) }
    } else if packet.is_udp() || packet.protocol() == SCTP {
        datagram_role(packet, socket)
    } else {
        return;
    };
    match role {
        Role::Client => as_client(key, packet),
        Role::Server => as_server(key, packet),
        // Two unconnected sockets whose ports say nothing: who speaks first is the client. Afterwards the edge that was
        // made then says it, whichever packet asks.
        Role::None if egress => {
            as_server(key, packet);
            if edges::known(key) == 0 {
                as_client(key, packet);
            }
        }
        Role::None => {
            as_client(key, packet);
            if edges::known(key) == 0 {
                as_server(key, packet);
            }
        }
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

/// The handshake says who called whom; for a connection that is older than the agent, or half open without a listener, the
/// kernel is asked whether somebody listens here.
#[inline(always)]
unsafe fn tcp_role(skb: *mut __sk_buff, packet: &Packet, socket: &Socket, egress: bool) -> Role {
    let flags = packet.tcp_flags();
    // SYN out or SYN-ACK in; where both ends dial, also the SYN that crosses ours. What a socket that listens has to do with is the
    // server's; the SYN-ACK that answers a crossing SYN comes from none, and seldom does anybody listen where it comes from.
    let dials = egress == (flags & tcp::ACK == 0) || socket.is_connecting();
    if flags & tcp::SYN != 0 && dials {
        Role::Client
    } else if socket.is_listening() {
        Role::Server
    // SAFETY: the caller's promise.
    } else if unsafe { socket::local_listener(skb, packet) } {
        Role::Server
    } else {
        Role::Client
    }
}

/// Datagrams have no handshake: a port that the kernel chose is the client's; where that does not tell, who is
/// connected is the client. `Role::None` when nothing tells.
#[inline(always)]
fn datagram_role(packet: &Packet, socket: &Socket) -> Role {
    let ephemeral = EPHEMERAL_MIN.load();
    let local_chosen = u32::from(packet.local_port) >= ephemeral;
    let remote_chosen = u32::from(packet.remote_port) >= ephemeral;
    if local_chosen != remote_chosen {
        if local_chosen { Role::Client } else { Role::Server }
    } else if socket.is_connected() {
        Role::Client
    } else {
        Role::None
    }
}

/// A tag for a peer of an unconnected socket. Seen from the other end when `reversed`.
#[inline(always)]
fn peer_tag(who: u64, packet: &Packet, reversed: bool) -> u64 {
    let (remote, remote_port, local_port) = if reversed {
        (&packet.local, packet.local_port, packet.remote_port)
    } else {
        (&packet.remote, packet.remote_port, packet.local_port)
    };
    cache::peer_tag(who, packet.protocol(), remote, remote_port, local_port)
}

/// The slot that is remembered for a tag, or 0.
#[inline(always)]
fn peer_line(tag: u64) -> u32 {
    PEERS.get(cache::peer_index(tag)).map_or(0, |line| cache::slot_of(*line, tag))
}

#[inline(always)]
fn write(line: Option<*mut u64>, value: u64) {
    if let Some(line) = line {
        // SAFETY: the map gave a valid, aligned pointer; a line is one word, so a reader sees old or new.
        unsafe { *line = value };
    }
}

/// A UDP socket sends over loopback for the first time: what the other side, in cgroup `peer`, remembers of this address
/// and port was another socket, perhaps of another container.
#[inline(always)]
fn forget_peer(peer: u64, packet: &Packet) {
    let tag = peer_tag(peer, packet, true);
    if peer_line(tag) != 0 {
        write(PEERS.get_ptr_mut(cache::peer_index(tag)), 0);
    }
}
