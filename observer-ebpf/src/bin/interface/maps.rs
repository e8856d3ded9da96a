//! The maps that this object finds pinned, declared as in the traffic's `maps.rs`, its own, and the constants that the
//! loader sets.

use crate::add::add;
use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, Queue},
};
use observer_common::{
    abi, cache,
    counters::{LOSSES as LOSS_KINDS, Loss, PacketCounters},
    edge::{EdgeKey, EdgeRow},
    interface::MAX_INTERFACES,
};

// A hash map, because an index of an interface is any number. Written by the agent alone.
#[map]
pub static INTERFACES: HashMap<u32, u64> = HashMap::with_max_entries(MAX_INTERFACES, BPF_F_NO_PREALLOC);

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
pub static PEERS: Array<u64> = Array::with_max_entries(cache::PEER_LINES, BPF_F_MMAPABLE);

#[map]
pub static LOSSES: Array<u64> = Array::with_max_entries(LOSS_KINDS, BPF_F_MMAPABLE);

/// Slots in a CPU's row of `COUNTERS`.
#[unsafe(no_mangle)]
pub static SLOTS_PER_CPU: Global<u32> = Global::new(abi::slots_for(abi::DEFAULT_EDGES));

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
