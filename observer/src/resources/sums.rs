//! Sums of the counters of containers that have ended. Pure.

use super::{
    DeviceIo, Facts, Usage,
    facts::{CpuFacts, MemoryEvents, plus},
};

/// Counters in [`Facts`], those of block devices aside.
pub const COUNTERS: usize = 18;

impl Facts {
    /// Adds the counters of a container that has ended; whatever is no counter stays as it is. CPU times go to
    /// [`Facts::cpu`], whichever tree they came from.
    pub fn add_ended(&mut self, ended: &Self) {
        for (sum, value) in self.counters().into_iter().zip(counted(ended).counters()) {
            plus(sum, *value);
        }
        ended.io.iter().for_each(|device| device.add_to(&mut self.io));
    }

    /// The contrary of [`Facts::add_ended`], for one that has not ended after all.
    pub(super) fn take_back(&mut self, ended: &Self) {
        for (sum, value) in self.counters().into_iter().zip(counted(ended).counters()) {
            minus(sum, *value);
        }
        for io in &mut self.io {
            if let Some(ended) = ended.io.iter().find(|ended| ended.device == io.device) {
                io.take_back(ended);
            }
        }
    }

    /// The counters, in an order that those rely on who keep them: others come behind these.
    pub const fn counters(&mut self) -> [&mut Option<u64>; COUNTERS] {
        [
            &mut self.cpu.usage,
            &mut self.cpu.user,
            &mut self.cpu.system,
            &mut self.cpu.periods,
            &mut self.cpu.throttled_periods,
            &mut self.cpu.throttled,
            &mut self.faults,
            &mut self.major_faults,
            &mut self.events.high,
            &mut self.events.max,
            &mut self.events.oom,
            &mut self.events.oom_kill,
            &mut self.cpu_pressure.some,
            &mut self.cpu_pressure.full,
            &mut self.memory_pressure.some,
            &mut self.memory_pressure.full,
            &mut self.io_pressure.some,
            &mut self.io_pressure.full,
        ]
    }
}

/// The same facts with the CPU times that count, and those of the quota in force, in [`Facts::cpu`].
fn counted(ended: &Facts) -> Facts {
    let CpuFacts { periods, throttled_periods, throttled, .. } = Usage::quota_facts(ended).unwrap_or_default();
    Facts { cpu: CpuFacts { periods, throttled_periods, throttled, ..Usage::cpu_facts(ended) }, ..ended.clone() }
}

/// What is not known takes nothing, and nothing falls below 0.
fn minus(sum: &mut Option<u64>, value: Option<u64>) {
    *sum = sum.map(|sum| sum.saturating_sub(value.unwrap_or(0)));
}

impl MemoryEvents {
    /// Adds others to these.
    pub(super) fn plus(&mut self, ended: &Self) {
        plus(&mut self.high, ended.high);
        plus(&mut self.max, ended.max);
        plus(&mut self.oom, ended.oom);
        plus(&mut self.oom_kill, ended.oom_kill);
    }
}

impl DeviceIo {
    /// Adds this to the same device among others.
    pub(super) fn add_to(&self, devices: &mut Vec<Self>) {
        match devices.iter_mut().find(|io| io.device == self.device) {
            Some(io) => {
                plus(&mut io.read_bytes, self.read_bytes);
                plus(&mut io.write_bytes, self.write_bytes);
                plus(&mut io.reads, self.reads);
                plus(&mut io.writes, self.writes);
            }
            None => devices.push(*self),
        }
    }

    /// Takes from this what was added.
    fn take_back(&mut self, added: &Self) {
        minus(&mut self.read_bytes, added.read_bytes);
        minus(&mut self.write_bytes, added.write_bytes);
        minus(&mut self.reads, added.reads);
        minus(&mut self.writes, added.writes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Source;

    /// A container with a quota whose CPU time v1 alone tells, and two devices.
    fn ended() -> Facts {
        let mut facts = Facts::default();
        for (source, text) in [
            (Source::V1CpuacctStat, "user 3\nsystem 4\n"),
            (Source::V1CpuQuota, "50000\n"),
            (Source::V1CpuPeriod, "100000\n"),
            (Source::V1CpuStat, "nr_periods 5\nnr_throttled 2\nthrottled_time 7000\n"),
            (Source::V1MemoryStat, "total_pgfault 9\ntotal_pgmajfault 1\n"),
            (Source::MemoryEvents, "high 1\nmax 2\noom 3\noom_kill 4\n"),
            (Source::CpuPressure, "some avg10=0.00 avg60=0.00 avg300=0.00 total=11\n"),
            (Source::IoStat, "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:16 rbytes=5 wbytes=6 rios=7 wios=8\n"),
        ] {
            facts.add(source, text, 100);
        }
        facts
    }

    #[test]
    fn what_was_added_can_be_taken_back() {
        let mut sums = Facts::default();
        sums.add_ended(&ended());
        let one = sums.clone();
        assert_eq!((sums.cpu.user, sums.cpu.periods, sums.io.len()), (Some(30_000), Some(5), 2));
        sums.add_ended(&ended());
        assert_ne!(sums, one);
        sums.take_back(&ended());
        assert_eq!(sums, one);
        // More than there is, and of a device that is not known.
        let device = DeviceIo { device: (9, 9), reads: Some(1), ..DeviceIo::default() };
        for ended in [ended(), ended(), Facts { io: vec![device], ..Facts::default() }] {
            sums.take_back(&ended);
        }
        assert!(sums.counters().iter().all(|sum| sum.unwrap_or(0) == 0));
        assert!(sums.io.len() == 2 && sums.io.iter().all(|io| io.reads == Some(0) && io.write_bytes == Some(0)));
    }
}
