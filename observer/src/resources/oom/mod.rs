//! OOM kills of containers: the kernel's counts by cgroup, and whose they are.

mod ledger;

use std::{collections::BTreeMap, time::Instant};

use aya::maps::MapError;

pub use self::ledger::{Changes, Ledger, Names};
use crate::{
    identity::Snapshot,
    kernel::probes::oom::{OomCounts, OomReading},
};

/// The counts with their ledger.
#[derive(Debug)]
pub struct OomKills {
    counts: OomCounts,
    ledger: Ledger,
}

impl OomKills {
    /// Counts whose owners are not known yet.
    #[must_use]
    pub fn new(counts: OomCounts) -> Self {
        Self { counts, ledger: Ledger::default() }
    }

    /// Learns from a new snapshot whose kills these are; carries the counts of cgroups that it does not know any more.
    ///
    /// # Errors
    ///
    /// What bpf(2) says. Nothing is lost: a count that could not be carried stays where it is.
    pub fn settle(&mut self, snapshot: &Snapshot, now: Instant) -> Result<(), MapError> {
        let changes = self.ledger.settle(&self.counts.read()?, snapshot, now);
        self.change(&changes)
    }

    /// Shows the kills of all containers, and how many found no place. What it showed for the last time is forgotten, and
    /// what somebody goes on with is carried.
    ///
    /// # Errors
    ///
    /// What bpf(2) says.
    pub fn show(
        &mut self,
        snapshot: &Snapshot,
        show: impl FnOnce(&BTreeMap<Names<'_>, u64>, u64),
    ) -> Result<(), MapError> {
        let reading: OomReading = self.counts.read()?;
        show(&self.ledger.totals(&reading, snapshot), reading.lost);
        let changes = self.ledger.shown(&reading, snapshot);
        self.change(&changes)
    }

    fn change(&mut self, changes: &Changes) -> Result<(), MapError> {
        changes.forget.iter().for_each(|cgroup| self.counts.forget(*cgroup));
        changes.forget_carried.iter().for_each(|place| self.counts.forget_carried(place));
        // One that fails leaves the others.
        let go_on = changes.go_on.iter().map(|(place, heir)| self.counts.go_on(place, heir)).fold(Ok(()), Result::and);
        let carry = changes.carry.iter().map(|(cgroup, place)| self.counts.carry(*cgroup, place));
        carry.fold(go_on, Result::and)
    }
}
