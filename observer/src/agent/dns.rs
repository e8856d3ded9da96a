//! DNS in the agent: whether this kernel can, and the thread that reads before the kernel's buffer is full.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use tracing::warn;

use crate::{
    dns::{Budget, Feed, Names},
    kernel::{DnsClients, DnsRecords, EdgeTable, Kernel, LoadError, LoadOptions, PeerNames, Pins},
    metrics::{AgentMetrics, ProbeState},
    traffic::peer_key,
};

/// The probe that reads packets to and from resolvers, in `observer_agent_probe_state`.
const PROBE: &str = "dns";

/// How often it looks when little comes. A scrape reads by itself.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Loads the kernel's side. Where the kernel refuses the programs with the part that hands packets over, they are loaded
/// without it: says whether DNS is observed.
///
/// # Errors
///
/// See [`LoadError`].
pub(super) fn load(pins: &Pins, options: LoadOptions, metrics: &AgentMetrics) -> Result<(Kernel, bool), LoadError> {
    let observed = options.dns_ports != 0;
    match Kernel::load(pins, options) {
        Ok(kernel) => {
            if observed {
                metrics.probe_state(PROBE, ProbeState::Ok, "");
            }
            Ok((kernel, observed))
        }
        Err(refusal @ LoadError::Program { .. }) if observed => {
            let kernel = Kernel::load(pins, LoadOptions { dns_ports: 0, ..options })?;
            let refusal = refusal.to_string();
            let reason = refusal.lines().next().unwrap_or_default();
            warn!("DNS is not observed, and external peers have no names: {reason}");
            metrics.probe_state(PROBE, ProbeState::Failed, reason);
            Ok((kernel, false))
        }
        Err(error) => Err(error),
    }
}

/// Without the traffic's programs there is nobody who hands packets over.
pub(super) fn none(metrics: &AgentMetrics) {
    metrics.probe_state(PROBE, ProbeState::Unsupported, "it needs what cgroup_skb needs; see there");
}

/// Where no packet is seen, none can be handed over.
pub(super) fn without_packets(metrics: &AgentMetrics) {
    metrics.probe_state(PROBE, ProbeState::Unsupported, "--traffic.accounting=sockets sees no packet");
}

/// A feed whose counts and names go on where an earlier agent stopped.
pub(super) fn feed(
    records: DnsRecords,
    counts: DnsClients,
    kept: PeerNames,
    table: &EdgeTable,
    budget: Budget,
) -> Arc<Feed> {
    let readings = table.read();
    let before = readings
        .iter()
        .filter_map(|reading| reading.key)
        .filter(|key| key.loopback_peer().is_none())
        .map(|key| peer_key(&key));
    let names = Names::new(kept.all(), before, budget);
    Arc::new(Feed::new(records, kept, Box::new(counts), names))
}

/// Reads until `stop` is set.
///
/// # Errors
///
/// When the thread cannot be made.
pub(super) fn spawn(feed: Arc<Feed>, stop: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    let ready = feed.fd()?;
    std::thread::Builder::new().name("dns".into()).spawn(move || {
        while !stop.load(Relaxed) {
            let _ = poll(&mut [PollFd::new(&ready.as_fd(), PollFlags::IN)], Some(&TICK));
            drop(feed.read());
        }
    })
}
