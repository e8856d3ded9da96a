//! Addresses and who has them, now and a moment ago.

use std::{
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::PeerRecord;
use crate::hash::FastMap;

/// Addresses that are kept: a node's limit of 110 pods on 900 nodes.
const MAX_ADDRESSES: usize = 100_000;

/// Who has which address. Whoever follows the cluster writes it, attribution reads it.
#[derive(Debug)]
pub struct PeerBook {
    entries: RwLock<Entries>,
    most: usize,
    /// Whoever writes it answers for every address, also that nobody has it.
    answered: bool,
    folded: AtomicU64,
    version: AtomicU64,
}

type Entries = FastMap<IpAddr, Entry>;

/// What is known of an address at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Who had it.
    By(Arc<PeerRecord>),
    /// Nobody that the cluster knows of.
    Nobody,
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
    /// Who had it at `at`; `None` for before anybody told.
    fn at(&self, at: u64) -> Option<&Option<Arc<PeerRecord>>> {
        match &self.before {
            _ if at >= self.since => Some(&self.record),
            Some((before, since)) if at >= *since => Some(before),
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
        Self { entries: RwLock::default(), most, answered: false, folded, version }
    }

    /// A book that a resolver writes, which answers for every address: what it says nothing of may be anybody's.
    #[must_use]
    pub fn answered() -> Self {
        Self { answered: true, ..Self::default() }
    }

    /// Takes that `address` has belonged to `record` (to nobody) since `since`, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn tell(&self, address: IpAddr, record: Option<Arc<PeerRecord>>, since: u64) {
        self.tell_all([(address, record)], since);
    }

    /// The same of many at once: whoever reads sees all of them or none.
    pub fn tell_all(&self, changes: impl IntoIterator<Item = (IpAddr, Option<Arc<PeerRecord>>)>, since: u64) {
        let mut entries = self.write();
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
        self.write().remove(&address);
    }

    /// Forgets that nobody has had the address since `since`; whoever has got it meanwhile keeps it.
    pub fn forget_nobody(&self, address: IpAddr, since: u64) {
        let mut entries = self.write();
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
        match self.entries().get(&address).and_then(|entry| entry.at(at)) {
            Some(record) => record.clone().map_or(Known::Nobody, Known::By),
            None => Known::Unknown,
        }
    }

    /// The book, held open for many looks. Nothing is written meanwhile, so it must not be held for long, and
    /// [`PeerBook::who`] must not be asked by whoever holds it.
    #[must_use]
    pub fn open(&self) -> OpenBook<'_> {
        OpenBook { entries: Some(self.entries()), answered: self.answered }
    }

    /// Another number after every change, from 1 on.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> BookUse {
        BookUse { addresses: self.entries().len() as u64, folded: self.folded.load(Relaxed) }
    }

    fn entries(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A book that does not change while it is looked into. The default one knows nobody.
#[derive(Debug, Default)]
pub struct OpenBook<'a> {
    entries: Option<RwLockReadGuard<'a, Entries>>,
    answered: bool,
}

/// What an open book says of an address at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// Who had it.
    By(&'a PeerRecord),
    /// Nobody that the cluster knows of.
    Nobody,
    /// It says nothing, and has of nobody's addresses nothing to say.
    Nothing,
    /// It says nothing yet: whoever writes it answers for every address.
    Pending,
}

impl OpenBook<'_> {
    /// What is known of `address` at `at`, in nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn told(&self, address: IpAddr, at: u64) -> Told<'_> {
        match self.entries.as_ref().and_then(|entries| entries.get(&address)).and_then(|entry| entry.at(at)) {
            Some(Some(record)) => Told::By(record),
            Some(None) => Told::Nobody,
            None if self.answered => Told::Pending,
            None => Told::Nothing,
        }
    }

    /// Who had `address` at `at`, in nanoseconds of `CLOCK_MONOTONIC`; `None` for nobody, or nobody that is known.
    #[must_use]
    pub fn who(&self, address: IpAddr, at: u64) -> Option<&PeerRecord> {
        self.entries.as_ref()?.get(&address)?.at(at)?.as_deref()
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
        assert_eq!(at(31), Known::Nobody);
        assert_eq!(book.open().who(address, 31), None);
        assert_eq!(OpenBook::default().who(address, 31), None);
        book.forget_nobody(address, 20);
        assert_eq!(at(20), Known::By(new), "of another time");
        book.forget_nobody(address, 30);
        assert_eq!(at(31), Known::Unknown);
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
