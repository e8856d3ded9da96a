//! Every family of `/metrics/resource`: names, types and labels are the kubelet's
//! (`pkg/kubelet/metrics/collectors/resource_metrics.go`).

use std::marker::PhantomData;

use crate::metrics::family::{Counter, Family, Gauge, Kind, Row, Unit, catalogue};

/// No labels.
const NONE: [&str; 0] = [];
/// A container.
const CONTAINER: [&str; 3] = ["container", "namespace", "pod"];
/// A pod.
const POD: [&str; 2] = ["namespace", "pod"];

catalogue! {
    "Containers" {
        CONTAINER_CPU: Counter, Seconds, "container_cpu_usage_seconds_total", CONTAINER,
            "CPU time of the container.";
        CONTAINER_MEMORY: Gauge, Bytes, "container_memory_working_set_bytes", CONTAINER,
            "Working set of the container.";
        CONTAINER_START_TIME: Gauge, Seconds, "container_start_time_seconds", CONTAINER,
            "When the container started, in seconds since 1970.";
        CONTAINER_SWAP: Gauge, Bytes, "container_swap_usage_bytes", CONTAINER,
            "Memory of the container that is swapped out.";
        CONTAINER_SWAP_LIMIT: Gauge, Bytes, "container_swap_limit_bytes", CONTAINER,
            "Swap that the container may use (v1: memory and swap together). Absent without a limit.";
    }
    "Pods" {
        POD_CPU: Counter, Seconds, "pod_cpu_usage_seconds_total", POD,
            "CPU time of the pod.";
        POD_MEMORY: Gauge, Bytes, "pod_memory_working_set_bytes", POD,
            "Working set of the pod.";
        POD_SWAP: Gauge, Bytes, "pod_swap_usage_bytes", POD,
            "Memory of the pod that is swapped out.";
    }
    "The node" {
        NODE_CPU: Counter, Seconds, "node_cpu_usage_seconds_total", NONE,
            "CPU time of the node.";
        NODE_MEMORY: Gauge, Bytes, "node_memory_working_set_bytes", NONE,
            "Working set of the node.";
        NODE_SWAP: Gauge, Bytes, "node_swap_usage_bytes", NONE,
            "Memory of the node that is swapped out.";
        SCRAPE_ERROR: Gauge, Count, "resource_scrape_error", NONE,
            "1 when something could not be read, else 0.";
    }
}
