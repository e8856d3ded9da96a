//! When connections are looked for that are older than the agent, and where: on a thread of its own. It looks at all open files
//! of the node, and the thread that attaches must win against the first packets of pods.

use std::{
    io, mem,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use crate::{
    http::{Latch, Readiness},
    kernel::{Accounting, EdgeTable, Found},
};

/// How long after a search that failed there is another.
const AGAIN: Duration = Duration::from_secs(10);

/// The searches for connections that are older than the agent.
pub(super) struct OlderConnections {
    /// `None` when it is dropped.
    wake: Option<Sender<()>>,
    searches: Option<JoinHandle<()>>,
    /// There was none yet.
    is_first: bool,
    accounting: Accounting,
    readiness: Arc<Readiness>,
}

impl OlderConnections {
    /// Starts the thread, which ends with this value.
    pub(super) fn start(table: Arc<EdgeTable>, accounting: Accounting, readiness: Arc<Readiness>) -> Self {
        let (wake, woken) = channel();
        let ready = Arc::clone(&readiness);
        let started = std::thread::Builder::new().name("older".to_owned()).spawn(move || {
            whenever_woken(&woken, AGAIN, || {
                let found = search(&table);
                ready.set(Latch::Older);
                found.is_ok()
            });
        });
        let searches = started.inspect_err(|error| {
            warn!("connections that are older than the agent are not counted: no thread could be started: {error}");
        });
        Self { wake: Some(wake), searches: searches.ok(), is_first: true, accounting, readiness }
    }

    /// Searches when there may be some; the first search is over when the agent is ready. `met_processes`: in cgroups that were
    /// attached to since the last time there were processes before.
    pub(super) fn look(&mut self, met_processes: bool) {
        let is_first = mem::replace(&mut self.is_first, false);
        // Where packets are counted, a connection that an earlier agent did not follow loses nothing by being followed now. In
        // the other mode nothing is looked for where an earlier agent has counted: what a connection has carried so far counts
        // when it ends, if nobody has adopted it.
        let wanted = met_processes || is_first && self.accounting == Accounting::Packets;
        let is_woken = wanted && self.wake.as_ref().is_some_and(|wake| wake.send(()).is_ok());
        if is_first && !is_woken {
            self.readiness.set(Latch::Older);
        }
    }
}

impl Drop for OlderConnections {
    /// Waits for the search that runs: the next agent knows the containers that it is for, and would not look again.
    fn drop(&mut self) {
        self.wake = None;
        if let Some(searches) = self.searches.take() {
            // One that has panicked has said so.
            let _ = searches.join();
        }
    }
}

/// Searches once for all that has come meanwhile, and again after a while when a search fails, until nobody can wake it any
/// more.
fn whenever_woken(woken: &Receiver<()>, again: Duration, mut search: impl FnMut() -> bool) {
    while woken.recv().is_ok() {
        loop {
            while woken.try_recv().is_ok() {}
            if search() {
                break;
            }
            if woken.recv_timeout(again) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }
}

/// Looks for connections that are older than the agent, and says what came of it.
fn search(table: &EdgeTable) -> io::Result<()> {
    let begin = Instant::now();
    let outcome = table.adopt_older_connections();
    debug!(time = ?begin.elapsed(), "looked for connections that were there before");
    match &outcome {
        Ok(Some(Found { full, .. })) if *full > 0 => {
            warn!("{full} connections that were there before found no place: they are not counted");
        }
        Ok(Some(Found { counted, .. })) if *counted > 0 => {
            info!(sockets = counted, "connections that were there before are counted from now on");
        }
        Ok(_) => {}
        Err(error) => {
            warn!("not all connections that were there before are counted; there is another try in {AGAIN:?}: {error}");
        }
    }
    outcome.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_for_all_that_came_and_one_that_fails_is_repeated() {
        let (wake, woken) = channel();
        (0..3).for_each(|_| wake.send(()).unwrap());
        let mut wake = Some(wake);
        let mut searches = 0;
        whenever_woken(&woken, Duration::ZERO, || {
            searches += 1;
            if searches == 1 {
                return false;
            }
            wake = None;
            true
        });
        assert_eq!(searches, 2);
    }

    #[test]
    fn nobody_waits_for_a_search_that_fails_for_ever() {
        let (wake, woken) = channel();
        wake.send(()).unwrap();
        let mut wake = Some(wake);
        whenever_woken(&woken, Duration::from_secs(3600), || {
            wake = None;
            false
        });
    }
}
