//! Random programs, and those that once found a bug.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn random_programs_break_nothing(program in prop::collection::vec(any::<u8>(), 0..600)) {
        iommufd_fuzz::run(&program);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn two_racing_programs_break_nothing(
        one in prop::collection::vec(any::<u8>(), 0..900),
        other in prop::collection::vec(any::<u8>(), 0..900),
    ) {
        iommufd_fuzz::race(&one, &other);
    }
}

/// One thread makes everything there is, the other destroys by id.
#[test]
fn destruction_races_creation() {
    for round in 0..200u8 {
        let make: Vec<u8> = (0..400u32)
            .flat_map(|n| {
                let op = [0u8, 2, 33, 8, 14, 21, 26, 34, 35, 36, 37][n as usize % 11];
                [op, (n as u8).wrapping_mul(round), 7, n as u8 % 16, 3, 1, 2, n as u8, 1, 0]
            })
            .collect();
        let destroy: Vec<u8> =
            (0..1200u32).flat_map(|n| [17, (n as u8).wrapping_add(round) % 16]).collect();
        iommufd_fuzz::race(&make, &destroy);
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
