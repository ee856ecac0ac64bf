//! Shapes of translation tables: which sizes and start levels are legal, and walks of the largest (§5.2, §5.4,
//! DDI 0487 D8.2).

use smmuv3::{Options, Shareability, Transaction};

use crate::common::raw::event::*;
use crate::common::raw::ste::Ste;
use crate::common::raw::{cd, event, pte, ste};
use crate::common::{Machine, Tables};

/// log2 of the page, by TG0 encoding.
const GRANULES: [(u64, u32); 3] = [(0b00, 12), (0b01, 16), (0b10, 14)];

/// What a read of 0 ends in: anything but `bad` means that the configuration was taken.
fn is_legal(m: &mut Machine, bad: u64) -> bool {
    m.go(&Transaction::read(3, 0)).unwrap_err();
    m.event().get(event::NUMBER) != bad
}

fn variants() -> Vec<Options> {
    let every = Options::everything;
    vec![
        every(),
        Options { stt: false, ..every() },
        Options { va52: false, ..every() },
        Options { ds: false, ..every() },
        Options { oas: 48, ds: false, va52: false, ..every() },
        Options { oas: 40, ds: false, va52: false, ..every() },
        Options { oas: 42, ds: false, va52: false, stt: false, ..every() },
        Options { gran16k: false, ..every() },
        Options { gran4k: false, gran64k: false, oas: 36, ..every() },
    ]
}

fn has_granule(options: &Options, page: u32) -> bool {
    match page {
        12 => options.gran4k,
        14 => options.gran16k,
        _ => options.gran64k,
    }
}

/// `CDTxSZInvalid`.
#[test]
fn every_t0sz_is_legal_or_not_as_the_specification_says() {
    for options in variants() {
        let mut m = Machine::booted(options.clone());
        let one = m.stage1(3, 1);
        for (tg, page) in GRANULES {
            for ds in [0, 1] {
                for t0sz in 0..64 {
                    m.set_cd(&one, one.cd.with(cd::TG0, tg).with(cd::DS, ds).with(cd::T0SZ, t0sz));
                    let max = match (options.stt, page) {
                        (false, _) => 39,
                        (true, 16) => 47,
                        (true, _) => 48,
                    };
                    let wide = page == 16 || options.ds && ds == 1;
                    let min = if options.va52 && wide { 12 } else { 16 };
                    let legal = has_granule(&options, page) && (min..=max).contains(&t0sz);
                    let found = is_legal(&mut m, C_BAD_CD);
                    assert_eq!(found, legal, "TG {tg:#b} DS {ds} T0SZ {t0sz} {options:?}");
                }
            }
        }
        m.set_cd(&one, one.cd.with(cd::TG0, 0b11));
        assert!(!is_legal(&mut m, C_BAD_CD));
    }
}

/// `STES2T0SZInvalid`, and the A-profile's `S2InvalidSL` and `S2InconsistentSL`.
fn stage2_is_legal(options: &Options, page: u32, ds: bool, sl: (u64, u64), t0sz: u32) -> bool {
    let (sl2, sl0) = sl;
    let oas = u32::from(options.oas);
    let ds = ds && options.ds && page != 16;
    let max = match (options.stt, page) {
        (false, _) => 39,
        (true, 16) => 47,
        (true, _) => 48,
    };
    let min = (if page == 16 || ds { 12 } else { 16 }).max(64 - oas);
    // The start level, where the encoding means one on this system.
    let level = match (page, if ds && page == 12 { sl2 } else { 0 }, sl0) {
        (12, 0, 0b01) => 1,
        (12, 0, 0b10) if oas >= 44 => 0,
        (12, 0, 0b11) if options.stt => 3,
        (12, 1, 0b00) => -1,
        (14 | 16, _, 0b00) => 3,
        (12, 0, 0b00) | (14 | 16, _, 0b01) => 2,
        (14, _, 0b10) if oas >= 42 => 1,
        (14, _, 0b11) if ds => 0,
        (16, _, 0b10) if oas >= 44 => 1,
        _ => return false,
    };
    let input = 64 - t0sz;
    let stride = page - 3;
    let least = (3 - level) as u32 * stride + page + 1;
    let most = least + (stride - 1) + 4;
    (min..=max).contains(&t0sz) && (least..=most).contains(&input) && has_granule(options, page)
}

#[test]
fn every_stage_2_shape_is_legal_or_not_as_the_specification_says() {
    for options in variants() {
        let mut m = Machine::booted(options.clone());
        let two = m.stage2(3, 1);
        let mut count = 0;
        for (tg, page) in GRANULES {
            for ds in [false, true] {
                for sl in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)] {
                    for t0sz in (10..50).chain([0, 63]) {
                        let shaped: Ste = two
                            .ste
                            .with(ste::S2_TG, tg)
                            .with(ste::S2_DS, ds.into())
                            .with(ste::S2_SL0, sl.1)
                            .with((194, 194), sl.0)
                            .with(ste::S2_T0SZ, t0sz.into());
                        m.set_ste(3, shaped);
                        let legal = stage2_is_legal(&options, page, ds, sl, t0sz);
                        let found = is_legal(&mut m, C_BAD_STE);
                        let what = format!("{page} DS {ds} SL {sl:?} T0SZ {t0sz} {options:?}");
                        assert_eq!(found, legal, "{what}");
                        count += u32::from(legal);
                    }
                }
            }
        }
        assert!(count > 10);
        m.set_ste(3, two.ste.with(ste::S2_TG, 0b11));
        assert!(!is_legal(&mut m, C_BAD_STE));
        m.set_ste(3, two.ste.with(ste::S2_ENDI, 1));
        assert!(!is_legal(&mut m, C_BAD_STE));
    }
}

/// 52 bits in and out: 64K with address bits [51:48] in [15:12], 4K and 16K with DS and [51:50] in [9:8].
#[test]
fn addresses_of_52_bits_go_in_and_out() {
    const HIGH: u64 = 0x000d_1234_4000_0000;
    for (tg0, tg, page, level, output) in [
        (0b01, 0b01, 16, 1, 0x1234_4000_0000 | 0xd << 12),
        // SH is an address, and bits 49:48 stand where they belong.
        (0b00, 0b00, 12, -1, 0x1_1234_4000_0000 | 0b11 << 8),
        (0b10, 0b10, 14, 0, 0x1_1234_4000_0000 | 0b11 << 8),
    ] {
        let mut m = Machine::everything();
        // Only the upper and lower ends of the tables are used, so that they fit in memory.
        let bits = if page == 16 { 50 } else { 52 };
        let input = (1u64 << (bits - 1)) | 5 << page;
        let tables = m.tables(page, bits, level);
        let flags = pte::S1_RW & !pte::ISH;
        let ds = u64::from(page != 16);
        let cd = Machine::cd_for(&tables, 1).with(cd::DS, ds).with(cd::IPS, 0b110);
        // Outer shareable: SH0.
        m.stage1_over(3, cd.with(cd::TG0, tg0).with((13, 12), 0b10), tables);
        m.put(&tables, input, 3, output | flags);
        for _ in 0..2 {
            assert_eq!(m.output(3, input + 8), HIGH + 8, "stage 1, granule {page}");
            let found = m.read(3, input).unwrap().attributes.shareability;
            let expected =
                if page == 16 { Shareability::NonShareable } else { Shareability::Outer };
            assert_eq!(found, expected, "of the descriptor with 64K, of the CD with DS");
        }
        // The same as stage 2.
        let flags = pte::S2_RW & !pte::ISH;
        let two = m.stage2(4, 1);
        let sl0 = match page {
            12 => 0b00,
            16 => 0b10,
            _ => 0b11,
        };
        let tables = m.tables(page, bits, level);
        let ste = two
            .ste
            .with(ste::S2_TG, tg)
            .with(ste::S2_T0SZ, u64::from(64 - bits))
            .with(ste::S2_SL0, sl0)
            .with((194, 194), u64::from(page == 12))
            .with(ste::S2_DS, ds)
            .with(ste::S2_PS, 0b110)
            .with_address(ste::S2_TTB, tables.root);
        m.set_ste(4, ste);
        m.put(&tables, input, 3, output | flags);
        for _ in 0..2 {
            assert_eq!(m.output(4, input + 8), HIGH + 8, "stage 2, granule {page}");
        }
        // The IPA of a record has them, too.
        m.put(&tables, input, 3, 0);
        m.tlbi_all();
        let record = m.read_faults(4, input + 8, F_TRANSLATION);
        assert_eq!(record.get_address(event::IPA), input);
    }
}

/// The smallest tables there are, and initial tables that share a page with others.
#[test]
fn small_tables_are_aligned_to_their_size() {
    let mut m = Machine::everything();
    // 16 bits with 4K pages: 16 entries at level 3.
    let page = m.alloc(0x1000);
    let tables = Tables { root: page + 0x80, offset: 0, granule: 12, bits: 16, level: 3 };
    m.stage1_over(3, Machine::cd_for(&tables, 1), tables);
    m.put(&tables, 0xf000, 3, 0x30_0000 | pte::S1_RW);
    assert_eq!(m.output(3, 0xf008), 0x30_0008);
    m.read_faults(3, 0x1_0000, F_TRANSLATION);
    // Base bits below the size of the table do not count.
    let cd = Machine::cd_for(&tables, 1).with_address(cd::TTB0, tables.root + 0x40);
    m.stage1_over(3, cd, tables);
    m.tlbi_all();
    assert_eq!(m.output(3, 0xf008), 0x30_0008);
}

/// DDI 0487 D8.5: any entry of a contiguous group gives the address of all.
#[test]
fn a_contiguous_group_translates_as_one() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    let contiguous = 1 << 52;
    for n in 0..16u64 {
        // All sixteen say the address of the whole.
        m.put(
            &one.tables,
            0x4001_0000 + (n << 12),
            3,
            0x30_0000 | (n << 12) | pte::S1_RW | contiguous,
        );
    }
    for n in 0..16 {
        assert_eq!(m.output(3, 0x4001_0008 + (n << 12)), 0x30_0008 + (n << 12));
    }
}

/// §5.2, §5.4: identifiers that do not fit are ILLEGAL where they count, and ignored elsewhere.
#[test]
fn identifiers_of_more_than_8_bits_need_to_be_implemented() {
    for wide in [false, true] {
        let options = Options { asid16: wide, vmid16: wide, ..Options::everything() };
        let mut m = Machine::booted(options);
        let one = m.stage1(3, 0x100);
        assert_eq!(is_legal(&mut m, C_BAD_CD), wide);
        m.set_cd(&one, one.cd.with(cd::ASID, 0xff));
        assert!(is_legal(&mut m, C_BAD_CD));
        // S2VMID is used with stage 1 alone as well, for NS-EL1, and not for EL2 or a bypassed stream.
        m.set_ste(3, one.ste.with(ste::S2_VMID, 0x100));
        assert_eq!(is_legal(&mut m, C_BAD_STE), wide);
        m.set_ste(3, one.ste.with(ste::S2_VMID, 0x100).with(ste::STRW, 0b10));
        assert!(is_legal(&mut m, C_BAD_STE));
        m.set_ste(3, ste::new(ste::BYPASS).with(ste::S2_VMID, 0x100));
        m.read(3, 0x5000).unwrap();
        let two = m.stage2(3, 0x100);
        assert_eq!(is_legal(&mut m, C_BAD_STE), wide);
        m.set_ste(3, two.ste.with(ste::S2_VMID, 0xff));
        assert!(is_legal(&mut m, C_BAD_STE));
    }
}
