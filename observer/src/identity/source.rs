//! A source of names that is followed on a thread of its own: what all of them share.

use std::{
    future::Future,
    io,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::PodIndex;
use crate::metrics::{AgentMetrics, ProbeState};

/// Who is told when pods have changed.
type Listener = Box<dyn Fn() + Send + Sync>;

/// A source, followed. It ends when this is dropped.
pub struct Source {
    shared: Arc<Shared>,
    first: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// The pods that a source told of last. They stay while it is away.
#[derive(Clone)]
pub struct SourceNames(Arc<Shared>);

struct Shared {
    pods: ArcSwap<PodIndex>,
    /// Asks to look now.
    look: Notify,
    stop: Notify,
    listener: OnceLock<Listener>,
}

impl Source {
    /// Follows with `follow`, which never ends by itself, on a thread with this name, which is the source's in
    /// `observer_agent_source_errors_total` and `observer_agent_probe_state` too.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub(super) fn start<F: Future<Output = ()>>(
        name: &'static str,
        metrics: Arc<AgentMetrics>,
        follow: impl FnOnce(Feed) -> F + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            pods: ArcSwap::default(),
            look: Notify::new(),
            stop: Notify::new(),
            listener: OnceLock::new(),
        });
        let (told, first) = sync_channel(1);
        let feed = Feed { name, shared: Arc::clone(&shared), metrics, first: told, told: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stop.stop.notified() => {}
                    () = follow(feed) => {}
                }
            });
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, first, thread: Some(thread) })
    }

    /// Waits until the source was asked once, whatever came of it, but not longer than `timeout`.
    pub fn wait_first(&self, timeout: Duration) {
        // Told or not: names that come later are taken over then.
        let _ = self.first.recv_timeout(timeout);
    }

    /// Calls `listener` whenever pods have changed. The first one that is given counts.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.listener.set(Box::new(listener));
    }

    /// What it knows.
    #[must_use]
    pub fn names(&self) -> SourceNames {
        SourceNames(Arc::clone(&self.shared))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl SourceNames {
    /// The pods; the same `Arc` until something changes.
    #[must_use]
    pub fn pods(&self) -> Arc<PodIndex> {
        self.0.pods.load_full()
    }

    /// Asks the source soon: somebody has seen a container that it has not told of.
    pub fn look(&self) {
        self.0.look.notify_one();
    }
}

impl std::fmt::Debug for SourceNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SourceNames({} pods)", self.0.pods.load().len())
    }
}

/// The follower's end of a source.
pub(super) struct Feed {
    name: &'static str,
    shared: Arc<Shared>,
    metrics: Arc<AgentMetrics>,
    first: SyncSender<()>,
    /// The last state, with its reason.
    told: Option<(ProbeState, String)>,
}

impl Feed {
    /// These are the pods now.
    pub fn publish(&self, pods: PodIndex) {
        if **self.shared.pods.load() == pods {
            return;
        }
        self.shared.pods.store(Arc::new(pods));
        if let Some(listener) = self.shared.listener.get() {
            listener();
        }
    }

    /// Returns when somebody asks to look.
    pub async fn asked(&self) {
        self.shared.look.notified().await;
    }

    /// Somebody who can ask to look.
    pub fn names(&self) -> SourceNames {
        SourceNames(Arc::clone(&self.shared))
    }

    /// Counts an error.
    pub fn error(&self) {
        self.metrics.source_error(self.name);
    }

    /// True when the state is another one than before. Reasons may vary from try to try; the newest is shown.
    pub fn tell(&mut self, state: ProbeState, reason: &str) -> bool {
        let changed = self.told.as_ref().map(|(state, _)| *state) != Some(state);
        if self.told.as_ref().is_none_or(|(before, why)| *before != state || why != reason) {
            self.metrics.probe_state(self.name, state, reason);
            self.told = Some((state, reason.to_owned()));
        }
        // Only the first one is waited for.
        let _ = self.first.try_send(());
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::PodIdentity, metrics::BuildInfo};

    #[test]
    fn states_are_told_once_and_pods_when_they_change() {
        let metrics = Arc::new(AgentMetrics::new(BuildInfo::default()));
        let (told, heard) = sync_channel(8);
        let source = Source::start("test", Arc::clone(&metrics), async move |mut feed: Feed| {
            let mut states = vec![feed.tell(ProbeState::Ok, ""), feed.tell(ProbeState::Ok, "")];
            states.extend([feed.tell(ProbeState::Failed, "a"), feed.tell(ProbeState::Failed, "b")]);
            feed.error();
            feed.asked().await;
            for name in ["one", "one", "two"] {
                let pod = PodIdentity { name: name.into(), ..PodIdentity::default() };
                feed.publish(PodIndex::from([("u".to_owned(), pod)]));
            }
            assert_eq!(states, [true, false, true, false]);
            told.send(0).unwrap();
            std::future::pending::<()>().await;
        });
        let source = source.unwrap();
        source.wait_first(Duration::from_secs(20));
        let (changed, changes) = sync_channel(8);
        source.on_change(move || changed.send(()).unwrap());
        let names = source.names();
        names.look();
        heard.recv().unwrap();
        let probe = metrics.probes().pop().unwrap();
        assert_eq!((probe.name.as_str(), probe.state, probe.reason.as_str()), ("test", ProbeState::Failed, "b"));
        assert_eq!(metrics.source_errors("test"), 1);
        drop(source);
        assert_eq!(changes.try_iter().count(), 2);
        assert_eq!(names.pods()["u"].name, "two", "they stay");
    }
}
