//! Network namespaces held by a file descriptor.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network namespace that lives at least as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: File,
}

impl NetNs {
    /// Makes an empty namespace, on a thread of its own, and runs `setup` in it.
    pub fn create(setup: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        on_a_thread(|| {
            // SAFETY: the flags do not hold FILES, so descriptors stay visible to every thread.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .context("making a network namespace (needs CAP_SYS_ADMIN: run as root)")?;
            let made = Self::open(Path::new("/proc/thread-self/ns/net"))?;
            setup()?;
            Ok(made)
        })
    }

    /// Opens the namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Opens the namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// Opens a namespace file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening the network namespace {}", path.display()))?;
        Ok(Self { file })
    }

    /// Runs `work` in this namespace, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// The same as [`NetNs::enter`], with nothing but a system call.
    pub(crate) fn enter_now(&self) -> std::io::Result<()> {
        Ok(move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Moves the calling thread into this namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering a network namespace (needs CAP_SYS_ADMIN: run as root)")
    }

    /// The number by which the kernel and `lsns` know the namespace.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata().context("asking a network namespace for its inode")?.ino())
    }

    /// A path under which another process can open the namespace, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Sets a sysctl of the calling thread's network namespace, for example `ipv4/ip_forward`.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    std::fs::write(&path, value).with_context(|| format!("writing {value:?} to {path}"))
}

/// Namespaces belong to threads, so what changes one runs on a thread that ends with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("lab-netns".to_owned())
            .spawn_scoped(scope, work)
            .context("starting a thread for a network namespace")?;
        thread.join().map_err(|_| anyhow!("the thread working in a network namespace panicked"))?
    })
}
