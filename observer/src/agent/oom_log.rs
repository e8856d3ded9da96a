//! A line in the log for each OOM kill. The thread that writes it also keeps the counts in step with the snapshots.

use std::{
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use observer_common::oom::Kill;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{info, warn};

use crate::{
    identity::Snapshot,
    kernel::{probes::oom::OomEvents, text},
    resources::OomKills,
};

/// How long the thread waits before it looks around.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// How long a kill in a cgroup that has just appeared waits for its name.
const NAME_WAIT: Duration = Duration::from_secs(2);
/// Kills that wait at a time; further ones are told without a name.
const MAX_WAITING: usize = 256;

/// Runs until `stop` is set.
///
/// # Errors
///
/// When the thread cannot be made.
pub(super) fn spawn(
    mut events: OomEvents,
    kills: Arc<Mutex<OomKills>>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("oom-kills".into()).spawn(move || {
        let mut waiting: Vec<(Kill, Instant)> = Vec::new();
        let mut settled: Option<Arc<Snapshot>> = None;
        let mut failing = false;
        while !stop.load(Relaxed) {
            let _ = poll(&mut [PollFd::new(&events.as_fd(), PollFlags::IN)], Some(&TICK));
            let now = Instant::now();
            while let Some(kill) = events.next_kill() {
                waiting.push((kill, now));
            }
            let snapshot = snapshots.load_full();
            let excess = waiting.len().saturating_sub(MAX_WAITING);
            let mut place = 0;
            waiting.retain(|(kill, since)| {
                place += 1;
                let late = place <= excess || now.duration_since(*since) >= NAME_WAIT;
                !say(kill, &snapshot, late)
            });
            if settled.as_ref().is_none_or(|settled| !Arc::ptr_eq(settled, &snapshot)) {
                let outcome = kills.lock().unwrap_or_else(PoisonError::into_inner).settle(&snapshot, now);
                if let (Err(error), false) = (&outcome, failing) {
                    warn!("counts of OOM kills stay with cgroups that are gone: {error}");
                }
                failing = outcome.is_err();
                settled = Some(snapshot);
            }
        }
    })
}

/// Writes the line, unless its cgroup has no name yet and it is not `late`.
fn say(kill: &Kill, snapshot: &Snapshot, late: bool) -> bool {
    let command = text::read(&kill.comm).escape_debug().to_string();
    let peak_bytes = kill.peak_pages * rustix::param::page_size() as u64;
    match snapshot.by_cgroup(kill.cgroup) {
        Some(owner) => warn!(
            namespace = %owner.sandbox.namespace,
            pod = %owner.sandbox.name,
            container = %owner.container_name(),
            command,
            pid = kill.pid,
            peak_bytes,
            "the kernel killed a process for want of memory"
        ),
        None if late => info!(
            cgroup = kill.cgroup,
            command,
            pid = kill.pid,
            peak_bytes,
            "the kernel killed a process that is in no pod for want of memory"
        ),
        None => return false,
    }
    true
}
