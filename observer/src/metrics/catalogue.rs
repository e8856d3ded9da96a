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
/// Messages over Unix sockets: who, which way, with whom.
const UNIX_SOCKET: [&str; 10] = [
    "namespace",
    "pod",
    "container",
    "direction",
    "peer_kind",
    "peer_container",
    "peer_namespace",
    "peer_pod",
    "peer_workload_kind",
    "peer_workload",
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

/// A TCP connection that was not established.
const CONNECT_FAILURE: [&str; 13] = with(CONNECTION, "reason");
/// A reset of a TCP connection.
const RESET: [&str; 13] = with(CONNECTION, "direction");
/// The observed container, and what the other side is.
const PEER_KIND: [&str; 4] = ["namespace", "pod", "container", "peer_kind"];

/// These labels and one more.
const fn with(labels: [&'static str; 12], more: &'static str) -> [&'static str; 13] {
    let mut all = [more; 13];
    let mut at = 0;
    while at < labels.len() {
        all[at] = labels[at];
        at += 1;
    }
    all
}

catalogue! {
    "Traffic" {
        TRAFFIC_BYTES: Counter, Bytes, "observer_traffic_bytes_total", TRAFFIC,
            "Bytes that passed the container's sockets, at IP level (IP header included, link header not), once for each direction. Counted by the kernel, packet by packet.";
        TRAFFIC_PACKETS: Counter, Count, "observer_traffic_packets_total", TRAFFIC,
            "Packets that passed the container's sockets, once for each direction. A packet that the kernel offloads as one large segment counts as one.";
        UNIX_SOCKET_BYTES: Counter, Bytes, "observer_unix_socket_bytes_total", UNIX_SOCKET,
            "Bytes that the container sent and received over Unix sockets, once for each direction. The peer is who made or answered the connection, as SO_PEERCRED tells it; a datagram socket that is not connected names nobody. Only with --traffic.unix-sockets (kernel 6.3 and later).";
        UNIX_SOCKET_MESSAGES: Counter, Count, "observer_unix_socket_messages_total", UNIX_SOCKET,
            "Sends and receives of at least one byte over Unix sockets. Only with --traffic.unix-sockets.";
        TCP_PAYLOAD_BYTES: Counter, Bytes, "observer_tcp_payload_bytes_total", with(CONNECTION, "direction"),
            "Payload of the container's TCP connections, each byte once however often it was sent: direction transmit when it left for the first time (bytes_sent less bytes_retrans of the kernel's socket), receive when all before it had come in (bytes_received). Only with --traffic.accounting=sockets, which has no observer_traffic_* series.";
        TCP_CONNECTIONS_OPENED: Counter, Count, "observer_tcp_connections_opened_total", CONNECTION,
            "TCP connections that were established: as a client when the answer to the container's SYN arrived, as a server when the handshake's last ACK was taken. One that both ends dialed, so that their SYNs crossed, is the client's at either end; with --traffic.accounting=sockets it is the server's, and without the probe tcp it is not in it.";
        TCP_CONNECTIONS_ACTIVE: Gauge, Count, "observer_tcp_connections_active", CONNECTION,
            "TCP connections that are established and not over. Of those that are older than the agent, those are in it that a process had open when it came.";
        TCP_CONNECT_FAILURES: Counter, Count, "observer_tcp_connect_failures_total", CONNECT_FAILURE,
            "TCP connections that the container began and that were not established, by reason: refused (a reset in answer to the SYN), timeout (no answer), reset (a reset when the other side had dialed, too, and its SYN had crossed the container's), unreachable (the network said so), other (most often the program gave up first). A connect that the kernel refuses before it begins, most often for want of a route, is not in it.";
        TCP_CONNECT_DURATION: Histogram, Seconds, "observer_tcp_connect_duration_seconds", PEER_KIND,
            "Time from the SYN to its answer, of TCP connections that the container began. Those whose SYN was sent more than once are not in it: the kernel no longer knows when the first one left. Nor are those whose SYN was answered by a SYN.";
        TCP_RTT: Histogram, Seconds, "observer_tcp_rtt_seconds", PEER_KIND,
            "Round trip time as the kernel smooths it: one observation when a TCP connection is over, and while it lives one with every \
             128th packet that the container receives from this peer (on each CPU; not with --traffic.accounting=sockets).";
        TCP_RETRANSMITTED: Counter, Count, "observer_tcp_retransmitted_segments_total", CONNECTION,
            "TCP segments that the container's connections sent again, SYN and SYN-ACK included (what RetransSegs of /proc/net/snmp counts); a SYN when its handshake is over (of a connection that both ends dialed only when it failed). Of connections that are older than the agent, those are in it that observer_tcp_connections_active has.";
        TCP_RESETS: Counter, Count, "observer_tcp_resets_total", RESET,
            "Resets that the container's TCP connections sent (direction transmit) or received (direction receive). One that refuses a connection is received by the client; who sends it has no connection.";
        PACKET_DROPS: Counter, Count, "observer_packet_drops_total", ["namespace", "pod", "container", "direction", "reason"],
            "Packets that the kernel dropped, by its own reason (SKB_DROP_REASON_* without the prefix). Direction is receive when the packet had come in. Container is empty where no socket was known yet, or no more, and only the pod is. Outside of pods, as in the node's own namespace, a packet between two pods of this node counts for both, once in each direction. From kernel 5.17.";
    }
    "DNS" {
        DNS_RESPONSES: Counter, Count, "observer_dns_responses_total", ["namespace", "pod", "container", "qtype", "rcode"],
            "DNS answers that reached the container from a resolver's port (--dns.ports), over UDP and TCP, by type of question and outcome. qtype and rcode are other for rare ones. Answers that came while no agent ran are counted as far as the kernel's buffer held them.";
        DNS_DURATION: Histogram, Seconds, "observer_dns_duration_seconds", ["namespace", "pod", "container", "rcode"],
            "Time from the first sending of a question to its first answer, as the container's socket sees it. An answer whose question was not seen, or that took 30 s or more, is not in it.";
        DNS_MALFORMED: Counter, Count, "observer_dns_malformed_total", CONTAINER,
            "What reached the container from a resolver's port and is no DNS message.";
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
        CPU_REQUEST: Gauge, Cores, "observer_cpu_request_cores", CONTAINER,
            "CPU that the container asked the scheduler for, as the orchestrator tells it; where it does not, from cpu.shares on cgroup v1, and from the limit in a Guaranteed pod. Absent when nothing was asked for or nothing tells.";
        CPU_RUNQUEUE: Histogram, Seconds, "observer_cpu_runqueue_seconds", CONTAINER,
            "How long threads of the container were ready to run before each time they ran, by the scheduler's own clock. Waits behind other threads of the same container are among them. Only with --resources.runqueue; begins at 0 with the agent.";
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
        MEMORY_REQUEST: Gauge, Bytes, "observer_memory_request_bytes", CONTAINER,
            "Memory that the container asked the scheduler for, as the orchestrator tells it; where it does not, the limit in a Guaranteed pod. Absent when nothing was asked for or nothing tells.";
        MEMORY_EVENTS: Counter, Count, "observer_memory_events_total", ["namespace", "pod", "container", "event"],
            "How often the container met a limit of its memory: high (throttled above memory.high), max (about to go over the limit; on cgroup v1 memory.failcnt), oom (nothing left to reclaim), oom_kill (processes killed for it).";
        MEMORY_PAGE_FAULTS: Counter, Count, "observer_memory_page_faults_total", ["namespace", "pod", "container", "type"],
            "Page faults by type: minor (served from memory), major (had to read from disk).";
        OOM_KILLS: Counter, Count, "observer_oom_kills_total", CONTAINER,
            "Processes of the container that the kernel's OOM killer killed. Counted by the kernel, kill by kill; goes on when the container starts again or the agent does. With an empty container: processes in the pod's own cgroup.";
    }
    "Pressure" {
        PRESSURE: Counter, Seconds, "observer_pressure_seconds_total", ["namespace", "pod", "container", "resource", "kind"],
            "Time that the container's tasks waited for a resource (cpu, memory, io): some counts while at least one of them waited, full while all did. From the cgroup v2 tree (PSI).";
    }
    "Block devices" {
        IO_BYTES: Counter, Bytes, "observer_io_bytes_total", ["namespace", "pod", "container", "device", "operation"],
            "Bytes read from and written to block devices by operation (read, write). On cgroup v1 without what the file cache writes back later, and from kernel 6.10 on only of devices with a throttling rule: its blk-throttle counts no others.";
        IO_OPERATIONS: Counter, Count, "observer_io_operations_total", ["namespace", "pod", "container", "device", "operation"],
            "Operations on block devices by kind (read, write).";
    }
    "Processes and identity" {
        PROCESSES: Gauge, Count, "observer_processes", CONTAINER,
            "Processes in the container.";
        THREADS: Gauge, Count, "observer_threads", CONTAINER,
            "Threads in the container, from pids.current.";
        THREADS_LIMIT: Gauge, Count, "observer_threads_limit", CONTAINER,
            "Most threads that the container may have, from pids.max. Absent without a limit.";
        SOCKETS: Gauge, Count, "observer_sockets", CONTAINER,
            "Sockets of every kind in the pod's network namespace; container is empty, because its containers share it. Absent on the host network.";
        SHARED_MEMORY: Gauge, Bytes, "observer_shared_memory_bytes", ["namespace", "pod", "container", "type"],
            "Memory that the pod's containers share, by type: posix (files in its /dev/shm), sysv (segments in its IPC namespace). container is empty. Absent where the pod uses the node's own.";
        CONTAINER_START_TIME: Gauge, Seconds, "observer_container_start_time_seconds", CONTAINER,
            "When the container's first process started, in seconds since 1970.";
        CONTAINER_RESTARTS: Counter, Count, "observer_container_restarts_total", CONTAINER,
            "How often the container was started again in its pod, as the container runtime counts it (the attempt of the newest one). Absent where no source tells it.";
        POD_INFO: Gauge, Info, "observer_pod_info", ["namespace", "pod", "uid", "pod_ip", "node", "qos_class", "host_network", "workload_kind", "workload", "runtime_class", "phase"],
            "A pod of this node and what is known of it.";
        SANDBOX_INFO: Gauge, Info, "observer_sandbox_info", ["namespace", "pod", "sandbox_id", "runtime", "network_namespace", "attached"],
            "A pod sandbox: its runtime, the inode of its network namespace, and where its traffic is counted (attached is cgroup; interface, where its packets meet no socket of the host; or none).";
    }
    "The node" {
        NODE_CPU: Counter, Seconds, "observer_node_cpu_seconds_total", ["mode"],
            "CPU time of the whole node, all CPUs together, by mode (user, nice, system, idle, iowait, irq, softirq, steal). From /proc/stat.";
        NODE_CPUS: Gauge, Count, "observer_node_cpus", NONE,
            "CPUs that are on line.";
        NODE_MEMORY_TOTAL: Gauge, Bytes, "observer_node_memory_total_bytes", NONE,
            "Memory of the node. From /proc/meminfo.";
        NODE_MEMORY_FREE: Gauge, Bytes, "observer_node_memory_free_bytes", NONE,
            "Memory that nobody uses.";
        NODE_MEMORY_AVAILABLE: Gauge, Bytes, "observer_node_memory_available_bytes", NONE,
            "Memory that a new program could have without swapping, as the kernel estimates it.";
        NODE_MEMORY_CACHE: Gauge, Bytes, "observer_node_memory_cache_bytes", NONE,
            "File cache and buffers of block devices.";
        NODE_SWAP_TOTAL: Gauge, Bytes, "observer_node_swap_total_bytes", NONE,
            "Swap space of the node.";
        NODE_SWAP_FREE: Gauge, Bytes, "observer_node_swap_free_bytes", NONE,
            "Swap space that nobody uses.";
        NODE_PRESSURE: Counter, Seconds, "observer_node_pressure_seconds_total", ["resource", "kind"],
            "Time that tasks of the node waited for a resource (cpu, memory, io): some counts while at least one waited, full while all did. Absent on a kernel without pressure accounting.";
        NODE_BOOT_TIME: Gauge, Seconds, "observer_node_boot_time_seconds", NONE,
            "When the node was booted, in seconds since 1970.";
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
        AGENT_EDGES_EVICTED: Counter, Count, "observer_agent_edges_evicted_total", NONE,
            "Edges that lost their place since the agent started, because they were idle and the table nearly full. What they have counted stays in their series, which another edge of the container has, too.";
        AGENT_SERIES_LIMIT: Gauge, Count, "observer_agent_series_limit", NONE,
            "Series of traffic that the node may have (--traffic.series). Those with peer_kind other count, but are never refused.";
        AGENT_SERIES_USED: Gauge, Count, "observer_agent_series_used", NONE,
            "Series of traffic that have a place: for each set of labels without the direction four, with TCP two more (connections opened and active), and one for each reason of failure, for segments sent again, and for resets sent and received, once there was one.";
        AGENT_SERIES_FOLDED: Gauge, Count, "observer_agent_series_folded", NONE,
            "Series of traffic that a budget folded into others (--traffic.series, --traffic.peers-per-container, --traffic.ports-per-container). Their bytes are in the series without the port, or with peer_kind other.";
        AGENT_UNATTRIBUTED_BYTES: Counter, Bytes, "observer_agent_unattributed_bytes_total", ["direction"],
            "Bytes that were counted but whose cgroup belongs to no known container. With --traffic.accounting=sockets bytes of TCP payload.";
        AGENT_UNATTRIBUTED_PACKETS: Counter, Count, "observer_agent_unattributed_packets_total", ["direction"],
            "Packets that were counted but whose cgroup belongs to no known container. Only with --traffic.accounting=packets.";
        AGENT_KERNEL_LOSSES: Counter, Count, "observer_agent_kernel_losses_total", ["reason"],
            "What the kernel programs could not do, by reason: table_full (an edge went to its container's spare slot), no_spare_slot (it went to the unattributed slot), insert_failed (an edge was refused though a slot was free), unparsed (a packet without a readable IP header). No byte is lost by any of these. decisions_full: peers were shown as other, because there was no room to keep their names for the next agent. connections_full: an established TCP connection that is not in observer_tcp_connections_active. older_connections_full: a TCP connection that is older than the agent and found no place: it is not in observer_tcp_connections_active, nor are the segments that it sends again and the time of its last round trip, nor, with --traffic.accounting=sockets, what it carries. end_unknown: a TCP connection that was over before a program could read its socket, most often because the kernel passed its end over (tcp_missed) and used the memory of its socket again before the agent looked: the time of its last round trip, what it had sent again since that was last seen, and, with --traffic.accounting=sockets, what it had carried are counted nowhere. tcp_missed: a state change, reset or retransmission of any TCP socket of the node that came while the kernel program for it was running on that CPU, so that it was not looked at (kernel 6.2 and later). oom_table_full: an OOM kill that is in no series. runqueue_no_slot: a container whose run-queue waits are not counted.";
        AGENT_PENDING_BYTES: Gauge, Bytes, "observer_agent_pending_bytes", ["direction"],
            "Bytes of cgroups that have no name yet. They join their container's series when it has one, or the unattributed ones after ten minutes.";
        AGENT_PENDING_PACKETS: Gauge, Count, "observer_agent_pending_packets", ["direction"],
            "Packets of cgroups that have no name yet. Only with --traffic.accounting=packets.";
        AGENT_ENDINGS_MISSED: Counter, Count, "observer_agent_missed_endings_total", NONE,
            "Containers that ended without the agent reading their last values: what they used since the scrape before is not in their counters. Those that ended while no agent ran are among them, and all on a host without a cgroup v2 tree, which tells no endings.";
        AGENT_UNATTRIBUTED_DROPS: Counter, Count, "observer_agent_unattributed_drops_total", ["cause"],
            "Packets that were dropped for no known pod, by cause: node (in the node's namespace, between no pods), unknown (nobody knew the owner for ten minutes), unspecified (the kernel gave no reason, or freed a queue with a socket or a device that ended; it does both with packets that were used, too), no_owner (neither socket, nor namespace, nor address told), table_full (no entry was left), interrupted (dropped while the same CPU was counting another).";
        AGENT_PENDING_DROPS: Gauge, Count, "observer_agent_pending_drops", NONE,
            "Dropped packets whose owner has no name yet: a new pod, or a process of the node. They join their pod's series when it has one, or the unattributed ones when there were no more for ten minutes.";
        AGENT_DNS_LOST: Counter, Count, "observer_agent_dns_lost_packets_total", ["direction", "reason"],
            "Packets to (transmit) and from (receive) resolvers that were not read, by reason: buffer_full (the kernel's buffer was), unreadable (IPv6 extension headers, neither UDP nor TCP), stream (a TCP segment of a connection that is older than the agent, misses a segment, or was one of too many). Each received one may be an answer that is not counted.";
        AGENT_DNS_UNTIMED: Counter, Count, "observer_agent_untimed_dns_questions_total", NONE,
            "Questions that were sent while 4,096 of their container waited for an answer. Their answers are counted and are not in observer_dns_duration_seconds.";
        AGENT_PENDING_DNS: Gauge, Count, "observer_agent_pending_dns_responses", NONE,
            "DNS answers to cgroups that have no name yet. They join their container's series when it has one, or the unattributed ones after ten minutes.";
        AGENT_UNATTRIBUTED_DNS: Counter, Count, "observer_agent_unattributed_dns_responses_total", NONE,
            "DNS answers to cgroups that nobody knew for ten minutes.";
        AGENT_PEER_NAMES: Gauge, Count, "observer_agent_peer_names", NONE,
            "Different values of peer_name (--traffic.peer-names).";
        AGENT_PEER_NAMES_FOLDED: Counter, Count, "observer_agent_peer_names_folded_total", NONE,
            "Peers whose name was known but found no place in the budget: their series have an empty peer_name.";
        AGENT_PEER_NAMES_FORGOTTEN: Counter, Count, "observer_agent_peer_names_forgotten_total", NONE,
            "Addresses whose name was forgotten, because their container has since been told of 512 others. A peer at such an address that is called for the first time then has an empty peer_name.";
        AGENT_PEER_ADDRESSES: Gauge, Count, "observer_agent_peer_addresses", NONE,
            "Addresses beyond this node's pods whose owner is known: Services, nodes, pods of other nodes (--kubernetes.peers). Those that somebody had a moment ago are among them.";
        AGENT_PEER_ADDRESSES_FOLDED: Counter, Count, "observer_agent_peer_addresses_folded_total", NONE,
            "How often an address was told but found no place: its peer is external or other.";
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
        AGENT_PROGRAM_RUN_SECONDS: Counter, Seconds, "observer_agent_program_run_seconds_total", ["program"],
            "How long a kernel program of the agent has run since it was loaded, on all CPUs together, while the kernel's BPF statistics were switched on (kernel.bpf_stats_enabled); absent before they are. program is its name, of which `bpftool prog show` has the first 15 characters.";
        AGENT_PROGRAM_RUNS: Counter, Count, "observer_agent_program_runs_total", ["program"],
            "How often a kernel program of the agent has run since it was loaded, while the kernel's BPF statistics were switched on; absent before they are.";
        PROCESS_CPU: Counter, Seconds, "process_cpu_seconds_total", NONE,
            "User and system CPU time of the agent.";
        PROCESS_RESIDENT_MEMORY: Gauge, Bytes, "process_resident_memory_bytes", NONE,
            "Resident memory of the agent.";
        PROCESS_OPEN_FDS: Gauge, Count, "process_open_fds", NONE,
            "File descriptors that the agent has open.";
        PROCESS_START_TIME: Gauge, Seconds, "process_start_time_seconds", NONE,
            "When the agent started, in seconds since 1970.";
    }
    "Resolver" {
        RESOLVER_AGENTS: Gauge, Count, "observer_resolver_agents", NONE,
            "Agents that are connected. Like the rest of this chapter served by `observer resolver` alone.";
        RESOLVER_ADDRESSES: Gauge, Count, "observer_resolver_addresses", NONE,
            "Addresses of the cluster that somebody has.";
        RESOLVER_SUBSCRIPTIONS: Gauge, Count, "observer_resolver_subscriptions", NONE,
            "Addresses that agents are told of, the sum over all agents.";
        RESOLVER_CHANGES: Counter, Count, "observer_resolver_changes_total", NONE,
            "Changes of who has an address, the first lists included.";
        RESOLVER_ANSWERS: Counter, Count, "observer_resolver_answers_total", NONE,
            "Answers to agents: one for each address that one asks for, and one for each change of it.";
        RESOLVER_FOLDED: Counter, Count, "observer_resolver_addresses_folded_total", NONE,
            "Addresses of objects that found no place: agents are told that they are nobody's.";
        RESOLVER_REFUSED: Counter, Count, "observer_resolver_agents_refused_total", ["reason"],
            "Agents that were turned away or cut off, by reason: too_many_agents, too_many_addresses, too_many_subscriptions (10,000,000 of all agents), bad_request (one that cannot be read), slow (took no answers for 30 s), unauthenticated. They come back.";
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
