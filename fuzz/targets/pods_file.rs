//! Any bytes as a pods document.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = observer::identity::podsfile::parse(bytes);
});
