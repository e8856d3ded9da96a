//! What a cluster says, told to who wants to hear it.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use super::{
    ClusterFeed, Coverage,
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
    /// What came of the first list of each kind.
    lists: [List; 4],
    /// Kinds that cannot be watched now: what is new of them is not heard of.
    away: [bool; 4],
    /// What the feed knows of how much it is told.
    coverage: Option<Coverage>,
}

/// What came of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum List {
    /// Nothing yet.
    #[default]
    Awaited,
    /// It may not be read, or there is none.
    Unreadable,
    /// It was told.
    Told,
}

impl Teller {
    /// Nothing is known yet.
    pub fn new(cluster: Cluster, feed: Arc<dyn ClusterFeed>) -> Self {
        Self { cluster, feed, given_back: VecDeque::new(), lists: Default::default(), away: [false; 4], coverage: None }
    }

    /// Tells what has changed with the objects of a kind, at this moment in nanoseconds of `CLOCK_MONOTONIC`. What the
    /// first list has was so before.
    pub fn tell(&mut self, kind: Kind, now: u64) {
        let first = std::mem::replace(&mut self.lists[kind as usize], List::Told) != List::Told;
        let changes = self.cluster.changes(kind);
        let free = changes.iter().filter(|(_, record)| record.is_none()).map(|(address, _)| (now, *address));
        self.given_back.extend(free);
        // Most events change nothing of whose an address is, and then nobody needs to look again.
        if !changes.is_empty() {
            self.feed.tell(changes, if first { 0 } else { now });
        }
        if let Some(ranges) = self.cluster.new_ranges() {
            self.feed.pod_ranges(ranges);
        }
        self.feed.folded(self.cluster.take_folded());
        if first {
            self.say_coverage();
        }
        while let Some((since, address)) = self.given_back.pop_front_if(|(since, _)| *since + KEEP < now) {
            self.feed.forget(address, since);
        }
    }

    /// Objects of a kind may not be read, or the API server has none: nobody waits for their first list any more.
    pub fn unreadable(&mut self, kind: Kind) {
        let list = &mut self.lists[kind as usize];
        if *list == List::Awaited {
            *list = List::Unreadable;
            self.say_coverage();
        }
    }

    /// Whether objects of a kind are watched now. While they are not, an address that nobody has may be somebody's by now.
    pub fn watched(&mut self, kind: Kind, is_watched: bool) {
        let away = &mut self.away[kind as usize];
        if std::mem::replace(away, !is_watched) == is_watched {
            self.say_coverage();
        }
    }

    fn say_coverage(&mut self) {
        // Slices alone tell only of endpoints that are no pods, which are seldom the cluster's own.
        let is_told = |kind: Kind| self.lists[kind as usize] == List::Told && !self.away[kind as usize];
        let coverage = match self.lists.contains(&List::Awaited) {
            true if self.away.contains(&true) => Coverage::Away,
            true => return,
            false if [Kind::Service, Kind::Node, Kind::Pod].into_iter().all(is_told) => Coverage::Whole,
            false => Coverage::Part,
        };
        if self.coverage.replace(coverage) != Some(coverage) {
            self.feed.covers(coverage);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{Coverage::*, *};
    use crate::identity::cluster::{
        BookUse, Changes, Known, PeerBook, PeerRecord, PodRanges,
        claims::{Claims, Rank},
    };

    #[test]
    fn who_had_an_address_is_known_for_a_while() {
        let book = Arc::new(PeerBook::default());
        let mut teller = Teller::new(Cluster::with_room_for(2), Arc::<PeerBook>::clone(&book));
        let [one, two]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|address| address.parse().unwrap());
        let record = |name: &str| PeerRecord::Node { name: name.into() };
        let claims = |address, name: &str| Claims {
            created: 0,
            addresses: vec![(address, Rank::Pod)],
            record: record(name),
            ranges: vec![],
        };
        let by = |name: &str| Known::By(Arc::new(record(name)));
        teller.cluster.put(Kind::Pod, "a", claims(one, "a"));
        teller.tell(Kind::Pod, 100);
        assert_eq!(book.who(one, 5), by("a"), "it was so before");
        teller.cluster.put(Kind::Pod, "b", claims(two, "b"));
        teller.cluster.remove(Kind::Pod, "a");
        teller.tell(Kind::Pod, 200);
        assert_eq!([book.who(two, 199), book.who(two, 200)], [Known::Unknown, by("b")]);
        assert_eq!([book.who(one, 199), book.who(one, 200)], [by("a"), Known::Vacant]);
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

    /// What was said of how much is told.
    #[derive(Default)]
    struct Said(Mutex<Vec<Coverage>>);

    impl Said {
        fn is(&self, expected: &[Coverage]) -> bool {
            *self.0.lock().unwrap() == expected
        }
    }

    impl ClusterFeed for Said {
        fn tell(&self, _: Changes, _: u64) {}

        fn pod_ranges(&self, _: PodRanges) {}

        fn covers(&self, coverage: Coverage) {
            self.0.lock().unwrap().push(coverage);
        }

        fn forget(&self, _: IpAddr, _: u64) {}

        fn folded(&self, _: u64) {}
    }

    #[test]
    fn nobody_waits_for_what_may_not_be_read() {
        let made = || {
            let said = Arc::<Said>::default();
            (Teller::new(Cluster::with_room_for(2), Arc::<Said>::clone(&said)), said)
        };
        let all = [Kind::Service, Kind::Node, Kind::EndpointSlice, Kind::Pod];
        let (mut teller, said) = made();
        all.iter().for_each(|kind| teller.tell(*kind, 1));
        all.iter().for_each(|kind| teller.unreadable(*kind));
        assert!(said.is(&[Whole]), "what was read once is known");
        let (mut teller, said) = made();
        teller.unreadable(Kind::EndpointSlice);
        [Kind::Service, Kind::Node].iter().for_each(|kind| teller.tell(*kind, 1));
        assert!(said.is(&[]), "pods may come");
        teller.tell(Kind::Pod, 2);
        teller.tell(Kind::EndpointSlice, 3);
        assert!(said.is(&[Whole]));
        let (mut teller, said) = made();
        all[..3].iter().for_each(|kind| teller.tell(*kind, 1));
        teller.unreadable(Kind::Pod);
        teller.unreadable(Kind::Pod);
        assert!(said.is(&[Part]), "an address may be a pod's");
        teller.tell(Kind::Pod, 2);
        assert!(said.is(&[Part, Whole]), "it may be read now");
    }

    #[test]
    fn what_is_new_while_the_server_is_away_is_not_known_to_be_nobodys() {
        let said = Arc::<Said>::default();
        let mut teller = Teller::new(Cluster::with_room_for(2), Arc::<Said>::clone(&said));
        let all = [Kind::Service, Kind::Node, Kind::EndpointSlice, Kind::Pod];
        [Kind::Pod, Kind::Node].iter().for_each(|kind| teller.watched(*kind, false));
        assert!(said.is(&[Away]), "the lists that come first are not waited for in vain");
        all.iter().for_each(|kind| teller.tell(*kind, 1));
        all.iter().for_each(|kind| teller.watched(*kind, true));
        teller.watched(Kind::EndpointSlice, false);
        assert!(said.is(&[Away, Part, Whole]), "slices tell of what is seldom the cluster's own");
        [Kind::Service, Kind::Pod].iter().for_each(|kind| teller.watched(*kind, false));
        teller.watched(Kind::Pod, true);
        assert!(said.is(&[Away, Part, Whole, Part]));
        teller.watched(Kind::Service, true);
        assert!(said.is(&[Away, Part, Whole, Part, Whole]));
    }
}
