//! Every map, once. Sizes written here are the smallest; the loader sets the real ones before it makes the maps.

use crate::add::add;
use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    macros::map,
    maps::{Array, HashMap, Queue, RingBuf},
};
use observer_common::{
    abi, cache,
    counters::{LOSSES as LOSS_KINDS, Loss, PacketCounters},
    decision::{DecisionRecord, MAX_DECISIONS},
    dns::{self, ClientRecord, PeerKey, PeerName},
    edge::{EdgeKey, EdgeRow},
    record::{ContainerRecord, EndedKey, EndedRecord, TableRecord},
    tcp::{Connection, LINE_GROUPS, LIVE_CONNECTIONS, LIVE_LINES, LiveLine, TcpRow},
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
pub static ENDED: HashMap<EndedKey, EndedRecord> = HashMap::with_max_entries(8_192, BPF_F_NO_PREALLOC);

// Written by the agent alone, read by the TCP probe. Allocated in advance, as `TCP_LIVE`.
#[map]
pub static OBSERVED: HashMap<u64, u8> = HashMap::with_max_entries(abi::MAX_OBSERVED, 0);

// As `CONTAINERS`.
#[map]
pub static TABLE: Array<TableRecord> = Array::with_max_entries(1, 0);

// The TCP probe's, an object of its own that finds them pinned (see `bin/tcp.rs`). They are made here, because slots are
// given back with all that counts for them.
#[map]
pub static TCP_QUALITY: Array<TcpRow> = Array::with_max_entries(abi::slots_for(abi::DEFAULT_EDGES), BPF_F_MMAPABLE);

#[map]
pub static TCP_LINES: Array<LiveLine> = Array::with_max_entries(LIVE_LINES, BPF_F_MMAPABLE);

// A hash map, because its key is the address of a kernel socket. Touched when a connection begins, when it ends, and when
// something goes wrong in between. Allocated in advance: kernels before 6.1 warn of a tracing program that allocates.
#[map]
pub static TCP_LIVE: HashMap<u64, Connection> = HashMap::with_max_entries(LIVE_CONNECTIONS, 0);

#[map]
pub static TCP_HASHED: Array<u64> = Array::with_max_entries(LINE_GROUPS, BPF_F_MMAPABLE);

#[map]
pub static TCP_OWNER: Array<u64> = Array::with_max_entries(1, 0);

// One record for each packet between a container and a resolver, and for no other packet.
#[map]
pub static DNS_RECORDS: RingBuf = RingBuf::with_byte_size(dns::RING_BYTES, 0);

#[map]
pub static DNS_LOST: Array<u64> = Array::with_max_entries(dns::LOST_KINDS, 0);

// Written and read by the agent alone, as `CONTAINERS`.
#[map]
pub static PEER_NAMES: HashMap<PeerKey, PeerName> = HashMap::with_max_entries(dns::MAX_PEER_NAMES, BPF_F_NO_PREALLOC);

// As `CONTAINERS`.
#[map]
pub static DNS_CLIENTS: HashMap<u64, ClientRecord> = HashMap::with_max_entries(dns::MAX_CLIENTS, BPF_F_NO_PREALLOC);

// As `CONTAINERS`.
#[map]
pub static DECISIONS: HashMap<u64, DecisionRecord> = HashMap::with_max_entries(MAX_DECISIONS, BPF_F_NO_PREALLOC);

/// The resolvers' ports, packed; 0 when DNS is not looked at.
#[unsafe(no_mangle)]
pub static DNS_PORTS: Global<u64> = Global::new(0);

/// Slots in a CPU's row of `COUNTERS`.
#[unsafe(no_mangle)]
pub static SLOTS_PER_CPU: Global<u32> = Global::new(abi::slots_for(abi::DEFAULT_EDGES));

/// 1 when ingress must add atomically.
#[unsafe(no_mangle)]
pub static ATOMIC_INGRESS: Global<u8> = Global::new(0);

/// 1 when connections are found by the address of their socket.
#[unsafe(no_mangle)]
pub static FINDS_CONNECTIONS: Global<u8> = Global::new(1);

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
