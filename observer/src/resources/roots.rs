//! Where the cgroup hierarchies are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The mounted hierarchies as directories: pure v2 has `v2` alone, pure v1 has `v1` alone, a hybrid host both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupRoots {
    /// The cgroup v2 tree.
    pub v2: Option<PathBuf>,
    /// The v1 hierarchy of each controller (`cpu`, `cpuacct`, `memory`, `pids`, `blkio`); two controllers may share one.
    pub v1: BTreeMap<String, PathBuf>,
}

impl CgroupRoots {
    /// The v1 controllers that are read here.
    pub const V1_CONTROLLERS: [&'static str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

    /// A hierarchy that every container has a directory in, for what all of them have: v2 where there is one.
    #[must_use]
    pub(super) fn any(&self) -> Option<&Path> {
        let v1 = || ["pids", "memory", "cpuacct", "cpu"].iter().find_map(|c| self.v1.get(*c));
        self.v2.as_ref().or_else(v1).map(PathBuf::as_path)
    }
}
