//! A kubelet's `/pods` document for pods that no kubelet made.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::node::{ADDRESS_V4, ADDRESS_V6};
use crate::pod::{Container, Pod};

/// The name of the node in the document.
pub const NODE_NAME: &str = "lab";
const IMAGE: &str = "localhost/observer-lab:latest";

/// Writes the document. Readers see the old one or the new one, never a part.
pub fn write<'a>(path: &Path, pods: impl IntoIterator<Item = &'a Pod>) -> Result<()> {
    let text = serde_json::to_string(&document(pods)).context("writing the pods as JSON")?;
    let next = path.with_extension("next");
    std::fs::write(&next, text).with_context(|| format!("writing the pods file {}", next.display()))?;
    std::fs::rename(&next, path).with_context(|| format!("moving {} to {}", next.display(), path.display()))
}

/// The document: a `v1` `PodList`.
pub fn document<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Value {
    let items: Vec<Value> = pods.into_iter().map(pod).collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

fn pod(pod: &Pod) -> Value {
    let spec = pod.spec();
    let created = rfc3339(pod.created());
    let owners: Vec<Value> = spec
        .owner
        .iter()
        .map(|owner| {
            json!({
                "apiVersion": if owner.kind == "Job" { "batch/v1" } else { "apps/v1" },
                "kind": owner.kind,
                "name": owner.name,
                "uid": format!("{}-0000-4000-8000-000000000000", crate::ids::UID_PREFIX),
                "controller": true,
                "blockOwnerDeletion": true,
            })
        })
        .collect();
    let containers: Vec<Value> = pod.containers().iter().map(|c| json!({ "name": c.name(), "image": IMAGE })).collect();
    let statuses: Vec<Value> = pod.containers().iter().map(status).collect();
    // A pod on the host network has the node's addresses.
    let (v4, v6) = if spec.host_network { (ADDRESS_V4.0, ADDRESS_V6.0) } else { (pod.ipv4(), pod.ipv6()) };
    let mut document = json!({
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "uid": pod.uid(),
            "creationTimestamp": created,
            "labels": spec.labels,
            "annotations": spec.annotations,
            "ownerReferences": owners,
        },
        "spec": { "nodeName": NODE_NAME, "containers": containers, "restartPolicy": "Always" },
        "status": {
            "phase": "Running",
            "hostIP": ADDRESS_V4.0,
            "podIP": v4,
            "podIPs": [{ "ip": v4 }, { "ip": v6 }],
            "startTime": created,
            "containerStatuses": statuses,
            "qosClass": spec.qos.class(),
        },
    });
    if !spec.runtime_class.is_empty() {
        document["spec"]["runtimeClassName"] = json!(spec.runtime_class);
    }
    if spec.host_network {
        document["spec"]["hostNetwork"] = json!(true);
    }
    document
}

fn status(container: &Container) -> Value {
    json!({
        "name": container.name(),
        "state": { "running": { "startedAt": rfc3339(container.started()) } },
        "lastState": {},
        "ready": true,
        "restartCount": 0,
        "image": IMAGE,
        "imageID": "sha256:0b5e7e570b5e7e570b5e7e570b5e7e570b5e7e570b5e7e570b5e7e570b5e7e57",
        "containerID": format!("containerd://{}", container.id()),
        "started": true,
    })
}

/// A time as Kubernetes writes it: UTC, in whole seconds.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of year 0, in eras of 400 years (a civil calendar without tables).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_kubernetes_does() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_227_824), "2026-11-21T02:23:44Z");
    }
}
