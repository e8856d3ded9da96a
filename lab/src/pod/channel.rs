//! The driver's end of the pipe to a process in a container.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::process;

/// A child process that reads a JSON line and answers with one.
#[derive(Debug)]
pub(super) struct Channel {
    what: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Channel {
    /// Starts the process; `what` names it in errors.
    pub(super) fn start(what: String, command: Command) -> Result<Self> {
        let mut child = process::spawn(command).with_context(|| format!("starting {what}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("starting {what}: its input and output are no pipes");
        };
        Ok(Self { what, child, input, output: BufReader::new(output) })
    }

    /// Sends a line.
    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line =
            serde_json::to_string(message).with_context(|| format!("writing a message to {} as JSON", self.what))?;
        line.push('\n');
        self.input.write_all(line.as_bytes()).with_context(|| format!("writing to {}", self.what))
    }

    /// Waits for a line.
    pub(super) fn receive<T: DeserializeOwned>(&mut self, timeout: Duration) -> Result<T> {
        self.wait_readable(timeout)?;
        let mut line = String::new();
        let length = self.output.read_line(&mut line).with_context(|| format!("reading from {}", self.what))?;
        if length == 0 {
            let status = self.child.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
            bail!("{} has ended ({status}); its error output says why", self.what);
        }
        serde_json::from_str(&line)
            .with_context(|| format!("reading the answer of {}: {:?}", self.what, line.trim_end()))
    }

    /// Waits for a process that is about to end by itself; when it does not, ends it.
    pub(super) fn finish(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.end();
    }

    /// Ends the process and waits until it is gone.
    pub(super) fn end(&mut self) {
        // Both fail only when the process has ended and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn wait_readable(&self, timeout: Duration) -> Result<()> {
        if !self.output.buffer().is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("the timeout is too long")?;
            let mut fds = [PollFd::new(self.output.get_ref(), PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Err(anyhow!("{} gave no answer within {timeout:?}", self.what)),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("waiting for {}", self.what));
                }
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.end();
    }
}
