//! The node as a whole: what the root of the cgroup tree does not tell, procfs does.

use std::path::Path;

use anyhow::Context;
use procfs::{FromReadSI, KernelStats};

use super::{Extra, Facts, Limit, NodeMemory, parse};

/// Facts of the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Installed memory that the kernel manages, bytes (`MemTotal`).
    pub memory: u64,
    /// Of it, what nobody uses (`MemFree`).
    pub memory_free: u64,
    /// Swap space, bytes.
    pub swap: u64,
    /// Of it, what nobody uses.
    pub swap_free: u64,
    /// When it booted, seconds since 1970.
    pub booted: u64,
    /// Processes that the OOM killer killed since then; `None` where the kernel does not tell (before 4.13).
    pub oom_kills: Option<u64>,
}

impl NodeFacts {
    /// Reads `/proc/meminfo`, `/proc/stat` and `/proc/vmstat` (proc_meminfo(5), proc_stat(5), proc_vmstat(5)).
    ///
    /// # Errors
    /// When one of the first two cannot be read; it is named.
    pub fn read(procfs: &Path) -> anyhow::Result<Self> {
        let memory = NodeMemory::read(procfs).context(HOST)?;
        let stats = kernel_stats(procfs).context(HOST)?;
        let told = |name: &str, bytes: Option<u64>| {
            bytes.with_context(|| format!("{} does not tell {name}", procfs.join("meminfo").display()))
        };
        Ok(Self {
            memory: told("MemTotal", memory.total)?,
            memory_free: told("MemFree", memory.free)?,
            swap: told("SwapTotal", memory.swap_total)?,
            swap_free: told("SwapFree", memory.swap_free)?,
            booted: stats.btime,
            oom_kills: oom_kills(procfs),
        })
    }

    /// Completes what the root cgroup's files said. The root of the v2 tree has no `memory.current` and no swap; the
    /// kubelet takes the node's memory in use then, and so does this. It has no limit either, so none was ever met, and
    /// nothing is kept for it; what was killed in it was killed on the node.
    pub fn complete(&self, facts: &mut Facts, extra: &mut Extra) {
        if facts.usage.is_none() {
            facts.usage = Some(self.memory.saturating_sub(self.memory_free));
            facts.swap = Some(self.swap.saturating_sub(self.swap_free));
            facts.events.max = Some(0);
            facts.events.oom_kill = self.oom_kills;
            extra.reservation = Some(Limit::Unlimited);
            extra.swap_limit = Some(Limit::Unlimited);
        }
    }
}

/// What to do when the host's files are not there.
const HOST: &str = "reading the node; name the host's proc file system with --path.procfs";

fn oom_kills(procfs: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(procfs.join("vmstat")).ok()?;
    parse::flat_keyed(&text).find_map(|(key, value)| (key == "oom_kill").then_some(value))
}

/// Reads `/proc/stat` (proc_stat(5)).
///
/// # Errors
/// When it cannot be read or is cut short, for then its last number may be; it is named.
pub fn kernel_stats(procfs: &Path) -> anyhow::Result<KernelStats> {
    let path = procfs.join("stat");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(bytes.ends_with(b"\n"), "{} is cut short", path.display());
    KernelStats::from_read(&bytes[..], procfs::current_system_info())
        .with_context(|| format!("cannot understand {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MEMINFO: &str = "MemTotal:        3049648 kB\nMemFree:         2656592 kB\n\
        SwapTotal:          1024 kB\nSwapFree:            1000 kB\n";
    const STAT: &str = "cpu  1 2 3 4 5 6 7 8 9 10\nctxt 1\nbtime 1795225948\nprocesses 1\n";

    #[test]
    fn a_v2_root_uses_what_the_node_uses() {
        let procfs = tempfile::tempdir().unwrap();
        let error = format!("{:#}", NodeFacts::read(procfs.path()).unwrap_err());
        assert!(error.contains("meminfo") && error.contains("--path.procfs"), "{error}");
        fs::write(procfs.path().join("meminfo"), MEMINFO).unwrap();
        fs::write(procfs.path().join("stat"), STAT).unwrap();
        let node = NodeFacts::read(procfs.path()).unwrap();
        assert_eq!((node.memory, node.booted), (3_049_648 << 10, 1_795_225_948));
        assert_eq!(node.oom_kills, None);
        fs::write(procfs.path().join("vmstat"), "nr_free_pages 1\noom_kill 3\nzone_reclaim_success 0\n").unwrap();
        let node = NodeFacts::read(procfs.path()).unwrap();
        let (mut v2, mut extra) = (Facts { inactive_file: Some(5), ..Facts::default() }, Extra::default());
        node.complete(&mut v2, &mut extra);
        assert_eq!((v2.usage, v2.swap, v2.inactive_file), (Some(393_056 << 10), Some(24 << 10), Some(5)));
        assert_eq!((v2.events.max, v2.events.oom_kill), (Some(0), Some(3)));
        assert_eq!((extra.reservation, extra.swap_limit), (Some(Limit::Unlimited), Some(Limit::Unlimited)));
        let v1 = Facts { usage: Some(7), swap: Some(0), ..Facts::default() };
        let (mut same, mut extra) = (v1.clone(), Extra::default());
        node.complete(&mut same, &mut extra);
        assert_eq!((same, extra), (v1, Extra::default()));
        fs::write(procfs.path().join("stat"), STAT.trim_end()).unwrap();
        let error = format!("{:#}", NodeFacts::read(procfs.path()).unwrap_err());
        assert!(error.contains("stat is cut short"), "{error}");
        fs::write(procfs.path().join("stat"), STAT).unwrap();
        fs::write(procfs.path().join("meminfo"), MEMINFO.trim_end()).unwrap();
        let error = format!("{:#}", NodeFacts::read(procfs.path()).unwrap_err());
        assert!(error.contains("SwapFree"), "{error}");
    }
}
