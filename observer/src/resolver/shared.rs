//! The resolver's state, shared by who watches the cluster, the agents' streams and the metrics.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::{Notify, watch};

use super::core::{AgentId, Core, Sizes, TooMany};
use crate::identity::cluster::{Changes, ClusterFeed, Coverage, PodRanges, Reply};

/// Agents at one time: twice as many as there are nodes in the largest clusters that Kubernetes is made for
/// (kubernetes.io/docs/setup/best-practices/cluster-large).
pub const MAX_AGENTS: usize = 10_000;

/// Why an agent was turned away or cut off: the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// More than [`MAX_AGENTS`].
    TooManyAgents,
    /// It wanted to know too many addresses.
    TooManyAddresses,
    /// All agents together have [`MAX_SUBSCRIPTIONS`](super::MAX_SUBSCRIPTIONS).
    TooManySubscriptions,
    /// A request that cannot be read.
    BadRequest,
    /// It took no answers for too long.
    Slow,
    /// Without the token.
    Unauthenticated,
}

impl Refusal {
    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooManyAgents => "too_many_agents",
            Self::TooManyAddresses => "too_many_addresses",
            Self::TooManySubscriptions => "too_many_subscriptions",
            Self::BadRequest => "bad_request",
            Self::Slow => "slow",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

/// What the resolver has counted since it began.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Answers that went to agents.
    pub answers: u64,
    /// Claims to addresses that found no place.
    pub folded: u64,
    /// Agents that were turned away or cut off.
    pub refused: BTreeMap<Refusal, u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Shared {
    core: Mutex<Core>,
    counts: Mutex<Counts>,
    began: Instant,
    stopping: watch::Sender<bool>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            core: Mutex::default(),
            counts: Mutex::default(),
            began: Instant::now(),
            stopping: watch::Sender::new(false),
        }
    }
}

impl Shared {
    /// Whether the first lists of the cluster are complete, so that agents get answers.
    pub fn is_complete(&self) -> bool {
        self.core().is_complete()
    }

    /// How much there is.
    pub fn sizes(&self) -> Sizes {
        self.core().sizes()
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts an agent that was turned away or cut off. Says how many of them there have been for this reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.refused.entry(why).or_default();
        *count += 1;
        *count
    }

    /// Ends all streams.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Tells when streams shall end.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// An agent more; `None` when there are too many.
    pub fn join(self: &Arc<Self>) -> Option<Membership> {
        let mut core = self.core();
        if core.sizes().agents >= MAX_AGENTS {
            return None;
        }
        let (id, wake) = core.join();
        drop(core);
        Some(Membership { shared: Arc::clone(self), id, wake })
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl ClusterFeed for Shared {
    /// The moment is this one: of what was so from the start nobody is told since when.
    fn tell(&self, changes: Changes, _: u64) {
        let now = self.now();
        let mut core = self.core();
        changes.into_iter().for_each(|(address, record)| core.tell(address, record, now));
    }

    fn pod_ranges(&self, ranges: PodRanges) {
        self.core().pod_ranges(ranges);
    }

    fn covers(&self, coverage: Coverage) {
        match coverage {
            Coverage::Whole => self.core().complete(true),
            Coverage::Part => self.core().complete(false),
            // Agents wait for their answers.
            Coverage::Away => {}
        }
    }

    /// The table remembers for as long as it needs to.
    fn forget(&self, _: IpAddr, _: u64) {}

    fn folded(&self, claims: u64) {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).folded += claims;
    }
}

/// An agent's place in the table; given up when it is dropped.
#[derive(Debug)]
pub struct Membership {
    shared: Arc<Shared>,
    id: AgentId,
    wake: Arc<Notify>,
}

impl Membership {
    /// The agent wants no more of these, and from now on those.
    ///
    /// # Errors
    /// When they are more than it may want.
    pub fn change(&self, unsubscribe: &[IpAddr], subscribe: &[IpAddr]) -> Result<(), TooMany> {
        let mut core = self.shared.core();
        unsubscribe.iter().for_each(|address| core.unsubscribe(self.id, *address));
        subscribe.iter().try_for_each(|address| core.subscribe(self.id, *address))
    }

    /// What the agent has to be told, at most so many.
    pub fn take(&self, most: usize) -> Vec<Reply> {
        let now = self.shared.now();
        let replies = self.shared.core().take(self.id, most, now);
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).answers += replies.len() as u64;
        replies
    }

    /// Returns when there may be something to tell.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.shared.core().leave(self.id);
    }
}
