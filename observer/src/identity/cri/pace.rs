//! How long to wait before the runtime is asked again. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// After something happened: the runtime may list a sandbox only when all of it is made (containerd), so it is asked a
/// few times.
const AFTER_CHANGE: [u64; 6] = [10, 30, 60, 100, 200, 400];
/// When nothing happens and nothing would be told.
const POLL: Duration = Duration::from_secs(1);
/// When the runtime tells what happens; repairs what was missed.
const WITH_EVENTS: Duration = Duration::from_secs(10);
/// Before the next try with a runtime that does not answer.
pub const RETRY: Duration = Duration::from_secs(1);
/// So many lists in such a time, whatever happens: a flood of events is a list every 100 ms.
const MOST: (usize, Duration) = (10, Duration::from_secs(1));

/// When the runtime was asked, and when it is to be asked next.
#[derive(Debug, Default)]
pub struct Pace {
    /// How often since something happened.
    asked: usize,
    /// When the last lists were begun, the oldest first.
    lists: VecDeque<Instant>,
    /// How long the last one took.
    took: Duration,
}

impl Pace {
    /// Something has happened.
    pub const fn happened(&mut self) {
        self.asked = 0;
    }

    /// A list was asked for at `began`, and took so long.
    pub fn listed(&mut self, began: Instant, took: Duration) {
        if self.lists.len() == MOST.0 {
            self.lists.pop_front();
        }
        self.lists.push_back(began);
        self.took = took;
    }

    /// The wait before the next list when nothing happens. `events` says whether the runtime would tell.
    pub fn pause(&mut self, events: bool) -> Duration {
        let idle = if events { WITH_EVENTS } else { POLL };
        let pause = AFTER_CHANGE.get(self.asked).map_or(idle, |milliseconds| Duration::from_millis(*milliseconds));
        self.asked = self.asked.saturating_add(1);
        pause
    }

    /// The shortest wait before the next list, whatever happens: never more than [`MOST`], and a runtime is at rest for
    /// as long as it took to answer.
    #[must_use]
    pub fn rest(&self, now: Instant) -> Duration {
        let full = self.lists.len() == MOST.0;
        let oldest = self.lists.front().filter(|_| full);
        let room = oldest.map_or(Duration::ZERO, |oldest| (*oldest + MOST.1).saturating_duration_since(now));
        room.max(self.took.min(RETRY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(pace: &mut Pace, events: bool) -> Vec<u128> {
        (0..8).map(|_| pace.pause(events).as_millis()).collect()
    }

    #[test]
    fn soon_after_a_change_then_seldom() {
        let mut pace = Pace::default();
        assert_eq!(pauses(&mut pace, false), [10, 30, 60, 100, 200, 400, 1000, 1000]);
        assert_eq!(pace.pause(true), WITH_EVENTS);
        pace.happened();
        assert_eq!(pauses(&mut pace, true), [10, 30, 60, 100, 200, 400, 10_000, 10_000]);
    }

    #[test]
    fn a_flood_is_a_list_every_tenth_of_a_second() {
        let start = Instant::now();
        let mut now = start;
        let mut pace = Pace::default();
        let mut lists = 0;
        while now < start + Duration::from_secs(60) {
            pace.happened();
            pace.listed(now, Duration::from_millis(2));
            lists += 1;
            now += pace.rest(now).max(Duration::from_millis(2));
        }
        assert!((590..=610).contains(&lists), "{lists}");
        // And the first after a calm is made at once, but for the rest that a runtime has.
        now += Duration::from_secs(1);
        assert_eq!(pace.rest(now), Duration::from_millis(2));
    }

    #[test]
    fn a_slow_runtime_is_asked_half_of_its_time() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.rest(start), Duration::ZERO);
        pace.listed(start, Duration::from_millis(300));
        assert_eq!(pace.rest(start + Duration::from_millis(300)).as_millis(), 300);
        pace.listed(start, Duration::from_secs(9));
        assert_eq!(pace.rest(start + Duration::from_secs(9)), RETRY);
    }
}
