//! What the agent writes into pinned maps for the agent that comes after it.

/// Bytes for a sandbox key.
pub const KEY_LEN: usize = 128;
/// Bytes for a container id.
pub const ID_LEN: usize = 80;
/// Bytes for the name of a container or a namespace (a DNS label has at most 63).
pub const NAME_LEN: usize = 64;
/// Bytes for the name of a pod (a DNS subdomain has at most 253).
pub const POD_LEN: usize = 256;

/// Whose cgroup it was, for cgroups that are gone when the next agent starts. Strings end at the first zero byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    /// The sandbox's key.
    pub sandbox: [u8; KEY_LEN],
    /// The pod's namespace.
    pub namespace: [u8; NAME_LEN],
    /// The pod's name.
    pub pod: [u8; POD_LEN],
    /// The container's id.
    pub id: [u8; ID_LEN],
    /// The container's name.
    pub name: [u8; NAME_LEN],
    /// 1 for the pause container.
    pub pause: u64,
}

/// Counters in an [`EndedRecord`].
pub const ENDED_COUNTERS: usize = 18;
/// Cgroups in an [`EndedRecord`].
pub const ENDED_CGROUPS: usize = 64;
/// Block devices in an [`EndedRecord`].
pub const ENDED_DEVICES: usize = 16;

/// The name that an [`EndedRecord`] is kept under. Strings end at the first zero byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedKey {
    /// The pod's namespace.
    pub namespace: [u8; NAME_LEN],
    /// The pod's name.
    pub pod: [u8; POD_LEN],
    /// The container's name.
    pub name: [u8; NAME_LEN],
}

/// What the ended containers of one name used, for the next agent. The meaning and order of the counters is the
/// agent's own affair; a change of it is a change of the ABI all the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedRecord {
    /// Cgroup ids that are in the sums, the oldest first; 0 for none.
    pub cgroups: [u64; ENDED_CGROUPS],
    /// A bit for each counter that is known, from the lowest.
    pub known: u64,
    /// The counters.
    pub counters: [u64; ENDED_COUNTERS],
    /// Block devices: number (major above, minor below 32 bits), bytes read, bytes written, reads, writes. A number
    /// of 2^64 - 1 means none; a count of 2^64 - 1 that it is not known.
    pub devices: [[u64; 5]; ENDED_DEVICES],
}

/// The sizes that the pinned maps were made with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRecord {
    /// Edges that fit.
    pub edges: u32,
    /// CPUs that have a row in `COUNTERS`.
    pub cpus: u32,
    /// [`READY`] once every free slot stands in its queue.
    pub ready: u64,
}

/// Value of [`TableRecord::ready`] for a table that can be used.
pub const READY: u64 = 0x0b5e_7e57;

const _: () = assert!(size_of::<ContainerRecord>() == KEY_LEN + NAME_LEN + POD_LEN + ID_LEN + NAME_LEN + 8);
const _: () = assert!(size_of::<EndedKey>() == NAME_LEN + POD_LEN + NAME_LEN);
const _: () = assert!(size_of::<EndedRecord>() == 8 * (ENDED_CGROUPS + 1 + ENDED_COUNTERS + 5 * ENDED_DEVICES));
const _: () = assert!(size_of::<TableRecord>() == 16);

#[cfg(feature = "user")]
mod user {
    // SAFETY: bytes and one integer at a multiple of 8, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::ContainerRecord {}
    // SAFETY: bytes only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::EndedKey {}
    // SAFETY: integers only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::EndedRecord {}
    // SAFETY: integers only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::TableRecord {}
}
