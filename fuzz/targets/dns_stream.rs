//! Any bytes as segments of DNS over TCP.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| observer::dns::fuzzing::stream(bytes));
