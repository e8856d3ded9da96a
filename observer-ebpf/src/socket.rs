//! The socket in hand: its line in the cache, and the questions that the kernel answers about sockets.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock_tuple},
    helpers::{bpf_probe_read_kernel, bpf_sk_cgroup_id, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};
use observer_common::cache;

use crate::{opaque, packet::Packet};

/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const LISTEN: u32 = 10;
/// `TCP_SYN_SENT` of `include/net/tcp_states.h`.
const SYN_SENT: u32 = 2;
/// `TCP_SYN_RECV` of `include/net/tcp_states.h`.
const SYN_RECV: u32 = 3;
/// `BPF_F_CURRENT_NETNS`: look in the namespace of the packet.
const CURRENT_NETNS: u64 = -1i32 as u64;

/// Where a socket's line is and which tag it must have.
pub struct SocketLine {
    /// Index into the cache.
    pub index: u32,
    /// The tag, in the upper 40 bits.
    pub tag: u64,
}

impl SocketLine {
    /// The line of the packet's socket. The peer that the socket is connected to is part of the tag: a socket that
    /// is connected anew, to somebody else, misses its old line.
    ///
    /// # Safety
    ///
    /// `skb` is the context of the running program.
    #[inline(always)]
    pub unsafe fn new(skb: *mut __sk_buff, cookie: u64) -> Self {
        // SAFETY: `skb` is the context; the verifier turns these into loads from the socket, after a test for null.
        let tag = unsafe {
            let sk = (*skb).__bindgen_anon_2.sk;
            if sk.is_null() {
                cache::socket_tag(cookie, [0; 4], 0, 0)
            } else {
                let ip6 = [(*sk).dst_ip6[0], (*sk).dst_ip6[1], (*sk).dst_ip6[2], (*sk).dst_ip6[3]];
                cache::socket_tag(cookie, ip6, (*sk).dst_ip4, (*sk).dst_port)
            }
        };
        Self { index: cache::socket_index(cookie), tag }
    }
}

/// What a program may know of the packet's own socket. Integers alone, 8 bytes: see [`crate::opaque`].
#[repr(C, align(8))]
pub struct Socket {
    state: u32,
    peer_port: u32,
}

impl Socket {
    /// Reads the packet's socket.
    ///
    /// # Safety
    ///
    /// `skb` is the context of the running program.
    #[inline(always)]
    pub unsafe fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: as in `SocketLine::new`; the value is complete before it is made opaque.
        unsafe {
            let sk = (*skb).__bindgen_anon_2.sk;
            let mut socket = if sk.is_null() {
                Self { state: 0, peer_port: 0 }
            } else {
                Self { state: (*sk).state, peer_port: u32::from((*sk).dst_port) }
            };
            opaque::forget(&raw mut socket);
            socket
        }
    }

    /// It listens: the packet belongs to a handshake.
    #[inline(always)]
    pub fn is_listening(&self) -> bool {
        // SAFETY: a reference can be read.
        unsafe { core::ptr::read_volatile(&raw const self.state) == LISTEN }
    }

    /// Its own SYN has no answer yet.
    #[inline(always)]
    pub fn is_connecting(&self) -> bool {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const self.state) == SYN_SENT }
    }

    /// Its handshake is over.
    #[inline(always)]
    pub fn is_established(&self) -> bool {
        // SAFETY: as above.
        let state = unsafe { core::ptr::read_volatile(&raw const self.state) };
        state != SYN_SENT && state != SYN_RECV && self.is_connected()
    }

    /// It has one peer for good.
    #[inline(always)]
    pub fn is_connected(&self) -> bool {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const self.peer_port) != 0 && !self.is_listening() }
    }
}

/// The address of the packet's socket, as a number; 0 when it has none.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(always)]
pub unsafe fn address(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the caller's promise.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    // The verifier knows the pointer wherever it is moved, and lets nobody calculate with it. What is read from memory by
    // its address is a number.
    // SAFETY: eight bytes of this program's stack.
    unsafe { bpf_probe_read_kernel((&raw const socket).cast::<u64>()) }.unwrap_or(0)
}

/// The cgroup id of the socket at the other end of a loopback packet; 0 when there is none (yet).
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(never)]
pub unsafe fn peer_cgroup(skb: *mut __sk_buff, packet: &Packet) -> u64 {
    // The lookup is done as if a packet went from here to there, so it finds the socket that is there.
    let mut tuple = tuple(packet, true);
    // SAFETY: `skb` is the context, the tuple is initialised for the packet's family.
    unsafe { cgroup_of(skb, packet, &mut tuple) }
}

/// True when a TCP socket of this namespace listens at the packet's local address.
///
/// # Safety
///
/// `skb` is the context of the running program.
#[inline(never)]
pub unsafe fn local_listener(skb: *mut __sk_buff, packet: &Packet) -> bool {
    // Port 0 at the other side: no connection can match, only a listener.
    let mut tuple = tuple(packet, false);
    // SAFETY: `skb` is the context, the tuple is initialised, and a socket that was found is released.
    unsafe {
        let sk = bpf_sk_lookup_tcp(
            skb.cast(),
            (&raw mut tuple).cast::<bpf_sock_tuple>(),
            tuple_size(packet),
            CURRENT_NETNS,
            0,
        );
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk.cast());
    }
    true
}

#[inline(always)]
unsafe fn cgroup_of(skb: *mut __sk_buff, packet: &Packet, tuple: &mut Tuple) -> u64 {
    // SAFETY: `skb` is the context, the tuple is initialised, and a socket that was found is released.
    unsafe {
        let tuple = core::ptr::from_mut(tuple).cast::<bpf_sock_tuple>();
        let sk = if packet.is_tcp() {
            bpf_sk_lookup_tcp(skb.cast(), tuple, tuple_size(packet), CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(skb.cast(), tuple, tuple_size(packet), CURRENT_NETNS, 0)
        };
        if sk.is_null() {
            return 0;
        }
        let cgroup = bpf_sk_cgroup_id(sk.cast());
        bpf_sk_release(sk.cast());
        cgroup
    }
}

/// A `struct bpf_sock_tuple` as words: addresses, then both ports in one word. IPv4 uses the first three. Plain words,
/// because a half-filled union leaves bytes that the verifier must see initialised.
type Tuple = [u32; 9];

#[inline(always)]
fn tuple_size(packet: &Packet) -> u32 {
    if packet.is_ipv6() { 36 } else { 12 }
}

/// From here to there (`outward`), or from port 0 there to here.
#[inline(always)]
fn tuple(packet: &Packet, outward: bool) -> Tuple {
    let (from, to, sport, dport) = if outward {
        (&packet.local, &packet.remote, packet.local_port, packet.remote_port)
    } else {
        (&packet.remote, &packet.local, 0, packet.local_port)
    };
    // In memory: source port, destination port, each in network byte order.
    let ports = (u32::from(sport) << 16 | u32::from(dport)).to_be();
    if packet.is_ipv6() {
        [from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3], ports]
    } else {
        [from[3], to[3], ports, 0, 0, 0, 0, 0, 0]
    }
}
