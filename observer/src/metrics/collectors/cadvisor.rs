//! `/metrics/cadvisor`: the cgroup tree under cAdvisor's names.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::unix_seconds;
use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, Family, Scalar, Value, compat::cadvisor as c},
    resources::{
        BlockNames, CgroupUsage, Extent, Facts, FileSystem, FileSystems, Interfaces, Limit, Machine, Mounted,
        NodeFacts, SharedReader, Space, Target, TreeReading, Usage, file_systems, interfaces, online, space,
    },
    sandbox::{ContainerKind, Sandbox, process::INIT},
};

/// Reads the cgroup tree, interfaces and the machine when the scrape comes.
#[derive(Debug)]
pub struct CadvisorCollector {
    reader: SharedReader,
    procfs: PathBuf,
    sysfs: PathBuf,
    /// With the processors that were on line when it was read.
    machine: Option<(String, Machine)>,
    /// How a file system is asked.
    space: fn(&Path, &Mounted) -> io::Result<Option<Space>>,
}

impl CadvisorCollector {
    /// A collector that reads with `reader`, and the host's procfs.
    #[must_use]
    pub fn new(reader: SharedReader, procfs: &Path) -> Self {
        Self { reader, procfs: procfs.to_owned(), sysfs: "/sys".into(), machine: None, space }
    }

    fn machine(&mut self) -> &Machine {
        let online = online(&self.sysfs);
        let known = self.machine.take().filter(|(then, _)| *then == online);
        let read = || (online, Machine::read(&self.procfs, &self.sysfs));
        &self.machine.insert(known.unwrap_or_else(read)).1
    }
}

impl Collect for CadvisorCollector {
    fn name(&self) -> &'static str {
        "cadvisor"
    }

    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        self.collect_at(SystemTime::now(), snapshot, out)
    }
}

impl CadvisorCollector {
    fn collect_at(&mut self, now: SystemTime, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let mut errors = Vec::new();
        let node = NodeFacts::read(&self.procfs);
        out.family(&c::MACHINE_SCRAPE_ERROR).sample([], u64::from(node.is_err()));
        let node = node.map_err(|error| errors.push(error)).ok();
        let mut reading = self.reader.lock().read_tree(snapshot, Extent::Everything, |_| true);
        errors.extend(reading.trouble.take().map(Into::into));
        complete(&mut reading, node.as_ref());
        write(&reading.cgroups, node.as_ref(), now, out);
        machine(self.machine(), node.as_ref(), out);
        match file_systems(&self.procfs, self.space) {
            Ok(found) => {
                of_node(&found, out);
                errors.extend(found.complete().err());
            }
            Err(error) => errors.push(error),
        }
        let mut networks = Networks { procfs: &self.procfs, read: HashMap::new() };
        for cgroup in &reading.cgroups {
            match networks.of(&cgroup.target) {
                Ok(Some(found)) => {
                    network(&cgroup.target, &found, out);
                    errors.extend(found.complete(cgroup.target.cgroup()).err());
                }
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        out.family(&c::SCRAPE_ERROR).sample([], u64::from(!errors.is_empty()));
        errors.into_iter().next().map_or(Ok(()), Err)
    }
}

/// Gives the root what procfs tells of the node.
pub(super) fn complete(reading: &mut TreeReading<'_>, node: Option<&NodeFacts>) {
    let Some(node) = node else { return };
    for cgroup in reading.cgroups.iter_mut().filter(|cgroup| matches!(cgroup.target, Target::Node)) {
        node.complete(&mut cgroup.facts, &mut cgroup.extra);
        cgroup.usage = Usage::from(&cgroup.facts);
    }
}

/// When it began; of a pod when its first container did. Nobody tells of the cgroups between.
pub(super) fn started(target: &Target<'_>, node: Option<&NodeFacts>) -> Option<f64> {
    match *target {
        // Far below 2^53.
        Target::Node => node.map(|node| node.booted as f64),
        Target::Ancestor(_) => None,
        Target::Pod(sandbox, _) => {
            let living = sandbox.containers.iter().filter(|container| container.alive);
            living.filter_map(|container| container.started).min().and_then(unix_seconds)
        }
        Target::Pause(_, container) | Target::Container(_, container) => container.started.and_then(unix_seconds),
    }
}

fn labels<'a>(target: &Target<'a>) -> [&'a str; 6] {
    let (namespace, pod) = target.sandbox().map_or(("", ""), |sandbox| (&sandbox.namespace, &sandbox.name));
    let (image, id) = target.container().map_or(("", ""), |container| (&container.image, &container.id));
    let container = match target {
        Target::Container(_, container) => &container.name,
        // The kubelet leaves it empty for the pause container too.
        _ => "",
    };
    [container, target.cgroup(), image, id, namespace, pod]
}

/// A sample of each cgroup that has a value.
fn each<'a, K: Scalar + 'static, V: Into<Value>>(
    out: &mut Exposition,
    family: &'static Family<K, 6>,
    cgroups: &[CgroupUsage<'a>],
    value: impl Fn(&CgroupUsage<'a>) -> Option<V>,
) {
    let mut samples = out.family(family);
    cgroups.iter().for_each(|cgroup| samples.sample_if(labels(&cgroup.target), value(cgroup)));
}

fn write(cgroups: &[CgroupUsage<'_>], node: Option<&NodeFacts>, now: SystemTime, out: &mut Exposition) {
    cpu(cgroups, out);
    memory(cgroups, node, out);
    pressure(cgroups, out);
    devices(cgroups, out);
    each(out, &c::PROCESSES, cgroups, |u| u.usage.processes);
    each(out, &c::THREADS, cgroups, |u| u.usage.threads);
    each(out, &c::THREADS_MAX, cgroups, |u| u.facts.tasks_limit.map(Limit::or_zero));
    each(out, &c::OOM_EVENTS, cgroups, |u| u.usage.events.oom_kill);
    each(out, &c::START_TIME, cgroups, |u| started(&u.target, node));
    each(out, &c::LAST_SEEN, cgroups, |u| unix_seconds(now).map(f64::trunc).filter(|_| u.facts != Facts::default()));
}

fn cpu(cgroups: &[CgroupUsage<'_>], out: &mut Exposition) {
    let mut samples = out.family(&c::CPU_USAGE);
    for cgroup in cgroups {
        let [container, id, image, name, namespace, pod] = labels(&cgroup.target);
        samples.sample_if([container, "total", id, image, name, namespace, pod], cgroup.cpu_total());
    }
    each(out, &c::CPU_USER, cgroups, |u| u.usage.cpu_user);
    each(out, &c::CPU_SYSTEM, cgroups, |u| u.usage.cpu_system);
    each(out, &c::CFS_PERIODS, cgroups, |u| u.usage.quota?.periods);
    each(out, &c::CFS_THROTTLED_PERIODS, cgroups, |u| u.usage.quota?.throttled_periods);
    each(out, &c::CFS_THROTTLED_SECONDS, cgroups, |u| u.usage.quota?.throttled);
    each(out, &c::CFS_BURST_PERIODS, cgroups, |u| u.bandwidth()?.bursts);
    each(out, &c::CFS_BURST_SECONDS, cgroups, |u| u.bandwidth()?.burst_seconds);
    each(out, &c::SPEC_CPU_PERIOD, cgroups, |u| u.usage.cpu_period);
    each(out, &c::SPEC_CPU_SHARES, cgroups, |u| u.usage.cpu_shares);
    each(out, &c::SPEC_CPU_QUOTA, cgroups, |u| Some(u.bandwidth()?.quota));
}

fn memory(cgroups: &[CgroupUsage<'_>], node: Option<&NodeFacts>, out: &mut Exposition) {
    each(out, &c::MEMORY_USAGE, cgroups, |u| u.usage.usage);
    each(out, &c::MEMORY_WORKING_SET, cgroups, |u| u.usage.working_set);
    each(out, &c::MEMORY_RSS, cgroups, |u| u.usage.rss);
    each(out, &c::MEMORY_CACHE, cgroups, |u| u.usage.cache);
    each(out, &c::MEMORY_MAPPED_FILE, cgroups, |u| u.usage.mapped_file);
    each(out, &c::MEMORY_ACTIVE_FILE, cgroups, |u| u.facts.active_file);
    each(out, &c::MEMORY_INACTIVE_FILE, cgroups, |u| u.facts.inactive_file);
    each(out, &c::MEMORY_KERNEL, cgroups, |u| u.extra.kernel_memory.or(u.facts.kernel_memory));
    each(out, &c::MEMORY_SWAP, cgroups, |u| u.usage.swap);
    each(out, &c::MEMORY_MAX_USAGE, cgroups, |u| u.usage.peak);
    each(out, &c::MEMORY_FAILCNT, cgroups, |u| u.usage.events.max);
    each(out, &c::SPEC_MEMORY_LIMIT, cgroups, |u| u.memory_limit(node));
    each(out, &c::SPEC_MEMORY_RESERVATION, cgroups, |u| u.extra.reservation.map(Limit::or_zero));
    each(out, &c::SPEC_MEMORY_SWAP_LIMIT, cgroups, |u| u.extra.swap_limit.map(Limit::or_zero));
    let mut samples = out.family(&c::MEMORY_FAILURES);
    for cgroup in cgroups {
        let [container, id, image, name, namespace, pod] = labels(&cgroup.target);
        let (own, own_major) = cgroup.own_faults();
        for (failure, scope, value) in [
            ("pgfault", "container", own),
            ("pgfault", "hierarchy", cgroup.facts.faults),
            ("pgmajfault", "container", own_major),
            ("pgmajfault", "hierarchy", cgroup.facts.major_faults),
        ] {
            samples.sample_if([container, failure, id, image, name, namespace, pod, scope], value);
        }
    }
}

fn pressure(cgroups: &[CgroupUsage<'_>], out: &mut Exposition) {
    each(out, &c::PRESSURE_CPU_WAITING, cgroups, |u| u.usage.pressure.cpu.some);
    each(out, &c::PRESSURE_CPU_STALLED, cgroups, |u| u.usage.pressure.cpu.full);
    each(out, &c::PRESSURE_MEMORY_WAITING, cgroups, |u| u.usage.pressure.memory.some);
    each(out, &c::PRESSURE_MEMORY_STALLED, cgroups, |u| u.usage.pressure.memory.full);
    each(out, &c::PRESSURE_IO_WAITING, cgroups, |u| u.usage.pressure.io.some);
    each(out, &c::PRESSURE_IO_STALLED, cgroups, |u| u.usage.pressure.io.full);
}

fn devices(cgroups: &[CgroupUsage<'_>], out: &mut Exposition) {
    let mut names = BlockNames::default();
    for cgroup in cgroups {
        let [container, id, image, name, namespace, pod] = labels(&cgroup.target);
        for io in &cgroup.usage.io {
            let device = device_path(names.get(io.device));
            let labels = [container, &device, id, image, name, namespace, pod];
            out.family(&c::FS_READS).sample_if(labels, io.reads);
            out.family(&c::FS_WRITES).sample_if(labels, io.writes);
            out.family(&c::FS_READ_BYTES).sample_if(labels, io.read_bytes);
            out.family(&c::FS_WRITE_BYTES).sample_if(labels, io.write_bytes);
            let (major, minor) = (io.device.0.to_string(), io.device.1.to_string());
            let mut samples = out.family(&c::BLKIO_USAGE);
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.write_bytes)] {
                let labels = [container, &device, id, image, &major, &minor, name, namespace, operation, pod];
                samples.sample_if(labels, bytes);
            }
        }
    }
}

/// As it stands in `/dev`; a device that has gone has only its number.
fn device_path(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { format!("/dev/{name}") }
}

fn machine(machine: &Machine, node: Option<&NodeFacts>, out: &mut Exposition) {
    out.family(&c::VERSION_INFO).sample(["", "", "", &machine.kernel, &machine.system], 1u64);
    let labels = [machine.boot_id.as_str(), &machine.machine_id, &machine.system_uuid];
    let processors = machine.processors;
    out.family(&c::MACHINE_CORES).sample_if(labels, Some(processors.threads).filter(|threads| *threads > 0));
    out.family(&c::MACHINE_PHYSICAL_CORES).sample_if(labels, processors.cores);
    out.family(&c::MACHINE_SOCKETS).sample_if(labels, processors.sockets);
    out.family(&c::MACHINE_MEMORY).sample_if(labels, node.map(|node| node.memory));
    out.family(&c::MACHINE_SWAP).sample_if(labels, node.map(|node| node.swap));
}

/// File systems are the node's, whoever mounts them.
fn of_node(file_systems: &FileSystems, out: &mut Exposition) {
    for FileSystem { device, space } in &file_systems.shown {
        let labels = ["", device, Target::Node.cgroup(), "", "", "", ""];
        out.family(&c::FS_LIMIT).sample(labels, space.bytes);
        out.family(&c::FS_USAGE).sample(labels, space.bytes.saturating_sub(space.free));
        let fixed = |inodes| Some(inodes).filter(|_| space.inodes > 0);
        out.family(&c::FS_INODES).sample_if(labels, fixed(space.inodes));
        out.family(&c::FS_INODES_FREE).sample_if(labels, fixed(space.inodes_free));
    }
}

/// Namespaces of this scrape, each read once.
struct Networks<'a> {
    procfs: &'a Path,
    read: HashMap<u64, Interfaces>,
}

impl Networks<'_> {
    /// The interfaces that are shown on this cgroup's series: the node's on the root, a pod's on its pause container. A
    /// pod without one has them on its own cgroup, and without that on its first container.
    fn of(&mut self, target: &Target<'_>) -> anyhow::Result<Option<Interfaces>> {
        if let Target::Node = target {
            return interfaces(self.procfs, INIT, None);
        }
        let Some(sandbox) = target.sandbox().filter(|sandbox| shows_network(sandbox, target)) else { return Ok(None) };
        // Without the inode nobody knows whether a process is still in the pod's namespace.
        let Some(netns) = sandbox.netns else { return Ok(None) };
        if let Some(known) = self.read.get(&netns) {
            return Ok(Some(known.clone()));
        }
        let pids = sandbox.containers.iter().filter(|container| container.alive).filter_map(|container| container.pid);
        for pid in pids {
            if let Some(found) = interfaces(self.procfs, pid, Some(netns))? {
                self.read.insert(netns, found.clone());
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Exactly one cgroup of each pod.
fn shows_network(sandbox: &Sandbox, target: &Target<'_>) -> bool {
    let living = || sandbox.containers.iter().filter(|container| container.alive);
    let has_pause = living().any(|container| container.kind == ContainerKind::Pause);
    match target {
        Target::Pause(_, container) => {
            living().find(|c| c.kind == ContainerKind::Pause).is_some_and(|first| first.cgroup == container.cgroup)
        }
        Target::Pod(..) => !has_pause,
        Target::Container(_, container) => {
            let first = living().next().is_some_and(|first| first.cgroup == container.cgroup);
            !has_pause && sandbox.cgroup.is_none() && first
        }
        Target::Node | Target::Ancestor(_) => false,
    }
}

fn network(target: &Target<'_>, interfaces: &Interfaces, out: &mut Exposition) {
    let [container, id, image, name, namespace, pod] = labels(target);
    for interface in &interfaces.shown {
        let labels = [container, id, image, &interface.name, name, namespace, pod];
        let (received, transmitted) = (interface.received, interface.transmitted);
        for (family, value) in [
            (&c::RECEIVE_BYTES, received.bytes),
            (&c::RECEIVE_PACKETS, received.packets),
            (&c::RECEIVE_DROPPED, received.dropped),
            (&c::RECEIVE_ERRORS, received.errors),
            (&c::TRANSMIT_BYTES, transmitted.bytes),
            (&c::TRANSMIT_PACKETS, transmitted.packets),
            (&c::TRANSMIT_DROPPED, transmitted.dropped),
            (&c::TRANSMIT_ERRORS, transmitted.errors),
        ] {
            out.family(family).sample(labels, value);
        }
    }
}

#[cfg(test)]
#[path = "cadvisor_tests.rs"]
mod tests;
