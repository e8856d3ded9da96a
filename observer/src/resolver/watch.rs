//! The resolver's own watch of the cluster.

use std::{io, net::IpAddr, sync::Arc};

use tracing::warn;

use super::Shared;
use crate::{
    http::{Latch, Readiness},
    identity::{
        KubeOptions, Source,
        cluster::{self, Changes, ClusterFeed, Coverage, PEERS, PodRanges},
    },
    metrics::AgentMetrics,
};

/// Claims to addresses that there is room for: ten times what the largest clusters have that Kubernetes is made for, which
/// are 150,000 pods (kubernetes.io/docs/setup/best-practices/cluster-large).
const MAX_CLAIMS: usize = 1_500_000;

/// Starts watching into `shared`; `None` when no API server is known. When the first lists are complete it is ready.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start(
    kube: &KubeOptions,
    shared: &Arc<Shared>,
    readiness: Arc<Readiness>,
    metrics: &Arc<AgentMetrics>,
) -> io::Result<Option<Source>> {
    let feed = Announced { shared: Arc::clone(shared), readiness };
    cluster::watch(kube, MAX_CLAIMS, Arc::new(feed), Arc::clone(metrics))
}

/// The table, and who waits for it to be complete.
struct Announced {
    shared: Arc<Shared>,
    readiness: Arc<Readiness>,
}

impl ClusterFeed for Announced {
    fn tell(&self, changes: Changes, since: u64) {
        self.shared.tell(changes, since);
    }

    fn pod_ranges(&self, ranges: PodRanges) {
        self.shared.pod_ranges(ranges);
    }

    fn covers(&self, coverage: Coverage) {
        if coverage == Coverage::Part {
            warn!(
                "not all of the cluster can be read (the probe {PEERS} says what is missing): agents are told who has an \
                 address, but not that nobody has it, and such peers are peer_kind=\"other\""
            );
        }
        self.shared.covers(coverage);
        if coverage != Coverage::Away {
            self.readiness.set(Latch::Cluster);
        }
    }

    fn forget(&self, address: IpAddr, since: u64) {
        self.shared.forget(address, since);
    }

    fn folded(&self, claims: u64) {
        self.shared.folded(claims);
    }
}
