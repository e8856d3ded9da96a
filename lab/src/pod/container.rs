//! A container that runs an actor.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::channel::Channel;
use crate::actor::{Answer, Command, Hello, Reply, ServeMode, ServerStats, Traffic};
use crate::cgroup::Cgroup;

/// How long a command may take unless the caller says otherwise.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Names how long the cgroup outlives the last process, in milliseconds; a guest's init sets it.
pub const RUNTIME_DELETE_ENV: &str = "OBSERVER_LAB_RUNTIME_DELETE_MS";

/// How long the cgroup outlives the last process: `runc delete` takes 10 to 30 ms to do what it does, and more where
/// everything else takes more time, too.
static RUNTIME_DELETE: LazyLock<Duration> = LazyLock::new(|| {
    let told = std::env::var(RUNTIME_DELETE_ENV).ok().and_then(|text| text.parse().ok());
    Duration::from_millis(told.unwrap_or(10))
});

/// A container of a pod.
#[derive(Debug)]
pub struct Container {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) started: SystemTime,
    pub(super) hello: Hello,
    // Fields are dropped in this order: first the process goes, then its cgroup.
    pub(super) channel: Mutex<Channel>,
    pub(super) cgroup: Cgroup,
}

impl Container {
    /// Its name in the pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id: 64 hex digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When it was started.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// The process id of its actor, as the driver sees it.
    pub fn pid(&self) -> u32 {
        self.hello.pid
    }

    /// The answers to the commands that it ran before anything else.
    pub fn first_answers(&self) -> &[Answer] {
        &self.hello.answers
    }

    /// Its cgroup, in every hierarchy.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The path of its cgroup from the root of each hierarchy.
    pub fn cgroup_path(&self) -> &Path {
        self.cgroup.path()
    }

    /// Lets the actor carry out a command and waits for the answer.
    pub fn run(&self, command: &Command) -> Result<Answer> {
        self.run_within(command, TIMEOUT)
    }

    /// The same, with another limit on the time it may take.
    pub fn run_within(&self, command: &Command, timeout: Duration) -> Result<Answer> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.send(command)?;
        match channel.receive(timeout)? {
            Reply::Done(answer) => Ok(answer),
            Reply::Failed(reason) => bail!("container {}: {reason}", self.name),
        }
    }

    /// Runs a command that makes traffic.
    pub fn traffic(&self, command: &Command) -> Result<Traffic> {
        match self.run(command)? {
            Answer::Traffic(traffic) => Ok(traffic),
            other => bail!("container {}: {command:?} was answered with {other:?}", self.name),
        }
    }

    /// Starts a TCP server; port 0 takes a free one. Returns where it listens.
    pub fn serve_tcp(&self, listen: SocketAddr, mode: ServeMode) -> Result<SocketAddr> {
        self.serving(&Command::TcpServe { listen, mode, backlog: 4096 })
    }

    /// Starts a UDP server; port 0 takes a free one. Returns where it listens.
    pub fn serve_udp(&self, listen: SocketAddr, echo: bool) -> Result<SocketAddr> {
        self.serving(&Command::UdpServe { listen, echo })
    }

    /// Holds a UDP socket that nobody reads from; port 0 takes a free one. Returns where it is.
    pub fn hold_udp(&self, listen: SocketAddr, buffer: usize) -> Result<SocketAddr> {
        self.serving(&Command::UdpHold { listen, buffer })
    }

    fn serving(&self, command: &Command) -> Result<SocketAddr> {
        match self.run(command)? {
            Answer::Serving { address } => Ok(address),
            other => bail!("container {}: {command:?} was answered with {other:?}", self.name),
        }
    }

    /// Opens a TCP connection that stays. Returns its number and its own address.
    pub fn open_tcp(&self, to: SocketAddr) -> Result<(u64, SocketAddr)> {
        match self.run(&Command::TcpOpen { to })? {
            Answer::Opened { connection, local } => Ok((connection, local)),
            other => bail!("container {}: opening {to} was answered with {other:?}", self.name),
        }
    }

    /// Opens a UDP socket that stays, connected to `to` if there is one. Returns its number.
    pub fn open_udp(&self, listen: SocketAddr, to: Option<SocketAddr>) -> Result<u64> {
        match self.run(&Command::UdpOpen { listen, to })? {
            Answer::Opened { connection, .. } => Ok(connection),
            other => bail!("container {}: opening UDP at {listen} was answered with {other:?}", self.name),
        }
    }

    /// Sends echo requests and waits for each reply.
    pub fn ping(&self, to: IpAddr, count: u32, payload: u16) -> Result<Traffic> {
        self.traffic(&Command::Ping { to, count, payload, raw: false })
    }

    /// What the container's servers have seen, in the order in which they were started.
    pub fn stats(&self) -> Result<Vec<ServerStats>> {
        match self.run(&Command::Stats)? {
            Answer::Stats { servers } => Ok(servers),
            other => bail!("container {}: stats were answered with {other:?}", self.name),
        }
    }

    /// Starts a script that is repeated with a period, for `rounds` or until it is stopped. Returns the
    /// number of the job.
    pub fn start(&self, script: Vec<Command>, every: Duration, rounds: Option<u64>) -> Result<u64> {
        let every_ms = u64::try_from(every.as_millis()).context("the period is too long")?;
        match self.run(&Command::Start { script, every_ms, rounds })? {
            Answer::Job { job } => Ok(job),
            other => bail!("container {}: the start of a job was answered with {other:?}", self.name),
        }
    }

    /// Stops a job after its current round and returns what it did.
    pub fn stop(&self, job: u64) -> Result<Traffic> {
        self.traffic(&Command::Stop { job })
    }

    /// Waits for the end of a job and returns what it did.
    pub fn join(&self, job: u64) -> Result<Traffic> {
        self.traffic(&Command::Join { job })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.cgroup.kill() {
            eprintln!("observer-lab: ending container {}: {error:#}", self.name);
        }
        // The process that stands by outside ends after the one it has to wait for.
        self.channel.get_mut().unwrap_or_else(PoisonError::into_inner).finish();
        // A runtime runs a program of its own to take the cgroup away.
        std::thread::sleep(*RUNTIME_DELETE);
    }
}
