//! inotify(7) on cgroup directories: tells at once when one is made or removed.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};

/// Bytes for the events of one read: hundreds of container names.
const BUFFER: usize = 64 * 1024;

/// A directory was made or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The directory.
    pub path: PathBuf,
    /// Made, not removed.
    pub made: bool,
}

/// The directories that are watched. Clones are the same set, so that one thread can add to it while another waits
/// for events.
#[derive(Debug, Clone)]
pub struct WatchSet {
    watches: Watches,
    paths: Arc<Mutex<Paths>>,
}

#[derive(Debug, Default)]
struct Paths {
    by_descriptor: HashMap<WatchDescriptor, PathBuf>,
    by_path: HashMap<PathBuf, WatchDescriptor>,
}

impl WatchSet {
    /// Watches a directory for the making and removing of directories in it. True when it was not watched before. One
    /// that has vanished is no error.
    ///
    /// # Errors
    ///
    /// What inotify_add_watch(2) says: ENOSPC at `fs.inotify.max_user_watches`.
    pub fn add(&mut self, path: &Path) -> io::Result<bool> {
        // Held over the call: an event must find its path.
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked of the kernel every time: a directory that was removed and made again is another one, and as long as
        // somebody has a file of the old one open, no event says that it went.
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        match self.watches.add(path, mask) {
            Ok(descriptor) => {
                let known = paths.by_path.insert(path.to_owned(), descriptor.clone());
                if known.as_ref() == Some(&descriptor) {
                    return Ok(false);
                }
                if let Some(old) = known {
                    paths.by_descriptor.remove(&old);
                }
                paths.by_descriptor.insert(descriptor, path.to_owned());
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Reads the events of a [`WatchSet`].
#[derive(Debug)]
pub struct Watcher {
    inotify: Inotify,
    set: WatchSet,
}

impl Watcher {
    /// A watcher of nothing yet.
    ///
    /// # Errors
    ///
    /// What inotify_init1(2) says: EMFILE at `fs.inotify.max_user_instances`.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let set = WatchSet { watches: inotify.watches(), paths: Arc::default() };
        Ok(Self { inotify, set })
    }

    /// The directories that are watched.
    #[must_use]
    pub fn set(&self) -> WatchSet {
        self.set.clone()
    }

    /// What has happened since the last call, in order, and whether something was missed. Never waits.
    ///
    /// # Errors
    ///
    /// What read(2) says, but not that there is nothing.
    pub fn changes(&mut self) -> io::Result<(Vec<Change>, bool)> {
        let mut buffer = [0; BUFFER];
        let mut changes = Vec::new();
        let mut missed = false;
        let events = match self.inotify.read_events(&mut buffer) {
            Ok(events) => events,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((changes, missed)),
            Err(error) => return Err(error),
        };
        let mut paths = self.set.paths.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            missed |= event.mask.contains(EventMask::Q_OVERFLOW);
            if event.mask.contains(EventMask::IGNORED)
                && let Some(path) = paths.by_descriptor.remove(&event.wd)
            {
                if paths.by_path.get(&path) == Some(&event.wd) {
                    paths.by_path.remove(&path);
                }
                continue;
            }
            if let (Some(parent), Some(name), true) =
                (paths.by_descriptor.get(&event.wd), event.name, event.mask.contains(EventMask::ISDIR))
            {
                changes.push(Change { path: parent.join(name), made: event.mask.contains(EventMask::CREATE) });
            }
        }
        Ok((changes, missed))
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn directories_are_seen_and_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        let mut set = watcher.set();
        assert!(set.add(root.path()).unwrap());
        assert!(!set.add(root.path()).unwrap());
        assert!(!set.add(&root.path().join("nothing")).unwrap());
        fs::write(root.path().join("file"), "").unwrap();
        let made = root.path().join("made");
        fs::create_dir(&made).unwrap();
        fs::remove_dir(&made).unwrap();
        let (changes, missed) = watcher.changes().unwrap();
        assert_eq!(changes, [Change { path: made.clone(), made: true }, Change { path: made, made: false }]);
        assert!(!missed);
        assert!(watcher.changes().unwrap().0.is_empty());
    }

    #[test]
    fn a_directory_that_is_made_again_is_watched_again() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        let mut set = watcher.set();
        let directory = root.path().join("again");
        fs::create_dir(&directory).unwrap();
        assert!(set.add(&directory).unwrap());
        // An open directory keeps the old one from ending.
        let held = fs::File::open(&directory).unwrap();
        fs::remove_dir(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        assert!(set.add(&directory).unwrap());
        drop(held);
        let _ = watcher.changes().unwrap();
        fs::create_dir(directory.join("child")).unwrap();
        let (changes, _) = watcher.changes().unwrap();
        assert_eq!(changes, [Change { path: directory.join("child"), made: true }]);
    }
}
