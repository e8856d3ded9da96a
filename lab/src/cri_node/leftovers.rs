//! Removing what a container runtime of the lab has made: its processes, its mounts, its directory. Its cgroups carry the lab's mark and go with the others.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use crate::owner::Owner;
use crate::process;

/// Where nodes keep everything: this, the owner, a dot and a number. Short, because a socket's path is.
const PREFIX: &str = "/run/observer-lab-cri-";

/// The directory of another node of this process.
pub(crate) fn another() -> Result<(PathBuf, u32)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = PathBuf::from(format!("{PREFIX}{}.{number}", Owner::me()));
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok((directory, number))
}

/// How long killed processes may take to end.
const DYING: Duration = Duration::from_secs(5);

/// Removes nodes whose owners no longer live. Says how many.
pub(crate) fn sweep_leftovers() -> Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir("/run").context("listing /run")?.flatten() {
        let path = entry.path();
        if owner(&path).is_some_and(|owner| !owner.is_alive()) {
            remove(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn owner(directory: &Path) -> Option<Owner> {
    directory.to_str()?.strip_prefix(PREFIX)?.rsplit_once('.')?.0.parse().ok()
}

/// Removes what is below a node's directory, and whoever works for it. containerd has ended by then.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + DYING;
    loop {
        let left = processes(directory);
        if left.is_empty() || Instant::now() > deadline {
            break;
        }
        left.into_iter().try_for_each(process::kill)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    for mount in mounts(&std::fs::read_to_string("/proc/self/mountinfo")?, directory) {
        unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .with_context(|| format!("unmounting {}", mount.display()))?;
    }
    std::fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))
}

/// containerd and its shims, or the monitors of Podman, which name the directory, and what they have started. A shim that is killed leaves
/// its containers to the next reaper, so parents are looked up before anything is killed.
fn processes(directory: &Path) -> Vec<u32> {
    let wanted = directory.as_os_str().as_encoded_bytes();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<u32> = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let names = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && line.windows(wanted.len()).any(|part| part == wanted)
    };
    let direct: Vec<u32> = pids.iter().copied().filter(names).filter(|pid| is_runtime(*pid)).collect();
    let mut found = direct.clone();
    found.extend(pids.iter().copied().filter(|pid| parent(*pid).is_some_and(|parent| direct.contains(&parent))));
    found
}

/// Not the agent under test, which names the socket too.
fn is_runtime(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| name.starts_with("containerd") || name.trim_end() == "conmon")
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Mount points below a directory, the innermost first.
fn mounts(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    below.reverse();
    below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_names_its_owner() {
        let me = Owner::me();
        assert_eq!(owner(Path::new(&format!("{PREFIX}{me}.3"))), Some(me));
        for other in ["/run/containerd", "/run/observer-lab-cri-x.1", "/run/observer-lab-cri-1-2"] {
            assert_eq!(owner(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn mounts_below_a_directory_the_innermost_first() {
        let text = "1 2 0:1 / /run rw - tmpfs t rw\n1 2 0:1 / /run/n/a rw - x y z\n1 2 0:1 / /run/n/a/b rw - x y z\n\
            1 2 0:1 / /run/nn rw - x y z\n";
        assert_eq!(mounts(text, Path::new("/run/n")), [Path::new("/run/n/a/b"), Path::new("/run/n/a")]);
    }
}
