//! Where maps and links are pinned, so that the kernel goes on counting without the agent.
//!
//! `<bpffs>/observer/v<ABI>/maps/<MAP>`, `<bpffs>/observer/v<ABI>/links/<cgroup id>-<ingress|egress>`,
//! `<bpffs>/observer/v<ABI>/interfaces/<index>-<sends|receives>` and `<bpffs>/observer/v<ABI>/probes/<program>`; with
//! [`Accounting::Sockets`] `v<ABI>-sockets` in the place of `v<ABI>`. The directory `<bpffs>/observer` carries the lock that
//! keeps a second agent away.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use observer_common::{abi, sockets};
use rustix::fs::{FlockOperation, flock};

use super::{Accounting, interface};

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The pin directories of one bpffs, held by this process alone.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    accounting: Accounting,
    _lock: File,
}

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No bpffs at the path, and none could be mounted there.
    #[error(
        "no BPF filesystem at {path} and mounting one failed: {source}; mount it by hand (`mount -t bpf bpf {path}`) \
         or name another with --path.bpffs; inside a container mount the host's /sys/fs/bpf"
    )]
    NotMounted {
        /// The path of `--path.bpffs`.
        path: PathBuf,
        /// What mount(2) said.
        source: io::Error,
    },
    /// A directory could not be made or read.
    #[error("cannot use {path} for pinning: {source}; the agent needs to write to the BPF filesystem")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent holds the lock.
    #[error(
        "another observer is running on this node (it holds the lock on {path}); stop it first, or give this one its \
         own BPF filesystem with --path.bpffs"
    )]
    Locked {
        /// The locked directory.
        path: PathBuf,
    },
}

impl Pins {
    /// Makes the directories and takes the lock. Mounts a BPF filesystem at `bpffs` when there is none.
    ///
    /// # Errors
    ///
    /// See [`PinError`].
    pub fn open(bpffs: &Path) -> Result<Self, PinError> {
        Self::open_for(bpffs, Accounting::Packets)
    }

    /// The same for one way of counting.
    ///
    /// # Errors
    ///
    /// See [`PinError`].
    pub fn open_for(bpffs: &Path, accounting: Accounting) -> Result<Self, PinError> {
        ensure_mounted(bpffs)?;
        let top = bpffs.join("observer");
        let root = top.join(directory_of(accounting));
        for directory in [root.join("maps"), root.join("links"), root.join("interfaces"), root.join("probes")] {
            fs::create_dir_all(&directory).map_err(|source| PinError::Directory { path: directory, source })?;
        }
        let lock = lock(&top)?;
        Ok(Self { root, accounting, _lock: lock })
    }

    /// How traffic is counted by what is pinned here.
    #[must_use]
    pub const fn accounting(&self) -> Accounting {
        self.accounting
    }

    /// Removes what an agent has left that counted in the other way: its programs would go on, at their cost. Gives the
    /// number of pins that were removed.
    ///
    /// # Errors
    ///
    /// [`PinError::Directory`] when they cannot be removed.
    pub fn forget_other(&self) -> Result<usize, PinError> {
        let path = self.root.with_file_name(directory_of(self.accounting.other()));
        if !path.exists() {
            return Ok(0);
        }
        remove_tree(&path).map_err(|source| PinError::Directory { path, source })
    }

    /// Removes everything of every version, and the directory. Links that lose their pin are detached by the kernel.
    /// Gives the number of pins that were removed; 0 when there was nothing.
    ///
    /// # Errors
    ///
    /// See [`PinError`]; [`PinError::Locked`] while an agent runs.
    pub fn uninstall(bpffs: &Path) -> Result<usize, PinError> {
        let top = bpffs.join("observer");
        if !top.exists() {
            return Ok(0);
        }
        let _lock = lock(&top)?;
        // Filters have no pin that holds them.
        for version in fs::read_dir(&top).into_iter().flatten().filter_map(Result::ok) {
            interface::forget_filters(&version.path());
        }
        let removed = remove_tree(&top).map_err(|source| PinError::Directory { path: top, source })?;
        Ok(removed)
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Where the link of a probe's program is pinned.
    #[must_use]
    pub fn probe(&self, program: &str) -> PathBuf {
        self.root.join("probes").join(program)
    }

    /// The directory of the links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The directory of the links at interfaces.
    #[must_use]
    pub fn interfaces(&self) -> PathBuf {
        self.root.join("interfaces")
    }

    /// The directory of everything of this version.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cgroup ids that have a pinned link.
    ///
    /// # Errors
    ///
    /// [`PinError::Directory`] when the directory cannot be read.
    pub fn linked_cgroups(&self) -> Result<Vec<u64>, PinError> {
        let path = self.links();
        let entries = fs::read_dir(&path).map_err(|source| PinError::Directory { path: path.clone(), source })?;
        let mut ids: Vec<u64> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.split_once('-')?.0.parse().ok())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Removes the pinned maps, for a table that was never finished.
    pub fn forget_maps(&self) {
        for name in abi::maps::PINNED.into_iter().chain(sockets::maps::PINNED) {
            let _ = fs::remove_file(self.map(name));
        }
    }
}

fn directory_of(accounting: Accounting) -> String {
    match accounting {
        Accounting::Packets => format!("v{}", abi::VERSION),
        Accounting::Sockets => format!("v{}-sockets", abi::VERSION),
    }
}

/// True when there is a BPF filesystem at `path`.
#[must_use]
pub fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC)
}

fn ensure_mounted(path: &Path) -> Result<(), PinError> {
    if is_bpffs(path) {
        return Ok(());
    }
    let mounted = if path.is_dir() {
        rustix::mount::mount("bpf", path, "bpf", rustix::mount::MountFlags::empty(), None::<&std::ffi::CStr>)
            .map_err(io::Error::from)
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "there is no such directory"))
    };
    mounted.map_err(|source| PinError::NotMounted { path: path.to_owned(), source })
}

fn lock(directory: &Path) -> Result<File, PinError> {
    let file = File::open(directory).map_err(|source| PinError::Directory { path: directory.to_owned(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PinError::Locked { path: directory.to_owned() }),
        Err(error) => Err(PinError::Directory { path: directory.to_owned(), source: error.into() }),
    }
}

/// Like `remove_dir_all`, which bpffs refuses on some kernels: files first, then their directory. Counts the files.
fn remove_tree(directory: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            removed += remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    fs::remove_dir(directory)?;
    Ok(removed)
}
