//! Sums of the counters of containers that have ended. Pure.

use super::{
    DeviceIo, Facts, Usage,
    facts::{CpuFacts, MemoryEvents, PressureFacts, plus},
};

impl Facts {
    /// Adds the counters of a container that has ended; whatever is no counter stays as it is. CPU times go to
    /// [`Facts::cpu`], whichever tree they came from.
    pub fn add_ended(&mut self, ended: &Self) {
        let times = Usage::cpu_facts(ended);
        let quota = Usage::quota_facts(ended).unwrap_or_default();
        let CpuFacts { usage, user, system, periods, throttled_periods, throttled, .. } = &mut self.cpu;
        for (sum, value) in [
            (usage, times.usage),
            (user, times.user),
            (system, times.system),
            (periods, quota.periods),
            (throttled_periods, quota.throttled_periods),
            (throttled, quota.throttled),
            (&mut self.faults, ended.faults),
            (&mut self.major_faults, ended.major_faults),
        ] {
            plus(sum, value);
        }
        self.events.plus(&ended.events);
        self.cpu_pressure.plus(&ended.cpu_pressure);
        self.memory_pressure.plus(&ended.memory_pressure);
        self.io_pressure.plus(&ended.io_pressure);
        ended.io.iter().for_each(|device| device.add_to(&mut self.io));
    }
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

impl PressureFacts {
    fn plus(&mut self, ended: &Self) {
        plus(&mut self.some, ended.some);
        plus(&mut self.full, ended.full);
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
}
