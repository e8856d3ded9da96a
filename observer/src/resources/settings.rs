//! Files that only somebody's write changes: limits and weights. What they said is kept, and they are read again once
//! they were written to. The kernel tells of it before the write returns (`fsnotify_modify` in `vfs_write`,
//! fs/read_write.c), and all mounts of a hierarchy share its files: a reading that begins after a write has what was
//! written. It saves a third of the readings, and what the kernel holds for an open file.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use super::files::{Allowance, Buffer, Found, Slot, read_once};

/// Bytes for the events of one read.
const BUFFER: usize = 16 * 1024;
/// The part of the watches that a user may have (inotify(7)) which is used here: what else watches needs some too.
const PART: usize = 4;

/// What a file said when it was read last.
#[derive(Debug)]
pub(super) struct Kept {
    text: Box<[u8]>,
    watch: WatchDescriptor,
    /// The number of overflows of the event queue at that time.
    overflows: u64,
}

/// Watches over files. Without inotify, or with too few watches, they are read every time.
#[derive(Debug)]
pub(super) struct Settings(Mutex<State>);

#[derive(Debug)]
struct State {
    inotify: Option<Inotify>,
    left: usize,
    written: HashSet<WatchDescriptor>,
    overflows: u64,
}

impl Settings {
    /// Watches nothing yet.
    pub(super) fn new(procfs: &Path) -> Self {
        let allowed = fs::read_to_string(procfs.join("sys/fs/inotify/max_user_watches"));
        let allowed = allowed.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self::with(Inotify::init().ok(), allowed / PART)
    }

    fn with(inotify: Option<Inotify>, left: usize) -> Self {
        Self(Mutex::new(State { inotify, left, written: HashSet::new(), overflows: 0 }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns what was written to since the last time. To be called before a reading.
    pub(super) fn learn(&self) {
        self.state().learn();
    }

    /// Reads the whole file into `buffer`, or what it is known to say; see [`Slot::read`].
    pub(super) fn read(
        &self,
        slot: &mut Slot,
        path: impl Fn() -> PathBuf,
        allowance: &Allowance,
        buffer: &mut Buffer,
    ) -> io::Result<Found> {
        if let Slot::Kept(kept) = slot
            && self.state().is_as_read(kept)
        {
            buffer.set(&kept.text);
            return Ok(Found::Kept);
        }
        let before = match slot {
            Slot::Kept(kept) => Some(kept.watch.clone()),
            Slot::Closed if allowance.is_left() => None,
            Slot::Closed | Slot::Open(_) | Slot::Absent { .. } => return slot.read(path, allowance, buffer),
        };
        *slot = Slot::Closed;
        // Watched first, then read: a write in between is seen twice, not missed.
        let Some((watch, overflows)) = self.state().watch(&path(), before) else {
            return slot.read(path, allowance, buffer);
        };
        let read = read_once(&path(), buffer);
        if let Ok(true) = read {
            *slot = Slot::Kept(Kept { text: buffer.bytes().into(), watch, overflows });
            return Ok(Found::Read);
        }
        self.state().forget(watch);
        read.map(|_| Found::Absent)
    }

    /// Forgets what a file said, or gives it back.
    pub(super) fn close(&self, slot: &mut Slot, allowance: &Allowance) {
        match std::mem::take(slot) {
            Slot::Kept(kept) => self.state().forget(kept.watch),
            other => {
                *slot = other;
                slot.close(allowance);
            }
        }
    }
}

impl State {
    fn learn(&mut self) {
        let Some(inotify) = &mut self.inotify else { return };
        let mut buffer = [0; BUFFER];
        // It does not block: no more events are an error.
        while let Ok(events) = inotify.read_events(&mut buffer) {
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    self.overflows += 1;
                } else if event.mask.contains(EventMask::MODIFY) {
                    self.written.insert(event.wd);
                }
            }
        }
    }

    fn is_as_read(&self, kept: &Kept) -> bool {
        kept.overflows == self.overflows && !self.written.contains(&kept.watch)
    }

    /// Watches a file, once more or anew: the kernel has one watch for each file (inotify(7)).
    fn watch(&mut self, path: &Path, before: Option<WatchDescriptor>) -> Option<(WatchDescriptor, u64)> {
        let watch = match &self.inotify {
            Some(inotify) if self.left > 0 || before.is_some() => inotify.watches().add(path, WatchMask::MODIFY).ok(),
            _ => None,
        };
        match before {
            Some(before) if watch.as_ref() != Some(&before) => self.forget(before),
            Some(_) => self.left += 1,
            None => {}
        }
        let watch = watch?;
        self.left = self.left.saturating_sub(1);
        self.written.remove(&watch);
        Some((watch, self.overflows))
    }

    fn forget(&mut self, watch: WatchDescriptor) {
        self.written.remove(&watch);
        self.left += 1;
        if let Some(inotify) = &self.inotify {
            // EINVAL: the kernel has ended it. It does not for a cgroup's files when that is removed: they always have a link.
            let _ = inotify.watches().remove(watch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        _directory: tempfile::TempDir,
        path: PathBuf,
        slot: Slot,
        settings: Settings,
        allowance: Allowance,
        buffer: Buffer,
    }

    impl Bench {
        fn new(inotify: Option<Inotify>, left: usize) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("f");
            let settings = Settings::with(inotify, left);
            Self {
                _directory: directory,
                path,
                slot: Slot::Closed,
                settings,
                allowance: 9.into(),
                buffer: Buffer::default(),
            }
        }

        fn read(&mut self) -> (Found, String) {
            self.settings.learn();
            let path = self.path.clone();
            let found = self.settings.read(&mut self.slot, || path.clone(), &self.allowance, &mut self.buffer).unwrap();
            (found, self.buffer.text().into_owned())
        }
    }

    #[test]
    fn read_again_when_written_to_and_only_then() {
        let mut bench = Bench::new(Some(Inotify::init().unwrap()), 2);
        fs::write(&bench.path, "100").unwrap();
        assert_eq!(bench.read(), (Found::Read, "100".into()));
        assert_eq!(bench.read(), (Found::Kept, "100".into()));
        for text in ["200", "3", "max"] {
            fs::write(&bench.path, text).unwrap();
            assert_eq!(bench.read(), (Found::Read, text.into()));
            assert_eq!(bench.read(), (Found::Kept, text.into()));
        }
        assert_eq!(bench.settings.state().left, 1);
        // After an overflow nobody knows what was written to.
        bench.settings.state().overflows += 1;
        assert_eq!(bench.read(), (Found::Read, "max".into()));
        assert_eq!((bench.read().0, bench.settings.state().left), (Found::Kept, 1));
        bench.settings.close(&mut bench.slot, &bench.allowance);
        assert_eq!(bench.settings.state().left, 2);
        assert!(bench.settings.state().written.is_empty());
        assert!(bench.allowance.is_left() && matches!(bench.slot, Slot::Closed));
    }

    #[test]
    fn another_file_of_the_same_name_is_another_file() {
        let mut bench = Bench::new(Some(Inotify::init().unwrap()), 2);
        fs::write(&bench.path, "100").unwrap();
        bench.read();
        fs::write(&bench.path, "101").unwrap();
        fs::remove_file(&bench.path).unwrap();
        fs::write(&bench.path, "200").unwrap();
        assert_eq!(bench.read(), (Found::Read, "200".into()));
        assert_eq!((bench.read().0, bench.settings.state().left), (Found::Kept, 1));
        fs::write(&bench.path, "201").unwrap();
        fs::remove_file(&bench.path).unwrap();
        assert_eq!(bench.read().0, Found::Absent);
        assert_eq!(bench.settings.state().left, 2);
    }

    #[test]
    fn without_watches_it_is_read_every_time() {
        for inotify in [None, Inotify::init().ok()] {
            let mut bench = Bench::new(inotify, 0);
            fs::write(&bench.path, "1").unwrap();
            assert_eq!(bench.read(), (Found::Read, "1".into()));
            assert_eq!(bench.read(), (Found::Read, "1".into()));
            assert!(matches!(bench.slot, Slot::Open(_)));
        }
    }
}
