//! PCIe ATS: requests, translated transactions, invalidations (§3.9.1, §4.5.1, §13.6, §13.7).

use smmuv3::{
    AtcCompletion, AtcInvalidate, AtsError, AtsRequest, AtsTranslation, Options, Refused,
    Transaction, Wire,
};

use crate::common::raw::event::*;
use crate::common::raw::{cd, cmd, event, pte, reg, ste};
use crate::common::world::Message;
use crate::common::{CERROR_ATC_INV_SYNC, GUEST, Machine, Stage1, Tables};

const FULL: u64 = 0b01;
const SPLIT: u64 = 0b10;
const OUT: u64 = 0x30_0000;

fn request(sid: u32, address: u64) -> AtsRequest {
    AtsRequest {
        stream_id: sid,
        substream_id: None,
        address,
        no_write: false,
        privileged: false,
        execute: false,
    }
}

/// With `ATSCHK`, and with configuration errors of ATS recorded.
fn checking(rec_cfg_ats: bool) -> Machine {
    let mut m = Machine::new(Options::everything());
    m.prepare();
    let rec = if rec_cfg_ats { reg::REC_CFG_ATS } else { 0 };
    m.w32(reg::CR2, reg::RECINVSID | rec);
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN | reg::SMMUEN | reg::PRIQEN | reg::ATSCHK);
    m
}

fn stage1_ats(m: &mut Machine, sid: u32) -> Stage1 {
    let one = m.stage1(sid, sid as u16);
    m.set_ste(sid, one.ste.with(ste::EATS, FULL));
    Stage1 { ste: one.ste.with(ste::EATS, FULL), ..one }
}

fn nested_ats(m: &mut Machine, sid: u32, eats: u64) -> (Stage1, Tables) {
    let (one, second) = m.nested(sid, sid as u16, 1);
    let ste = one.ste.with(ste::EATS, eats);
    m.set_ste(sid, ste);
    (Stage1 { ste, ..one }, second)
}

fn granted(found: Result<AtsTranslation, AtsError>) -> (bool, bool, bool) {
    let found = found.expect("a translation");
    (found.read, found.write, found.execute)
}

/// §3.9.1.2, first table.
#[test]
fn requests_where_ats_is_off_are_unsupported() {
    let mut m = Machine::everything();
    let one = stage1_ats(&mut m, 3);
    m.map(&one.tables, 0x5000, OUT);
    let (nested, _) = m.nested(4, 1, 1);
    let refuse = |m: &Machine, request: &AtsRequest| {
        assert_eq!(m.smmu.ats_request(request), Err(AtsError::UnsupportedRequest));
    };
    let off = one.ste.with(ste::EATS, 0b00);
    for (sid, ste) in [
        (3, off),
        (3, one.ste.with(ste::EATS, 0b11)),
        (3, ste::new(ste::BYPASS).with(ste::EATS, FULL)),
        // Split-stage needs ATSCHK.
        (4, nested.ste.with(ste::EATS, SPLIT)),
    ] {
        m.set_ste(sid, ste);
        refuse(&m, &AtsRequest { no_write: true, ..request(sid, 0x5678) });
        // Span 1, R; the address of the page.
        let record = m.event().0;
        assert_eq!(record, [0x05 | u64::from(sid) << 32, 1 << 31 | 1, 0x5000, 0]);
    }
    // W, and with a PASID X and Priv.
    refuse(&m, &request(4, 0x5678));
    assert_eq!(m.event().0[1], 1 << 31 | 1 << 30 | 1);
    let every = AtsRequest { privileged: true, execute: true, ..request(4, 0x5678) };
    refuse(&m, &AtsRequest { substream_id: Some(9), ..every });
    assert_eq!(m.event().0[..2], [0x05 | 1 << 11 | 9 << 12 | 4 << 32, 0xf000_0001]);
    refuse(&m, &every);
    assert_eq!(m.event().0[1], 1 << 31 | 1 << 30 | 1, "without a PASID there is neither");
    // Config == 0b000: in silence.
    m.set_ste(3, ste::new(ste::ABORT).with(ste::EATS, FULL));
    refuse(&m, &request(3, 0x5678));
    assert_eq!(m.events(), []);
    // SMMUEN == 0.
    m.set_ste(3, one.ste);
    m.smmu.ats_request(&request(3, 0x5678)).unwrap();
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    refuse(&m, &request(3, 0x5678));
    assert_eq!(m.event().get(event::NUMBER), F_BAD_ATS_TREQ);
}

/// §3.9.1.2, second table, down to `F_CD_FETCH`.
#[test]
fn requests_that_meet_configuration_errors_are_aborted() {
    for rec in [false, true] {
        let mut m = checking(rec);
        let one = stage1_ats(&mut m, 3);
        m.map(&one.tables, 0x5000, OUT);
        let aborted = |m: &Machine, request: AtsRequest, number: u64| {
            assert_eq!(m.smmu.ats_request(&request), Err(AtsError::CompleterAbort), "{number:#x}");
            let numbers: Vec<u64> =
                m.events().iter().map(|record| record.get(event::NUMBER)).collect();
            assert_eq!(numbers, if rec { vec![number] } else { vec![] });
        };
        let plain = request(3, 0x5678);
        aborted(&m, request(999, 0x5678), C_BAD_STREAMID);
        let at = Machine::ste_at(3);
        m.ram.make_hole(at..at + 8);
        aborted(&m, plain, F_STE_FETCH);
        m.ram.fill_holes();
        m.set_ste(3, one.ste.with(ste::V, 0));
        aborted(&m, plain, C_BAD_STE);
        m.set_ste(3, one.ste);
        aborted(&m, AtsRequest { substream_id: Some(1), ..plain }, C_BAD_SUBSTREAMID);
        m.set_ste(3, one.ste.with(ste::S1_CD_MAX, 1));
        aborted(&m, plain, F_STREAM_DISABLED);
        m.set_ste(3, one.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b10));
        aborted(&m, AtsRequest { substream_id: Some(0), ..plain }, F_STREAM_DISABLED);
        m.set_ste(3, one.ste);
        m.ram.make_hole(one.cd_at..one.cd_at + 8);
        aborted(&m, plain, F_CD_FETCH);
        m.ram.fill_holes();
        m.set_cd(&one, one.cd.with(cd::V, 0));
        aborted(&m, plain, C_BAD_CD);
        m.set_cd(&one, one.cd);
        let leaf = m.entry(&one.tables, 0x5000, 3);
        m.ram.make_hole(leaf..leaf + 8);
        aborted(&m, plain, F_WALK_EABT);
        m.ram.fill_holes();
        m.smmu.ats_request(&plain).unwrap();
        assert_eq!(m.events(), []);
    }
    // C_BAD_STREAMID needs RECINVSID as well.
    let mut m = checking(true);
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    m.w32(reg::CR2, reg::REC_CFG_ATS);
    m.enable();
    let found = m.smmu.ats_request(&request(999, 0x5678));
    assert_eq!((found, m.events()), (Err(AtsError::CompleterAbort), vec![]));
}

/// §3.9.1.2, second table: faults of translation are answers, whoever is at fault, and never stall.
#[test]
fn requests_for_pages_that_fault_are_granted_nothing() {
    let mut m = checking(true);
    let one = stage1_ats(&mut m, 3);
    m.set_cd(&one, one.cd.with(cd::S, 1).with(cd::A, 0).with(cd::IPS, 0b010));
    let nothing = |m: &Machine, sid: u32| {
        let expected = AtsTranslation {
            address: 0x5000,
            size_log2: 12,
            read: false,
            write: false,
            execute: false,
        };
        assert_eq!(m.smmu.ats_request(&request(sid, 0x5678)), Ok(expected));
        assert_eq!(m.events(), []);
    };
    for descriptor in
        [0, 1 << 40 | pte::S1_RW, OUT | pte::S1_RW & !pte::AF, OUT | pte::S1_RW & !pte::USER]
    {
        m.put(&one.tables, 0x5000, 3, descriptor);
        nothing(&m, 3);
    }
    let (nested, second) = nested_ats(&mut m, 4, FULL);
    nothing(&m, 4);
    m.map(&nested.tables, 0x5000, 0x7_7000_0000);
    nothing(&m, 4);
    m.map(&nested.tables, 0x5000, GUEST + OUT);
    assert_eq!(granted(m.smmu.ats_request(&request(4, 0x5678))), (true, true, false));
    // Stage 2 of a table, and of the CD: without a mapping, and without permission.
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    for ipa in [GUEST + leaf, GUEST + nested.cd_at] {
        let entry = m.entry(&second, ipa, 3);
        let good = m.ram.get(entry);
        for bad in [0, good & !pte::AF, good & !pte::S2_READ] {
            m.ram.set(entry, bad);
            m.run(&[cmd::cfgi_all(), cmd::new(cmd::TLBI_NSNH_ALL)]);
            nothing(&m, 4);
        }
        m.ram.set(entry, good);
    }
    // The unit of answers without a translation is the smallest granule.
    let mut m = Machine::booted(Options {
        gran4k: false,
        gran16k: false,
        ds: false,
        ..Options::everything()
    });
    let tables = m.tables(16, 42, 2);
    let one = m.stage1_over(3, Machine::cd_for(&tables, 1), tables);
    m.set_ste(3, one.ste.with(ste::EATS, FULL));
    let found = m.smmu.ats_request(&request(3, 0x1_5678)).unwrap();
    assert_eq!((found.address, found.size_log2), (0x1_0000, 16));
}

/// §13.7: the table of examples, and the overrides of §13.7.1.
#[test]
fn requests_are_granted_what_the_page_permits_to_whom() {
    const RO: u64 = OUT | pte::S1_RW | pte::READ_ONLY;
    const PRIV: u64 = OUT | pte::S1_RW & !pte::USER;
    const RW: u64 = OUT | pte::S1_RW;
    // PRIVCFG, INSTCFG.
    const PRIVILEGED: u64 = 0b11;
    const UNPRIVILEGED: u64 = 0b10;
    const DATA: u64 = 0b10;
    const INSTRUCTION: u64 = 0b11;
    let mut m = checking(false);
    let one = stage1_ats(&mut m, 3);
    let cds = m.alloc(128);
    m.store(cds, &one.cd);
    m.store(cds + 64, &one.cd);
    let ste = one.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b10);
    let ste = ste.with_address(ste::S1_CONTEXT_PTR, cds);
    // By (NW, Exe, Priv), with and without a PASID.
    let ask =
        |m: &mut Machine, pasid: bool, descriptor: u64, (nw, exe, privileged): (u8, u8, u8)| {
            m.put(&one.tables, 0x5000, 3, descriptor);
            m.tlbi_all();
            granted(m.smmu.ats_request(&AtsRequest {
                substream_id: pasid.then_some(1),
                no_write: nw == 1,
                execute: exe == 1,
                privileged: privileged == 1,
                ..request(3, 0x5678)
            }))
        };
    m.set_ste(3, ste);
    for (pasid, descriptor, wants, expected) in [
        (true, RO, (1, 0, 0), (true, false, false)),
        (true, RO, (0, 0, 0), (true, false, false)),
        (true, RW, (0, 0, 0), (true, true, false)),
        (true, RW, (0, 1, 0), (true, true, true)),
        (true, RW | pte::UXN, (0, 1, 0), (true, true, false)),
        (true, PRIV, (0, 1, 1), (true, true, true)),
        (true, PRIV | pte::PXN, (0, 1, 1), (true, true, false)),
        // User-writable memory is never executable for privileged software.
        (true, RW, (0, 1, 1), (true, true, false)),
        // Execute-only: nothing.
        (true, PRIV, (0, 1, 0), (false, false, false)),
        // Without a PASID there is neither Exe nor Priv.
        (false, RW, (0, 1, 0), (true, true, false)),
        (false, PRIV, (0, 0, 1), (false, false, false)),
    ] {
        let found = ask(&mut m, pasid, descriptor, wants);
        assert_eq!(found, expected, "PASID {pasid} {descriptor:#x} {wants:?}");
    }
    // The overrides: for whom, and as what, permissions are judged.
    for (privcfg, instcfg, descriptor, wants, expected) in [
        (PRIVILEGED, 0, PRIV, (0, 0, 0), (true, true, false)),
        (UNPRIVILEGED, 0, PRIV, (0, 0, 1), (false, false, false)),
        (0, INSTRUCTION, RW | pte::UXN, (0, 1, 0), (false, true, false)),
        (0, INSTRUCTION, PRIV, (0, 1, 0), (true, false, true)),
        (0, DATA, RW | pte::UXN, (0, 1, 0), (true, true, true)),
    ] {
        m.set_ste(3, ste.with(ste::PRIV_CFG, privcfg).with(ste::INST_CFG, instcfg));
        let found = ask(&mut m, true, descriptor, wants);
        assert_eq!(found, expected, "{privcfg:#b} {instcfg:#b} {descriptor:#x} {wants:?}");
    }
}

/// §13.7: Exe implies R.
#[test]
fn execution_is_granted_with_reads_only() {
    let mut m = checking(false);
    let (nested, second) = nested_ats(&mut m, 3, FULL);
    let cds = m.alloc(128);
    m.store(cds + 64, &nested.cd);
    let ste = nested.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b00);
    m.set_ste(3, ste.with_address(ste::S1_CONTEXT_PTR, GUEST + cds));
    m.map(&nested.tables, 0x5000, GUEST + OUT);
    let asked = AtsRequest { substream_id: Some(1), execute: true, ..request(3, 0x5678) };
    assert_eq!(granted(m.smmu.ats_request(&asked)), (true, true, true));
    // Stage 2 permits writes and execution, and no reads.
    let entry = m.entry(&second, GUEST + OUT, 3);
    m.ram.set(entry, m.ram.get(entry) & !pte::S2_READ);
    m.tlbi_all();
    assert_eq!(granted(m.smmu.ats_request(&asked)), (false, true, false));
}

/// §3.9.1, §13.7: the request is the only time that the SMMU sees the access.
#[test]
fn requests_update_access_and_dirty_state() {
    let mut m = checking(false);
    let one = stage1_ats(&mut m, 3);
    m.set_cd(&one, one.cd.with(cd::HA, 1).with(cd::HD, 1));
    let clean = OUT | (pte::S1_RW | pte::READ_ONLY | pte::DBM) & !pte::AF;
    m.put(&one.tables, 0x5000, 3, clean);
    let leaf = m.entry(&one.tables, 0x5000, 3);
    let ask = |m: &Machine, no_write| {
        granted(m.smmu.ats_request(&AtsRequest { no_write, ..request(3, 0x5678) }))
    };
    assert_eq!(ask(&m, true), (true, false, false));
    assert_eq!(m.ram.get(leaf), clean | pte::AF, "NW: not dirty");
    assert_eq!(ask(&m, false), (true, true, false));
    assert_eq!(m.ram.get(leaf), (clean | pte::AF) & !pte::READ_ONLY);
    // What grants nothing marks nothing.
    m.put(&one.tables, 0x5000, 3, clean & !pte::USER);
    m.tlbi_all();
    assert_eq!(ask(&m, false), (false, false, false));
    assert_eq!(m.ram.get(leaf), clean & !pte::USER);
}

/// §13.6.3 to §13.6.5: sizes, and what is skipped.
#[test]
fn answers_are_as_large_as_both_stages_allow() {
    let mut m = checking(false);
    let (nested, second) = nested_ats(&mut m, 3, FULL);
    let block = |flags: u64| flags & !pte::PAGE | pte::BLOCK;
    m.put(&nested.tables, 0x4000_0000, 1, 0x4000_0000 | block(pte::S1_RW));
    m.put(&second, 0x4000_0000, 2, 0x8020_0000 | block(pte::S2_RW));
    m.put(&second, 0x4020_0000, 3, 0x9000_0000 | pte::S2_RW);
    let ask = |m: &Machine, address| m.smmu.ats_request(&request(3, address)).unwrap();
    for _ in 0..2 {
        let found = ask(&m, 0x4000_5678);
        assert_eq!((found.address, found.size_log2), (0x8020_0000, 21));
        let found = ask(&m, 0x4020_0678);
        assert_eq!((found.address, found.size_log2), (0x9000_0000, 12));
    }
    // Stage 1 skipped: stage 2 alone, a PA under full and the IPA itself under split-stage ATS.
    let skip = nested.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b01);
    m.map2(&second, 0x5000, OUT);
    for (eats, address) in [(FULL, OUT), (SPLIT, 0x5000)] {
        m.set_ste(3, skip.with(ste::EATS, eats));
        let found = ask(&m, 0x5678);
        assert_eq!((found.address, found.read, found.write), (address, true, true));
    }
    let entry = m.entry(&second, 0x5000, 3);
    m.ram.set(entry, m.ram.get(entry) & !pte::S2_WRITE);
    m.tlbi_all();
    assert_eq!(granted(Ok(ask(&m, 0x5678))), (true, false, false), "stage 2's permissions");
    assert_eq!(granted(Ok(ask(&m, 0x7000_0000))), (false, false, false));
    // With stage 1 alone nothing is left: everything, one to one, whatever NW says.
    let one = stage1_ats(&mut m, 4);
    m.set_ste(4, one.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b01));
    for no_write in [false, true] {
        let request = AtsRequest { no_write, ..request(4, 0x1234_5678) };
        let found = m.smmu.ats_request(&request).unwrap();
        assert_eq!(granted(Ok(found)), (true, true, false));
        assert_eq!((found.address, found.size_log2), (0, 52));
    }
    assert_eq!(granted(m.smmu.ats_request(&request(4, 1 << 52))), (false, false, false));
}

fn translated(sid: u32, address: u64) -> Transaction {
    Transaction { translated: true, ..Transaction::read(sid, address) }
}

/// §3.9.1.3.
#[test]
fn translated_transactions_pass_or_are_checked() {
    // Without ATSCHK everything passes, whatever its stream.
    let mut m = Machine::everything();
    assert_eq!(m.go(&translated(77, 0x1234_5678)).unwrap().address, 0x1234_5678);
    assert_eq!(m.go(&translated(!0, 0x1234_5678)).unwrap().address, 0x1234_5678);
    assert_eq!(m.go(&translated(77, 1 << 52)), Err(Refused::Abort));
    assert_eq!(m.events(), []);
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    // F_TRANSL_FORBIDDEN has RnW and the address, and neither a SubstreamID nor attributes.
    let odd = Transaction { privileged: true, instruction: true, ..translated(77, 0x1234_5678) };
    let record = m.fault(&odd.with_substream(5));
    assert_eq!(record.0, [0x07 | 77 << 32, 1 << 35, 0x1234_5678, 0]);

    for rec in [false, true] {
        let mut m = checking(rec);
        let one = stage1_ats(&mut m, 3);
        assert_eq!(m.go(&translated(3, 0x1234_5678)).unwrap().address, 0x1234_5678, "not mapped");
        let write = Transaction { write: true, ..translated(3, 0x1234_5678) };
        m.go(&write).unwrap();
        assert_eq!(m.go(&translated(3, 1 << 52)), Err(Refused::Abort));
        assert_eq!(m.events(), []);
        for ste in [
            one.ste.with(ste::EATS, 0b00),
            one.ste.with(ste::EATS, 0b11),
            ste::new(ste::BYPASS).with(ste::EATS, FULL),
        ] {
            m.set_ste(3, ste);
            let record = m.fault(&write);
            assert_eq!(record.0, [0x07 | 3 << 32, 0, 0x1234_5678, 0]);
        }
        m.set_ste(3, ste::new(ste::ABORT).with(ste::EATS, FULL));
        assert_eq!(m.go(&write), Err(Refused::Abort));
        assert_eq!(m.events(), []);
        // Configuration errors abort, and are recorded on request; C_BAD_STREAMID without regard to RECINVSID.
        m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
        m.w32(reg::CR2, if rec { reg::REC_CFG_ATS } else { 0 });
        m.set_cr0(reg::CMDQEN | reg::EVENTQEN | reg::SMMUEN | reg::ATSCHK);
        let at = Machine::ste_at(9);
        m.ram.make_hole(at..at + 8);
        for (sid, number) in [(7, C_BAD_STE), (9, F_STE_FETCH), (999, C_BAD_STREAMID)] {
            assert_eq!(m.go(&translated(sid, 0x5000)), Err(Refused::Abort));
            let numbers: Vec<u64> = m.events().iter().map(|r| r.get(event::NUMBER)).collect();
            assert_eq!(numbers, if rec { vec![number] } else { vec![] });
        }
    }
}

/// §13.6.3: the address is an IPA, the rest as for any transaction.
#[test]
fn split_stage_leaves_stage_2_to_the_smmu() {
    let mut m = checking(false);
    let (nested, second) = nested_ats(&mut m, 3, SPLIT);
    m.map(&nested.tables, 0x5000, GUEST + OUT);
    let found = m.smmu.ats_request(&request(3, 0x5678)).unwrap();
    assert_eq!((found.address, found.read, found.write), (GUEST + OUT, true, true));
    for _ in 0..2 {
        assert_eq!(m.go(&translated(3, GUEST + OUT + 0x678)).unwrap().address, OUT + 0x678);
    }
    let entry = m.entry(&second, GUEST + OUT, 3);
    m.ram.set(entry, m.ram.get(entry) & !pte::S2_WRITE);
    m.tlbi_all();
    let write = Transaction { write: true, ..translated(3, GUEST + OUT + 0x678) };
    // Whatever it claims, a translated transaction is unprivileged data.
    let record = m.fault(&Transaction { privileged: true, instruction: true, ..write });
    assert_eq!(record.get(event::NUMBER), F_PERMISSION);
    assert_eq!((record.get(event::PNU), record.get(event::IND)), (0, 0));
    assert_eq!((record.get(event::S2), record.get(event::CLASS)), (1, CLASS_IN));
    assert_eq!(record.get_address(event::IPA), GUEST + OUT);
    // And the request grants what both stages permit.
    assert_eq!(granted(m.smmu.ats_request(&request(3, 0x5678))), (true, false, false));
    // An address beyond the IAS is reported at stage 1.
    let record = m.fault(&translated(3, 1 << 52));
    assert_eq!((record.get(event::NUMBER), record.get(event::S2)), (F_ADDR_SIZE, 0));
    // EATS that does not fit the stream is ILLEGAL.
    for ste in [
        nested.ste.with(ste::EATS, SPLIT).with(ste::S2_S, 1),
        nested.ste.with(ste::EATS, FULL).with(ste::S2_S, 1),
        nested.ste.with(ste::EATS, SPLIT).with(ste::CONFIG, ste::STAGE1),
        nested.ste.with(ste::EATS, SPLIT).with(ste::CONFIG, ste::STAGE2),
    ] {
        m.set_ste(3, ste);
        m.read_faults(3, 0x5678, C_BAD_STE);
    }
    let mut m = Machine::booted(Options { ns1ats: true, ..Options::everything() });
    let (nested, _) = m.nested(3, 1, 1);
    m.set_ste(3, nested.ste.with(ste::EATS, SPLIT));
    m.read_faults(3, 0x5678, C_BAD_STE);
}

fn sent(m: &Machine) -> Vec<(u64, AtcInvalidate)> {
    m.world
        .devices
        .take()
        .iter()
        .map(|message| match message {
            Message::Invalidate(tag, request) => (*tag, *request),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// §4.5.1.
#[test]
fn an_invalidation_reaches_the_endpoint_with_its_range_aligned() {
    let m = Machine::everything();
    for (size, address, expected) in [
        (0, 0x1234_5000, 0x1234_5000),
        (1, 0x1234_5000, 0x1234_4000),
        (9, 0x1234_5000, 0x1220_0000),
        (51, 0xffff_ffff_ffff_f000, 0x8000_0000_0000_0000),
        (52, 0xffff_ffff_ffff_f000, 0),
    ] {
        m.run(&[cmd::atc_inv(3, Some(0x12345), address, size)]);
        let expected = AtcInvalidate {
            stream_id: 3,
            substream_id: Some(0x12345),
            global: false,
            address: expected,
            size_log2: size as u8,
        };
        assert_eq!(sent(&m)[0].1, expected);
    }
    // Global means something with a PASID only.
    let global = (9, 9);
    m.run(&[
        cmd::atc_inv(3, Some(1), 0, 0).with(global, 1),
        cmd::atc_inv(3, None, 0, 0).with(global, 1),
    ]);
    let sent = sent(&m);
    assert_eq!((sent[0].1.global, sent[1].1.global), (true, false));
    assert_eq!(sent[1].1.substream_id, None);
    // Without SMMUEN it is ignored.
    m.w32(reg::CR0, reg::CMDQEN);
    m.run(&[cmd::atc_inv(3, None, 0, 0)]);
    assert_eq!(m.world.devices.take(), []);
}

/// A guest that never waits does not make the SMMU remember without end.
#[test]
fn invalidations_wait_when_too_many_are_unanswered() {
    let m = Machine::everything();
    m.world.devices.answer(AtcCompletion::Pending);
    let mut all = Vec::new();
    for _ in 0..40 {
        m.submit(&[cmd::atc_inv(3, None, 0, 0); 32]);
        all.extend(sent(&m));
        if !m.idle() {
            break;
        }
    }
    assert!(!m.idle(), "{} requests and no end", all.len());
    // Each answer lets one more go.
    let first = all.len();
    m.smmu.complete_atc_invalidate(all[0].0, true);
    assert_eq!(sent(&m).len(), 1);
    m.smmu.complete_atc_invalidate(all[first - 1].0, true);
    assert_eq!(sent(&m).len(), 1);
}

/// §3.9.1.4, §4.7.3, §7.1.
#[test]
fn a_sync_waits_for_endpoints_and_fails_when_one_does_not_answer() {
    let m = Machine::everything();
    m.world.wires.take();
    m.world.devices.answer(AtcCompletion::Pending);
    let at = m.r32(reg::CMDQ_PROD);
    m.submit(&[
        cmd::atc_inv(3, None, 0, 0),
        cmd::atc_inv(4, None, 0, 0),
        cmd::sync_signal(1, 0, 0),
        cmd::cfgi_all(),
    ]);
    let requests = sent(&m);
    assert_eq!(requests.len(), 2);
    assert!(!m.idle());
    assert_eq!(m.r32(reg::CMDQ_CONS), at + 2, "at the CMD_SYNC");
    m.smmu.complete_atc_invalidate(requests[1].0, true);
    m.smmu.complete_atc_invalidate(12345, true);
    m.smmu.complete_atc_invalidate(requests[1].0, false);
    assert!(!m.idle(), "answers that nobody waits for change nothing");
    assert_eq!(m.world.wires.take(), []);
    m.smmu.complete_atc_invalidate(requests[0].0, true);
    assert!(m.idle());
    assert_eq!(m.world.wires.take(), [Wire::CmdSync]);

    // One that never answers: the CMD_SYNC is not consumed and signals nothing.
    let at = m.r32(reg::CMDQ_PROD);
    m.submit(&[cmd::atc_inv(3, None, 0, 0), cmd::sync_signal(1, 0, 0)]);
    m.smmu.complete_atc_invalidate(sent(&m)[0].0, false);
    assert_eq!(m.gerror(), reg::CMDQ_ERR);
    assert_eq!(m.r32(reg::CMDQ_CONS), (at + 1) | CERROR_ATC_INV_SYNC << 24);
    assert_eq!(m.world.wires.take(), [Wire::Gerror]);
    // The error is told once; the CMD_SYNC, tried again, has nothing left to wait for.
    m.acknowledge();
    assert!(m.idle());
    assert_eq!(m.world.wires.take(), [Wire::CmdSync]);

    // At once, and only the first CMD_SYNC after it.
    m.world.devices.answer(AtcCompletion::Timeout);
    assert_eq!(m.error_of(cmd::sync()), None);
    m.submit(&[cmd::atc_inv(3, None, 0, 0), cmd::cfgi_all()]);
    assert!(m.idle(), "the command itself does not fail");
    assert_eq!(m.error_of(cmd::sync()), Some(CERROR_ATC_INV_SYNC));
    assert_eq!(m.error_of(cmd::sync()), None);
}

/// A guest can queue half a million invalidations; neither they nor their answers pile up here.
#[test]
fn invalidations_without_an_answer_hold_later_ones_back() {
    let mut m = Machine::new(Options::everything());
    m.prepare();
    m.w32(reg::CR0, 0);
    m.w64(reg::CMDQ_BASE, 0x8_0000 | 0x8);
    m.w32(reg::CMDQ_PROD, 0);
    m.w32(reg::CMDQ_CONS, 0);
    m.w32(reg::CR0, reg::CMDQEN | reg::SMMUEN);
    m.world.devices.answer(AtcCompletion::Pending);
    for n in 0..200 {
        m.store(0x8_0000 + 16 * n, &cmd::atc_inv(3, None, n << 12, 0));
    }
    m.w32(reg::CMDQ_PROD, 200);
    let first = sent(&m);
    assert_eq!(first.len(), 64);
    assert_eq!(m.r32(reg::CMDQ_CONS), 64);
    m.smmu.complete_atc_invalidate(first[63].0, true);
    let next = sent(&m);
    assert_eq!(next.len(), 1);
    m.world.devices.answer(AtcCompletion::Done);
    for (tag, _) in first.iter().chain(&next) {
        m.smmu.complete_atc_invalidate(*tag, true);
    }
    assert_eq!(m.r32(reg::CMDQ_CONS), 200);
    let rest: Vec<_> = sent(&m).iter().map(|(_, request)| request.address >> 12).collect();
    assert_eq!(rest, (65..200).collect::<Vec<_>>(), "in order");
}
