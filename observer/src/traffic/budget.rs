//! How many series there may be. Pure: what goes over is folded, never dropped.
//!
//! First come, first kept: who has been shown stays, and who has been folded stays folded, for as long as it is there at
//! all. So no counter goes back because another one was folded or shown. Series come in the order of their oldest slot,
//! which is the order in which the kernel saw them until slots are used a second time: an agent that starts again
//! decides nearly as the one before did.
//!
//! What is shown keeps its place when it grows: the first failure or reset of a connection is a sample more. These samples
//! leave less room for series that are new, and are the only ones that can be over the limit.

use std::hash::{BuildHasher, Hash};

use super::{
    attribute::{Peer, PeerKind},
    series::{Samples, Series, SeriesKey, Totals},
};
use crate::hash::{FastHasher, FastMap, FastSet};

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Series of the node, in samples of a scrape. Those with peer_kind `other`, and what a series grows by, are counted
    /// but never refused.
    pub series: u64,
    /// Peers that one container may name.
    pub peers_per_container: usize,
    /// Ports that one container may name, as a client, as a server, and as neither.
    pub ports_per_container: usize,
}

/// How much of it is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetUse {
    /// Series that are shown.
    pub shown: u64,
    /// Series that would be there beside them without a budget.
    pub folded: u64,
}

/// Under which labels a series is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Its own.
    Own,
    /// Without the port.
    NoPort,
    /// Without the port and the peer.
    Other,
}

impl Place {
    fn of<'a>(self, key: &SeriesKey<'a>) -> SeriesKey<'a> {
        match self {
            Self::Own => *key,
            Self::NoPort => SeriesKey { port: 0, ..*key },
            Self::Other => SeriesKey { port: 0, peer: Peer::of_kind(PeerKind::Other), ..*key },
        }
    }
}

/// 128 bits that stand for labels, so that a scrape's memory holds no text. Two that were the same by chance would share a
/// place; no number would be wrong.
type Print = (u64, u64);

/// What was decided, from scrape to scrape.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    hashers: (FastHasher, FastHasher),
    places: FastMap<Print, Place>,
}

/// What the series that have a place take.
#[derive(Debug, Default)]
struct Taken {
    shown: FastMap<Print, Samples>,
    samples: u64,
    /// Whether anybody asks for what follows: only for a series that is new a place is chosen.
    chooses: bool,
    /// By container.
    peers: FastMap<Print, FastSet<Print>>,
    /// By container and role.
    ports: FastMap<Print, FastSet<u16>>,
}

impl Budget {
    /// Nothing was shown yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, hashers: Default::default(), places: FastMap::default() }
    }

    /// What is allowed.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Folds what goes over; `order` stays as it was. The sum over all series stays, for each container, protocol and role. A
    /// series that is in no scrape any more (its pod has gone) makes room for others.
    pub fn apply(&mut self, series: &mut Series<'_>) -> BudgetUse {
        let before = std::mem::take(&mut self.places);
        self.places.reserve(series.totals.len());
        // Not through `order`: to look each up again by its labels would cost as much as all the rest.
        let all = series.totals.iter().map(|(key, totals)| (key, totals, self.print(key)));
        let (known, new): (Vec<_>, Vec<_>) = all.partition(|(.., print)| before.contains_key(print));
        let mut taken = Taken { chooses: !new.is_empty(), ..Taken::default() };
        for (key, totals, print) in known {
            let place = before[&print];
            self.take(&mut taken, (key, print), key.samples(totals), place);
            self.places.insert(print, place);
        }
        // Those that are new in the order in which they came.
        let order: &[SeriesKey<'_>] = if new.is_empty() { &[] } else { &series.order };
        for key in order {
            let print = self.print(key);
            if before.contains_key(&print) {
                continue;
            }
            let samples = series.totals.get(key).map(|totals| key.samples(totals)).unwrap_or_default();
            let place = self.choose(&taken, key, samples);
            self.take(&mut taken, (key, print), samples, place);
            self.places.insert(print, place);
        }
        BudgetUse { shown: taken.samples, folded: self.fold(series) }
    }

    /// Moves the totals of each series to its place. Says how many samples these labels would have had.
    fn fold(&self, series: &mut Series<'_>) -> u64 {
        let mut folded = 0;
        // The usual case: everything has its own place already.
        if self.places.values().all(|place| *place == Place::Own) {
            return folded;
        }
        // Not in place: the labels that one is folded into may be those of another that is folded itself.
        let totals = std::mem::take(&mut series.totals);
        for (key, totals) in totals {
            let place = self.places.get(&self.print(key)).copied().unwrap_or(Place::Other);
            if place != Place::Own {
                folded += key.samples(&totals).count();
            }
            series.totals.entry(place.of(&key)).or_default().merge(&totals);
        }
        folded
    }

    fn print(&self, of: impl Hash) -> Print {
        (self.hashers.0.hash_one(&of), self.hashers.1.hash_one(&of))
    }

    fn container(&self, key: &SeriesKey<'_>) -> Print {
        self.print((key.namespace, key.pod, key.container))
    }

    fn container_and_role(&self, key: &SeriesKey<'_>) -> Print {
        self.print((key.namespace, key.pod, key.container, key.role))
    }

    fn take(&self, taken: &mut Taken, (key, print): (&SeriesKey<'_>, Print), samples: Samples, place: Place) {
        let key = place.of(key);
        let print = if place == Place::Own { print } else { self.print(key) };
        let there = taken.shown.insert(print, samples);
        if let Some(there) = there {
            let all = samples.with(there);
            taken.samples += all.count() - there.count();
            taken.shown.insert(print, all);
            return;
        }
        taken.samples += samples.count();
        if !taken.chooses {
            return;
        }
        if key.peer.kind != PeerKind::Other {
            taken.peers.entry(self.container(&key)).or_default().insert(self.print(key.peer));
        }
        if key.port != 0 {
            taken.ports.entry(self.container_and_role(&key)).or_default().insert(key.port);
        }
    }

    /// The best place that is left for a series that is new.
    fn choose(&self, taken: &Taken, key: &SeriesKey<'_>, samples: Samples) -> Place {
        if Place::Other.of(key) == *key {
            return Place::Own;
        }
        let peers = taken.peers.get(&self.container(key));
        let peer_fits =
            key.peer.kind == PeerKind::Other || fits(peers, &self.print(key.peer), self.limits.peers_per_container);
        let ports = taken.ports.get(&self.container_and_role(key));
        let port_fits = key.port == 0 || fits(ports, &key.port, self.limits.ports_per_container);
        let place = match (peer_fits, port_fits) {
            (true, true) => Place::Own,
            (true, false) => Place::NoPort,
            (false, _) => Place::Other,
        };
        let there = taken.shown.get(&self.print(place.of(key))).copied().unwrap_or_default();
        let more = samples.with(there).count() - there.count();
        if more == 0 || taken.samples + more <= self.limits.series { place } else { Place::Other }
    }
}

fn fits<T: Eq + Hash>(there: Option<&FastSet<T>>, one: &T, limit: usize) -> bool {
    there.map_or(limit > 0, |there| there.contains(one) || there.len() < limit)
}

impl Totals {
    /// Adds another series' totals.
    fn merge(&mut self, other: &Self) {
        // Every field, so that a new one is not forgotten.
        let Self { tx_bytes, tx_packets, rx_bytes, rx_packets, tcp } = other;
        self.tx_bytes += tx_bytes;
        self.tx_packets += tx_packets;
        self.rx_bytes += rx_bytes;
        self.rx_packets += rx_packets;
        self.tcp.add(tcp);
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
