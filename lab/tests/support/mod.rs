//! What the tests of the sandboxes share.

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod cri;
pub mod kubernetes;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command as Process};

use anyhow::{Context, Result, ensure};
use observer_lab::cases::count::Count;
use observer_lab::launch::Launcher;
use observer_lab::netns::NetNs;
use observer_lab::node::Node;

/// A node whose containers are started by the binary under test.
pub fn node() -> Node {
    Node::with_launcher(Launcher::at(env!("CARGO_BIN_EXE_observer-lab"))).unwrap()
}

/// A free port at an address.
pub fn any_port(address: impl Into<std::net::IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), 0)
}

/// A process that ends with the test that started it, whichever way that ends.
pub struct Ending(pub Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // Both fail only when the process has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says that a test does not apply to this machine: past the harness, which keeps what a test prints that passes.
pub fn skipped(why: &str) {
    // Nobody is left to tell when the stream is gone.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Runs nft in a namespace.
pub fn nft(netns: &NetNs, script: &str) -> Result<String> {
    netns.run(|| {
        let output = Process::new("nft").arg(script).output().context("running nft (package nftables)")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "nft {script}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

/// The sum of all of nft's own counters in a namespace: packets, and their bytes at IP level.
pub fn nft_counted(netns: &NetNs) -> Result<Count> {
    let rules = nft(netns, "list ruleset")?;
    let mut words = rules.split_whitespace();
    let mut sum = Count::default();
    let number = |word: Option<&str>| -> Result<u64> {
        Ok(word.context("nft has no number after `packets` or `bytes`")?.parse()?)
    };
    while let Some(word) = words.next() {
        match word {
            "packets" => sum.packets += number(words.next())?,
            "bytes" => sum.bytes += number(words.next())?,
            _ => {}
        }
    }
    Ok(sum)
}

/// Every cgroup directory of the machine whose name holds `part`.
pub fn cgroups_named(part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in observer_lab::cgroup::detect().unwrap() {
        collect(&hierarchy.mount, part, &mut found);
    }
    found
}

fn collect(directory: &std::path::Path, part: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(part) {
                found.push(entry.path());
            }
            collect(&entry.path(), part, found);
        }
    }
}

/// Whether a process runs.
pub fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
