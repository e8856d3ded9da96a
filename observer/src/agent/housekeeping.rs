//! What is done to the edge table off the scrape's path: closing slots whose peer is another one now, giving back what
//! ended.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::{follow::Follower, hooks::SharedNames};
use crate::{
    clock,
    identity::Snapshot,
    kernel::{Closing, EdgeTable, Leaving, Slot},
    metrics::AgentMetrics,
    sandbox::Discovery,
    traffic::{Decider, Refused, Retirement, Task, Urgent, Waiting},
};

/// How soon slots are looked at again after somebody has told of peers beyond this node.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the log says, at most, that idle edges lose their places.
const TOLD: Duration = Duration::from_secs(600);

/// Where tasks are put, before there is somebody who does them.
pub(super) struct Inbox {
    sender: Sender<Task>,
    receiver: Receiver<Task>,
}

impl Inbox {
    pub(super) fn new() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver }
    }

    /// Who tells of pods that come and go.
    pub(super) fn notice(&self) -> Notice {
        Notice { tasks: self.sender.clone(), last: Arc::default() }
    }

    /// Where the scrape puts what it has shown for the last time.
    pub(super) fn sender(&self) -> Sender<Task> {
        self.sender.clone()
    }
}

/// Tells of every new snapshot, and of pods that have gone since the last one: they do not have their addresses any more,
/// and other pods may have them before the next one.
pub(super) struct Notice {
    tasks: Sender<Task>,
    last: Arc<Snapshot>,
}

impl Follower for Notice {
    fn removed(&mut self, path: &str) {
        if let Some(cgroup) = self.last.ends_with(path) {
            // Nobody listens when the agent ends.
            let _ = self.tasks.send(Task::Urgent(Urgent::Gone { cgroup, at: clock::monotonic() }));
        }
    }

    fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        self.last = Arc::clone(snapshot);
        let _ = self.tasks.send(Task::Urgent(Urgent::Look(Arc::clone(snapshot))));
    }
}

/// A thread that does the tasks. It ends when this is dropped.
pub(super) struct Housekeeping {
    sender: Sender<Task>,
    thread: Option<JoinHandle<()>>,
}

struct Keeper {
    table: Arc<EdgeTable>,
    decider: Arc<Decider>,
    names: SharedNames,
    discovery: Arc<Discovery>,
    tasks: Receiver<Task>,
    metrics: Arc<AgentMetrics>,
    waiting: Waiting,
    closing: Closing,
    evicted: Evicted,
    /// What a map has refused to take back, for the next time.
    refused: Refused,
}

/// Ends connections whose end the kernel has passed over. At the start before anything is shown, and soon: the memory that tells what
/// they have carried may be used for something else at any time.
pub(super) fn end_missed(table: &EdgeTable) {
    match table.end_missed() {
        Ok(0) => {}
        Ok(connections) => debug!(connections, "ended connections whose end the kernel has passed over"),
        Err(error) => warn!("connections whose end the kernel has passed over are shown as ones that live: {error}"),
    }
}

/// Idle edges that lost their places since the log said so, and when that was.
#[derive(Default)]
struct Evicted {
    edges: usize,
    told: Option<Instant>,
}

impl Housekeeping {
    /// Starts it.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub(super) fn start(
        inbox: Inbox,
        table: Arc<EdgeTable>,
        decider: Arc<Decider>,
        names: SharedNames,
        discovery: Arc<Discovery>,
        metrics: Arc<AgentMetrics>,
    ) -> io::Result<Self> {
        let Inbox { sender, receiver } = inbox;
        let keeper = Keeper {
            table,
            decider,
            names,
            discovery,
            tasks: receiver,
            metrics,
            waiting: Waiting::default(),
            closing: Closing::default(),
            evicted: Evicted::default(),
            refused: Refused::default(),
        };
        let thread = std::thread::Builder::new().name("housekeeping".into()).spawn(move || keeper.work())?;
        Ok(Self { sender, thread: Some(thread) })
    }
}

impl Keeper {
    fn work(mut self) {
        loop {
            self.take_in();
            match self.waiting.take() {
                Some(Task::Urgent(urgent)) => {
                    self.act(urgent);
                    self.act_on_all();
                }
                Some(Task::EndMissed) => end_missed(&self.table),
                Some(Task::Retire(retirement)) => self.retire(retirement),
                Some(Task::Stop) => return,
                None => {
                    // A book that is written at every moment must not keep this thread busy.
                    let next = match self.decider.peers() {
                        Some(_) => self.tasks.recv_timeout(AGAIN),
                        None => self.tasks.recv().map_err(Into::into),
                    };
                    match next {
                        Ok(task) => self.waiting.put(task),
                        Err(RecvTimeoutError::Timeout) => {
                            let lost = self.decider.look_again();
                            self.close(&lost);
                            self.act_on_all();
                        }
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            }
        }
    }

    /// All that has come meanwhile.
    fn take_in(&mut self) {
        while let Ok(task) = self.tasks.try_recv() {
            self.waiting.put(task);
        }
    }

    /// Does what is urgent: slots are closed at once.
    fn act(&mut self, urgent: Urgent) {
        let slots = match urgent {
            Urgent::Look(snapshot) => self.decider.look(&snapshot),
            Urgent::Gone { cgroup, at } => self.decider.gone(cgroup, at),
            Urgent::Close(slots) => slots,
            Urgent::Evict(slots) => return self.evict(&slots),
        };
        self.close(&slots);
    }

    /// Closes idle slots, which find their heirs after the next scrape.
    fn evict(&mut self, slots: &[(Slot, Leaving)]) {
        let closed = match self.table.close(slots, &mut self.closing) {
            Ok(closed) => closed,
            Err(error) => return warn!("idle edges keep their places in the table that is nearly full: {error}"),
        };
        self.metrics.edges_evicted(closed as u64);
        let Evicted { edges, told } = &mut self.evicted;
        *edges += closed;
        if *edges > 0 && told.is_none_or(|told| told.elapsed() >= TOLD) {
            info!(edges = *edges, "the table of edges is nearly full: idle ones give their places to new ones");
            self.evicted = Evicted { edges: 0, told: Some(Instant::now()) };
        }
    }

    /// Does all that is urgent by now, and what waits for programs of the kernel behind it.
    fn act_on_all(&mut self) {
        loop {
            self.take_in();
            match self.waiting.urgent() {
                Some(urgent) => self.act(urgent),
                None if self.table.finish_closing(&mut self.closing) => {}
                None => return,
            }
        }
    }

    fn close(&mut self, slots: &[(Slot, Leaving)]) {
        match self.table.close(slots, &mut self.closing) {
            Ok(0) => {}
            Ok(closed) => debug!(slots = closed, "closed slots whose peer is another one now"),
            Err(error) => warn!("slots stay open although their peer is another one now: {error}"),
        }
    }

    /// Gives back, which waits for programs of the kernel again and again. What is urgent is done in between.
    fn retire(&mut self, mut retirement: Retirement) {
        let table = Arc::clone(&self.table);
        let mut errors = Vec::new();
        if self.refused.retry(&mut retirement)
            && let Err(error) = table.resume()
        {
            // Some are still neither in use nor free.
            self.refused.keep(&[]);
            errors.push(error);
        }
        // Each by itself: slots that one map refuses are no reason to keep others, which no reading shows any more.
        let merged = table.merge(&retirement.goes_on.merge, &mut || self.act_on_all());
        let adopted = table.adopt(&retirement.goes_on.adopt);
        let retired = table.retire(&retirement.slots, &mut || self.act_on_all());
        if retired.is_err() {
            self.refused.keep(&retirement.slots);
        }
        let folded = table.fold(&retirement.fold, &mut || self.act_on_all());
        if merged.is_err() || folded.is_err() {
            self.refused.keep(&[]);
        }
        errors.extend([merged, adopted, retired, folded].into_iter().filter_map(Result::err));
        // Slots before names before sandboxes: what still has counters still has a name.
        if let Some(error) = errors.first() {
            warn!("slots of the edge table stay taken until the next scrape: {error}");
            return;
        }
        debug!(
            slots = retirement.slots.len(),
            merged = retirement.goes_on.merge.len(),
            adopted = retirement.goes_on.adopt.len(),
            sandboxes = retirement.sandboxes.len(),
            "gave back what ended"
        );
        let (counting, peers) = (self.table.cgroups().collect(), self.table.loopback_peers().collect());
        let (sandboxes, cgroups) = retirement.settled(&counting, &peers);
        let mut names = self.names.lock();
        cgroups.iter().for_each(|cgroup| names.forget(*cgroup));
        drop(names);
        self.discovery.release(sandboxes);
    }
}

impl Drop for Housekeeping {
    fn drop(&mut self) {
        // What waits then is found again by the next agent. The thread holds what it works on, so it is not waited for.
        let _ = self.sender.send(Task::Stop);
        drop(self.thread.take());
    }
}
