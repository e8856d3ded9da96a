//! Any text as any cgroup file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| observer::resources::fuzzing::cgroup_files(bytes));
