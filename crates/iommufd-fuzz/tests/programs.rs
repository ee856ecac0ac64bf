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

/// An IOAS (1) with a page at its lowest IOVA, a mock device (2) and its binding (4), a
/// nesting parent (5), and a vIOMMU (6) that has two pages to be mapped at offset 1.
const VIOMMU: &[u8] =
    &[0, 38, 2, 1, 0, 0, 0, 0, 0, 2, 7, 1, 0, 1, 0, 21, 1, 2, 1, 0, 0, 0, 33, 1, 0, 2, 5];
/// Maps those pages.
const MMAP: &[u8] = &[44, 1, 0, 0];

#[test]
fn only_the_exact_pair_is_mapped_and_it_holds_its_owner() {
    assert_eq!(iommufd_fuzz::run(&[VIOMMU, MMAP].concat()).mappings, 1);
    // Not private, not executable, not half of it, not one page further.
    let refused = [44, 1, 0, 7, 44, 1, 0, 255, 44, 1, 181, 0, 44, 2, 0, 0, 44, 0, 0, 0];
    assert_eq!(iommufd_fuzz::run(&[VIOMMU, &refused].concat()).mappings, 0);
    // Mapped twice: the vIOMMU stays (and can be mapped) until the second unmap.
    let destroy = [17, 6];
    let twice = [VIOMMU, MMAP, MMAP, &destroy, &[45, 0], &destroy, MMAP].concat();
    assert_eq!(iommufd_fuzz::run(&twice).mappings, 3);
    let gone = [VIOMMU, MMAP, &[45, 0], &destroy, MMAP].concat();
    assert_eq!(iommufd_fuzz::run(&gone).mappings, 1);
    // A hardware queue beside it, and the device leaves while all that lives.
    let queue = [36, 0, 6, 0, 1];
    let leave = [17, 4, 17, 5, 17, 6, 13, 1, 0, 1, 45, 0, 17, 6, 17, 7, 17, 6];
    assert_eq!(iommufd_fuzz::run(&[VIOMMU, MMAP, &queue, &leave].concat()).mappings, 1);
}

#[test]
fn a_device_without_an_iommu_tells_an_address() {
    let nic = [0, 38, 24, 1, 0, 0, 0, 0, 0, 2, 7, 1, 0, 3, 0];
    assert_eq!(iommufd_fuzz::run(&[&nic[..], &[37, 1, 1, 2]].concat()).addresses, 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn random_programs_on_a_mapped_viommu_break_nothing(
        program in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        iommufd_fuzz::run(&[VIOMMU, MMAP, &program].concat());
    }
}

/// One thread maps and unmaps what the other makes and destroys.
#[test]
fn mapping_races_destruction() {
    for round in 0..100u32 {
        let make: Vec<u8> =
            (0..40).flat_map(|n| [VIOMMU, &[17, 6 + (n + round) as u8 % 3]].concat()).collect();
        let steps: [&[u8]; 6] = [MMAP, &[17, 6], &[44, 3, 0, 0], &[45, 0], &[17, 4], &[17, 5]];
        let map: Vec<u8> =
            (0..400).flat_map(|n| steps[(n * (round + 1)) as usize % 6]).copied().collect();
        iommufd_fuzz::race(&make, &map);
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
