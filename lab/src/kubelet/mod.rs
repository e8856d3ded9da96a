//! What the kubelet serves at `/metrics/cadvisor` and `/metrics/resource`, held against what the agent serves there: the
//! values against the cgroup files themselves, the families against what a kubelet was seen to serve.

mod files;
mod shapes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::Agent;
use crate::samples::{Sample, Samples};
use crate::truth::Truth;
use files::{Expected, read};

pub use files::Files;
pub(crate) use files::keyed;
pub use shapes::{Kind, Shape, Shapes};

/// The path of cAdvisor's metrics.
pub const CADVISOR: &str = "/metrics/cadvisor";
/// The path of the resource metrics.
pub const RESOURCE: &str = "/metrics/resource";
/// How long a cgroup may take to freeze.
const PATIENCE: Duration = Duration::from_secs(10);
/// Interfaces that cAdvisor leaves out (`isIgnoredDevice` in its container/libcontainer/handler.go), by the beginning of
/// their names.
const UNCOUNTED: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];
/// Readings before the files are said to move all the time.
const TRIES: usize = 100;

/// Fewer values would mean that the files are looked for in the wrong place.
const LEAST_TOLD: usize = 20;

/// A cgroup whose series are compared: what its labels must be, and where its files are.
#[derive(Debug)]
pub struct Subject {
    labels: BTreeMap<&'static str, String>,
    path: PathBuf,
}

impl Subject {
    /// A cgroup of the pod `(namespace, name)`: its container's name and id, both empty for the pod itself, the name
    /// alone for the pause container.
    pub fn new(pod: (&str, &str), container: &str, id: &str, image: &str, path: &Path) -> Self {
        let labels = BTreeMap::from([
            ("container", container.to_owned()),
            ("id", path.display().to_string()),
            ("image", image.to_owned()),
            ("name", id.to_owned()),
            ("namespace", pod.0.to_owned()),
            ("pod", pod.1.to_owned()),
        ]);
        Self { labels, path: path.to_owned() }
    }

    fn pod(&self) -> [(&'static str, &str); 2] {
        ["namespace", "pod"].map(|name| (name, self.labels[name].as_str()))
    }
}

/// Freezes a pod, so that its files stand still, and holds everything that both endpoints say of its cgroups against
/// them. The first subject is the pod; `pid` is a process in its network namespace.
pub fn compare(agent: &Agent, files: &Files, subjects: &[Subject], pid: u32) -> Result<()> {
    let pod = subjects.first().context("nothing to compare")?;
    let _frozen = Frozen::new(&files.v2(&pod.path))?;
    let interfaces = || Truth::of_process(pid);
    for tried in 0.. {
        let before: Vec<Expected> = subjects.iter().map(|subject| files.expected(&subject.path)).collect();
        let network = interfaces()?;
        let cadvisor = Samples::parse(&agent.fetch(CADVISOR)?)?;
        let resource = Samples::parse(&agent.fetch(RESOURCE)?)?;
        let after: Vec<Expected> = subjects.iter().map(|subject| files.expected(&subject.path)).collect();
        if before == after && network == interfaces()? {
            for (subject, expected) in subjects.iter().zip(&before) {
                let told = expected.iter().filter(|(_, _, value)| value.is_some()).count();
                ensure!(told >= LEAST_TOLD, "the files of {} tell only {told} values", subject.path.display());
                compare_cadvisor(&cadvisor, subject, expected)?;
                compare_resource(&resource, subject, expected)?;
            }
            compare_network(&cadvisor, &pod.pod(), &network)?;
            above_pods(&cadvisor, &pod.path)?;
            return Ok(());
        }
        ensure!(tried < TRIES, "the files of a frozen pod did not stand still for {TRIES} readings");
    }
    Ok(())
}

fn compare_cadvisor(samples: &Samples, subject: &Subject, expected: &Expected) -> Result<()> {
    for (family, labels, value) in expected {
        let mut wanted: Vec<(&str, &str)> = vec![("id", subject.labels["id"].as_str())];
        wanted.extend(*labels);
        let found: Vec<&Sample> = samples.select(family, &wanted).collect();
        match (&found[..], value) {
            ([], None) => {}
            ([sample], Some(value)) => {
                ensure!(sample.value == *value, "{family} {wanted:?}: {} shown, {value} in the files", sample.value);
                for (name, value) in &subject.labels {
                    ensure!(sample.label(name) == value, "{family}: {name}={:?}, not {value:?}", sample.label(name));
                }
                let names = subject.labels.len() + labels.len();
                ensure!(sample.labels.len() == names, "{family} has other labels: {:?}", sample.labels);
            }
            (found, value) => bail!("{family} {wanted:?}: {found:?} shown, {value:?} in the files"),
        }
    }
    Ok(())
}

/// The same values where the kubelet has them: containers with a name, and the pod.
fn compare_resource(samples: &Samples, subject: &Subject, expected: &Expected) -> Result<()> {
    let (container, of_pod) = (subject.labels["container"].as_str(), subject.labels["name"].is_empty());
    let (prefix, labels) = match (container, of_pod) {
        ("", true) => ("pod", subject.pod().to_vec()),
        ("", false) => return Ok(()),
        _ => ("container", [&[("container", container)], &subject.pod()[..]].concat()),
    };
    for (theirs, ours) in [
        ("container_cpu_usage_seconds_total", format!("{prefix}_cpu_usage_seconds_total")),
        ("container_memory_working_set_bytes", format!("{prefix}_memory_working_set_bytes")),
        ("container_memory_swap", format!("{prefix}_swap_usage_bytes")),
    ] {
        let value = expected.iter().find(|(family, ..)| *family == theirs).and_then(|(_, _, value)| *value);
        let found = samples.get(&ours, &labels);
        ensure!(found == value, "{ours} {labels:?}: {found:?} shown, {value:?} in the files");
    }
    ensure!(samples.get("resource_scrape_error", &[]) == Some(0.0), "the scrape was not complete");
    Ok(())
}

/// Once for the pod, and what the kernel counted in its namespace.
fn compare_network(samples: &Samples, labels: &[(&str, &str)], truth: &Truth) -> Result<()> {
    for (name, of) in &truth.interfaces {
        for (family, value) in [
            ("container_network_receive_bytes_total", of.rx_bytes),
            ("container_network_receive_packets_total", of.rx_packets),
            ("container_network_receive_packets_dropped_total", of.rx_dropped),
            ("container_network_transmit_bytes_total", of.tx_bytes),
            ("container_network_transmit_packets_total", of.tx_packets),
            ("container_network_transmit_packets_dropped_total", of.tx_dropped),
        ] {
            let found = samples.get(family, &[labels, &[("interface", name.as_str())]].concat());
            // A packet count is far below 2^53.
            let value = (!UNCOUNTED.iter().any(|prefix| name.starts_with(prefix))).then_some(value as f64);
            ensure!(found == value, "{family} of {name}: {found:?} shown, {value:?} counted by the kernel");
        }
    }
    Ok(())
}

/// The cgroups above the pod are there, up to the node.
fn above_pods(samples: &Samples, pod: &Path) -> Result<()> {
    for path in pod.ancestors().skip(1) {
        let id = path.display().to_string();
        let labels = [("id", id.as_str()), ("pod", ""), ("container", ""), ("cpu", "total")];
        let cpu = samples.get("container_cpu_usage_seconds_total", &labels);
        ensure!(cpu.is_some_and(|seconds| seconds > 0.0), "no CPU time of {id}");
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let total = keyed(&meminfo, "MemTotal:").map(|kilobytes| kilobytes * 1024.0);
    ensure!(samples.sum("machine_memory_bytes", &[]) == total.unwrap_or_default(), "machine_memory_bytes is wrong");
    ensure!(samples.get("container_scrape_error", &[]) == Some(0.0), "the scrape was not complete");
    Ok(())
}

/// Keeps the pod's processes from running, so that its files stand still.
struct Frozen(PathBuf);

impl Frozen {
    fn new(directory: &Path) -> Result<Self> {
        ensure!(directory.is_dir(), "there is no cgroup v2 directory {} to freeze the pod by", directory.display());
        let file = directory.join("cgroup.freeze");
        std::fs::write(&file, "1").with_context(|| format!("freezing by {}", file.display()))?;
        let frozen = Self(file);
        let deadline = Instant::now() + PATIENCE;
        while keyed(&read(&directory.join("cgroup.events")).unwrap_or_default(), "frozen") != Some(1.0) {
            ensure!(Instant::now() < deadline, "{} does not freeze", directory.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.0, "0") {
            eprintln!("observer-lab: thawing by {}: {error}", self.0.display());
        }
    }
}
