//! Who the peer of a slot was decided to be, where it outlives the agent. Written and read by the agent alone.

use crate::record::{NAME_LEN, POD_LEN};

/// [`EdgeRow::decision`](crate::edge::EdgeRow::decision) to [`DecisionRecord`].
pub const MAP: &str = "DECISIONS";
/// Different peers that can be kept.
pub const MAX_DECISIONS: u32 = 32_768;
/// Numbers below this one are a [`kind`] and nothing more, and have no record: the kind is the number less one.
pub const FIRST_NUMBER: u64 = 16;

/// What a peer is.
pub mod kind {
    /// A container of the same pod.
    pub const CONTAINER: u64 = 0;
    /// A pod.
    pub const POD: u64 = 1;
    /// A node.
    pub const NODE: u64 = 2;
    /// A public address.
    pub const EXTERNAL: u64 = 3;
    /// Nobody knew.
    pub const OTHER: u64 = 4;
    /// A Service.
    pub const SERVICE: u64 = 5;
}

/// The labels of a peer. Strings end at the first zero byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionRecord {
    /// See [`kind`].
    pub kind: u64,
    /// The container's name.
    pub container: [u8; NAME_LEN],
    /// The namespace.
    pub namespace: [u8; NAME_LEN],
    /// The pod's name.
    pub pod: [u8; POD_LEN],
    /// The workload's kind.
    pub workload_kind: [u8; NAME_LEN],
    /// The workload's name.
    pub workload: [u8; POD_LEN],
}

const _: () = assert!(size_of::<DecisionRecord>() == 8 + 3 * NAME_LEN + 2 * POD_LEN);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding (the size is the sum of the fields), every bit pattern is valid.
    unsafe impl aya::Pod for super::DecisionRecord {}
}
