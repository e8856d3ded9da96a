//! CPU, memory and processes of every container.

use std::collections::HashMap;

use super::unix_seconds;
use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, Family, Gauge, LabelText, catalogue as c},
    resources::{BlockNames, ContainerUsage, Endings, Facts, Ledger, SharedReader, Usage},
};

/// A gauge in bytes or in number, and the field it is taken from.
type Field = (&'static Family<Gauge, 3>, fn(&Usage) -> Option<u64>);

/// Gauges that are a field of [`Usage`].
const FIELDS: [Field; 11] = [
    (&c::MEMORY_WORKING_SET, |u| u.working_set),
    (&c::MEMORY_USAGE, |u| u.usage),
    (&c::MEMORY_RSS, |u| u.rss),
    (&c::MEMORY_CACHE, |u| u.cache),
    (&c::MEMORY_SWAP, |u| u.swap),
    (&c::MEMORY_PEAK, |u| u.peak),
    (&c::MEMORY_LIMIT, |u| u.limit),
    (&c::MEMORY_REQUEST, |u| u.requests.memory_bytes),
    (&c::PROCESSES, |u| u.processes),
    (&c::THREADS, |u| u.threads),
    (&c::THREADS_LIMIT, |u| u.threads_limit),
];

/// Reads cgroup files when the scrape comes, and adds what containers used that have ended.
pub struct ResourceCollector {
    reader: SharedReader,
    endings: Option<Endings>,
    ledger: Ledger,
    /// What the scrape before was made of, by cgroup.
    shown: HashMap<u64, Facts>,
}

impl ResourceCollector {
    /// A collector that reads with `reader`; `endings` tells what containers used last.
    #[must_use]
    pub fn new(reader: SharedReader, endings: Option<Endings>, ledger: Ledger) -> Self {
        Self { reader, endings, ledger, shown: HashMap::new() }
    }
}

impl Collect for ResourceCollector {
    fn name(&self) -> &'static str {
        "resources"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let mut reading = self.reader.lock().read(snapshot);
        let last = |cgroup| self.endings.as_ref().and_then(|endings| endings.last(cgroup));
        // One that has ended since the snapshot was made has no files any more.
        for usage in reading.usages.iter_mut().filter(|usage| usage.usage.is_empty()) {
            usage.usage =
                last(usage.cgroup_id).map(|facts| Usage::default().with_ended(&ended(&facts))).unwrap_or_default();
        }
        let kept = self.ledger.settle(snapshot, last, |cgroup| self.shown.get(&cgroup).cloned());
        let before = std::mem::replace(&mut self.shown, std::mem::take(&mut reading.facts));
        for usage in &reading.usages {
            if let Some(facts) = before.get(&usage.cgroup_id) {
                self.shown.entry(usage.cgroup_id).or_insert_with(|| facts.clone());
            }
        }
        out.family(&c::AGENT_ENDINGS_MISSED).sample([], self.ledger.missed());
        write(&self.ledger.complete(reading.usages), out);
        kept.and(reading.trouble.map_or(Ok(()), |error| Err(error.into())))
    }
}

/// The counters alone of a container that has ended.
fn ended(facts: &Facts) -> Facts {
    let mut sums = Facts::default();
    sums.add_ended(facts);
    sums
}

/// A container and its labels, written once for all families.
type Row<'a> = (&'a ContainerUsage<'a>, LabelText<3>);

/// Writes the samples of these usages.
pub(in crate::metrics) fn write(usages: &[ContainerUsage<'_>], out: &mut Exposition) {
    let row = |u| (u, LabelText::of(&c::CONTAINER_START_TIME, 0, names(u)));
    let rows: Vec<Row<'_>> = usages.iter().map(row).collect();
    for (family, field) in FIELDS {
        let mut family = out.family(family);
        rows.iter().for_each(|(u, own)| family.sample_own_if(own, [], field(&u.usage)));
    }
    let mut family = out.family(&c::CONTAINER_START_TIME);
    rows.iter().for_each(|(u, own)| family.sample_own_if(own, [], u.started.and_then(unix_seconds)));

    let mut family = out.family(&c::CPU_REQUEST);
    rows.iter().for_each(|(u, own)| family.sample_own_if(own, [], u.usage.requests.cores()));

    let mut family = out.family(&c::CPU_USAGE);
    for (u, own) in &rows {
        family.sample_own_if(own, ["user"], u.usage.cpu_user);
        family.sample_own_if(own, ["system"], u.usage.cpu_system);
    }
    let mut family = out.family(&c::MEMORY_PAGE_FAULTS);
    for (u, own) in &rows {
        family.sample_own_if(own, ["minor"], u.usage.minor_faults);
        family.sample_own_if(own, ["major"], u.usage.major_faults);
    }
    waits(&rows, out);
    devices(&rows, out);
    quotas(&rows, out);
}

/// Limits that were met, and time that was waited.
fn waits(rows: &[Row<'_>], out: &mut Exposition) {
    let mut family = out.family(&c::MEMORY_EVENTS);
    for (u, own) in rows {
        let events = &u.usage.events;
        for (event, count) in
            [("high", events.high), ("max", events.max), ("oom", events.oom), ("oom_kill", events.oom_kill)]
        {
            family.sample_own_if(own, [event], count);
        }
    }
    let mut family = out.family(&c::PRESSURE);
    for (u, own) in rows {
        let pressure = &u.usage.pressure;
        for (resource, waited) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)] {
            family.sample_own_if(own, [resource, "some"], waited.some);
            family.sample_own_if(own, [resource, "full"], waited.full);
        }
    }
}

fn devices(rows: &[Row<'_>], out: &mut Exposition) {
    let mut names_of_devices = BlockNames::default();
    for (u, own) in rows {
        for io in &u.usage.io {
            let device = names_of_devices.get(io.device);
            for (operation, bytes, operations) in
                [("read", io.read_bytes, io.reads), ("write", io.write_bytes, io.writes)]
            {
                out.family(&c::IO_BYTES).sample_own_if(own, [device, operation], bytes);
                out.family(&c::IO_OPERATIONS).sample_own_if(own, [device, operation], operations);
            }
        }
    }
}

fn quotas(rows: &[Row<'_>], out: &mut Exposition) {
    for (u, own) in rows {
        let Some(quota) = u.usage.quota else { continue };
        out.family(&c::CPU_LIMIT).sample_own_if(own, [], quota.cores);
        out.family(&c::CPU_PERIODS).sample_own_if(own, [], quota.periods);
        out.family(&c::CPU_THROTTLED_PERIODS).sample_own_if(own, [], quota.throttled_periods);
        out.family(&c::CPU_THROTTLED_SECONDS).sample_own_if(own, [], quota.throttled);
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
        let usages = [ContainerUsage { namespace: "n", pod: "p", container: "c", started: None, cgroup_id: 1, usage }];
        let mut out = Exposition::default();
        write(&usages, &mut out);
        let text = String::from_utf8(out.take().concat()).unwrap();
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
            Usage { quota: Some(Quota { cores: Some(0.5), periods: Some(3), ..Quota::default() }), ..Usage::default() };
        let usages = [ContainerUsage { namespace: "n", pod: "p", container: "c", started: None, cgroup_id: 1, usage }];
        let mut out = Exposition::default();
        write(&usages, &mut out);
        let text = String::from_utf8(out.take().concat()).unwrap();
        assert!(text.contains("observer_cpu_limit_cores{namespace=\"n\",pod=\"p\",container=\"c\"} 0.5\n"));
        assert!(text.contains("observer_cpu_periods_total{") && !text.contains("throttled"));
    }
}
