//! Sandboxes are what they say they are, and leave nothing. Needs root.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use observer_lab::actor::Command;
use observer_lab::pod::{CgroupStyle, ContainerSpec, Pod, PodSpec, Qos};
use support::{cgroups_named, node, runs};

fn namespace(pid: u32, kind: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

/// The cgroup of a process in each hierarchy, by the hierarchy's controllers.
fn memberships(pid: u32) -> BTreeMap<String, String> {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .unwrap()
        .lines()
        .map(|line| {
            let mut parts = line.splitn(3, ':').skip(1).map(str::to_owned);
            (parts.next().unwrap(), parts.next().unwrap())
        })
        .collect()
}

fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned()
}

#[test]
fn a_pod_has_the_shape_of_a_real_one() {
    let node = node();
    let pod = Pod::create(&node, PodSpec::new("shop", "web", &["app", "proxy"])).unwrap();
    let (app, proxy) = (pod.container("app").unwrap(), pod.container("proxy").unwrap());
    let pause = pod.pause_pid().unwrap();

    for (pid, path) in
        [(pause, pod.pause_cgroup().unwrap()), (app.pid(), app.cgroup_path()), (proxy.pid(), proxy.cgroup_path())]
    {
        let memberships = memberships(pid);
        assert_eq!(memberships.len(), observer_lab::cgroup::detect().unwrap().len());
        assert!(memberships.values().all(|found| found == path.to_str().unwrap()), "{memberships:?}");
    }
    assert_eq!(app.cgroup_path().to_str().unwrap(), format!("/kubepods/burstable/pod{}/{}", pod.uid(), app.id()));
    assert_eq!([comm(pause), comm(app.pid())], ["pause", "app"]);

    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(pause, kind), namespace(app.pid(), kind), "{kind}");
        assert_eq!(namespace(pause, kind), namespace(proxy.pid(), kind), "{kind}");
        assert_ne!(namespace(pause, kind), namespace(std::process::id(), kind), "{kind}");
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(namespace(app.pid(), kind), namespace(proxy.pid(), kind), "{kind}");
        assert_ne!(namespace(app.pid(), kind), namespace(std::process::id(), kind), "{kind}");
    }
    assert_eq!(namespace(pause, "net"), format!("net:[{}]", pod.netns().inode().unwrap()));
    assert_eq!(app.cgroup().processes().into_iter().collect::<Vec<_>>(), [app.pid()]);
}

#[test]
fn dropping_a_pod_leaves_nothing() {
    let node = node();
    let mut pods = Vec::new();
    for (name, style) in [
        ("plain", CgroupStyle::Cgroupfs),
        ("systemd", CgroupStyle::Systemd),
        ("docker", CgroupStyle::Parent("/pod-lab-docker".to_owned())),
    ] {
        let spec = PodSpec::new("shop", name, &["a", "b"]).style(style).qos(Qos::BestEffort);
        pods.push(Pod::create(&node, spec).unwrap());
    }
    let docker = &pods[2];
    assert_eq!(docker.pause_pid(), None);
    let (a, b) = (&docker.containers()[0], &docker.containers()[1]);
    assert_eq!(a.cgroup_path().parent().unwrap().to_str(), Some("/pod-lab-docker"));
    assert_eq!(namespace(a.pid(), "net"), namespace(b.pid(), "net"));
    assert_ne!(namespace(a.pid(), "net"), namespace(std::process::id(), "net"));

    let pids: Vec<u32> = pods
        .iter()
        .flat_map(|pod| pod.containers().iter().map(observer_lab::pod::Container::pid).chain(pod.pause_pid()))
        .collect();
    let ids: Vec<String> = pods.iter().flat_map(|pod| pod.containers().iter().map(|c| c.id().to_owned())).collect();
    let uids: Vec<String> = pods.iter().map(|pod| pod.uid().to_owned()).collect();
    assert!(pids.iter().all(|pid| runs(*pid)));
    assert!(ids.iter().all(|id| !cgroups_named(id).is_empty()));

    drop(pods);
    assert!(pids.iter().all(|pid| !runs(*pid)));
    assert!(ids.iter().all(|id| cgroups_named(id).is_empty()));
    assert!(cgroups_named("pod-lab-docker").is_empty());
    for uid in uids {
        assert!(cgroups_named(&uid).is_empty());
        assert!(cgroups_named(&uid.replace('-', "_")).is_empty());
    }
}

#[test]
fn a_panic_leaves_nothing() {
    let caught = std::panic::catch_unwind(|| {
        let node = node();
        let pod = Pod::create(&node, PodSpec::new("shop", "web", &["app"])).unwrap();
        std::panic::panic_any((pod.uid().to_owned(), pod.container("app").unwrap().pid()));
    });
    let payload = caught.unwrap_err();
    let (uid, pid) = payload.downcast_ref::<(String, u32)>().unwrap();
    assert!(cgroups_named(uid).is_empty());
    assert!(!runs(*pid));
}

#[test]
fn containers_come_and_go() {
    let node = node();
    let mut pod = Pod::create(&node, PodSpec::new("shop", "web", &["app"])).unwrap();
    let (id, pid) = {
        let side = pod.add_container(&node, &ContainerSpec::new("side").light()).unwrap();
        (side.id().to_owned(), side.pid())
    };
    assert_eq!(namespace(pid, "net"), namespace(pod.pause_pid().unwrap(), "net"));
    pod.remove_container("side").unwrap();
    assert!(!runs(pid));
    assert!(cgroups_named(&id).is_empty());
    assert_eq!(pod.container("app").unwrap().run(&Command::Ready).unwrap(), observer_lab::actor::Answer::Done);
}

#[test]
fn a_pod_on_the_host_network_has_the_machine_s() {
    let node = node();
    let spec = PodSpec::new("kube-system", "proxy", &["proxy"]).host_network();
    let pod = Pod::create(&node, spec).unwrap();
    let proxy = pod.container("proxy").unwrap();
    assert_eq!(namespace(proxy.pid(), "net"), namespace(std::process::id(), "net"));
    assert_ne!(namespace(proxy.pid(), "uts"), namespace(std::process::id(), "uts"));
}

#[test]
fn many_pods_in_a_row_are_made_quickly() {
    const PODS: usize = 200;
    let node = node();
    let start = Instant::now();
    let pods: Vec<Pod> = (0..PODS)
        .map(|n| {
            let name = format!("pod-{n}");
            let spec = PodSpec::new("many", &name, &[]).container(ContainerSpec::new("one").light());
            Pod::create(&node, spec).unwrap()
        })
        .collect();
    let made = start.elapsed();
    let start = Instant::now();
    drop(pods);
    println!("{PODS} pods: made in {made:?}, removed in {:?}", start.elapsed());
    assert!(made < Duration::from_secs(60), "{made:?}");
}
