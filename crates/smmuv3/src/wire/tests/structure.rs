//! STEs, CDs and first-level descriptors.

use proptest::prelude::*;

use crate::wire::field::Field;
use crate::wire::{Cd, L1Cd, L1Std, Ste, address_bits};

/// The fields are listed from the lowest bit up, so each must begin after the one before.
fn assert_disjoint(fields: &[Field], bits: u32) {
    let mut next = 0;
    for field in fields {
        assert!(field.low >= next, "{field:?} overlaps or stands out of order");
        assert!(field.high >= field.low && field.high < bits, "{field:?} is out of bounds");
        assert_eq!(field.low / 64, field.high / 64, "{field:?} crosses a word");
        next = field.high + 1;
    }
}

#[test]
fn fields_of_structures_do_not_overlap() {
    assert_disjoint(Ste::FIELDS, 512);
    assert_disjoint(Cd::FIELDS, 512);
    assert_disjoint(L1Std::FIELDS, 64);
    assert_disjoint(L1Cd::FIELDS, 64);
}

/// §5.2: V [0], Config [3:1], S1Fmt [5:4], S1ContextPtr [55:6], S1CDMax [63:59], S1DSS [65:64],
/// S1CIR [67:66], S1COR [69:68], S1CSH [71:70], S1STALLD [91], EATS [93:92], SHCFG [109:108].
#[test]
fn ste_of_stage_1() {
    let ste = Ste::default()
        .with_v(true)
        .with_config(0b101)
        .with_s1_fmt(0b10)
        .with_s1_context_ptr(0x12_3456_7000)
        .with_s1_cd_max(10)
        .with_s1_dss(0b10)
        .with_s1_cir(0b01)
        .with_s1_cor(0b01)
        .with_s1_csh(0b11)
        .with_s1_stalld(true)
        .with_eats(0b01)
        .with_sh_cfg(0b01);
    assert_eq!(ste.0[0], 0x5000_0012_3456_702b);
    assert_eq!(ste.0[1], 1 << 44 | 0b01 << 28 | 1 << 27 | 0b1101_0110);
    assert_eq!(ste.0[2..], [0; 6]);
}

/// §5.2: S2VMID [143:128], S2T0SZ [165:160], S2SL0 [167:166], S2IR0 [169:168], S2OR0 [171:170],
/// S2SH0 [173:172], S2TG [175:174], S2PS [178:176], S2AA64 [179], S2PTW [182], S2S [185],
/// S2R [186], S2TTB [247:196], PARTID [287:272], PMG [327:320], VMSPtr [375:332].
#[test]
fn ste_of_stage_2() {
    let raw = Ste([
        0b1101,
        0,
        0x0604_0000_0000_0000 | 0x000d_3559_0000_0000 | 0xbeef,
        0x000f_ffff_ffff_f000 | 0b1000,
        0x1234_0000,
        0x0012_3456_7890_0000 | 0x5a,
        0,
        0xfedc_ba98_7654_3210,
    ]);
    assert!(raw.v());
    assert_eq!(raw.config(), 0b110);
    assert_eq!(raw.s2_vmid(), 0xbeef);
    assert_eq!(raw.s2_t0sz(), 0x19);
    assert_eq!(raw.s2_sl0(), 0b01);
    assert_eq!(raw.s2_ir0(), 0b01);
    assert_eq!(raw.s2_or0(), 0b01);
    assert_eq!(raw.s2_sh0(), 0b11);
    assert_eq!(raw.s2_tg(), 0b00);
    assert_eq!(raw.s2_ps(), 0b101);
    assert!(raw.s2_aa64() && !raw.s2_endi() && !raw.s2_affd());
    assert!(!raw.s2_ptw() && !raw.s2_hd() && !raw.s2_ha());
    assert!(raw.s2_s() && raw.s2_r());
    assert!(raw.s2_ds() && !raw.s2_sl0_2());
    assert_eq!(raw.s2_ttb(), 0x000f_ffff_ffff_f000);
    assert_eq!(raw.part_id(), 0x1234);
    assert_eq!(raw.pmg(), 0x5a);
    assert_eq!(raw.vms_ptr(), 0x0012_3456_7890_0000);
    assert_eq!(raw.s2_poi(), 0xfedc_ba98_7654_3210);
}

/// §5.4, with what Linux writes for a process: T0SZ 16, 4 KiB, write-back, inner shareable,
/// EPD1, V, IPS 48 bits, AA64, R, A, ASID 7.
#[test]
fn cd_of_a_process() {
    let cd = Cd::default()
        .with_t0sz(16)
        .with_ir0(0b01)
        .with_or0(0b01)
        .with_sh0(0b11)
        .with_epd1(true)
        .with_v(true)
        .with_ips(0b101)
        .with_aa64(true)
        .with_r(true)
        .with_a(true)
        .with_asid(7)
        .with_ttb0(0x8_1234_5000)
        .with_mair(0xf404_ff44);
    assert_eq!(cd.0, [0x0007_6205_c000_3510, 0x8_1234_5000, 0, 0xf404_ff44, 0, 0, 0, 0]);
}

/// §5.4: the two halves mirror each other in the first word and in words 1 and 2.
#[test]
fn cd_halves_are_independent() {
    let upper = Cd::default()
        .with_t1sz(25)
        .with_tg1(0b10)
        .with_ir1(0b11)
        .with_or1(0b10)
        .with_sh1(0b11)
        .with_tbi1(true)
        .with_had1(true)
        .with_e0pd1(true)
        .with_ttb1(0x00ff_ffff_ffff_fff0)
        .with_ds(true)
        .with_hwu159(true);
    assert_eq!(upper.0[0], 0x80_3b99_0000);
    assert_eq!(upper.0[1], 0);
    assert_eq!(upper.0[2], 0x14ff_ffff_ffff_fff6);
    assert_eq!((upper.t0sz(), upper.tg0(), upper.tbi0(), upper.ttb0()), (0, 0, false, 0));
}

/// §5.1 and §5.3.
#[test]
fn first_level_descriptors() {
    let std = L1Std(0xffff_ffff_ffff_ffe9);
    assert_eq!((std.span(), std.l2_ptr()), (9, 0x00ff_ffff_ffff_ffc0));
    let l1cd = L1Cd(u64::MAX);
    assert_eq!((l1cd.v(), l1cd.l2_ptr()), (true, 0x00ff_ffff_ffff_f000));
    assert_eq!(L1Cd::default().with_v(true).with_l2_ptr(0x1_2345_6789).0, 0x1_2345_6001);
}

#[test]
fn a_person_reads_what_is_set() {
    let ste = Ste::default().with_v(true).with_config(0b101).with_s1_context_ptr(0x4000);
    assert_eq!(
        ste.to_string(),
        "V = 1\n\
         Config = 0b101: stage 1 translates, stage 2 bypasses\n\
         S1ContextPtr = 0x4000"
    );
    assert!(Ste::default().to_string().starts_with("V = 0: invalid"));
    assert_eq!(format!("{ste:#}").lines().count(), Ste::FIELDS.len());
    assert_eq!(format!("{:?}", L1Cd(0xabc)), "L1Cd(abc)");
}

#[test]
fn address_sizes() {
    let sizes: Vec<u32> = (0..8).map(address_bits).collect();
    assert_eq!(sizes, [32, 36, 40, 42, 44, 48, 52, 56]);
    assert_eq!(address_bits(u8::MAX), 56);
}

proptest! {
    /// A builder changes its own field, cut to size, and no other bit.
    #[test]
    fn builders_change_one_field(
        words: [u64; 8],
        flag: bool,
        tiny: u8,
        vmid: u16,
        address: u64,
        attributes: u64,
    ) {
        let ste = Ste(words);
        let changed = ste.with_s2_s(flag);
        prop_assert_eq!(changed.s2_s(), flag);
        prop_assert_eq!(changed.with_s2_s(ste.s2_s()), ste);
        let changed = ste.with_s1_cd_max(tiny);
        prop_assert_eq!(changed.s1_cd_max(), tiny & 0x1f);
        prop_assert_eq!(changed.with_s1_cd_max(ste.s1_cd_max()), ste);
        let changed = ste.with_s2_vmid(vmid);
        prop_assert_eq!(changed.s2_vmid(), vmid);
        prop_assert_eq!(changed.with_s2_vmid(ste.s2_vmid()), ste);
        let changed = ste.with_s2_ttb(address);
        prop_assert_eq!(changed.s2_ttb(), address & 0x00ff_ffff_ffff_fff0);
        prop_assert_eq!(changed.with_s2_ttb(ste.s2_ttb()), ste);
        let cd = Cd(words);
        let changed = cd.with_mair(attributes);
        prop_assert_eq!(changed.mair(), attributes);
        prop_assert_eq!(changed.with_mair(cd.mair()), cd);
    }

    /// Whatever software wrote can be shown.
    #[test]
    fn anything_can_be_shown(words: [u64; 8]) {
        for text in [format!("{:#}", Ste(words)), format!("{:#}", Cd(words))] {
            prop_assert!(text.lines().all(|line| line.contains(" = ")));
        }
    }
}
