//! CPU time and memory to measure.

use std::time::Duration;

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// Uses CPU time on the calling thread.
pub(super) fn burn(cpu_ms: u64) -> Result<()> {
    let end = cpu_time()? + Duration::from_millis(cpu_ms);
    let mut state = 1_u64;
    while cpu_time()? < end {
        for _ in 0..10_000 {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    Ok(())
}

/// Takes memory and writes to every page of it.
pub(super) fn touch(mib: u32) -> Result<Vec<u8>> {
    let Some(bytes) = usize::try_from(mib).ok().and_then(|mib| mib.checked_mul(1 << 20)) else {
        bail!("{mib} MiB are more than this machine can address");
    };
    // A non-zero value, or the allocator may hand out untouched zero pages.
    Ok(vec![1; bytes])
}

/// Children that do nothing until they are dropped.
#[derive(Debug, Default)]
pub(crate) struct Children(Vec<libc::pid_t>);

impl Children {
    /// Makes children, all there at the same time. They end with the thread that made them, if not before.
    pub(super) fn fork(count: u32) -> Result<Self> {
        let mut children = Self::default();
        for _ in 0..count {
            // SAFETY: the child calls nothing but pause(2) and _exit(2), which are safe after a fork of a process with
            // threads (signal-safety(7)).
            match unsafe { libc::fork() } {
                -1 => {
                    let error = std::io::Error::last_os_error();
                    bail!("forking child {} of {count}: {error}", children.0.len() + 1);
                }
                // SAFETY: as above.
                0 => unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::pause();
                    libc::_exit(0);
                },
                child => children.0.push(child),
            }
        }
        Ok(children)
    }
}

/// A System V segment, all of it written to; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Segment {
    id: libc::c_int,
    address: usize,
}

impl Segment {
    /// Makes a segment in the IPC namespace of this process.
    pub(super) fn create(mib: u32) -> Result<Self> {
        let Some(size) = usize::try_from(mib).ok().and_then(|mib| mib.checked_mul(1 << 20)) else {
            bail!("{mib} MiB are more than this machine can address");
        };
        // SAFETY: shmget(2) takes numbers alone.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, size, libc::IPC_CREAT | 0o600) };
        if id < 0 {
            bail!("making a System V segment of {mib} MiB: {}", std::io::Error::last_os_error());
        }
        // SAFETY: the kernel chooses an address that is free (shmat(2)).
        let address = unsafe { libc::shmat(id, std::ptr::null(), 0) };
        let segment = Self { id, address: address.expose_provenance() };
        if address.addr() == usize::MAX {
            bail!("attaching a System V segment: {}", std::io::Error::last_os_error());
        }
        // SAFETY: the segment is `size` bytes long, is mapped here to be written, and nobody else knows it yet.
        unsafe { std::ptr::write_bytes(address.cast::<u8>(), 1, size) };
        Ok(segment)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: our own segment; nobody holds a reference into it. An address that is none is refused.
        unsafe {
            libc::shmdt(std::ptr::with_exposed_provenance(self.address));
            libc::shmctl(self.id, libc::IPC_RMID, std::ptr::null_mut());
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for child in &self.0 {
            // SAFETY: our own children, which nobody has waited for yet; a null status is allowed (wait(2)).
            unsafe {
                libc::kill(*child, libc::SIGKILL);
                libc::waitpid(*child, std::ptr::null_mut(), 0);
            }
        }
    }
}

fn cpu_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Ok(Duration::new(u64::try_from(now.tv_sec)?, u32::try_from(now.tv_nsec)?))
}
