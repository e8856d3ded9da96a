//! Giving back what ended, off the scrape's path: slots of the edge table, names, sandboxes.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use tracing::{debug, warn};

use super::hooks::SharedNames;
use crate::{kernel::EdgeTable, sandbox::Discovery, traffic::Retirement};

/// A thread that takes back what scrapes have shown for the last time. It ends when every sender is gone.
pub(super) struct Housekeeping {
    sender: Option<Sender<Retirement>>,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeping {
    /// Starts it.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub(super) fn start(table: Arc<EdgeTable>, names: SharedNames, discovery: Arc<Discovery>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("housekeeping".into())
            .spawn(move || work(&receiver, &table, &names, &discovery))?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    /// Where the scrape puts what it has shown for the last time.
    pub(super) fn sender(&self) -> Sender<Retirement> {
        self.sender.clone().unwrap_or_else(|| channel().0)
    }
}

fn work(receiver: &Receiver<Retirement>, table: &EdgeTable, names: &SharedNames, discovery: &Discovery) {
    while let Ok(retirement) = receiver.recv() {
        // Slots before names before sandboxes: what still has counters still has a name.
        let outcome = table.retire(&retirement.slots).and_then(|()| table.fold(&retirement.fold));
        if let Err(error) = outcome {
            warn!("slots of the edge table stay taken: {error}");
            continue;
        }
        let mut names = names.lock();
        retirement.cgroups.iter().for_each(|cgroup| names.forget(*cgroup));
        drop(names);
        debug!(slots = retirement.slots.len(), sandboxes = retirement.sandboxes.len(), "gave back what ended");
        discovery.release(retirement.sandboxes);
    }
}

impl Drop for Housekeeping {
    fn drop(&mut self) {
        self.sender = None;
        // The traffic collector has another sender, and goes with the registry; what waits then is found again by the
        // next agent.
        drop(self.thread.take());
    }
}
