//! Which cgroup hierarchies are mounted.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The two generations of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for a controller or a few of them.
    V1,
    /// The unified hierarchy; on a hybrid host it may have no controllers.
    V2,
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its generation.
    pub version: Version,
    /// The controllers of a v1 hierarchy (a named one as `name=systemd`).
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether this is the v1 hierarchy of a controller.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }
}

/// Every hierarchy mounted in this process's mount namespace, each once.
pub fn detect() -> Result<Vec<Hierarchy>> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let text =
        std::fs::read_to_string(MOUNTS).with_context(|| format!("reading {MOUNTS} to find the cgroup hierarchies"))?;
    let found = parse(&text);
    ensure!(!found.is_empty(), "{MOUNTS} shows no cgroup hierarchy: mount one (mount -t cgroup2 none /sys/fs/cgroup)");
    Ok(found)
}

/// The hierarchies in a `mountinfo` text. A hierarchy mounted twice counts once; a bind mount of a part
/// of one does not count at all.
pub fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut devices = Vec::new();
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let ([_, _, device, root, mount, ..], [kind, _, options, ..]) = (&left[..], &right[..]) else {
            continue;
        };
        let version = match *kind {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => continue,
        };
        if *root != "/" || devices.contains(device) {
            continue;
        }
        devices.push(device);
        let controllers = match version {
            Version::V1 => controllers(options),
            Version::V2 => Vec::new(),
        };
        found.push(Hierarchy { mount: unescape(mount).into(), version, controllers });
    }
    found
}

/// Controllers among the options of a v1 mount; the rest are flags of the file system.
fn controllers(options: &str) -> Vec<String> {
    const FLAGS: [&str; 8] =
        ["rw", "ro", "noprefix", "xattr", "clone_children", "cpuset_v2_mode", "favordynmods", "none"];
    options
        .split(',')
        .filter(|option| !FLAGS.contains(option) && !option.starts_with("release_agent="))
        .map(str::to_owned)
        .collect()
}

/// `mountinfo` writes a blank as `\040`.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_v1_hierarchies_and_the_unified_one() {
        let found = parse(
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n\
             55 31 0:38 / /somewhere/else rw,relatime - cgroup2 cgroup2 rw\n\
             56 31 0:29 /docker/x /part rw,relatime - cgroup cgroup rw,cpu,cpuacct\n",
        );
        let shape: Vec<_> =
            found.iter().map(|h| (h.mount.to_str().unwrap(), h.version, h.controllers.join("+"))).collect();
        assert_eq!(
            shape,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", Version::V1, "cpu+cpuacct".to_owned()),
                ("/sys/fs/cgroup/systemd", Version::V1, "name=systemd".to_owned()),
                ("/sys/fs/cgroup/unified", Version::V2, String::new()),
            ]
        );
        assert!(found[0].has("cpuacct"));
    }

    #[test]
    fn a_pure_v2_host_has_one() {
        let found = parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].version, Version::V2);
    }
}
