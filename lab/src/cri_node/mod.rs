//! A real container node: containerd with runc and CNI, in a network namespace and a directory of its own.
//!
//! Pods are made over the Container Runtime Interface, as a kubelet makes them; the image is built from local files. It
//! needs Debian's packages `containerd`, `runc`, `containernetworking-plugins` and `busybox-static`.

mod client;
mod files;
mod image;
pub(crate) mod leftovers;
mod pod;

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

pub use files::HANDLER;
pub use image::IMAGE;
pub(crate) use image::layer;
pub use pod::{CriContainer, CriContainerSpec, CriPod, CriPodSpec};

use crate::cgroup::{self, Hierarchy};
use crate::launch::Launcher;
use crate::netlink::{LOOPBACK, with_netlink};
use crate::netns::{NetNs, set_sysctl};
use crate::process;
use client::Client;

/// How long containerd may take to answer after its start.
const STARTING: Duration = Duration::from_secs(30);
/// How long it may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// A running node. Dropping it ends containerd and removes everything; pods borrow it, so they go first.
#[derive(Debug)]
pub struct CriNode {
    directory: PathBuf,
    netns: NetNs,
    launcher: Launcher,
    hierarchies: Arc<[Hierarchy]>,
    client: Client,
    containerd: Mutex<Option<Child>>,
}

impl CriNode {
    /// Starts containerd and gives it its image.
    pub fn create(launcher: Launcher) -> Result<Self> {
        crate::sweep().context("sweeping up after earlier runs")?;
        files::check_packages()?;
        let (directory, number) = leftovers::another()?;
        let netns = NetNs::create(|| {
            set_sysctl("ipv4/ip_forward", "1")?;
            with_netlink(async |netlink| netlink.set_up(LOOPBACK).await)
        })?;
        let client = Client::new(files::socket(&directory))?;
        let hierarchies = cgroup::detect()?.into();
        let node = Self { directory, netns, launcher, hierarchies, client, containerd: Mutex::new(None) };
        files::write(&node.directory, &subnet(number))?;
        node.start_containerd()?;
        image::import(&node.directory, &files::socket(&node.directory))?;
        Ok(node)
    }

    /// The value of the agent's `--cri.endpoint`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", files::socket(&self.directory).display())
    }

    /// The node's network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// What starts the agent.
    pub fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    /// Starts containerd and waits until it answers. Containers of an earlier one are taken over.
    pub fn start_containerd(&self) -> Result<()> {
        let mut containerd = lock(&self.containerd);
        ensure!(containerd.is_none(), "containerd runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        // Not `ip netns exec`, which mounts another /sys without the cgroups.
        let mut command = self.launcher.guarded(Path::new(files::NSENTER));
        command.arg(format!("--net={}", self.netns.path().display())).arg(files::CONTAINERD);
        command.arg("--config").arg(files::config(&self.directory));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *containerd = Some(process::spawn(command)?);
        drop(containerd);
        let deadline = Instant::now() + STARTING;
        while let Err(error) = self.client.version() {
            ensure!(
                Instant::now() < deadline,
                "containerd does not answer: {error:#}; its log:\n{}",
                std::fs::read_to_string(self.log()).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills containerd as a crash would. Containers go on.
    pub fn kill_containerd(&self) -> Result<()> {
        if let Some(mut child) = lock(&self.containerd).take() {
            process::kill(child.id())?;
            child.wait().context("waiting for containerd to end")?;
        }
        Ok(())
    }

    /// Keeps containerd from running: it takes connections and does not answer.
    pub fn stop_containerd(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run again.
    pub fn continue_containerd(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// The process id of containerd, while it runs.
    pub fn containerd(&self) -> Option<u32> {
        lock(&self.containerd).as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let containerd = lock(&self.containerd);
        process::signal(containerd.as_ref().context("containerd does not run")?.id(), signal)
    }

    /// Makes a pod.
    pub fn pod(&self, spec: &CriPodSpec) -> Result<CriPod<'_>> {
        CriPod::create(self, spec)
    }

    fn log(&self) -> PathBuf {
        self.directory.join("containerd.log")
    }

    /// Asks containerd to end, which is what closes its database.
    fn end_containerd(&self) -> Result<()> {
        let Some(mut child) = lock(&self.containerd).take() else { return Ok(()) };
        process::signal(child.id(), Signal::TERM)?;
        let deadline = Instant::now() + ENDING;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                process::kill(child.id())?;
                child.wait()?;
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for CriNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the last of containerd's log:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        let ended = self.end_containerd().and_then(|()| leftovers::remove(&self.directory));
        if let Err(error) = ended {
            eprintln!("observer-lab: removing the node {}: {error:#}", self.directory.display());
        }
    }
}

/// Another one for each node that runs: an address that two pods have names neither.
fn subnet(number: u32) -> String {
    format!("10.{}.{}.0/24", 89 + number % 100, std::process::id() % 256)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
