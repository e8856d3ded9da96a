//! What the OOM probe and the agent agree on.

use crate::record::{KEY_LEN, NAME_LEN};

/// Names of the maps.
pub mod maps {
    /// Cgroup v2 id to the number of its processes that the OOM killer killed (`u64`). Pinned. The key
    /// [`super::NO_ROOM`] counts kills that found no place.
    pub const KILLS: &str = "OOM_KILLS";
    /// [`super::Place`] to [`super::Carried`]: counts of cgroups that nobody knows by name any more. Only the agent
    /// uses it. Pinned.
    pub const CARRIED: &str = "OOM_CARRIED";
    /// Processes (by id) that the OOM killer has killed and that have not ended yet, with the time of their start: an
    /// id may be used again. Pinned.
    pub const DYING: &str = "OOM_DYING";
    /// A [`super::Kill`] for each, for the log.
    pub const EVENTS: &str = "OOM_EVENTS";

    /// All maps that are pinned.
    pub const PINNED: [&str; 3] = [KILLS, CARRIED, DYING];
}

/// Names of the programs, each with the tracepoint it belongs to.
pub mod programs {
    /// Tells at the end of a process what it had.
    pub const EXIT: (&str, &str) = ("oom_exit", "sched_process_exit");
    /// Notes whom a thread is about to kill.
    pub const SIGNAL: (&str, &str) = ("oom_signal", "signal_generate");
    /// Counts the victim.
    pub const MARK: (&str, &str) = ("oom_mark", "mark_victim");

    /// All of them, in the order in which they are attached: what counts needs the others.
    pub const ALL: [(&str, &str); 3] = [EXIT, SIGNAL, MARK];
}

/// Names of the constants that the loader sets. Offsets are in bytes (`u32`).
pub mod globals {
    /// 1 when `mark_victim` gives the task, 0 when it gives its thread id (before kernel 6.8) (`u8`).
    pub const VICTIM_IS_TASK: &str = "VICTIM_IS_TASK";
    /// `pid` in `struct task_struct`.
    pub const TASK_PID: &str = "TASK_PID";
    /// `tgid` in `struct task_struct`.
    pub const TASK_TGID: &str = "TASK_TGID";
    /// `group_leader` in `struct task_struct`.
    pub const TASK_LEADER: &str = "TASK_LEADER";
    /// `comm` in `struct task_struct`.
    pub const TASK_COMM: &str = "TASK_COMM";
    /// `start_time` in `struct task_struct`.
    pub const TASK_START: &str = "TASK_START";
    /// `signal` in `struct task_struct`.
    pub const TASK_SIGNAL: &str = "TASK_SIGNAL";
    /// `live` in `struct signal_struct`.
    pub const SIGNAL_LIVE: &str = "SIGNAL_LIVE";
    /// `maxrss` in `struct signal_struct`.
    pub const SIGNAL_MAXRSS: &str = "SIGNAL_MAXRSS";
    /// `cgroups` in `struct task_struct`.
    pub const TASK_CGROUPS: &str = "TASK_CGROUPS";
    /// `dfl_cgrp` in `struct css_set`.
    pub const CSS_SET_CGROUP: &str = "CSS_SET_CGROUP";
    /// `kn` in `struct cgroup`.
    pub const CGROUP_NODE: &str = "CGROUP_NODE";
    /// `id` in `struct kernfs_node`.
    pub const NODE_ID: &str = "NODE_ID";
}

/// A cgroup id that no cgroup has: kills that found the table full.
pub const NO_ROOM: u64 = 0;

/// Bytes of a command's name (`TASK_COMM_LEN`), the ending zero included.
pub const COMM_LEN: usize = 16;

/// A process that the OOM killer killed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kill {
    /// Cgroup v2 id of the process.
    pub cgroup: u64,
    /// The most memory it ever had resident, in pages (`signal->maxrss`, which `do_exit` in kernel/exit.c brings
    /// up to date before the tracepoint).
    pub peak_pages: u64,
    /// The process id, as the node sees it.
    pub pid: u32,
    /// Always 0: no hidden padding.
    pub zero: u32,
    /// The command's name, up to the first zero byte.
    pub comm: [u8; COMM_LEN],
}

/// A container of a sandbox by name: the same when it starts again under another cgroup. Strings end at the first zero
/// byte; longer ones are cut.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The sandbox's key.
    pub sandbox: [u8; KEY_LEN],
    /// The container's name; empty for what is the pod's own.
    pub container: [u8; NAME_LEN],
}

/// What is carried of cgroups that are gone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Their kills.
    pub kills: u64,
    /// The cgroup whose count came last. Where it still has a count of its own too, the agent was killed in between:
    /// that one is in [`Carried::kills`] already.
    pub last: u64,
}

const _: () = assert!(size_of::<Kill>() == 40);
const _: () = assert!(size_of::<Place>() == KEY_LEN + NAME_LEN);
const _: () = assert!(size_of::<Carried>() == 16);

#[cfg(feature = "user")]
mod user {
    // SAFETY: integers and bytes only, no padding (the size is the sum of the fields), every bit pattern is valid.
    unsafe impl aya::Pod for super::Kill {}
    // SAFETY: bytes only.
    unsafe impl aya::Pod for super::Place {}
    // SAFETY: integers only, no padding.
    unsafe impl aya::Pod for super::Carried {}
}
