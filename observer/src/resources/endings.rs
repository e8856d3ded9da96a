//! The last values of containers, read when they end.
//!
//! A container that lives between two scrapes would show nothing, and any other loses what it used since the last one:
//! its files go with its cgroup. So a thread waits for the moment at which a cgroup has no process any more, and reads
//! everything then. The kernel tells of it by a change of `cgroup.events` (Documentation/admin-guide/cgroup-v2.rst,
//! "Basic Operations"); the runtime removes the directory some milliseconds later.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tracing::warn;

use super::{CgroupRoots, Facts, files::Buffer, parse, reader};

/// Bytes for the events of one read.
const BUFFER: usize = 16 * 1024;

/// What ended containers said last, by the id of their cgroup.
type Taken = Arc<Mutex<HashMap<u64, Facts>>>;

/// How long a cgroup that was sighted may be in no snapshot: then it was nobody's, or gone before it was seen whose it was.
const UNLISTED: Duration = Duration::from_secs(60);

/// What the thread is told.
enum Message {
    /// A container's cgroup: its id and its path below the hierarchy's mount point.
    Watch(u64, String),
    /// These are the cgroups of the newest snapshot.
    List(HashSet<u64>),
    /// End.
    Stop,
}

/// Tells the thread what to watch.
#[derive(Clone)]
pub struct EndingsWatch {
    messages: Sender<Message>,
    wake: Arc<OwnedFd>,
}

impl EndingsWatch {
    /// Watches a container's cgroup: its id and its path below the hierarchy's mount point. Again is no harm.
    pub fn watch(&self, cgroup_id: u64, path: &str) {
        self.tell(Message::Watch(cgroup_id, path.to_owned()));
    }

    /// Says which cgroups the newest snapshot has; those that the one before had and this one has not are forgotten.
    pub fn list(&self, cgroups: HashSet<u64>) {
        self.tell(Message::List(cgroups));
    }

    fn tell(&self, message: Message) {
        // A thread that has ended needs to know nothing.
        if self.messages.send(message).is_ok() {
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// The running thread. It ends when this is dropped.
pub struct Endings {
    watch: EndingsWatch,
    taken: Taken,
    thread: Option<JoinHandle<()>>,
}

impl Endings {
    /// Starts it. `None` on a host without a cgroup v2 tree, whose kernel does not tell when a cgroup becomes empty.
    ///
    /// # Errors
    /// When inotify, the eventfd or the thread cannot be made.
    pub fn start(roots: &CgroupRoots) -> io::Result<Option<Self>> {
        let Some(v2) = &roots.v2 else { return Ok(None) };
        let (messages, inbox) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let taken = Taken::default();
        let work = Work {
            inotify: Inotify::init()?,
            inbox,
            wake: Arc::clone(&wake),
            taken: Arc::clone(&taken),
            v2: v2.clone(),
            roots: roots.clone(),
            watched: HashMap::new(),
            known: HashMap::new(),
            listed: HashSet::new(),
            buffer: Buffer::default(),
            told: false,
        };
        let thread = std::thread::Builder::new().name("endings".into()).spawn(move || work.run())?;
        Ok(Some(Self { watch: EndingsWatch { messages, wake }, taken, thread: Some(thread) }))
    }

    /// What tells the thread.
    #[must_use]
    pub fn watch(&self) -> EndingsWatch {
        self.watch.clone()
    }

    /// What the container in this cgroup said last, once it has ended.
    #[must_use]
    pub fn last(&self, cgroup_id: u64) -> Option<Facts> {
        lock(&self.taken).get(&cgroup_id).cloned()
    }
}

impl Drop for Endings {
    fn drop(&mut self) {
        self.watch.tell(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    inotify: Inotify,
    inbox: Receiver<Message>,
    wake: Arc<OwnedFd>,
    taken: Taken,
    v2: std::path::PathBuf,
    roots: CgroupRoots,
    watched: HashMap<WatchDescriptor, (u64, String)>,
    /// With when each was first heard of.
    known: HashMap<u64, (WatchDescriptor, Instant)>,
    listed: HashSet<u64>,
    buffer: Buffer,
    told: bool,
}

impl Work {
    fn run(mut self) {
        crate::sandbox::prefer_this_thread();
        while self.obey() {
            let (events, wake) = (self.inotify.as_fd(), self.wake.as_fd());
            let mut sources = [PollFd::new(&events, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
            let _ = poll(&mut sources, None);
            let _ = rustix::io::read(wake, &mut [0; 8]);
            self.endings();
        }
    }

    /// Does what was asked. False at the end.
    fn obey(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Watch(id, path)) => self.add(id, &path),
                Ok(Message::List(cgroups)) => self.list(cgroups),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn add(&mut self, id: u64, path: &str) {
        if self.known.contains_key(&id) {
            return;
        }
        let file = reader::below(&self.v2, path).join("cgroup.events");
        match self.inotify.watches().add(&file, WatchMask::MODIFY) {
            Ok(descriptor) => {
                self.known.insert(id, (descriptor.clone(), Instant::now()));
                self.watched.insert(descriptor, (id, path.to_owned()));
                // Whatever has ended before this moment made no event.
                self.look(id, path);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    warn!(
                        "cannot watch {}: {error}; what containers use in their last seconds is not counted: raise \
                         fs.inotify.max_user_watches on the node",
                        file.display()
                    );
                }
            }
        }
    }

    fn list(&mut self, cgroups: HashSet<u64>) {
        let before = std::mem::replace(&mut self.listed, cgroups);
        let listed = &self.listed;
        let is_late = |since: &Instant| since.elapsed() >= UNLISTED;
        let late = self.known.iter().filter(|(id, (_, since))| !listed.contains(id) && is_late(since));
        let gone: HashSet<u64> = before.difference(listed).chain(late.map(|(id, _)| id)).copied().collect();
        for id in gone {
            if let Some((descriptor, _)) = self.known.remove(&id) {
                self.watched.remove(&descriptor);
                // EINVAL: the kernel has ended it. It does not for cgroups that are removed, whose files always have a link.
                let _ = self.inotify.watches().remove(descriptor);
            }
            lock(&self.taken).remove(&id);
        }
    }

    fn endings(&mut self) {
        let mut buffer = [0; BUFFER];
        let events: Vec<(WatchDescriptor, EventMask)> = match self.inotify.read_events(&mut buffer) {
            Ok(events) => events.map(|event| (event.wd, event.mask)).collect(),
            Err(_) => return,
        };
        if events.iter().any(|(_, mask)| mask.contains(EventMask::Q_OVERFLOW)) {
            // Whichever changed, all are looked at.
            for (id, path) in self.watched.values().cloned().collect::<Vec<_>>() {
                self.look(id, &path);
            }
        }
        for (descriptor, mask) in events {
            if mask.contains(EventMask::MODIFY)
                && let Some((id, path)) = self.watched.get(&descriptor).cloned()
            {
                self.look(id, &path);
            }
        }
    }

    /// Reads everything if the cgroup has no process. One that gets a process, its first or another one, has not ended:
    /// what was read is forgotten, and it is read again when that ends.
    fn look(&mut self, id: u64, path: &str) {
        match self.is_populated(path) {
            Some(true) => {
                lock(&self.taken).remove(&id);
            }
            Some(false) => {
                let facts = reader::read_cgroup(&self.roots, path, &mut self.buffer);
                if facts != Facts::default() {
                    lock(&self.taken).insert(id, facts);
                }
            }
            None => {}
        }
    }

    /// Whether it has a process; `None` when it is gone.
    fn is_populated(&mut self, path: &str) -> Option<bool> {
        let file = reader::below(&self.v2, path).join("cgroup.events");
        let read = matches!(super::files::read_once(&file, &mut self.buffer), Ok(true));
        let text = read.then(|| self.buffer.text())?;
        parse::flat_keyed(&text).find(|(key, _)| *key == "populated").map(|(_, populated)| populated > 0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn events(root: &Path, populated: u8) {
        fs::write(root.join("a/cgroup.events"), format!("populated {populated}\nfrozen 0\n")).unwrap();
    }

    fn usage(root: &Path, micros: u64) {
        fs::write(root.join("a/cpu.stat"), format!("usage_usec {micros}\nuser_usec {micros}\n")).unwrap();
    }

    fn wait_for(endings: &Endings, id: u64, micros: Option<u64>) {
        let found = || endings.last(id).and_then(|facts| facts.cpu.usage) == micros;
        for _ in 0..500 {
            if found() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{:?} is not {micros:?}", endings.last(id));
    }

    #[test]
    fn a_cgroup_is_read_when_its_last_process_ends() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("a")).unwrap();
        events(root, 1);
        usage(root, 5);
        let endings =
            Endings::start(&CgroupRoots { v2: Some(root.into()), ..CgroupRoots::default() }).unwrap().unwrap();
        endings.watch().watch(7, "/none");
        endings.watch().watch(8, "/a");
        endings.watch().watch(8, "/a");
        usage(root, 6);
        assert_eq!(endings.last(8), None, "it runs");
        usage(root, 9);
        events(root, 0);
        wait_for(&endings, 8, Some(9));
        events(root, 1);
        wait_for(&endings, 8, None);
        usage(root, 12);
        events(root, 0);
        wait_for(&endings, 8, Some(12));
        endings.watch().list(HashSet::from([8, 9]));
        endings.watch().list(HashSet::from([9]));
        wait_for(&endings, 8, None);
    }

    #[test]
    fn what_had_ended_before_is_read_too_and_v1_alone_cannot_be_watched() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("a")).unwrap();
        events(root, 0);
        usage(root, 3);
        let endings =
            Endings::start(&CgroupRoots { v2: Some(root.into()), ..CgroupRoots::default() }).unwrap().unwrap();
        endings.watch().watch(8, "/a");
        wait_for(&endings, 8, Some(3));
        assert!(Endings::start(&CgroupRoots::default()).unwrap().is_none());
    }
}
