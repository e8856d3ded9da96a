//! The edge table: the slot of an edge, made when it is new. The traffic's object and the TCP probe's include this file.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns};
use observer_common::{
    abi,
    counters::Loss,
    edge::{EdgeKey, flags, state},
};

use crate::maps::{EDGES, FREE_SLOTS, ROWS, SPARE_SLOTS, lose};

/// The slot of an edge. An edge that finds no room goes to its container's spare slot, and when there is none, to
/// the unattributed one: bytes are never dropped.
#[inline(always)]
pub fn slot(key: &EdgeKey) -> u32 {
    match known(key) {
        0 => new(key),
        slot => slot,
    }
}

/// The slot of an edge that is in the table, or 0.
#[inline(always)]
pub fn known(key: &EdgeKey) -> u32 {
    // SAFETY: the value is one word and never changes while its edge is in the table.
    unsafe { EDGES.get(key) }.map_or(0, |slot| *slot)
}

#[inline(never)]
fn new(key: &EdgeKey) -> u32 {
    if let Ok(Some(slot)) = FREE_SLOTS.pop() {
        let slot = publish(key, slot);
        if slot != 0 {
            crate::tell_edge(key, slot);
            return slot;
        }
    }
    lose(Loss::Overflowed);
    spare(key.cgroup, key.protocol, key.flags & flags::UNIX)
}

/// Puts an edge into the table at a free slot. When another CPU was faster, its slot is the answer and this one
/// goes back; 0 when the table refused.
#[inline(always)]
fn publish(key: &EdgeKey, slot: u32) -> u32 {
    let Some(row) = ROWS.get_ptr_mut(slot) else { return 0 };
    // SAFETY: the map gave a valid, aligned pointer, and who took the slot from the queue owns its row.
    unsafe {
        (*row).key = *key;
        (*row).born = bpf_ktime_get_ns();
    }
    if EDGES.insert(key, slot, u64::from(BPF_NOEXIST)).is_ok() {
        // SAFETY: as above. The insert is a full barrier (the bucket's lock): a reader that sees the state sees the key.
        unsafe { (&raw mut (*row).state).write_volatile(state::USED) };
        return slot;
    }
    let spare = key.flags & flags::OVERFLOW != 0;
    let _ = if spare { SPARE_SLOTS.push(slot, 0) } else { FREE_SLOTS.push(slot, 0) };
    let winner = known(key);
    if winner == 0 {
        lose(Loss::InsertFailed);
    }
    winner
}

/// The slot that takes what one container could not put elsewhere, one for each IP protocol.
#[inline(always)]
#[allow(dead_code, reason = "not every object that includes this file meets packets")]
pub fn overflow(cgroup: u64, protocol: u8) -> u32 {
    spare(cgroup, protocol, 0)
}

/// The same, and one for Unix sockets.
#[inline(never)]
fn spare(cgroup: u64, protocol: u8, unix: u8) -> u32 {
    let spare = EdgeKey { cgroup, peer: [0; 4], port: 0, protocol, flags: flags::OVERFLOW | unix, zero: 0 };
    let slot = known(&spare);
    if slot != 0 {
        return slot;
    }
    if let Ok(Some(slot)) = SPARE_SLOTS.pop() {
        let slot = publish(&spare, slot);
        if slot != 0 {
            return slot;
        }
    }
    lose(Loss::Unattributed);
    abi::UNATTRIBUTED_SLOT
}
