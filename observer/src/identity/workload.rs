//! Which workload a pod belongs to, from what its source tells. Pure. Where nothing is certain the answer is nothing.

use std::collections::BTreeMap;

/// Kind and name.
pub(super) type Workload = (String, String);

/// Pods whose name was made by the API server: five of these after a dash (`SimpleNameGenerator` in
/// apiserver/pkg/storage/names/generate.go).
const SUFFIX: &str = "bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// Names this long were cut before the suffix was added, so that what stands before it is not the whole base.
const CUT_LENGTH: usize = 63;

/// From the owner that is the pod's controller. A ReplicaSet that a Deployment made carries the hash that the pod is
/// labelled with (`pod-template-hash`). A static pod is owned by its node, which is no workload; without an owner the
/// pod stands for itself.
pub(super) fn from_owner(owner: Option<(&str, &str)>, hash: Option<&str>, pod: &str) -> Workload {
    match owner {
        None | Some(("Node", _)) => ("Pod".into(), pod.into()),
        Some(("ReplicaSet", name)) => match hash.and_then(|hash| strip(name, hash)) {
            Some(deployment) => ("Deployment".into(), deployment.into()),
            None => ("ReplicaSet".into(), name.into()),
        },
        Some((kind, name)) => (kind.into(), name.into()),
    }
}

/// From labels and annotations alone, as a runtime has them: it does not know the owner. Each rule needs labels that
/// the kind's controller sets, and a name that fits.
pub(super) fn from_labels(
    pod: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> Option<Workload> {
    let label = |name: &str| labels.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let told = |kind: &str, name: &str| Some((kind.to_owned(), name.to_owned()));
    // From a file or a URL: the kubelet runs it, no controller. Applied by hand: the same.
    let source = annotations.get("kubernetes.io/config.source").map(String::as_str);
    if matches!(source, Some("file" | "http"))
        || annotations.contains_key("kubectl.kubernetes.io/last-applied-configuration")
    {
        return told("Pod", pod);
    }
    if label("statefulset.kubernetes.io/pod-name") == Some(pod) && label("controller-revision-hash").is_some() {
        let (set, ordinal) = pod.rsplit_once('-')?;
        return ordinal.parse::<u32>().is_ok().then(|| told("StatefulSet", set))?;
    }
    let job = label("batch.kubernetes.io/job-name").or_else(|| label("job-name"));
    if let Some(job) = job.filter(|_| label("controller-uid").is_some()) {
        return told("Job", job);
    }
    let base = base(pod)?;
    if let Some(hash) = label("pod-template-hash") {
        return strip(base, hash).and_then(|deployment| told("Deployment", deployment));
    }
    if label("controller-revision-hash").is_some() && label("pod-template-generation").is_some() {
        return told("DaemonSet", base);
    }
    None
}

fn strip<'a>(name: &'a str, hash: &str) -> Option<&'a str> {
    name.strip_suffix(hash)?.strip_suffix('-').filter(|rest| !rest.is_empty())
}

/// What a generated name was made from; `None` when it was not generated, or from something that was cut.
fn base(pod: &str) -> Option<&str> {
    let (base, suffix) = pod.rsplit_once('-')?;
    let generated = suffix.len() == SUFFIX_LENGTH && suffix.chars().all(|c| SUFFIX.contains(c));
    (generated && pod.len() < CUT_LENGTH && !base.is_empty()).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn told(pod: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> String {
        let workload = from_labels(pod, &pairs(labels), &pairs(annotations));
        workload.map_or_else(String::new, |(kind, name)| format!("{kind}/{name}"))
    }

    #[test]
    fn owners() {
        let of = |owner, hash| from_owner(owner, hash, "p").0;
        assert_eq!(from_owner(Some(("ReplicaSet", "web-7d9")), Some("7d9"), "p"), ("Deployment".into(), "web".into()));
        assert_eq!(of(Some(("ReplicaSet", "web-7d9")), Some("8d9")), "ReplicaSet");
        assert_eq!(of(Some(("ReplicaSet", "web-7d9")), None), "ReplicaSet");
        assert_eq!(from_owner(Some(("Node", "n")), None, "p"), ("Pod".into(), "p".into()));
        assert_eq!(from_owner(None, None, "p"), ("Pod".into(), "p".into()));
        for (kind, name, hash, pod) in [
            ("Job", "j", None, "j-x2x9k"),
            ("DaemonSet", "proxy", None, "proxy-x2x9k"),
            ("StatefulSet", "db", None, "db-0"),
            // A DaemonSet that somebody labels as a Deployment does.
            ("DaemonSet", "proxy-7d9", Some("7d9"), "proxy-7d9-x2x9k"),
        ] {
            assert_eq!(from_owner(Some((kind, name)), hash, pod), (kind.to_owned(), name.to_owned()));
        }
    }

    #[test]
    fn labels_of_controllers() {
        let hash = ("pod-template-hash", "7f9fbbdc5f");
        let revision = ("controller-revision-hash", "abc");
        assert_eq!(told("api-7f9fbbdc5f-vmngc", &[hash], &[]), "Deployment/api");
        assert_eq!(told("db-10", &[revision, ("statefulset.kubernetes.io/pod-name", "db-10")], &[]), "StatefulSet/db");
        assert_eq!(told("proxy-x2x9k", &[revision, ("pod-template-generation", "1")], &[]), "DaemonSet/proxy");
        assert_eq!(told("j-x2x9k", &[("job-name", "j"), ("controller-uid", "u")], &[]), "Job/j");
        let file = ("kubernetes.io/config.source", "file");
        assert_eq!(told("etcd-n", &[hash], &[file]), "Pod/etcd-n");
    }

    #[test]
    fn nothing_is_guessed() {
        let hash = ("pod-template-hash", "7f9fbbdc5f");
        for (pod, labels) in [
            ("api", &[][..]),
            ("api-7f9fbbdc5f", &[hash]),
            ("api-7f9fbbdc5f-vmnga", &[hash]),
            ("api-other-vmngc", &[hash]),
            ("-7f9fbbdc5f-vmngc", &[hash]),
            ("proxy-x2x9k", &[("controller-revision-hash", "abc")]),
            ("db-x", &[("statefulset.kubernetes.io/pod-name", "db-x"), ("controller-revision-hash", "abc")]),
            ("db-1", &[("statefulset.kubernetes.io/pod-name", "db-1")]),
            ("j-x2x9k", &[("job-name", "j")]),
        ] {
            assert_eq!(told(pod, labels, &[]), "", "{pod}");
        }
        let api = ("kubernetes.io/config.source", "api");
        assert_eq!(told("p", &[], &[api]), "", "an owner that leaves no label");
        let cut = format!("{}-7f9fbbdc5f-vmngc", "a".repeat(46));
        assert_eq!((cut.len(), told(&cut, &[hash], &[]).as_str()), (63, ""));
        // Labelled like a Deployment's pod, but made by hand.
        let applied = ("kubectl.kubernetes.io/last-applied-configuration", "{}");
        assert_eq!(told("cart-7f9fbbdc5f-x2x9k", &[hash], &[applied, api]), "Pod/cart-7f9fbbdc5f-x2x9k");
    }
}
