//! Removes what runs that were killed have left: processes, cgroups, mounts.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use crate::cgroup::{self, Hierarchy};
use crate::cri_node;
use crate::owner::Owner;

/// Where runs write down the mounts they make, a file for each run.
pub const STATE: &str = "/run/observer-lab";

/// What a sweep removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Cgroup directories.
    pub cgroups: usize,
    /// Container nodes.
    pub nodes: usize,
    /// Mounts: private bpffs mounts, namespace names.
    pub mounts: usize,
}

/// Removes everything that lab runs made which no longer live. What a living run made stays.
pub fn sweep() -> Result<Swept> {
    // First: what runs in cgroups keeps them.
    let mut swept = Swept { nodes: cri_node::leftovers::sweep_leftovers()?, ..Swept::default() };
    for hierarchy in cgroup::detect()? {
        swept.cgroups += sweep_below(&hierarchy, &hierarchy.mount)?;
        cgroup::restore_root(&hierarchy);
    }
    for file in state_files() {
        let owner = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if owner.is_some_and(Owner::is_alive) {
            continue;
        }
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("reading the state file {}", file.display()))?;
        for mount in text.lines() {
            swept.mounts += usize::from(undo_mount(Path::new(mount)));
        }
        std::fs::remove_file(&file).with_context(|| format!("removing the state file {}", file.display()))?;
    }
    // Fails while another run has its file there, which is right.
    let _ = std::fs::remove_dir(STATE);
    Ok(swept)
}

/// Held while the state file is read and written again.
static STATE_FILE: Mutex<()> = Mutex::new(());

/// Writes down that this process made a mount, so that a sweep can undo it.
pub(crate) fn remember_mount(mount: &Path) -> Result<()> {
    let _held = STATE_FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut mounts = remembered();
    mounts.push(mount.to_owned());
    write_state(&mounts)
}

/// Undoes a mount of this process and forgets it.
pub(crate) fn forget_mount(mount: &Path) -> Result<()> {
    undo_mount(mount);
    let _held = STATE_FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut mounts = remembered();
    mounts.retain(|other| other != mount);
    write_state(&mounts)
}

fn undo_mount(mount: &Path) -> bool {
    let undone = unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok();
    // A mount point is an empty directory or an empty file of the lab's own.
    let _ = std::fs::remove_dir(mount).or_else(|_| std::fs::remove_file(mount));
    undone
}

fn own_state() -> PathBuf {
    Path::new(STATE).join(Owner::me().to_string())
}

fn remembered() -> Vec<PathBuf> {
    std::fs::read_to_string(own_state()).map(|text| text.lines().map(PathBuf::from).collect()).unwrap_or_default()
}

fn write_state(mounts: &[PathBuf]) -> Result<()> {
    let file = own_state();
    if mounts.is_empty() {
        let _ = std::fs::remove_file(&file);
        let _ = std::fs::remove_dir(STATE);
        return Ok(());
    }
    std::fs::create_dir_all(STATE).with_context(|| format!("making the directory {STATE}"))?;
    let text: String = mounts.iter().map(|mount| format!("{}\n", mount.display())).collect();
    std::fs::write(&file, text).with_context(|| format!("writing the state file {}", file.display()))
}

fn state_files() -> Vec<PathBuf> {
    std::fs::read_dir(STATE).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// Goes through a hierarchy, children first.
fn sweep_below(hierarchy: &Hierarchy, directory: &Path) -> Result<usize> {
    let mut removed = 0;
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(0) };
    for entry in entries.flatten() {
        let child = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        removed += sweep_below(hierarchy, &child)?;
        let orphaned = cgroup::owner_of(&child).is_some_and(|owner| !owner.is_alive());
        if !orphaned {
            continue;
        }
        let _alone = cgroup::alone(hierarchy)?;
        remove_of_runtime(&child)?;
        if !has_children(&child) {
            cgroup::remove_when_empty(&child)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes cgroups below an orphan that a container runtime made, which carry no mark. The lab's own have been looked
/// at before.
pub(crate) fn remove_of_runtime(orphan: &Path) -> Result<()> {
    let children = std::fs::read_dir(orphan).into_iter().flatten().flatten().map(|entry| entry.path());
    for child in children.filter(|child| child.is_dir() && cgroup::owner_of(child).is_none()) {
        remove_of_runtime(&child)?;
        cgroup::remove_when_empty(&child)?;
    }
    Ok(())
}

/// Whether a cgroup has child cgroups: those of a living run, by now.
fn has_children(directory: &Path) -> bool {
    std::fs::read_dir(directory)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())))
}
