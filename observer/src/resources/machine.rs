//! What kind of machine the node is. Facts that do not change while it runs, but for processors that come and go.

use std::{collections::BTreeSet, fs, io::Read, path::Path};

/// The longest text that is taken of any file here.
const MAX_BYTES: u64 = 4096;

/// Facts of the machine. Text is empty where nobody tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// `/etc/machine-id` (machine-id(5)).
    pub machine_id: String,
    /// The firmware's UUID of the machine; the machine id where there is none, as the kubelet does.
    pub system_uuid: String,
    /// The kernel's release, as `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release(5).
    pub system: String,
    /// The processors.
    pub processors: Processors,
}

/// Processors that are on line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processors {
    /// Hardware threads.
    pub threads: u64,
    /// Cores; `None` where the kernel tells no topology.
    pub cores: Option<u64>,
    /// Sockets.
    pub sockets: Option<u64>,
}

impl Machine {
    /// Reads them. The host's files are found through the root of its first process, so that an agent in a container
    /// does not take its image for the host; without permission for that its own are read.
    #[must_use]
    pub fn read(procfs: &Path, sysfs: &Path) -> Self {
        let host = procfs.join("1/root");
        let etc = |name: &str| text(&host.join(name)).or_else(|| text(&Path::new("/").join(name)));
        let machine_id = etc("etc/machine-id").or_else(|| etc("var/lib/dbus/machine-id")).unwrap_or_default();
        let release = etc("etc/os-release").or_else(|| etc("usr/lib/os-release")).unwrap_or_default();
        Self {
            boot_id: text(&procfs.join("sys/kernel/random/boot_id")).unwrap_or_default(),
            system_uuid: text(&sysfs.join("class/dmi/id/product_uuid")).unwrap_or_else(|| machine_id.clone()),
            machine_id,
            kernel: text(&procfs.join("sys/kernel/osrelease")).unwrap_or_default(),
            system: pretty_name(&release),
            processors: processors(&sysfs.join("devices/system/cpu")),
        }
    }
}

/// The list of processors on line, as the kernel writes it: what [`Machine`] holds is good while it stays.
#[must_use]
pub fn online(sysfs: &Path) -> String {
    text(&sysfs.join("devices/system/cpu/online")).unwrap_or_default()
}

/// Counts from `cpuN/topology` (Documentation/admin-guide/cputopology.rst); a processor off line has none.
fn processors(directory: &Path) -> Processors {
    let (mut threads, mut cores, mut sockets) = (0, BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu")?.parse::<u32>().ok());
        let topology = entry.path().join("topology");
        if number.is_none() || !topology.is_dir() {
            continue;
        }
        threads += 1;
        let id = |file| text(&topology.join(file));
        if let Some((package, core)) = id("physical_package_id").zip(id("core_id")) {
            sockets.insert(package.clone());
            cores.insert((package, core));
        }
    }
    let known = |count: usize| u64::try_from(count).ok().filter(|count| *count > 0);
    Processors { threads, cores: known(cores.len()), sockets: known(sockets.len()) }
}

/// A short file without its last line end; `None` when it is empty or cannot be read.
fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn pretty_name(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    value.trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_host_s_files_and_the_topology() {
        let directory = tempfile::tempdir().unwrap();
        let (procfs, sysfs) = (directory.path().join("proc"), directory.path().join("sys"));
        write(&procfs, "1/root/etc/machine-id", "3d1219c7c4c5404aaa1f6d2a48adfda4\n");
        write(&procfs, "1/root/etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
        write(&procfs, "sys/kernel/random/boot_id", "e1a1f13d-af96-4471-9e32-a62b393d504d\n");
        // Two sockets of two cores, one of them with two threads; core numbers are each socket's own.
        for (cpu, package, core) in [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 1, 1)] {
            write(
                &sysfs,
                &format!("devices/system/cpu/cpu{cpu}/topology/physical_package_id"),
                &format!("{package}\n"),
            );
            write(&sysfs, &format!("devices/system/cpu/cpu{cpu}/topology/core_id"), &format!("{core}\n"));
        }
        write(&sysfs, "devices/system/cpu/cpu5/online", "0\n");
        write(&sysfs, "devices/system/cpu/cpufreq/boost", "0\n");
        let machine = Machine::read(&procfs, &sysfs);
        assert_eq!(machine.processors, Processors { threads: 5, cores: Some(4), sockets: Some(2) });
        assert_eq!(machine.system_uuid, "3d1219c7c4c5404aaa1f6d2a48adfda4");
        assert_eq!(machine.system, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(machine.boot_id, "e1a1f13d-af96-4471-9e32-a62b393d504d");
        write(&sysfs, "class/dmi/id/product_uuid", "uuid\n");
        assert_eq!(Machine::read(&procfs, &sysfs).system_uuid, "uuid");
    }
}
