//! Options of what names pods: the container runtime, the kubelet, the Kubernetes API and this node's name in it.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;

use super::ApiServerOptions;
use crate::{
    identity::{
        Endpoint, Following, KubeOptions, KubeUrl,
        cluster::{PeerOptions, PeerSource},
    },
    metrics::AgentMetrics,
};

/// Options of the sources of names beside the pods file.
#[derive(Debug, Clone, Args)]
pub struct SourceOptions {
    /// Where the container runtime listens, which names pods too: auto, none, or unix:///path.
    ///
    /// auto takes the first that answers of /run/containerd/containerd.sock, /run/crio/crio.sock,
    /// /var/run/cri-dockerd.sock and /run/k3s/containerd/containerd.sock.
    #[arg(
        long = "cri.endpoint", value_name = "ENDPOINT", env = "CONTAINER_RUNTIME_ENDPOINT", hide_env = true,
        default_value_t = Endpoint::Auto, help_heading = "Pods"
    )]
    pub cri_endpoint: Endpoint,
    /// The kubelet, whose `/pods` names pods, like https://10.0.0.1:10250; or none.
    #[arg(
        id = "kubelet.url", long = "kubelet.url", value_name = "URL", default_value = "none", help_heading = "Pods",
        value_parser = KubeletUrl::from_str
    )]
    kubelet_url: KubeletUrl,
    /// Whom the kubelet's certificate is signed by [default: --service-account.ca-file].
    #[arg(id = "kubelet.ca-file", long = "kubelet.ca-file", value_name = "FILE", help_heading = "Pods")]
    kubelet_ca_file: Option<PathBuf>,
    /// Take any certificate for the kubelet's: many kubelets sign their own.
    ///
    /// Whoever takes the kubelet's port then gets the token.
    #[arg(id = "kubelet.insecure-skip-verify", long = "kubelet.insecure-skip-verify", help_heading = "Pods")]
    kubelet_insecure_skip_verify: bool,
    /// The Kubernetes API.
    #[command(flatten, next_help_heading = "Pods")]
    api_server: ApiServerOptions,
    /// Who tells of Services, nodes and pods of other nodes, so that peers have names: auto, watch (this agent watches
    /// them in the API), resolver=URL (a resolver, see `observer resolver --help`), or none.
    ///
    /// auto watches when the cluster has at most --kubernetes.peers.max-nodes nodes.
    #[arg(
        id = "kubernetes.peers", long = "kubernetes.peers", value_name = "WHO", default_value_t = PeerSource::Auto,
        help_heading = "Pods"
    )]
    peers: PeerSource,
    /// With more nodes than this the cluster is not watched, unless --kubernetes.peers says so: each agent's watches cost
    /// the API server something.
    #[arg(
        id = "kubernetes.peers.max-nodes",
        long = "kubernetes.peers.max-nodes",
        value_name = "NUMBER",
        default_value_t = 200,
        help_heading = "Pods"
    )]
    peers_max_nodes: u64,
    /// Whom the resolver's certificate is signed by, for resolver=https://… [default: --service-account.ca-file].
    #[arg(id = "resolver.ca-file", long = "resolver.ca-file", value_name = "FILE", help_heading = "Pods")]
    resolver_ca_file: Option<PathBuf>,
    /// The token that the resolver is shown; read again for each connection.
    #[arg(id = "resolver.token-file", long = "resolver.token-file", value_name = "FILE", help_heading = "Pods")]
    resolver_token_file: Option<PathBuf>,
    /// The name of this node [default: $NODE_NAME, then the host's name].
    #[arg(
        id = "node.name",
        long = "node.name",
        value_name = "NAME",
        env = "NODE_NAME",
        hide_env = true,
        help_heading = "Pods"
    )]
    node_name: Option<String>,
}

impl SourceOptions {
    /// The node's name: the option or `NODE_NAME`, unless empty; else the host's name; else empty.
    #[must_use]
    pub fn node_name(&self) -> String {
        match self.node_name.as_deref().map(str::trim) {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    /// Starts following all of them.
    #[must_use]
    pub fn follow(&self, metrics: &Arc<AgentMetrics>) -> Following {
        Following::start(&self.cri_endpoint, &self.kube(), &self.peers(), metrics)
    }

    /// Starts following those that know this node's own pods: nobody is asked for the cluster's addresses.
    #[must_use]
    pub fn follow_own_pods(&self, metrics: &Arc<AgentMetrics>) -> Following {
        let peers = PeerOptions { source: PeerSource::None, ..self.peers() };
        Following::start(&self.cri_endpoint, &self.kube(), &peers, metrics)
    }

    /// Who tells of the addresses beyond this node.
    #[must_use]
    pub fn peers(&self) -> PeerOptions {
        PeerOptions {
            source: self.peers.clone(),
            max_nodes: self.peers_max_nodes,
            resolver_ca_file: self.resolver_ca_file.clone().unwrap_or_else(|| self.api_server.ca_file.clone()),
            resolver_token_file: self.resolver_token_file.clone(),
        }
    }

    /// How to reach the kubelet and the API server.
    #[must_use]
    pub fn kube(&self) -> KubeOptions {
        KubeOptions {
            kubelet: self.kubelet_url.0.clone(),
            kubelet_ca_file: self.kubelet_ca_file.clone(),
            kubelet_insecure: self.kubelet_insecure_skip_verify,
            api_server: self.api_server.kubernetes.clone(),
            kubeconfig: self.api_server.kubeconfig.clone(),
            ca_file: self.api_server.ca_file.clone(),
            token_file: self.api_server.token_file.clone(),
            node: self.node_name(),
        }
    }
}

/// The value of `--kubelet.url`.
#[derive(Debug, Clone)]
struct KubeletUrl(Option<KubeUrl>);

impl FromStr for KubeletUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self(None));
        }
        let url = text.parse().map_err(|_| "must be none, or a URL without a path, like https://10.0.0.1:10250")?;
        Ok(Self(Some(url)))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::metrics::BuildInfo;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        sources: SourceOptions,
    }

    #[test]
    fn who_wants_its_own_pods_alone_does_not_ask_for_the_clusters() {
        let arguments = ["c", "--cri.endpoint=none", "--kubernetes=none", "--kubernetes.peers=watch"];
        let Command { sources } = Command::parse_from(arguments);
        let probes = |follow: fn(&SourceOptions, &Arc<AgentMetrics>) -> Following| {
            let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
            drop(follow(&sources, &metrics));
            metrics.probes().into_iter().map(|probe| probe.name).collect::<Vec<_>>()
        };
        assert_eq!(probes(SourceOptions::follow), ["peers"], "it says that it knows no API server");
        assert!(probes(SourceOptions::follow_own_pods).is_empty());
    }
}
