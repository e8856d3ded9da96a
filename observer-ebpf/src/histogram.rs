// Durations by size. The object of the traffic and that of the TCP probe include this file.

use observer_common::tcp::{BUCKETS, Histogram, bucket};

use crate::add::add;

/// Adds a duration.
///
/// # Safety
///
/// `histogram` is in a live value of a map.
#[inline(always)]
pub unsafe fn observe(histogram: *mut Histogram, microseconds: u32) {
    // The bound is for the verifier.
    let at = bucket(microseconds) & (BUCKETS - 1);
    // SAFETY: the caller's promise, and `at` is a bucket.
    unsafe {
        add((&raw mut (*histogram).buckets).cast::<u64>().add(at), 1);
        add(&raw mut (*histogram).sum_us, microseconds.into());
    }
}
