//! Any bytes as the kernel's types.
#![no_main]

use observer::kernel::btf::Btf;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(types) = Btf::parse(bytes.to_vec()) else { return };
    let _ = types.offset("a", "b");
    let _ = types.offset("a", "b.c");
    let _ = types.enumeration_with("A");
    let _ = types.tracepoint_argument_count("t");
    let _ = types.tracepoint_argument_is_pointer("t", 1);
});
