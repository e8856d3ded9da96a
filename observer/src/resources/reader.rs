//! Reads the cgroup files of every container of a snapshot.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use super::{
    CgroupRoots, CgroupUsage, Extent, Extra, Facts, Target, Usage,
    extra::{EXTRA_FILES, ExtraSource},
    facts::{FILES, Source},
    files::{Allowance, Buffer, Found, Slot, read_once},
    known_cpu::KnownCpu,
    parse,
    places::Places,
    requests::requests,
    settings::Settings,
    targets,
};
use crate::{
    hash::FastMap,
    identity::Snapshot,
    parallel::{parallel, workers},
};

/// Cgroups that are worth a thread: about a third of a millisecond.
pub(super) const WORTH_A_THREAD: usize = 32;
/// How deep cgroups below a container are followed to count its processes.
const MAX_DEPTH: usize = 8;

/// One reader for all who read, so that no file is open twice.
#[derive(Debug, Clone)]
pub struct SharedReader(Arc<Mutex<Reader>>);

impl SharedReader {
    /// Shares a reader.
    #[must_use]
    pub fn new(reader: Reader) -> Self {
        Self(Arc::new(Mutex::new(reader)))
    }

    /// The reader, when nobody else reads.
    pub fn lock(&self) -> MutexGuard<'_, Reader> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads usages; keeps files open between readings, at most half of what this process may have open, and a quarter more
/// for what only the compatibility endpoints need: they never cost the containers theirs. The kernel keeps a page for
/// each open cgroup file.
#[derive(Debug)]
pub struct Reader {
    files: Files,
    cgroups: FastMap<String, Held>,
    round: u64,
    workers: Vec<Worker>,
}

/// What all workers read with.
#[derive(Debug)]
struct Files {
    places: Places,
    ticks_per_second: u64,
    allowance: Allowance,
    further: Allowance,
    settings: Settings,
}

/// What is one worker's alone.
#[derive(Debug, Default)]
struct Worker {
    buffer: Buffer,
    /// The first file of this reading that exists but could not be read.
    trouble: Option<io::Error>,
}

#[derive(Debug, Default)]
struct Held {
    slots: [Slot; FILES.len()],
    extra: [Slot; EXTRA_FILES.len()],
    processes: Slot,
    /// Whether it was a container's when it was first read: all its files but `extra` count to `allowance` then.
    container: bool,
    /// The cgroup v2 id of the container that it is read for; 0 where there is none.
    cgroup_id: u64,
    cpu: KnownCpu,
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
    /// Its cgroup v2 id; 0 where there is none.
    pub cgroup_id: u64,
    /// What it uses.
    pub usage: Usage,
}

/// One reading of cgroups.
#[derive(Debug, Default)]
pub struct TreeReading<'a> {
    /// The cgroups, from the root down.
    pub cgroups: Vec<CgroupUsage<'a>>,
    /// The first file that exists but could not be read.
    pub trouble: Option<io::Error>,
}

/// One reading of all containers.
#[derive(Debug, Default)]
pub struct Reading<'a> {
    /// The usages, sorted by namespace, pod, container; of those with the same names (of a pod that goes, and of the one
    /// that replaces it) the one that started last comes first.
    pub usages: Vec<ContainerUsage<'a>>,
    /// What they come from, by cgroup v2 id; without those whose cgroup has gone meanwhile, or that have no id.
    pub facts: HashMap<u64, Facts>,
    /// The first file that exists but could not be read. Its container only lacks what this file tells.
    pub trouble: Option<io::Error>,
}

impl Reader {
    /// A reader for these hierarchies; `procfs` is the host's. Nothing is opened yet.
    #[must_use]
    pub fn new(roots: CgroupRoots, procfs: &Path) -> Self {
        let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        let part = |of: u64| Allowance::from(usize::try_from(open / of).unwrap_or(0));
        let settings = Settings::new(procfs);
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        Self {
            files: Files {
                places: Places::new(roots),
                ticks_per_second,
                allowance: part(2),
                further: part(4),
                settings,
            },
            cgroups: FastMap::default(),
            round: 0,
            workers: (0..workers()).map(|_| Worker::default()).collect(),
        }
    }

    /// Reads every living container now, pause containers left out.
    pub fn read<'a>(&mut self, snapshot: &'a Snapshot) -> Reading<'a> {
        let targets = targets(snapshot);
        let wanted = |target: &Target<'_>| matches!(target, Target::Container(..));
        let (found, trouble) = self.each(&targets, wanted, |files, held, target, worker| {
            files.cgroup(held, target, Extent::Everything, worker)
        });
        let mut reading =
            Reading { trouble, usages: Vec::with_capacity(found.len()), facts: HashMap::with_capacity(found.len()) };
        for (target, facts) in found {
            let Target::Container(sandbox, container) = target else { continue };
            let mut usage = Usage::from(&facts);
            if !usage.is_empty() {
                usage.requests = requests(container.requests, sandbox.qos, &facts);
            }
            reading.usages.push(ContainerUsage {
                namespace: &sandbox.namespace,
                pod: &sandbox.name,
                container: &container.name,
                started: container.started,
                cgroup_id: container.cgroup_id,
                usage,
            });
            if container.cgroup_id != 0 && facts != Facts::default() {
                reading.facts.insert(container.cgroup_id, facts);
            }
        }
        let names = |u: &ContainerUsage<'a>| (u.namespace, u.pod, u.container);
        reading.usages.sort_by(|a, b| names(a).cmp(&names(b)).then(b.started.cmp(&a.started)));
        reading
    }

    /// Reads every living cgroup that is `wanted`, from the root down, with the files that only the compatibility
    /// endpoints need.
    pub fn read_tree<'a>(
        &mut self,
        snapshot: &'a Snapshot,
        extent: Extent,
        wanted: impl Fn(&Target<'_>) -> bool,
    ) -> TreeReading<'a> {
        let targets = targets(snapshot);
        let (found, trouble) = self.each(&targets, wanted, |files, held, target, worker| {
            let facts = files.cgroup(held, target, extent, worker);
            let gone = facts == Facts::default();
            let extra = if gone { Extra::default() } else { files.extra(held, target, extent, worker) };
            (facts, extra)
        });
        let cgroups = found.into_iter().map(|(target, (facts, extra))| CgroupUsage {
            target,
            usage: Usage::from(&facts),
            facts,
            extra,
        });
        TreeReading { cgroups: cgroups.collect(), trouble }
    }

    /// Reads what is in the v2 tree still of a container that has ended, once; nothing stays open. `None` when the cgroup
    /// with this id is not at this path any more, or there is no v2 tree.
    pub fn read_ended(&mut self, cgroup_id: u64, cgroup: &str) -> Option<Facts> {
        let roots = self.files.places.roots();
        let directory = below(roots.v2.as_deref()?, cgroup);
        // One that was started again may have the same path.
        let is_here = || fs::metadata(&directory).is_ok_and(|found| found.ino() == cgroup_id);
        if !is_here() {
            return None;
        }
        let facts = read_cgroup(roots, cgroup, &mut self.workers[0].buffer);
        // If it went meanwhile, some files are missing.
        Some(facts).filter(|facts| is_here() && *facts != Facts::default())
    }

    /// Lets the workers read those that are wanted, and closes the files of cgroups that are no more.
    fn each<'a, R: Send>(
        &mut self,
        targets: &[Target<'a>],
        wanted: impl Fn(&Target<'_>) -> bool,
        read: impl Fn(&Files, &mut Held, &Target<'a>, &mut Worker) -> R + Sync,
    ) -> (Vec<(Target<'a>, R)>, Option<io::Error>) {
        self.forget_others(targets);
        let Self { files, cgroups, workers, .. } = self;
        for target in targets.iter().filter(|target| wanted(target)) {
            let cgroup_id = target.container().map_or(0, |container| container.cgroup_id);
            match cgroups.get_mut(target.cgroup()) {
                Some(held) if held.cgroup_id == cgroup_id => {}
                // Another cgroup has the path.
                Some(held) => files.forget(held, cgroup_id),
                None => {
                    let container = matches!(target, Target::Container(..));
                    let held = Held { container, cgroup_id, round: self.round, ..Held::default() };
                    cgroups.insert(target.cgroup().to_owned(), held);
                }
            }
        }
        let mut held: FastMap<&str, &mut Held> = cgroups.iter_mut().map(|(path, held)| (path.as_str(), held)).collect();
        let wanted = targets.iter().filter(|target| wanted(target));
        let jobs: Vec<_> = wanted.filter_map(|target| Some((*target, held.remove(target.cgroup())?))).collect();
        files.settings.learn();
        files.places.learn(&files.further, &mut workers[0].buffer);
        let found = parallel(jobs, workers, WORTH_A_THREAD, |(target, held), worker| {
            (target, read(files, held, &target, worker))
        });
        let trouble = workers.iter_mut().map(|worker| worker.trouble.take()).reduce(Option::or).flatten();
        (found, trouble)
    }

    /// Closes the files of cgroups that are no more. Those that this reading has no use for stay open: another endpoint
    /// has.
    fn forget_others(&mut self, living: &[Target<'_>]) {
        let Self { cgroups, files, round, .. } = self;
        *round += 1;
        for target in living {
            if let Some(held) = cgroups.get_mut(target.cgroup()) {
                held.round = *round;
            }
        }
        cgroups.retain(|_, held| {
            let stays = held.round == *round;
            if !stays {
                files.close(held);
            }
            stays
        });
    }
}

impl Files {
    /// Reads the files of a cgroup. Nothing at all when it is gone.
    fn cgroup(&self, held: &mut Held, target: &Target<'_>, extent: Extent, worker: &mut Worker) -> Facts {
        let renewed = |slot: &Slot| matches!(slot, Slot::Kept(_));
        match self.facts(held, target, extent, worker) {
            // What is kept is another cgroup's.
            (_, Found::Renewed) if held.slots.iter().chain(&held.extra).any(renewed) => {
                self.forget(held, held.cgroup_id);
                self.facts(held, target, extent, worker).0
            }
            (_, Found::Kept | Found::Absent) => Facts::default(),
            (facts, Found::Renewed) => {
                held.cpu = KnownCpu::default();
                facts
            }
            (mut facts, Found::Read) => {
                if extent.has(Source::CpuStat) {
                    held.cpu.complete(&mut facts);
                }
                facts
            }
        }
    }

    /// The same, and whether anything was read from a file: what is kept outlives its cgroup.
    fn facts(&self, held: &mut Held, target: &Target<'_>, extent: Extent, worker: &mut Worker) -> (Facts, Found) {
        let allowance = self.allowance(held);
        let Worker { buffer, trouble } = worker;
        let (mut facts, mut outcome) = (Facts::default(), Found::Absent);
        let mut met = |found: Found| {
            match (outcome, found) {
                (Found::Renewed, _) | (_, Found::Kept | Found::Absent) => {}
                (_, found) => outcome = found,
            }
            found != Found::Absent
        };
        for ((slot, (source, _, name)), root) in held.slots.iter_mut().zip(FILES).zip(&self.places.files) {
            let Some(root) = root.as_ref().filter(|_| extent.has(source) && facts.needs(source)) else { continue };
            let path = || below(root, target.cgroup()).join(name);
            match self.read(source.is_setting(), slot, path, allowance, buffer) {
                Ok(found) if met(found) => facts.add(source, &buffer.text(), self.ticks_per_second),
                Ok(_) => {}
                Err(error) => note(trouble, &path(), &error),
            }
        }
        if let Some(root) = self.places.roots().any().filter(|_| extent.has_processes()) {
            let directory = below(root, target.cgroup());
            let path = || directory.join("cgroup.procs");
            match held.processes.read(path, allowance, buffer) {
                Ok(found) if met(found) => facts.processes = parse::processes(buffer.bytes()),
                Ok(_) => {}
                Err(error) => note(trouble, &path(), &error),
            }
            if target.counts_below() {
                let nested = processes_below(&directory, MAX_DEPTH, buffer);
                facts.processes = facts.processes.zip(nested).map(|(direct, nested)| direct + nested);
            }
        }
        (facts, outcome)
    }

    /// The files that [`Facts`] has no part in.
    fn extra(&self, held: &mut Held, target: &Target<'_>, extent: Extent, worker: &mut Worker) -> Extra {
        let mut extra = Extra::default();
        let Worker { buffer, trouble } = worker;
        for ((slot, (source, _, name)), root) in held.extra.iter_mut().zip(EXTRA_FILES).zip(&self.places.extra) {
            let Some(root) = root.as_ref().filter(|_| extent.has_extra(source)) else { continue };
            let path = || below(root, target.cgroup()).join(name);
            match self.read(source.is_setting(), slot, path, &self.further, buffer) {
                Ok(Found::Absent) => {}
                Ok(_) => extra.add(source, &buffer.text()),
                Err(error) => note(trouble, &path(), &error),
            }
        }
        if extent.has_extra(ExtraSource::CpuTotal) {
            held.cpu.complete_extra(&mut extra);
        }
        extra
    }

    fn read(
        &self,
        setting: bool,
        slot: &mut Slot,
        path: impl Fn() -> PathBuf,
        allowance: &Allowance,
        buffer: &mut Buffer,
    ) -> io::Result<Found> {
        if setting { self.settings.read(slot, path, allowance, buffer) } else { slot.read(path, allowance, buffer) }
    }

    /// What the files of this cgroup count to; those of `extra` always count to `further`.
    const fn allowance(&self, held: &Held) -> &Allowance {
        if held.container { &self.allowance } else { &self.further }
    }

    /// Begins anew, for the cgroup with this id.
    fn forget(&self, held: &mut Held, cgroup_id: u64) {
        self.close(held);
        let Held { container, round, .. } = *held;
        *held = Held { container, cgroup_id, round, ..Held::default() };
    }

    fn close(&self, held: &mut Held) {
        held.extra.iter_mut().for_each(|slot| self.settings.close(slot, &self.further));
        let allowance = self.allowance(held);
        held.slots.iter_mut().chain([&mut held.processes]).for_each(|slot| self.settings.close(slot, allowance));
    }
}

/// Reads every file of one cgroup once and keeps none open. What cannot be read is left out.
pub(super) fn read_cgroup(roots: &CgroupRoots, cgroup: &str, buffer: &mut Buffer) -> Facts {
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let mut facts = Facts::default();
    for (source, hierarchy, name) in FILES {
        if let Some(root) = hierarchy.root(roots).filter(|_| facts.needs(source))
            && let Ok(true) = read_once(&below(root, cgroup).join(name), buffer)
        {
            facts.add(source, &buffer.text(), ticks_per_second);
        }
    }
    facts
}

/// The directory of a cgroup path, which begins with `/`, below a mount point.
pub(super) fn below(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
}

/// Processes in the cgroups below `directory`: `cgroup.procs` lists only the cgroup's own. `None` when one of them cannot be
/// read, for a sum without it is wrong; one that is gone, or that has no list of its own, has none.
fn processes_below(directory: &Path, depth: usize, buffer: &mut Buffer) -> Option<u64> {
    let Ok(entries) = fs::read_dir(directory) else { return Some(0) };
    if depth == 0 {
        return Some(0);
    }
    let mut count = 0;
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        if read_once(&entry.path().join("cgroup.procs"), buffer).ok()? {
            count += parse::processes(buffer.bytes())?;
        }
        count += processes_below(&entry.path(), depth - 1, buffer)?;
    }
    Some(count)
}

fn note(trouble: &mut Option<io::Error>, path: &Path, error: &io::Error) {
    if trouble.is_none() {
        *trouble = Some(io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())));
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
