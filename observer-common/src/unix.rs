//! What the probe of Unix sockets and the agent agree on.

/// Names of the maps.
pub mod maps {
    /// One `u64`: the generation of the programs that count. The probe's own, pinned with the rest.
    pub const OWNER: &str = "UNIX_OWNER";

    /// What the probe's object finds pinned, or pins.
    pub const SHARED: [&str; 8] = [
        crate::abi::maps::EDGES,
        crate::abi::maps::ROWS,
        crate::abi::maps::COUNTERS,
        crate::abi::maps::FREE_SLOTS,
        crate::abi::maps::SPARE_SLOTS,
        crate::abi::maps::OBSERVED,
        crate::abi::maps::LOSSES,
        OWNER,
    ];
}

/// Names of the programs, each with the tracepoint it belongs to. Kernels from 6.3 on have them.
pub mod programs {
    /// A socket has sent.
    pub const SEND: (&str, &str) = ("unix_send", "sock_send_length");
    /// A socket has received.
    pub const RECEIVE: (&str, &str) = ("unix_receive", "sock_recv_length");

    /// Both.
    pub const ALL: [(&str, &str); 2] = [SEND, RECEIVE];
}

/// Names of the constants that the loader sets: [`GENERATION`](globals::GENERATION), and offsets of fields (`u32`).
pub mod globals {
    /// The programs count while `OWNER` holds this number (`u64`).
    pub const GENERATION: &str = "UNIX_GENERATION";
    /// `struct sock_common`: the address family.
    pub const FAMILY: &str = "SKC_FAMILY";
    /// `struct sock`: stream, datagram, or packets in order.
    pub const TYPE: &str = "SK_TYPE";
    /// The process on the other side when the connection was made.
    pub const PEER_PID: &str = "SK_PEER_PID";
    /// The pointer to the cgroup of who made the socket.
    pub const CGROUP: &str = "SK_CGROUP";
    /// `struct unix_sock`: the connected socket.
    pub const PEER: &str = "UNIX_PEER";
    /// `struct pid`: the list of tasks with this id.
    pub const PID_TASKS: &str = "PID_TASKS";
    /// `struct task_struct`: its place in that list.
    pub const TASK_PID_LINKS: &str = "TASK_PID_LINKS";
    /// The pointer to its set of cgroups.
    pub const TASK_CGROUPS: &str = "TASK_CGROUPS";
    /// `struct css_set`: the pointer to the cgroup of the v2 tree.
    pub const CSS_SET_CGROUP: &str = "CSS_SET_CGROUP";
    /// `struct cgroup`: the pointer to its kernfs node.
    pub const CGROUP_KN: &str = "CGROUP_KN";
    /// `struct kernfs_node`: its number, which is the cgroup id.
    pub const KN_ID: &str = "KN_ID";
    /// The pointer to the node above it.
    pub const KN_PARENT: &str = "KN_PARENT";
}
