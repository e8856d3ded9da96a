//! Slots that leave their edges: closed, given to others, taken back in safety while the kernel's programs count.

use std::{io, sync::atomic::Ordering::Relaxed};

use aya::maps::MapError;
use observer_common::{
    abi, cache,
    counters::PacketCounters,
    edge::{EdgeKey, state},
    tcp::{TcpRow, WORDS},
};

use super::{super::mapping::Mapping, CGROUP, DECISION, EdgeTable, Leaving, Slot, is_used, lock};

/// Called between grace periods, for what must not wait that long. It may close slots, and begin nothing else: those that
/// are being taken back are passed over by that.
pub type Meanwhile<'a> = &'a mut dyn FnMut();

/// Grace periods after which nobody knows a slot any more: see [`EdgeTable::retire_into`].
const ROUNDS: usize = 3;

impl EdgeTable {
    /// Takes slots back and forgets what they counted, each told by its number and its birth. See
    /// [`EdgeTable::retire_into`].
    ///
    /// # Errors
    ///
    /// When a map refuses; slots that were not finished are finished by [`EdgeTable::resume`] of the next agent.
    pub fn retire(&self, slots: &[(u32, u64)], meanwhile: Meanwhile<'_>) -> Result<(), MapError> {
        let same = |(slot, born): &&(u32, u64)| self.used(*slot).is_some_and(|now| now.slot.born == *born);
        let there: Vec<u32> = slots.iter().filter(same).map(|(slot, _)| *slot).collect();
        self.retire_into(&there, None, meanwhile)
    }

    /// Takes slots back and adds what they counted to the unattributed slot, so that the sum over all series stays. From the moment
    /// at which they leave their edges it is read there ([`EdgeTable::read`]).
    ///
    /// # Errors
    ///
    /// As [`EdgeTable::retire`].
    pub fn fold(&self, slots: &[(u32, EdgeKey)], meanwhile: Meanwhile<'_>) -> Result<(), MapError> {
        self.retire_into(&self.still(slots), Some(abi::UNATTRIBUTED_SLOT), meanwhile)
    }

    /// Those slots that still count the edge that they were asked to be taken from.
    fn still(&self, slots: &[(u32, EdgeKey)]) -> Vec<u32> {
        let same = |(slot, key): &&(u32, EdgeKey)| is_used(self.state(*slot)) && self.key(*slot) == *key;
        slots.iter().filter(same).map(|(slot, _)| *slot).collect()
    }

    /// Takes slots back: their edges leave the table, and once no program can still use them, the slots are free.
    /// Takes up to a tenth of a second (three grace periods); not for the scrape's path.
    ///
    /// The order makes reuse safe. A program that found the slot in the table before it left may still put it into a
    /// cache: wait for it and clear the caches. A program that found it in the cache of peers meanwhile may still copy it
    /// into that of sockets: wait and clear again. One that found that copy may still count: wait. Then nobody knows
    /// the slot any more. A slot in this state is not found by way of the connections that the TCP probe knows.
    fn retire_into(&self, slots: &[u32], heir: Option<u32>, meanwhile: Meanwhile<'_>) -> Result<(), MapError> {
        if slots.is_empty() {
            return Ok(());
        }
        let leaving = if heir.is_some() { state::FOLDING } else { state::RETIRING };
        for slot in slots {
            self.set_state(*slot, leaving);
            self.leave_table(*slot)?;
        }
        for _ in 0..ROUNDS {
            self.forget(slots)?;
            grace_period();
            meanwhile();
        }
        for slot in slots {
            let _moving = lock(&self.moving);
            if let Some(heir) = heir {
                self.end_gauge(*slot);
                self.hand_over(*slot, heir);
            }
            self.zero(*slot);
            self.give_back(*slot)?;
        }
        Ok(())
    }

    /// Puts a slot that counts nothing into its queue.
    fn give_back(&self, slot: u32) -> Result<(), MapError> {
        self.rows.word(slot as usize, DECISION).store(0, Relaxed);
        self.set_state(slot, state::FREE);
        let queue = if slot <= self.sizes.edges { &self.free } else { &self.spare };
        // One that is free and in no queue would never be found again.
        lock(queue).push(slot, 0).inspect_err(|_| self.set_state(slot, state::RETIRING))
    }

    /// Takes the edge of a slot out of the table, unless it has another slot by now. The agent alone takes edges out, so
    /// nothing changes between the look and the removal.
    fn leave_table(&self, slot: u32) -> Result<(), MapError> {
        let mut edges = lock(&self.edges);
        let key = self.key(slot);
        let gone = |error: &MapError| match error {
            MapError::KeyNotFound => true,
            MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
            _ => false,
        };
        match edges.get(&key, 0) {
            Ok(there) if there == slot => {
                edges.remove(&key).or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })
            }
            Ok(_) => Ok(()),
            Err(error) if gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The slot's edge leaves the table, if it has not left yet.
    fn end_edge(&self, slot: u32) -> Result<(), MapError> {
        if self.state(slot) == state::USED {
            self.set_state(slot, state::CLOSED);
        }
        self.leave_table(slot)
    }

    /// Closes slots: who comes now gets another one, and what these have counted stays. With each it is said whether
    /// connections that began in it go on counting there; datagrams begin anew with each packet. This is done at once, and
    /// is to be finished with [`EdgeTable::finish_closing`]. Says how many there were.
    ///
    /// # Errors
    ///
    /// When a map refuses; the next agent finishes it ([`EdgeTable::resume`]).
    pub fn close(&self, slots: &[(Slot, Leaving)], closing: &mut Closing) -> Result<usize, MapError> {
        let open = |(slot, _): &&(Slot, Leaving)| self.state(slot.number) == state::USED && self.is_same(slot);
        let open: Vec<_> = slots.iter().filter(open).collect();
        if open.is_empty() {
            return Ok(0);
        }
        closing.begin(self.sizes.slots);
        let mut outcome = Ok(open.len());
        for (slot, leaving) in open {
            self.set_state(slot.number, leaving.state());
            if let Err(error) = self.leave_table(slot.number) {
                outcome = Err(error);
            }
            closing.add(slot.number, &slot.key, *leaving);
        }
        self.clear_closed(closing);
        outcome
    }

    /// Waits for programs that had found the slots before, and clears again what they may have written, as in
    /// [`EdgeTable::retire_into`]. One round of them, up to some hundredths of a second; says whether another one has to
    /// follow.
    pub fn finish_closing(&self, closing: &mut Closing) -> bool {
        let Some(left) = closing.rounds.checked_sub(1) else { return false };
        grace_period();
        if left == 0 {
            *closing = Closing::default();
            return false;
        }
        closing.rounds = left;
        self.clear_closed(closing);
        true
    }

    fn clear_closed(&self, closing: &Closing) {
        clear(&self.peers, &closing.found_by);
        clear(&self.sockets, &closing.kept_by);
    }

    /// Closes slots of containers that are gone, and makes them slots of these cgroups: what they have counted is shown
    /// with what those count. Whatever still knows the slot, as a connection that the kernel tries to end, goes on
    /// counting there.
    ///
    /// # Errors
    ///
    /// As [`EdgeTable::close`].
    pub fn adopt(&self, slots: &[(Slot, u64)]) -> Result<(), MapError> {
        for (slot, cgroup) in slots.iter().filter(|(slot, _)| self.is_same(slot)) {
            // In this order: an agent that is killed in between leaves a closed slot of the container that is gone.
            self.end_edge(slot.number)?;
            self.rows.word(slot.number as usize, CGROUP).store(*cgroup, Relaxed);
        }
        Ok(())
    }

    /// Gives what slots have counted to others, whose series are the same, and takes them back. Each is read in one of
    /// both at any time. Connections that count in the first go on in the second, even if that is closed meanwhile: they
    /// began with the same peer.
    ///
    /// # Errors
    ///
    /// When a map refuses.
    pub fn merge(&self, pairs: &[(Slot, Slot)], meanwhile: Meanwhile<'_>) -> Result<(), MapError> {
        // One that is not what it was is decided about anew after the next scrape.
        let pairs: Vec<_> = pairs.iter().filter(|(slot, heir)| self.is_same(slot) && self.is_same(heir)).collect();
        if !pairs.is_empty() {
            let mut heirs: Vec<u32> = vec![0; self.sizes.slots as usize];
            for (slot, heir) in &pairs {
                self.end_edge(slot.number)?;
                heirs[slot.number as usize] = heir.number;
            }
            {
                let _moving = lock(&self.moving);
                self.redirect(&heirs)?;
                // What living connections have carried is read in the heir from now on.
                if let Some(carried) = self.carried.get() {
                    let mut carried = lock(carried);
                    pairs.iter().for_each(|(slot, _)| carried.forget(slot));
                }
            }
            // Nobody may be led back by a connection that just began.
            pairs.iter().for_each(|(slot, _)| self.set_state(slot.number, state::LEFT));
            for _ in 0..ROUNDS {
                self.redirect(&heirs)?;
                grace_period();
                meanwhile();
            }
            for (slot, heir) in &pairs {
                let moving = lock(&self.moving);
                self.hand_over(slot.number, heir.number);
                self.give_back(slot.number)?;
                drop(moving);
            }
        }
        Ok(())
    }

    /// Lines and connections of slots that have an heir (not 0) lead to it from now on.
    fn redirect(&self, heirs: &[u32]) -> Result<(), MapError> {
        let heir_of = |slot: u32| heirs.get(slot as usize).copied().filter(|heir| *heir != 0);
        for mapping in [&self.sockets, &self.peers] {
            for index in 0..mapping.len() {
                let word = mapping.word(index, 0);
                let line = word.load(Relaxed);
                if let Some(heir) = heir_of((line & cache::SLOT_MASK) as u32) {
                    // Only if it is still that line: a program may have written another one meanwhile.
                    let _ = word.compare_exchange(line, cache::line(line, heir), Relaxed, Relaxed);
                }
            }
        }
        self.connections.redirect(heir_of)
    }

    /// Moves all that one slot has counted to another. Word by word, each taken before it is given: an agent that is
    /// killed in between leaves a word out rather than counting it twice, and all others in one of both.
    fn hand_over(&self, slot: u32, heir: u32) {
        for row in 0..self.sizes.rows() {
            for word in 0..size_of::<PacketCounters>() / 8 {
                let value = self.counters.word(self.sizes.index(row, slot), word).swap(0, Relaxed);
                self.counters.word(self.sizes.index(self.sizes.cpus, heir), word).fetch_add(value, Relaxed);
            }
        }
        for word in 0..WORDS {
            // Pages that nothing was written to stay untouched.
            if self.quality.load(slot as usize, word) != 0 {
                let value = self.quality.word(slot as usize, word).swap(0, Relaxed);
                self.quality.word(heir as usize, word).fetch_add(value, Relaxed);
            }
        }
    }

    /// Finishes what an agent was doing when it was killed: slots that are neither used nor free.
    ///
    /// # Errors
    ///
    /// When a map refuses.
    pub fn resume(&self) -> Result<usize, MapError> {
        let left = |wanted| (1..self.sizes.slots).filter(|slot| self.state(*slot) == wanted).collect::<Vec<u32>>();
        let (retiring, folding) = (left(state::RETIRING), left(state::FOLDING));
        // What leads to closed ones from a cache may not have been cleared.
        let mut closing = Closing::default();
        for leaving in [Leaving::Connections, Leaving::Nothing] {
            for slot in left(leaving.state()) {
                closing.begin(self.sizes.slots);
                self.leave_table(slot)?;
                closing.add(slot, &self.key(slot), leaving);
            }
        }
        self.clear_closed(&closing);
        while self.finish_closing(&mut closing) {}
        self.retire_into(&retiring, None, &mut || {})?;
        self.retire_into(&folding, Some(abi::UNATTRIBUTED_SLOT), &mut || {})?;
        Ok(retiring.len() + folding.len())
    }

    /// Clears what leads to these slots from a socket.
    fn forget(&self, slots: &[u32]) -> Result<(), MapError> {
        let mut gone = Marks::new(self.sizes.slots);
        slots.iter().for_each(|slot| gone.mark(*slot));
        clear(&self.sockets, &gone);
        clear(&self.peers, &gone);
        // Connections may outlive their pod: the kernel goes on trying to end them.
        self.connections.forget(|slot| gone.has(slot))
    }

    /// No program sees any more how connections end: those that live are not known to, and are in no gauge.
    ///
    /// # Errors
    ///
    /// When a map refuses.
    pub fn stop_following_connections(&self) -> Result<(), MapError> {
        grace_period();
        (0..self.sizes.slots).for_each(|slot| self.end_gauge(slot));
        self.connections.forget(|_| true)
    }

    /// No connection of a slot lives as far as is known: totals stay.
    fn end_gauge(&self, slot: u32) {
        for word in TcpRow::LIVING {
            // Pages that nothing was written to stay untouched.
            if self.quality.load(slot as usize, word) != 0 {
                self.quality.word(slot as usize, word).store(0, Relaxed);
            }
        }
    }

    fn zero(&self, slot: u32) {
        for row in 0..self.sizes.rows() {
            self.counters.zero(self.sizes.index(row, slot));
        }
        self.quality.zero(slot as usize);
    }
}

/// Slots that are closed, while programs may still find them in caches. None by default.
#[derive(Default)]
pub struct Closing {
    /// Those that are not to be found by packets of sockets without a peer.
    found_by: Marks,
    /// Those that are not to be found by any socket.
    kept_by: Marks,
    /// Grace periods that must still pass.
    rounds: usize,
}

impl Closing {
    /// More are closed: all rounds begin anew.
    fn begin(&mut self, slots: u32) {
        if self.rounds == 0 {
            (self.found_by, self.kept_by) = (Marks::new(slots), Marks::new(slots));
        }
        self.rounds = ROUNDS;
    }

    fn add(&mut self, slot: u32, key: &EdgeKey, leaving: Leaving) {
        self.found_by.mark(slot);
        if leaving == Leaving::Nothing || key.protocol != libc::IPPROTO_TCP as u8 {
            self.kept_by.mark(slot);
        }
    }
}

/// Slots, by number.
#[derive(Default)]
struct Marks(Vec<bool>);

impl Marks {
    fn new(slots: u32) -> Self {
        Self(vec![false; slots as usize])
    }

    fn mark(&mut self, slot: u32) {
        self.0[slot as usize] = true;
    }

    fn has(&self, slot: u32) -> bool {
        self.0.get(slot as usize).copied().unwrap_or(false)
    }
}

/// Clears the lines of a cache that lead to these slots.
fn clear(cache: &Mapping<u64>, slots: &Marks) {
    for index in 0..cache.len() {
        let word = cache.word(index, 0);
        let line = word.load(Relaxed);
        if slots.has((line & cache::SLOT_MASK) as u32) {
            // Only if it is still that line: a program may have written another one meanwhile.
            let _ = word.compare_exchange(line, 0, Relaxed, Relaxed);
        }
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
