//! 1 to 8: the Event queue, and what its records say.

use smmuv3::{Options, Refused, Transaction, Wire};

use crate::common::raw::event::*;
use crate::common::raw::{cd, event, pte, reg, ste};
use crate::common::{EVENTQ, EVENTQ_LOG2, GUEST, Machine, STRTAB};

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
    m.w32(reg::EVENTQ_CONS, (ENTRIES + 2) | reg::OVFLG);
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
        assert_eq!(
            m.event().0,
            [
                0x10 | 3 << 32,
                // STAG, Stall, RnW, S2, CLASS = IN.
                u64::from(stag) | 1 << 31 | 1 << 35 | 1 << 39 | 0b10 << 40,
                0x12_3456,
                0x12_3000,
            ]
        );
    }
    // Stage 1: a privileged instruction fetch.
    let one = m.stage1(4, 1);
    let fetch =
        Transaction { privileged: true, instruction: true, ..Transaction::read(4, 0x7_1238) };
    assert_eq!(
        m.fault(&fetch).0,
        [
            0x10 | 4 << 32,
            // PnU, InD, RnW, CLASS = IN.
            1 << 33 | 1 << 34 | 1 << 35 | 0b10 << 40,
            0x7_1238,
            0,
        ]
    );
    // A privileged write with a SubstreamID: no RnW, SSV and SubstreamID set.
    let ste = one.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b10);
    let cds = m.alloc(128);
    m.store(cds + 64, &one.cd);
    m.set_ste(4, ste.with_address(ste::S1_CONTEXT_PTR, cds));
    let write = Transaction { privileged: true, ..Transaction::write(4, 0x8_0000) };
    assert_eq!(
        m.fault(&write.with_substream(1)).0,
        [0x10 | 1 << 11 | 1 << 12 | 4 << 32, 1 << 33 | 0b10 << 40, 0x8_0000, 0,]
    );
    // Writes are data: InD stays 0 even if the transaction claims to be a fetch.
    let odd = Transaction { instruction: true, ..write };
    assert_eq!(m.fault(&odd.with_substream(1)).get(event::IND), 0);
    // A permission fault of a stage 1 table fetch: TTRnW tells the read from an update.
    let (nested, second) = m.nested(5, 2, 2);
    m.map(&nested.tables, 0x5000, GUEST + 0x30_0000);
    let table = m.entry(&nested.tables, 0x5000, 3) & !0xfff;
    let entry = m.entry(&second, GUEST + table, 3);
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

/// Checks a record that consists of its number, the stream and an address that was fetched.
fn assert_fetch(record: Record, number: u64, sid: u64, address: u64) {
    assert_eq!(record.0, [number | sid << 32, 0, 0, address]);
    assert_eq!(record.get_address(event::FETCH), address);
}

/// §7.3.4, §7.3.10.
#[test]
fn vs05_fetch_faults_carry_the_fetched_address_and_no_input_address() {
    let mut m = Machine::everything();
    // An STE of a linear table.
    let ste = Machine::ste_at(9);
    m.ram.make_hole(ste..ste + 64);
    let record = m.fault(&Transaction::read(9, 0xabc_d123));
    assert_fetch(record, F_STE_FETCH, 9, ste);
    m.ram.fill_holes();
    // A CD.
    let one = m.stage1(3, 1);
    m.ram.make_hole(one.cd_at..one.cd_at + 8);
    let record = m.fault(&Transaction::read(3, 0xabc_d123));
    assert_fetch(record, F_CD_FETCH, 3, one.cd_at);
    m.ram.fill_holes();
    // A CD through stage 2: the address is the PA.
    let (nested, _) = m.nested(4, 1, 1);
    m.ram.make_hole(nested.cd_at..nested.cd_at + 8);
    let record = m.fault(&Transaction::read(4, 0xabc_d123));
    assert_fetch(record, F_CD_FETCH, 4, nested.cd_at);
    m.ram.fill_holes();
    // A level 1 CD descriptor, with a SubstreamID.
    let l1 = m.alloc(64);
    let ste = one.ste.with(ste::S1_CD_MAX, 8).with(ste::S1_FMT, 0b01);
    m.set_ste(3, ste.with_address(ste::S1_CONTEXT_PTR, l1));
    m.ram.make_hole(l1..l1 + 64);
    let record = m.fault(&Transaction::read(3, 0xabc_d123).with_substream(0x45));
    assert_eq!(record.0, [F_CD_FETCH | 1 << 11 | 0x45 << 12 | 3 << 32, 0, 0, l1 + 8]);
    m.ram.fill_holes();
    // A level 1 Stream table descriptor.
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    m.w32(reg::STRTAB_BASE_CFG, 1 << 16 | 6 << 6 | 0xa);
    m.enable();
    m.ram.make_hole(STRTAB..STRTAB + 0x80);
    let record = m.fault(&Transaction::read(0x83, 0xabc_d123));
    assert_fetch(record, F_STE_FETCH, 0x83, STRTAB + 0x10);
    m.ram.fill_holes();
    // A level 2 table in a hole, and one beyond the physical address space.
    m.ram.set(STRTAB + 0x10, 0x3f_f000 | 7);
    m.ram.make_hole(0x3f_f000..0x40_0000);
    let record = m.fault(&Transaction::read(0x83, 0xabc_d123));
    assert_fetch(record, F_STE_FETCH, 0x83, 0x3f_f0c0);
}

/// §7.3.4, §7.3.10, §7.3.12.
#[test]
fn vs06_memory_aborts_are_fetch_faults_and_walk_aborts() {
    let mut m = Machine::everything();
    let hole = |m: &Machine, at: u64| {
        m.ram.fill_holes();
        m.ram.make_hole(at..at + 8);
    };
    // Every word of an STE and of a CD, not only the first.
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, 0x30_0000);
    for word in 0..8 {
        let at = Machine::ste_at(3) + 8 * word;
        hole(&m, at);
        m.run(&[crate::common::raw::cmd::cfgi_ste(3)]);
        m.read_faults(3, 0x5000, F_STE_FETCH);
        hole(&m, one.cd_at + 8 * word);
        m.read_faults(3, 0x5000, F_CD_FETCH);
    }
    m.ram.fill_holes();
    // Descriptors of each level of stage 1. R == 0 and S == 1 do not matter: it is no translation fault.
    m.set_cd(&one, one.cd.with(cd::R, 0).with(cd::S, 1).with(cd::A, 0));
    for level in 0..4 {
        let at = m.entry(&one.tables, 0x5000, level);
        hole(&m, at);
        let record = m.read_faults(3, 0x5678, F_WALK_EABT);
        // RnW, CLASS = TT although S2 == 0.
        assert_eq!(record.0, [0x0b | 3 << 32, 1 << 35 | 0b01 << 40, 0x5678, at]);
    }
    m.ram.fill_holes();
    assert_eq!(m.output(3, 0x5678), 0x30_0678);
    // Stage 2, for a CD, a table and the input address.
    let (nested, second) = m.nested(4, 1, 1);
    m.map(&nested.tables, 0x5000, GUEST + 0x30_0000);
    let table = m.entry(&nested.tables, 0x5000, 0);
    // Other pages than those under test in the same last-level table are reached through another path.
    let far = 0x4000_0000;
    m.map2(&second, far, 0x30_1000);
    m.map(&nested.tables, 0x6000, far);
    for (input, ipa, class, fetch) in [
        (0x6123, far, CLASS_IN, m.entry(&second, far, 3)),
        (0x5123, GUEST + table, CLASS_TT, m.entry(&second, GUEST + table, 3)),
        (0x5123, GUEST + nested.cd_at, CLASS_CD, m.entry(&second, GUEST + nested.cd_at, 3)),
    ] {
        m.run(&[crate::common::raw::cmd::cfgi_all()]);
        m.tlbi_all();
        hole(&m, fetch);
        let record = m.read_faults(4, input, F_WALK_EABT);
        assert_eq!(
            record.0,
            [0x0b | 4 << 32, 1 << 35 | 1 << 39 | class << 40, input, fetch],
            "IPA {ipa:#x}"
        );
    }
    // A stage 1 descriptor at a PA that aborts is stage 1's.
    let leaf = m.entry(&nested.tables, 0x6000, 3);
    hole(&m, leaf);
    let record = m.read_faults(4, 0x6000, F_WALK_EABT);
    assert_eq!(record.0, [0x0b | 4 << 32, 1 << 35 | 0b01 << 40, 0x6000, leaf]);
}

/// §7.3.17 to §7.3.20.
#[test]
fn vs07_rare_events_have_their_architected_numbers() {
    use smmuv3::wire::{Event, EventKind};
    for (kind, number, name) in [
        (EventKind::TlbConflict, 0x20, "F_TLB_CONFLICT"),
        (EventKind::CfgConflict, 0x21, "F_CFG_CONFLICT"),
        (EventKind::PageRequest, 0x24, "E_PAGE_REQUEST"),
        (EventKind::VmsFetch, 0x25, "F_VMS_FETCH"),
    ] {
        let event = Event::new(kind, 0x1234);
        assert_eq!(event.encode()[0], number | 0x1234 << 32);
        assert_eq!(Event::decode(&event.encode()), Some(event));
        assert!(event.to_string().starts_with(name), "{event}");
    }
    // 0x14 is no event of the architecture.
    assert_eq!(Event::decode(&[0x14, 0, 0, 0]), None);
}

/// §7.3.13 to §7.3.16.
#[test]
fn vs08_ipas_in_records_are_page_addresses() {
    let mut m = Machine::everything();
    let two = m.stage2(3, 1);
    m.map2(&two.tables, 0x12_3000, 0x30_0000);
    let leaf = m.entry(&two.tables, 0x12_3000, 3);
    let good = m.ram.get(leaf);
    for (descriptor, number) in [
        (0, F_TRANSLATION),
        (good & !pte::AF, F_ACCESS),
        (good & !pte::S2_READ, F_PERMISSION),
        (good | 1 << 47, F_ADDR_SIZE),
    ] {
        m.ram.set(leaf, descriptor);
        m.set_ste(3, two.ste.with(ste::S2_PS, 0b100));
        let record = m.read_faults(3, 0x12_3fff, number);
        assert_eq!(record.get(event::S2), 1);
        assert_eq!(record.get(event::INPUT), 0x12_3fff, "the input address is whole");
        assert_eq!(record.0[3], 0x12_3000);
    }
    // Of a CD, an input and a table behind stage 1, too; at stage 1 there is none.
    let (nested, second) = m.nested(4, 2, 1);
    m.map(&nested.tables, 0x5000, 0x5_5555_5000);
    let record = m.read_faults(4, 0x5abc, F_TRANSLATION);
    assert_eq!((record.get(event::CLASS), record.0[3]), (CLASS_IN, 0x5_5555_5000));
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    m.ram.set(m.entry(&second, GUEST + leaf, 3), 0);
    m.tlbi_all();
    let record = m.read_faults(4, 0x5abc, F_TRANSLATION);
    assert_eq!((record.get(event::CLASS), record.0[3]), (CLASS_TT, (GUEST + leaf) & !0xfff));
    m.ram.set(m.entry(&second, GUEST + nested.cd_at, 3), 0);
    m.set_ste(4, nested.ste);
    m.tlbi_all();
    let record = m.read_faults(4, 0x5abc, F_TRANSLATION);
    assert_eq!(
        (record.get(event::CLASS), record.0[3]),
        (CLASS_CD, (GUEST + nested.cd_at) & !0xfff)
    );
    let one = m.stage1(5, 1);
    m.put(&one.tables, 0x5000, 3, 0);
    assert_eq!(m.read_faults(5, 0x5abc, F_TRANSLATION).0[3], 0);
}
