//! Addresses and who has them, now and a moment ago.

use std::{
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{PeerRecord, PodRanges};
use crate::hash::FastMap;

/// Addresses that are kept: a node's limit of 110 pods on 900 nodes.
const MAX_ADDRESSES: usize = 100_000;

/// Who has which address. Whoever follows the cluster writes it, attribution reads it.
#[derive(Debug)]
pub struct PeerBook {
    content: RwLock<Content>,
    most: usize,
    folded: AtomicU64,
    version: AtomicU64,
}

#[derive(Debug)]
struct Content {
    entries: FastMap<IpAddr, Entry>,
    /// What it means that there is no entry.
    untold: Told<'static>,
    /// Where nobody is known to have none of these, somebody may.
    ranges: PodRanges,
}

/// What is known of an address at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Who had it.
    By(Arc<PeerRecord>),
    /// Nobody that the cluster knows of, nor did anybody have it before.
    Nobody,
    /// Nobody any more: somebody of the cluster had it before.
    Vacant,
    /// Nobody has told yet.
    Unknown,
}

/// How full the book is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BookUse {
    /// Addresses that are known, and those that somebody had a moment ago.
    pub addresses: u64,
    /// How often an address found no place.
    pub folded: u64,
}

#[derive(Debug)]
struct Entry {
    /// Who has it; `None` when nobody does.
    record: Option<Arc<PeerRecord>>,
    /// Since when, nanoseconds of `CLOCK_MONOTONIC` (the kernel's `ktime_get_ns`); 0 for what was so before this agent asked.
    since: u64,
    /// Who had it before that, and since when.
    before: Option<(Option<Arc<PeerRecord>>, u64)>,
}

impl Entry {
    /// Who had it at `at`, and since when; `None` for before anybody told.
    fn at(&self, at: u64) -> Option<(Option<&Arc<PeerRecord>>, u64)> {
        match &self.before {
            _ if at >= self.since => Some((self.record.as_ref(), self.since)),
            Some((before, since)) if at >= *since => Some((before.as_ref(), *since)),
            _ => None,
        }
    }
}

impl Default for PeerBook {
    fn default() -> Self {
        Self::with_room_for(MAX_ADDRESSES)
    }
}

impl PeerBook {
    /// A book of at most so many addresses.
    #[must_use]
    pub fn with_room_for(most: usize) -> Self {
        let (folded, version) = (AtomicU64::new(0), AtomicU64::new(0));
        let content = Content { entries: FastMap::default(), untold: Told::Pending, ranges: PodRanges::default() };
        Self { content: RwLock::new(content), most, folded, version }
    }

    /// Takes that `address` has belonged to `record` (to nobody) since `since`, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn tell(&self, address: IpAddr, record: Option<Arc<PeerRecord>>, since: u64) {
        self.tell_all([(address, record)], since);
    }

    /// The same of many at once: whoever reads sees all of them or none.
    pub fn tell_all(&self, changes: impl IntoIterator<Item = (IpAddr, Option<Arc<PeerRecord>>)>, since: u64) {
        let mut content = self.write();
        let entries = &mut content.entries;
        // While it is held: who sees another version finds what is new.
        self.version.fetch_add(1, Relaxed);
        for (address, record) in changes {
            let full = entries.len() >= self.most;
            match entries.get_mut(&address) {
                Some(entry) if entry.record == record => {}
                Some(entry) => {
                    let before = std::mem::replace(&mut entry.record, record);
                    entry.before = Some((before, std::mem::replace(&mut entry.since, since)));
                }
                None if full => self.fold(1),
                None => {
                    entries.insert(address, Entry { record, since, before: None });
                }
            }
        }
    }

    /// Forgets the address: nobody tells of it any more.
    pub fn forget(&self, address: IpAddr) {
        let mut content = self.write();
        if content.entries.remove(&address).is_some() {
            self.version.fetch_add(1, Relaxed);
        }
    }

    /// From now on what it says nothing of is nobody's when the `whole` cluster is told of. Otherwise nobody will say whose
    /// it is.
    pub fn complete(&self, whole: bool) {
        let untold = if whole { Told::Nobody } else { Told::Nothing };
        let mut content = self.write();
        if content.untold != untold {
            self.version.fetch_add(1, Relaxed);
            content.untold = untold;
        }
    }

    /// What is known to be nobody's may be somebody's where it is in one of these, which are all that there are.
    pub fn pod_ranges(&self, ranges: PodRanges) {
        let mut content = self.write();
        self.version.fetch_add(1, Relaxed);
        content.ranges = ranges;
    }

    /// Forgets that nobody has had the address since `since`; whoever has got it meanwhile keeps it.
    pub fn forget_nobody(&self, address: IpAddr, since: u64) {
        let entries = &mut self.write().entries;
        if entries.get(&address).is_some_and(|entry| entry.record.is_none() && entry.since == since) {
            entries.remove(&address);
        }
    }

    /// Counts an address that found no place before it came here.
    pub fn fold(&self, addresses: u64) {
        self.folded.fetch_add(addresses, Relaxed);
    }

    /// Who had `address` at `at`, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn who(&self, address: IpAddr, at: u64) -> Known {
        match self.read().entries.get(&address).and_then(|entry| entry.at(at)) {
            Some((Some(record), _)) => Known::By(Arc::clone(record)),
            Some((None, 0)) => Known::Nobody,
            Some((None, _)) => Known::Vacant,
            None => Known::Unknown,
        }
    }

    /// The book, held open for many looks. Nothing is written meanwhile, so it must not be held for long, and
    /// [`PeerBook::who`] must not be asked by whoever holds it.
    #[must_use]
    pub fn open(&self) -> OpenBook<'_> {
        OpenBook { content: Some(self.read()), found_place: self.folded.load(Relaxed) == 0 }
    }

    /// Another number after every change, from 1 on.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> BookUse {
        BookUse { addresses: self.read().entries.len() as u64, folded: self.folded.load(Relaxed) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A book that does not change while it is looked into. The default one knows nobody.
#[derive(Debug, Default)]
pub struct OpenBook<'a> {
    content: Option<RwLockReadGuard<'a, Content>>,
    /// All that was told found a place.
    found_place: bool,
}

/// What an open book says of an address at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// Who had it.
    By(&'a PeerRecord),
    /// Nobody that the cluster knows of.
    Nobody,
    /// Nobody any more: somebody of the cluster had it before.
    Vacant,
    /// It says nothing, and nobody will: not all of the cluster can be read, or found a place.
    Nothing,
    /// It says nothing yet.
    Pending,
}

impl OpenBook<'_> {
    /// What is known of `address` at `at`, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn told(&self, address: IpAddr, at: u64) -> Told<'_> {
        let Some(content) = &self.content else { return Told::Nothing };
        let entry = content.entries.get(&address);
        let told = match entry.and_then(|entry| entry.at(at)) {
            Some((Some(record), _)) => Told::By(record),
            Some((None, 0)) => Told::Nobody,
            Some((None, _)) => Told::Vacant,
            // Whoever has got it since may have had it before that was heard of.
            None if content.untold == Told::Nobody && (entry.is_some() || !self.found_place) => Told::Nothing,
            None => content.untold,
        };
        if told == Told::Nobody && content.ranges.contains(address) { Told::Pending } else { told }
    }

    /// Who had `address` at `at`, in nanoseconds of `CLOCK_MONOTONIC`; `None` for nobody, or nobody that is known.
    #[must_use]
    pub fn who(&self, address: IpAddr, at: u64) -> Option<&PeerRecord> {
        self.content.as_ref()?.entries.get(&address)?.at(at)?.0.map(|record| &**record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Arc<PeerRecord> {
        Arc::new(PeerRecord::Node { name: name.into() })
    }

    #[test]
    fn an_address_that_changes_hands_is_told_by_the_moment() {
        let book = PeerBook::default();
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let [old, new] = ["old", "new"].map(node);
        assert_eq!(book.who(address, 5), Known::Unknown);
        book.tell(address, Some(Arc::clone(&old)), 10);
        book.tell(address, Some(Arc::clone(&old)), 15);
        book.tell(address, Some(Arc::clone(&new)), 20);
        let at = |at| book.who(address, at);
        assert_eq!([at(9), at(10), at(19)], [Known::Unknown, Known::By(Arc::clone(&old)), Known::By(Arc::clone(&old))]);
        assert_eq!(at(20), Known::By(Arc::clone(&new)));
        let open = book.open();
        assert_eq!([9, 19, 20].map(|at| open.who(address, at)), [None, Some(&*old), Some(&*new)]);
        drop(open);
        book.tell(address, None, 30);
        assert_eq!(at(31), Known::Vacant);
        assert_eq!(book.open().who(address, 31), None);
        assert_eq!(OpenBook::default().who(address, 31), None);
        book.forget_nobody(address, 20);
        assert_eq!(at(20), Known::By(new), "of another time");
        book.forget_nobody(address, 30);
        assert_eq!(at(31), Known::Unknown);
    }

    #[test]
    fn what_it_says_nothing_of_is_nobodys_once_all_is_told() {
        let book = PeerBook::with_room_for(2);
        let addresses: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| address.parse().unwrap());
        let told = |at, time| match book.open().told(addresses[at], time) {
            Told::By(_) => panic!("somebody's"),
            Told::Nobody => "nobody",
            Told::Vacant => "vacant",
            Told::Nothing => "nothing",
            Told::Pending => "pending",
        };
        book.tell(addresses[0], Some(node("n")), 10);
        assert_eq!([told(0, 9), told(1, 9)], ["pending"; 2]);
        let version = book.version();
        book.complete(false);
        assert_eq!([told(0, 9), told(1, 9)], ["nothing"; 2], "some of it cannot be read");
        book.complete(true);
        assert!(book.version() > version + 1, "who has looked looks again");
        assert_eq!([told(0, 9), told(1, 9)], ["nothing", "nobody"], "somebody has had it since");
        book.tell(addresses[0], None, 20);
        book.tell(addresses[1], None, 0);
        assert_eq!([told(0, 20), told(1, 20)], ["vacant", "nobody"]);
        assert_eq!([book.who(addresses[0], 20), book.who(addresses[1], 20)], [Known::Vacant, Known::Nobody]);
        book.tell(addresses[2], Some(node("n")), 30);
        assert_eq!(told(2, 30), "nothing", "it found no place");
        assert_eq!(OpenBook::default().told(addresses[2], 0), Told::Nothing);
    }

    #[test]
    fn what_may_be_a_pods_is_not_nobodys() {
        let book = PeerBook::default();
        let [new, old, tunnel, beyond]: [IpAddr; 4] =
            ["10.244.1.7", "10.244.1.8", "10.244.1.9", "10.245.0.1"].map(|address| address.parse().unwrap());
        book.tell(tunnel, None, 0);
        book.complete(true);
        let told = |address| book.open().told(address, 15) == Told::Nobody;
        assert_eq!([new, old, tunnel, beyond].map(told), [true; 4]);
        let version = book.version();
        book.pod_ranges(PodRanges::of(["10.244.1.0/24".parse().unwrap()]));
        assert!(book.version() > version, "who has looked looks again");
        assert_eq!([new, old, tunnel, beyond].map(told), [false, false, false, true]);
        let open = book.open();
        assert_eq!([new, tunnel].map(|address| open.told(address, 15)), [Told::Pending; 2]);
        drop(open);
        book.tell(old, Some(node("n")), 10);
        book.tell(old, None, 12);
        assert_eq!(book.open().told(old, 15), Told::Vacant);
        book.tell(new, Some(node("n")), 20);
        assert_eq!(book.open().told(new, 15), Told::Nothing);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let book = PeerBook::with_room_for(2);
        let addresses: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|address| address.parse().unwrap());
        book.tell_all(addresses.map(|address| (address, Some(node("n")))), 0);
        assert_eq!(book.usage(), BookUse { addresses: 2, folded: 1 });
        assert_eq!(book.who(addresses[2], 0), Known::Unknown);
        book.tell(addresses[0], None, 1);
        assert_eq!(book.usage(), BookUse { addresses: 2, folded: 1 }, "what is known has its place");
        book.forget(addresses[0]);
        book.tell(addresses[2], Some(node("n")), 2);
        book.fold(3);
        assert_eq!(book.usage(), BookUse { addresses: 2, folded: 4 });
        assert_eq!(book.who(addresses[2], 2), Known::By(node("n")));
    }
}
