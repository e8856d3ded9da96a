//! Parsers of cgroup files. Pure; what is not there or not a number is `None`, never 0, never a panic.

/// The one line of a file; `None` when its end is missing, for then a number may be cut short.
fn line(text: &str) -> Option<&str> {
    text.strip_suffix('\n').map(str::trim)
}

/// All lines but a last one whose end is missing.
pub(super) fn whole(text: &str) -> &str {
    text.rfind('\n').map_or("", |end| &text[..end])
}

/// A file with one number, such as `memory.current`. `max` is no number: see [`limit`].
pub(super) fn number(text: &str) -> Option<u64> {
    line(text)?.parse().ok()
}

/// A file with one signed number, such as `cpu.cfs_quota_us` (-1 means none).
pub(super) fn signed(text: &str) -> Option<i64> {
    line(text)?.parse().ok()
}

/// The lines `key value` of a flat-keyed file (`cpu.stat`, `memory.stat`, `cpuacct.stat`), broken ones left out.
///
/// A file cut short may end in the middle of a number, so a last line without its line end is left out too.
pub(super) fn flat_keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    keyed(text).filter_map(|(key, value)| Some((key, value_of_key(value)?)))
}

/// The same with values as they stand there, for a file of which most lines are of no use: see [`value_of_key`].
pub(super) fn keyed(text: &str) -> impl Iterator<Item = (&str, &str)> {
    whole(text).lines().filter_map(|line| line.split_once(' '))
}

/// The value of a line of [`keyed`].
pub(super) fn value_of_key(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The lines `Name:   N kB` of `/proc/meminfo` (proc_meminfo(5)), in bytes; broken ones left out, those without a unit
/// too.
pub(super) fn meminfo(text: &str) -> impl Iterator<Item = (&str, u64)> {
    whole(text).lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((name, kibibytes.checked_mul(1024)?))
    })
}

/// `cpu.max`: `QUOTA PERIOD` in microseconds; the quota is `None` for `max`.
pub(super) fn cpu_max(text: &str) -> Option<(Option<u64>, u64)> {
    let (quota, period) = line(text)?.split_once(' ')?;
    let quota = match quota {
        "max" => None,
        number => Some(number.parse().ok()?),
    };
    Some((quota, period.parse().ok()?))
}

/// A limit, in bytes or in tasks. What nobody could read is none of these: "no limit" is a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// There is none.
    Unlimited,
    /// So much, perhaps 0.
    Finite(u64),
}

impl Limit {
    /// How much, 0 for no limit.
    #[must_use]
    pub const fn or_zero(self) -> u64 {
        match self {
            Self::Unlimited => 0,
            Self::Finite(bytes) => bytes,
        }
    }

    /// How much, when there is a limit.
    #[must_use]
    pub const fn finite(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Finite(bytes) => Some(bytes),
        }
    }
}

/// A file with a limit. None is `max` in v2, in v1 a number near 2^63 (anything above 2^62); `None` is for what says
/// nothing of a limit.
pub(super) fn limit(text: &str) -> Option<Limit> {
    match line(text)? {
        "max" => Some(Limit::Unlimited),
        _ => number(text).map(|bytes| if bytes <= 1 << 62 { Limit::Finite(bytes) } else { Limit::Unlimited }),
    }
}

/// A pressure file (Documentation/accounting/psi.rst): microseconds since boot in which some, and in which all tasks
/// waited, from the fields `total`. `full` is `None` where the kernel does not tell it (cpu before 5.13).
pub(super) fn pressure(text: &str) -> (Option<u64>, Option<u64>) {
    let (mut some, mut full) = (None, None);
    for line in whole(text).lines() {
        let Some((kind, averages)) = line.split_once(' ') else { continue };
        let total = match kind {
            "some" => &mut some,
            "full" => &mut full,
            _ => continue,
        };
        // It is the last field.
        let field = averages.rsplit(' ').find_map(|field| field.strip_prefix("total="));
        *total = total.or_else(|| field?.parse().ok());
    }
    (some, full)
}

/// The line `sockets: used N` of a `sockstat` file.
pub(super) fn sockets(text: &str) -> Option<u64> {
    whole(text).lines().find_map(|line| line.strip_prefix("sockets: used "))?.trim().parse().ok()
}

/// A device at the start of a line: `MAJOR:MINOR`.
pub(super) fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The number of processes in a `cgroup.procs`: a line for each, 0 for one that this namespace cannot see. `None` when it is
/// cut short or no such list; one that is cut at the end of a line is a shorter list.
pub(super) fn processes(bytes: &[u8]) -> Option<u64> {
    let Some(lines) = bytes.strip_suffix(b"\n") else { return bytes.is_empty().then_some(0) };
    let mut count = 0;
    for line in lines.split(|byte| *byte == b'\n') {
        if line.is_empty() || !line.iter().all(u8::is_ascii_digit) {
            return None;
        }
        count += 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number("4096\n"), Some(4096));
        for bad in ["", "\n", "max\n", "-1\n", "1.5\n", "99999999999999999999999\n", "0x10\n", "1 2\n", "12"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
        assert_eq!(signed("-1\n"), Some(-1));
        assert_eq!(signed("x"), None);
    }

    #[test]
    fn flat_keyed_leaves_out_what_is_broken() {
        let text = "a 1\nbroken\nb x\nc -1\nd 99999999999999999999999\ne 2 3\n\nf 4\ng 12";
        assert_eq!(flat_keyed(text).collect::<Vec<_>>(), [("a", 1), ("f", 4)]);
        assert_eq!(flat_keyed("").count(), 0);
        assert_eq!(flat_keyed("usage_usec 12").count(), 0, "a truncated number is not a number");
    }

    #[test]
    fn memory_of_the_node_leaves_out_what_is_broken() {
        let text = "MemTotal:        3049648 kB\nHugePages_Total:       2\né\né:\n:\nBuffers: -1 kB\nCached: 1 MB\n\
            MemFree: 18014398509481984 kB\nMemAvailable:  2 kB\nSwapTotal: 12";
        assert_eq!(meminfo(text).collect::<Vec<_>>(), [("MemTotal", 3_049_648 << 10), ("MemAvailable", 2 << 10)]);
    }

    #[test]
    fn quotas_and_limits() {
        assert_eq!(cpu_max("max 100000\n"), Some((None, 100_000)));
        assert_eq!(cpu_max("50000 100000\n"), Some((Some(50_000), 100_000)));
        for bad in ["50000\n", "", "50000 1000", "max max\n", "1 2 3\n", "\n"] {
            assert_eq!(cpu_max(bad), None, "{bad:?}");
        }
        assert_eq!(limit("max\n"), Some(Limit::Unlimited));
        assert_eq!(limit("9223372036854771712\n"), Some(Limit::Unlimited));
        assert_eq!(limit("134217728\n"), Some(Limit::Finite(134_217_728)));
        for bad in ["max", "134217728", "", "-1\n"] {
            assert_eq!(limit(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn pressure_has_two_lines_or_one() {
        let text = "some avg10=0.00 avg60=1.37 avg300=5.47 total=2387983095\nfull avg10=0.00 avg60=0.00 total=7\n";
        assert_eq!(pressure(text), (Some(2_387_983_095), Some(7)));
        assert_eq!(pressure("some avg10=0.00 total=5\n"), (Some(5), None));
        for bad in [
            "",
            "some",
            "somé\n",
            "someé\n",
            "some total=5",
            "some total=x\n",
            "something total=5\n",
            "some avg10=0.00\n",
            "full total=-1\n",
        ] {
            assert_eq!(pressure(bad), (None, None), "{bad:?}");
        }
        assert_eq!(device("254:16"), Some((254, 16)));
        for bad in ["", "254", "a:b", "254:", "-1:0", "99999999999:0"] {
            assert_eq!(device(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_pods_share() {
        assert_eq!(sockets("sockets: used 42\nTCP: inuse 1 orphan 0\n"), Some(42));
        for bad in ["", "sockets: used x\n", "sockets: used 4"] {
            assert_eq!(sockets(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn processes_are_lines() {
        assert_eq!(processes(b""), Some(0));
        assert_eq!(processes(b"12\n13\n0\n"), Some(3));
        for bad in [&b"12"[..], b"12\n13", b"\n", b"12\n\n", b"x\n", b"1 2\n", b"\xff\n", b"-1\n"] {
            assert_eq!(processes(bad), None, "{bad:?}");
        }
    }
}
