//! What every case stands on: a node, a BPF filesystem of its own, a pods file, and the agent.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::PATIENCE;
use crate::actor::{Command, Pace, Sizes};
use crate::agent::{Agent, AgentOptions};
use crate::bpffs::BpfFs;
use crate::launch::Launcher;
use crate::node::Node;
use crate::pod::{Pod, PodSpec};
use crate::podsfile;
use crate::samples::Samples;

/// How much a case sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// On the machine itself.
    Full,
    /// In a guest, whose processor is emulated.
    Guest,
}

impl Scale {
    /// The amount for this scale.
    pub fn of<T>(self, full: T, guest: T) -> T {
        match self {
            Self::Full => full,
            Self::Guest => guest,
        }
    }
}

/// The stage. Everything on it goes when it is dropped.
pub struct Stage {
    /// The node.
    pub node: Node,
    bpffs: BpfFs,
    directory: TempDir,
    edges: Option<u32>,
}

impl Stage {
    /// Sets it up, without an agent.
    pub fn new(edges: Option<u32>) -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for the pods file")?;
        let stage = Self { node: Node::with_launcher(Launcher::find()?)?, bpffs: BpfFs::create()?, directory, edges };
        stage.announce(&[])?;
        Ok(stage)
    }

    fn pods_file(&self) -> PathBuf {
        self.directory.path().join("pods.json")
    }

    /// Where the agent pins.
    pub fn bpffs(&self) -> &std::path::Path {
        self.bpffs.path()
    }

    /// A directory or map that the agent pins, below its own directory of this version.
    pub fn pinned(&self, what: &str) -> PathBuf {
        self.bpffs().join("observer").join(format!("v{}", observer::kernel::ABI_VERSION)).join(what)
    }

    /// Names the pods to the agent.
    pub fn announce(&self, pods: &[&Pod]) -> Result<()> {
        podsfile::write(&self.pods_file(), pods.iter().copied())
    }

    /// Starts the agent and waits until it is ready.
    pub fn agent(&self) -> Result<Agent> {
        self.agent_at(None)
    }

    /// The same, at an address.
    pub fn agent_at(&self, listen: Option<SocketAddr>) -> Result<Agent> {
        self.agent_with(listen, &[])
    }

    /// The same, in the network namespace of the lab's node, which the caller has to be in, too.
    pub fn agent_on_the_node(&self, listen: Option<SocketAddr>, more: &[&str]) -> Result<Agent> {
        self.agent_in(listen, more, Some(self.node.netns().path()))
    }

    /// Whether the edge table is too small for the case.
    pub fn has_small_table(&self) -> bool {
        self.edges.is_some()
    }

    /// The same, with further arguments.
    pub fn agent_with(&self, listen: Option<SocketAddr>, more: &[&str]) -> Result<Agent> {
        self.agent_in(listen, more, None)
    }

    fn agent_in(&self, listen: Option<SocketAddr>, more: &[&str], netns: Option<PathBuf>) -> Result<Agent> {
        let mut arguments: Vec<OsString> =
            ["--traffic.peer-detail", "pod", "--log.level", "debug"].map(OsString::from).to_vec();
        if let Some(edges) = self.edges {
            arguments.extend(["--traffic.edges".into(), edges.to_string().into()]);
        }
        arguments.extend(more.iter().map(OsString::from));
        Agent::start(
            self.node.launcher(),
            &AgentOptions {
                pods_file: Some(self.pods_file()),
                bpffs: Some(self.bpffs.path().to_owned()),
                listen,
                netns,
                arguments,
                ..AgentOptions::default()
            },
        )
    }

    /// Makes a pod of these containers, names it, and waits until the agent shows it.
    pub fn pod(&self, agent: &Agent, name: &str, containers: &[&str]) -> Result<Pod> {
        let pod = Pod::create(&self.node, PodSpec::new("cases", name, containers))?;
        self.announce(&[&pod])?;
        wait_for_pods(agent, &[name])?;
        Ok(pod)
    }

    /// With a table that is too small: takes all of it, so that what follows finds it full.
    pub fn fill_table(&self, pod: &Pod, container: &str) -> Result<()> {
        let Some(edges) = self.edges else { return Ok(()) };
        let first: u16 = 20_000;
        for port in first..first + u16::try_from(edges).unwrap_or(u16::MAX - first) + 8 {
            // Nobody listens there, which is no error for a socket that is not connected.
            pod.container(container)?.run(&Command::UdpSend {
                to: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port),
                sizes: Sizes::List(vec![1]),
                connected: false,
                pace: Pace::Free,
            })?;
        }
        Ok(())
    }

    /// With a table that is too small, something must have overflowed; otherwise nothing may.
    pub fn check_overflow(&self, samples: &Samples) -> Result<()> {
        let overflowed = samples.sum("observer_agent_edges_overflowed_total", &[]);
        if self.edges.is_some() {
            ensure!(overflowed > 0.0, "nothing overflowed a table of {:?} edges", self.edges);
            let other = samples.sum("observer_traffic_bytes_total", &[("peer_kind", "other"), ("port", "")]);
            ensure!(other > 0.0, "nothing stands under peer_kind=\"other\"");
        } else {
            ensure!(overflowed == 0.0, "{overflowed} edges overflowed the default table");
        }
        let lost = samples.sum("observer_agent_unattributed_packets_total", &[]);
        ensure!(lost == 0.0, "{lost} packets are not attributed to any container");
        Ok(())
    }
}

/// Waits until the agent shows these pods.
pub fn wait_for_pods(agent: &Agent, names: &[&str]) -> Result<Samples> {
    let shown = |samples: &Samples| {
        names.iter().all(|name| samples.select("observer_pod_info", &[("pod", name)]).next().is_some())
    };
    let samples = agent.scrape_until(PATIENCE, shown)?;
    ensure!(shown(&samples), "observer_pod_info is not there for all of {names:?}; the agent's log:\n{}", agent.log());
    Ok(samples)
}

/// Waits until the agent shows these pods with their addresses.
pub fn wait_for_addresses(agent: &Agent, names: &[&str]) -> Result<Samples> {
    agent.wait_until(PATIENCE, &format!("addresses of {names:?}"), |samples| {
        names.iter().all(|name| {
            samples.select("observer_pod_info", &[("pod", name)]).any(|sample| !sample.label("pod_ip").is_empty())
        })
    })
}

/// Scrapes until nothing moves any more: the last packets of a connection come after its last byte.
pub fn settled(agent: &Agent) -> Result<Samples> {
    agent.scrape_until_still(PATIENCE, 1, |samples| samples.sum("observer_traffic_packets_total", &[]))
}
