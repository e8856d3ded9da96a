use std::sync::Arc;

use super::*;
use crate::{
    resources::testing::{container, snapshot},
    sandbox::{Container, SandboxKey},
};

fn with_cgroup(name: &str, cgroup_id: u64, alive: bool) -> Container {
    Container { cgroup_id, alive, ..container(name, "/x") }
}

fn reading(kills: &[(u64, u64)]) -> OomReading {
    OomReading { kills: kills.iter().copied().collect(), ..OomReading::default() }
}

fn shop(container: &str) -> Place {
    Place { sandbox: text::bytes("shop"), container: text::bytes(container) }
}

/// The same sandboxes, gone.
fn gone(snapshot: &Snapshot) -> Snapshot {
    let sandboxes = snapshot.sandboxes().iter().map(|sandbox| {
        let mut sandbox = Sandbox::clone(sandbox);
        sandbox.alive = false;
        sandbox.containers.iter_mut().for_each(|container| container.alive = false);
        Arc::new(sandbox)
    });
    Snapshot::new(sandboxes.collect(), HashSet::new(), String::new())
}

#[test]
fn kills_of_all_cgroups_of_a_name_are_one_series_and_who_lives_has_zero() {
    let mut app = with_cgroup("app", 12, true);
    app.nested_cgroup_ids.push(13);
    let snapshot = snapshot(vec![("shop", vec![with_cgroup("app", 11, false), app, with_cgroup("idle", 14, true)])]);
    let reading = reading(&[(11, 2), (13, 1), (99, 5)]);
    let ledger = Ledger::default();
    let totals = ledger.totals(&reading, &snapshot);
    assert_eq!(totals.into_iter().collect::<Vec<_>>(), [(["n", "shop", "app"], 3), (["n", "shop", "idle"], 0)]);
}

#[test]
fn a_dead_container_without_kills_has_no_series() {
    let snapshot = snapshot(vec![("shop", vec![with_cgroup("setup", 11, false), with_cgroup("app", 12, true)])]);
    assert_eq!(
        Ledger::default().totals(&OomReading::default(), &snapshot).keys().collect::<Vec<_>>(),
        [&["n", "shop", "app"]]
    );
}

#[test]
fn a_cgroup_that_the_snapshot_forgot_is_carried_and_counts_on() {
    let before = snapshot(vec![("shop", vec![with_cgroup("app", 11, false), with_cgroup("app", 12, true)])]);
    let after = snapshot(vec![("shop", vec![with_cgroup("app", 12, true)])]);
    let now = Instant::now();
    let mut ledger = Ledger::default();
    let counted = reading(&[(11, 2), (12, 1)]);
    assert_eq!(ledger.settle(&counted, &before, now), Changes::default());
    let app = ["n", "shop", "app"];
    assert_eq!(ledger.totals(&counted, &after)[&app], 3, "before it is carried");
    assert_eq!(ledger.settle(&counted, &after, now).carry, [(11, shop("app"))]);
    let carried = OomReading { carried: [(shop("app"), 2)].into(), ..reading(&[(12, 1)]) };
    assert_eq!(ledger.settle(&carried, &after, now), Changes::default());
    assert_eq!(ledger.totals(&carried, &after)[&app], 3, "after it was carried");
}

#[test]
fn a_cgroup_below_a_container_s_that_is_gone_is_carried() {
    let mut app = with_cgroup("app", 12, true);
    (app.nested_cgroup_ids, app.gone_cgroup_ids) = (vec![13, 14], vec![13]);
    let snapshot = snapshot(vec![("shop", vec![app])]);
    let changes = Ledger::default().settle(&reading(&[(12, 1), (13, 2), (14, 1)]), &snapshot, Instant::now());
    assert_eq!(changes, Changes { carry: vec![(13, shop("app"))], ..Changes::default() });
}

#[test]
fn all_goes_with_the_pod_once_it_was_shown() {
    let alive =
        snapshot(vec![("shop", vec![with_cgroup("app", 12, true)]), ("bank", vec![with_cgroup("b", 20, true)])]);
    let counted = OomReading { carried: [(shop("app"), 2)].into(), ..reading(&[(12, 1), (99, 1)]) };
    let mut ledger = Ledger::default();
    ledger.settle(&counted, &alive, Instant::now());
    assert_eq!(ledger.shown(&counted, &alive), Changes::default());
    let gone = gone(&alive);
    assert_eq!(ledger.totals(&counted, &gone).into_iter().collect::<Vec<_>>(), [(["n", "shop", "app"], 3)]);
    let changes = ledger.shown(&counted, &gone);
    assert_eq!(changes, Changes { forget: vec![12], forget_carried: vec![shop("app")], ..Changes::default() });
}

#[test]
fn a_pod_that_is_made_again_goes_on() {
    let before = snapshot(vec![("shop", vec![with_cgroup("app", 12, true), with_cgroup("old", 13, true)])]);
    let counted = OomReading { carried: [(shop("app"), 2), (shop("old"), 1)].into(), ..reading(&[(11, 1), (12, 1)]) };
    let mut ledger = Ledger::default();
    // The snapshot did not know this cgroup any more.
    ledger.owners.insert(11, shop("app"));
    let gone = Sandbox::clone(&gone(&before).sandboxes()[0]);
    let mut again = Sandbox { key: SandboxKey("again".into()), alive: true, ..gone.clone() };
    again.containers = vec![with_cgroup("app", 22, true)];
    let both = Snapshot::new(vec![Arc::new(gone), Arc::new(again)], HashSet::new(), String::new());
    assert_eq!(ledger.totals(&counted, &both)[&["n", "shop", "app"]], 4);
    let heir = Place { sandbox: text::bytes("again"), container: text::bytes("app") };
    let changes = ledger.shown(&counted, &both);
    let wanted = Changes {
        carry: vec![(11, heir), (12, heir)],
        go_on: vec![(shop("app"), heir)],
        forget_carried: vec![shop("old")],
        ..Changes::default()
    };
    assert_eq!(changes, wanted, "the next pod has no container of the other name");
    let carried = OomReading { carried: [(heir, 4)].into(), ..OomReading::default() };
    assert_eq!(ledger.totals(&carried, &both)[&["n", "shop", "app"]], 4, "as it was shown");
    assert_eq!(ledger.shown(&carried, &both), Changes::default());
}

#[test]
fn nobody_is_given_time_to_become_somebody() {
    let snapshot = snapshot(vec![("bank", vec![with_cgroup("b", 20, true)])]);
    let counted = OomReading { carried: [(shop("app"), 2)].into(), ..reading(&[(99, 1), (20, 1)]) };
    let mut ledger = Ledger::default();
    let start = Instant::now();
    assert_eq!(ledger.settle(&counted, &snapshot, start), Changes::default());
    let early = start + PATIENCE.checked_sub(Duration::from_secs(1)).unwrap();
    assert_eq!(ledger.settle(&counted, &snapshot, early), Changes::default());
    let changes = ledger.settle(&counted, &snapshot, start + PATIENCE);
    assert_eq!(changes, Changes { forget: vec![99], forget_carried: vec![shop("app")], ..Changes::default() });
}

#[test]
fn what_runs_in_the_pods_own_cgroup_has_no_container() {
    let mut sandbox = Sandbox::clone(&snapshot(vec![("shop", vec![with_cgroup("app", 12, true)])]).sandboxes()[0]);
    sandbox.cgroup_id = 10;
    let snapshot = Snapshot::new(vec![Arc::new(sandbox)], HashSet::new(), String::new());
    let reading = reading(&[(10, 1)]);
    let ledger = Ledger::default();
    assert_eq!(ledger.totals(&reading, &snapshot)[&["n", "shop", ""]], 1);
}
