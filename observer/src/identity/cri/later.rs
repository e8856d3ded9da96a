//! Details that a runtime did not tell, and when each is asked for again. Pure.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// The shortest wait.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(300);
/// A detail rests for so many times as long as it was waited for in vain, twice as long after each further failure.
const REST: u32 = 10;

/// What failed, by id.
#[derive(Debug, Default)]
pub struct Later {
    failed: HashMap<String, Failed>,
}

#[derive(Debug)]
struct Failed {
    times: u32,
    due: Instant,
}

impl Later {
    /// It was not told, and was waited for so long.
    pub fn failed(&mut self, id: &str, now: Instant, took: Duration) {
        let failed = self.failed.entry(id.to_owned()).or_insert(Failed { times: 0, due: now });
        let wait = took.saturating_mul(REST).max(SHORTEST);
        failed.due = now + wait.saturating_mul(2_u32.saturating_pow(failed.times)).min(LONGEST);
        failed.times = failed.times.saturating_add(1);
    }

    /// It was told.
    pub fn told(&mut self, id: &str) {
        self.failed.remove(id);
    }

    /// When it is to be asked for again; `None` when it has not failed.
    pub fn due(&self, id: &str) -> Option<Instant> {
        self.failed.get(id).map(|failed| failed.due)
    }

    /// Forgets all but these.
    pub fn retain(&mut self, listed: impl Fn(&str) -> bool) {
        self.failed.retain(|id, _| listed(id));
    }

    /// How many have failed and were not told since.
    pub fn len(&self) -> usize {
        self.failed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_have_a_bound() {
        let now = Instant::now();
        let waits = |took: u64, times: usize| {
            let mut later = Later::default();
            let mut wait = || {
                later.failed("a", now, Duration::from_millis(took));
                later.due("a").unwrap().duration_since(now).as_millis()
            };
            (0..times).map(|_| wait()).collect::<Vec<_>>()
        };
        assert_eq!(waits(1, 5), [100, 200, 400, 800, 1600], "a refusal");
        assert_eq!(waits(2000, 5), [20_000, 40_000, 80_000, 160_000, 300_000], "no answer");
        assert_eq!(waits(u64::MAX, 1), [300_000]);
        assert_eq!(waits(0, 100)[99], 300_000);
    }

    #[test]
    fn what_was_told_or_is_gone_has_not_failed() {
        let now = Instant::now();
        let mut later = Later::default();
        ["a", "b", "c"].into_iter().for_each(|id| later.failed(id, now, Duration::ZERO));
        later.told("a");
        later.retain(|id| id != "b");
        assert_eq!((later.due("a"), later.due("b"), later.len()), (None, None, 1));
        assert!(later.due("c") > Some(now));
    }
}
