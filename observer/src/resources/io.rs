//! What a container read from and wrote to block devices. Pure.
//!
//! v2 `io.stat` (Documentation/admin-guide/cgroup-v2.rst) has a line for each device; v1 the files
//! `blkio.throttle.io_service_bytes_recursive` and `blkio.throttle.io_serviced_recursive`
//! (Documentation/admin-guide/cgroup-v1/blkio-controller.rst), a line for each device and operation.

use super::parse;

/// Devices of one cgroup that are kept. The root has all of the node's: its disks, their partitions, and a volume or two
/// for each pod.
const MAX_DEVICES: usize = 512;

/// One block device. A field is `None` when no file told it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major and minor number.
    pub device: (u32, u32),
    /// Bytes read.
    pub read_bytes: Option<u64>,
    /// Bytes written.
    pub write_bytes: Option<u64>,
    /// Read operations.
    pub reads: Option<u64>,
    /// Write operations.
    pub writes: Option<u64>,
}

/// What a v1 file counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    Bytes,
    Operations,
}

/// v2 `io.stat`: `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`. Lines of devices that did nothing have
/// the device alone, and are left out.
pub(super) fn io_stat(text: &str, devices: &mut Vec<DeviceIo>) {
    for line in parse::whole(text).lines() {
        let mut fields = line.split(' ');
        let Some(device) = fields.next().and_then(parse::device) else { continue };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            let Some(io) = entry(devices, device) else { break };
            match key {
                "rbytes" => io.read_bytes = Some(value),
                "wbytes" => io.write_bytes = Some(value),
                "rios" => io.reads = Some(value),
                "wios" => io.writes = Some(value),
                _ => {}
            }
        }
    }
}

/// A v1 file: `254:0 Read 4096`, a line for each operation; the last line is a total of all devices.
pub(super) fn blkio(text: &str, counted: Counted, devices: &mut Vec<DeviceIo>) {
    for line in parse::whole(text).lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(operation), Some(value)) = (
            fields.next().and_then(parse::device),
            fields.next(),
            fields.next().and_then(|value| value.parse::<u64>().ok()),
        ) else {
            continue;
        };
        if !matches!(operation, "Read" | "Write") {
            continue;
        }
        let Some(io) = entry(devices, device) else { continue };
        match (operation, counted) {
            ("Read", Counted::Bytes) => io.read_bytes = Some(value),
            ("Read", Counted::Operations) => io.reads = Some(value),
            (_, Counted::Bytes) => io.write_bytes = Some(value),
            (_, Counted::Operations) => io.writes = Some(value),
        }
    }
}

fn entry(devices: &mut Vec<DeviceIo>, device: (u32, u32)) -> Option<&mut DeviceIo> {
    let at = match devices.iter().position(|io| io.device == device) {
        Some(at) => at,
        None if devices.len() < MAX_DEVICES => {
            devices.push(DeviceIo { device, ..DeviceIo::default() });
            devices.len() - 1
        }
        None => return None,
    };
    devices.get_mut(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_has_a_line_for_each_device() {
        let mut devices = Vec::new();
        let text =
            "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:16 \n7:0 rbytes=x wios=3\nbroken\n9:1 rb";
        io_stat(text, &mut devices);
        let full = DeviceIo {
            device: (254, 0),
            read_bytes: Some(4096),
            write_bytes: Some(8192),
            reads: Some(1),
            writes: Some(2),
        };
        assert_eq!(devices, [full, DeviceIo { device: (7, 0), writes: Some(3), ..DeviceIo::default() }]);
    }

    #[test]
    fn v1_has_a_line_for_each_operation() {
        let mut devices = Vec::new();
        let bytes = "254:0 Read 4096\n254:0 Write 8192\n254:0 Sync 1\n254:0 Total 12288\nTotal 12288\n";
        blkio(bytes, Counted::Bytes, &mut devices);
        blkio("254:0 Read 1\n254:0 Write 2\n254:0 Discard 9\n254:0 Read 7", Counted::Operations, &mut devices);
        let expected = DeviceIo {
            device: (254, 0),
            read_bytes: Some(4096),
            write_bytes: Some(8192),
            reads: Some(1),
            writes: Some(2),
        };
        assert_eq!(devices, [expected]);
    }

    #[test]
    fn a_file_of_very_many_devices_is_bounded() {
        let text: String = (0..1000).map(|n| format!("{n}:0 rbytes=1\n")).collect();
        let mut devices = Vec::new();
        io_stat(&text, &mut devices);
        assert_eq!(devices.len(), MAX_DEVICES);
    }
}
