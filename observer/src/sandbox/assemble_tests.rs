//! Tests of [`super`].

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::*;
use crate::identity::{ContainerIdentity, SandboxIdentity};
use crate::sandbox::{model::QosClass, scan::FoundPod};

const NODE: u64 = 1;
const UID: &str = "11111111-2222-3333-4444-000000000001";

fn found(id: char, parent: &str, pid: i32, pod: bool) -> FoundContainer {
    let id = String::from(id).repeat(64);
    FoundContainer {
        path: format!("{parent}/{id}"),
        inode: u64::try_from(pid).unwrap() + 100,
        id,
        runtime: Runtime::Unknown,
        pod: pod.then(|| parent.to_owned()),
        nested: vec![],
        pid: Some(pid),
    }
}

/// Process 10 to 19 are in namespace 1 (the node's), 20 to 29 in 2, and so on.
fn process(pid: i32) -> Option<ProcessFacts> {
    let name = if pid % 10 == 9 { "pause" } else { "app" };
    let netns = u64::try_from(pid / 10).unwrap();
    Some(ProcessFacts {
        pid,
        name: name.into(),
        began: None,
        started: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(pid).unwrap())),
        namespaces: vec![("net".into(), netns)],
    })
}

fn run(found: &Found, pods: &PodIndex) -> Vec<Sandbox> {
    run_again(found, pods, &HashMap::new())
}

fn run_again(found: &Found, pods: &PodIndex, before: &HashMap<String, (SandboxKey, String)>) -> Vec<Sandbox> {
    assemble(
        found,
        &Knowledge {
            process: &process,
            addresses: &|netns| BTreeSet::from([IpAddr::from([10, 0, 0, u8::try_from(netns).unwrap()])]),
            pods,
            node_netns: Some(NODE),
            handlers: &Handlers::default(),
            has_v2: true,
            before: &|container| before.get(&container.path).cloned(),
            attach_point: &|path, inode| Some(AttachPoint { cgroup_id: inode, path: PathBuf::from(path) }),
        },
    )
}

#[test]
fn a_pod_has_its_names_and_its_pause() {
    let path = &format!("/kubepods/pod{UID}");
    let tree = Found {
        pods: vec![FoundPod {
            path: path.into(),
            inode: 7,
            uid: UID.into(),
            qos: QosClass::Guaranteed,
            others: vec![],
        }],
        containers: vec![found('a', path, 21, true), found('b', path, 29, true), found('c', path, 22, true)],
        ..Found::default()
    };
    let names = HashMap::from([(
        "a".repeat(64),
        ContainerIdentity { name: "app".into(), image: "img".into(), attempt: Some(2), ..Default::default() },
    )]);
    let identity =
        PodIdentity { name: "web".into(), namespace: "shop".into(), containers: names, ..Default::default() };
    let sandboxes = run(&tree, &HashMap::from([(UID.to_owned(), identity)]));
    let [sandbox] = &sandboxes[..] else { panic!("{sandboxes:?}") };
    assert_eq!((sandbox.namespace.as_str(), sandbox.name.as_str(), sandbox.cgroup_id), ("shop", "web", 7));
    assert_eq!(sandbox.sandbox_id, "b".repeat(64));
    let names: Vec<_> = sandbox.containers.iter().map(|c| (c.name.as_str(), c.kind)).collect();
    let (app, pause) = (ContainerKind::Application, ContainerKind::Pause);
    assert_eq!(names, [("app", app), ("bbbbbbbbbbbb", pause), ("cccccccccccc", app)]);
    assert_eq!(sandbox.attach_points.len(), 1);
    assert_eq!(sandbox.addresses, [IpAddr::from([10, 0, 0, 2])]);
}

#[test]
fn the_container_that_no_list_has_and_that_came_first_is_pause() {
    let path = &format!("/kubepods/pod{UID}");
    let tree = Found {
        pods: vec![FoundPod {
            path: path.into(),
            inode: 7,
            uid: UID.into(),
            qos: QosClass::Guaranteed,
            others: vec![],
        }],
        containers: vec![found('a', path, 22, true), found('b', path, 21, true)],
        ..Found::default()
    };
    let listed = |id: char| PodIdentity {
        containers: HashMap::from([(
            String::from(id).repeat(64),
            ContainerIdentity { name: "app".into(), ..Default::default() },
        )]),
        ..Default::default()
    };
    let first = &run(&tree, &HashMap::from([(UID.to_owned(), listed('a'))]))[0];
    assert_eq!(first.sandbox_id, "b".repeat(64));
    let late = &run(&tree, &HashMap::from([(UID.to_owned(), listed('b'))]))[0];
    assert_eq!(late.sandbox_id, "", "a container newer than the list is no pause");
}

#[test]
fn the_runtime_says_which_container_is_pause_and_a_group_of_its_own_is_a_pod() {
    let told = |id: char| PodIdentity {
        name: "web".into(),
        sandboxes: vec![
            SandboxIdentity { id: String::from(id).repeat(64), image: "pause:3".into(), ..Default::default() },
            SandboxIdentity { id: "d".repeat(64), ..Default::default() },
        ],
        addresses: vec![IpAddr::from([10, 9, 9, 9])],
        ..Default::default()
    };
    // Process 29 is called pause, and is not: the application may have that name too.
    let containers = ['b', 'a', 'd'].map(|id| found(id, "/own", if id == 'b' { 29 } else { 21 }, false)).to_vec();
    let tree = Found { containers, ..Found::default() };
    let sandbox = &run(&tree, &HashMap::from([("u".to_owned(), told('a'))]))[0];
    assert_eq!((sandbox.name.as_str(), sandbox.sandbox_id.as_str()), ("web", "a".repeat(64).as_str()));
    let kinds: Vec<_> = sandbox.containers.iter().map(|c| (&c.id[..1], c.kind, c.image.as_str())).collect();
    let (app, pause) = (ContainerKind::Application, ContainerKind::Pause);
    assert_eq!(
        kinds,
        [("a", pause, "pause:3"), ("d", pause, ""), ("b", app, "")],
        "an older sandbox's pause is one too"
    );
    let [told, own] = [[10, 9, 9, 9], [10, 0, 0, 2]].map(IpAddr::from);
    assert_eq!(sandbox.addresses, [told, own], "what is told comes first");
    assert_eq!(sandbox.told_addresses, [told]);
}

/// CRI-O with `drop_infra_ctr`, its default: the sandbox has an id and no container.
#[test]
fn without_a_pause_container_the_containers_say_which_sandbox_they_run_in() {
    let path = &format!("/kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
    let scope = |id: char, pid| {
        let container = found(id, path, pid, true);
        FoundContainer { path: format!("{path}/crio-{}.scope", container.id), runtime: Runtime::Crio, ..container }
    };
    let pod = |pids: [i32; 2], host_network: bool| {
        let tree = Found {
            pods: vec![FoundPod {
                path: path.clone(),
                inode: 7,
                uid: UID.into(),
                qos: QosClass::Guaranteed,
                others: vec![],
            }],
            // The second one's program is called pause, and is not.
            containers: vec![scope('a', pids[0]), scope('b', pids[1])],
            ..Found::default()
        };
        let told = |sandbox: char| ContainerIdentity {
            name: "app".into(),
            sandbox: String::from(sandbox).repeat(64),
            ..Default::default()
        };
        let sandbox = |id: char| SandboxIdentity {
            id: String::from(id).repeat(64),
            host_interface: format!("veth{id}"),
            netns: if host_network { String::new() } else { format!("/run/netns/{id}") },
            host_network,
            ..Default::default()
        };
        let identity = PodIdentity {
            name: "web".into(),
            sandboxes: vec![sandbox('f'), sandbox('e'), sandbox('d')],
            containers: HashMap::from([("a".repeat(64), told('e')), ("b".repeat(64), told('d'))]),
            addresses: vec![IpAddr::from([10, 9, 9, 9])],
            ..Default::default()
        };
        run(&tree, &HashMap::from([(UID.to_owned(), identity)])).remove(0)
    };
    let own = pod([21, 29], false);
    assert_eq!(own.sandbox_id, "e".repeat(64), "the youngest that has a container");
    assert_eq!((own.told.host_interface.as_str(), own.told.netns.as_str()), ("vethe", "/run/netns/e"));
    assert_eq!((own.host_network, own.runtime, own.netns), (false, Runtime::Crio, Some(2)));
    assert_eq!(own.told_addresses, [IpAddr::from([10, 9, 9, 9])]);
    assert!(own.containers.iter().all(|container| container.kind == ContainerKind::Application));
    let node = pod([11, 19], true);
    assert!(node.host_network && node.addresses.is_empty() && node.told_addresses.is_empty());
    let vm = pod([11, 19], false);
    assert_eq!((vm.host_network, vm.netns), (false, None), "its runtime's processes are on the node's network");
}

#[test]
fn containers_made_by_hand_are_a_pod_when_they_share_a_network_namespace() {
    let tree = Found {
        containers: vec![
            found('a', "/pod-foo", 21, false),
            found('b', "/pod-foo", 22, false),
            found('c', "/docker", 31, false),
            found('d', "/docker", 11, false),
            found('e', "/docker", 12, false),
        ],
        ..Found::default()
    };
    let sandboxes = run(&tree, &PodIndex::new());
    let facts: Vec<_> = sandboxes
        .iter()
        .map(|s| (s.name.as_str(), s.containers.len(), s.attach_points.len(), s.host_network))
        .collect();
    assert_eq!(
        facts,
        [
            ("dddddddddddd", 1, 1, true),
            ("eeeeeeeeeeee", 1, 1, true),
            ("pod-foo", 2, 2, false),
            ("cccccccccccc", 1, 1, false)
        ]
    );
}

#[test]
fn a_pod_of_podman_is_named_by_its_short_id() {
    let id = "0123456789abcdef".repeat(4);
    for parent in [format!("/libpod_parent/{id}"), format!("/machine.slice/machine-libpod_pod_{id}.slice")] {
        let tree = Found {
            containers: vec![found('a', &parent, 21, false), found('b', &parent, 22, false)],
            ..Found::default()
        };
        let names: Vec<_> = run(&tree, &PodIndex::new()).into_iter().map(|sandbox| sandbox.name).collect();
        assert_eq!(names, ["0123456789ab"], "{parent}");
    }
}

#[test]
fn a_group_keeps_its_key_and_name_when_the_first_container_goes() {
    let mut tree = Found {
        containers: vec![found('b', "/docker", 22, false), found('c', "/docker", 21, false)],
        ..Found::default()
    };
    let first = &run(&tree, &PodIndex::new())[0];
    assert_eq!(first.key.0, format!("cgroup:/docker/{}", "c".repeat(64)), "the one that started first");
    let before: HashMap<_, _> =
        first.containers.iter().map(|c| (c.cgroup.clone(), (first.key.clone(), first.name.clone()))).collect();
    tree.containers.pop();
    tree.containers.push(found('d', "/docker", 31, false));
    tree.containers.push(FoundContainer { pid: None, ..found('e', "/docker", 32, false) });
    let again = run_again(&tree, &PodIndex::new(), &before);
    let keys: Vec<_> = again.iter().map(|s| (s.key.0.as_str(), s.name.as_str())).collect();
    let other = format!("cgroup:/docker/{}", "d".repeat(64));
    assert_eq!(keys, [(first.key.0.as_str(), "cccccccccccc"), (&other, "dddddddddddd")], "one without a process waits");
}
