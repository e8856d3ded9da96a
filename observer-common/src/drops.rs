//! What the probe of dropped packets and the agent agree on.

/// Names of the maps.
pub mod maps {
    /// [`super::DropKey`] to [`super::DropCount`]. Pinned.
    pub const DROPS: &str = "DROPS";
    /// Address of a pod (16 bytes, IPv4 as `::ffff:a.b.c.d`) to the id of a cgroup of that pod (`u64`), written by the
    /// agent. Pinned.
    pub const PODS: &str = "DROPS_PODS";
    /// Inodes of the network namespaces of pods (`u32` to `u8`, 1), written by the agent. Pinned.
    pub const NETNS: &str = "DROPS_NETNS";
    /// Counts of what is in no entry of `DROPS`, by [`super::Loss`] (`u64`). Pinned.
    pub const LOSSES: &str = "DROPS_LOSSES";

    /// All maps; all are pinned.
    pub const PINNED: [&str; 4] = [DROPS, PODS, NETNS, LOSSES];
}

/// Names of the programs, each with the tracepoint it belongs to.
pub mod programs {
    /// Counts dropped packets.
    pub const DROP: (&str, &str) = ("packet_dropped", "kfree_skb");
}

/// Names of the constants that the loader sets: offsets (`u32`) unless they say otherwise.
pub mod globals {
    /// 1 when the tracepoint gives the receiving socket as its fourth argument (kernel 6.10) (`u8`).
    pub const HAS_RX_SOCKET: &str = "HAS_RX_SOCKET";
    /// Reasons that tell nothing (`[u32; 2]`; [`NO_REASON`](super::NO_REASON) fills up).
    pub const UNSPECIFIED: &str = "UNSPECIFIED";
    /// Reasons that are none: the packet was used (`[u32; 2]`; here and below [`NO_REASON`](super::NO_REASON) fills up).
    pub const NO_DROPS: &str = "NO_DROPS";
    /// Reasons at the door of a namespace: the packet comes in, though the kernel has not noted its interface yet
    /// (`[u32; 2]`).
    pub const AT_THE_DOOR: &str = "AT_THE_DOOR";
    /// Reasons that say that the packet's source address is false (`[u32; 3]`).
    pub const FALSE_SOURCE: &str = "FALSE_SOURCE";
    /// `dev` in `struct sk_buff`.
    pub const SKB_DEV: &str = "SKB_DEV";
    /// `sk` in `struct sk_buff`.
    pub const SKB_SK: &str = "SKB_SK";
    /// `skb_iif` in `struct sk_buff`.
    pub const SKB_IIF: &str = "SKB_IIF";
    /// `_skb_refdst` in `struct sk_buff`.
    pub const SKB_DST: &str = "SKB_DST";
    /// `head` in `struct sk_buff`.
    pub const SKB_HEAD: &str = "SKB_HEAD";
    /// `network_header` in `struct sk_buff`.
    pub const SKB_NETWORK: &str = "SKB_NETWORK";
    /// `protocol` in `struct sk_buff`.
    pub const SKB_PROTOCOL: &str = "SKB_PROTOCOL";
    /// `__sk_common.skc_family` in `struct sock`.
    pub const SK_FAMILY: &str = "SK_FAMILY";
    /// `__sk_common.skc_state` in `struct sock`.
    pub const SK_STATE: &str = "SK_STATE";
    /// `__sk_common.skc_net.net` in `struct sock`.
    pub const SK_NET: &str = "SK_NET";
    /// `sk_cgrp_data.cgroup` in `struct sock`.
    pub const SK_CGROUP: &str = "SK_CGROUP";
    /// `kn` in `struct cgroup`.
    pub const CGROUP_KN: &str = "CGROUP_KN";
    /// `id` in `struct kernfs_node`.
    pub const KN_ID: &str = "KN_ID";
    /// `nd_net.net` in `struct net_device`.
    pub const DEV_NET: &str = "DEV_NET";
    /// `dev` in `struct dst_entry`.
    pub const DST_DEV: &str = "DST_DEV";
    /// `ns.inum` in `struct net`.
    pub const NET_INUM: &str = "NET_INUM";
    /// `net_cookie` in `struct net`.
    pub const NET_COOKIE: &str = "NET_COOKIE";
}

/// What no kernel gives as a reason.
pub const NO_REASON: u32 = u32::MAX;
/// Entries of `DROPS`: owners of drops, times the reasons that each has seen.
pub const ENTRIES: u32 = 16_384;
/// Entries of `DROPS_PODS`, and of `DROPS_NETNS`.
pub const ADDRESSES: u32 = 16_384;

/// Bits of [`DropKey::flags`].
pub mod flags {
    /// The packet had come in; without it, it was on its way out.
    pub const RECEIVE: u32 = 1;
    /// The pod was found by the packet's address: the cgroup names the pod, not a container.
    pub const BY_ADDRESS: u32 = 2;
    /// The agent's own entry, which no program writes: what it folded, because nobody knew whose it was.
    pub const FOLDED: u32 = 4;
    /// The agent's own entry, which no program writes: what it took over from owners that are gone, for who goes on with
    /// their series.
    pub const TAKEN_OVER: u32 = 8;
}

/// Whose packet it was, as far as the kernel tells, and why it was dropped. What is not known is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DropKey {
    /// Cgroup v2 id of the socket.
    pub cgroup: u64,
    /// The network namespace by a number that is never given again (`net->net_cookie`).
    pub cookie: u64,
    /// The inode of the network namespace, which the kernel gives to the next one when it is gone.
    pub netns: u32,
    /// `enum skb_drop_reason`; reasons of a subsystem have its number in the upper half.
    pub reason: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Always 0: no hidden padding.
    pub zero: u32,
}

const _: () = assert!(size_of::<DropKey>() == 32);

/// How often.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCount {
    /// Packets.
    pub packets: u64,
    /// When the last one was dropped, in nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub last: u64,
}

const _: () = assert!(size_of::<DropCount>() == 16);

/// What is in no entry. Indices of `DROPS_LOSSES`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The kernel gave no reason (`NOT_SPECIFIED`): it frees packets this way that were no drops, too.
    Unspecified = 0,
    /// Neither socket, nor namespace, nor address told whose packet it was.
    NoOwner = 1,
    /// `DROPS` was full.
    TableFull = 2,
}

/// Number of [`Loss`] kinds.
pub const LOSSES: u32 = 3;

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding (the size is the sum of the fields), every bit pattern is valid.
    unsafe impl aya::Pod for super::DropKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DropCount {}
}
