//! `cargo fuzz run duel`: random worlds for the SMMUv3 model and the naive one of its tests.
#![no_main]

#[path = "../../crates/smmuv3/tests/chaos/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod chaos;
#[path = "../../crates/smmuv3/tests/naive/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod naive;

use chaos::duel::Duel;
use smmuv3::Options;

libfuzzer_sys::fuzz_target!(|input: (u8, u64)| {
    let (preset, world) = input;
    let options = match preset % 5 {
        0 => Options::everything(),
        1 => Options::linux_host(),
        2 => Options::mmu600(),
        3 => Options::mmu700(),
        _ => Options::minimal(),
    };
    if let Err(difference) = Duel::new(&options).world(world, None) {
        panic!("{difference:?}");
    }
});
