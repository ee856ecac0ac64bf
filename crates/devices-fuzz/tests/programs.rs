//! Random programs.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_break_no_nvme_controller(program in prop::collection::vec(any::<u8>(), 0..1500)) {
        devices_fuzz::nvme(&program);
    }

    #[test]
    fn random_programs_break_no_virtio_disk(program in prop::collection::vec(any::<u8>(), 0..1500)) {
        devices_fuzz::virtio_blk(&program);
    }

    #[test]
    fn random_programs_break_no_dma_engine(program in prop::collection::vec(any::<u8>(), 0..1500)) {
        devices_fuzz::ioat(&program);
    }
}

/// Bytes that look random (xorshift).
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn programs_get_somewhere() {
    let nvme = (0..20).map(|seed| devices_fuzz::nvme(&random(seed, 4000)));
    let (admin, io) = nvme.fold((0, 0), |(admin, io), all| (admin + all.admin, io + all.io));
    assert!(admin > 10 && io > 10, "{admin} admin commands, {io} others");
    let virtio = (0..20).map(|seed| devices_fuzz::virtio_blk(&random(seed, 4000)));
    let (done, broken) =
        virtio.fold((0, 0), |(done, broken), all| (done + all.done, broken + all.broken));
    assert!(done > 10 && broken > 10, "{done} requests, {broken} times broken");
    let ioat = (0..20).map(|seed| devices_fuzz::ioat(&random(seed, 4000)));
    let (done, halted) =
        ioat.fold((0, 0), |(done, halted), all| (done + all.done, halted + all.halted));
    assert!(done > 10 && halted > 10, "{done} times done, {halted} times halted");
}
