//! Boots a guest and watches its console.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::run;

/// What the guest's init prints: `OBSERVER-VM: UP …`, `OBSERVER-VM: PASS n` or `OBSERVER-VM: FAIL …`.
const MARK: &str = "OBSERVER-VM: ";
/// A guest that has said its verdict powers off; one that does not is stopped.
const POWER_OFF: Duration = Duration::from_secs(15);
/// A panic's trace is still to come when its first line is seen.
const TRACE: Duration = Duration::from_secs(2);
/// A guest that runs speaks earlier: of every case that ends, and after five minutes of one that does not.
const SILENCE: Duration = Duration::from_mins(7);
/// What QEMU is asked about a machine that stands still: where its processors are, and an interrupt that cannot be masked, which
/// makes the kernel tell what it does. `Ctrl-A c` is the way from the console to QEMU's monitor and back.
const ASK: &[u8] = b"\x01cinfo status\ninfo registers -a\nnmi\n\x01c";
/// How long it has for its answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What to boot.
pub struct Guest<'a> {
    /// The kernel image.
    pub kernel: &'a Path,
    /// The first file system.
    pub initramfs: &'a Path,
    /// Where the console is written to.
    pub console: PathBuf,
    /// Which cases to run.
    pub filter: &'a str,
    /// Only those behind this one.
    pub after: Option<&'a str>,
    /// Which share of them, from 0 on, of how many.
    pub share: (usize, usize),
    /// cgroup v1 hierarchies and the unified tree, instead of v2 alone.
    pub hybrid: bool,
    /// The guest is stopped after this.
    pub timeout: Duration,
    /// Show the console, each line behind this.
    pub echo: Option<String>,
}

/// How it went.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// All cases passed.
    pub passed: bool,
    /// In words.
    pub text: String,
    /// From the start of QEMU until init was up.
    pub boot: Option<Duration>,
    /// The cases that have ended, and whether they have passed.
    pub cases: Vec<(String, bool)>,
    /// The machine itself came to nothing any more: neither the kernel nor a process of it spoke.
    pub stood_still: bool,
}

impl Verdict {
    /// A failure with a reason.
    pub fn failed(text: String) -> Self {
        Self { passed: false, text, boot: None, cases: Vec::new(), stood_still: false }
    }
}

/// Boots the guest and waits for its verdict.
pub fn run(guest: &Guest) -> Result<Verdict> {
    // The guest ends with this process, however that ends.
    let mut command = Command::new("setpriv");
    // One thread for both processors: a kernel rewrites its code while it runs (static keys, at each probe that is attached), and
    // with a thread for each a processor may run a translation that is being replaced. It costs a fifth of the time.
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg,thread=single"]);
    // With cx16, Linux 6.12 double-faults under this emulation.
    command.args(["-cpu", "max,cx16=off", "-smp", "2", "-m", "2048", "-nographic", "-no-reboot", "-net", "none"]);
    command.arg("-kernel").arg(guest.kernel).arg("-initrd").arg(guest.initramfs);
    command.args(["-append", &kernel_parameters(guest)]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {}", run::shown(&command)))?;
    let lines = follow(guest, child.stdout.take())?;
    let mut errors = child.stderr.take();
    let mut verdict = Verdict::failed(String::new());
    let mut deadline = start + guest.timeout;
    let mut spoke = Instant::now();
    loop {
        let until = deadline.min(spoke + SILENCE);
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                spoke = Instant::now();
                match judge(&line) {
                    Some(Word::Up) => verdict.boot = Some(start.elapsed()),
                    Some(Word::Case(name, passed)) => verdict.cases.push((name, passed)),
                    Some(Word::End(passed, text)) if verdict.text.is_empty() => {
                        deadline = Instant::now() + if text.starts_with("panic") { TRACE } else { POWER_OFF };
                        (verdict.passed, verdict.text) = (passed, text);
                    }
                    _ => {}
                }
            }
            Err(RecvTimeoutError::Timeout) if verdict.text.is_empty() && Instant::now() < deadline => {
                verdict.stood_still = true;
                verdict.text = format!("the machine stood still: not a word for {} s", SILENCE.as_secs());
                ask(child.stdin.as_mut());
                spoke = Instant::now();
                deadline = spoke + ANSWER;
            }
            Err(RecvTimeoutError::Timeout) => {
                if verdict.text.is_empty() {
                    verdict.text = format!("no verdict after {} s, stopped", guest.timeout.as_secs());
                }
                break;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // Ended by itself already, or it has to be.
    run::wait(&mut child, Duration::from_millis(200))?;
    if verdict.text.is_empty() {
        let said =
            errors.as_mut().map(|errors| std::io::read_to_string(errors).unwrap_or_default()).unwrap_or_default();
        verdict.text = format!("the guest ended without a verdict {}", said.trim());
    }
    if !verdict.passed {
        verdict.text = format!("{} ({})", verdict.text.trim(), guest.console.display());
    }
    Ok(verdict)
}

/// Has QEMU and the kernel tell, on the console, what a machine does that stands still.
fn ask(monitor: Option<&mut ChildStdin>) {
    if let Some(monitor) = monitor {
        // One that does not listen any more has said all that it will.
        drop(monitor.write_all(ASK).and_then(|()| monitor.flush()));
    }
}

fn kernel_parameters(guest: &Guest) -> String {
    let mut parameters = String::from("console=ttyS0 quiet loglevel=4 panic=-1 unknown_nmi_panic=1");
    let (which, shares) = guest.share;
    parameters.push_str(&format!(" mitigations=off random.trust_cpu=on observer.share={which}/{shares}"));
    if guest.hybrid {
        parameters.push_str(" observer.cgroup=hybrid");
    }
    if !guest.filter.is_empty() {
        parameters.push_str(" observer.case=");
        parameters.push_str(guest.filter);
    }
    if let Some(after) = guest.after {
        parameters.push_str(" observer.after=");
        parameters.push_str(after);
    }
    parameters
}

/// Writes the console to its file, and sends it line by line.
fn follow(guest: &Guest, console: Option<std::process::ChildStdout>) -> Result<mpsc::Receiver<String>> {
    let mut file = File::create(&guest.console).with_context(|| format!("create {}", guest.console.display()))?;
    let console = console.context("QEMU has no console")?;
    let (send, receive) = mpsc::channel();
    let echo = guest.echo.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(console);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            // The verdict counts even when the disk is full; then the console is short.
            drop(writeln!(file, "{text}"));
            if let Some(whose) = &echo {
                println!("    {whose} {text}");
            }
            if send.send(text).is_err() {
                break;
            }
        }
    });
    Ok(receive)
}

enum Word {
    Up,
    Case(String, bool),
    End(bool, String),
}

/// What a line of the console means, if anything.
fn judge(line: &str) -> Option<Word> {
    if let Some((_, word)) = line.split_once(MARK) {
        return match word.split_once(' ').map_or(word, |(first, _)| first) {
            "UP" => Some(Word::Up),
            "PASS" => Some(Word::End(true, word.to_owned())),
            "FAIL" => Some(Word::End(false, word.to_owned())),
            _ => None,
        };
    }
    if let ["case", name, how @ ("ok" | "FAILED"), ..] = line.split_whitespace().collect::<Vec<_>>()[..] {
        return Some(Word::Case(name.to_owned(), how == "ok"));
    }
    // Emulated processors stand still whenever the machine below does, and then the guest's watchdog finds them stuck. It goes
    // on, or it does not come to its verdict in time.
    let fatal = ["Kernel panic", "double fault", "BUG: ", "Oops: "].iter().any(|sign| line.contains(sign));
    (fatal && !line.contains("BUG: soft lockup")).then(|| Word::End(false, format!("panic: {line}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_console() {
        assert!(matches!(judge("OBSERVER-VM: UP 5.10"), Some(Word::Up)));
        assert!(matches!(judge("noise OBSERVER-VM: PASS 7\r"), Some(Word::End(true, _))));
        assert!(matches!(judge("OBSERVER-VM: FAIL udp: 3 of 4"), Some(Word::End(false, _))));
        assert!(matches!(judge("[ 1.0] Kernel panic - not syncing"), Some(Word::End(false, _))));
        assert!(matches!(judge("case tcp_stream ok 9.4s\r"), Some(Word::Case(name, true)) if name == "tcp_stream"));
        assert!(matches!(judge("case udp FAILED 3 of 4 9.4s"), Some(Word::Case(name, false)) if name == "udp"));
        assert!(judge("case udp has left /a with 1 processes").is_none());
        assert!(judge("hello").is_none());
        assert!(matches!(judge("[ 9.1] BUG: unable to handle page fault"), Some(Word::End(false, _))));
        assert!(judge("[ 236.5] watchdog: BUG: soft lockup - CPU#0 stuck for 45s! [web:11920]").is_none());
    }
}
