//! All pods of a cluster, whose owners may have to be asked for.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use tracing::debug;

use super::{
    claims::Kind,
    objects::{Claimant, Pod},
    watch::{Plain, Shared},
};
use crate::identity::kube::{KubeError, OWNERS_AT_ONCE, Objects, Owned, Owners, Target, Topic};

/// Owners that nobody owns pods of any more, and that are remembered all the same.
const SPARE_OWNERS: usize = 64;
/// How long after owners could not be asked for they are asked for again; as long as the longest wait between two lists
/// that fail. It may be later: when a pod changes, or the watch begins anew.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// How long pods wait for their owners before they are told from names.
const OWNERS_WAIT: Duration = Duration::from_secs(10);

/// See the module.
pub struct AllPods {
    target: Target,
    plain: Plain<Pod>,
    owners: Owners,
    /// The owners of pods that do not tell whose they are, by the pod's UID.
    owned: HashMap<String, Owned>,
    /// Pods with an owner of whom nothing is known, by their UID. Nobody hears of them before it was asked for, because
    /// a name that is told is not taken back.
    waiting: HashMap<String, Pod>,
    /// Those of whose owner nothing could be told when it was asked for. They have the names that they tell themselves
    /// until it can be.
    untold: HashMap<String, Pod>,
    /// When the owners of `untold` are asked for again; `None` when nothing is to be expected of it.
    again: Option<Instant>,
}

impl AllPods {
    /// Nothing is known yet.
    pub fn new(target: Target, shared: Rc<RefCell<Shared>>) -> Self {
        Self {
            target,
            plain: Plain::new(shared),
            owners: Owners::default(),
            owned: HashMap::new(),
            waiting: HashMap::new(),
            untold: HashMap::new(),
            again: None,
        }
    }

    /// Puts a pod with what is known of its owner.
    fn settle(&self, pod: &Pod) {
        let uid = pod.metadata().uid();
        let workload = self.owned.get(uid).and_then(|owned| self.owners.workload(owned));
        let claims = workload.map_or_else(|| pod.claims(), |(kind, name)| pod.claims_of(kind, name));
        self.plain.shared.borrow_mut().teller.cluster.put(Kind::Pod, uid, claims);
    }

    fn is_told(&self, uid: &str) -> bool {
        self.owned.get(uid).is_none_or(|owned| self.owners.is_told(owned))
    }

    /// Asks for owners of whom nothing is known, at most [`OWNERS_AT_ONCE`] of them. Says whether there are more.
    async fn ask(&mut self) -> bool {
        let due = self.again.is_some_and(|at| at <= Instant::now());
        let untold = due.then(|| self.untold.keys()).into_iter().flatten();
        let owned = self.waiting.keys().chain(untold).filter_map(|uid| self.owned.get(uid));
        let ask = self.owners.to_ask(owned.cloned());
        let some = &ask[..ask.len().min(OWNERS_AT_ONCE)];
        if due {
            self.again = None;
        }
        if !some.is_empty()
            && let Err(error) = self.owners.ask(&self.target, some).await
        {
            self.plain.shared.borrow_mut().feed.error();
            debug!("owners are told from names: {error}");
            self.again = Some(Instant::now() + ASK_AGAIN);
            return false;
        }
        let more = ask.len() > some.len();
        if more {
            self.again = Some(Instant::now());
        }
        more
    }

    /// Puts the pods that wait, and where owners were told, those that are known by them now.
    fn settle_all(&mut self, owners: bool) {
        for (uid, pod) in std::mem::take(&mut self.waiting) {
            self.settle(&pod);
            if !self.is_told(&uid) {
                self.untold.insert(uid, pod);
            }
        }
        if owners {
            let (told, untold): (HashMap<_, _>, _) =
                std::mem::take(&mut self.untold).into_iter().partition(|(uid, _)| self.is_told(uid));
            self.untold = untold;
            told.values().for_each(|pod| self.settle(pod));
        }
    }
}

impl Objects for AllPods {
    type Object = Pod;

    fn begin(&mut self) {
        self.plain.begin();
        self.owned.clear();
        self.waiting.clear();
        self.untold.clear();
    }

    fn put(&mut self, pod: Pod) {
        let uid = pod.metadata().uid();
        self.waiting.remove(uid);
        let asked = self.untold.remove(uid).is_some();
        match pod.owner_to_ask() {
            None => drop(self.owned.remove(uid)),
            Some(owned) => {
                let wait = self.owners.is_unknown(&owned) && !asked;
                self.owned.insert(uid.to_owned(), owned);
                if !self.is_told(uid) && !pod.claims().addresses.is_empty() {
                    if wait {
                        self.waiting.insert(uid.to_owned(), pod);
                    } else {
                        self.settle(&pod);
                        self.untold.insert(uid.to_owned(), pod);
                    }
                    return;
                }
            }
        }
        self.settle(&pod);
    }

    fn complete(&mut self) {
        // Those that wait are there, too: who had been told stays until more is known.
        self.waiting.keys().for_each(|uid| self.plain.shared.borrow_mut().teller.cluster.keep(Kind::Pod, uid));
        self.plain.complete();
    }

    fn remove(&mut self, pod: Pod) {
        let uid = pod.metadata().uid();
        self.owned.remove(uid);
        self.waiting.remove(uid);
        self.untold.remove(uid);
        self.plain.remove(pod);
    }
}

impl Topic for AllPods {
    type Objects = Self;

    fn path(&self) -> String {
        Pod::PATH.to_owned()
    }

    fn objects(&mut self) -> &mut Self {
        self
    }

    fn connected(&mut self) -> bool {
        // Permissions change, and whatever went wrong may have passed.
        self.owners.try_again();
        self.again = Some(Instant::now());
        !self.waiting.is_empty() || !self.untold.is_empty()
    }

    async fn publish(&mut self) {
        let (until, known) = (Instant::now() + OWNERS_WAIT, self.owners.count());
        loop {
            let more = self.ask().await;
            // Who has waited for long enough is told from names, which may be taken back: nobody waits for all of them.
            if !more || Instant::now() >= until {
                self.settle_all(self.owners.count() > known);
                self.plain.publish().await;
            }
            if !more {
                break;
            }
        }
        if self.owners.count() > 2 * self.owned.len() + SPARE_OWNERS {
            self.owners.keep(self.owned.values().cloned());
        }
        // In this order: who is told that this works finds all of it.
        self.works();
    }

    fn works(&mut self) {
        self.plain.shared.borrow_mut().works(Kind::Pod, self.owners.complaint());
    }

    fn caught_up(&mut self) {
        self.plain.caught_up();
    }

    fn failed(&mut self, error: &KubeError, usual: bool) {
        self.plain.failed(error, usual);
    }
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
