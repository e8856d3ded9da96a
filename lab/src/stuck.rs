//! What a guest says of a case that does not end: what every process waits for, and the last words of the agents.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use procfs::process::{Process, all_processes};

/// How much of a file among the temporary ones is shown, in bytes.
const LAST_WORDS: u64 = 2000;

/// Runs `work`; where it takes longer than `limit`, `late` is called meanwhile, from a thread of its own.
pub fn watched<T>(limit: Duration, late: impl FnOnce() + Send + 'static, work: impl FnOnce() -> T) -> T {
    let (over, waits): (Sender<()>, _) = channel();
    std::thread::spawn(move || {
        if waits.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            late();
        }
    });
    let result = work();
    drop(over);
    result
}

/// What every process but the kernel's own waits for (`/proc/PID/task/TID/{wchan,stack}`, proc(5)).
pub fn processes() -> String {
    let mut text = String::new();
    for process in all_processes().into_iter().flatten().flatten() {
        // The kernel's threads have no command line.
        if process.cmdline().is_ok_and(|words| !words.is_empty()) {
            describe(&process, &mut text);
        }
    }
    text
}

/// The ends of the files in a directory, as that for temporary ones, where agents log.
pub fn last_words(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let end = end_of(&entry.path()).unwrap_or_else(|error| error.to_string());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "the end of {}:\n{end}", entry.path().display());
        }
    }
    text
}

fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn describe(process: &Process, text: &mut String) {
    let command = process.cmdline().unwrap_or_default().join(" ");
    let _ = writeln!(text, "process {} `{command}`", process.pid());
    for task in process.tasks().into_iter().flatten().flatten() {
        let directory = Path::new("/proc").join(process.pid().to_string()).join("task").join(task.tid.to_string());
        let (name, state) = task.stat().map(|stat| (stat.comm, stat.state)).unwrap_or_default();
        let wait = fs::read_to_string(directory.join("wchan")).unwrap_or_default();
        let _ = writeln!(text, "  thread {} {name} {state} in {wait}", task.tid);
        for line in fs::read_to_string(directory.join("stack")).unwrap_or_default().lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn work_that_is_late_is_told_of_and_goes_on() {
        let (tell, told) = channel();
        let answer = watched(Duration::from_millis(10), move || tell.send(()).unwrap(), || told.recv().map(|()| 7));
        assert_eq!(answer, Ok(7));
    }

    #[test]
    fn work_that_is_in_time_is_not() {
        static LATE: AtomicBool = AtomicBool::new(false);
        watched(Duration::from_millis(200), || LATE.store(true, Ordering::Relaxed), || ());
        std::thread::sleep(Duration::from_millis(400));
        assert!(!LATE.load(Ordering::Relaxed));
    }

    #[test]
    fn this_process_is_described() {
        let text = processes();
        assert!(text.contains(&format!("process {} `", std::process::id())), "{text}");
        assert!(text.contains("  thread "), "{text}");
    }

    #[test]
    fn only_the_end_of_a_long_file_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("log"), format!("first{}last", " ".repeat(LAST_WORDS as usize))).unwrap();
        let text = last_words(directory.path());
        assert!(text.contains("last") && !text.contains("first"), "{text}");
    }
}
