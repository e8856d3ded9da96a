//! Runs the collectors when a scrape comes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;

use super::{AgentMetrics, Exposition};
use crate::identity::Snapshot;

/// The content type of what [`Registry::scrape`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A source of samples.
pub trait Collect: Send {
    /// Its name: the `source` label of its errors.
    fn name(&self) -> &'static str;

    /// Reads the source and writes its samples. All collectors of a scrape see the same `snapshot`.
    ///
    /// # Errors
    /// When the source as a whole cannot be read. What was written before stays; other collectors run on.
    fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()>;
}

/// All collectors, and the room that scrapes are written in.
pub struct Registry {
    snapshots: Arc<ArcSwap<Snapshot>>,
    agent: Arc<AgentMetrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    collectors: Vec<Box<dyn Collect>>,
    out: Exposition,
}

impl Registry {
    /// A registry without collectors. `snapshots` holds the newest snapshot; `agent` is told about each scrape.
    #[must_use]
    pub fn new(snapshots: Arc<ArcSwap<Snapshot>>, agent: Arc<AgentMetrics>) -> Self {
        Self { snapshots, agent, state: Mutex::default() }
    }

    /// Adds a collector. Each family must come from one collector only.
    pub fn register(&self, collector: impl Collect + 'static) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).collectors.push(Box::new(collector));
    }

    /// Reads everything now, in the Prometheus text format. Blocks on files; one scrape at a time. A collector
    /// that fails is logged and counted, the rest is complete.
    #[must_use]
    pub fn scrape(&self) -> Vec<u8> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let State { collectors, out } = &mut *state;
        out.clear();
        let snapshot = self.snapshots.load_full();
        for collector in collectors {
            if let Err(error) = collector.collect(&snapshot, out) {
                self.agent.source_error(collector.name());
                tracing::warn!(source = collector.name(), "a part of the scrape is missing: {error:#}");
            }
        }
        let text = out.to_text();
        self.agent.scraped(start.elapsed(), text.len());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::{
            BuildInfo, ProbeState, catalogue,
            collectors::{AgentCollector, InfoCollector, ProcessCollector, resources},
        },
        resources::{
            ContainerUsage, Quota, Usage,
            testing::{container, snapshot},
        },
    };

    struct Broken;

    impl Collect for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }

        fn collect(&mut self, _: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
            out.family(&catalogue::PROCESSES).sample(["n", "p", "c"], 1u64);
            anyhow::bail!("no")
        }
    }

    /// Prints how long a scrape of 330 containers takes that are not there; run with `--release -- --nocapture`.
    #[test]
    fn time_to_scrape_330_containers() {
        let containers = (0..330).map(|i| container(&format!("c{i}"), &format!("/{i}"))).collect();
        let snapshots = Arc::new(ArcSwap::from_pointee(snapshot(vec![("p", containers)])));
        let agent = Arc::new(AgentMetrics::new(BuildInfo::default()));
        agent.probe_state("egress", ProbeState::Failed, "line\nend \"quoted\"");
        let registry = Registry::new(snapshots, Arc::clone(&agent));
        registry.register(Fixed);
        registry.register(InfoCollector);
        registry.register(ProcessCollector::default());
        registry.register(AgentCollector::new(agent));
        for round in 0..3 {
            let start = Instant::now();
            let text = registry.scrape();
            println!("round {round}: {} bytes, {:?}", text.len(), start.elapsed());
            if let Some(path) = std::env::var_os("OBSERVER_TEST_SCRAPE_TO") {
                std::fs::write(path, text).unwrap();
            }
        }
    }

    /// Full usages of all containers, from no file.
    struct Fixed;

    impl Collect for Fixed {
        fn name(&self) -> &'static str {
            "resources"
        }

        fn collect(&mut self, snapshot: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
            let number = Some(123_456_789);
            let usage = Usage {
                cpu_user: Some(1_234.5),
                cpu_system: Some(0.25),
                quota: Some(Quota { cores: 0.5, periods: number, throttled_periods: number, throttled: Some(1.5) }),
                working_set: number,
                usage: number,
                rss: number,
                cache: number,
                swap: number,
                peak: number,
                limit: number,
                minor_faults: number,
                major_faults: number,
                processes: number,
                threads: number,
            };
            let usages: Vec<_> = snapshot.sandboxes()[0]
                .containers
                .iter()
                .map(|c| ContainerUsage { namespace: "n", pod: "p", container: &c.name, started: None, usage })
                .collect();
            resources::write(&usages, out);
            Ok(())
        }
    }

    #[test]
    fn a_broken_collector_is_counted_and_hides_nothing() {
        let agent = Arc::new(AgentMetrics::new(BuildInfo::default()));
        let registry = Registry::new(Arc::default(), Arc::clone(&agent));
        registry.register(Broken);
        registry.register(AgentCollector::new(agent));
        let text = String::from_utf8(registry.scrape()).unwrap();
        assert!(text.contains("observer_agent_source_errors_total{source=\"broken\"} 1\n"), "{text}");
        assert!(text.contains("observer_processes{"), "{text}");
        let again = String::from_utf8(registry.scrape()).unwrap();
        assert!(again.contains("observer_agent_scrape_duration_seconds_count 1\n"), "{again}");
        assert!(again.contains(&format!("observer_agent_scrape_size_bytes {}\n", text.len())), "{again}");
    }
}
