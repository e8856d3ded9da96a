//! Where programs are attached, as both threads of the discovery know it.

use std::{collections::HashMap, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use tracing::debug;

use super::model::AttachPoint;
use crate::identity::Snapshot;

/// What follows from the coming and going of sandboxes.
pub trait SandboxHooks: Send {
    /// A sandbox is new: attach to it now. Called once for each cgroup, again at each rescan after an error.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being attached; logged and counted by the implementor.
    fn attach(&mut self, point: &AttachPoint) -> anyhow::Result<()>;

    /// A sandbox has gone.
    fn detach(&mut self, point: &AttachPoint);

    /// The sandboxes as they are now. Comes after the attaching of all of them.
    fn snapshot(&mut self, snapshot: &Arc<Snapshot>);
}

/// The hooks, and what was asked of them.
pub struct Attached {
    hooks: Box<dyn SandboxHooks>,
    /// By cgroup id; false after an error.
    points: HashMap<u64, (AttachPoint, bool)>,
}

impl Attached {
    /// Nothing is attached yet.
    pub fn new(hooks: Box<dyn SandboxHooks>) -> Self {
        Self { hooks, points: HashMap::new() }
    }

    /// Attaches to a directory that has just been seen. One that has gone meanwhile is nobody's loss.
    pub fn attach_directory(&mut self, path: &Path) {
        if let Ok(metadata) = std::fs::metadata(path) {
            self.attach(AttachPoint { cgroup_id: metadata.ino(), path: path.to_owned() });
        }
    }

    fn attach(&mut self, point: AttachPoint) {
        if self.points.get(&point.cgroup_id).is_some_and(|(_, done)| *done) {
            return;
        }
        let done = self.hooks.attach(&point);
        if let Err(error) = &done {
            debug!("attaching to {}: {error:#}", point.path.display());
        }
        self.points.insert(point.cgroup_id, (point, done.is_ok()));
    }

    /// Attaches where it should be and is not, detaches where it is and should not be. What was attached after the
    /// scan that `wanted` comes from stays: the next scan knows it. `retry` attaches again where it failed before.
    pub fn settle(&mut self, wanted: &[AttachPoint], retry: bool) {
        let gone: Vec<u64> = self
            .points
            .iter()
            .filter(|(id, (point, _))| !wanted.iter().any(|wanted| wanted.cgroup_id == **id) && !is_new(point, wanted))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some((point, _)) = self.points.remove(&id) {
                self.hooks.detach(&point);
            }
        }
        for point in wanted {
            if retry || !self.points.contains_key(&point.cgroup_id) {
                self.attach(point.clone());
            }
        }
    }

    /// Hands a new snapshot on.
    pub fn snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        self.hooks.snapshot(snapshot);
    }
}

/// Whether a directory is there that a scan did not see: ids of cgroups only grow, so one that is larger than all
/// that the scan saw is newer.
fn is_new(point: &AttachPoint, seen: &[AttachPoint]) -> bool {
    let newest = seen.iter().map(|point| point.cgroup_id).max().unwrap_or(0);
    point.cgroup_id > newest && point.path.exists()
}
