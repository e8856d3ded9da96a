// Durations by size. The object of the traffic and that of the TCP probe include this file.

use observer_common::tcp::{BUCKETS, bucket};

use crate::add::add;

/// Adds a duration to the buckets and to the sum.
///
/// # Safety
///
/// Both are in a live value of a map.
#[inline(always)]
pub unsafe fn observe(buckets: *mut [u64; BUCKETS], sum_us: *mut u64, microseconds: u32) {
    // The bound is for the verifier.
    let at = bucket(microseconds) & (BUCKETS - 1);
    // SAFETY: the caller's promise, and `at` is a bucket.
    unsafe {
        add(buckets.cast::<u64>().add(at), 1);
        add(sum_us, microseconds.into());
    }
}
