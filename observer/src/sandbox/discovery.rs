//! Following the cgroup tree, with two threads. One waits for new cgroups and attaches at once: it must win against
//! the pod's first packet, so it does nothing that takes long. The other looks at everything a moment later and tells
//! who is there.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tracing::{debug, warn};

use super::{
    attached::{Attached, SandboxHooks},
    classify::{Kind, classify},
    model::SandboxKey,
    scan,
    table::{Outcome, SandboxTable},
    watch::{Change, WatchSet, Watcher},
};
use crate::identity::Snapshot;

/// A scan waits until nothing has happened for so long,
const QUIET: Duration = Duration::from_millis(20);
/// but not longer than this after the first event.
const LATEST: Duration = Duration::from_millis(200);

/// How discovery runs.
#[derive(Debug, Clone, Copy)]
pub struct DiscoveryOptions {
    /// Time between scans when nothing happens; repairs what an event missed.
    pub rescan: Duration,
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self { rescan: Duration::from_secs(5) }
    }
}

/// What the scanning thread is told.
enum Message {
    /// Something changed in the tree.
    Changed,
    /// Something was missed: look at once.
    Missed,
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
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Discovery {
    /// Starts both threads. Every snapshot is published in `snapshots` and told to `hooks`.
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
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stop = Arc::new(AtomicBool::new(false));
        let watcher = Watcher::new()?;
        let attached = Arc::new(Mutex::new(Attached::new(hooks)));
        let tree = Tree {
            root: table.root().to_owned(),
            has_v2: table.has_v2(),
            attached: Arc::clone(&attached),
            watches: watcher.set(),
            watch_failed: false,
        };
        let first = First {
            tree: tree.clone(),
            watcher,
            messages: messages.clone(),
            wake: Arc::clone(&wake),
            stop: Arc::clone(&stop),
        };
        let second = Second { tree, table, options, snapshots, inbox };
        let threads = vec![
            std::thread::Builder::new().name("attach".into()).spawn(move || first.run())?,
            std::thread::Builder::new().name("discovery".into()).spawn(move || second.run())?,
        ];
        Ok(Self { messages, wake, stop, threads })
    }

    /// Asks for a scan now and waits until its snapshot is published, but not longer than `timeout`. Says whether it
    /// was.
    #[must_use]
    pub fn refresh(&self, timeout: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        self.messages.send(Message::Refresh(done)).is_ok() && wait.recv_timeout(timeout).is_ok()
    }

    /// Lets go of sandboxes that are gone and were scraped for the last time.
    pub fn release(&self, keys: Vec<SandboxKey>) {
        // A discovery that has ended knows no sandboxes.
        let _ = self.messages.send(Message::Release(keys));
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.messages.send(Message::Stop);
        let _ = rustix::io::write(self.wake.as_fd(), &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What both threads do to the tree.
#[derive(Clone)]
struct Tree {
    root: PathBuf,
    has_v2: bool,
    attached: Arc<Mutex<Attached>>,
    watches: WatchSet,
    watch_failed: bool,
}

impl Tree {
    fn attach(&self, path: &Path, seen: Instant) {
        if self.has_v2 {
            lock(&self.attached).attach_directory(path, seen);
        }
    }

    fn attach_cgroup(&self, path: &str, seen: Instant) {
        self.attach(&scan::directory(&self.root, path), seen);
    }

    /// True when the directory was not watched before.
    fn watch(&mut self, path: &Path) -> bool {
        match self.watches.add(path) {
            Ok(added) => {
                self.watch_failed = false;
                added
            }
            Err(error) => {
                if !std::mem::replace(&mut self.watch_failed, true) {
                    warn!(
                        "cannot watch {}: {error}; new pods are seen late now, and their first packets may be \
                         missed: raise fs.inotify.max_user_watches on the node",
                        path.display()
                    );
                }
                false
            }
        }
    }
}

/// The thread that attaches.
struct First {
    tree: Tree,
    watcher: Watcher,
    messages: Sender<Message>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
}

impl First {
    fn run(mut self) {
        prefer_this_thread();
        while !self.stop.load(Relaxed) {
            self.wait();
            let seen = Instant::now();
            let (changes, missed) = self.watcher.changes().unwrap_or_else(|error| {
                warn!("cannot read cgroup events: {error}; looking at everything instead");
                (Vec::new(), true)
            });
            for change in changes.iter().filter(|change| change.made) {
                self.made(change, seen);
            }
            let message = if missed { Message::Missed } else { Message::Changed };
            if (missed || !changes.is_empty()) && self.messages.send(message).is_err() {
                return;
            }
        }
    }

    fn wait(&self) {
        let watcher = self.watcher.as_fd();
        let wake = self.wake.as_fd();
        let mut sources = [PollFd::new(&watcher, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
        let _ = poll(&mut sources, None);
    }

    /// A directory was made: attaching comes before everything else.
    fn made(&mut self, change: &Change, seen: Instant) {
        let Some(below) = change.path.strip_prefix(&self.tree.root).ok().and_then(Path::to_str) else { return };
        let path = format!("/{below}");
        match classify(&path) {
            Kind::Pod { .. } | Kind::Container { pod: None, .. } => self.tree.attach(&change.path, seen),
            // Its pod was attached when it was made, unless its directory is a leftover that is used again.
            Kind::Container { pod: Some(pod), .. } => return self.tree.attach_cgroup(&pod, seen),
            Kind::Nested { .. } | Kind::Helper => return,
            Kind::Other => {}
        }
        // What was made in it before it was watched made no event: look, whichever thread was the one to watch it.
        self.tree.watch(&change.path);
        if let Ok(found) = scan::scan(&self.tree.root, &path) {
            for pod in &found.pods {
                self.tree.attach_cgroup(&pod.path, seen);
            }
            for container in found.containers.iter().filter(|container| container.pod.is_none()) {
                self.tree.attach_cgroup(&container.path, seen);
            }
            for parent in &found.parents {
                self.tree.watch(parent);
            }
        }
    }
}

/// The thread that looks at everything.
struct Second {
    tree: Tree,
    table: SandboxTable,
    options: DiscoveryOptions,
    snapshots: Arc<ArcSwap<Snapshot>>,
    inbox: Receiver<Message>,
}

impl Second {
    fn run(mut self) {
        self.scan(true);
        let mut next_rescan = Instant::now() + self.options.rescan;
        // The first and the last change since the last scan.
        let mut changes: Option<(Instant, Instant)> = None;
        loop {
            let due = changes.map_or(next_rescan, |(first, last)| (last + QUIET).min(first + LATEST).min(next_rescan));
            let mut waiting = None;
            let mut missed = false;
            match self.inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Changed) => {
                    let now = Instant::now();
                    changes = Some((changes.map_or(now, |(first, _)| first), now));
                }
                Ok(Message::Missed) => missed = true,
                Ok(Message::Refresh(done)) => waiting = Some(done),
                Ok(Message::Release(keys)) => {
                    self.table.release(&keys);
                    missed = true;
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            let rescan = now >= next_rescan;
            let due = changes.is_some_and(|(first, last)| now >= (last + QUIET).min(first + LATEST));
            if rescan || due || missed || waiting.is_some() {
                self.scan(rescan);
                changes = None;
                next_rescan = Instant::now() + self.options.rescan;
            }
            if let Some(done) = waiting {
                let _ = done.try_send(());
            }
        }
    }

    /// Looks at everything. `retry` attaches again where it failed before.
    fn scan(&mut self, retry: bool) {
        let Some(mut outcome) = self.look() else { return };
        // Directories that are new to the watcher may have got children since they were looked at.
        while outcome.parents.iter().filter(|path| self.tree.watch(path)).count() > 0 {
            let Some(again) = self.look() else { break };
            outcome = again;
        }
        let mut attached = lock(&self.tree.attached);
        attached.settle(&outcome.attach, outcome.began, retry);
        attached.snapshot(&outcome.snapshot);
        drop(attached);
        self.snapshots.store(outcome.snapshot);
    }

    fn look(&mut self) -> Option<Outcome> {
        self.table
            .scan()
            .inspect_err(|error| warn!("cannot read the cgroup tree {}: {error}", self.tree.root.display()))
            .ok()
    }
}

/// Attaching before a pod's first packet is a race with the runtime. Real-time priority lets this thread run as soon
/// as it is woken, on a busy node too; it works for microseconds at a time. Without the permission it goes without.
fn prefer_this_thread() {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: sched_setscheduler(2) reads one live struct; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0 {
        debug!("attaching runs without real-time priority: {}", io::Error::last_os_error());
    }
}

fn lock(attached: &Mutex<Attached>) -> MutexGuard<'_, Attached> {
    attached.lock().unwrap_or_else(PoisonError::into_inner)
}
