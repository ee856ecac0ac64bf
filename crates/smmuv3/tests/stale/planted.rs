//! One forgotten command of each kind. The same story with the command has no report.

use smmuv3::wire::{Command, EventKind};
use smmuv3::{Options, Permissions, Place, Proof, Stale, StaleCache, StaleRule, Transaction};

use super::Reports;
use crate::common::raw::cmd::Cmd;
use crate::common::raw::{cd, cmd, pte, reg, ste};
use crate::common::{GUEST, Machine, Tables};

const A: u64 = 0x30_0000;
const B: u64 = 0x31_0000;
const VA: u64 = 0x4000_5000;

/// The text holds these, in this order.
#[track_caller]
fn assert_tells(stale: &Stale, parts: &[&str]) {
    let text = stale.to_string();
    let mut lines = text.lines();
    for part in parts {
        assert!(
            lines.any(|line| line.contains(part)),
            "{part:?} is missing, or too early, in\n{text}"
        );
    }
}

fn commands(stale: &Stale) -> Vec<String> {
    stale.commands.iter().map(Command::to_string).collect()
}

/// Takes a page of a stage away and gives it another frame, with `commands` in between.
fn remap(m: &mut Machine, tables: &Tables, input: u64, flags: u64, to: u64, commands: &[Cmd]) {
    m.put(tables, input, 3, 0);
    m.run(commands);
    m.put(tables, input, 3, to | flags);
}

#[test]
fn tlbi_by_va() {
    for (forgotten, rule) in
        [(true, StaleRule::Reuse), (true, StaleRule::Sync), (false, StaleRule::Use)]
    {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, rule);
        let one = m.stage1(3, 7);
        m.map(&one.tables, VA, A);
        assert_eq!(m.output(3, VA + 8), A + 8);
        let command = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, VA);
        let wrong = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 8, VA);
        let leaf = m.entry(&one.tables, VA, 3);
        remap(&mut m, &one.tables, VA, pte::S1_RW, B, &[if forgotten { wrong } else { command }]);
        if !forgotten {
            assert_eq!(m.output(3, VA + 8), B + 8);
            reports.none();
            continue;
        }
        assert_eq!(m.output(3, VA + 8), A + 8, "as hardware does");
        let stale = reports.one();
        assert_eq!(stale.proof, Some(Proof::Remapped));
        assert_eq!(stale.transaction, Transaction::read(3, VA + 8));
        assert_eq!((stale.cache, stale.vmid, stale.asid), (StaleCache::Tlb, 0, Some(7)));
        assert_eq!(stale.used.unwrap().address, A + 8);
        assert!(stale.permissions.unwrap().contains(Permissions::WRITE));
        assert_eq!(stale.now.unwrap().address, B + 8);
        let change = stale.change.unwrap();
        assert_eq!((change.place, change.address), (Place::Stage1 { level: 3 }, leaf));
        assert_eq!((change.was, change.is), (A | pte::S1_RW, B | pte::S1_RW));
        assert_eq!(commands(&stale), ["CMD_TLBI_NH_VA VMID=0 ASID=7 VA=0x40005000 Leaf"]);
        assert_eq!(stale.misses.len(), 1);
        assert_tells(
            &stale,
            &[
                "error: stream 0x3 reads 0x40005008",
                "TLB entry, VMID 0, ASID 7",
                "used:   0x300008",
                "memory: 0x310008",
                &format!("changed: the stage 1 level 3 descriptor at {leaf:#x}"),
                "was 0x0000000000300f43  a page, writable",
                "now 0x0000000000310f43  a page",
                "CMD_TLBI_NH_VA VMID=0 ASID=7 VA=0x40005000 Leaf",
                "CMD_SYNC",
                "CMD_TLBI_NH_VA VMID=0 ASID=8 VA=0x40005000 Leaf",
                "its ASID is 0x8, not 0x7",
            ],
        );
        // Once is enough, until it is mended.
        m.output(3, VA);
        reports.none();
        m.run(&[command]);
        assert_eq!(m.output(3, VA), B);
        m.put(&one.tables, VA, 3, A | pte::S1_RW);
        assert_eq!(m.output(3, VA), B);
        assert_eq!(reports.one().uses, 1);
    }
}

/// A page that is only taken away may be invalidated later.
#[test]
fn unmapping_is_reported_by_those_that_invalidate_at_once() {
    for rule in [StaleRule::Reuse, StaleRule::Sync, StaleRule::Use] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, rule);
        let one = m.stage1(3, 7);
        m.map(&one.tables, VA, A);
        m.output(3, VA);
        m.put(&one.tables, VA, 3, 0);
        m.output(3, VA);
        let [pending] = &m.smmu.stale_pending()[..] else {
            assert_eq!(rule, StaleRule::Use);
            assert_eq!(reports.one().proof, Some(Proof::Used));
            continue;
        };
        assert_tells(pending, &["pending:", "F_TRANSLATION", "CMD_TLBI_NH_VA", "nothing says"]);
        reports.none();
        m.run(&[cmd::tlbi(cmd::TLBI_NH_ASID, 0, 8)]);
        reports.none();
        m.output(3, VA);
        if rule == StaleRule::Reuse {
            reports.none();
            m.run(&[cmd::tlbi(cmd::TLBI_NH_ASID, 0, 7)]);
            assert_eq!(m.smmu.stale_pending(), []);
            continue;
        }
        let stale = reports.one();
        assert_eq!((stale.proof, stale.uses), (Some(Proof::Synchronized), 2));
        assert_eq!(stale.now.as_ref().unwrap_err().kind, EventKind::Translation);
        assert_tells(
            &stale,
            &["memory permits it no longer", "now 0x0000000000000000  invalid", "ASID is 0x8"],
        );
    }
}

/// The last level of tables is replaced; what a walk remembers of it needs an invalidation that is not Leaf.
#[test]
fn tlbi_of_a_table() {
    for forgotten in [true, false] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let one = m.stage1(3, 7);
        m.map(&one.tables, VA, A);
        m.map(&one.tables, VA + 0x1000, A + 0x1000);
        m.output(3, VA);
        m.output(3, VA + 0x1000);
        // The table goes, with both pages of it.
        let at = m.entry(&one.tables, VA, 2);
        m.ram.set(at, 0);
        let leaf = u64::from(forgotten);
        let page = |va| cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, va).with(cmd::LEAF, leaf);
        m.run(&[page(VA), page(VA + 0x1000)]);
        m.map(&one.tables, VA, B);
        let output = m.output(3, VA);
        if !forgotten {
            assert_eq!(output, B);
            reports.none();
            continue;
        }
        assert_eq!(output, A, "through the table that was given up");
        let stale = reports.one();
        assert_eq!((stale.cache, stale.proof), (StaleCache::Walk, Some(Proof::Remapped)));
        let change = stale.change.unwrap();
        assert_eq!((change.place, change.address), (Place::Stage1 { level: 2 }, at));
        assert_eq!(commands(&stale), ["CMD_TLBI_NH_VA VMID=0 ASID=7 VA=0x40005000"]);
        assert_tells(
            &stale,
            &[
                "a table",
                "a table",
                "VA=0x40005000   (not Leaf: ",
                "with Leaf it keeps what leads there",
            ],
        );
    }
}

/// An ASID gets other tables.
#[test]
fn tlbi_by_asid() {
    for forgotten in [true, false] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let one = m.stage1(3, 7);
        m.map(&one.tables, VA, A);
        m.output(3, VA);
        let other = m.tables48();
        m.map(&other, VA, B);
        m.store(one.cd_at, &one.cd.with_address(cd::TTB0, other.root));
        // First nobody uses the old CD, then nobody its translations.
        m.run(&[cmd::cfgi_cd(3, 0)]);
        m.output(3, VA);
        reports.none();
        m.run(&[if forgotten {
            cmd::tlbi(cmd::TLBI_NH_ASID, 1, 7)
        } else {
            cmd::tlbi(cmd::TLBI_NH_ASID, 0, 7)
        }]);
        let output = m.output(3, VA);
        if !forgotten {
            assert_eq!(output, B);
            reports.none();
            continue;
        }
        assert_eq!(output, A);
        let stale = reports.one();
        assert_eq!((stale.cache, stale.proof), (StaleCache::Tlb, Some(Proof::Synchronized)));
        let change = stale.change.unwrap();
        assert_eq!((change.place, change.address), (Place::Cd { word: 1 }, one.cd_at + 8));
        assert_eq!(commands(&stale), ["CMD_TLBI_NH_ASID VMID=0 ASID=7"]);
        assert_tells(
            &stale,
            &["word 1 of the CD", "TTB0: ", "CMD_TLBI_NH_ASID VMID=1", "its VMID is 0x1, not 0x0"],
        );
    }
}

/// A VMID gets other tables.
#[test]
fn tlbi_by_vmid() {
    for forgotten in [true, false] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let two = m.stage2(3, 5);
        m.map2(&two.tables, VA, A);
        m.output(3, VA);
        let other = m.tables(12, 39, 1);
        m.map2(&other, VA, B);
        m.set_ste(3, two.ste.with_address(ste::S2_TTB, other.root));
        m.output(3, VA);
        reports.none();
        m.run(&[cmd::tlbi(cmd::TLBI_S12_VMALL, if forgotten { 6 } else { 5 }, 0)]);
        let output = m.output(3, VA);
        if !forgotten {
            assert_eq!(output, B);
            reports.none();
            continue;
        }
        assert_eq!(output, A);
        let stale = reports.one();
        assert_eq!((stale.cache, stale.vmid, stale.asid), (StaleCache::Tlb, 5, None));
        assert_eq!(stale.change.unwrap().place, Place::Ste { word: 3 });
        assert_eq!(commands(&stale), ["CMD_TLBI_S12_VMALL VMID=5"]);
        assert_tells(&stale, &["S2TTB: ", "CMD_TLBI_S12_VMALL VMID=6", "its VMID is 0x6, not 0x5"]);
    }
}

#[test]
fn tlbi_by_ipa() {
    for forgotten in [true, false] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let two = m.stage2(3, 5);
        m.map2(&two.tables, VA, A);
        m.output(3, VA);
        let ipa = |vmid| cmd::tlbi_va(cmd::TLBI_S2_IPA, vmid, 0, VA);
        remap(&mut m, &two.tables, VA, pte::S2_RW, B, &[ipa(if forgotten { 4 } else { 5 })]);
        let output = m.output(3, VA);
        if !forgotten {
            assert_eq!(output, B);
            reports.none();
            continue;
        }
        assert_eq!(output, A);
        let stale = reports.one();
        assert_eq!((stale.cache, stale.proof), (StaleCache::Tlb, Some(Proof::Remapped)));
        assert!(matches!(stale.change.unwrap().place, Place::Stage2 { level: 3, ipa: VA, .. }));
        assert_eq!(commands(&stale), ["CMD_TLBI_S2_IPA VMID=5 IPA=0x40005000 Leaf"]);
        assert_tells(&stale, &["stage 2 level 3 descriptor for IPA 0x40005000", "its VMID is 0x4"]);
    }
}

/// With both stages, what they made together must go as well: `CMD_TLBI_S2_IPA` alone is the classic mistake.
#[test]
fn tlbi_by_ipa_without_the_stage_1_above() {
    for forgotten in [true, false] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let (nested, second) = m.nested(3, 5, 7);
        m.map(&nested.tables, VA, GUEST + A);
        m.output(3, VA);
        let mut wanted = vec![cmd::tlbi_va(cmd::TLBI_S2_IPA, 5, 0, GUEST + A)];
        if !forgotten {
            wanted.push(cmd::tlbi(cmd::TLBI_NH_ALL, 5, 0));
        }
        remap(&mut m, &second, GUEST + A, pte::S2_RW, B, &wanted);
        let output = m.output(3, VA);
        if !forgotten {
            assert_eq!(output, B);
            reports.none();
            continue;
        }
        assert_eq!(output, A);
        let stale = reports.one();
        assert_eq!(
            commands(&stale),
            ["CMD_TLBI_S2_IPA VMID=5 IPA=0x10300000 Leaf", "CMD_TLBI_NH_ALL VMID=5"]
        );
        assert_tells(
            &stale,
            &[
                "VMID 5, ASID 7",
                "stage 2 level 3 descriptor for IPA 0x10300000",
                "these were not enough",
                "covers the stage 2 translation, not what both stages made of it",
            ],
        );
        let readme = include_str!("../../README.md");
        assert!(
            readme.contains(&stale.to_string()),
            "the README shows another report than\n{stale}"
        );
    }
}

#[test]
fn cfgi_ste() {
    for (forgotten, rule) in
        [(true, StaleRule::Reuse), (true, StaleRule::Sync), (false, StaleRule::Sync)]
    {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, rule);
        let one = m.stage1(3, 7);
        m.map(&one.tables, VA, A);
        m.output(3, VA);
        let at = Machine::ste_at(3);
        m.ram.set(at, m.ram.get(at) & !(0b111 << 1) | ste::ABORT << 1);
        if !forgotten {
            m.run(&[cmd::cfgi_ste(3)]);
            m.read_aborts(3, VA);
            reports.none();
            continue;
        }
        m.output(3, VA);
        reports.none();
        m.run(&[cmd::cfgi_ste(4)]);
        m.output(3, VA);
        let stale = reports.one();
        assert_eq!(
            (stale.cache, stale.proof),
            (StaleCache::Configuration, Some(Proof::Synchronized))
        );
        let change = stale.change.unwrap();
        assert_eq!((change.place, change.address), (Place::Ste { word: 0 }, at));
        assert_eq!(commands(&stale), ["CMD_CFGI_STE SID=0x3 Leaf"]);
        assert_tells(
            &stale,
            &[
                "aborts the transaction in silence",
                "word 0 of the STE at 0x400c0",
                "Config: 0x5 (stage 1 translates, stage 2 bypasses) -> 0x0 (abort without an event)",
                "CMD_CFGI_STE SID=0x4 Leaf",
                "its StreamID is 0x4, not 0x3",
            ],
        );
    }
}

#[test]
fn cfgi_cd() {
    for (ssid, forgotten) in [(None, true), (None, false), (Some(2), true), (Some(2), false)] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let one = m.stage1(3, 7);
        let cds = m.alloc(4 * 64);
        let index = u64::from(ssid.unwrap_or(0));
        let cd_at = cds + 64 * index;
        m.store(cd_at, &one.cd);
        let ste = one
            .ste
            .with_address(ste::S1_CONTEXT_PTR, cds)
            .with(ste::S1_CD_MAX, 2)
            .with(ste::S1_DSS, 0b10);
        m.set_ste(3, ste);
        m.map(&one.tables, VA, A);
        let transaction = Transaction { substream_id: ssid, ..Transaction::read(3, VA) };
        assert_eq!(m.go(&transaction).unwrap().address, A);
        // Another ASID and its tables: nothing that the TLB holds is of it.
        let other = m.tables48();
        m.map(&other, VA, B);
        m.store(cd_at, &one.cd.with_address(cd::TTB0, other.root).with(cd::ASID, 8));
        m.go(&transaction).unwrap();
        reports.none();
        m.run(&[cmd::cfgi_cd(3, if forgotten { 3 } else { index as u32 })]);
        if !forgotten {
            assert_eq!(m.go(&transaction).unwrap().address, B);
            reports.none();
            continue;
        }
        // The model forgets all of a stream at once, so what it still uses is from before that. Real hardware
        // would not have: this driver is lucky.
        assert_eq!(m.go(&transaction).unwrap().address, B);
        reports.none();
        // This one is not.
        m.store(cd_at, &one.cd);
        m.go(&transaction).unwrap();
        m.run(&[cmd::cfgi_cd(4, index as u32)]);
        assert_eq!(m.go(&transaction).unwrap().address, B);
        let stale = reports.one();
        assert_eq!((stale.cache, stale.asid), (StaleCache::Configuration, Some(8)));
        let change = stale.change.unwrap();
        assert_eq!((change.place, change.address), (Place::Cd { word: 0 }, cd_at));
        assert_eq!(commands(&stale), [format!("CMD_CFGI_CD SID=0x3 SSID={index:#x} Leaf")]);
        assert_tells(
            &stale,
            &["word 0 of the CD", "ASID: 0x8 -> 0x7", "CMD_CFGI_CD SID=0x3", "its StreamID is 0x4"],
        );
    }
}

/// Software that tracks dirty pages makes one clean, and forgets that the TLB still lets writes pass.
#[test]
fn writes_that_leave_a_page_clean() {
    for forgotten in [true, false] {
        let mut m = Machine::everything();
        let reports = Reports::of(&m, StaleRule::Sync);
        let one = m.stage1(3, 7);
        m.set_cd(&one, one.cd.with(cd::HA, 1).with(cd::HD, 1));
        let clean = A | pte::S1_RW | pte::READ_ONLY | pte::DBM;
        m.put(&one.tables, VA, 3, clean & !pte::AF);
        let leaf = m.entry(&one.tables, VA, 3);
        m.write(3, VA).unwrap();
        assert_eq!(m.ram.get(leaf), clean & !pte::READ_ONLY, "dirty");
        m.ram.set(leaf, clean);
        m.read(3, VA).unwrap();
        m.write(3, VA).unwrap();
        assert_eq!(m.smmu.stale_pending().len(), 1);
        assert_eq!(m.ram.get(leaf), clean, "a write that software does not learn of");
        let asid = if forgotten { 8 } else { 7 };
        m.run(&[cmd::tlbi_va(cmd::TLBI_NH_VA, 0, asid, VA)]);
        m.write(3, VA).unwrap();
        if !forgotten {
            assert_eq!(m.ram.get(leaf), clean & !pte::READ_ONLY);
            reports.none();
            continue;
        }
        let stale = reports.one();
        assert_eq!((stale.cache, stale.proof), (StaleCache::Tlb, Some(Proof::Synchronized)));
        let change = stale.change.unwrap();
        assert_eq!((change.was, change.is), (clean & !pte::READ_ONLY, clean));
        assert_tells(
            &stale,
            &[
                "memory has the page clean, and this write does not mark it dirty",
                "a page, writable",
                "a page, read-only",
                "CMD_TLBI_NH_VA VMID=0 ASID=7 VA=0x40005000 Leaf",
            ],
        );
    }
}

/// EL2 has commands of its own.
#[test]
fn tlbi_of_el2() {
    for (e2h, wanted) in [
        (false, "CMD_TLBI_EL2_VA ASID=0 VA=0x40005000 Leaf"),
        (true, "CMD_TLBI_EL2_VA ASID=7 VA=0x40005000 Leaf"),
    ] {
        let mut m = Machine::new(Options::everything());
        m.prepare();
        m.w32(reg::CR2, if e2h { reg::E2H } else { 0 });
        m.enable();
        let reports = Reports::of(&m, StaleRule::Reuse);
        let one = m.stage1(3, 7);
        m.set_ste(3, one.ste.with(ste::STRW, 0b10));
        m.map(&one.tables, VA, A);
        m.output(3, VA);
        // Those of EL1 do nothing for it.
        let el1 = cmd::tlbi_va(cmd::TLBI_NH_VA, 0, 7, VA);
        remap(&mut m, &one.tables, VA, pte::S1_RW, B, &[el1]);
        assert_eq!(m.output(3, VA), A);
        let stale = reports.one();
        assert_eq!(commands(&stale), [wanted]);
        assert_tells(&stale, &[if e2h { "EL2-E2H, ASID 7" } else { "TLB entry, EL2" }]);
        m.run(&[cmd::tlbi_va(cmd::TLBI_EL2_VA, 0, if e2h { 7 } else { 0 }, VA)]);
        assert_eq!(m.output(3, VA), B);
        reports.none();
    }
}

/// Who only reads is not disturbed by a page that has become read-only; who writes is, whatever was read before.
#[test]
fn a_page_that_becomes_read_only() {
    let mut m = Machine::everything();
    let reports = Reports::of(&m, StaleRule::Sync);
    let one = m.stage1(3, 7);
    m.map(&one.tables, VA, A);
    m.write(3, VA).unwrap();
    m.put(&one.tables, VA, 3, A | pte::S1_RW | pte::READ_ONLY);
    m.read(3, VA).unwrap();
    m.run(&[]);
    m.read(3, VA).unwrap();
    assert_eq!(m.smmu.stale_pending(), []);
    m.write(3, VA).unwrap();
    m.run(&[]);
    m.read(3, VA).unwrap();
    m.write(3, VA).unwrap();
    assert_tells(
        &reports.one(),
        &["F_PERMISSION", "0x0000000000300f43  a page, writable", "a page, read-only"],
    );
}
