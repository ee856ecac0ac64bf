//! The register file: masks, guards, access sizes.

use smmuv3::wire::register::{Access, Register};
use smmuv3::{Options, REGISTER_FILE_SIZE};

use crate::common::Machine;
use crate::common::raw::{cmd, reg};

/// The same bits whichever way they are read.
fn assert_reads(m: &Machine, offset: u64, value: u64) {
    assert_eq!(m.r64(offset), value, "{offset:#x}");
    assert_eq!(m.r32(offset), value as u32);
    assert_eq!(m.r32(offset + 4), (value >> 32) as u32);
}

/// §6.2: 64-bit registers in one access and in halves.
#[test]
fn halves_of_a_register_are_written_and_read_alone() {
    let m = Machine::new(Options::everything());
    for offset in [
        reg::STRTAB_BASE,
        reg::CMDQ_BASE,
        reg::EVENTQ_BASE,
        reg::PRIQ_BASE,
        reg::GERROR_IRQ_CFG0,
        reg::EVENTQ_IRQ_CFG0,
        reg::PRIQ_IRQ_CFG0,
    ] {
        m.w64(offset, 0);
        m.w32(offset, 0x1234_5640);
        assert_reads(&m, offset, 0x1234_5640);
        m.w32(offset + 4, 0x000a_bcde);
        assert_reads(&m, offset, 0x000a_bcde_1234_5640);
        m.w64(offset, 0x0001_0000_0000_0040);
        assert_reads(&m, offset, 0x0001_0000_0000_0040);
    }
    // A 64-bit access to two 32-bit registers reaches both.
    m.w64(reg::GERROR_IRQ_CFG1, 0x0000_0015_dead_beef);
    assert_eq!((m.r32(reg::GERROR_IRQ_CFG1), m.r32(reg::GERROR_IRQ_CFG2)), (0xdead_beef, 0x15));
    assert_eq!(m.r64(reg::IDR0), u64::from(m.r32(reg::IDR0)) | u64::from(m.r32(reg::IDR1)) << 32);
}

/// §6.2.
#[test]
fn accesses_of_other_sizes_and_alignments_do_nothing() {
    let m = Machine::new(Options::everything());
    m.w64(reg::STRTAB_BASE, 0x1234_5640);
    for size in [0, 1, 2, 3, 5, 7, 12, 16] {
        let mut data = vec![0xff; size];
        m.smmu.mmio_write(reg::STRTAB_BASE, &data);
        m.smmu.mmio_read(reg::STRTAB_BASE, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{size} bytes");
    }
    for (offset, size) in [(reg::STRTAB_BASE + 2, 4), (reg::STRTAB_BASE + 4, 8), (1, 4)] {
        let mut data = vec![0xff; size];
        m.smmu.mmio_write(offset, &data);
        m.smmu.mmio_read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x}");
    }
    assert_eq!(m.r64(reg::STRTAB_BASE), 0x1234_5640);
}

/// All of both pages, and what is beyond.
#[test]
fn whatever_is_written_anywhere_reserved_bits_read_as_zero_and_nothing_breaks() {
    for options in [Options::everything(), Options::minimal()] {
        let m = Machine::new(options);
        let before: Vec<u32> =
            (0..REGISTER_FILE_SIZE).step_by(4).map(|offset| m.r32(offset)).collect();
        for pattern in [!0, 0, 0x5555_5555_5555_5555] {
            for offset in (0..REGISTER_FILE_SIZE + 64).step_by(4) {
                m.w32(offset, pattern as u32);
            }
            for offset in (0..REGISTER_FILE_SIZE + 64).step_by(8) {
                m.w64(offset, pattern);
            }
            for (n, offset) in (0..REGISTER_FILE_SIZE).step_by(4).enumerate() {
                let register = Register::lookup(offset as u32);
                let read_only = register.is_none_or(|register| {
                    register.access() == Access::ReadOnly
                        && !matches!(
                            register,
                            Register::Cr0Ack | Register::IrqCtrlAck | Register::Gerror
                        )
                });
                if read_only {
                    assert_eq!(m.r32(offset), before[n], "{offset:#x} {register:?}");
                }
            }
        }
        for offset in [REGISTER_FILE_SIZE, REGISTER_FILE_SIZE + 8, !7, 1 << 32] {
            assert_eq!((m.r32(offset), m.r64(offset)), (0, 0));
        }
    }
}

/// §6.3: which bits an SMMU with everything, and one with nothing, keeps.
#[test]
fn registers_keep_the_bits_of_features_that_are_there() {
    const ADDRESS: u64 = 0x000f_ffff_ffff_ffff;
    let (every, minimal) = (Options::everything(), Options::minimal());
    for (offset, all, least) in [
        (reg::CR1, 0xfff, 0xfff),
        (reg::CR2, 0b1011, 0b0010),
        (reg::STRTAB_BASE, ADDRESS & !0x3f | 1 << 62, 0xff_ffff_ffc0 | 1 << 62),
        (reg::STRTAB_BASE_CFG, 0x3_07ff, 0x3f),
        (reg::CMDQ_BASE, ADDRESS | 1 << 62, 0xff_ffff_ffff | 1 << 62),
        (reg::EVENTQ_BASE, ADDRESS | 1 << 62, 0xff_ffff_ffff | 1 << 62),
        (reg::PRIQ_BASE, ADDRESS | 1 << 62, 0),
        (reg::GERROR_IRQ_CFG0, ADDRESS & !3, 0),
        (reg::EVENTQ_IRQ_CFG0, ADDRESS & !3, 0),
        (reg::PRIQ_IRQ_CFG0, ADDRESS & !3, 0),
        (reg::GERROR_IRQ_CFG1, 0xffff_ffff, 0),
        (reg::GERROR_IRQ_CFG2, 0x3f, 0),
        (reg::EVENTQ_IRQ_CFG1, 0xffff_ffff, 0),
        (reg::EVENTQ_IRQ_CFG2, 0x3f, 0),
        (reg::PRIQ_IRQ_CFG1, 0xffff_ffff, 0),
        (reg::PRIQ_IRQ_CFG2, 0x8000_003f, 0),
        (reg::STATUSR, 0, 0),
        (reg::AGBPA, 0, 0),
        (reg::GATOS_CTRL, 0, 0),
        (reg::IRQ_CTRL, 0b111, 0b101),
    ] {
        for (options, expected) in [(&every, all), (&minimal, least)] {
            let m = Machine::new(options.clone());
            let wide = Register::lookup(offset as u32).is_some_and(|r| r.width() == 64);
            if wide {
                m.w64(offset, !0);
                assert_eq!(m.r64(offset), expected, "{offset:#x}");
                m.w64(offset, 0);
                assert_eq!(m.r64(offset), 0);
            } else {
                m.w32(offset, !0);
                assert_eq!(u64::from(m.r32(offset)), expected, "{offset:#x}");
                m.w32(offset, 0);
                assert_eq!(m.r32(offset), 0);
            }
        }
    }
    let m = Machine::new(every);
    m.w32(reg::GBPA, !0);
    assert_eq!(m.r32(reg::GBPA), 0x001f_3f1f);
    m.w32(reg::CR0, !0);
    assert_eq!((m.r32(reg::CR0), m.r32(reg::CR0ACK)), (0b1_1111, 0b1_1111));
    let m = Machine::new(minimal);
    m.w32(reg::GBPA, !0);
    assert_eq!(m.r32(reg::GBPA), reg::GBPA_ABORT);
    m.w32(reg::CR0, !0);
    assert_eq!((m.r32(reg::CR0), m.r32(reg::CR0ACK)), (0b1101, 0b1101));
}

/// §6.3.11: tables' attributes are guarded by SMMUEN, the queues' by each queue.
#[test]
fn cr1_is_guarded_in_halves() {
    const TABLES: u32 = 0xfc0;
    const QUEUES: u32 = 0x03f;
    let m = Machine::new(Options::everything());
    for (enabled, writable) in [
        (0, TABLES | QUEUES),
        (reg::SMMUEN, QUEUES),
        (reg::CMDQEN, TABLES),
        (reg::EVENTQEN, TABLES),
        (reg::PRIQEN, TABLES),
        (reg::SMMUEN | reg::EVENTQEN, 0),
        (reg::ATSCHK, TABLES | QUEUES),
    ] {
        m.w32(reg::CR0, 0);
        m.w32(reg::CR1, 0);
        m.w32(reg::CR0, enabled);
        m.w32(reg::CR1, !0);
        assert_eq!(m.r32(reg::CR1), writable, "CR0 {enabled:#x}");
    }
}

/// §6.3.21 to §6.3.23 and the like: guarded by the enable of the interrupt.
#[test]
fn interrupt_configuration_is_writable_while_its_interrupt_is_disabled() {
    let m = Machine::new(Options::everything());
    for (enable, registers) in [
        (0b001, [reg::GERROR_IRQ_CFG0, reg::GERROR_IRQ_CFG1, reg::GERROR_IRQ_CFG2]),
        (0b010, [reg::PRIQ_IRQ_CFG0, reg::PRIQ_IRQ_CFG1, reg::PRIQ_IRQ_CFG2]),
        (0b100, [reg::EVENTQ_IRQ_CFG0, reg::EVENTQ_IRQ_CFG1, reg::EVENTQ_IRQ_CFG2]),
    ] {
        m.w32(reg::IRQ_CTRL, enable);
        assert_eq!(m.r32(reg::IRQ_CTRLACK), enable);
        registers.iter().for_each(|offset| m.w32(*offset, 0x14));
        assert_eq!(registers.map(|offset| m.r32(offset)), [0; 3], "IRQ_CTRL {enable:#b}");
        m.w32(reg::IRQ_CTRL, 0b111 & !enable);
        registers.iter().for_each(|offset| m.w32(*offset, 0x14));
        assert_eq!(registers.map(|offset| m.r32(offset)), [0x14; 3]);
    }
}

/// §6.3.27, §6.3.28: bits above the wrap flag are RAZ.
#[test]
fn indexes_have_as_many_bits_as_their_queue_needs() {
    let m = Machine::new(Options::everything());
    for (base, prod, cons, flags) in [
        (reg::CMDQ_BASE, reg::CMDQ_PROD, reg::CMDQ_CONS, [0, 0x7f00_0000]),
        (reg::EVENTQ_BASE, reg::EVENTQ_PROD, reg::EVENTQ_CONS, [reg::OVFLG; 2]),
        (reg::PRIQ_BASE, reg::PRIQ_PROD, reg::PRIQ_CONS, [reg::OVFLG; 2]),
    ] {
        for log2 in [0u32, 1, 5, 18, 19, 31] {
            m.w64(base, u64::from(log2));
            m.w32(prod, !0);
            m.w32(cons, !0);
            let mask = (2 << log2.min(19)) - 1;
            assert_eq!([m.r32(prod), m.r32(cons)], flags.map(|flags| flags | mask));
            assert_eq!(m.r64(base), u64::from(log2), "read back as written");
        }
    }
    // A queue of one entry works: the index is the wrap flag alone.
    m.w64(reg::CMDQ_BASE, 0x5_0000);
    m.w32(reg::CMDQ_PROD, 0);
    m.w32(reg::CMDQ_CONS, 0);
    m.w32(reg::CR0, reg::CMDQEN);
    m.store(0x5_0000, &cmd::cfgi_all());
    for n in 1..6 {
        m.w32(reg::CMDQ_PROD, n & 1);
        assert_eq!(m.r32(reg::CMDQ_CONS), n & 1);
        assert_eq!(m.gerror(), 0);
    }
}

/// §6.3.1 to §6.3.8: the presets as a driver sees them.
#[test]
fn id_registers_say_what_the_options_are() {
    let m = Machine::new(Options::everything());
    let idr0 = m.r32(reg::IDR0);
    assert_eq!(idr0 & 0b11, 0b11, "both stages");
    assert_eq!(idr0 >> 2 & 3, 0b10, "AArch64 tables");
    assert_eq!(idr0 >> 6 & 3, 2, "HTTU: access and dirty");
    assert_eq!(idr0 >> 21 & 3, 0b10, "little-endian");
    assert_eq!(idr0 >> 27 & 3, 0b01, "two-level stream tables");
    assert_eq!(m.r32(reg::IDR1) & 0x7ff, 32 | 20 << 6);
    assert_eq!(m.r32(reg::IDR1) >> 11 & 0x7fff, 0x13 | 0x13 << 5 | 0x13 << 10);
    assert_eq!(m.r32(reg::IDR5) & 7, 6, "52 bits");
    assert_eq!(m.r32(reg::IDR5) >> 16, 256, "STALL_MAX");
    assert_eq!(m.r32(reg::AIDR), 3);
    let m = Machine::new(Options::mmu600());
    assert_eq!((m.r32(reg::AIDR), m.r32(reg::IIDR)), (1, 0x4830_043b));
    let m = Machine::new(Options::minimal());
    assert_eq!(m.r32(reg::IDR0) & 0b11, 0b10, "stage 1 alone");
    assert_eq!(m.r32(reg::IDR0) >> 24 & 0b111, 0b101, "terminates only, with aborts");
    assert_eq!(m.r32(reg::IDR5) & 7, 2, "40 bits");
}

/// A VMM may pass on whatever address the guest made up.
#[test]
fn addresses_at_the_end_of_everything_are_no_registers() {
    let m = Machine::everything();
    let before = m.smmu.save();
    for offset in [0x2_0000, 0x1_fffc, u64::from(u32::MAX), u64::MAX - 7, u64::MAX - 3, u64::MAX] {
        assert_eq!((m.smmu.read32(offset), m.smmu.read64(offset)), (0, 0), "{offset:#x}");
        m.smmu.write32(offset, !0);
        m.smmu.write64(offset, !0);
    }
    assert_eq!(m.smmu.save(), before);
}
