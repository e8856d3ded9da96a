//! Who hears of the cluster's addresses.

use std::{net::IpAddr, sync::Arc};

use super::{PeerBook, PeerRecord, PodRanges};

/// Addresses, and who has each now; `None` for nobody.
pub type Changes = Vec<(IpAddr, Option<Arc<PeerRecord>>)>;

/// Takes what somebody who watches the cluster finds out: an agent's own book, or a resolver's table. The one who watches
/// calls it in the order of events.
pub trait ClusterFeed: Send + Sync {
    /// So it is since `since`, in nanoseconds of `CLOCK_MONOTONIC`; 0 for what was so when the watch began.
    fn tell(&self, changes: Changes, since: u64);

    /// From now on these are the ranges that nodes give addresses to their pods from, all of them: an address in one of them
    /// that was not told is not known to be nobody's.
    fn pod_ranges(&self, ranges: PodRanges);

    /// Everything that can be read has been told: the first lists of all kinds are complete but of those that may not be
    /// read. When that is the `whole` cluster, an address that was not told is nobody's from now on. Called anew when what
    /// could not be read before can be.
    fn complete(&self, whole: bool);

    /// The cluster cannot be watched now, and it is not known when it can be.
    fn away(&self) {}

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

    fn complete(&self, whole: bool) {
        Self::complete(self, whole);
    }

    fn away(&self) {
        Self::complete(self, false);
    }

    fn forget(&self, address: IpAddr, since: u64) {
        self.forget_nobody(address, since);
    }

    fn folded(&self, claims: u64) {
        self.fold(claims);
    }
}
