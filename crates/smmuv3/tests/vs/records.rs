//! 1 to 8: the Event queue, and what its records say.

use smmuv3::{Options, Refused, Transaction, Wire};

use crate::common::raw::event::*;
use crate::common::raw::{cd, event, pte, reg, ste};
use crate::common::{EVENTQ, EVENTQ_LOG2, Machine};

const ENTRIES: u32 = 1 << EVENTQ_LOG2;

/// Without merging, so that one fault is one record.
fn unmerged() -> Options {
    Options { merge_events: false, ..Options::everything() }
}

/// A stream whose STE is invalid: every transaction is a `C_BAD_STE`.
const BAD: u32 = 7;

fn fill(m: &mut Machine) {
    for _ in 0..ENTRIES {
        assert_eq!(m.read(BAD, 0x1000), Err(Refused::Abort));
    }
}

/// §7.4.
#[test]
fn vs01_a_full_event_queue_toggles_ovflg_and_is_no_global_error() {
    let mut m = Machine::booted(unmerged());
    fill(&mut m);
    let full = m.r32(reg::EVENTQ_PROD);
    assert_eq!(full, ENTRIES, "WR is at RD again and the wrap bit differs");
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), full | reg::OVFLG, "OVFLG alone changes");
    assert_eq!(m.r32(reg::GERROR), 0);
    // While the condition is present it is not signalled a second time.
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), full | reg::OVFLG);
    // Acknowledged and still full, the next loss toggles again.
    m.w32(reg::EVENTQ_CONS, reg::OVFLG);
    assert_eq!(m.r32(reg::EVENTQ_PROD), full | reg::OVFLG, "an acknowledgement changes CONS only");
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), full);
    assert_eq!(m.r32(reg::GERROR), 0);
    assert_eq!(m.world.wires.take(), [Wire::Eventq], "one edge, from empty to non-empty");
}

/// §7.4.
#[test]
fn vs02_an_unacknowledged_overflow_does_not_stop_new_records() {
    let mut m = Machine::booted(unmerged());
    fill(&mut m);
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), ENTRIES | reg::OVFLG);
    // Software consumes two records and does not acknowledge.
    m.w32(reg::EVENTQ_CONS, 2);
    m.ram.set(EVENTQ, 0);
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), (ENTRIES + 1) | reg::OVFLG, "recorded");
    assert_eq!(m.ram.get(EVENTQ) & 0xff, C_BAD_STE);
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), (ENTRIES + 2) | reg::OVFLG);
    // A second overflow cannot be shown.
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), (ENTRIES + 2) | reg::OVFLG);
    // With the queue off nothing is recorded, and nothing overflows: even with the flags equal.
    m.w32(reg::EVENTQ_CONS, 2 | reg::OVFLG);
    m.set_cr0(reg::CMDQEN | reg::SMMUEN | reg::PRIQEN);
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), (ENTRIES + 2) | reg::OVFLG);
    m.w32(reg::EVENTQ_CONS, ENTRIES + 2 | reg::OVFLG);
    m.read(BAD, 0x1000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), (ENTRIES + 2) | reg::OVFLG, "not even into an empty queue");
    assert_eq!(m.r32(reg::GERROR), 0);
}

/// §7.2.2.
#[test]
fn vs03_a_failed_record_write_stops_the_queue_until_acknowledged() {
    let mut m = Machine::booted(unmerged());
    m.read(BAD, 0x1000).unwrap_err();
    m.world.wires.take();
    m.ram.fail_next_write();
    m.read(BAD, 0x2000).unwrap_err();
    assert_eq!(m.gerror(), reg::EVENTQ_ABT_ERR);
    assert_eq!(m.r32(reg::EVENTQ_PROD), 1, "PROD does not pass what was not written");
    assert_eq!(m.world.wires.take(), [Wire::Gerror]);
    // Memory works again, but nobody has acknowledged.
    m.read(BAD, 0x3000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), 1);
    // Acknowledging another error is no help.
    m.w32(reg::GERRORN, reg::CMDQ_ERR);
    m.w32(reg::GERRORN, 0);
    m.read(BAD, 0x3000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), 1);
    m.acknowledge();
    m.read(BAD, 0x4000).unwrap_err();
    assert_eq!(m.r32(reg::EVENTQ_PROD), 2);
    assert_eq!(m.gerror(), 0);
}

/// §7.3.13 to §7.3.16.
#[test]
fn vs04_every_field_of_a_record_is_in_its_place() {
    let mut m = Machine::everything();
    // Stage 2, unmapped, stalling: an unprivileged read.
    let two = m.stage2(3, 1);
    m.set_ste(3, two.ste.with(ste::S2_S, 1));
    for expected_stag in 0..2 {
        let refused = m.read(3, 0x12_3456).unwrap_err();
        let Refused::Stalled { stag } = refused else { panic!("{refused:?}") };
        assert_eq!(stag, expected_stag);
        assert_eq!(m.event().0, [
            0x10 | 3 << 32,
            // STAG, Stall, RnW, S2, CLASS = IN.
            u64::from(stag) | 1 << 31 | 1 << 35 | 1 << 39 | 0b10 << 40,
            0x12_3456,
            0x12_3000,
        ]);
    }
    // Stage 1: a privileged instruction fetch.
    let one = m.stage1(4, 1);
    let fetch =
        Transaction { privileged: true, instruction: true, ..Transaction::read(4, 0x7_1238) };
    assert_eq!(m.fault(&fetch).0, [
        0x10 | 4 << 32,
        // PnU, InD, RnW, CLASS = IN.
        1 << 33 | 1 << 34 | 1 << 35 | 0b10 << 40,
        0x7_1238,
        0,
    ]);
    // A privileged write with a SubstreamID: no RnW, SSV and SubstreamID set.
    let ste = one.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b10);
    let cds = m.alloc(128);
    m.store(cds + 64, &one.cd);
    m.set_ste(4, ste.with_address(ste::S1_CONTEXT_PTR, cds));
    let write = Transaction { privileged: true, ..Transaction::write(4, 0x8_0000) };
    assert_eq!(m.fault(&write.with_substream(1)).0, [
        0x10 | 1 << 11 | 1 << 12 | 4 << 32,
        1 << 33 | 0b10 << 40,
        0x8_0000,
        0,
    ]);
    // Writes are data: InD stays 0 even if the transaction claims to be a fetch.
    let odd = Transaction { instruction: true, ..write };
    assert_eq!(m.fault(&odd.with_substream(1)).get(event::IND), 0);
    // A permission fault of a stage 1 table fetch: TTRnW tells the read from an update.
    let (nested, second) = m.nested(5, 2, 2);
    m.map(&nested.tables, 0x5000, GUEST_PAGE);
    let table = m.entry(&nested.tables, 0x5000, 3) & !0xfff;
    let entry = m.entry(&second, crate::common::GUEST + table, 3);
    m.ram.set(entry, m.ram.get(entry) & !pte::S2_READ);
    let record = m.read_faults(5, 0x5000, F_PERMISSION);
    assert_eq!(record.0[1], 1 << 35 | 1 << 39 | 0b01 << 40 | 1 << 44);
    assert_eq!(record.get(event::NSIPA), 0, "Non-secure streams have no other");
    // Readable and not writable: the read of the descriptor works and its update (AF) does not.
    m.ram.set(entry, m.ram.get(entry) & !pte::S2_WRITE | pte::S2_READ);
    m.set_cd(&nested, nested.cd.with(cd::HA, 1));
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    m.ram.set(leaf, m.ram.get(leaf) & !pte::AF);
    let record = m.read_faults(5, 0x5000, F_PERMISSION);
    assert_eq!(record.0[1], 1 << 35 | 1 << 39 | 0b01 << 40, "TTRnW = 0");
}

const GUEST_PAGE: u64 = crate::common::GUEST + 0x30_0000;
