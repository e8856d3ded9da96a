//! Limits, as a runtime sets them, and what the kernel says of a cgroup.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Cgroup, Version, directory};

impl Cgroup {
    /// Holds the cgroup to a part of a processor.
    pub fn limit_cpu(&self, cores: f64) -> Result<()> {
        const PERIOD: u32 = 100_000;
        let quota = (cores * f64::from(PERIOD)) as u32;
        match self.file("cpu", "cpu.max", "cpu.cfs_quota_us")? {
            (Version::V2, file) => write(&file, &format!("{quota} {PERIOD}")),
            (Version::V1, file) => write(&file, &quota.to_string()),
        }
    }

    /// Lets cgroup v1 count what goes to a block device. From kernel 6.10 on (`blk_throtl_init` in
    /// block/blk-throttle.c) it does so only for devices that have a limit; this one is met by nothing.
    pub fn count_device(&self, number: &str) -> Result<()> {
        let Some(hierarchy) = self.hierarchies.iter().find(|hierarchy| hierarchy.has("blkio")) else { return Ok(()) };
        for file in ["blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"] {
            write(&directory(hierarchy, &self.path).join(file), &format!("{number} {}", 1u64 << 40))?;
        }
        Ok(())
    }

    /// The text of a file of a controller: `v1` in its own hierarchy where there is one, else `v2` in the unified one.
    pub fn read(&self, controller: &str, v2: &str, v1: &str) -> Result<(Version, String)> {
        let (version, file) = self.file(controller, v2, v1)?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok((version, text))
    }

    fn file(&self, controller: &str, v2: &str, v1: &str) -> Result<(Version, PathBuf)> {
        let own = self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller));
        if let Some(hierarchy) = own {
            return Ok((Version::V1, directory(hierarchy, &self.path).join(v1)));
        }
        let unified = self.unified().with_context(|| format!("no hierarchy has the controller {controller}"))?;
        Ok((Version::V2, unified.join(v2)))
    }
}

fn write(file: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("writing {text} to {}", file.display()))
}
