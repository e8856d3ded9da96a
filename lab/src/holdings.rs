//! What an agent holds of the machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::agent::Agent;

/// Bytes of the agent's own memory that a pod may leave on the average: less than its name has.
const LEFT_OF_A_POD: u64 = 64;
/// What the allocator may have more of, whatever happened.
const ALLOCATOR: u64 = 512 << 10;

/// What an agent holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Open files.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Files and directories that the kernel watches for it (inotify(7)).
    pub watches: usize,
    /// Pinned links: two for each pod, and those of probes.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
    /// Bytes of the kernel's memory in the maps that it has open (`memlock` of their fdinfo, proc_pid_fdinfo(5)). From
    /// Linux 6.4 on a map that allocates its entries one by one has as much as its entries need.
    pub map_memory: u64,
    /// Bytes of its own (`RssAnon` of proc_pid_status(5)).
    pub memory: u64,
}

impl Holdings {
    /// Of an agent that pins below this BPF file system.
    pub fn of(agent: &Agent, bpffs: &Path) -> Result<Self> {
        let process = PathBuf::from(format!("/proc/{}", agent.pid()));
        let status = fs::read_to_string(process.join("status")).context("reading the agent's status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon in its status")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("reading RssAnon")?;
        let mut pinned = (0, 0);
        for version in entries(&bpffs.join("observer"))? {
            if version.is_dir() {
                pinned.0 += entries(&version.join("links"))?.len();
                pinned.1 += entries(&version.join("maps"))?.len();
            }
        }
        Ok(Self {
            descriptors: entries(&process.join("fd"))?.len(),
            threads: entries(&process.join("task"))?.len(),
            watches: watches(&process)?,
            links: pinned.0,
            maps: pinned.1,
            map_memory: map_memory(&process)?,
            memory: kib << 10,
        })
    }

    /// What it is made of, by name, in a table's order.
    pub fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("descriptors", self.descriptors as u64),
            ("threads", self.threads as u64),
            ("watches", self.watches as u64),
            ("links", self.links as u64),
            ("maps", self.maps as u64),
            ("KiB of maps", self.map_memory >> 10),
            ("KiB of memory", self.memory >> 10),
        ]
    }

    /// What there is more of than there was before pods came and went: the memory of a real leak is more than a few bytes
    /// of each, and the allocator may keep some, whatever happened.
    pub fn left_since(&self, before: &Self, pods: u32) -> Vec<String> {
        let allowed = Self { memory: before.memory + ALLOCATOR + LEFT_OF_A_POD * u64::from(pods), ..*before };
        let compared = before.parts().into_iter().zip(allowed.parts()).zip(self.parts());
        compared
            .filter(|((_, (_, allowed)), (_, now))| now > allowed)
            .map(|(((what, then), _), (_, now))| format!("{what}: {then} before, {now} after"))
            .collect()
    }
}

fn watches(process: &Path) -> Result<usize> {
    let files = entries(&process.join("fdinfo"))?;
    // One that was closed meanwhile has none.
    let of = |file: &PathBuf| fs::read_to_string(file).unwrap_or_default();
    Ok(files.iter().map(|file| of(file).lines().filter(|line| line.starts_with("inotify wd:")).count()).sum())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    read.map(|entry| Ok(entry?.path())).collect()
}

fn map_memory(process: &Path) -> Result<u64> {
    let mut maps = std::collections::BTreeMap::new();
    for file in entries(&process.join("fdinfo"))? {
        // One that was closed meanwhile.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let value =
            |name: &str| -> Option<u64> { text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok() };
        if let (Some(id), Some(bytes)) = (value("map_id:"), value("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.values().sum())
}
