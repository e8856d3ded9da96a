//! Which slots are given back although their containers live: idle ones, while the table is nearly full. Pure.
//!
//! Without this a server with many clients, or somebody who calls it from many addresses, would fill the table for as long as
//! the server lives, and every new peer of every container would be `other`. A slot is given back only if another open one of
//! its container has the same series: closed, it finds its heir there ([`go_on`](super::go_on)), so that the series stays as it
//! is. The peer gets a new slot when it speaks again.

use std::time::{Duration, Instant};

use observer_common::edge::{Role, flags};

use super::{heirs::series_of, series::Labels};
use crate::{
    hash::{FastMap, FastSet},
    kernel::{EdgeReading, Leaving, Slot},
};

/// Above this share of the table, in percent, idle slots are given back.
const HIGH: u64 = 75;
/// Until it is down to this.
const LOW: u64 = 60;
/// Slots that are given back after one scrape, at most: two system calls and some microseconds each.
const MOST: usize = 4_096;

/// For a TCP edge whose connections have ended, as far as the probe has seen them begin.
const ENDED: Duration = Duration::from_secs(30);
/// For what has no connections: twice what the kernel's connection tracking waits for an answer to a datagram
/// (`nf_conntrack_udp_timeout`).
const QUIET: Duration = Duration::from_secs(60);
/// For a TCP edge of which the probe has seen no connection: one that failed, or one that it does not see (it is switched
/// off, they are older than it, or they are counted at an interface).
const UNSEEN: Duration = Duration::from_secs(600);

/// Since when slots have counted nothing, while the table fills.
#[derive(Debug)]
pub struct Idle {
    /// The first port that the kernel chooses for clients.
    first_chosen: u32,
    /// By number; nothing below [`LOW`].
    quiet: FastMap<u32, Quiet>,
    /// [`HIGH`] was passed, and [`LOW`] not reached since.
    pressed: bool,
}

/// A slot that is watched.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    born: u64,
    /// Of all its counters, none of which goes back.
    sum: u64,
    since: Instant,
}

impl Idle {
    /// Nothing is watched. From `first_chosen` on the kernel chooses ports for clients.
    #[must_use]
    pub fn new(first_chosen: u32) -> Self {
        Self { first_chosen, quiet: FastMap::default(), pressed: false }
    }

    /// The slots to close after a scrape that has shown these readings, those that have been idle for longest first. Of the
    /// slots in use so many are `merging` already; `capacity` fit into the table. Spare slots are another queue's.
    pub fn choose(
        &mut self,
        readings: &[EdgeReading],
        labels: &Labels<'_>,
        (merging, capacity): (usize, u32),
        now: Instant,
    ) -> Vec<(Slot, Leaving)> {
        let has_place = |reading: &&EdgeReading| reading.key.is_some_and(|key| key.flags & flags::OVERFLOW == 0);
        let used = readings.iter().filter(has_place).count().saturating_sub(merging);
        let (share, low) = (used as u64 * 100, u64::from(capacity) * LOW);
        if share <= low {
            *self = Self::new(self.first_chosen);
            return Vec::new();
        }
        self.watch(readings.iter().filter(has_place), now);
        self.pressed |= share > u64::from(capacity) * HIGH;
        if !self.pressed {
            return Vec::new();
        }
        let mut kept = FastSet::default();
        let mut idle = Vec::new();
        for reading in readings.iter().filter(has_place).filter(|reading| reading.closed.is_none()) {
            let Some(of) = reading.slot_use() else { continue };
            let Some(series) = series_of(&of, labels).filter(|_| of.decision != 0) else { continue };
            // The first open one of the series is what the others go to.
            if kept.insert(series) {
                continue;
            }
            let since = self.quiet.get(&of.slot.number).map_or(now, |quiet| quiet.since);
            if patience(reading, self.first_chosen).is_some_and(|patience| now.duration_since(since) >= patience) {
                idle.push((since, of.slot));
            }
        }
        idle.sort_by_key(|(since, _)| *since);
        idle.truncate(MOST.min(used - (low / 100) as usize));
        // Connections that the probe does not know keep the lines of their sockets, and go on with the heir.
        idle.into_iter().map(|(_, slot)| (slot, Leaving::Connections)).collect()
    }

    /// Notes which slots have counted since the scrape before.
    fn watch<'a>(&mut self, readings: impl Iterator<Item = &'a EdgeReading>, now: Instant) {
        let mut before = std::mem::take(&mut self.quiet);
        for reading in readings {
            let seen = Quiet { born: reading.born, sum: sum(reading), since: now };
            let same = |there: &Quiet| (there.born, there.sum) == (seen.born, seen.sum);
            self.quiet.insert(reading.slot, before.remove(&reading.slot).filter(same).unwrap_or(seen));
        }
    }
}

/// How long a slot must have counted nothing; `None` for one that connections live in, however quiet: it is known by the slot
/// with whom they began. `None` as well where the edge alone says who called, because no handshake and no port does: the
/// next edge might have it the other way round, with a port of the client's, and then a series of its own.
fn patience(reading: &EdgeReading, first_chosen: u32) -> Option<Duration> {
    let key = reading.key.as_ref()?;
    let has_handshake = key.protocol == libc::IPPROTO_TCP as u8 && reading.tcp.events.established > 0;
    if key.role() != Role::None && u32::from(key.port) >= first_chosen && !has_handshake {
        return None;
    }
    if key.protocol != libc::IPPROTO_TCP as u8 {
        return Some(QUIET);
    }
    match (reading.tcp.events.established, reading.tcp.events.closed) {
        (0, 0) => Some(UNSEEN),
        (established, closed) if established == closed => Some(ENDED),
        _ => None,
    }
}

/// All that the slot has counted, in one number, which is another one after anything was counted.
fn sum(reading: &EdgeReading) -> u64 {
    let EdgeReading { packets, tcp, .. } = reading;
    let events = &tcp.events;
    let rest = [
        packets.tx_bytes,
        packets.tx_packets,
        packets.rx_bytes,
        packets.rx_packets,
        events.established,
        events.closed,
        events.opened,
        events.retransmitted,
        events.resets_sent,
        events.resets_received,
    ];
    events.failures.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

#[cfg(test)]
#[path = "idle_tests.rs"]
mod tests;
