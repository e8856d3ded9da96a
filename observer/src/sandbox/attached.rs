//! Where programs are attached, as both threads of the discovery know it.

use std::{collections::HashMap, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Instant};

use tracing::debug;

use super::{model::AttachPoint, scan::Sighting};
use crate::identity::Snapshot;

/// What follows from the coming and going of sandboxes.
pub trait SandboxHooks: Send {
    /// A sandbox is new since `seen`: attach to it now. Called once for each cgroup, again at each rescan after an error.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being attached; logged and counted by the implementor.
    fn attach(&mut self, point: &AttachPoint, seen: Instant) -> anyhow::Result<()>;

    /// A container's cgroup was just made. Nothing follows from it unless the implementor says so.
    fn sighted(&mut self, _container: &Sighting) {}

    /// The cgroup at this path below the root of the tree was just removed. Nothing follows from it unless the
    /// implementor says so.
    fn removed(&mut self, _path: &str) {}

    /// A sandbox has gone.
    fn detach(&mut self, point: &AttachPoint);

    /// The sandboxes as they are now. Comes after the attaching of all of them.
    fn snapshot(&mut self, snapshot: &Arc<Snapshot>);
}

struct Point {
    at: AttachPoint,
    since: Instant,
    /// False after an error.
    done: bool,
}

/// The hooks, and what was asked of them.
pub struct Attached {
    hooks: Box<dyn SandboxHooks>,
    /// By cgroup id.
    points: HashMap<u64, Point>,
}

impl Attached {
    /// Nothing is attached yet.
    pub fn new(hooks: Box<dyn SandboxHooks>) -> Self {
        Self { hooks, points: HashMap::new() }
    }

    /// Attaches to a directory that has just been seen. One that has gone meanwhile is nobody's loss.
    pub fn attach_directory(&mut self, path: &Path, seen: Instant) {
        if let Ok(metadata) = std::fs::metadata(path) {
            self.attach(AttachPoint { cgroup_id: metadata.ino(), path: path.to_owned() }, seen);
        }
    }

    fn attach(&mut self, point: AttachPoint, seen: Instant) {
        if self.points.get(&point.cgroup_id).is_some_and(|known| known.done) {
            return;
        }
        let done = self.hooks.attach(&point, seen);
        if let Err(error) = &done {
            debug!("attaching to {}: {error:#}", point.path.display());
        }
        self.points.insert(point.cgroup_id, Point { at: point, since: Instant::now(), done: done.is_ok() });
    }

    /// Attaches where it should be and is not, detaches where it is and should not be. What was attached after the
    /// scan began that `wanted` comes from stays: the next scan knows it. `retry` attaches again where it failed before.
    pub fn settle(&mut self, wanted: &[AttachPoint], began: Instant, retry: bool) {
        let gone: Vec<u64> = self
            .points
            .iter()
            .filter(|(id, point)| point.since < began && !wanted.iter().any(|wanted| wanted.cgroup_id == **id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(point) = self.points.remove(&id) {
                self.hooks.detach(&point.at);
            }
        }
        for point in wanted {
            if retry || !self.points.contains_key(&point.cgroup_id) {
                self.attach(point.clone(), began);
            }
        }
    }

    /// Hands on that a container's cgroup was made.
    pub fn sighted(&mut self, container: &Sighting) {
        self.hooks.sighted(container);
    }

    /// Hands on that a cgroup was removed.
    pub fn removed(&mut self, path: &str) {
        self.hooks.removed(path);
    }

    /// Hands a new snapshot on.
    pub fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        self.hooks.snapshot(snapshot);
    }
}
