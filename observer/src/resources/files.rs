//! Files that stay open: opening a cgroup file costs ten times what reading it does.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::settings::Kept;
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// The most that is read of one file; cgroup files are a few kilobytes.
const MAX_BYTES: usize = 1 << 20;
/// A file that is not there is looked for again after one reading, then after two, after four, at last after so many: what
/// a runtime is about to make is found soon, and what a host has not costs little.
const LOOK_AGAIN: u8 = 16;

/// How many more files may stay open.
#[derive(Debug)]
pub(super) struct Allowance(AtomicUsize);

impl Allowance {
    pub(super) fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn is_left(&self) -> bool {
        self.left() > 0
    }

    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl From<usize> for Allowance {
    fn from(files: usize) -> Self {
        Self(files.into())
    }
}

/// What became of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It was read.
    Read,
    /// It was read, but the file that was open before is gone: another cgroup has its name.
    Renewed,
    /// It is known to say what it said.
    Kept,
    /// It does not exist, or is gone with its cgroup.
    Absent,
}

/// One file of one container.
#[derive(Debug, Default)]
pub(super) enum Slot {
    /// Not opened yet.
    #[default]
    Closed,
    /// Open.
    Open(File),
    /// Not there.
    Absent {
        /// Readings until it is looked for again.
        left: u8,
        /// How many that were at first.
        of: u8,
    },
    /// Not open: it says what it said.
    Kept(Kept),
}

impl Slot {
    /// Reads the whole file into `buffer`. A held file of a cgroup that was removed and made again under the same name is opened anew.
    pub(super) fn read(
        &mut self,
        path: impl Fn() -> PathBuf,
        allowance: &Allowance,
        buffer: &mut Buffer,
    ) -> io::Result<Found> {
        let mut found = Found::Read;
        let mut absent = 1;
        match self {
            Self::Absent { left: 0, of } => {
                absent = LOOK_AGAIN.min(*of * 2);
                *self = Self::Closed;
            }
            Self::Absent { left, .. } => {
                *left -= 1;
                return Ok(Found::Absent);
            }
            Self::Open(file) => match buffer.read_all(file) {
                Ok(()) => return Ok(found),
                Err(_) => {
                    self.close(allowance);
                    found = Found::Renewed;
                }
            },
            Self::Closed | Self::Kept(_) => {}
        }
        let opened = File::open(path()).and_then(|file| buffer.read_all(&file).map(|()| file));
        match opened {
            Ok(file) => {
                if allowance.take() {
                    *self = Self::Open(file);
                }
                Ok(found)
            }
            Err(error) if is_absent(&error) => {
                *self = Self::Absent { left: absent, of: absent };
                Ok(Found::Absent)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the file back.
    pub(super) fn close(&mut self, allowance: &Allowance) {
        if let Self::Open(_) = std::mem::take(self) {
            allowance.give_back();
        }
    }
}

/// Reads a file of any length, once, without keeping it. `Ok(false)` when it is not there.
pub(super) fn read_once(path: &Path, buffer: &mut Buffer) -> io::Result<bool> {
    match File::open(path).and_then(|file| buffer.read_all(&file)) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// No such file, the cgroup was removed while its file is open (ENODEV), or the file does not apply to this kind
/// of cgroup (EOPNOTSUPP, as for `cgroup.procs` of a threaded one).
fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || matches!(Errno::from_io_error(error), Some(Errno::NODEV | Errno::OPNOTSUPP | Errno::NOTDIR))
}

/// Room for one file, used again and again without being cleared.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    room: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// What was read last.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[..self.length]
    }

    /// The same as text; what is not UTF-8 is replaced.
    pub(super) fn text(&self) -> Cow<'_, str> {
        // What is ASCII, as all of these files are, is checked in words by the one and byte for byte by the other.
        str::from_utf8(self.bytes()).map_or_else(|_| String::from_utf8_lossy(self.bytes()), Cow::Borrowed)
    }

    /// As if this had been read.
    pub(super) fn set(&mut self, bytes: &[u8]) {
        if self.room.len() < bytes.len() {
            self.room.resize(bytes.len(), 0);
        }
        self.room[..bytes.len()].copy_from_slice(bytes);
        self.length = bytes.len();
    }

    fn read_all(&mut self, file: &File) -> io::Result<()> {
        self.length = 0;
        loop {
            if self.room.len() < self.length + 4096 {
                self.room.resize(self.length + 8192, 0);
            }
            match file.read_at(&mut self.room[self.length..], self.length as u64) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.length += n;
                    // The kernel stops short of this room only at the file's end or when its own page is nearly full.
                    if n < 2048 {
                        return Ok(());
                    }
                    if self.length >= MAX_BYTES {
                        return Err(io::Error::new(
                            ErrorKind::FileTooLarge,
                            "it is larger than any such file should be",
                        ));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Lets this process have as many files open as its hard limit allows, at most 65,536 (setrlimit(2)). Returns how
/// many that are. When the limit cannot be raised the old one stays: files are then opened for each reading.
pub fn raise_file_limit() -> u64 {
    const ENOUGH: u64 = 65_536;
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(ENOUGH), limit.maximum.unwrap_or(ENOUGH));
    let wanted = hard.min(ENOUGH);
    if soft < wanted && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).is_ok() {
        return wanted;
    }
    soft
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_come_go_and_come_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let (mut slot, allowance, mut buffer) = (Slot::default(), Allowance::from(1), Buffer::default());
        let mut read = |slot: &mut Slot| slot.read(|| path.clone(), &allowance, &mut buffer).unwrap();
        for pause in [1, 2, 4, 8, LOOK_AGAIN, LOOK_AGAIN] {
            assert_eq!(read(&mut slot), Found::Absent);
            assert!(matches!(slot, Slot::Absent { left, .. } if left == pause), "{slot:?}");
            assert!((0..pause).all(|_| read(&mut slot) == Found::Absent));
        }
        assert_eq!(read(&mut slot), Found::Absent);
        fs::write(&path, "1\n").unwrap();
        assert!((0..LOOK_AGAIN).all(|_| read(&mut slot) == Found::Absent));
        assert_eq!(read(&mut slot), Found::Read);
        assert!(matches!(slot, Slot::Open(_)));
        slot.close(&allowance);
        assert_eq!(allowance.left(), 1);
        assert_eq!(buffer.text(), "1\n");
    }

    #[test]
    fn what_fails_while_it_is_open_is_opened_anew() {
        // Opens, and its first byte cannot be read (EIO).
        let failing = || PathBuf::from("/proc/self/mem");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "1\n").unwrap();
        let (allowance, mut buffer) = (Allowance::from(0), Buffer::default());
        let open = || Slot::Open(File::open(failing()).unwrap());
        assert_eq!(open().read(|| path.clone(), &allowance, &mut buffer).unwrap(), Found::Renewed);
        assert_eq!(buffer.text(), "1\n");
        let left = allowance.left();
        let mut slot = open();
        assert_eq!(slot.read(failing, &allowance, &mut buffer).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(matches!(slot, Slot::Closed), "{slot:?}");
        assert_eq!((buffer.bytes().len(), allowance.left()), (0, left + 1));
        assert_eq!(read_once(&failing(), &mut buffer).unwrap_err().raw_os_error(), Some(libc::EIO));
    }

    #[test]
    fn long_files_are_read_whole_and_huge_ones_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let mut buffer = Buffer::default();
        for length in [0, 4096, 100_000] {
            fs::write(&path, vec![b'x'; length]).unwrap();
            assert!(read_once(&path, &mut buffer).unwrap());
            assert_eq!(buffer.bytes().len(), length);
        }
        fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
        assert_eq!(read_once(&path, &mut buffer).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(!read_once(&directory.path().join("none"), &mut buffer).unwrap());
    }

    #[test]
    fn without_allowance_files_are_read_but_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "1\n").unwrap();
        let mut slot = Slot::default();
        let found = slot.read(|| path.clone(), &Allowance::from(0), &mut Buffer::default()).unwrap();
        assert_eq!(found, Found::Read);
        assert!(matches!(slot, Slot::Closed));
    }
}
