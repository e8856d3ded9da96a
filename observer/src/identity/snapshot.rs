//! The immutable index of sandboxes that one scrape works with.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::sandbox::{Container, ContainerKind, Sandbox};

/// Sandboxes at one moment, with the indices that attribution needs. Never changed once made.
#[derive(Debug, Default)]
pub struct Snapshot {
    sandboxes: Vec<Arc<Sandbox>>,
    by_cgroup: HashMap<u64, (usize, Option<usize>)>,
    by_address: HashMap<IpAddr, usize>,
    node_addresses: HashSet<IpAddr>,
    node_name: String,
}

/// Whom a cgroup belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The sandbox.
    pub sandbox: &'a Arc<Sandbox>,
    /// The container; `None` for the pod's own cgroup and for the pause container.
    pub container: Option<&'a Container>,
}

impl Owner<'_> {
    /// The `container` label: empty for what is the pod's own.
    #[must_use]
    pub fn container_name(&self) -> &str {
        self.container.map_or("", |c| c.name.as_str())
    }
}

impl Snapshot {
    /// Builds the indices. Of two live sandboxes with one address the later one wins; a gone one never hides a live one.
    #[must_use]
    pub fn new(sandboxes: Vec<Arc<Sandbox>>, node_addresses: HashSet<IpAddr>, node_name: String) -> Self {
        let mut by_cgroup = HashMap::new();
        let mut by_address = HashMap::new();
        for (at, sandbox) in sandboxes.iter().enumerate() {
            for id in std::iter::once(sandbox.cgroup_id).chain(sandbox.other_cgroup_ids.iter().copied()) {
                if id != 0 {
                    by_cgroup.insert(id, (at, None));
                }
            }
            for (index, container) in sandbox.containers.iter().enumerate() {
                let container_at = match container.kind {
                    ContainerKind::Pause => None,
                    ContainerKind::Application => Some(index),
                };
                for id in std::iter::once(container.cgroup_id).chain(container.nested_cgroup_ids.iter().copied()) {
                    if id != 0 {
                        by_cgroup.insert(id, (at, container_at));
                    }
                }
            }
            if !sandbox.host_network {
                for address in &sandbox.addresses {
                    if sandbox.alive || !by_address.contains_key(address) {
                        by_address.insert(*address, at);
                    }
                }
            }
        }
        Self { sandboxes, by_cgroup, by_address, node_addresses, node_name }
    }

    /// All sandboxes, those included that are gone but not yet scraped for the last time.
    #[must_use]
    pub fn sandboxes(&self) -> &[Arc<Sandbox>] {
        &self.sandboxes
    }

    /// Whom the cgroup with this v2 id belongs to.
    #[must_use]
    pub fn by_cgroup(&self, id: u64) -> Option<Owner<'_>> {
        let (at, container) = *self.by_cgroup.get(&id)?;
        let sandbox = &self.sandboxes[at];
        Some(Owner { sandbox, container: container.map(|index| &sandbox.containers[index]) })
    }

    /// The pod (never one on the host network) that has this address.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&Arc<Sandbox>> {
        self.by_address.get(&address).map(|at| &self.sandboxes[*at])
    }

    /// True for an address of the node itself.
    #[must_use]
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.node_addresses.contains(&address)
    }

    /// The node's name, or empty.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.node_name
    }
}
