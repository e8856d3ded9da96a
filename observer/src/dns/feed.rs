//! The kernel's packets, read into the table. The thread that reads now and then and the scrape share it.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use super::{
    keep::{Keep, save},
    names::{Changes, Names},
    table::Table,
};
use crate::kernel::{DnsRecords, PeerNames};

/// Packets that are read at a time: more than the ring buffer has room for, so that whoever reads comes to an end.
const AT_ONCE: usize = 16_384;

/// Where packets come from, and what was read.
#[derive(Debug)]
pub struct Feed {
    seen: Mutex<Seen>,
}

/// What was read of DNS, up to now.
pub struct Seen {
    records: DnsRecords,
    kept: PeerNames,
    counts: Box<dyn Keep + Send>,
    /// Answers, by cgroup.
    pub table: Table,
    /// Names of addresses.
    pub names: Names,
    /// Answers of cgroups that nobody knew.
    pub unattributed: u64,
    failing: bool,
    /// Counts could not be kept the last time.
    forgetful: bool,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("table", &self.table).field("names", &self.names).finish_non_exhaustive()
    }
}

impl Feed {
    /// A feed from these maps, which goes on with what an earlier agent has counted. `names` has what `kept` holds.
    #[must_use]
    pub fn new(records: DnsRecords, kept: PeerNames, counts: Box<dyn Keep + Send>, names: Names) -> Self {
        let table = Table::with(counts.load());
        let seen = Seen { records, kept, counts, table, names, unattributed: 0, failing: false, forgetful: false };
        Self { seen: Mutex::new(seen) }
    }

    /// Reads what has come, keeps what was counted of it, and gives what is known with it. A packet leaves the buffer before it
    /// is counted: what an agent loses that is killed is what it is reading in that moment.
    pub fn read(&self) -> MutexGuard<'_, Seen> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { records, table, names, .. } = &mut *seen;
        records.drain(AT_ONCE, |head, payload| table.take(head, payload, names));
        seen.keep_counts();
        seen
    }

    /// Becomes readable when much waits.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn fd(&self) -> io::Result<OwnedFd> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).records.fd().try_clone_to_owned()
    }
}

impl Seen {
    /// What the kernel programs could not hand over.
    #[must_use]
    pub const fn records(&self) -> &DnsRecords {
        &self.records
    }

    /// Keeps for the next agent what has changed in the table.
    pub fn keep_counts(&mut self) {
        let outcome = save(&mut self.table, &mut *self.counts);
        if let (Err(error), false) = (&outcome, self.forgetful) {
            warn!(
                "after a restart the DNS series of some containers begin anew: their counts find no place in the map: {error:#}"
            );
        }
        self.forgetful = outcome.is_err();
    }

    /// Keeps new names for the next agent, and lets go of those that no series carries. A name that cannot be kept is
    /// not shown: the next agent would not know it, and the series would go back.
    pub fn keep(&mut self, changes: &Changes) {
        for key in &changes.gone {
            self.kept.forget(key);
        }
        let mut failed = None;
        for key in &changes.given {
            if let Err(error) = self.kept.put(*key, self.names.of(key)) {
                self.names.revoke(key);
                failed = Some(error);
            }
        }
        if let Some(error) = &failed
            && !self.failing
        {
            warn!("series go without their peer's name, which finds no place in the map: {error}");
        }
        self.failing = failed.is_some() || (self.failing && changes.given.is_empty());
    }
}
