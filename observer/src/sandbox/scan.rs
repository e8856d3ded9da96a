//! What is in the cgroup tree now. Facts only.

use std::{
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    classify::{Kind, classify},
    model::{QosClass, Runtime},
};

/// Directories below which nothing is looked for: deeper than any runtime nests.
pub(super) const MAX_DEPTH: usize = 24;
/// Directories that one scan looks at.
const MAX_DIRECTORIES: usize = 200_000;

/// A pod's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPod {
    /// Below the hierarchy's root, with a leading `/`.
    pub path: String,
    /// Inode of the directory: the cgroup v2 id, when the tree is v2.
    pub inode: u64,
    /// The pod's UID.
    pub uid: String,
    /// The class that the path tells.
    pub qos: QosClass,
    /// Inodes of cgroups below that are no container's: a sandboxed runtime's own processes, a monitor.
    pub others: Vec<u64>,
}

/// A container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundContainer {
    /// Below the hierarchy's root, with a leading `/`.
    pub path: String,
    /// Inode of the directory.
    pub inode: u64,
    /// The container's id.
    pub id: String,
    /// The runtime, if the name tells.
    pub runtime: Runtime,
    /// The pod's cgroup.
    pub pod: Option<String>,
    /// Inodes of the cgroups below.
    pub nested: Vec<u64>,
    /// A process in it, or below.
    pub pid: Option<i32>,
}

/// A container's cgroup that was there a moment ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Below the hierarchy's root, with a leading `/`.
    pub path: String,
    /// Inode of the directory.
    pub inode: u64,
}

impl Sighting {
    /// Looks at a cgroup; `None` when it has gone.
    #[must_use]
    pub fn of(root: &Path, path: &str) -> Option<Self> {
        let inode = fs::metadata(directory(root, path)).ok()?.ino();
        Some(Self { path: path.to_owned(), inode })
    }
}

impl From<&FoundContainer> for Sighting {
    fn from(found: &FoundContainer) -> Self {
        Self { path: found.path.clone(), inode: found.inode }
    }
}

/// A directory in which something can appear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The directory.
    pub path: PathBuf,
    /// Its inode.
    pub inode: u64,
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Pods, with and without containers.
    pub pods: Vec<FoundPod>,
    /// Containers, in pods and alone.
    pub containers: Vec<FoundContainer>,
    /// Directories in which pods, containers or their own cgroups can appear.
    pub parents: Vec<Parent>,
    /// There is more than one scan looks at.
    pub truncated: bool,
}

/// Walks the tree below `root/start`. Directories that vanish meanwhile are not there.
///
/// # Errors
///
/// When `root/start` itself cannot be read.
pub fn scan(root: &Path, start: &str) -> io::Result<Found> {
    scan_with(root, start, &|_| None)
}

/// [`scan`] that does not read the processes of containers whose directory (an inode) has one that is `known`: to read
/// `cgroup.procs` is most of a scan's cost.
///
/// # Errors
///
/// As for [`scan`].
pub fn scan_with(root: &Path, start: &str, known: &dyn Fn(u64) -> Option<i32>) -> io::Result<Found> {
    let top = start.trim_end_matches('/');
    let inode = fs::metadata(directory(root, top))?.ino();
    fs::read_dir(directory(root, top))?;
    let mut walk = Walk { root, known, found: Found::default(), left: MAX_DIRECTORIES };
    walk.visit(Place { path: top.to_owned(), inode, depth: 0, pod: None });
    Ok(walk.found)
}

/// The directory of a cgroup path below a root.
#[must_use]
pub fn directory(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

struct Walk<'a> {
    root: &'a Path,
    known: &'a dyn Fn(u64) -> Option<i32>,
    found: Found,
    left: usize,
}

/// A directory on the way.
struct Place {
    path: String,
    inode: u64,
    depth: usize,
    /// The pod above, as an index.
    pod: Option<usize>,
}

impl Walk<'_> {
    fn visit(&mut self, place: Place) {
        if !self.may_go_on(&place) {
            return;
        }
        let directory = directory(self.root, &place.path);
        let mut pod = place.pod;
        match classify(&place.path) {
            Kind::Pod { uid, qos } => {
                pod = Some(self.found.pods.len());
                let (path, inode) = (place.path.clone(), place.inode);
                self.found.pods.push(FoundPod { path, inode, uid, qos, others: Vec::new() });
                self.parent(&directory, inode);
            }
            Kind::Container { id, runtime, pod } => {
                let mut pid = (self.known)(place.inode).or_else(|| first_process(&directory));
                let mut nested = Vec::new();
                self.below(&directory, &place, &mut nested, &mut pid);
                let Place { path, inode, .. } = place;
                return self.found.containers.push(FoundContainer { path, inode, id, runtime, pod, nested, pid });
            }
            Kind::Nested { .. } => return,
            kind => {
                if let Some(pod) = pod.and_then(|pod| self.found.pods.get_mut(pod)) {
                    pod.others.push(place.inode);
                }
                if kind == Kind::Helper {
                    return;
                }
                self.parent(&directory, place.inode);
            }
        }
        for child in children(&directory, &place, pod) {
            self.visit(child);
        }
    }

    fn parent(&mut self, path: &Path, inode: u64) {
        self.found.parents.push(Parent { path: path.to_owned(), inode });
    }

    /// Cgroups below a container: its own, unless a node runs in it (kind), whose pods are found as any others.
    fn below(&mut self, directory: &Path, place: &Place, nested: &mut Vec<u64>, pid: &mut Option<i32>) {
        self.parent(directory, place.inode);
        for child in children(directory, place, None) {
            if !matches!(classify(&child.path), Kind::Nested { .. }) {
                self.visit(child);
            } else if self.may_go_on(&child) {
                let directory = super::scan::directory(self.root, &child.path);
                nested.push(child.inode);
                *pid = pid.or_else(|| first_process(&directory));
                self.below(&directory, &child, nested, pid);
            }
        }
    }

    fn may_go_on(&mut self, place: &Place) -> bool {
        let good = place.depth <= MAX_DEPTH && self.left > 0;
        self.left = self.left.saturating_sub(1);
        self.found.truncated |= !good;
        good
    }
}

/// The names of the directories in a directory; none when it has gone.
pub(super) fn directories(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn children(directory: &Path, place: &Place, pod: Option<usize>) -> Vec<Place> {
    // A directory has a link from each one in it, besides its name and its own `.` (kernfs_refresh_inode in
    // fs/kernfs/inode.c): most cgroups have none, and reading them for that would list every file of theirs. A file
    // system that does not count links says 1.
    if fs::metadata(directory).is_ok_and(|metadata| metadata.nlink() == 2) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut children: Vec<Place> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| {
            let path = format!("{}/{}", place.path, entry.file_name().to_str()?);
            Some(Place { path, inode: entry.ino(), depth: place.depth + 1, pod })
        })
        .collect();
    children.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    children
}

/// The first process of `cgroup.procs`; 0 stands for one in another PID namespace and says nothing.
fn first_process(directory: &Path) -> Option<i32> {
    first_of(&fs::read_to_string(directory.join("cgroup.procs")).ok()?)
}

/// Of whole lines alone: the beginning of a number is another process'.
fn first_of(processes: &str) -> Option<i32> {
    processes.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).find(|pid| *pid > 0)
}

/// What the fuzz target calls: reads `text` as a `cgroup.procs`.
///
/// # Panics
/// When a process is found that no line tells.
#[cfg(any(fuzzing, test))]
pub fn fuzz(text: &str) {
    if let Some(first) = first_of(text) {
        assert!(first > 0 && text.lines().any(|line| line.parse() == Ok(first)), "{first} is no process of {text:?}");
        let end = text.char_indices().next_back().map_or(0, |(end, _)| end);
        let cut = first_of(&text[..end]);
        assert!(cut.is_none_or(|pid| pid == first), "{cut:?}, not {first}, without the end of {text:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "11111111-2222-3333-4444-000000000001";

    #[test]
    fn the_first_process_is_one_of_this_namespace() {
        let cases =
            [("0\n17\n", Some(17)), ("", None), ("-4\nx\n\n99999999999\n", None), ("7\n8", Some(7)), ("7", None)];
        for (text, first) in cases {
            assert_eq!(first_of(text), first, "{text:?}");
            fuzz(text);
        }
    }

    #[test]
    fn a_tree_of_pods_and_strangers() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let pod = format!("/kubepods/burstable/pod{UID}");
        for path in
            [format!("{pod}/{a}/init.scope"), format!("{pod}/{b}"), format!("/docker/{a}"), "/user.slice".into()]
        {
            fs::create_dir_all(directory(root.path(), &path)).unwrap();
        }
        fs::write(directory(root.path(), &format!("{pod}/{a}/init.scope/cgroup.procs")), "0\n17\n").unwrap();
        let found = scan(root.path(), "").unwrap();
        assert_eq!(
            found.pods.iter().map(|p| (p.uid.as_str(), p.qos)).collect::<Vec<_>>(),
            [(UID, QosClass::Burstable)]
        );
        let containers: Vec<_> =
            found.containers.iter().map(|c| (c.path.as_str(), c.pod.as_deref(), c.nested.len(), c.pid)).collect();
        assert_eq!(
            containers,
            [
                (format!("/docker/{a}").as_str(), None, 0, None),
                (format!("{pod}/{a}").as_str(), Some(pod.as_str()), 1, Some(17)),
                (format!("{pod}/{b}").as_str(), Some(pod.as_str()), 0, None),
            ]
        );
        for path in [pod.as_str(), &format!("{pod}/{a}/init.scope"), &format!("{pod}/{b}"), "/user.slice"] {
            let path = directory(root.path(), path);
            let inode = fs::metadata(&path).unwrap().ino();
            assert!(found.parents.contains(&Parent { path, inode }));
        }
    }

    #[test]
    fn pods_of_a_node_that_is_a_container() {
        let root = tempfile::tempdir().unwrap();
        let (node, inner) = ("a".repeat(64), "b".repeat(64));
        let path = format!("/docker/{node}/kubelet/kubepods/pod{UID}/{inner}");
        fs::create_dir_all(directory(root.path(), &path)).unwrap();
        let found = scan(root.path(), "").unwrap();
        assert_eq!(found.pods.len(), 1);
        assert!(found.containers.iter().any(|container| container.id == inner && container.pod.is_some()));
    }

    #[test]
    fn a_root_that_is_not_there_is_an_error() {
        assert!(scan(Path::new("/nonexistent"), "").is_err());
    }
}
