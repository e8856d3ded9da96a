//! The probes beside the traffic's programs: started one by one, each by itself.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Instant,
};

use arc_swap::ArcSwap;
use tracing::{debug, warn};

use super::{follow::Follower, housekeeping, oom_log};
use crate::{
    config::RunOptions,
    identity::Snapshot,
    kernel::{
        EdgeTable, Pins, Programs,
        btf::{Btf, BtfError},
        probes::{self, ProbeError, oom, runqueue::RunQueueProbe, tcp, unix},
    },
    metrics::{
        AgentMetrics, ProbeState, Registry,
        collectors::{OomCollector, RunQueueCollector, TcpMissesCollector},
    },
    resources::{OomKills, RunQueue},
};

/// The probe that counts OOM kills, in `observer_agent_probe_state`.
const OOM_PROBE: &str = "oom";
/// The probe that measures run-queue waits.
const RUNQUEUE_PROBE: &str = "runqueue";
/// The probe that counts dropped packets.
const DROPS_PROBE: &str = "drops";
/// The probe of TCP's quality.
const TCP_PROBE: &str = "tcp";

/// The probe of Unix sockets.
const UNIX_PROBE: &str = "unix";

/// What a kernel must tell of its types for a probe to run.
type Types = Result<Btf, BtfError>;

/// What a probe needs of the agent.
pub(super) struct Surroundings<'a> {
    pub options: &'a RunOptions,
    pub metrics: &'a Arc<AgentMetrics>,
    pub registry: &'a Registry,
    pub snapshots: &'a Arc<ArcSwap<Snapshot>>,
    /// Whether the host has a cgroup v2 tree. Without it a program sees every container's cgroup id as that of one root.
    pub has_v2: bool,
}

/// The probes' threads. They end when it is dropped.
#[derive(Default)]
pub(super) struct Probes {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    followers: Vec<Box<dyn Follower>>,
    programs: Programs,
}

impl Probes {
    /// Starts what this kernel can run. What it cannot is told by the probe's state.
    pub(super) fn start(pins: &Pins, table: &EdgeTable, agent: &Surroundings<'_>) -> Self {
        let began = Instant::now();
        let mut probes = Self::default();
        // Some megabytes: read once for all probes, and gone when they run.
        let btf = Btf::of_this_kernel();
        let parsed = began.elapsed();
        let oom = match agent.has_v2 {
            true => with(&btf, |btf| oom::start(pins, btf)).and_then(|parts| probes.oom(parts, agent)),
            // A container that shows 0 here would be a container that says it was never killed.
            false => Err(ProbeError::NoCgroupIds { instead: "observer_memory_events_total has the event oom_kill" }),
        };
        if oom.is_err() {
            probes::forget(pins, &observer_common::oom::programs::ALL);
        }
        tell(agent.metrics, OOM_PROBE, "OOM kills are not counted", oom);
        let drops = with(&btf, |btf| super::drops::start(pins, btf, &agent.options.paths.procfs));
        let drops = drops.inspect_err(|_| probes::drops::forget(pins)).map(|(collector, addresses)| {
            probes.programs.push(collector.program());
            agent.registry.register(collector);
            probes.followers.push(Box::new(addresses));
        });
        tell(agent.metrics, DROPS_PROBE, "dropped packets are not counted", drops);
        let tcp = with(&btf, |btf| tcp::start(pins, btf, table));
        let tcp = tcp.map(|(misses, programs)| {
            housekeeping::end_missed(table);
            probes.programs.extend(programs);
            agent.registry.register(TcpMissesCollector::new(misses, Arc::clone(agent.metrics)));
        });
        if tcp.is_err() {
            // Half of it would count ends without beginnings.
            tcp::forget(pins);
            if let Err(error) = table.stop_following_connections() {
                warn!("connections that an earlier agent followed are still shown: {error}");
            }
        }
        tell(agent.metrics, TCP_PROBE, "failed connections, resets, retransmissions and times are not counted", tcp);
        if agent.options.runqueue {
            let runqueue = match agent.has_v2 {
                true => with(&btf, RunQueueProbe::start).map(|probe| probes.runqueue(probe, agent)),
                false => Err(ProbeError::NoCgroupIds { instead: "nothing else tells it" }),
            };
            tell(agent.metrics, RUNQUEUE_PROBE, "run-queue waits are not measured", runqueue);
        }
        if agent.options.unix_sockets {
            let unix = with(&btf, |btf| unix::start(pins, btf, table));
            if unix.is_err() {
                unix::forget(pins);
            }
            let unix = unix.map(|programs| probes.programs.extend(programs));
            tell(agent.metrics, UNIX_PROBE, "bytes over Unix sockets are not counted", unix);
        } else {
            unix::forget(pins);
        }
        debug!(types = ?parsed, all = ?began.elapsed(), "probes are started");
        probes
    }

    /// Those who follow the coming and going of containers.
    pub(super) fn take_followers(&mut self) -> Vec<Box<dyn Follower>> {
        std::mem::take(&mut self.followers)
    }

    /// The kernel programs that run.
    pub(super) fn take_programs(&mut self) -> Programs {
        std::mem::take(&mut self.programs)
    }

    fn oom(
        &mut self,
        (counts, events, programs): (oom::OomCounts, oom::OomEvents, Programs),
        agent: &Surroundings<'_>,
    ) -> Result<(), ProbeError> {
        let kills = Arc::new(Mutex::new(OomKills::new(counts)));
        let thread = oom_log::spawn(events, Arc::clone(&kills), Arc::clone(agent.snapshots), Arc::clone(&self.stop))
            .map_err(ProbeError::Thread)?;
        self.threads.push(thread);
        self.programs.extend(programs);
        agent.registry.register(OomCollector::new(kills, Arc::clone(agent.metrics)));
        Ok(())
    }

    fn runqueue(&mut self, probe: RunQueueProbe, agent: &Surroundings<'_>) {
        self.programs.push(Arc::clone(probe.program()));
        let queue = Arc::new(Mutex::new(RunQueue::new(probe)));
        self.followers.push(Box::new(Arc::clone(&queue)));
        agent.registry.register(RunQueueCollector::new(queue, Arc::clone(agent.metrics)));
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Without the traffic's programs there is nothing that probes could be pinned beside.
pub(super) fn none(options: &RunOptions, metrics: &AgentMetrics) {
    let asked = options.runqueue.then_some(RUNQUEUE_PROBE).into_iter();
    let asked = asked.chain(options.unix_sockets.then_some(UNIX_PROBE));
    for probe in [OOM_PROBE, DROPS_PROBE, TCP_PROBE].into_iter().chain(asked) {
        metrics.probe_state(probe, ProbeState::Unsupported, "it needs what cgroup_skb needs; see there");
    }
}

fn with<T>(btf: &Types, start: impl FnOnce(&Btf) -> Result<T, ProbeError>) -> Result<T, ProbeError> {
    match btf {
        Ok(btf) => start(btf),
        Err(error) => Err(ProbeError::NoTypes(error.to_string())),
    }
}

fn tell(metrics: &AgentMetrics, probe: &str, missing: &str, outcome: Result<(), ProbeError>) {
    let Err(error) = outcome else { return metrics.probe_state(probe, ProbeState::Ok, "") };
    warn!("{missing}: {error}");
    let state = if error.is_unsupported() { ProbeState::Unsupported } else { ProbeState::Failed };
    metrics.probe_state(probe, state, error.to_string().lines().next().unwrap_or_default());
}
