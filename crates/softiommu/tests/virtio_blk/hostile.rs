//! Rings that make no sense: the device says so, and works again after a reset.

use super::*;
use crate::driver::{HEADERS, WRITE};

/// Waits until the device has given up, tells of it, and takes it back into service.
fn broken(disk: &mut Driver, how: &str) {
    while disk.status() & NEEDS_RESET == 0 {
        assert_eq!(disk.used(0), None, "{how}");
        std::thread::yield_now();
    }
    disk.start(ALL, 1);
    assert_eq!(disk.run(IN, 0, &[SECTOR_IN]), (OK, 513), "{how}");
}

#[test]
fn chains_without_sense_need_a_reset() {
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    let mut disk = driver(7, ALL);
    let header = (IOVA + HEADERS, 16, false);
    let status = (IOVA + HEADERS + 16, 1, true);
    for (how, parts) in [
        ("no status", vec![header]),
        ("no header", vec![status]),
        ("a short header", vec![(IOVA + HEADERS, 15, false), status]),
        ("written before read", vec![status, header]),
        ("a status out of reach", vec![header, (4096, 1, true)]),
    ] {
        disk.submit(0, &parts, parts.len());
        broken(&mut disk, how);
    }
    // One descriptor: address, length, flags, next.
    let tables = IOVA + DATA;
    for (how, address, len, flags, next) in [
        ("a loop", IOVA, 16, NEXT, 0),
        ("beyond the table", IOVA, 16, NEXT, 64),
        ("an indirect table out of reach", 4096, 32, INDIRECT, 0),
        ("an indirect table that is cut", tables, 24, INDIRECT, 0),
        ("an empty indirect table", tables, 0, INDIRECT, 0),
        ("an indirect table that goes on", tables, 32, INDIRECT | NEXT, 0),
        ("a long indirect table", tables, 65 * 16, INDIRECT, 0),
        ("an indirect table in another", tables, 32, INDIRECT, 0),
    ] {
        let [table, ..] = disk.queues[0].places();
        disk.describe(DATA, tables, 32, INDIRECT, 0);
        disk.describe(table, address, len, flags, next);
        disk.offer(0, 0);
        broken(&mut disk, how);
    }
    // A loop in an indirect table, and one that leads out of it.
    for next in [0, 2] {
        let [table, ..] = disk.queues[0].places();
        disk.describe(DATA, IOVA, 1, WRITE | NEXT, next);
        disk.describe(table, tables, 32, INDIRECT, 0);
        disk.offer(0, 0);
        broken(&mut disk, "an indirect table without an end");
    }
    disk.offer(0, 64);
    broken(&mut disk, "a head that there is not");
    let [_, ring, _] = disk.queues[0].places();
    let far = disk.queues[0].available.wrapping_add(65);
    disk.client.put(ring + 2, &far.to_le_bytes());
    disk.notify(0);
    broken(&mut disk, "more than fits the ring");
}

#[test]
fn rings_out_of_reach_need_a_reset_which_is_told() {
    let mut disk = driver(8, ALL);
    for part in 0..3 {
        let events = disk.client.enable_interrupts(MSIX, 1);
        disk.client.unmap(disk.queues[0].places()[part], 0x1000);
        let parts = disk.request(IN, 0, &[SECTOR_IN], &mut Random(1));
        disk.submit(0, &parts, parts.len());
        assert_eq!(events[0].wait(), 1, "the configuration's vector");
        assert_ne!(disk.status() & NEEDS_RESET, 0);
        disk.client.unmap(0, 0);
        disk.client.disable_interrupts(MSIX);
        broken(&mut disk, "a part of the ring");
    }
    // By the line, too.
    let line = disk.client.enable_interrupts(INTX, 1);
    while line[0].count() > 0 || disk.isr() != 0 {}
    disk.client.unmask_line();
    disk.offer(0, 64);
    line[0].wait();
    assert_eq!(disk.isr() & 2, 2, "the configuration has changed");
}

#[test]
fn queues_in_wrong_places_need_a_reset() {
    let disk = driver(9, ALL);
    for (field, address) in [(32, IOVA + 8), (40, IOVA + 1), (48, IOVA + 2)] {
        disk.reset();
        disk.set_common(STATUS, &[BEGUN]);
        disk.accept(FEATURE_VERSION_1);
        disk.set_common(STATUS, &[BEGUN | FEATURES_OK]);
        disk.set_common(QUEUE_SELECT, &[0, 0]);
        disk.set_common(field, &address.to_le_bytes());
        disk.set_common(driver::QUEUE_ENABLE, &[1, 0]);
        assert_ne!(disk.status() & NEEDS_RESET, 0);
    }
}
