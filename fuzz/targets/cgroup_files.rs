//! Any text as any cgroup file.
#![no_main]

use observer::{kernel::attach, resources};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    resources::fuzzing::cgroup_files(bytes);
    let text = String::from_utf8_lossy(bytes);
    assert!(attach::may_be_populated(&text) || text.contains("populated 0\n"), "nothing says that nobody is there");
});
