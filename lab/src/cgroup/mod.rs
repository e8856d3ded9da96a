//! Cgroups in every mounted hierarchy, as a container runtime makes them.

mod controllers;
mod hierarchy;
mod limits;
mod mark;
mod memory;
mod programs;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub(crate) use controllers::restore_root;
pub use hierarchy::{Hierarchy, Version, detect, parse};
pub(crate) use mark::owner_of;
pub(crate) use programs::{EGRESS, INGRESS, attach_point, effective_programs};

use rustix::fs::{FlockOperation, flock};

use crate::process;

/// How long a cgroup whose processes were killed may take to become empty.
const DYING: Duration = Duration::from_secs(5);

/// A cgroup that this value made, in every hierarchy; removed with it.
#[derive(Debug)]
pub struct Cgroup {
    hierarchies: Arc<[Hierarchy]>,
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup `path` (from the root of each hierarchy), and the parents that are missing.
    pub fn create(hierarchies: &Arc<[Hierarchy]>, path: &Path) -> Result<Self> {
        ensure!(
            path.is_absolute() && path.components().skip(1).all(|part| matches!(part, Component::Normal(_))),
            "{} is no absolute cgroup path",
            path.display()
        );
        let made = Self { hierarchies: Arc::clone(hierarchies), path: path.to_owned() };
        for hierarchy in hierarchies.iter() {
            // If one fails, dropping `made` removes what is there.
            create_in(hierarchy, path)?;
        }
        Ok(made)
    }

    /// The path from the root of each hierarchy, as in `/proc/<pid>/cgroup`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directories, one for each hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchies.iter().map(|hierarchy| directory(hierarchy, &self.path))
    }

    /// The directory in the v2 hierarchy, when there is one.
    pub fn unified(&self) -> Option<PathBuf> {
        self.hierarchies
            .iter()
            .find(|hierarchy| hierarchy.version == Version::V2)
            .map(|hierarchy| directory(hierarchy, &self.path))
    }

    /// The processes in the cgroup, in whatever hierarchy.
    pub fn processes(&self) -> BTreeSet<u32> {
        self.directories().flat_map(|directory| processes_in(&directory)).collect()
    }

    /// Kills every process in the cgroup.
    pub fn kill(&self) -> Result<()> {
        self.processes().into_iter().try_for_each(process::kill)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for hierarchy in self.hierarchies.iter() {
            if let Err(error) = remove_in(hierarchy, &self.path) {
                eprintln!("observer-lab: {error:#}");
            }
        }
    }
}

/// Moves the calling process into a cgroup, in every hierarchy.
pub fn enter(hierarchies: &[Hierarchy], path: &Path) -> Result<()> {
    for hierarchy in hierarchies {
        let file = directory(hierarchy, path).join("cgroup.procs");
        std::fs::write(&file, "0").with_context(|| format!("joining {}", file.display()))?;
    }
    Ok(())
}

/// The cgroup's directory in a hierarchy.
pub(crate) fn directory(hierarchy: &Hierarchy, path: &Path) -> PathBuf {
    hierarchy.mount.join(path.strip_prefix("/").unwrap_or(path))
}

/// The processes in a cgroup directory; none when it is gone.
pub(crate) fn processes_in(directory: &Path) -> Vec<u32> {
    std::fs::read_to_string(directory.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default()
}

fn create_in(hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    let _alone = alone(hierarchy)?;
    let mut parent = hierarchy.mount.clone();
    let parts: Vec<_> = path.components().skip(1).collect();
    for (depth, part) in parts.iter().enumerate() {
        let directory = parent.join(part);
        match std::fs::create_dir(&directory) {
            Ok(()) => {
                mark::set(&directory)?;
                controllers::prepare(hierarchy, &parent, &directory)?;
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists && depth + 1 < parts.len() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("making the cgroup {} (needs root)", directory.display()));
            }
        }
        parent = directory;
    }
    Ok(())
}

/// Waits until no other run changes the parents that runs share: one must not remove a cgroup in which
/// another is about to make its own, nor use one that is not prepared yet.
pub(crate) fn alone(hierarchy: &Hierarchy) -> Result<File> {
    let root = &hierarchy.mount;
    let lock = File::open(root).with_context(|| format!("opening {}", root.display()))?;
    flock(&lock, FlockOperation::LockExclusive).with_context(|| format!("locking {}", root.display()))?;
    Ok(lock)
}

/// Cgroups that the lab made and that are there, and those below them, in every hierarchy: their directories, with the number
/// of their processes.
pub(crate) fn left() -> Vec<(PathBuf, usize)> {
    fn walk(directory: &Path, below: bool, found: &mut Vec<(PathBuf, usize)>) {
        let directories = std::fs::read_dir(directory).into_iter().flatten().flatten();
        for directory in directories.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let directory = directory.path();
            if below || owner_of(&directory).is_some() {
                found.push((directory.clone(), processes_in(&directory).len()));
                walk(&directory, true, found);
            }
        }
    }
    let mut found = Vec::new();
    for hierarchy in detect().unwrap_or_default() {
        walk(&hierarchy.mount, false, &mut found);
    }
    found
}

/// Removes a cgroup and then its parents as far up as the lab made them and they are empty.
pub(crate) fn remove_in(hierarchy: &Hierarchy, path: &Path) -> Result<()> {
    let target = directory(hierarchy, path);
    if owner_of(&target).is_some() {
        remove_when_empty(&target)?;
    }
    let _alone = alone(hierarchy)?;
    let mut parent = target.parent();
    while let Some(directory) = parent.filter(|directory| *directory != hierarchy.mount) {
        if owner_of(directory).is_none() || std::fs::remove_dir(directory).is_err() {
            break;
        }
        parent = directory.parent();
    }
    restore_root(hierarchy);
    Ok(())
}

/// Kills what runs in a cgroup and removes its directory.
pub(crate) fn remove_when_empty(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + DYING;
    loop {
        match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                processes_in(directory).into_iter().try_for_each(process::kill)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "removing the cgroup {} (processes in it: {:?})",
                        directory.display(),
                        processes_in(directory)
                    )
                });
            }
        }
    }
}
