//! What the kubelet serves and this does not.

/// A family of the kubelet that is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The path that has it there.
    pub path: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Why it is not served, and what to use instead.
    pub reason: &'static str,
}

const OFF: &str = "The kubelet always serves 0: it runs cAdvisor without its load reader.";
const FDS: &str = "Counting them takes a walk over every file descriptor of every process at each scrape.";
const DISKS: &str = "The kubelet has it for the node's own disks only (id=\"/\"), never for a container; node_exporter's node_disk_* tells them.";
const ODD_HARDWARE: &str = "For hardware that hardly a node has; the kubelet serves 0 elsewhere.";

/// Rows of one path.
macro_rules! missing {
    ($path:expr; $($name:literal: $reason:expr,)*) => {
        &[$(Missing { path: $path, name: $name, reason: $reason },)*]
    };
}

/// All of them.
pub static MISSING: &[Missing] = missing! { super::CADVISOR_PATH;
    "container_cpu_load_average_10s": OFF,
    "container_cpu_load_d_average_10s": OFF,
    "container_tasks_state": OFF,
    "container_file_descriptors": FDS,
    "container_sockets": "Counting a container's own takes a walk over every file descriptor at each scrape; observer_sockets has the pod's.",
    "container_fs_io_current": DISKS,
    "container_fs_io_time_seconds_total": DISKS,
    "container_fs_io_time_weighted_seconds_total": DISKS,
    "container_fs_read_seconds_total": DISKS,
    "container_fs_reads_merged_total": DISKS,
    "container_fs_sector_reads_total": DISKS,
    "container_fs_sector_writes_total": DISKS,
    "container_fs_write_seconds_total": DISKS,
    "container_fs_writes_merged_total": DISKS,
    "container_health_state": "Docker's health checks: with a CRI runtime the kubelet always serves -1.",
    "container_ulimits_soft": "The limits of a container's first process: which one that is, is not followed.",
    "machine_cpu_books": ODD_HARDWARE,
    "machine_cpu_drawers": ODD_HARDWARE,
    "machine_nvm_avg_power_budget_watts": ODD_HARDWARE,
    "machine_nvm_capacity": ODD_HARDWARE,
};
