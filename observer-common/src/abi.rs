//! Names and sizes that both sides must spell alike.

/// Version of everything that is pinned. It is part of the pin path, so two versions never share a map.
pub const VERSION: u32 = 11;

/// Names of the maps, as the kernel sees them (at most 15 characters).
pub mod maps {
    /// [`crate::edge::EdgeKey`] to slot number: finds the slot of an edge.
    pub const EDGES: &str = "EDGES";
    /// Slot number to [`crate::edge::EdgeRow`]: what a slot counts.
    pub const ROWS: &str = "ROWS";
    /// [`crate::counters::PacketCounters`], a row of slots for each CPU and one for the agent.
    pub const COUNTERS: &str = "COUNTERS";
    /// Slot numbers that no edge uses.
    pub const FREE_SLOTS: &str = "FREE_SLOTS";
    /// Slot numbers kept for containers that meet a full table.
    pub const SPARE_SLOTS: &str = "SPARE_SLOTS";
    /// Socket cookie to slot, direct-mapped; see [`crate::cache`].
    pub const SOCKETS: &str = "SOCKETS";
    /// Peer of an unconnected socket to slot, direct-mapped; see [`crate::cache`].
    pub const PEERS: &str = "PEERS";
    /// Counts of what could not be done, by [`crate::counters::Loss`].
    pub const LOSSES: &str = "LOSSES";
    /// Cgroup id to [`crate::record::ContainerRecord`]: names that outlive the agent.
    pub const CONTAINERS: &str = "CONTAINERS";
    /// [`crate::record::EndedKey`] to [`crate::record::EndedRecord`]: what containers used that have ended.
    pub const ENDED: &str = "ENDED";
    /// Cgroup ids that the programs are attached to: what is below one of them is observed. The values say nothing.
    pub const OBSERVED: &str = "OBSERVED";
    /// One [`crate::record::TableRecord`]: sizes that the pinned maps were made with.
    pub const TABLE: &str = "TABLE";

    /// All maps that are pinned.
    pub const PINNED: [&str; 22] = [
        EDGES,
        ROWS,
        COUNTERS,
        FREE_SLOTS,
        SPARE_SLOTS,
        SOCKETS,
        PEERS,
        LOSSES,
        CONTAINERS,
        ENDED,
        OBSERVED,
        TABLE,
        crate::decision::MAP,
        crate::dns::maps::RECORDS,
        crate::dns::maps::LOST,
        crate::dns::maps::PEER_NAMES,
        crate::dns::maps::CLIENTS,
        crate::tcp::maps::QUALITY,
        crate::tcp::maps::LINES,
        crate::tcp::maps::LIVE,
        crate::tcp::maps::HASHED,
        crate::tcp::maps::OWNER,
    ];
}

/// Names of the programs.
pub mod programs {
    /// Counts what a sandbox's sockets receive.
    pub const INGRESS: &str = "observe_ingress";
    /// Counts what a sandbox's sockets send.
    pub const EGRESS: &str = "observe_egress";
    /// Does nothing at the same place: the floor that the overhead is compared with.
    pub const EMPTY_INGRESS: &str = "empty_ingress";
    /// Does nothing at the same place: the floor that the overhead is compared with.
    pub const EMPTY_EGRESS: &str = "empty_egress";
    /// Does nothing at a network interface.
    pub const EMPTY_INTERFACE: &str = "empty_interface";
}

/// Names of the constants that the loader sets before the programs are verified.
pub mod globals {
    /// Slots in a CPU's row of `COUNTERS` (`u32`).
    pub const SLOTS_PER_CPU: &str = "SLOTS_PER_CPU";
    /// 1 when softirqs can be preempted (`PREEMPT_RT`), so that ingress must add atomically too (`u8`).
    pub const ATOMIC_INGRESS: &str = "ATOMIC_INGRESS";
    /// 1 when connections are found by the address of their socket, which takes a kernel that lets programs read its memory
    /// (`u8`).
    pub const FINDS_CONNECTIONS: &str = "FINDS_CONNECTIONS";
    /// First port that the kernel gives to clients by itself (`u32`; `net.ipv4.ip_local_port_range`).
    pub const EPHEMERAL_MIN: &str = "EPHEMERAL_MIN";
}

/// The slot that counts what no container's slot could take.
pub const UNATTRIBUTED_SLOT: u32 = 0;
/// Slots kept for containers that meet a full table: one for each container and protocol.
pub const SPARE_SLOT_COUNT: u32 = 4096;
/// Edges that fit by default.
pub const DEFAULT_EDGES: u32 = 32_768;
/// Attached cgroups that fit [`maps::OBSERVED`]: one for each pod, many times what a node is made for.
pub const MAX_OBSERVED: u32 = 4096;
/// Largest number of edges; the sum of all slots must stay below [`cache::SLOT_MASK`](crate::cache::SLOT_MASK).
pub const MAX_EDGES: u32 = 1 << 20;

/// Slots in all for a table of `edges` edges: the unattributed one, the edges, the spare ones.
#[must_use]
pub const fn slots_for(edges: u32) -> u32 {
    1 + edges + SPARE_SLOT_COUNT
}
