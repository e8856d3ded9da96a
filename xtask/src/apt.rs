//! Installs Debian packages, only those that are missing, and refreshes the lists only when needed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::machine;
use crate::run;
use crate::steps::{Done, doing};
use crate::workspace::Workspace;

/// Installing packages takes longer than this only when something hangs.
const LIMIT: Duration = Duration::from_mins(15);

/// Makes sure that packages are installed; `why` says who needs them.
pub fn ensure(workspace: &Workspace, packages: &[&str], why: &str) -> Result<Done> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(Done::There(packages.join(", ")));
    }
    let list = missing.join(" ");
    if !machine::has_apt() {
        bail!("{why} needs what Debian calls `{list}`, and there is no apt here: install the same from your system");
    }
    if !machine::is_root() {
        bail!("{why} needs the packages `{list}`. As root: apt-get install --no-install-recommends {list}");
    }
    doing(&format!("apt-get install {list} (for {why})"));
    if !known(&missing) {
        update(workspace)?;
        if !known(&missing) {
            bail!("{why} needs the packages `{list}`, and apt's sources here do not have all of them");
        }
    }
    // Lists that are older than the mirror name files that are gone.
    if install(workspace, &missing).is_err() {
        update(workspace)?;
        install(workspace, &missing).with_context(|| format!("install {list} for {why}"))?;
    }
    Ok(Done::Now(format!("installed {}", missing.join(", "))))
}

/// The packages that are not installed.
pub fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]).args(packages);
    // dpkg-query fails when it does not know one of them, and still prints the others.
    let text = query.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    not_installed(packages, &text)
}

fn not_installed<'a>(packages: &[&'a str], dpkg: &str) -> Vec<&'a str> {
    let there = |package: &str| dpkg.lines().any(|line| line.split_once(' ') == Some((package, "installed")));
    packages.iter().copied().filter(|package| !there(package)).collect()
}

/// Whether apt's sources offer all of these packages.
pub fn offers(packages: &[&str]) -> bool {
    machine::has_apt() && known(packages)
}

/// Fetches apt's package lists anew.
pub fn update(workspace: &Workspace) -> Result<()> {
    run::quietly(workspace, "apt-update", apt_get().arg("update"), LIMIT).context("refresh apt's package lists")
}

fn known(packages: &[&str]) -> bool {
    let text = run::output(Command::new("apt-cache").args(["policy"]).args(packages)).unwrap_or_default();
    candidates(&text) == packages.len()
}

/// How many packages `apt-cache policy` names a candidate for.
fn candidates(policy: &str) -> usize {
    policy.lines().filter(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|at| at != "(none)")).count()
}

fn install(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    let mut command = apt_get();
    command.args(["install", "-y", "--no-install-recommends"]).args(packages);
    run::quietly(workspace, "apt-install", &mut command, LIMIT)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_not_installed() {
        let dpkg = "xz-utils installed\nqemu-system-x86 config-files\n";
        assert_eq!(not_installed(&["xz-utils", "qemu-system-x86", "cpio"], dpkg), ["qemu-system-x86", "cpio"]);
    }

    #[test]
    fn counts_candidates() {
        let policy = "a:\n  Installed: (none)\n  Candidate: 1.0\nb:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(policy), 1);
    }
}
