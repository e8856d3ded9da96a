//! Starts the probe of dropped packets, and keeps its list of pods' addresses.

use std::path::Path;

use tracing::warn;

use super::follow::Follower;
use crate::{
    identity::Snapshot,
    kernel::{
        Pins,
        btf::Btf,
        probes::{
            ProbeError,
            drops::{DropsPods, DropsProbe},
        },
    },
    metrics::collectors::DropCollector,
    sandbox::process,
    traffic::{NodeFacts, pod_addresses, pod_namespaces},
};

/// Starts it: what shows the counts, and who follows the pods' addresses.
///
/// # Errors
///
/// See [`ProbeError`]. Nothing of it runs then.
pub(super) fn start(pins: &Pins, btf: &Btf, procfs: &Path) -> Result<(DropCollector, Addresses), ProbeError> {
    let of = |pid| process::read(procfs, pid).and_then(|facts| facts.namespace("net"));
    let netns = of(process::INIT).or_else(|| of(i32::try_from(std::process::id()).ok()?));
    let netns = netns.and_then(|inode| u32::try_from(inode).ok()).unwrap_or(0);
    let (probe, pods) = DropsProbe::start(pins, btf)?;
    let node = NodeFacts { netns, boot: process::boot() };
    Ok((DropCollector::new(probe, node), Addresses { pods, failing: false }))
}

/// Addresses and namespaces of pods, for packets that are dropped between namespaces.
pub(super) struct Addresses {
    pods: DropsPods,
    failing: bool,
}

impl Follower for Addresses {
    fn snapshot(&mut self, snapshot: &std::sync::Arc<Snapshot>) {
        let result = self.pods.set(&pod_addresses(snapshot), &pod_namespaces(snapshot));
        let failed = std::mem::replace(&mut self.failing, result.is_err());
        if let Err(error) = result
            && !failed
        {
            warn!("drops outside of pods are not counted for some of them: an address does not fit: {error}");
        }
    }
}
