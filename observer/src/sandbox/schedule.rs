//! When to look at the cgroup tree. Pure.

use std::time::{Duration, Instant};

/// A scan waits until nothing has happened for so long,
const QUIET: Duration = Duration::from_millis(20);
/// but not longer than this after the first event.
const LATEST: Duration = Duration::from_millis(200);
/// The first pause after which something incomplete is looked at again; each following one is twice as long.
const FIRST_AGAIN: Duration = Duration::from_millis(50);
/// How often something incomplete is looked at again: the last time 3.2 s after the change.
const AGAIN: u32 = 6;

/// When the next scan is due.
#[derive(Debug)]
pub struct Schedule {
    rescan: Duration,
    periodic: Instant,
    /// The first and the last change since the last scan.
    changes: Option<(Instant, Instant)>,
    again: Option<Instant>,
    /// Scans since the last change that found something incomplete.
    tries: u32,
}

impl Schedule {
    /// Due at once.
    pub fn new(rescan: Duration) -> Self {
        Self { rescan, periodic: Instant::now(), changes: None, again: None, tries: 0 }
    }

    /// Something changed.
    pub fn changed(&mut self, now: Instant) {
        self.changes = Some((self.changes.map_or(now, |(first, _)| first), now));
        self.tries = 0;
    }

    /// When the next scan is due.
    pub fn due(&self) -> Instant {
        let changed = self.changes.map(|(first, last)| (last + QUIET).min(first + LATEST));
        [changed, self.again].into_iter().flatten().fold(self.periodic, Instant::min)
    }

    /// Whether a scan now is one of those that come without a reason.
    pub fn is_periodic(&self, now: Instant) -> bool {
        now >= self.periodic
    }

    /// A scan has ended. `incomplete`: something that was found is still being made (no process, no address).
    pub fn scanned(&mut self, now: Instant, incomplete: bool) {
        self.changes = None;
        // A scan for another reason must not put off the repairs for ever.
        if self.is_periodic(now) {
            self.periodic = now + self.rescan;
        }
        self.again = (incomplete && self.tries < AGAIN).then(|| now + FIRST_AGAIN * 2u32.pow(self.tries));
        self.tries += u32::from(self.again.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESCAN: Duration = Duration::from_secs(60);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_is_looked_at_once_but_not_too_late() {
        let mut schedule = Schedule::new(RESCAN);
        let start = Instant::now();
        assert!(schedule.is_periodic(start));
        schedule.scanned(start, false);
        assert_eq!(schedule.due(), start + RESCAN);
        schedule.changed(start);
        assert_eq!(schedule.due(), start + QUIET);
        for at in (0..300).step_by(10) {
            schedule.changed(start + ms(at));
        }
        assert_eq!(schedule.due(), start + LATEST);
        schedule.scanned(start + LATEST, false);
        assert_eq!(schedule.due(), start + RESCAN, "the periodic scan is not put off");
    }

    #[test]
    fn what_is_being_made_is_looked_at_again_a_few_times() {
        let mut schedule = Schedule::new(RESCAN);
        let mut now = Instant::now();
        schedule.scanned(now, false);
        schedule.changed(now);
        let mut waited = Vec::new();
        while schedule.due() < now + ms(10_000) {
            waited.push(schedule.due().saturating_duration_since(now));
            now = schedule.due();
            schedule.scanned(now, true);
        }
        assert_eq!(waited, [20, 50, 100, 200, 400, 800, 1600].map(ms));
        schedule.changed(now);
        assert_eq!(schedule.due(), now + QUIET, "a change begins anew");
    }
}
