//! An agent that asks a server that says what a real API server said.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use observer_lab::agent::{Agent, AgentOptions};
use observer_lab::bpffs::BpfFs;
use observer_lab::kube_server::KubeServer;
use observer_lab::launch::Launcher;
use observer_lab::node::Node;
use observer_lab::samples::Samples;

use super::node;

/// How long something may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The node's name.
pub const NODE: &str = "node1";

/// An agent, the server that it asks, and the node that it is on.
pub struct Stage<S = KubeServer> {
    pub agent: Agent,
    pub server: S,
    pub node: Node,
    _bpffs: BpfFs,
}

/// An agent that asks this server, with these arguments, and no runtime.
pub fn observe(server: KubeServer, further: &[&str]) -> Stage {
    let credentials = (server.token_file(), server.ca_file());
    observe_with(server, credentials, further)
}

/// The same with a server of any kind, its agent's token and its certificate.
pub fn observe_with<S>(server: S, (token, ca): (PathBuf, PathBuf), further: &[&str]) -> Stage<S> {
    let bpffs = BpfFs::create().unwrap();
    let node = node();
    let mut arguments: Vec<OsString> = ["--cri.endpoint", "none", "--node.name", NODE].map(OsString::from).to_vec();
    arguments.extend([
        "--service-account.token-file".into(),
        token.into(),
        "--service-account.ca-file".into(),
        ca.into(),
    ]);
    arguments.extend(further.iter().map(OsString::from));
    let options = AgentOptions { bpffs: Some(bpffs.path().to_owned()), arguments, ..AgentOptions::default() };
    let launcher = Launcher::at(env!("CARGO_BIN_EXE_observer-lab"));
    let agent = Agent::start(&launcher, &options).unwrap();
    Stage { agent, server, node, _bpffs: bpffs }
}

impl<S> Stage<S> {
    /// Waits for a sample with these labels and this value.
    pub fn wait(&self, name: &str, labels: &[(&str, &str)], value: f64) -> Samples {
        let found = |samples: &Samples| samples.get(name, labels) == Some(value);
        let samples = self.agent.scrape_until(PATIENCE, found).unwrap();
        let known: Vec<_> = samples.select(name, &[]).collect();
        assert_eq!(samples.get(name, labels), Some(value), "{name} {labels:?} among {known:#?}");
        samples
    }

    /// Waits until a source's state is this, with these words in its reason. Reads the text itself: reasons have commas,
    /// which the samples' parser takes for ends of labels.
    pub fn wait_state(&self, probe: &str, state: &str, words: &[&str]) {
        let states = || -> Vec<String> {
            let text = self.agent.fetch("/metrics").unwrap();
            let of = format!("observer_agent_probe_state{{probe=\"{probe}\"");
            text.lines().filter(|line| line.starts_with(&of)).map(str::to_owned).collect()
        };
        let wanted = |line: &String| {
            line.contains(&format!("state=\"{state}\""))
                && line.ends_with(" 1")
                && words.iter().all(|w| line.contains(w))
        };
        let deadline = Instant::now() + PATIENCE;
        while !states().iter().any(wanted) {
            assert!(Instant::now() < deadline, "{state} {words:?}, but {:#?}", states());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Stage {
    pub fn wait_until(&self, what: &str, done: impl Fn(&KubeServer) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.server) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.server.requests());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
