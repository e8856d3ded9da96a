//! Who has the addresses beyond this node's own pods: Services, nodes, pods of other nodes.

mod book;
mod claims;
mod feed;
mod objects;
mod options;
mod pods;
mod ranges;
mod record;
mod resolver;
mod teller;
mod wants;
mod watch;
mod wire;

pub use book::{BookUse, Known, OpenBook, PeerBook, Told};
pub use feed::{Changes, ClusterFeed, Coverage};
pub use options::{PeerOptions, PeerSource};
pub use ranges::PodRanges;
pub use record::PeerRecord;
pub use resolver::{RESOLVER, Resolver, ResolverError, ResolverOptions};
pub use watch::{PEERS, start, watch};
pub use wire::Reply;

/// What whoever watches a cluster must be allowed to do, as a refusal says it.
#[cfg(test)]
pub(crate) fn permissions() -> Vec<String> {
    use objects::{Claimant, EndpointSlice, Node, Pod, Service};
    let watched = [Service::PATH, EndpointSlice::PATH, Node::PATH, Pod::PATH].map(super::kube::needed);
    watched.into_iter().chain(super::kube::owners_needed()).collect()
}
