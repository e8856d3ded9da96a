//! All sources of names that are followed.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::error;

use super::{
    Endpoint, KubeOptions, Source, Sources,
    cluster::{self, PEERS, PeerBook, PeerOptions, RESOLVER, Resolver},
    cri,
    kube::{self, KUBELET, KUBERNETES},
};
use crate::metrics::{AgentMetrics, ProbeState};

/// The runtime, the kubelet and the API server, for this node's pods and for peers beyond it: those that there are,
/// followed until this is dropped.
pub struct Following {
    followed: Vec<Source>,
    sources: Sources,
    peers: Option<Arc<PeerBook>>,
    resolver: Option<Resolver>,
}

impl Following {
    /// Starts following. What cannot be followed is told to `metrics`, and the rest goes on.
    #[must_use]
    pub fn start(endpoint: &Endpoint, options: &KubeOptions, peers: &PeerOptions, metrics: &Arc<AgentMetrics>) -> Self {
        let mut followed = Vec::new();
        let mut take = |name: &str, started: io::Result<Option<Source>>| {
            let source = started.unwrap_or_else(|error| {
                let reason = format!("cannot start the thread that asks for names: {error}");
                error!("{name}: {reason}; it names no pods");
                metrics.probe_state(name, ProbeState::Failed, &reason);
                None
            })?;
            let names = source.names();
            followed.push(source);
            Some(names)
        };
        let sources = Sources {
            kubernetes: take(KUBERNETES, kube::start_api(options, Arc::clone(metrics))),
            kubelet: take(KUBELET, kube::start_kubelet(options, Arc::clone(metrics))),
            cri: take(cri::SOURCE, cri::start(endpoint, Arc::clone(metrics))),
        };
        let book = Arc::new(PeerBook::default());
        let watched = take(PEERS, cluster::start(peers, options, Arc::clone(&book), Arc::clone(metrics)));
        let mut resolver = None;
        if let Some(options) = peers.resolver() {
            let started = Resolver::start(options, Arc::clone(&book), Arc::clone(metrics));
            take(
                RESOLVER,
                started.map(|(source, asked)| {
                    resolver = Some(asked);
                    Some(source)
                }),
            );
        }
        let peers = (watched.is_some() || resolver.is_some()).then_some(book);
        Self { followed, sources, peers, resolver }
    }

    /// Waits until each was asked once, whatever came of it, but not longer than `timeout` for all.
    pub fn wait_first(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.followed.iter().for_each(|source| source.wait_first(deadline.saturating_duration_since(Instant::now())));
    }

    /// Calls `listener` whenever pods of any of them have changed. The first one that is given counts.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        let listener = Arc::new(listener);
        for source in &self.followed {
            let listener = Arc::clone(&listener);
            source.on_change(move || listener());
        }
    }

    /// Who has the addresses beyond this node; `None` when nobody is asked.
    #[must_use]
    pub fn peers(&self) -> Option<Arc<PeerBook>> {
        self.peers.clone()
    }

    /// Who is told which addresses are seen; `None` where that makes no difference.
    #[must_use]
    pub fn resolver(&self) -> Option<Resolver> {
        self.resolver.clone()
    }

    /// What they know of this node's pods.
    #[must_use]
    pub fn sources(&self) -> Sources {
        self.sources.clone()
    }
}
