//! What the programs of the socket mode and the agent agree on: TCP payload from the sockets' own counters.

/// Names of the maps of this object alone. [`crate::tcp::maps::SHARED`] and [`crate::abi::maps::COUNTERS`] are found pinned.
pub mod maps {
    /// Address of a kernel socket to [`super::Base`]: what sockets had counted that are older than the agent. Pinned.
    pub const BASES: &str = "SOCKET_BASES";
    /// One `u64`: how many sockets have had a place in [`BASES`]. Pinned.
    pub const OLDER: &str = "SOCKETS_OLDER";
    /// Clients over loopback whose other end is not established yet: addresses of kernel sockets.
    pub const PAIRS: &str = "SOCKET_PAIRS";
    /// [`super::Asked`]: what the agent asks the snapshot for, and the answers.
    pub const ASKED: &str = "SOCKETS_ASKED";

    /// What is pinned of them.
    pub const PINNED: [&str; 3] = [BASES, OLDER, PAIRS];
    /// What the object shares with the traffic's beside what the TCP probe does.
    pub const SHARED: [&str; 1] = [crate::abi::maps::COUNTERS];
}

/// Names of the programs.
pub mod programs {
    /// Connections begin, end, or fail; in the place of [`crate::tcp::programs::CHANGE`].
    pub const CHANGE: (&str, &str) = ("sockets_change", "inet_sock_set_state");
    /// The same in the place of [`crate::tcp::programs::STATE`].
    pub const STATE: (&str, &str) = ("sockets_state", "inet_sock_set_state");
    /// Reads what live sockets have counted. Attached nowhere, run by the agent.
    pub const READ: &str = "sockets_read";
    /// Begins to count for a socket that is older than the agent; in the place of [`crate::older::programs::ADOPT`].
    pub const ADOPT: &str = "sockets_adopt";
}

/// Names of the constants that the loader sets beside those of the TCP probe: offsets of fields (`u32`).
pub mod globals {
    /// `struct sock`: its flags.
    pub const FLAGS: &str = "SK_FLAGS";
    /// The spin lock.
    pub const LOCK: &str = "SK_LOCK";
    /// Whether a process owns the socket.
    pub const OWNED: &str = "SK_OWNED";
    /// `struct tcp_sock`: payload sent, again and again included.
    pub const BYTES_SENT: &str = "TP_BYTES_SENT";
    /// Payload sent again.
    pub const BYTES_RETRANS: &str = "TP_BYTES_RETRANS";
    /// Sequence numbers received in order: payload, and one for the end of the stream.
    pub const BYTES_RECEIVED: &str = "TP_BYTES_RECEIVED";
    /// `struct inet_sock`: its own port, which stays when the socket gives it back.
    pub const SPORT: &str = "INET_SPORT";
}

/// Lines of [`maps::PAIRS`]: as many as there are ports, so that two clients of one namespace hardly ever share one.
pub const PAIR_LINES: u32 = 65_536;
/// Sockets that fit [`maps::BASES`]. Those that find no place are not counted, and told.
pub const MAX_BASES: u32 = 16_384;
/// Sockets that one run of the snapshot reads.
pub const BATCH: u32 = 128;

/// What a socket had counted when the agent came.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Payload sent.
    pub tx: u64,
    /// Payload received.
    pub rx: u64,
}

/// One socket of a snapshot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The address, from [`crate::tcp::maps::LIVE`]. Written by the agent.
    pub socket: u64,
    /// The slot that it counts in now.
    pub slot: u32,
    /// 1 when the rest is right: the connection lives. What is sent and received is then no more than the truth, and the
    /// truth when nothing happens to the socket in this moment.
    pub valid: u32,
    /// Payload sent since it is counted.
    pub tx: u64,
    /// Payload received since it is counted.
    pub rx: u64,
}

const _: () = assert!(size_of::<Base>() == 16);
const _: () = assert!(size_of::<Asked>() == 32);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::Base {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Asked {}
}
