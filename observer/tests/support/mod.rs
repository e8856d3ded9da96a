//! Cgroups and processes for tests, removed again when they are dropped.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A directory of its own in the v2 tree.
pub struct Stage {
    /// The root of the v2 tree.
    pub root: PathBuf,
    /// The directory.
    pub top: PathBuf,
    /// Where `pause` is, a program of that name that sleeps.
    programs: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Stage {
    /// `None`, with the reason printed, where the tests cannot run.
    pub fn new(root: Option<&Path>) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: cgroups can only be made as root");
            return None;
        }
        let Some(root) = root else {
            eprintln!("SKIPPED: this machine has no cgroup v2 tree");
            return None;
        };
        let top = root.join(format!("observer-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed)));
        fs::create_dir(&top).unwrap();
        let programs = tempfile::tempdir().unwrap();
        symlink("/bin/sleep", programs.path().join("pause")).unwrap();
        Some(Self { root: root.to_owned(), top, programs, processes: Vec::new() })
    }

    /// A UID that no other test has.
    pub fn uid(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("0b5e7e57-0000-4000-8000-{:04x}{:08x}", COUNT.fetch_add(1, Relaxed), std::process::id())
    }

    /// Makes a cgroup and those above it.
    pub fn make(&self, path: &str) -> PathBuf {
        let directory = self.top.join(path);
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    /// Runs a shell script in a cgroup. `$PAUSE` is a program that the kernel calls `pause`.
    pub fn run(&mut self, cgroup: &Path, script: &str) -> i32 {
        let child = Command::new("sh")
            .args(["-c", &format!("echo $$ > {}/cgroup.procs && {script}", cgroup.display())])
            .env("PAUSE", self.programs.path().join("pause"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        self.processes.push(child);
        pid
    }

    /// Ends all processes.
    pub fn kill(&mut self) {
        for mut process in self.processes.drain(..) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill();
        remove(&self.top);
    }
}

/// Removes a cgroup and those below.
pub fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // A killed process leaves its cgroup a moment after its parent has heard of its end.
    let end = Instant::now() + Duration::from_secs(2);
    while fs::remove_dir(directory).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
        && Instant::now() < end
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The v2 id of a cgroup.
pub fn id(directory: &Path) -> u64 {
    fs::metadata(directory).unwrap().ino()
}

/// Waits until something is so.
pub fn eventually<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: not within 5 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}
