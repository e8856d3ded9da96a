//! The pods of a node, as the API tells them. Pure.

use std::collections::HashMap;

use super::{
    owners::{Owned, Owners},
    watch::{Object, Objects},
};
use crate::identity::{PodIdentity, PodIndex, document::Pod};

/// All of them.
#[derive(Default)]
pub struct Pods {
    pods: HashMap<String, Known>,
    /// Those of a list that has not ended.
    listed: Option<HashMap<String, Known>>,
}

struct Known {
    /// What its cgroup may be called by.
    uids: Vec<String>,
    identity: PodIdentity,
    owner: Option<Owned>,
}

impl Object for Pod {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Objects for Pods {
    type Object = Pod;

    fn begin(&mut self) {
        self.listed = Some(HashMap::new());
    }

    fn put(&mut self, pod: Pod) {
        if pod.metadata.uid.is_empty() {
            return;
        }
        let owner = pod.metadata.controller().and_then(|owner| Owned::of(&pod.metadata.namespace, owner));
        let known = Known { uids: pod.uids(), identity: pod.identity(), owner };
        self.listed.as_mut().unwrap_or(&mut self.pods).insert(pod.metadata.uid, known);
    }

    fn complete(&mut self) {
        if let Some(listed) = self.listed.take() {
            self.pods = listed;
        }
    }

    fn remove(&mut self, pod: Pod) {
        self.pods.remove(&pod.metadata.uid);
    }
}

impl Pods {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.pods.len()
    }

    /// The owners of all.
    pub fn owners(&self) -> impl Iterator<Item = &Owned> {
        self.pods.values().filter_map(|known| known.owner.as_ref())
    }

    /// All of them, with the workloads that `owners` know.
    pub fn index(&self, owners: &Owners) -> PodIndex {
        let mut index = PodIndex::new();
        for known in self.pods.values() {
            let mut identity = known.identity.clone();
            if let Some((kind, name)) = known.owner.as_ref().and_then(|owner| owners.workload(owner)) {
                (identity.workload_kind, identity.workload) = (kind.to_owned(), name.to_owned());
            }
            for uid in &known.uids {
                index.insert(uid.clone(), identity.clone());
            }
        }
        index
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::identity::kube::{
        list::Page,
        watch::{Outcome, Progress},
    };

    /// Pods, and up to which version they are known.
    #[derive(Default)]
    pub struct Watched {
        pods: Pods,
        progress: Progress,
    }

    impl Watched {
        pub fn list(&mut self, text: &[u8]) -> Result<(), String> {
            self.pods.begin();
            let mut page = Page::default();
            page.take(text, &mut self.pods)?;
            self.progress.reached(&page.end()?.0.resource_version);
            self.pods.complete();
            Ok(())
        }

        pub fn event(&mut self, line: &[u8]) -> Result<Outcome, String> {
            self.progress.event(line, &mut self.pods)
        }

        fn version(&self) -> Option<&str> {
            self.progress.version()
        }
    }

    impl std::ops::Deref for Watched {
        type Target = Pods;

        fn deref(&self) -> &Pods {
            &self.pods
        }
    }

    const LIST: &[u8] = include_bytes!("../../../tests/fixtures/kubernetes/api-list.json");
    const WATCH: &str = include_str!("../../../tests/fixtures/kubernetes/api-watch.jsonl");

    fn number(version: &str) -> u64 {
        version.parse().unwrap()
    }

    /// A watch from the beginning and a list tell the same.
    #[test]
    fn what_was_watched_is_what_is_listed() {
        let mut listed = Watched::default();
        assert_eq!(listed.version(), None);
        listed.list(LIST).unwrap();
        let version = listed.version().unwrap().to_owned();
        let mut watched = Watched::default();
        let mut rest = WATCH.lines().peekable();
        let of = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
        let at = |line: &str| of(line)["object"]["metadata"]["resourceVersion"].as_str().map(number).unwrap();
        while let Some(line) = rest.next_if(|line| at(line) <= number(&version)) {
            assert_eq!(watched.event(line.as_bytes()), Ok(Outcome::Changed));
        }
        let none = Owners::default();
        assert_eq!(watched.index(&none), listed.index(&none));
        assert_eq!(listed.count(), 6);
        let index = listed.index(&none);
        assert_eq!(index["986c58355b1a9629d28eb1e8abb627b3"].name, "multi-node1", "a mirror by its hash");
        assert_eq!(index["986c58355b1a9629d28eb1e8abb627b3"].workload_kind, "Pod");
        assert_eq!(index["b640cd37-60c4-45f3-9039-9e4d8e2e3fd4"].name, "loadgen");

        // From the list's version on, as after a list.
        for line in rest {
            watched.event(line.as_bytes()).unwrap();
            listed.event(line.as_bytes()).unwrap();
        }
        assert_eq!(watched.index(&none), listed.index(&none));
        assert_eq!(listed.version(), Some("234"));
        assert!(!listed.index(&none).contains_key("b640cd37-60c4-45f3-9039-9e4d8e2e3fd4"), "deleted");
        assert_eq!(listed.count(), 5);
    }

    #[test]
    fn bookmarks_errors_and_nonsense() {
        let mut pods = Watched::default();
        pods.list(LIST).unwrap();
        let before = pods.index(&Owners::default());
        let bookmark = br#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":
            {"resourceVersion":"12746","creationTimestamp":null},"spec":{"containers":null},"status":{}}}"#;
        assert_eq!(pods.event(bookmark), Ok(Outcome::Same));
        assert_eq!(pods.version(), Some("12746"));
        let gone = br#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
            "message":"too old resource version: 1 (2)","reason":"Expired","code":410}}"#;
        let Ok(Outcome::Expired(why)) = pods.event(gone) else { panic!("it is an error") };
        assert!(why.contains("too old") && why.contains("410"), "{why}");
        for bad in ["", "{}", r#"{"type":"NEW","object":{}}"#, r#"{"type":"ADDED","object":{}}"#] {
            assert!(pods.event(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(pods.list(br#"{"items":[]}"#).is_err(), "no version");
        assert_eq!(pods.index(&Owners::default()), before);
    }
}
