//! Probes that are measured along with the traffic's programs.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use observer::kernel::btf::Btf;
use observer::kernel::probes::{self, drops::DropsProbe, runqueue::RunQueueProbe};
use observer::kernel::{EdgeTable, Pins};

/// A probe beside the traffic's programs.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// How well TCP connections do
    Tcp,
    /// Packets that the kernel dropped
    Drops,
    /// Messages over Unix sockets, whose programs see every send and receive; the agent runs it only when asked to
    Unix,
    /// Waits of threads for a CPU; the agent runs it only when asked to
    Runqueue,
}

/// A probe that runs, for the whole machine. It ends when it is dropped.
pub enum Running<'a> {
    Tcp(&'a Pins, &'a EdgeTable),
    Drops(&'a Pins, Box<DropsProbe>),
    Unix(&'a Pins),
    Runqueue(Box<RunQueueProbe>),
}

impl Probe {
    /// What it is called on the command line and in `observer_agent_probe_state`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Drops => "drops",
            Self::Unix => "unix",
            Self::Runqueue => "runqueue",
        }
    }

    /// Starts it; it observes what runs in a cgroup.
    pub fn start<'a>(
        self,
        types: &Btf,
        cgroup: &Path,
        (pins, table): (&'a Pins, &'a EdgeTable),
    ) -> Result<Running<'a>> {
        let metadata = std::fs::metadata(cgroup).with_context(|| format!("looking at {}", cgroup.display()))?;
        match self {
            Self::Tcp => {
                probes::tcp::start(pins, types, table).context("starting the TCP probe")?;
                Ok(Running::Tcp(pins, table))
            }
            Self::Drops => {
                let (probe, _) = DropsProbe::start(pins, types).context("starting the probe of dropped packets")?;
                Ok(Running::Drops(pins, Box::new(probe)))
            }
            Self::Unix => {
                probes::unix::start(pins, types, table).context("starting the probe of Unix sockets")?;
                Ok(Running::Unix(pins))
            }
            Self::Runqueue => {
                let mut probe = RunQueueProbe::start(types).context("starting the run-queue probe")?;
                probe.observe(metadata.ino(), 0).context("observing a cgroup with the run-queue probe")?;
                Ok(Running::Runqueue(Box::new(probe)))
            }
        }
    }
}

impl Running<'_> {
    /// A probe that sees nothing costs little: it must have seen the load.
    ///
    /// # Errors
    /// When it did not.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Tcp(_, table) => {
                let established: u64 = table.read().iter().map(|reading| reading.tcp.events.established).sum();
                ensure!(established > 0, "the TCP probe has seen no connection of the load");
            }
            // Nothing of the load is dropped: all that it must do is to be asked.
            Self::Drops(_, probe) => drop(probe.losses().context("reading the probe of dropped packets")?),
            // The load uses no Unix socket: all that its programs do is to look.
            Self::Unix(_) => {}
            Self::Runqueue(probe) => {
                let waits: u64 = probe.read(0).buckets.iter().sum();
                ensure!(waits > 0, "the run-queue probe has seen no thread of the load run");
            }
        }
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // What is pinned runs until its pins are gone.
        match self {
            Self::Tcp(pins, _) => probes::tcp::forget(pins),
            Self::Drops(pins, _) => probes::drops::forget(pins),
            Self::Unix(pins) => probes::unix::forget(pins),
            Self::Runqueue(_) => {}
        }
    }
}
