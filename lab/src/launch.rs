//! Starting a process as a container: in its cgroups first, then in its namespaces, then at work.
//!
//! The driver starts the launcher binary with `enter <options> <role>`. The launcher puts itself into
//! place and goes on as the pause process or as an actor, so no code runs between fork and exec.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::actor::{self, Command as Act};
use crate::bench::load::Load;
use crate::netns::NetNs;
use crate::{cgroup, process};

/// Names the launcher binary, for programs that are not `observer-lab` themselves.
pub const ENV: &str = "OBSERVER_LAB_BIN";
const NAME: &str = "observer-lab";

/// The binary that starts the processes of containers.
#[derive(Clone, Debug)]
pub struct Launcher(PathBuf);

impl Launcher {
    /// Uses this binary.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Finds the binary: `OBSERVER_LAB_BIN`, else this program, else a neighbour of this program.
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os(ENV) {
            return Ok(Self(path.into()));
        }
        let me = std::env::current_exe().context("asking for the path of this program")?;
        if me.file_name().is_some_and(|name| name == NAME) {
            return Ok(Self(me));
        }
        let near: Vec<PathBuf> = me.ancestors().skip(1).take(2).map(|directory| directory.join(NAME)).collect();
        near.iter()
            .find(|path| path.is_file())
            .cloned()
            .map(Self)
            .with_context(|| format!("looking for the launcher {near:?}: build observer-lab, or set {ENV} to its path"))
    }

    /// The path of the binary.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A command that enters as `entry` says and then takes on `role`.
    pub(crate) fn command(&self, entry: &Entry, role: &Role) -> Result<Command> {
        let mut command = Command::new(&self.0);
        command.arg("enter").args(entry.arguments()).args(role.arguments()?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        detach(&mut command);
        Ok(command)
    }

    /// A command that runs another program, which the kernel kills when this process ends.
    pub fn guarded(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.0);
        command.arg("guard").arg("--parent").arg(std::process::id().to_string()).arg("--").arg(program);
        detach(&mut command);
        command
    }
}

/// Keeps a child away from the terminal's Ctrl-C: the driver ends its children itself, in order.
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

/// Where a process goes before it starts to work.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The process that started this one, and with which it ends.
    #[arg(long)]
    pub parent: u32,
    /// The cgroup to join, from the root of each hierarchy.
    #[arg(long)]
    pub cgroup: PathBuf,
    /// The name of the process.
    #[arg(long)]
    pub name: String,
    /// A network namespace file to enter.
    #[arg(long)]
    pub net: Option<PathBuf>,
    /// A process whose IPC and UTS namespaces to join.
    #[arg(long)]
    pub join: Option<u32>,
    /// Make IPC and UTS namespaces with this host name.
    #[arg(long)]
    pub hostname: Option<String>,
    /// Make a PID namespace and be its first process.
    #[arg(long)]
    pub own_pids: bool,
    /// Make a mount namespace.
    #[arg(long)]
    pub own_mounts: bool,
}

impl Entry {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--parent={}", self.parent),
            format!("--cgroup={}", self.cgroup.display()),
            format!("--name={}", self.name),
        ];
        arguments.extend(self.net.as_ref().map(|path| format!("--net={}", path.display())));
        arguments.extend(self.join.map(|pid| format!("--join={pid}")));
        arguments.extend(self.hostname.as_ref().map(|name| format!("--hostname={name}")));
        arguments.extend(self.own_pids.then(|| "--own-pids".to_owned()));
        arguments.extend(self.own_mounts.then(|| "--own-mounts".to_owned()));
        arguments
    }
}

/// What a process does once it is in place.
#[derive(Subcommand, Clone, Debug, PartialEq)]
pub enum Role {
    /// Hold the pod's namespaces.
    Pause,
    /// Do what the driver asks for.
    Actor {
        /// Commands (JSON) to run before anything else.
        #[arg(long, default_value = "[]")]
        first: String,
    },
    /// One end of a benchmark's load.
    Load(Load),
}

impl Role {
    /// An actor that runs `first` before it listens to the driver.
    pub fn actor(first: &[Act]) -> Result<Self> {
        let first = serde_json::to_string(first).context("writing the first commands as JSON")?;
        Ok(Self::Actor { first })
    }

    fn arguments(&self) -> Result<Vec<String>> {
        Ok(match self {
            Self::Pause => vec!["pause".to_owned()],
            Self::Actor { first } => vec!["actor".to_owned(), format!("--first={first}")],
            Self::Load(load) => load.arguments(),
        })
    }
}

/// Goes where `entry` says and takes on `role`. Must run before any other thread is started.
pub fn enter(entry: &Entry, role: &Role) -> Result<ExitCode> {
    process::die_with_parent(entry.parent)?;
    let target = Target::open(entry)?;
    if entry.own_pids {
        // SAFETY: the flags do not hold FILES, so descriptors stay visible to every thread.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.context("making a PID namespace")?;
        if let Some(child) = fork()? {
            return wait_for(child);
        }
        // The first process of the new namespace: the kernel ends it with the one that waits for it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .context("asking for the parent death signal")?;
    }
    cgroup::enter(&cgroup::detect()?, &entry.cgroup)?;
    target.enter(entry)?;
    let name = CString::new(entry.name.as_str()).context("the process name holds a NUL")?;
    rustix::thread::set_name(&name).context("setting the process name")?;
    match role {
        Role::Pause => actor::pause(),
        Role::Load(load) => crate::bench::load::run(load),
        Role::Actor { first } => {
            let first: Vec<Act> =
                serde_json::from_str(first).with_context(|| format!("reading the commands {first}"))?;
            actor::run(&first)
        }
    }
}

/// Runs another program in place of this one; it ends with `parent`.
pub fn guard(parent: u32, program: &[String]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    process::die_with_parent(parent)?;
    let [name, arguments @ ..] = program else { bail!("no program to run was given") };
    // `exec` returns only when it fails.
    Err(Command::new(name).args(arguments).exec()).with_context(|| format!("running {name}"))
}

/// Namespace files, opened before anything changes.
struct Target {
    net: Option<NetNs>,
    joined: Vec<(File, LinkNameSpaceType)>,
}

impl Target {
    fn open(entry: &Entry) -> Result<Self> {
        let net = entry.net.as_deref().map(NetNs::open).transpose()?;
        let mut joined = Vec::new();
        if let Some(pid) = entry.join {
            for (name, kind) in [
                ("ipc", LinkNameSpaceType::InterProcessCommunication),
                ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
            ] {
                let path = format!("/proc/{pid}/ns/{name}");
                let file = File::open(&path).with_context(|| format!("opening {path}"))?;
                joined.push((file, kind));
            }
        }
        Ok(Self { net, joined })
    }

    fn enter(&self, entry: &Entry) -> Result<()> {
        if let Some(net) = &self.net {
            net.enter()?;
        }
        for (file, kind) in &self.joined {
            move_into_link_name_space(file.as_fd(), Some(*kind))
                .with_context(|| format!("joining a namespace of process {:?}", entry.join))?;
        }
        if let Some(hostname) = &entry.hostname {
            let flags = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
            // SAFETY: the flags do not hold FILES, so descriptors stay visible to every thread.
            unsafe { unshare_unsafe(flags) }.context("making IPC and UTS namespaces")?;
            rustix::system::sethostname(hostname.as_bytes())
                .with_context(|| format!("setting the host name {hostname}"))?;
        }
        if entry.own_mounts {
            // SAFETY: as above.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("making a mount namespace")?;
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
                .context("keeping mounts of the new namespace to itself")?;
        }
        Ok(())
    }
}

/// Forks. `None` in the child.
fn fork() -> Result<Option<Pid>> {
    ensure!(
        std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(1) == 1,
        "forking needs a process of one thread"
    );
    // SAFETY: this process has one thread (checked above), so the child has all of what the parent
    // had, and no lock in it is held by a thread that does not exist there.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(std::io::Error::last_os_error()).context("forking the container's process"),
        0 => Ok(None),
        _ => Ok(Pid::from_raw(pid)),
    }
}

/// Stands by outside the container until its first process ends, as a runtime's shim does.
fn wait_for(child: Pid) -> Result<ExitCode> {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
                return Ok(ExitCode::from(code.unwrap_or(128)));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the container's process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        entry: Entry,
        #[command(subcommand)]
        role: Role,
    }

    #[test]
    fn what_the_driver_writes_is_what_the_launcher_reads() {
        let entry = Entry {
            parent: 7,
            cgroup: "/kubepods/burstable/podx/y".into(),
            name: "app".to_owned(),
            net: Some("/proc/7/fd/3".into()),
            join: Some(8),
            hostname: Some("web".to_owned()),
            own_pids: true,
            own_mounts: true,
        };
        let role = Role::actor(&[Act::Burn { cpu_ms: 3 }]).unwrap();
        let arguments = [vec!["enter".to_owned()], entry.arguments()].concat();
        let cli = Cli::parse_from(arguments.into_iter().chain(role.arguments().unwrap()));
        assert_eq!(cli.entry, entry);
        assert_eq!(cli.role, role);
    }
}
