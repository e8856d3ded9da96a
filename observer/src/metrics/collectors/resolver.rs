//! What the resolver tells of itself.

use std::sync::Arc;

use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, catalogue as c},
    resolver::Shared,
};

/// Writes the resolver's numbers.
#[derive(Debug)]
pub struct ResolverCollector(Arc<Shared>);

impl ResolverCollector {
    /// Of this resolver.
    #[must_use]
    pub const fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Collect for ResolverCollector {
    fn name(&self) -> &'static str {
        "resolver"
    }

    fn collect(&mut self, _: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let sizes = self.0.sizes();
        let counts = self.0.counts();
        out.family(&c::RESOLVER_AGENTS).sample([], sizes.agents as u64);
        out.family(&c::RESOLVER_ADDRESSES).sample([], sizes.addresses as u64);
        out.family(&c::RESOLVER_SUBSCRIPTIONS).sample([], sizes.subscriptions as u64);
        out.family(&c::RESOLVER_CHANGES).sample([], sizes.changes);
        out.family(&c::RESOLVER_ANSWERS).sample([], counts.answers);
        out.family(&c::RESOLVER_FOLDED).sample([], counts.folded);
        for (reason, total) in counts.refused {
            out.family(&c::RESOLVER_REFUSED).sample([reason.as_str()], total);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::cluster::{ClusterFeed, Coverage, PeerRecord},
        resolver::Refusal,
    };

    #[test]
    fn every_number_is_shown() {
        let shared = Arc::new(Shared::default());
        let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| address.parse().unwrap());
        for address in &addresses[..2] {
            shared.tell(vec![(*address, Some(Arc::new(PeerRecord::Node { name: "n".into() })))], 0);
        }
        shared.tell(vec![(addresses[0], None)], 0);
        shared.folded(4);
        shared.covers(Coverage::Whole);
        let agent = shared.join().unwrap();
        agent.change(&[], &addresses).unwrap();
        assert_eq!(agent.take(2).len(), 2);
        shared.refused(Refusal::Slow);
        let mut out = Exposition::default();
        ResolverCollector::new(shared).collect(&Snapshot::default(), &mut out).unwrap();
        let text = String::from_utf8(out.take().concat()).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "observer_resolver_addresses 1",
                "observer_resolver_addresses_folded_total 4",
                "observer_resolver_agents 1",
                "observer_resolver_agents_refused_total{reason=\"slow\"} 1",
                "observer_resolver_answers_total 2",
                "observer_resolver_changes_total 3",
                "observer_resolver_subscriptions 3",
            ]
        );
    }
}
