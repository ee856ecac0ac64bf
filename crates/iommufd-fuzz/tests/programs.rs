//! Random programs, and those that once found a bug.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn random_programs_break_nothing(program in prop::collection::vec(any::<u8>(), 0..600)) {
        iommufd_fuzz::run(&program);
    }
}

/// Inputs that found a bug, kept under `tests/seeds` with the fix.
#[test]
fn programs_that_found_a_bug_stay_harmless() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seeds");
    let mut ran = 0;
    for entry in std::fs::read_dir(seeds).expect("tests/seeds") {
        let path = entry.expect("an entry of tests/seeds").path();
        iommufd_fuzz::run(&std::fs::read(&path).expect("a seed"));
        ran += 1;
    }
    assert!(ran > 0, "tests/seeds is empty");
}
