//! The CPU time that a cgroup was known to have used. Pure.
//!
//! While a cgroup is being removed one of its trees may be gone before the other. Times of the other have another precision:
//! a counter that went over to them would fall, and who reads it would take all of it for new.

use super::{CpuFacts, Extra, Facts};

/// The CPU time of one cgroup that was read last.
#[derive(Debug, Default)]
pub(super) struct KnownCpu {
    /// By v2's `cpu.stat`.
    v2: Option<CpuFacts>,
    /// By v1's `cpuacct.usage`, nanoseconds.
    v1_total: Option<u64>,
}

impl KnownCpu {
    /// Completes what was read with what is known, or learns from it.
    pub(super) fn complete(&mut self, facts: &mut Facts) {
        match facts.cpu.usage {
            Some(usage) if usage > 0 => self.v2 = Some(facts.cpu),
            Some(_) => {}
            None => facts.cpu = self.v2.unwrap_or_default(),
        }
    }

    /// The same for what [`Facts`] has no part in.
    pub(super) fn complete_extra(&mut self, extra: &mut Extra) {
        extra.cpu_total = extra.cpu_total.or(self.v1_total);
        self.v1_total = extra.cpu_total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(v2: Option<u64>, ticks: Option<u64>) -> Facts {
        let cpu = |usage| CpuFacts { usage, user: usage, ..CpuFacts::default() };
        Facts { cpu: cpu(v2), v1_cpu: cpu(ticks), ..Facts::default() }
    }

    #[test]
    fn a_tree_that_goes_first_takes_no_time_back() {
        let mut known = KnownCpu::default();
        for (v2, shown) in [(Some(12_345), Some(12_345)), (None, Some(12_345)), (Some(12_400), Some(12_400))] {
            let mut read = facts(v2, Some(10_000));
            known.complete(&mut read);
            assert_eq!(read.cpu.usage, shown);
        }
        for (v1, shown) in [(None, None), (Some(7), Some(7)), (None, Some(7))] {
            let mut read = Extra { cpu_total: v1, ..Extra::default() };
            known.complete_extra(&mut read);
            assert_eq!(read.cpu_total, shown);
        }
    }

    #[test]
    fn a_v2_cgroup_that_counts_nothing_is_not_taken_for_what_it_would_be() {
        let mut known = KnownCpu::default();
        for v2 in [Some(0), None] {
            let mut read = facts(v2, Some(10_000));
            known.complete(&mut read);
            assert_eq!((read.cpu.usage, read.v1_cpu.usage), (v2, Some(10_000)));
        }
    }
}
