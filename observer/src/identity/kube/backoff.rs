//! How long to wait before the next try. Pure, but for the dice.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// The first wait after an error.
const FIRST: Duration = Duration::from_millis(500);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(30);
/// What lasted this long was well: the next error is a first one.
const WELL: Duration = Duration::from_secs(60);

/// Tries that failed one after the other.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    failed: u32,
}

impl Backoff {
    /// The wait after a try that lasted so long. `dice` is a random number: agents of all nodes lose a server at the
    /// same moment and should not come back at the same moment.
    pub fn wait(&mut self, lasted: Duration, dice: u64) -> Duration {
        if lasted >= WELL {
            self.failed = 0;
        }
        let wait = FIRST.saturating_mul(1 << self.failed.min(16)).min(LONGEST);
        self.failed = self.failed.saturating_add(1);
        wait / 2 + spread(wait / 2, dice)
    }

    /// Something came of it.
    pub const fn well(&mut self) {
        self.failed = 0;
    }
}

/// A time below `longest`, by a random number.
pub fn spread(longest: Duration, dice: u64) -> Duration {
    let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(dice % millis)
}

/// A random number, good enough to keep agents apart.
pub fn dice() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_begin_anew() {
        let mut backoff = Backoff::default();
        let mut waits: Vec<u128> = (0..9).map(|_| backoff.wait(Duration::ZERO, 0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
        waits = (0..100).map(|_| backoff.wait(Duration::ZERO, u64::MAX).as_millis()).collect();
        assert!(waits.iter().all(|wait| (15_000..30_000).contains(wait)), "{waits:?}");
        assert_eq!(backoff.wait(WELL, 0).as_millis(), 250);
        assert_eq!(backoff.wait(Duration::ZERO, 0).as_millis(), 500);
        backoff.well();
        assert_eq!(backoff.wait(Duration::ZERO, 249).as_millis(), 250 + 249);
        assert_ne!(dice(), dice());
    }
}
