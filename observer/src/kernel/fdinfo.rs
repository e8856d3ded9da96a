//! What the kernel tells of a program by its descriptor: `/proc/self/fdinfo/<fd>` (`bpf_prog_show_fdinfo` in
//! kernel/bpf/syscall.c).

/// What the kernel has counted of a program since it was loaded. What this kernel does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// How long it ran, in nanoseconds, on all CPUs together: `run_time_ns`. It grows while the kernel's BPF statistics are
    /// switched on (`__bpf_prog_run` in include/linux/filter.h).
    pub run_time: Option<u64>,
    /// How often it ran, in the same time: `run_cnt`.
    pub runs: Option<u64>,
    /// How many events it was not run for, because it was running on their CPU: `recursion_misses` (since kernel 5.12).
    pub misses: Option<u64>,
}

impl Told {
    /// Reads the file's text. A line that is cut short, and one that is no number, tells nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let number = |name| number(text, name);
        Self { run_time: number("run_time_ns"), runs: number("run_cnt"), misses: number("recursion_misses") }
    }
}

/// The number on the first line `name:` that is whole.
fn number(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kernel 6.18 writes it.
    const WHOLE: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\nprog_type:\t17\nprog_jited:\t1\n\
                         prog_tag:\t59f4a931744dcdc6\nmemlock:\t4096\nprog_id:\t155713\nrun_time_ns:\t1234\nrun_cnt:\t5\n\
                         recursion_misses:\t42\nverified_insns:\t9\n";

    #[test]
    fn a_kernel_that_does_not_count_is_no_zero() {
        assert_eq!(Told::parse(WHOLE), Told { run_time: Some(1234), runs: Some(5), misses: Some(42) });
        let old = "pos:\t0\nprog_type:\t17\nrun_cnt:\t5\n";
        assert_eq!(Told::parse(old), Told { runs: Some(5), ..Told::default() });
        assert_eq!(number(WHOLE, "recursion"), None);
        assert_eq!(Told::parse(""), Told::default());
    }

    #[test]
    fn a_text_that_is_cut_short_tells_no_other_number() {
        let whole = Told::parse(WHOLE);
        for end in 0..WHOLE.len() {
            let cut = Told::parse(&WHOLE[..end]);
            assert!(cut.run_time.is_none() || cut.run_time == whole.run_time, "{end}: {cut:?}");
            assert!(cut.runs.is_none() || cut.runs == whole.runs, "{end}: {cut:?}");
            assert!(cut.misses.is_none() || cut.misses == whole.misses, "{end}: {cut:?}");
        }
    }

    #[test]
    fn what_is_no_number_of_64_bits_tells_nothing() {
        let largest = u64::MAX.to_string();
        assert_eq!(number(&format!("run_cnt:\t{largest}\n"), "run_cnt"), Some(u64::MAX));
        let long = "9".repeat(100_000);
        for value in ["18446744073709551616", "-1", "", "\t", "0x10", "5 6", "5.0", "nan", "\u{665}", &long] {
            assert_eq!(number(&format!("run_cnt:\t{value}\nrun_cnt:\t7\n"), "run_cnt"), None, "{value:.20}");
        }
        assert_eq!(number("xrun_cnt:\t5\n run_cnt:\t6\nrun_cnt 7\n", "run_cnt"), None);
    }
}
