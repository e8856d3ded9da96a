use std::{
    os::{fd::AsRawFd, unix::fs::FileExt},
    time::Duration,
};

use super::*;
use crate::{
    resources::Limit,
    resources::testing::{container, sandbox, snapshot, snapshot_of},
    sandbox::ContainerKind,
};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn hybrid(root: &Path) -> CgroupRoots {
    let v1 = CgroupRoots::V1_CONTROLLERS.iter().map(|c| ((*c).to_owned(), root.join(c))).collect();
    CgroupRoots { v2: Some(root.join("unified")), v1 }
}

#[test]
fn a_hybrid_host_is_read_from_both_trees() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(root, "unified/p/a/cpu.stat", "usage_usec 3\nuser_usec 1\nsystem_usec 2\n");
    write(root, "unified/p/a/cgroup.procs", "1\n2\n");
    write(root, "memory/p/a/memory.usage_in_bytes", "4096\n");
    write(root, "pids/p/a/pids.current", "5\n");
    let mut pause = container("POD", "/p/pause");
    pause.kind = ContainerKind::Pause;
    let mut gone = container("gone", "/p/gone");
    gone.alive = false;
    let snapshot = snapshot(vec![("p", vec![pause, container("a", "/p/a"), gone])]);
    let mut reader = Reader::new(hybrid(root), Path::new("/proc"));
    let reading = reader.read(&snapshot);
    assert!(reading.trouble.is_none());
    assert_eq!(reading.usages.len(), 1);
    let usage = &reading.usages[0].usage;
    assert_eq!((usage.cpu_user, usage.usage, usage.threads), (Some(1e-6), Some(4096), Some(5)));
    assert_eq!((usage.processes, usage.swap, usage.limit), (Some(2), None, None));

    // Held files are read again.
    write(root, "unified/p/a/cgroup.procs", "1\n2\n3\n");
    assert_eq!(reader.read(&snapshot).usages[0].usage.processes, Some(3));
    let before = reader.files.allowance.left();
    reader.read(&Snapshot::default());
    assert_eq!((reader.cgroups.len(), reader.files.allowance.left()), (0, before + 4));
}

#[test]
fn the_tree_is_read_with_the_further_files_and_both_readings_share_what_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for (at, cgroup) in ["", "kubepods/", "kubepods/pod1/", "kubepods/pod1/a/"].into_iter().enumerate() {
        write(root, &format!("unified/{cgroup}cpu.stat"), &format!("usage_usec {at}\n"));
        write(root, &format!("memory/{cgroup}memory.memsw.limit_in_bytes"), &format!("{}\n", 4096 * at));
    }
    write(root, "cpuacct/kubepods/cpuacct.usage", "1001\n");
    let mut pod = sandbox("one", vec![container("a", "/kubepods/pod1/a")]);
    pod.cgroup = Some("/kubepods/pod1".into());
    let snapshot = snapshot_of(vec![pod]);
    let mut reader = Reader::new(hybrid(root), Path::new("/proc"));
    let tree = reader.read_tree(&snapshot, Extent::Everything, |_| true);
    assert!(tree.trouble.is_none());
    let found: Vec<_> = tree
        .cgroups
        .iter()
        .map(|c| (c.target.cgroup(), c.facts.cpu.usage, c.extra.swap_limit.map(Limit::or_zero)))
        .collect();
    let expected = [
        ("/", Some(0), Some(0)),
        ("/kubepods", Some(1), Some(4096)),
        ("/kubepods/pod1", Some(2), Some(8192)),
        ("/kubepods/pod1/a", Some(3), Some(12288)),
    ];
    assert_eq!(found, expected);
    assert_eq!(tree.cgroups[1].extra.cpu_total, Some(1001));
    write(root, "pids/kubepods/pod1/pids.current", "5\n");
    write(root, "memory/kubepods/pod1/memory.usage_in_bytes", "4096\n");
    let mut other = Reader::new(hybrid(root), Path::new("/proc"));
    let pods = other.read_tree(&snapshot, Extent::Autoscaling, |target| matches!(target, Target::Pod(..)));
    let found: Vec<_> = pods.cgroups.iter().map(|c| (c.usage.usage, c.usage.threads, c.cpu_total())).collect();
    assert_eq!(found, [(Some(4096), None, Some(2e-6))]);

    // A reading of containers alone closes nothing that the tree needs.
    let (open, further) = (reader.files.allowance.left(), reader.files.further.left());
    reader.read(&snapshot);
    assert_eq!((reader.files.allowance.left(), reader.files.further.left(), reader.cgroups.len()), (open, further, 4));
    reader.read(&Snapshot::default());
    // One of the container's two files is a setting, which is not kept open; so is one of each cgroup above it.
    let left = (reader.files.allowance.left(), reader.files.further.left(), reader.cgroups.len());
    assert_eq!(left, (open + 1, further + 3, 1), "only the node is left");
}

#[test]
fn processes_of_nested_cgroups_count() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(root, "a/cgroup.procs", "1\n");
    write(root, "a/b/cgroup.procs", "2\n3\n");
    write(root, "a/b/c/cgroup.procs", "4\n");
    let mut outer = container("a", "/a");
    outer.nested_cgroup_ids = vec![7];
    let snapshot = snapshot(vec![("p", vec![outer])]);
    let roots = CgroupRoots { v2: Some(root.into()), ..CgroupRoots::default() };
    assert_eq!(Reader::new(roots, Path::new("/proc")).read(&snapshot).usages[0].usage.processes, Some(4));
}

#[test]
fn of_two_with_the_same_names_the_later_comes_first() {
    let mut old = container("a", "/old");
    old.started = Some(SystemTime::UNIX_EPOCH);
    let mut new = container("a", "/new");
    new.started = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9));
    let snapshot = snapshot(vec![("p", vec![old.clone()]), ("p", vec![new.clone()]), ("b", vec![])]);
    let mut reader = Reader::new(CgroupRoots::default(), Path::new("/proc"));
    let reading = reader.read(&snapshot);
    assert_eq!(reading.usages.iter().map(|u| u.started).collect::<Vec<_>>(), [new.started, old.started]);
    assert_eq!(reading.usages[0].usage, Usage::default());
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_hides_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("a/memory.current")).unwrap();
    // Opens, and its first byte cannot be read (EIO).
    for name in ["memory.stat", "memory.max"] {
        std::os::unix::fs::symlink("/proc/self/mem", root.join("a").join(name)).unwrap();
    }
    write(root, "a/pids.current", "5\n");
    let snapshot = snapshot(vec![("p", vec![container("a", "/a")])]);
    let roots = CgroupRoots { v2: Some(root.into()), ..CgroupRoots::default() };
    let mut reader = Reader::new(roots, Path::new("/proc"));
    let reading = reader.read(&snapshot);
    assert!(reading.trouble.unwrap().to_string().contains("a/memory.current"));
    assert_eq!(reading.usages[0].usage, Usage { threads: Some(5), ..Usage::default() });
}

/// The hierarchies of this machine.
fn real() -> CgroupRoots {
    let root = Path::new("/sys/fs/cgroup");
    let v2 = [root.to_owned(), root.join("unified")].into_iter().find(|d| d.join("cgroup.controllers").exists());
    let v1 = CgroupRoots::V1_CONTROLLERS.iter().map(|c| ((*c).to_owned(), root.join(c)));
    CgroupRoots { v2, v1: v1.filter(|(_, d)| d.join("cgroup.procs").exists()).collect() }
}

/// Makes and removes a cgroup in every hierarchy.
struct Cgroup(Vec<PathBuf>);

impl Cgroup {
    fn new(path: &str) -> Self {
        let CgroupRoots { v2, v1 } = real();
        let mut directories: Vec<_> = v2.into_iter().chain(v1.into_values()).map(|d| d.join(path)).collect();
        directories.sort();
        directories.dedup();
        directories.iter().for_each(|d| fs::create_dir(d).unwrap());
        Self(directories)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.0.iter().for_each(|d| fs::remove_dir(d).unwrap());
    }
}

#[test]
fn real_cgroups_go_and_come_again() {
    if !rustix::process::geteuid().is_root() {
        println!("not tested: making cgroups needs root");
        return;
    }
    let name = format!("observer-test-{}", std::process::id());
    let snapshot = snapshot(vec![("p", vec![container("a", &format!("/{name}"))])]);
    let mut reader = Reader::new(real(), Path::new("/proc"));
    let cgroup = Cgroup::new(&name);
    for _ in 0..2 {
        let usage = reader.read(&snapshot).usages[0].usage.clone();
        assert_eq!((usage.processes, usage.cpu_user.is_some()), (Some(0), true));
    }
    drop(cgroup);
    let reading = reader.read(&snapshot);
    assert!(reading.trouble.is_none(), "{:?}", reading.trouble);
    assert_eq!(reading.usages[0].usage, Usage::default());
    let _again = Cgroup::new(&name);
    let found = (0..40).find(|_| reader.read(&snapshot).usages[0].usage.processes == Some(0));
    assert!(found.is_some());
}

/// A cgroup that goes between the opening of a file and the reading. All of its files, in the kernel's own words.
#[test]
fn a_file_whose_cgroup_went_while_it_was_open_is_absent() {
    if !rustix::process::geteuid().is_root() {
        println!("not tested: making cgroups needs root");
        return;
    }
    let name = format!("observer-test-open-{}", std::process::id());
    let cgroup = Cgroup::new(&name);
    let roots = real();
    let files = FILES.iter().filter_map(|(_, hierarchy, file)| {
        let path = below(hierarchy.root(&roots)?, &name).join(file);
        let open = || fs::File::open(&path).ok();
        Some((*file, open()?, open()?))
    });
    let files: Vec<_> = files.collect();
    assert!(!files.is_empty());
    drop(cgroup);
    let (allowance, mut buffer) = (Allowance::from(0), Buffer::default());
    for (name, held, other) in files {
        assert_eq!(other.read_at(&mut [0], 0).unwrap_err().raw_os_error(), Some(libc::ENODEV), "{name}");
        // Whoever opens it anew meets the removed one, too.
        let path = || PathBuf::from(format!("/proc/self/fd/{}", other.as_raw_fd()));
        let mut slot = Slot::Open(held);
        assert_eq!(slot.read(path, &allowance, &mut buffer).unwrap(), Found::Absent, "{name}");
        assert!(!read_once(&path(), &mut buffer).unwrap(), "{name}");
    }
}
