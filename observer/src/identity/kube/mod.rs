//! Kubernetes as a source of names: the node's kubelet, and the API server.

mod access;
mod backoff;
mod client;
mod connection;
mod kubeconfig;
mod kubelet;
mod list;
mod node;
mod options;
mod owners;
mod pods;
mod server;
mod tls;
mod url;
mod watch;

pub(super) use backoff::{Backoff, dice, spread};
pub(super) use client::{KubeError, Target};
pub use options::{ApiServer, CA_FILE, KubeOptions, TOKEN_FILE};
pub(super) use owners::{OWNERS_AT_ONCE, Owned, Owners};
pub(super) use server::{Topic, count, follow};
pub use url::KubeUrl;
pub(super) use watch::{Object, Objects};

use std::{io, sync::Arc};

use self::node::NodePods;
use super::source::Source;
use crate::metrics::AgentMetrics;

/// The kubelet, in `observer_agent_source_errors_total` and `observer_agent_probe_state`.
pub const KUBELET: &str = "kubelet";
/// The API server, in `observer_agent_source_errors_total` and `observer_agent_probe_state`.
pub const KUBERNETES: &str = "kubernetes";

/// Starts asking the kubelet; `None` when there is none to ask. Its state is told to `metrics`.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start_kubelet(options: &KubeOptions, metrics: Arc<AgentMetrics>) -> io::Result<Option<Source>> {
    let Some(target) = options.kubelet() else { return Ok(None) };
    Source::start(KUBELET, metrics, |feed| kubelet::follow(target, feed)).map(Some)
}

/// Starts watching the node's pods in the API; `None` when there is no API server to ask. Its state is told to
/// `metrics`.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start_api(options: &KubeOptions, metrics: Arc<AgentMetrics>) -> io::Result<Option<Source>> {
    let Some(target) = options.api_server() else { return Ok(None) };
    let node = options.node.clone();
    Source::start(KUBERNETES, metrics, |feed| follow(target.clone(), NodePods::new(target, node, feed))).map(Some)
}

#[cfg(test)]
pub(super) use client::needed;
#[cfg(test)]
pub(super) use owners::needed as owners_needed;

#[cfg(test)]
mod rotation_tests;
