//! A server and a client of the load, run once.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout};

use anyhow::{Context, Result, ensure};

use super::load::{End, Load};
use crate::launch::{Entry, Launcher, Role};
use crate::netns::NetNs;
use crate::process;

/// Where both ends run.
pub struct Pair<'a> {
    pub launcher: &'a Launcher,
    /// What both processes are called.
    pub name: String,
    /// Their cgroup.
    pub cgroup: &'a Path,
    /// The server's network namespace.
    pub server: &'a NetNs,
    /// The client's.
    pub client: &'a NetNs,
}

/// What was measured.
pub struct Outcome {
    /// Work per CPU-second of both ends.
    pub rate: f64,
    /// Requests, or bytes of a stream.
    pub work: u64,
    /// Connections that were made, those included that were made before anything was measured.
    pub connections: u64,
}

impl Pair<'_> {
    /// Runs a load; its `end` says nothing.
    pub fn run(&self, load: &Load) -> Result<Outcome> {
        let mut server = self.start(load, End::Server)?;
        let mut answers = BufReader::new(server.stdout.take().context("the server has no output")?);
        let mut line = String::new();
        answers.read_line(&mut line).context("waiting for the server")?;
        ensure!(line.trim() == "ready", "the server said {line:?}");
        let mut client = self.start(load, End::Client)?;
        let mut report = BufReader::new(client.stdout.take().context("the client has no output")?);
        let (work, asked, connections) = numbers(&mut report)?;
        client.wait().context("waiting for the client")?;
        // Its end ends the server.
        drop(server.stdin.take());
        let (_, answered, _) = numbers(&mut answers)?;
        server.wait().context("waiting for the server")?;
        ensure!(work > 0 && asked > 0 && answered > 0, "no work was done");
        Ok(Outcome { rate: work as f64 / ((asked + answered) as f64 / 1e6), work, connections })
    }

    fn start(&self, load: &Load, end: End) -> Result<Child> {
        let net = if end == End::Server { self.server } else { self.client };
        let entry = Entry {
            parent: std::process::id(),
            cgroup: self.cgroup.to_owned(),
            name: self.name.clone(),
            net: Some(net.path()),
            ..Entry::default()
        };
        process::spawn(self.launcher.command(&entry, &Role::Load(Load { end, ..load.clone() }))?)
    }
}

/// What an end says at last: work, CPU time in microseconds, connections.
fn numbers(from: &mut BufReader<ChildStdout>) -> Result<(u64, u64, u64)> {
    let mut line = String::new();
    from.read_line(&mut line).context("reading the result")?;
    let numbers: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    match numbers[..] {
        [work, time, connections] => Ok((work, time, connections)),
        _ => anyhow::bail!("expected work, CPU time and connections, got {line:?}"),
    }
}
