//! What follows from the files of any cgroup, beyond what containers need. Pure.

use super::{Extra, Facts, Limit, NodeFacts, Target, Usage};

/// A cgroup and what its files said.
#[derive(Debug, Clone)]
pub struct CgroupUsage<'a> {
    /// Whose it is.
    pub target: Target<'a>,
    /// What the files said that every reading takes.
    pub facts: Facts,
    /// What the others said.
    pub extra: Extra,
    /// What follows from `facts`.
    pub usage: Usage,
}

/// A CPU quota as it was set, and what was used beyond it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// CPU time for each period, µs.
    pub quota: u64,
    /// Periods with more than that.
    pub bursts: Option<u64>,
    /// CPU time beyond it, seconds.
    pub burst_seconds: Option<f64>,
}

impl CgroupUsage<'_> {
    /// All CPU time in seconds: v1's `cpuacct.usage` where it is, else v2's `cpu.stat`.
    #[must_use]
    pub fn cpu_total(&self) -> Option<f64> {
        // Nanoseconds are exact for 104 days of CPU time, and beyond that to a part in 2^53.
        let v1 = self.extra.cpu_total.map(|nanos| nanos as f64 / 1e9);
        v1.or_else(|| self.facts.cpu.usage.map(|micros| micros as f64 / 1e6))
    }

    /// The quota, when there is one.
    #[must_use]
    pub fn bandwidth(&self) -> Option<Bandwidth> {
        let facts = &self.facts;
        let (quota, cpu) = match facts.cpu_max {
            Some((quota, _)) => (quota?, facts.cpu),
            None => (u64::try_from(facts.v1_quota?).ok()?, facts.v1_cpu),
        };
        let burst_seconds = cpu.burst.map(|micros| micros as f64 / 1e6);
        Some(Bandwidth { quota, bursts: cpu.bursts, burst_seconds })
    }

    /// The memory limit in bytes, 0 for none; of the node all its memory. `None` where memory is not accounted, and when
    /// nobody could read the limit.
    #[must_use]
    pub fn memory_limit(&self, node: Option<&NodeFacts>) -> Option<u64> {
        match self.target {
            Target::Node => node.map(|node| node.memory),
            _ => self.facts.usage.and(self.facts.limit).map(Limit::or_zero),
        }
    }

    /// Page faults, and those that read from disk, of its own processes. v2 counts them with those of cgroups below: they
    /// are a container's own when it has none.
    #[must_use]
    pub fn own_faults(&self) -> (Option<u64>, Option<u64>) {
        let facts = &self.facts;
        if facts.own_faults.is_none() && self.target.container().is_some() && !self.target.counts_below() {
            return (facts.faults, facts.major_faults);
        }
        (facts.own_faults, facts.own_major_faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{
        CpuFacts,
        testing::{container, sandbox},
    };
    use crate::sandbox::Container;

    fn cgroup(target: Target<'_>, facts: Facts, extra: Extra) -> CgroupUsage<'_> {
        CgroupUsage { target, usage: Usage::from(&facts), facts, extra }
    }

    #[test]
    fn cpu_time_is_the_finest_there_is() {
        let facts = Facts { cpu: CpuFacts { usage: Some(2_000_001), ..CpuFacts::default() }, ..Facts::default() };
        assert_eq!(cgroup(Target::Node, facts.clone(), Extra::default()).cpu_total(), Some(2.000_001));
        let extra = Extra { cpu_total: Some(2_000_001_234), ..Extra::default() };
        assert_eq!(cgroup(Target::Node, facts, extra).cpu_total(), Some(2.000_001_234));
        assert_eq!(cgroup(Target::Node, Facts::default(), Extra::default()).cpu_total(), None);
    }

    #[test]
    fn quotas_of_both_versions() {
        let bursts = CpuFacts { bursts: Some(3), burst: Some(1500), ..CpuFacts::default() };
        let v2 = Facts { cpu: bursts, cpu_max: Some((Some(50_000), 100_000)), ..Facts::default() };
        let expected = Bandwidth { quota: 50_000, bursts: Some(3), burst_seconds: Some(0.001_5) };
        assert_eq!(cgroup(Target::Node, v2.clone(), Extra::default()).bandwidth(), Some(expected));
        let v1 = Facts { v1_cpu: bursts, v1_quota: Some(50_000), v1_period: Some(100_000), ..Facts::default() };
        assert_eq!(cgroup(Target::Node, v1.clone(), Extra::default()).bandwidth(), Some(expected));
        for none in [Facts { v1_quota: Some(-1), ..v1 }, Facts { cpu_max: Some((None, 100_000)), ..v2 }] {
            let cgroup = cgroup(Target::Node, none, Extra::default());
            assert_eq!((cgroup.bandwidth(), cgroup.usage.cpu_period), (None, Some(100_000)));
        }
    }

    #[test]
    fn limits_and_faults() {
        let leaf = container("a", "/p/a");
        let nesting = Container { nested_cgroup_ids: vec![7], ..leaf.clone() };
        let pod = sandbox("p", vec![]);
        let node = NodeFacts { memory: 4096, ..NodeFacts::default() };
        let limit = Some(Limit::Unlimited);
        let facts = Facts { usage: Some(1), limit, faults: Some(9), major_faults: Some(2), ..Facts::default() };
        assert_eq!(cgroup(Target::Node, facts.clone(), Extra::default()).memory_limit(Some(&node)), Some(4096));
        let of = |target, facts| cgroup(target, facts, Extra::default());
        assert_eq!(of(Target::Ancestor("/x"), facts.clone()).memory_limit(None), Some(0));
        assert_eq!(of(Target::Ancestor("/x"), Facts::default()).memory_limit(None), None);
        let unread = Facts { limit: None, ..facts.clone() };
        assert_eq!(of(Target::Ancestor("/x"), unread).memory_limit(None), None);
        assert_eq!(of(Target::Container(&pod, &leaf), facts.clone()).own_faults(), (Some(9), Some(2)));
        assert_eq!(of(Target::Pod(&pod, "/p"), facts.clone()).own_faults(), (None, None));
        let v1 = Facts { own_faults: Some(1), own_major_faults: Some(0), ..facts.clone() };
        assert_eq!(of(Target::Pod(&pod, "/p"), v1).own_faults(), (Some(1), Some(0)));
        assert_eq!(of(Target::Container(&pod, &nesting), facts).own_faults(), (None, None));
        assert_eq!((Limit::Unlimited.or_zero(), Limit::Finite(0).finite()), (0, Some(0)));
    }
}
