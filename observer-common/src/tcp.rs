//! What the TCP probe and the agent agree on.

use crate::cache::SPREAD;

/// Names of the maps. They are made and pinned with the traffic's own, so that slots are given back with all that
/// counts for them; the sizes are in [`crate::abi`].
pub mod maps {
    /// [`super::TcpRow`] by slot, one row for all CPUs.
    pub const QUALITY: &str = "TCP_QUALITY";
    /// [`super::LiveLine`] by [`super::live_index`]: established connections, but for those that are older than the agent.
    pub const LINES: &str = "TCP_LINES";
    /// Address of a kernel socket to [`super::Connection`]: those whose line was taken, those that are older than the agent,
    /// and all of them on a kernel before 5.15, whose programs take no line.
    pub const LIVE: &str = "TCP_LIVE";
    /// How many entries [`LIVE`] may have, at most, of the sockets of a group of lines (`u64` by [`super::hashed_index`]): raised
    /// before one is made, lowered by who has taken one out. Most often there is none, and then nobody has to look there.
    pub const HASHED: &str = "TCP_HASHED";
    /// One `u64`: the generation of the programs that count; 0 while there are none, and the traffic's own count
    /// the connections that they see begin.
    pub const OWNER: &str = "TCP_OWNER";

    /// What the probe's object shares with the traffic's.
    pub const SHARED: [&str; 13] = [
        crate::abi::maps::EDGES,
        crate::abi::maps::ROWS,
        crate::abi::maps::FREE_SLOTS,
        crate::abi::maps::SPARE_SLOTS,
        crate::abi::maps::OBSERVED,
        crate::abi::maps::SOCKETS,
        crate::abi::maps::PEERS,
        crate::abi::maps::LOSSES,
        QUALITY,
        LINES,
        LIVE,
        HASHED,
        OWNER,
    ];
}

/// Names of the programs, each with the tracepoint it belongs to.
pub mod programs {
    /// Connections begin, end, or fail: loaded with the kernel's types, from 5.15 on.
    pub const CHANGE: (&str, &str) = ("tcp_change", "inet_sock_set_state");
    /// The same for every other kernel.
    pub const STATE: (&str, &str) = ("tcp_state", "inet_sock_set_state");
    /// A segment is sent again.
    pub const RETRANSMIT: (&str, &str) = ("tcp_retransmit", "tcp_retransmit_skb");
    /// A SYN-ACK is sent again.
    pub const RETRANSMIT_SYNACK: (&str, &str) = ("tcp_synack", "tcp_retransmit_synack");
    /// A reset goes out.
    pub const SEND_RESET: (&str, &str) = ("tcp_reset_sent", "tcp_send_reset");
    /// A reset came in.
    pub const RECEIVE_RESET: (&str, &str) = ("tcp_reset_received", "tcp_receive_reset");

    /// Those that run on every kernel.
    pub const RARE: [(&str, &str); 4] = [RETRANSMIT, RETRANSMIT_SYNACK, SEND_RESET, RECEIVE_RESET];
    /// All of them; of the first two only one runs.
    pub const ALL: [(&str, &str); 6] = [CHANGE, STATE, RETRANSMIT, RETRANSMIT_SYNACK, SEND_RESET, RECEIVE_RESET];
}

/// Names of the constants that the loader sets: [`GENERATION`](globals::GENERATION), and offsets of fields (`u32`).
pub mod globals {
    /// The programs count while `OWNER` holds this number (`u64`).
    pub const GENERATION: &str = "TCP_GENERATION";
    /// `struct sock_common`: the peer's IPv4 address.
    pub const DADDR: &str = "SKC_DADDR";
    /// The socket's own IPv4 address.
    pub const RCV_SADDR: &str = "SKC_RCV_SADDR";
    /// The peer's port, in network byte order.
    pub const DPORT: &str = "SKC_DPORT";
    /// The socket's own port, in host byte order.
    pub const NUM: &str = "SKC_NUM";
    /// The address family.
    pub const FAMILY: &str = "SKC_FAMILY";
    /// The state.
    pub const STATE: &str = "SKC_STATE";
    /// The network namespace.
    pub const NET: &str = "SKC_NET";
    /// The peer's IPv6 address.
    pub const V6_DADDR: &str = "SKC_V6_DADDR";
    /// The socket's own IPv6 address.
    pub const V6_RCV_SADDR: &str = "SKC_V6_RCV_SADDR";
    /// The cookie.
    pub const COOKIE: &str = "SKC_COOKIE";
    /// `struct sock`: the protocol.
    pub const PROTOCOL: &str = "SK_PROTOCOL";
    /// The pending error.
    pub const ERR: &str = "SK_ERR";
    /// The pointer to the `struct socket` that a process holds; null where none does.
    pub const SOCKET: &str = "SK_SOCKET";
    /// `struct socket`: its state, which is not that of TCP.
    pub const SOCKET_STATE: &str = "SOCKET_STATE";
    /// The pointer to the cgroup, whose low bits are flags before kernel 5.16.
    pub const CGROUP: &str = "SK_CGROUP";
    /// `struct cgroup`: the pointer to its kernfs node.
    pub const CGROUP_KN: &str = "CGROUP_KN";
    /// `struct kernfs_node`: its number, which is the cgroup id.
    pub const KN_ID: &str = "KN_ID";
    /// The pointer to the node above it.
    pub const KN_PARENT: &str = "KN_PARENT";
    /// `struct tcp_sock`: the smoothed round trip time, in eighths of microseconds.
    pub const SRTT_US: &str = "TP_SRTT_US";
    /// Segments sent again.
    pub const TOTAL_RETRANS: &str = "TP_TOTAL_RETRANS";
    /// What the timer that paces calls; 0 where that is not known.
    pub const PACING: &str = "TP_PACING";
    /// What the timer of held back confirmations calls; 0 where that is not known.
    pub const HELD_BACK: &str = "TP_HELD_BACK";
    /// Functions for signed segments; 0 where the kernel has none.
    pub const SIGNING: &str = "TP_SIGNING";
    /// The last byte of all that the programs read of it.
    pub const LAST: &str = "TP_LAST";
}

/// Bytes of `struct sock_common` that the programs read in one piece; every field of it that they use lies within.
pub const COMMON_LEN: usize = 112;

/// Connections that fit [`maps::LIVE`]. What finds no place is counted as a loss and is in no gauge.
pub const LIVE_CONNECTIONS: u32 = 65_536;

/// Lines of [`maps::LINES`]: 256 KiB of memory.
pub const LIVE_LINES: u32 = 16_384;

/// The line of a connection, by the lower half of the address of its kernel socket.
#[inline(always)]
#[must_use]
pub const fn live_index(socket: u32) -> u32 {
    // Sockets lie at the distance of their size: a product spreads them.
    ((socket as u64).wrapping_mul(SPREAD) >> (u64::BITS - LIVE_LINES.ilog2())) as u32
}

/// Groups of lines that [`maps::HASHED`] counts for: 4 KiB of memory.
pub const LINE_GROUPS: u32 = 512;

/// The group of a socket's line, by the lower half of its address.
#[inline(always)]
#[must_use]
pub const fn hashed_index(socket: u32) -> u32 {
    live_index(socket) / (LIVE_LINES / LINE_GROUPS)
}

/// Why a connection was not established, as an index of [`TcpRow::failures`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Failure {
    /// The other side answered with a reset (`ECONNREFUSED`).
    Refused = 0,
    /// Nobody answered (`ETIMEDOUT`).
    Timeout = 1,
    /// A reset while the handshake was under way (`ECONNRESET`).
    Reset = 2,
    /// The network said that there is no way (`EHOSTUNREACH`, `ENETUNREACH`, `EHOSTDOWN`, `ENETDOWN`).
    Unreachable = 3,
    /// Anything else: most often the program that waited gave up before the kernel did.
    Other = 4,
}

/// Kinds of [`Failure`].
pub const FAILURES: usize = 5;

impl Failure {
    /// All, by index.
    pub const ALL: [Self; FAILURES] = [Self::Refused, Self::Timeout, Self::Reset, Self::Unreachable, Self::Other];

    /// By `sk->sk_err`, in the numbers of `include/uapi/asm-generic/errno.h`.
    #[inline(always)]
    #[must_use]
    pub const fn of_error(error: u32) -> Self {
        match error {
            111 => Self::Refused,
            110 => Self::Timeout,
            104 => Self::Reset,
            100 | 101 | 112 | 113 => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

/// Upper bounds of the buckets of a [`Histogram`], in microseconds; a last bucket takes what is larger.
pub const BOUNDS_US: [u32; 7] = [100, 250, 1_000, 5_000, 25_000, 100_000, 1_000_000];
/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = BOUNDS_US.len() + 1;

/// The bucket of a duration: the first whose bound is not below it.
#[inline(always)]
#[must_use]
pub const fn bucket(microseconds: u32) -> usize {
    // Three comparisons find one of eight.
    let mut at = 0;
    let mut step = BUCKETS / 2;
    while step > 0 {
        if microseconds > BOUNDS_US[at + step - 1] {
            at += step;
        }
        step /= 2;
    }
    at
}

/// While a connection lives, its smoothed round trip time is looked at with one packet in so many that its slot receives on a
/// CPU.
pub const SAMPLE_EVERY: u64 = 128;

/// Durations by size. The number of all is the sum of the buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Durations by [`bucket`], each in one.
    pub buckets: [u64; BUCKETS],
    /// The sum of all, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Adds the durations of another.
    pub fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(bucket, more)| *bucket += more);
        self.sum_us += other.sum_us;
    }

    /// How many durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// What happens to connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpEvents {
    /// Connections that were established, or found when they were, for as long as they are in [`maps::LIVE`]. Not a total: taken
    /// together with `closed` alone.
    pub established: u64,
    /// Those of them that are over.
    pub closed: u64,
    /// Connections that were established, ever. Without the TCP probe: those answered to a client (SYN-ACK received), and ACKs
    /// that met a server's listener.
    pub opened: u64,
    /// Connections that a client began and that were not established, by [`Failure`].
    pub failures: [u64; FAILURES],
    /// Segments that were sent again (what `RetransSegs` of `/proc/net/snmp` counts).
    pub retransmitted: u64,
    /// Resets that went out.
    pub resets_sent: u64,
    /// Resets that came in.
    pub resets_received: u64,
}

impl TcpEvents {
    /// Adds those of other connections.
    pub fn add(&mut self, other: &Self) {
        // Every field, so that a new one is not forgotten.
        let Self { established, closed, opened, failures, retransmitted, resets_sent, resets_received } = other;
        self.established += established;
        self.closed += closed;
        self.opened += opened;
        self.failures.iter_mut().zip(failures).for_each(|(failures, more)| *failures += more);
        self.retransmitted += retransmitted;
        self.resets_sent += resets_sent;
        self.resets_received += resets_received;
    }
}

/// How long connections take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpTimes {
    /// From the SYN to the answer, of connections that a client began and whose SYN was sent once.
    pub connect: Histogram,
    /// The smoothed round trip time of each connection when it was over, and while it lived with one packet received in
    /// [`SAMPLE_EVERY`].
    pub rtt: Histogram,
}

/// Payload that went both ways, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Sent.
    pub tx: u64,
    /// Received.
    pub rx: u64,
}

impl Payload {
    /// Adds what others have carried.
    pub fn add(&mut self, other: &Self) {
        let Self { tx, rx } = other;
        self.tx += tx;
        self.rx += rx;
    }
}

/// What is counted of the connections of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// What happened to them.
    pub events: TcpEvents,
    /// How long they took.
    pub times: TcpTimes,
    /// What they had carried when they were over, where traffic is counted by sockets; elsewhere 0.
    pub payload: Payload,
}

/// The same as the programs count it. What changes whenever a connection begins or ends lies in one line of the processor's
/// caches, but for the bucket: what a program touches pushes out what others need.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpRow {
    /// [`TcpEvents::established`].
    pub established: u64,
    /// [`Payload::tx`].
    pub tx: u64,
    /// [`Payload::rx`].
    pub rx: u64,
    /// [`TcpEvents::closed`]. Written behind what the connection has carried, and read before it.
    pub closed: u64,
    /// [`TcpEvents::opened`].
    pub opened: u64,
    /// [`TcpEvents::retransmitted`].
    pub retransmitted: u64,
    /// The sum of [`TcpTimes::connect`].
    pub connect_us: u64,
    /// The sum of [`TcpTimes::rtt`].
    pub rtt_us: u64,
    /// The buckets of [`TcpTimes::connect`].
    pub connect: [u64; BUCKETS],
    /// The buckets of [`TcpTimes::rtt`].
    pub rtt: [u64; BUCKETS],
    /// [`TcpEvents::failures`].
    pub failures: [u64; FAILURES],
    /// [`TcpEvents::resets_sent`].
    pub resets_sent: u64,
    /// [`TcpEvents::resets_received`].
    pub resets_received: u64,
    /// Always 0: the row is whole lines.
    pub unused: u64,
}

/// Words of [`TcpRow`].
pub const WORDS: usize = size_of::<TcpRow>() / 8;

impl TcpRow {
    /// The words that belong to connections that live; all others are totals.
    pub const LIVING: [usize; 2] =
        [core::mem::offset_of!(Self, established) / 8, core::mem::offset_of!(Self, closed) / 8];

    /// What is counted, sorted by what it is.
    #[must_use]
    pub const fn counters(&self) -> TcpCounters {
        let Self { established, tx, rx, closed, opened, retransmitted, connect_us, rtt_us, connect, rtt, .. } = *self;
        let Self { failures, resets_sent, resets_received, .. } = *self;
        TcpCounters {
            events: TcpEvents { established, closed, opened, failures, retransmitted, resets_sent, resets_received },
            times: TcpTimes {
                connect: Histogram { buckets: connect, sum_us: connect_us },
                rtt: Histogram { buckets: rtt, sum_us: rtt_us },
            },
            payload: Payload { tx, rx },
        }
    }
}

/// A live connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// The slot of its edge.
    pub slot: u32,
    /// Segments sent again that are counted already.
    pub retransmitted: u32,
}

/// A place for a live connection, found by [`live_index`]. A program takes a free one by an atomic exchange of its first
/// word and gives it back by another; connections that meet a taken one are in [`maps::LIVE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveLine {
    /// The address of the kernel socket; 0 when the line is free.
    pub socket: u64,
    /// What is known of it; of an earlier one when the line is free.
    pub connection: Connection,
}

const _: () = assert!(LIVE_LINES.is_power_of_two());
const _: () = assert!(size_of::<LiveLine>() == 16);
const _: () = assert!(BUCKETS.is_power_of_two());
const _: () = assert!(SAMPLE_EVERY.is_power_of_two());
const _: () = assert!(size_of::<TcpRow>() == 4 * 64);
const _: () = assert!(size_of::<Connection>() == 8);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::TcpRow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Connection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LiveLine {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_side_by_side_have_lines_of_their_own() {
        // A slab of sockets: as many as half of the lines, at the distance of `struct tcp_sock`.
        let (base, size) = (0x8123_4000u32, 2432u32);
        let lines: std::collections::HashSet<u32> =
            (0..LIVE_LINES / 2).map(|socket| live_index(base + socket * size)).collect();
        assert!(lines.iter().all(|line| *line < LIVE_LINES));
        assert!(lines.len() > LIVE_LINES as usize * 3 / 8, "{} of {}", lines.len(), LIVE_LINES / 2);
    }

    #[test]
    fn a_duration_is_in_the_first_bucket_that_holds_it() {
        for us in (0..200).chain(BOUNDS_US.iter().flat_map(|bound| [bound - 1, *bound, bound + 1])).chain([u32::MAX]) {
            let expected = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
            assert_eq!(bucket(us), expected, "{us} µs");
        }
    }

    #[test]
    fn histograms_add_up() {
        let mut sum = Histogram::default();
        for us in [1u32, 200, 20_000_000] {
            let mut one = Histogram { sum_us: us.into(), ..Histogram::default() };
            one.buckets[bucket(us)] = 1;
            sum.add(&one);
        }
        assert_eq!((sum.count(), sum.sum_us), (3, 20_000_201));
        assert_eq!((sum.buckets[0], sum.buckets[1], sum.buckets[BUCKETS - 1]), (1, 1, 1));
    }
}
