//! How much of each cgroup a reading takes. Pure.

use super::{extra::ExtraSource, facts::Source};

/// Which files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of them.
    Everything,
    /// CPU time, working set and swap: what autoscalers ask for.
    Autoscaling,
}

impl Extent {
    pub(super) const fn has(self, source: Source) -> bool {
        match self {
            Self::Everything => true,
            Self::Autoscaling => matches!(
                source,
                Source::CpuStat | Source::MemoryUsage | Source::MemoryStat | Source::V1MemoryStat | Source::MemorySwap
            ),
        }
    }

    pub(super) const fn has_extra(self, source: ExtraSource) -> bool {
        match self {
            Self::Everything => true,
            Self::Autoscaling => matches!(source, ExtraSource::CpuTotal | ExtraSource::SwapLimit),
        }
    }

    pub(super) const fn has_processes(self) -> bool {
        matches!(self, Self::Everything)
    }
}
