//! Random [scripts](script). `fuzz/fuzz_targets/smmuv3.rs` looks for worse ones.

mod script;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_guest_or_a_device_does_breaks_the_smmu(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        script::run(&bytes);
    }
}
