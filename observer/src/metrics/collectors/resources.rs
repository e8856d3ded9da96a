//! CPU, memory and processes of every container.

use std::collections::HashMap;

use super::unix_seconds;
use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, Family, Gauge, LabelText, catalogue as c},
    resources::{BlockNames, ContainerUsage, Endings, Facts, Ledger, SharedReader, Usage},
    sandbox::Container,
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
        let before = |cgroup| self.shown.get(&cgroup).cloned();
        // One that has ended since the snapshot was made has no files any more. Its counters must not fall: what they fall
        // to would be taken for new when they rise again.
        for usage in reading.usages.iter_mut().filter(|usage| usage.usage.is_empty()) {
            if let Some(facts) = last(usage.cgroup_id).or_else(|| before(usage.cgroup_id)) {
                usage.usage = Usage::default().with_ended(&ended(&facts));
                reading.facts.insert(usage.cgroup_id, facts);
            }
        }
        // Of one whose ending nobody has told, or not yet, the directory may stand still.
        let at_the_end = |container: &Container| {
            let still = || self.reader.lock().read_ended(container.cgroup_id, &container.cgroup);
            last(container.cgroup_id).or_else(still)
        };
        let said = |cgroup| reading.facts.get(&cgroup).cloned().or_else(|| before(cgroup));
        let kept = self.ledger.settle(snapshot, at_the_end, said);
        self.shown = std::mem::take(&mut reading.facts);
        merge(&mut reading.usages, &self.shown);
        out.family(&c::AGENT_ENDINGS_MISSED).sample([], self.ledger.missed());
        write(&self.ledger.complete(reading.usages), out);
        kept.and(reading.trouble.map_or(Ok(()), |error| Err(error.into())))
    }
}

/// Leaves one of those with the same names: the one that started last, with the counters of the others. When they have
/// ended, the ledger has these, so that the sum goes on.
fn merge(usages: &mut Vec<ContainerUsage<'_>>, facts: &HashMap<u64, Facts>) {
    usages.dedup_by(|other, kept| {
        let same = names(other) == names(kept);
        if same && let Some(facts) = facts.get(&other.cgroup_id) {
            kept.usage = std::mem::take(&mut kept.usage).with_ended(&ended(facts));
        }
        same
    });
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
    use std::{
        fs,
        os::unix::fs::MetadataExt,
        path::Path,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::resources::{
        CgroupRoots, Quota, Reader,
        testing::{container, snapshot},
    };

    fn reader(root: &Path) -> SharedReader {
        let roots = CgroupRoots { v2: Some(root.into()), ..CgroupRoots::default() };
        SharedReader::new(Reader::new(roots, Path::new("/proc")))
    }

    /// A collector without anybody who tells of endings.
    fn collector(root: &Path) -> ResourceCollector {
        ResourceCollector::new(reader(root), None, Ledger::new(None))
    }

    /// Container `c` in a cgroup of its own, which used so many seconds of user time and bytes of memory.
    fn used(root: &Path, cgroup: &str, (seconds, bytes): (u64, u64)) -> Container {
        let directory = root.join(cgroup);
        fs::create_dir_all(&directory).unwrap();
        let micros = seconds * 1_000_000;
        fs::write(directory.join("cpu.stat"), format!("usage_usec {micros}\nuser_usec {micros}\n")).unwrap();
        fs::write(directory.join("memory.current"), format!("{bytes}\n")).unwrap();
        Container {
            cgroup_id: fs::metadata(&directory).unwrap().ino(),
            started: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(bytes)),
            ..container("c", &format!("/{cgroup}"))
        }
    }

    fn ended(container: &Container) -> Container {
        Container { alive: false, ..container.clone() }
    }

    /// User time and memory of container `c` of pod `p`.
    fn shown(collector: &mut ResourceCollector, snapshot: &Snapshot) -> [Option<u64>; 2] {
        let mut out = Exposition::default();
        collector.collect(snapshot, &mut out).unwrap();
        let text = String::from_utf8(out.take().concat()).unwrap();
        ["observer_cpu_usage_seconds_total{", "observer_memory_usage_bytes{"].map(|family| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(family));
            let line = lines.next()?;
            assert_eq!(lines.next(), None, "one series: {text}");
            assert!(line.starts_with("namespace=\"n\",pod=\"p\",container=\"c\""), "{line}");
            Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
        })
    }

    #[test]
    fn two_pods_of_one_name_are_one_series_that_goes_on_when_one_ends() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (old, new) = (used(root, "old", (10, 4096)), used(root, "new", (1, 8192)));
        let mut collector = collector(root);
        let pods =
            |old: &Container, new: &Container| snapshot(vec![("p", vec![old.clone()]), ("p", vec![new.clone()])]);
        assert_eq!(shown(&mut collector, &snapshot(vec![("p", vec![old.clone()])])), [Some(10), Some(4096)]);
        assert_eq!(shown(&mut collector, &pods(&old, &new)), [Some(11), Some(8192)]);
        assert_eq!(shown(&mut collector, &pods(&new, &old)), [Some(11), Some(8192)], "in whichever order");

        // The files of the old one go before a snapshot says so.
        fs::remove_dir_all(root.join("old")).unwrap();
        collector.reader = reader(root);
        assert_eq!(shown(&mut collector, &pods(&old, &new)), [Some(11), Some(8192)]);
        assert_eq!(shown(&mut collector, &pods(&ended(&old), &new)), [Some(11), Some(8192)]);
        assert_eq!(shown(&mut collector, &snapshot(vec![("p", vec![new])])), [Some(11), Some(8192)]);
    }

    #[test]
    fn a_container_that_gets_a_process_again_is_not_counted_twice() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let one = used(root, "one", (5, 4096));
        let mut collector = collector(root);
        let alone = |container: Container| snapshot(vec![("p", vec![container])]);
        assert_eq!(shown(&mut collector, &alone(one.clone())), [Some(5), Some(4096)]);
        assert_eq!(shown(&mut collector, &alone(ended(&one))), [Some(5), None]);
        used(root, "one", (6, 4096));
        assert_eq!(shown(&mut collector, &alone(one.clone())), [Some(6), Some(4096)]);
        assert_eq!(shown(&mut collector, &alone(ended(&one))), [Some(6), None]);
    }

    #[test]
    fn nothing_is_taken_back_while_an_ending_is_not_told_yet() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (first, second) = (used(root, "first", (5, 4096)), used(root, "second", (2, 8192)));
        let mut collector = collector(root);
        assert_eq!(shown(&mut collector, &snapshot(vec![("p", vec![first.clone()])])), [Some(5), Some(4096)]);
        let both = |second: &Container| snapshot(vec![("p", vec![ended(&first), second.clone()])]);
        assert_eq!(shown(&mut collector, &both(&second)), [Some(7), Some(8192)]);
        fs::remove_dir_all(root.join("second")).unwrap();
        collector.reader = reader(root);
        for _ in 0..2 {
            assert_eq!(shown(&mut collector, &both(&second)), [Some(7), None], "its files are gone");
        }
        assert_eq!(shown(&mut collector, &both(&ended(&second))), [Some(7), None]);
    }

    #[test]
    fn one_whose_directory_still_stands_is_read_when_nobody_told_of_its_ending() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let first = used(root, "first", (5, 4096));
        let mut collector = collector(root);
        assert_eq!(shown(&mut collector, &snapshot(vec![("p", vec![first.clone()])])), [Some(5), Some(4096)]);
        used(root, "first", (8, 0));
        let over = snapshot(vec![("p", vec![ended(&first)])]);
        assert_eq!(shown(&mut collector, &over), [Some(8), None]);
        assert_eq!(collector.ledger.missed(), 0);
        // It counts once, whatever is there now.
        used(root, "first", (100, 0));
        assert_eq!(shown(&mut collector, &over), [Some(8), None]);

        // Another one at the same path is another one; and one that is known by its id alone has no path.
        let id = |cgroup_id, cgroup: &str| Container { cgroup_id, cgroup: cgroup.into(), ..ended(&first) };
        let others = snapshot(vec![("p", vec![ended(&first), id(first.cgroup_id + 1_000_000, "/first"), id(77, "")])]);
        assert_eq!(shown(&mut collector, &others), [Some(8), None]);
        assert_eq!(collector.ledger.missed(), 2);
    }

    #[test]
    fn without_cgroup_ids_nothing_is_taken_for_another_s() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let without_id = |container: Container| Container { cgroup_id: 0, ..container };
        let (old, new) = (without_id(used(root, "old", (10, 4096))), without_id(used(root, "new", (1, 8192))));
        let mut collector = collector(root);
        let both = snapshot(vec![("p", vec![old]), ("p", vec![new.clone()])]);
        // No ledger will have what the old one used.
        assert_eq!(shown(&mut collector, &both), [Some(1), Some(8192)]);
        fs::remove_dir_all(root.join("new")).unwrap();
        collector.reader = reader(root);
        assert_eq!(shown(&mut collector, &snapshot(vec![("p", vec![new])])), [None, None]);
    }

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
