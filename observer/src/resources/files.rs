//! Files that stay open: opening a cgroup file costs ten times what reading it does.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
};

use rustix::io::Errno;

/// The most that is read of one file; cgroup files are a few kilobytes.
const MAX_BYTES: usize = 1 << 20;
/// A file that is not there is looked for again after so many readings.
const LOOK_AGAIN: u8 = 16;

/// How many more files may stay open.
#[derive(Debug)]
pub(super) struct Allowance(pub usize);

/// One file of one container.
#[derive(Debug, Default)]
pub(super) enum Slot {
    /// Not opened yet.
    #[default]
    Closed,
    /// Open.
    Open(File),
    /// Not there; the number of readings until it is looked for again.
    Absent(u8),
}

impl Slot {
    /// Reads the whole file into `buffer`. `Ok(false)` when it does not exist or is gone with its cgroup.
    ///
    /// A held file of a cgroup that was removed and made again under the same name is opened anew.
    pub(super) fn read(
        &mut self,
        path: impl Fn() -> std::path::PathBuf,
        allowance: &mut Allowance,
        buffer: &mut Vec<u8>,
    ) -> io::Result<bool> {
        match self {
            Self::Absent(0) => *self = Self::Closed,
            Self::Absent(left) => {
                *left -= 1;
                return Ok(false);
            }
            Self::Open(file) => match read_all(file, buffer) {
                Ok(()) => return Ok(true),
                Err(_) => self.close(allowance),
            },
            Self::Closed => {}
        }
        let opened = File::open(path()).and_then(|file| read_all(&file, buffer).map(|()| file));
        match opened {
            Ok(file) => {
                if allowance.0 > 0 {
                    allowance.0 -= 1;
                    *self = Self::Open(file);
                }
                Ok(true)
            }
            Err(error) if is_absent(&error) => {
                *self = Self::Absent(LOOK_AGAIN);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the file back.
    pub(super) fn close(&mut self, allowance: &mut Allowance) {
        if let Self::Open(_) = std::mem::take(self) {
            allowance.0 += 1;
        }
    }
}

/// Reads a file of any length, once, without keeping it; the same answers as [`Slot::read`].
pub(super) fn read_once(path: &Path, buffer: &mut Vec<u8>) -> io::Result<bool> {
    match File::open(path).and_then(|file| read_all(&file, buffer)) {
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

fn read_all(file: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut length = 0;
    loop {
        if buffer.len() < length + 4096 {
            buffer.resize(length + 8192, 0);
        }
        match file.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => {
                length += n;
                // A kernel file ends short of the caller's buffer only at its end or when its own page is nearly full.
                if n < 2048 || length >= MAX_BYTES {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_come_go_and_come_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let (mut slot, mut allowance, mut buffer) = (Slot::default(), Allowance(1), Vec::new());
        let mut read = |slot: &mut Slot| slot.read(|| path.clone(), &mut allowance, &mut buffer).unwrap();
        assert!(!read(&mut slot));
        fs::write(&path, "1\n").unwrap();
        assert!((0..LOOK_AGAIN).all(|_| !read(&mut slot)));
        assert!(read(&mut slot));
        assert!(matches!(slot, Slot::Open(_)));
        slot.close(&mut allowance);
        assert_eq!(allowance.0, 1);
        assert_eq!(buffer, b"1\n");
    }

    #[test]
    fn long_files_are_read_whole_and_huge_ones_are_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let mut buffer = Vec::new();
        for (written, read) in [(0, 0), (4096, 4096), (100_000, 100_000), (3 << 20, MAX_BYTES)] {
            fs::write(&path, vec![b'x'; written]).unwrap();
            assert!(read_once(&path, &mut buffer).unwrap());
            assert!(buffer.len() >= read && buffer.len() < read + 16384, "{written}: {}", buffer.len());
        }
        assert!(!read_once(&directory.path().join("none"), &mut buffer).unwrap());
    }

    #[test]
    fn without_allowance_files_are_read_but_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "1\n").unwrap();
        let mut slot = Slot::default();
        assert!(slot.read(|| path.clone(), &mut Allowance(0), &mut Vec::new()).unwrap());
        assert!(matches!(slot, Slot::Closed));
    }
}
