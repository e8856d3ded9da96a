//! The interfaces of a network namespace and what went over them, read without entering it.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, ensure};
use procfs::{ProcError, net::DeviceStatus, process::Process};
use rustix::io::Errno;

/// Interfaces of one namespace that are shown; whoever may make interfaces may make thousands.
pub const MAX_INTERFACES: usize = 64;
/// Interfaces whose names begin like this are not the pod's own: cAdvisor leaves them out, and so do its users.
const LEFT_OUT: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];

/// One interface, from `/proc/<pid>/net/dev` (proc_pid_net(5)); the same as `ip -s link` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What came in.
    pub received: Direction,
    /// What went out.
    pub transmitted: Direction,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Direction {
    /// Bytes, link headers included.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were dropped.
    pub dropped: u64,
    /// Packets with errors.
    pub errors: u64,
}

/// Interfaces of one namespace, sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// At most [`MAX_INTERFACES`].
    pub shown: Vec<Interface>,
    /// How many more there are.
    pub more: usize,
}

/// The interfaces of the network namespace that this process is in. `Ok(None)` when the process is gone, or is another
/// one by now, in another namespace than `netns` (the inode).
///
/// # Errors
/// When the process is there and its file cannot be read.
pub fn interfaces(procfs: &Path, pid: i32, netns: Option<u64>) -> anyhow::Result<Option<Interfaces>> {
    let directory = procfs.join(pid.to_string());
    let file = directory.join("net/dev");
    // Its directory stays open: what is read through it is of this process, though another one gets its number. Asked
    // before and after, so that the one that was opened is the one that was asked about.
    let read = || {
        if !is_in(&directory, netns)? {
            return Ok(None);
        }
        let devices = match Process::new_with_root(directory.clone()).and_then(|process| process.dev_status()) {
            Ok(devices) => devices,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(anyhow::Error::from(error)),
        };
        Ok(is_in(&directory, netns)?.then(|| shown(devices.into_values())))
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}

/// Whether a process is in a network namespace (namespaces(7)); in any when none is named. False when it is gone.
fn is_in(directory: &Path, netns: Option<u64>) -> io::Result<bool> {
    let Some(netns) = netns else { return Ok(true) };
    match fs::metadata(directory.join("ns/net")) {
        Ok(found) => Ok(found.ino() == netns),
        Err(error) if is_end(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the kernel says of a process that ended, and of a zombie, which is in no namespace.
fn is_end(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::SRCH | Errno::NOENT | Errno::INVAL))
}

fn is_gone(error: &ProcError) -> bool {
    match error {
        ProcError::NotFound(_) => true,
        ProcError::Io(error, _) => is_end(error),
        _ => false,
    }
}

fn shown(devices: impl Iterator<Item = DeviceStatus>) -> Interfaces {
    let mut all: Vec<Interface> =
        devices.filter(|device| !LEFT_OUT.iter().any(|prefix| device.name.starts_with(prefix))).map(from).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let more = all.len().saturating_sub(MAX_INTERFACES);
    all.truncate(MAX_INTERFACES);
    Interfaces { shown: all, more }
}

fn from(device: DeviceStatus) -> Interface {
    Interface {
        received: Direction {
            bytes: device.recv_bytes,
            packets: device.recv_packets,
            dropped: device.recv_drop,
            errors: device.recv_errs,
        },
        transmitted: Direction {
            bytes: device.sent_bytes,
            packets: device.sent_packets,
            dropped: device.sent_drop,
            errors: device.sent_errs,
        },
        name: device.name,
    }
}

impl Interfaces {
    /// Says that some are not shown.
    ///
    /// # Errors
    /// When there are more than [`MAX_INTERFACES`].
    pub fn complete(&self, of: &str) -> anyhow::Result<()> {
        ensure!(
            self.more == 0,
            "{of} has {} network interfaces more than the {MAX_INTERFACES} that are shown",
            self.more
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use procfs::{FromRead, net::InterfaceDeviceStatus};

    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9
  eth0: 2678      33    1    2    0     0          0         0      752      10    3    4    0     0       0          0
veth12: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9
docker0: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9
";

    #[test]
    fn the_kernel_s_table_without_what_is_not_the_pod_s() {
        let devices = InterfaceDeviceStatus::from_read(DEV.as_bytes()).unwrap().0;
        let expected = Interface {
            name: "eth0".into(),
            received: Direction { bytes: 2678, packets: 33, dropped: 2, errors: 1 },
            transmitted: Direction { bytes: 752, packets: 10, dropped: 4, errors: 3 },
        };
        assert_eq!(shown(devices.into_values()), Interfaces { shown: vec![expected], more: 0 });
    }

    #[test]
    fn too_many_are_cut_and_said() {
        let device = InterfaceDeviceStatus::from_read(DEV.as_bytes()).unwrap().0.remove("eth0").unwrap();
        let many = (0..70).map(|n| DeviceStatus { name: format!("e{n:02}"), ..device.clone() });
        let found = shown(many);
        assert_eq!((found.shown.len(), found.more), (MAX_INTERFACES, 6));
        assert!(found.complete("pod n/p").unwrap_err().to_string().contains("pod n/p has 6"));
        assert!(Interfaces::default().complete("x").is_ok());
    }

    #[test]
    fn a_process_that_is_gone_or_in_another_namespace_tells_nothing() {
        let (procfs, me) = (Path::new("/proc"), i32::try_from(std::process::id()).unwrap());
        let netns = crate::sandbox::process::read(procfs, me).unwrap().namespace("net");
        assert!(netns.is_some() && interfaces(procfs, me, netns).unwrap().is_some());
        assert_eq!(interfaces(procfs, me, Some(1)).unwrap(), None);
        assert_eq!(interfaces(procfs, i32::MAX, netns).unwrap(), None);
    }
}
