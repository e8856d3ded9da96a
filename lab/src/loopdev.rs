//! A block device of the lab's own: a loop device over a file that nobody else sees.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const CONTROL: &str = "/dev/loop-control";
/// `LOOP_CTL_GET_FREE` of include/uapi/linux/loop.h.
const GET_FREE: libc::c_ulong = 0x4C82;
/// `LOOP_SET_FD`.
const SET_FD: libc::c_ulong = 0x4C00;
/// `LOOP_CLR_FD`.
const CLEAR_FD: libc::c_ulong = 0x4C01;
/// How often another program may take the free device first.
const TRIES: usize = 16;

/// A loop device. Dropping it lets the kernel have it back.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    device: File,
    _backing: File,
}

impl LoopDevice {
    /// Makes one of this many bytes. `None` where the kernel has no loop devices.
    pub fn create(bytes: u64) -> Result<Option<Self>> {
        let control = match File::options().read(true).write(true).open(CONTROL) {
            Ok(control) => control,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening {CONTROL}")),
        };
        let backing = tempfile::tempfile().context("making a file for a loop device")?;
        backing.set_len(bytes).context("sizing a file for a loop device")?;
        for _ in 0..TRIES {
            let number = ioctl(&control, GET_FREE, 0).context("asking for a free loop device")?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            if !path.exists() {
                make_node(&path, number)?;
            }
            let device = File::options().read(true).write(true).open(&path);
            let device = device.with_context(|| format!("opening {}", path.display()))?;
            if ioctl(&device, SET_FD, libc::c_ulong::try_from(backing.as_raw_fd())?).is_ok() {
                return Ok(Some(Self { path, device, _backing: backing }));
            }
        }
        bail!("{TRIES} times somebody else took the free loop device first")
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, as the kernel tells it.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Its number, `MAJOR:MINOR`.
    pub fn number(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        let id = self.device.metadata().with_context(|| format!("asking for {}", self.path.display()))?.rdev();
        Ok(format!("{}:{}", rustix::fs::major(id), rustix::fs::minor(id)))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = ioctl(&self.device, CLEAR_FD, 0) {
            eprintln!("observer-lab: giving {} back: {error}", self.path.display());
        }
    }
}

/// A device node, where nobody makes them by himself.
fn make_node(path: &Path, number: i32) -> Result<()> {
    const LOOP_MAJOR: u32 = 7;
    let device = rustix::fs::makedev(LOOP_MAJOR, u32::try_from(number)?);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::BlockDevice, 0o600.into(), device)
        .with_context(|| format!("making {}", path.display()))
}

fn ioctl(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> std::io::Result<i32> {
    // SAFETY: these requests take a number or nothing, and write to no memory of ours (loop(4)).
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
