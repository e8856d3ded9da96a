//! Child processes that end with this process.

use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal};

use crate::netns::NetNs;

type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts a process from a thread that lives as long as this process.
///
/// Linux sends the parent death signal when the *thread* that started a child ends; children of
/// short-lived threads (a test, a worker) would die with those.
pub fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Option<Sender<Order>>> = OnceLock::new();
    let program = command.get_program().to_string_lossy().into_owned();
    let orders = SPAWNER
        .get_or_init(start_spawner)
        .as_ref()
        .ok_or_else(|| anyhow!("starting {program}: the thread that starts processes is not there"))?;
    let (answer, outcome) = sync_channel(1);
    orders.send((command, answer)).map_err(|_| anyhow!("starting {program}: the spawner is gone"))?;
    outcome
        .recv()
        .map_err(|_| anyhow!("starting {program}: the spawner gave no answer"))?
        .with_context(|| format!("starting {program}"))
}

fn start_spawner() -> Option<Sender<Order>> {
    let (orders, queue) = channel::<Order>();
    std::thread::Builder::new()
        .name("lab-spawner".to_owned())
        .spawn(move || {
            // Whoever needs it first may be a thread in a pod's namespace, which is nobody else's.
            let _ = NetNs::of_process(std::process::id()).and_then(|own| own.enter());
            for (mut command, answer) in queue {
                // Whoever asked may have given up; then the child is of no use to anybody.
                if let Err(std::sync::mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                }
            }
        })
        .ok()?;
    Some(orders)
}

/// Asks the kernel to kill the calling process when its parent ends, and ends it at once when the
/// parent has already gone.
pub fn die_with_parent(parent: u32) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("asking for the parent death signal")?;
    let now = rustix::process::getppid().map_or(0, Pid::as_raw_pid);
    anyhow::ensure!(u32::try_from(now) == Ok(parent), "the process {parent} that started this one has already ended");
    Ok(())
}

/// Sends SIGKILL; a process that has already ended is no error.
pub fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL)
}

/// Sends a signal; a process that has already ended is no error.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        anyhow::bail!("{pid} is no process id");
    };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("sending signal {} to process {}", signal.as_raw(), pid.as_raw_pid()))
        }
    }
}
