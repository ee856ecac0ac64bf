//! Raw scripts against the SMMUv3 model.
#![no_main]

#[path = "../../crates/smmuv3/tests/script/mod.rs"]
mod script;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| script::run(bytes));
