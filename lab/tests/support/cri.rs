//! A real containerd node with an agent that asks its runtime.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use observer_lab::agent::{Agent, AgentOptions, find_binary};
use observer_lab::bpffs::BpfFs;
use observer_lab::cri_node::{CriContainer, CriContainerSpec, CriNode, CriPod, CriPodSpec};
use observer_lab::launch::Launcher;
use observer_lab::samples::Samples;
use serde_json::Value;

/// How long something may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
const HASH: &str = "7f9fbbdc5f";
/// The name of [`web`].
pub const WEB: &str = "web-7f9fbbdc5f-vmngc";

/// A real node and an agent that asks its runtime.
pub struct Stage {
    pub agent: Agent,
    pub bpffs: BpfFs,
    pub node: CriNode,
}

/// A real node.
pub fn node() -> CriNode {
    CriNode::create(Launcher::at(env!("CARGO_BIN_EXE_observer-lab"))).unwrap()
}

/// Both, fresh.
pub fn stage() -> Stage {
    let node = node();
    let (agent, bpffs) = observe(&node);
    Stage { agent, bpffs, node }
}

/// An agent that asks this node's runtime.
pub fn observe(node: &CriNode) -> (Agent, BpfFs) {
    observe_in(None, node, &[])
}

/// The same in the node's network namespace, with further arguments. Only from there it can be asked.
pub fn observe_on_the_node(node: &CriNode, further: &[&str]) -> (Agent, BpfFs) {
    observe_in(Some(node.netns().path()), node, further)
}

fn observe_in(netns: Option<PathBuf>, node: &CriNode, further: &[&str]) -> (Agent, BpfFs) {
    let bpffs = BpfFs::create().unwrap();
    let endpoint = node.endpoint();
    let arguments = [&["--cri.endpoint", &endpoint, "--traffic.peer-detail", "pod"], further].concat();
    let arguments = arguments.into_iter().map(std::ffi::OsString::from).collect();
    let options = AgentOptions { bpffs: Some(bpffs.path().to_owned()), arguments, netns, ..AgentOptions::default() };
    (Agent::start(node.launcher(), &options).unwrap(), bpffs)
}

/// Waits for a sample with these labels and this value.
pub fn wait(agent: &Agent, name: &str, labels: &[(&str, &str)], value: f64) -> Samples {
    let samples = agent.scrape_until(PATIENCE, |samples| samples.get(name, labels) == Some(value)).unwrap();
    let pod: Vec<_> = labels.iter().copied().filter(|(name, _)| matches!(*name, "pod" | "probe")).collect();
    let known: Vec<_> = samples.select(name, &pod).collect();
    assert_eq!(samples.get(name, labels), Some(value), "{name} {labels:?} among {known:#?}");
    samples
}

/// Scrapes until nothing moves any more.
pub fn settled(agent: &Agent) -> Samples {
    observer_lab::cases::settled(agent).unwrap()
}

/// A pod that a Deployment would have made, with a server of TCP port 9000 that swallows what it gets, and a container
/// beside it.
pub fn web(node: &CriNode) -> (CriPod<'_>, CriContainer<'_>, CriContainer<'_>) {
    let spec =
        CriPodSpec::new("shop", WEB).label("pod-template-hash", HASH).label("app", "web").annotation("note", "x");
    let pod = node.pod(&spec).unwrap();
    // Not `nc` alone, which ends its side when its input ends.
    let serve = ["nc", "-ll", "-p", "9000", "-e", "sh", "-c", "cat >/dev/null"];
    let app = pod.container(&CriContainerSpec::new("app", &serve).limits(500, 128 << 20)).unwrap();
    let side = pod.container(&CriContainerSpec::new("side", &[])).unwrap();
    (pod, app, side)
}

/// What `observer pods` shows.
pub fn observer_pods(stage: &Stage) -> Vec<Value> {
    observer_pods_with(&stage.node, &[])
}

/// The same with further arguments.
pub fn observer_pods_with(node: &CriNode, further: &[&str]) -> Vec<Value> {
    let binary = find_binary().unwrap();
    let endpoint = node.endpoint();
    let output = Command::new(binary).args(["pods", "-o", "json", "--cri.endpoint", &endpoint]).args(further).output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}
