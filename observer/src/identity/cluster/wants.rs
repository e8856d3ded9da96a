//! The addresses that an agent wants to know: those that it has seen last. Pure.

use std::net::IpAddr;

use observer_resolver::{MAX_BATCH, packed, v1::FollowRequest};

use crate::hash::{FastMap, FastSet};

/// How long an address is wanted that is not seen any more, in nanoseconds: as long as a resolver remembers who had an
/// address before, so that one which is wanted again later has had time to be another's.
const KEEP: u64 = 600 * 1_000_000_000;

/// A bounded set of addresses. One that was not seen for [`KEEP`] leaves; where there is no room, the one that was not
/// seen for longest does. One that was just seen never does.
#[derive(Debug)]
pub struct Wants {
    most: usize,
    addresses: FastMap<IpAddr, Want>,
    subscribe: FastSet<IpAddr>,
    unsubscribe: FastSet<IpAddr>,
    unanswered: usize,
}

#[derive(Debug, Clone, Copy)]
struct Want {
    /// When it was seen last, in nanoseconds of `CLOCK_MONOTONIC`.
    seen: u64,
    /// Whether there is an answer.
    answered: bool,
}

/// What came of a look at the addresses that are there now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How many are new.
    pub new: usize,
    /// Those that have left.
    pub left: Vec<IpAddr>,
    /// How many found no place.
    pub refused: u64,
}

impl Wants {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            addresses: FastMap::default(),
            subscribe: FastSet::default(),
            unsubscribe: FastSet::default(),
            unanswered: 0,
        }
    }

    /// These are there at `now`, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn see(&mut self, addresses: impl Iterator<Item = IpAddr>, now: u64) -> Seen {
        let mut new = Vec::new();
        for address in addresses {
            match self.addresses.get_mut(&address) {
                Some(want) => want.seen = now,
                None => new.push(address),
            }
        }
        new.sort_unstable();
        new.dedup();
        let mut seen = Seen { left: self.leave(|want| want.seen.saturating_add(KEEP) < now), ..Seen::default() };
        let excess = (self.addresses.len() + new.len()).saturating_sub(self.most);
        if excess > 0 {
            let oldest = self.oldest(excess, now);
            oldest.iter().for_each(|address| self.remove(*address));
            seen.left.extend(oldest);
        }
        let room = self.most - self.addresses.len();
        seen.refused = new.len().saturating_sub(room) as u64;
        new.truncate(room);
        seen.new = new.len();
        for address in new {
            self.addresses.insert(address, Want { seen: now, answered: false });
            self.unanswered += 1;
            self.subscribe.insert(address);
        }
        seen
    }

    /// There is an answer for this one. False when nobody wants it any more.
    pub fn answered(&mut self, address: IpAddr) -> bool {
        let Some(want) = self.addresses.get_mut(&address) else { return false };
        if !std::mem::replace(&mut want.answered, true) {
            self.unanswered -= 1;
        }
        true
    }

    /// Whether there is an answer for all of them.
    pub const fn all_answered(&self) -> bool {
        self.unanswered == 0
    }

    /// A new connection: nobody knows of them there.
    pub fn connected(&mut self) {
        self.unsubscribe.clear();
        self.subscribe = self.addresses.keys().copied().collect();
    }

    /// What to say next; `None` when all is said.
    pub fn request(&mut self) -> Option<FollowRequest> {
        if self.unsubscribe.is_empty() && self.subscribe.is_empty() {
            return None;
        }
        let unsubscribe = take(&mut self.unsubscribe, MAX_BATCH);
        let subscribe = take(&mut self.subscribe, MAX_BATCH - unsubscribe.len());
        Some(FollowRequest { subscribe, unsubscribe })
    }

    /// Those of which this is so leave.
    fn leave(&mut self, is_so: impl Fn(&Want) -> bool) -> Vec<IpAddr> {
        let leaving = self.addresses.iter().filter(|(_, want)| is_so(want));
        let leaving: Vec<IpAddr> = leaving.map(|(address, _)| *address).collect();
        leaving.iter().for_each(|address| self.remove(*address));
        // Their room goes too, once it is most of it.
        if self.addresses.capacity() / 4 > self.addresses.len() {
            self.addresses.shrink_to(2 * self.addresses.len());
        }
        leaving
    }

    /// Those that were not seen for longest, and not at `now`.
    fn oldest(&self, most: usize, now: u64) -> Vec<IpAddr> {
        let before = self.addresses.iter().filter(|(_, want)| want.seen < now);
        let mut ages: Vec<(u64, IpAddr)> = before.map(|(address, want)| (want.seen, *address)).collect();
        if ages.len() > most {
            ages.select_nth_unstable(most);
            ages.truncate(most);
        }
        ages.into_iter().map(|(_, address)| address).collect()
    }

    fn remove(&mut self, address: IpAddr) {
        let Some(want) = self.addresses.remove(&address) else { return };
        self.unanswered -= usize::from(!want.answered);
        // What was not said yet needs no taking back.
        if !self.subscribe.remove(&address) {
            self.unsubscribe.insert(address);
        }
    }
}

fn take(set: &mut FastSet<IpAddr>, most: usize) -> Vec<Vec<u8>> {
    let taken: Vec<Vec<u8>> = set.extract_if(|_| true).take(most).map(packed).collect();
    if set.is_empty() {
        set.shrink_to_fit();
    }
    taken
}

#[cfg(test)]
mod tests {
    use observer_resolver::address;
    use proptest::prelude::*;

    use super::*;

    fn ip(number: u16) -> IpAddr {
        let [high, low] = number.to_be_bytes();
        IpAddr::from([10, 0, high, low])
    }

    /// A look some time after the last one.
    fn see(wants: &mut Wants, numbers: &[u16]) -> (usize, Vec<IpAddr>, u64) {
        let last = wants.addresses.values().map(|want| want.seen).max().unwrap_or_default();
        see_at(wants, numbers, last + 1)
    }

    fn see_at(wants: &mut Wants, numbers: &[u16], now: u64) -> (usize, Vec<IpAddr>, u64) {
        let mut seen = wants.see(numbers.iter().copied().map(ip), now);
        seen.left.sort_unstable();
        (seen.new, seen.left, seen.refused)
    }

    #[test]
    fn the_one_that_was_not_seen_for_longest_leaves() {
        let mut wants = Wants::new(3);
        assert_eq!(see(&mut wants, &[1, 2, 2]), (2, vec![], 0));
        assert_eq!(see(&mut wants, &[2, 3]), (1, vec![], 0));
        assert!(!wants.all_answered());
        assert!(wants.answered(ip(1)) && wants.answered(ip(1)) && wants.answered(ip(2)) && !wants.answered(ip(9)));
        assert_eq!(see(&mut wants, &[3, 4]), (1, vec![ip(1)], 0));
        assert!(wants.answered(ip(3)) && wants.answered(ip(4)) && wants.all_answered());
        assert_eq!(see(&mut wants, &[3, 4, 5, 6]), (1, vec![ip(2)], 1), "what is there stays");
        assert_eq!(see(&mut wants, &[3, 4]), (0, vec![], 0));
        assert_eq!(wants.addresses.len(), 3);
    }

    #[test]
    fn what_is_not_seen_any_more_leaves_after_a_time_and_what_is_there_stays() {
        let mut wants = Wants::new(1_000);
        let said = |wants: &mut Wants| {
            let request = wants.request().unwrap_or_default();
            let read = |all: Vec<Vec<u8>>| all.iter().filter_map(|bytes| address(bytes)).collect::<Vec<_>>();
            (read(request.subscribe).len(), read(request.unsubscribe))
        };
        assert_eq!(see_at(&mut wants, &[1, 2], 5), (2, vec![], 0));
        assert_eq!(said(&mut wants), (2, vec![]));
        wants.answered(ip(1));
        assert_eq!(see_at(&mut wants, &[1], KEEP), (0, vec![], 0));
        assert_eq!(see_at(&mut wants, &[1], 5 + KEEP), (0, vec![], 0), "not yet");
        assert_eq!(said(&mut wants), (0, vec![]));
        assert_eq!(see_at(&mut wants, &[1], 6 + KEEP), (0, vec![ip(2)], 0));
        assert!(wants.all_answered(), "nobody waits for one that has left");
        assert_eq!(said(&mut wants), (0, vec![ip(2)]));
        // However long nobody has looked: what is there now was there all the time for all that is known.
        assert_eq!(see_at(&mut wants, &[1, 3], 9 * KEEP), (1, vec![], 0));
        assert_eq!(see_at(&mut wants, &[2], 11 * KEEP), (1, vec![ip(1), ip(3)], 0));
        assert_eq!(said(&mut wants), (1, vec![ip(1)]), "3 was never said");
        wants.see((10..900).map(ip), 12 * KEEP);
        see_at(&mut wants, &[2], 14 * KEEP);
        assert!(wants.addresses.len() == 1 && wants.addresses.capacity() < 100, "{}", wants.addresses.capacity());
    }

    #[test]
    fn a_request_has_a_bound() {
        let mut wants = Wants::new(5_000);
        wants.see((0..2_500).map(ip), 1);
        let sizes: Vec<usize> = std::iter::from_fn(|| wants.request()).map(|request| request.subscribe.len()).collect();
        assert_eq!(sizes, [1_000, 1_000, 500]);
        wants.connected();
        assert_eq!(std::iter::from_fn(|| wants.request()).count(), 3, "to a new connection all is said anew");
    }

    proptest! {
        #[test]
        fn the_other_side_knows_what_is_wanted(
            rounds in
                proptest::collection::vec((proptest::collection::vec(0..12u16, 0..6), 0..3u8, 1..KEEP / 2), 0..40)
        ) {
            let mut wants = Wants::new(6);
            let (mut there, mut now) = (FastSet::default(), 0);
            let mut apply = |wants: &mut Wants, clear: bool| {
                if clear {
                    there.clear();
                    wants.connected();
                }
                while let Some(request) = wants.request() {
                    for gone in &request.unsubscribe {
                        assert!(there.remove(&address(gone).unwrap()), "taken back what was never said");
                    }
                    there.extend(request.subscribe.iter().map(|bytes| address(bytes).unwrap()));
                }
                there.clone()
            };
            for (addresses, after, passed) in rounds {
                now += passed;
                wants.see(addresses.iter().copied().map(ip), now);
                prop_assert!(wants.addresses.len() <= 6);
                if after > 0 {
                    let there = apply(&mut wants, after == 2);
                    prop_assert_eq!(there, wants.addresses.keys().copied().collect::<FastSet<_>>());
                }
            }
        }
    }
}
