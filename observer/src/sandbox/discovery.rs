//! Following the cgroup tree, with two threads. One waits for new cgroups and attaches at once ([`Attacher`]). The other
//! looks at everything a moment later and tells who is there.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, eventfd};
use tracing::warn;

use super::{
    attached::{Attached, SandboxHooks},
    attacher::{Attacher, Event, Order, Outcome},
    model::SandboxKey,
    scan::Sighting,
    schedule::Schedule,
    table::SandboxTable,
};
use crate::identity::Snapshot;

/// How long the attaching thread may take for one order before the snapshot is published without waiting for it.
const ORDER_PATIENCE: Duration = Duration::from_secs(5);
/// How often one scan looks again because directories were new.
const LOOKS: usize = 8;

/// How often it is asked whether names have changed that nobody tells of: one call of stat(2), where a scan is thousands.
const NAMES: Duration = Duration::from_secs(5);

/// How discovery runs.
#[derive(Debug, Clone, Copy)]
pub struct DiscoveryOptions {
    /// Time between scans when nothing happens; repairs what an event missed.
    pub rescan: Duration,
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self { rescan: Duration::from_secs(60) }
    }
}

/// What the scanning thread is told.
enum Message {
    /// Something changed in the tree.
    Event(Event),
    /// Look now, and say when it is published.
    Refresh(SyncSender<()>),
    /// These are gone and were scraped for the last time.
    Release(Vec<SandboxKey>),
    /// End.
    Stop,
}

/// A running discovery. It ends when this is dropped.
#[derive(Debug)]
pub struct Discovery {
    messages: Sender<Message>,
    threads: Vec<JoinHandle<()>>,
}

impl Discovery {
    /// Starts both threads. Every snapshot is published in `snapshots` and told to `hooks`, which only the attaching
    /// thread ever calls.
    ///
    /// # Errors
    ///
    /// When inotify, the eventfd or a thread cannot be made.
    pub fn start(
        table: SandboxTable,
        options: DiscoveryOptions,
        hooks: Box<dyn SandboxHooks>,
        snapshots: Arc<ArcSwap<Snapshot>>,
    ) -> io::Result<Self> {
        let (messages, inbox) = channel();
        let (orders, order_inbox) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let events = messages.clone();
        let attacher = Attacher::new(
            (table.root().to_owned(), table.attaches_at_once()),
            Attached::new(hooks),
            Box::new(move |event| events.send(Message::Event(event)).is_ok()),
            order_inbox,
            Arc::clone(&wake),
        )?;
        let scanner =
            Scanner { table, snapshots, inbox, orders: Some(orders), wake, schedule: Schedule::new(options.rescan) };
        // The scanner first: without it, dropping its end of the orders ends an attacher that could not be told.
        let scanner = std::thread::Builder::new().name("discovery".into()).spawn(move || scanner.run())?;
        let attacher = std::thread::Builder::new().name("attach".into()).spawn(move || attacher.run());
        let mut discovery = Self { messages, threads: vec![scanner] };
        discovery.threads.push(attacher?);
        Ok(discovery)
    }

    /// Asks for a scan now and waits until its snapshot is published, but not longer than `timeout`. Says whether it
    /// was.
    #[must_use]
    pub fn refresh(&self, timeout: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        self.messages.send(Message::Refresh(done)).is_ok() && wait.recv_timeout(timeout).is_ok()
    }

    /// A call for those who know that names have changed: a scan follows soon.
    pub fn on_names(&self) -> impl Fn() + Send + Sync + use<> {
        let messages = self.messages.clone();
        // A discovery that has ended wants no names.
        move || drop(messages.send(Message::Event(Event { seen: Vec::new(), missed: false })))
    }

    /// Lets go of sandboxes that are gone and were scraped for the last time.
    pub fn release(&self, keys: Vec<SandboxKey>) {
        if keys.is_empty() {
            return;
        }
        // A discovery that has ended knows no sandboxes.
        let _ = self.messages.send(Message::Release(keys));
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The thread that looks at everything.
struct Scanner {
    table: SandboxTable,
    snapshots: Arc<ArcSwap<Snapshot>>,
    inbox: Receiver<Message>,
    /// Taken at the end, which ends the attaching thread.
    orders: Option<Sender<Order>>,
    wake: Arc<OwnedFd>,
    schedule: Schedule,
}

impl Scanner {
    fn run(mut self) {
        self.work();
        self.orders = None;
        self.wake();
    }

    fn work(&mut self) {
        let mut seen = self.scan(Vec::new(), true);
        loop {
            let mut waiting = Vec::new();
            let mut now = false;
            let mut wait = self.schedule.due().saturating_duration_since(Instant::now()).min(NAMES);
            // Everything that has arrived, so that one scan answers it all.
            loop {
                match self.inbox.recv_timeout(wait) {
                    Ok(Message::Event(mut event)) => {
                        seen.append(&mut event.seen);
                        now |= event.missed;
                        self.schedule.changed(Instant::now());
                    }
                    Ok(Message::Refresh(done)) => waiting.push(done),
                    Ok(Message::Release(keys)) => {
                        self.table.release(&keys);
                        now = true;
                    }
                    Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => break,
                }
                wait = Duration::ZERO;
            }
            now |= self.table.names_have_changed();
            let due = Instant::now() >= self.schedule.due();
            if due || now || !waiting.is_empty() {
                let retry = self.schedule.is_periodic(Instant::now());
                seen = self.scan(std::mem::take(&mut seen), retry);
            }
            for done in waiting {
                let _ = done.try_send(());
            }
        }
    }

    /// Looks at everything. `retry` attaches again where it failed before. Gives `seen` back when nothing could be seen.
    fn scan(&mut self, seen: Vec<Sighting>, retry: bool) -> Vec<Sighting> {
        let mut left = seen;
        let mut published = None;
        for look in 1..=LOOKS {
            let outcome = match self.table.scan_after(&left) {
                Ok(outcome) => Arc::new(outcome),
                Err(error) => {
                    warn!("cannot read the cgroup tree {}: {error}", self.table.root().display());
                    break;
                }
            };
            left.clear();
            // Directories that are new to the watcher may have got children since they were looked at.
            let complete = self.order(&outcome, retry);
            published = Some(outcome);
            if complete || look == LOOKS {
                break;
            }
        }
        let incomplete = published.as_ref().is_some_and(|outcome| outcome.incomplete);
        self.schedule.scanned(Instant::now(), incomplete);
        if let Some(outcome) = published {
            self.snapshots.store(Arc::clone(&outcome.snapshot));
        }
        left
    }

    /// False when somebody has to look again.
    fn order(&self, outcome: &Arc<Outcome>, retry: bool) -> bool {
        let (done, wait) = sync_channel(1);
        let order = Order { outcome: Arc::clone(outcome), retry, done };
        if self.orders.as_ref().is_none_or(|orders| orders.send(order).is_err()) {
            return true;
        }
        self.wake();
        wait.recv_timeout(ORDER_PATIENCE).unwrap_or(true)
    }

    fn wake(&self) {
        // It fails only when nobody has read it 2^64 times.
        let _ = rustix::io::write(self.wake.as_fd(), &1u64.to_ne_bytes());
    }
}
