//! The maps that this object finds pinned, declared as in the traffic's `maps.rs`, and the constants that the loader sets.

use crate::add::add;
use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, Queue},
};
use observer_common::{
    abi, cache,
    counters::{LOSSES as LOSS_KINDS, Loss},
    edge::{EdgeKey, EdgeRow},
    tcp::{Connection, LINE_GROUPS, LIVE_CONNECTIONS, LIVE_LINES, LiveLine, TcpRow},
};

#[map]
pub static EDGES: HashMap<EdgeKey, u32> = HashMap::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), 0);

#[map]
pub static ROWS: Array<EdgeRow> = Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

#[map]
pub static FREE_SLOTS: Queue<u32> = Queue::with_max_entries(abi::DEFAULT_EDGES, 0);

#[map]
pub static SPARE_SLOTS: Queue<u32> = Queue::with_max_entries(abi::SPARE_SLOT_COUNT, 0);

#[map]
pub static OBSERVED: HashMap<u64, u8> = HashMap::with_max_entries(abi::MAX_OBSERVED, 0);

#[map]
pub static SOCKETS: Array<u64> = Array::with_max_entries(cache::SOCKET_LINES, BPF_F_MMAPABLE);

#[map]
pub static PEERS: Array<u64> = Array::with_max_entries(cache::PEER_LINES, BPF_F_MMAPABLE);

#[map]
pub static LOSSES: Array<u64> = Array::with_max_entries(LOSS_KINDS, BPF_F_MMAPABLE);

#[map]
pub static TCP_QUALITY: Array<TcpRow> = Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

#[map]
pub static TCP_LINES: Array<LiveLine> = Array::with_max_entries(LIVE_LINES, BPF_F_MMAPABLE);

#[map]
pub static TCP_LIVE: HashMap<u64, Connection> = HashMap::with_max_entries(LIVE_CONNECTIONS, 0);

#[map]
pub static TCP_HASHED: Array<u64> = Array::with_max_entries(LINE_GROUPS, BPF_F_MMAPABLE);

#[map]
pub static TCP_OWNER: Array<u64> = Array::with_max_entries(1, 0);

#[unsafe(no_mangle)]
pub static TCP_GENERATION: Global<u64> = Global::new(0);

/// Offsets of fields; what each is says `observer_common::tcp::globals`.
macro_rules! offsets {
    ($($name:ident)+) => {
        $(#[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(0);)+
    };
}

offsets! {
    SKC_DADDR SKC_RCV_SADDR SKC_DPORT SKC_NUM SKC_FAMILY SKC_STATE SKC_NET SKC_V6_DADDR SKC_V6_RCV_SADDR SKC_COOKIE
    SK_PROTOCOL SK_ERR SK_SOCKET SOCKET_STATE SK_CGROUP CGROUP_KN KN_ID KN_PARENT
    TP_SRTT_US TP_TOTAL_RETRANS TP_PACING TP_HELD_BACK TP_SIGNING TP_LAST
}

/// Adds one to a loss counter.
#[inline(always)]
pub fn lose(loss: Loss) {
    if let Some(counter) = LOSSES.get_ptr_mut(loss as u32) {
        // SAFETY: the map gave a valid, aligned pointer that lives as long as the program runs.
        unsafe { add(counter, 1) };
    }
}
