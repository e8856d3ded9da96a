//! All sources of names together, and who wins where they differ.

use std::{collections::HashSet, sync::Arc};

use super::{PodIdentity, PodIndex, PodsFile, PodsFileError, SourceNames};

/// The sources beside the pods file; each may be absent.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The API server.
    pub kubernetes: Option<SourceNames>,
    /// The kubelet.
    pub kubelet: Option<SourceNames>,
    /// The container runtime.
    pub cri: Option<SourceNames>,
}

/// What the sources told last.
#[derive(Debug, Clone, Default)]
struct Told {
    kubernetes: Arc<PodIndex>,
    kubelet: Arc<PodIndex>,
    cri: Arc<PodIndex>,
}

impl Sources {
    fn told(&self) -> Told {
        let of = |source: &Option<SourceNames>| source.as_ref().map(SourceNames::pods).unwrap_or_default();
        Told { kubernetes: of(&self.kubernetes), kubelet: of(&self.kubelet), cri: of(&self.cri) }
    }
}

impl Told {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kubernetes, &other.kubernetes)
            && Arc::ptr_eq(&self.kubelet, &other.kubelet)
            && Arc::ptr_eq(&self.cri, &other.cri)
    }
}

/// The pods file and the other sources, as one index.
#[derive(Debug, Default)]
pub struct Names {
    file: PodsFile,
    sources: Sources,
    told: Told,
    pods: PodIndex,
    /// Ids of all containers of all pods.
    ids: HashSet<String>,
    /// Containers that were seen and that nobody named: the sources were asked for these.
    asked: HashSet<String>,
}

impl Names {
    /// From these sources, nothing read yet.
    #[must_use]
    pub fn new(file: PodsFile, sources: Sources) -> Self {
        Self { file, sources, ..Self::default() }
    }

    /// The pods, as of the last [`Names::refresh`].
    #[must_use]
    pub const fn pods(&self) -> &PodIndex {
        &self.pods
    }

    /// Whether the file would be read again. The other sources tell by themselves.
    #[must_use]
    pub fn have_changed(&self) -> bool {
        self.file.has_changed()
    }

    /// Takes over what has changed.
    ///
    /// # Errors
    /// See [`PodsFile::refresh`]. What was known stays, and what the others tell is taken over all the same.
    pub fn refresh(&mut self) -> Result<(), PodsFileError> {
        let read = self.file.refresh();
        let told = self.sources.told();
        if matches!(read, Ok(true)) || !told.is(&self.told) {
            self.pods = merge([self.file.pods(), &told.kubernetes, &told.kubelet], &told.cri);
            self.ids = self.pods.values().flat_map(ids).cloned().collect();
            self.told = told;
        }
        read.map(|_| ())
    }

    /// These containers are there. Asks the runtime and the kubelet when one is among them that nobody has named and
    /// that they were not asked for. The API server tells by itself.
    pub fn seen<'a>(&mut self, containers: impl Iterator<Item = &'a str>) {
        let Sources { cri, kubelet, .. } = &self.sources;
        if cri.is_none() && kubelet.is_none() {
            return;
        }
        let unknown: HashSet<String> = containers.filter(|id| !self.ids.contains(*id)).map(str::to_owned).collect();
        if unknown.iter().any(|id| !self.asked.contains(id)) {
            cri.iter().chain(kubelet).for_each(SourceNames::look);
        }
        self.asked = unknown;
    }
}

fn ids(pod: &PodIdentity) -> impl Iterator<Item = &String> {
    pod.containers.keys().chain(pod.sandboxes.iter().map(|sandbox| &sandbox.id))
}

/// One index of all: every pod that any of them has. Who wins of a pod that several have: the file, which somebody
/// wrote on purpose; then the API, which knows owners; then the kubelet; then the runtime. What none of them tells is
/// taken from the cgroup's path (by [`assemble`](crate::sandbox)). In detail:
///
/// | field | who wins |
/// |---|---|
/// | namespace, name, phase, runtime class, class of service | the first that says one (a runtime's handler is no class) |
/// | workload | the first that says one: the runtime guesses it from labels |
/// | labels, annotations | the first that has some: they change while a pod lives, and the runtime has those of its start |
/// | addresses | the runtime, which made them; else the first that has some |
/// | sandboxes, handler | the runtime alone knows them |
/// | containers | all of all; of one that several have, the first name, the first image, the first requests, the first limits, and the runtime's count of attempts, else the first; its sandbox is the runtime's |
#[must_use]
pub fn merge(documents: [&PodIndex; 3], cri: &PodIndex) -> PodIndex {
    let mut pods = cri.clone();
    // From the last to the first, so that each stands before what is there.
    for document in documents.into_iter().rev() {
        for (uid, pod) in document {
            let merged = match pods.remove(uid) {
                Some(rest) => merge_pod(pod, rest, cri.get(uid)),
                None => pod.clone(),
            };
            pods.insert(uid.clone(), merged);
        }
    }
    pods
}

/// `first` before `rest`, in which is what the runtime says.
fn merge_pod(first: &PodIdentity, rest: PodIdentity, cri: Option<&PodIdentity>) -> PodIdentity {
    let told = |first: &String, rest: String| if first.is_empty() { rest } else { first.clone() };
    let (workload_kind, workload) = if first.workload_kind.is_empty() {
        (rest.workload_kind, rest.workload)
    } else {
        (first.workload_kind.clone(), first.workload.clone())
    };
    let mut containers = rest.containers;
    for (id, of_first) in &first.containers {
        let container = containers.entry(id.clone()).or_default();
        container.name = told(&of_first.name, std::mem::take(&mut container.name));
        container.image = told(&of_first.image, std::mem::take(&mut container.image));
        let of_cri = cri.and_then(|cri| cri.containers.get(id)?.attempt);
        container.attempt = of_cri.or(of_first.attempt).or(container.attempt);
        container.requests = of_first.requests.or(container.requests);
        container.limits = of_first.limits.or(container.limits);
    }
    let by_cri = cri.is_some_and(|cri| !cri.addresses.is_empty());
    PodIdentity {
        namespace: told(&first.namespace, rest.namespace),
        name: told(&first.name, rest.name),
        phase: told(&first.phase, rest.phase),
        runtime_class: told(&first.runtime_class, rest.runtime_class),
        runtime_handler: told(&rest.runtime_handler, first.runtime_handler.clone()),
        qos: first.qos.or(rest.qos),
        workload_kind,
        workload,
        labels: if first.labels.is_empty() { rest.labels } else { Arc::clone(&first.labels) },
        annotations: if first.annotations.is_empty() { rest.annotations } else { Arc::clone(&first.annotations) },
        addresses: if by_cri || first.addresses.is_empty() { rest.addresses } else { first.addresses.clone() },
        sandboxes: rest.sandboxes,
        containers,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, HashMap},
        net::IpAddr,
    };

    use super::*;
    use crate::{
        identity::{ContainerIdentity, Limits, Requests, SandboxIdentity},
        sandbox::QosClass,
    };

    fn pairs(value: &str) -> crate::identity::Pairs {
        Arc::new(BTreeMap::from([("from".to_owned(), value.to_owned())]))
    }

    fn container(name: &str, image: &str, attempt: Option<u32>) -> ContainerIdentity {
        ContainerIdentity { name: name.into(), image: image.into(), attempt, ..Default::default() }
    }

    fn of_file() -> PodIdentity {
        PodIdentity {
            namespace: "n".into(),
            name: "p".into(),
            phase: "Running".into(),
            runtime_class: "class".into(),
            workload_kind: "ReplicaSet".into(),
            workload: "rs".into(),
            labels: pairs("file"),
            containers: HashMap::from([
                ("a".to_owned(), container("app", "file:1", Some(1))),
                ("old".to_owned(), container("app", "file:1", None)),
            ]),
            ..Default::default()
        }
    }

    fn of_cri() -> PodIdentity {
        PodIdentity {
            namespace: "n".into(),
            name: "p".into(),
            runtime_handler: "kata".into(),
            workload_kind: "Deployment".into(),
            workload: "guess".into(),
            labels: pairs("cri"),
            annotations: pairs("cri"),
            addresses: vec![[10, 0, 0, 1].into()],
            sandboxes: vec![SandboxIdentity { id: "s".into(), ..Default::default() }],
            containers: HashMap::from([
                ("a".to_owned(), container("app", "", Some(2))),
                ("b".to_owned(), container("late", "cri:1", Some(0))),
            ]),
            ..Default::default()
        }
    }

    #[test]
    fn who_wins() {
        let file = HashMap::from([("u".to_owned(), of_file()), ("file".to_owned(), of_file())]);
        let cri = HashMap::from([("u".to_owned(), of_cri()), ("cri".to_owned(), of_cri())]);
        let none = PodIndex::new();
        let both = merge([&file, &none, &none], &cri);
        assert_eq!(both.len(), 3);
        assert_eq!((&both["file"], &both["cri"]), (&of_file(), &of_cri()));
        let expected = PodIdentity {
            runtime_handler: "kata".into(),
            annotations: pairs("cri"),
            addresses: of_cri().addresses,
            sandboxes: of_cri().sandboxes,
            containers: HashMap::from([
                ("a".to_owned(), container("app", "file:1", Some(2))),
                ("old".to_owned(), container("app", "file:1", None)),
                ("b".to_owned(), container("late", "cri:1", Some(0))),
            ]),
            ..of_file()
        };
        assert_eq!(both["u"], expected);
        let no_owner = PodIdentity { workload_kind: String::new(), workload: String::new(), ..of_file() };
        assert_eq!(merge_pod(&no_owner, of_cri(), Some(&of_cri())).workload, "guess");
    }

    /// The same pod in all sources, each with its own word for every fact: take them away one after the other.
    #[test]
    fn file_then_api_then_kubelet_then_runtime() {
        let of = |who: &str, number: u32| {
            let requests = Requests { memory_bytes: (who != "cri").then_some(number.into()), cpu_millis: None };
            let limits = Limits { cpu_millis: requests.memory_bytes.map(|bytes| bytes + 1), memory_bytes: None };
            let [name, image] = [who; 2].map(str::to_owned);
            let sandbox = if who == "cri" { "s".to_owned() } else { String::new() };
            let container = ContainerIdentity { name, image, attempt: Some(number), requests, limits, sandbox };
            let [name, phase, workload] = [who; 3].map(str::to_owned);
            let pod = PodIdentity {
                namespace: who.into(),
                name,
                phase: if who == "cri" { String::new() } else { phase },
                workload_kind: who.into(),
                workload,
                labels: pairs(who),
                annotations: pairs(who),
                addresses: vec![IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()])],
                containers: HashMap::from([("c".to_owned(), container)]),
                ..PodIdentity::default()
            };
            PodIndex::from([("u".to_owned(), pod)])
        };
        let none = PodIndex::new();
        let (file, api, kubelet, cri) = (of("file", 1), of("api", 2), of("kubelet", 3), of("cri", 4));
        for (documents, first, asked) in [
            ([&file, &api, &kubelet], "file", Some(1)),
            ([&none, &api, &kubelet], "api", Some(2)),
            ([&none, &none, &kubelet], "kubelet", Some(3)),
            ([&none, &none, &none], "cri", None),
        ] {
            let merged = &merge(documents, &cri)["u"];
            let words = [&merged.namespace, &merged.name, &merged.workload_kind, &merged.workload];
            assert!(words.iter().all(|word| *word == first), "{first}: {merged:?}");
            assert_eq!((merged.labels["from"].as_str(), merged.annotations["from"].as_str()), (first, first));
            assert_eq!(merged.phase, if first == "cri" { "" } else { first });
            let container = &merged.containers["c"];
            assert_eq!((container.name.as_str(), container.image.as_str()), (first, first));
            assert_eq!(container.requests.memory_bytes, asked);
            assert_eq!(container.limits.cpu_millis, asked.map(|asked| asked + 1));
            assert_eq!((container.attempt, merged.addresses[0]), (Some(4), [10, 0, 0, 4].into()), "the runtime's");
            assert_eq!(container.sandbox, "s", "the runtime alone tells it");
            let without = &merge(documents, &none);
            let Some(pod) = without.get("u") else { continue };
            let number = asked.unwrap();
            assert_eq!(pod.containers["c"].attempt.map(u64::from), Some(number), "{first}");
            assert_eq!(pod.addresses, [IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()])], "{first}");
        }
    }

    #[test]
    fn what_the_first_does_not_say_the_next_does() {
        let api = PodIdentity { name: "p".into(), ..PodIdentity::default() };
        let kubelet =
            PodIdentity { namespace: "n".into(), phase: "Running".into(), qos: Some(QosClass::Burstable), ..of_cri() };
        let [api, kubelet] = [api, kubelet].map(|pod| PodIndex::from([("u".to_owned(), pod)]));
        let merged = &merge([&PodIndex::new(), &api, &kubelet], &PodIndex::new())["u"];
        assert_eq!((merged.name.as_str(), merged.namespace.as_str(), merged.phase.as_str()), ("p", "n", "Running"));
        assert_eq!((merged.qos, merged.workload.as_str()), (Some(QosClass::Burstable), "guess"));
        assert_eq!((merged.containers.len(), merged.addresses.len()), (2, 1));
    }
}
