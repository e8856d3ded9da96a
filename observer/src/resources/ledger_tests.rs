use std::sync::{Arc, Mutex};

use super::*;
use crate::resources::{
    Source,
    testing::{container, snapshot},
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
    let last = |id: u64| (id < 10).then(|| used(id));
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
    assert!(ledger.settled.len() <= REMEMBERED + 2);
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
    let before = |_| Some(used(1));
    for (containers, missed) in [
        (vec![ended("/p/1"), container("a", "/p/2")], 1),
        (vec![ended("/p/1"), container("a", "/p/2")], 1),
        (vec![ended("/p/1"), ended("/p/2"), container("a", "/p/3")], 2),
        (vec![ended("/p/2")], 2),
    ] {
        ledger.settle(&snapshot(vec![("p", containers)]), before, before).unwrap();
        assert_eq!(ledger.missed(), missed);
        assert!(ledger.entries.is_empty(), "all of them have the id 0, so what is known of one may be another's");
    }
    assert_eq!(ledger.without_id.len(), 1, "what is gone is forgotten");
}

#[test]
fn what_runs_is_completed_and_what_does_not_stands_alone() {
    let mut ledger = Ledger::new(None);
    let dead = ["a", "c", "e"].into_iter().zip(1..).map(|(name, id)| one(name, id, false)).collect();
    ledger.settle(&snapshot(vec![("p", dead)]), |id| Some(used(id)), |_| None).unwrap();
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
