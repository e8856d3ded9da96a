//! Those who need to know which containers there are, beside the hooks that attach to them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tracing::warn;

use crate::{
    identity::Snapshot,
    resources::{EndingsWatch, RunQueue},
    sandbox::{AttachPoint, Container, ContainerKind, SandboxHooks, Sighting},
};

/// Follows the coming and going of containers. Called by the attaching thread: must be quick.
pub(super) trait Follower: Send {
    /// A container's cgroup was just made. Nothing follows from it unless the implementor says so.
    fn sighted(&mut self, _container: &Sighting) {}

    /// The cgroup at this path was just removed. As above.
    fn removed(&mut self, _path: &str) {}

    /// The sandboxes as they are now.
    fn snapshot(&mut self, snapshot: &Arc<Snapshot>);
}

/// Hooks, and those who follow.
pub(super) struct Followed {
    hooks: Box<dyn SandboxHooks>,
    followers: Vec<Box<dyn Follower>>,
}

impl Followed {
    pub(super) fn new(hooks: Box<dyn SandboxHooks>, followers: Vec<Box<dyn Follower>>) -> Self {
        Self { hooks, followers }
    }
}

impl SandboxHooks for Followed {
    fn attach(&mut self, point: &AttachPoint, seen: Instant) -> anyhow::Result<()> {
        self.hooks.attach(point, seen)
    }

    fn sighted(&mut self, container: &Sighting) {
        self.hooks.sighted(container);
        self.followers.iter_mut().for_each(|follower| follower.sighted(container));
    }

    fn removed(&mut self, path: &str) {
        self.hooks.removed(path);
        self.followers.iter_mut().for_each(|follower| follower.removed(path));
    }

    fn detach(&mut self, point: &AttachPoint) {
        self.hooks.detach(point);
    }

    fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        self.followers.iter_mut().for_each(|follower| follower.snapshot(snapshot));
        self.hooks.snapshot(snapshot);
    }
}

impl Follower for EndingsWatch {
    fn sighted(&mut self, container: &Sighting) {
        self.watch(container.inode, &container.path);
    }

    fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        let application = |container: &&Container| container.kind == ContainerKind::Application;
        let observed = snapshot.sandboxes().iter().flat_map(|sandbox| &sandbox.containers).filter(application);
        for container in observed.filter(|container| container.alive && container.cgroup_id != 0) {
            self.watch(container.cgroup_id, &container.cgroup);
        }
        // Pause containers and pods that are left out were sighted too.
        let all = snapshot.sandboxes().iter().chain(snapshot.others()).flat_map(|sandbox| &sandbox.containers);
        let listed: HashSet<u64> = all.map(|container| container.cgroup_id).collect();
        self.list(listed);
    }
}

impl Follower for Arc<Mutex<RunQueue>> {
    fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        if let Err(error) = self.lock().unwrap_or_else(PoisonError::into_inner).follow(snapshot) {
            warn!("run-queue waits of some containers are not counted: {error}");
        }
    }
}
