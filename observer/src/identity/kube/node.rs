//! Watching the node's pods in the API.

use tracing::{debug, info, warn};

use super::{
    client::{KubeError, Target},
    owners::{OWNERS_AT_ONCE, Owners},
    pods::Pods,
    server::{Topic, encoded},
};
use crate::{identity::source::Feed, metrics::ProbeState};

/// The pods of a node, told to a feed.
pub struct NodePods {
    target: Target,
    node: String,
    feed: Feed,
    pods: Pods,
    owners: Owners,
    told_empty: bool,
}

impl NodePods {
    /// Nothing is known yet.
    pub fn new(target: Target, node: String, feed: Feed) -> Self {
        Self { target, node, feed, pods: Pods::default(), owners: Owners::default(), told_empty: false }
    }
}

impl Topic for NodePods {
    type Objects = Pods;

    fn path(&self) -> String {
        format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", encoded(&self.node))
    }

    fn objects(&mut self) -> &mut Pods {
        &mut self.pods
    }

    fn connected(&mut self) -> bool {
        // Permissions change.
        self.owners.try_again();
        !self.owners.to_ask(self.pods.owners().cloned()).is_empty()
    }

    /// Shows the pods, with owners where they can be had.
    async fn publish(&mut self) {
        let ask = self.owners.to_ask(self.pods.owners().cloned());
        if !ask.is_empty()
            && let Err(error) = self.owners.ask(&self.target, &ask[..ask.len().min(OWNERS_AT_ONCE)]).await
        {
            self.feed.error();
            debug!("owners are told from names: {error}");
        }
        self.owners.keep(self.pods.owners().cloned());
        // In this order: who is told that this works finds the names.
        self.feed.publish(self.pods.index(&self.owners));
        self.works();
    }

    fn works(&mut self) {
        let mut reason = Vec::from_iter(Some(self.owners.complaint()).filter(|complaint| !complaint.is_empty()));
        let empty = self.pods.count() == 0;
        if empty {
            reason.push(format!("no pod is on a node called {:?}: set NODE_NAME from spec.nodeName", self.node));
        }
        let reason = reason.join("; ");
        if self.feed.tell(ProbeState::Ok, &reason) {
            info!(url = self.target.place(), node = self.node, pods = self.pods.count(), "watching the node's pods");
            if !reason.is_empty() {
                warn!("{reason}");
            }
        } else if empty && !self.told_empty {
            warn!("{reason}");
        }
        self.told_empty = empty;
    }

    fn failed(&mut self, error: &KubeError, usual: bool) {
        self.feed.error();
        let text = error.to_string();
        if usual {
            debug!("{text}");
        } else if self.feed.tell(ProbeState::Failed, &text) {
            warn!("{text}; pods keep the names they have");
        }
    }
}
