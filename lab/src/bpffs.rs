//! A private bpffs, so that a test's pins touch nobody else's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};

use crate::{ids, sweep};

/// A mounted bpffs. Dropping it removes what is pinned there and unmounts it.
#[derive(Debug)]
pub struct BpfFs {
    path: PathBuf,
}

impl BpfFs {
    /// Mounts one at a new directory below the system's directory for temporary files.
    pub fn create() -> Result<Self> {
        let id = ids::container_id()?;
        let path = std::env::temp_dir().join(format!("observer-lab-bpf-{}", &id[..12]));
        Self::mount(&path)
    }

    /// Mounts one at a directory, which is made, and removed with the mount.
    pub fn mount(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("making the directory {}", path.display()))?;
        sweep::remember_mount(path)?;
        let made = Self { path: path.to_owned() };
        mount("bpf", path, "bpf", MountFlags::empty(), c"mode=0700")
            .with_context(|| format!("mounting a bpffs at {} (needs CAP_SYS_ADMIN: run as root)", path.display()))?;
        Ok(made)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // The pins go first: a copy of the mount in a container's mount namespace would keep them.
        remove_contents(&self.path);
        if let Err(error) = sweep::forget_mount(&self.path) {
            eprintln!("observer-lab: unmounting {}: {error:#}", self.path.display());
        }
    }
}

fn remove_contents(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let outcome = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        // The kernel's own entries (maps.debug, progs.debug) cannot be removed; they go with the mount.
        if let Err(error) = outcome
            && error.kind() != std::io::ErrorKind::PermissionDenied
        {
            eprintln!("observer-lab: removing the pin {}: {error}", path.display());
        }
    }
}
