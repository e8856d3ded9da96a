//! Who owns those who own pods: the Deployment of a ReplicaSet, the CronJob of a Job.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Deserialize;

use super::{
    client::{KubeError, Target},
    connection::{Connection, MAX_BODY, METADATA},
};
use crate::identity::{
    document::{Metadata, Reference},
    pod::clean,
};

/// Kinds that may be owned themselves, with the path of their group.
const OWNED_KINDS: [(&str, &str, &str); 2] = [("ReplicaSet", "apps/v1", "replicasets"), ("Job", "batch/v1", "jobs")];

/// A pod's controller that may have one itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owned {
    kind: usize,
    namespace: String,
    name: String,
    uid: String,
}

/// Owners that are asked for before pods are shown: with more of them unknown the rest is told from names meanwhile.
pub const OWNERS_AT_ONCE: usize = 200;

/// What was told of them. Owners of one controller never change.
#[derive(Debug, Default)]
pub struct Owners {
    known: HashMap<String, Option<(String, String)>>,
    forbidden: BTreeSet<usize>,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

impl Owned {
    /// The controller of a pod in this namespace, when it is of a kind that is asked for.
    pub fn of(namespace: &str, owner: &Reference) -> Option<Self> {
        let kind = OWNED_KINDS.iter().position(|(kind, ..)| *kind == owner.kind)?;
        let plain = |text: &str| !text.is_empty() && text.bytes().all(is_plain);
        (plain(namespace) && plain(&owner.name) && !owner.uid.is_empty()).then(|| Self {
            kind,
            namespace: clean(namespace),
            name: clean(&owner.name),
            uid: clean(&owner.uid),
        })
    }

    /// Where the API has it.
    pub fn path(&self) -> String {
        let (_, group, resource) = OWNED_KINDS[self.kind];
        format!("/apis/{group}/namespaces/{}/{resource}/{}", self.namespace, self.name)
    }
}

/// What names have; they are put into a path.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')
}

impl Owners {
    /// Whether nothing is known of it, and may be.
    pub fn is_unknown(&self, owned: &Owned) -> bool {
        !self.is_told(owned) && !self.forbidden.contains(&owned.kind)
    }

    /// Whether the API has told of it, be it that it is gone.
    pub fn is_told(&self, owned: &Owned) -> bool {
        self.known.contains_key(&owned.uid)
    }

    /// Those that nothing is known of, each once.
    pub fn to_ask(&self, of: impl Iterator<Item = Owned>) -> Vec<Owned> {
        of.filter(|owned| self.is_unknown(owned)).collect::<HashSet<_>>().into_iter().collect()
    }

    /// Asks the API for these, over a connection of its own: another one may be a watch.
    ///
    /// # Errors
    /// When it does not answer. What may not be read is none.
    pub async fn ask(&mut self, target: &Target, owned: &[Owned]) -> Result<(), KubeError> {
        let mut connection = Connection::open(target).await?;
        for owned in owned {
            // Its kind may have turned out to be forbidden.
            if !self.is_unknown(owned) {
                continue;
            }
            let answer = match connection.get(&owned.path(), METADATA).await {
                Ok(answer) => connection.whole(answer, MAX_BODY).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(body) => self.told(owned, &body),
                Err(error) if error.status == Some(404) => self.gone(owned),
                Err(error) if error.status == Some(403) => self.forbidden(owned),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The API's answer: the object or its metadata.
    pub fn told(&mut self, owned: &Owned, answer: &[u8]) {
        let object: Option<Object> = serde_json::from_slice(answer).ok();
        // Another one of the same name says nothing of this one.
        let owner = object.filter(|object| clean(&object.metadata.uid) == owned.uid).map(|object| {
            let controller = object.metadata.controller();
            let told = |kind: &str, name: &str| (clean(kind), clean(name));
            controller.map_or_else(
                || told(OWNED_KINDS[owned.kind].0, &owned.name),
                |controller| told(&controller.kind, &controller.name),
            )
        });
        self.known.insert(owned.uid.clone(), owner);
    }

    /// It is gone.
    pub fn gone(&mut self, owned: &Owned) {
        self.known.insert(owned.uid.clone(), None);
    }

    /// This kind may not be read.
    pub fn forbidden(&mut self, owned: &Owned) {
        self.forbidden.insert(owned.kind);
    }

    /// Kinds that may not be read, in words; empty when all may be.
    fn missing(&self) -> String {
        let missing: Vec<String> =
            self.forbidden.iter().map(|kind| format!("{}.{}", OWNED_KINDS[*kind].2, OWNED_KINDS[*kind].1)).collect();
        let missing: Vec<&str> = missing.iter().map(|kind| kind.trim_end_matches("/v1")).collect();
        missing.join(", ")
    }

    /// What that means, in words; empty when all may be read.
    pub fn complaint(&self) -> String {
        match self.missing() {
            missing if missing.is_empty() => missing,
            missing => format!(
                "the service account may not get {missing}: Deployments are told from pod-template-hash, CronJobs not at all"
            ),
        }
    }

    /// Asks again for what may not be read: permissions change.
    pub fn try_again(&mut self) {
        self.forbidden.clear();
    }

    /// How many are known.
    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// Forgets all that own none of these.
    pub fn keep(&mut self, of: impl Iterator<Item = Owned>) {
        let uids: HashSet<String> = of.map(|owned| owned.uid).collect();
        self.known.retain(|uid, _| uids.contains(uid));
    }

    /// Kind and name of the top owner, when it was told.
    pub fn workload(&self, owned: &Owned) -> Option<(&str, &str)> {
        let (kind, name) = self.known.get(&owned.uid)?.as_ref()?;
        Some((kind, name))
    }
}

/// What must be allowed for owners to be asked for, as a refusal says it.
#[cfg(test)]
pub(in crate::identity) fn needed() -> Vec<String> {
    let path = |kind: usize| Owned { kind, namespace: "n".into(), name: "o".into(), uid: "u".into() }.path();
    (0..OWNED_KINDS.len()).map(|kind| super::client::needed(&path(kind))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{
        document::List,
        kube::{pods::tests::Watched, watch::Outcome},
    };

    const PODS: &[u8] = include_bytes!("../../../tests/fixtures/kubernetes/api-list-deployment.json");
    const REPLICA_SET: &[u8] = include_bytes!("../../../tests/fixtures/kubernetes/api-replicaset.json");
    const POD: &str = "396a9b5c-a679-4bcc-8a24-de21cbebd6b7";

    fn pods() -> Watched {
        let mut pods = Watched::default();
        pods.list(PODS).unwrap();
        pods
    }

    #[test]
    fn a_replica_set_of_a_deployment() {
        let pods = pods();
        let mut owners = Owners::default();
        let ask = owners.to_ask(pods.owners().cloned());
        assert_eq!(ask.len(), 1, "two pods of one");
        assert_eq!(ask[0].path(), "/apis/apps/v1/namespaces/shop/replicasets/api-7f9fbbdc5f");
        owners.told(&ask[0], REPLICA_SET);
        assert_eq!(owners.workload(&ask[0]), Some(("Deployment", "api")));
        assert_eq!(pods.index(&owners)[POD].workload, "api");
        assert!(owners.to_ask(pods.owners().cloned()).is_empty(), "asked once");
        owners.keep(std::iter::empty());
        assert_eq!(owners.workload(&ask[0]), None);
    }

    #[test]
    fn a_job_of_a_cron_job_and_one_without() {
        let pod = |uid: &str| {
            format!(
                r#"{{"type":"ADDED","object":{{"metadata":{{"name":"p","namespace":"n","uid":"pod-{uid}","ownerReferences":[
                {{"kind":"Job","name":"nightly-29387","uid":"{uid}","controller":true}}]}}}}}}"#
            )
        };
        let job = |uid: &str, owners: &str| {
            format!(r#"{{"metadata":{{"name":"nightly-29387","uid":"{uid}","ownerReferences":[{owners}]}}}}"#)
        };
        let mut pods = Watched::default();
        for uid in ["j1", "j2", "j3"] {
            assert_eq!(pods.event(pod(uid).as_bytes()), Ok(Outcome::Changed));
        }
        let mut owners = Owners::default();
        for owned in owners.to_ask(pods.owners().cloned()) {
            assert_eq!(owned.path(), "/apis/batch/v1/namespaces/n/jobs/nightly-29387");
            match owned.uid.as_str() {
                "j1" => owners
                    .told(&owned, job("j1", r#"{"kind":"CronJob","name":"nightly","controller":true}"#).as_bytes()),
                "j2" => owners.told(&owned, job("j2", "").as_bytes()),
                // Made again under the same name.
                _ => owners.told(&owned, job("other", "").as_bytes()),
            }
        }
        let index = pods.index(&owners);
        let workload = |uid: &str| (index[uid].workload_kind.as_str(), index[uid].workload.as_str());
        assert_eq!(workload("pod-j1"), ("CronJob", "nightly"));
        assert_eq!(workload("pod-j2"), ("Job", "nightly-29387"));
        assert_eq!(workload("pod-j3"), ("Job", "nightly-29387"));
    }

    #[test]
    fn what_may_not_be_read_is_told_from_the_pods_labels() {
        let pods = pods();
        let mut owners = Owners::default();
        let ask = owners.to_ask(pods.owners().cloned());
        owners.forbidden(&ask[0]);
        assert_eq!(owners.missing(), "replicasets.apps");
        assert!(owners.to_ask(pods.owners().cloned()).is_empty());
        assert_eq!(pods.index(&owners)[POD].workload_kind, "Deployment");
        owners.try_again();
        assert_eq!(owners.to_ask(pods.owners().cloned()), ask);
        owners.gone(&ask[0]);
        assert_eq!(pods.index(&owners)[POD].workload, "api");
    }

    #[test]
    fn names_that_are_none_are_not_put_into_paths() {
        let list: List = serde_json::from_str(
            r#"{"items":[{"metadata":{"namespace":"n","ownerReferences":[
            {"kind":"Job","name":"../../x","uid":"u","controller":true}]}}]}"#,
        )
        .unwrap();
        let metadata = &list.items.as_ref().unwrap()[0].metadata;
        assert_eq!(Owned::of(&metadata.namespace, metadata.controller().unwrap()), None);
    }
}
