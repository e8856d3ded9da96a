//! The node itself: CPU, memory, pressure.

use std::path::{Path, PathBuf};

use crate::{
    identity::Snapshot,
    metrics::{Collect, Exposition, catalogue as c},
    resources::{NodeMemory, kernel_stats, node_pressure},
};

/// Reads `/proc/stat`, `/proc/meminfo` (proc_stat(5), proc_meminfo(5)) and `/proc/pressure`
/// (Documentation/accounting/psi.rst) when the scrape comes.
#[derive(Debug)]
pub struct NodeCollector {
    procfs: PathBuf,
    /// What was shown of each mode: `idle` and `iowait` may go back (proc_stat(5)), and a counter may not.
    shown: [u64; MODES],
}

/// Modes that CPU time is told apart by.
const MODES: usize = 8;

impl NodeCollector {
    /// A collector that reads this proc file system: the host's.
    #[must_use]
    pub const fn new(procfs: PathBuf) -> Self {
        Self { procfs, shown: [0; MODES] }
    }
}

impl Collect for NodeCollector {
    fn name(&self) -> &'static str {
        "node"
    }

    fn collect(&mut self, _: &Snapshot, out: &mut Exposition) -> anyhow::Result<()> {
        pressure(&self.procfs, out);
        // Both are tried: one that fails must not hide the other.
        cpu(&self.procfs, &mut self.shown, out).and(memory(&self.procfs, out))
    }
}

fn cpu(procfs: &Path, shown: &mut [u64; MODES], out: &mut Exposition) -> anyhow::Result<()> {
    let stats = kernel_stats(procfs)?;
    let total = &stats.total;
    // What guests use is in user and nice already.
    let modes: [(&str, Option<u64>); MODES] = [
        ("user", Some(total.user)),
        ("nice", Some(total.nice)),
        ("system", Some(total.system)),
        ("idle", Some(total.idle)),
        ("iowait", total.iowait),
        ("irq", total.irq),
        ("softirq", total.softirq),
        ("steal", total.steal),
    ];
    let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
    for ((mode, ticks), shown) in modes.into_iter().zip(shown) {
        let ticks = ticks.map(|ticks| ticks.max(*shown));
        *shown = ticks.unwrap_or(*shown);
        out.family(&c::NODE_CPU).sample_if([mode], ticks.map(seconds));
    }
    out.family(&c::NODE_CPUS).sample([], stats.cpu_time.len() as u64);
    out.family(&c::NODE_BOOT_TIME).sample([], stats.btime);
    Ok(())
}

fn memory(procfs: &Path, out: &mut Exposition) -> anyhow::Result<()> {
    let memory = NodeMemory::read(procfs)?;
    let cache = memory.cached.zip(memory.buffers).and_then(|(cached, buffers)| cached.checked_add(buffers));
    for (family, bytes) in [
        (&c::NODE_MEMORY_TOTAL, memory.total),
        (&c::NODE_MEMORY_FREE, memory.free),
        (&c::NODE_MEMORY_AVAILABLE, memory.available),
        (&c::NODE_MEMORY_CACHE, cache),
        (&c::NODE_SWAP_TOTAL, memory.swap_total),
        (&c::NODE_SWAP_FREE, memory.swap_free),
    ] {
        out.family(family).sample_if([], bytes);
    }
    Ok(())
}

/// A kernel without pressure accounting has none of these files; one before 5.13 has no `full` of the CPU.
fn pressure(procfs: &Path, out: &mut Exposition) {
    for resource in ["cpu", "memory", "io"] {
        let waited = node_pressure(procfs, resource);
        let mut family = out.family(&c::NODE_PRESSURE);
        family.sample_if([resource, "some"], waited.some);
        family.sample_if([resource, "full"], waited.full);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn this_node_has_cpus_and_memory() {
        let mut out = Exposition::default();
        NodeCollector::new("/proc".into()).collect(&Snapshot::default(), &mut out).unwrap();
        let text = String::from_utf8(out.take().concat()).unwrap();
        let cpus = value(&text, "observer_node_cpus").unwrap();
        assert!(cpus >= 1.0 && value(&text, "observer_node_cpu_seconds_total{mode=\"user\"}").unwrap() > 0.0);
        let total = value(&text, "observer_node_memory_total_bytes").unwrap();
        let free = value(&text, "observer_node_memory_free_bytes").unwrap();
        assert!(total > free && free > 0.0);
    }

    #[test]
    fn a_file_that_is_missing_is_named_and_hides_nothing_else() {
        let procfs = tempfile::tempdir().unwrap();
        fs::copy("/proc/meminfo", procfs.path().join("meminfo")).unwrap();
        fs::create_dir(procfs.path().join("pressure")).unwrap();
        let line = "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\n";
        fs::write(procfs.path().join("pressure/io"), format!("{line}{}", line.replace("some", "full"))).unwrap();
        fs::write(procfs.path().join("pressure/cpu"), "junk").unwrap();
        let mut out = Exposition::default();
        let error = NodeCollector::new(procfs.path().into()).collect(&Snapshot::default(), &mut out).unwrap_err();
        assert!(format!("{error:#}").contains("stat"), "{error:#}");
        let text = String::from_utf8(out.take().concat()).unwrap();
        assert!(text.contains("observer_node_memory_total_bytes "));
        assert_eq!(value(&text, "observer_node_pressure_seconds_total{resource=\"io\",kind=\"full\"}"), Some(2.5));
        assert!(!text.contains("resource=\"cpu\"") && !text.contains("observer_node_cpus"));
    }

    #[test]
    fn idle_times_that_the_kernel_takes_back_do_not_go_back() {
        let procfs = tempfile::tempdir().unwrap();
        let mut collector = NodeCollector::new(procfs.path().into());
        let ticks = procfs::ticks_per_second();
        for (iowait, expected) in [(5, 5), (4, 5), (6, 6)] {
            let stat = format!("cpu  1 0 1 2 {}\ncpu0 1 0 1 2 0\nctxt 1\nbtime 3\nprocesses 1\n", iowait * ticks);
            fs::write(procfs.path().join("stat"), stat).unwrap();
            let mut out = Exposition::default();
            let _ = collector.collect(&Snapshot::default(), &mut out);
            let text = String::from_utf8(out.take().concat()).unwrap();
            let shown = value(&text, "observer_node_cpu_seconds_total{mode=\"iowait\"}");
            assert_eq!(shown, Some(f64::from(expected)), "{text}");
        }
    }

    /// The procfs crate panics at these, or reads none of them.
    #[test]
    fn files_of_other_kernels_and_cut_short_tell_what_they_have() {
        let shown = |files: &[(&str, &str)]| {
            let procfs = tempfile::tempdir().unwrap();
            fs::create_dir(procfs.path().join("pressure")).unwrap();
            files.iter().for_each(|(name, text)| fs::write(procfs.path().join(name), text).unwrap());
            let mut out = Exposition::default();
            let told = NodeCollector::new(procfs.path().into()).collect(&Snapshot::default(), &mut out);
            (told.is_ok(), String::from_utf8(out.take().concat()).unwrap())
        };
        // Linux 5.10.
        let (_, text) = shown(&[("pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\n")]);
        assert_eq!(value(&text, "observer_node_pressure_seconds_total{resource=\"cpu\",kind=\"some\"}"), Some(2.5));
        assert!(!text.contains("kind=\"full\""), "{text}");
        for cut in ["some", "some\n", "someé\nfull\n", "somé", "some total=12"] {
            let (_, text) = shown(&[("pressure/cpu", cut), ("pressure/io", cut), ("pressure/memory", cut)]);
            assert_eq!(text, "", "{cut:?}");
        }
        let (told, text) = shown(&[
            ("stat", "cpu  18446744073709551615 0 1 2\ncpu0 1 0 1 2\nctxt 1\nbtime 3\nprocesses 1\n"),
            ("meminfo", "MemTotal: 18446744073709551615 kB\né 1 kB\nMemFree: 2 kB\nCached: 1 kB\nBuffers: 1"),
        ]);
        assert!(told);
        assert!(value(&text, "observer_node_cpu_seconds_total{mode=\"user\"}").unwrap() > 1e16, "{text}");
        assert_eq!(value(&text, "observer_node_memory_free_bytes"), Some(2048.0));
        assert!(!text.contains("memory_total") && !text.contains("cache"), "{text}");
        let (told, text) = shown(&[("stat", "cpu  1 0 1 2\nctxt 1\nprocesses 1\nbtime 3"), ("meminfo", "junk")]);
        assert!(!told && text.is_empty(), "{text}");
    }
}
