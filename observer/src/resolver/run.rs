//! The life of a resolver: start order, shutdown.

use std::sync::Arc;

use anyhow::Context;
use tracing::info;

use super::{Listener, ResolverOptions, Shared, watch};
use crate::{
    http::{Latch, ProbeLine, Readiness, Server, Status, WebState},
    metrics::{
        AgentMetrics, BuildInfo, Registry,
        collectors::{AgentCollector, ProcessCollector, ResolverCollector},
    },
    resources::raise_file_limit,
    signals::terminated,
};

/// Threads that serve agents.
const WORKERS: usize = 2;

/// Runs a resolver until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting: a port, a certificate, no API server to watch.
pub fn run(options: &ResolverOptions) -> anyhow::Result<()> {
    // A connection for each agent.
    raise_file_limit();
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let shared = Arc::new(Shared::default());
    let registry = Arc::new(Registry::new(Arc::default(), Arc::clone(&metrics)));
    registry.register(ProcessCollector::default());
    registry.register(ResolverCollector::new(Arc::clone(&shared)));
    registry.register_last(AgentCollector::new(Arc::clone(&metrics)));
    let readiness = Arc::new(Readiness::of(&[Latch::Cluster]));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("resolver")
        .enable_all()
        .build()
        .context("cannot make the runtime that serves agents")?;
    let listener = {
        let _within = runtime.enter();
        Listener::bind(options.listening())?
    };
    let status = {
        let metrics = Arc::clone(&metrics);
        Arc::new(move || status(&metrics))
    };
    let server = Server::start(
        options.web.listen_address,
        WebState {
            telemetry_path: options.web.telemetry_path.clone(),
            scrape: Arc::new(move || Ok(registry.scrape())),
            further: Vec::new(),
            status,
            readiness: Arc::clone(&readiness),
        },
    )?;
    let watching = watch::start(&options.kube(), &shared, readiness, &metrics)
        .context("cannot start the thread that watches the cluster")?
        .context(
            "no API server is known (--kubernetes): run as a pod with a service account, or name its URL, its \
             authorities (--service-account.ca-file) and a token (--service-account.token-file)",
        )?;
    info!(agents = %listener.address(), metrics = %server.address(), "resolving addresses");
    let ended = {
        let _within = runtime.enter();
        terminated()?
    };
    let served = runtime.block_on(listener.serve(shared, ended));
    info!("stopping; agents go on with what they know");
    drop(watching);
    runtime.shutdown_background();
    server.stop().and(served)
}

fn status(metrics: &AgentMetrics) -> Status {
    let line = |probe: crate::metrics::Probe| ProbeLine {
        name: probe.name,
        state: probe.state.as_str().to_owned(),
        reason: probe.reason,
    };
    Status {
        version: metrics.build().version.to_owned(),
        node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        probes: metrics.probes().into_iter().map(line).collect(),
        pods: Vec::new(),
    }
}
