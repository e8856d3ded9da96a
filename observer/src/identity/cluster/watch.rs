//! Watching the Services, EndpointSlices, nodes and pods of a cluster in the API.

use std::{cell::RefCell, io, rc::Rc, sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{
    ClusterFeed, Coverage, PeerBook, PeerOptions, PeerSource,
    claims::{Cluster, Kind},
    objects::{Claimant, EndpointSlice, Node, Service},
    pods::AllPods,
    teller::Teller,
};
use crate::{
    clock::monotonic,
    identity::{
        KubeOptions,
        kube::{Backoff, KubeError, Objects, Target, Topic, count, dice, follow, spread},
        source::{Feed, Source},
    },
    metrics::{AgentMetrics, ProbeState},
};

/// Peers beyond the node, in `observer_agent_source_errors_total` and `observer_agent_probe_state`.
pub const PEERS: &str = "peers";

/// Claims to addresses that are kept, more than the book has room for, because one address may be claimed twice.
const MAX_CLAIMS: usize = 120_000;
/// How long after the nodes were too many they are counted again, and by how much later that may be.
const RECOUNT: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(600));

/// Starts following the cluster's addresses into `book`; `None` when there is nobody to ask. Its state is told to
/// `metrics`.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start(
    options: &PeerOptions,
    kube: &KubeOptions,
    book: Arc<PeerBook>,
    metrics: Arc<AgentMetrics>,
) -> io::Result<Option<Source>> {
    if !matches!(options.source, PeerSource::Auto | PeerSource::Watch) {
        return Ok(None);
    }
    let Some(target) = kube.api_server() else {
        if options.source == PeerSource::Watch {
            let reason = "no API server is known (--kubernetes); run as a pod with a service account, or name its URL";
            warn!("Services, nodes and pods of other nodes are not named: {reason}");
            metrics.probe_state(PEERS, ProbeState::Failed, reason);
        }
        return Ok(None);
    };
    let most_nodes = options.most_nodes();
    Source::start(PEERS, metrics, move |feed| all(target, most_nodes, Cluster::with_room_for(MAX_CLAIMS), book, feed))
        .map(Some)
}

/// Watches a cluster of any size, for whoever wants to hear of it, with room for so many claims to addresses; `None` when no
/// API server is known. Its state is told to `metrics`.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn watch(
    kube: &KubeOptions,
    most_claims: usize,
    listener: Arc<dyn ClusterFeed>,
    metrics: Arc<AgentMetrics>,
) -> io::Result<Option<Source>> {
    let Some(target) = kube.api_server() else { return Ok(None) };
    Source::start(PEERS, metrics, move |feed| all(target, None, Cluster::with_room_for(most_claims), listener, feed))
        .map(Some)
}

/// Watches all kinds. Never ends.
async fn all(
    target: Target,
    most_nodes: Option<u64>,
    cluster: Cluster,
    listener: Arc<dyn ClusterFeed>,
    mut feed: Feed,
) {
    if let Some(most) = most_nodes {
        wait_until_small(&target, most, &*listener, &mut feed).await;
    }
    let shared = Shared::new(Teller::new(cluster, listener), feed);
    let topic = |shared: &Rc<RefCell<Shared>>| (target.clone(), Rc::clone(shared));
    let services = Plain::<Service>::follow(topic(&shared));
    let slices = Plain::<EndpointSlice>::follow(topic(&shared));
    let nodes = Plain::<Node>::follow(topic(&shared));
    let pods = follow(target.clone(), AllPods::new(target.clone(), shared));
    tokio::join!(services, slices, nodes, pods);
}

/// Returns when the cluster has at most so many nodes. Until then `listener` knows that it is not told of it.
async fn wait_until_small(target: &Target, most: u64, listener: &dyn ClusterFeed, feed: &mut Feed) {
    /// Their number is enough.
    struct Counted;

    impl Objects for Counted {
        type Object = Node;

        fn begin(&mut self) {}

        fn put(&mut self, _: Node) {}

        fn complete(&mut self) {}

        fn remove(&mut self, _: Node) {}
    }

    let mut backoff = Backoff::default();
    loop {
        match count(target, Node::PATH, &mut Counted).await {
            Ok(Some(nodes)) if nodes <= most => return,
            Ok(nodes) => {
                listener.covers(Coverage::Part);
                let reason = too_many(nodes, most);
                if feed.tell(ProbeState::Unsupported, &reason) {
                    warn!("Services, nodes and pods of other nodes are not named: {reason}");
                }
                backoff.well();
                sleep(RECOUNT.0 + spread(RECOUNT.1, dice())).await;
            }
            Err(error) => {
                listener.covers(Coverage::Away);
                feed.error();
                let text = error.to_string();
                if feed.tell(ProbeState::Failed, &text) {
                    warn!("Services, nodes and pods of other nodes are not named: {text}");
                }
                sleep(backoff.wait(Duration::ZERO, dice())).await;
            }
        }
    }
}

fn too_many(nodes: Option<u64>, most: u64) -> String {
    let nodes = nodes.map_or_else(|| "an unknown number of".to_owned(), |nodes| nodes.to_string());
    format!(
        "the cluster has {nodes} nodes, and with more than {most} (--kubernetes.peers.max-nodes) not every agent watches \
         it; raise that, or say --kubernetes.peers watch or resolver=URL"
    )
}

/// Whether the API server says of a kind that it may not be read (403), or that it has none (404): another try will
/// likely say the same, and the others need not wait for it.
const fn may_not_be_read(error: &KubeError) -> bool {
    matches!(error.status, Some(403 | 404))
}

/// Why a kind cannot be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    text: String,
    /// What the service account must be allowed to do, where that is missing.
    permission: Option<String>,
}

/// What the topics have in common.
pub(super) struct Shared {
    pub(super) teller: Teller,
    pub(super) feed: Feed,
    /// What came of each kind last.
    states: [Option<Result<String, Failure>>; 4],
}

impl Shared {
    /// Nothing was asked for yet.
    pub(super) fn new(teller: Teller, feed: Feed) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self { teller, feed, states: Default::default() }))
    }

    fn publish(&mut self, kind: Kind) {
        self.teller.tell(kind, monotonic());
    }

    /// This kind is watched; with what there is to say of it.
    pub(super) fn works(&mut self, kind: Kind, remark: String) {
        self.states[kind as usize] = Some(Ok(remark));
        self.tell_state();
    }

    /// All that there is of this kind has been told.
    pub(super) fn caught_up(&mut self, kind: Kind) {
        self.teller.watched(kind, true);
    }

    fn failed(&mut self, kind: Kind, error: &KubeError, usual: bool) {
        self.feed.error();
        if may_not_be_read(error) {
            self.teller.unreadable(kind);
        }
        let failure = Failure { text: error.to_string(), permission: error.permission.clone() };
        if usual {
            debug!("{}", failure.text);
        } else {
            self.states[kind as usize] = Some(Err(failure));
            self.teller.watched(kind, false);
            self.tell_state();
        }
    }

    /// Nothing before each kind has been asked for.
    fn tell_state(&mut self) {
        let Some((state, reason)) = judge(&self.states) else { return };
        if !self.feed.tell(state, &reason) {
            return;
        }
        let count = |kind| self.teller.cluster.count(kind);
        match state {
            ProbeState::Ok => {
                let (services, nodes, pods) = (count(Kind::Service), count(Kind::Node), count(Kind::Pod));
                info!(services, nodes, pods, "watching the cluster for peers");
                if !reason.is_empty() {
                    warn!("{reason}");
                }
            }
            _ => warn!("{reason}; peers keep the names they have"),
        }
    }
}

/// The state of all kinds together, once all are known: what is wrong, each once. Permissions that are missing stand
/// together, because a reason has not much room.
fn judge(states: &[Option<Result<String, Failure>>]) -> Option<(ProbeState, String)> {
    let states: Vec<&Result<String, Failure>> = states.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let failures: Vec<&Failure> = states.iter().filter_map(|state| state.as_ref().err()).collect();
    if failures.is_empty() {
        let remarks = once(states.iter().filter_map(|state| state.as_deref().ok()));
        return Some((ProbeState::Ok, remarks.join("; ")));
    }
    let missing = once(failures.iter().filter_map(|failure| failure.permission.as_deref()));
    let others = failures.iter().filter(|failure| failure.permission.is_none());
    let mut reasons: Vec<String> =
        once(others.map(|failure| failure.text.as_str())).into_iter().map(str::to_owned).collect();
    if !missing.is_empty() {
        reasons.push("the API server refuses some (403)".to_owned());
        reasons.push(format!("let the service account {}", missing.join(", ")));
    }
    Some((ProbeState::Failed, reasons.join("; ")))
}

/// Each text once, and none that is empty.
fn once<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for text in texts {
        if !text.is_empty() && !seen.contains(&text) {
            seen.push(text);
        }
    }
    seen
}

/// Objects that tell all by themselves.
pub(super) struct Plain<T> {
    pub(super) shared: Rc<RefCell<Shared>>,
    kind: std::marker::PhantomData<T>,
}

impl<T: Claimant> Plain<T> {
    /// None of them is known.
    pub(super) const fn new(shared: Rc<RefCell<Shared>>) -> Self {
        Self { shared, kind: std::marker::PhantomData }
    }

    async fn follow((target, shared): (Target, Rc<RefCell<Shared>>)) {
        follow(target, Self::new(shared)).await;
    }
}

impl<T: Claimant> Objects for Plain<T> {
    type Object = T;

    fn begin(&mut self) {
        self.shared.borrow_mut().teller.cluster.list_begins(T::KIND);
    }

    fn put(&mut self, object: T) {
        self.shared.borrow_mut().teller.cluster.put(T::KIND, object.metadata().uid(), object.claims());
    }

    fn complete(&mut self) {
        self.shared.borrow_mut().teller.cluster.list_ends(T::KIND);
    }

    fn remove(&mut self, object: T) {
        self.shared.borrow_mut().teller.cluster.remove(T::KIND, object.metadata().uid());
    }
}

impl<T: Claimant> Topic for Plain<T> {
    type Objects = Self;

    fn path(&self) -> String {
        T::PATH.to_owned()
    }

    fn objects(&mut self) -> &mut Self {
        self
    }

    fn connected(&mut self) -> bool {
        false
    }

    async fn publish(&mut self) {
        self.shared.borrow_mut().publish(T::KIND);
    }

    fn works(&mut self) {
        self.shared.borrow_mut().works(T::KIND, String::new());
    }

    fn caught_up(&mut self) {
        self.shared.borrow_mut().caught_up(T::KIND);
    }

    fn failed(&mut self, error: &KubeError, usual: bool) {
        self.shared.borrow_mut().failed(T::KIND, error, usual);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_that_of_all_kinds() {
        let ok = |text: &str| Some(Ok(text.to_owned()));
        let failed = |text: &str| Some(Err(Failure { text: text.to_owned(), permission: None }));
        let refused = |may: &str| Some(Err(Failure { text: "long".to_owned(), permission: Some(may.to_owned()) }));
        assert_eq!(judge(&[ok(""), None]), None, "one was not asked for yet");
        assert_eq!(judge(&[ok(""), ok("owners")]), Some((ProbeState::Ok, "owners".into())));
        let all = [failed("away"), failed("away"), failed("slow"), ok("owners")];
        assert_eq!(judge(&all), Some((ProbeState::Failed, "away; slow".into())));
        let all = [refused("list and watch nodes"), refused("list and watch pods"), ok(""), failed("slow")];
        let text = "slow; the API server refuses some (403); let the service account list and watch nodes, list and watch pods";
        assert_eq!(judge(&all), Some((ProbeState::Failed, text.into())));
    }

    #[test]
    fn too_many_nodes_are_said_with_what_to_do() {
        let text = too_many(Some(612), 200);
        assert!(text.contains("612 nodes") && text.contains("--kubernetes.peers.max-nodes"), "{text}");
        assert!(text.ends_with("; raise that, or say --kubernetes.peers watch or resolver=URL"), "{text}");
        assert!(too_many(None, 1).contains("unknown number"));
    }
}
