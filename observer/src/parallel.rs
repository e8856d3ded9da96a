//! Jobs of a scrape on several threads: the kernel writes the text of a file on the thread that reads it.

use std::{
    num::NonZero,
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread::{Builder, available_parallelism, scope},
};

/// Most threads that read. A scrape is not to take a large machine.
const MAX_THREADS: usize = 4;

/// How many workers there should be: as many as this process may use CPUs (sched_getaffinity(2) and the quota of its
/// cgroup), at most [`MAX_THREADS`].
pub(crate) fn workers() -> usize {
    available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
}

/// Does every job, in any order, and returns what came of them in the order of the jobs. This thread works too: when no
/// other can be made it does everything. With fewer than `worth` jobs for each, a thread costs more than it brings.
///
/// # Panics
/// When a job does, or when there is no worker.
pub(crate) fn parallel<J: Send, W: Send, R: Send>(
    jobs: Vec<J>,
    workers: &mut [W],
    worth: usize,
    each: impl Fn(J, &mut W) -> R + Sync,
) -> Vec<R> {
    let others = (jobs.len() / worth.max(1)).min(workers.len() - 1);
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let work = |worker: &mut W| {
        let mut done = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, job)) = next else { return done };
            done.push((at, each(job, worker)));
        }
    };
    let (first, rest) = workers.split_at_mut(1);
    let mut done = scope(|scope| {
        let work = &work;
        let start = |worker| Builder::new().name("reading".into()).spawn_scoped(scope, move || work(worker));
        let threads: Vec<_> = rest.iter_mut().take(others).filter_map(|worker| start(worker).ok()).collect();
        let mut done = work(&mut first[0]);
        for thread in threads {
            done.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_and_in_order() {
        for (jobs, threads) in [(0, 1), (1, 4), (1000, 1), (1000, 4)] {
            let mut workers = vec![0; threads];
            let done = parallel((0..jobs).collect(), &mut workers, 9, |job: usize, worker| {
                *worker += 1;
                job * 2
            });
            assert_eq!(done, (0..jobs).map(|job| job * 2).collect::<Vec<_>>());
            assert_eq!(workers.iter().sum::<usize>(), jobs);
        }
    }

    #[test]
    #[should_panic(expected = "a job")]
    fn a_panic_is_not_lost() {
        parallel(vec![(); 500], &mut [(); 3], 9, |(), ()| panic!("a job"));
    }
}
