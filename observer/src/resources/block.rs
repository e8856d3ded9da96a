//! Names of block devices.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Where the kernel shows block devices by number (sysfs(5), Documentation/ABI/stable/sysfs-dev).
const SYSFS: &str = "/sys/dev/block";

/// Names by number, each looked up once: for the length of a scrape, since a number may pass to another device.
#[derive(Debug)]
pub struct BlockNames {
    root: PathBuf,
    known: HashMap<(u32, u32), String>,
}

impl Default for BlockNames {
    fn default() -> Self {
        Self { root: SYSFS.into(), known: HashMap::new() }
    }
}

impl BlockNames {
    /// The kernel's name of a device (`sda`, `nvme0n1`, `dm-3`), or its number as `MAJOR:MINOR` when it has gone.
    pub fn get(&mut self, device: (u32, u32)) -> &str {
        let root = &self.root;
        self.known.entry(device).or_insert_with(|| look_up(root, device))
    }
}

fn look_up(root: &Path, (major, minor): (u32, u32)) -> String {
    let number = format!("{major}:{minor}");
    let target = std::fs::read_link(root.join(&number)).ok();
    // In names that have a slash (`cciss/c0d0`) sysfs writes an exclamation mark.
    let name = target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().replace('!', "/"));
    name.unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_last_part_of_its_link() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("../../devices/x/block/cciss!c0d0", directory.path().join("104:0")).unwrap();
        let mut names = BlockNames { root: directory.path().into(), known: HashMap::new() };
        assert_eq!(names.get((104, 0)), "cciss/c0d0");
        assert_eq!(names.get((8, 1)), "8:1");
    }
}
