//! The accuracy cases: a known amount is sent, and what the agent reports must be that, to the byte and the packet.
//!
//! They run natively (`lab/tests/kernel_cases_test.rs`) and in guests with other kernels ([`crate::vm_init`]).

mod arrival;
mod between_pods;
mod count;
mod localhost;
mod naming;
mod restart;
mod stage;

use std::time::{Duration, Instant};

use anyhow::Result;

pub use stage::Scale;

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// How many passed.
    pub passed: usize,
    /// The others, with what went wrong.
    pub failed: Vec<String>,
}

/// A case: what is sent at a scale, into an edge table of a size (`None`: the default).
type Body = fn(Scale, Option<u32>) -> Result<()>;

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    body: Body,
    /// Whether it runs with a table that is too small, too.
    both_tables: bool,
}

/// A table that every case overflows.
const SMALL_TABLE: u32 = 16;

/// All cases.
pub const CASES: [Case; 12] = [
    Case { name: "tcp_stream", body: localhost::tcp_stream, both_tables: true },
    Case { name: "tcp_connections", body: localhost::tcp_connections, both_tables: true },
    Case { name: "udp_datagrams", body: localhost::udp_datagrams, both_tables: true },
    Case { name: "ipv6", body: localhost::ipv6, both_tables: true },
    Case { name: "own_address", body: localhost::own_address, both_tables: true },
    Case { name: "pod_to_pod", body: between_pods::pod_to_pod, both_tables: true },
    Case { name: "icmp", body: between_pods::icmp, both_tables: true },
    Case { name: "both_names", body: naming::both_names, both_tables: false },
    Case { name: "host_network", body: naming::host_network, both_tables: false },
    Case { name: "first_packet", body: arrival::first_packet, both_tables: false },
    Case { name: "pods_leave_nothing", body: arrival::pods_leave_nothing, both_tables: false },
    Case { name: "restart", body: restart::restart, both_tables: false },
];

impl Case {
    /// Runs it, with every table it asks for.
    ///
    /// # Errors
    ///
    /// What was not as it should be.
    pub fn run(&self, scale: Scale) -> Result<()> {
        (self.body)(scale, None)?;
        if self.both_tables {
            (self.body)(scale, Some(SMALL_TABLE))
                .map_err(|error| error.context(format!("with a table of {SMALL_TABLE} edges")))?;
        }
        Ok(())
    }
}

/// Runs the cases whose name has `filter` in it, at the scale of a guest.
pub fn run(filter: &str) -> Result<Report> {
    let mut report = Report::default();
    for case in CASES.iter().filter(|case| case.name.contains(filter)) {
        let begin = Instant::now();
        let outcome = case.run(Scale::Guest);
        println!("case {} {} {:.1?}", case.name, if outcome.is_ok() { "ok" } else { "FAILED" }, begin.elapsed());
        match outcome {
            Ok(()) => report.passed += 1,
            Err(error) => report.failed.push(format!("{}: {error:#}", case.name)),
        }
    }
    Ok(report)
}

/// The kernel's name and release.
pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Whether the kernel is older than this version.
fn kernel_older_than(major: u32, minor: u32) -> bool {
    let release = kernel();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (major, minor)
}

/// How long to wait for something that comes by itself.
const PATIENCE: Duration = Duration::from_secs(20);
