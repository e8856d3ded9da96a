//! `docs/compatibility.md`, from the catalogues. Pure.

use std::fmt::Write;

use super::{CADVISOR_PATH, MISSING, RESOURCE_PATH, cadvisor, resource};
use crate::metrics::describe::chapters;

const INTRODUCTION: &str = "\
<!-- Generated: cargo run -p observer -- metrics --compatibility > docs/compatibility.md -->
# Compatibility

Two more paths serve what the kubelet serves under the same paths, with its names, types and labels, so that what was
written for cAdvisor goes on working without it:

| path | for |
|---|---|
| `/metrics/cadvisor` | dashboards, alerts and rules that query `container_*`, such as kubernetes-mixin's |
| `/metrics/resource` | metrics-server, autoscalers |

Scrape the kubelet or these, not both: they say the same. Whoever needs neither leaves them alone; nothing is read for
them until somebody asks. The agent's own families are in [metrics.md](metrics.md).

## Prometheus

kubernetes-mixin selects `job=\"cadvisor\"`, kube-prometheus `job=\"kubelet\", metrics_path=\"/metrics/cadvisor\"`. So:

```yaml
scrape_configs:
  - job_name: cadvisor
    metrics_path: /metrics/cadvisor
    static_configs: [{ targets: [\"NODE:10836\"] }]
```

[deploy/prometheus/rules.yaml](../deploy/prometheus/rules.yaml) has kubernetes-mixin's recording rules on these series,
with `observer_pod_info` in the place of kube-state-metrics' `kube_pod_info`.

## metrics-server

It needs no timestamps: where a sample has none, it takes the time of its scrape (`decodeBatch` in its
`pkg/scraper/client/resource/decode.go`). Values here are read when the scrape comes, so that is the right time. The
kubelet's samples have timestamps because they are seconds old.

The agent speaks plain HTTP, so metrics-server needs `--kubelet-port=10836` and
`--deprecated-kubelet-completely-insecure`: use it where the network between them is trusted. metrics-server leaves a
whole pod out while one of its containers has used no CPU or no memory, here as with the kubelet.

## Labels

`id` is the cgroup's path, `name` the container's id, `image` its image as the pod's status writes it. As in the
kubelet's answer `container` is empty for the pause container, and there are series for each pod's own cgroup (`container`
and `image` empty), for the cgroups above pods (`/kubepods`, `/kubepods/burstable`, …) and for the node (`id=\"/\"`). Sum
over `container!=\"\"`, or you count twice. A pod whose name nobody tells has its UID there. Where no source tells the
image, `image` is empty, and queries with `image!=\"\"` do not find the container.

Network series are on the pause container, one set for each pod, from `/proc/<pid>/net/dev` in the pod's network
namespace: bytes with link headers. As in the kubelet's answer loopback is left out, and interfaces whose names begin
with `veth`, `docker` or `nerdctl`; a pod on the host network has the node's other interfaces.

## Differences from the kubelet

- No sample has a timestamp, and none is older than the scrape.
- What cannot be read is absent; the kubelet serves 0 there (`container_memory_failcnt` and
  `container_memory_kernel_usage` on cgroup v2, `container_threads` of the node, …). On cgroup v2 these two are
  `memory.events` `max` and `memory.stat` `kernel` here, and not 0.
- On cgroup v2 the kernel counts page faults with those of cgroups below, so `container_memory_failures_total` has
  `scope=\"container\"` only for containers without cgroups of their own.
- `container_start_time_seconds` is when the first process started (of a pod: of its first container); the kubelet takes
  the times of the cgroup's files. The cgroups between the node and pods have none here.
- `container_processes` of a container has the processes of cgroups below it too.
- Series of system services (the kubelet's and the runtime's own cgroups) are not served.
- On cgroup v1 `container_swap_limit_bytes` and `container_spec_memory_swap_limit_bytes` are the limit of memory and swap
  together, as they are at the kubelet.
- Sizes of file systems (`container_fs_limit_bytes`, `container_fs_usage_bytes`, `container_fs_inodes_*`, all with `id=\"/\"`)
  are those of the node's block devices, each once: ext, xfs and btrfs. The kubelet has those of memory and overlays too,
  which show a mount of each container. At most 64 are shown; if there are more, it is said as for interfaces.
- At most 64 interfaces of a pod are shown. If there are more, `container_scrape_error` is 1,
  `observer_agent_source_errors_total` counts it and the log says whose they are.
";

/// `docs/compatibility.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = INTRODUCTION.to_owned();
    for (path, rows) in [(CADVISOR_PATH, cadvisor::ALL), (RESOURCE_PATH, resource::ALL)] {
        // Writing to a String cannot fail.
        let _ = write!(out, "\n## What {path} serves\n{}", chapters(rows, "###"));
    }
    out.push_str("\n## What is missing\n\n| family | why |\n|---|---|\n");
    for row in MISSING {
        let _ = writeln!(out, "| `{}` | {} |", row.name, row.reason);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_what_the_catalogues_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/compatibility.md");
        let command = "cargo run -p observer -- metrics --compatibility > docs/compatibility.md";
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == markdown(), "docs/compatibility.md is not what the catalogues say; run: {command}");
    }

    /// As the main catalogue's; names and units are not ours to choose.
    #[test]
    fn rows_are_complete() {
        for row in cadvisor::ALL.iter().chain(resource::ALL) {
            assert!(row.help.ends_with('.') && !row.help.contains('\n'), "{}: help is sentences on one line", row.name);
            assert!(row.labels.is_sorted(), "{}: labels are in the kubelet's order", row.name);
        }
    }
}
