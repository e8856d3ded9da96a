//! Following what the runtime runs.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    client::{Client, CriError, Listed},
    endpoint::{Endpoint, USUAL},
    events::{Events, Told},
    listing::{Facts, index},
    pace::{Pace, RETRY},
};
use crate::{
    identity::source::{Feed, Source},
    metrics::{AgentMetrics, ProbeState},
};

/// The source, in `observer_agent_source_errors_total` and `observer_agent_probe_state`.
pub const SOURCE: &str = "cri";

/// Starts following a runtime; `None` for [`Endpoint::None`]. Its state is told to `metrics`.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub fn start(endpoint: &Endpoint, metrics: Arc<AgentMetrics>) -> io::Result<Option<Source>> {
    start_among(USUAL.map(PathBuf::from).to_vec(), endpoint, metrics)
}

/// As [`start`], with these as the usual sockets.
fn start_among(usual: Vec<PathBuf>, endpoint: &Endpoint, metrics: Arc<AgentMetrics>) -> io::Result<Option<Source>> {
    if *endpoint == Endpoint::None {
        return Ok(None);
    }
    let endpoint = endpoint.clone();
    let follow = |feed| {
        let state = State { feed, refusing: false };
        let (no_events, facts) = (Told::default(), Facts::default());
        Follower { endpoint, usual, found: None, no_events, facts, state }.run()
    };
    Source::start(SOURCE, metrics, follow).map(Some)
}

/// The thread's work.
struct Follower {
    endpoint: Endpoint,
    usual: Vec<PathBuf>,
    /// The one that has answered. It is kept to: while it is away, another one's pods would take the place of its own.
    found: Option<PathBuf>,
    no_events: Told,
    /// What it has told of what lives on. A runtime that was away does not end what it runs.
    facts: Facts,
    state: State,
}

/// A runtime that has answered.
struct Runtime {
    path: PathBuf,
    client: Client,
    name: String,
    version: String,
}

impl Follower {
    async fn run(mut self) {
        loop {
            match self.find().await {
                Ok(None) => self.state.absent(&self.usual),
                Ok(Some(runtime)) => {
                    self.found = Some(runtime.path.clone());
                    match self.session(runtime).await {
                        Ok(never) => match never {},
                        Err(error) => self.state.failed(&error.to_string()),
                    }
                }
                Err(reason) => self.state.failed(&reason),
            }
            sleep(RETRY).await;
        }
    }

    /// The first runtime that answers; `None` where no socket is there.
    ///
    /// # Errors
    /// When none answers: what each of them said.
    async fn find(&self) -> Result<Option<Runtime>, String> {
        let sockets = match &self.found {
            Some(path) => vec![path.clone()],
            None => self.endpoint.sockets(&self.usual, Path::exists),
        };
        let mut reasons = Vec::new();
        for path in sockets {
            match Runtime::at(path).await {
                Ok(runtime) => return Ok(Some(runtime)),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        if reasons.is_empty() { Ok(None) } else { Err(reasons.join("; ")) }
    }

    /// Asks one runtime again and again, until it does not answer.
    async fn session(&mut self, runtime: Runtime) -> Result<std::convert::Infallible, CriError> {
        let Runtime { path, mut client, name: runtime, version } = runtime;
        if !self.facts.is_of(&runtime) {
            self.facts = Facts::of(&runtime);
        }
        let events = Events::follow(client.clone(), self.state.feed.names(), (&runtime, &version), &self.no_events);
        let mut pace = Pace::default();
        loop {
            let began = Instant::now();
            let listed = client.list(&mut self.facts).await?;
            pace.listed(began, began.elapsed());
            // In this order: who is told that this works finds the names.
            self.state.feed.publish(index(&listed.listing, &self.facts));
            self.state.answered(&path, (&runtime, &version), &listed);
            tokio::select! {
                () = self.state.feed.asked() => pace.happened(),
                () = sleep(pace.pause(events.work())) => {}
            }
            // What is asked for meanwhile is one question.
            sleep(pace.rest(Instant::now())).await;
        }
    }
}

impl Runtime {
    /// The one that listens here.
    ///
    /// # Errors
    /// When nobody does, or it does not say its version.
    async fn at(path: PathBuf) -> Result<Self, CriError> {
        let mut client = Client::connect(&path).await?;
        let (name, version) = client.version().await?;
        Ok(Self { path, client, name, version })
    }
}

/// How the source is; told when it changes, not every second.
struct State {
    feed: Feed,
    refusing: bool,
}

impl State {
    fn answered(&mut self, path: &Path, (runtime, version): (&str, &str), listed: &Listed) {
        if self.feed.tell(ProbeState::Ok, "") {
            info!(endpoint = %path.display(), runtime, version, "asking the container runtime for names");
        }
        (0..listed.failed).for_each(|_| self.feed.error());
        if listed.missing > 0 && !self.refusing {
            warn!(
                "the container runtime at {} does not tell everything: {} details are missing; they are asked for again",
                path.display(),
                listed.missing
            );
        }
        self.refusing = listed.missing > 0;
    }

    fn failed(&mut self, reason: &str) {
        self.feed.error();
        if self.feed.tell(ProbeState::Failed, reason) {
            warn!("{reason}; pods keep the names they have");
        }
    }

    fn absent(&mut self, usual: &[PathBuf]) {
        let usual: Vec<_> = usual.iter().map(|path| path.display().to_string()).collect();
        let reason = format!("no container runtime listens at {}", usual.join(", "));
        if self.feed.tell(ProbeState::Unsupported, &reason) {
            info!("{reason}; where it listens elsewhere, say --cri.endpoint=unix:///path");
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
