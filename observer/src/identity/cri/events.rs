//! The runtime's own events. Each means no more than to look again: the lists are the truth, so an event that is lost,
//! late or told twice does no harm.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use observer_cri::{
    tonic::{Code, Status, Streaming},
    v1,
};
use tokio::{task::JoinHandle, time::sleep};
use tracing::{debug, info};

use super::client::Client;
use crate::identity::{
    kube::{Backoff, dice},
    source::SourceNames,
};

/// A stream of events that is followed. It ends when this is dropped.
pub struct Events {
    task: Option<JoinHandle<()>>,
    work: Arc<AtomicBool>,
}

/// Why there are none. Told once for each runtime that is followed, not at every reconnection.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<AtomicBool>);

impl Told {
    fn once(&self, reason: &str) {
        if !self.0.swap(true, Relaxed) {
            info!("no events from the container runtime, so it is asked every second: {reason}");
        }
    }
}

impl Events {
    /// Follows the events of the runtime with this name and version, and makes `names` look.
    pub fn follow(client: Client, names: SourceNames, (runtime, version): (&str, &str), told: &Told) -> Self {
        let work = Arc::new(AtomicBool::new(false));
        if !every_caller_has_all(runtime, version) {
            told.once(&format!("{runtime} {version} may tell an event to one caller alone, and that is the kubelet's"));
            return Self { task: None, work };
        }
        let task = tokio::spawn(run(client, names, Arc::clone(&work), told.clone()));
        Self { task: Some(task), work }
    }

    /// Whether they come at this moment.
    pub fn work(&self) -> bool {
        self.work.load(Relaxed)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Opens streams, one after the other, until it is said that there are none.
async fn run(mut client: Client, names: SourceNames, work: Arc<AtomicBool>, told: Told) {
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let ended = match client.events().await {
            Ok(stream) => {
                work.store(true, Relaxed);
                // What happened before the stream began is in no event.
                names.look();
                let ended = drain(stream, &names).await;
                work.store(false, Relaxed);
                ended
            }
            Err(status) if status.code() == Code::Unimplemented => return told.once("it has none"),
            Err(status) => status.to_string(),
        };
        debug!("the container runtime's events ended, it is asked every second meanwhile: {ended}");
        sleep(backoff.wait(began.elapsed(), dice())).await;
    }
}

/// Reads until the stream ends, as fast as it can: nothing piles up, however slow a list is. Gives back why.
async fn drain(mut stream: Streaming<v1::ContainerEventResponse>, names: &SourceNames) -> String {
    loop {
        match stream.message().await {
            Ok(Some(_)) => names.look(),
            Ok(None) => return "end of the stream".to_owned(),
            Err(status) => return reason(&status),
        }
    }
}

fn reason(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Whether each caller is told each event. Before containerd 2.0 (containerd/containerd#9661) and CRI-O 1.28
/// (cri-o/cri-o#6838) all callers take from one queue: whoever listens takes events away from a kubelet that does
/// (its feature `EventedPLEG`), which then learns of them minutes later. Nothing is known of other runtimes.
fn every_caller_has_all(runtime: &str, version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    match runtime {
        "containerd" => version >= (2, 0),
        "cri-o" => version >= (1, 28),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_is_taken_away_from_a_kubelet() {
        for (runtime, version) in
            [("containerd", "v2.0.0"), ("containerd", "2.1.4"), ("containerd", "v2.0.4-k3s2"), ("cri-o", "1.28.0")]
        {
            assert!(every_caller_has_all(runtime, version), "{runtime} {version}");
        }
        for (runtime, version) in [
            ("containerd", "v1.7.27"),
            ("containerd", "1.6.20~ds1"),
            ("containerd", ""),
            ("containerd", "main"),
            ("cri-o", "1.27.9"),
            ("docker", "28.0.0"),
            ("", "99.0.0"),
        ] {
            assert!(!every_caller_has_all(runtime, version), "{runtime} {version}");
        }
    }
}
