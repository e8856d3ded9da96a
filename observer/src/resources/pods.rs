//! What containers of a pod have together: sockets of its network namespace, shared memory of its IPC namespace.
//!
//! Files are opened for each reading and closed again: an open file of a namespace keeps that namespace, and all that is
//! in it, for ever. What stays open is the directory of a process, which keeps nothing but the process's number.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Resource, getrlimit},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{parse, reader::WORTH_A_THREAD, segments};
use crate::{
    identity::Snapshot,
    parallel::{parallel, workers},
    sandbox::{Sandbox, process::INIT},
};

/// `TMPFS_MAGIC` of include/uapi/linux/magic.h.
const TMPFS: i64 = 0x0102_1994;
/// File systems that one pod may have at `/dev/shm`; more are left out.
const MAX_MOUNTS: usize = 64;

/// What one pod has. A field is `None` when it is the node's own, or cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodUsage<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// Sockets of every kind in its network namespace.
    pub sockets: Option<u64>,
    /// Bytes in files of its `/dev/shm`, which is where POSIX shared memory is (shm_overview(7)).
    pub posix: Option<u64>,
    /// Bytes in System V segments of its IPC namespace (sysvipc(7)), in memory and swapped out.
    pub sysv: Option<u64>,
}

/// Reads pods.
#[derive(Debug)]
pub struct PodReader {
    procfs: PathBuf,
    mounts: Mounts,
    holders: Holders,
    /// How many directories may stay open: a small part of what this process may have open.
    most_held: usize,
    /// Why IPC namespaces cannot be entered; not tried again.
    closed: Option<String>,
    workers: Vec<()>,
}

/// Which file system a process has at `/dev/shm`, by its id and its cgroup.
type Mounts = HashMap<(i32, u64), u64>;

/// The directory of a process in the proc file system, by the process's id, its cgroup and its network namespace. It was
/// that process's when it was opened, and opens nothing any more once the process has ended: another one with the same
/// number has another directory.
type Holders = HashMap<(i32, u64, Option<u64>), Arc<File>>;

impl PodReader {
    /// A reader of this proc file system: the host's.
    #[must_use]
    pub fn new(procfs: PathBuf) -> Self {
        let open = getrlimit(Resource::Nofile).current.and_then(|open| usize::try_from(open).ok());
        Self {
            procfs,
            mounts: Mounts::new(),
            holders: Holders::new(),
            most_held: open.unwrap_or(usize::MAX) / 16,
            closed: None,
            workers: vec![(); workers()],
        }
    }

    /// Why System V segments cannot be read; `None` when they can.
    #[must_use]
    pub fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Reads every living pod now.
    pub fn read<'a>(&mut self, snapshot: &'a Snapshot) -> Vec<PodUsage<'a>> {
        let (node_shm, node_ipc) = (self.node_mount(), self.node_ipc());
        let living = snapshot.sandboxes().iter().filter(|sandbox| sandbox.alive);
        let jobs: Vec<(&'a Sandbox, (i32, u64))> =
            living.filter_map(|sandbox| Some((sandbox.as_ref(), processes(sandbox).next()?))).collect();
        let mut threads = std::mem::take(&mut self.workers);
        let read = parallel(jobs, &mut threads, WORTH_A_THREAD, |(sandbox, (pid, cgroup)), ()| {
            let key = (pid, cgroup, sandbox.netns);
            let holder = self.holders.get(&key).cloned().or_else(|| self.holder(pid, sandbox.netns));
            let (posix, mounts) = self.posix(sandbox, node_shm);
            let own_ipc = node_ipc.is_some_and(|node| ipc(sandbox).is_some_and(|own| own != node));
            let usage = PodUsage {
                namespace: &sandbox.namespace,
                pod: &sandbox.name,
                sockets: holder.as_deref().and_then(|holder| sockets(holder, sandbox)),
                posix,
                sysv: None,
            };
            let ipc = holder.clone().filter(|_| own_ipc);
            (usage, ipc, mounts, holder.map(|holder| (key, holder)))
        });
        self.workers = threads;
        self.mounts.clear();
        self.holders.clear();
        let mut pods = Vec::with_capacity(read.len());
        for (usage, ipc, mounts, holder) in read {
            self.mounts.extend(mounts);
            self.holders.extend(holder.filter(|_| self.holders.len() < self.most_held));
            pods.push((usage, ipc));
        }
        self.sysv(&mut pods);
        pods.into_iter().map(|(usage, _)| usage).collect()
    }

    /// The directory of a process that is in this network namespace. Asked once it is open, so that it is this one's.
    fn holder(&self, pid: i32, netns: Option<u64>) -> Option<Arc<File>> {
        let directory = File::open(self.of(pid)).ok()?;
        let found = rustix::fs::statat(&directory, "ns/net", rustix::fs::AtFlags::empty()).ok()?;
        (Some(found.st_ino) == netns).then(|| Arc::new(directory))
    }

    /// The sum of the file systems that its containers have at `/dev/shm`, each once, the node's own left out.
    fn posix(&self, sandbox: &Sandbox, node: Option<u64>) -> (Option<u64>, Mounts) {
        let (mut seen, mut mounts) = (HashSet::new(), Mounts::new());
        let mut sum = None;
        for (pid, cgroup) in processes(sandbox) {
            let path = self.of(pid).join("root/dev/shm");
            let known = self.mounts.get(&(pid, cgroup)).copied().or_else(|| Some(fs::metadata(&path).ok()?.dev()));
            let Some(device) = known else { continue };
            mounts.insert((pid, cgroup), device);
            if Some(device) == node || seen.len() >= MAX_MOUNTS || !seen.insert(device) {
                continue;
            }
            if let Some(bytes) = in_files(&path) {
                sum = Some(sum.unwrap_or(0) + bytes);
            }
        }
        (sum, mounts)
    }

    /// The file system at the node's own `/dev/shm`; ours where the node's is closed to us.
    fn node_mount(&self) -> Option<u64> {
        let node = fs::metadata(self.of(INIT).join("root/dev/shm")).or_else(|_| fs::metadata("/dev/shm"));
        node.ok().map(|metadata| metadata.dev())
    }

    /// The node's IPC namespace; ours where the node's is closed to us.
    fn node_ipc(&self) -> Option<u64> {
        let own = || i32::try_from(std::process::id()).ok().and_then(|pid| namespace(&self.procfs, pid, "ipc"));
        namespace(&self.procfs, INIT, "ipc").or_else(own)
    }

    /// A thread enters the namespaces one after another and ends: nobody else is to be in one.
    fn sysv(&mut self, pods: &mut [(PodUsage<'_>, Option<Arc<File>>)]) {
        if self.closed.is_some() || pods.iter().all(|(_, holder)| holder.is_none()) {
            return;
        }
        let outcome = std::thread::scope(|scope| {
            let work = || {
                for (usage, holder) in pods.iter_mut() {
                    if let Some(holder) = holder {
                        usage.sysv = enter(holder)?;
                    }
                }
                Ok(())
            };
            let thread = std::thread::Builder::new().name("ipc".into()).spawn_scoped(scope, work)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that reads them ended")))
        });
        if let Err(error) = outcome {
            self.closed = Some(format!(
                "cannot enter the IPC namespaces of pods: {error}; System V shared memory is not shown; give the agent \
                 CAP_SYS_ADMIN for that"
            ));
        }
    }

    fn of(&self, pid: i32) -> PathBuf {
        self.procfs.join(pid.to_string())
    }
}

/// Living processes of different containers of the pod, each with its cgroup.
fn processes(sandbox: &Sandbox) -> impl Iterator<Item = (i32, u64)> + '_ {
    let alive = sandbox.containers.iter().filter(|container| container.alive);
    alive.filter_map(|container| Some((container.pid?, container.cgroup_id)))
}

/// The IPC namespace that the containers share.
fn ipc(sandbox: &Sandbox) -> Option<u64> {
    let container = sandbox.containers.iter().find(|container| container.alive && container.pid.is_some())?;
    container.namespaces.iter().find(|(name, _)| name == "ipc").map(|(_, inode)| *inode)
}

fn namespace(procfs: &Path, pid: i32, name: &str) -> Option<u64> {
    fs::metadata(procfs.join(pid.to_string()).join("ns").join(name)).ok().map(|metadata| metadata.ino())
}

/// Bytes in the files of a file system of memory.
fn in_files(directory: &Path) -> Option<u64> {
    let status = rustix::fs::statfs(directory).ok().filter(|status| status.f_type == TMPFS)?;
    let block = u64::try_from(status.f_bsize).ok()?;
    Some(status.f_blocks.saturating_sub(status.f_bfree) * block)
}

/// `sockets: used N` of `/proc/<pid>/net/sockstat` (proc_pid_net(5)).
fn sockets(holder: &File, sandbox: &Sandbox) -> Option<u64> {
    sandbox.netns.filter(|_| !sandbox.host_network)?;
    let mut text = [0; 512];
    let read = open(holder, "net/sockstat").ok()?.read(&mut text).ok()?;
    parse::sockets(str::from_utf8(&text[..read]).ok()?)
}

/// A file below the directory of a process.
fn open(holder: &File, path: &str) -> io::Result<File> {
    Ok(rustix::fs::openat(holder, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Enters the namespace of a process for good, and asks for its segments. `None` when the process is gone.
fn enter(holder: &File) -> io::Result<Option<u64>> {
    let Ok(link) = open(holder, "ns/ipc") else { return Ok(None) };
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication))?;
    Ok(segments::bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::testing::{container, sandbox, snapshot_of};

    fn me() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    fn this_process(procfs: &Path) -> Sandbox {
        let mut one = container("a", "/a");
        one.pid = Some(me());
        one.namespaces = vec![("ipc".into(), namespace(procfs, me(), "ipc").unwrap())];
        let mut pod = sandbox("p", vec![one]);
        pod.netns = namespace(procfs, me(), "net");
        pod
    }

    #[test]
    fn a_pod_has_the_sockets_of_its_network_and_nothing_of_the_node_s() {
        let procfs = Path::new("/proc");
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let pod = this_process(procfs);
        let mut elsewhere = pod.clone();
        elsewhere.netns = Some(1);
        let mut host = pod.clone();
        host.host_network = true;
        let snapshot = snapshot_of(vec![pod, elsewhere, host]);
        let mut reader = PodReader::new(procfs.into());
        for _ in 0..2 {
            let pods = reader.read(&snapshot);
            assert!(pods[0].sockets.is_some_and(|sockets| sockets > 0));
            assert_eq!((pods[1].sockets, pods[2].sockets), (None, None));
            // This process has the /dev/shm and the IPC namespace of the machine.
            assert!(pods.iter().all(|pod| pod.posix.is_none() && pod.sysv.is_none()));
        }
        assert_eq!(reader.mounts.len(), 1);
        assert!(reader.read(&Snapshot::default()).is_empty() && reader.mounts.is_empty());
    }
}
