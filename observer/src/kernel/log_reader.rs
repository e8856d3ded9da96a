//! The kernel programs' log: a thread that waits for records and hands them to the agent's own log.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use aya_log::EbpfLogger;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long the thread waits before it looks whether it should stop.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Reads until `stop` is set.
///
/// # Errors
///
/// When the thread cannot be made.
pub fn spawn(mut log: EbpfLogger<&'static dyn log::Log>, stop: Arc<AtomicBool>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("kernel-log".into()).spawn(move || {
        while !stop.load(Relaxed) {
            let _ = poll(&mut [PollFd::new(&log.as_fd(), PollFlags::IN)], Some(&TICK));
            log.flush();
        }
    })
}
