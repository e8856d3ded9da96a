//! The addresses that an agent wants to know: those that it has seen last. Pure.

use std::net::IpAddr;

use observer_resolver::{MAX_BATCH, packed, v1::FollowRequest};

use crate::hash::{FastMap, FastSet};

/// A bounded set of addresses. The one that was not seen for longest leaves first; one that was just seen never does.
#[derive(Debug)]
pub struct Wants {
    most: usize,
    /// When it was seen last, and whether there is an answer.
    addresses: FastMap<IpAddr, Want>,
    round: u64,
    subscribe: FastSet<IpAddr>,
    unsubscribe: FastSet<IpAddr>,
    unanswered: usize,
}

#[derive(Debug, Clone, Copy)]
struct Want {
    seen: u64,
    answered: bool,
}

/// What came of a look at the addresses that are there now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How many are new.
    pub new: usize,
    /// Those that had to leave for them.
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
            round: 0,
            subscribe: FastSet::default(),
            unsubscribe: FastSet::default(),
            unanswered: 0,
        }
    }

    /// These are there now.
    pub fn see(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Seen {
        self.round += 1;
        let mut new = Vec::new();
        for address in addresses {
            match self.addresses.get_mut(&address) {
                Some(want) => want.seen = self.round,
                None => new.push(address),
            }
        }
        new.sort_unstable();
        new.dedup();
        let mut seen = Seen::default();
        if new.is_empty() {
            return seen;
        }
        let excess = (self.addresses.len() + new.len()).saturating_sub(self.most);
        if excess > 0 {
            seen.left = self.oldest(excess);
            seen.left.iter().for_each(|address| self.remove(*address));
        }
        let room = self.most - self.addresses.len();
        seen.refused = new.len().saturating_sub(room) as u64;
        new.truncate(room);
        seen.new = new.len();
        for address in new {
            self.addresses.insert(address, Want { seen: self.round, answered: false });
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

    /// Those that were not seen for longest, and not in this round.
    fn oldest(&self, most: usize) -> Vec<IpAddr> {
        let before = self.addresses.iter().filter(|(_, want)| want.seen < self.round);
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

    fn see(wants: &mut Wants, numbers: &[u16]) -> (usize, Vec<IpAddr>, u64) {
        let mut seen = wants.see(numbers.iter().copied().map(ip));
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
    fn a_request_has_a_bound() {
        let mut wants = Wants::new(5_000);
        wants.see((0..2_500).map(ip));
        let sizes: Vec<usize> = std::iter::from_fn(|| wants.request()).map(|request| request.subscribe.len()).collect();
        assert_eq!(sizes, [1_000, 1_000, 500]);
        wants.connected();
        assert_eq!(std::iter::from_fn(|| wants.request()).count(), 3, "to a new connection all is said anew");
    }

    proptest! {
        #[test]
        fn the_other_side_knows_what_is_wanted(
            rounds in proptest::collection::vec((proptest::collection::vec(0..12u16, 0..6), 0..3u8), 0..40)
        ) {
            let mut wants = Wants::new(6);
            let mut there = FastSet::default();
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
            for (addresses, after) in rounds {
                wants.see(addresses.iter().copied().map(ip));
                prop_assert!(wants.addresses.len() <= 6);
                if after > 0 {
                    let there = apply(&mut wants, after == 2);
                    prop_assert_eq!(there, wants.addresses.keys().copied().collect::<FastSet<_>>());
                }
            }
        }
    }
}
