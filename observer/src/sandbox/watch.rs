//! inotify(7) on cgroup directories: tells at once when one is made or removed.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

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

/// The directories that are watched, and what happens in them.
#[derive(Debug)]
pub struct Watcher {
    inotify: Inotify,
    by_descriptor: HashMap<WatchDescriptor, PathBuf>,
    by_path: HashMap<PathBuf, Watched>,
}

#[derive(Debug)]
struct Watched {
    descriptor: WatchDescriptor,
    /// The directory's, where whoever asked for the watch knew it.
    inode: Option<u64>,
}

impl Watcher {
    /// A watcher of nothing yet.
    ///
    /// # Errors
    ///
    /// What inotify_init1(2) says: EMFILE at `fs.inotify.max_user_instances`.
    pub fn new() -> io::Result<Self> {
        Ok(Self { inotify: Inotify::init()?, by_descriptor: HashMap::new(), by_path: HashMap::new() })
    }

    /// Watches a directory for the making and removing of directories in it. True when it was not watched before. One
    /// that has vanished is no error. Who knows the directory's inode saves a system call when it is watched already.
    ///
    /// # Errors
    ///
    /// What inotify_add_watch(2) says: ENOSPC at `fs.inotify.max_user_watches`.
    pub fn add(&mut self, path: &Path, inode: Option<u64>) -> io::Result<bool> {
        if inode.is_some() && self.by_path.get(path).is_some_and(|known| known.inode == inode) {
            return Ok(false);
        }
        // Asked of the kernel although the path is known: a directory that was removed and made again is another one, and
        // as long as somebody has a file of the old one open, no event says that it went.
        let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        match self.inotify.watches().add(path, mask) {
            Ok(descriptor) => {
                let watched = Watched { descriptor: descriptor.clone(), inode };
                if let Some(old) = self.by_path.insert(path.to_owned(), watched) {
                    if old.descriptor == descriptor {
                        return Ok(false);
                    }
                    self.end(&old.descriptor);
                }
                self.by_descriptor.insert(descriptor, path.to_owned());
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
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
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                missed = true;
            } else if event.mask.contains(EventMask::IGNORED) {
                if let Some(path) = self.by_descriptor.remove(&event.wd)
                    && self.by_path.get(&path).is_some_and(|known| known.descriptor == event.wd)
                {
                    self.by_path.remove(&path);
                }
            } else if let (Some(parent), Some(name), true) =
                (self.by_descriptor.get(&event.wd), event.name, event.mask.contains(EventMask::ISDIR))
            {
                changes.push(Change { path: parent.join(name), made: event.mask.contains(EventMask::CREATE) });
            }
        }
        if missed {
            let watched: Vec<PathBuf> = self.by_path.keys().cloned().collect();
            watched.iter().for_each(|path| self.end_if_gone(path));
        } else {
            changes.iter().filter(|change| !change.made).for_each(|change| self.end_if_gone(&change.path));
        }
        Ok((changes, missed))
    }

    /// Ends the watch of a directory that was removed. A file system that counts its links does that by itself, but
    /// cgroup directories are never without a link (`kernfs_refresh_inode` in fs/kernfs/inode.c sets at least two), so
    /// the kernel neither says IN_IGNORED nor gives the inode back: without this, each container that ever was would
    /// keep its inode and one of `fs.inotify.max_user_watches`.
    fn end_if_gone(&mut self, path: &Path) {
        // What was made again at the same place meanwhile may be what is watched now; otherwise adding it ends this one.
        if self.by_path.contains_key(path)
            && path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            && let Some(gone) = self.by_path.remove(path)
        {
            self.end(&gone.descriptor);
        }
    }

    fn end(&mut self, descriptor: &WatchDescriptor) {
        self.by_descriptor.remove(descriptor);
        // EINVAL: the kernel has ended it already.
        let _ = self.inotify.watches().remove(descriptor.clone());
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn directories_are_seen_and_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        assert!(watcher.add(root.path(), None).unwrap());
        assert!(!watcher.add(root.path(), Some(7)).unwrap());
        assert!(!watcher.add(root.path(), Some(7)).unwrap());
        assert!(!watcher.add(&root.path().join("nothing"), Some(8)).unwrap());
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
    fn what_is_removed_is_not_watched_any_more() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add(root.path(), None).unwrap();
        // Who holds a directory keeps the kernel from ending the watch by itself, as it never does for a cgroup's.
        let mut held = Vec::new();
        let mut pass = |watcher: &mut Watcher, name: &str| {
            let pod = root.path().join(name);
            fs::create_dir(&pod).unwrap();
            assert!(watcher.add(&pod, None).unwrap());
            held.push(fs::File::open(&pod).unwrap());
            fs::remove_dir(&pod).unwrap();
        };
        pass(&mut watcher, "first");
        pass(&mut watcher, "second");
        pass(&mut watcher, "first");
        assert_eq!(in_kernel(&watcher), 3, "the second of a name takes the place of the first");
        assert_eq!(watcher.changes().unwrap().0.len(), 6);
        assert_eq!((in_kernel(&watcher), watcher.by_path.len(), watcher.by_descriptor.len()), (1, 1, 1));
        pass(&mut watcher, "third");
        assert!(watcher.add(root.path(), None).is_ok_and(|new| !new));
        assert_eq!(watcher.changes().unwrap().0.len(), 2, "what the kernel says of ended watches harms nothing");
        assert_eq!((in_kernel(&watcher), watcher.by_path.len(), watcher.by_descriptor.len()), (1, 1, 1));
    }

    #[test]
    fn what_was_removed_unseen_is_not_watched_any_more() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add(root.path(), None).unwrap();
        let (pod, other) = (root.path().join("pod"), root.path().join("other"));
        fs::create_dir(&pod).unwrap();
        assert!(watcher.add(&pod, None).unwrap());
        let held = fs::File::open(&pod).unwrap();
        let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
        // Equal events that follow each other are one (inotify(7)): making and removing alternate.
        for _ in 0..=most / 2 {
            fs::create_dir(&other).unwrap();
            fs::remove_dir(&other).unwrap();
        }
        fs::remove_dir(&pod).unwrap();
        let mut overflow = false;
        while !overflow {
            let (changes, missed) = watcher.changes().unwrap();
            assert!(missed || !changes.is_empty(), "the queue did not overflow");
            overflow = missed;
        }
        assert_eq!((in_kernel(&watcher), watcher.by_path.len(), watcher.by_descriptor.len()), (1, 1, 1));
        drop(held);
    }

    /// How many watches the kernel has for it (proc_pid_fdinfo(5)).
    fn in_kernel(watcher: &Watcher) -> usize {
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&watcher.as_fd());
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
        told.lines().filter(|line| line.starts_with("inotify wd:")).count()
    }

    #[test]
    fn a_directory_made_anew_is_watched_anew_while_somebody_holds_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add(root.path(), None).unwrap();
        let pod = root.path().join("pod");
        let inode = || Some(fs::metadata(&pod).unwrap().ino());
        fs::create_dir(&pod).unwrap();
        assert!(watcher.add(&pod, inode()).unwrap());
        let held = fs::File::open(&pod).unwrap();
        fs::remove_dir(&pod).unwrap();
        fs::create_dir(&pod).unwrap();
        assert_eq!(watcher.changes().unwrap().0.len(), 3);
        assert!(watcher.add(&pod, inode()).unwrap(), "it is another directory");
        drop(held);
        fs::create_dir(pod.join("container")).unwrap();
        assert_eq!(watcher.changes().unwrap().0, [Change { path: pod.join("container"), made: true }]);
        assert!(!watcher.add(&pod, None).unwrap(), "the end of the old watch does not end the new one");
    }
}
