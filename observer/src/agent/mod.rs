//! The life of the agent: start order, the scrape's path, shutdown.

mod allocator;
mod compat;
mod dns;
mod drops;
mod follow;
mod hooks;
mod housekeeping;
mod interfaces;
mod older;
mod oom_log;
mod probes;
mod program_pages;

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use tracing::{error, info, warn};

use self::{
    follow::{Followed, Follower},
    hooks::{KernelHooks, NoHooks, SharedNames},
    housekeeping::{Housekeeping, Inbox},
    interfaces::Interfaces,
    probes::{Probes, Surroundings},
};
use crate::{
    config::{LogLevel, RunOptions},
    http::{Latch, PodLine, ProbeLine, Readiness, Server, Status, WebState},
    identity::{Names, PodsFile, Snapshot, cluster::Resolver},
    kernel::{self, Accounting, EdgeTable, Kernel, LoadOptions, PinError, Pins},
    metrics::{
        AgentMetrics, BuildInfo, ProbeState, Registry,
        collectors::{
            AgentCollector, CountedWhere, DnsCollector, InfoCollector, NodeCollector, PodCollector, ProcessCollector,
            ProgramCollector, ResourceCollector, TrafficCollector,
        },
    },
    resources::{CgroupRoots, Endings, Ledger, PodReader, Reader, SharedReader, Store, raise_file_limit},
    sandbox::{ContainerKind, Discovery, DiscoveryOptions, Hierarchies, SandboxHooks, SandboxTable},
    signals::Ending,
    traffic::{Decider, peer_address},
};

/// The probe that counts packets, in `observer_agent_probe_state`.
const TRAFFIC_PROBE: &str = "cgroup_skb";
/// The probe that reads containers when they end.
const ENDINGS_PROBE: &str = "endings";
/// How long the start waits for sources of names that are slow.
const NAMES_WAIT: Duration = Duration::from_secs(2);
/// How long a scrape waits for the name of a cgroup that has just appeared.
const NAME_WAIT: Duration = Duration::from_millis(500);
/// How long a scrape waits for the resolver to tell of an address that has just appeared.
const ADDRESS_WAIT: Duration = Duration::from_millis(250);

/// Runs the agent until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// Whatever keeps it from starting: the port, no cgroup tree, another agent on this node. What only one part needs is
/// told by that part's probe state, and the rest runs.
pub fn run(options: &RunOptions) -> anyhow::Result<()> {
    allocator::set_up();
    raise_file_limit();
    let ending = Ending::expect()?;
    let hierarchies = Hierarchies::detect(&options.paths.procfs, &options.paths.cgroupfs)?;
    let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
    let snapshots: Arc<ArcSwap<Snapshot>> = Arc::default();
    let readiness = Arc::new(Readiness::default());
    let registry = Arc::new(Registry::new(Arc::clone(&snapshots), Arc::clone(&metrics)));
    let roots = CgroupRoots::from(&hierarchies);
    let reader = SharedReader::new(Reader::new(roots.clone(), &options.paths.procfs));
    let counted_where = CountedWhere::default();
    registry.register(InfoCollector(counted_where.clone()));
    registry.register(NodeCollector::new(options.paths.procfs.clone()));
    registry.register(PodCollector::new(PodReader::new(options.paths.procfs.clone()), Arc::clone(&metrics)));
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
            further: compat::providers(&reader, &options.paths.procfs, &snapshots, &metrics),
            status: status_provider(Arc::clone(&metrics), Arc::clone(&snapshots)),
            readiness: Arc::clone(&readiness),
        },
    )?;

    let mut log_reader = None;
    let mut traffic_parts = None;
    let mut remembered = Vec::new();
    let mut dns_reader = None;
    let mut probes = Probes::default();
    let mut store: Option<Box<dyn Store>> = None;
    let hooks: Box<dyn SandboxHooks> = match traffic {
        Some((pins, kernel, observes_dns)) => {
            store = Some(Box::new(kernel.ended));
            remembered = kernel.names.all();
            let names = SharedNames::new(kernel.names);
            let table = Arc::new(kernel.table);
            if let Some(log) = kernel.log {
                log_reader = Some(kernel::log_reader::spawn(log, Arc::clone(&stop)).context("reading the kernel log")?);
            }
            probes = Probes::start(
                &pins,
                &table,
                &Surroundings {
                    options,
                    metrics: &metrics,
                    registry: &registry,
                    snapshots: &snapshots,
                    has_v2: hierarchies.v2().is_some(),
                },
            );
            // Before anything new is attached: what is there now was shown by an earlier agent.
            let feed = dns::feed(kernel.dns, kernel.dns_clients, kernel.peer_names, &table, options.dns.budget());
            if observes_dns {
                dns_reader = Some(dns::spawn(Arc::clone(&feed), Arc::clone(&stop)).context("starting to read DNS")?);
                registry.register(DnsCollector::new(Arc::clone(&feed)));
            }
            traffic_parts = Some((Inbox::new(), Arc::clone(&table), kernel.decisions, feed, names.clone()));
            let has_v2 = hierarchies.v2().is_some();
            let by_packets = pins.accounting() == Accounting::Packets;
            let wanted = by_packets && interfaces::wanted(&options.interface_handlers, has_v2);
            let interfaces =
                Interfaces::start(&pins, &table, (&options.paths.procfs, wanted), &metrics, counted_where.clone());
            let mut programs = kernel.attacher.programs();
            programs.extend(interfaces.iter().flat_map(Interfaces::programs));
            programs.extend(probes.take_programs());
            registry.register(ProgramCollector::new(programs));
            Box::new(KernelHooks::new(
                kernel.attacher,
                pins,
                table,
                names,
                (interfaces, has_v2, counted_where),
                Arc::clone(&metrics),
                Arc::clone(&readiness),
            ))
        }
        None => {
            probes::none(options, &metrics);
            if options.dns.ports.packed() != 0 {
                dns::none(&metrics);
            }
            Box::new(NoHooks::new(Arc::clone(&readiness)))
        }
    };
    let endings = start_endings(&roots, &metrics);
    let mut followers = probes.take_followers();
    followers.extend(endings.as_ref().map(|endings| Box::new(endings.watch()) as Box<dyn Follower>));
    let inbox = traffic_parts.as_ref().map(|(inbox, ..)| inbox);
    followers.extend(inbox.map(|inbox| Box::new(inbox.notice()) as Box<dyn Follower>));
    registry.register(ResourceCollector::new(reader, endings, Ledger::new(store)));
    // The first scrape has their names, unless they are slow.
    let following = options.sources.follow(&metrics);
    following.wait_first(NAMES_WAIT);
    let table = SandboxTable::new(
        &hierarchies,
        &options.paths.procfs,
        Names::new(PodsFile::new(options.pods_file.clone()), following.sources()),
        options.node_name(),
        remembered,
    )
    .selecting(options.selection())
    .with_handlers(options.interface_handlers.clone());
    let discovery = Arc::new(
        Discovery::start(
            table,
            DiscoveryOptions::default(),
            Box::new(Followed::new(hooks, followers)),
            Arc::clone(&snapshots),
        )
        .context(
            "starting to follow the cgroup tree (inotify; raise fs.inotify.max_user_instances if it is exhausted)",
        )?,
    );
    let changed = discovery.on_names();
    following.on_change(discovery.on_names());
    // What was told while nobody listened may have come after the first look.
    changed();
    let mut housekeeping = None;
    if let Some((inbox, table, kept, feed, names)) = traffic_parts {
        let decider = Decider::new(Arc::clone(&table), kept, options.peer_detail(), following.peers());
        let decider = Arc::new(decider);
        registry.register(TrafficCollector::new(
            Arc::clone(&table),
            Arc::clone(&decider),
            options.limits(),
            Arc::clone(&metrics),
            feed,
            inbox.sender(),
            options.accounting(),
        ));
        let (kept, counted) = (Arc::clone(&discovery), Arc::clone(&metrics));
        let keeper = Housekeeping::start(inbox, Arc::clone(&table), decider, names, kept, counted)
            .context("starting the housekeeping thread")?;
        housekeeping = Some(keeper);
        *lock(&before_scrape) =
            Some(BeforeScrape { table, snapshots, discovery: Arc::clone(&discovery), resolver: following.resolver() });
    }
    registry.register_last(AgentCollector::new(metrics));
    readiness.set(Latch::Serving);
    info!(address = %server.address(), cgroups = %hierarchies.mode(), "serving metrics");
    allocator::trim();
    program_pages::let_go();

    ending.wait();
    info!("stopping; the kernel goes on counting for the next agent (`observer uninstall` ends that)");
    let served = server.stop();
    stop.store(true, Relaxed);
    *lock(&before_scrape) = None;
    drop(following);
    drop(housekeeping);
    drop(discovery);
    drop(probes);
    for reader in log_reader.into_iter().chain(dns_reader) {
        let _ = reader.join();
    }
    served
}

/// Starts reading what containers use last. `None` when this machine does not allow it: said by the probe's state.
fn start_endings(roots: &CgroupRoots, metrics: &AgentMetrics) -> Option<Endings> {
    let (endings, state, reason) = match Endings::start(roots) {
        Ok(Some(endings)) => (Some(endings), ProbeState::Ok, String::new()),
        Ok(None) => (None, ProbeState::Unsupported, "this host has no cgroup v2 tree, which tells it".to_owned()),
        Err(error) => (None, ProbeState::Failed, format!("{error}; raise fs.inotify.max_user_instances on the node")),
    };
    if state != ProbeState::Ok {
        warn!("what containers use in their last seconds is not counted: {reason}");
    }
    metrics.probe_state(ENDINGS_PROBE, state, &reason);
    endings
}

/// Loads the kernel's side, and says whether it observes DNS. `None` when this machine does not allow it: said in the log
/// and by the probe's state.
///
/// # Errors
/// When another agent runs on this node: two would count for one another.
fn start_kernel(
    options: &RunOptions,
    hierarchies: &Hierarchies,
    metrics: &AgentMetrics,
) -> anyhow::Result<Option<(Pins, Kernel, bool)>> {
    let degrade = |state: ProbeState, reason: &str| {
        error!("no traffic is counted: {reason}");
        warn!("CPU, memory and pods are served all the same; `observer check` shows what is missing");
        metrics.probe_state(TRAFFIC_PROBE, state, reason.lines().next().unwrap_or_default());
    };
    let accounting = options.accounting();
    if hierarchies.v2().is_none() && accounting == Accounting::Sockets {
        degrade(ProbeState::Unsupported, "--traffic.accounting=sockets needs a cgroup v2 tree, and this host has none");
        return Ok(None);
    }
    let pins = match Pins::open_for(&options.paths.bpffs, accounting) {
        Ok(pins) => pins,
        Err(error @ PinError::Locked { .. }) => return Err(error.into()),
        Err(error) => {
            degrade(ProbeState::Failed, &error.to_string());
            return Ok(None);
        }
    };
    match pins.forget_other() {
        Ok(0) => {}
        Ok(pins) => info!(pins, "traffic was counted in another way here: its counters begin anew"),
        Err(error) => warn!("what counted in another way goes on, unread: {error}"),
    }
    let by_sockets = pins.accounting() == Accounting::Sockets;
    let debug = matches!(options.log.level, LogLevel::Debug | LogLevel::Trace);
    // Nobody sees the packets of resolvers when nobody sees packets.
    let dns_ports = if by_sockets { 0 } else { options.dns.ports.packed() };
    if by_sockets && options.dns.ports.packed() != 0 {
        dns::without_packets(metrics);
    }
    let load = LoadOptions { edges: options.traffic_edges, debug, dns_ports };
    match dns::load(&pins, load, metrics) {
        Ok((kernel, observes_dns)) => {
            match kernel.table.resume() {
                Ok(0) => {}
                Ok(slots) => info!(slots, "finished what an earlier agent was taking back"),
                Err(error) => warn!("slots that an earlier agent was taking back stay taken: {error}"),
            }
            if by_sockets {
                // Nothing is attached to cgroups; the hooks say so.
            } else if hierarchies.v2().is_some() {
                metrics.probe_state(TRAFFIC_PROBE, ProbeState::Ok, "");
            } else {
                const REASON: &str = "this host has no cgroup v2 tree to attach programs to";
                warn!(
                    "{REASON}: pods are counted at their interfaces, without containers and without localhost traffic"
                );
                metrics.probe_state(TRAFFIC_PROBE, ProbeState::Unsupported, REASON);
            }
            Ok(Some((pins, kernel, observes_dns)))
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

/// Waits, before a scrape, for names of cgroups and addresses that have counters already.
struct BeforeScrape {
    table: Arc<EdgeTable>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    discovery: Arc<Discovery>,
    resolver: Option<Resolver>,
}

impl BeforeScrape {
    fn wait_for_names(&self) {
        let snapshot = self.snapshots.load();
        if self.table.cgroups().any(|cgroup| snapshot.by_cgroup(cgroup).is_none() && !snapshot.is_left_out(cgroup)) {
            // Without the name in time the counters wait for the next scrape, as pending.
            let _ = self.discovery.refresh(NAME_WAIT);
        }
        if let Some(resolver) = &self.resolver {
            let snapshot = self.snapshots.load();
            let addresses = self.table.keys().filter_map(|key| peer_address(&key));
            let here = |address: &IpAddr| snapshot.by_address(*address).is_some() || snapshot.is_node_address(*address);
            // An address that is not resolved in time is named in the next scrape.
            resolver.see(addresses.filter(|address| !here(address)), Instant::now() + ADDRESS_WAIT);
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
