//! 29 and 30: the TLB, and what an SMMU may claim to be.

use smmuv3::{Options, Transaction, Version};

use crate::common::raw::cmd::Cmd;
use crate::common::raw::event::*;
use crate::common::raw::{cmd, event, pte, reg};
use crate::common::{GUEST, Machine, Stage1, Tables};

const OLD: u64 = 0x30_0000;
const NEW: u64 = 0x31_0000;

/// §4.4, §3.17.
#[test]
fn vs29_a_hit_checks_every_permission() {
    let mut m = Machine::everything();
    let read = |sid| Transaction::read(sid, 0x5000);
    let write = |sid| Transaction::write(sid, 0x5000);
    // Stage 2: write-only, read-only, execute-never, each hit by everything else.
    let two = m.stage2(3, 1);
    let fetch = Transaction { instruction: true, ..read(3) };
    m.map2(&two.tables, 0x5000, OLD);
    let leaf = m.entry(&two.tables, 0x5000, 3);
    let good = m.ram.get(leaf);
    for (descriptor, granted, denied) in [
        (good & !pte::S2_READ, vec![write(3)], vec![read(3)]),
        (good & !pte::S2_WRITE, vec![read(3), fetch], vec![write(3)]),
        (good | 1 << 54, vec![read(3), write(3)], vec![fetch]),
    ] {
        m.ram.set(leaf, descriptor);
        m.tlbi_all();
        for _ in 0..2 {
            for transaction in &granted {
                assert_eq!(m.go(transaction).unwrap().address, OLD);
            }
            for transaction in &denied {
                let record = m.fault(transaction);
                assert_eq!(record.get(event::NUMBER), F_PERMISSION, "{transaction:?}");
            }
        }
    }
    // Stage 1: privileges.
    let one = m.stage1(4, 1);
    m.put(&one.tables, 0x5000, 3, (OLD | pte::S1_RW) & !pte::USER | pte::UXN);
    let privileged = Transaction { privileged: true, ..write(4) };
    for _ in 0..2 {
        m.go(&privileged).unwrap();
        assert_eq!(m.fault(&read(4)).get(event::NUMBER), F_PERMISSION);
        let fetch = Transaction { instruction: true, ..read(4) };
        assert_eq!(m.fault(&fetch).get(event::NUMBER), F_PERMISSION);
    }
    // Nested: the stage that denies reports, also from a cached combination.
    let (nested, second) = m.nested(5, 2, 2);
    m.map(&nested.tables, 0x5000, GUEST + OLD);
    let entry = m.entry(&second, GUEST + OLD, 3);
    m.ram.set(entry, m.ram.get(entry) & !pte::S2_WRITE);
    m.tlbi_all();
    for _ in 0..2 {
        m.go(&read(5)).unwrap();
        let record = m.fault(&write(5));
        assert_eq!((record.get(event::NUMBER), record.get(event::S2)), (F_PERMISSION, 1));
        assert_eq!(record.get_address(event::IPA), GUEST + OLD);
    }
}

/// Two streams of one VM with different ASIDs over one set of tables; the page at 0x5000 with or without nG.
fn two_asids(m: &mut Machine, not_global: u64) -> (Stage1, Stage1) {
    let tables = m.tables48();
    m.put(&tables, 0x5000, 3, OLD | pte::S1_RW & !pte::NG | not_global);
    let [first, second] = [(3, 11), (4, 12)]
        .map(|(sid, asid)| m.stage1_over(sid, Machine::cd_for(&tables, asid), tables));
    assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (OLD, OLD));
    (first, second)
}

fn remap(m: &mut Machine, tables: &Tables, input: u64, output: u64) {
    let leaf = m.entry(tables, input, 3);
    m.ram.set(leaf, m.ram.get(leaf) & !0x0000_ffff_ffff_f000 | output);
}

/// §4.4.2, §3.17.
#[test]
fn vs29_global_entries_match_every_asid_and_survive_an_invalidation_by_asid() {
    let mut m = Machine::everything();
    // Not global: the ASID that is named, and no other.
    let (one, _) = two_asids(&mut m, pte::NG);
    remap(&mut m, &one.tables, 0x5000, NEW);
    assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (OLD, OLD), "cached");
    m.run(&[cmd::tlbi(cmd::TLBI_NH_ASID, 0, 11)]);
    assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (NEW, OLD));
    remap(&mut m, &one.tables, 0x5000, OLD);
    m.tlbi_all();
    assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (OLD, OLD));
    remap(&mut m, &one.tables, 0x5000, NEW);
    m.run(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 12, 0x5000)]);
    assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (OLD, NEW));
    // Global: by ASID they stay; by address they go under whichever ASID.
    let mut m = Machine::everything();
    let (one, _) = two_asids(&mut m, 0);
    remap(&mut m, &one.tables, 0x5000, NEW);
    m.run(&[cmd::tlbi(cmd::TLBI_NH_ASID, 0, 11), cmd::tlbi(cmd::TLBI_NH_ASID, 0, 12)]);
    assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (OLD, OLD));
    m.run(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 999, 0x5000)]);
    assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (NEW, NEW));
    // VAA and ALL take both kinds.
    for command in [
        cmd::tlbi_va(cmd::TLBI_NH_VAA, 0, 0, 0x5000),
        cmd::tlbi(cmd::TLBI_NH_ALL, 0, 0),
        cmd::tlbi(cmd::TLBI_S12_VMALL, 0, 0),
        cmd::new(cmd::TLBI_NSNH_ALL),
    ] {
        for not_global in [0, pte::NG] {
            let mut m = Machine::everything();
            let (one, _) = two_asids(&mut m, not_global);
            remap(&mut m, &one.tables, 0x5000, NEW);
            m.run(&[command]);
            assert_eq!((m.output(3, 0x5000), m.output(4, 0x5000)), (NEW, NEW), "{command:x?}");
        }
    }
}

/// Maps the pages from `first` on, uses them, maps them elsewhere and runs the command; returns which
/// pages are translated anew.
fn renewed(m: &mut Machine, one: &Stage1, pages: &[u64], command: Cmd) -> Vec<u64> {
    m.tlbi_all();
    for page in pages {
        remap(m, &one.tables, *page, OLD);
        assert_eq!(m.output(one.sid, *page), OLD);
    }
    pages.iter().for_each(|page| remap(m, &one.tables, *page, NEW));
    m.run(&[command]);
    pages.iter().copied().filter(|page| m.output(one.sid, *page) == NEW).collect()
}

/// §4.4.1.1.
#[test]
fn vs29_a_range_is_its_multiplier_scaled_and_a_level_is_only_a_hint() {
    let mut m = Machine::everything();
    let base = 0x4000_0000;
    // By granule: pages before, in and after a range.
    for (granule, tg, level, bits) in [(12, 1, 0, 48), (14, 2, 1, 47), (16, 3, 1, 48)] {
        let tables = m.tables(granule, bits, level);
        let sid = granule;
        let one = m.stage1_over(sid, Machine::cd_for(&tables, sid as u16), tables);
        let page = 1u64 << granule;
        let pages: Vec<u64> = (0..12).map(|n| base - page + n * page).collect();
        for at in &pages {
            m.put(&tables, *at, 3, OLD | pte::S1_RW);
        }
        for (num, scale) in [(0, 0), (2, 0), (0, 2), (1, 2), (4, 1)] {
            let count = (num + 1) << scale;
            let command = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, sid as u16, base);
            let command = cmd::range(command, tg, num, scale, 3);
            let gone = renewed(&mut m, &one, &pages, command);
            let expected: Vec<u64> = (0..count).map(|n| base + n * page).collect();
            for page in &expected {
                assert!(
                    gone.contains(page),
                    "{granule}: NUM {num} SCALE {scale}: {page:#x} stayed"
                );
            }
            assert!(!gone.contains(&pages[0]) || granule > 12, "4K: not what is before the range");
        }
        // TG == 0: one entry, and NUM, SCALE and TTL do not count.
        let command = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, sid as u16, base + page);
        let gone = renewed(&mut m, &one, &pages, command);
        assert!(gone.contains(&(base + page)));
        assert!(!gone.contains(&pages[0]));
    }
    // A block goes as a whole by any address in it, without a hint and with the right one.
    let one = m.stage1(3, 33);
    let block = |output: u64| output | pte::S1_RW & !pte::PAGE | pte::BLOCK;
    for (level, input, ttl) in [(2, 0x4000_0000u64, 2), (1, 0x8000_0000, 1)] {
        let size = 1u64 << if level == 2 { 21 } else { 30 };
        let inside = [0, 0x5000, size / 2, size - 0x1000];
        for (at, tg) in [(input + 0x5000, 0), (input + size - 0x1000, 0), (input, 1)] {
            m.put(&one.tables, input, level, block(0x40_0000_0000));
            m.tlbi_all();
            inside.iter().for_each(|offset| {
                assert_eq!(m.output(3, input + offset), 0x40_0000_0000 + offset);
            });
            m.put(&one.tables, input, level, block(0x80_0000_0000));
            let command = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 33, at);
            m.run(&[if tg == 0 { command } else { cmd::range(command, 1, 0, 0, ttl) }]);
            inside.iter().for_each(|offset| {
                assert_eq!(m.output(3, input + offset), 0x80_0000_0000 + offset, "level {level}");
            });
        }
    }
    // A hint for pages does not leave a second, older entry behind: a page and then a block at one address.
    m.put(&one.tables, 0xc000_0000, 3, OLD | pte::S1_RW);
    assert_eq!(m.output(3, 0xc000_0000), OLD);
    let at = m.entry(&one.tables, 0xc000_0000, 2);
    m.ram.set(at, 0);
    let page = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 33, 0xc000_0000).with(cmd::LEAF, 0);
    m.run(&[cmd::range(page, 1, 0, 0, 3)]);
    m.ram.set(at, block(0x80_0000_0000));
    assert_eq!(m.output(3, 0xc000_0000), 0x80_0000_0000);
    m.ram.set(at, block(0x40_0000_0000));
    m.run(&[cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 33, 0xc000_0000), 1, 0, 0, 2)]);
    assert_eq!(m.output(3, 0xc000_0000), 0x40_0000_0000);
}

/// §4.4.3.1.
#[test]
fn vs29_an_invalidation_by_ipa_reaches_stage_2_and_with_nh_all_everything() {
    let mut m = Machine::everything();
    let two = m.stage2(3, 1);
    for page in [0x5000, 0x6000] {
        m.map2(&two.tables, page, OLD);
        assert_eq!(m.output(3, page), OLD);
        remap(&mut m, &two.tables, page, NEW);
    }
    // For a stream with stage 2 only it is enough, and it is of one VMID.
    m.run(&[cmd::tlbi_va(cmd::TLBI_S2_IPA, 2, 0, 0x5000)]);
    assert_eq!(m.output(3, 0x5000), OLD);
    m.run(&[cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, 0x5000)]);
    assert_eq!((m.output(3, 0x5000), m.output(3, 0x6000)), (NEW, OLD));
    m.run(&[cmd::range(cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, 0x4000), 1, 3, 0, 3)]);
    assert_eq!(m.output(3, 0x6000), NEW);
    // For a nested stream together with an invalidation of stage 1, as software is told.
    let (nested, second) = m.nested(4, 2, 1);
    m.map(&nested.tables, 0x5000, GUEST + OLD);
    for leaf in [0, 1] {
        for finish in
            [cmd::tlbi(cmd::TLBI_NH_ALL, 2, 0), cmd::tlbi_va(cmd::TLBI_NH_VAA, 2, 0, 0x5000)]
        {
            remap(&mut m, &second, GUEST + OLD, OLD);
            m.tlbi_all();
            assert_eq!(m.output(4, 0x5000), OLD);
            remap(&mut m, &second, GUEST + OLD, NEW);
            m.run(&[
                cmd::tlbi_va(cmd::TLBI_S2_IPA, 2, 0, GUEST + OLD).with(cmd::LEAF, leaf),
                finish,
            ]);
            assert_eq!(m.output(4, 0x5000), NEW);
        }
    }
    // And where the page that moves is one of stage 1's tables.
    let table = m.entry(&nested.tables, 0x5000, 3) & !0xfff;
    let copy = m.alloc(0x1000);
    (0..512).for_each(|n| m.ram.set(copy + 8 * n, m.ram.get(table + 8 * n)));
    m.ram.set(copy + 8 * 5, (GUEST + 0x32_0000) | pte::S1_RW);
    remap(&mut m, &second, GUEST + table, copy);
    let commands =
        [cmd::tlbi_va(cmd::TLBI_S2_IPA, 2, 0, GUEST + table), cmd::tlbi(cmd::TLBI_NH_ALL, 2, 0)];
    m.run(&commands);
    assert_eq!(m.output(4, 0x5000), 0x32_0000);
}

/// §6.3.4, §6.3.8.
#[test]
fn vs30_an_smmu_does_not_claim_a_version_without_its_features() {
    let ids = |options: &Options| {
        let m = Machine::new(options.clone());
        (m.r32(reg::IDR0), m.r32(reg::IDR3), m.r32(reg::IDR5), m.r32(reg::AIDR))
    };
    for options in [
        Options::linux_host(),
        Options::mmu600(),
        Options::mmu700(),
        Options::minimal(),
        Options::everything(),
    ] {
        let (idr0, idr3, _, aidr) = ids(&options);
        let bit = |word: u32, bit: u32| word >> bit & 1 == 1;
        let (stage2, stage1) = (bit(idr0, 0), bit(idr0, 1));
        assert_eq!(aidr >> 4, 0, "SMMUv3");
        if aidr >= 1 {
            assert!(!stage1 || bit(idr3, 2), "HAD from 3.1 on");
            assert!(!stage2 || bit(idr3, 4), "XNX from 3.1 on");
        }
        if aidr >= 2 {
            assert!(bit(idr3, 10), "RIL from 3.2 on");
            assert!(matches!(idr3 >> 11 & 3, 1 | 2), "BBML from 3.2 on");
            assert!(!stage2 || bit(idr3, 8), "FWB from 3.2 on");
        }
        if aidr >= 3 {
            assert!(bit(idr3, 13), "E0PD from 3.3 on");
            assert!(!stage2 || bit(idr3, 14), "PTWNNC from 3.3 on");
        }
    }
    // What is inconsistent is refused, with the field to change.
    let every = Options::everything;
    let v3_1 = Options { version: Version::V3_1, ds: false, atsrecerr: false, ..every() };
    for (field, options) in [
        ("ril", Options { ril: false, ds: false, ..every() }),
        ("ril", Options { version: Version::V3_2, ril: false, bbml: 1, ..v3_1.clone() }),
        ("ril", Options { ril: true, fwb: false, ..v3_1.clone() }),
        ("bbml", Options { bbml: 0, ..every() }),
        ("bbml", Options { bbml: 3, ..every() }),
        ("e0pd", Options { e0pd: false, ..every() }),
        ("ptwnnc", Options { ptwnnc: false, ..every() }),
        ("fwb", Options { fwb: false, ..every() }),
        ("fwb", Options { ril: false, ..v3_1.clone() }),
        ("xnx", Options { xnx: false, ..every() }),
        ("xnx", Options { ril: false, fwb: false, xnx: false, ..v3_1.clone() }),
        ("had", Options { had: false, ..every() }),
        ("oas", Options { oas: 50, ..every() }),
        ("oas", Options { oas: 52, ..Options::minimal() }),
        ("pri", Options { ats: false, atsrecerr: false, ..every() }),
        ("sid_bits", Options { sid_bits: 33, ..every() }),
    ] {
        let error = options.check().expect_err(field);
        assert_eq!(error.field, field, "{error}");
        assert!(error.to_string().contains(field));
    }
    // 3.0 and 3.1 need none of it, and stage 2's features need stage 2.
    Options::minimal().check().unwrap();
    Options { had: true, ..Options::minimal() }.check().unwrap();
    let stage1_only =
        Options { stage2: false, vmid16: false, xnx: false, fwb: false, ptwnnc: false, ..every() };
    stage1_only.check().unwrap();
}
