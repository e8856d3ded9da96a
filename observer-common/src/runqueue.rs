//! What the run-queue probe and the agent agree on.

/// Names of the maps. None is pinned: the probe ends with the agent.
pub mod maps {
    /// Cgroup v2 id to the slot of its container (`u32`).
    pub const OBSERVED: &str = "RUNQUEUE_OBSERVED";
    /// A [`super::Waits`] for each slot, a row of slots for each CPU.
    pub const WAITS: &str = "RUNQUEUE_WAITS";
}

/// The program, and its tracepoint.
pub const PROGRAM: (&str, &str) = ("runqueue_switch", "sched_switch");

/// Names of the constants that the loader sets. Offsets are in bytes (`u32`).
pub mod globals {
    /// `pid` in `struct task_struct`.
    pub const TASK_PID: &str = "TASK_PID";
    /// `sched_info.pcount` in `struct task_struct`: how often it ran.
    pub const TASK_RUNS: &str = "TASK_RUNS";
    /// `sched_info.run_delay` in `struct task_struct`.
    pub const TASK_RUN_DELAY: &str = "TASK_RUN_DELAY";
    /// `sched_info.last_queued` in `struct task_struct`.
    pub const TASK_LAST_QUEUED: &str = "TASK_LAST_QUEUED";
    /// `se.cfs_rq` in `struct task_struct`.
    pub const TASK_CFS_RQ: &str = "TASK_CFS_RQ";
    /// `rq` in `struct cfs_rq`.
    pub const CFS_RQ_RQ: &str = "CFS_RQ_RQ";
    /// `clock` in `struct rq`.
    pub const RQ_CLOCK: &str = "RQ_CLOCK";
    /// `cgroups` in `struct task_struct`.
    pub const TASK_CGROUPS: &str = "TASK_CGROUPS";
    /// `dfl_cgrp` in `struct css_set`.
    pub const CSS_SET_CGROUP: &str = "CSS_SET_CGROUP";
    /// `kn` in `struct cgroup`.
    pub const CGROUP_NODE: &str = "CGROUP_NODE";
    /// `id` in `struct kernfs_node`.
    pub const NODE_ID: &str = "NODE_ID";
}

/// Containers that are observed at a time: those of 500 pods of three, and room. A slot takes 184 bytes for each CPU.
pub const SLOTS: u32 = 2_048;
/// The power of two of the first bucket's upper bound, in nanoseconds: about a microsecond.
pub const FIRST_POWER: u32 = 10;
/// Buckets: each up to twice the one before, the last (above 2^30 ns, about a second) without bound.
pub const BUCKETS: usize = 22;

/// Waits of one container on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// How many, by length.
    pub buckets: [u64; BUCKETS],
    /// How long all of them were, in nanoseconds.
    pub sum: u64,
}

const _: () = assert!(size_of::<Waits>() == (BUCKETS + 1) * 8);

/// The bucket of a wait; a bound belongs to the bucket below it.
#[inline(always)]
#[must_use]
pub const fn bucket(nanoseconds: u64) -> usize {
    // The number of bits of what is left, by halves: this target has no instruction that counts them.
    let mut left = nanoseconds.saturating_sub(1) >> FIRST_POWER;
    if left >> (BUCKETS - 2) != 0 {
        return BUCKETS - 1;
    }
    let mut bits = 0;
    let mut half = 16;
    while half > 0 {
        if left >> half != 0 {
            left >>= half;
            bits += half;
        }
        half /= 2;
    }
    bits + left as usize
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers only, no padding, every bit pattern is valid.
    unsafe impl aya::Pod for super::Waits {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_ends_at_a_power_of_two() {
        assert_eq!((bucket(0), bucket(1), bucket(1 << FIRST_POWER)), (0, 0, 0));
        for at in 0..BUCKETS - 1 {
            let bound = 1u64 << (FIRST_POWER as usize + at);
            assert_eq!((bucket(bound), bucket(bound + 1)), (at, at + 1));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
