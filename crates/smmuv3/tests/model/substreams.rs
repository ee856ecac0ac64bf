//! SubstreamIDs, `S1DSS`, and tables of CDs (§5.2, §5.3, §7.3.7, §7.3.9).

use smmuv3::{Options, Refused, Transaction};

use crate::common::raw::event::*;
use crate::common::raw::{cmd, event, ste};
use crate::common::{GUEST, Machine, Stage1};

const OUT: u64 = 0x30_0000;

/// A stream with `1 << log2` CDs in a row; the one of SubstreamID n maps 0x5000 to `OUT + n pages`.
fn linear(m: &mut Machine, log2: u64, dss: u64) -> Stage1 {
    let one = m.stage1(3, 100);
    let table = m.alloc(64 << log2);
    for n in 0..1 << log2 {
        let tables = m.tables48();
        m.map(&tables, 0x5000, OUT + (n << 12));
        m.store(table + 64 * n, &Machine::cd_for(&tables, 100 + n as u16));
    }
    let ste = one
        .ste
        .with(ste::S1_CD_MAX, log2)
        .with(ste::S1_DSS, dss)
        .with_address(ste::S1_CONTEXT_PTR, table);
    m.set_ste(3, ste);
    Stage1 { ste, cd_at: table, ..one }
}

fn with(ssid: u32) -> Transaction {
    Transaction::read(3, 0x5008).with_substream(ssid)
}

const WITHOUT: fn() -> Transaction = || Transaction::read(3, 0x5008);

#[test]
fn substreams_use_their_own_cd() {
    let mut m = Machine::everything();
    linear(&mut m, 2, 0b00);
    for round in 0..2 {
        let loads = m.ram.loads();
        for ssid in 0..4 {
            let found = m.go(&with(ssid)).unwrap().address;
            assert_eq!(found, OUT + 8 + (u64::from(ssid) << 12));
        }
        assert!(round == 0 || m.ram.loads() == loads, "they do not evict each other");
    }
    // Beyond the table, and beyond what the SMMU has, whatever is cached.
    for ssid in [4, 5, 0xf_ffff, 1 << 20, (1 << 20) | 1, (1 << 20) | 3, 0x8000_0002, !0] {
        let record = m.fault(&with(ssid));
        // No SSV bit: the SubstreamID is always valid here.
        assert_eq!(record.0[0], 0x08 | (u64::from(ssid) & 0xf_ffff) << 12 | 3 << 32);
        assert_eq!(record.0[1..], [0, 0, 0]);
    }
    // An invalidation by SubstreamID, and of all of a stream.
    for command in [cmd::cfgi_cd(3, 1), cmd::stream(cmd::CFGI_CD_ALL, 3)] {
        let table = m.ram.get(Machine::ste_at(3)) & 0x00ff_ffff_ffff_ffc0;
        let v = m.ram.get(table + 64);
        m.ram.set(table + 64, v & !(1 << 31));
        m.run(&[command]);
        let record = m.fault(&with(1));
        assert_eq!(record.0[0], 0x0a | 1 << 11 | 1 << 12 | 3 << 32);
        m.ram.set(table + 64, v);
        m.run(&[command]);
        m.go(&with(1)).unwrap();
    }
}

/// §5.2, S1DSS: all values.
#[test]
fn s1dss_says_what_becomes_of_transactions_without_a_substream() {
    for dss in 0..4 {
        let mut m = Machine::everything();
        linear(&mut m, 1, dss);
        match dss {
            0b01 => {
                // Past stage 1, without a CD: an address beyond the output size is stage 1's fault.
                assert_eq!(m.go(&WITHOUT()).unwrap().address, 0x5008);
                let record = m.read_faults(3, 1 << 52, F_ADDR_SIZE);
                assert_eq!((record.get(event::S2), record.get(event::CLASS)), (0, CLASS_IN));
                assert_eq!(m.go(&with(0)).unwrap().address, OUT + 8);
            }
            0b10 => {
                assert_eq!(m.go(&WITHOUT()).unwrap().address, OUT + 8);
                let record = m.fault(&with(0));
                assert_eq!(record.0, [0x06 | 3 << 32, 0, 0, 0]);
            }
            _ => {
                let record = m.fault(&WITHOUT());
                assert_eq!(record.0, [0x06 | 3 << 32, 0, 0, 0]);
                assert_eq!(m.go(&with(0)).unwrap().address, OUT + 8);
            }
        }
        assert_eq!(m.go(&with(1)).unwrap().address, OUT + 0x1008);
    }
    // Bypassed stage 1 under stage 2: the address is an IPA.
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 1);
    m.set_ste(3, nested.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b01));
    m.map2(&second, 0x5000, OUT);
    for _ in 0..2 {
        assert_eq!(m.go(&WITHOUT()).unwrap().address, OUT + 8);
    }
    let record = m.read_faults(3, 0x6000, F_TRANSLATION);
    assert_eq!((record.get(event::S2), record.get(event::CLASS)), (1, CLASS_IN));
}

/// §5.2: where substreams are off, or stage 1 is.
#[test]
fn a_substream_where_there_are_none_is_an_error() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, OUT);
    let two = m.stage2(4, 1);
    for ste in [one.ste, ste::new(ste::BYPASS), two.ste] {
        m.set_ste(3, ste);
        assert_eq!(m.fault(&with(0)).get(event::NUMBER), C_BAD_SUBSTREAMID);
        let bare = m.go(&WITHOUT());
        assert!(bare.is_ok() || m.event().get(event::NUMBER) == F_TRANSLATION);
    }
    // An aborting stream aborts in silence all the same.
    m.set_ste(3, ste::new(ste::ABORT));
    assert_eq!(m.go(&with(0)), Err(Refused::Abort));
    assert_eq!(m.events(), []);
    // S1CDMax beyond SSIDSIZE is ILLEGAL; without SubstreamIDs it is ignored.
    let mut m = Machine::booted(Options { ssid_bits: 4, ..Options::everything() });
    linear(&mut m, 4, 0b00);
    m.go(&with(15)).unwrap();
    let one = m.stage1(3, 1);
    m.set_ste(3, one.ste.with(ste::S1_CD_MAX, 5));
    m.read_faults(3, 0x5000, C_BAD_STE);
    let options = Options { ssid_bits: 0, cd2l: false, pps: false, ..Options::everything() };
    let mut m = Machine::booted(options);
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, OUT);
    m.set_ste(3, one.ste.with(ste::S1_CD_MAX, 31).with(ste::S1_FMT, 0b01));
    assert_eq!(m.go(&WITHOUT()).unwrap().address, OUT + 8);
    assert_eq!(m.fault(&with(0)).get(event::NUMBER), C_BAD_SUBSTREAMID);
}

/// §5.2 (S1Fmt), §5.3.
#[test]
fn two_level_tables_of_cds_have_leaves_of_64_or_1024() {
    for (format, split, max) in [(0b01, 6u32, 8u32), (0b10, 10, 12), (0b01, 6, 3), (0b10, 10, 3)] {
        let mut m = Machine::everything();
        let one = m.stage1(3, 1);
        m.map(&one.tables, 0x5000, OUT);
        let l1 = m.alloc(0x1000);
        let leaf = m.alloc(64 << split);
        let index = if max > split { 2 } else { 0 };
        m.ram.set(l1 + 8 * index, leaf | 1);
        // The address of a leaf is aligned to its size.
        if split == 10 {
            m.ram.set(l1 + 8 * index, leaf | 0xf001);
        }
        let last_in_leaf = (1u32 << split.min(max)) - 1;
        m.store(leaf + 64, &one.cd);
        m.store(leaf + 64 * u64::from(last_in_leaf), &one.cd);
        let ste = one.ste.with(ste::S1_FMT, format).with(ste::S1_CD_MAX, max.into());
        m.set_ste(3, ste.with_address(ste::S1_CONTEXT_PTR, l1));
        let first = (index as u32) << split;
        for ssid in [first + 1, first + last_in_leaf] {
            assert_eq!(m.go(&with(ssid)).unwrap().address, OUT + 8, "S1Fmt {format:#b} {ssid:#x}");
        }
        assert_eq!(m.fault(&with(first + 2)).get(event::NUMBER), C_BAD_CD);
        let beyond = m.fault(&with(1 << max));
        assert_eq!(
            (beyond.get(event::NUMBER), beyond.get(event::SSID)),
            (C_BAD_SUBSTREAMID, 1 << max)
        );
        if max > split {
            // An invalid level 1 descriptor, and one that points beyond the address space.
            assert_eq!(m.fault(&with(1)).get(event::NUMBER), C_BAD_SUBSTREAMID);
            m.ram.set(l1 + 8, 1 << 52 | 1);
            let record = m.fault(&with((1 << split) | 5));
            assert_eq!(record.get(event::NUMBER), C_BAD_SUBSTREAMID);
            assert_eq!(record.get(event::SSID), u64::from((1u32 << split) | 5));
        }
        // Without a substream under S1DSS 0b10, the record names substream 0.
        let ste = ste.with(ste::S1_DSS, 0b10).with_address(ste::S1_CONTEXT_PTR, l1);
        m.ram.set(l1, 0);
        m.set_ste(3, ste);
        let record = m.fault(&WITHOUT());
        assert_eq!((record.get(event::NUMBER), record.get(event::SSID)), (C_BAD_SUBSTREAMID, 0));
    }
    // Where the SMMU has no such tables, the formats are ILLEGAL, and 0b11 is linear.
    let mut m = Machine::booted(Options { cd2l: false, ..Options::everything() });
    let one = linear(&mut m, 2, 0b00);
    for (format, legal) in [(0b00, true), (0b01, false), (0b10, false), (0b11, true)] {
        m.set_ste(3, one.ste.with(ste::S1_FMT, format));
        if legal {
            assert_eq!(m.go(&with(2)).unwrap().address, OUT + 0x2008);
        } else {
            assert_eq!(m.fault(&with(2)).get(event::NUMBER), C_BAD_STE);
        }
    }
}

/// §5.3: under stage 2 all pointers are IPAs.
#[test]
fn two_level_tables_of_cds_are_found_through_stage_2() {
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 1);
    m.map(&nested.tables, 0x5000, GUEST + OUT);
    let (l1, leaf) = (m.alloc(0x1000), m.alloc(0x1000));
    m.ram.set(l1 + 8, (GUEST + leaf) | 1);
    m.store(leaf + 64 * 5, &nested.cd);
    let ste = nested.ste.with(ste::S1_FMT, 0b01).with(ste::S1_CD_MAX, 8);
    m.set_ste(3, ste.with_address(ste::S1_CONTEXT_PTR, GUEST + l1));
    assert_eq!(m.go(&with(69)).unwrap().address, OUT + 8);
    for at in [l1, leaf] {
        let entry = m.entry(&second, GUEST + at, 3);
        let good = m.ram.get(entry);
        m.ram.set(entry, 0);
        m.run(&[cmd::cfgi_all(), cmd::new(cmd::TLBI_NSNH_ALL)]);
        let record = m.fault(&with(69));
        assert_eq!(
            (record.get(event::NUMBER), record.get(event::CLASS)),
            (F_TRANSLATION, CLASS_CD)
        );
        assert_eq!(record.get_address(event::IPA), GUEST + at);
        assert_eq!(record.get(event::SSID), 69);
        m.ram.set(entry, good);
    }
}

/// §3.3.3, StreamWorld: EL2 has one range and no ASIDs, EL2-E2H both.
#[test]
fn streams_of_el2_are_a_world_of_their_own() {
    use crate::common::raw::{cd, reg};
    for e2h in [false, true] {
        let mut m = Machine::new(Options::everything());
        m.prepare();
        m.w32(reg::CR2, reg::RECINVSID | if e2h { reg::E2H } else { 0 });
        m.enable();
        let one = m.stage1(3, 77);
        m.map(&one.tables, 0x5000, OUT);
        m.set_ste(3, one.ste.with(ste::STRW, 0b10));
        // EPD0 and the upper half mean nothing to EL2.
        let cd = one.cd.with(cd::EPD1, 0).with(cd::TG1, 0b10).with(cd::T1SZ, 16);
        m.set_cd(&one, cd.with_address(cd::TTB1, one.tables.root));
        assert_eq!(m.output(3, 0x5008), OUT + 8);
        if e2h {
            assert_eq!(m.output(3, 0xffff_0000_0000_5008), OUT + 8);
        } else {
            m.read_faults(3, 0xffff_0000_0000_5008, F_TRANSLATION);
            m.set_cd(&one, cd.with(cd::EPD0, 1));
            assert_eq!(m.output(3, 0x5008), OUT + 8);
            // AP[1] means nothing with one privilege.
            m.put(&one.tables, 0x6000, 3, OUT | crate::common::raw::pte::S1_RW & !(1 << 6));
            assert_eq!(m.output(3, 0x6008), OUT + 8);
        }
        // Its own invalidations, and only those.
        let leaf = m.entry(&one.tables, 0x5000, 3);
        for (command, reaches) in [
            (cmd::tlbi(cmd::TLBI_NH_ALL, 0, 0), false),
            (cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 77, 0x5000), false),
            (cmd::tlbi_va(cmd::TLBI_EL2_VA, 0, 77, 0x5000), true),
            (cmd::tlbi_va(cmd::TLBI_EL2_VAA, 0, 0, 0x5000), true),
            (cmd::tlbi(cmd::TLBI_EL2_ASID, 0, 78), false),
            (cmd::tlbi(cmd::TLBI_EL2_ASID, 0, 77), e2h),
            (cmd::new(cmd::TLBI_EL2_ALL), true),
        ] {
            let was = m.output(3, 0x5008) & !0xfff;
            let now = was ^ 0x1_0000;
            m.ram.set(leaf, m.ram.get(leaf) ^ 0x1_0000);
            m.run(&[command]);
            let found = m.output(3, 0x5008) & !0xfff;
            if reaches {
                assert_eq!(found, now, "E2H {e2h} {command:x?}");
            }
            m.run(&[cmd::new(cmd::TLBI_EL2_ALL)]);
        }
        // Reserved worlds are ILLEGAL.
        for strw in [0b01, 0b11] {
            m.set_ste(3, one.ste.with(ste::STRW, strw));
            m.read_faults(3, 0x5008, C_BAD_STE);
        }
    }
}

/// §5.2.2, `IgnoreSTESTRW`: where STRW does not count, reserved values are not ILLEGAL.
#[test]
fn the_world_is_ignored_where_stage_1_alone_does_not_translate() {
    for strw in 0..4 {
        let mut m = Machine::everything();
        let (nested, second) = m.nested(3, 1, 1);
        m.map(&nested.tables, 0x5000, GUEST + OUT);
        m.set_ste(3, nested.ste.with(ste::STRW, strw));
        assert_eq!(m.output(3, 0x5008), OUT + 8, "nested, STRW {strw:#b}");
        // Tagged as NS-EL1, and invalidated as such.
        m.ram.set(m.entry(&nested.tables, 0x5000, 3), 0);
        m.run(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 1, 1, 0x5000)]);
        m.read_faults(3, 0x5008, F_TRANSLATION);
        m.map2(&second, 0x5000, OUT);
        m.set_ste(3, nested.ste.with(ste::CONFIG, ste::STAGE2).with(ste::STRW, strw));
        assert_eq!(m.output(3, 0x5008), OUT + 8, "stage 2, STRW {strw:#b}");
        m.set_ste(3, ste::new(ste::BYPASS).with(ste::STRW, strw));
        assert_eq!(m.output(3, 0x5008), 0x5008, "bypass, STRW {strw:#b}");
        let mut m = Machine::booted(Options { hyp: false, ..Options::everything() });
        let one = m.stage1(3, 1);
        m.map(&one.tables, 0x5000, OUT);
        m.set_ste(3, one.ste.with(ste::STRW, strw));
        assert_eq!(m.output(3, 0x5008), OUT + 8, "without EL2, STRW {strw:#b}");
    }
}
