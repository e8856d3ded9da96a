//! What a process tells of the container that it runs in.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use procfs::{CurrentSI, process::Process};
use rustix::time::ClockId;

use crate::clock;

/// Facts of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Its id in the namespace of the procfs.
    pub pid: i32,
    /// Its name (`comm`, at most 15 bytes). Where that says nothing (a program that runs itself again by `/proc/self/exe`), or
    /// is cut off, what it calls itself (`argv[0]`, at most 64 characters).
    pub name: String,
    /// When it started, to be shown and to be compared with others of this agent: see [`boot`].
    pub started: Option<SystemTime>,
    /// The same in nanoseconds of `CLOCK_MONOTONIC`, in whole ticks of the kernel: not later than it was.
    pub began: Option<u64>,
    /// Inode numbers of its namespaces by name (namespaces(7)).
    pub namespaces: Vec<(String, u64)>,
}

impl ProcessFacts {
    /// How long it has run, not counting while the machine slept; `None` when that is not known. `now` is of
    /// `CLOCK_MONOTONIC`: the wall clock may be set while it runs.
    #[must_use]
    pub fn age(&self, now: u64) -> Option<Duration> {
        Some(Duration::from_nanos(now.saturating_sub(self.began?)))
    }

    /// The inode of one namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<u64> {
        self.namespaces.iter().find(|(found, _)| found == name).map(|(_, inode)| *inode)
    }
}

/// A process that is younger may still be on its way to what it will be.
const YOUNG: Duration = Duration::from_secs(10);

/// The process whose namespaces are the node's.
pub const INIT: i32 = 1;

const NAMESPACES: [&str; 7] = ["net", "ipc", "uts", "pid", "mnt", "cgroup", "user"];

/// Reads a process. `None` when it is gone. Namespaces that may not be read are left out.
#[must_use]
pub fn read(procfs: &Path, pid: i32) -> Option<ProcessFacts> {
    let process = Process::new_with_root(procfs.join(pid.to_string())).ok()?;
    let stat = process.stat().ok()?;
    let (started, began) = (started(&stat), began(&stat));
    let name = full_name(&stat.comm, || process.cmdline().ok()?.into_iter().next());
    Some(ProcessFacts { pid, name, started, began, namespaces: namespaces(procfs, pid) })
}

/// `TASK_COMM_LEN` of include/linux/sched.h, without the end.
const COMM: usize = 15;

fn full_name(comm: &str, argument: impl FnOnce() -> Option<String>) -> String {
    if comm != "exe" && comm.len() < COMM {
        return comm.to_owned();
    }
    let argument = argument().unwrap_or_default();
    let told: String = argument.rsplit('/').next().unwrap_or_default().chars().take(64).collect();
    if told.is_empty() { comm.to_owned() } else { told }
}

/// Field 22 of proc_pid_stat(5) is on the clock that goes on while the machine sleeps.
fn began(stat: &procfs::process::Stat) -> Option<u64> {
    let slept = clock::now(ClockId::Boottime).saturating_sub(clock::monotonic());
    let since_boot = stat.starttime.checked_mul(1_000_000_000)?.checked_div(procfs::ticks_per_second())?;
    Some(since_boot.saturating_sub(slept))
}

/// The moment that [`ProcessFacts::started`] is counted from: that of boot, in the whole seconds of /proc/stat. The
/// kernel tells another one when the wall clock is set; it is asked once, so that starts do not move against each other,
/// nor those that were shown.
#[must_use]
pub fn boot() -> Option<SystemTime> {
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(boot_time()?))
}

fn started(stat: &procfs::process::Stat) -> Option<SystemTime> {
    // Ticks since boot (proc_pid_stat(5), field 22).
    let ticks = procfs::ticks_per_second();
    Some(boot()? + Duration::from_millis(stat.starttime.checked_mul(1_000)?.checked_div(ticks)?))
}

fn boot_time() -> Option<u64> {
    static BOOT: std::sync::OnceLock<Option<u64>> = std::sync::OnceLock::new();
    *BOOT.get_or_init(|| procfs::KernelStats::current().ok().map(|stats| stats.btime))
}

fn namespaces(procfs: &Path, pid: i32) -> Vec<(String, u64)> {
    let directory = procfs.join(pid.to_string()).join("ns");
    NAMESPACES.into_iter().filter_map(|name| Some((name.to_owned(), namespace_inode(&directory.join(name))?))).collect()
}

/// The number in a link such as `net:[4026531840]`.
fn namespace_inode(path: &PathBuf) -> Option<u64> {
    let target = fs::read_link(path).ok()?;
    target.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// Facts that were read once, for as long as their process lives.
#[derive(Debug, Default)]
pub struct ProcessCache {
    by_pid: HashMap<i32, ProcessFacts>,
}

impl ProcessCache {
    /// Forgets what may not hold any more. A process is known by its id and its network namespace: one whose id was
    /// given to another is forgotten. So is one that is young: a runtime enters namespaces and changes its name
    /// (execve) in the process that becomes the container's first.
    pub fn check(&mut self, procfs: &Path) {
        let now = clock::monotonic();
        self.by_pid.retain(|pid, facts| {
            facts.age(now).is_none_or(|age| age > YOUNG)
                && facts.namespace("net").is_some()
                && facts.namespace("net") == namespace_inode(&procfs.join(pid.to_string()).join("ns/net"))
        });
    }

    /// Reads those of these processes that are not known, and forgets all others.
    pub fn refresh(&mut self, procfs: &Path, pids: impl Iterator<Item = i32>) {
        let mut before = std::mem::take(&mut self.by_pid);
        for pid in pids {
            if let Some(facts) = before.remove(&pid).or_else(|| read(procfs, pid)) {
                self.by_pid.insert(pid, facts);
            }
        }
    }

    /// The facts of a process.
    #[must_use]
    pub fn get(&self, pid: i32) -> Option<&ProcessFacts> {
        self.by_pid.get(&pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_says_nothing_is_replaced_by_what_the_process_calls_itself() {
        let name = |comm, argument: Option<&str>| full_name(comm, || argument.map(str::to_owned));
        assert_eq!(name("pause", Some("/pause")), "pause");
        assert_eq!(name("exe", Some("runsc-sandbox")), "runsc-sandbox");
        assert_eq!(name("exe", None), "exe");
        assert_eq!(name("containerd-shim", Some("/usr/bin/containerd-shim-kata-v2")), "containerd-shim-kata-v2");
    }

    #[test]
    fn this_process_is_known() {
        let me = i32::try_from(std::process::id()).unwrap();
        let facts = read(Path::new("/proc"), me).unwrap();
        assert_eq!(facts.pid, me);
        assert!(facts.namespace("net").is_some());
        let age = facts.age(clock::monotonic()).unwrap();
        assert!(age < Duration::from_secs(3600), "{age:?}");
        let later = clock::monotonic() + 7_200_000_000_000;
        assert!(facts.age(later).unwrap() > Duration::from_secs(3600));
        assert_eq!(facts.age(0), Some(Duration::ZERO));
        let wall = SystemTime::now().duration_since(facts.started.unwrap()).unwrap_or_default();
        assert!(wall < Duration::from_secs(3600), "{wall:?}");
        assert_eq!(read(Path::new("/proc"), i32::MAX), None);
    }
}
