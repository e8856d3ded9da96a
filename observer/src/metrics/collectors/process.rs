//! What the agent's own process uses, with the names that every Prometheus exporter uses.

use anyhow::Context;
use procfs::{CurrentSI, KernelStats, process::Process};

use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, catalogue as c},
};

/// Reads `/proc/self` (proc(5)).
#[derive(Debug, Default)]
pub struct ProcessCollector {
    /// Seconds since 1970; read once.
    started: Option<f64>,
}

impl Collect for ProcessCollector {
    fn name(&self) -> &'static str {
        "process"
    }

    fn collect(&mut self, _: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        let process = Process::myself().context("cannot open /proc/self; is /proc mounted?")?;
        let stat = process.stat().context("cannot read /proc/self/stat")?;
        // Ticks and pages of one process are far below 2^53.
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        out.family(&c::PROCESS_CPU).sample([], seconds(stat.utime + stat.stime));
        out.family(&c::PROCESS_RESIDENT_MEMORY).sample([], stat.rss * procfs::page_size());
        let open = process.fd_count().context("cannot count /proc/self/fd")?;
        out.family(&c::PROCESS_OPEN_FDS).sample_if([], u64::try_from(open).ok());
        if self.started.is_none() {
            let boot = KernelStats::current().context("cannot read /proc/stat")?.btime;
            self.started = Some(boot as f64 + seconds(stat.starttime));
        }
        out.family(&c::PROCESS_START_TIME).sample_if([], self.started);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let mut out = Exposition::default();
        ProcessCollector::default().collect(&Snapshot::default(), &mut out).unwrap();
        let text = String::from_utf8(out.take().concat()).unwrap();
        let value = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
