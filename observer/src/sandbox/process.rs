//! What a process tells of the container that it runs in.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use procfs::{CurrentSI, process::Process};

/// Facts of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Its id in the namespace of the procfs.
    pub pid: i32,
    /// Its name (`comm`, at most 15 bytes).
    pub name: String,
    /// When it started.
    pub started: Option<SystemTime>,
    /// Inode numbers of its namespaces by name (namespaces(7)).
    pub namespaces: Vec<(String, u64)>,
}

impl ProcessFacts {
    /// How long it has run; `None` when that is not known.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        SystemTime::now().duration_since(self.started?).ok()
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
    Some(ProcessFacts { pid, name: stat.comm.clone(), started: started(&stat), namespaces: namespaces(procfs, pid) })
}

fn started(stat: &procfs::process::Stat) -> Option<SystemTime> {
    // Ticks since boot (proc_pid_stat(5), field 22). The time of boot comes from /proc/stat, in whole seconds.
    let boot = SystemTime::UNIX_EPOCH + Duration::from_secs(boot_time()?);
    let ticks = procfs::ticks_per_second();
    Some(boot + Duration::from_millis(stat.starttime.checked_mul(1_000)?.checked_div(ticks)?))
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
        self.by_pid.retain(|pid, facts| {
            facts.age().is_none_or(|age| age > YOUNG)
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
    fn this_process_is_known() {
        let me = i32::try_from(std::process::id()).unwrap();
        let facts = read(Path::new("/proc"), me).unwrap();
        assert_eq!(facts.pid, me);
        assert!(facts.namespace("net").is_some());
        let age = SystemTime::now().duration_since(facts.started.unwrap()).unwrap_or_default();
        assert!(age < Duration::from_secs(3600), "{age:?}");
        assert_eq!(read(Path::new("/proc"), i32::MAX), None);
    }
}
