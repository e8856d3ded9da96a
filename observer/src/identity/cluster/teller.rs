//! What a cluster says, told to who wants to hear it.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use super::{
    ClusterFeed,
    claims::{Cluster, Kind},
};

/// How long the book knows who had an address that nobody has any more, in nanoseconds: what was counted before it was
/// given back is shown by then.
const KEEP: u64 = 300 * 1_000_000_000;

/// A cluster and who is told of it.
pub struct Teller {
    /// The objects.
    pub cluster: Cluster,
    feed: Arc<dyn ClusterFeed>,
    /// Addresses that were given back, and when.
    given_back: VecDeque<(u64, IpAddr)>,
    /// Kinds that were told once.
    told: [bool; 4],
}

impl Teller {
    /// Nothing is known yet.
    pub fn new(cluster: Cluster, feed: Arc<dyn ClusterFeed>) -> Self {
        Self { cluster, feed, given_back: VecDeque::new(), told: [false; 4] }
    }

    /// Tells what has changed with the objects of a kind, at this moment in nanoseconds of `CLOCK_MONOTONIC`. What the
    /// first list has was so before.
    pub fn tell(&mut self, kind: Kind, now: u64) {
        let first = !std::mem::replace(&mut self.told[kind as usize], true);
        let changes = self.cluster.changes(kind);
        let free = changes.iter().filter(|(_, record)| record.is_none()).map(|(address, _)| (now, *address));
        self.given_back.extend(free);
        // Most events change nothing of whose an address is, and then nobody needs to look again.
        if !changes.is_empty() {
            self.feed.tell(changes, if first { 0 } else { now });
        }
        self.feed.folded(self.cluster.take_folded());
        if first && self.told == [true; 4] {
            self.feed.complete();
        }
        while let Some((since, address)) = self.given_back.pop_front_if(|(since, _)| *since + KEEP < now) {
            self.feed.forget(address, since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::cluster::{
        BookUse, Known, PeerBook, PeerRecord,
        claims::{Claims, Rank},
    };

    #[test]
    fn who_had_an_address_is_known_for_a_while() {
        let book = Arc::new(PeerBook::default());
        let mut teller = Teller::new(Cluster::with_room_for(2), Arc::<PeerBook>::clone(&book));
        let [one, two]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let record = |name: &str| PeerRecord::Node { name: name.into() };
        let claims =
            |address, name: &str| Claims { created: 0, addresses: vec![(address, Rank::Pod)], record: record(name) };
        let by = |name: &str| Known::By(Arc::new(record(name)));
        teller.cluster.put(Kind::Pod, "a", claims(one, "a"));
        teller.tell(Kind::Pod, 100);
        assert_eq!(book.who(one, 5), by("a"), "it was so before");
        teller.cluster.put(Kind::Pod, "b", claims(two, "b"));
        teller.cluster.remove(Kind::Pod, "a");
        teller.tell(Kind::Pod, 200);
        assert_eq!([book.who(two, 199), book.who(two, 200)], [Known::Unknown, by("b")]);
        assert_eq!([book.who(one, 199), book.who(one, 200)], [by("a"), Known::Nobody]);
        teller.tell(Kind::Pod, 200 + KEEP);
        assert_eq!(book.who(one, 199), by("a"));
        // Given back, taken, and given back again: what is old is forgotten, what is new is not.
        teller.cluster.put(Kind::Pod, "c", claims(one, "c"));
        teller.tell(Kind::Pod, 300);
        teller.cluster.remove(Kind::Pod, "c");
        teller.tell(Kind::Pod, 400);
        teller.tell(Kind::Pod, 201 + KEEP);
        assert_eq!(book.who(one, 399), by("c"));
        teller.cluster.put(Kind::Pod, "d", claims("10.0.0.3".parse().unwrap(), "d"));
        teller.cluster.put(Kind::Pod, "e", claims("10.0.0.4".parse().unwrap(), "e"));
        teller.tell(Kind::Pod, 401 + KEEP);
        assert_eq!(book.who(one, 399), Known::Unknown);
        assert_eq!(book.usage(), BookUse { addresses: 2, folded: 1 });
    }
}
