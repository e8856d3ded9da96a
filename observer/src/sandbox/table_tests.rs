//! Tests of [`super`].

use std::fs;

use super::*;
use crate::identity::PodsFile;

const UID: &str = "11111111-2222-3333-4444-000000000001";

struct Tree {
    root: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn container(&self, id: char) -> PathBuf {
        self.root.path().join(format!("kubepods/pod{UID}/{}", String::from(id).repeat(64)))
    }

    fn make(&self, id: char, pid: u32) {
        fs::create_dir_all(self.container(id)).unwrap();
        fs::write(self.container(id).join("cgroup.procs"), format!("{pid}\n")).unwrap();
    }

    fn table(&self, remembered: Vec<Remembered>) -> SandboxTable {
        SandboxTable {
            root: self.root.path().to_owned(),
            has_v2: true,
            ..SandboxTable::new(
                &Hierarchies::default(),
                Path::new("/proc"),
                Names::default(),
                String::new(),
                remembered,
            )
        }
    }
}

fn alive(outcome: &Outcome) -> Vec<(bool, usize)> {
    let living = |sandbox: &Arc<Sandbox>| sandbox.containers.iter().filter(|container| container.alive).count();
    outcome.snapshot.sandboxes().iter().map(|sandbox| (sandbox.alive, living(sandbox))).collect()
}

#[test]
fn a_pod_comes_changes_and_goes() {
    let tree = Tree::new();
    let mut table = tree.table(vec![]);
    assert!(alive(&table.scan().unwrap()).is_empty());
    let me = std::process::id();
    tree.make('a', me);
    tree.make('b', me);
    let outcome = table.scan().unwrap();
    assert_eq!(alive(&outcome), [(true, 2)]);
    assert_eq!(outcome.attach.len(), 1);
    fs::remove_dir_all(tree.container('a')).unwrap();
    let outcome = table.scan().unwrap();
    assert_eq!(alive(&outcome), [(true, 1)]);
    assert_eq!(outcome.snapshot.sandboxes()[0].containers.len(), 2, "the dead one keeps its name");
    fs::remove_dir_all(tree.root.path().join("kubepods")).unwrap();
    let outcome = table.scan().unwrap();
    assert_eq!(alive(&outcome), [(false, 0)]);
    assert!(outcome.attach.is_empty());
    table.release(&[SandboxKey(UID.into())]);
    assert!(alive(&table.scan().unwrap()).is_empty());
}

#[test]
fn an_empty_directory_that_stays_is_a_pod_that_went() {
    let tree = Tree::new();
    let mut table = tree.table(vec![]);
    tree.make('a', std::process::id());
    assert_eq!(alive(&table.scan().unwrap()), [(true, 1)]);
    fs::write(tree.container('a').join("cgroup.procs"), "").unwrap();
    let outcome = table.scan().unwrap();
    assert_eq!(alive(&outcome), [(false, 0)]);
    assert!(outcome.attach.is_empty(), "its programs go");
    table.release(&[SandboxKey(UID.into())]);
    assert!(alive(&table.scan().unwrap()).iter().all(|(alive, _)| !alive));
    tree.make('b', std::process::id());
    let outcome = table.scan().unwrap();
    assert!(alive(&outcome).contains(&(true, 1)), "and it may come back");
    assert_eq!(outcome.attach.len(), 1);
}

#[test]
fn memories_name_what_is_gone() {
    let tree = Tree::new();
    tree.make('a', std::process::id());
    let remember = |sandbox: &str, cgroup_id| Remembered {
        cgroup_id,
        sandbox: SandboxKey(sandbox.into()),
        namespace: "shop".into(),
        pod: "web".into(),
        id: format!("{cgroup_id:064}"),
        name: "old".into(),
        pause: false,
    };
    let mut table = tree.table(vec![remember(UID, 4_000_000_001), remember("other", 4_000_000_002)]);
    let outcome = table.scan().unwrap();
    let here = outcome.snapshot.by_cgroup(4_000_000_001).unwrap();
    assert_eq!((here.sandbox.alive, here.container_name()), (true, "old"));
    let gone = outcome.snapshot.by_cgroup(4_000_000_002).unwrap();
    assert_eq!((gone.sandbox.alive, gone.sandbox.name.as_str()), (false, "web"));
}

#[test]
fn a_container_that_came_and_went_between_two_scans_has_a_name() {
    let tree = Tree::new();
    tree.make('a', std::process::id());
    let mut table = tree.table(vec![]);
    table.scan().unwrap();
    let below = |pod: &str, id: char| format!("/kubepods/pod{pod}/{}", String::from(id).repeat(64));
    let other = "22222222-2222-3333-4444-000000000001";
    let outcome = table
        .scan_after(&[
            Sighting { path: below(UID, 'b'), inode: 4_000_000_001 },
            Sighting { path: below(other, 'c'), inode: 4_000_000_002 },
        ])
        .unwrap();
    let here = outcome.snapshot.by_cgroup(4_000_000_001).unwrap();
    assert_eq!((here.sandbox.alive, here.container_name()), (true, "bbbbbbbbbbbb"));
    let gone = outcome.snapshot.by_cgroup(4_000_000_002).unwrap();
    assert_eq!((gone.sandbox.alive, gone.sandbox.uid.as_str(), gone.sandbox.name.as_str()), (false, other, other));
}

#[test]
fn a_cgroup_below_a_container_that_came_and_went_between_two_scans_is_the_container_s() {
    let tree = Tree::new();
    tree.make('a', std::process::id());
    let mut table = tree.table(vec![]);
    table.scan().unwrap();
    let below = |id: char| format!("/kubepods/pod{UID}/{}", String::from(id).repeat(64));
    let outcome = table
        .scan_after(&[
            Sighting { path: format!("{}/init.scope", below('a')), inode: 4_000_000_001 },
            Sighting { path: below('b'), inode: 4_000_000_002 },
            Sighting { path: format!("{}/x/y", below('b')), inode: 4_000_000_003 },
            Sighting { path: format!("{}/x", below('c')), inode: 4_000_000_004 },
        ])
        .unwrap();
    let of = |id| outcome.snapshot.by_cgroup(id).map(|owner| owner.container_name().to_owned());
    let names = ["aaaaaaaaaaaa", "bbbbbbbbbbbb", "bbbbbbbbbbbb"].map(|name| Some(name.to_owned()));
    assert_eq!([4_000_000_001, 4_000_000_002, 4_000_000_003].map(of), names);
    assert_eq!(of(4_000_000_004), None, "nobody knows this container");
    assert!(table.sighted.is_empty(), "and nobody will");
}

#[test]
fn a_leftover_directory_is_let_go_of() {
    let tree = Tree::new();
    fs::create_dir_all(tree.root.path().join(format!("kubepods/pod{UID}"))).unwrap();
    let mut table = tree.table(vec![]);
    assert_eq!(table.scan().unwrap().attach.len(), 1, "it may just be on its way");
    let long_ago = Instant::now().checked_sub(EMPTY_PATIENCE).unwrap();
    table.empty.values_mut().for_each(|since| *since = long_ago);
    assert!(table.scan().unwrap().attach.is_empty());
    tree.make('a', std::process::id());
    assert_eq!(table.scan().unwrap().attach.len(), 1, "it is used again");
}

#[test]
fn a_node_that_is_a_container_carries_the_programs_of_its_pods() {
    let tree = Tree::new();
    let node = format!("docker/{}", "d".repeat(64));
    fs::create_dir_all(tree.root.path().join(format!("{node}/kubelet/kubepods/pod{UID}/{}", "a".repeat(64)))).unwrap();
    let outcome = tree.table(vec![]).scan().unwrap();
    let paths: Vec<_> = outcome.attach.iter().map(|point| point.path.clone()).collect();
    assert_eq!(paths, [tree.root.path().join(&node)]);
    let pods = outcome.snapshot.sandboxes();
    assert_eq!((pods.len(), &pods[0].attach_points), (1, &outcome.attach));
}

/// Verdicts by what is attached, what is shown, and who waits.
fn chosen(outcome: &Outcome) -> (usize, usize, usize, bool) {
    let others = outcome.snapshot.others().len();
    (outcome.attach.len(), outcome.snapshot.sandboxes().len(), others, outcome.incomplete)
}

#[test]
fn only_what_is_selected_is_attached_to_and_shown() {
    let tree = Tree::new();
    tree.make('a', std::process::id());
    let file = tree.root.path().join("pods.json");
    let tell = |app: &str| {
        let text = format!(
            r#"{{"items":[{{"metadata":{{"namespace":"shop","name":"p","uid":"{UID}","labels":{{"app":"{app}"}}}}}}]}}"#
        );
        fs::write(&file, text).unwrap();
    };
    let names = Names::new(PodsFile::new(Some(file.clone())), crate::identity::Sources::default());
    let table = SandboxTable { names, ..tree.table(vec![]) };
    assert!(table.attaches_at_once());
    let labels = "app=web".parse().unwrap();
    let mut table = table.selecting(Selection { labels, ..Selection::default() });
    assert!(!table.attaches_at_once());
    let outcome = table.scan().unwrap();
    assert_eq!(chosen(&outcome), (0, 0, 1, true), "nobody has told its labels");
    let waiting = &outcome.snapshot.others()[0];
    assert_eq!(waiting.attach_points.len(), 1, "an earlier agent's programs stay meanwhile");
    assert!(!outcome.snapshot.is_left_out(waiting.cgroup_id));
    tell("web");
    let outcome = table.scan().unwrap();
    assert_eq!(chosen(&outcome).0, 1);
    assert_eq!((outcome.snapshot.sandboxes().len(), outcome.snapshot.others().len()), (1, 0));
    tell("other");
    let outcome = table.scan().unwrap();
    assert_eq!((chosen(&outcome).0, chosen(&outcome).1, chosen(&outcome).2), (0, 0, 1), "labels may change");
    let left_out = &outcome.snapshot.others()[0];
    assert!(left_out.attach_points.is_empty() && outcome.snapshot.is_left_out(left_out.cgroup_id));
    fs::remove_dir_all(tree.root.path().join("kubepods")).unwrap();
    assert_eq!(chosen(&table.scan().unwrap()), (0, 0, 1, false), "gone, and still not observed");
}
