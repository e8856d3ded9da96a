//! Memory limits, and what the kernel itself says of those that were killed for them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Cgroup;

impl Cgroup {
    /// Limits the memory of what runs in the cgroup and below it.
    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        let file = self.memory_file("memory.max", "memory.limit_in_bytes")?;
        std::fs::write(&file, bytes.to_string()).with_context(|| format!("writing {bytes} to {}", file.display()))?;
        // What goes to swap is not killed. Files that are there only with swap accounting.
        let swap = self.directories().map(|directory| directory.join("memory.swap.max"));
        for file in swap.filter(|file| file.exists()) {
            std::fs::write(&file, "0").with_context(|| format!("writing 0 to {}", file.display()))?;
        }
        Ok(())
    }

    /// The OOM killer's victims in this cgroup (on v2 in those below it too), as the memory controller counts them.
    pub fn oom_kills(&self) -> Result<u64> {
        let file = self.memory_file("memory.events", "memory.oom_control")?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
            .with_context(|| format!("looking for oom_kill in {}", file.display()))
    }

    fn memory_file(&self, v2: &str, v1: &str) -> Result<PathBuf> {
        let file = |directory: PathBuf| [v2, v1].map(|name| directory.join(name)).into_iter().find(|f| f.exists());
        match self.directories().find_map(file) {
            Some(file) => Ok(file),
            None => bail!("the cgroup {} has neither {v2} nor {v1}: no memory controller", self.path().display()),
        }
    }

    /// Moves a process into the cgroup, in every hierarchy.
    pub fn take_in(&self, pid: u32) -> Result<()> {
        self.directories().try_for_each(|directory| join(&directory, pid))
    }
}

fn join(directory: &Path, pid: u32) -> Result<()> {
    let file = directory.join("cgroup.procs");
    std::fs::write(&file, pid.to_string()).with_context(|| format!("writing {pid} to {}", file.display()))
}
