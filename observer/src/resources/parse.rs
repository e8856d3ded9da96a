//! Parsers of cgroup files. Pure; what is not there or not a number is `None`, never 0, never a panic.

/// The one line of a file; `None` when its end is missing, for then a number may be cut short.
fn line(text: &str) -> Option<&str> {
    text.strip_suffix('\n').map(str::trim)
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
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
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

/// A limit in bytes, `None` for "no limit": `max` in v2, in v1 a number near 2^63 (anything above 2^62).
pub(super) fn limit(text: &str) -> Option<u64> {
    number(text).filter(|bytes| *bytes <= 1 << 62)
}

/// The number of lines: of processes in `cgroup.procs`.
pub(super) fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|b| u64::from(*b == b'\n')).sum()
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
    fn quotas_and_limits() {
        assert_eq!(cpu_max("max 100000\n"), Some((None, 100_000)));
        assert_eq!(cpu_max("50000 100000\n"), Some((Some(50_000), 100_000)));
        for bad in ["50000\n", "", "50000 1000", "max max\n", "1 2 3\n", "\n"] {
            assert_eq!(cpu_max(bad), None, "{bad:?}");
        }
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("134217728\n"), Some(134_217_728));
    }

    #[test]
    fn processes_are_lines() {
        assert_eq!(lines(b""), 0);
        assert_eq!(lines(b"12\n13\n"), 2);
    }
}
