//! Fields of a kernel socket, at the offsets that this kernel has them.

use core::mem::MaybeUninit;

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};
use observer_common::tcp::COMMON_LEN;

use crate::maps::{
    CGROUP_KN, KN_ID, KN_PARENT, OBSERVED, SK_CGROUP, SK_PROTOCOL, SK_SOCKET, SKC_COOKIE, SKC_DADDR, SKC_DPORT,
    SKC_FAMILY, SKC_NET, SKC_NUM, SKC_RCV_SADDR, SKC_STATE, SKC_V6_DADDR, SKC_V6_RCV_SADDR, SOCKET_STATE, TP_HELD_BACK,
    TP_LAST, TP_PACING, TP_SIGNING,
};

/// Of `include/net/tcp_states.h`.
pub mod state {
    pub const ESTABLISHED: i32 = 1;
    pub const SYN_SENT: i32 = 2;
    pub const SYN_RECV: i32 = 3;
    pub const CLOSE: i32 = 7;
    pub const LISTEN: i32 = 10;

    /// A state that comes after `ESTABLISHED` or is it: `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`.
    #[inline(always)]
    pub fn was_established(state: i32) -> bool {
        const AFTER: u32 = 1 << ESTABLISHED | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
        (state as u32) < 32 && 1u32 << state & AFTER != 0
    }
}

/// `AF_INET6` of `include/linux/socket.h`.
const AF_INET6: u16 = 10;
/// Reads a field of the structure at `address`; 0 when it cannot be read.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64, offset: &Global<u32>) -> T {
    let mut value = T::default();
    // SAFETY: the destination is a value of this size on the stack, of integers; the helper checks the kernel address and
    // writes zeros when it is none.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address.wrapping_add(offset.load().into()) as *const _,
        )
    };
    value
}

/// What tells a socket and its peer from others.
pub trait Peer {
    /// The cookie; 0 when nobody has asked for it.
    fn cookie(&self) -> u64;
    /// The peer's IPv4 address, in network byte order.
    fn daddr(&self) -> u32;
    /// The peer's IPv6 address, in network byte order.
    fn v6_daddr(&self) -> [u32; 4];
    /// The peer's port, in network byte order.
    fn dport(&self) -> u16;
    /// The socket's own port, in host byte order.
    fn num(&self) -> u16;
    /// The address family.
    fn family(&self) -> u16;
    /// The socket's own IPv4 address, in network byte order.
    fn rcv_saddr(&self) -> u32;
    /// The socket's own IPv6 address, in network byte order.
    fn v6_rcv_saddr(&self) -> [u32; 4];

    /// Its packets are IPv6; a socket of that family may speak IPv4.
    #[inline(always)]
    fn is_ipv6(&self) -> bool {
        // In this order: every field that is asked for is read.
        if self.family() != AF_INET6 {
            return false;
        }
        let peer = self.v6_daddr();
        !(peer[0] == 0 && peer[1] == 0 && peer[2] == MAPPED)
    }

    /// The peer's address as an edge has it.
    #[inline(always)]
    fn remote(&self) -> [u32; 4] {
        if self.is_ipv6() { self.v6_daddr() } else { [0, 0, MAPPED, self.daddr()] }
    }

    /// Both ends, read once.
    #[inline(always)]
    fn ends(&self) -> Ends {
        self.with_ends(|ends| ends)
    }

    /// Goes on with both ends, for IPv4 and for IPv6 apart: what is made of so many words needs fewer registers when most are
    /// known.
    #[inline(always)]
    fn with_ends<T>(&self, then: impl Fn(Ends) -> T) -> T {
        let ports = (self.num(), u16::from_be(self.dport()));
        if self.is_ipv6() {
            then(Ends { is_ipv6: true, local: self.v6_rcv_saddr(), remote: self.v6_daddr(), ports })
        } else {
            let (local, remote) = ([0, 0, MAPPED, self.rcv_saddr()], [0, 0, MAPPED, self.daddr()]);
            then(Ends { is_ipv6: false, local, remote, ports })
        }
    }
}

/// The ends of a connection as one of its sockets has them.
pub struct Ends {
    /// Its packets are IPv6.
    pub is_ipv6: bool,
    /// The socket's own address, as an edge has it.
    pub local: [u32; 4],
    /// The peer's.
    pub remote: [u32; 4],
    /// The socket's own port and the peer's, in host byte order.
    pub ports: (u16, u16),
}

impl Ends {
    /// Its packets stay on this host: a loopback address, or its own.
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        let (own, peer) = (&self.local, &self.remote);
        let last = u32::from_be(peer[3]);
        let is_first = if self.is_ipv6 { peer[0] | peer[1] | peer[2] == 0 && last == 1 } else { last >> 24 == 127 };
        is_first || same(own, peer)
    }
}

/// Two addresses are the same.
#[inline(always)]
pub fn same(one: &[u32; 4], other: &[u32; 4]) -> bool {
    (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3]) == 0
}

/// The `struct sock_common` at the beginning of a socket, read in one piece.
#[repr(C)]
pub struct Sock {
    bytes: [u64; COMMON_LEN / 8],
}

impl Sock {
    /// Reads it to a place of the caller's, so that the stack holds it once. All zeros where it cannot be read: a socket of
    /// nobody.
    #[inline(always)]
    pub fn read(sk: u64, to: &mut MaybeUninit<Self>) -> &Self {
        // SAFETY: as in `read`; the helper writes all of it, zeros when it fails.
        unsafe {
            bpf_probe_read_kernel(to.as_mut_ptr().cast(), COMMON_LEN as u32, sk as *const _);
            to.assume_init_ref()
        }
    }

    #[inline(always)]
    pub fn field<T: Copy>(&self, offset: &Global<u32>) -> T {
        // SAFETY: the loader checked that every field lies within what was read, and that the kernel's alignment is `T`'s.
        // The verifier knows the offset as a constant.
        unsafe { core::ptr::read_volatile(self.bytes.as_ptr().byte_add(offset.load() as usize).cast::<T>()) }
    }

    #[inline(always)]
    fn words(&self, offset: &Global<u32>) -> [u32; 4] {
        self.field(offset)
    }
}

impl Peer for Sock {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.field(&SKC_COOKIE)
    }

    #[inline(always)]
    fn daddr(&self) -> u32 {
        self.field(&SKC_DADDR)
    }

    #[inline(always)]
    fn v6_daddr(&self) -> [u32; 4] {
        self.words(&SKC_V6_DADDR)
    }

    #[inline(always)]
    fn dport(&self) -> u16 {
        self.field(&SKC_DPORT)
    }

    #[inline(always)]
    fn num(&self) -> u16 {
        self.field(&SKC_NUM)
    }

    #[inline(always)]
    fn family(&self) -> u16 {
        self.field(&SKC_FAMILY)
    }

    #[inline(always)]
    fn rcv_saddr(&self) -> u32 {
        self.field(&SKC_RCV_SADDR)
    }

    #[inline(always)]
    fn v6_rcv_saddr(&self) -> [u32; 4] {
        self.words(&SKC_V6_RCV_SADDR)
    }
}

/// The word before an IPv4 address in an IPv6 one.
const MAPPED: u32 = 0xffffu32.to_be();

/// The protocol of a full socket is TCP: others have the same states.
#[inline(always)]
pub fn is_tcp(sk: u64) -> bool {
    /// `IPPROTO_TCP`.
    const TCP: u16 = 6;
    read::<u16>(sk, &SK_PROTOCOL) == TCP
}

/// The state of the connected TCP socket at this address; 0, which is none, where there is no such socket (any more). Not inlined:
/// its part of the stack is not added to that of the others.
///
/// What ends leaves its memory as it is, until the kernel makes another socket there, or has no other socket beside it and gives the
/// memory away (`SLAB_TYPESAFE_BY_RCU` in include/linux/slab.h). Anything may be there then. So what every connection has is looked
/// at: the protocol, the family, a pointer of the kernel's to its namespace, and where it is over the peer's port, which a new socket
/// lacks.
#[inline(never)]
pub fn state_of_connection(sk: u64) -> i32 {
    /// `AF_INET` of `include/linux/socket.h`.
    const AF_INET: u16 = 2;
    let mut sock = MaybeUninit::uninit();
    let sock = Sock::read(sk, &mut sock);
    let is_internet = sock.family() == AF_INET || sock.family() == AF_INET6;
    if !is_internet || !is_in_kernel(sock.field(&SKC_NET)) || !is_tcp(sk) {
        return 0;
    }
    let state = i32::from(sock.field::<u8>(&SKC_STATE));
    // What is not over is in use, also by a peer whose port is 0.
    let is_there = match state {
        state::SYN_SENT | state::SYN_RECV => true,
        state::CLOSE => sock.dport() != 0 && is_whole(sk),
        _ => state::was_established(state),
    };
    if is_there { state } else { 0 }
}

/// The end of the socket, where its counters are, is still its own. Memory is given away by the page, and that end may lie in another
/// page than the beginning. So two pointers of it that go into the kernel's image must be there, near each other: what the timers call
/// that every socket has (`tcp_init_xmit_timers` in net/ipv4/tcp_timer.c), and where these lie in another page than the last that is
/// read, the functions for signed segments (`tcp_v4_init_sock` in net/ipv4/tcp_ipv4.c). Nobody changes them.
#[inline(always)]
fn is_whole(sk: u64) -> bool {
    /// 4 KiB; a kernel with larger pages gives them away whole.
    const PAGE: u32 = 12;
    let page_of = |offset: &Global<u32>| sk.wrapping_add(offset.load().into()) >> PAGE;
    let pacing = read(sk, &TP_PACING);
    if !are_near(pacing, read(sk, &TP_HELD_BACK)) {
        return false;
    }
    let last = page_of(&TP_LAST);
    sk >> PAGE == last
        || page_of(&TP_HELD_BACK) == last
        || (page_of(&TP_SIGNING) == last && are_near(pacing, read(sk, &TP_SIGNING)))
}

/// Two addresses of the kernel's image, which is smaller than this, and not the same one.
#[inline(always)]
fn are_near(one: u64, other: u64) -> bool {
    const IMAGE: u64 = 1 << 28;
    let distance = one.wrapping_sub(other);
    let is_near = distance < IMAGE || distance.wrapping_neg() < IMAGE;
    is_in_kernel(one) && is_in_kernel(other) && is_near && distance != 0
}

/// The upper half of all addresses is the kernel's.
#[inline(always)]
fn is_in_kernel(address: u64) -> bool {
    address >> 63 == 1
}

/// The state of a TCP socket.
#[inline(always)]
pub fn state_of(sk: u64) -> i32 {
    read::<u8>(sk, &SKC_STATE).into()
}

/// A full socket in the state `SYN_RECV` has dialed: `connect` is under way (include/uapi/linux/net.h has the states of what a
/// process holds; `__inet_stream_connect` and `inet_shutdown` in net/ipv4/af_inet.c set them under the socket's lock). One that was
/// made for a listener is held by nobody, or, if it was opened with data in its SYN, accepted already and connected. Not
/// inlined: it is rare, and its part of the stack is not added to that of the others.
#[inline(never)]
pub fn has_dialed(sk: u64) -> bool {
    const SS_CONNECTING: u32 = 2;
    const SS_DISCONNECTING: u32 = 4;
    let held: u64 = read(sk, &SK_SOCKET);
    let state: u32 = read(held, &SOCKET_STATE);
    state == SS_CONNECTING || state == SS_DISCONNECTING
}

/// The cgroup v2 id of a full socket; 0 where the kernel keeps something else in its place (cgroup v1's net_cls).
#[inline(always)]
pub fn cgroup_id(sk: u64) -> u64 {
    read(cgroup_node(sk), &KN_ID)
}

/// The agent has attached to the cgroup of a full socket, or above it.
#[inline(never)]
pub fn is_observed(sk: u64) -> bool {
    /// A pod's cgroup, a container's, and what the container makes below its own.
    const LEVELS: u32 = 8;
    let mut node = cgroup_node(sk);
    for _ in 0..LEVELS {
        let cgroup: u64 = read(node, &KN_ID);
        if cgroup == 0 {
            return false;
        }
        // SAFETY: only whether it is there is looked at.
        if unsafe { OBSERVED.get(cgroup) }.is_some() {
            return true;
        }
        node = read(node, &KN_PARENT);
    }
    false
}

/// The lower half of an address. The verifier may know it as that of a structure, with which no program calculates; to copy
/// a half of it is allowed.
#[inline(always)]
pub fn lower_half(address: u64) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let half: u64;
        // SAFETY: a move between two registers.
        unsafe { core::arch::asm!("w0 = w1", in("r1") address, lateout("r0") half, options(pure, nomem, nostack)) };
        half as u32
    }
    // Not the kernel: an editor or a check on the host.
    #[cfg(not(target_arch = "bpf"))]
    {
        address as u32
    }
}

/// The address of the `struct kernfs_node` of a full socket's cgroup.
#[inline(always)]
fn cgroup_node(sk: u64) -> u64 {
    /// `is_data` and `no_refcnt` of `struct sock_cgroup_data`.
    const FLAGS: u64 = 3;
    const IS_DATA: u64 = 1;
    let cgroup: u64 = read(sk, &SK_CGROUP);
    if cgroup & IS_DATA != 0 {
        return 0;
    }
    read(cgroup & !FLAGS, &CGROUP_KN)
}
