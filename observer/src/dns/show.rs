//! From cgroups to containers: what one scrape shows. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use super::{
    codes::{Qtype, Rcode},
    latency::Durations,
    table::Table,
};
use crate::identity::{Snapshot, Successors};

/// How long a cgroup without a name is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container<'a> {
    /// `namespace`.
    pub namespace: &'a str,
    /// `pod`.
    pub pod: &'a str,
    /// `container`; empty for the pod's own cgroup and the pause container.
    pub name: &'a str,
}

/// One scrape. Every answer is in exactly one of `responses` and `pending`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shown<'a> {
    /// Answers.
    pub responses: BTreeMap<(Container<'a>, Qtype, Rcode), u64>,
    /// How long they took.
    pub durations: BTreeMap<(Container<'a>, Rcode), Durations>,
    /// What was no DNS message.
    pub malformed: BTreeMap<Container<'a>, u64>,
    /// Answers to cgroups that have no name yet.
    pub pending: u64,
    /// Cgroups of sandboxes that are gone, shown for the last time, and those whose answers are another's by now.
    pub spent: Vec<u64>,
    /// Cgroups that nobody knew for too long.
    pub unknown: Vec<u64>,
}

/// What is remembered from scrape to scrape.
#[derive(Debug, Default)]
pub struct Memory {
    /// Cgroups without a name, and since when.
    nameless: HashMap<u64, Instant>,
}

/// Attributes what the table has counted. What cgroups that are gone have counted goes to those that go on with their
/// series ([`Successors`]), so that none falls to a part of what it was.
#[must_use]
pub fn show<'a>(table: &mut Table, snapshot: &'a Snapshot, memory: &mut Memory, now: Instant) -> Shown<'a> {
    let mut shown = Shown { spent: go_on(table, snapshot), ..Shown::default() };
    let mut nameless = HashMap::new();
    for (cgroup, client) in table.clients() {
        if snapshot.is_left_out(cgroup) {
            // Kept by an agent that was told to observe it.
            shown.spent.push(cgroup);
            continue;
        }
        let Some(owner) = snapshot.by_cgroup(cgroup) else {
            shown.pending += client.responses.values().sum::<u64>();
            let since = memory.nameless.get(&cgroup).copied().unwrap_or(now);
            nameless.insert(cgroup, since);
            if now.duration_since(since) >= PATIENCE {
                shown.unknown.push(cgroup);
            }
            continue;
        };
        let name = owner.container.map_or("", |container| container.name.as_str());
        let container = Container { namespace: &owner.sandbox.namespace, pod: &owner.sandbox.name, name };
        for ((qtype, rcode), responses) in &client.responses {
            *shown.responses.entry((container, *qtype, *rcode)).or_default() += responses;
        }
        for (rcode, durations) in &client.durations {
            shown.durations.entry((container, *rcode)).or_default().add(durations);
        }
        if client.malformed > 0 {
            *shown.malformed.entry(container).or_default() += client.malformed;
        }
        if !owner.sandbox.alive {
            shown.spent.push(cgroup);
        }
    }
    memory.nameless = nameless;
    shown
}

/// Says who had nothing left since the last scrape: by now it is decided what peers they asked for are called.
fn go_on(table: &mut Table, snapshot: &Snapshot) -> Vec<u64> {
    let Some(successors) = Successors::of(snapshot) else { return Vec::new() };
    let clients = table.clients().map(|(cgroup, _)| cgroup);
    let gone: Vec<_> = clients.filter_map(|cgroup| Some((cgroup, successors.successor(cgroup)?))).collect();
    gone.into_iter().filter(|(cgroup, heir)| table.hand_over(*cgroup, *heir)).map(|(cgroup, _)| cgroup).collect()
}

#[cfg(test)]
mod tests {
    use observer_common::dns::Head;

    use super::{
        super::{
            names::{Budget, Names},
            parse::tests::answer,
        },
        *,
    };
    use crate::{
        resources::testing::{container, sandbox, snapshot, snapshot_of},
        sandbox::{Sandbox, SandboxKey},
    };

    fn table(answers: &[(u64, u8)]) -> Table {
        let (mut table, mut names) = (Table::default(), Names::new(Vec::new(), Vec::new(), Budget::default()));
        for (cgroup, rcode) in answers {
            let bytes = answer(1, "a.test", 1, *rcode, &[]);
            let head = Head { cgroup: *cgroup, protocol: 17, length: bytes.len() as u32, ..Head::default() };
            table.take(&head, &bytes, &mut names);
        }
        table
    }

    #[test]
    fn every_answer_is_somewhere_and_once() {
        let mut inside = container("app", "/a");
        (inside.cgroup_id, inside.nested_cgroup_ids) = (11, vec![12]);
        let snapshot = snapshot(vec![("web", vec![inside])]);
        let mut table = table(&[(11, 0), (12, 0), (11, 3), (99, 0), (99, 2)]);
        let (mut memory, start) = (Memory::default(), Instant::now());
        let shown = show(&mut table, &snapshot, &mut memory, start);
        let responses: Vec<_> = shown.responses.iter().map(|((who, _, rcode), n)| (who.name, *rcode, *n)).collect();
        assert_eq!(responses, [("app", Rcode::NoError, 2), ("app", Rcode::NxDomain, 1)]);
        assert_eq!((shown.pending, shown.unknown, shown.spent), (2, vec![], vec![]));
        let later = show(&mut table, &snapshot, &mut memory, start + PATIENCE);
        assert_eq!((later.unknown, later.responses), (vec![99], shown.responses));
    }

    /// What a scrape shows of `app`, and who is spent; those are forgotten, as the collector does.
    fn scrape(table: &mut Table, sandboxes: Vec<Sandbox>) -> (u64, Vec<u64>) {
        let snapshot = snapshot_of(sandboxes);
        let shown = show(table, &snapshot, &mut Memory::default(), Instant::now());
        shown.spent.iter().for_each(|cgroup| {
            table.forget(*cgroup);
        });
        (shown.responses.values().sum(), shown.spent)
    }

    fn pod(life: u64, alive: bool) -> Sandbox {
        let app = crate::sandbox::Container { cgroup_id: life * 10 + 1, alive, ..container("app", "") };
        Sandbox { key: SandboxKey(life.to_string()), alive, ..sandbox("web", vec![app]) }
    }

    #[test]
    fn a_pod_that_is_made_again_goes_on() {
        let mut table = table(&[(11, 0), (11, 0), (21, 0)]);
        assert_eq!(scrape(&mut table, vec![pod(1, false), pod(2, true)]), (3, vec![11]));
        assert_eq!(scrape(&mut table, vec![pod(2, true)]), (3, vec![]), "not 1: that would be taken for new");
    }

    #[test]
    fn a_container_that_is_started_again_goes_on() {
        let mut table = table(&[(11, 0), (11, 0), (12, 0)]);
        let mut again = pod(1, true);
        again.containers[0].alive = false;
        again.containers.push(crate::sandbox::Container { cgroup_id: 12, ..container("app", "") });
        assert_eq!(scrape(&mut table, vec![again.clone()]), (3, vec![]));
        assert_eq!(scrape(&mut table, vec![again.clone()]), (3, vec![11]), "what it asked for was of use until now");
        again.containers.remove(0);
        assert_eq!(scrape(&mut table, vec![again]), (3, vec![]));
    }

    #[test]
    fn what_a_cgroup_below_a_container_s_had_is_the_container_s_when_it_is_gone() {
        let mut table = table(&[(11, 0), (1011, 0), (1012, 0)]);
        let mut with = pod(1, true);
        with.containers[0].nested_cgroup_ids = vec![1011, 1012];
        with.containers[0].gone_cgroup_ids = vec![1011];
        assert_eq!(scrape(&mut table, vec![with.clone()]), (3, vec![]));
        with.containers[0].nested_cgroup_ids = vec![1012];
        with.containers[0].gone_cgroup_ids = vec![];
        assert_eq!(scrape(&mut table, vec![with]), (3, vec![]), "it was forgotten");
    }
}
