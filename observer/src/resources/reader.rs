//! Reads the cgroup files of every container of a snapshot.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    CgroupRoots, Facts, Usage,
    facts::{FILES, Hierarchy},
    files::{Allowance, Buffer, Slot, read_once},
    parse,
};
use crate::{
    identity::Snapshot,
    sandbox::{Container, ContainerKind},
};

/// How deep cgroups below a container are followed to count its processes.
const MAX_DEPTH: usize = 8;

/// Reads usages; keeps files open between readings, at most half of what this process may have open. The kernel
/// keeps a page for each open cgroup file.
#[derive(Debug)]
pub struct Reader {
    roots: CgroupRoots,
    ticks_per_second: u64,
    allowance: Allowance,
    containers: HashMap<String, Held>,
    round: u64,
    buffer: Buffer,
}

#[derive(Debug, Default)]
struct Held {
    slots: [Slot; FILES.len()],
    processes: Slot,
    round: u64,
}

/// A container and what it uses.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerUsage<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// The container's name.
    pub container: &'a str,
    /// When its first process started.
    pub started: Option<SystemTime>,
    /// What it uses.
    pub usage: Usage,
}

/// One reading of all containers.
#[derive(Debug, Default)]
pub struct Reading<'a> {
    /// The usages, sorted by namespace, pod, container; each of these names once.
    pub usages: Vec<ContainerUsage<'a>>,
    /// The first file that exists but could not be read. Its container only lacks what this file tells.
    pub trouble: Option<io::Error>,
}

impl Reader {
    /// A reader for these hierarchies. Nothing is opened yet.
    #[must_use]
    pub fn new(roots: CgroupRoots) -> Self {
        let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        Self {
            roots,
            ticks_per_second: rustix::param::clock_ticks_per_second(),
            allowance: Allowance(usize::try_from(open / 2).unwrap_or(0)),
            containers: HashMap::new(),
            round: 0,
            buffer: Buffer::default(),
        }
    }

    /// Reads every living container now, pause containers left out. Of two containers with the same names (one of
    /// a pod that goes, one of the pod that replaces it) the one that started last is kept.
    pub fn read<'a>(&mut self, snapshot: &'a Snapshot) -> Reading<'a> {
        self.round += 1;
        let mut reading = Reading::default();
        for sandbox in snapshot.sandboxes() {
            for container in &sandbox.containers {
                if !container.alive || container.kind == ContainerKind::Pause {
                    continue;
                }
                let facts = self.container(container, &mut reading.trouble);
                reading.usages.push(ContainerUsage {
                    namespace: &sandbox.namespace,
                    pod: &sandbox.name,
                    container: &container.name,
                    started: container.started,
                    usage: Usage::from(&facts),
                });
            }
        }
        self.forget_others();
        let names = |u: &ContainerUsage<'a>| (u.namespace, u.pod, u.container);
        reading.usages.sort_by(|a, b| names(a).cmp(&names(b)).then(b.started.cmp(&a.started)));
        reading.usages.dedup_by(|later, kept| names(later) == names(kept));
        reading
    }

    fn container(&mut self, container: &Container, trouble: &mut Option<io::Error>) -> Facts {
        let Self { roots, allowance, buffer, .. } = self;
        if !self.containers.contains_key(&container.cgroup) {
            self.containers.insert(container.cgroup.clone(), Held::default());
        }
        let mut facts = Facts::default();
        let Some(held) = self.containers.get_mut(&container.cgroup) else { return facts };
        held.round = self.round;
        for (slot, (source, hierarchy, name)) in held.slots.iter_mut().zip(FILES) {
            if !facts.needs(source) {
                continue;
            }
            let root = match hierarchy {
                Hierarchy::V2 => roots.v2.as_ref(),
                Hierarchy::V1(controller) => roots.v1.get(controller),
            };
            let Some(root) = root else { continue };
            let path = || below(root, &container.cgroup).join(name);
            match slot.read(path, allowance, buffer) {
                Ok(true) => facts.add(source, &buffer.text(), self.ticks_per_second),
                Ok(false) => {}
                Err(error) => note(trouble, &path(), &error),
            }
        }
        if let Some(root) = roots.any() {
            let directory = below(root, &container.cgroup);
            let path = || directory.join("cgroup.procs");
            match held.processes.read(path, allowance, buffer) {
                Ok(true) => facts.processes = Some(parse::lines(buffer.bytes())),
                Ok(false) => {}
                Err(error) => note(trouble, &path(), &error),
            }
            if !container.nested_cgroup_ids.is_empty() {
                let nested = processes_below(&directory, MAX_DEPTH, buffer);
                facts.processes = facts.processes.map(|direct| direct + nested);
            }
        }
        facts
    }

    /// Closes the files of containers that were not in this reading.
    fn forget_others(&mut self) {
        let Self { containers, allowance, round, .. } = self;
        containers.retain(|_, held| {
            let stays = held.round == *round;
            if !stays {
                held.slots.iter_mut().for_each(|slot| slot.close(allowance));
                held.processes.close(allowance);
            }
            stays
        });
    }
}

/// The directory of a cgroup path, which begins with `/`, below a mount point.
fn below(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
}

/// Processes in the cgroups below `directory`: `cgroup.procs` lists only the cgroup's own.
fn processes_below(directory: &Path, depth: usize, buffer: &mut Buffer) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    if depth == 0 {
        return 0;
    }
    let mut count = 0;
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        if let Ok(true) = read_once(&entry.path().join("cgroup.procs"), buffer) {
            count += parse::lines(buffer.bytes());
        }
        count += processes_below(&entry.path(), depth - 1, buffer);
    }
    count
}

fn note(trouble: &mut Option<io::Error>, path: &Path, error: &io::Error) {
    if trouble.is_none() {
        *trouble = Some(io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())));
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
