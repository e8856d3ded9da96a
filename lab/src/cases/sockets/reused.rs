//! Sockets at the addresses of older ones.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};

use super::super::restart::Monotonic;
use super::{ACTIVE, CLIENT, NAMESPACE, PATIENCE, PAYLOAD, SERVER, Samples, Scale, Scene, Way};
use crate::actor::{Command, ServeMode};
use crate::pod::{Pod, PodSpec};

/// What an older connection has carried each way before anybody counts.
const BEFORE: u64 = 3_001;
/// Older connections that carry nothing: that is kept, too, and must go with them.
const SILENT: usize = 5;
/// Pods of this namespace are selected at first, and not any more later.
const LEFT: &str = "left";
/// How often new connections are opened until one has an address that matters.
const ROUNDS: u32 = 5;

/// Connections that are older than the agent end while nobody follows them: those of a pod that is not selected any more. What
/// they had carried stays in the kernel, by the addresses of their sockets, which others have next: what these carry is counted
/// from its first byte, while they live and when they end. Older connections of a pod that stays selected count from the agent
/// on, those that end while there is none, too.
pub fn sockets_reused(scale: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    let left = Pod::create(&scene.stage.node, PodSpec::new(LEFT, LEFT, &[CLIENT, SERVER]))?;
    scene.stage.announce(&[&scene.here, &scene.there, &left])?;
    // IPv4 alone: sockets of IPv6 have other memory.
    let way = Way::near(&scene.here, Ipv4Addr::LOCALHOST)?;
    let older = open(way, scale.of(50, 10))?;
    let silent: Vec<u64> = (0..SILENT).map(|_| way.open(older.to)).collect::<Result<_>>()?;
    let gone = open(Way::near(&left, Ipv4Addr::LOCALHOST)?, scale.of(400, 60))?;
    let agent = scene.agent()?;
    let mut watch = Monotonic::of(PAYLOAD);
    let noted = bases(&scene)?.len();
    let sockets = 2 * (older.connections.len() + silent.len() + gone.connections.len());
    ensure!(noted == sockets, "what {noted} of {sockets} older sockets had carried is kept");
    older.close(&silent)?;
    let given_back = |_: &Samples| bases(&scene).is_ok_and(|kept| kept.len() == noted - 2 * silent.len());
    agent.wait_until(PATIENCE, "that nothing is kept of connections that have carried nothing", given_back)?;
    let mut carried = older.exchange(701)?;
    watch.see(&way.expect(&agent, older.to, carried, carried, 0)?)?;
    agent.kill9()?;

    carried += older.exchange(41)?;
    let (some, others) = older.connections.split_at(older.connections.len() / 2);
    older.close(some)?;
    let agent = scene.agent_with(&["--pods.namespaces", NAMESPACE])?;
    // Those of the pod that stays, at both ends.
    let given_back = |samples: &Samples| samples.sum("observer_agent_edges_used", &[]) == 2.0;
    agent.wait_until(PATIENCE, "that the edges of a pod which is not selected are given back", given_back)?;
    watch.see(&way.expect(&agent, older.to, carried, carried, 0)?)?;
    older.close(others)?;
    watch.see(&way.expect(&agent, older.to, carried, carried, 0)?)?;
    // Every fourth stays: memory in which there is no socket any more would be given to anything.
    let (stay, go): (Vec<_>, Vec<_>) = gone.connections.iter().partition(|connection| *connection % 4 == 0);
    gone.close(&go)?;
    let kept = bases(&scene)?;
    ensure!(kept.len() == 2 * gone.connections.len(), "{} sockets have left something behind", kept.len());

    let mut met = 0;
    for _ in 0..ROUNDS {
        // So many at once that not each finds a line.
        let young = open(way, scale.of(800, 150))?;
        let number = young.connections.len() as u64;
        let expect = |carried, what| way.expect(&agent, young.to, carried, carried, number).context(what);
        let mut carried = number * BEFORE;
        watch.see(&expect(carried, "new connections that live")?)?;
        carried += young.exchange(13)?;
        watch.see(&expect(carried, "new connections that live on")?)?;
        // Who begins without a line takes away what lies at its address.
        met += kept.difference(&bases(&scene)?).count();
        young.close(&young.connections)?;
        watch.see(&expect(carried, "new connections that have ended")?)?;
        if met > 0 {
            break;
        }
    }
    // Where fewer are open, most find a line.
    ensure!(met > 0 || scale == Scale::Guest, "no new socket has met what an older one at its address had left");

    // And more, one after another.
    let to = way.serve(ServeMode::request_response(100, 300))?;
    let connections = scale.of(4_000, 200);
    way.client.traffic(&Command::TcpRequests {
        to,
        connections,
        requests: 1,
        request_bytes: 100,
        response_bytes: 300,
        parallel: 4,
    })?;
    let connections = u64::from(connections);
    watch.see(&way.expect(&agent, to, connections * 100, connections * 300, connections)?)?;
    gone.close(&stay)?;
    let active = |samples: &Samples| samples.sum(ACTIVE, &[("namespace", NAMESPACE)]);
    watch.see(&agent.wait_until(PATIENCE, "that no connection is active", |samples| active(samples) == 0.0)?)?;
    agent.terminate()
}

/// Connections that stay.
struct Lasting<'a> {
    way: Way<'a>,
    to: SocketAddr,
    connections: Vec<u64>,
}

/// Opens so many, each of which carries [`BEFORE`] bytes both ways.
fn open(way: Way<'_>, connections: u32) -> Result<Lasting<'_>> {
    let to = way.serve(ServeMode::Echo)?;
    let connections = (0..connections).map(|_| way.open(to)).collect::<Result<_>>()?;
    let lasting = Lasting { way, to, connections };
    lasting.exchange(BEFORE)?;
    Ok(lasting)
}

impl Lasting<'_> {
    /// Sends so many bytes over each and has them back. Gives their sum.
    fn exchange(&self, bytes: u64) -> Result<u64> {
        self.connections.iter().try_for_each(|connection| self.way.exchange(*connection, bytes))?;
        Ok(self.connections.len() as u64 * bytes)
    }

    fn close(&self, some: &[u64]) -> Result<()> {
        some.iter().try_for_each(|connection| self.way.close(*connection))
    }
}

/// The addresses of sockets of which is kept what they had carried.
fn bases(scene: &Scene) -> Result<BTreeSet<u64>> {
    let path =
        scene.stage.bpffs().join(format!("observer/v{}-sockets/maps/SOCKET_BASES", observer::kernel::ABI_VERSION));
    let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    let map: HashMap<_, u64, [u64; 2]> = HashMap::try_from(Map::HashMap(map))?;
    Ok(map.keys().collect::<Result<_, _>>()?)
}
