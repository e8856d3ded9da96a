//! Edges: who talks to whom.
//!
//! An edge has no ephemeral port in it, so the number of edges grows with who talks to whom, not with how often.

/// The server side's view of a connection, or its absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// The protocol has no client and server.
    None = 0,
    /// The container began the conversation.
    Client = 1,
    /// The container was called.
    Server = 2,
}

impl Role {
    /// Reads the role bits of [`EdgeKey::flags`].
    #[must_use]
    pub const fn from_flags(flags: u8) -> Self {
        match flags & flags::ROLE_MASK {
            1 => Self::Client,
            2 => Self::Server,
            _ => Self::None,
        }
    }
}

/// Bits of [`EdgeKey::flags`].
pub mod flags {
    /// The two bits that hold a [`super::Role`].
    pub const ROLE_MASK: u8 = 0b11;
    /// The packets pass the loopback interface; `peer` is a cgroup id.
    pub const LOOPBACK: u8 = 1 << 2;
    /// The packets are IPv6.
    pub const IPV6: u8 = 1 << 3;
    /// The table was full: this edge takes all that a container could not put elsewhere.
    pub const OVERFLOW: u8 = 1 << 4;
    /// Messages over Unix sockets: no IP protocol; `peer` is a cgroup id, as with [`LOOPBACK`], which is set, too.
    pub const UNIX: u8 = 1 << 5;
}

/// The key of an edge.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EdgeKey {
    /// Cgroup v2 id of the observed socket's cgroup.
    pub cgroup: u64,
    /// The other side: its address in network byte order (IPv4 as `::ffff:a.b.c.d`); over loopback the cgroup id
    /// of the other socket in the first two words (low word first), 0 when there is no such socket.
    pub peer: [u32; 4],
    /// The server side's port in host byte order; 0 where there is none.
    pub port: u16,
    /// The IP protocol number.
    pub protocol: u8,
    /// See [`flags`].
    pub flags: u8,
    /// Always 0: makes the size a multiple of 8 without hidden padding.
    pub zero: u32,
}

impl EdgeKey {
    /// The role of the observed side.
    #[must_use]
    pub const fn role(&self) -> Role {
        Role::from_flags(self.flags)
    }

    /// The other container's cgroup id on an edge over loopback; `None` on others.
    #[must_use]
    pub const fn loopback_peer(&self) -> Option<u64> {
        if self.flags & flags::LOOPBACK == 0 { None } else { Some(self.peer[0] as u64 | (self.peer[1] as u64) << 32) }
    }
}

/// What a slot is used for. Written by the kernel when it gives the slot to an edge.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeRow {
    /// The edge.
    pub key: EdgeKey,
    /// When the edge got the slot, in nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
    pub born: u64,
    /// Who its peer was decided to be; 0: not decided. Written by the agent alone, see [`crate::decision`].
    pub decision: u64,
    /// See [`state`].
    pub state: u64,
}

/// Values of [`EdgeRow::state`].
pub mod state {
    /// No edge; the key is meaningless.
    pub const FREE: u64 = 0;
    /// The key is complete and the counters are its own.
    pub const USED: u64 = 1;
    /// The agent takes the slot back: out of the table, not yet free.
    pub const RETIRING: u64 = 2;
    /// As [`RETIRING`], and its totals go to the unattributed slot first.
    pub const FOLDING: u64 = 3;
    /// The edge has left the table, so that nobody new finds the slot. Its counters are shown as long as its container is
    /// there, and connections that had found it before go on counting.
    pub const CLOSED: u64 = 4;
    /// As [`CLOSED`], but connections leave it, too: those that still speak begin anew.
    pub const LEFT: u64 = 5;
}

const _: () = assert!(size_of::<EdgeKey>() == 32 && align_of::<EdgeKey>() == 8);
const _: () = assert!(size_of::<EdgeRow>() == 56);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding (the size is the sum of the fields), every bit pattern is valid.
    unsafe impl aya::Pod for super::EdgeKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::EdgeRow {}
}
