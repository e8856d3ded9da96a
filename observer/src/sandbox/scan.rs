//! What is in the cgroup tree now. Facts only.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    classify::{Kind, classify},
    model::{QosClass, Runtime},
};

/// Directories below which nothing is looked for: deeper than any runtime nests.
const MAX_DEPTH: usize = 24;
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

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Pods, with and without containers.
    pub pods: Vec<FoundPod>,
    /// Containers, in pods and alone.
    pub containers: Vec<FoundContainer>,
    /// Directories in which pods or containers can appear.
    pub parents: Vec<PathBuf>,
}

/// Walks the tree below `root/start`. Directories that vanish meanwhile are not there.
///
/// # Errors
///
/// When `root/start` itself cannot be read.
pub fn scan(root: &Path, start: &str) -> io::Result<Found> {
    let mut walk = Walk { root, found: Found::default(), left: MAX_DIRECTORIES };
    let top = start.trim_end_matches('/');
    fs::read_dir(directory(root, top))?;
    walk.visit(top, 0);
    Ok(walk.found)
}

/// The directory of a cgroup path below a root.
#[must_use]
pub fn directory(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

struct Walk<'a> {
    root: &'a Path,
    found: Found,
    left: usize,
}

impl Walk<'_> {
    fn visit(&mut self, path: &str, depth: usize) {
        if depth > MAX_DEPTH || self.left == 0 {
            return;
        }
        self.left -= 1;
        let directory = directory(self.root, path);
        match classify(path) {
            Kind::Pod { uid, qos } => {
                let Ok(metadata) = fs::metadata(&directory) else { return };
                self.found.pods.push(FoundPod { path: path.to_owned(), inode: metadata.ino(), uid, qos });
                self.found.parents.push(directory.clone());
            }
            Kind::Container { id, runtime, pod } => {
                let Ok(metadata) = fs::metadata(&directory) else { return };
                let mut pid = first_process(&directory);
                let mut nested = Vec::new();
                self.below(&directory, path, depth, &mut nested, &mut pid);
                let (path, inode) = (path.to_owned(), metadata.ino());
                self.found.containers.push(FoundContainer { path, inode, id, runtime, pod, nested, pid });
                return;
            }
            Kind::Helper | Kind::Nested { .. } => return,
            Kind::Other => self.found.parents.push(directory.clone()),
        }
        for name in children(&directory) {
            self.visit(&format!("{path}/{name}"), depth + 1);
        }
    }

    /// Cgroups below a container: its own, unless a node runs in it (kind), whose pods are found as any others.
    fn below(&mut self, directory: &Path, path: &str, depth: usize, nested: &mut Vec<u64>, pid: &mut Option<i32>) {
        for name in children(directory) {
            let child = format!("{path}/{name}");
            if matches!(classify(&child), Kind::Nested { .. }) {
                if self.left == 0 || depth > MAX_DEPTH {
                    return;
                }
                self.left -= 1;
                let below = directory.join(&name);
                if let Ok(metadata) = fs::metadata(&below) {
                    nested.push(metadata.ino());
                    *pid = pid.or_else(|| first_process(&below));
                    self.below(&below, &child, depth + 1, nested, pid);
                }
            } else {
                self.visit(&child, depth + 1);
            }
        }
    }
}

fn children(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// The first process of `cgroup.procs`; 0 stands for one in another PID namespace and says nothing.
fn first_process(directory: &Path) -> Option<i32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).ok()?;
    text.lines().filter_map(|line| line.parse().ok()).find(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "11111111-2222-3333-4444-000000000001";

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
        assert!(found.parents.contains(&directory(root.path(), &pod)));
        assert!(found.parents.contains(&root.path().join("user.slice")));
        assert!(!found.parents.iter().any(|path| path.ends_with("init.scope")));
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
