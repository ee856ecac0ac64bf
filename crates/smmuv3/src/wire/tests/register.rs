//! The register map and the registers' fields.

use crate::wire::Register;
use crate::wire::field::Field;
use crate::wire::register::{
    Access, Aidr, CmdqCons, CommandError, Cr0, Gbpa, Gerror, Idr0, Idr1, Idr3, Idr5, Iidr, IrqCfg2,
    PAGE_SIZE, Prod, QueueBase, Reset, StrtabBase, StrtabBaseCfg, lookup,
};

#[test]
fn registers_stand_in_order_and_apart() {
    let mut next = 0;
    for register in Register::ALL {
        assert!(register.offset() >= next, "{register} overlaps its neighbour");
        assert!(matches!(register.width(), 32 | 64));
        assert_eq!(register.offset() % (register.width() / 8), 0, "{register} is unaligned");
        next = register.offset() + register.width() / 8;
    }
    assert!(next <= 2 * PAGE_SIZE);
}

#[test]
fn lookup_finds_each_word_of_each_register_and_nothing_else() {
    let mut found = 0;
    for offset in (0..2 * PAGE_SIZE).step_by(4) {
        if let Some(register) = lookup(offset) {
            assert!((register.offset()..).contains(&offset));
            assert!(offset < register.offset() + register.width() / 8);
            found += 1;
        }
    }
    let words: u32 = Register::ALL.iter().map(|register| register.width() / 32).sum();
    assert_eq!(found, words);
    for offset in
        [1, 2, 0x22, 0x4c, 0xa8, 0xcc, 0xffc + 4, 0x8000, 0x1_0000, u32::MAX, u32::MAX - 3]
    {
        assert_eq!(lookup(offset), None, "{offset:#x}");
    }
}

/// §6.2.1 and §6.2.2.
#[test]
fn offsets_are_those_of_the_specification() {
    for (register, offset, width) in [
        (Register::Idr0, 0x0, 32),
        (Register::Cr0, 0x20, 32),
        (Register::Gbpa, 0x44, 32),
        (Register::GerrorIrqCfg0, 0x68, 64),
        (Register::StrtabBase, 0x80, 64),
        (Register::StrtabBaseCfg, 0x88, 32),
        (Register::CmdqProd, 0x98, 32),
        (Register::EventqBase, 0xA0, 64),
        (Register::PriqIrqCfg2, 0xDC, 32),
        (Register::GatosPar, 0x118, 64),
        (Register::Cidr3, 0xFFC, 32),
        (Register::EventqProd, 0x1_00A8, 32),
        (Register::PriqCons, 0x1_00CC, 32),
    ] {
        assert_eq!((register.offset(), register.width()), (offset, width), "{register}");
        assert_eq!(lookup(offset), Some(register));
        if width == 64 {
            assert_eq!(lookup(offset + 4), Some(register));
        }
    }
}

#[test]
fn guards_and_reset_values() {
    assert_eq!(Register::Idr0.access(), Access::ReadOnly);
    assert_eq!(Register::StrtabBase.access(), Access::WhileSmmuDisabled);
    assert_eq!(Register::CmdqCons.access(), Access::WhileCmdqDisabled);
    assert_eq!(Register::CmdqProd.access(), Access::ReadWrite);
    assert_eq!(Register::EventqProd.access(), Access::WhileEventqDisabled);
    assert_eq!(Register::Cr0.reset(), Reset::Value(0));
    assert_eq!(Register::StrtabBase.reset(), Reset::Unknown);
    assert_eq!(Register::Gbpa.access().to_string(), "writable while its Update is 0");
}

/// §6.3: values real hardware and models report.
#[test]
fn identification() {
    // S2P, S1P, VMSAv8-64, COHACC, ASID16, VMID16, CD2L, little-endian, two levels.
    let idr0 = Idr0::default()
        .with_s2p(true)
        .with_s1p(true)
        .with_ttf(0b10)
        .with_cohacc(true)
        .with_asid16(true)
        .with_vmid16(true)
        .with_cd2l(true)
        .with_ttendian(0b10)
        .with_st_level(0b01);
    assert_eq!(idr0.0, 0x084c_101b);
    let idr1 = Idr1(0x0e73_0410);
    assert_eq!((idr1.sid_size(), idr1.ssid_size()), (16, 16));
    assert_eq!((idr1.cmdqs(), idr1.eventqs(), idr1.priqs()), (19, 19, 0));
    assert!(idr1.attr_types_ovr() && idr1.attr_perms_ovr() && !idr1.ecmdq());
    assert_eq!(Idr3::default().with_ril(true).with_bbml(0b10).with_e0pd(true).0, 0x3400);
    let idr5 = Idr5(0x74);
    assert_eq!((idr5.oas(), idr5.gran4k(), idr5.gran16k(), idr5.gran64k()), (4, true, true, true));
    let iidr = Iidr(0x4832_043b);
    assert_eq!((iidr.implementer(), iidr.product_id()), (0x43b, 0x483));
    assert_eq!(Aidr(0x03).to_string(), "ArchMinorRev = 0b0011: SMMUv3.3");
}

#[test]
fn control() {
    let cr0 = Cr0(0x1f);
    assert!(cr0.smmuen() && cr0.priqen() && cr0.eventqen() && cr0.cmdqen() && cr0.atschk());
    assert_eq!(Cr0::default().with_vmw(0b100).0, 0x100);
    assert_eq!(Gbpa::default().with_update(true).with_abort(true).with_sh_cfg(1).0, 0x8010_1000);
    let gerror = Gerror::default().with_cmdq_err(true).with_eventq_abt_err(true).with_sfm_err(true);
    assert_eq!(gerror.0, 0x105);
    assert_eq!(IrqCfg2::default().with_lo(true).with_sh(0b11).with_mem_attr(0xf).0, 0x8000_003f);
}

#[test]
fn tables_and_queues() {
    assert_eq!(StrtabBase(u64::MAX).addr(), 0x00ff_ffff_ffff_ffc0);
    let cfg = StrtabBaseCfg::default().with_fmt(1).with_split(8).with_log2size(16);
    assert_eq!(cfg.0, 0x1_0210);
    let base = QueueBase(u64::MAX);
    assert_eq!((base.addr(), base.log2size()), (0x00ff_ffff_ffff_ffe0, 31));
    assert_eq!(Prod(u32::MAX).wr(), 0xf_ffff);
    let cons = CmdqCons::default().with_rd(0x12345).with_err(CommandError::AtcInvSync as u8);
    assert_eq!(cons.0, 0x0301_2345);
    assert_eq!(CommandError::from_code(cons.err()), Some(CommandError::AtcInvSync));
    assert_eq!(CommandError::from_code(4), None);
}

#[test]
fn fields_fit_their_registers() {
    let fits = |fields: &[Field], bits| {
        let mut next = 0;
        for field in fields {
            assert!(field.low >= next && field.high < bits, "{field:?}");
            next = field.high + 1;
        }
    };
    fits(Idr0::FIELDS, 32);
    fits(Idr1::FIELDS, 32);
    fits(Idr3::FIELDS, 32);
    fits(Idr5::FIELDS, 32);
    fits(Gbpa::FIELDS, 32);
    fits(Gerror::FIELDS, 32);
    fits(QueueBase::FIELDS, 64);
}
