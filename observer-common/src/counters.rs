//! What is counted for a slot.

/// Packets and bytes of one slot on one CPU. A byte is a byte of the packet at IP level, header included
/// (`skb->len` as `__cgroup_bpf_run_filter_skb` in `kernel/bpf/cgroup.c` presents it).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Bytes sent by the container.
    pub tx_bytes: u64,
    /// Packets sent by the container.
    pub tx_packets: u64,
    /// Bytes received by the container.
    pub rx_bytes: u64,
    /// Packets received by the container.
    pub rx_packets: u64,
}

impl PacketCounters {
    /// Adds those of others.
    pub fn add(&mut self, other: &Self) {
        let Self { tx_bytes, tx_packets, rx_bytes, rx_packets } = other;
        self.tx_bytes += tx_bytes;
        self.tx_packets += tx_packets;
        self.rx_bytes += rx_bytes;
        self.rx_packets += rx_packets;
    }
}

/// What could not be done, as indices of the `LOSSES` map. Most say where bytes went that could not go to a slot of their own;
/// only those of [`Loss::EndUnknown`] are in no counter, and only where traffic is counted by sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// An edge found the table full and went to its container's spare slot.
    Overflowed = 0,
    /// An edge found no spare slot either and went to the unattributed slot.
    Unattributed = 1,
    /// The insert of a new edge failed although a slot was free.
    InsertFailed = 2,
    /// A packet had no readable IP header.
    Unparsed = 3,
    /// An established connection found no place among the live ones, and is in no gauge.
    ConnectionsFull = 4,
    /// Events that the kernel passed over while the TCP probe of agents before this one ran: the agent adds them when it
    /// takes over.
    TcpMissed = 5,
    /// A connection was over before a program could read its socket, most often because its end was passed over and the memory of its
    /// socket was used again before anybody looked at it: its last round trip, what it sent again after the last time that was seen, and
    /// by sockets what it carried are not known.
    EndUnknown = 6,
}

/// Entries of the `LOSSES` map.
pub const LOSSES: u32 = 7;

const _: () = assert!(size_of::<PacketCounters>() == 32);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::PacketCounters {}
}
