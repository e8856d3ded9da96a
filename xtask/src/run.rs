//! Runs other programs: aloud, or quietly with the output in a log that is shown when they fail.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

/// How much of a log an error shows.
const TAIL_LINES: usize = 15;

/// Runs a program whose output the person sees.
pub fn aloud(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {}", shown(command)))?;
    if status.success() { Ok(()) } else { bail!("{} failed: {status}", shown(command)) }
}

/// Runs a program with its output in `target/xtask/logs/<log>.log`.
pub fn quietly(workspace: &Workspace, log: &str, command: &mut Command, limit: Duration) -> Result<()> {
    let path = log_path(workspace, log);
    fs::create_dir_all(workspace.own("logs")).with_context(|| format!("create the directory of {}", path.display()))?;
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let errors = file.try_clone().with_context(|| format!("open {} twice", path.display()))?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).env_remove("RUST_BACKTRACE");
    let mut child = command.spawn().with_context(|| format!("start {}", shown(command)))?;
    let status = match wait(&mut child, limit)? {
        Some(status) if status.success() => return Ok(()),
        Some(status) => status.to_string(),
        None => format!("no end after {} s, stopped", limit.as_secs()),
    };
    let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ");
    bail!("{}: {status}; its last lines, all are in {}:\n    {tail}", shown(command), path.display())
}

/// Where [`quietly`] writes a log.
pub fn log_path(workspace: &Workspace, log: &str) -> PathBuf {
    workspace.own("logs").join(format!("{log}.log"))
}

/// Runs a program and gives its standard output, trimmed; an error when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("start {}", shown(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{} failed: {}: {errors}", shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Waits for a child, at most so long; a child that is late is killed and reaped.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("wait for a child process")? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill().context("kill a child process that took too long")?;
            child.wait().context("reap a child process that took too long")?;
            return Ok(None);
        }
        sleep(Duration::from_millis(20));
    }
}

/// Cargo of the toolchain that runs this command, at the repository's root.
pub fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&workspace.root);
    // What `cargo run` told this program about itself is not meant for another cargo: build scripts read some of it (ring's does), and
    // all above them would be built anew after each `cargo build` that was started otherwise.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_cargo_run)) {
        command.env_remove(name);
    }
    command
}

/// What the Cargo Book's "Environment variables Cargo sets for crates" lists, as far as `cargo run` sets it.
fn is_of_cargo_run(name: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix))
        || ["CARGO", "OUT_DIR"].contains(&name)
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_cargo_is_told_what_a_person_has_set_and_nothing_of_this_program() {
        assert!(
            ["CARGO", "OUT_DIR", "CARGO_PKG_VERSION_MAJOR", "CARGO_MANIFEST_LINKS"].into_iter().all(is_of_cargo_run)
        );
        assert!(!["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "PATH"].into_iter().any(is_of_cargo_run));
    }
}
