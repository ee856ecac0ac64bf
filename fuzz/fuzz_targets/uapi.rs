//! `cargo fuzz run uapi`: ioctl sequences of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    iommufd_fuzz::run(program);
});
