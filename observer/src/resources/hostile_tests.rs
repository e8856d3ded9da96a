//! Cgroup files that lie in every way that files can: what is told is the truth or nothing.

use std::{fs, path::Path};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    CgroupRoots, CgroupUsage, Extent, Limit, Reader, Target, Usage, fuzzing,
    io::DeviceIo,
    testing::{container, snapshot},
};

/// What a container really uses. Times are whole ticks of v1, so that both trees say the same.
#[derive(Debug, Clone)]
struct Truth {
    user_ticks: u64,
    system_ticks: u64,
    throttling: (u64, u64, u64),
    quota: Option<u64>,
    usage: u64,
    inactive: u64,
    anon: u64,
    cache: u64,
    mapped: u64,
    swap: u64,
    peak: u64,
    limit: Option<u64>,
    faults: u64,
    major: u64,
    events: [u64; 4],
    threads: u64,
    threads_limit: Option<u64>,
    pressure: [(u64, u64); 3],
    io: Vec<[u64; 4]>,
    active: u64,
    kernel: u64,
    weight: u64,
    processes: u64,
    cpu_total: u64,
    reservation: u64,
    swap_limit: Option<u64>,
}

const PERIOD: u64 = 100_000;
/// Large enough that every place of a number matters, small enough that a float holds it.
const MOST: u64 = 1 << 50;

prop_compose! {
    fn truth()(
        (user_ticks, system_ticks) in (1..MOST / 10_000, 1..MOST / 10_000),
        throttling in (1..MOST, 1..MOST, 1..MOST),
        quota in option::of(1_000..MOST),
        numbers in vec(1..MOST, 13),
        (weight, processes) in (1..=10_000u64, 1..40u64),
        swap_limit in option::of(1..MOST),
        major in 0..1_000u64,
        (limit, threads_limit) in (option::of(1..MOST), option::of(1..1_000_000u64)),
        events in [1..MOST, 1..MOST, 1..MOST, 1..MOST],
        threads in 1..1_000_000u64,
        pressure in [(1..MOST, 1..MOST), (1..MOST, 1..MOST), (1..MOST, 1..MOST)],
        io in vec([1..MOST, 1..MOST, 1..MOST, 1..MOST], 0..4),
    ) -> Truth {
        Truth {
            user_ticks, system_ticks, throttling, quota, limit, major, events, threads, threads_limit, pressure, io,
            usage: numbers[0], inactive: numbers[1], anon: numbers[2], cache: numbers[3], mapped: numbers[4],
            swap: numbers[5], peak: numbers[6], faults: numbers[7] + major,
            active: numbers[9], kernel: numbers[10], cpu_total: numbers[11], reservation: numbers[12],
            weight, processes, swap_limit,
        }
    }
}

/// The shares that the weight stands for; they are in v1's file too, so that both trees say the same.
fn shares(t: &Truth) -> u64 {
    2 + (t.weight - 1) * 262_142 / 9_999
}

fn or_max(number: Option<u64>) -> String {
    number.map_or_else(|| "max".to_owned(), |number| number.to_string())
}

/// The files of a cgroup of the v2 tree, as the kernel writes them.
fn v2(t: &Truth) -> Vec<(String, String)> {
    let (user, system) = (t.user_ticks * 10_000, t.system_ticks * 10_000);
    let (periods, throttled_periods, throttled) = t.throttling;
    let [high, max, oom, oom_kill] = t.events;
    let pressure = |(some, full): (u64, u64)| {
        format!(
            "some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\nfull avg10=1.00 avg60=0.50 avg300=0.10 total={full}\n"
        )
    };
    let device = |(at, [rbytes, wbytes, rios, wios]): (usize, &[u64; 4])| {
        format!("254:{at} rbytes={rbytes} wbytes={wbytes} rios={rios} wios={wios} dbytes=0 dios=0\n")
    };
    let text = [
        (
            "cpu.stat",
            format!(
                "usage_usec {}\nuser_usec {user}\nsystem_usec {system}\nnr_periods {periods}\n\
                 nr_throttled {throttled_periods}\nthrottled_usec {throttled}\n",
                user + system
            ),
        ),
        ("cpu.max", format!("{} {PERIOD}\n", or_max(t.quota))),
        ("memory.current", format!("{}\n", t.usage)),
        (
            "memory.stat",
            format!(
                "anon {}\nfile {}\nkernel {}\nfile_mapped {}\ninactive_file {}\nactive_file {}\npgfault {}\n\
                 pgmajfault {}\n",
                t.anon, t.cache, t.kernel, t.mapped, t.inactive, t.active, t.faults, t.major
            ),
        ),
        ("memory.swap.current", format!("{}\n", t.swap)),
        ("memory.peak", format!("{}\n", t.peak)),
        ("memory.max", format!("{}\n", or_max(t.limit))),
        ("memory.events", format!("low 0\nhigh {high}\nmax {max}\noom {oom}\noom_kill {oom_kill}\n")),
        ("pids.current", format!("{}\n", t.threads)),
        ("pids.max", format!("{}\n", or_max(t.threads_limit))),
        ("cpu.pressure", pressure(t.pressure[0])),
        ("memory.pressure", pressure(t.pressure[1])),
        ("io.pressure", pressure(t.pressure[2])),
        ("io.stat", t.io.iter().enumerate().map(device).collect()),
        ("cpu.weight", format!("{}\n", t.weight)),
        ("cgroup.procs", (1..=t.processes).map(|at| format!("{}\n", at * 977)).collect()),
        ("memory.min", format!("{}\n", t.reservation)),
        ("memory.swap.max", format!("{}\n", or_max(t.swap_limit))),
    ];
    text.into_iter().map(|(name, text)| (format!("v2/c/{name}"), text)).collect()
}

/// The same in v1 hierarchies; what v1 has no file for is left out.
fn v1(t: &Truth) -> Vec<(String, String)> {
    let (periods, throttled_periods, throttled) = t.throttling;
    let [_, max, _, oom_kill] = t.events;
    let limit = |limit: Option<u64>| limit.unwrap_or(9_223_372_036_854_771_712);
    let blkio = |of: fn(&[u64; 4]) -> (u64, u64)| -> String {
        let line = |(at, device)| {
            let (reads, writes) = of(device);
            format!("254:{at} Read {reads}\n254:{at} Write {writes}\n254:{at} Total {}\n", reads + writes)
        };
        let all = t.io.iter().enumerate().map(line).collect::<String>();
        all + "Total 7\n"
    };
    let text = [
        ("cpuacct/c/cpuacct.stat", format!("user {}\nsystem {}\n", t.user_ticks, t.system_ticks)),
        ("cpu/c/cpu.cfs_quota_us", format!("{}\n", t.quota.map_or(-1, u64::cast_signed))),
        ("cpu/c/cpu.cfs_period_us", format!("{PERIOD}\n")),
        (
            "cpu/c/cpu.stat",
            format!("nr_periods {periods}\nnr_throttled {throttled_periods}\nthrottled_time {}\n", throttled * 1000),
        ),
        ("memory/c/memory.usage_in_bytes", format!("{}\n", t.usage)),
        (
            "memory/c/memory.stat",
            format!(
                "cache 1\nrss 2\npgfault 3\npgmajfault 4\ntotal_cache {}\ntotal_rss {}\ntotal_mapped_file {}\n\
                 total_swap {}\ntotal_pgfault {}\ntotal_pgmajfault {}\ntotal_inactive_file {}\n\
                 total_active_file {}\n",
                t.cache, t.anon, t.mapped, t.swap, t.faults, t.major, t.inactive, t.active
            ),
        ),
        ("memory/c/memory.max_usage_in_bytes", format!("{}\n", t.peak)),
        ("memory/c/memory.limit_in_bytes", format!("{}\n", limit(t.limit))),
        ("memory/c/memory.failcnt", format!("{max}\n")),
        ("memory/c/memory.oom_control", format!("oom_kill_disable 0\nunder_oom 0\noom_kill {oom_kill}\n")),
        ("pids/c/pids.current", format!("{}\n", t.threads)),
        ("pids/c/pids.max", format!("{}\n", or_max(t.threads_limit))),
        ("blkio/c/blkio.throttle.io_service_bytes_recursive", blkio(|[rbytes, wbytes, ..]| (*rbytes, *wbytes))),
        ("blkio/c/blkio.throttle.io_serviced_recursive", blkio(|[.., rios, wios]| (*rios, *wios))),
        ("cpu/c/cpu.shares", format!("{}\n", shares(t))),
        ("cpuacct/c/cpuacct.usage", format!("{}\n", t.cpu_total)),
        ("memory/c/memory.soft_limit_in_bytes", format!("{}\n", t.reservation)),
        ("memory/c/memory.memsw.limit_in_bytes", format!("{}\n", limit(t.swap_limit))),
        ("memory/c/memory.kmem.usage_in_bytes", format!("{}\n", t.kernel)),
    ];
    text.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
}

/// What becomes of a file.
#[derive(Debug, Clone)]
enum Harm {
    None,
    /// Only this many thousandths of it are there.
    Cut(usize),
    Garbage(Vec<u8>),
    /// Two megabytes, the truth first.
    Huge,
    Gone,
    /// A directory has its name: it opens and cannot be read.
    Unreadable,
}

fn harm() -> impl Strategy<Value = Harm> {
    let no_numbers =
        ["", "\n", " ", "-5\n", "1e9\n", "0x10\n", "18446744073709551616\n", "12 34 56\n", "max\u{0}\n", "٣\n"];
    prop_oneof![
        3 => Just(Harm::None),
        4 => (0..1000usize).prop_map(Harm::Cut),
        1 => select(no_numbers.to_vec()).prop_map(|text| Harm::Garbage(text.into())),
        1 => vec(prop_oneof![Just(b'\n'), Just(b' '), b'a'..=b'z', 0x80..=0xffu8], 0..300).prop_map(Harm::Garbage),
        1 => Just(Harm::Huge),
        1 => Just(Harm::Gone),
        1 => Just(Harm::Unreadable),
    ]
}

fn put(root: &Path, files: &[(String, String)], harms: &[Harm]) {
    for ((name, text), harm) in files.iter().zip(harms) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Whatever is there of the time before.
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
        match harm {
            Harm::None => fs::write(&path, text).unwrap(),
            Harm::Cut(thousandths) => fs::write(&path, &text[..text.len() * thousandths / 1000]).unwrap(),
            Harm::Garbage(bytes) => fs::write(&path, bytes).unwrap(),
            Harm::Huge => fs::write(&path, text.repeat((2 << 20) / text.len().max(1) + 1)).unwrap(),
            Harm::Gone => {}
            Harm::Unreadable => fs::create_dir(&path).unwrap(),
        }
    }
}

/// Nothing, or the truth.
fn holds<T: PartialEq + Copy + std::fmt::Debug>(what: &str, told: Option<T>, truth: Option<T>) {
    assert!(told.is_none() || told == truth, "{what}: {told:?} is told, {truth:?} is true");
}

/// What the compatibility endpoints show beyond that.
fn check_cgroup(cgroup: &CgroupUsage<'_>, t: &Truth) {
    check(&cgroup.usage, t);
    let (facts, extra) = (&cgroup.facts, &cgroup.extra);
    for (what, told, truth) in [
        ("active_file", facts.active_file, t.active),
        ("inactive_file", facts.inactive_file, t.inactive),
        ("kernel_memory", facts.kernel_memory, t.kernel),
        ("kernel_memory of v1", extra.kernel_memory, t.kernel),
        ("cpu_total", extra.cpu_total, t.cpu_total),
    ] {
        holds(what, told, Some(truth));
    }
    let limit = |truth: Option<u64>| Some(truth.map_or(Limit::Unlimited, Limit::Finite));
    holds("limit", facts.limit, limit(t.limit));
    holds("tasks_limit", facts.tasks_limit, limit(t.threads_limit));
    holds("reservation", extra.reservation, Some(Limit::Finite(t.reservation)));
    holds("swap_limit", extra.swap_limit, limit(t.swap_limit));
}

fn check(usage: &Usage, t: &Truth) {
    // A list that is cut at the end of a line is a shorter list.
    assert!(usage.processes.is_none_or(|told| told <= t.processes), "{:?} of {}", usage.processes, t.processes);
    holds("cpu_shares", usage.cpu_shares, Some(shares(t)));
    let seconds = |micros: u64| Some(micros as f64 / 1e6);
    let (periods, throttled_periods, throttled) = t.throttling;
    holds("cpu_user", usage.cpu_user, seconds(t.user_ticks * 10_000));
    holds("cpu_system", usage.cpu_system, seconds(t.system_ticks * 10_000));
    if let Some(quota) = usage.quota {
        holds("cores", quota.cores, t.quota.map(|quota| quota as f64 / PERIOD as f64));
        holds("periods", quota.periods, Some(periods));
        holds("throttled_periods", quota.throttled_periods, Some(throttled_periods));
        holds("throttled", quota.throttled, seconds(throttled));
    }
    for (what, told, truth) in [
        ("working_set", usage.working_set, Some(t.usage.saturating_sub(t.inactive))),
        ("usage", usage.usage, Some(t.usage)),
        ("rss", usage.rss, Some(t.anon)),
        ("cache", usage.cache, Some(t.cache)),
        ("mapped_file", usage.mapped_file, Some(t.mapped)),
        ("swap", usage.swap, Some(t.swap)),
        ("peak", usage.peak, Some(t.peak)),
        ("limit", usage.limit, t.limit),
        ("minor_faults", usage.minor_faults, Some(t.faults - t.major)),
        ("major_faults", usage.major_faults, Some(t.major)),
        ("threads", usage.threads, Some(t.threads)),
        ("threads_limit", usage.threads_limit, t.threads_limit),
        ("high", usage.events.high, Some(t.events[0])),
        ("max", usage.events.max, Some(t.events[1])),
        ("oom", usage.events.oom, Some(t.events[2])),
        ("oom_kill", usage.events.oom_kill, Some(t.events[3])),
    ] {
        holds(what, told, truth);
    }
    let pressure = &usage.pressure;
    for (told, truth) in [pressure.cpu, pressure.memory, pressure.io].iter().zip(t.pressure) {
        holds("some", told.some, seconds(truth.0));
        holds("full", told.full, seconds(truth.1));
    }
    for told in &usage.io {
        let [read_bytes, write_bytes, reads, writes] = t.io[told.device.1 as usize];
        for (what, told, truth) in [
            ("read_bytes", told.read_bytes, read_bytes),
            ("write_bytes", told.write_bytes, write_bytes),
            ("reads", told.reads, reads),
            ("writes", told.writes, writes),
        ] {
            holds(what, told, Some(truth));
        }
    }
}

fn roots(root: &Path) -> CgroupRoots {
    let v1 = CgroupRoots::V1_CONTROLLERS.iter().map(|name| ((*name).to_owned(), root.join(name))).collect();
    CgroupRoots { v2: Some(root.join("v2")), v1 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// One reader reads a cgroup whose files are harmed, one way and then another: files it holds open change below it.
    #[test]
    fn what_is_told_is_the_truth_or_nothing(
        truth in truth(),
        trees in select(vec![(true, false), (false, true), (true, true)]),
        harms in [vec(harm(), 37), vec(harm(), 37)],
    ) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let mut files = if trees.0 { v2(&truth) } else { Vec::new() };
        files.extend(if trees.1 { v1(&truth) } else { Vec::new() });
        let snapshot = snapshot(vec![("p", vec![container("c", "/c")])]);
        let mut reader = Reader::new(roots(root), Path::new("/proc"));
        for harms in &harms {
            put(root, &files, harms);
            let reading = reader.read(&snapshot);
            check(&reading.usages[0].usage, &truth);
            let tree = reader.read_tree(&snapshot, Extent::Everything, |_| true);
            let cgroup = tree.cgroups.iter().find(|cgroup| matches!(cgroup.target, Target::Container(..)));
            check_cgroup(cgroup.unwrap(), &truth);
            let unreadable = files.iter().zip(harms).any(|(_, harm)| matches!(harm, Harm::Unreadable));
            prop_assert!(reading.trouble.is_none() || unreadable || harms.iter().any(|harm| matches!(harm, Harm::Huge)));
        }
    }

    /// Without harm everything is told: the property above would hold of a reader that tells nothing.
    #[test]
    fn whole_files_tell_everything(truth in truth(), second in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        let files = if second { v2(&truth) } else { v1(&truth) };
        put(directory.path(), &files, &vec![Harm::None; files.len()]);
        let snapshot = snapshot(vec![("p", vec![container("c", "/c")])]);
        let reading = Reader::new(roots(directory.path()), Path::new("/proc")).read(&snapshot);
        prop_assert!(reading.trouble.is_none());
        let usage = &reading.usages[0].usage;
        check(usage, &truth);
        let numbers = [
            usage.working_set, usage.usage, usage.rss, usage.cache, usage.mapped_file, usage.swap, usage.peak,
            usage.minor_faults, usage.major_faults, usage.threads, usage.events.max, usage.events.oom_kill,
        ];
        prop_assert!(numbers.iter().all(Option::is_some), "{usage:?}");
        prop_assert!(usage.cpu_user.is_some() && usage.cpu_system.is_some());
        prop_assert_eq!((usage.limit, usage.threads_limit), (truth.limit, truth.threads_limit));
        prop_assert!(usage.cpu_shares.is_some());
        prop_assert_eq!(usage.processes, second.then_some(truth.processes));
        let mut reader = Reader::new(roots(directory.path()), Path::new("/proc"));
        let tree = reader.read_tree(&snapshot, Extent::Everything, |_| true);
        let cgroup = tree.cgroups.iter().find(|cgroup| matches!(cgroup.target, Target::Container(..))).unwrap();
        check_cgroup(cgroup, &truth);
        let (facts, extra) = (&cgroup.facts, &cgroup.extra);
        prop_assert!(facts.active_file.is_some() && facts.kernel_memory.or(extra.kernel_memory).is_some());
        prop_assert!(extra.reservation.is_some() && extra.swap_limit.is_some());
        prop_assert!(facts.limit.is_some() && facts.tasks_limit.is_some());
        prop_assert_eq!(extra.cpu_total.is_some(), !second);
        prop_assert_eq!(usage.quota.is_some(), truth.quota.is_some());
        prop_assert_eq!(usage.pressure.io.full.is_some(), second);
        let told = |io: &DeviceIo| [io.read_bytes, io.write_bytes, io.reads, io.writes].iter().all(Option::is_some);
        prop_assert!(usage.io.len() == truth.io.len() && usage.io.iter().all(told), "{usage:?}");
    }

    /// What the fuzz target does, with far fewer texts, and some that look like a file.
    #[test]
    fn no_text_makes_a_parser_panic(bytes in prop_oneof![
        vec(any::<u8>(), 0..200),
        "(cpu[0-9]? ?|btime |ctxt |processes |MemFree: |some |full |someé|eth0: )?([0-9]{1,20} ?){0,60}\n?".prop_map(String::into_bytes),
        "[0-9]{0,20} \\(.{0,9}\\)? [A-Zé]? ?([0-9-]{1,20} ){0,55}\n?".prop_map(String::into_bytes),
        "a\nb\n(.{0,9}:?( *[0-9]{1,20}){0,17}\n){0,3}".prop_map(String::into_bytes),
    ]) {
        fuzzing::cgroup_files(&bytes);
        fuzzing::proc_files(&bytes);
    }
}

/// Root reads every file by a capability. Without it a file that nobody may read is one that cannot be read, as for an
/// agent that is not root: it is said which, and all other files tell what they have.
#[test]
fn a_file_that_may_not_be_read_is_named_and_hides_nothing_else() {
    use std::os::unix::fs::PermissionsExt;

    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    let truth = Truth {
        user_ticks: 1,
        system_ticks: 2,
        throttling: (3, 4, 5),
        quota: Some(60_000),
        usage: 700,
        inactive: 8,
        anon: 9,
        cache: 10,
        mapped: 11,
        swap: 12,
        peak: 1300,
        limit: Some(1400),
        faults: 15,
        major: 1,
        events: [16, 17, 18, 19],
        threads: 20,
        threads_limit: Some(21),
        pressure: [(22, 23), (24, 25), (26, 27)],
        io: vec![[28, 29, 30, 31]],
        active: 32,
        kernel: 33,
        weight: 34,
        processes: 3,
        cpu_total: 35,
        reservation: 36,
        swap_limit: Some(37),
    };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    let files = v2(&truth);
    put(&root, &files, &vec![Harm::None; files.len()]);
    let snapshot = snapshot(vec![("p", vec![container("c", "/c")])]);
    // Capabilities are each thread's own (capabilities(7)), and those that it makes have no more.
    let closed = move || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
        let told = |name: Option<&str>| {
            let file = name.map(|name| root.join(name));
            let mode = |mode| {
                file.iter().for_each(|file| fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap());
            };
            mode(0);
            let mut reader = Reader::new(roots(&root), Path::new("/proc"));
            let tree = reader.read_tree(&snapshot, Extent::Everything, |_| true);
            mode(0o644);
            let cgroup =
                tree.cgroups.into_iter().find(|cgroup| matches!(cgroup.target, Target::Container(..))).unwrap();
            check_cgroup(&cgroup, &truth);
            (format!("{:?} {:?} {:?}", cgroup.facts, cgroup.usage, cgroup.extra), tree.trouble)
        };
        let (all, trouble) = told(None);
        assert!(trouble.is_none(), "{trouble:?}");
        let known = |text: &str| text.matches("Some(").count();
        for (name, _) in &files {
            let (told, trouble) = told(Some(name));
            let trouble = trouble.unwrap_or_else(|| panic!("nobody says that {name} was not read"));
            assert_eq!(trouble.kind(), std::io::ErrorKind::PermissionDenied);
            assert!(trouble.to_string().contains(name), "{trouble}");
            let lost = known(&all) - known(&told);
            assert!(lost > 0 && lost < known(&all) / 2, "without {name} {told} is left of {all}");
        }
    };
    std::thread::spawn(closed).join().unwrap();
}
