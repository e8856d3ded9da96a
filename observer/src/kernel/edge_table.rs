//! The edge table as the agent sees it: rows and counters mapped into memory, slots taken back in safety.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed, fence},
    },
};

use aya::maps::{HashMap, MapData, MapError, Queue};
use memmap2::{MmapOptions, MmapRaw};
use observer_common::{
    abi, cache,
    counters::{Loss, PacketCounters, RareCounters},
    edge::{EdgeKey, EdgeRow, state},
};

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
    /// Bytes and packets of all CPUs.
    pub packets: PacketCounters,
    /// The rest.
    pub rare: RareCounters,
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
}

/// An array map in this process's memory: the kernel writes, the agent reads, without a system call.
#[derive(Debug)]
pub(super) struct Mapping<T> {
    memory: MmapRaw,
    length: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: aya::Pod> Mapping<T> {
    /// The distance between two values (`array_map_alloc` in kernel/bpf/arraymap.c rounds up to 8).
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps an array made with `BPF_F_MMAPABLE` that has `length` entries.
    pub(super) fn new(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let memory = MmapOptions::new().len(length * Self::STRIDE).map_raw(map.as_raw_fd())?;
        Ok(Self { memory, length, of: std::marker::PhantomData })
    }

    /// The word at `word` of the entry at `index`; the kernel may change it at any time.
    fn word(&self, index: usize, word: usize) -> &AtomicU64 {
        assert!(index < self.length && word < Self::STRIDE / 8, "entry {index}, word {word} of {}", self.length);
        // SAFETY: in bounds by the assertion; the mapping is page-aligned and the stride a multiple of 8, so the
        // word is aligned; it lives as long as `self`; both sides touch it in whole words only.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(index * Self::STRIDE + word * 8).cast()) }
    }

    fn load(&self, index: usize, word: usize) -> u64 {
        self.word(index, word).load(Relaxed)
    }

    fn zero(&self, index: usize) {
        for word in 0..Self::STRIDE / 8 {
            self.word(index, word).store(0, Relaxed);
        }
    }
}

/// Reads the counters and gives slots back.
pub struct EdgeTable {
    pub(super) sizes: Sizes,
    pub(super) rows: Mapping<EdgeRow>,
    pub(super) counters: Mapping<PacketCounters>,
    pub(super) rare: Mapping<RareCounters>,
    pub(super) losses: Mapping<u64>,
    pub(super) sockets: Mapping<u64>,
    pub(super) peers: Mapping<u64>,
    pub(super) edges: Mutex<HashMap<MapData, EdgeKey, u32>>,
    pub(super) free: Mutex<Queue<MapData, u32>>,
    pub(super) spare: Mutex<Queue<MapData, u32>>,
}

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

    /// Edges that fit.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.sizes.edges
    }

    /// Reads every slot in use. The unattributed slot is always there.
    #[must_use]
    pub fn read(&self) -> Vec<EdgeReading> {
        let mut readings = vec![self.reading(abi::UNATTRIBUTED_SLOT, None)];
        for slot in 1..self.sizes.slots {
            if self.state(slot) == state::USED {
                // The kernel writes the key before the state.
                fence(std::sync::atomic::Ordering::Acquire);
                readings.push(self.reading(slot, Some(self.key(slot))));
            }
        }
        readings
    }

    /// The cgroups that have edges, with repetitions.
    pub fn cgroups(&self) -> impl Iterator<Item = u64> {
        (1..self.sizes.slots).filter(|slot| self.state(*slot) == state::USED).map(|slot| self.key(slot).cgroup)
    }

    fn reading(&self, slot: u32, key: Option<EdgeKey>) -> EdgeReading {
        let mut packets = PacketCounters::default();
        for row in 0..self.sizes.rows() {
            let index = self.sizes.index(row, slot);
            packets.tx_bytes += self.counters.load(index, 0);
            packets.tx_packets += self.counters.load(index, 1);
            packets.rx_bytes += self.counters.load(index, 2);
            packets.rx_packets += self.counters.load(index, 3);
        }
        let rare = RareCounters { tcp_opened: self.rare.load(slot as usize, 0) };
        EdgeReading { slot, key, packets, rare }
    }

    fn state(&self, slot: u32) -> u64 {
        self.rows.load(slot as usize, size_of::<EdgeKey>() / 8)
    }

    fn set_state(&self, slot: u32, value: u64) {
        self.rows.word(slot as usize, size_of::<EdgeKey>() / 8).store(value, Relaxed);
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
        }
    }

    /// Takes slots back and forgets what they counted. See [`EdgeTable::retire_into`].
    ///
    /// # Errors
    ///
    /// When a map refuses; slots that were not finished are finished by [`EdgeTable::resume`] of the next agent.
    pub fn retire(&self, slots: &[(u32, EdgeKey)]) -> Result<(), MapError> {
        self.retire_into(&self.still(slots), None)
    }

    /// Takes slots back and adds what they counted to the unattributed slot, so that the sum over all series stays.
    ///
    /// # Errors
    ///
    /// As [`EdgeTable::retire`].
    pub fn fold(&self, slots: &[(u32, EdgeKey)]) -> Result<(), MapError> {
        self.retire_into(&self.still(slots), Some(abi::UNATTRIBUTED_SLOT))
    }

    /// Those slots that still count the edge that they were asked to be taken from.
    fn still(&self, slots: &[(u32, EdgeKey)]) -> Vec<u32> {
        let same = |(slot, key): &&(u32, EdgeKey)| self.state(*slot) == state::USED && self.key(*slot) == *key;
        slots.iter().filter(same).map(|(slot, _)| *slot).collect()
    }

    /// Takes slots back: their edges leave the table, and once no program can still use them, the slots are free.
    /// Takes up to a tenth of a second (three grace periods); not for the scrape's path.
    ///
    /// The order makes reuse safe. A program that found the slot in the table before it left may still put it into a
    /// cache: wait for it and clear the caches. A program that found it in the cache of peers meanwhile may still copy it
    /// into that of sockets: wait and clear again. One that found that copy may still count: wait. Then nobody knows
    /// the slot any more.
    fn retire_into(&self, slots: &[u32], heir: Option<u32>) -> Result<(), MapError> {
        if slots.is_empty() {
            return Ok(());
        }
        let leaving = if heir.is_some() { state::FOLDING } else { state::RETIRING };
        for slot in slots {
            self.set_state(*slot, leaving);
            match lock(&self.edges).remove(&self.key(*slot)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for _ in 0..3 {
            self.forget(slots);
            grace_period();
        }
        for slot in slots {
            if let Some(heir) = heir {
                self.bequeath(*slot, heir);
            }
            self.zero(*slot);
            self.set_state(*slot, state::FREE);
            let queue = if *slot <= self.sizes.edges { &self.free } else { &self.spare };
            lock(queue).push(*slot, 0)?;
        }
        Ok(())
    }

    /// Finishes what an agent was doing when it was killed: slots that are neither used nor free.
    ///
    /// # Errors
    ///
    /// When a map refuses.
    pub fn resume(&self) -> Result<usize, MapError> {
        let left = |wanted| (1..self.sizes.slots).filter(|slot| self.state(*slot) == wanted).collect::<Vec<u32>>();
        let (retiring, folding) = (left(state::RETIRING), left(state::FOLDING));
        self.retire_into(&retiring, None)?;
        self.retire_into(&folding, Some(abi::UNATTRIBUTED_SLOT))?;
        Ok(retiring.len() + folding.len())
    }

    fn forget(&self, slots: &[u32]) {
        let mut gone = vec![false; self.sizes.slots as usize];
        for slot in slots {
            gone[*slot as usize] = true;
        }
        for mapping in [&self.sockets, &self.peers] {
            for index in 0..mapping.length {
                let word = mapping.word(index, 0);
                let line = word.load(Relaxed);
                if gone.get((line & cache::SLOT_MASK) as usize).copied().unwrap_or(false) {
                    // Only if it is still that line: a program may have written another one meanwhile.
                    let _ = word.compare_exchange(line, 0, Relaxed, Relaxed);
                }
            }
        }
    }

    /// Adds the totals of one slot to those of another, in the row that only the agent writes.
    fn bequeath(&self, slot: u32, heir: u32) {
        for row in 0..self.sizes.rows() {
            for word in 0..size_of::<PacketCounters>() / 8 {
                let value = self.counters.load(self.sizes.index(row, slot), word);
                self.counters.word(self.sizes.index(self.sizes.cpus, heir), word).fetch_add(value, Relaxed);
            }
        }
        self.rare.word(heir as usize, 0).fetch_add(self.rare.load(slot as usize, 0), Relaxed);
    }

    fn zero(&self, slot: u32) {
        for row in 0..self.sizes.rows() {
            self.counters.zero(self.sizes.index(row, slot));
        }
        self.rare.zero(slot as usize);
    }
}

/// Waits until every program that runs now has ended. membarrier(2) with `MEMBARRIER_CMD_GLOBAL` is
/// `synchronize_rcu` (kernel/sched/membarrier.c); where it is missing (nohz_full), a wait that is longer than any
/// program can run.
fn grace_period() {
    // MEMBARRIER_CMD_GLOBAL of include/uapi/linux/membarrier.h.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: a system call on plain integers.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// A lock that a panic elsewhere does not take away: the maps behind it are valid at any moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
