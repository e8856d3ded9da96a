//! What is done to slots off the scrape's path, and in which order. Pure.

use std::{collections::VecDeque, mem, sync::Arc};

use super::Retirement;
use crate::{
    identity::Snapshot,
    kernel::{Leaving, Slot},
};

/// What somebody asks for.
#[derive(Debug)]
pub enum Task {
    /// Look at slots, and close those whose peer is another one now.
    Urgent(Urgent),
    /// End connections whose end was missed: they count in slots, so before those are given back.
    EndMissed,
    /// Give back what a scrape has shown for the last time.
    Retire(Retirement),
    /// End.
    Stop,
}

/// What must not wait: until it is done, what is new counts for somebody who is gone.
#[derive(Debug)]
pub enum Urgent {
    /// Look at all slots with what is known now.
    Look(Arc<Snapshot>),
    /// The cgroup that a pod lived in has gone; the next snapshot will say so, too.
    Gone {
        /// Its id.
        cgroup: u64,
        /// When, in nanoseconds of `CLOCK_MONOTONIC`.
        at: u64,
    },
    /// Close these slots.
    Close(Vec<(Slot, Leaving)>),
    /// Close these, too: they are idle, and the table is nearly full.
    Evict(Vec<(Slot, Leaving)>),
}

/// What waits to be done: what is urgent in the order in which it came, then the rest.
#[derive(Debug, Default)]
pub struct Waiting {
    urgent: VecDeque<Urgent>,
    end_missed: bool,
    retirements: VecDeque<Retirement>,
    stopped: bool,
}

impl Waiting {
    /// Takes a task in.
    pub fn put(&mut self, task: Task) {
        match task {
            Task::Urgent(urgent) => self.urgent.push_back(urgent),
            Task::EndMissed => self.end_missed = true,
            Task::Retire(retirement) => self.retirements.push_back(retirement),
            Task::Stop => self.stopped = true,
        }
    }

    /// The next one that is urgent; none once it was asked to end.
    pub fn urgent(&mut self) -> Option<Urgent> {
        self.urgent.pop_front().filter(|_| !self.stopped)
    }

    /// The next one of all: one that is urgent, whenever it came, before others, and the end before all. `None` when nothing
    /// waits.
    pub fn take(&mut self) -> Option<Task> {
        if self.stopped {
            return Some(Task::Stop);
        }
        if let Some(urgent) = self.urgent() {
            return Some(Task::Urgent(urgent));
        }
        if mem::take(&mut self.end_missed) {
            return Some(Task::EndMissed);
        }
        self.retirements.pop_front().map(Task::Retire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(cgroup: u64) -> Task {
        Task::Urgent(Urgent::Gone { cgroup, at: 0 })
    }

    fn retire(cgroup: u64) -> Task {
        Task::Retire(Retirement { left_out: vec![cgroup], ..Retirement::default() })
    }

    fn number(task: Option<Task>) -> Option<(&'static str, u64)> {
        Some(match task? {
            Task::Urgent(Urgent::Gone { cgroup, .. }) => ("gone", cgroup),
            Task::Urgent(Urgent::Look(snapshot)) => ("look", snapshot.number()),
            Task::Urgent(Urgent::Close(slots)) => ("close", slots.len() as u64),
            Task::Urgent(Urgent::Evict(slots)) => ("evict", slots.len() as u64),
            Task::EndMissed => ("end missed", 0),
            Task::Retire(retirement) => ("retire", retirement.left_out[0]),
            Task::Stop => ("stop", 0),
        })
    }

    #[test]
    fn what_is_urgent_comes_first_and_each_in_its_order() {
        let mut waiting = Waiting::default();
        let look = Task::Urgent(Urgent::Look(Arc::default()));
        let close = Task::Urgent(Urgent::Close(Vec::new()));
        [retire(1), gone(2), retire(3), look, close, gone(4)].into_iter().for_each(|task| waiting.put(task));
        let mut order: Vec<_> = std::iter::repeat_with(|| number(waiting.take())).take(4).collect();
        assert_eq!(order, [Some(("gone", 2)), Some(("look", 0)), Some(("close", 0)), Some(("gone", 4))]);
        assert_eq!(number(waiting.take()), Some(("retire", 1)));
        waiting.put(gone(5));
        order = std::iter::repeat_with(|| number(waiting.take())).take(3).collect();
        assert_eq!(order, [Some(("gone", 5)), Some(("retire", 3)), None], "what comes later goes before what waits");
    }

    #[test]
    fn missed_ends_are_looked_for_once_and_before_slots_are_given_back() {
        let mut waiting = Waiting::default();
        [retire(1), Task::EndMissed, gone(2), Task::EndMissed].into_iter().for_each(|task| waiting.put(task));
        let order: Vec<_> = std::iter::repeat_with(|| number(waiting.take())).take(4).collect();
        assert_eq!(order, [Some(("gone", 2)), Some(("end missed", 0)), Some(("retire", 1)), None]);
    }

    #[test]
    fn in_the_midst_of_a_retirement_only_what_is_urgent_is_done() {
        let mut waiting = Waiting::default();
        [retire(1), gone(2), retire(3)].into_iter().for_each(|task| waiting.put(task));
        assert_eq!(number(waiting.urgent().map(Task::Urgent)), Some(("gone", 2)));
        assert!(waiting.urgent().is_none());
        assert_eq!(number(waiting.take()), Some(("retire", 1)));
    }

    #[test]
    fn the_end_comes_before_all_that_waits() {
        let mut waiting = Waiting::default();
        [retire(1), gone(2), Task::Stop, gone(3)].into_iter().for_each(|task| waiting.put(task));
        assert!(waiting.urgent().is_none());
        assert_eq!(number(waiting.take()), Some(("stop", 0)));
        assert_eq!(number(waiting.take()), Some(("stop", 0)), "and stays");
    }
}
