//! Which cgroup hierarchies this host has, and where.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

/// How the host's cgroups are set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// v1 controllers alone.
    V1,
    /// v1 controllers, and a v2 tree without controllers beside them.
    Hybrid,
    /// One v2 tree.
    V2,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        })
    }
}

/// The mounted hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    v2: Option<PathBuf>,
    v1: BTreeMap<String, PathBuf>,
}

/// Why the hierarchies are unknown.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    /// The list of mounts cannot be read.
    #[error("cannot read the mounts from {path}: {source}; name the host's proc filesystem with --path.procfs")]
    Mounts {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Nothing is mounted there.
    #[error(
        "no cgroup hierarchy is mounted at or below {path}; name the host's with --path.cgroupfs (in a container \
         mount the host's /sys/fs/cgroup)"
    )]
    None {
        /// The path of `--path.cgroupfs`.
        path: PathBuf,
    },
}

impl Hierarchies {
    /// Finds the hierarchies that are mounted at or below `cgroupfs` as this process sees it.
    ///
    /// # Errors
    ///
    /// See [`HierarchyError`].
    pub fn detect(procfs: &Path, cgroupfs: &Path) -> Result<Self, HierarchyError> {
        // This process's own view of the mounts, whatever the procfs: paths must be ones that it can open.
        let own = procfs.join("self/mountinfo");
        let path = if own.exists() { own } else { PathBuf::from("/proc/self/mountinfo") };
        let text = fs::read_to_string(&path).map_err(|source| HierarchyError::Mounts { path, source })?;
        let cgroupfs = fs::canonicalize(cgroupfs).unwrap_or_else(|_| cgroupfs.to_owned());
        let mut found = Self::parse(&text, &cgroupfs);
        if found == Self::default() {
            // A directory inside of a mount.
            found.v2 = [cgroupfs.join("unified"), cgroupfs.clone()].into_iter().find(|path| is_v2(path));
        }
        if found == Self::default() { Err(HierarchyError::None { path: cgroupfs }) } else { Ok(found) }
    }

    /// Reads the mounts (proc_pid_mountinfo(5)). Of several mounts of one hierarchy the first below `cgroupfs` counts.
    fn parse(mountinfo: &str, cgroupfs: &Path) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(point) = mount.split(' ').nth(4).map(|point| PathBuf::from(unescape(point))) else { continue };
            if !point.starts_with(cgroupfs) {
                continue;
            }
            let mut words = filesystem.split(' ');
            match words.next() {
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(point),
                Some("cgroup") => {
                    for option in words.nth(1).unwrap_or_default().split(',') {
                        if !matches!(option, "" | "rw" | "ro" | "xattr" | "clone_children" | "noprefix") {
                            found.v1.entry(option.to_owned()).or_insert_with(|| point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// How the host is set up. A v2 tree beside controllers is hybrid; a v1 hierarchy without a controller (systemd's
    /// own) does not count.
    #[must_use]
    pub fn mode(&self) -> Mode {
        let controllers = self.v1.keys().any(|name| !name.starts_with("name="));
        match (&self.v2, controllers) {
            (Some(_), true) => Mode::Hybrid,
            (Some(_), false) => Mode::V2,
            (None, _) => Mode::V1,
        }
    }

    /// The mount point of the v2 tree.
    #[must_use]
    pub fn v2(&self) -> Option<&Path> {
        self.v2.as_deref()
    }

    /// The mount point of a v1 controller.
    #[must_use]
    pub fn v1(&self, controller: &str) -> Option<&Path> {
        self.v1.get(controller).map(PathBuf::as_path)
    }

    /// All v1 controllers with their mount points.
    pub fn controllers(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.v1.iter().map(|(name, path)| (name.as_str(), path.as_path()))
    }

    /// The tree that sandboxes are looked for in: v2 where there is one, else a v1 hierarchy that every runtime uses.
    #[must_use]
    pub fn tree(&self) -> Option<&Path> {
        self.v2().or_else(|| ["pids", "memory", "cpu", "devices"].iter().find_map(|name| self.v1(name)))
    }
}

/// What statfs(2) says: `CGROUP2_SUPER_MAGIC` of include/uapi/linux/magic.h.
fn is_v2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == libc::CGROUP2_SUPER_MAGIC)
}

/// Mount points have blanks, tabs, newlines and backslashes as three octal digits.
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(u8::is_ascii_digit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the fuzz target calls: reads `text` as a list of mounts.
///
/// # Panics
/// When a hierarchy is found that no line tells, or at another place than was asked for.
#[cfg(any(fuzzing, test))]
pub fn fuzz(text: &str) {
    for cgroupfs in ["/", "/sys/fs/cgroup"].map(Path::new) {
        let found = Hierarchies::parse(text, cgroupfs);
        let points: Vec<&Path> = found.v2().into_iter().chain(found.controllers().map(|(_, point)| point)).collect();
        assert!(points.iter().all(|point| point.starts_with(cgroupfs)), "{points:?} are not all below {cgroupfs:?}");
        assert!(found.tree().is_none_or(|tree| points.contains(&tree)), "the tree is not among {points:?}");
        assert_eq!(found.v2().is_none(), found.mode() == Mode::V1);
    }
    for line in text.lines().filter(|line| !line.contains('\\')) {
        assert_eq!(unescape(line), line);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What the fuzz target does, with far fewer texts that look like a list of mounts.
        #[test]
        fn no_list_of_mounts_makes_it_panic(
            text in "([0-9 ]{0,3}( ?[a-z:/\\\\0-9+]{0,9}){0,6} - (cgroup2?|tmpfs)( [a-z,=/]{0,9}){0,3}\n){0,4}",
            other in any::<String>(),
        ) {
            fuzz(&text);
            fuzz(&other);
        }
    }

    #[test]
    fn only_three_octal_digits_are_an_escape() {
        for (text, plain) in
            [("a\\040b", "a b"), ("\\134", "\\"), ("\\+12", "\\+12"), ("\\04", "\\04"), ("\\480", "\\480")]
        {
            assert_eq!(unescape(text), plain);
        }
    }

    const HYBRID: &str = "\
24 1 0:22 / /sys rw - sysfs sys rw
30 24 0:26 / /sys/fs/cgroup rw - tmpfs cgroup rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    fn at(text: &str, cgroupfs: &str) -> Hierarchies {
        Hierarchies::parse(text, Path::new(cgroupfs))
    }

    #[test]
    fn a_hybrid_host() {
        let found = at(HYBRID, "/sys/fs/cgroup");
        assert_eq!(found.mode(), Mode::Hybrid);
        assert_eq!(found.v2(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(found.v1("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.v1("memory"), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(found.v1("pids"), None);
    }

    #[test]
    fn a_pure_v2_host_and_one_whose_tree_is_mounted_elsewhere() {
        let text =
            "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 none rw\n2 0 0:2 / /host/my\\040cg rw shared:1 - cgroup2 none rw\n";
        assert_eq!(at(text, "/sys/fs/cgroup").mode(), Mode::V2);
        assert_eq!(at(text, "/host").v2(), Some(Path::new("/host/my cg")));
    }

    #[test]
    fn a_v1_host_and_none() {
        let v1: String = HYBRID.lines().filter(|line| !line.contains("cgroup2")).map(|l| format!("{l}\n")).collect();
        let found = at(&v1, "/sys/fs/cgroup");
        assert_eq!((found.mode(), found.v2()), (Mode::V1, None));
        assert_eq!(found.tree(), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(at("", "/sys/fs/cgroup"), Hierarchies::default());
        assert_eq!(at("junk\n - cgroup\n1 2 3 4 /x - cgroup\n", "/"), Hierarchies::default());
    }

    #[test]
    fn a_directory_that_is_no_mount_says_itself_what_it_is() {
        let error = Hierarchies::detect(Path::new("/proc"), Path::new("/dev")).unwrap_err().to_string();
        assert!(error.contains("/dev") && error.contains("--path.cgroupfs"), "{error}");
        let Ok(Some(root)) = Hierarchies::detect(Path::new("/proc"), Path::new("/")).map(|found| found.v2) else {
            return;
        };
        for below in fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
            // It may vanish at any time.
            let Ok(found) = Hierarchies::detect(Path::new("/proc"), &below) else { continue };
            assert_eq!((found.mode(), found.v2()), (Mode::V2, Some(below.as_path())));
        }
    }
}
