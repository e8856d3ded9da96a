//! CPU, memory and processes of every container.

use super::unix_seconds;
use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, Family, Gauge, catalogue as c},
    resources::{ContainerUsage, Reader, Usage},
};

/// A gauge in bytes or in number, and the field it is taken from.
type Field = (&'static Family<Gauge, 3>, fn(&Usage) -> Option<u64>);

/// Gauges that are a field of [`Usage`].
const FIELDS: [Field; 9] = [
    (&c::MEMORY_WORKING_SET, |u| u.working_set),
    (&c::MEMORY_USAGE, |u| u.usage),
    (&c::MEMORY_RSS, |u| u.rss),
    (&c::MEMORY_CACHE, |u| u.cache),
    (&c::MEMORY_SWAP, |u| u.swap),
    (&c::MEMORY_PEAK, |u| u.peak),
    (&c::MEMORY_LIMIT, |u| u.limit),
    (&c::PROCESSES, |u| u.processes),
    (&c::THREADS, |u| u.threads),
];

/// Reads cgroup files when the scrape comes.
#[derive(Debug)]
pub struct ResourceCollector {
    reader: Reader,
}

impl ResourceCollector {
    /// A collector that reads with `reader`.
    #[must_use]
    pub const fn new(reader: Reader) -> Self {
        Self { reader }
    }
}

impl Collect for ResourceCollector {
    fn name(&self) -> &'static str {
        "resources"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let reading = self.reader.read(snapshot);
        write(&reading.usages, out);
        reading.trouble.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// Writes the samples of these usages.
pub(in crate::metrics) fn write(usages: &[ContainerUsage<'_>], out: &mut Exposition) {
    for (family, field) in FIELDS {
        let mut family = out.family(family);
        usages.iter().for_each(|u| family.sample_if(names(u), field(&u.usage)));
    }
    let mut family = out.family(&c::CONTAINER_START_TIME);
    usages.iter().for_each(|u| family.sample_if(names(u), u.started.and_then(unix_seconds)));

    let mut family = out.family(&c::CPU_USAGE);
    for u in usages {
        let [namespace, pod, container] = names(u);
        family.sample_if([namespace, pod, container, "user"], u.usage.cpu_user);
        family.sample_if([namespace, pod, container, "system"], u.usage.cpu_system);
    }
    let mut family = out.family(&c::MEMORY_PAGE_FAULTS);
    for u in usages {
        let [namespace, pod, container] = names(u);
        family.sample_if([namespace, pod, container, "minor"], u.usage.minor_faults);
        family.sample_if([namespace, pod, container, "major"], u.usage.major_faults);
    }
    for u in usages {
        let Some(quota) = u.usage.quota else { continue };
        out.family(&c::CPU_LIMIT).sample(names(u), quota.cores);
        out.family(&c::CPU_PERIODS).sample_if(names(u), quota.periods);
        out.family(&c::CPU_THROTTLED_PERIODS).sample_if(names(u), quota.throttled_periods);
        out.family(&c::CPU_THROTTLED_SECONDS).sample_if(names(u), quota.throttled);
    }
}

const fn names<'a>(u: &ContainerUsage<'a>) -> [&'a str; 3] {
    [u.namespace, u.pod, u.container]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Quota;

    #[test]
    fn what_is_not_known_is_absent() {
        let usage = Usage { cpu_user: Some(0.5), usage: Some(0), ..Usage::default() };
        let usages = [ContainerUsage { namespace: "n", pod: "p", container: "c", started: None, usage }];
        let mut out = Exposition::default();
        write(&usages, &mut out);
        let text = String::from_utf8(out.to_text()).unwrap();
        let samples: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "observer_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\",container=\"c\",mode=\"user\"} 0.5",
                "observer_memory_usage_bytes{namespace=\"n\",pod=\"p\",container=\"c\"} 0",
            ]
        );
    }

    #[test]
    fn a_quota_shows_its_limit() {
        let usage =
            Usage { quota: Some(Quota { cores: 0.5, periods: Some(3), ..Quota::default() }), ..Usage::default() };
        let usages = [ContainerUsage { namespace: "n", pod: "p", container: "c", started: None, usage }];
        let mut out = Exposition::default();
        write(&usages, &mut out);
        let text = String::from_utf8(out.to_text()).unwrap();
        assert!(text.contains("observer_cpu_limit_cores{namespace=\"n\",pod=\"p\",container=\"c\"} 0.5\n"));
        assert!(text.contains("observer_cpu_periods_total{") && !text.contains("throttled"));
    }
}
