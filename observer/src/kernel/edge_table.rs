//! The edge table as the agent sees it: rows and counters mapped into memory.

mod carried;
mod connections;
mod leaving;
mod missed;
mod older;

use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed, fence},
};

use aya::maps::{HashMap, MapData, MapError, Queue};
use observer_common::{
    abi,
    counters::{Loss, PacketCounters},
    edge::{EdgeKey, EdgeRow, state},
    tcp::{TcpCounters, TcpEvents, TcpRow, WORDS},
};

pub use self::leaving::{Closing, Meanwhile};
pub use self::older::Found;
pub(in crate::kernel) use self::{carried::Carried, connections::Connections, missed::MissedEnds, older::Older};
use super::mapping::Mapping;

/// The sizes of the table's maps.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Edges that fit.
    pub edges: u32,
    /// Slots in a CPU's row: [`abi::slots_for`] the edges.
    pub slots: u32,
    /// CPUs, each with a row of `COUNTERS`.
    pub cpus: u32,
}

impl Sizes {
    /// Rows of `COUNTERS`: one for each CPU, which only that CPU writes, and a last one that only the agent writes.
    #[must_use]
    pub const fn rows(self) -> u32 {
        self.cpus + 1
    }

    const fn index(self, row: u32, slot: u32) -> usize {
        row as usize * self.slots as usize + slot as usize
    }
}

/// What one slot has counted since its edge began.
#[derive(Debug, Clone, Copy)]
pub struct EdgeReading {
    /// The slot.
    pub slot: u32,
    /// The edge; `None` for the slot that takes what belongs to no container.
    pub key: Option<EdgeKey>,
    /// When the edge got the slot, in nanoseconds of `CLOCK_MONOTONIC`.
    pub born: u64,
    /// The number of the decision who its peer is; 0: none yet.
    pub decision: u64,
    /// Which connections go on counting, when the edge has left the table.
    pub closed: Option<Leaving>,
    /// Bytes and packets of all CPUs; where traffic is counted by sockets, with what TCP connections have carried.
    pub packets: PacketCounters,
    /// What the TCP probe has counted, or without it connections that the traffic's programs saw begin; zeros on an edge that is not TCP.
    pub tcp: TcpCounters,
}

/// A slot in one life: it is given to other edges, and to the same one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// The edge.
    pub key: EdgeKey,
    /// When the edge got it.
    pub born: u64,
}

impl EdgeReading {
    /// The slot that was read; `None` for the one that belongs to no container.
    #[must_use]
    pub fn slot_use(&self) -> Option<SlotUse> {
        let slot = Slot { number: self.slot, key: self.key?, born: self.born };
        Some(SlotUse { slot, decision: self.decision, closed: self.closed })
    }

    /// Adds what another has counted, without its connections that live.
    fn add_totals(&mut self, other: &Self) {
        let TcpCounters { events, times, .. } = &other.tcp;
        self.packets.add(&other.packets);
        self.tcp.events.add(&TcpEvents { established: 0, closed: 0, ..*events });
        self.tcp.times.connect.add(&times.connect);
        self.tcp.times.rtt.add(&times.rtt);
        self.tcp.payload.add(&other.tcp.payload);
    }
}

/// What a slot is used for.
#[derive(Debug, Clone, Copy)]
pub struct SlotUse {
    /// The slot.
    pub slot: Slot,
    /// The number of the decision who its peer is; 0: none yet.
    pub decision: u64,
    /// Which connections go on counting, when the edge has left the table.
    pub closed: Option<Leaving>,
}

/// Which connections go on counting in a slot that is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Those that began in it: they were with the peer that was decided.
    Connections,
    /// None: the peer that was decided was never, or nobody knew it.
    Nothing,
}

impl Leaving {
    /// The state of a slot that is closed so.
    const fn state(self) -> u64 {
        match self {
            Self::Connections => state::CLOSED,
            Self::Nothing => state::LEFT,
        }
    }
}

/// What could not be done, since the maps were made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Losses {
    /// Edges that found the table full and went to their container's spare slot.
    pub overflowed: u64,
    /// Edges that found no spare slot either.
    pub unattributed: u64,
    /// Inserts that failed although a slot was free.
    pub insert_failed: u64,
    /// Packets without a readable IP header.
    pub unparsed: u64,
    /// Established TCP connections that are in no gauge.
    pub connections_full: u64,
    /// Connections that are older than this agent and found no place.
    pub older_full: u64,
    /// Connections whose end was missed and of which nothing is known any more.
    pub end_unknown: u64,
}

/// Reads the counters and gives slots back.
pub struct EdgeTable {
    pub(super) sizes: Sizes,
    pub(super) rows: Mapping<EdgeRow>,
    pub(super) counters: Mapping<PacketCounters>,
    pub(super) quality: Mapping<TcpRow>,
    pub(super) losses: Mapping<u64>,
    pub(super) sockets: Mapping<u64>,
    pub(super) peers: Mapping<u64>,
    pub(super) edges: Mutex<HashMap<MapData, EdgeKey, u32>>,
    pub(super) connections: Connections,
    pub(super) free: Mutex<Queue<MapData, u32>>,
    pub(super) spare: Mutex<Queue<MapData, u32>>,
    /// Held while readings are taken, and while a slot's totals become another's.
    pub(super) moving: Mutex<()>,
    /// Where traffic is counted by sockets: what connections have carried that live.
    pub(super) carried: OnceLock<Mutex<Carried>>,
    /// Connections that are older than the agent, where any are followed.
    pub(super) older: OnceLock<Mutex<Older>>,
    /// How many of them found no place. Not [`Loss::ConnectionsFull`]: once that is not 0, programs that count by sockets count a
    /// connection that they do not know whole when it ends, and of these only a part is of the agent's time. Each agent tries
    /// and counts anew.
    pub(super) older_full: AtomicU64,
    /// Connections whose end was missed, where any are followed.
    pub(super) missed: OnceLock<MissedEnds>,
}

/// The words of a row: the first of its key, and those behind it.
const CGROUP: usize = 0;
const BORN: usize = size_of::<EdgeKey>() / 8;
const DECISION: usize = BORN + 1;
const STATE: usize = BORN + 2;
const _: () = assert!(std::mem::offset_of!(EdgeRow, key.cgroup) == CGROUP * 8);
const _: () = assert!(std::mem::offset_of!(EdgeRow, born) == BORN * 8);
const _: () = assert!(std::mem::offset_of!(EdgeRow, decision) == DECISION * 8);
const _: () = assert!(std::mem::offset_of!(EdgeRow, state) == STATE * 8);

impl std::fmt::Debug for EdgeTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeTable").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

impl EdgeTable {
    /// Puts every slot into its queue. Once in the life of the maps.
    pub(super) fn fill(&self) -> Result<(), MapError> {
        let mut free = lock(&self.free);
        for slot in 1..=self.sizes.edges {
            free.push(slot, 0)?;
        }
        let mut spare = lock(&self.spare);
        for slot in self.sizes.edges + 1..self.sizes.slots {
            spare.push(slot, 0)?;
        }
        Ok(())
    }

    /// The sizes of its maps.
    #[must_use]
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Edges that fit.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.sizes.edges
    }

    /// Reads every slot in use. The unattributed slot is always there, with what those have counted that are on their way to it.
    #[must_use]
    pub fn read(&self) -> Vec<EdgeReading> {
        let _moving = lock(&self.moving);
        match self.carried.get() {
            Some(carried) => lock(carried).read(self),
            None => self.totals(),
        }
    }

    /// From now on readings have what connections have carried that live.
    pub(in crate::kernel) fn carry(&self, carried: Carried) {
        // Set once in the life of an agent.
        let _ = self.carried.set(Mutex::new(carried));
    }

    /// From now on connections can be followed that are older than the agent.
    pub(in crate::kernel) fn meet(&self, older: Older) {
        // As above.
        let _ = self.older.set(Mutex::new(older));
    }

    /// From now on connections can be ended whose end was missed.
    pub(in crate::kernel) fn watch_for_missed(&self, missed: MissedEnds) {
        // As above.
        let _ = self.missed.set(missed);
    }

    fn totals(&self) -> Vec<EdgeReading> {
        let mut unattributed = self.reading(abi::UNATTRIBUTED_SLOT, None);
        let mut readings = vec![unattributed];
        for slot in 1..self.sizes.slots {
            if let Some(of) = self.used(slot) {
                readings.push(self.reading(slot, Some(of)));
            } else if self.state(slot) == state::FOLDING {
                unattributed.add_totals(&self.reading(slot, None));
            }
        }
        readings[0] = unattributed;
        readings
    }

    /// Every slot in use, in the order of their numbers, without what they have counted.
    pub fn slots(&self) -> impl Iterator<Item = SlotUse> {
        (1..self.sizes.slots).filter_map(|slot| self.used(slot))
    }

    /// The cgroups that have edges, with repetitions.
    pub fn cgroups(&self) -> impl Iterator<Item = u64> {
        self.keys().map(|key| key.cgroup)
    }

    /// The cgroups that edges over loopback have as their peers, with repetitions.
    pub fn loopback_peers(&self) -> impl Iterator<Item = u64> {
        self.keys().filter_map(|key| key.loopback_peer())
    }

    /// The edges that have slots.
    pub fn keys(&self) -> impl Iterator<Item = EdgeKey> {
        (1..self.sizes.slots).filter(|slot| is_used(self.state(*slot))).map(|slot| self.key(slot))
    }

    fn used(&self, slot: u32) -> Option<SlotUse> {
        let state = self.state(slot);
        if !is_used(state) {
            return None;
        }
        // The kernel writes the rest before the state.
        fence(std::sync::atomic::Ordering::Acquire);
        let (born, decision) = (self.rows.load(slot as usize, BORN), self.rows.load(slot as usize, DECISION));
        let closed = match state {
            state::CLOSED => Some(Leaving::Connections),
            state::LEFT => Some(Leaving::Nothing),
            _ => None,
        };
        Some(SlotUse { slot: Slot { number: slot, key: self.key(slot), born }, decision, closed })
    }

    /// Writes down who the peer of a slot is, for this agent and those that follow.
    pub fn decide(&self, slot: &Slot, decision: u64) {
        if self.is_same(slot) {
            self.rows.word(slot.number as usize, DECISION).store(decision, Relaxed);
        }
    }

    /// The number of the decision who the peer of a slot is; 0: none yet, or not this slot any more.
    #[must_use]
    pub fn decision(&self, slot: &Slot) -> u64 {
        self.used(slot.number).filter(|now| now.slot == *slot).map_or(0, |now| now.decision)
    }

    /// True while the slot is in the life that it was seen in.
    fn is_same(&self, slot: &Slot) -> bool {
        self.used(slot.number).is_some_and(|now| now.slot == *slot)
    }

    fn reading(&self, slot: u32, of: Option<SlotUse>) -> EdgeReading {
        let key = of.map(|of| of.slot.key);
        let mut packets = PacketCounters::default();
        for row in 0..self.sizes.rows() {
            let index = self.sizes.index(row, slot);
            packets.tx_bytes += self.counters.load(index, 0);
            packets.tx_packets += self.counters.load(index, 1);
            packets.rx_bytes += self.counters.load(index, 2);
            packets.rx_packets += self.counters.load(index, 3);
        }
        let is_tcp = key.is_none_or(|key| key.protocol == libc::IPPROTO_TCP as u8);
        let tcp = if is_tcp { self.tcp(slot) } else { TcpCounters::default() };
        packets.tx_bytes += tcp.payload.tx;
        packets.rx_bytes += tcp.payload.rx;
        let (born, decision, closed) = of.map_or((0, 0, None), |of| (of.slot.born, of.decision, of.closed));
        EdgeReading { slot, key, born, decision, closed, packets, tcp }
    }

    fn tcp(&self, slot: u32) -> TcpCounters {
        // Back to front: an end is never read without its beginning.
        let mut words = [0; WORDS];
        for word in (0..WORDS).rev() {
            words[word] = self.quality.load(slot as usize, word);
            fence(std::sync::atomic::Ordering::Acquire);
        }
        // SAFETY: both are the same number of plain integers; every bit pattern is valid.
        unsafe { std::mem::transmute::<[u64; WORDS], TcpRow>(words) }.counters()
    }

    fn state(&self, slot: u32) -> u64 {
        self.rows.load(slot as usize, STATE)
    }

    fn set_state(&self, slot: u32, value: u64) {
        self.rows.word(slot as usize, STATE).store(value, Relaxed);
    }

    fn key(&self, slot: u32) -> EdgeKey {
        let words: [u64; 4] = std::array::from_fn(|word| self.rows.load(slot as usize, word));
        // SAFETY: both are 32 bytes of plain integers; every bit pattern is a valid key.
        unsafe { std::mem::transmute::<[u64; 4], EdgeKey>(words) }
    }

    /// What could not be done so far.
    #[must_use]
    pub fn losses(&self) -> Losses {
        let loss = |loss: Loss| self.losses.load(loss as usize, 0);
        Losses {
            overflowed: loss(Loss::Overflowed),
            unattributed: loss(Loss::Unattributed),
            insert_failed: loss(Loss::InsertFailed),
            unparsed: loss(Loss::Unparsed),
            connections_full: loss(Loss::ConnectionsFull),
            end_unknown: loss(Loss::EndUnknown),
            older_full: self.older_full.load(Relaxed),
        }
    }

    /// Adds to what could not be done, and says how much that is now.
    pub(in crate::kernel) fn lose(&self, loss: Loss, more: u64) -> u64 {
        self.losses.word(loss as usize, 0).fetch_add(more, Relaxed) + more
    }
}

/// Whether a slot counts an edge that is shown.
const fn is_used(state: u64) -> bool {
    matches!(state, state::USED | state::CLOSED | state::LEFT)
}

/// A lock that a panic elsewhere does not take away: the maps behind it are valid at any moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
