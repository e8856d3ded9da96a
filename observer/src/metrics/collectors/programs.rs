//! How long and how often the agent's kernel programs ran.

use anyhow::Context;

use crate::{
    identity::Snapshot,
    kernel::{Programs, fdinfo::Told, program},
    metrics::{Collect, Exposition, catalogue as c},
};

/// Writes what the kernel's BPF statistics tell of each program.
pub struct ProgramCollector {
    programs: Programs,
    /// Which of them have series, in the same order.
    shown: Vec<bool>,
}

impl ProgramCollector {
    /// A collector of these programs, each with a name of its own.
    #[must_use]
    pub fn new(programs: Programs) -> Self {
        let shown = vec![false; programs.len()];
        Self { programs, shown }
    }
}

impl Collect for ProgramCollector {
    fn name(&self) -> &'static str {
        "programs"
    }

    fn collect(&mut self, _: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        // All of them have series where the switch was on once, and then nobody has to ask for it.
        let counts = self.shown.contains(&false) && program::counts_runs();
        let mut outcome = Ok(());
        for (program, shown) in self.programs.iter().zip(&mut self.shown) {
            match program.told() {
                Ok(told) => write(program.name(), told, counts, shown, out),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.context("reading what the kernel tells of its programs in /proc/self/fdinfo")
    }
}

/// A program has series from the moment on when its runs are counted, as far as it can be told: when the kernel's switch is
/// on (`counts`), or when there are some. They stay, because a counter does.
fn write(name: &str, told: Told, counts: bool, shown: &mut bool, out: &mut Exposition) {
    let (Some(runs), Some(run_time)) = (told.runs, told.run_time) else { return };
    *shown |= counts || runs > 0;
    if *shown {
        out.family(&c::AGENT_PROGRAM_RUNS).sample([name], runs);
        // In nanoseconds; a hundred days of them are below 2^53.
        out.family(&c::AGENT_PROGRAM_RUN_SECONDS).sample([name], run_time as f64 / 1e9);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(runs: u64, run_time: u64) -> Told {
        Told { runs: Some(runs), run_time: Some(run_time), misses: None }
    }

    /// The samples of scrapes that follow one another, of one program.
    fn scrapes(readings: &[(Told, bool)]) -> Vec<Vec<String>> {
        let (mut shown, mut out) = (false, Exposition::default());
        let scrape = |(told, counts): &(Told, bool)| {
            write("p", *told, *counts, &mut shown, &mut out);
            let text = String::from_utf8(out.take().concat()).unwrap();
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        readings.iter().map(scrape).collect()
    }

    fn samples(seconds: &str, runs: u64) -> Vec<String> {
        vec![
            format!("observer_agent_program_run_seconds_total{{program=\"p\"}} {seconds}"),
            format!("observer_agent_program_runs_total{{program=\"p\"}} {runs}"),
        ]
    }

    #[test]
    fn what_is_not_counted_has_no_series() {
        let unknown = Told { runs: Some(5), ..Told::default() };
        let all = scrapes(&[(told(0, 0), false), (Told::default(), true), (unknown, true)]);
        assert_eq!(all, vec![Vec::<String>::new(); 3]);
    }

    #[test]
    fn what_was_counted_once_keeps_its_series() {
        let by_descriptor =
            scrapes(&[(told(0, 0), false), (told(2, 1_500_000_000), false), (told(2, 1_500_000_000), false)]);
        assert_eq!(by_descriptor, [vec![], samples("1.5", 2), samples("1.5", 2)]);
        let by_switch = scrapes(&[(told(0, 0), true), (told(0, 0), false), (told(3, 84), false)]);
        assert_eq!(by_switch, [samples("0", 0), samples("0", 0), samples("0.000000084", 3)]);
    }
}
