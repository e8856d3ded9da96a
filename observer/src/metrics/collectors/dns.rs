//! DNS of containers: reads what came from the kernel, attributes, writes series.

use std::{sync::Arc, time::Instant};

use anyhow::Context;

use crate::{
    dns::{self, BOUNDS, Feed, Memory, Shown, Unread},
    identity::Snapshot,
    kernel::DnsLosses,
    metrics::{Bounds, Collect, Direction, Exposition, catalogue as c},
};

/// Writes the series of DNS, and forgets what it has shown for the last time.
pub struct DnsCollector {
    feed: Arc<Feed>,
    memory: Memory,
}

impl DnsCollector {
    /// A collector of this feed.
    #[must_use]
    pub fn new(feed: Arc<Feed>) -> Self {
        Self { feed, memory: Memory::default() }
    }
}

impl Collect for DnsCollector {
    fn name(&self) -> &'static str {
        "dns"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let mut seen = self.feed.read();
        let shown = dns::show(&mut seen.table, snapshot, &mut self.memory, Instant::now());
        write(&shown, out);
        for cgroup in &shown.unknown {
            seen.unattributed += seen.table.forget(*cgroup);
            seen.names.forget(*cgroup);
        }
        for cgroup in &shown.spent {
            seen.table.forget(*cgroup);
            match goes_on(snapshot, *cgroup) {
                Some(container) => seen.names.hand_over(*cgroup, container),
                None => seen.names.forget(*cgroup),
            }
        }
        // Before anybody is told of more: what was forgotten or handed over here.
        seen.keep_counts();
        out.family(&c::AGENT_UNATTRIBUTED_DNS).sample([], seen.unattributed);
        out.family(&c::AGENT_DNS_UNTIMED).sample([], seen.table.untimed());
        let losses = seen.records().losses().context("reading how many DNS packets were not handed over")?;
        write_lost(&losses, seen.table.unread(), out);
        Ok(())
    }
}

/// The own cgroup of the living container that one below it is gone of. What a container asked for that has ended is of no use to
/// the next one, which asks anew.
fn goes_on(snapshot: &Snapshot, cgroup: u64) -> Option<u64> {
    let owner = snapshot.by_cgroup(cgroup)?;
    let container = owner.container.filter(|container| owner.sandbox.alive && container.alive)?;
    Some(container.cgroup_id).filter(|own| *own != 0 && *own != cgroup)
}

fn write(shown: &Shown<'_>, out: &mut Exposition) {
    let mut family = out.family(&c::DNS_RESPONSES);
    for ((who, qtype, rcode), responses) in &shown.responses {
        family.sample([who.namespace, who.pod, who.name, qtype.as_str(), rcode.as_str()], *responses);
    }
    let bounds = Bounds::new(BOUNDS);
    let mut family = out.family(&c::DNS_DURATION);
    for ((who, rcode), durations) in &shown.durations {
        let labels = [who.namespace, who.pod, who.name, rcode.as_str()];
        family.buckets(labels, &bounds, &durations.buckets, durations.sum as f64 / 1e9);
    }
    let mut family = out.family(&c::DNS_MALFORMED);
    for (who, malformed) in &shown.malformed {
        family.sample([who.namespace, who.pod, who.name], *malformed);
    }
    out.family(&c::AGENT_PENDING_DNS).sample([], shown.pending);
}

fn write_lost(losses: &DnsLosses, unread: Unread, out: &mut Exposition) {
    let (received, sent) = (Direction::Receive, Direction::Transmit);
    let mut family = out.family(&c::AGENT_DNS_LOST);
    for (direction, reason, packets) in [
        (received, "buffer_full", losses.received_full),
        (sent, "buffer_full", losses.sent_full),
        (received, "unreadable", losses.received_unreadable),
        (sent, "unreadable", losses.sent_unreadable),
        (received, "stream", unread.received),
        (sent, "stream", unread.sent),
    ] {
        family.sample([direction.as_str(), reason], packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dns::{Container, Durations, Qtype, Rcode},
        resources::testing::{container, sandbox, snapshot_of},
        sandbox::Sandbox,
    };

    #[test]
    fn names_go_on_in_a_container_that_lives() {
        let mut app = container("app", "");
        (app.cgroup_id, app.nested_cgroup_ids) = (11, vec![12]);
        let pod = sandbox("web", vec![app]);
        let found = |pod: &Sandbox| [11, 12, 13].map(|cgroup| goes_on(&snapshot_of(vec![pod.clone()]), cgroup));
        assert_eq!(found(&pod), [None, Some(11), None]);
        assert_eq!(found(&Sandbox { alive: false, ..pod.clone() }), [None; 3]);
        let mut ended = pod;
        ended.containers[0].alive = false;
        assert_eq!(found(&ended), [None; 3]);
    }

    #[test]
    fn everything_is_written_with_its_labels() {
        let who = Container { namespace: "n", pod: "p", name: "c" };
        let mut durations = Durations::default();
        durations.observe(400_000);
        durations.observe(20_000_000_000);
        let shown = Shown {
            responses: [((who, Qtype::Aaaa, Rcode::NxDomain), 2)].into(),
            durations: [((who, Rcode::NxDomain), durations)].into(),
            malformed: [(who, 3)].into(),
            pending: 4,
            ..Shown::default()
        };
        let mut out = Exposition::default();
        write(&shown, &mut out);
        let text = String::from_utf8(out.take().concat()).unwrap();
        let labels = "namespace=\"n\",pod=\"p\",container=\"c\"";
        for line in [
            format!("observer_dns_responses_total{{{labels},qtype=\"AAAA\",rcode=\"NXDOMAIN\"}} 2\n"),
            format!("observer_dns_duration_seconds_bucket{{{labels},rcode=\"NXDOMAIN\",le=\"0.0005\"}} 1\n"),
            format!("observer_dns_duration_seconds_bucket{{{labels},rcode=\"NXDOMAIN\",le=\"10\"}} 1\n"),
            format!("observer_dns_duration_seconds_bucket{{{labels},rcode=\"NXDOMAIN\",le=\"+Inf\"}} 2\n"),
            format!("observer_dns_duration_seconds_sum{{{labels},rcode=\"NXDOMAIN\"}} 20.0004\n"),
            format!("observer_dns_duration_seconds_count{{{labels},rcode=\"NXDOMAIN\"}} 2\n"),
            format!("observer_dns_malformed_total{{{labels}}} 3\n"),
            "observer_agent_pending_dns_responses 4\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line} not in {text}");
        }
    }
}
