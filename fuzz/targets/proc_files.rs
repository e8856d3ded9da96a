//! Any text as any file of /proc that the agent reads by itself, and any path as a cgroup's.
#![no_main]

use observer::{kernel::probes::fdinfo, resources, sandbox};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    resources::fuzzing::proc_files(bytes);
    let text = String::from_utf8_lossy(bytes);
    sandbox::addresses::fuzz(&text);
    sandbox::fuzz_mounts(&text);
    sandbox::fuzz_processes(&text);
    let misses = fdinfo::number(&text, "recursion_misses");
    assert!(misses.is_none_or(|misses| text.contains(&misses.to_string())), "{misses:?} is no number of this text");
    for path in text.lines() {
        let _ = sandbox::classify::classify(path);
        assert!(sandbox::classify::attach_root(path).is_none_or(|root| path.starts_with(root)));
    }
});
