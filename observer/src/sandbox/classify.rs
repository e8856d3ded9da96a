//! What a cgroup is, told from its path alone. Pure.
//!
//! Kubernetes: `pkg/kubelet/cm` names pods `pod<uid>` (cgroupfs driver) and `kubepods[-<qos>]-pod<uid>.slice`
//! (systemd driver, `-` of the UID as `_`). Runtimes name containers by their id, alone or with a prefix.

use super::model::{QosClass, Runtime};

/// What a cgroup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A pod's cgroup.
    Pod {
        /// The pod's UID.
        uid: String,
        /// The class that the path tells.
        qos: QosClass,
    },
    /// A container's cgroup.
    Container {
        /// The container's id.
        id: String,
        /// The runtime, if the name tells.
        runtime: Runtime,
        /// The path of the pod's cgroup, when there is one above.
        pod: Option<String>,
    },
    /// Below a container: systemd, a nested runtime.
    Nested {
        /// The path of the container's cgroup.
        container: String,
    },
    /// Belongs to a pod or a runtime, but no container runs in it (`crio-conmon-…`).
    Helper,
    /// Anything else; pods or containers may be below.
    Other,
}

/// Tells what the cgroup at `path` is. The path starts at the hierarchy's root with a `/`.
#[must_use]
pub fn classify(path: &str) -> Kind {
    let mut pod: Option<(usize, String, QosClass)> = None;
    let mut container: Option<(usize, String, Runtime)> = None;
    let mut helper = false;
    let mut end = 0;
    for name in path.split('/') {
        let begin = end;
        end = begin + name.len() + 1;
        if name.is_empty() {
            continue;
        }
        let prefix = &path[..begin.saturating_sub(1)];
        let here = end - 1;
        if let Some((uid, qos)) = pod_of(name, prefix) {
            // The innermost pod wins: a node that is itself a container (kind) has its pods below its own cgroup.
            pod = Some((here, uid, qos));
            container = None;
            helper = false;
        } else if container.is_none() {
            match container_of(name, prefix.rsplit('/').next().unwrap_or_default()) {
                Name::Container(id, runtime) => container = Some((here, id, runtime)),
                Name::Helper => helper = true,
                Name::Other => {}
            }
        } else if is_pods_parent(name) {
            // The node's own container: what is below are its pods.
            container = None;
            pod = None;
        }
    }
    let whole = path.trim_end_matches('/').len();
    match (pod, container) {
        (_, Some((at, _, _))) if at < whole => Kind::Nested { container: path[..at].to_owned() },
        (pod, Some((_, id, runtime))) => {
            Kind::Container { id, runtime, pod: pod.map(|(at, _, _)| path[..at].to_owned()) }
        }
        _ if helper => Kind::Helper,
        (Some((at, uid, qos)), None) if at == whole => Kind::Pod { uid, qos },
        _ => Kind::Other,
    }
}

/// Where programs are attached for what is at `path`: the outermost pod or container that it is or is in, by the
/// path of its cgroup. A program runs for every socket below its cgroup, so what is inside of another sandbox
/// (a node that is a container, a runtime in a pod) is counted there, once.
#[must_use]
pub fn attach_root(path: &str) -> Option<&str> {
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.trim_end_matches('/').len()]);
    ends.map(|end| &path[..end]).find(|above| matches!(classify(above), Kind::Pod { .. } | Kind::Container { .. }))
}

/// A cgroup that the kubelet makes its pods in.
fn is_pods_parent(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name == "kubelet" || name.ends_with("kubepods.slice")
}

/// The UID and the class, when `name` below `prefix` is a pod's.
fn pod_of(name: &str, prefix: &str) -> Option<(String, QosClass)> {
    if let Some(slice) = name.strip_suffix(".slice") {
        // kubepods-burstable-pod<uid>.slice, with anything in front of kubepods.
        let at = slice.rfind("-pod")?;
        let parent = &slice[..at];
        let uid = uid(&slice[at + 4..].replace('_', "-"))?;
        let qos = if parent.ends_with("kubepods-burstable") {
            QosClass::Burstable
        } else if parent.ends_with("kubepods-besteffort") {
            QosClass::BestEffort
        } else if parent.ends_with("kubepods") {
            QosClass::Guaranteed
        } else {
            return None;
        };
        return Some((uid, qos));
    }
    let uid = uid(name.strip_prefix("pod")?)?;
    let qos = match prefix.rsplit('/').next()? {
        "burstable" => QosClass::Burstable,
        "besteffort" => QosClass::BestEffort,
        "kubepods" => QosClass::Guaranteed,
        _ => return None,
    };
    Some((uid, qos))
}

/// A UUID, or the 32 hexadecimal digits that static pods have.
fn uid(text: &str) -> Option<String> {
    let digits = text.bytes().filter(|byte| *byte != b'-').count();
    let good = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    (good && digits == 32 && matches!(text.len(), 32 | 36)).then(|| text.to_owned())
}

enum Name {
    Container(String, Runtime),
    Helper,
    Other,
}

/// What the name of a directory tells of a container. `parent` is the directory above.
fn container_of(name: &str, parent: &str) -> Name {
    // A runtime that is given the systemd driver's slice:prefix:id but makes cgroups itself uses it as it is.
    let parts = name.rsplit_once(':').map(|(slice, id)| format!("{}-{id}", slice.rsplit(':').next().unwrap_or(slice)));
    let name = parts.as_deref().unwrap_or(name);
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    for (prefix, runtime) in [
        ("cri-containerd-", Runtime::Containerd),
        ("nerdctl-", Runtime::Containerd),
        ("crio-", Runtime::Crio),
        ("docker-", Runtime::Docker),
        ("libpod-payload-", Runtime::Podman),
        ("libpod-", Runtime::Podman),
    ] {
        if let Some(rest) = bare.strip_prefix(prefix) {
            // Anything else that a runtime names so is its own: `crio-conmon-<id>.scope`.
            return container_id(rest).map_or(Name::Helper, |id| Name::Container(id, runtime));
        }
    }
    let runtime = match parent {
        "docker" => Runtime::Docker,
        // A pod of Podman, by its id: its containers are below, each with a prefix.
        "libpod_parent" => return Name::Other,
        _ => Runtime::Unknown,
    };
    container_id(bare).map_or(Name::Other, |id| Name::Container(id, runtime))
}

/// 64 hexadecimal digits: what every runtime of the field makes. (32 would be a static pod's UID.)
fn container_id(text: &str) -> Option<String> {
    (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1fd1c40dbf0edf14b4b61e84455c317532b49fecc9e918e610ad75a7916640b0";
    const OUTER: &str = "673e9806b577180ad01dd25cb881be8491c5a933a99c746fe8a5c312ac962e5e";
    const UID: &str = "11111111-2222-3333-4444-000000000001";

    fn pod(path: &str) -> (String, QosClass) {
        match classify(path) {
            Kind::Pod { uid, qos } => (uid, qos),
            other => panic!("{path} is {other:?}"),
        }
    }

    fn container(path: &str) -> (Runtime, Option<String>) {
        match classify(path) {
            Kind::Container { id, runtime, pod } if id == ID => (runtime, pod),
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn pods_of_both_drivers_and_all_classes() {
        let slice = "11111111_2222_3333_4444_000000000001";
        for (path, qos) in [
            (format!("/kubepods/burstable/pod{UID}"), QosClass::Burstable),
            (format!("/kubepods/besteffort/pod{UID}"), QosClass::BestEffort),
            (format!("/kubepods/pod{UID}"), QosClass::Guaranteed),
            (
                format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice"),
                QosClass::Burstable,
            ),
            (
                format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{slice}.slice"),
                QosClass::BestEffort,
            ),
            (format!("/kubepods.slice/kubepods-pod{slice}.slice"), QosClass::Guaranteed),
            // kind: the node is a container, and the kubelet's cgroups have its slice in front.
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{slice}.slice"
                ),
                QosClass::Burstable,
            ),
            (format!("/docker/{OUTER}/kubelet/kubepods/burstable/pod{UID}"), QosClass::Burstable),
            (format!("/system.slice/docker-{OUTER}.scope/kubepods/besteffort/pod{UID}"), QosClass::BestEffort),
        ] {
            assert_eq!(pod(&path), (UID.to_owned(), qos), "{path}");
        }
        let fixed = "82886aa483380543a962a24cb2cac812";
        assert_eq!(pod(&format!("/kubepods/pod{fixed}")).0, fixed, "a static pod");
        assert_eq!(pod(&format!("/kubepods.slice/kubepods-pod{fixed}.slice")).0, fixed, "a static pod");
    }

    #[test]
    fn containers_of_every_runtime() {
        let group = format!("/kubepods/burstable/pod{UID}");
        let nested = format!("/k3s.service{group}");
        let slice = "/kubepods.slice/kubepods-pod11111111_2222_3333_4444_000000000001.slice".to_owned();
        for (path, runtime, pod) in [
            (format!("{group}/{ID}"), Runtime::Unknown, Some(&group)),
            (format!("{slice}/cri-containerd-{ID}.scope"), Runtime::Containerd, Some(&slice)),
            (format!("{slice}/crio-{ID}.scope"), Runtime::Crio, Some(&slice)),
            (format!("{group}/crio-{ID}"), Runtime::Crio, Some(&group)),
            (format!("{slice}/docker-{ID}.scope"), Runtime::Docker, Some(&slice)),
            (format!("/docker/{ID}"), Runtime::Docker, None),
            (format!("/k8s.io/{ID}"), Runtime::Unknown, None),
            (format!("/system.slice/web.service/libpod-payload-{ID}"), Runtime::Podman, None),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
                Runtime::Podman,
                None,
            ),
            (format!("/machine.slice/machine-libpod_pod_{OUTER}.slice/libpod-{ID}.scope"), Runtime::Podman, None),
            (format!("/k3s.service{group}/{ID}"), Runtime::Unknown, Some(&nested)),
            (format!("/system.slice:docker:{ID}"), Runtime::Docker, None),
            (format!("/system.slice/docker-{ID}.scope"), Runtime::Docker, None),
            (format!("/pod-foo/{ID}"), Runtime::Unknown, None),
            (format!("/machine.slice/libpod-{ID}.scope"), Runtime::Podman, None),
            (format!("/libpod_parent/libpod-{ID}"), Runtime::Podman, None),
            (format!("/libpod_parent/{OUTER}/libpod-{ID}"), Runtime::Podman, None),
            (format!("/system.slice/containerd.service/kubepods.slice:cri-containerd:{ID}"), Runtime::Containerd, None),
        ] {
            assert_eq!(container(&path), (runtime, pod.cloned()), "{path}");
        }
    }

    #[test]
    fn what_is_below_a_container_is_its_own() {
        let path = format!("/kubepods/burstable/pod{UID}/{ID}");
        for below in ["init.scope", "system.slice/nginx.service", OUTER] {
            assert_eq!(classify(&format!("{path}/{below}")), Kind::Nested { container: path.clone() });
        }
    }

    #[test]
    fn programs_go_to_the_outermost_sandbox() {
        let pod = format!("/kubepods/burstable/pod{UID}");
        for (path, root) in [
            (pod.clone(), Some(pod.clone())),
            (format!("{pod}/{ID}"), Some(pod.clone())),
            (format!("{pod}/{ID}/init.scope"), Some(pod.clone())),
            (format!("{pod}/crio-conmon-{ID}.scope"), Some(pod.clone())),
            (format!("{pod}/{OUTER}/kubelet/kubepods/pod{UID}/{ID}"), Some(pod.clone())),
            (format!("/docker/{ID}"), Some(format!("/docker/{ID}"))),
            (format!("/docker/{OUTER}{pod}/{ID}"), Some(format!("/docker/{OUTER}"))),
            (format!("/pod-foo/{ID}/"), Some(format!("/pod-foo/{ID}"))),
            ("/kubepods/burstable".into(), None),
            ("/".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(attach_root(&path), root.as_deref(), "{path}");
        }
    }

    #[test]
    fn monitors_are_no_containers() {
        for name in [format!("crio-conmon-{ID}.scope"), format!("libpod-conmon-{ID}.scope")] {
            assert_eq!(classify(&format!("/machine.slice/{name}")), Kind::Helper, "{name}");
        }
    }

    #[test]
    fn hostile_and_ordinary_names_are_other() {
        for path in [
            "/",
            "",
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods.slice/kubepods-burstable.slice",
            "/kubepods/podnot-a-uid",
            "/kubepods/pod",
            "/kubepods/pod..",
            "/kubepods.slice/kubepods-pod.slice",
            "/kubepods.slice/kubepods-pod\u{1F600}.slice",
            "/user.slice/user-1000.slice",
            "/pod-foo",
            &format!("/libpod_parent/{ID}"),
            &format!("/libpod_parent/{ID}/conmon"),
            "/elsewhere/pod11111111-2222-3333-4444-000000000001",
            "/kubepods/burstable/pod11111111-2222-3333-4444-00000000000g",
        ] {
            assert_eq!(classify(path), Kind::Other, "{path}");
        }
    }
}
