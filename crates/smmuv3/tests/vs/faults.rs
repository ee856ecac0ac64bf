//! 9 to 16: which fault a walk ends in, and who hears of it.

use smmuv3::{Options, Refused, Transaction};

use crate::common::raw::event::*;
use crate::common::raw::{cd, cmd, event, pte, reg, ste};
use crate::common::{GUEST, Machine};

/// §7.3.22: one stream with everything wrong, repaired one error at a time.
#[test]
fn vs09_of_several_errors_the_first_of_the_list_is_reported() {
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 1);
    let with = |ssid: u32| Transaction::read(3, 0x5000).with_substream(ssid);
    let without = Transaction::read(3, 0x5000);
    let number = |m: &mut Machine, transaction: &Transaction| {
        m.run(&[cmd::cfgi_all(), cmd::new(cmd::TLBI_NSNH_ALL)]);
        let record = m.fault(transaction);
        (record.get(event::NUMBER), record)
    };
    // Everything: the STE in a hole and invalid, no stage 2 mapping of the CD, the CD in a hole and invalid.
    let ste_at = Machine::ste_at(3);
    let cd_entry = m.entry(&second, GUEST + nested.cd_at, 3);
    let good_entry = m.ram.get(cd_entry);
    let bad_ste = nested.ste.with(ste::S1_CD_MAX, 1).with(ste::S1_DSS, 0b00);
    m.store(ste_at, &bad_ste.with(ste::V, 0));
    m.ram.set(cd_entry, 0);
    m.store(nested.cd_at, &nested.cd.with(cd::V, 0));
    let hole = nested.cd_at..nested.cd_at + 64;
    m.ram.make_hole(ste_at..ste_at + 64);
    m.ram.make_hole(hole.clone());

    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    m.w32(reg::STRTAB_BASE_CFG, 1);
    m.enable();
    assert_eq!(number(&mut m, &with(2)).0, C_BAD_STREAMID);
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    m.w32(reg::STRTAB_BASE_CFG, 8);
    m.enable();
    assert_eq!(number(&mut m, &with(2)).0, F_STE_FETCH);
    m.ram.fill_holes();
    m.ram.make_hole(hole);
    assert_eq!(number(&mut m, &with(2)).0, C_BAD_STE);
    // Valid and ILLEGAL is the same.
    m.store(ste_at, &bad_ste.with(ste::S2_TG, 0b11));
    assert_eq!(number(&mut m, &with(2)).0, C_BAD_STE);
    m.store(ste_at, &bad_ste);
    let (kind, record) = number(&mut m, &with(2));
    assert_eq!((kind, record.get(event::SSID)), (C_BAD_SUBSTREAMID, 2));
    assert_eq!(number(&mut m, &without).0, F_STREAM_DISABLED);
    m.store(ste_at, &bad_ste.with(ste::S1_DSS, 0b10));
    assert_eq!(number(&mut m, &with(0)).0, F_STREAM_DISABLED);
    let (kind, record) = number(&mut m, &without);
    assert_eq!((kind, record.get(event::CLASS)), (F_TRANSLATION, CLASS_CD));
    for (descriptor, fault) in [
        (good_entry & !pte::AF & !pte::S2_READ | 1 << 47, F_ADDR_SIZE),
        (good_entry & !pte::AF & !pte::S2_READ, F_ACCESS),
        (good_entry & !pte::S2_READ, F_PERMISSION),
    ] {
        m.ram.set(cd_entry, descriptor);
        m.store(ste_at, &bad_ste.with(ste::S1_DSS, 0b10).with(ste::S2_PS, 0b100));
        let (kind, record) = number(&mut m, &without);
        assert_eq!((kind, record.get(event::CLASS)), (fault, CLASS_CD));
    }
    m.ram.set(cd_entry, good_entry);
    assert_eq!(number(&mut m, &without).0, F_CD_FETCH);
    m.ram.fill_holes();
    assert_eq!(number(&mut m, &without).0, C_BAD_CD);
    m.store(nested.cd_at, &nested.cd);
    let (kind, record) = number(&mut m, &without);
    assert_eq!(
        (kind, record.get(event::S2), record.get(event::CLASS)),
        (F_TRANSLATION, 0, CLASS_IN)
    );
    m.map(&nested.tables, 0x5000, GUEST + 0x30_0000);
    assert_eq!(m.output(3, 0x5000), 0x30_0000);
}

/// §7.3.22.
#[test]
fn vs10_on_a_leaf_address_size_beats_access_flag_beats_permission() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.set_cd(&one, one.cd.with(cd::IPS, 0b010));
    let two = m.stage2(4, 1);
    m.set_ste(4, two.ste.with(ste::S2_PS, 0b010));
    let denied = pte::PAGE | pte::ISH;
    for (sid, tables, allowed) in [
        (3, one.tables, pte::AF | pte::USER | pte::NG),
        (4, two.tables, pte::AF | pte::S2_READ | pte::S2_WB),
    ] {
        for (descriptor, number) in [
            (denied | 1 << 40, F_ADDR_SIZE),
            (denied | allowed | 1 << 40, F_ADDR_SIZE),
            (denied | 0x30_0000, F_ACCESS),
            (denied | 0x30_0000 | allowed & !pte::AF, F_ACCESS),
            (denied | 0x30_0000 | pte::AF, F_PERMISSION),
        ] {
            m.put(&tables, 0x5000, 3, descriptor);
            m.read_faults(sid, 0x5000, number);
        }
        m.put(&tables, 0x5000, 3, denied | 0x30_0000 | allowed);
        assert_eq!(m.output(sid, 0x5000), 0x30_0000, "a fault is not cached");
    }
    // Between the stages: all of stage 1 before stage 2 of its output.
    let (nested, _) = m.nested(5, 2, 2);
    for (descriptor, s2, number) in [
        (denied | 0x7_7000_0000, 0, F_ACCESS),
        (denied | 0x7_7000_0000 | pte::AF, 0, F_PERMISSION),
        (denied | 0x7_7000_0000 | pte::AF | pte::USER, 1, F_TRANSLATION),
    ] {
        m.put(&nested.tables, 0x5000, 3, descriptor);
        let record = m.read_faults(5, 0x5000, number);
        assert_eq!(record.get(event::S2), s2);
    }
}

/// §7.3.22 2c, §3.4.
#[test]
fn vs11_a_table_address_beyond_the_output_size_is_an_address_size_fault_there() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, 0x30_0000);
    m.set_cd(&one, one.cd.with(cd::IPS, 0b000));
    let two = m.stage2(4, 1);
    m.map2(&two.tables, 0x5000, 0x30_0000);
    m.set_ste(4, two.ste.with(ste::S2_PS, 0b000));
    for (sid, tables) in [(3, one.tables), (4, two.tables)] {
        for level in tables.level..3 {
            let at = m.entry(&tables, 0x5000, level);
            let good = m.ram.get(at);
            // Nothing answers there: had the walk gone on, this were an F_WALK_EABT.
            m.ram.set(at, good | 1 << 32);
            let loads = m.ram.loads();
            m.read_faults(sid, 0x5000, F_ADDR_SIZE);
            let spent = m.ram.loads() - loads;
            assert!(spent <= 24, "structures and the levels up to {level}: {spent} words");
            m.ram.set(at, good);
        }
        assert_eq!(m.output(sid, 0x5000), 0x30_0000);
    }
    // Nested: stage 1 judges its own tables by IPS, before stage 2 sees the address.
    let (nested, _) = m.nested(5, 2, 2);
    m.map(&nested.tables, 0x5000, GUEST + 0x30_0000);
    m.set_cd(&nested, nested.cd.with(cd::IPS, 0b000));
    let at = m.entry(&nested.tables, 0x5000, 1);
    m.ram.set(at, m.ram.get(at) | 1 << 33);
    let record = m.read_faults(5, 0x5000, F_ADDR_SIZE);
    assert_eq!((record.get(event::S2), record.get(event::CLASS)), (0, CLASS_IN));
    // Within IPS it is stage 2 that does not know the address.
    m.set_cd(&nested, nested.cd);
    let record = m.read_faults(5, 0x5000, F_TRANSLATION);
    assert_eq!((record.get(event::S2), record.get(event::CLASS)), (1, CLASS_TT));
}

/// §7.3.22, §5.4.1.1.
#[test]
fn vs12_a_disabled_half_or_an_address_out_of_range_is_a_translation_fault() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    // EPD0: whatever else TTB0's fields say.
    for ttb in [one.tables.root, 1 << 51] {
        let cd = one.cd.with(cd::EPD0, 1).with_address(cd::TTB0, ttb);
        for (t0sz, tg0) in [(16, 0b00), (0, 0b11), (63, 0b01)] {
            m.set_cd(&one, cd.with(cd::T0SZ, t0sz).with(cd::TG0, tg0));
            m.read_faults(3, 0x5000, F_TRANSLATION);
        }
    }
    // TxSZ: the first address that does not belong, and all patterns of upper bits.
    for (t0sz, last) in [(25u64, (1u64 << 39) - 1), (16, (1 << 48) - 1), (39, (1 << 25) - 1)] {
        let bits = 64 - t0sz as u32;
        let level = if bits > 39 {
            0
        } else if bits > 30 {
            1
        } else {
            2
        };
        let tables = m.tables(12, bits, level);
        m.map(&tables, last & !0xfff, 0x30_0000);
        m.set_cd(&one, one.cd.with(cd::T0SZ, t0sz).with_address(cd::TTB0, tables.root));
        assert_eq!(m.output(3, last), 0x30_0fff);
        for outside in [last + 1, last | 1 << 54, last | 1 << 62, 1 << 63, !0] {
            let record = m.read_faults(3, outside, F_TRANSLATION);
            assert_eq!(record.get(event::INPUT), outside);
        }
    }
    // Stage 2, by S2T0SZ; the record has the IPA.
    let two = m.stage2(4, 1);
    let record = m.read_faults(4, 1 << 39, F_TRANSLATION);
    assert_eq!((record.get(event::S2), record.get_address(event::IPA)), (1, 1 << 39));
    m.map2(&two.tables, (1 << 39) - 0x1000, 0x30_0000);
    assert_eq!(m.output(4, (1 << 39) - 1), 0x30_0fff);
}

/// §5.4, §3.4.1.
#[test]
fn vs13_upper_addresses_use_ttb1_with_fields_of_its_own() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, 0x30_0000);
    // TG1 has another encoding than TG0: 0b10 is 4K, 0b01 16K, 0b11 64K.
    for (tg1, granule, bits, level, page) in
        [(0b10, 12, 39, 1, 0x1000), (0b01, 14, 36, 2, 0x4000u64), (0b11, 16, 42, 2, 0x1_0000)]
    {
        let tables = m.tables(granule, bits, level);
        let top = !0u64 << bits;
        m.put(&tables, 3 * page, 3, 0x20_0000 | pte::S1_RW);
        let cd = one
            .cd
            .with(cd::EPD1, 0)
            .with(cd::TG1, tg1)
            .with(cd::T1SZ, u64::from(64 - bits))
            .with_address(cd::TTB1, tables.root);
        m.set_cd(&one, cd);
        let input = top + 3 * page + page - 8;
        assert_eq!(m.output(3, input), 0x20_0000 + page - 8, "TG1 {tg1:#b}");
        assert_eq!(m.output(3, 0x5008), 0x30_0008, "TTB0 beside it");
        // The first address below the half.
        m.read_faults(3, top - 1, F_TRANSLATION);
        // TBI1 and TBI0 concern one half each.
        let tagged = input & !(0xff << 56) | 0x5a << 56;
        let tagged_lower = 0x5a << 56 | 0x5008;
        m.read_faults(3, tagged, F_TRANSLATION);
        m.set_cd(&one, cd.with(cd::TBI1, 1));
        assert_eq!(m.output(3, tagged), 0x20_0000 + page - 8);
        m.read_faults(3, tagged_lower, F_TRANSLATION);
        m.set_cd(&one, cd.with(cd::TBI0, 1));
        assert_eq!(m.output(3, tagged_lower), 0x30_0008);
        let record = m.read_faults(3, tagged, F_TRANSLATION);
        assert_eq!(record.get(event::INPUT), tagged, "as it came, tag and all");
        // EPD1 and EPD0 as well.
        m.set_cd(&one, cd.with(cd::EPD1, 1));
        m.read_faults(3, input, F_TRANSLATION);
        assert_eq!(m.output(3, 0x5008), 0x30_0008);
        m.set_cd(&one, cd.with(cd::EPD0, 1));
        m.read_faults(3, 0x5008, F_TRANSLATION);
        assert_eq!(m.output(3, input), 0x20_0000 + page - 8);
        // HAD1 and HAD0 as well.
        for (root, address) in [(tables, 3 * page), (one.tables, 0x5000)] {
            let at = m.entry(&root, address, root.level);
            m.ram.set(at, m.ram.get(at) | pte::AP_TABLE_NO_USER);
        }
        for (had0, had1) in [(0, 1), (1, 0)] {
            m.set_cd(&one, cd.with(cd::HAD0, had0).with(cd::HAD1, had1));
            let (denied, granted) = if had0 == 1 { (input, 0x5008) } else { (0x5008, input) };
            m.read_faults(3, denied, F_PERMISSION);
            m.read(3, granted).unwrap();
        }
        let at = m.entry(&one.tables, 0x5000, 0);
        m.ram.set(at, m.ram.get(at) & !pte::AP_TABLE_NO_USER);
        // The wrong encodings of the same granules: 0b00 is reserved.
        m.set_cd(&one, cd.with(cd::TG1, 0b00));
        m.read_faults(3, input, C_BAD_CD);
    }
}

/// §7.3.13, DDI 0487 D8.3.
#[test]
fn vs14_a_block_where_none_may_stand_is_a_translation_fault() {
    let narrow = Options { oas: 48, ds: false, va52: false, ..Options::everything() };
    // Granule, levels that have blocks without 52-bit support, and the initial level.
    for (granule, tg, blocks, initial) in
        [(12, 0b00, 1..3, 0), (14, 0b10, 2..3, 0), (16, 0b01, 2..3, 1)]
    {
        for s2 in [false, true] {
            let mut m = Machine::booted(narrow.clone());
            let first = if s2 && granule == 14 { 1 } else { initial };
            // Stage 2 of 16K starts at level 1 (two tables concatenated).
            let tables = m.tables(granule, 48, first);
            let flags = if s2 { pte::S2_RW & !pte::PAGE } else { pte::S1_RW & !pte::PAGE };
            if s2 {
                let two = m.stage2(3, 1);
                // Level 0 with 4K, level 1 with the others.
                let sl0 = 0b10;
                let ste = two.ste.with(ste::S2_TG, tg).with(ste::S2_T0SZ, 16);
                m.set_ste(3, ste.with(ste::S2_SL0, sl0).with_address(ste::S2_TTB, tables.root));
            } else {
                let cd = Machine::cd_for(&tables, 1);
                m.stage1_over(3, cd, tables);
            }
            for level in (first..4).rev() {
                m.tlbi_all();
                m.put(&tables, 0x8000_0000, level, 0x40_0000_0000 | flags | pte::BLOCK);
                let what =
                    format!("{}K stage {} level {level}", 1 << (granule - 10), 1 + s2 as u32);
                let shift = granule + (3 - level as u32) * (granule - 3);
                if blocks.contains(&level) {
                    let output =
                        0x40_0000_0000 >> shift << shift | (0x8000_0008 & ((1 << shift) - 1));
                    assert_eq!(m.output(3, 0x8000_0008), output, "{what}");
                } else {
                    let record = m.fault(&Transaction::read(3, 0x8000_0008));
                    assert_eq!(record.get(event::NUMBER), F_TRANSLATION, "{what}");
                    assert_eq!(record.get(event::S2), u64::from(s2));
                }
                m.put(&tables, 0x8000_0000, level, 0);
            }
        }
    }
    // Where addresses have 52 bits, one level more has blocks.
    for (granule, level, ds) in [(12, 0, 1), (14, 1, 1), (16, 1, 0)] {
        let mut m = Machine::everything();
        let initial = i32::from(granule == 16);
        let tables = m.tables(granule, 48, initial);
        let cd = Machine::cd_for(&tables, 1).with(cd::DS, ds).with(cd::IPS, 0b110);
        m.stage1_over(3, cd, tables);
        m.put(&tables, 0x8000_0000, level, pte::S1_RW & !(pte::PAGE | pte::ISH) | pte::BLOCK);
        assert_eq!(m.output(3, 0x8000_0008), 0x8000_0008, "granule {granule}");
    }
}

/// §5.4, §7.3.22, DDI 0487 D8.4.
#[test]
fn vs15_table_attributes_accumulate_and_are_judged_at_the_leaf() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, 0x30_0000);
    m.map(&one.tables, 0x6000, 0x31_0000);
    let table = |m: &Machine, level| m.entry(&one.tables, 0x5000, level);
    let set = |m: &Machine, level, bits: u64| {
        let at = m.entry(&one.tables, 0x5000, level);
        m.ram.set(at, m.ram.get(at) | bits);
    };
    let user = Transaction::read(3, 0x5000);
    let privileged = Transaction { privileged: true, ..user };
    let write = |transaction: Transaction| Transaction { write: true, ..transaction };
    for level in 0..3 {
        m.tlbi_all();
        set(&m, level, pte::AP_TABLE_READ_ONLY);
        let record = m.fault(&write(user));
        assert_eq!(record.get(event::NUMBER), F_PERMISSION, "level {level}");
        m.go(&user).unwrap();
        // Now it is cached, and neither the entry nor the cached table forgets.
        assert_eq!(m.fault(&write(user)).get(event::NUMBER), F_PERMISSION);
        m.go(&Transaction { address: 0x6000, ..user }).unwrap();
        let neighbour = Transaction { address: 0x6000, ..write(user) };
        assert_eq!(m.fault(&neighbour).get(event::NUMBER), F_PERMISSION);
        m.ram.set(table(&m, level), m.ram.get(table(&m, level)) & !pte::AP_TABLE_READ_ONLY);
    }
    // From two levels: neither users nor writes.
    set(&m, 0, pte::AP_TABLE_NO_USER);
    set(&m, 2, pte::AP_TABLE_READ_ONLY);
    m.tlbi_all();
    m.go(&privileged).unwrap();
    assert_eq!(m.fault(&user).get(event::NUMBER), F_PERMISSION);
    assert_eq!(m.fault(&write(privileged)).get(event::NUMBER), F_PERMISSION);
    // A fault further down comes first: the tables are not judged where they are met.
    let leaf = m.entry(&one.tables, 0x5000, 3);
    let good = m.ram.get(leaf);
    for (descriptor, number) in [(0, F_TRANSLATION), (good & !pte::AF, F_ACCESS)] {
        m.ram.set(leaf, descriptor);
        m.tlbi_all();
        assert_eq!(m.fault(&write(user)).get(event::NUMBER), number);
    }
    m.ram.set(leaf, good);
    // HAD0: as if they were not there.
    m.set_cd(&one, one.cd.with(cd::HAD0, 1));
    m.go(&write(user)).unwrap();
    m.go(&user).unwrap();
    // Where the SMMU has no HAD, the bit is ignored.
    m.set_cd(&one, one.cd);
    // UXNTable and PXNTable take instruction fetches away.
    let fetch = Transaction { instruction: true, ..user };
    m.ram.set(table(&m, 0), m.ram.get(table(&m, 0)) & !pte::AP_TABLE_NO_USER);
    m.tlbi_all();
    m.go(&fetch).unwrap();
    set(&m, 1, pte::UXN_TABLE);
    m.tlbi_all();
    let record = m.fault(&fetch);
    assert_eq!((record.get(event::NUMBER), record.get(event::IND)), (F_PERMISSION, 1));
    m.go(&user).unwrap();
}

/// §5.2 (S2R), §5.4 and §5.5 (A, R, S).
#[test]
fn vs16_translation_faults_are_recorded_as_configured_and_configuration_faults_always() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    for (a, r) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        m.set_cd(&one, one.cd.with(cd::R, r).with(cd::A, a));
        let end = if a == 1 { Refused::Abort } else { Refused::RazWi };
        for transaction in [Transaction::read(3, 0x5000), Transaction::write(3, 0x5000)] {
            assert_eq!(m.go(&transaction), Err(end), "A = {a}, R = {r}");
            assert_eq!(m.events().len(), r as usize);
        }
    }
    // R concerns the four translation faults, each of them.
    m.set_cd(&one, one.cd.with(cd::R, 0).with(cd::IPS, 0b010));
    for descriptor in [0, 1 << 40 | pte::S1_RW, pte::PAGE, pte::PAGE | pte::AF] {
        m.put(&one.tables, 0x5000, 3, descriptor);
        m.read_aborts(3, 0x5000);
    }
    let hole = m.entry(&one.tables, 0x5000, 3);
    m.ram.make_hole(hole..hole + 8);
    m.read_faults(3, 0x5000, F_WALK_EABT);
    m.ram.fill_holes();
    m.set_cd(&one, one.cd.with(cd::R, 0).with(cd::AA64, 0));
    m.read_faults(3, 0x5000, C_BAD_CD);
    // Stage 2, which always aborts.
    let two = m.stage2(4, 1);
    m.set_ste(4, two.ste.with(ste::S2_R, 0));
    m.read_aborts(4, 0x5000);
    m.set_ste(4, two.ste.with(ste::S2_R, 0).with(ste::S2_AA64, 0));
    m.read_faults(4, 0x5000, C_BAD_STE);
    // In a nested stream each stage decides on its own faults.
    let (nested, second) = m.nested(5, 2, 2);
    m.map(&nested.tables, 0x5000, 0x7_7000_0000);
    for (r, s2r) in [(0, 0), (0, 1), (1, 0)] {
        m.set_cd(&nested, nested.cd.with(cd::R, r).with(cd::A, 0));
        m.set_ste(5, nested.ste.with(ste::S2_R, s2r));
        assert_eq!(m.read(5, 0x6000), Err(Refused::RazWi), "stage 1");
        assert_eq!(m.events().len(), r as usize);
        assert_eq!(m.read(5, 0x5000), Err(Refused::Abort), "stage 2");
        assert_eq!(m.events().len(), s2r as usize);
    }
    // A stage 2 fault of a table walk is stage 2's as well.
    m.set_ste(5, nested.ste.with(ste::S2_R, 0));
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    m.ram.set(m.entry(&second, GUEST + leaf, 3), 0);
    m.tlbi_all();
    m.read_aborts(5, 0x5000);
}
