//! 17 to 22, 27, 28: sizes, the Stream table, and the registers that guard it.

use smmuv3::{Options, Refused, Shareability, Transaction, Version};

use crate::common::raw::event::*;
use crate::common::raw::ste::Ste;
use crate::common::raw::{cd, cmd, event, pte, reg, ste};
use crate::common::{Machine, STRTAB};

/// §3.4, §5.2, §5.4.
#[test]
fn vs17_output_sizes_end_at_oas_and_no_encoding_widens_them() {
    for (oas, version) in [(44u8, Version::V3_3), (48, Version::V3_3), (44, Version::V3_0)] {
        let options = Options {
            oas,
            ds: false,
            va52: false,
            ..if version == Version::V3_0 {
                Options { oas, stage2: true, ssid_bits: 0, ..Options::minimal() }
            } else {
                Options::everything()
            }
        };
        let mut m = Machine::booted(options);
        let one = m.stage1(3, 1);
        let two = m.stage2(4, 1);
        m.set_ste(4, two.ste.with(ste::S2_T0SZ, 25));
        for encoding in 0..8 {
            let named = [32, 36, 40, 42, 44, 48, 52, 52][encoding as usize];
            let bits = named.min(u32::from(oas));
            m.set_cd(&one, one.cd.with(cd::IPS, encoding));
            m.set_ste(4, two.ste.with(ste::S2_PS, encoding));
            let inside = (1 << bits) - 0x1000;
            for (sid, tables, flags) in [(3, one.tables, pte::S1_RW), (4, two.tables, pte::S2_RW)] {
                m.tlbi_all();
                m.put(&tables, 0x5000, 3, inside | flags);
                assert_eq!(m.output(sid, 0x5008), inside + 8, "encoding {encoding}");
                if bits < 48 {
                    m.tlbi_all();
                    m.put(&tables, 0x5000, 3, 1 << bits | flags);
                    m.read_faults(sid, 0x5008, F_ADDR_SIZE);
                }
            }
            // The base of the tables itself: ILLEGAL, not an address size fault.
            if bits < 52 {
                m.set_cd(&one, one.cd.with(cd::IPS, encoding).with_address(cd::TTB0, 1 << bits));
                m.read_faults(3, 0x5008, C_BAD_CD);
                let cd = one.cd.with(cd::IPS, encoding).with(cd::EPD0, 1).with(cd::EPD1, 0);
                let cd = cd.with(cd::TG1, 0b10).with(cd::T1SZ, 25);
                m.set_cd(&one, cd.with_address(cd::TTB1, 1 << bits));
                m.read_faults(3, 0x5008, C_BAD_CD);
                // Where the half is off, nobody looks at its base.
                m.set_cd(&one, cd.with(cd::EPD1, 1).with_address(cd::TTB1, 1 << bits));
                m.read_faults(3, 0x5008, F_TRANSLATION);
                let ste = two.ste.with(ste::S2_PS, encoding).with_address(ste::S2_TTB, 1 << bits);
                m.set_ste(4, ste);
                m.read_faults(4, 0x5008, C_BAD_STE);
            }
        }
        // AArch32 tables are not supported.
        m.set_cd(&one, one.cd.with(cd::AA64, 0));
        m.read_faults(3, 0x5008, C_BAD_CD);
        m.set_ste(4, two.ste.with(ste::S2_AA64, 0));
        m.read_faults(4, 0x5008, C_BAD_STE);
        // The pointer to the CD.
        m.set_ste(3, one.ste.with_address(ste::S1_CONTEXT_PTR, 1 << oas));
        m.read_faults(3, 0x5008, C_BAD_STE);
    }
    // 52 bits, where the tables can say so only with DS or 64K.
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    let cd = one.cd.with(cd::IPS, 0b110);
    m.set_cd(&one, cd.with_address(cd::TTB0, 1 << 48));
    m.read_faults(3, 0x5008, C_BAD_CD);
    m.set_cd(&one, cd.with(cd::DS, 1).with_address(cd::TTB0, 1 << 48));
    m.read_faults(3, 0x5008, F_WALK_EABT);
    m.set_cd(&one, cd.with(cd::TG0, 0b01).with_address(cd::TTB0, 1 << 51));
    m.read_faults(3, 0x5008, F_WALK_EABT);
}

/// An STE that passes addresses on; what it makes of the memory type tells odd from even `n`.
fn marked(n: u64) -> Ste {
    ste::new(ste::BYPASS)
        .with(ste::MT_CFG, 1)
        .with(ste::MEM_ATTR, if n.is_multiple_of(2) { 0xf } else { 0 })
}

/// Puts `FMT`, `SPLIT` and `LOG2SIZE` in force.
fn configure(m: &mut Machine, base: u64, cfg: u32) {
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    m.w64(reg::STRTAB_BASE, base);
    m.w32(reg::STRTAB_BASE_CFG, cfg);
    assert_eq!((m.r64(reg::STRTAB_BASE), m.r32(reg::STRTAB_BASE_CFG)), (base, cfg));
    m.run(&[cmd::cfgi_all()]);
    m.enable();
}

const TWO_LEVEL: u32 = 1 << 16;

/// §5.1.
#[test]
fn vs18_a_level_1_descriptor_spans_half_as_many_stes_as_its_exponent_says() {
    let mut m = Machine::everything();
    for (split, split_field) in [(6u32, 6u32), (8, 8), (10, 10)] {
        let l1 = m.alloc(0x1000);
        let l2 = m.alloc(64 << split);
        for n in 0..1 << split {
            m.store(l2 + 64 * n, &ste::new(ste::BYPASS));
        }
        configure(&mut m, l1, TWO_LEVEL | split_field << 6 | (split + 4));
        // The third descriptor: streams 2 << split and on.
        let first = 2u32 << split;
        for span in 0..32u64 {
            m.ram.set(l1 + 16, l2 | span);
            m.run(&[cmd::cfgi_all()]);
            if span == 0 || span > u64::from(split) + 1 {
                // Invalid, reserved, or more than SPLIT leaves room for.
                m.read_faults(first, 0x5000, C_BAD_STREAMID);
                m.read_faults(first + 1, 0x5000, C_BAD_STREAMID);
                continue;
            }
            let count = 1u32 << (span - 1);
            assert_eq!(m.output(first, 0x5000), 0x5000, "Span {span}");
            assert_eq!(m.output(first + count - 1, 0x5000), 0x5000);
            if count < 1 << split {
                m.read_faults(first + count, 0x5000, C_BAD_STREAMID);
            }
        }
        // The neighbour's descriptor is empty.
        m.read_faults(first - 1, 0x5000, C_BAD_STREAMID);
        // L2Ptr[5 + Span - 1 : 0] is taken as 0: the table is aligned to its size, and no further.
        for span in 1..=u64::from(split) + 1 {
            let size = 64u64 << (span - 1);
            m.ram.set(l1 + 16, l2 | (size - 1) & !0x3f | span);
            let last = (1u32 << (span - 1)) - 1;
            let at = l2 + 64 * u64::from(last);
            m.run(&[cmd::cfgi_all()]);
            m.ram.make_hole(at..at + 64);
            let record = m.read_faults(first + last, 0x5000, F_STE_FETCH);
            assert_eq!(record.get_address(event::FETCH), at);
            m.ram.fill_holes();
        }
        m.ram.set(l1 + 16, (l2 + 64) | 1);
        m.run(&[cmd::cfgi_all()]);
        m.ram.make_hole(l2 + 64..l2 + 128);
        m.read_faults(first, 0x5000, F_STE_FETCH);
        m.ram.fill_holes();
    }
}

/// §6.3.24, §6.3.25.
#[test]
fn vs19_the_stream_table_is_cut_and_aligned_as_its_sizes_say() {
    let mut m = Machine::booted(Options { sid_bits: 9, ..Options::everything() });
    // SPLIT other than 6, 8, 10 counts as 6, and is read back as written.
    let l1 = m.alloc(0x1000);
    let l2 = m.alloc(0x1000);
    m.store(l2, &ste::new(ste::BYPASS));
    m.store(l2 + 64 * 63, &ste::new(ste::BYPASS));
    m.ram.set(l1 + 8, l2 | 7);
    for split in (0..32u32).filter(|split| ![8, 10].contains(split)) {
        configure(&mut m, l1, TWO_LEVEL | split << 6 | 9);
        assert_eq!(m.output(64, 0x5000), 0x5000, "SPLIT {split}");
        assert_eq!(m.output(127, 0x5000), 0x5000);
        m.read_faults(63, 0x5000, C_BAD_STREAMID);
        m.read_faults(128, 0x5000, C_BAD_STREAMID);
    }
    // LOG2SIZE counts up to SIDSIZE, but tables are aligned to the size that was written: linear and two-level.
    let table = m.alloc(64 << 10);
    m.store(table + 64 * 511, &ste::new(ste::BYPASS));
    m.store(64 * 511, &ste::new(ste::BYPASS));
    m.ram.set(8, l2 | 7);
    for (log2, base) in [(9, table), (10, table), (20, 0), (32, 0), (63, 0)] {
        for written in [base, table] {
            configure(&mut m, written, log2);
            assert_eq!(m.output(511, 0x5000), 0x5000, "LOG2SIZE {log2}");
            m.read_faults(512, 0x5000, C_BAD_STREAMID);
            m.read_faults(!0, 0x5000, C_BAD_STREAMID);
        }
        configure(&mut m, if base == 0 { 0 } else { l1 }, TWO_LEVEL | 6 << 6 | log2);
        assert_eq!(m.output(64, 0x5000), 0x5000);
        m.read_faults(512 + 64, 0x5000, C_BAD_STREAMID);
    }
    m.store(table, &ste::new(ste::BYPASS));
    m.store(table + 64, &ste::new(ste::BYPASS).with(ste::V, 0));
    configure(&mut m, table + (64 << 9), 10);
    assert_eq!(m.output(0, 0x5000), 0x5000);
    m.read_faults(1, 0x5000, C_BAD_STE);
    // Base bits below the size of the table count as 0: all of them, and none above.
    for log2 in [0, 1, 6, 9] {
        let size = 64u64 << log2;
        m.store(table, &ste::new(ste::BYPASS));
        configure(&mut m, table | (size - 1) & !0x3f, log2);
        assert_eq!(m.output(0, 0x5000), 0x5000, "LOG2SIZE {log2}");
        let here = table + size;
        m.store(here, &ste::new(ste::BYPASS).with(ste::V, 0));
        configure(&mut m, here, log2);
        let record = m.read_faults(0, 0x5000, C_BAD_STE);
        assert_eq!(record.get(event::SID), 0);
    }
    // A level 1 table of eight descriptors and fewer is aligned to 64 bytes.
    for log2 in [6, 7, 9] {
        let aside = l1 + 0x40;
        m.ram.set(aside, l2 | 7);
        configure(&mut m, aside, TWO_LEVEL | 6 << 6 | log2);
        assert_eq!(m.output(0, 0x5000), 0x5000, "LOG2SIZE {log2}");
    }
}

/// §6.3.24, §6.3.25, §6.3.9.6.
#[test]
fn vs20_the_stream_table_registers_are_read_only_while_the_smmu_is_enabled() {
    let mut m = Machine::everything();
    m.store(Machine::ste_at(3), &ste::new(ste::BYPASS));
    let attempt = |m: &Machine| {
        m.w64(reg::STRTAB_BASE, 0x5_0000);
        m.w32(reg::STRTAB_BASE, 0x6_0000);
        m.w32(reg::STRTAB_BASE + 4, 0x1);
        m.w32(reg::STRTAB_BASE_CFG, TWO_LEVEL | 6 << 6 | 3);
        m.w32(reg::CR2, 0);
        m.w32(reg::CR1, 0);
    };
    let unchanged = |m: &Machine| {
        assert_eq!(m.r64(reg::STRTAB_BASE), STRTAB);
        assert_eq!(m.r32(reg::STRTAB_BASE_CFG), 8);
        assert_eq!(m.r32(reg::CR2), reg::RECINVSID);
        assert_eq!(m.r32(reg::CR1), 0xd75);
    };
    attempt(&m);
    unchanged(&m);
    assert_eq!(m.output(3, 0x5000), 0x5000);
    // SMMUEN is 0 again and its acknowledgement still 1: a transaction is under way.
    let smmu = m.smmu.clone();
    let mut other = smmu.requester();
    let transfer = other.begin();
    m.w32(reg::CR0, reg::CMDQEN | reg::EVENTQEN | reg::PRIQEN);
    assert_eq!(m.r32(reg::CR0ACK) & reg::SMMUEN, reg::SMMUEN);
    attempt(&m);
    unchanged(&m);
    drop(transfer);
    assert_eq!(m.r32(reg::CR0ACK) & reg::SMMUEN, 0);
    attempt(&m);
    assert_eq!(m.r64(reg::STRTAB_BASE), 0x1_0006_0000);
    assert_eq!(m.r32(reg::STRTAB_BASE_CFG), TWO_LEVEL | 6 << 6 | 3);
    assert_eq!(m.r32(reg::CR2), 0);
    assert_eq!(m.r32(reg::CR1), 0x035, "the queues' attributes are guarded by the queues");
    // Two levels, then linear again: FMT does not stick.
    configure(&mut m, STRTAB, TWO_LEVEL | 6 << 6 | 8);
    m.read_aborts(3, 0x5000);
    configure(&mut m, STRTAB, 8);
    assert_eq!(m.output(3, 0x5000), 0x5000);
    // SMMUEN written and not yet acknowledged the other way round.
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    let transfer = other.begin();
    m.w32(reg::CR0, reg::CMDQEN | reg::EVENTQEN | reg::SMMUEN);
    assert_eq!(m.r32(reg::CR0ACK) & reg::SMMUEN, 0);
    m.w32(reg::STRTAB_BASE_CFG, 5);
    assert_eq!(m.r32(reg::STRTAB_BASE_CFG), 8);
    drop(transfer);
    assert_eq!(m.r32(reg::CR0ACK) & reg::SMMUEN, reg::SMMUEN);
}

/// §6.3.12, §7.3.3.
#[test]
fn vs21_streams_out_of_range_abort_and_are_recorded_on_request_only() {
    let mut m = Machine::everything();
    let l1 = m.alloc(0x1000);
    for recinvsid in [0, reg::RECINVSID] {
        for (base, cfg, sid) in [(STRTAB, 8, 256), (STRTAB, 8, !0), (l1, TWO_LEVEL | 6 << 6 | 8, 7)]
        {
            m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
            m.w32(reg::CR2, recinvsid);
            m.w64(reg::STRTAB_BASE, base);
            m.w32(reg::STRTAB_BASE_CFG, cfg);
            m.enable();
            if recinvsid == 0 {
                m.read_aborts(sid, 0x5000);
                let transaction = Transaction::write(sid, 0x5000).with_substream(5);
                assert_eq!(m.go(&transaction), Err(Refused::Abort));
                assert_eq!(m.events(), []);
            } else {
                let record = m.read_faults(sid, 0x5000, C_BAD_STREAMID);
                assert_eq!(record.0, [0x02 | u64::from(sid) << 32, 0, 0, 0]);
                let record = m.fault(&Transaction::write(sid, 0x5000).with_substream(5));
                assert_eq!(record.0, [0x02 | 1 << 11 | 5 << 12 | u64::from(sid) << 32, 0, 0, 0]);
            }
        }
    }
    // It says nothing about other configuration errors.
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    m.w32(reg::CR2, 0);
    m.w64(reg::STRTAB_BASE, STRTAB);
    m.w32(reg::STRTAB_BASE_CFG, 8);
    m.enable();
    m.read_faults(7, 0x5000, C_BAD_STE);
}

/// §6.3.28, §6.3.95.
#[test]
fn vs22_the_smmus_own_indexes_are_writable_while_their_queue_is_disabled_only() {
    let mut m = Machine::everything();
    for (enable, register, base) in [
        (reg::CMDQEN, reg::CMDQ_CONS, reg::CMDQ_BASE),
        (reg::EVENTQEN, reg::EVENTQ_PROD, reg::EVENTQ_BASE),
        (reg::PRIQEN, reg::PRIQ_PROD, reg::PRIQ_BASE),
    ] {
        let all = reg::SMMUEN | reg::CMDQEN | reg::EVENTQEN | reg::PRIQEN;
        let (index, address) = (m.r32(register), m.r64(base));
        m.w32(register, 5);
        m.w64(base, 0x5_0000 | 2);
        m.w32(base + 4, 0xff);
        assert_eq!((m.r32(register), m.r64(base)), (index, address), "{register:#x}");
        // SMMUEN guards none of them.
        m.set_cr0(all & !enable);
        m.w32(register, index ^ 1);
        assert_eq!(m.r32(register), index ^ 1);
        m.w32(register, index);
        m.w64(base, 0x5_0000 | 2);
        assert_eq!(m.r64(base), 0x5_0000 | 2);
        m.w64(base, address);
        m.set_cr0(all);
    }
    // PRIQEN guards by its own value, although without SMMUEN it has no effect.
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN | reg::PRIQEN);
    let index = m.r32(reg::PRIQ_PROD);
    m.w32(reg::PRIQ_PROD, index ^ 1);
    assert_eq!(m.r32(reg::PRIQ_PROD), index);
    // Software's own indexes are writable at any time.
    m.w32(reg::EVENTQ_CONS, 3);
    m.w32(reg::PRIQ_CONS, 3);
    assert_eq!((m.r32(reg::EVENTQ_CONS), m.r32(reg::PRIQ_CONS)), (3, 3));
}

/// §4.3.2, §4.3.6.
#[test]
fn vs27_a_range_of_stes_is_aligned_and_31_is_all_of_them() {
    let mut m = Machine::everything();
    let write_all = |m: &Machine, n: u64| {
        (0..256).for_each(|sid| m.store(Machine::ste_at(sid), &marked(n)));
    };
    let seen = |m: &mut Machine, sid| {
        let is_normal = !m.read(sid, 0x5000).unwrap().attributes.is_device();
        u64::from(!is_normal)
    };
    write_all(&m, 0);
    m.run(&[cmd::cfgi_all()]);
    let mut n = 0;
    for range in 0..32u64 {
        for start in [0u32, 100, 255] {
            // Everybody's configuration is cached...
            for sid in 0..256 {
                assert_eq!(seen(&mut m, sid), n % 2);
            }
            n += 1;
            write_all(&m, n);
            // ...and one command names a stream somewhere in the range.
            m.run(&[cmd::cfgi_range(start, range)]);
            let log2 = range as u32 + 1;
            let (first, count) =
                if log2 >= 8 { (0, 256) } else { (start >> log2 << log2, 1 << log2) };
            for sid in first..first + count {
                assert_eq!(seen(&mut m, sid), n % 2, "stream {sid}, Range {range} at {start}");
            }
            m.run(&[cmd::cfgi_all()]);
        }
    }
    // Streams that no command ever named, and those of a Stream table that was filled while the SMMU was off.
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    write_all(&m, n + 1);
    m.run(&[cmd::cfgi_range(0x1234_5678, 31)]);
    m.enable();
    for sid in 0..256 {
        assert_eq!(seen(&mut m, sid), (n + 1) % 2);
    }
}

/// §6.3.14, §6.3.9.6.
#[test]
fn vs28_gbpa_takes_effect_with_update_and_while_the_smmu_is_disabled() {
    let mut m = Machine::new(Options::everything());
    m.prepare();
    m.store(Machine::ste_at(3), &ste::new(ste::BYPASS));
    m.store(Machine::ste_at(4), &ste::new(ste::ABORT));
    let passes = |m: &mut Machine, sid| m.read(sid, 0x5000).is_ok();
    assert!(passes(&mut m, 3) && passes(&mut m, 77));
    // A write without Update is ignored, and stored nowhere.
    let before = m.r32(reg::GBPA);
    m.w32(reg::GBPA, reg::GBPA_ABORT);
    assert_eq!(m.r32(reg::GBPA), before);
    assert!(passes(&mut m, 3));
    // With Update it counts, and Update goes back to 0.
    m.w32(reg::GBPA, reg::GBPA_ABORT | reg::GBPA_UPDATE);
    assert_eq!(m.r32(reg::GBPA), reg::GBPA_ABORT);
    for transaction in [
        Transaction::read(3, 0x5000),
        Transaction::write(3, 0x5000).with_substream(9),
        Transaction::read(!0, 0x5000),
    ] {
        assert_eq!(m.go(&transaction), Err(Refused::Abort));
    }
    assert_eq!(m.events(), [], "in silence");
    // While the SMMU is enabled its value does not matter, whenever it is written.
    m.enable();
    assert!(passes(&mut m, 3));
    m.w32(reg::GBPA, reg::GBPA_UPDATE);
    assert!(passes(&mut m, 3) && !passes(&mut m, 4));
    m.w32(reg::GBPA, reg::GBPA_ABORT | reg::GBPA_UPDATE);
    assert!(passes(&mut m, 3));
    // SMMUEN 1 to 0 puts every stream under GBPA: those that passed, those that aborted, those never seen.
    m.set_cr0(reg::CMDQEN | reg::EVENTQEN);
    for sid in [3, 4, 99] {
        assert!(!passes(&mut m, sid));
    }
    m.w32(reg::GBPA, reg::GBPA_UPDATE | 0b10 << 12 | 1 << 4 | 0b11 << 16 | 0b11 << 18);
    for sid in [3, 4, 99] {
        // Outer Shareable Device-nGnRnE, privileged, instruction: the overrides.
        let translation = m.read(sid, 0x5000).unwrap();
        assert_eq!(translation.attributes.memory, 0);
        assert_eq!(translation.attributes.shareability, Shareability::Outer);
        assert!(translation.privileged && translation.instruction);
        assert!(!m.write(sid, 0x5000).unwrap().instruction, "writes are data");
    }
    // An implementation may deny by default.
    let mut m = Machine::new(Options { reset_abort: true, ..Options::everything() });
    assert_eq!(m.r32(reg::GBPA) & reg::GBPA_ABORT, reg::GBPA_ABORT);
    assert!(!passes(&mut m, 3));
}
