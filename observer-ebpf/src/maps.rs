//! Every map, once. Sizes written here are the smallest; the loader sets the real ones before it makes the maps.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, Queue},
};
use observer_common::{
    abi, cache,
    counters::{LOSSES as LOSS_KINDS, Loss, PacketCounters, RareCounters},
    edge::{EdgeKey, EdgeRow},
    record::{ContainerRecord, TableRecord},
};

// A hash map, because its key is who talks to whom and no bounded integer names that. Looked up once for each
// socket, not for each packet.
#[map]
pub static EDGES: HashMap<EdgeKey, u32> = HashMap::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), 0);

#[map]
pub static ROWS: Array<EdgeRow> = Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

#[map]
pub static COUNTERS: Array<PacketCounters> =
    Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

#[map]
pub static RARE: Array<RareCounters> = Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

#[map]
pub static FREE_SLOTS: Queue<u32> = Queue::with_max_entries(abi::DEFAULT_EDGES, 0);

#[map]
pub static SPARE_SLOTS: Queue<u32> = Queue::with_max_entries(abi::SPARE_SLOT_COUNT, 0);

#[map]
pub static SOCKETS: Array<u64> = Array::with_max_entries(cache::SOCKET_LINES, BPF_F_MMAPABLE);

#[map]
pub static PEERS: Array<u64> = Array::with_max_entries(cache::PEER_LINES, BPF_F_MMAPABLE);

#[map]
pub static LOSSES: Array<u64> = Array::with_max_entries(LOSS_KINDS, BPF_F_MMAPABLE);

// Written and read by the agent alone; it stands here so that it is made and pinned with the others.
#[map]
pub static CONTAINERS: HashMap<u64, ContainerRecord> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

// As above.
#[map]
pub static TABLE: Array<TableRecord> = Array::with_max_entries(1, 0);

/// Slots in a CPU's row of `COUNTERS`.
#[unsafe(no_mangle)]
pub static SLOTS_PER_CPU: Global<u32> = Global::new(abi::slots_for(abi::DEFAULT_EDGES));

/// 1 when ingress must add atomically.
#[unsafe(no_mangle)]
pub static ATOMIC_INGRESS: Global<u8> = Global::new(0);

/// First port that the kernel gives to clients by itself.
#[unsafe(no_mangle)]
pub static EPHEMERAL_MIN: Global<u32> = Global::new(32_768);

/// Adds one to a loss counter.
#[inline(always)]
pub fn lose(loss: Loss) {
    if let Some(counter) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: the map gave a valid, aligned pointer that lives as long as the program runs.
        unsafe { add(counter, 1) };
    }
}

/// Adds to a counter that other contexts may add to at the same time.
///
/// # Safety
///
/// `counter` points to a live, aligned `u64` of a map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    // Written out, because Rust's core has no read-modify-write for this target. This is BPF's plain atomic add, which
    // every kernel has; adds that return a value came with 5.12.
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {value}", counter = in(reg) counter, value = in(reg) value);
    }
    // Not the kernel: an editor or a check on the host.
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        *counter += value;
    }
}
