//! The paths that stand for the kubelet's.

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;

use crate::{
    http::ScrapeProvider,
    identity::Snapshot,
    metrics::{
        AgentMetrics, Registry,
        collectors::{CadvisorCollector, ResourceEndpointCollector},
        compat::{CADVISOR_PATH, RESOURCE_PATH},
    },
    resources::SharedReader,
};

/// What makes the scrape of each. Nothing is read until somebody asks.
pub(super) fn providers(
    reader: &SharedReader,
    procfs: &Path,
    snapshots: &Arc<ArcSwap<Snapshot>>,
    agent: &Arc<AgentMetrics>,
) -> Vec<(&'static str, ScrapeProvider)> {
    let provider = |fill: &dyn Fn(&Registry)| -> ScrapeProvider {
        let registry = Registry::beside(Arc::clone(snapshots), Arc::clone(agent));
        fill(&registry);
        Arc::new(move || Ok(registry.scrape()))
    };
    vec![
        (CADVISOR_PATH, provider(&|registry| registry.register(CadvisorCollector::new(reader.clone(), procfs)))),
        (
            RESOURCE_PATH,
            provider(&|registry| registry.register(ResourceEndpointCollector::new(reader.clone(), procfs))),
        ),
    ]
}
