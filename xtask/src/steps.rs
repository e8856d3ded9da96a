//! Shows the steps of a command as they happen, each with the time it took.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use anyhow::Result;

/// The steps of one command.
pub struct Steps {
    start: Instant,
    /// Steps that had nothing to do are not shown.
    quiet: bool,
}

/// How a step went.
pub enum Done {
    /// There already: nothing was done.
    There(String),
    /// Something was done.
    Now(String),
    /// It ended, and what came of it is bad; what comes after it goes on.
    Bad(String),
}

impl Steps {
    /// Starts the clock and shows a title.
    pub fn new(title: &str) -> Self {
        println!("{title}");
        Self { start: Instant::now(), quiet: false }
    }

    /// As [`Steps::new`], showing only what is done, not what is there already.
    pub fn quiet() -> Self {
        Self { start: Instant::now(), quiet: true }
    }

    /// Runs one step and shows it.
    pub fn step(&self, name: &str, work: impl FnOnce() -> Result<Done>) -> Result<()> {
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        match &result {
            Ok(Done::There(_)) if self.quiet => {}
            Ok(Done::There(detail)) => println!("  - {name}: {detail} ({seconds:.1} s)"),
            Ok(Done::Now(detail)) if detail.is_empty() => println!("  + {name} ({seconds:.1} s)"),
            Ok(Done::Now(detail)) => println!("  + {name}: {detail} ({seconds:.1} s)"),
            Ok(Done::Bad(detail)) => println!("  ! {name}: {detail} ({seconds:.1} s)"),
            Err(_) => println!("  ! {name}: failed ({seconds:.1} s)"),
        }
        result.map(drop)
    }

    /// Says how long all steps took together.
    pub fn total(&self) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        if seconds < 60.0 {
            format!("{seconds:.1} s")
        } else {
            format!("{} min {:02} s", seconds as u64 / 60, seconds as u64 % 60)
        }
    }
}

/// Says what a step is about to do, when it takes a while.
pub fn doing(what: &str) {
    println!("  … {what}");
    if !std::io::stdout().is_terminal() {
        // Nobody is harmed when a log that has gone away is not flushed.
        drop(std::io::stdout().flush());
    }
}
