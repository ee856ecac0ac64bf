//! Hardware updates of access and dirty state (§3.13).

use smmuv3::{Httu, Options, Transaction};

use crate::common::raw::event::*;
use crate::common::raw::{cd, event, pte, ste};
use crate::common::{GUEST, Machine};

const OUT: u64 = 0x30_0000;
const CLEAN1: u64 = OUT | pte::S1_RW | pte::READ_ONLY | pte::DBM;
const CLEAN2: u64 = OUT | (pte::S2_RW & !pte::S2_WRITE) | pte::DBM;

#[test]
fn stage_1_marks_pages_accessed_and_dirty() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    let leaf = {
        m.put(&one.tables, 0x5000, 3, 0);
        m.entry(&one.tables, 0x5000, 3)
    };
    // (HA, HD): what a read and then a write find, from a page that is neither accessed nor dirty.
    for (ha, hd, read, write) in [
        (0, 0, Err(F_ACCESS), Err(F_ACCESS)),
        // HD without HA is as nothing.
        (0, 1, Err(F_ACCESS), Err(F_ACCESS)),
        (1, 0, Ok(CLEAN1), Err(F_PERMISSION)),
        (1, 1, Ok(CLEAN1), Ok(CLEAN1 & !pte::READ_ONLY)),
    ] {
        m.set_cd(&one, one.cd.with(cd::HA, ha).with(cd::HD, hd));
        m.ram.set(leaf, CLEAN1 & !pte::AF);
        m.tlbi_all();
        for (transaction, expected) in
            [(Transaction::read(3, 0x5000), read), (Transaction::write(3, 0x5000), write)]
        {
            let before = m.ram.get(leaf);
            match expected {
                Ok(descriptor) => {
                    for _ in 0..2 {
                        assert_eq!(m.go(&transaction).unwrap().address, OUT);
                        assert_eq!(m.ram.get(leaf), descriptor, "HA {ha} HD {hd}");
                    }
                }
                Err(number) => {
                    assert_eq!(m.fault(&transaction).get(event::NUMBER), number);
                    assert_eq!(m.ram.get(leaf), before);
                }
            }
        }
    }
    // A write at first does both at once. Without DBM there is nothing to mark.
    m.set_cd(&one, one.cd.with(cd::HA, 1).with(cd::HD, 1));
    m.ram.set(leaf, CLEAN1 & !pte::AF);
    m.tlbi_all();
    m.write(3, 0x5000).unwrap();
    assert_eq!(m.ram.get(leaf), CLEAN1 & !pte::READ_ONLY);
    m.ram.set(leaf, CLEAN1 & !pte::DBM);
    m.tlbi_all();
    assert_eq!(m.fault(&Transaction::write(3, 0x5000)).get(event::NUMBER), F_PERMISSION);
    // HD without HA marks nothing, even where the page is accessed.
    m.set_cd(&one, one.cd.with(cd::HD, 1));
    m.ram.set(leaf, CLEAN1);
    assert_eq!(m.fault(&Transaction::write(3, 0x5000)).get(event::NUMBER), F_PERMISSION);
    assert_eq!(m.ram.get(leaf), CLEAN1);
    // AFFD: no faults and no marks; ignored with HA.
    m.ram.set(leaf, (OUT | pte::S1_RW) & !pte::AF);
    for (ha, marked) in [(0, false), (1, true)] {
        m.set_cd(&one, one.cd.with(cd::AFFD, 1).with(cd::HA, ha));
        m.read(3, 0x5000).unwrap();
        assert_eq!(m.ram.get(leaf) & pte::AF != 0, marked);
    }
}

#[test]
fn stage_2_marks_pages_accessed_and_dirty() {
    let mut m = Machine::everything();
    let two = m.stage2(3, 1);
    let leaf = {
        m.put(&two.tables, 0x5000, 3, 0);
        m.entry(&two.tables, 0x5000, 3)
    };
    for (ha, hd, read, write) in [
        (0, 0, Err(F_ACCESS), Err(F_ACCESS)),
        (0, 1, Err(F_ACCESS), Err(F_ACCESS)),
        (1, 0, Ok(CLEAN2), Err(F_PERMISSION)),
        (1, 1, Ok(CLEAN2), Ok(CLEAN2 | pte::S2_WRITE)),
    ] {
        m.set_ste(3, two.ste.with(ste::S2_HA, ha).with(ste::S2_HD, hd));
        m.ram.set(leaf, CLEAN2 & !pte::AF);
        m.tlbi_all();
        for (transaction, expected) in
            [(Transaction::read(3, 0x5000), read), (Transaction::write(3, 0x5000), write)]
        {
            match expected {
                Ok(descriptor) => {
                    m.go(&transaction).unwrap();
                    assert_eq!(m.ram.get(leaf), descriptor, "S2HA {ha} S2HD {hd}");
                }
                Err(number) => {
                    assert_eq!(m.fault(&transaction).get(event::NUMBER), number);
                }
            }
        }
    }
}

#[test]
fn stage_2_marks_nothing_dirty_without_s2ha() {
    let mut m = Machine::everything();
    let two = m.stage2(3, 1);
    m.set_ste(3, two.ste.with(ste::S2_HD, 1));
    m.put(&two.tables, 0x5000, 3, CLEAN2);
    assert_eq!(m.fault(&Transaction::write(3, 0x5000)).get(event::NUMBER), F_PERMISSION);
    assert_eq!(m.ram.get(m.entry(&two.tables, 0x5000, 3)), CLEAN2);
}

/// §3.13: an update of a stage 1 descriptor is a write through stage 2, and makes that page dirty.
#[test]
fn updates_of_stage_1_are_writes_of_stage_2() {
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 1);
    m.set_ste(3, nested.ste.with(ste::S2_HA, 1).with(ste::S2_HD, 1));
    m.set_cd(&nested, nested.cd.with(cd::HA, 1).with(cd::HD, 1));
    m.put(&nested.tables, 0x5000, 3, (GUEST + CLEAN1) & !pte::AF);
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    let table_entry = m.entry(&second, GUEST + leaf, 3);
    let page_entry = m.entry(&second, GUEST + OUT, 3);
    let clean = |m: &Machine, entry| {
        let good = m.ram.get(entry);
        m.ram.set(entry, good & !pte::S2_WRITE | pte::DBM);
    };
    clean(&m, table_entry);
    clean(&m, page_entry);
    m.tlbi_all();
    let dirty = |m: &Machine, entry| m.ram.get(entry) & pte::S2_WRITE != 0;
    assert_eq!(m.output(3, 0x5008), OUT + 8);
    assert_eq!(m.ram.get(leaf), GUEST + CLEAN1);
    assert!(dirty(&m, table_entry), "the table was written");
    assert!(!dirty(&m, page_entry), "the page was not");
    for _ in 0..2 {
        m.write(3, 0x5008).unwrap();
        assert_eq!(m.ram.get(leaf), (GUEST + CLEAN1) & !pte::READ_ONLY);
        assert!(dirty(&m, page_entry));
    }
}

/// §5.2, §5.4: what the SMMU does not have is ILLEGAL.
#[test]
fn updates_that_the_smmu_does_not_make_are_illegal() {
    for (httu, ha_legal, hd_legal) in
        [(Httu::None, false, false), (Httu::Access, true, false), (Httu::AccessDirty, true, true)]
    {
        let mut m = Machine::booted(Options { httu, ..Options::everything() });
        let one = m.stage1(3, 1);
        let two = m.stage2(4, 1);
        for (ha, hd) in [(1, 0), (0, 1), (1, 1)] {
            let legal = (ha == 0 || ha_legal) && (hd == 0 || hd_legal);
            m.set_cd(&one, one.cd.with(cd::HA, ha).with(cd::HD, hd));
            m.read_faults(3, 0x5000, if legal { F_TRANSLATION } else { C_BAD_CD });
            m.set_ste(4, two.ste.with(ste::S2_HA, ha).with(ste::S2_HD, hd));
            m.read_faults(4, 0x5000, if legal { F_TRANSLATION } else { C_BAD_STE });
        }
    }
}

/// Reads cached while clean do not make the first write pass by; other accesses see the mark at once.
#[test]
fn a_cached_clean_page_comes_back_for_its_first_write() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.set_cd(&one, one.cd.with(cd::HA, 1).with(cd::HD, 1));
    m.put(&one.tables, 0x5000, 3, CLEAN1);
    let leaf = m.entry(&one.tables, 0x5000, 3);
    let loads = m.ram.loads();
    m.read(3, 0x5000).unwrap();
    assert!(m.ram.loads() > loads);
    let loads = m.ram.loads();
    m.read(3, 0x5008).unwrap();
    assert_eq!(m.ram.loads(), loads, "a hit");
    m.write(3, 0x5008).unwrap();
    assert_eq!(m.ram.get(leaf), CLEAN1 & !pte::READ_ONLY);
    let loads = m.ram.loads();
    m.write(3, 0x5010).unwrap();
    assert_eq!(m.ram.loads(), loads, "dirty, and cached as such");
}
