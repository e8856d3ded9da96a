//! The thread that waits for new cgroups and attaches at once. It must win against the pod's first packet, so the hooks
//! are its own (no lock to wait for) and it does nothing that takes long.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError},
    },
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};
use tracing::{debug, warn};

use super::{
    attached::Attached,
    classify::{Kind, attach_root, classify},
    model::AttachPoint,
    scan::{self, Parent, Sighting},
    watch::{Change, Watcher},
};
use crate::identity::Snapshot;

/// What one scan came to.
#[derive(Debug)]
pub struct Outcome {
    /// When the scan began.
    pub began: Instant,
    /// All sandboxes.
    pub snapshot: Arc<Snapshot>,
    /// Where programs should be attached.
    pub attach: Vec<AttachPoint>,
    /// Directories in which pods, containers or their own cgroups can appear.
    pub parents: Vec<Parent>,
    /// Something that was found is still being made: a container without a process, a pod without an address.
    pub incomplete: bool,
}

/// What the thread tells: something changed in the tree.
pub struct Event {
    /// These containers were made.
    pub seen: Vec<Sighting>,
    /// Something else happened that was not seen: look at once.
    pub missed: bool,
}

/// What the thread is asked to do between events. It ends when nobody can ask any more.
pub struct Order {
    /// What a scan came to.
    pub outcome: Arc<Outcome>,
    /// Attach again where it failed before.
    pub retry: bool,
    /// Told when all is done: true, or false when directories were new to the watcher, so that somebody has to look
    /// again first.
    pub done: SyncSender<bool>,
}

/// Who is told of events; false when nobody listens any more.
pub type Listener = Box<dyn Fn(Event) -> bool + Send>;

/// The thread's state.
pub struct Attacher {
    root: PathBuf,
    /// Attach as soon as a directory is seen. Otherwise only where an order says so.
    at_once: bool,
    attached: Attached,
    watcher: Watcher,
    watch_failed: bool,
    events: Listener,
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
}

impl Attacher {
    /// A thread's state before it starts. `wake` becomes readable when there is an order.
    pub fn new(
        (root, at_once): (PathBuf, bool),
        attached: Attached,
        events: Listener,
        orders: Receiver<Order>,
        wake: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let watcher = Watcher::new()?;
        Ok(Self { root, at_once, attached, watcher, watch_failed: false, events, orders, wake })
    }

    /// Runs until nobody can ask or listen any more.
    pub fn run(mut self) {
        prefer_this_thread();
        while self.work().is_some() {
            let watcher = self.watcher.as_fd();
            let wake = self.wake.as_fd();
            let mut sources = [PollFd::new(&watcher, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
            let _ = poll(&mut sources, None);
            // Before the orders are looked at: what is announced later wakes again.
            let _ = rustix::io::read(wake, &mut [0; 8]);
        }
    }

    /// Does all there is to do: events first, then an order, then events again. `None` at the end of all.
    fn work(&mut self) -> Option<()> {
        loop {
            let began = Instant::now();
            let (changes, missed) = self.watcher.changes().unwrap_or_else(|error| {
                warn!("cannot read cgroup events: {error}; looking at everything instead");
                // An error that stays must not take a CPU, least of all at this priority.
                std::thread::sleep(Duration::from_millis(100));
                (Vec::new(), true)
            });
            if missed || !changes.is_empty() {
                let seen = self.made(changes.iter().filter(|change| change.made), began);
                let containers = seen.iter().filter(|seen| matches!(classify(&seen.path), Kind::Container { .. }));
                containers.for_each(|container| self.attached.sighted(container));
                for change in changes.iter().filter(|change| !change.made) {
                    if let Some(below) = change.path.strip_prefix(&self.root).ok().and_then(Path::to_str) {
                        self.attached.removed(&format!("/{below}"));
                    }
                }
                if !(self.events)(Event { seen, missed }) {
                    return None;
                }
                if !changes.is_empty() {
                    continue;
                }
            }
            match self.orders.try_recv() {
                Ok(order) => self.obey(&order),
                Err(TryRecvError::Empty) => return Some(()),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
    }

    /// Directories were made: attaching to all of them comes before everything else.
    fn made<'a>(&mut self, changes: impl Iterator<Item = &'a Change>, began: Instant) -> Vec<Sighting> {
        let mut seen = Vec::new();
        let mut parents = Vec::new();
        for change in changes {
            let Some(below) = change.path.strip_prefix(&self.root).ok().and_then(Path::to_str) else { continue };
            let path = format!("/{below}");
            // A container's pod was attached when it was made, unless its directory is a leftover that is used again.
            self.attach(&path, began);
            match classify(&path) {
                Kind::Container { .. } => seen.extend(Sighting::of(&self.root, &path)),
                Kind::Nested { .. } => self.made_inside(&path, scan::MAX_DEPTH, &mut seen),
                Kind::Helper => {}
                Kind::Pod { .. } | Kind::Other => parents.push(path),
            }
        }
        for path in parents {
            self.watch(&scan::directory(&self.root, &path), None);
            seen.append(&mut self.look_into(&path, began));
        }
        seen
    }

    /// A cgroup below a container's was made: it is watched, and so is what was made in it since.
    fn made_inside(&mut self, path: &str, depth: usize, seen: &mut Vec<Sighting>) {
        let Some(sighting) = Sighting::of(&self.root, path) else { return };
        let directory = scan::directory(&self.root, path);
        self.watch(&directory, Some(sighting.inode));
        seen.push(sighting);
        for below in scan::directories(&directory) {
            let below = format!("{path}/{below}");
            if depth > 0 && matches!(classify(&below), Kind::Nested { .. }) {
                self.made_inside(&below, depth - 1, seen);
            }
        }
    }

    /// Looks into a new directory that is watched now: what was made in it before made no event.
    fn look_into(&mut self, path: &str, began: Instant) -> Vec<Sighting> {
        let Ok(found) = scan::scan(&self.root, path) else { return Vec::new() };
        let pods = found.pods.iter().map(|pod| &pod.path);
        for path in pods.chain(found.containers.iter().map(|container| &container.path)) {
            self.attach(path, began);
        }
        let mut seen: Vec<Sighting> = found.containers.iter().map(Sighting::from).collect();
        for parent in found.parents {
            if self.watch(&parent.path, Some(parent.inode))
                && let Some(below) = parent.path.strip_prefix(&self.root).ok().and_then(Path::to_str)
            {
                seen.append(&mut self.look_into(&format!("/{below}"), began));
            }
        }
        seen
    }

    fn attach(&mut self, path: &str, began: Instant) {
        if let (true, Some(root)) = (self.at_once, attach_root(path)) {
            self.attached.attach_directory(&scan::directory(&self.root, root), began);
        }
    }

    /// True when the directory was not watched before.
    fn watch(&mut self, path: &Path, inode: Option<u64>) -> bool {
        match self.watcher.add(path, inode) {
            Ok(added) => {
                self.watch_failed &= !added;
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

    fn obey(&mut self, order: &Order) {
        let outcome = &order.outcome;
        let new = outcome.parents.iter().filter(|parent| self.watch(&parent.path, Some(parent.inode))).count();
        if new == 0 {
            self.attached.settle(&outcome.attach, outcome.began, order.retry);
            self.attached.snapshot(&outcome.snapshot);
        }
        // Who asked may have stopped waiting.
        let _ = order.done.try_send(new == 0);
    }
}

/// Attaching before a pod's first packet is a race with the runtime, and so is reading a container's files before they
/// go. Real-time priority lets the thread that calls this run as soon as it is woken, on a busy node too; it works for
/// microseconds at a time. Without the permission it goes without.
pub fn prefer_this_thread() {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: sched_setscheduler(2) reads one live struct; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0 {
        debug!("a thread runs without real-time priority: {}", io::Error::last_os_error());
    }
}
