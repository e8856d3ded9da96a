//! Runs the collectors when a scrape comes.

use std::{
    cmp::Reverse,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{AgentMetrics, Exposition};
use crate::{
    identity::Snapshot,
    parallel::{parallel, workers},
};

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

    /// Called when every collector of the scrape has written: what was shown for the last time may be let go of now,
    /// and not earlier, because another collector may not have shown its part yet.
    fn scraped(&mut self) {}
}

/// All collectors, and the room that scrapes are written in.
pub struct Registry {
    snapshots: Arc<ArcSwap<Snapshot>>,
    agent: Arc<AgentMetrics>,
    state: Mutex<State>,
    /// Whether its scrapes are the ones that `agent` tells of.
    main: bool,
}

#[derive(Default)]
struct State {
    collectors: Vec<Running>,
    /// They tell of the others.
    last: Vec<Running>,
}

/// A collector, and the room that it writes in.
struct Running {
    collector: Box<dyn Collect>,
    out: Exposition,
    /// How long it took the last time.
    took: Duration,
}

impl Running {
    fn new(collector: impl Collect + 'static) -> Self {
        Self { collector: Box::new(collector), out: Exposition::default(), took: Duration::ZERO }
    }

    fn collect(&mut self, snapshot: &Snapshot, agent: &AgentMetrics) {
        let start = Instant::now();
        let Self { collector, out, .. } = self;
        let name = collector.name();
        match guarded(|| collector.collect(snapshot, out)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                agent.source_error(name);
                tracing::warn!(source = name, "a part of the scrape is missing: {error:#}");
            }
            Err(panic) => {
                // It ended in the middle of a line, perhaps: nothing of it can be told from the rest.
                self.out = Exposition::default();
                agent.source_error(name);
                tracing::error!(
                    source = name,
                    "all of this part of the scrape is missing, for a fault of the agent: {panic}"
                );
            }
        }
        self.took = start.elapsed();
    }

    fn scraped(&mut self, agent: &AgentMetrics) {
        if let Err(panic) = guarded(|| self.collector.scraped()) {
            agent.source_error(self.collector.name());
            tracing::error!(source = self.collector.name(), "a fault of the agent after the scrape: {panic}");
        }
    }
}

/// Runs a collector's code, so that a fault of one costs its part of a scrape and no other. What it says of its panic.
///
/// A collector goes on with what it had when it panicked. Whoever shares a mutex with it goes on too, because all
/// take a poisoned one: what they guard is counts and facts that are read anew, each whole by itself.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
    })
}

impl Registry {
    /// A registry without collectors. `snapshots` holds the newest snapshot; `agent` is told about each scrape.
    #[must_use]
    pub fn new(snapshots: Arc<ArcSwap<Snapshot>>, agent: Arc<AgentMetrics>) -> Self {
        Self { snapshots, agent, state: Mutex::default(), main: true }
    }

    /// A registry for another path: `agent` is told of its errors, but not of its scrapes.
    #[must_use]
    pub fn beside(snapshots: Arc<ArcSwap<Snapshot>>, agent: Arc<AgentMetrics>) -> Self {
        Self { main: false, ..Self::new(snapshots, agent) }
    }

    /// Adds a collector. Each family must come from one collector only. Collectors run at the same time.
    pub fn register(&self, collector: impl Collect + 'static) {
        self.state().collectors.push(Running::new(collector));
    }

    /// Adds a collector that runs after those of [`Registry::register`], because it tells of them.
    pub fn register_last(&self, collector: impl Collect + 'static) {
        self.state().last.push(Running::new(collector));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads everything now, in the Prometheus text format, in parts that follow one another. Blocks on files; one
    /// scrape at a time. A collector that fails or panics is logged and counted, the rest is complete.
    #[must_use]
    pub fn scrape(&self) -> Vec<Vec<u8>> {
        let mut state = self.state();
        let start = Instant::now();
        let State { collectors, last } = &mut *state;
        let snapshot = self.snapshots.load_full();
        let mut jobs: Vec<&mut Running> = collectors.iter_mut().collect();
        // The longest first: then the threads end at about the same time.
        jobs.sort_by_key(|running| Reverse(running.took));
        let mut threads = vec![(); workers()];
        parallel(jobs, &mut threads, 2, |running, ()| running.collect(&snapshot, &self.agent));
        last.iter_mut().for_each(|running| running.collect(&snapshot, &self.agent));
        collectors.iter_mut().for_each(|running| running.scraped(&self.agent));
        let written = collectors.iter_mut().chain(last).flat_map(|running| running.out.take_families());
        let mut families: Vec<(&str, Vec<u8>)> = written.collect();
        families.sort_by_key(|(name, _)| *name);
        debug_assert!(families.is_sorted_by(|(a, _), (b, _)| a < b), "a family comes from two collectors");
        let text: Vec<Vec<u8>> = families.into_iter().map(|(_, text)| text).collect();
        if self.main {
            self.agent.scraped(start.elapsed(), text.iter().map(Vec::len).sum());
        }
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

    /// Panics the first time, in the middle of its work, with a lock in its hand that another collector takes too.
    struct Faulty {
        shared: Arc<Mutex<u64>>,
        scrapes: u64,
    }

    impl Collect for Faulty {
        fn name(&self) -> &'static str {
            "faulty"
        }

        fn collect(&mut self, _: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            self.scrapes += 1;
            *shared += 1;
            out.family(&catalogue::PROCESSES).sample(["n", "p", "half"], *shared);
            assert!(self.scrapes > 1, "no {}", "more");
            Ok(())
        }

        fn scraped(&mut self) {
            assert!(self.scrapes > 1, "no more");
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
        registry.register(InfoCollector::default());
        registry.register(ProcessCollector::default());
        registry.register(AgentCollector::new(agent));
        for round in 0..3 {
            let start = Instant::now();
            let text = registry.scrape().concat();
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
                quota: Some(Quota {
                    cores: Some(0.5),
                    periods: number,
                    throttled_periods: number,
                    throttled: Some(1.5),
                }),
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
                ..Usage::default()
            };
            let usages: Vec<_> = snapshot.sandboxes()[0]
                .containers
                .iter()
                .map(|c| ContainerUsage {
                    namespace: "n",
                    pod: "p",
                    container: &c.name,
                    started: None,
                    cgroup_id: 1,
                    usage: usage.clone(),
                })
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
        registry.register_last(AgentCollector::new(agent));
        let text = String::from_utf8(registry.scrape().concat()).unwrap();
        assert!(text.contains("observer_agent_source_errors_total{source=\"broken\"} 1\n"), "{text}");
        assert!(text.contains("observer_processes{"), "{text}");
        let again = String::from_utf8(registry.scrape().concat()).unwrap();
        assert!(again.contains("observer_agent_scrape_duration_seconds_count 1\n"), "{again}");
        assert!(again.contains(&format!("observer_agent_scrape_size_bytes {}\n", text.len())), "{again}");
    }

    #[test]
    fn a_panic_costs_its_own_part_of_one_scrape() {
        let agent = Arc::new(AgentMetrics::new(BuildInfo::default()));
        let registry = Registry::new(Arc::default(), Arc::clone(&agent));
        let shared = Arc::new(Mutex::new(0));
        registry.register(Faulty { shared: Arc::clone(&shared), scrapes: 0 });
        registry.register_last(AgentCollector::new(agent));
        let text = || String::from_utf8(registry.scrape().concat()).unwrap();
        let first = text();
        assert!(!first.contains("half"), "{first}");
        assert!(first.contains("observer_agent_source_errors_total{source=\"faulty\"} 1\n"), "{first}");
        let second = text();
        assert!(second.contains("observer_processes{namespace=\"n\",pod=\"p\",container=\"half\"} 2\n"), "{second}");
        // Once while it collected, once after the scrape.
        assert!(second.contains("observer_agent_source_errors_total{source=\"faulty\"} 2\n"), "{second}");
        assert!(shared.is_poisoned());
    }
}
