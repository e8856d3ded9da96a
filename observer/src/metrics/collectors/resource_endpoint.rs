//! `/metrics/resource`: what metrics-server and autoscalers read.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::cadvisor::{complete, started};
use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, compat::resource as c},
    resources::{CgroupUsage, Extent, Limit, NodeFacts, SharedReader, Target},
};

/// Reads containers, pods and the node when the scrape comes.
#[derive(Debug)]
pub struct ResourceEndpointCollector {
    reader: SharedReader,
    procfs: PathBuf,
}

impl ResourceEndpointCollector {
    /// A collector that reads with `reader`, and the host's procfs.
    #[must_use]
    pub fn new(reader: SharedReader, procfs: &Path) -> Self {
        Self { reader, procfs: procfs.to_owned() }
    }
}

impl Collect for ResourceEndpointCollector {
    fn name(&self) -> &'static str {
        "resource"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let node = NodeFacts::read(&self.procfs);
        let wanted = |target: &Target<'_>| matches!(target, Target::Node | Target::Pod(..) | Target::Container(..));
        let mut reading = self.reader.lock().read_tree(snapshot, Extent::Autoscaling, wanted);
        let trouble = reading.trouble.take();
        complete(&mut reading, node.as_ref().ok());
        write(reading.cgroups, out);
        out.family(&c::SCRAPE_ERROR).sample([], u64::from(trouble.is_some() || node.is_err()));
        trouble.map_or(Ok(()), |error| Err(error.into())).and(node.map(drop))
    }
}

/// Of two with the same labels (of a pod that goes, and of the one that replaces it) the one that started last counts.
fn write(mut cgroups: Vec<CgroupUsage<'_>>, out: &mut Exposition) {
    let age = |u: &CgroupUsage<'_>| started(&u.target, None).unwrap_or_default();
    cgroups.sort_by(|a, b| names(&a.target).cmp(&names(&b.target)).then(age(b).total_cmp(&age(a))));
    let mut seen = HashSet::new();
    cgroups.retain(|u| seen.insert(names(&u.target)));
    for u in &cgroups {
        let usage = &u.usage;
        match u.target {
            Target::Node => {
                out.family(&c::NODE_CPU).sample_if([], u.cpu_total());
                out.family(&c::NODE_MEMORY).sample_if([], usage.working_set);
                out.family(&c::NODE_SWAP).sample_if([], usage.swap);
            }
            Target::Pod(sandbox, _) => {
                let labels = [sandbox.namespace.as_str(), &sandbox.name];
                out.family(&c::POD_CPU).sample_if(labels, u.cpu_total());
                out.family(&c::POD_MEMORY).sample_if(labels, usage.working_set);
                out.family(&c::POD_SWAP).sample_if(labels, usage.swap);
            }
            Target::Container(sandbox, container) => {
                let labels = [container.name.as_str(), &sandbox.namespace, &sandbox.name];
                out.family(&c::CONTAINER_CPU).sample_if(labels, u.cpu_total());
                out.family(&c::CONTAINER_MEMORY).sample_if(labels, usage.working_set);
                out.family(&c::CONTAINER_START_TIME).sample_if(labels, started(&u.target, None));
                out.family(&c::CONTAINER_SWAP).sample_if(labels, usage.swap);
                let limit = u.extra.swap_limit.and_then(Limit::finite);
                out.family(&c::CONTAINER_SWAP_LIMIT).sample_if(labels, limit);
            }
            Target::Ancestor(_) | Target::Pause(..) => {}
        }
    }
}

/// Namespace, pod, container; the pod's own before its containers, the node before all.
fn names<'a>(target: &Target<'a>) -> (bool, &'a str, &'a str, Option<&'a str>) {
    let (namespace, pod) = target.sandbox().map_or(("", ""), |sandbox| (&sandbox.namespace, &sandbox.name));
    (target.sandbox().is_some(), namespace, pod, target.container().map(|container| container.name.as_str()))
}
