//! Bytes over Unix sockets: what the containers of a pod say to each other through a socket in a shared volume.
//!
//! The tracepoints are passed by every send and receive of every family, in process context with preemption off, after the
//! kernel knows how much it was. Whatever is not AF_UNIX ends here after one load. The observed side is the cgroup of the
//! task that sends or receives. The other side is the process that the kernel remembers for `SO_PEERCRED`: a socket that was
//! accepted is made by the task that connects, so that its own cgroup says nothing. Datagram sockets are each made by their
//! own side; one that is not connected names nobody.
//!
//! Programs of two agents are attached side by side for a moment when one takes over from the other. `UNIX_OWNER` names
//! those that count.

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[path = "../add.rs"]
mod add;
#[path = "../edges.rs"]
mod edges;
#[path = "../program.rs"]
mod program;

use aya_ebpf::{
    Global,
    helpers::{bpf_get_current_task, bpf_get_smp_processor_id, generated::bpf_probe_read_kernel},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use observer_common::{
    abi,
    edge::{EdgeKey, flags},
};

use crate::{
    add::add,
    maps::{
        CGROUP_KN, COUNTERS, CSS_SET_CGROUP, KN_ID, KN_PARENT, OBSERVED, PID_TASKS, SK_CGROUP, SK_PEER_PID, SK_TYPE,
        SKC_FAMILY, SLOTS_PER_CPU, TASK_CGROUPS, TASK_PID_LINKS, UNIX_GENERATION, UNIX_OWNER, UNIX_PEER,
    },
};

/// `AF_UNIX` of include/linux/socket.h.
const AF_UNIX: u16 = 1;
/// `SOCK_DGRAM` of include/linux/net.h.
const SOCK_DGRAM: u16 = 2;
/// `MSG_PEEK` of include/linux/socket.h: what is looked at is received later.
const MSG_PEEK: i32 = 2;

/// The maps that this object finds pinned, declared as in the traffic's `maps.rs`, and the constants that the loader sets.
mod maps {
    use aya_ebpf::{
        Global,
        bindings::BPF_F_MMAPABLE,
        macros::map,
        maps::{Array, HashMap, Queue},
    };
    use observer_common::{
        abi,
        counters::{LOSSES as LOSS_KINDS, Loss, PacketCounters},
        edge::{EdgeKey, EdgeRow},
    };

    use crate::add::add;

    #[map]
    pub static EDGES: HashMap<EdgeKey, u32> = HashMap::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), 0);

    #[map]
    pub static ROWS: Array<EdgeRow> = Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

    #[map]
    pub static COUNTERS: Array<PacketCounters> =
        Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

    #[map]
    pub static FREE_SLOTS: Queue<u32> = Queue::with_max_entries(abi::DEFAULT_EDGES, 0);

    #[map]
    pub static SPARE_SLOTS: Queue<u32> = Queue::with_max_entries(abi::SPARE_SLOT_COUNT, 0);

    #[map]
    pub static OBSERVED: HashMap<u64, u8> = HashMap::with_max_entries(abi::MAX_OBSERVED, 0);

    #[map]
    pub static LOSSES: Array<u64> = Array::with_max_entries(LOSS_KINDS, BPF_F_MMAPABLE);

    #[map]
    pub static UNIX_OWNER: Array<u64> = Array::with_max_entries(1, 0);

    #[unsafe(no_mangle)]
    pub static UNIX_GENERATION: Global<u64> = Global::new(0);
    #[unsafe(no_mangle)]
    pub static SLOTS_PER_CPU: Global<u32> = Global::new(abi::slots_for(abi::DEFAULT_EDGES));

    /// Offsets of fields; what each is says `observer_common::unix::globals`.
    macro_rules! offsets {
        ($($name:ident)+) => {
            $(#[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(0);)+
        };
    }

    offsets! {
        SKC_FAMILY SK_TYPE SK_PEER_PID SK_CGROUP UNIX_PEER PID_TASKS TASK_PID_LINKS TASK_CGROUPS CSS_SET_CGROUP
        CGROUP_KN KN_ID KN_PARENT
    }

    /// Adds one to a loss counter.
    #[inline(always)]
    pub fn lose(loss: Loss) {
        if let Some(counter) = LOSSES.get_ptr_mut(loss as u32) {
            // SAFETY: the map gave a valid, aligned pointer that lives as long as the program runs.
            unsafe { add(counter, 1) };
        }
    }
}

/// `sock_send_length(struct sock *sk, int ret, int flags)` (`sock_sendmsg_nosec` in net/socket.c).
#[btf_tracepoint(function = "sock_send_length")]
pub fn unix_send(ctx: BtfTracePointContext) -> i32 {
    let socket: *const u8 = ctx.arg(0);
    if is_unix(socket) {
        count(socket as u64, ctx.arg(1), true);
    }
    0
}

/// `sock_recv_length(struct sock *sk, int ret, int flags)` (`sock_recvmsg_nosec` in net/socket.c).
#[btf_tracepoint(function = "sock_recv_length")]
pub fn unix_receive(ctx: BtfTracePointContext) -> i32 {
    let socket: *const u8 = ctx.arg(0);
    if is_unix(socket) && ctx.arg::<i32>(2) & MSG_PEEK == 0 {
        count(socket as u64, ctx.arg(1), false);
    }
    0
}

#[inline(always)]
fn is_unix(socket: *const u8) -> bool {
    // SAFETY: the verifier knows the pointer as that of a socket, and that the field at this constant offset has this size.
    unsafe { socket.add(SKC_FAMILY.load() as usize).cast::<u16>().read_volatile() == AF_UNIX }
}

/// Adds a message of `length` bytes; a negative one is an error, and 0 the end of a stream.
#[inline(never)]
fn count(socket: u64, length: i32, sent: bool) {
    if length <= 0 || !is_mine() {
        return;
    }
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let node = node_of_task(task);
    let cgroup: u64 = read(node, &KN_ID);
    let peer = peer_cgroup(socket);
    let key = EdgeKey {
        cgroup,
        peer: [peer as u32, (peer >> 32) as u32, 0, 0],
        port: 0,
        protocol: 0,
        flags: flags::UNIX | flags::LOOPBACK,
        zero: 0,
    };
    let slot = match edges::known(&key) {
        0 if is_observed(node) => edges::slot(&key),
        0 => return,
        slot => slot,
    };
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let counters = match COUNTERS.get_ptr_mut(cpu * SLOTS_PER_CPU.load() + slot) {
        Some(counters) => counters,
        // Cannot happen while the table is as large as the loader said. Not lost all the same.
        None => match COUNTERS.get_ptr_mut(abi::UNATTRIBUTED_SLOT) {
            Some(counters) => counters,
            None => return,
        },
    };
    // SAFETY: the map gave a valid, aligned pointer. Others may have taken this CPU's row for the unattributed slot.
    unsafe {
        if sent {
            add(&raw mut (*counters).tx_bytes, length as u64);
            add(&raw mut (*counters).tx_packets, 1);
        } else {
            add(&raw mut (*counters).rx_bytes, length as u64);
            add(&raw mut (*counters).rx_packets, 1);
        }
    }
}

/// The cgroup of the other side; 0 when nobody can be named.
#[inline(always)]
fn peer_cgroup(socket: u64) -> u64 {
    if read::<u16>(socket, &SK_TYPE) == SOCK_DGRAM {
        let other: u64 = read(socket, &UNIX_PEER);
        let cgroup: u64 = read(other, &SK_CGROUP);
        return read(read(cgroup, &CGROUP_KN), &KN_ID);
    }
    let pid: u64 = read(socket, &SK_PEER_PID);
    // The first of the list of `PIDTYPE_PID`, which is the first of the lists: the leader of the process, while it lives.
    let link: u64 = read(pid, &PID_TASKS);
    if link == 0 {
        return 0;
    }
    read(node_of_task(link.wrapping_sub(TASK_PID_LINKS.load().into())), &KN_ID)
}

/// The address of the `struct kernfs_node` of a task's cgroup in the v2 tree.
#[inline(always)]
fn node_of_task(task: u64) -> u64 {
    read(read(read(task, &TASK_CGROUPS), &CSS_SET_CGROUP), &CGROUP_KN)
}

/// The agent has attached to this cgroup, or above it.
#[inline(never)]
fn is_observed(node: u64) -> bool {
    /// A pod's cgroup, a container's, and what the container makes below its own.
    const LEVELS: u32 = 8;
    let mut node = node;
    for _ in 0..LEVELS {
        let cgroup: u64 = read(node, &KN_ID);
        if cgroup == 0 {
            return false;
        }
        // SAFETY: only whether it is there is looked at.
        if unsafe { OBSERVED.get(cgroup) }.is_some() {
            return true;
        }
        node = read(node, &KN_PARENT);
    }
    false
}

/// Reads a field of the structure at `address`; 0 when it cannot be read.
#[inline(always)]
fn read<T: Copy + Default>(address: u64, offset: &Global<u32>) -> T {
    let mut value = T::default();
    // SAFETY: the destination is a value of this size on the stack, of integers; the helper checks the kernel address and
    // writes zeros when it is none.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address.wrapping_add(offset.load().into()) as *const _,
        )
    };
    value
}

/// A new edge is no news here: this object has no log.
#[inline(always)]
fn tell_edge(_: &EdgeKey, _: u32) {}

/// Whether these programs are the ones that count.
#[inline(always)]
fn is_mine() -> bool {
    UNIX_OWNER.get(0).is_some_and(|owner| *owner == UNIX_GENERATION.load())
}
