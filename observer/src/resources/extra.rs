//! What only the compatibility endpoints show: files that the agent's own metrics have no use for. Pure.
//!
//! Files and units: the kernel's Documentation/admin-guide/cgroup-v2.rst and
//! Documentation/admin-guide/cgroup-v1/{cpuacct,memory}.rst.

use super::{Limit, facts::Hierarchy, parse};

/// A further file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExtraSource {
    /// v1 `cpuacct.usage`, nanoseconds.
    CpuTotal,
    /// v2 `memory.min`, v1 `memory.soft_limit_in_bytes`.
    Reservation,
    /// v2 `memory.swap.max`, v1 `memory.memsw.limit_in_bytes`.
    SwapLimit,
    /// v1 `memory.kmem.usage_in_bytes`.
    KernelMemory,
}

impl ExtraSource {
    /// Whether the file changes only when somebody writes to it.
    pub(super) const fn is_setting(self) -> bool {
        matches!(self, Self::Reservation | Self::SwapLimit)
    }
}

/// All of them.
pub(super) const EXTRA_FILES: [(ExtraSource, Hierarchy, &str); 6] = [
    (ExtraSource::Reservation, Hierarchy::V2With("memory"), "memory.min"),
    (ExtraSource::SwapLimit, Hierarchy::V2With("memory"), "memory.swap.max"),
    (ExtraSource::CpuTotal, Hierarchy::V1("cpuacct"), "cpuacct.usage"),
    (ExtraSource::Reservation, Hierarchy::V1("memory"), "memory.soft_limit_in_bytes"),
    (ExtraSource::SwapLimit, Hierarchy::V1("memory"), "memory.memsw.limit_in_bytes"),
    (ExtraSource::KernelMemory, Hierarchy::V1("memory"), "memory.kmem.usage_in_bytes"),
];

/// What they said. A field is `None` when its file is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extra {
    /// All CPU time, nanoseconds; v1 alone.
    pub cpu_total: Option<u64>,
    /// Memory that is kept for it: at least this in v2, at most this under pressure in v1.
    pub reservation: Option<Limit>,
    /// The limit of swap in v2, of memory and swap together in v1.
    pub swap_limit: Option<Limit>,
    /// Bytes of kernel memory; v1 alone.
    pub kernel_memory: Option<u64>,
}

impl Extra {
    /// Adds what a file says.
    pub(super) fn add(&mut self, source: ExtraSource, text: &str) {
        match source {
            ExtraSource::CpuTotal => self.cpu_total = parse::number(text),
            ExtraSource::Reservation => self.reservation = parse::limit(text),
            ExtraSource::SwapLimit => self.swap_limit = parse::limit(text),
            ExtraSource::KernelMemory => self.kernel_memory = parse::number(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_one_thing_and_no_file_another() {
        let mut extra = Extra::default();
        extra.add(ExtraSource::SwapLimit, "max\n");
        extra.add(ExtraSource::Reservation, "9223372036854771712\n");
        extra.add(ExtraSource::CpuTotal, "123456789\n");
        extra.add(ExtraSource::KernelMemory, "cut");
        let expected = Extra {
            swap_limit: Some(Limit::Unlimited),
            reservation: Some(Limit::Unlimited),
            cpu_total: Some(123_456_789),
            kernel_memory: None,
        };
        assert_eq!(extra, expected);
        extra.add(ExtraSource::SwapLimit, "4096\n");
        assert_eq!(extra.swap_limit, Some(Limit::Finite(4096)));
    }
}
