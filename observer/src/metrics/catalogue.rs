//! Every metric family: one row each. `docs/metrics.md` is generated from this table.
//!
//! A row is: constant, type, unit, name, labels, help. The constant carries type and number of labels, so
//! collectors that give a wrong number of label values do not compile.

use std::marker::PhantomData;

use super::family::{Counter, Family, Gauge, Histogram, Kind, Row, Unit, catalogue};

/// No labels.
const NONE: [&str; 0] = [];
/// The observed container.
const CONTAINER: [&str; 3] = ["namespace", "pod", "container"];
/// One edge of traffic: who, which way, how, with whom.
const TRAFFIC: [&str; 14] = [
    "namespace",
    "pod",
    "container",
    "direction",
    "protocol",
    "peer_kind",
    "peer_container",
    "peer_namespace",
    "peer_pod",
    "peer_workload_kind",
    "peer_workload",
    "peer_name",
    "port",
    "role",
];
/// A TCP connection: who, on which side, with whom.
const CONNECTION: [&str; 12] = [
    "namespace",
    "pod",
    "container",
    "role",
    "peer_kind",
    "peer_container",
    "peer_namespace",
    "peer_pod",
    "peer_workload_kind",
    "peer_workload",
    "peer_name",
    "port",
];

catalogue! {
    "Traffic" {
        TRAFFIC_BYTES: Counter, Bytes, "observer_traffic_bytes_total", TRAFFIC,
            "Bytes that passed the container's sockets, at IP level (IP header included, link header not), once for each direction. Counted by the kernel, packet by packet.";
        TRAFFIC_PACKETS: Counter, Count, "observer_traffic_packets_total", TRAFFIC,
            "Packets that passed the container's sockets, once for each direction. A packet that the kernel offloads as one large segment counts as one.";
        TCP_CONNECTIONS_OPENED: Counter, Count, "observer_tcp_connections_opened_total", CONNECTION,
            "TCP connections that were established: as a client when the answer to the container's SYN arrived, as a server when the handshake's last ACK did.";
    }
    "CPU" {
        CPU_USAGE: Counter, Seconds, "observer_cpu_usage_seconds_total", ["namespace", "pod", "container", "mode"],
            "CPU time of the container by mode (user, system). From cpu.stat; on cgroup v1 from cpuacct.stat, in steps of 10 ms.";
        CPU_PERIODS: Counter, Count, "observer_cpu_periods_total", CONTAINER,
            "Enforcement periods of the CPU quota in which the container was runnable. Only with a quota.";
        CPU_THROTTLED_PERIODS: Counter, Count, "observer_cpu_throttled_periods_total", CONTAINER,
            "Enforcement periods in which the container used up its CPU quota and was held back. Only with a quota.";
        CPU_THROTTLED_SECONDS: Counter, Seconds, "observer_cpu_throttled_seconds_total", CONTAINER,
            "Time for which the container was held back by its CPU quota. Only with a quota.";
        CPU_LIMIT: Gauge, Cores, "observer_cpu_limit_cores", CONTAINER,
            "CPU quota divided by its period. Only with a quota.";
    }
    "Memory" {
        MEMORY_WORKING_SET: Gauge, Bytes, "observer_memory_working_set_bytes", CONTAINER,
            "Memory in use without the file cache that can be dropped at once: usage minus inactive file pages, never below 0. What the kubelet evicts by.";
        MEMORY_USAGE: Gauge, Bytes, "observer_memory_usage_bytes", CONTAINER,
            "All memory charged to the container, file cache included.";
        MEMORY_RSS: Gauge, Bytes, "observer_memory_rss_bytes", CONTAINER,
            "Anonymous memory: heap, stacks, private mappings.";
        MEMORY_CACHE: Gauge, Bytes, "observer_memory_cache_bytes", CONTAINER,
            "File cache, shared memory and tmpfs included.";
        MEMORY_SWAP: Gauge, Bytes, "observer_memory_swap_bytes", CONTAINER,
            "Memory swapped out. Absent where swap is not accounted.";
        MEMORY_PEAK: Gauge, Bytes, "observer_memory_peak_bytes", CONTAINER,
            "Highest usage since the container started. Absent on cgroup v2 before kernel 5.19.";
        MEMORY_LIMIT: Gauge, Bytes, "observer_memory_limit_bytes", CONTAINER,
            "Memory limit of the container. Absent without a limit.";
        MEMORY_PAGE_FAULTS: Counter, Count, "observer_memory_page_faults_total", ["namespace", "pod", "container", "type"],
            "Page faults by type: minor (served from memory), major (had to read from disk).";
    }
    "Processes and identity" {
        PROCESSES: Gauge, Count, "observer_processes", CONTAINER,
            "Processes in the container.";
        THREADS: Gauge, Count, "observer_threads", CONTAINER,
            "Threads in the container, from pids.current.";
        CONTAINER_START_TIME: Gauge, Seconds, "observer_container_start_time_seconds", CONTAINER,
            "When the container's first process started, in seconds since 1970.";
        POD_INFO: Gauge, Info, "observer_pod_info", ["namespace", "pod", "uid", "pod_ip", "node", "qos_class", "host_network", "workload_kind", "workload", "runtime_class", "phase"],
            "A pod of this node and what is known of it.";
        SANDBOX_INFO: Gauge, Info, "observer_sandbox_info", ["namespace", "pod", "sandbox_id", "runtime", "network_namespace", "attached"],
            "A pod sandbox: its runtime, the inode of its network namespace, and where its traffic is counted (attached is cgroup or none).";
    }
    "The agent itself" {
        AGENT_BUILD_INFO: Gauge, Info, "observer_agent_build_info", ["version", "revision", "rustc"],
            "What this agent was built from.";
        AGENT_PROBE_STATE: Gauge, Info, "observer_agent_probe_state", ["probe", "state", "reason"],
            "The state of each probe (ok, unsupported, failed) and the reason when it is not ok.";
        AGENT_PODS: Gauge, Count, "observer_agent_pods", NONE,
            "Pods that the agent observes now.";
        AGENT_CONTAINERS: Gauge, Count, "observer_agent_containers", NONE,
            "Containers that the agent observes now, pause containers left out.";
        AGENT_EDGES_USED: Gauge, Count, "observer_agent_edges_used", NONE,
            "Edges (container, peer, port, protocol) that have counters of their own.";
        AGENT_EDGES_CAPACITY: Gauge, Count, "observer_agent_edges_capacity", NONE,
            "Edges that fit (--traffic.edges).";
        AGENT_EDGES_OVERFLOWED: Counter, Count, "observer_agent_edges_overflowed_total", NONE,
            "Times that an edge found no place, so that its bytes went to the container's series with peer_kind other. Nothing is lost by it but the name of the peer.";
        AGENT_UNATTRIBUTED_BYTES: Counter, Bytes, "observer_agent_unattributed_bytes_total", ["direction"],
            "Bytes that were counted but whose cgroup belongs to no known container.";
        AGENT_UNATTRIBUTED_PACKETS: Counter, Count, "observer_agent_unattributed_packets_total", ["direction"],
            "Packets that were counted but whose cgroup belongs to no known container.";
        AGENT_KERNEL_LOSSES: Counter, Count, "observer_agent_kernel_losses_total", ["reason"],
            "What the kernel programs could not do, by reason: table_full (an edge went to its container's spare slot), no_spare_slot (it went to the unattributed slot), insert_failed (an edge was refused though a slot was free), unparsed (a packet without a readable IP header). No byte is lost by any of them.";
        AGENT_PENDING_BYTES: Gauge, Bytes, "observer_agent_pending_bytes", ["direction"],
            "Bytes of cgroups that have no name yet. They join their container's series when it has one, or the unattributed ones after ten minutes.";
        AGENT_PENDING_PACKETS: Gauge, Count, "observer_agent_pending_packets", ["direction"],
            "Packets of cgroups that have no name yet.";
        AGENT_SCRAPE_DURATION: Histogram, Seconds, "observer_agent_scrape_duration_seconds", NONE,
            "Time to read everything and write it down, for each scrape before this one.";
        AGENT_SCRAPE_SIZE: Gauge, Bytes, "observer_agent_scrape_size_bytes", NONE,
            "Size of the scrape before this one.";
        AGENT_ATTACH_DURATION: Histogram, Seconds, "observer_agent_attach_duration_seconds", NONE,
            "Time from seeing a pod's cgroup to having its hooks in force.";
        AGENT_ATTACH_ERRORS: Counter, Count, "observer_agent_attach_errors_total", NONE,
            "Cgroups to which hooks could not be attached. The log names each.";
        AGENT_SOURCE_ERRORS: Counter, Count, "observer_agent_source_errors_total", ["source"],
            "Errors while reading a source of facts. The log names each.";
        PROCESS_CPU: Counter, Seconds, "process_cpu_seconds_total", NONE,
            "User and system CPU time of the agent.";
        PROCESS_RESIDENT_MEMORY: Gauge, Bytes, "process_resident_memory_bytes", NONE,
            "Resident memory of the agent.";
        PROCESS_OPEN_FDS: Gauge, Count, "process_open_fds", NONE,
            "File descriptors that the agent has open.";
        PROCESS_START_TIME: Gauge, Seconds, "process_start_time_seconds", NONE,
            "When the agent started, in seconds since 1970.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::metrics::family::Type;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = HashSet::new();
        for row in ALL {
            let name = row.name;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.starts_with("observer_") || name.starts_with("process_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), row.family_type == Type::Counter, "{name}: counters end in _total");
            let base = name.trim_end_matches("_total");
            match row.unit {
                Unit::Bytes => assert!(base.ends_with("_bytes"), "{name}"),
                Unit::Seconds => assert!(base.ends_with("_seconds"), "{name}"),
                Unit::Cores => assert!(base.ends_with("_cores"), "{name}"),
                Unit::Info => assert_eq!(row.family_type, Type::Gauge, "{name}"),
                Unit::Count => {}
            }
            assert!(row.help.ends_with('.') && !row.help.contains('\n'), "{name}: help is sentences on one line");
            let labels: HashSet<_> = row.labels.iter().collect();
            assert_eq!(labels.len(), row.labels.len(), "{name}: a label is there twice");
            for label in row.labels {
                assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}: {label}");
                assert!(!["le", "quantile", "job", "instance"].contains(label), "{name}: {label} is reserved");
            }
        }
    }
}
