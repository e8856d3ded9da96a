//! The accuracy cases: a known amount is sent, and what the agent reports must be that, to the byte and the packet.
//!
//! They run natively (`lab/tests/kernel_cases_test.rs`) and in guests with other kernels ([`crate::vm_init`]).

mod arrival;
mod between_pods;
mod compat;
pub mod count;
mod datagrams;
mod detail;
pub mod dns;
pub mod drops;
mod endings;
mod folding;
mod host;
mod idle_peers;
mod interface;
mod localhost;
mod many_peers;
mod moves;
mod named_peers;
mod naming;
mod oom;
mod restart;
mod runqueue;
mod runs;
pub mod seen;
mod selection;
mod shared;
mod sixty_four;
mod sockets;
mod stage;
mod tcp;
mod told;
mod unix;
mod usage;
mod ways;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::stuck;

pub use stage::{Scale, Stage, settled, wait_for_pods};

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

/// How long a case may take in a guest: four times what the longest takes.
const LIMIT: Duration = Duration::from_secs(300);
/// A table that every case overflows.
const SMALL_TABLE: u32 = 16;

/// All cases.
pub const CASES: &[Case] = &[
    Case { name: "tcp_stream", body: localhost::tcp_stream, both_tables: true },
    Case { name: "tcp_connections", body: localhost::tcp_connections, both_tables: true },
    Case { name: "udp_datagrams", body: localhost::udp_datagrams, both_tables: true },
    Case { name: "ipv6", body: localhost::ipv6, both_tables: true },
    Case { name: "own_address", body: localhost::own_address, both_tables: true },
    Case { name: "pod_to_pod", body: between_pods::pod_to_pod, both_tables: true },
    Case { name: "both_families", body: between_pods::both_families, both_tables: true },
    Case { name: "icmp", body: between_pods::icmp, both_tables: true },
    Case { name: "raw_protocols", body: between_pods::raw_protocols, both_tables: true },
    Case { name: "many_peers", body: many_peers::many_peers, both_tables: true },
    Case { name: "named_peers", body: named_peers::named_peers, both_tables: true },
    Case { name: "folding", body: folding::folding, both_tables: true },
    Case { name: "idle_peers", body: idle_peers::idle_peers, both_tables: false },
    Case { name: "sixty_four", body: sixty_four::sixty_four, both_tables: true },
    Case { name: "one_socket", body: datagrams::one_socket, both_tables: false },
    Case { name: "older_datagrams", body: datagrams::older_datagrams, both_tables: false },
    Case { name: "both_names", body: naming::both_names, both_tables: false },
    Case { name: "nested_cgroups", body: naming::nested_cgroups, both_tables: false },
    Case { name: "host_network", body: naming::host_network, both_tables: false },
    Case { name: "host_containers", body: host::host_containers, both_tables: false },
    Case { name: "peer_detail", body: detail::peer_detail, both_tables: false },
    Case { name: "drivers_and_prefixes", body: naming::drivers_and_prefixes, both_tables: false },
    Case { name: "resources", body: usage::resources, both_tables: false },
    Case { name: "throttling", body: usage::throttling, both_tables: false },
    Case { name: "block_device", body: usage::block_device, both_tables: false },
    Case { name: "shared", body: shared::shared, both_tables: false },
    Case { name: "short_containers", body: endings::short_containers, both_tables: false },
    Case { name: "short_pod", body: endings::short_pod, both_tables: false },
    Case { name: "compatibility", body: compat::compatibility, both_tables: false },
    Case { name: "first_packet", body: arrival::first_packet, both_tables: false },
    Case { name: "pods_leave_nothing", body: arrival::pods_leave_nothing, both_tables: false },
    Case { name: "dns", body: dns::dns, both_tables: true },
    Case { name: "drops", body: drops::drops, both_tables: false },
    Case { name: "oom_kills", body: oom::oom_kills, both_tables: false },
    Case { name: "selection", body: selection::selection, both_tables: true },
    Case { name: "restart", body: restart::restart, both_tables: false },
    Case { name: "interface", body: interface::interface, both_tables: true },
    Case { name: "address_moves", body: moves::address_moves, both_tables: false },
    Case { name: "address_moves_uncached", body: moves::address_moves_uncached, both_tables: false },
    Case { name: "same_name", body: moves::same_name, both_tables: false },
    Case { name: "learned_late", body: moves::learned_late, both_tables: false },
    Case { name: "churn", body: moves::churn, both_tables: false },
    Case { name: "tcp_hasty", body: tcp::tcp_hasty, both_tables: false },
    Case { name: "tcp_failures", body: tcp::tcp_failures, both_tables: true },
    Case { name: "tcp_crossed", body: tcp::tcp_crossed, both_tables: true },
    Case { name: "tcp_opened", body: tcp::tcp_opened, both_tables: true },
    Case { name: "tcp_active", body: tcp::tcp_active, both_tables: true },
    Case { name: "tcp_older", body: tcp::tcp_older, both_tables: true },
    Case { name: "tcp_older_events", body: tcp::tcp_older_events, both_tables: false },
    Case { name: "older_roles", body: tcp::older_roles, both_tables: false },
    Case { name: "tcp_times", body: tcp::tcp_times, both_tables: false },
    Case { name: "tcp_known_times", body: tcp::tcp_known_times, both_tables: false },
    Case { name: "tcp_resets", body: tcp::tcp_resets, both_tables: true },
    Case { name: "tcp_retransmissions", body: tcp::tcp_retransmissions, both_tables: true },
    Case { name: "unix_sockets", body: unix::unix_sockets, both_tables: false },
    Case { name: "sockets_payload", body: sockets::sockets_payload, both_tables: true },
    Case { name: "sockets_live", body: sockets::sockets_live, both_tables: false },
    Case { name: "sockets_waiting", body: sockets::sockets_waiting, both_tables: false },
    Case { name: "sockets_crossed", body: sockets::sockets_crossed, both_tables: false },
    Case { name: "sockets_restart", body: sockets::sockets_restart, both_tables: false },
    Case { name: "sockets_named_peers", body: named_peers::sockets_named_peers, both_tables: true },
    Case { name: "sockets_reused", body: sockets::sockets_reused, both_tables: false },
    Case { name: "sockets_busy", body: sockets::sockets_busy, both_tables: false },
    Case { name: "sockets_missed", body: sockets::sockets_missed, both_tables: false },
    Case { name: "tcp_missed", body: sockets::tcp_missed, both_tables: false },
    Case { name: "run_queue", body: runqueue::run_queue, both_tables: false },
    Case { name: "program_runs", body: runs::program_runs, both_tables: false },
    Case { name: "program_runs_elsewhere", body: runs::program_runs_elsewhere, both_tables: false },
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

/// Which cases to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Those whose name has this in it.
    pub filter: String,
    /// Only those that stand behind this one in [`CASES`].
    pub after: Option<String>,
    /// Where several guests share the cases: which share, from 0 on, of how many.
    pub share: (usize, usize),
}

impl Wanted {
    /// The cases.
    ///
    /// # Errors
    ///
    /// When there is no case of the name that they are to stand behind.
    fn cases(&self) -> Result<impl Iterator<Item = &'static Case>> {
        let begin = match &self.after {
            None => 0,
            Some(after) => {
                1 + CASES.iter().position(|case| case.name == after).with_context(|| format!("no case {after}"))?
            }
        };
        let (which, shares) = self.share;
        // In turns: those that take long stand together.
        let mine = CASES.iter().enumerate().skip(begin).filter(move |(index, _)| index % shares.max(1) == which);
        Ok(mine.map(|(_, case)| case).filter(|case| case.name.contains(&self.filter)))
    }
}

/// Runs cases at the scale of a guest. Of one that does not end `late` is told.
pub fn run(wanted: &Wanted, late: fn(&str)) -> Result<Report> {
    let mut report = Report::default();
    for case in wanted.cases()? {
        let begin = Instant::now();
        let outcome = stuck::watched(LIMIT, move || late(case.name), || case.run(Scale::Guest));
        // The reason at once: the machine may not come to the end.
        let how =
            outcome.as_ref().map_or_else(|error| format!("FAILED {error:#}").replace('\n', " | "), |()| "ok".into());
        println!("case {} {how} {:.1?}", case.name, begin.elapsed());
        for (directory, processes) in crate::cgroup::left() {
            println!("case {} has left {} with {processes} processes", case.name, directory.display());
        }
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
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filter: &str, after: Option<&str>, share: (usize, usize)) -> Vec<&'static str> {
        let wanted = Wanted { filter: filter.to_owned(), after: after.map(str::to_owned), share };
        wanted.cases().unwrap().map(|case| case.name).collect()
    }

    #[test]
    fn shares_are_all_cases_each_once_and_one_goes_on_where_it_stood_still() {
        let all = names("", None, (0, 1));
        assert_eq!(all.len(), CASES.len());
        let mut shared = [names("", None, (0, 2)), names("", None, (1, 2))].concat();
        assert!(shared.windows(2).any(|pair| pair == ["tcp_stream", "udp_datagrams"]), "{shared:?}");
        shared.sort_by_key(|name| all.iter().position(|one| one == name));
        assert_eq!(shared, all);
        let last = names("", None, (1, 2))[4];
        assert_eq!(names("", Some(last), (1, 2)), names("", None, (1, 2))[5..]);
        assert_eq!(names("tcp_hasty", None, (0, 1)), ["tcp_hasty"]);
        assert!(Wanted { filter: String::new(), after: Some("none".into()), share: (0, 1) }.cases().is_err());
    }
}
