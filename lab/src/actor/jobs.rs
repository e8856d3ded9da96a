//! Scripts that are repeated in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Actor, Answer, Command, Traffic};

/// A running job.
pub(super) struct Job {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Traffic>,
}

impl Job {
    pub(super) fn start(actor: &Arc<Actor>, script: Vec<Command>, every_ms: u64, rounds: Option<u64>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (actor, stopped) = (Arc::clone(actor), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || repeat(&actor, &script, every_ms, rounds, &stopped))
            .context("starting a thread for a job")?;
        Ok(Self { stop, thread })
    }

    pub(super) fn stop(self) -> Result<Traffic> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        self.join()
    }

    pub(super) fn join(self) -> Result<Traffic> {
        self.thread.join().map_err(|_| anyhow!("the job panicked"))
    }
}

fn repeat(actor: &Arc<Actor>, script: &[Command], every_ms: u64, rounds: Option<u64>, stop: &AtomicBool) -> Traffic {
    let mut total = Traffic::default();
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) && rounds.is_none_or(|rounds| round < rounds) {
        let next = Instant::now() + Duration::from_millis(every_ms);
        for command in script {
            match actor.run(command) {
                Ok(Answer::Traffic(traffic)) => total += traffic,
                Ok(_) => {}
                Err(error) => {
                    if total.failures == 0 {
                        eprintln!("observer-lab: a job's command failed: {error:#}");
                    }
                    total.failures += 1;
                }
            }
        }
        round += 1;
        let mut left = next.saturating_duration_since(Instant::now());
        while !left.is_zero() && !stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(left);
            left = next.saturating_duration_since(Instant::now());
        }
    }
    total
}
