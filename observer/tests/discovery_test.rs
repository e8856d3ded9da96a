//! Discovery on real cgroups: what is attached to, how soon, and who is said to be there. As root.

mod support;

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use observer::{
    identity::Snapshot,
    sandbox::{
        AttachPoint, ContainerKind, Discovery, DiscoveryOptions, Hierarchies, Sandbox, SandboxHooks, SandboxKey,
        SandboxTable,
    },
};
use support::{Stage, eventually, id, remove};

/// What the hooks were told.
#[derive(Default)]
struct Told {
    /// When, and how often, by cgroup id.
    attached: HashMap<u64, (Instant, u32)>,
    detached: Vec<u64>,
    /// Refuse what has this in its path.
    refuse: Option<String>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Told>>);

impl SandboxHooks for Recorder {
    fn attach(&mut self, point: &AttachPoint, _: Instant) -> anyhow::Result<()> {
        let mut told = self.0.lock().unwrap();
        told.attached.entry(point.cgroup_id).or_insert((Instant::now(), 0)).1 += 1;
        let refused = told.refuse.as_ref().is_some_and(|part| point.path.to_string_lossy().contains(part));
        anyhow::ensure!(!refused, "refused by the test");
        Ok(())
    }

    fn detach(&mut self, point: &AttachPoint) {
        self.0.lock().unwrap().detached.push(point.cgroup_id);
    }

    fn snapshot(&mut self, _: &Arc<Snapshot>) {}
}

struct Test {
    stage: Stage,
    told: Arc<Mutex<Told>>,
    snapshots: Arc<ArcSwap<Snapshot>>,
    discovery: Discovery,
}

impl Test {
    /// `rescan` is long unless it is what is tested: events alone must do.
    fn new(rescan: Duration) -> Option<Self> {
        let hierarchies = Hierarchies::detect(Path::new("/proc"), Path::new("/sys/fs/cgroup")).unwrap();
        let stage = Stage::new(hierarchies.v2())?;
        let table = SandboxTable::new(
            &hierarchies,
            Path::new("/proc"),
            observer::identity::Names::default(),
            String::new(),
            vec![],
        );
        let recorder = Recorder::default();
        let told = Arc::clone(&recorder.0);
        let snapshots: Arc<ArcSwap<Snapshot>> = Arc::default();
        let discovery =
            Discovery::start(table, DiscoveryOptions { rescan }, Box::new(recorder), Arc::clone(&snapshots)).unwrap();
        assert!(discovery.refresh(Duration::from_secs(10)));
        Some(Self { stage, told, snapshots, discovery })
    }

    fn times_attached(&self, id: u64) -> u32 {
        self.told.lock().unwrap().attached.get(&id).map_or(0, |(_, times)| *times)
    }

    fn sandbox(&self, key: &str) -> Option<Arc<Sandbox>> {
        self.snapshots.load().sandboxes().iter().find(|sandbox| sandbox.key.0 == key).cloned()
    }

    fn attached(&self, id: u64) {
        eventually("attached", || (self.times_attached(id) > 0).then_some(()));
    }
}

const LONG: Duration = Duration::from_secs(3600);
const OWN_NETWORK: &str = "exec unshare -n";

fn hex(digit: char) -> String {
    String::from(digit).repeat(64)
}

#[test]
fn a_new_pod_is_attached_to_at_once() {
    let Some(test) = Test::new(LONG) else { return };
    test.stage.make("kubepods/besteffort");
    std::thread::sleep(Duration::from_millis(100));
    let mut waited = Vec::new();
    for _ in 0..200 {
        let path = test.stage.top.join(format!("kubepods/besteffort/pod{}", test.stage.uid()));
        let begin = Instant::now();
        fs::create_dir(&path).unwrap();
        let id = id(&path);
        test.attached(id);
        waited.push(test.told.lock().unwrap().attached[&id].0.duration_since(begin));
        assert_eq!(test.times_attached(id), 1);
    }
    waited.sort_unstable();
    println!("mkdir to attach: median {:?}, 99th percentile {:?}, worst {:?}", waited[100], waited[198], waited[199]);
    assert!(waited[100] < Duration::from_millis(2), "median {:?}", waited[100]);
}

#[test]
fn pods_that_are_made_with_all_their_parents_at_once_are_attached_to() {
    let Some(test) = Test::new(LONG) else { return };
    for round in 0..50 {
        let path = format!("{round}/a.slice/kubepods/burstable/pod{}/{}", test.stage.uid(), hex('a'));
        let container = test.stage.make(&path);
        test.attached(id(container.parent().unwrap()));
    }
}

#[test]
fn a_pod_lives_and_goes() {
    let Some(mut test) = Test::new(LONG) else { return };
    let uid = test.stage.uid();
    let pod = test.stage.make(&format!("kubepods/burstable/pod{uid}"));
    let (pause, app) = (pod.join(hex('a')), pod.join(hex('b')));
    fs::create_dir(&pause).unwrap();
    fs::create_dir(&app).unwrap();
    // A runtime's own process is there for a while before it becomes the container's.
    let holder = test.stage.run(
        &pause,
        "exec unshare -n sh -c 'ip link set lo up; ip addr add 10.99.7.1/24 dev lo; ip addr add fd99::1/64 dev lo; \
         sleep 0.3; exec $PAUSE 1000'",
    );
    eventually("a namespace", || {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        (of(&holder.to_string())? != of("self")?).then_some(())
    });
    let process = test.stage.run(&app, &format!("exec nsenter -t {holder} -n sleep 1000"));
    let sandbox = eventually("the pod is known", || {
        let sandbox = test.sandbox(&uid)?;
        let told = sandbox.sandbox_id == hex('a') && sandbox.addresses.len() == 2 && sandbox.netns.is_some();
        let together = sandbox.containers.iter().filter_map(|container| container.pid).count() == 2;
        let net = |at: usize| sandbox.containers.get(at)?.namespaces.iter().find(|ns| ns.0 == "net").cloned();
        (told && together && net(0) == net(1)).then_some(sandbox)
    });
    let addresses: Vec<String> = sandbox.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.99.7.1", "fd99::1"]);
    let facts: Vec<_> = sandbox.containers.iter().map(|c| (c.id.clone(), c.kind, c.pid, c.cgroup_id)).collect();
    assert_eq!(
        facts,
        [
            (hex('a'), ContainerKind::Pause, Some(holder), id(&pause)),
            (hex('b'), ContainerKind::Application, Some(process), id(&app))
        ]
    );
    assert!(!sandbox.host_network);
    assert_eq!((sandbox.cgroup_id, sandbox.attach_points.len()), (id(&pod), 1));

    let gone = id(&pod);
    test.stage.kill();
    remove(&pod);
    eventually("gone", || test.sandbox(&uid).filter(|sandbox| !sandbox.alive));
    eventually("detached", || test.told.lock().unwrap().detached.contains(&gone).then_some(()));
    assert_eq!(test.times_attached(gone), 1);
    assert!(test.discovery.refresh(Duration::from_secs(5)));
    assert!(test.sandbox(&uid).is_some(), "it stays for its last scrape");
    test.discovery.release(vec![SandboxKey(uid.clone())]);
    eventually("let go of", || test.sandbox(&uid).is_none().then_some(()));
}

#[test]
fn containers_made_by_hand_are_one_sandbox() {
    let Some(mut test) = Test::new(LONG) else { return };
    let (first, second) =
        (test.stage.make(&format!("pod-foo/{}", hex('c'))), test.stage.make(&format!("pod-foo/{}", hex('a'))));
    let holder = test.stage.run(&first, &format!("{OWN_NETWORK} sleep 1000"));
    eventually("a namespace", || {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        (of(&holder.to_string())? != of("self")?).then_some(())
    });
    std::thread::sleep(Duration::from_millis(20));
    test.stage.run(&second, &format!("exec nsenter -t {holder} -n sleep 1000"));
    let below = first.strip_prefix(&test.stage.root).unwrap().display().to_string();
    let sandbox = eventually("one sandbox", || {
        test.sandbox(&format!("cgroup:/{below}")).filter(|sandbox| sandbox.containers.len() == 2)
    });
    assert_eq!((sandbox.name.as_str(), sandbox.attach_points.len()), ("pod-foo", 2));
    for directory in [&first, &second] {
        assert_eq!(test.times_attached(id(directory)), 1);
    }
}

#[test]
fn a_container_that_is_gone_at_once_has_a_name() {
    let Some(test) = Test::new(LONG) else { return };
    let uid = test.stage.uid();
    let pod = test.stage.make(&format!("kubepods/pod{uid}"));
    test.attached(id(&pod));
    std::thread::sleep(Duration::from_millis(50));
    // What a container that exits at once does, and a real-time thread that is not late by two milliseconds.
    let container = pod.join(hex('e'));
    fs::create_dir(&container).unwrap();
    let gone = id(&container);
    std::thread::sleep(Duration::from_millis(2));
    fs::remove_dir(&container).unwrap();
    eventually("a name", || {
        let snapshot = test.snapshots.load();
        let owner = snapshot.by_cgroup(gone)?;
        (owner.sandbox.key.0 == uid && owner.container_name() == "eeeeeeeeeeee").then_some(())
    });
}

#[test]
fn a_pod_that_is_made_again_is_attached_to_again() {
    let Some(test) = Test::new(LONG) else { return };
    let pod = test.stage.make(&format!("kubepods/pod{}", test.stage.uid()));
    test.attached(id(&pod));
    let held = fs::File::open(pod.join("cgroup.procs")).unwrap();
    for _ in 0..20 {
        fs::remove_dir(&pod).unwrap();
        fs::create_dir(&pod).unwrap();
        test.attached(id(&pod));
    }
    drop(held);
    let container = pod.join(hex('f'));
    fs::create_dir(&container).unwrap();
    let container = id(&container);
    eventually("its container is seen", || test.snapshots.load().by_cgroup(container).map(|_| ()));
}

#[test]
fn what_was_refused_is_tried_again_and_stops_nobody() {
    let Some(test) = Test::new(Duration::from_millis(300)) else { return };
    let parent = test.stage.make("kubepods");
    let (bad, good) = (test.stage.uid(), test.stage.uid());
    test.told.lock().unwrap().refuse = Some(bad.clone());
    let (bad, good) = (parent.join(format!("pod{bad}")), parent.join(format!("pod{good}")));
    fs::create_dir(&bad).unwrap();
    fs::create_dir(&good).unwrap();
    let (bad, good) = (id(&bad), id(&good));
    test.attached(good);
    eventually("tried again", || (test.times_attached(bad) > 2).then_some(()));
    test.told.lock().unwrap().refuse = None;
    let before = test.times_attached(bad);
    eventually("tried once more", || (test.times_attached(bad) > before).then_some(()));
    let after = test.times_attached(bad);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!((test.times_attached(bad), test.times_attached(good)), (after, 1), "what is attached is left alone");
}
