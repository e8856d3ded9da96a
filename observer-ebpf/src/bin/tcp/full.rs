//! A full TCP socket, as a program is given it: an address whose fields are copied by a helper, or a pointer of a type that
//! the verifier knows, whose fields are loads.

use aya_ebpf::{Global, helpers::generated::bpf_skc_to_tcp_sock};

use crate::{
    maps::{
        CGROUP_KN, KN_ID, SK_CGROUP, SK_ERR, SK_PROTOCOL, SKC_COOKIE, SKC_DADDR, SKC_DPORT, SKC_FAMILY, SKC_NUM,
        SKC_RCV_SADDR, SKC_V6_DADDR, SKC_V6_RCV_SADDR, TP_SRTT_US, TP_TOTAL_RETRANS,
    },
    slot::{self, Caller},
    sock::{self, Peer},
};

/// `IPPROTO_TCP`.
const TCP: u16 = 6;

/// What the kernel has measured of a connection.
#[derive(Clone, Copy, Default)]
pub struct Measures {
    /// The smoothed round trip time, in microseconds; 0 when there is none.
    pub round_trip: u32,
    /// Segments that were sent again.
    pub retransmitted: u32,
}

impl Measures {
    /// Of a `struct tcp_sock`.
    #[inline(always)]
    pub fn of(tcp: *const u8) -> Self {
        let round_trip: u32 = load(tcp, TP_SRTT_US.load() as usize);
        Self { round_trip: round_trip >> 3, retransmitted: load(tcp, TP_TOTAL_RETRANS.load() as usize) }
    }
}

/// A full socket.
pub trait Full: Copy {
    /// Whether the program may use atomic exchanges: it is not loaded on a kernel without them.
    const EXCHANGES: bool;

    /// Its address.
    fn address(self) -> u64;

    /// Its slot; [`slot::NONE`] when it is not observed, or is not TCP's: other protocols have the same states.
    fn slot(self, caller: Caller) -> u32;

    /// The id of its cgroup v2; 0 where the kernel keeps something else in its place (cgroup v1's net_cls).
    fn cgroup_id(self) -> u64;

    /// What the kernel has measured.
    fn measures(self) -> Measures;

    /// The pending error (`sk_err`).
    fn error(self) -> u32;
}

/// The address of a socket, as tracepoints give it.
#[derive(Clone, Copy)]
pub struct Address(pub u64);

impl Full for Address {
    const EXCHANGES: bool = false;

    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn slot(self, caller: Caller) -> u32 {
        let slot = slot::find(self.0, caller);
        if slot != slot::NONE && !sock::is_tcp(self.0) { slot::NONE } else { slot }
    }

    #[inline(always)]
    fn cgroup_id(self) -> u64 {
        sock::cgroup_id(self.0)
    }

    #[inline(always)]
    fn measures(self) -> Measures {
        let round_trip: u32 = sock::read(self.0, &TP_SRTT_US);
        Measures { round_trip: round_trip >> 3, retransmitted: sock::read(self.0, &TP_TOTAL_RETRANS) }
    }

    #[inline(always)]
    fn error(self) -> u32 {
        sock::read(self.0, &SK_ERR)
    }
}

/// A pointer to a `struct sock`, as tracepoints give it to programs that are loaded with the kernel's types.
#[derive(Clone, Copy)]
pub struct Pointer(pub *const u8);

impl Pointer {
    /// Loads one of its fields.
    #[inline(always)]
    pub fn load<T>(self, offset: &Global<u32>) -> T {
        load(self.0, offset.load() as usize)
    }

    /// The same socket, as a `struct tcp_sock`; `None` when it is not TCP's.
    #[inline(always)]
    pub fn tcp(self) -> Option<*const u8> {
        // SAFETY: the verifier knows the pointer as that of a socket; the helper answers with the same one, or with null.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut().cast()) }.cast_const().cast::<u8>();
        (!tcp.is_null()).then_some(tcp)
    }

    /// Loads an IPv6 address.
    #[inline(always)]
    fn words(self, offset: &Global<u32>) -> [u32; 4] {
        let at = offset.load() as usize;
        [load(self.0, at), load(self.0, at + 4), load(self.0, at + 8), load(self.0, at + 12)]
    }
}

impl Peer for Pointer {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.load(&SKC_COOKIE)
    }

    #[inline(always)]
    fn daddr(&self) -> u32 {
        self.load(&SKC_DADDR)
    }

    #[inline(always)]
    fn v6_daddr(&self) -> [u32; 4] {
        self.words(&SKC_V6_DADDR)
    }

    #[inline(always)]
    fn dport(&self) -> u16 {
        self.load(&SKC_DPORT)
    }

    #[inline(always)]
    fn num(&self) -> u16 {
        self.load(&SKC_NUM)
    }

    #[inline(always)]
    fn family(&self) -> u16 {
        self.load(&SKC_FAMILY)
    }

    #[inline(always)]
    fn rcv_saddr(&self) -> u32 {
        self.load(&SKC_RCV_SADDR)
    }

    #[inline(always)]
    fn v6_rcv_saddr(&self) -> [u32; 4] {
        self.words(&SKC_V6_RCV_SADDR)
    }
}

impl Full for Pointer {
    const EXCHANGES: bool = true;

    #[inline(always)]
    fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn slot(self, caller: Caller) -> u32 {
        if self.load::<u16>(&SK_PROTOCOL) != TCP {
            return slot::NONE;
        }
        let mut slot = slot::cached(&self);
        if slot == 0 {
            // One that was just accepted: most are found so, and nothing has to be copied.
            slot = slot::by_peer(self.cgroup_id(), &self);
        }
        if slot == 0 { slot::find(self.address(), caller) } else { slot }
    }

    /// As [`sock::cgroup_id`] reads it. Before kernel 5.15 (`struct sock_cgroup_data` of include/linux/cgroup-defs.h) the
    /// verifier knows no pointer there, and the program is not loaded.
    #[inline(always)]
    fn cgroup_id(self) -> u64 {
        let cgroup: *const u8 = self.load(&SK_CGROUP);
        let node: *const u8 = load(cgroup, CGROUP_KN.load() as usize);
        load(node, KN_ID.load() as usize)
    }

    #[inline(always)]
    fn measures(self) -> Measures {
        self.tcp().map_or_else(Measures::default, Measures::of)
    }

    #[inline(always)]
    fn error(self) -> u32 {
        self.load(&SK_ERR)
    }
}

/// Loads a field of a structure of the kernel.
#[inline(always)]
pub fn load<T>(structure: *const u8, offset: usize) -> T {
    // SAFETY: the verifier knows the structure and that the field at this constant offset has this size; the kernel turns a
    // load of what is not there into zero.
    unsafe { structure.add(offset).cast::<T>().read_volatile() }
}
