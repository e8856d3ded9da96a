//! Who hears of the cluster's addresses.

use std::{net::IpAddr, sync::Arc};

use super::{PeerBook, PeerRecord, PodRanges};

/// Addresses, and who has each now; `None` for nobody.
pub type Changes = Vec<(IpAddr, Option<Arc<PeerRecord>>)>;

/// How much of the cluster is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// All of it: an address that was not told is nobody's from now on.
    Whole,
    /// All that can be read, and that is not all, or not now: an address that was not told may be somebody's.
    Part,
    /// Not all that can be read: the cluster cannot be watched before the first lists are complete, and it is not known
    /// when it can be.
    Away,
}

/// Takes what somebody who watches the cluster finds out: an agent's own book, or a resolver's table. The one who watches
/// calls it in the order of events.
pub trait ClusterFeed: Send + Sync {
    /// So it is since `since`, in nanoseconds of `CLOCK_MONOTONIC`; 0 for what was so when the watch began.
    fn tell(&self, changes: Changes, since: u64);

    /// From now on these are the ranges that nodes give addresses to their pods from, all of them: an address in one of them
    /// that was not told is not known to be nobody's.
    fn pod_ranges(&self, ranges: PodRanges);

    /// So much is told from now on. Nothing is said before the first lists of all kinds are complete, but of those that may
    /// not be read, or the cluster is away.
    fn covers(&self, coverage: Coverage);

    /// Nobody has had this address since then, and those who remember who had it before may forget that now.
    fn forget(&self, address: IpAddr, since: u64);

    /// So many claims to addresses found no place where the cluster is watched.
    fn folded(&self, claims: u64);
}

impl ClusterFeed for PeerBook {
    fn tell(&self, changes: Changes, since: u64) {
        self.tell_all(changes, since);
    }

    fn pod_ranges(&self, ranges: PodRanges) {
        Self::pod_ranges(self, ranges);
    }

    fn covers(&self, coverage: Coverage) {
        self.complete(coverage == Coverage::Whole);
    }

    fn forget(&self, address: IpAddr, since: u64) {
        self.forget_nobody(address, since);
    }

    fn folded(&self, claims: u64) {
        self.fold(claims);
    }
}
