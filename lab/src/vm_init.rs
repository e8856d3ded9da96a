//! The init of a guest that `cargo xtask vm` boots: the first process of a kernel with nothing else.
//!
//! It mounts what a node has, loads the network's modules, and starts itself again as [`CASES`], the one
//! child whose end ends the guest. Meanwhile it reaps, as an init must. What it says on the console, and
//! `xtask` listens for: `OBSERVER-VM: UP …`, then `OBSERVER-VM: PASS n` or `OBSERVER-VM: FAIL …`.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::MountFlags;
use rustix::process::{WaitOptions, WaitStatus};
use rustix::system::RebootCommand;

use crate::cases::{self, Wanted};
use crate::pod::RUNTIME_DELETE_ENV;
use crate::stuck;

/// The subcommand of init's child.
pub const CASES: &str = "vm-cases";
/// In front of every line that is meant for xtask.
const MARK: &str = "OBSERVER-VM:";
const CGROUPS: &str = "/sys/fs/cgroup";
const PROGRAM: &str = "/bin/observer-lab";

/// Runs this program's part in a guest, if it is in one: as the first process, or as the child that runs
/// the cases. To be called before the command line is looked at.
pub fn entry() -> Option<ExitCode> {
    if std::process::id() == 1 {
        return Some(init());
    }
    let mut args = std::env::args().skip(1);
    (args.next().as_deref() == Some(CASES)).then(run_cases)
}

/// Which cases to run, as the kernel's command line says.
fn wanted(parameters: &str) -> Wanted {
    let share = parameter(parameters, "observer.share").and_then(|share| share.split_once('/'));
    let share = share.and_then(|(which, shares)| Some((which.parse().ok()?, shares.parse().ok()?)));
    Wanted {
        filter: parameter(parameters, "observer.case").unwrap_or_default().to_owned(),
        after: parameter(parameters, "observer.after").map(str::to_owned),
        share: share.unwrap_or((0, 1)),
    }
}

fn init() -> ExitCode {
    if let Err(error) = prepare().and_then(|()| supervise()) {
        say(&format!("FAIL {error:#}"));
    }
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        say(&format!("cannot power off: {error}"));
    }
    // An init that ends is a kernel panic, and with `panic=-1` the guest's end as well.
    ExitCode::FAILURE
}

/// Makes of an empty file system what a node has.
fn prepare() -> Result<()> {
    mount("proc", "/proc", "proc", "")?;
    mount("sysfs", "/sys", "sysfs", "")?;
    mount("devtmpfs", "/dev", "devtmpfs", "")?;
    for directory in ["/tmp", "/run", "/dev/shm"] {
        mount("tmpfs", directory, "tmpfs", "")?;
    }
    mount("bpf", "/sys/fs/bpf", "bpf", "")?;
    mount_optional("tracefs", "/sys/kernel/tracing", "tracefs", "");
    let parameters = command_line()?;
    match parameter(&parameters, "observer.cgroup") {
        Some("hybrid") => hybrid_cgroups()?,
        _ => pure_cgroups()?,
    }
    load_modules(Path::new("/modules"))?;
    loopback_up().context("set the loopback interface up")
}

/// cgroup v2 alone, with its controllers handed down, as systemd does it.
fn pure_cgroups() -> Result<()> {
    mount("cgroup2", CGROUPS, "cgroup2", "")?;
    let file = format!("{CGROUPS}/cgroup.controllers");
    let controllers = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    for controller in controllers.split_whitespace() {
        let file = format!("{CGROUPS}/cgroup.subtree_control");
        if let Err(error) = fs::write(&file, format!("+{controller}")) {
            println!("write +{controller} to {file}: {error}; pods have no {controller} controller");
        }
    }
    Ok(())
}

/// One v1 hierarchy for each controller, and v2 without controllers beside them.
fn hybrid_cgroups() -> Result<()> {
    mount("tmpfs", CGROUPS, "tmpfs", "")?;
    let table = fs::read_to_string("/proc/cgroups").context("read /proc/cgroups")?;
    for controller in enabled_controllers(&table) {
        mount_optional("cgroup", &format!("{CGROUPS}/{controller}"), "cgroup", controller);
    }
    mount("cgroup2", &format!("{CGROUPS}/unified"), "cgroup2", "")
}

/// Names of `/proc/cgroups`, whose last column says whether they are enabled.
fn enabled_controllers(table: &str) -> Vec<&str> {
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    rows.filter(|row| row.trim_end().ends_with('1')).filter_map(|row| row.split_whitespace().next()).collect()
}

/// What the kernel was started with (proc_cmdline(5)).
fn command_line() -> Result<String> {
    fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")
}

/// The value of a `name=value` kernel parameter.
fn parameter<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    cmdline.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Loads all modules of a directory, in the order of their names.
fn load_modules(directory: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("load the module {}", path.display())),
        }
    }
    Ok(())
}

/// The agent serves its metrics on it.
fn loopback_up() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("open a socket")?;
    // SAFETY: an `ifreq` of zeros is valid: it is made of integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = (*from).cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the descriptor is open while `socket` lives, and SIOCSIFFLAGS reads one `ifreq`, which lives too.
    let result = unsafe { libc::ioctl(descriptor, libc::SIOCSIFFLAGS as _, &raw const request) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context("SIOCSIFFLAGS on lo") }
}

/// Starts the child and reaps whatever ends, until it is the child.
fn supervise() -> Result<()> {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    say(&format!("UP after {} s, {}", uptime.split_whitespace().next().unwrap_or("?"), cases::kernel()));
    let mut command = Command::new(PROGRAM);
    command.arg(CASES).env("PATH", "/bin").env("HOME", "/root").env("RUST_BACKTRACE", "1");
    command.env("OBSERVER_BIN", "/bin/observer").env("OBSERVER_LAB_BIN", PROGRAM);
    // The processor is emulated, ten to twenty times slower than one on which a runtime takes 10 ms.
    command.env(RUNTIME_DELETE_ENV, "200");
    let child = command.spawn().with_context(|| format!("start {PROGRAM} {CASES}"))?;
    loop {
        let ended = rustix::process::wait(WaitOptions::empty()).context("wait for processes")?;
        match ended {
            Some((pid, status)) if pid.as_raw_nonzero().get().cast_unsigned() == child.id() => {
                report_end(status);
                return Ok(());
            }
            _ => {}
        }
    }
}

/// The child says its verdict itself, unless it could not.
fn report_end(status: WaitStatus) {
    if let Some(signal) = status.terminating_signal() {
        say(&format!("FAIL the cases were ended by signal {signal}"));
    } else if status.exit_status() != Some(0) {
        say(&format!("FAIL the cases ended with status {}", status.exit_status().unwrap_or(-1)));
    }
}

fn run_cases() -> ExitCode {
    let outcome = command_line().and_then(|parameters| {
        let wanted = wanted(&parameters);
        let report = cases::run(&wanted, give_up)?;
        let any = report.passed + report.failed.len() > 0;
        // Where a machine stood still there may be none left.
        ensure!(any || wanted.after.is_some(), "no case matches `{}`", wanted.filter);
        Ok(report)
    });
    let (line, code) = match outcome {
        Ok(report) if report.failed.is_empty() => (format!("PASS {}", report.passed), ExitCode::SUCCESS),
        Ok(report) => (
            format!(
                "FAIL {} of {}: {}",
                report.failed.len(),
                report.failed.len() + report.passed,
                report.failed.join("; ")
            ),
            ExitCode::FAILURE,
        ),
        Err(error) => (format!("FAIL {error:#}"), ExitCode::FAILURE),
    };
    // A verdict is one line, whatever an error says.
    say(&line.replace('\n', " | "));
    code
}

/// Tells what is known of a case that does not end, and ends all.
fn give_up(case: &str) {
    // At once: what is asked of a process may wait for what this one waits for.
    println!("case {case} FAILED does not end");
    println!("{}{}", stuck::processes(), stuck::last_words(&std::env::temp_dir()));
    say(&format!("FAIL {case} does not end; what its processes wait for stands above"));
    std::process::exit(1);
}

fn say(words: &str) {
    println!("{MARK} {words}");
    // Nobody is left to tell when the console is gone.
    let _ = std::io::stdout().flush();
}

fn mount(source: &str, target: &str, kind: &str, data: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
    let data = CString::new(data).with_context(|| format!("mount options `{data}`"))?;
    match rustix::mount::mount(source, target, kind, MountFlags::empty(), data.as_c_str()) {
        // The kernel may have mounted devtmpfs itself.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mount {kind} on {target}")),
    }
}

fn mount_optional(source: &str, target: &str, kind: &str, data: &str) {
    if let Err(error) = mount(source, target, kind, data) {
        println!("{error:#}: this kernel goes without");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kernel_parameters() {
        let cmdline = "console=ttyS0 observer.cgroup=hybrid observer.case=udp quiet\n";
        assert_eq!(parameter(cmdline, "observer.cgroup"), Some("hybrid"));
        assert_eq!(parameter(cmdline, "observer.case"), Some("udp"));
        assert_eq!(parameter(cmdline, "observer"), None);
    }

    #[test]
    fn lists_enabled_controllers() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t0\t1\t1\nmemory\t0\t1\t0\npids\t0\t1\t1\n";
        assert_eq!(enabled_controllers(table), ["cpu", "pids"]);
    }
}
