//! The kernel's clocks.

use rustix::time::{ClockId, clock_gettime};

/// A clock in nanoseconds.
#[must_use]
pub fn now(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic() -> u64 {
    now(ClockId::Monotonic)
}
