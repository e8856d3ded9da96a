use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, UNIX_EPOCH},
};

use super::*;
use crate::{
    metrics::collectors::ResourceEndpointCollector,
    resources::{
        CgroupRoots, Reader,
        testing::{container, sandbox, snapshot_of},
    },
    sandbox::Container,
};

const MEMINFO: &str = "MemTotal: 4000 kB\nMemFree: 1000 kB\nSwapTotal: 100 kB\nSwapFree: 60 kB\n";
const HEAD: &str = "Inter-|   Receive  |  Transmit\n face |bytes packets ...\n";
const SHELL: &str = "/kubepods/burstable/pod1/s";
const APP: &str = "/kubepods/burstable/pod1/a";

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// What statvfs(3) would say; of one file system no number of inodes.
fn known(path: &Path, _: &Mounted) -> io::Result<Option<Space>> {
    let (inodes, inodes_free) = if path.ends_with("data") { (0, 0) } else { (500, 400) };
    Ok(Some(Space { bytes: 9000, free: 2000, inodes, inodes_free }))
}

/// A node with one pod: its pause container and one of its own, with files of the given hierarchies.
struct Node {
    directory: tempfile::TempDir,
    snapshot: Snapshot,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, "proc/meminfo", MEMINFO);
        write(root, "proc/stat", "cpu  1 2 3 4 5 6 7 8 9 10\nctxt 1\nbtime 1700000000\nprocesses 1\n");
        write(root, "proc/1/net/dev", &format!("{HEAD} eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"));
        let mounts = "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n2 0 0:5 / /data rw - btrfs /dev/vdb rw\n";
        write(root, "proc/1/mountinfo", mounts);
        write(root, "proc/1/root/etc/machine-id", "machine\n");
        write(root, "proc/1/root/etc/os-release", "PRETTY_NAME=\"Debian\"\n");
        write(root, "proc/sys/kernel/random/boot_id", "boot\n");
        write(root, "proc/sys/kernel/osrelease", "6.12\n");
        write(root, "sys/class/dmi/id/product_uuid", "uuid\n");
        write(root, "sys/devices/system/cpu/cpu0/topology/core_id", "0\n");
        write(root, "sys/devices/system/cpu/cpu0/topology/physical_package_id", "0\n");
        write(root, "proc/40/ns/net", "");
        write(
            root,
            "proc/40/net/dev",
            &format!(
                "{HEAD}    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n\
            eth0: 11 12 13 14 0 0 0 0 15 16 17 18 0 0 0 0\n"
            ),
        );
        let started = |millis: u64| Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + millis));
        let shell = Container {
            id: "shell".into(),
            image: "pause:3".into(),
            kind: ContainerKind::Pause,
            pid: Some(40),
            started: started(1500),
            ..container("s", SHELL)
        };
        let app = Container {
            id: "app-id".into(),
            image: "busybox".into(),
            pid: Some(41),
            started: started(2250),
            ..container("app", APP)
        };
        let pod = Sandbox {
            cgroup: Some("/kubepods/burstable/pod1".into()),
            netns: Some(fs::metadata(root.join("proc/40/ns/net")).unwrap().ino()),
            ..sandbox("p", vec![shell, app])
        };
        Self { directory, snapshot: snapshot_of(vec![pod]) }
    }

    fn write(&self, path: &str, text: &str) {
        write(self.directory.path(), path, text);
    }

    fn reader(&self, v2: Option<&str>, v1: &[&str]) -> SharedReader {
        let root = self.directory.path();
        let v1 = v1.iter().map(|name| ((*name).to_owned(), root.join(name))).collect();
        SharedReader::new(Reader::new(CgroupRoots { v2: v2.map(|path| root.join(path)), v1 }, Path::new("/proc")))
    }

    /// Both endpoints, one after the other.
    fn scrape(&self, reader: SharedReader) -> (String, String) {
        let root = self.directory.path();
        let mut cadvisor = CadvisorCollector {
            sysfs: root.join("sys"),
            space: known,
            ..CadvisorCollector::new(reader.clone(), &root.join("proc"))
        };
        let mut out = Exposition::default();
        cadvisor.collect_at(UNIX_EPOCH + Duration::from_millis(1_700_000_100_900), &self.snapshot, &mut out).unwrap();
        let first = String::from_utf8(out.take().concat()).unwrap();
        let mut out = Exposition::default();
        ResourceEndpointCollector::new(reader, &root.join("proc")).collect(&self.snapshot, &mut out).unwrap();
        (first, String::from_utf8(out.take().concat()).unwrap())
    }
}

/// Compares with a file; the file is written anew when `OBSERVER_TEST_BLESS` is set, for a person to read.
fn assert_golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compat").join(name);
    if std::env::var_os("OBSERVER_TEST_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    let differs = expected.lines().zip(found.lines()).find(|(a, b)| a != b);
    assert!(expected == found, "not what {name} says, first at {differs:?}:\n{found}");
}

#[test]
fn a_pure_v2_node() {
    let node = Node::new();
    node.write("cg/cpu.stat", "usage_usec 9000001\nuser_usec 6000000\nsystem_usec 3000001\n");
    node.write("cg/memory.stat", "anon 100\nfile 200\ninactive_file 1024\nactive_file 50\npgfault 7\npgmajfault 1\n");
    node.write("cg/cgroup.procs", "1\n2\n");
    for (at, cgroup) in [(1, "/kubepods"), (2, "/kubepods/burstable/pod1"), (3, SHELL), (4, APP)] {
        node.write(
            &format!("cg{cgroup}/cpu.stat"),
            &format!(
                "usage_usec {at}00003\nuser_usec {at}00001\n\
            system_usec 2\nnr_periods {at}1\nnr_throttled {at}2\nthrottled_usec {at}500000\nnr_bursts {at}3\n\
            burst_usec {at}250000\n"
            ),
        );
        node.write(&format!("cg{cgroup}/cpu.max"), if at == 4 { "50000 100000\n" } else { "max 100000\n" });
        node.write(&format!("cg{cgroup}/memory.current"), &format!("{at}0000\n"));
        node.write(
            &format!("cg{cgroup}/memory.stat"),
            &format!(
                "anon {at}100\nfile {at}200\nkernel {at}300\n\
            file_mapped {at}400\ninactive_file {at}001\nactive_file {at}600\npgfault {at}7\npgmajfault {at}\n"
            ),
        );
        node.write(&format!("cg{cgroup}/memory.swap.current"), &format!("{at}0\n"));
        node.write(&format!("cg{cgroup}/memory.swap.max"), if at == 4 { "0\n" } else { "max\n" });
        node.write(&format!("cg{cgroup}/memory.min"), &format!("{at}5\n"));
        node.write(&format!("cg{cgroup}/memory.peak"), &format!("{at}9999\n"));
        node.write(&format!("cg{cgroup}/memory.max"), if at == 4 { "65536\n" } else { "max\n" });
        node.write(&format!("cg{cgroup}/pids.current"), &format!("{at}\n"));
        node.write(&format!("cg{cgroup}/pids.max"), if at == 4 { "99\n" } else { "max\n" });
        node.write(&format!("cg{cgroup}/cpu.weight"), &format!("{at}00\n"));
        node.write(&format!("cg{cgroup}/memory.events"), &format!("low 0\nhigh 0\nmax {at}6\noom 9\noom_kill {at}8\n"));
        for (resource, number) in [("cpu", 1), ("memory", 2), ("io", 3)] {
            let total = |number| format!("avg10=0.00 avg60=0.00 avg300=0.00 total={at}{number}00000");
            let text = format!("some {}\nfull {}\n", total(number), total(number + 3));
            node.write(&format!("cg{cgroup}/{resource}.pressure"), &text);
        }
        let io = format!("4095:9 rbytes={at}01 wbytes={at}02 rios={at}03 wios={at}04 dbytes=0 dios=0\n");
        node.write(&format!("cg{cgroup}/io.stat"), &io);
        node.write(&format!("cg{cgroup}/cgroup.procs"), if at > 2 { "40\n" } else { "" });
    }
    let (cadvisor, resource) = node.scrape(node.reader(Some("cg"), &[]));
    assert_golden("v2_cadvisor.prom", &cadvisor);
    assert_golden("v2_resource.prom", &resource);
}

#[test]
fn a_hybrid_node() {
    let node = Node::new();
    let no_limit = "9223372036854771712\n";
    for (at, cgroup) in [(0, ""), (1, "/kubepods"), (2, "/kubepods/burstable/pod1"), (3, SHELL), (4, APP)] {
        let all_of = format!("usage_usec {at}00003\nuser_usec {at}00001\nsystem_usec 2\n");
        node.write(&format!("unified{cgroup}/cpu.stat"), &all_of);
        node.write(&format!("unified{cgroup}/cgroup.procs"), if at > 2 { "40\n" } else { "" });
        node.write(&format!("cpuacct{cgroup}/cpuacct.usage"), &format!("{at}00003789\n"));
        node.write(&format!("cpu{cgroup}/cpu.cfs_quota_us"), if at == 4 { "50000\n" } else { "-1\n" });
        node.write(&format!("cpu{cgroup}/cpu.cfs_period_us"), "100000\n");
        node.write(
            &format!("cpu{cgroup}/cpu.stat"),
            "nr_periods 41\nnr_throttled 42\nthrottled_time 500000000\n\
            nr_bursts 43\nburst_time 250000000\n",
        );
        node.write(&format!("memory{cgroup}/memory.usage_in_bytes"), &format!("{at}0000\n"));
        node.write(
            &format!("memory{cgroup}/memory.stat"),
            &format!(
                "cache 1\nrss 1\npgfault {at}3\npgmajfault 1\n\
            total_cache {at}200\ntotal_rss {at}100\ntotal_mapped_file {at}400\ntotal_swap {at}0\n\
            total_inactive_file {at}001\ntotal_active_file {at}600\ntotal_pgfault {at}7\ntotal_pgmajfault {at}\n"
            ),
        );
        node.write(&format!("memory{cgroup}/memory.max_usage_in_bytes"), &format!("{at}9999\n"));
        node.write(&format!("memory{cgroup}/memory.limit_in_bytes"), if at == 4 { "65536\n" } else { no_limit });
        node.write(&format!("memory{cgroup}/memory.memsw.limit_in_bytes"), if at == 4 { "131072\n" } else { no_limit });
        node.write(&format!("memory{cgroup}/memory.soft_limit_in_bytes"), if at == 4 { "4096\n" } else { no_limit });
        node.write(&format!("memory{cgroup}/memory.failcnt"), &format!("{at}\n"));
        node.write(&format!("memory{cgroup}/memory.kmem.usage_in_bytes"), &format!("{at}300\n"));
        node.write(&format!("memory{cgroup}/memory.oom_control"), &format!("under_oom 0\noom_kill {at}8\n"));
        node.write(&format!("pids{cgroup}/pids.current"), &format!("{at}\n"));
        node.write(&format!("pids{cgroup}/pids.max"), if at == 4 { "99\n" } else { "max\n" });
        node.write(&format!("cpu{cgroup}/cpu.shares"), &format!("{at}02\n"));
    }
    let (cadvisor, resource) = node.scrape(node.reader(Some("unified"), &["cpu", "cpuacct", "memory", "pids"]));
    assert_golden("hybrid_cadvisor.prom", &cadvisor);
    assert_golden("hybrid_resource.prom", &resource);
}

#[test]
fn what_cannot_be_read_is_said_and_hides_nothing() {
    let node = Node::new();
    node.write("cg/memory.stat", "anon 100\n");
    fs::create_dir_all(node.directory.path().join(format!("cg{APP}/memory.current"))).unwrap();
    node.write(&format!("cg{APP}/pids.current"), "5\n");
    fs::remove_file(node.directory.path().join("proc/meminfo")).unwrap();
    let reader = node.reader(Some("cg"), &[]);
    let procfs = node.directory.path().join("proc");
    let mut out = Exposition::default();
    let error = CadvisorCollector::new(reader.clone(), &procfs).collect(&node.snapshot, &mut out).unwrap_err();
    assert!(format!("{error:#}").contains("meminfo"), "{error:#}");
    let text = String::from_utf8(out.take().concat()).unwrap();
    for line in ["container_scrape_error 1\n", "machine_scrape_error 1\n", "container_threads{container=\"app\""] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!text.contains("machine_memory_bytes") && !text.contains("container_memory_usage_bytes"), "{text}");
    let mut out = Exposition::default();
    assert!(ResourceEndpointCollector::new(reader, &procfs).collect(&node.snapshot, &mut out).is_err());
    assert!(String::from_utf8(out.take().concat()).unwrap().contains("resource_scrape_error 1\n"));
}

#[test]
fn interfaces_are_shown_once_for_each_pod() {
    let pause = |name: &str| Container { kind: ContainerKind::Pause, ..container(name, &format!("/pod1/{name}")) };
    let in_pod = |containers| Sandbox { cgroup: Some("/pod1".into()), ..sandbox("p", containers) };
    let gone = Container { alive: false, ..pause("gone") };
    for (pod, expected) in [
        (in_pod(vec![container("a", "/pod1/a"), pause("s"), pause("t")]), "/pod1/s"),
        (in_pod(vec![gone, container("a", "/pod1/a")]), "/pod1"),
        (sandbox("p", vec![container("a", "/docker/a"), container("b", "/docker/b")]), "/docker/a"),
    ] {
        let snapshot = snapshot_of(vec![pod]);
        let found: Vec<_> = crate::resources::targets(&snapshot)
            .into_iter()
            .filter(|target| target.sandbox().is_some_and(|sandbox| shows_network(sandbox, target)))
            .map(|target| target.cgroup())
            .collect();
        assert_eq!(found, [expected]);
    }
}
