//! The life of the agent: start order, the scrape's path, shutdown.

mod hooks;
mod housekeeping;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use self::{
    hooks::{KernelHooks, NoHooks, SharedNames},
    housekeeping::Housekeeping,
};
use crate::{
    config::{LogLevel, RunOptions},
    http::{PodLine, ProbeLine, Readiness, Server, Status, WebState},
    identity::Snapshot,
    kernel::{self, EdgeTable, Kernel, LoadOptions, PinError, Pins},
    metrics::{
        AgentMetrics, BuildInfo, ProbeState, Registry,
        collectors::{AgentCollector, InfoCollector, ProcessCollector, ResourceCollector, TrafficCollector},
    },
    resources::{CgroupRoots, Reader, raise_file_limit},
    sandbox::{ContainerKind, Discovery, DiscoveryOptions, Hierarchies, SandboxHooks, SandboxTable},
};

/// The probe that counts packets, in `observer_agent_probe_state`.
const TRAFFIC_PROBE: &str = "cgroup_skb";
/// How long a scrape waits for the name of a cgroup that has just appeared.
const NAME_WAIT: Duration = Duration::from_millis(500);

/// Runs the agent until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Whatever keeps it from starting: the port, no cgroup tree, another agent on this node. What only one part needs is
/// told by that part's probe state, and the rest runs.
pub fn run(options: &RunOptions) -> anyhow::Result<()> {
    raise_file_limit();
    let hierarchies = Hierarchies::detect(&options.paths.procfs, &options.paths.cgroupfs)?;
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let snapshots: Arc<ArcSwap<Snapshot>> = Arc::default();
    let readiness = Arc::new(Readiness::default());
    let registry = Arc::new(Registry::new(Arc::clone(&snapshots), Arc::clone(&metrics)));
    registry.register(InfoCollector);
    registry.register(ResourceCollector::new(Reader::new(CgroupRoots::from(&hierarchies))));
    registry.register(ProcessCollector::default());

    let stop = Arc::new(AtomicBool::new(false));
    let traffic = start_kernel(options, &hierarchies, &metrics)?;
    // After the lock is taken, before anything is attached: a port in use must not cost a pod anything.
    let before_scrape: Arc<Mutex<Option<BeforeScrape>>> = Arc::default();
    let server = Server::start(
        options.web.listen_address,
        WebState {
            telemetry_path: options.web.telemetry_path.clone(),
            scrape: scrape_provider(Arc::clone(&registry), Arc::clone(&before_scrape)),
            status: status_provider(Arc::clone(&metrics), Arc::clone(&snapshots)),
            readiness: Arc::clone(&readiness),
        },
    )?;

    let mut log_reader = None;
    let mut traffic_parts = None;
    let mut remembered = Vec::new();
    let hooks: Box<dyn SandboxHooks> = match traffic {
        Some((pins, kernel)) => {
            remembered = kernel.names.all();
            let names = SharedNames::new(kernel.names);
            let table = Arc::new(kernel.table);
            if let Some(log) = kernel.log {
                log_reader = Some(kernel::log_reader::spawn(log, Arc::clone(&stop)).context("reading the kernel log")?);
            }
            traffic_parts = Some((Arc::clone(&table), names.clone()));
            Box::new(KernelHooks::new(kernel.attacher, pins, names, Arc::clone(&metrics), Arc::clone(&readiness)))
        }
        None => Box::new(NoHooks::new(Arc::clone(&readiness))),
    };
    let table = SandboxTable::new(
        &hierarchies,
        &options.paths.procfs,
        options.pods_file.clone(),
        options.node_name(),
        remembered,
    );
    let discovery =
        Arc::new(Discovery::start(table, DiscoveryOptions::default(), hooks, Arc::clone(&snapshots)).context(
            "starting to follow the cgroup tree (inotify; raise fs.inotify.max_user_instances if it is exhausted)",
        )?);
    let mut housekeeping = None;
    if let Some((table, names)) = traffic_parts {
        let keeper = Housekeeping::start(Arc::clone(&table), names, Arc::clone(&discovery))
            .context("starting the housekeeping thread")?;
        registry.register(TrafficCollector::new(
            Arc::clone(&table),
            options.peer_detail(),
            Arc::clone(&metrics),
            keeper.sender(),
        ));
        housekeeping = Some(keeper);
        *lock(&before_scrape) = Some(BeforeScrape { table, snapshots, discovery: Arc::clone(&discovery) });
    }
    registry.register(AgentCollector::new(metrics));
    info!(address = %server.address(), cgroups = %hierarchies.mode(), "serving metrics");

    wait_for_signal()?;
    info!("stopping; the kernel goes on counting for the next agent (`observer uninstall` ends that)");
    let served = server.stop();
    stop.store(true, Relaxed);
    *lock(&before_scrape) = None;
    drop(housekeeping);
    drop(discovery);
    if let Some(reader) = log_reader {
        let _ = reader.join();
    }
    served
}

/// Loads the kernel's side. `None` when this machine does not allow it: said in the log and by the probe's state.
///
/// # Errors
/// When another agent runs on this node: two would count for one another.
fn start_kernel(
    options: &RunOptions,
    hierarchies: &Hierarchies,
    metrics: &AgentMetrics,
) -> anyhow::Result<Option<(Pins, Kernel)>> {
    let degrade = |state: ProbeState, reason: &str| {
        error!("no traffic is counted: {reason}");
        warn!("CPU, memory and pods are served all the same; `observer check` shows what is missing");
        metrics.probe_state(TRAFFIC_PROBE, state, reason.lines().next().unwrap_or_default());
    };
    if hierarchies.v2().is_none() {
        degrade(ProbeState::Unsupported, "this host has no cgroup v2 tree to attach programs to");
        return Ok(None);
    }
    let pins = match Pins::open(&options.paths.bpffs) {
        Ok(pins) => pins,
        Err(error @ PinError::Locked { .. }) => return Err(error.into()),
        Err(error) => {
            degrade(ProbeState::Failed, &error.to_string());
            return Ok(None);
        }
    };
    let debug = matches!(options.log.level, LogLevel::Debug | LogLevel::Trace);
    match Kernel::load(&pins, LoadOptions { edges: options.traffic_edges, debug }) {
        Ok(kernel) => {
            match kernel.table.resume() {
                Ok(0) => {}
                Ok(slots) => info!(slots, "finished what an earlier agent was taking back"),
                Err(error) => warn!("slots that an earlier agent was taking back stay taken: {error}"),
            }
            metrics.probe_state(TRAFFIC_PROBE, ProbeState::Ok, "");
            Ok(Some((pins, kernel)))
        }
        Err(error) => {
            degrade(ProbeState::Failed, &error.to_string());
            Ok(None)
        }
    }
}

impl From<&Hierarchies> for CgroupRoots {
    fn from(hierarchies: &Hierarchies) -> Self {
        let v1 = Self::V1_CONTROLLERS
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), hierarchies.v1(name)?.to_owned())))
            .collect();
        Self { v2: hierarchies.v2().map(Path::to_owned), v1 }
    }
}

/// Waits, before a scrape, for names of cgroups that have counters already.
struct BeforeScrape {
    table: Arc<EdgeTable>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    discovery: Arc<Discovery>,
}

impl BeforeScrape {
    fn wait_for_names(&self) {
        let snapshot = self.snapshots.load();
        if self.table.cgroups().any(|cgroup| snapshot.by_cgroup(cgroup).is_none()) {
            // Without the name in time the counters wait for the next scrape, as pending.
            let _ = self.discovery.refresh(NAME_WAIT);
        }
    }
}

fn scrape_provider(registry: Arc<Registry>, before: Arc<Mutex<Option<BeforeScrape>>>) -> crate::http::ScrapeProvider {
    Arc::new(move || {
        if let Some(before) = &*lock(&before) {
            before.wait_for_names();
        }
        Ok(registry.scrape())
    })
}

fn status_provider(metrics: Arc<AgentMetrics>, snapshots: Arc<ArcSwap<Snapshot>>) -> crate::http::StatusProvider {
    Arc::new(move || {
        let snapshot = snapshots.load();
        let names = |sandbox: &crate::sandbox::Sandbox| {
            let living = |container: &&crate::sandbox::Container| {
                container.alive && container.kind == ContainerKind::Application
            };
            sandbox.containers.iter().filter(living).map(|container| container.name.clone()).collect()
        };
        Status {
            version: metrics.build().version.to_owned(),
            node: snapshot.node_name().to_owned(),
            probes: metrics
                .probes()
                .into_iter()
                .map(|probe| ProbeLine {
                    name: probe.name,
                    state: probe.state.as_str().to_owned(),
                    reason: probe.reason,
                })
                .collect(),
            pods: snapshot
                .sandboxes()
                .iter()
                .filter(|sandbox| sandbox.alive)
                .map(|sandbox| PodLine {
                    namespace: sandbox.namespace.clone(),
                    name: sandbox.name.clone(),
                    containers: names(sandbox),
                })
                .collect(),
        }
    })
}

fn wait_for_signal() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("waiting for signals")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
