//! Every family of `/metrics/cadvisor`: names, types and labels are cAdvisor's (`metrics/prometheus.go`).

use std::marker::PhantomData;

use crate::metrics::family::{Counter, Family, Gauge, Kind, Row, Unit, catalogue};

/// No labels.
const NONE: [&str; 0] = [];
/// A cgroup: of the node, above pods, a pod's (without a container), a container's.
const CGROUP: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
/// A block device that a cgroup's processes used.
const DEVICE: [&str; 7] = ["container", "device", "id", "image", "name", "namespace", "pod"];
/// An interface of the namespace that a cgroup's processes are in.
const INTERFACE: [&str; 7] = ["container", "id", "image", "interface", "name", "namespace", "pod"];
/// The node.
const MACHINE: [&str; 3] = ["boot_id", "machine_id", "system_uuid"];

catalogue! {
    "CPU" {
        CPU_USAGE: Counter, Seconds, "container_cpu_usage_seconds_total", ["container", "cpu", "id", "image", "name", "namespace", "pod"],
            "CPU time. The label cpu is always total.";
        CPU_USER: Counter, Seconds, "container_cpu_user_seconds_total", CGROUP,
            "CPU time in user mode.";
        CPU_SYSTEM: Counter, Seconds, "container_cpu_system_seconds_total", CGROUP,
            "CPU time in the kernel.";
        CFS_PERIODS: Counter, Count, "container_cpu_cfs_periods_total", CGROUP,
            "Enforcement periods of the CPU quota. Only with a quota.";
        CFS_THROTTLED_PERIODS: Counter, Count, "container_cpu_cfs_throttled_periods_total", CGROUP,
            "Enforcement periods with throttling. Only with a quota.";
        CFS_THROTTLED_SECONDS: Counter, Seconds, "container_cpu_cfs_throttled_seconds_total", CGROUP,
            "Time throttled. Only with a quota.";
        CFS_BURST_PERIODS: Counter, Count, "container_cpu_cfs_burst_periods_total", CGROUP,
            "Enforcement periods in which more than the quota was used. Only with a quota.";
        CFS_BURST_SECONDS: Counter, Seconds, "container_cpu_cfs_burst_seconds_total", CGROUP,
            "CPU time beyond the quota. Only with a quota.";
        SPEC_CPU_PERIOD: Gauge, Count, "container_spec_cpu_period", CGROUP,
            "Period of the CPU quota, in microseconds.";
        SPEC_CPU_QUOTA: Gauge, Count, "container_spec_cpu_quota", CGROUP,
            "CPU time for each period, in microseconds. Only with a quota.";
        SPEC_CPU_SHARES: Gauge, Count, "container_spec_cpu_shares", CGROUP,
            "CPU shares; on cgroup v2 those that its weight stands for.";
    }
    "Memory" {
        MEMORY_USAGE: Gauge, Bytes, "container_memory_usage_bytes", CGROUP,
            "All memory charged, file cache included.";
        MEMORY_WORKING_SET: Gauge, Bytes, "container_memory_working_set_bytes", CGROUP,
            "Usage without inactive file cache.";
        MEMORY_RSS: Gauge, Bytes, "container_memory_rss", CGROUP,
            "Anonymous memory.";
        MEMORY_CACHE: Gauge, Bytes, "container_memory_cache", CGROUP,
            "File cache.";
        MEMORY_MAPPED_FILE: Gauge, Bytes, "container_memory_mapped_file", CGROUP,
            "Files that are mapped.";
        MEMORY_ACTIVE_FILE: Gauge, Bytes, "container_memory_total_active_file_bytes", CGROUP,
            "File cache in use.";
        MEMORY_INACTIVE_FILE: Gauge, Bytes, "container_memory_total_inactive_file_bytes", CGROUP,
            "File cache that can go first.";
        MEMORY_KERNEL: Gauge, Bytes, "container_memory_kernel_usage", CGROUP,
            "Kernel memory.";
        MEMORY_SWAP: Gauge, Bytes, "container_memory_swap", CGROUP,
            "Memory swapped out.";
        MEMORY_MAX_USAGE: Gauge, Bytes, "container_memory_max_usage_bytes", CGROUP,
            "Highest usage.";
        MEMORY_FAILCNT: Counter, Count, "container_memory_failcnt", CGROUP,
            "How often usage met the limit.";
        MEMORY_FAILURES: Counter, Count, "container_memory_failures_total", ["container", "failure_type", "id", "image", "name", "namespace", "pod", "scope"],
            "Page faults (pgfault), and those of them that read from disk (pgmajfault). Scope is container or hierarchy (cgroups below included).";
        SPEC_MEMORY_LIMIT: Gauge, Bytes, "container_spec_memory_limit_bytes", CGROUP,
            "Memory limit, 0 for none; the node's memory for the node.";
        SPEC_MEMORY_RESERVATION: Gauge, Bytes, "container_spec_memory_reservation_limit_bytes", CGROUP,
            "Memory that is kept for it (memory.min; v1: the soft limit), 0 for none.";
        SPEC_MEMORY_SWAP_LIMIT: Gauge, Bytes, "container_spec_memory_swap_limit_bytes", CGROUP,
            "Swap limit, 0 for none (v1: of memory and swap together).";
    }
    "Pressure" {
        PRESSURE_CPU_WAITING: Counter, Seconds, "container_pressure_cpu_waiting_seconds_total", CGROUP,
            "Time in which some task waited for the CPU.";
        PRESSURE_CPU_STALLED: Counter, Seconds, "container_pressure_cpu_stalled_seconds_total", CGROUP,
            "Time in which all tasks waited for the CPU.";
        PRESSURE_MEMORY_WAITING: Counter, Seconds, "container_pressure_memory_waiting_seconds_total", CGROUP,
            "Time in which some task waited for memory.";
        PRESSURE_MEMORY_STALLED: Counter, Seconds, "container_pressure_memory_stalled_seconds_total", CGROUP,
            "Time in which all tasks waited for memory.";
        PRESSURE_IO_WAITING: Counter, Seconds, "container_pressure_io_waiting_seconds_total", CGROUP,
            "Time in which some task waited for block devices.";
        PRESSURE_IO_STALLED: Counter, Seconds, "container_pressure_io_stalled_seconds_total", CGROUP,
            "Time in which all tasks waited for block devices.";
    }
    "Block devices and file systems" {
        FS_READS: Counter, Count, "container_fs_reads_total", DEVICE,
            "Reads from the device. On cgroup v1 from kernel 6.10 on only where the device has a throttling rule.";
        FS_WRITES: Counter, Count, "container_fs_writes_total", DEVICE,
            "Writes to the device. On cgroup v1 from kernel 6.10 on only where the device has a throttling rule.";
        FS_READ_BYTES: Counter, Bytes, "container_fs_reads_bytes_total", DEVICE,
            "Bytes read from the device.";
        FS_WRITE_BYTES: Counter, Bytes, "container_fs_writes_bytes_total", DEVICE,
            "Bytes written to the device.";
        FS_USAGE: Gauge, Bytes, "container_fs_usage_bytes", DEVICE,
            "Bytes in use in a file system of the node (id=\"/\") on this device.";
        FS_LIMIT: Gauge, Bytes, "container_fs_limit_bytes", DEVICE,
            "Size of a file system of the node (id=\"/\") on this device.";
        FS_INODES: Gauge, Count, "container_fs_inodes_total", DEVICE,
            "Inodes of a file system of the node (id=\"/\") on this device. Absent where their number is not fixed.";
        FS_INODES_FREE: Gauge, Count, "container_fs_inodes_free", DEVICE,
            "Of them, those that are not in use.";
        BLKIO_USAGE: Counter, Bytes, "container_blkio_device_usage_total", ["container", "device", "id", "image", "major", "minor", "name", "namespace", "operation", "pod"],
            "The same bytes by operation (Read, Write) and the device's numbers.";
    }
    "Network" {
        RECEIVE_BYTES: Counter, Bytes, "container_network_receive_bytes_total", INTERFACE,
            "Bytes that the interface received, link headers included.";
        RECEIVE_PACKETS: Counter, Count, "container_network_receive_packets_total", INTERFACE,
            "Packets that the interface received.";
        RECEIVE_DROPPED: Counter, Count, "container_network_receive_packets_dropped_total", INTERFACE,
            "Packets dropped while receiving.";
        RECEIVE_ERRORS: Counter, Count, "container_network_receive_errors_total", INTERFACE,
            "Errors while receiving.";
        TRANSMIT_BYTES: Counter, Bytes, "container_network_transmit_bytes_total", INTERFACE,
            "Bytes that the interface sent, link headers included.";
        TRANSMIT_PACKETS: Counter, Count, "container_network_transmit_packets_total", INTERFACE,
            "Packets that the interface sent.";
        TRANSMIT_DROPPED: Counter, Count, "container_network_transmit_packets_dropped_total", INTERFACE,
            "Packets dropped while sending.";
        TRANSMIT_ERRORS: Counter, Count, "container_network_transmit_errors_total", INTERFACE,
            "Errors while sending.";
    }
    "Processes and life" {
        PROCESSES: Gauge, Count, "container_processes", CGROUP,
            "Processes in the cgroup; of a container also those in cgroups that it made.";
        THREADS: Gauge, Count, "container_threads", CGROUP,
            "Threads, cgroups below included.";
        THREADS_MAX: Gauge, Count, "container_threads_max", CGROUP,
            "Most threads that are allowed, 0 for no limit.";
        OOM_EVENTS: Counter, Count, "container_oom_events_total", CGROUP,
            "Processes that the kernel killed for want of memory; on cgroup v2 cgroups below included.";
        START_TIME: Gauge, Seconds, "container_start_time_seconds", CGROUP,
            "When the first process started, in seconds since 1970; the node's is its boot.";
        LAST_SEEN: Gauge, Seconds, "container_last_seen", CGROUP,
            "When this was read, in whole seconds since 1970.";
        SCRAPE_ERROR: Gauge, Count, "container_scrape_error", NONE,
            "1 when something could not be read, else 0.";
    }
    "The machine" {
        VERSION_INFO: Gauge, Info, "cadvisor_version_info", ["cadvisorRevision", "cadvisorVersion", "dockerVersion", "kernelVersion", "osVersion"],
            "The node's kernel and system; the other labels are empty, as the kubelet's are.";
        MACHINE_CORES: Gauge, Count, "machine_cpu_cores", MACHINE,
            "Processors (hardware threads).";
        MACHINE_PHYSICAL_CORES: Gauge, Count, "machine_cpu_physical_cores", MACHINE,
            "Cores.";
        MACHINE_SOCKETS: Gauge, Count, "machine_cpu_sockets", MACHINE,
            "Sockets.";
        MACHINE_MEMORY: Gauge, Bytes, "machine_memory_bytes", MACHINE,
            "Memory of the node.";
        MACHINE_SWAP: Gauge, Bytes, "machine_swap_bytes", MACHINE,
            "Swap space of the node.";
        MACHINE_SCRAPE_ERROR: Gauge, Count, "machine_scrape_error", NONE,
            "1 when the node's own facts could not be read, else 0.";
    }
}
