//! A node that is full: pods of several workloads, each of which talks to itself and to its neighbours.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::actor::{Command, Pace, ServeMode, Sizes};
use crate::agent::{Agent, AgentOptions};
use crate::bpffs::BpfFs;
use crate::node::Node;
use crate::pod::{Pod, PodSpec, Qos};
use crate::podsfile;
use crate::samples::Samples;

const NAMESPACES: usize = 8;
/// Replicas of a workload.
const REPLICAS: usize = 4;
/// How many of the pods after it a pod calls: each in a workload of its own.
const NEIGHBOURS: usize = 5;
const PORT: u16 = 8080;
const LOCAL_PORT: u16 = 5140;
const SHOWING: Duration = Duration::from_secs(60);

/// The pods, and what the agent needs.
pub(super) struct FullNode {
    // Dropped in this order.
    pods: Vec<Pod>,
    node: Node,
    bpffs: BpfFs,
    directory: TempDir,
}

impl FullNode {
    /// Makes the pods. Nobody talks yet.
    pub(super) fn create(pods: usize, containers: usize) -> Result<Self> {
        ensure!(containers > 0, "a pod without containers costs nothing: --containers must be at least 1");
        let directory = tempfile::tempdir().context("making a directory for the pods file")?;
        let mut full = Self { pods: Vec::new(), node: Node::create()?, bpffs: BpfFs::create()?, directory };
        let names: Vec<String> = (0..containers).map(|at| format!("container-{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for at in 0..pods {
            eprint!("\rmaking pod {} of {pods}", at + 1);
            full.pods.push(Pod::create(&full.node, spec(at, &names))?);
        }
        eprintln!();
        podsfile::write(&full.pods_file(), &full.pods)?;
        Ok(full)
    }

    fn pods_file(&self) -> std::path::PathBuf {
        self.directory.path().join("pods.json")
    }

    /// Starts the agent with everything at its default.
    pub(super) fn agent(&self) -> Result<Agent> {
        Agent::start(
            self.node.launcher(),
            &AgentOptions {
                pods_file: Some(self.pods_file()),
                bpffs: Some(self.bpffs.path().to_owned()),
                ..AgentOptions::default()
            },
        )
    }

    /// Lets every pod talk: its last container to its first over localhost, by TCP and UDP, and to the pods after it.
    pub(super) fn talk(&self) -> Result<()> {
        eprintln!("letting the pods talk");
        for pod in &self.pods {
            let server = pod.containers().first().context("a pod has containers")?;
            server.serve_tcp((Ipv4Addr::UNSPECIFIED, PORT).into(), ServeMode::request_response(100, 1_000))?;
            server.serve_udp((Ipv4Addr::LOCALHOST, LOCAL_PORT).into(), true)?;
        }
        for (at, pod) in self.pods.iter().enumerate() {
            let client = pod.containers().last().context("a pod has containers")?;
            client.run(&calls((Ipv4Addr::LOCALHOST, PORT).into()))?;
            client.run(&Command::UdpSend {
                to: (Ipv4Addr::LOCALHOST, LOCAL_PORT).into(),
                sizes: Sizes::List(vec![100; 4]),
                connected: false,
                pace: Pace::Echoed { window: 1 },
            })?;
            for step in 1..=NEIGHBOURS.min(self.pods.len().saturating_sub(1)) {
                let neighbour = &self.pods[(at + step * REPLICAS) % self.pods.len()];
                pod.introduce(neighbour)?;
                client.run(&calls((neighbour.ipv4(), PORT).into()))?;
            }
        }
        Ok(())
    }

    /// Waits until the agent shows every container by its name.
    pub(super) fn wait_until_shown(&self, agent: &Agent) -> Result<()> {
        let containers: usize = self.pods.iter().map(|pod| pod.containers().len()).sum();
        let named = |samples: &Samples| {
            let series = samples.select("observer_cpu_usage_seconds_total", &[]);
            let named = series.map(|sample| (sample.label("pod"), sample.label("container")));
            named.filter(|(_, container)| container.starts_with("container-")).collect::<BTreeSet<_>>().len()
        };
        let samples = agent.scrape_until(SHOWING, |samples| named(samples) == containers)?;
        ensure!(named(&samples) == containers, "the agent shows {} of {containers} containers", named(&samples));
        Ok(())
    }
}

impl Drop for FullNode {
    fn drop(&mut self) {
        // Everything is killed before anything is waited for.
        for container in self.pods.iter().flat_map(Pod::containers) {
            // What cannot be killed here is reported when its pod is dropped.
            let _ = container.cgroup().kill();
        }
    }
}

fn spec(at: usize, containers: &[&str]) -> PodSpec {
    let workload = at / REPLICAS;
    let name = format!("workload-{workload}");
    PodSpec::new(&format!("namespace-{}", workload % NAMESPACES), &format!("{name}-6d4cf56db6-{at:05}"), containers)
        .label("app", &name)
        .label("pod-template-hash", "6d4cf56db6")
        .owner("ReplicaSet", &format!("{name}-6d4cf56db6"))
        .qos([Qos::Burstable, Qos::Guaranteed, Qos::BestEffort][workload % 3])
}

fn calls(to: SocketAddr) -> Command {
    Command::TcpRequests { to, connections: 2, requests: 2, request_bytes: 100, response_bytes: 1_000, parallel: 1 }
}
