//! The maps and constants that this object has beside those of the TCP probe.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap},
};
use observer_common::sockets::{Asked, BATCH, Base, MAX_BASES, PAIR_LINES, Waiting};

// A hash map, because its key is the address of a kernel socket. Asked only while there are sockets that are older than
// the agent. Allocated in advance, as `TCP_LIVE`.
#[map]
pub static SOCKET_BASES: HashMap<u64, Base> = HashMap::with_max_entries(MAX_BASES, 0);

#[map]
pub static SOCKETS_OLDER: Array<u64> = Array::with_max_entries(1, 0);

#[map]
pub static SOCKET_PAIRS: Array<Waiting> = Array::with_max_entries(PAIR_LINES, 0);

#[map]
pub static SOCKETS_ASKED: Array<Asked> = Array::with_max_entries(BATCH, BPF_F_MMAPABLE);

/// Offsets of fields; what each is says `observer_common::sockets::globals`.
macro_rules! offsets {
    ($($name:ident)+) => {
        $(#[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(0);)+
    };
}

offsets! {
    SK_FLAGS SK_LOCK SK_OWNED INET_SPORT TP_BYTES_SENT TP_BYTES_RETRANS TP_BYTES_RECEIVED
}
