//! The agent, run and scraped from outside.

use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::NamedTempFile;

use crate::launch::Launcher;
use crate::netns::NetNs;
use crate::process;
use crate::samples::Samples;

/// Names the agent's binary.
pub const ENV: &str = "OBSERVER_BIN";
const STARTING: Duration = Duration::from_secs(60);
const ENDING: Duration = Duration::from_secs(60);
const REQUEST: Duration = Duration::from_secs(30);

/// How to start the agent.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// The binary; found by [`find_binary`] when absent.
    pub binary: Option<PathBuf>,
    /// Where it listens; a free port on loopback when absent.
    pub listen: Option<SocketAddr>,
    /// `--pods.file`.
    pub pods_file: Option<PathBuf>,
    /// `--path.bpffs`.
    pub bpffs: Option<PathBuf>,
    /// The network namespace to run in; that of this process when absent.
    pub netns: Option<PathBuf>,
    /// What the program is to be; `run` when absent.
    pub subcommand: Option<&'static str>,
    /// Further arguments.
    pub arguments: Vec<OsString>,
    /// Variables of its environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// A running agent. Dropping it ends it; after a panic its log is shown.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    address: SocketAddr,
    log: NamedTempFile,
    ended: bool,
}

/// Finds the agent: `OBSERVER_BIN`, else `release/observer`, else `debug/observer` in the target
/// directory that this program runs from.
pub fn find_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(ENV) {
        return Ok(path.into());
    }
    let me = std::env::current_exe().context("asking for the path of this program")?;
    let candidates: Vec<PathBuf> = me
        .ancestors()
        .skip(2)
        .take(2)
        .flat_map(|target| ["release", "debug"].map(|profile| target.join(profile).join("observer")))
        .collect();
    candidates.iter().find(|path| path.is_file()).cloned().with_context(|| {
        format!(
            "looking for the agent at {candidates:?}: build it (cargo build --release -p observer) or \
             set {ENV} to its path"
        )
    })
}

impl Agent {
    /// Starts the agent and waits until it is ready.
    pub fn start(launcher: &Launcher, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(launcher, options)?;
        agent.wait_ready().with_context(|| format!("the agent's log:\n{}", agent.log()))?;
        Ok(agent)
    }

    /// Starts the agent and does not wait.
    pub fn spawn(launcher: &Launcher, options: &AgentOptions) -> Result<Self> {
        let binary = options.binary.clone().map_or_else(find_binary, Ok)?;
        let address = options.listen.map_or_else(free_address, Ok)?;
        let log = NamedTempFile::new().context("making a file for the agent's log")?;
        let output = |log: &NamedTempFile| -> Result<File> {
            File::options()
                .append(true)
                .open(log.path())
                .with_context(|| format!("opening the agent's log {}", log.path().display()))
        };
        let mut command = launcher.guarded(&binary);
        command.arg(options.subcommand.unwrap_or("run")).arg("--web.listen-address").arg(address.to_string());
        if let Some(path) = &options.pods_file {
            command.arg("--pods.file").arg(path);
        }
        if let Some(path) = &options.bpffs {
            command.arg("--path.bpffs").arg(path);
        }
        command.args(&options.arguments).envs(options.environment.iter().map(|(name, value)| (name, value)));
        if let Some(path) = &options.netns {
            enter(&mut command, NetNs::open(path)?);
        }
        command.stdin(Stdio::null()).stdout(output(&log)?).stderr(output(&log)?);
        let child = process::spawn(command).with_context(|| format!("starting the agent {}", binary.display()))?;
        Ok(Self { child, address, log, ended: false })
    }

    /// Waits until `/readyz` says yes.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + STARTING;
        loop {
            if let Some(status) = self.child.try_wait().context("asking whether the agent runs")? {
                self.ended = true;
                bail!("the agent ended before it was ready ({status})");
            }
            match self.fetch("/readyz") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("the agent was not ready after {STARTING:?}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read(self.log.path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_else(|error| format!("(reading {}: {error})", self.log.path().display()))
    }

    /// Gets a path; an answer other than 2xx is an error.
    pub fn fetch(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.address);
        let client: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(REQUEST)).build().into();
        let mut response = client.get(&url).call().with_context(|| format!("getting {url}"))?;
        // A full node's exposition is larger than the client's default limit may be.
        let body = response.body_mut().with_config().limit(1 << 30);
        body.read_to_string().with_context(|| format!("reading {url}"))
    }

    /// Scrapes `/metrics`.
    pub fn scrape(&self) -> Result<Samples> {
        Samples::parse(&self.fetch("/metrics")?)
    }

    /// Scrapes until `wanted` says yes; the last scrape is returned either way once the time is over.
    pub fn scrape_until(&self, timeout: Duration, wanted: impl Fn(&Samples) -> bool) -> Result<Samples> {
        let deadline = Instant::now() + timeout;
        loop {
            let samples = self.scrape()?;
            if wanted(&samples) || Instant::now() > deadline {
                return Ok(samples);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Scrapes until this sum has been the same so many times more; the last scrape is returned either way once the time is
    /// over: whoever compares it finds what still moves.
    pub fn scrape_until_still(&self, timeout: Duration, times: u32, sum: impl Fn(&Samples) -> f64) -> Result<Samples> {
        let deadline = Instant::now() + timeout;
        let mut last = self.scrape()?;
        let mut still = 0;
        while still < times && Instant::now() <= deadline {
            std::thread::sleep(Duration::from_millis(60));
            let next = self.scrape()?;
            still = if sum(&next) == sum(&last) { still + 1 } else { 0 };
            last = next;
        }
        Ok(last)
    }

    /// [`Agent::scrape_until`], but it is an error when the time is over; `what` is what was waited for.
    pub fn wait_until(&self, timeout: Duration, what: &str, wanted: impl Fn(&Samples) -> bool) -> Result<Samples> {
        let samples = self.scrape_until(timeout, &wanted)?;
        ensure!(wanted(&samples), "no scrape in {timeout:?} shows {what}; the agent's log:\n{}", self.log());
        Ok(samples)
    }

    /// Sends SIGTERM; the agent has to end with status 0.
    pub fn terminate(mut self) -> Result<()> {
        process::signal(self.pid(), Signal::TERM)?;
        let status = self.wait_end()?;
        ensure!(status.success(), "the agent ended with {status}; its log:\n{}", self.log());
        Ok(())
    }

    /// Sends SIGKILL.
    pub fn kill9(mut self) -> Result<()> {
        process::kill(self.pid())?;
        self.wait_end().map(|_| ())
    }

    /// Waits until the agent ends by itself.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("waiting for the agent to end")? {
                self.ended = true;
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the agent did not end within {ENDING:?}; its log:\n{}", self.log())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
        if self.ended {
            return;
        }
        let ended = process::signal(self.pid(), Signal::TERM).and_then(|()| self.wait_end());
        if let Err(error) = ended {
            eprintln!("observer-lab: {error:#}");
            // Nothing more can be done when even this fails.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Lets a command begin in a network namespace.
fn enter(command: &mut Command, netns: NetNs) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec a system call alone is made.
    unsafe { command.pre_exec(move || netns.enter_now()) };
}

/// Removes what the agent pinned, by its own command.
pub fn uninstall(binary: &Path, bpffs: &Path) -> Result<()> {
    uninstall_in(binary, bpffs, None)
}

/// The same, in a network namespace.
pub fn uninstall_in(binary: &Path, bpffs: &Path, netns: Option<&NetNs>) -> Result<()> {
    let mut command = Command::new(binary);
    if let Some(netns) = netns {
        enter(&mut command, NetNs::open(&netns.path())?);
    }
    let output = command
        .arg("uninstall")
        .arg("--path.bpffs")
        .arg(bpffs)
        .output()
        .with_context(|| format!("running {} uninstall", binary.display()))?;
    ensure!(
        output.status.success(),
        "{} uninstall ended with {}: {}",
        binary.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// An address on loopback that nobody listens on.
pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("looking for a free port on 127.0.0.1")
}
