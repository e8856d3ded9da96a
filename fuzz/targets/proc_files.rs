//! Any text as any file of /proc that the agent reads by itself, and any path as a cgroup's.
#![no_main]

use observer::{kernel::fdinfo::Told, resources, sandbox};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    resources::fuzzing::proc_files(bytes);
    let text = String::from_utf8_lossy(bytes);
    sandbox::addresses::fuzz(&text);
    sandbox::fuzz_mounts(&text);
    sandbox::fuzz_processes(&text);
    program(&text);
    for path in text.lines() {
        let _ = sandbox::classify::classify(path);
        assert!(sandbox::classify::attach_root(path).is_none_or(|root| path.starts_with(root)));
    }
});

/// What is told of a program are numbers of the text, and the same ones or nothing when its end is missing.
fn program(text: &str) {
    let numbers = |text| {
        let told = Told::parse(text);
        [told.run_time, told.runs, told.misses]
    };
    let whole = numbers(text);
    for number in whole.iter().flatten() {
        assert!(text.contains(&number.to_string()), "{number} is no number of this text");
    }
    let Some((end, _)) = text.char_indices().next_back() else { return };
    for (cut, whole) in numbers(&text[..end]).into_iter().zip(whole) {
        assert!(cut.is_none() || cut == whole, "{cut:?} of a text that is cut short, {whole:?} of all of it");
    }
}
