//! File systems of the node that are on block devices: how large they are, and what is left.
//!
//! Network file systems are left out, because asking one whose server is gone takes for ever, and so are those of memory
//! and those that only show another one (overlay).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use anyhow::{Context, ensure};
use rustix::fs::{Mode, OFlags, fstatfs, fstatvfs, makedev, open};

use super::parse;
use crate::sandbox::{hierarchy::unescape, process::INIT};

/// File systems that are shown; more are said to be there.
pub const MAX_FILE_SYSTEMS: usize = 64;
/// Types that the kubelet shows and that are on block devices (`getPartitionsAndSize` in cAdvisor's fs/fs.go), by the
/// beginning of their names.
const TYPES: [&str; 3] = ["ext", "xfs", "btrfs"];
/// `BTRFS_SUPER_MAGIC` of include/uapi/linux/magic.h.
const BTRFS: i64 = 0x9123_683e;

/// A file system and what statvfs(3) says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// The device, as the mount names it: `/dev/vda1`.
    pub device: String,
    /// How much of it there is.
    pub space: Space,
}

/// Size and use of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub bytes: u64,
    /// Of them, those that are not in use, the part that only root may use included.
    pub free: u64,
    /// Inodes in all; 0 where the file system has no fixed number.
    pub inodes: u64,
    /// Of them, those that are not in use.
    pub inodes_free: u64,
}

/// What is shown of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSystems {
    /// At most [`MAX_FILE_SYSTEMS`], sorted by device.
    pub shown: Vec<FileSystem>,
    /// How many more there are.
    pub more: usize,
}

/// A place where a file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Below the node's root.
    point: String,
    /// The number of its device.
    number: (u32, u32),
    btrfs: bool,
}

/// Reads the mounts of the node's first process, and asks each file system once. One that cannot be reached, because
/// something else is mounted over it, is left out.
///
/// # Errors
/// When the mounts cannot be read; they are named.
pub fn file_systems(
    procfs: &Path,
    ask: impl Fn(&Path, &Mounted) -> io::Result<Option<Space>>,
) -> anyhow::Result<FileSystems> {
    let init = procfs.join(INIT.to_string());
    let path = init.join("mountinfo");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = on_devices(&String::from_utf8_lossy(&text));
    let more = found.len().saturating_sub(MAX_FILE_SYSTEMS);
    let mut shown = Vec::new();
    for (device, mounts) in found.into_iter().take(MAX_FILE_SYSTEMS) {
        let reached = mounts.iter().find_map(|mounted| {
            let below = |root: &Path| ask(&root.join(mounted.point.trim_start_matches('/')), mounted).ok().flatten();
            // The agent's own root has the same file system at the same place where the first process' is closed to it
            // but shares its mounts; its number tells.
            below(&init.join("root")).or_else(|| if mounted.btrfs { None } else { below(Path::new("/")) })
        });
        shown.extend(reached.map(|space| FileSystem { device, space }));
    }
    Ok(FileSystems { shown, more })
}

impl FileSystems {
    /// Says that some are not shown.
    ///
    /// # Errors
    /// When there are more than [`MAX_FILE_SYSTEMS`].
    pub fn complete(&self) -> anyhow::Result<()> {
        let more = self.more;
        ensure!(more == 0, "the node has {more} file systems more than the {MAX_FILE_SYSTEMS} that are shown");
        Ok(())
    }
}

/// By device, where each is mounted, from the lines of proc_pid_mountinfo(5); at most a few places of each.
fn on_devices(mountinfo: &str) -> BTreeMap<String, Vec<Mounted>> {
    const MAX_PLACES: usize = 4;
    let mut found: BTreeMap<String, Vec<Mounted>> = BTreeMap::new();
    for line in parse::whole(mountinfo).lines() {
        let Some((mount, of)) = line.split_once(" - ") else { continue };
        let (mut mount, mut of) = (mount.split(' '), of.split(' '));
        let (Some(number), Some(point)) = (mount.nth(2).and_then(parse::device), mount.nth(1)) else { continue };
        let (Some(kind), Some(device)) = (of.next(), of.next().map(unescape)) else { continue };
        if !device.starts_with("/dev/") || !TYPES.iter().any(|prefix| kind.starts_with(prefix)) {
            continue;
        }
        let places = found.entry(device).or_default();
        if places.len() < MAX_PLACES {
            places.push(Mounted { point: unescape(point), number, btrfs: kind == "btrfs" });
        }
    }
    found
}

/// What the fuzz target calls: reads `text` as a list of mounts.
///
/// # Panics
/// When a mount is found that no line tells.
#[cfg(any(fuzzing, test))]
pub fn fuzz(text: &str) {
    let found = on_devices(text);
    let lines = parse::whole(text).lines().count();
    assert!(found.values().map(Vec::len).sum::<usize>() <= lines, "more mounts than lines");
    assert!(found.iter().all(|(device, mounts)| device.starts_with("/dev/") && !mounts.is_empty()), "{found:?}");
    for (major, minor) in found.values().flatten().map(|mounted| mounted.number) {
        assert!(text.contains(&major.to_string()) && text.contains(&minor.to_string()), "no device {major}:{minor}");
    }
}

/// Asks the file system at a path. `None` when another one is there.
///
/// # Errors
/// When there is none, or it may not be asked.
pub fn space(path: &Path, mounted: &Mounted) -> io::Result<Option<Space>> {
    let directory = File::from(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    let (major, minor) = mounted.number;
    let here = if mounted.btrfs {
        // Each of its subvolumes has a number of its own.
        fstatfs(directory.as_fd())?.f_type == BTRFS
    } else {
        directory.metadata()?.dev() == makedev(major, minor)
    };
    let status = fstatvfs(directory.as_fd())?;
    let space = Space {
        bytes: status.f_blocks.saturating_mul(status.f_frsize),
        free: status.f_bfree.saturating_mul(status.f_frsize),
        inodes: status.f_files,
        inodes_free: status.f_ffree,
    };
    Ok(here.then_some(space))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "25 1 0:23 / /proc rw - proc proc rw\n\
        26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        27 1 254:0 /run/netns /run/netns rw - ext4 /dev/vda rw\n\
        28 1 254:16 / /my\\040disk rw - xfs /dev/mapper/a\\040b rw\n\
        29 1 0:44 / /data rw - btrfs /dev/vdc rw\n\
        30 1 0:45 / /nfs rw - nfs4 server:/x rw\n\
        31 1 0:46 / /var/lib/x rw - overlay overlay rw\n\
        32 1 0:47 / /dev/shm rw - tmpfs tmpfs rw\n\
        33 1 254:32 / /usb rw - fuseblk /dev/vdd rw\n\
        junk\n34 1 x:y / /z rw - ext4 /dev/vde rw\n35 1 254:48 / /cut rw - ext4 /dev/vd";

    #[test]
    fn those_on_devices_once_each() {
        let found = on_devices(MOUNTS);
        let points: Vec<_> = found
            .iter()
            .map(|(device, places)| {
                (device.as_str(), places.iter().map(|place| place.point.as_str()).collect::<Vec<_>>())
            })
            .collect();
        let expected =
            [("/dev/mapper/a b", vec!["/my disk"]), ("/dev/vda", vec!["/", "/run/netns"]), ("/dev/vdc", vec!["/data"])];
        assert_eq!(points, expected);
        assert_eq!(found["/dev/vda"][0].number, (254, 0));
        let many: String = (0..70).map(|at| format!("{at} 1 254:{at} / /{at} rw - ext4 /dev/vd{at:02} rw\n")).collect();
        let procfs = tempfile::tempdir().unwrap();
        fs::create_dir(procfs.path().join("1")).unwrap();
        fs::write(procfs.path().join("1/mountinfo"), many).unwrap();
        let found = file_systems(procfs.path(), |_, _| Ok(Some(Space::default()))).unwrap();
        assert_eq!((found.shown.len(), found.more), (MAX_FILE_SYSTEMS, 6));
        assert!(found.complete().unwrap_err().to_string().contains("6 file systems"));
        let found = file_systems(procfs.path(), |_, mounted| Ok((mounted.number.1 == 3).then(Space::default))).unwrap();
        assert_eq!(found.shown.iter().map(|found| found.device.as_str()).collect::<Vec<_>>(), ["/dev/vd03"]);
        fs::remove_file(procfs.path().join("1/mountinfo")).unwrap();
        let error = file_systems(procfs.path(), space).unwrap_err();
        assert!(error.to_string().contains("1/mountinfo"), "{error:#}");
    }

    /// The file system that this test's files are in, and what statvfs(3) says of it; another one's number is refused.
    #[test]
    fn a_file_system_is_as_large_as_statvfs_says() {
        let directory = tempfile::tempdir().unwrap();
        let number = fs::metadata(directory.path()).unwrap().dev();
        let number = (rustix::fs::major(number), rustix::fs::minor(number));
        let mounted = Mounted { point: String::new(), number, btrfs: false };
        let truth = || rustix::fs::statvfs(directory.path()).unwrap();
        for _ in 0..100 {
            let (before, found, after) = (truth(), space(directory.path(), &mounted).unwrap(), truth());
            if (before.f_bfree, before.f_ffree) == (after.f_bfree, after.f_ffree) {
                let expected = Space {
                    bytes: before.f_blocks * before.f_frsize,
                    free: before.f_bfree * before.f_frsize,
                    inodes: before.f_files,
                    inodes_free: before.f_ffree,
                };
                assert_eq!(found, Some(expected));
                let other = Mounted { number: (number.0, number.1 + 1), ..mounted };
                assert_eq!(space(directory.path(), &other).unwrap(), None);
                return;
            }
        }
        panic!("the file system did not stand still");
    }
}
