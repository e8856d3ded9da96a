//! What a new cgroup needs before a process can join it and be measured in it.

use std::path::Path;

use anyhow::{Context, Result};

use super::hierarchy::{Hierarchy, Version};
use super::mark;

/// The v2 controllers that a node's kubelet switches on.
const WANTED: [&str; 5] = ["cpu", "memory", "io", "pids", "cpuset"];

/// Prepares the new cgroup `directory` below `parent`.
pub(super) fn prepare(hierarchy: &Hierarchy, parent: &Path, directory: &Path) -> Result<()> {
    match hierarchy.version {
        Version::V1 if hierarchy.has("cpuset") => inherit_cpuset(parent, directory),
        Version::V1 => Ok(()),
        Version::V2 => delegate(hierarchy, parent),
    }
}

/// A v1 cpuset starts empty, and nothing can join it until it has processors and memory nodes.
fn inherit_cpuset(parent: &Path, directory: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from = parent.join(file);
        let to = directory.join(file);
        let value = std::fs::read_to_string(&from).with_context(|| format!("reading {}", from.display()))?;
        std::fs::write(&to, value.trim()).with_context(|| format!("writing {:?} to {}", value.trim(), to.display()))?;
    }
    Ok(())
}

/// Switches the controllers on for the children of a v2 cgroup: of the root, or of one the lab made.
///
/// Each is best effort: without it the cgroup lacks those files, as it does on a hybrid host. Not below one that has
/// processes itself: it would become the root of a threaded subtree, whose cgroups take no process
/// (Documentation/admin-guide/cgroup-v2.rst, "Threads").
fn delegate(hierarchy: &Hierarchy, parent: &Path) -> Result<()> {
    let at_root = parent == hierarchy.mount;
    if !at_root && mark::owner_of(parent).is_none() {
        return Ok(());
    }
    if !at_root && !words(parent, "cgroup.procs").is_empty() {
        return Ok(());
    }
    let here = words(parent, "cgroup.controllers");
    let control = parent.join("cgroup.subtree_control");
    let already = words(parent, "cgroup.subtree_control");
    let mut added = Vec::new();
    for controller in WANTED {
        let missing = here.iter().any(|name| name == controller) && !already.iter().any(|name| name == controller);
        if missing && std::fs::write(&control, format!("+{controller}")).is_ok() {
            added.push(controller);
        }
    }
    if at_root && !added.is_empty() {
        let before = mark::enabled(parent).unwrap_or_default();
        mark::set_enabled(parent, format!("{before} {}", added.join(" ")).trim())?;
    }
    Ok(())
}

/// Switches off at the root what the lab switched on, once nothing of the lab is left below it.
pub(crate) fn restore_root(hierarchy: &Hierarchy) {
    if hierarchy.version == Version::V1 {
        return;
    }
    let Some(enabled) = mark::enabled(&hierarchy.mount) else { return };
    let in_use = std::fs::read_dir(&hierarchy.mount)
        .is_ok_and(|entries| entries.flatten().any(|entry| mark::owner_of(&entry.path()).is_some()));
    if in_use {
        return;
    }
    mark::clear_enabled(&hierarchy.mount);
    for controller in enabled.split_whitespace() {
        // A cgroup made by somebody else may have come to need it: then it stays on.
        let _ = std::fs::write(hierarchy.mount.join("cgroup.subtree_control"), format!("-{controller}"));
    }
}

fn words(directory: &Path, file: &str) -> Vec<String> {
    std::fs::read_to_string(directory.join(file))
        .map(|text| text.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}
