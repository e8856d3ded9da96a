//! A generated cluster, as its API writes it: objects as long as real ones, made when they are asked for.

use std::collections::VecDeque;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) nodes: u32,
    pub(super) pods: u32,
    pub(super) services: u32,
}

/// Pods of one workload.
const REPLICAS: u32 = 20;
/// The length of a pod in the recorded lists of a cluster of Kubernetes 1.36 is 4.8 to 8.2 KB.
const POD_LENGTH: usize = 6_000;
/// One with the names of a few dozen images.
const NODE_LENGTH: usize = 6_000;
/// What managed fields look like, from which objects get their length.
const FIELDS: &str = r#",{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:status":{"f:conditions":{"k:{\"type\":\"Ready\"}":{".":{},"f:lastProbeTime":{},"f:status":{},"f:type":{}}}}},"subresource":"status"}"#;

/// Places that are empty at one time: a pod goes some time before the next one comes.
const EMPTY: usize = 20;

/// The kinds that a resolver watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pods,
    Services,
    Nodes,
    EndpointSlices,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Pods, Self::Services, Self::Nodes, Self::EndpointSlices];

    /// Where the API has them.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Pods => "/api/v1/pods",
            Self::Services => "/api/v1/services",
            Self::Nodes => "/api/v1/nodes",
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
        }
    }
}

/// A pod's place: which pod is there changes, the workload does not.
#[derive(Clone, Copy)]
struct Pod {
    /// How many pods were there before it.
    incarnation: u32,
    address: Option<u32>,
}

/// The cluster now.
pub(super) struct Cluster {
    size: Size,
    pods: Vec<Pod>,
    /// Addresses that nobody has, the one that was given back first in front.
    free: VecDeque<u32>,
    /// Places without a pod, in the order in which they became empty.
    empty: VecDeque<u32>,
    random: u64,
    pub(super) version: u64,
}

/// A pod went or came.
pub(super) struct Change {
    /// The events: of the pod, and of the EndpointSlice that it is in.
    pub(super) events: Vec<(Kind, String)>,
    pub(super) address: IpAddr,
    /// The name of the pod that has the address now.
    pub(super) pod: Option<String>,
}

impl Cluster {
    pub(super) fn new(size: Size) -> Self {
        let pods = (0..size.pods).map(|at| Pod { incarnation: 0, address: Some(at) }).collect();
        // A cluster has room: some addresses are free, and one that was given back is not the next to be taken.
        let free = (size.pods..size.pods + size.pods / 1_000 + 2).collect();
        Self { size, pods, free, empty: VecDeque::new(), random: 0x9e37_79b9_7f4a_7c15, version: 1 }
    }

    /// A number below `bound`: xorshift64*, the same in each run.
    pub(super) fn random(&mut self, bound: u32) -> u32 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        // Below `bound`, which is a u32.
        ((high * u64::from(bound)) >> 32) as u32
    }

    /// How many objects of a kind there are.
    pub(super) fn count(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Pods => self.size.pods,
            Kind::Services | Kind::EndpointSlices => self.size.services,
            Kind::Nodes => self.size.nodes,
        }
    }

    /// An object of a kind; `None` for a pod that is not there now.
    pub(super) fn object(&self, kind: Kind, at: u32) -> Option<String> {
        match kind {
            Kind::Pods => self.pods[at as usize].address.map(|_| self.pod(at)),
            Kind::Services => Some(self.service(at)),
            Kind::Nodes => Some(self.node(at)),
            Kind::EndpointSlices => Some(self.slice(at)),
        }
    }

    /// The addresses of a workload's pods, of a Service and of a node.
    pub(super) fn pod_address(&self, at: u32) -> Option<IpAddr> {
        self.pods[at as usize].address.map(pod_address)
    }

    pub(super) fn service_address(at: u32) -> IpAddr {
        Ipv4Addr::from((172 << 24 | 16 << 16) + at + 1).into()
    }

    pub(super) fn node_address(at: u32) -> IpAddr {
        Ipv4Addr::from((192 << 24 | 168 << 16) + at + 1).into()
    }

    pub(super) fn workloads(&self) -> u32 {
        self.size.pods.div_ceil(REPLICAS)
    }

    /// A place of the workload.
    pub(super) fn place(&self, workload: u32, replica: u32) -> u32 {
        (workload * REPLICAS + replica % REPLICAS) % self.size.pods
    }

    /// The pod's name; `None` when it is not there now.
    pub(super) fn pod_name(&self, at: u32) -> Option<String> {
        self.pods[at as usize].address.map(|_| self.name(at))
    }

    /// A pod that is there goes, or one comes to a place that is empty: in turns.
    pub(super) fn change(&mut self) -> Change {
        self.version += 1;
        let comes = if self.empty.len() > EMPTY { self.empty.pop_front().zip(self.free.pop_front()) } else { None };
        let (kind, at, number, object) = if let Some((at, number)) = comes {
            let pod = &mut self.pods[at as usize];
            *pod = Pod { incarnation: pod.incarnation + 1, address: Some(number) };
            ("ADDED", at, number, self.pod(at))
        } else {
            let (at, number) = loop {
                let at = self.random(self.size.pods);
                if let Some(number) = self.pods[at as usize].address {
                    break (at, number);
                }
            };
            let object = self.pod(at);
            self.pods[at as usize].address = None;
            self.free.push_back(number);
            self.empty.push_back(at);
            ("DELETED", at, number, object)
        };
        let mut events = vec![(Kind::Pods, format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))];
        let workload = at / REPLICAS;
        if workload < self.size.services {
            self.version += 1;
            events.push((Kind::EndpointSlices, modified(&self.slice(workload))));
        }
        Change { events, address: pod_address(number), pod: self.pod_name(at) }
    }

    /// A kubelet says that its node is well, as it does every five minutes (kubernetes.io/docs/concepts/architecture/nodes,
    /// "Heartbeats").
    pub(super) fn heartbeat(&mut self) -> (Kind, String) {
        let at = self.random(self.size.nodes);
        self.version += 1;
        (Kind::Nodes, modified(&self.node(at)))
    }

    fn name(&self, at: u32) -> String {
        let workload = at / REPLICAS;
        format!("workload-{workload}-{:010x}-{at:05x}{:03x}", hash(workload), self.pods[at as usize].incarnation)
    }

    fn pod(&self, at: u32) -> String {
        let workload = at / REPLICAS;
        let (hash, name, namespace) = (hash(workload), self.name(at), namespace(workload));
        let incarnation = self.pods[at as usize].incarnation;
        let ip = self.pod_address(at).map(|ip| ip.to_string()).unwrap_or_default();
        let node = at % self.size.nodes;
        let node_ip = Self::node_address(node);
        let mut text = format!(
            r#"{{"metadata":{{"name":"{name}","generateName":"workload-{workload}-{hash:010x}-","namespace":"{namespace}","uid":"{at:08x}-0000-4000-8000-{incarnation:012x}","resourceVersion":"{version}","creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"app":"workload-{workload}","pod-template-hash":"{hash:010x}"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"workload-{workload}-{hash:010x}","uid":"{workload:08x}-1111-4000-8000-000000000000","controller":true,"blockOwnerDeletion":true}}]}},"spec":{{"nodeName":"node-{node}","serviceAccountName":"default","containers":[{{"name":"main","image":"registry.example/workload-{workload}:v1","ports":[{{"containerPort":8080,"protocol":"TCP"}}]}}]}},"status":{{"phase":"Running","hostIP":"{node_ip}","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}],"startTime":"2026-01-01T00:00:00Z","qosClass":"BestEffort"}}}}"#,
            version = self.version,
        );
        lengthen(&mut text, POD_LENGTH);
        text
    }

    fn service(&self, at: u32) -> String {
        let mut text = format!(
            r#"{{"metadata":{{"name":"workload-{at}","namespace":"{}","uid":"{at:08x}-2222-4000-8000-000000000000","resourceVersion":"1","creationTimestamp":"2026-01-01T00:00:00Z"}},"spec":{{"clusterIP":"{ip}","clusterIPs":["{ip}"],"ports":[{{"port":80,"protocol":"TCP","targetPort":8080}}],"selector":{{"app":"workload-{at}"}},"type":"ClusterIP"}},"status":{{"loadBalancer":{{}}}}}}"#,
            namespace(at),
            ip = Self::service_address(at),
        );
        lengthen(&mut text, 1_000);
        text
    }

    fn node(&self, at: u32) -> String {
        let mut text = format!(
            r#"{{"metadata":{{"name":"node-{at}","uid":"{at:08x}-3333-4000-8000-000000000000","resourceVersion":"{}","creationTimestamp":"2026-01-01T00:00:00Z"}},"spec":{{"podCIDR":"{range}","podCIDRs":["{range}"]}},"status":{{"addresses":[{{"type":"InternalIP","address":"{}"}},{{"type":"Hostname","address":"node-{at}"}}]}}}}"#,
            self.version,
            Self::node_address(at),
            // Beside those that its pods have, so that each of them is nobody's when it is given back.
            range = format_args!("{}/24", Ipv4Addr::from((10 << 24 | 128 << 16) + (at << 8))),
        );
        lengthen(&mut text, NODE_LENGTH);
        text
    }

    /// The endpoints of the workload with this number.
    fn slice(&self, at: u32) -> String {
        let namespace = namespace(at);
        let mut text = format!(
            r#"{{"metadata":{{"name":"workload-{at}-x","namespace":"{namespace}","uid":"{at:08x}-4444-4000-8000-000000000000","resourceVersion":"{}","creationTimestamp":"2026-01-01T00:00:00Z","labels":{{"kubernetes.io/service-name":"workload-{at}"}}}},"addressType":"IPv4","ports":[{{"name":"","port":8080,"protocol":"TCP"}}],"endpoints":["#,
            self.version,
        );
        let places = at * REPLICAS..((at + 1) * REPLICAS).min(self.size.pods);
        let mut separator = "";
        for place in places {
            let Some(ip) = self.pod_address(place) else { continue };
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                r#"{separator}{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node-{}","targetRef":{{"kind":"Pod","name":"{}","namespace":"{namespace}","uid":"{place:08x}"}}}}"#,
                place % self.size.nodes,
                self.name(place),
            );
            separator = ",";
        }
        text.push_str("]}");
        text
    }
}

fn modified(object: &str) -> String {
    format!("{{\"type\":\"MODIFIED\",\"object\":{object}}}\n")
}

fn pod_address(number: u32) -> IpAddr {
    Ipv4Addr::from((10 << 24) + number + 1).into()
}

fn namespace(workload: u32) -> String {
    format!("team-{}", workload % 500)
}

fn hash(workload: u32) -> u64 {
    u64::from(workload).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24
}

/// Managed fields until the object is that long.
fn lengthen(text: &mut String, length: usize) {
    text.pop();
    text.push_str(r#","managedFields":[{}"#);
    while text.len() + FIELDS.len() < length {
        text.push_str(FIELDS);
    }
    text.push_str("]}");
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn objects_are_json_and_changes_change_one_address() {
        let mut cluster = Cluster::new(Size { nodes: 3, pods: 50, services: 2 });
        for kind in Kind::ALL {
            let object = cluster.object(kind, 1).unwrap();
            let value: Value = serde_json::from_str(&object).unwrap();
            assert!(value["metadata"]["uid"].is_string(), "{object}");
        }
        let length = cluster.object(Kind::Pods, 7).unwrap().len();
        assert!((POD_LENGTH - FIELDS.len()..POD_LENGTH + 9).contains(&length), "{length}");
        let mut taken: std::collections::HashMap<IpAddr, Option<String>> =
            (0..50).map(|at| (cluster.pod_address(at).unwrap(), cluster.pod_name(at))).collect();
        for _ in 0..500 {
            let change = cluster.change();
            let before = taken.insert(change.address, change.pod.clone());
            assert_ne!(before.flatten().is_some(), change.pod.is_some());
            for (_, event) in &change.events {
                let event: Value = serde_json::from_str(event).unwrap();
                assert!(event["object"]["metadata"]["resourceVersion"].is_string());
            }
        }
        let now: std::collections::HashMap<IpAddr, Option<String>> =
            (0..50).filter_map(|at| Some((cluster.pod_address(at)?, cluster.pod_name(at)))).collect();
        taken.retain(|_, pod| pod.is_some());
        assert_eq!(taken, now);
    }
}
