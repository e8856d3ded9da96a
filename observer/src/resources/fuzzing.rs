//! What the fuzz targets call: every parser of cgroup and proc files, and what must hold of any text.

use procfs::{FromRead, FromReadSI, KernelStats, net::InterfaceDeviceStatus, process::Stat};

use super::{
    Facts, Limit, NodeMemory, Usage,
    extra::{EXTRA_FILES, Extra},
    facts::FILES,
    filesystems, parse, places,
};

/// Reads `text` as every cgroup file, one after another into the same facts, and as each of them alone.
///
/// # Panics
/// When a parser does, or tells a number that the text does not have.
pub fn cgroup_files(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut together = Facts::default();
    for (source, ..) in FILES {
        let mut alone = Facts::default();
        alone.add(source, &text, 100);
        together.add(source, &text, 100);
        let _ = Usage::from(&alone);
        assert!(alone.io.len() <= text.lines().count(), "more devices than lines");
    }
    let _ = Usage::from(&together);
    let mut sum = Facts::default();
    sum.add_ended(&together);
    sum.add_ended(&together);
    let mut extra = Extra::default();
    EXTRA_FILES.iter().for_each(|(source, ..)| extra.add(*source, &text));
    if let Some(controllers) = places::controllers(&text) {
        assert!(text.is_empty() || text.ends_with('\n'), "controllers of a file that is cut short");
        assert!(controllers.iter().all(|name| text.contains(name)), "{controllers:?} are not all in {text:?}");
    }
    one_number(&text);
    cut_short(&text);
}

/// A file of one number tells that number, and only when it is whole.
fn one_number(text: &str) {
    let expected = text.strip_suffix('\n').and_then(|line| line.trim().parse::<u64>().ok());
    assert_eq!(parse::number(text), expected);
    assert!(parse::limit(text).and_then(Limit::finite).is_none_or(|limit| Some(limit) == expected));
}

/// A text without its last bytes tells no other number than the whole one does, but for a line that repeats a key.
fn cut_short(text: &str) {
    let whole: Vec<_> = parse::flat_keyed(text).collect();
    let Some((end, _)) = text.char_indices().next_back() else { return };
    let cut: Vec<_> = parse::flat_keyed(&text[..end]).collect();
    assert!(whole.starts_with(&cut), "{cut:?} is no beginning of {whole:?}");
    let (some, full) = parse::pressure(&text[..end]);
    let (whole_some, whole_full) = parse::pressure(text);
    assert!(some.is_none() || some == whole_some);
    assert!(full.is_none() || full == whole_full);
}

/// Reads `bytes` as the files of `/proc` that pods and the node are read from.
///
/// # Panics
/// When a parser does.
pub fn proc_files(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (parse::sockets(&text), parse::meminfo(&text).count());
    let _ = NodeMemory::parse(&text);
    filesystems::fuzz(&text);
    if let Some(processes) = parse::processes(bytes) {
        assert_eq!(processes, text.lines().count() as u64, "{text:?}");
    }
    of_the_procfs_crate(bytes);
}

/// What of the procfs crate reads text for the agent: `/proc/stat`, `/proc/<pid>/stat`, `/proc/<pid>/net/dev`.
fn of_the_procfs_crate(bytes: &[u8]) {
    let _ = KernelStats::from_read(bytes, procfs::current_system_info());
    // It takes for granted what the kernel begins with: the number, a name in parentheses, and a space (`do_task_stat` in
    // fs/proc/array.c). It panics without them.
    let text = String::from_utf8_lossy(bytes);
    let name = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let name_ends = text.trim().rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(' '));
    if name.len() < text.len() && name.starts_with(" (") && name_ends {
        let _ = Stat::from_read(bytes);
    }
    let _ = InterfaceDeviceStatus::from_read(bytes);
}
