//! `cargo fuzz run ioat`: a program of a hostile driver, byte by byte.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    devices_fuzz::ioat(program);
});
