//! What the programs at interfaces and the agent agree on.
//!
//! They are for sandboxes whose packets meet no socket of the host, and count them at the host's end of the sandbox's
//! interface.

/// Names of the maps.
pub mod maps {
    /// Index of an interface to the cgroup id that its packets count for.
    pub const INTERFACES: &str = "INTERFACES";

    /// What the object shares with the traffic's.
    pub const SHARED: [&str; 7] = [
        crate::abi::maps::EDGES,
        crate::abi::maps::ROWS,
        crate::abi::maps::COUNTERS,
        crate::abi::maps::FREE_SLOTS,
        crate::abi::maps::SPARE_SLOTS,
        crate::abi::maps::PEERS,
        crate::abi::maps::LOSSES,
    ];
}

/// Names of the programs.
pub mod programs {
    /// At the ingress of the host's end: counts what the sandbox sends.
    pub const SENDS: &str = "interface_sends";
    /// At the egress of the host's end: counts what the sandbox receives.
    pub const RECEIVES: &str = "interface_gets";
}

/// Interfaces that fit: as many as attached cgroups.
pub const MAX_INTERFACES: u32 = crate::abi::MAX_OBSERVED;
