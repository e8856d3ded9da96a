//! The accuracy cases: what a kernel must do right. Until they are written, what a guest must have.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// How many passed.
    pub passed: usize,
    /// The others, with what went wrong.
    pub failed: Vec<String>,
}

/// Runs the cases whose name has `filter` in it.
pub fn run(filter: &str) -> Result<Report> {
    let cases: [(&str, fn() -> Result<()>); 3] = [("bpffs", bpffs), ("btf", btf), ("cgroup2", cgroup2)];
    let mut report = Report::default();
    for (name, case) in cases.into_iter().filter(|(name, _)| name.contains(filter)) {
        match case() {
            Ok(()) => report.passed += 1,
            Err(error) => report.failed.push(format!("{name}: {error:#}")),
        }
    }
    Ok(report)
}

/// The kernel's name and release.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn bpffs() -> Result<()> {
    mounted("bpf")
}

fn cgroup2() -> Result<()> {
    mounted("cgroup2")
}

fn btf() -> Result<()> {
    if Path::new("/sys/kernel/btf/vmlinux").exists() { Ok(()) } else { bail!("no /sys/kernel/btf/vmlinux") }
}

fn mounted(kind: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    if mounts.lines().any(|line| line.split_whitespace().nth(2) == Some(kind)) {
        return Ok(());
    }
    bail!("no {kind} file system is mounted")
}
