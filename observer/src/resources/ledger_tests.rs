use std::sync::{Arc, Mutex};

use super::*;
use crate::resources::{
    Source,
    testing::{container, sandbox, snapshot, snapshot_of},
};

/// A store that tests can look into.
#[derive(Default, Clone)]
struct Kept(Arc<Mutex<BTreeMap<Name, Entry>>>);

impl Store for Kept {
    fn load(&mut self) -> Vec<(Name, Entry)> {
        self.0.lock().unwrap().iter().map(|(name, entry)| (name.clone(), entry.clone())).collect()
    }

    fn save(&mut self, name: &Name, entry: &Entry) -> anyhow::Result<()> {
        self.0.lock().unwrap().insert(name.clone(), entry.clone());
        Ok(())
    }

    fn forget(&mut self, name: &Name) {
        self.0.lock().unwrap().remove(name);
    }
}

fn used(micros: u64) -> Facts {
    let mut facts = Facts::default();
    facts.add(Source::CpuStat, &format!("usage_usec {micros}\nuser_usec {micros}\n"), 100);
    facts
}

fn one(name: &str, cgroup_id: u64, alive: bool) -> Container {
    Container { cgroup_id, alive, ..container(name, &format!("/{cgroup_id}")) }
}

fn sum(ledger: &Ledger, pod: &str, name: &str) -> Option<u64> {
    let name = Name { namespace: "n".into(), pod: pod.into(), container: name.into() };
    ledger.entries.get(&name)?.sums.cpu.user
}

#[test]
fn each_container_that_ends_counts_once_and_for_its_name() {
    let kept = Kept::default();
    let mut ledger = Ledger::new(Some(Box::new(kept.clone())));
    let last = |container: &Container| (container.cgroup_id < 10).then(|| used(container.cgroup_id));
    let first = snapshot(vec![("p", vec![one("a", 1, false), one("a", 2, true), one("b", 3, false)])]);
    ledger.settle(&first, last, |_| None).unwrap();
    ledger.settle(&first, last, |_| None).unwrap();
    assert_eq!((sum(&ledger, "p", "a"), sum(&ledger, "p", "b")), (Some(1), Some(3)));
    let second = snapshot(vec![("p", vec![one("a", 1, false), one("a", 2, false), one("a", 11, false)])]);
    ledger.settle(&second, last, |_| None).unwrap();
    assert_eq!((sum(&ledger, "p", "a"), ledger.missed()), (Some(3), 1));

    // The agent ends and another one goes on.
    let mut next = Ledger::new(Some(Box::new(kept.clone())));
    next.settle(&second, |_| None, |_| None).unwrap();
    assert_eq!((sum(&next, "p", "a"), next.missed()), (Some(3), 1), "nobody read the last of the three");
    let third = snapshot(vec![("p", vec![one("a", 1, false), one("a", 12, false)])]);
    next.settle(&third, |_| None, |_| Some(used(7))).unwrap();
    assert_eq!((sum(&next, "p", "a"), next.missed()), (Some(10), 2), "what it showed last is not taken back");
    next.settle(&Snapshot::default(), last, |_| None).unwrap();
    assert_eq!(sum(&next, "p", "a"), Some(10), "before the first scan nothing is known to be gone");
    next.settle(&snapshot(vec![("q", vec![])]), last, |_| None).unwrap();
    assert_eq!(sum(&next, "p", "a"), None);
    assert!(kept.0.lock().unwrap().is_empty());
}

#[test]
fn a_container_that_crashes_all_day_is_summed_without_end_in_bounded_room() {
    let mut ledger = Ledger::new(None);
    for id in 1..=1000 {
        let now = snapshot(vec![("p", vec![one("a", id, false), one("a", id + 1, true)])]);
        ledger.settle(&now, |_| Some(used(1)), |_| None).unwrap();
    }
    assert_eq!(sum(&ledger, "p", "a"), Some(1000));
    assert_eq!(ledger.entries.values().next().unwrap().cgroups.len(), REMEMBERED);
    assert!(ledger.settled.len() <= REMEMBERED + 2 && ledger.added.len() <= 2);
}

#[test]
fn living_and_pause_containers_are_no_matter_of_this() {
    let mut ledger = Ledger::new(None);
    let mut pause = one("POD", 1, false);
    pause.kind = ContainerKind::Pause;
    ledger
        .settle(&snapshot(vec![("p", vec![pause, one("a", 2, true), one("b", 0, true)])]), |_| Some(used(1)), |_| None)
        .unwrap();
    assert!(ledger.entries.is_empty() && ledger.missed() == 0);
}

#[test]
fn without_cgroup_ids_every_ending_is_missed_once() {
    let ended = |path: &str| Container { alive: false, ..container("a", path) };
    let mut ledger = Ledger::new(None);
    for (containers, missed) in [
        (vec![ended("/p/1"), container("a", "/p/2")], 1),
        (vec![ended("/p/1"), container("a", "/p/2")], 1),
        (vec![ended("/p/1"), ended("/p/2"), container("a", "/p/3")], 2),
        (vec![ended("/p/2")], 2),
    ] {
        ledger.settle(&snapshot(vec![("p", containers)]), |_| Some(used(1)), |_| Some(used(1))).unwrap();
        assert_eq!(ledger.missed(), missed);
        assert!(ledger.entries.is_empty(), "all of them have the id 0, so what is known of one may be another's");
    }
    assert_eq!(ledger.without_id.len(), 1, "what is gone is forgotten");
}

#[test]
fn what_runs_is_completed_and_what_does_not_stands_alone() {
    let mut ledger = Ledger::new(None);
    let dead = ["a", "c", "e"].into_iter().zip(1..).map(|(name, id)| one(name, id, false)).collect();
    ledger.settle(&snapshot(vec![("p", dead)]), |c| Some(used(c.cgroup_id)), |_| None).unwrap();
    let running = ["b", "c", "d"]
        .map(|container| ContainerUsage {
            namespace: "n",
            pod: "p",
            container,
            started: None,
            cgroup_id: 9,
            usage: Usage::from(&used(10)),
        })
        .into();
    let all = ledger.complete(running);
    let found: Vec<_> = all.iter().map(|u| (u.container, (u.usage.cpu_user.unwrap() * 1e6).round() as u64)).collect();
    assert_eq!(found, [("a", 1), ("b", 10), ("c", 12), ("d", 10), ("e", 3)]);
}

/// What is shown of `a` of pod `p`, µs, when its cgroups 1 and 2 have used so much and live or not.
fn total(ledger: &mut Ledger, containers: [(u64, bool); 2]) -> u64 {
    let pod = containers.iter().zip(1..).map(|((_, alive), id)| one("a", id, *alive)).collect();
    let said = |cgroup: u64| containers.get(cgroup as usize - 1).map(|(micros, _)| used(*micros));
    ledger.settle(&snapshot(vec![("p", pod)]), |ended| said(ended.cgroup_id), said).unwrap();
    let running = containers.iter().filter(|(_, alive)| *alive).map(|(micros, _)| ContainerUsage {
        namespace: "n",
        pod: "p",
        container: "a",
        started: None,
        cgroup_id: 0,
        usage: Usage::from(&used(*micros)),
    });
    let all = ledger.complete(running.collect());
    (all[0].usage.cpu_user.unwrap() * 1e6).round() as u64
}

#[test]
fn a_cgroup_that_gets_a_process_again_counts_once() {
    let kept = Kept::default();
    let mut ledger = Ledger::new(Some(Box::new(kept.clone())));
    for (containers, expected) in [
        ([(5, false), (1, true)], 6),
        ([(5, false), (20, false)], 25),
        ([(5, false), (20, true)], 25),
        ([(5, false), (23, true)], 28),
        ([(5, false), (24, false)], 29),
        ([(7, true), (24, false)], 31),
        ([(8, false), (24, false)], 32),
    ] {
        assert_eq!(total(&mut ledger, containers), expected, "{containers:?}");
        assert_eq!(sum(&Ledger::new(Some(Box::new(kept.clone()))), "p", "a"), sum(&ledger, "p", "a"));
    }

    // Another agent does not know what each was when it ended, and still takes nothing twice nor back.
    let mut next = Ledger::new(Some(Box::new(kept)));
    for (containers, expected) in [
        ([(8, false), (26, true)], 32),
        ([(8, false), (27, true)], 33),
        ([(8, false), (27, false)], 33),
        ([(8, false), (28, true)], 34),
    ] {
        assert_eq!(total(&mut next, containers), expected, "{containers:?}");
    }
}

#[test]
fn one_that_gets_a_process_again_and_says_nothing_yet_stays_in_the_sum() {
    let mut ledger = Ledger::new(None);
    ledger.settle(&snapshot(vec![("p", vec![one("a", 1, false)])]), |_| Some(used(5)), |_| None).unwrap();
    let again = snapshot(vec![("p", vec![one("a", 1, true)])]);
    ledger.settle(&again, |_| None, |_| None).unwrap();
    assert_eq!(sum(&ledger, "p", "a"), Some(5));
    ledger.settle(&again, |_| None, |_| Some(used(6))).unwrap();
    assert_eq!(sum(&ledger, "p", "a"), Some(0));
}

/// A store with what an earlier agent left: 5 µs of container `a` of pod `p`, whose cgroup 1 is in it.
fn left() -> Kept {
    let kept = Kept::default();
    let mut earlier = Ledger::new(Some(Box::new(kept.clone())));
    earlier.settle(&snapshot(vec![("p", vec![one("a", 1, false)])]), |_| Some(used(5)), |_| None).unwrap();
    kept
}

/// What is shown when what is here is settled and `a` of `p`, if it runs under this name, has used 2 µs: µs by pod.
fn shown(ledger: &mut Ledger, now: &Snapshot) -> Vec<(String, u64)> {
    ledger.settle(now, |_| None, |_| None).unwrap();
    let living = now.sandboxes().iter().filter(|sandbox| sandbox.alive);
    let running = living.map(|sandbox| ContainerUsage {
        namespace: &sandbox.namespace,
        pod: &sandbox.name,
        container: &sandbox.containers[0].name,
        started: None,
        cgroup_id: 2,
        usage: Usage::from(&used(2)),
    });
    let all = ledger.complete(running.collect());
    all.iter().map(|u| (u.pod.to_owned(), (u.usage.cpu_user.unwrap() * 1e6).round() as u64)).collect()
}

/// Pod `p`, before and after its name was told.
fn unnamed_and_named() -> [Sandbox; 2] {
    let named = Sandbox { uid: "uid".into(), ..sandbox("p", vec![one("a", 2, true)]) };
    let unnamed = Sandbox {
        namespace: String::new(),
        name: "uid".into(),
        containers: vec![one("0123456789ab", 2, true)],
        ..named.clone()
    };
    [unnamed, named]
}

#[test]
fn what_an_earlier_agent_left_waits_for_the_names_of_pods() {
    let [unnamed, named] = unnamed_and_named().map(|pod| snapshot_of(vec![pod]));
    let kept = left();
    let mut ledger = Ledger::new(Some(Box::new(kept.clone())));
    let nothing = Vec::new();
    assert_eq!(shown(&mut ledger, &Snapshot::default()), nothing, "nothing alone: it would be less than was shown");
    for _ in 0..2 {
        assert_eq!(shown(&mut ledger, &unnamed), [("uid".to_owned(), 2)]);
    }
    assert_eq!(shown(&mut ledger, &named), [("p".to_owned(), 7)]);
    assert_eq!(kept.0.lock().unwrap().len(), 1);

    // Now that all are named, what is not here is gone.
    assert_eq!(shown(&mut ledger, &snapshot(vec![])), nothing);
    assert!(kept.0.lock().unwrap().is_empty());
}

#[test]
fn names_are_not_waited_for_without_end_nor_for_the_dead() {
    let [unnamed, _] = unnamed_and_named();
    let dead = Sandbox { alive: false, ..unnamed.clone() };
    let without_uid = Sandbox { uid: String::new(), ..unnamed.clone() };
    let now = Some(Instant::now());
    for (pod, until, stays) in
        [(&unnamed, None, true), (&unnamed, Some(now), false), (&dead, None, false), (&without_uid, None, false)]
    {
        let kept = left();
        let mut ledger = Ledger::new(Some(Box::new(kept.clone())));
        ledger.names_until = until.unwrap_or(ledger.names_until);
        ledger.settle(&snapshot_of(vec![pod.clone()]), |_| None, |_| None).unwrap();
        assert_eq!(kept.0.lock().unwrap().len(), usize::from(stays), "{pod:?}");
    }
}

#[test]
fn a_pod_that_is_not_observed_yet_keeps_what_it_had() {
    let [_, named] = unnamed_and_named();
    let kept = left();
    let mut ledger = Ledger::new(Some(Box::new(kept.clone())));
    let other = Snapshot::with_others(vec![], vec![Arc::new(named.clone())], HashSet::new(), String::new());
    assert_eq!(shown(&mut ledger, &other), [], "it is not observed");
    assert_eq!(shown(&mut ledger, &snapshot_of(vec![named])), [("p".to_owned(), 7)]);
}
