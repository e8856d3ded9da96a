use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

fn node(name: &str) -> Option<Arc<PeerRecord>> {
    Some(Arc::new(PeerRecord::Node { name: name.into() }))
}

/// What an agent believes.
type View = BTreeMap<IpAddr, Option<Arc<PeerRecord>>>;

#[derive(Debug, Clone)]
enum Step {
    Tell(u8, Option<u8>),
    Complete,
    Subscribe(usize, u8),
    Unsubscribe(usize, u8),
    Take(usize, usize),
    Reconnect(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let agent = 0..3usize;
    prop_oneof![
        5 => (0..6u8, proptest::option::of(0..3u8)).prop_map(|(address, owner)| Step::Tell(address, owner)),
        1 => Just(Step::Complete),
        4 => (agent.clone(), 0..6u8).prop_map(|(agent, address)| Step::Subscribe(agent, address)),
        2 => (agent.clone(), 0..6u8).prop_map(|(agent, address)| Step::Unsubscribe(agent, address)),
        3 => (agent.clone(), 1..4usize).prop_map(|(agent, most)| Step::Take(agent, most)),
        1 => agent.prop_map(Step::Reconnect),
    ]
}

proptest! {
    #[test]
    fn every_subscriber_sees_the_table(steps in proptest::collection::vec(step(), 0..80)) {
        let mut core = Core::default();
        let mut table = View::new();
        let mut wanted: Vec<FastSet<IpAddr>> = vec![FastSet::default(); 3];
        let mut views = vec![View::new(); 3];
        let mut ids: Vec<AgentId> = (0..3).map(|_| core.join().0).collect();
        let mut heard = [0; 3];
        let mut take = |core: &mut Core, ids: &[AgentId], views: &mut [View], agent: usize, most| {
            let replies = core.take(ids[agent], most, 0);
            for reply in &replies {
                assert!(reply.generation >= heard[agent]);
                heard[agent] = reply.generation;
                views[agent].insert(reply.address, reply.record.clone());
            }
            replies.len()
        };
        for (now, step) in steps.into_iter().enumerate() {
            match step {
                Step::Tell(at, owner) => {
                    let record = owner.and_then(|owner| node(&owner.to_string()));
                    core.tell(address(at), record.clone(), now as u64);
                    table.insert(address(at), record);
                }
                Step::Complete => core.complete(true),
                Step::Subscribe(agent, at) => {
                    core.subscribe(ids[agent], address(at)).unwrap();
                    wanted[agent].insert(address(at));
                }
                Step::Unsubscribe(agent, at) => {
                    core.unsubscribe(ids[agent], address(at));
                    wanted[agent].remove(&address(at));
                    views[agent].remove(&address(at));
                }
                Step::Take(agent, most) => {
                    let complete = core.is_complete();
                    let taken = take(&mut core, &ids, &mut views, agent, most);
                    prop_assert!(taken <= most && (complete || taken == 0));
                }
                Step::Reconnect(agent) => {
                    core.leave(ids[agent]);
                    ids[agent] = core.join().0;
                    views[agent].clear();
                    for address in &wanted[agent] {
                        core.subscribe(ids[agent], *address).unwrap();
                    }
                }
            }
        }
        core.complete(true);
        for agent in 0..3 {
            while take(&mut core, &ids, &mut views, agent, 2) > 0 {}
            let truth: View =
                wanted[agent].iter().map(|address| (*address, table.get(address).cloned().flatten())).collect();
            prop_assert_eq!(&views[agent], &truth);
        }
        let sizes = core.sizes();
        prop_assert_eq!(sizes.subscriptions, wanted.iter().map(FastSet::len).sum::<usize>());
        prop_assert_eq!(sizes.addresses, table.values().flatten().count());
        ids.into_iter().for_each(|id| core.leave(id));
        prop_assert!(core.subscribers.is_empty() && core.agents.is_empty() && core.subscriptions == 0);
    }
}

#[test]
fn before_the_first_lists_are_complete_nobody_gets_an_answer() {
    let mut core = Core::default();
    let (id, _) = core.join();
    core.tell(address(1), node("a"), 0);
    core.subscribe(id, address(1)).unwrap();
    core.subscribe(id, address(2)).unwrap();
    assert_eq!(core.take(id, 10, 0), []);
    // Two objects of the first lists claim it: nobody had it before.
    core.tell(address(1), node("b"), 5);
    core.complete(true);
    let mut replies = core.take(id, 10, 9);
    replies.sort_by_key(|reply| reply.address);
    let told: Vec<_> = replies.into_iter().map(|reply| (reply.record, reply.age_ms)).collect();
    assert_eq!(told, [(node("b"), None), (None, None)]);
}

#[test]
fn an_agent_that_asks_later_is_told_since_when_if_there_was_somebody_else() {
    let mut core = Core::default();
    core.tell(address(1), node("a"), 0);
    core.complete(true);
    let (id, _) = core.join();
    let ask = |core: &mut Core, number, now| {
        core.subscribe(id, address(number)).unwrap();
        let reply = core.take(id, 9, now).into_iter().find(|reply| reply.address == address(number)).unwrap();
        (reply.record, reply.age_ms)
    };
    core.tell(address(2), node("b"), 100);
    assert_eq!(ask(&mut core, 1, 200), (node("a"), None));
    assert_eq!(ask(&mut core, 2, 200), (node("b"), None), "nobody had it before");
    core.tell(address(1), node("c"), 300);
    assert_eq!(ask(&mut core, 1, 350), (node("c"), Some(50)));
    core.tell(address(1), None, 400);
    assert_eq!(ask(&mut core, 1, 450), (None, Some(50)));
    core.tell(address(1), node("d"), 500);
    assert_eq!(ask(&mut core, 1, 600), (node("d"), Some(100)));
    core.tell(address(1), None, 1_000);
    // Somebody has it again before it is forgotten, and keeps it.
    core.tell(address(2), None, 1_000);
    core.tell(address(2), node("e"), 2_000);
    core.tell(address(9), node("x"), 1_001 + KEEP);
    assert_eq!(core.entries.len(), 2, "forgotten");
    core.tell(address(1), node("f"), 1_002 + KEEP);
    assert_eq!(ask(&mut core, 1, 1_003 + KEEP), (node("f"), None));
    assert_eq!(ask(&mut core, 2, 1_003 + KEEP), (node("e"), Some(KEEP - 997)));
}

#[test]
fn an_agent_wants_as_many_as_it_may_and_is_woken_for_its_own() {
    let mut core = Core::default();
    core.complete(true);
    let (id, wake) = core.join();
    let (other, other_wake) = core.join();
    let many = |at: usize| IpAddr::from(u128::try_from(at).unwrap().to_be_bytes().map(|byte| byte ^ 0xfd));
    for at in 0..MAX_ADDRESSES {
        core.subscribe(id, many(at)).unwrap();
    }
    assert_eq!(core.subscribe(id, address(1)), Err(TooMany::OfAgent));
    assert_eq!(core.subscribe(id, many(7)), Ok(()), "it is subscribed to that one");
    core.unsubscribe(id, many(7));
    core.subscribe(id, address(1)).unwrap();
    core.subscribe(other, address(2)).unwrap();
    let mut taken = 0;
    while let more @ 1.. = core.take(id, 1_000, 0).len() {
        taken += more;
    }
    assert_eq!(taken, MAX_ADDRESSES);
    let woken = |wake: &Notify| {
        let mut notified = std::pin::pin!(wake.notified());
        notified.as_mut().enable()
    };
    core.tell(address(1), node("a"), 0);
    core.tell(address(1), node("a"), 0);
    core.tell("::ffff:10.0.0.1".parse().unwrap(), node("a"), 0);
    assert_eq!((core.take(id, 9, 0).len(), core.sizes().changes), (1, 1));
    assert!(woken(&wake) && !woken(&other_wake));
}

#[test]
fn all_agents_together_have_a_bound() {
    let mut core = Core::with_room_for(3);
    let [(one, _), (two, _)] = [core.join(), core.join()];
    for at in 1..=2 {
        core.subscribe(one, address(at)).unwrap();
    }
    core.subscribe(two, address(1)).unwrap();
    assert_eq!(core.subscribe(two, address(2)), Err(TooMany::OfAll));
    assert_eq!(core.subscribe(two, address(1)), Ok(()), "it is subscribed to that one");
    assert_eq!(core.sizes().subscriptions, 3);
    core.leave(one);
    core.subscribe(two, address(2)).unwrap();
}

#[test]
fn where_not_all_can_be_read_nobody_is_told_that_an_address_is_nobodys() {
    let mut core = Core::default();
    let (id, wake) = core.join();
    core.tell(address(1), node("a"), 0);
    core.tell(address(2), node("b"), 0);
    for at in 1..=4 {
        core.subscribe(id, address(at)).unwrap();
    }
    core.complete(false);
    let told = |core: &mut Core, most| {
        let replies = core.take(id, most, 10).into_iter().map(|reply| (reply.address, reply.record));
        replies.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(told(&mut core, 1).len(), 1);
    assert_eq!(told(&mut core, 9).len(), 1);
    assert_eq!(told(&mut core, 9), BTreeMap::new());
    core.tell(address(2), None, 5);
    core.tell(address(3), node("c"), 6);
    assert_eq!(told(&mut core, 9), [(address(2), None), (address(3), node("c"))].into(), "that one was somebody's");
    let woken = || std::pin::pin!(wake.notified()).as_mut().enable();
    woken();
    core.complete(true);
    assert!(woken());
    assert_eq!(told(&mut core, 9), [(address(4), None)].into());
    core.complete(false);
    core.subscribe(id, address(5)).unwrap();
    assert_eq!(told(&mut core, 9), BTreeMap::new(), "it may be somebody's since the server is away");
    core.complete(true);
    assert_eq!(told(&mut core, 9), [(address(5), None)].into());
}

#[test]
fn what_may_be_a_pods_is_told_so_until_it_is_somebodys() {
    let mut core = Core::default();
    core.tell(address(1), node("a"), 1);
    core.pod_ranges(PodRanges::of(["10.0.0.0/29".parse().unwrap()]));
    core.complete(true);
    let (id, _) = core.join();
    for number in [1, 2, 9] {
        core.subscribe(id, address(number)).unwrap();
    }
    let told = |core: &mut Core, now| -> BTreeMap<IpAddr, bool> {
        core.take(id, 10, now).into_iter().map(|reply| (reply.address, reply.may_be_a_pods)).collect()
    };
    assert_eq!(told(&mut core, 2), BTreeMap::from([(address(1), false), (address(2), true), (address(9), false)]));
    core.tell(address(2), node("b"), 3);
    assert_eq!(told(&mut core, 4), BTreeMap::from([(address(2), false)]));
    core.tell(address(2), None, 5);
    assert_eq!(told(&mut core, 6), BTreeMap::from([(address(2), false)]), "somebody is known to have had it");
    core.pod_ranges(PodRanges::of(["10.0.0.0/28".parse().unwrap()]));
    assert_eq!(told(&mut core, 7), BTreeMap::from([(address(9), true)]), "a node has come");
    core.pod_ranges(PodRanges::default());
    assert_eq!(told(&mut core, 8), BTreeMap::from([(address(9), false)]), "it has gone");
}
