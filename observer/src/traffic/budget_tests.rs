use std::collections::BTreeMap;

use clap::{Args, FromArgMatches};
use observer_common::tcp::TcpEvents;

use super::*;
use crate::config::RunOptions;

const LIMITS: Limits = Limits { series: 1_000, peers_per_container: 2, ports_per_container: 2 };

fn peer(name: &str) -> Peer<'_> {
    if name.is_empty() {
        return Peer::of_kind(PeerKind::Other);
    }
    Peer { workload: name, ..Peer::of_kind(PeerKind::Pod) }
}

fn key<'a>(pod: &'a str, name: &'a str, port: u16) -> SeriesKey<'a> {
    SeriesKey { namespace: "n", pod, container: "c", protocol: "udp", peer: peer(name), port, role: "client" }
}

fn series<'a>(of: &[(SeriesKey<'a>, u64)]) -> Series<'a> {
    let mut series = Series::default();
    for (key, bytes) in of {
        series.order.push(*key);
        // What is rare comes with time.
        let tcp =
            TcpEvents { opened: 1, retransmitted: bytes / 1_500, resets_sent: bytes / 3_000, ..TcpEvents::default() };
        series.totals.insert(*key, Totals { tx_bytes: *bytes, tcp, ..Totals::default() });
    }
    series
}

/// Peer, port and bytes of what is shown.
fn shown<'a>(series: &Series<'a>) -> Vec<(&'a str, u16, u64)> {
    let mut shown: Vec<_> =
        series.totals.iter().map(|(key, totals)| (key.peer.workload, key.port, totals.tx_bytes)).collect();
    shown.sort_unstable();
    shown
}

#[test]
fn peers_over_the_budget_are_other() {
    let mut series =
        series(&[(key("p", "a", 1), 1), (key("p", "b", 1), 10), (key("p", "c", 1), 100), (key("q", "c", 1), 1_000)]);
    let usage = Budget::new(LIMITS).apply(&mut series);
    assert_eq!(shown(&series), [("", 0, 100), ("a", 1, 1), ("b", 1, 10), ("c", 1, 1_000)], "q has a budget of its own");
    assert_eq!(usage, BudgetUse { shown: 16, folded: 4 });
    assert_eq!(series.totals[&Place::Other.of(&key("p", "c", 1))].tcp.opened, 1);
}

#[test]
fn ports_over_the_budget_keep_their_peer() {
    let mut series = series(&[
        (key("p", "a", 1), 1),
        (key("p", "a", 2), 10),
        (key("p", "a", 3), 100),
        (key("p", "a", 4), 1_000),
        (key("p", "b", 2), 10_000),
        (SeriesKey { role: "server", ..key("p", "a", 9) }, 100_000),
    ]);
    let usage = Budget::new(LIMITS).apply(&mut series);
    assert_eq!(
        shown(&series),
        [("a", 0, 1_100), ("a", 1, 1), ("a", 2, 10), ("a", 9, 100_000), ("b", 2, 10_000)],
        "a server's port is not one of those that a client calls"
    );
    assert_eq!(usage, BudgetUse { shown: 20, folded: 8 });
}

#[test]
fn the_node_has_a_budget_and_what_is_folded_always_fits() {
    let tcp = SeriesKey { protocol: "tcp", ..key("p", "a", 1) };
    let mut all = series(&[(tcp, 1), (key("p", "a", 1), 10), (key("q", "a", 1), 100), (key("", "", 0), 1_000)]);
    let usage = Budget::new(Limits { series: 10, ..LIMITS }).apply(&mut all);
    assert_eq!(shown(&all), [("", 0, 100), ("", 0, 1_000), ("a", 1, 1), ("a", 1, 10)]);
    assert_eq!(usage, BudgetUse { shown: 18, folded: 4 });
    let mut all = series(&[(tcp, 1), (key("p", "a", 2), 10)]);
    let nothing = Limits { series: 0, peers_per_container: 0, ports_per_container: 0 };
    let usage = Budget::new(nothing).apply(&mut all);
    assert_eq!(shown(&all), [("", 0, 1), ("", 0, 10)], "one for each protocol");
    assert_eq!(usage, BudgetUse { shown: 10, folded: 10 });
}

#[test]
fn what_grows_keeps_its_place_and_leaves_less_room() {
    let tcp = |name, port| SeriesKey { protocol: "tcp", ..key("p", name, port) };
    let mut budget = Budget::new(Limits { series: 13, ..LIMITS });
    assert_eq!(budget.apply(&mut series(&[(tcp("a", 1), 1)])), BudgetUse { shown: 6, folded: 0 });
    // Segments were sent again, and there were resets.
    let mut grown = series(&[(tcp("a", 1), 3_000), (tcp("a", 2), 1), (tcp("b", 1), 1)]);
    let usage = budget.apply(&mut grown);
    assert_eq!(shown(&grown), [("", 0, 2), ("a", 1, 3_000)], "8 and 6 are more than 13");
    assert_eq!(usage, BudgetUse { shown: 14, folded: 12 });
    let mut more = series(&[(tcp("a", 1), 3_000), (tcp("a", 2), 1_500), (tcp("b", 1), 3_000)]);
    assert_eq!(budget.apply(&mut more), BudgetUse { shown: 16, folded: 15 }, "two that are shown as one");
    assert_eq!(shown(&more), [("", 0, 4_500), ("a", 1, 3_000)]);
}

#[test]
fn a_node_of_110_pods_with_three_containers_has_room_by_default() {
    let pods: Vec<String> = (0..110).map(|pod| format!("pod-{pod}")).collect();
    let mut all = Vec::new();
    for (pod, container) in pods.iter().flat_map(|pod| ["a", "b", "c"].map(|container| (pod, container))) {
        // One port that is served, and nine that are called.
        for at in 0..10 {
            let role = if at == 0 { "server" } else { "client" };
            all.push((SeriesKey { protocol: "tcp", container, role, ..key(pod, NAMES[1 + at], 80) }, 1));
        }
    }
    let line = RunOptions::augment_args(clap::Command::new("run")).get_matches_from(["run"]);
    let limits = RunOptions::from_arg_matches(&line).unwrap().limits();
    let usage = Budget::new(limits).apply(&mut series(&all));
    assert_eq!(usage, BudgetUse { shown: 330 * 10 * 6, folded: 0 });
}

#[test]
fn a_gone_pod_makes_room_and_what_was_folded_stays_so() {
    let mut budget = Budget::new(Limits { series: 8, ..LIMITS });
    let (a, b, c, d) = (key("p", "a", 1), key("q", "b", 1), key("r", "c", 1), key("s", "d", 1));
    budget.apply(&mut series(&[(a, 1), (b, 1), (c, 1)]));
    let mut next = series(&[(c, 2), (d, 1), (b, 1)]);
    let usage = budget.apply(&mut next);
    assert_eq!(shown(&next), [("", 0, 1), ("", 0, 2), ("b", 1, 1)], "what is folded takes room, too");
    assert_eq!(usage, BudgetUse { shown: 12, folded: 8 });
    budget.apply(&mut series(&[]));
    let mut fresh = series(&[(c, 3), (d, 2)]);
    budget.apply(&mut fresh);
    assert_eq!(shown(&fresh), [("c", 1, 3), ("d", 1, 2)], "of what went entirely nothing is known");
}

/// xorshift64: the same numbers every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Names that live as long as the test.
const NAMES: [&str; 12] = ["", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];

/// Any sequence of scrapes: counters grow, edges come in any order, pods go. The sum of each container, protocol and role
/// is always the truth, no counter goes back while its pod is there, and the budgets hold.
#[test]
fn sums_stay_counters_never_go_back_and_budgets_hold() {
    for seed in 1..=300u64 {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ seed);
        let limits = Limits {
            series: numbers.below(120),
            peers_per_container: numbers.below(6) as usize,
            ports_per_container: numbers.below(5) as usize,
        };
        let mut budget = Budget::new(limits);
        let mut truth: Vec<(SeriesKey<'static>, u64)> = Vec::new();
        let mut last: BTreeMap<SeriesKey<'static>, u64> = BTreeMap::new();
        for _ in 0..30 {
            if numbers.below(8) == 0 {
                let gone = NAMES[1 + numbers.below(4) as usize];
                truth.retain(|(key, _)| key.pod != gone);
                last.retain(|key, _| key.pod != gone);
            }
            for _ in 0..numbers.below(12) {
                let new = SeriesKey {
                    protocol: ["tcp", "udp"][numbers.below(2) as usize],
                    role: ["client", "server"][numbers.below(2) as usize],
                    ..key(
                        NAMES[1 + numbers.below(4) as usize],
                        NAMES[numbers.below(12) as usize],
                        numbers.below(8) as u16,
                    )
                };
                if !truth.iter().any(|(key, _)| *key == new) {
                    let at = numbers.below(truth.len() as u64 + 1) as usize;
                    truth.insert(at, (new, 1 + numbers.below(1000)));
                }
            }
            for (_, bytes) in &mut truth {
                *bytes += numbers.below(3) * numbers.below(1000);
            }
            let mut shown = series(&truth);
            let usage = budget.apply(&mut shown);
            check_sums(&truth, &shown, seed);
            for (key, bytes) in last {
                let now = shown.totals.get(&key).map(|totals| totals.tx_bytes);
                assert!(now >= Some(bytes), "seed {seed}: {key:?} went from {bytes} to {now:?}");
            }
            check_limits(limits, &shown, usage, seed);
            last = shown.totals.iter().map(|(key, totals)| (*key, totals.tx_bytes)).collect();
        }
    }
}

fn check_sums(truth: &[(SeriesKey<'_>, u64)], shown: &Series<'_>, seed: u64) {
    let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for (key, bytes) in truth {
        sums.entry((key.pod, key.protocol, key.role)).or_default().0 += bytes;
    }
    for (key, totals) in &shown.totals {
        sums.entry((key.pod, key.protocol, key.role)).or_default().1 += totals.tx_bytes;
    }
    for (of, (true_sum, shown_sum)) in sums {
        assert_eq!(true_sum, shown_sum, "seed {seed}: {of:?}");
    }
    let opened: u64 = shown.totals.values().map(|totals| totals.tcp.opened).sum();
    assert_eq!(opened, truth.len() as u64, "seed {seed}");
}

fn check_limits(limits: Limits, shown: &Series<'_>, usage: BudgetUse, seed: u64) {
    let at_first = |key: &SeriesKey<'_>| key.samples(&Totals::default()).count();
    let named: u64 = shown.totals.keys().filter(|key| Place::Other.of(key) != **key).map(at_first).sum();
    let all: u64 = shown.totals.iter().map(|(key, totals)| key.samples(totals).count()).sum();
    assert!(named <= limits.series, "seed {seed}: {named} series of {limits:?}");
    assert_eq!(usage.shown, all, "seed {seed}");
    let mut peers: BTreeMap<_, FastSet<_>> = BTreeMap::new();
    let mut ports: BTreeMap<_, FastSet<_>> = BTreeMap::new();
    for key in shown.totals.keys() {
        if key.peer.kind != PeerKind::Other {
            peers.entry(key.pod).or_default().insert(key.peer);
        }
        if key.port != 0 {
            ports.entry((key.pod, key.role)).or_default().insert(key.port);
        }
    }
    assert!(peers.values().all(|peers| peers.len() <= limits.peers_per_container), "seed {seed}: {peers:?}");
    assert!(ports.values().all(|ports| ports.len() <= limits.ports_per_container), "seed {seed}: {ports:?}");
}
