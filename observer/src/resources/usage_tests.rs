use super::*;
use crate::resources::{Source, facts::FILES};

/// Captured on a hybrid host (kernel 6.18) from a container held to a fifth of a core and 128 MiB.
const V1_MEMORY_STAT: &str = "cache 782336\nrss 126976\nrss_huge 0\nshmem 0\nmapped_file 0\ndirty 0\nwriteback 0\n\
    workingset_refault_anon 0\nworkingset_refault_file 191\nswap 0\nswapcached 0\npgpgin 7340\npgpgout 7093\n\
    pgfault 12225\npgmajfault 9\ninactive_anon 61440\nactive_anon 4096\ninactive_file 86016\nactive_file 696320\n\
    unevictable 0\nhierarchical_memory_limit 134217728\nhierarchical_memsw_limit 9223372036854771712\n\
    total_cache 1782336\ntotal_rss 1126976\ntotal_rss_huge 0\ntotal_shmem 0\ntotal_mapped_file 0\ntotal_dirty 0\n\
    total_writeback 0\ntotal_workingset_refault_anon 0\ntotal_workingset_refault_file 191\ntotal_swap 0\n\
    total_swapcached 0\ntotal_pgpgin 7340\ntotal_pgpgout 7093\ntotal_pgfault 12225\ntotal_pgmajfault 9\n\
    total_inactive_anon 61440\ntotal_active_anon 4096\ntotal_inactive_file 86016\ntotal_active_file 696320\n\
    total_unevictable 0\n";
const V1_CPU_STAT: &str = "nr_periods 11\nnr_throttled 11\nthrottled_time 802027616\nnr_bursts 0\nburst_time 0\n";
const HYBRID_CPU_STAT: &str = "usage_usec 232247\nuser_usec 181440\nsystem_usec 50806\nnice_usec 0\n";
/// Fields and order of cgroup-v2.rst.
const V2_CPU_STAT: &str = "usage_usec 232247\nuser_usec 181440\nsystem_usec 50806\nnice_usec 0\n\
    core_sched.force_idle_usec 0\nnr_periods 11\nnr_throttled 10\nthrottled_usec 802027\nnr_bursts 0\nburst_usec 0\n";
const V2_MEMORY_STAT: &str = "anon 126976\nfile 782336\nkernel 524288\nkernel_stack 32768\npagetables 65536\n\
    sec_pagetables 0\npercpu 1152\nsock 0\nvmalloc 0\nshmem 0\nzswap 0\nzswapped 0\nfile_mapped 4096\n\
    inactive_anon 122880\nactive_anon 4096\ninactive_file 86016\nactive_file 696320\nunevictable 0\n\
    slab_reclaimable 200000\npgfault 12225\npgmajfault 9\n";

fn usage(files: &[(Source, &str)]) -> Usage {
    let mut facts = Facts::default();
    for (source, text) in files {
        facts.add(*source, text, 100);
    }
    Usage::from(&facts)
}

#[test]
fn cgroup_v1() {
    let usage = usage(&[
        (Source::V1CpuacctStat, "user 18\nsystem 4\n"),
        (Source::V1CpuStat, V1_CPU_STAT),
        (Source::V1CpuQuota, "20000\n"),
        (Source::V1CpuPeriod, "100000\n"),
        (Source::MemoryUsage, "1851392\n"),
        (Source::MemoryPeak, "16834560\n"),
        (Source::MemoryLimit, "134217728\n"),
        (Source::V1MemoryStat, V1_MEMORY_STAT),
        (Source::V1MemoryFailures, "11\n"),
        (Source::V1OomControl, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        (Source::Pids, "2\n"),
        (Source::PidsLimit, "100\n"),
        (Source::V1CpuShares, "204\n"),
        (Source::V1IoBytes, "254:0 Read 4096\n254:0 Total 4096\nTotal 4096\n"),
        (Source::V1IoOperations, "254:0 Read 1\n254:0 Total 1\nTotal 1\n"),
    ]);
    let quota = Quota { cores: Some(0.2), periods: Some(11), throttled_periods: Some(11), throttled: Some(0.802_027) };
    let expected = Usage {
        cpu_user: Some(0.18),
        cpu_system: Some(0.04),
        quota: Some(quota),
        working_set: Some(1_851_392 - 86_016),
        usage: Some(1_851_392),
        rss: Some(1_126_976),
        cache: Some(1_782_336),
        mapped_file: Some(0),
        swap: Some(0),
        peak: Some(16_834_560),
        limit: Some(134_217_728),
        minor_faults: Some(12_216),
        major_faults: Some(9),
        processes: None,
        threads: Some(2),
        threads_limit: Some(100),
        cpu_period: Some(100_000),
        cpu_shares: Some(204),
        events: MemoryEvents { max: Some(11), oom_kill: Some(2), ..MemoryEvents::default() },
        requests: Requests::default(),
        pressure: Pressure::default(),
        io: vec![DeviceIo { device: (254, 0), read_bytes: Some(4096), reads: Some(1), ..DeviceIo::default() }],
    };
    assert_eq!(usage, expected);
}

#[test]
fn cgroup_v2() {
    let usage = usage(&[
        (Source::CpuStat, V2_CPU_STAT),
        (Source::CpuMax, "50000 100000\n"),
        (Source::MemoryUsage, "1851392\n"),
        (Source::MemoryStat, V2_MEMORY_STAT),
        (Source::MemoryLimit, "max\n"),
        (Source::MemoryEvents, "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n"),
        (Source::PidsLimit, "max\n"),
        (Source::CpuWeight, "39\n"),
        (Source::CpuPressure, "some avg10=0.00 avg60=1.37 avg300=5.47 total=2000000\n"),
        (Source::MemoryPressure, "some avg10=0.00 total=1500000\nfull avg10=0.00 total=500000\n"),
        (Source::IoPressure, "some total=1\nfull total=0\n"),
        (Source::IoStat, "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n"),
    ]);
    let quota = Quota { cores: Some(0.5), periods: Some(11), throttled_periods: Some(10), throttled: Some(0.802_027) };
    let expected = Usage {
        cpu_user: Some(0.181_440),
        cpu_system: Some(0.050_806),
        quota: Some(quota),
        working_set: Some(1_765_376),
        usage: Some(1_851_392),
        rss: Some(126_976),
        cache: Some(782_336),
        mapped_file: Some(4096),
        minor_faults: Some(12_216),
        major_faults: Some(9),
        cpu_period: Some(100_000),
        cpu_shares: Some(998),
        events: MemoryEvents { high: Some(1), max: Some(2), oom: Some(3), oom_kill: Some(4) },
        pressure: Pressure {
            cpu: Waited { some: Some(2.0), full: None },
            memory: Waited { some: Some(1.5), full: Some(0.5) },
            io: Waited { some: Some(1e-6), full: Some(0.0) },
        },
        io: vec![DeviceIo {
            device: (254, 0),
            read_bytes: Some(4096),
            write_bytes: Some(8192),
            reads: Some(1),
            writes: Some(2),
        }],
        ..Usage::default()
    };
    assert_eq!(usage, expected);
}

#[test]
fn a_hybrid_host_has_exact_times_from_v2_and_the_quota_from_v1() {
    let usage = usage(&[
        (Source::CpuStat, HYBRID_CPU_STAT),
        (Source::V1CpuacctStat, "user 18\nsystem 4\n"),
        (Source::V1CpuStat, V1_CPU_STAT),
        (Source::V1CpuQuota, "20000\n"),
        (Source::V1CpuPeriod, "100000\n"),
    ]);
    assert_eq!(usage.cpu_user, Some(0.181_440));
    assert_eq!(usage.quota.and_then(|q| q.periods), Some(11));
}

#[test]
fn a_v2_cgroup_without_the_processes_does_not_hide_v1() {
    let idle = "usage_usec 0\nuser_usec 0\nsystem_usec 0\n";
    let both = usage(&[(Source::CpuStat, idle), (Source::V1CpuacctStat, "user 18\nsystem 4\n")]);
    assert_eq!(both.cpu_user, Some(0.18));
    assert_eq!(usage(&[(Source::CpuStat, idle)]).cpu_user, Some(0.0));
}

#[test]
fn no_quota_no_quota_series() {
    assert_eq!(usage(&[(Source::CpuStat, V2_CPU_STAT), (Source::CpuMax, "max 100000\n")]).quota, None);
    assert_eq!(usage(&[(Source::V1CpuQuota, "-1\n"), (Source::V1CpuPeriod, "100000\n")]).quota, None);
    assert_eq!(usage(&[(Source::CpuMax, "50000 0\n")]).quota, None);
    assert_eq!(usage(&[(Source::V1CpuQuota, "20000\n")]).quota, None);
}

#[test]
fn the_working_set_is_never_below_zero_and_never_guessed() {
    let more_idle = [(Source::MemoryUsage, "1\n"), (Source::MemoryStat, V2_MEMORY_STAT)];
    assert_eq!(usage(&more_idle).working_set, Some(0));
    assert_eq!(usage(&more_idle[..1]).working_set, None);
}

#[test]
fn hostile_files_leave_fields_absent() {
    let sources = FILES.map(|(source, _, _)| source);
    let huge = "x".repeat(1 << 20);
    for text in ["", "\n", "usage_usec", "usage_usec \n", "-\n", "NaN\n", "\0\0\0", "1 2 3 4\n5 6", &huge] {
        let all: Vec<_> = sources.iter().map(|source| (*source, text)).collect();
        assert_eq!(usage(&all), Usage::default(), "{text:.20}");
    }
    let most = "18446744073709551615";
    let stat = format!("usage_usec {most}\nuser_usec {most}\nuser {most}\nsystem {most}\npgfault {most}\n");
    let all: Vec<_> = sources.iter().map(|source| (*source, stat.as_str())).collect();
    assert!(usage(&all).cpu_user.is_some());
    // Cut anywhere, a file never says a wrong number.
    for end in 0..V2_MEMORY_STAT.len() {
        let cut = usage(&[(Source::MemoryStat, &V2_MEMORY_STAT[..end])]);
        assert!(cut.rss.is_none_or(|rss| rss == 126_976) && cut.cache.is_none_or(|cache| cache == 782_336));
    }
}

#[test]
fn what_ended_is_added_to_what_runs() {
    let mut sums = Facts::default();
    let ended = |text: &str, max: &str| {
        let mut facts = Facts::default();
        facts.add(Source::CpuStat, text, 100);
        facts.add(Source::CpuMax, max, 100);
        facts.add(Source::MemoryEvents, "max 2\noom_kill 1\n", 100);
        facts.add(Source::IoStat, "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n", 100);
        facts.add(Source::CpuPressure, "some total=1000000\n", 100);
        facts.add(Source::MemoryUsage, "77\n", 100);
        facts
    };
    sums.add_ended(&ended(V2_CPU_STAT, "50000 100000\n"));
    sums.add_ended(&ended(V2_CPU_STAT, "max 100000\n"));
    assert_eq!(sums.usage, None, "memory in use is no counter");
    let alone = Usage::default().with_ended(&sums);
    assert_eq!(alone.cpu_user, Some(0.362_880));
    let quota = Quota { cores: None, periods: Some(11), throttled_periods: Some(10), throttled: Some(0.802_027) };
    assert_eq!(alone.quota, Some(quota), "periods count only while there is a quota");
    let living =
        usage(&[(Source::CpuStat, V2_CPU_STAT), (Source::MemoryUsage, "1\n"), (Source::IoStat, "8:0 rbytes=5\n")]);
    let together = living.with_ended(&sums);
    assert_eq!((together.usage, together.events.oom_kill), (Some(1), Some(2)));
    assert_eq!(together.io[0].read_bytes, Some(7));
    assert_eq!((together.io[0].writes, together.pressure.cpu.some), (Some(8), Some(2.0)));
    assert!((together.cpu_user.unwrap() - 0.544_320).abs() < 1e-9);
}

#[test]
fn a_sum_is_the_same_whether_containers_run_or_have_ended() {
    let ended = |micros: u64| Facts { cpu: CpuFacts { user: Some(micros), ..CpuFacts::default() }, ..Facts::default() };
    let last = |usage: Usage| usage.cpu_user.unwrap().to_bits();
    // Of 0.1 and 0.2 the floating point sum is more than 0.3.
    for (first, second, third) in [(100_000, 200_000, 0), (100_000, 200_000, 300_000), (1, 362_880, 86_400_000_001)] {
        let mut both = ended(first);
        both.add_ended(&ended(second));
        let running = |micros: u64| Usage { cpu_user: Some(seconds(micros)), ..Usage::default() };
        let all = last(running(third).with_ended(&both));
        assert_eq!(last(running(third).with_ended(&ended(second)).with_ended(&ended(first))), all);
        assert_eq!(last(running(second).with_ended(&ended(first)).with_ended(&ended(third))), all);
        assert_eq!(all, seconds(first + second + third).to_bits());
    }
}
