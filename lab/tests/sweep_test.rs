//! What a killed run leaves: no process, and nothing after a sweep. Needs root.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{cgroups_named, runs};

const LAB: &str = env!("CARGO_BIN_EXE_observer-lab");

/// A driver in a process of its own, with its pods and what it printed.
struct Driver {
    child: Child,
    pids: Vec<u32>,
    uids: Vec<String>,
}

fn start() -> Driver {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(LAB)
        .args(["pods", "--seconds=60", "--pods-file"])
        .arg(file.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut pids = Vec::new();
    for line in output.lines().map(Result::unwrap) {
        if line == "Ready" {
            break;
        }
        pids.extend(
            line.split("(process ").skip(1).map(|rest| rest.split(')').next().unwrap().parse::<u32>().unwrap()),
        );
    }
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    let uids = document["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned())
        .collect();
    Driver { child, pids, uids }
}

fn signal(driver: &Driver, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(&driver.child);
    rustix::process::kill_process(pid, signal).unwrap();
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn after_kill_9_the_processes_end_and_a_sweep_removes_the_rest() {
    let mut driver = start();
    assert_eq!(driver.pids.len(), 5);
    assert_eq!(driver.uids.len(), 3);
    assert!(driver.pids.iter().all(|pid| runs(*pid)));
    // A sweep leaves a living run alone.
    observer_lab::sweep().unwrap();
    assert!(driver.pids.iter().all(|pid| runs(*pid)));
    assert!(driver.uids.iter().all(|uid| !cgroups_named(uid).is_empty()));

    signal(&driver, rustix::process::Signal::KILL);
    driver.child.wait().unwrap();
    eventually("the end of every process", || driver.pids.iter().all(|pid| !runs(*pid)));
    assert!(observer_lab::sweep().unwrap().cgroups > 0);
    assert!(driver.uids.iter().all(|uid| cgroups_named(uid).is_empty()));
}

#[test]
fn ctrl_c_removes_everything() {
    let mut driver = start();
    signal(&driver, rustix::process::Signal::INT);
    assert!(driver.child.wait().unwrap().success());
    assert!(driver.pids.iter().all(|pid| !runs(*pid)));
    assert!(driver.uids.iter().all(|uid| cgroups_named(uid).is_empty()));
}
