//! Real Podman, with all that it keeps in a directory of its own. Its pods have no network but loopback.
//!
//! It needs Debian's packages `podman`, `runc` and `busybox-static`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cgroup::{self, Cgroup};
use crate::cri_node::{IMAGE, layer, leftovers};
use crate::owner::Owner;
use crate::sweep::remove_of_runtime;

const PROGRAM: &str = "/usr/bin/podman";
/// What Podman names the cgroup of its pods, when it makes cgroups itself.
const PARENT: &str = "libpod_parent";
/// Podman asks for limits that a process without CAP_SYS_RESOURCE cannot have.
const CONFIG: &str = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";

/// Podman. Dropping it removes all pods and everything else.
#[derive(Debug)]
pub struct Podman {
    directory: PathBuf,
    /// Holds the cgroups of pods; carries the lab's mark.
    cgroup: Cgroup,
}

impl Podman {
    /// Makes the directory and the image.
    pub fn create() -> Result<Self> {
        crate::sweep().context("sweeping up after earlier runs")?;
        ensure!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is not there: apt-get install --no-install-recommends podman (`cargo xtask test` does it)"
        );
        let (directory, number) = leftovers::another()?;
        let path = PathBuf::from(format!("/podman-{}.{number}/{PARENT}", Owner::me()));
        let cgroup = Cgroup::create(&cgroup::detect()?.into(), &path)?;
        let podman = Self { directory, cgroup };
        std::fs::write(podman.config(), CONFIG).context("writing Podman's configuration")?;
        let archive = podman.directory.join("layer.tar");
        std::fs::write(&archive, layer()?).with_context(|| format!("writing {}", archive.display()))?;
        podman.run(&["import", &archive.display().to_string(), IMAGE])?;
        Ok(podman)
    }

    /// Makes a pod and gives its id.
    pub fn pod(&self, name: &str) -> Result<String> {
        let parent = self.cgroup.path().display().to_string();
        let infra = "/bin/sleep 2147483647";
        let arguments = ["--network", "none", "--infra-image", IMAGE, "--infra-command", infra];
        self.run(&[&["pod", "create", "--name", name, "--cgroup-parent", &parent], &arguments[..]].concat())
    }

    /// Starts a container in a pod and gives its id.
    pub fn container(&self, pod: &str, name: &str, command: &[&str]) -> Result<String> {
        self.container_with(pod, name, &[], command)
    }

    /// The same, with further options of `podman run`.
    pub fn container_with(&self, pod: &str, name: &str, options: &[&str], command: &[&str]) -> Result<String> {
        let run = ["run", "--detach", "--pod", pod, "--name", name];
        self.run(&[&run, options, &[IMAGE], command].concat())
    }

    /// Ends a container's processes and starts it again: the same container with new processes.
    pub fn restart(&self, container: &str) -> Result<()> {
        self.run(&["restart", "--time", "0", container]).map(drop)
    }

    /// Runs a command in a container and gives what that wrote.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        self.run(&[&["exec", container], command].concat())
    }

    /// The first process of a container.
    pub fn pid(&self, container: &str) -> Result<u32> {
        let pid = self.run(&["inspect", "--format", "{{.State.Pid}}", container])?;
        pid.parse().with_context(|| format!("{pid:?} is no process id"))
    }

    /// Removes a pod with its containers.
    pub fn remove(&self, pod: &str) -> Result<()> {
        self.run(&["pod", "rm", "--force", "--time", "0", pod]).map(drop)
    }

    fn config(&self) -> PathBuf {
        self.directory.join("containers.conf")
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(PROGRAM);
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.directory.join(name));
        }
        command.args(["--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc", "--storage-driver=vfs"]);
        command.args(arguments).env("CONTAINERS_CONF", self.config());
        let output = command.output().with_context(|| format!("running {PROGRAM}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "podman {arguments:?}: {}", error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removed = self.run(&["pod", "rm", "--all", "--force", "--time", "0"]);
        let removed = removed.and_then(|_| leftovers::remove(&self.directory));
        // Of a hierarchy without controllers it leaves the pods' own ones.
        let left = || self.cgroup.directories().try_for_each(|directory| remove_of_runtime(&directory));
        if let Err(error) = removed.and_then(|()| left()) {
            eprintln!("observer-lab: removing Podman's {}: {error:#}", self.directory.display());
        }
    }
}
