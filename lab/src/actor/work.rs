//! CPU time and memory to measure.

use std::time::Duration;

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};

/// Uses CPU time on the calling thread.
pub(super) fn burn(cpu_ms: u64) -> Result<()> {
    let end = cpu_time()? + Duration::from_millis(cpu_ms);
    let mut state = 1_u64;
    while cpu_time()? < end {
        for _ in 0..10_000 {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    Ok(())
}

/// Takes memory and writes to every page of it.
pub(super) fn touch(mib: u32) -> Result<Vec<u8>> {
    let Some(bytes) = usize::try_from(mib).ok().and_then(|mib| mib.checked_mul(1 << 20)) else {
        bail!("{mib} MiB are more than this machine can address");
    };
    // A non-zero value, or the allocator may hand out untouched zero pages.
    Ok(vec![1; bytes])
}

fn cpu_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Ok(Duration::new(u64::try_from(now.tv_sec)?, u32::try_from(now.tv_nsec)?))
}
