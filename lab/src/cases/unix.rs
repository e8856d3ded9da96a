//! Unix sockets between containers, pods and the host.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::PATIENCE;
use super::stage::{Scale, Stage, wait_for_pods};
use crate::actor::{Command, UnixKind};
use crate::agent::Agent;
use crate::pod::{Container, Pod, PodSpec};
use crate::samples::Samples;

const BYTES: &str = "observer_unix_socket_bytes_total";
const MESSAGES: &str = "observer_unix_socket_messages_total";
/// Small enough for a message to be sent and received in one piece.
const SIZE: u32 = 1_000;

/// Who talks to whom, and how much is known of it.
struct Talk<'a> {
    owner: (&'a str, &'a str),
    peer: &'a [(&'a str, &'a str)],
    direction: &'a str,
    messages: u32,
}

impl Talk<'_> {
    fn check(&self, before: &Samples, after: &Samples) -> Result<()> {
        let labels = [("pod", self.owner.0), ("container", self.owner.1), ("direction", self.direction)];
        let labels = [&labels[..], self.peer].concat();
        for (family, expected) in [(BYTES, self.messages * SIZE), (MESSAGES, self.messages)] {
            let counted = after.sum(family, &labels) - before.sum(family, &labels);
            ensure!(counted == f64::from(expected), "{family}{labels:?}: {counted}, and {expected} were sent");
        }
        Ok(())
    }
}

/// Scrapes until no message is on its way: a server of datagrams reads when it has its turn.
fn settled(agent: &Agent) -> Result<Samples> {
    agent.scrape_until_still(PATIENCE, 3, |samples| samples.sum(MESSAGES, &[]))
}

fn send(container: &Container, path: &Path, kind: UnixKind, messages: u32) -> Result<()> {
    container.run(&Command::UnixSend { path: path.to_owned(), kind, messages, size: SIZE }).map(drop)
}

/// Messages between two containers of a pod, between two pods that share a volume, and with the host: both ends are named,
/// to the byte and in both directions, and the agent is killed with `kill -9` in the middle.
pub fn unix_sockets(scale: Scale, edges: Option<u32>) -> Result<()> {
    const OPTION: [&str; 1] = ["--traffic.unix-sockets"];
    let stage = Stage::new(edges)?;
    let agent = stage.agent_with(None, &OPTION)?;
    if agent.scrape()?.sum("observer_agent_probe_state", &[("probe", "unix"), ("state", "unsupported")]) == 1.0 {
        ensure!(super::kernel_older_than(6, 3), "the probe says that this kernel cannot run it:\n{}", agent.log());
        return agent.terminate();
    }
    let pod = Pod::create(&stage.node, PodSpec::new("cases", "unix", &["client", "server"]))?;
    let other = Pod::create(&stage.node, PodSpec::new("cases", "other", &["visitor"]))?;
    stage.announce(&[&pod, &other])?;
    wait_for_pods(&agent, &["unix", "other"])?;
    let volume = tempfile::tempdir().context("making a volume")?;
    let (stream, datagram) = (volume.path().join("stream"), volume.path().join("datagram"));
    let (client, server, visitor) = (pod.container("client")?, pod.container("server")?, other.container("visitor")?);
    for (path, kind) in [(&stream, UnixKind::Stream), (&datagram, UnixKind::Datagram)] {
        server.run(&Command::UnixServe { path: path.clone(), kind })?;
    }
    let rounds = scale.of(200, 50);

    let before = settled(&agent)?;
    send(client, &stream, UnixKind::Stream, rounds)?;
    let address = agent.address();
    agent.kill9()?;
    // Nobody is there: the kernel counts.
    send(client, &stream, UnixKind::Stream, rounds)?;
    send(client, &datagram, UnixKind::Datagram, rounds)?;
    send(visitor, &stream, UnixKind::Stream, rounds)?;
    let agent = stage.agent_with(Some(address), &OPTION)?;
    wait_for_pods(&agent, &["unix", "other"])?;
    send(visitor, &stream, UnixKind::Stream, rounds)?;
    crate::actor::send_unix(&stream, UnixKind::Stream, rounds, SIZE)?;
    let after = settled(&agent)?;

    let named = |container| [("peer_kind", "container"), ("peer_container", container)];
    let pod_named = |name| [("peer_kind", "pod"), ("peer_pod", name)];
    for talk in [
        Talk { owner: ("unix", "client"), peer: &named("server"), direction: "transmit", messages: 3 * rounds },
        Talk { owner: ("unix", "client"), peer: &named("server"), direction: "receive", messages: 2 * rounds },
        Talk { owner: ("unix", "server"), peer: &named("client"), direction: "transmit", messages: 2 * rounds },
        Talk { owner: ("unix", "server"), peer: &named("client"), direction: "receive", messages: 2 * rounds },
        // A datagram socket that is not connected does not know who sends.
        Talk { owner: ("unix", "server"), peer: &[("peer_kind", "other")], direction: "receive", messages: rounds },
        Talk { owner: ("other", "visitor"), peer: &pod_named("unix"), direction: "transmit", messages: 2 * rounds },
        Talk { owner: ("other", "visitor"), peer: &pod_named("unix"), direction: "receive", messages: 2 * rounds },
        Talk { owner: ("unix", "server"), peer: &pod_named("other"), direction: "transmit", messages: 2 * rounds },
        Talk { owner: ("unix", "server"), peer: &pod_named("other"), direction: "receive", messages: 2 * rounds },
        Talk { owner: ("unix", "server"), peer: &[("peer_kind", "node")], direction: "transmit", messages: rounds },
        Talk { owner: ("unix", "server"), peer: &[("peer_kind", "node")], direction: "receive", messages: rounds },
    ] {
        talk.check(&before, &after)?;
    }
    let other_families = after.sum("observer_traffic_bytes_total", &[("protocol", "unix")]);
    ensure!(other_families == 0.0, "{other_families} bytes over Unix sockets are said to be packets");
    agent.terminate()
}
