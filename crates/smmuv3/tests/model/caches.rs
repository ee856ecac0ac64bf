//! What caches must forget: tables that moved, and what a walk read before an invalidation (§3.21, §4.4).

use std::sync::Arc;

use smmuv3::Transaction;

use crate::common::raw::cmd::Cmd;
use crate::common::raw::event::*;
use crate::common::raw::{cmd, event, pte, ste};
use crate::common::{CMDQ, GUEST, Machine, Tables};

const OLD: u64 = 0x30_0000;
const NEW: u64 = 0x31_0000;

/// Copies the last-level table for `input` and has the level above point to the copy; in the copy all pages that were
/// mapped are mapped to [`NEW`].
fn move_table(m: &mut Machine, tables: &Tables, input: u64) {
    let old = m.entry(tables, input, 3) & !0xfff;
    let copy = m.alloc(0x1000);
    for n in (0..0x1000).step_by(8) {
        let descriptor = m.ram.get(old + n);
        let moved = descriptor & !0x000f_ffff_ffff_f000 | (NEW + tables.offset);
        m.ram.set(copy + n, if descriptor & 1 == 1 { moved } else { 0 });
    }
    let above = m.entry(tables, input, 2);
    m.ram.set(above, (copy + tables.offset) | pte::TABLE);
}

/// §4.4.2: with Leaf == 0 the tables on the way to the address go as well, whichever pages of theirs were used.
#[test]
fn a_table_that_moved_is_found_after_an_invalidation_that_is_not_of_the_leaf_alone() {
    let not_leaf = |command: Cmd| command.with(cmd::LEAF, 0);
    for command in [
        not_leaf(cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 1, 0x5000)),
        not_leaf(cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 1, 0x5000), 1, 0, 0, 3)),
        not_leaf(cmd::tlbi_va(cmd::TLBI_NH_VAA, 0, 0, 0x5000)),
        cmd::tlbi(cmd::TLBI_NH_ASID, 0, 1),
        cmd::tlbi(cmd::TLBI_NH_ALL, 0, 0),
    ] {
        let mut m = Machine::everything();
        let one = m.stage1(3, 1);
        (5..10).for_each(|n| m.map(&one.tables, n << 12, OLD));
        // Some pages are in the TLB, and the table is.
        assert_eq!((m.output(3, 0x5000), m.output(3, 0x6000)), (OLD, OLD));
        move_table(&mut m, &one.tables, 0x5000);
        m.run(&[command]);
        assert_eq!(m.output(3, 0x5000), NEW, "{command:x?}");
        // A page that was never used is found through the new table, too.
        assert_eq!(m.output(3, 0x8000), NEW, "{command:x?}");
    }
}

/// The same of stage 2, alone and under stage 1.
#[test]
fn a_stage_2_table_that_moved_is_found() {
    for command in [
        cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, 0x4000_0000).with(cmd::LEAF, 0),
        cmd::tlbi(cmd::TLBI_S12_VMALL, 1, 0),
    ] {
        let mut m = Machine::everything();
        let two = m.stage2(3, 1);
        (0..5).for_each(|n| m.map2(&two.tables, 0x4000_0000 + (n << 12), OLD));
        assert_eq!(m.output(3, 0x4000_0000), OLD);
        move_table(&mut m, &two.tables, 0x4000_0000);
        m.run(&[command]);
        assert_eq!(m.output(3, 0x4000_0000), NEW);
        assert_eq!(m.output(3, 0x4000_3000), NEW, "never used before");
    }
    // Nested: stage 1's tables are in pages that stage 2 moves elsewhere.
    let finish = cmd::tlbi(cmd::TLBI_NH_ALL, 1, 0);
    for leaf in [0, 1] {
        let mut m = Machine::everything();
        let (nested, second) = m.nested(3, 1, 1);
        m.map(&nested.tables, 0x5000, GUEST + OLD);
        m.map(&nested.tables, 0x20_0000, GUEST + OLD);
        assert_eq!((m.output(3, 0x5000), m.output(3, 0x20_0000)), (OLD, OLD));
        // A copy of stage 1's last-level table, and stage 2 has it in the place of the first.
        let table = m.entry(&nested.tables, 0x5000, 3) & !0xfff;
        let copy = m.alloc(0x1000);
        m.ram.set(copy + 8 * 5, (GUEST + NEW) | pte::S1_RW);
        let entry = m.entry(&second, GUEST + table, 3);
        m.ram.set(entry, copy | pte::S2_RW);
        let ipa = cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, GUEST + table).with(cmd::LEAF, leaf);
        m.run(&[ipa, finish]);
        assert_eq!(m.output(3, 0x5000), NEW, "Leaf {leaf}");
        // A table of an upper level: now nothing below it is found.
        let upper = m.entry(&nested.tables, 0x20_0000, 2) & !0xfff;
        let empty = m.alloc(0x1000);
        let entry = m.entry(&second, GUEST + upper, 3);
        m.ram.set(entry, empty | pte::S2_RW);
        let ipa = cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, GUEST + upper).with(cmd::LEAF, leaf);
        m.run(&[ipa, finish]);
        m.read_faults(3, 0x20_0000, F_TRANSLATION);
        m.read_faults(3, 0x5000, F_TRANSLATION);
    }
}

/// In the middle of the walk of a transaction, right after `at` was read: `change` memory, and have `command` executed.
fn amid_a_walk(m: &Machine, at: u64, change: (u64, u64), command: Cmd) {
    let (smmu, ram) = (m.smmu.clone(), Arc::clone(&m.ram));
    m.ram.after_load(at, move || {
        ram.set(change.0, change.1);
        let prod = smmu.read32(crate::common::raw::reg::CMDQ_PROD);
        let slot = CMDQ + 16 * u64::from(prod & 0x3f);
        ram.set(slot, command.0[0]);
        ram.set(slot + 8, command.0[1]);
        smmu.write32(crate::common::raw::reg::CMDQ_PROD, (prod + 1) & 0x7f);
        let cons = smmu.read32(crate::common::raw::reg::CMDQ_CONS);
        assert_eq!(cons, (prod + 1) & 0x7f, "executed while the walk is under way");
    });
}

/// §3.21.1: what a walk has read is not cached if it was invalidated before the walk ended.
#[test]
fn a_walk_that_an_invalidation_overtakes_caches_nothing() {
    for command in [
        cmd::tlbi_va(cmd::TLBI_NH_VA, 1, 7, 0x5000),
        cmd::range(cmd::tlbi_va(cmd::TLBI_NH_VA, 1, 7, 0), 1, 31, 5, 0),
        cmd::tlbi_va(cmd::TLBI_NH_VAA, 1, 0, 0x5000),
        cmd::tlbi(cmd::TLBI_NH_ASID, 1, 7),
        cmd::tlbi(cmd::TLBI_NH_ALL, 1, 0),
        cmd::tlbi(cmd::TLBI_S12_VMALL, 1, 0),
        cmd::new(cmd::TLBI_NSNH_ALL),
    ] {
        for nested in [false, true] {
            let mut m = Machine::everything();
            let one = if nested {
                m.nested(3, 1, 7).0
            } else {
                let one = m.stage1(3, 7);
                m.set_ste(3, one.ste.with(ste::S2_VMID, 1));
                one
            };
            m.map(&one.tables, 0x5000, OLD + one.tables.offset);
            let leaf = m.entry(&one.tables, 0x5000, 3);
            amid_a_walk(&m, leaf, (leaf, 0), command);
            assert_eq!(m.output(3, 0x5000), OLD, "in flight: it may use what it read");
            m.run(&[]);
            m.read_faults(3, 0x5000, F_TRANSLATION);
        }
    }
    // Stage 2 by IPA, of a stream with nothing else.
    for leaf_only in [0, 1] {
        let mut m = Machine::everything();
        let two = m.stage2(3, 1);
        m.map2(&two.tables, 0x5000, OLD);
        let leaf = m.entry(&two.tables, 0x5000, 3);
        let command = cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, 0x5000).with(cmd::LEAF, leaf_only);
        amid_a_walk(&m, leaf, (leaf, 0), command);
        assert_eq!(m.output(3, 0x5000), OLD);
        m.run(&[]);
        m.read_faults(3, 0x5000, F_TRANSLATION);
    }
    // A stage 2 descriptor of a stage 1 table, which later walks of other pages would use again.
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 7);
    m.map(&nested.tables, 0x5000, GUEST + OLD);
    m.map(&nested.tables, 0x6000, GUEST + OLD);
    let table = m.entry(&nested.tables, 0x5000, 3);
    let entry = m.entry(&second, GUEST + table, 3);
    let command = cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, (GUEST + table) & !0xfff);
    amid_a_walk(&m, entry, (entry, 0), command);
    assert_eq!(m.output(3, 0x5000), OLD);
    m.run(&[cmd::tlbi(cmd::TLBI_NH_ALL, 1, 0)]);
    for address in [0x5000, 0x6000] {
        let record = m.read_faults(3, address, F_TRANSLATION);
        assert_eq!((record.get(event::S2), record.get(event::CLASS)), (1, CLASS_TT));
    }
    // Tables of stage 1: the level 2 descriptor goes while it is followed.
    let mut m = Machine::everything();
    let one = m.stage1(3, 7);
    m.map(&one.tables, 0x5000, OLD);
    m.map(&one.tables, 0x6000, OLD);
    let above = m.entry(&one.tables, 0x5000, 2);
    let command = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, 0x5000).with(cmd::LEAF, 0);
    amid_a_walk(&m, above, (above, 0), command);
    assert_eq!(m.output(3, 0x5000), OLD);
    m.run(&[]);
    m.read_faults(3, 0x5000, F_TRANSLATION);
    m.read_faults(3, 0x6000, F_TRANSLATION);
}

/// §3.21.3: nor is a configuration, of which the first word was read before and the rest after.
#[test]
fn a_configuration_that_an_invalidation_overtakes_is_read_again() {
    for command in [cmd::cfgi_ste(3), cmd::cfgi_all(), cmd::cfgi_range(3, 0), cmd::cfgi_cd(3, 0)] {
        let mut m = Machine::everything();
        let one = m.stage1(3, 7);
        m.map(&one.tables, 0x5000, OLD);
        let by_cd = command.get((7, 0)) == cmd::CFGI_CD;
        let last = if by_cd { one.cd_at } else { Machine::ste_at(3) } + 56;
        let first = last - 56;
        // Off: V == 0 of the CD, Config == abort of the STE.
        let off = m.ram.get(first) & if by_cd { !(1 << 31) } else { !(1 << 3) };
        amid_a_walk(&m, last, (first, off), command);
        assert_eq!(m.output(3, 0x5000), OLD);
        m.run(&[]);
        if by_cd {
            m.read_faults(3, 0x5000, C_BAD_CD);
        } else {
            m.read_aborts(3, 0x5000);
        }
    }
}

/// VMIDs and ASIDs tell address spaces apart, whatever else is the same.
#[test]
fn address_spaces_are_apart() {
    let mut m = Machine::everything();
    let mut expected = Vec::new();
    for (n, (vmid, asid)) in [(0, 1), (0, 2), (1, 1), (1, 2), (256, 1), (0, 257)].iter().enumerate()
    {
        let sid = 10 + n as u32;
        let one = m.stage1(sid, *asid);
        m.set_ste(sid, one.ste.with(ste::S2_VMID, *vmid));
        let output = OLD + ((n as u64) << 12);
        m.map(&one.tables, 0x5000, output);
        expected.push((sid, *vmid as u16, *asid, output, one));
    }
    for _ in 0..2 {
        for (sid, .., output, _) in &expected {
            assert_eq!(m.go(&Transaction::read(*sid, 0x5008)).unwrap().address, output + 8);
        }
    }
    // One of them is invalidated, in each way, and it at least is translated anew.
    for (sid, vmid, asid, output, one) in &expected {
        for command in [
            cmd::tlbi_va(cmd::TLBI_NH_VA, *vmid, *asid, 0x5000),
            cmd::tlbi_va(cmd::TLBI_NH_VAA, *vmid, 0, 0x5000),
            cmd::tlbi(cmd::TLBI_NH_ASID, *vmid, *asid),
            cmd::tlbi(cmd::TLBI_NH_ALL, *vmid, 0),
        ] {
            assert_eq!(m.output(*sid, 0x5000), *output);
            let leaf = m.entry(&one.tables, 0x5000, 3);
            let good = m.ram.get(leaf);
            m.ram.set(leaf, 0);
            m.run(&[command]);
            m.read_faults(*sid, 0x5000, F_TRANSLATION);
            m.ram.set(leaf, good);
        }
    }
}

/// A guest's tables are in memory that stage 2 maps in blocks, of which it later makes pages.
#[test]
fn tables_behind_stage_2_blocks_are_found_before_and_after_the_block_is_split() {
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 1);
    m.map(&nested.tables, 0x5000, GUEST + OLD);
    let pages: Vec<(u64, u64)> = (0..2)
        .map(|n| {
            let at = m.entry(&second, GUEST + (n << 21), 2);
            let table = m.ram.get(at);
            m.ram.set(at, n << 21 | pte::S2_RW & !pte::PAGE | pte::BLOCK);
            (at, table)
        })
        .collect();
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    let finish = cmd::tlbi(cmd::TLBI_NH_ALL, 1, 0);
    for _ in 0..2 {
        assert_eq!(m.output(3, 0x5008), OLD + 8);
        m.run(&[cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, GUEST + (leaf & !0xfff)), finish]);
    }
    pages.iter().for_each(|(at, table)| m.ram.set(*at, *table));
    let split = [0, 1].map(|n| cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, GUEST + (n << 21)));
    m.run(&[split[0], split[1], finish]);
    assert_eq!(m.output(3, 0x5008), OLD + 8);
    m.ram.set(m.entry(&second, GUEST + leaf, 3), 0);
    m.run(&[cmd::tlbi_va(cmd::TLBI_S2_IPA, 1, 0, GUEST + (leaf & !0xfff)), finish]);
    m.read_faults(3, 0x5008, F_TRANSLATION);
}
