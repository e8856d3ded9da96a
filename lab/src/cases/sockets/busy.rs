//! Connections that are older than the agent and never rest.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{ACTIVE, CLIENT, HERE, NAMESPACE, PATIENCE, PAYLOAD, SERVER, Samples, Scale, Scene, THERE, Way};
use crate::actor::{Command, ServeMode};

/// What they carry at a time while the agent comes, and when they rest.
const AT_ONCE: u64 = 100_000;
const MORE: u64 = 4_001;

/// What an older socket has carried is not sure while something happens to it, so it is tried again. All are followed, though hardly one
/// rests while the agent comes: nothing from before it is shown, and all that comes when they rest.
pub fn sockets_busy(scale: Scale, _: Option<u32>) -> Result<()> {
    let scene = Scene::new(None)?;
    let ways = [Way::near(&scene.here, Ipv6Addr::LOCALHOST)?, Way::far(&scene.here, &scene.there, scene.there.ipv4())?];
    // Of each way; and how long each rests, where all others have to come to run meanwhile.
    let (number, rest) = scale.of((16u64, Duration::ZERO), (4, Duration::from_millis(5)));
    let mut connections = Vec::new();
    for way in ways {
        let to = way.serve(ServeMode::Echo)?;
        for _ in 0..number {
            let connection = way.open(to)?;
            let script = vec![Command::TcpWrite { connection, bytes: AT_ONCE, reply_bytes: AT_ONCE }];
            connections.push((way, connection, way.client.start(script, rest, None)?));
        }
    }
    let agent = scene.agent()?;
    let mut carried = 0;
    for (way, _, job) in &connections {
        let done = way.client.stop(*job)?;
        ensure!(done.failures == 0 && done.sent_bytes > 0, "{done:?}");
        carried += done.sent_bytes;
    }
    let ends = 2 * connections.len();
    let active = |samples: &Samples| samples.sum(ACTIVE, &[("namespace", NAMESPACE)]) == ends as f64;
    let samples = agent.wait_until(PATIENCE, &format!("that {ends} ends are followed"), active)?;
    let shown = |samples: &Samples| -> [u64; 6] {
        let mut shown = [0; 6];
        for (end, (pod, container)) in [(HERE, CLIENT), (HERE, SERVER), (THERE, SERVER)].into_iter().enumerate() {
            for (at, direction) in ["transmit", "receive"].into_iter().enumerate() {
                let labels = [("pod", pod), ("container", container), ("direction", direction)];
                shown[2 * end + at] = samples.sum(PAYLOAD, &labels) as u64;
            }
        }
        shown
    };
    let then = shown(&samples);
    ensure!(then[..2].iter().all(|bytes| (1..carried).contains(bytes)), "{then:?} of {carried}");
    for (way, connection, _) in &connections {
        way.exchange(*connection, MORE)?;
    }
    let (both, one) = (2 * number * MORE, number * MORE);
    let expected = [both, both, one, one, one, one];
    let more = |samples: &Samples| std::array::from_fn(|at| shown(samples)[at].wrapping_sub(then[at]));
    let samples = agent.scrape_until(PATIENCE, |samples| more(samples) == expected)?;
    ensure!(more(&samples) == expected, "{:?} more, expected {expected:?}", more(&samples));
    for (way, connection, _) in &connections {
        way.close(*connection)?;
    }
    let over = |samples: &Samples| samples.sum(ACTIVE, &[("namespace", NAMESPACE)]) == 0.0;
    let samples = agent.wait_until(PATIENCE, "that all is over", over).context("after the end")?;
    ensure!(more(&samples) == expected, "{:?} more after the end, expected {expected:?}", more(&samples));
    agent.terminate()
}
