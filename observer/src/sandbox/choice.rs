//! Which sandboxes are observed, scan after scan. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use super::model::{AttachPoint, Sandbox, SandboxKey};
use crate::identity::{PodFacts, Selection, Verdict};

/// The selection, and what became of each sandbox.
#[derive(Debug, Default)]
pub struct Choice {
    selection: Selection,
    /// Since when each is known, and what was decided last.
    known: HashMap<SandboxKey, (Instant, Verdict)>,
}

impl Choice {
    /// Nothing is decided yet.
    pub fn new(selection: Selection) -> Self {
        Self { selection, known: HashMap::new() }
    }

    /// True when everything is observed.
    pub fn is_all(&self) -> bool {
        self.selection.is_all()
    }

    /// Decides anew. One that is gone keeps what was decided for it; of one that was gone before anybody looked, and that
    /// an earlier agent may have observed, the namespace alone counts.
    pub fn judge<G>(
        &mut self,
        here: &BTreeMap<SandboxKey, Sandbox>,
        gone: &BTreeMap<SandboxKey, (Sandbox, G)>,
        now: Instant,
    ) {
        if self.is_all() {
            return;
        }
        self.known.retain(|key, _| here.contains_key(key) || gone.contains_key(key));
        for (key, sandbox) in here {
            let (since, verdict) = self.known.entry(key.clone()).or_insert((now, Verdict::Wait));
            let facts =
                PodFacts { namespace: &sandbox.namespace, labels: &sandbox.labels, annotations: &sandbox.annotations };
            *verdict = self.selection.judge(facts, now.saturating_duration_since(*since));
        }
        for (key, (sandbox, _)) in gone {
            let allowed = self.selection.allows(&sandbox.namespace);
            let decided = if allowed { Verdict::Observe } else { Verdict::LeaveOut };
            let (_, verdict) = self.known.entry(key.clone()).or_insert((now, decided));
            if *verdict == Verdict::Wait {
                *verdict = Verdict::LeaveOut;
            }
        }
    }

    /// True while a sandbox waits for its name.
    pub fn waits(&self) -> bool {
        self.known.values().any(|(_, verdict)| *verdict == Verdict::Wait)
    }

    fn verdict(&self, sandbox: &Sandbox) -> Verdict {
        if self.is_all() {
            return Verdict::Observe;
        }
        self.known.get(&sandbox.key).map_or(Verdict::Wait, |(_, verdict)| *verdict)
    }

    /// Those of these points that belong to a sandbox that is observed.
    pub fn of<'a>(&self, mut points: Vec<AttachPoint>, here: impl Iterator<Item = &'a Sandbox>) -> Vec<AttachPoint> {
        if !self.is_all() {
            let observed = here.filter(|sandbox| self.verdict(sandbox) == Verdict::Observe);
            let wanted: HashSet<u64> =
                observed.flat_map(|sandbox| &sandbox.attach_points).map(|point| point.cgroup_id).collect();
            points.retain(|point| wanted.contains(&point.cgroup_id));
        }
        points
    }

    /// Those that are observed, and the others. Of the others, those that wait for their name keep their attach points.
    pub fn split<'a>(&self, sandboxes: impl Iterator<Item = &'a Sandbox>) -> (Vec<Arc<Sandbox>>, Vec<Arc<Sandbox>>) {
        let (mut observed, mut others) = (Vec::new(), Vec::new());
        for sandbox in sandboxes {
            match self.verdict(sandbox) {
                Verdict::Observe => observed.push(Arc::new(sandbox.clone())),
                Verdict::Wait => others.push(Arc::new(sandbox.clone())),
                Verdict::LeaveOut => others.push(Arc::new(Sandbox { attach_points: Vec::new(), ..sandbox.clone() })),
            }
        }
        (observed, others)
    }
}
