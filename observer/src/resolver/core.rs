//! Who has which address, and which agent wants to know. Pure: time comes from the caller.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use observer_resolver::MAX_ADDRESSES;
use tokio::sync::Notify;

use crate::{
    hash::{FastMap, FastSet},
    identity::cluster::{PeerRecord, PodRanges, Reply},
};

/// How long an address that nobody has is remembered to have been somebody's, in milliseconds.
const KEEP: u64 = 600_000;

/// Subscriptions of all agents together: five times what the most agents that may come
/// ([`MAX_AGENTS`](super::MAX_AGENTS)) have with 200 addresses each, and 1 to 2 GB of memory. Each agent has a bound of
/// its own, but all of them at theirs would be 65 times this.
pub const MAX_SUBSCRIPTIONS: usize = 10_000_000;

/// An agent's number; never used twice.
pub type AgentId = u64;

/// The table and the subscriptions.
#[derive(Debug)]
pub struct Core {
    entries: FastMap<IpAddr, Entry>,
    /// Addresses that lost their owner, in this order.
    freed: VecDeque<(u64, IpAddr)>,
    /// Addresses that somebody has.
    held: usize,
    subscribers: FastMap<IpAddr, Vec<AgentId>>,
    agents: FastMap<AgentId, Agent>,
    next: AgentId,
    subscriptions: usize,
    /// Subscriptions that there may be.
    most: usize,
    complete: bool,
    /// Nobody has an address that is not in the table.
    whole: bool,
    /// Who has an address in one of these may not have been told of yet.
    ranges: PodRanges,
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    record: Option<Arc<PeerRecord>>,
    /// Since when, in milliseconds, where somebody else had it before.
    since: Option<u64>,
}

#[derive(Debug, Default)]
struct Agent {
    addresses: FastSet<IpAddr>,
    /// What it has to be told of. Never more than it is subscribed to, however slow it is.
    waiting: FastSet<IpAddr>,
    wake: Arc<Notify>,
}

/// Why a subscription is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// The agent has as many as it may have.
    OfAgent,
    /// All agents together do.
    OfAll,
}

/// Numbers of a [`Core`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Agents that are connected.
    pub agents: usize,
    /// Addresses that somebody has.
    pub addresses: usize,
    /// Subscriptions of all agents.
    pub subscriptions: usize,
    /// Changes of the table so far.
    pub changes: u64,
}

impl Default for Core {
    fn default() -> Self {
        Self::with_room_for(MAX_SUBSCRIPTIONS)
    }
}

impl Core {
    /// Without addresses and agents, for at most so many subscriptions.
    pub fn with_room_for(most: usize) -> Self {
        Self {
            entries: FastMap::default(),
            freed: VecDeque::new(),
            held: 0,
            subscribers: FastMap::default(),
            agents: FastMap::default(),
            next: 0,
            subscriptions: 0,
            most,
            complete: false,
            whole: false,
            ranges: PodRanges::default(),
            generation: 0,
        }
    }

    /// From `now` on (milliseconds) `address` belongs to `record`.
    pub fn tell(&mut self, address: IpAddr, record: Option<Arc<PeerRecord>>, now: u64) {
        let address = address.to_canonical();
        self.forget_before(now.saturating_sub(KEEP));
        let (was, is) = match self.entries.get_mut(&address) {
            Some(entry) if entry.record == record => return,
            None if record.is_none() => return,
            Some(entry) => {
                let was = entry.record.is_some();
                // Before the first lists are complete, one that comes after another is a claim, not a change.
                entry.since = self.complete.then_some(now);
                entry.record = record;
                (was, entry.record.is_some())
            }
            None => {
                self.entries.insert(address, Entry { record, since: None });
                (false, true)
            }
        };
        self.held = self.held + usize::from(is) - usize::from(was);
        if !is {
            if self.complete {
                self.freed.push_back((now, address));
            } else {
                self.entries.remove(&address);
            }
        }
        self.generation += 1;
        for id in self.subscribers.get(&address).into_iter().flatten() {
            if let Some(agent) = self.agents.get_mut(id) {
                agent.waiting.insert(address);
                if self.complete {
                    agent.wake.notify_one();
                }
            }
        }
    }

    /// Everything that can be read has been told. From now on agents get answers; that an address was never anybody's they
    /// are told while that is the `whole` cluster.
    pub fn complete(&mut self, whole: bool) {
        self.complete = true;
        self.whole = whole;
        self.agents.values().for_each(|agent| agent.wake.notify_one());
    }

    /// From now on these are all ranges that pods get addresses from. Who was told that an address is nobody's, or that it may
    /// be a pod's, is told anew where that is not so any more.
    pub fn pod_ranges(&mut self, ranges: PodRanges) {
        let before = std::mem::replace(&mut self.ranges, ranges);
        for (address, ids) in &self.subscribers {
            if self.entries.contains_key(address) || before.contains(*address) == self.ranges.contains(*address) {
                continue;
            }
            for id in ids {
                if let Some(agent) = self.agents.get_mut(id) {
                    agent.waiting.insert(*address);
                    agent.wake.notify_one();
                }
            }
        }
    }

    /// Whether agents get answers.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// An agent more, without subscriptions. It is woken when there is something to tell it.
    pub fn join(&mut self) -> (AgentId, Arc<Notify>) {
        self.next += 1;
        let agent = Agent::default();
        let wake = Arc::clone(&agent.wake);
        self.agents.insert(self.next, agent);
        (self.next, wake)
    }

    /// An agent has gone.
    pub fn leave(&mut self, id: AgentId) {
        let Some(agent) = self.agents.remove(&id) else { return };
        self.subscriptions -= agent.addresses.len();
        for address in agent.addresses {
            self.cancel(address, id);
        }
    }

    /// The agent wants to be told of the address, now and whenever it changes.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn subscribe(&mut self, id: AgentId, address: IpAddr) -> Result<(), TooMany> {
        let Some(agent) = self.agents.get_mut(&id) else { return Ok(()) };
        let address = address.to_canonical();
        if !agent.addresses.contains(&address) {
            if agent.addresses.len() >= MAX_ADDRESSES {
                return Err(TooMany::OfAgent);
            }
            if self.subscriptions >= self.most {
                return Err(TooMany::OfAll);
            }
            agent.addresses.insert(address);
            self.subscriptions += 1;
            self.subscribers.entry(address).or_default().push(id);
        }
        agent.waiting.insert(address);
        Ok(())
    }

    /// The agent does not want to be told of the address any more.
    pub fn unsubscribe(&mut self, id: AgentId, address: IpAddr) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        let address = address.to_canonical();
        if agent.addresses.remove(&address) {
            agent.waiting.remove(&address);
            self.subscriptions -= 1;
            self.cancel(address, id);
        }
    }

    /// What the agent has to be told, at most so many.
    pub fn take(&mut self, id: AgentId, most: usize, now: u64) -> Vec<Reply> {
        if !self.complete {
            return Vec::new();
        }
        let Some(agent) = self.agents.get_mut(&id) else { return Vec::new() };
        let addresses: Vec<IpAddr> = if !self.whole {
            // The others wait on: they may be whose objects cannot be read.
            let entries = &self.entries;
            agent.waiting.extract_if(|address| entries.contains_key(address)).take(most).collect()
        } else if agent.waiting.len() <= most {
            // Its room goes too: one that asked for much at the start asks for little later.
            std::mem::take(&mut agent.waiting).into_iter().collect()
        } else {
            agent.waiting.extract_if(|_| true).take(most).collect()
        };
        addresses.into_iter().map(|address| self.reply(address, now)).collect()
    }

    /// How much there is.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            agents: self.agents.len(),
            addresses: self.held,
            subscriptions: self.subscriptions,
            changes: self.generation,
        }
    }

    fn reply(&self, address: IpAddr, now: u64) -> Reply {
        let entry = self.entries.get(&address);
        Reply {
            address,
            record: entry.and_then(|entry| entry.record.clone()),
            age_ms: entry.and_then(|entry| entry.since).map(|since| now.saturating_sub(since)),
            generation: self.generation,
            may_be_a_pods: entry.is_none() && self.ranges.contains(address),
        }
    }

    fn cancel(&mut self, address: IpAddr, id: AgentId) {
        let Some(ids) = self.subscribers.get_mut(&address) else { return };
        if let Some(at) = ids.iter().position(|one| *one == id) {
            ids.swap_remove(at);
        }
        if ids.is_empty() {
            self.subscribers.remove(&address);
        }
    }

    fn forget_before(&mut self, time: u64) {
        while let Some((freed, address)) = self.freed.front().copied()
            && freed < time
        {
            self.freed.pop_front();
            // Somebody may have it again, and may have lost it again.
            if self.entries.get(&address).is_some_and(|entry| entry.record.is_none() && entry.since == Some(freed)) {
                self.entries.remove(&address);
            }
        }
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
