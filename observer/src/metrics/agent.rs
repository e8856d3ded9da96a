//! What the agent counts about itself. Other parts hold an `Arc<AgentMetrics>` and tell it what happened.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::{Histogram, HistogramOpts};

use super::catalogue;

/// Bounds of the time to attach, in seconds: 10 µs to 1 s.
const ATTACH_BUCKETS: [f64; 11] = [1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1.0];
/// Bounds of the time for a scrape, in seconds.
const SCRAPE_BUCKETS: [f64; 10] = [5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.5, 2.5];

/// What the agent was built from.
#[derive(Debug, Clone, Copy)]
pub struct BuildInfo {
    /// The version of the package.
    pub version: &'static str,
    /// The commit, or empty.
    pub revision: &'static str,
    /// The compiler's version, or empty.
    pub rustc: &'static str,
}

impl Default for BuildInfo {
    /// This build. Revision and compiler are known when `OBSERVER_REVISION` and `OBSERVER_RUSTC` were set for it.
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            revision: option_env!("OBSERVER_REVISION").unwrap_or(""),
            rustc: option_env!("OBSERVER_RUSTC").unwrap_or(""),
        }
    }
}

/// How a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeState {
    /// At work.
    Ok,
    /// This kernel does not have what it needs; it switched itself off.
    Unsupported,
    /// It should work but does not.
    Failed,
}

impl ProbeState {
    /// The state as a label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
        }
    }
}

/// A probe with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The probe.
    pub name: String,
    /// How it is.
    pub state: ProbeState,
    /// Why it is so; empty when all is well.
    pub reason: String,
}

/// Which way, seen from the observed container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Into the container.
    Receive,
    /// Out of the container.
    Transmit,
}

impl Direction {
    /// The `direction` label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Transmit => "transmit",
        }
    }
}

/// Facts of the agent about itself. Cheap to tell; read by the agent's collector.
pub struct AgentMetrics {
    pub(super) build: BuildInfo,
    pub(super) attach_duration: Option<Histogram>,
    pub(super) scrape_duration: Option<Histogram>,
    facts: Mutex<Facts>,
}

/// Values that are absent until somebody tells them.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub probes: BTreeMap<String, (ProbeState, String)>,
    pub edges: Option<(u64, u64)>,
    pub overflowed: Option<u64>,
    pub edges_evicted: u64,
    pub series: Option<SeriesBudget>,
    pub losses: BTreeMap<&'static str, u64>,
    pub unattributed: BTreeMap<Direction, (u64, Option<u64>)>,
    pub pending: BTreeMap<Direction, (u64, Option<u64>)>,
    pub source_errors: BTreeMap<&'static str, u64>,
    pub attach_errors: u64,
    pub scrape_size: Option<u64>,
}

/// How many series there are and may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeriesBudget {
    pub used: u64,
    pub folded: u64,
    pub limit: u64,
}

impl AgentMetrics {
    /// Nothing happened yet.
    #[must_use]
    pub fn new(build: BuildInfo) -> Self {
        Self {
            build,
            attach_duration: histogram(catalogue::AGENT_ATTACH_DURATION.name, &ATTACH_BUCKETS),
            scrape_duration: histogram(catalogue::AGENT_SCRAPE_DURATION.name, &SCRAPE_BUCKETS),
            facts: Mutex::default(),
        }
    }

    /// What the agent was built from.
    #[must_use]
    pub fn build(&self) -> BuildInfo {
        self.build
    }

    /// Sets the state of a probe; it replaces the probe's former state.
    pub fn probe_state(&self, probe: &str, state: ProbeState, reason: &str) {
        self.facts().probes.insert(probe.to_owned(), (state, reason.to_owned()));
    }

    /// All probes by name.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        let facts = self.facts();
        let probe = |(name, (state, reason)): (&String, &(ProbeState, String))| Probe {
            name: name.clone(),
            state: *state,
            reason: reason.clone(),
        };
        facts.probes.iter().map(probe).collect()
    }

    /// Hooks were attached, so long after the cgroup was seen.
    pub fn attach_seen(&self, since_seen: Duration) {
        if let Some(histogram) = &self.attach_duration {
            histogram.observe(since_seen.as_secs_f64());
        }
    }

    /// Hooks could not be attached to a cgroup.
    pub fn attach_failed(&self) {
        self.facts().attach_errors += 1;
    }

    /// How many edges have counters of their own, and how many could have.
    pub fn edges(&self, used: u64, capacity: u64) {
        self.facts().edges = Some((used, capacity));
    }

    /// How many series of traffic are shown, how many are folded into others, and how many may be.
    pub fn series(&self, used: u64, folded: u64, limit: u64) {
        self.facts().series = Some(SeriesBudget { used, folded, limit });
    }

    /// How often an edge found no place, in total since counting began.
    pub fn edges_overflowed(&self, total: u64) {
        self.facts().overflowed = Some(total);
    }

    /// So many edges more lost their place, because they were idle and the table nearly full.
    pub fn edges_evicted(&self, more: u64) {
        self.facts().edges_evicted += more;
    }

    /// What was counted for no known container, in total since counting began. Without packets where none are counted.
    pub fn unattributed(&self, direction: Direction, bytes: u64, packets: Option<u64>) {
        self.facts().unattributed.insert(direction, (bytes, packets));
    }

    /// What the kernel programs could not do, by reason, in total since counting began.
    pub fn kernel_losses(&self, reason: &'static str, total: u64) {
        self.facts().losses.insert(reason, total);
    }

    /// What was counted for cgroups that have no name yet. Without packets where none are counted.
    pub fn pending(&self, direction: Direction, bytes: u64, packets: Option<u64>) {
        self.facts().pending.insert(direction, (bytes, packets));
    }

    /// A source of facts could not be read.
    pub fn source_error(&self, source: &'static str) {
        *self.facts().source_errors.entry(source).or_default() += 1;
    }

    /// How often this source could not be read.
    #[must_use]
    pub fn source_errors(&self, source: &str) -> u64 {
        self.facts().source_errors.get(source).copied().unwrap_or_default()
    }

    /// A scrape was written.
    pub(super) fn scraped(&self, took: Duration, bytes: usize) {
        if let Some(histogram) = &self.scrape_duration {
            histogram.observe(took.as_secs_f64());
        }
        self.facts().scrape_size = u64::try_from(bytes).ok();
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` only for bounds that are not in order, which the tests exclude.
fn histogram(name: &str, buckets: &[f64]) -> Option<Histogram> {
    Histogram::with_opts(HistogramOpts::new(name, name).buckets(buckets.to_vec())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order() {
        let agent = AgentMetrics::new(BuildInfo::default());
        assert!(agent.attach_duration.is_some() && agent.scrape_duration.is_some());
    }

    #[test]
    fn a_probe_has_one_state() {
        let agent = AgentMetrics::new(BuildInfo::default());
        agent.probe_state("b", ProbeState::Failed, "why");
        agent.probe_state("a", ProbeState::Unsupported, "old kernel");
        agent.probe_state("b", ProbeState::Ok, "");
        let probes: Vec<_> = agent.probes().into_iter().map(|p| (p.name, p.state)).collect();
        assert_eq!(probes, [("a".to_owned(), ProbeState::Unsupported), ("b".to_owned(), ProbeState::Ok)]);
    }
}
