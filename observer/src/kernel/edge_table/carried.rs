//! What connections have carried that live, where traffic is counted by sockets.
//!
//! The kernel adds what a connection has carried to its slot when it is over, and not before. So what is shown of a slot is
//! the total of its closed connections and what those have carried that live. The totals are read first: a connection that
//! ends in between is missing in this reading, and never in it twice. The numbers of connections that began and ended tell
//! whether one did; then all is read again, and the larger one is nearer to the truth, because neither is above it.

use std::{collections::HashMap, io, os::fd::AsFd, sync::Arc};

use observer_common::{
    sockets::{Asked, BATCH},
    tcp::Payload,
};
use tracing::warn;

use super::{super::Program, super::mapping::Mapping, super::sys, EdgeReading, EdgeTable, Slot};

/// How often all is read, at most, while connections end in between.
const PASSES: usize = 3;

/// Reads live connections.
pub(in crate::kernel) struct Carried {
    program: Arc<Program>,
    asked: Mapping<Asked>,
    /// A counter must not go back, and what is missing comes with the next reading.
    shown: Shown,
    failed: bool,
}

/// What each slot has shown, by number and birth.
type Shown = HashMap<(u32, u64), Payload>;

/// The live connections of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct Living {
    payload: Payload,
    connections: u64,
}

impl Carried {
    /// Reads connections with the program, which answers in `asked`.
    pub(in crate::kernel) fn new(program: Arc<Program>, asked: Mapping<Asked>) -> Self {
        Self { program, asked, shown: HashMap::new(), failed: false }
    }

    /// Every slot in use, with what its live connections have carried.
    pub(super) fn read(&mut self, table: &EdgeTable) -> Vec<EdgeReading> {
        let mut best = Shown::new();
        for pass in 1.. {
            let mut readings = table.totals();
            let living = self.living(table).unwrap_or_else(|error| {
                if !std::mem::replace(&mut self.failed, true) {
                    warn!("connections that live cannot be read, what they carry is shown when they end: {error}");
                }
                HashMap::new()
            });
            let mut settled = true;
            for reading in &mut readings {
                let living = living.get(&reading.slot).copied().unwrap_or_default();
                reading.packets.tx_bytes += living.payload.tx;
                reading.packets.rx_bytes += living.payload.rx;
                settled &= is_settled(reading, living.connections, table);
            }
            let last = settled || pass == PASSES;
            raise(&mut readings, &mut best, &self.shown);
            if last {
                // Slots that were given back since are in no reading, and are forgotten.
                self.shown = readings.iter().map(|reading| (id(reading), payload(reading))).collect();
                return readings;
            }
        }
        unreachable!("the last pass returns")
    }

    /// The connections of this slot are another's now, which shows what they have carried.
    pub(super) fn forget(&mut self, slot: &Slot) {
        self.shown.remove(&(slot.number, slot.born));
    }

    /// What the live connections of each slot have carried.
    fn living(&self, table: &EdgeTable) -> io::Result<HashMap<u32, Living>> {
        let mut living: HashMap<u32, Living> = HashMap::new();
        let all = table.connections.sockets()?;
        for batch in all.chunks(BATCH as usize) {
            for (index, socket) in batch.iter().enumerate() {
                self.asked.word(index, SOCKET).store(*socket, std::sync::atomic::Ordering::Relaxed);
            }
            sys::run_raw_tracepoint(self.program.as_fd(), &[batch.len() as u64])?;
            for index in 0..batch.len() {
                let answer = self.answer(index);
                if answer.valid != 0 {
                    let of = living.entry(answer.slot).or_default();
                    of.payload.add(&Payload { tx: answer.tx, rx: answer.rx });
                    of.connections += 1;
                }
            }
        }
        Ok(living)
    }

    fn answer(&self, index: usize) -> Asked {
        let words: [u64; size_of::<Asked>() / 8] = std::array::from_fn(|word| self.asked.load(index, word));
        // SAFETY: both are 32 bytes of plain integers; every bit pattern is valid.
        unsafe { std::mem::transmute::<[u64; size_of::<Asked>() / 8], Asked>(words) }
    }
}

fn id(reading: &EdgeReading) -> (u32, u64) {
    (reading.slot, reading.born)
}

fn payload(reading: &EdgeReading) -> Payload {
    Payload { tx: reading.packets.tx_bytes, rx: reading.packets.rx_bytes }
}

/// Raises readings to what was read of them before: in this scrape (`best`, which then has these), else in those before it.
fn raise(readings: &mut [EdgeReading], best: &mut Shown, shown: &Shown) {
    for reading in readings {
        let id = id(reading);
        let before = best.get(&id).or_else(|| shown.get(&id)).copied().unwrap_or_default();
        let now = payload(reading);
        let now = Payload { tx: now.tx.max(before.tx), rx: now.rx.max(before.rx) };
        (reading.packets.tx_bytes, reading.packets.rx_bytes) = (now.tx, now.rx);
        best.insert(id, now);
    }
}

/// The word of [`Asked`] that the agent writes.
const SOCKET: usize = std::mem::offset_of!(Asked, socket) / 8;

/// No connection of the slot began or ended while it was read: as many live as have begun and not ended.
fn is_settled(reading: &EdgeReading, living: u64, table: &EdgeTable) -> bool {
    let (then, now) = (reading.tcp.events, table.tcp(reading.slot).events);
    (then.established, then.closed) == (now.established, now.closed) && then.established == then.closed + living
}

#[cfg(test)]
mod tests {
    use observer_common::{counters::PacketCounters, tcp::TcpCounters};

    use super::*;

    fn reading(slot: u32, born: u64, tx_bytes: u64, rx_bytes: u64) -> EdgeReading {
        EdgeReading {
            slot,
            key: None,
            born,
            decision: 0,
            closed: None,
            packets: PacketCounters { tx_bytes, rx_bytes, ..PacketCounters::default() },
            tcp: TcpCounters::default(),
        }
    }

    #[test]
    fn no_slot_shows_less_than_before_in_the_same_life() {
        let (mut best, mut shown) = (Shown::new(), Shown::new());
        shown.insert((1, 10), Payload { tx: 100, rx: 5 });
        shown.insert((2, 10), Payload { tx: 100, rx: 100 });
        let mut first = [reading(1, 10, 90, 7), reading(2, 20, 3, 3)];
        raise(&mut first, &mut best, &shown);
        assert_eq!(first.each_ref().map(payload), [Payload { tx: 100, rx: 7 }, Payload { tx: 3, rx: 3 }]);
        let mut second = [reading(1, 10, 101, 6), reading(2, 20, 2, 4)];
        raise(&mut second, &mut best, &shown);
        assert_eq!(second.each_ref().map(payload), [Payload { tx: 101, rx: 7 }, Payload { tx: 3, rx: 4 }]);
    }
}
