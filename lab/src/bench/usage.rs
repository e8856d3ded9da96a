//! What a process uses, from its files in `/proc`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// CPU time and the time that it was used in.
pub(super) struct Usage {
    pub(super) cpu: Duration,
    pub(super) time: Duration,
}

impl Usage {
    /// Of a process, all its threads, while something is done.
    pub(super) fn during(pid: u32, act: impl FnOnce() -> Result<()>) -> Result<Self> {
        let (begin, before) = (Instant::now(), cpu(pid)?);
        act()?;
        Ok(Self { cpu: cpu(pid)?.saturating_sub(before), time: begin.elapsed() })
    }
}

/// CPU time of all threads, those that have ended too: the process's own clock, clock_getcpuclockid(3).
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let id = i32::try_from(pid).context("a process id is at most 2^22")?;
    let mut clock = 0;
    // SAFETY: writes one clock id.
    let error = unsafe { libc::clock_getcpuclockid(id, &raw mut clock) };
    ensure!(error == 0, "asking for the CPU clock of process {pid}: {}", std::io::Error::from_raw_os_error(error));
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one `timespec`.
    let outcome = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(outcome == 0, "reading the CPU clock of process {pid}: {}", std::io::Error::last_os_error());
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

/// Resident memory now and at its peak, in bytes: proc_pid_status(5), `VmRSS` and `VmHWM`.
pub(super) fn memory(pid: u32) -> Result<(u64, u64)> {
    let status = process(pid)?.status().with_context(|| format!("reading /proc/{pid}/status"))?;
    let bytes = |kibibytes: Option<u64>| kibibytes.map(|kibibytes| kibibytes << 10);
    bytes(status.vmrss).zip(bytes(status.vmhwm)).with_context(|| format!("process {pid} has no memory: it has ended"))
}

/// Memory of the kernel's maps that a process holds, in bytes: `memlock` of each map's proc_pid_fdinfo(5), which
/// `bpf_map_show_fdinfo` writes (kernel/bpf/syscall.c). A map that is held twice counts once.
pub(super) fn maps(pid: u32) -> Result<u64> {
    let directory = format!("/proc/{pid}/fdinfo");
    let entries = std::fs::read_dir(&directory).with_context(|| format!("listing {directory}"))?;
    let mut maps = BTreeMap::new();
    for entry in entries.flatten() {
        // A descriptor that was closed meanwhile.
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        maps.extend(map(&text));
    }
    ensure!(!maps.is_empty(), "process {pid} holds no map");
    Ok(maps.values().sum())
}

/// The id and the memory of a map; `None` for a descriptor of something else.
fn map(fdinfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let lines = fdinfo.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| *key == name).find_map(|(_, value)| value.trim().parse().ok())
    };
    Some((field("map_id")?, field("memlock")?))
}

fn process(pid: u32) -> Result<procfs::process::Process> {
    let id = i32::try_from(pid).context("a process id is at most 2^22")?;
    procfs::process::Process::new(id).with_context(|| format!("looking at process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_told_from_programs() {
        let array = "pos:\t0\nflags:\t02000002\nmap_type:\t2\nmax_entries:\t4\nmemlock:\t4096\nmap_id:\t7\n";
        assert_eq!(map(array), Some((7, 4096)));
        assert_eq!(map("pos:\t0\nprog_type:\t8\nmemlock:\t8192\nprog_id:\t9\n"), None);
        assert_eq!(map("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn cpu_time_is_that_of_ended_threads_too() {
        let me = std::process::id();
        let usage = Usage::during(me, || {
            let work = move || while cpu(me).is_ok_and(|time| time < Duration::from_millis(20)) {};
            std::thread::spawn(work).join().map_err(|_| anyhow::anyhow!("the thread panicked"))
        });
        assert!(usage.unwrap().cpu > Duration::ZERO);
        assert!(cpu(me).unwrap() >= Duration::from_millis(20));
        assert!(cpu(u32::MAX).is_err());
    }
}
