//! The kernel programs' log: a thread that waits for records and hands them to the agent's own log.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long the thread waits before it looks whether it should stop.
const TICK: Duration = Duration::from_millis(250);

/// Reads until `stop` is set.
///
/// # Errors
///
/// When the thread cannot be made.
pub fn spawn(mut log: EbpfLogger<&'static dyn log::Log>, stop: Arc<AtomicBool>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("kernel-log".into()).spawn(move || {
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        while !stop.load(Relaxed) {
            let _ = poll(&mut [PollFd::new(&log.as_fd(), PollFlags::IN)], Some(&tick));
            log.flush();
        }
    })
}
