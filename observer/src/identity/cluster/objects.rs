//! Services, EndpointSlices, Nodes and Pods as the API writes them, cut down to who has which address. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::{
    PeerRecord,
    claims::{Claims, Kind, Rank},
    ranges::own_address,
};
use crate::identity::{
    document::{Address, Reference},
    kube::{Object, Owned},
    pod::clean,
    workload,
};

/// Addresses of one object that are kept: the API allows a thousand endpoints in a slice.
const MAX_ADDRESSES: usize = 1000;
/// Ranges for pods of one node that are kept: the API allows one of each family.
const MAX_RANGES: usize = 2;

/// What all of them say of themselves.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    creation_timestamp: Option<String>,
    labels: Option<Labels>,
    owner_references: Option<Vec<Reference>>,
    annotations: Option<Annotations>,
}

/// The labels that tell something.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labels {
    #[serde(rename = "pod-template-hash")]
    template_hash: Option<String>,
    #[serde(rename = "kubernetes.io/service-name")]
    service: Option<String>,
}

/// The annotations in which network plugins write further addresses of a node: those of its tunnels and of the interface
/// towards its pods (`felix` of Calico, `pkg/annotation` of Cilium). From them comes what the node sends to pods of others.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "projectcalico.org/IPv4IPIPTunnelAddr")]
    calico_ipip: Option<String>,
    #[serde(rename = "projectcalico.org/IPv4VXLANTunnelAddr")]
    calico_vxlan: Option<String>,
    #[serde(rename = "projectcalico.org/IPv6VXLANTunnelAddr")]
    calico_vxlan6: Option<String>,
    #[serde(rename = "projectcalico.org/IPv4WireguardInterfaceAddr")]
    calico_wireguard: Option<String>,
    #[serde(rename = "projectcalico.org/IPv6WireguardInterfaceAddr")]
    calico_wireguard6: Option<String>,
    #[serde(rename = "network.cilium.io/ipv4-cilium-host")]
    cilium: Option<String>,
    #[serde(rename = "network.cilium.io/ipv6-cilium-host")]
    cilium6: Option<String>,
}

impl Annotations {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let Self { calico_ipip, calico_vxlan, calico_vxlan6, calico_wireguard, calico_wireguard6, cilium, cilium6 } =
            self;
        let all = [calico_ipip, calico_vxlan, calico_vxlan6, calico_wireguard, calico_wireguard6, cilium, cilium6];
        all.into_iter().flatten().filter_map(|text| parse(text))
    }
}

impl Metadata {
    /// What tells it from all others.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    fn claims(&self, record: PeerRecord, addresses: impl Iterator<Item = (IpAddr, Rank)>) -> Claims {
        let mut addresses: Vec<_> = addresses.take(MAX_ADDRESSES).collect();
        addresses.sort_unstable();
        // The highest claim of each address stands first.
        addresses.reverse();
        addresses.dedup_by_key(|(address, _)| *address);
        Claims { created: self.created(), addresses, record, ranges: Vec::new() }
    }

    /// The time of its creation as the digits of RFC 3339 in UTC (`YYYYMMDDhhmmss`), which is how the API writes it; they
    /// have the order of time. 0 when it is not told.
    fn created(&self) -> u64 {
        let digits = self.creation_timestamp.iter().flat_map(|text| text.bytes()).filter(u8::is_ascii_digit).take(14);
        digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
    }
}

/// An object that claims addresses.
pub trait Claimant: Object {
    /// Its kind.
    const KIND: Kind;
    /// Where all of its kind are: a path with a query.
    const PATH: &str;
    /// What it says of itself.
    fn metadata(&self) -> &Metadata;
    /// What it claims, as far as it tells that itself.
    fn claims(&self) -> Claims;
}

/// A `v1` `Service`.
#[derive(Debug, Deserialize)]
pub struct Service {
    metadata: Metadata,
    #[serde(default)]
    spec: ServiceSpec,
    #[serde(default)]
    status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Address>>,
}

impl Object for Service {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Claimant for Service {
    const KIND: Kind = Kind::Service;
    const PATH: &str = "/api/v1/services?";

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// A headless one has no addresses: `clusterIPs` is `None`, and that of one without a selector is no address.
    fn claims(&self) -> Claims {
        let own = self.spec.cluster_ips.iter().flatten().map(|ip| (ip.as_str(), Rank::ClusterIp));
        let shared = self.spec.external_ips.iter().flatten().map(String::as_str);
        let shared =
            shared.chain(self.status.load_balancer.ingress.iter().flatten().map(|ingress| ingress.ip.as_str()));
        let all = own.chain(shared.map(|ip| (ip, Rank::Shared)));
        let addresses = all.filter_map(|(ip, rank)| Some((parse(ip)?, rank)));
        self.metadata.claims(service(&self.metadata, &self.metadata.name), addresses)
    }
}

/// A `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Debug, Deserialize)]
pub struct EndpointSlice {
    metadata: Metadata,
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    addresses: Option<Vec<String>>,
    target_ref: Option<TargetRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
}

impl Object for EndpointSlice {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Claimant for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;
    const PATH: &str = "/apis/discovery.k8s.io/v1/endpointslices?";

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Of endpoints that are pods the pod tells.
    fn claims(&self) -> Claims {
        let pods = |endpoint: &&Endpoint| endpoint.target_ref.as_ref().is_some_and(|target| target.kind == "Pod");
        let owner = self.metadata.labels.as_ref().and_then(|labels| labels.service.as_deref()).unwrap_or_default();
        let endpoints = self.endpoints.iter().flatten().filter(|endpoint| !pods(endpoint) && !owner.is_empty());
        let addresses = endpoints.flat_map(|endpoint| endpoint.addresses.iter().flatten());
        let addresses = addresses.filter_map(|ip| Some((parse(ip)?, Rank::Endpoint)));
        self.metadata.claims(service(&self.metadata, owner), addresses)
    }
}

/// A `v1` `Node`.
#[derive(Debug, Deserialize)]
pub struct Node {
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: String,
}

impl Object for Node {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Claimant for Node {
    const KIND: Kind = Kind::Node;
    const PATH: &str = "/api/v1/nodes?";

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its names are no addresses.
    fn claims(&self) -> Claims {
        let ranges = self.spec.pod_cidrs.iter().flatten().filter_map(|range| range.parse().ok());
        let ranges: Vec<IpNet> = ranges.take(MAX_RANGES).collect();
        let told = self.status.addresses.iter().flatten().filter_map(|address| parse(&address.address));
        let of_plugins = self.metadata.annotations.iter().flat_map(Annotations::addresses);
        let addresses = told.chain(of_plugins).chain(ranges.iter().filter_map(own_address));
        let record = PeerRecord::Node { name: clean(&self.metadata.name) };
        Claims {
            ranges: ranges.clone(),
            ..self.metadata.claims(record, addresses.map(|address| (address, Rank::Node)))
        }
    }
}

/// A `v1` `Pod`.
#[derive(Debug, Deserialize)]
pub struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    host_network: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Address>>,
}

impl Object for Pod {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Claimant for Pod {
    const KIND: Kind = Kind::Pod;
    /// Those that have ended have no address any more, and a batch system leaves thousands of them.
    const PATH: &str = "/api/v1/pods?fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn claims(&self) -> Claims {
        let owner = self.controller().map(|owner| (owner.kind.as_str(), owner.name.as_str()));
        let hash = self.metadata.labels.as_ref().and_then(|labels| labels.template_hash.as_deref());
        let (kind, name) = workload::from_owner(owner, hash, &self.metadata.name);
        self.claims_of(&kind, &name)
    }
}

impl Pod {
    /// What it claims as a part of this workload.
    pub fn claims_of(&self, workload_kind: &str, workload: &str) -> Claims {
        let record = PeerRecord::Pod {
            namespace: clean(&self.metadata.namespace),
            name: clean(&self.metadata.name),
            workload_kind: clean(workload_kind),
            workload: clean(workload),
        };
        let ended = matches!(self.status.phase.as_str(), "Succeeded" | "Failed");
        let addresses = self.status.pod_ips.iter().flatten().filter(|_| !self.spec.host_network && !ended);
        let addresses = addresses.filter_map(|address| Some((parse(&address.ip)?, Rank::Pod)));
        self.metadata.claims(record, addresses)
    }

    /// Its controller, when the pod does not say whose that is: a ReplicaSet's Deployment shows in the pod's labels, a
    /// Job's CronJob nowhere.
    pub fn owner_to_ask(&self) -> Option<Owned> {
        let hash = self.metadata.labels.as_ref().and_then(|labels| labels.template_hash.as_deref());
        let owner = self.controller()?;
        let (kind, _) = workload::from_owner(Some((&owner.kind, &owner.name)), hash, &self.metadata.name);
        if kind == "Deployment" { None } else { Owned::of(&self.metadata.namespace, owner) }
    }

    fn controller(&self) -> Option<&Reference> {
        Reference::controller(self.metadata.owner_references.as_deref())
    }
}

fn service(metadata: &Metadata, name: &str) -> PeerRecord {
    PeerRecord::Service { namespace: clean(&metadata.namespace), name: clean(name) }
}

/// An address that one machine of the cluster may have.
fn parse(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let address = address.to_canonical();
    (!address.is_loopback() && !address.is_unspecified() && !address.is_multicast()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Claimant>(text: &str) -> T {
        serde_json::from_str(text).unwrap()
    }

    fn shown(claims: &Claims) -> String {
        let mut addresses: Vec<String> =
            claims.addresses.iter().map(|(address, rank)| format!("{address} {rank:?}")).collect();
        addresses.sort();
        addresses.join(", ")
    }

    #[test]
    fn a_service_has_its_own_addresses_and_some_that_it_shares() {
        let service: Service = read(
            r#"{"metadata":{"name":"api","namespace":"shop","uid":"u","creationTimestamp":"2026-11-21T02:45:15Z"},
            "spec":{"clusterIP":"10.96.0.80","clusterIPs":["10.96.0.80","fd00:96::80"],"externalIPs":["192.0.2.1"]},
            "status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.7"},{"hostname":"lb.example"},{"ip":"10.96.0.80"}]}}}"#,
        );
        let claims = service.claims();
        assert_eq!(
            shown(&claims),
            "10.96.0.80 ClusterIp, 192.0.2.1 Shared, 198.51.100.7 Shared, fd00:96::80 ClusterIp"
        );
        assert_eq!(claims.created, 20_261_121_024_515);
        assert_eq!(claims.record, PeerRecord::Service { namespace: "shop".into(), name: "api".into() });
        for headless in [r#"{"clusterIP":"None","clusterIPs":["None"]}"#, r#"{"type":"ExternalName"}"#, "{}"] {
            let service: Service = read(&format!(r#"{{"metadata":{{"name":"h","uid":"u"}},"spec":{headless}}}"#));
            assert_eq!(shown(&service.claims()), "", "{headless}");
        }
    }

    #[test]
    fn a_slice_tells_of_endpoints_that_are_no_pods() {
        let text = r#"{"metadata":{"name":"db-1","namespace":"shop","uid":"u","labels":{"kubernetes.io/service-name":"db"}},
            "addressType":"IPv4","endpoints":[{"addresses":["203.0.113.9"],"conditions":{"ready":true}},
            {"addresses":["10.88.0.15"],"targetRef":{"kind":"Pod","name":"p"}},{"addresses":["db.example"]},{}]}"#;
        let slice: EndpointSlice = read(text);
        assert_eq!(shown(&slice.claims()), "203.0.113.9 Endpoint");
        assert_eq!(slice.claims().record, PeerRecord::Service { namespace: "shop".into(), name: "db".into() });
        let nobodys: EndpointSlice = read(&text.replace("kubernetes.io/service-name", "x"));
        assert_eq!(shown(&nobodys.claims()), "");
        let empty: EndpointSlice = read(r#"{"metadata":{"uid":"u"},"endpoints":null}"#);
        assert_eq!(shown(&empty.claims()), "");
    }

    #[test]
    fn a_node_has_addresses_of_all_kinds() {
        let node: Node = read(
            r#"{"metadata":{"name":"n","uid":"u"},"status":{"addresses":[{"address":"10.0.0.1","type":"InternalIP"},
            {"address":"::ffff:192.0.2.1","type":"ExternalIP"},{"address":"n","type":"Hostname"},
            {"address":"127.0.0.1","type":"InternalIP"}]}}"#,
        );
        assert_eq!(shown(&node.claims()), "10.0.0.1 Node, 192.0.2.1 Node");
    }

    #[test]
    fn a_node_has_what_its_network_plugin_says_and_gives_ranges_to_its_pods() {
        let node: Node = read(
            r#"{"metadata":{"name":"n","uid":"u","annotations":{"projectcalico.org/IPv4VXLANTunnelAddr":"10.9.0.1",
            "network.cilium.io/ipv6-cilium-host":"fd00:9::1","projectcalico.org/IPv4IPIPTunnelAddr":"none","x":"10.9.0.2"}},
            "spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00:1::/64","1.2.3.4"]}}"#,
        );
        let claims = node.claims();
        assert_eq!(shown(&claims), "10.244.1.0 Node, 10.9.0.1 Node, fd00:1:: Node, fd00:9::1 Node");
        assert_eq!(claims.ranges, ["10.244.1.0/24", "fd00:1::/64"].map(|range| range.parse().unwrap()));
    }

    const POD: &str = r#"{"metadata":{"name":"web-7d9-x","namespace":"shop","uid":"u","labels":{"pod-template-hash":"7d9"},
        "ownerReferences":[{"kind":"ReplicaSet","name":"web-7d9","uid":"r","controller":true}]},
        "spec":{"nodeName":"m","containers":[]},"status":{"phase":"Running","podIP":"10.1.0.1",
        "podIPs":[{"ip":"10.1.0.1"},{"ip":"fd00::1"}]}}"#;

    #[test]
    fn a_pod_has_its_addresses_while_it_lives() {
        let pod: Pod = read(POD);
        assert_eq!(shown(&pod.claims()), "10.1.0.1 Pod, fd00::1 Pod");
        let PeerRecord::Pod { workload_kind, workload, name, .. } = pod.claims().record else { panic!("a pod") };
        assert_eq!((workload_kind.as_str(), workload.as_str(), name.as_str()), ("Deployment", "web", "web-7d9-x"));
        assert!(pod.owner_to_ask().is_none());
        for (from, to) in [
            (r#""phase":"Running""#, r#""phase":"Succeeded""#),
            (r#""phase":"Running""#, r#""phase":"Failed""#),
            (r#""nodeName":"m""#, r#""hostNetwork":true"#),
        ] {
            let none: Pod = read(&POD.replace(from, to));
            assert_eq!(shown(&none.claims()), "", "{to}");
        }
    }

    #[test]
    fn owners_that_no_label_tells_are_asked_for() {
        let job: Pod = read(&POD.replace("ReplicaSet", "Job"));
        assert_eq!(job.owner_to_ask().unwrap().path(), "/apis/batch/v1/namespaces/shop/jobs/web-7d9");
        let rollout: Pod = read(&POD.replace("pod-template-hash", "rollouts-pod-template-hash"));
        assert_eq!(rollout.owner_to_ask().unwrap().path(), "/apis/apps/v1/namespaces/shop/replicasets/web-7d9");
        let set: Pod = read(&POD.replace("ReplicaSet", "StatefulSet"));
        assert!(set.owner_to_ask().is_none());
        let PeerRecord::Pod { workload_kind, .. } = set.claims().record else { panic!("a pod") };
        assert_eq!(workload_kind, "StatefulSet");
    }
}
