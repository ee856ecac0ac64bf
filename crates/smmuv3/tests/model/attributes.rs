//! Memory attributes, privileges and instruction marks on their way through (§13, DDI 0487 D8.6).

use smmuv3::{Attributes, Options, Shareability, Transaction};

use crate::common::raw::event::*;
use crate::common::raw::ste::Ste;
use crate::common::raw::{cd, event, pte, ste};
use crate::common::{GUEST, Machine};

const OUT: u64 = 0x30_0000;

/// `MAIR` bytes.
const NGNRNE: u8 = 0x00;
const NGNRE: u8 = 0x04;
const GRE: u8 = 0x0c;
const NC: u8 = 0x44;
const WT: u8 = 0xbb;
const WB: u8 = 0xff;

const NSH: u64 = 0 << 8;
const OSH: u64 = 2 << 8;
const ISH: u64 = 3 << 8;

fn shown(m: &mut Machine, transaction: &Transaction) -> (u8, Shareability) {
    // Cached, it is the same.
    let first = m.go(transaction).unwrap().attributes;
    let second = m.go(transaction).unwrap().attributes;
    assert_eq!(first, second);
    (first.memory, first.shareability)
}

fn incoming(memory: u8, shareability: Shareability) -> Transaction {
    Transaction { attributes: Attributes { memory, shareability }, ..Transaction::read(3, 0x5000) }
}

/// §13.1.4: bypassed streams keep what comes in, unless the STE replaces it.
#[test]
fn a_bypassing_ste_replaces_what_it_says() {
    use Shareability::{Inner, NonShareable, Outer};
    let bypass = ste::new(ste::BYPASS);
    let replace = |mem_attr| bypass.with(ste::MT_CFG, 1).with(ste::MEM_ATTR, mem_attr);
    let sh = |ste: Ste, field| ste.with(ste::SH_CFG, field);
    for ovr in [true, false] {
        let mut m = Machine::booted(Options { attr_types_ovr: ovr, ..Options::everything() });
        for (ste, incoming, expected, fixed) in [
            (bypass, (WB, Inner), (WB, Inner), (WB, Inner)),
            (bypass, (WT, NonShareable), (WT, NonShareable), (WT, NonShareable)),
            // Device and non-cacheable memory is outer shareable.
            (bypass, (NGNRE, Inner), (NGNRE, Outer), (NGNRE, Outer)),
            (bypass, (NC, NonShareable), (NC, Outer), (NC, Outer)),
            (sh(bypass, 0b00), (WB, Inner), (WB, NonShareable), (WB, Inner)),
            (sh(bypass, 0b10), (WB, Inner), (WB, Outer), (WB, Inner)),
            (sh(bypass, 0b11), (WB, NonShareable), (WB, Inner), (WB, NonShareable)),
            (replace(0b0000), (WB, Inner), (NGNRNE, Outer), (WB, Inner)),
            (replace(0b0011), (WB, Inner), (GRE, Outer), (WB, Inner)),
            (replace(0b0101), (WB, Inner), (NC, Outer), (WB, Inner)),
            (replace(0b1111), (NGNRE, Outer), (WB, Outer), (NGNRE, Outer)),
            (replace(0b1010), (WB, Inner), (WT, Inner), (WB, Inner)),
            // MemAttr counts with MTCFG only.
            (bypass.with(ste::MEM_ATTR, 1), (WB, Inner), (WB, Inner), (WB, Inner)),
        ] {
            m.set_ste(3, ste);
            let found = shown(&mut m, &self::incoming(incoming.0, incoming.1));
            assert_eq!(found, if ovr { expected } else { fixed }, "{ste:x?}");
        }
    }
}

/// §5.4: MAIR by AttrIndx, its reserved encodings, and the descriptor's shareability.
#[test]
fn stage_1_says_what_memory_is() {
    use Shareability::{Inner, NonShareable, Outer};
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    // What comes in does not matter, and the STE's overrides do not either.
    m.set_ste(3, one.ste.with(ste::MT_CFG, 1).with(ste::MEM_ATTR, 0).with(ste::SH_CFG, 0b10));
    for (byte, memory) in [
        (0x00, 0x00),
        (0x04, 0x04),
        (0x08, 0x08),
        (0x0c, 0x0c),
        // Reserved device encodings: bits [3:2] count.
        (0x01, 0x00),
        (0x07, 0x04),
        (0x0a, 0x08),
        (0x0f, 0x0c),
        (0x44, 0x44),
        (0xff, 0xff),
        (0xbb, 0xbb),
        (0x4f, 0x4f),
        // Reserved normal encodings: inner write-through transient.
        (0xf0, 0xf3),
        (0x40, 0x43),
    ] {
        m.set_cd(&one, one.cd.with(cd::MAIR1, byte));
        // 0b01 is reserved and counts as Non-shareable.
        let shareabilities =
            [(NonShareable, NSH), (NonShareable, 1 << 8), (Outer, OSH), (Inner, ISH)];
        for (sh, field) in shareabilities {
            let descriptor = OUT | pte::S1_RW & !ISH | field | 1 << 2;
            m.put(&one.tables, 0x5000, 3, descriptor);
            m.tlbi_all();
            let found = shown(&mut m, &Transaction::read(3, 0x5000));
            let sh = if memory >> 4 == 0 || memory == NC { Outer } else { sh };
            assert_eq!(found, (memory, sh), "MAIR byte {byte:#x}");
        }
    }
    // AttrIndx 0 is another byte.
    m.put(&one.tables, 0x5000, 3, OUT | pte::S1_RW);
    m.tlbi_all();
    assert_eq!(shown(&mut m, &Transaction::read(3, 0x5000)), (0xff, Inner));
}

/// DDI 0487 D8.6: the stronger type and the wider shareability of both stages; with FWB stage 2 can force.
#[test]
fn both_stages_together_make_the_attributes() {
    use Shareability::{Inner, NonShareable, Outer};
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 1);
    let two = m.stage2(4, 2);
    let mut check = |fwb: u64, first: (u8, u64), mem_attr: u64, sh2: u64, expected| {
        m.set_ste(3, nested.ste.with(ste::S2_FWB, fwb));
        m.set_cd(&nested, nested.cd.with(cd::MAIR1, first.0.into()));
        m.put(&nested.tables, 0x5000, 3, (GUEST + OUT) | pte::S1_RW & !ISH | first.1 | 1 << 2);
        let descriptor = OUT | pte::S2_RW & !(ISH | 0xf << 2) | sh2 | mem_attr << 2;
        m.put(&second, GUEST + OUT, 3, descriptor);
        m.tlbi_all();
        let found = shown(&mut m, &Transaction::read(3, 0x5000));
        assert_eq!(found, expected, "FWB {fwb} {first:x?} {mem_attr:#06b} {sh2:#x}");
        // A stream with stage 2 only: what comes in takes the place of stage 1.
        m.set_ste(4, two.ste.with(ste::S2_FWB, fwb));
        m.put(&two.tables, 0x5000, 3, descriptor);
        m.tlbi_all();
        let sh = Shareability::from_bits(first.1 >> 8);
        let transaction = Transaction { stream_id: 4, ..incoming(first.0, sh) };
        assert_eq!(shown(&mut m, &transaction), expected, "stage 2 only");
    };
    for (first, mem_attr, sh2, expected) in [
        ((WB, ISH), 0b1111, NSH, (WB, Inner)),
        ((WB, NSH), 0b1111, ISH, (WB, Inner)),
        ((WB, NSH), 0b1111, NSH, (WB, NonShareable)),
        ((WB, ISH), 0b1111, OSH, (WB, Outer)),
        ((WB, ISH), 0b1010, ISH, (WT, Inner)),
        ((WT, ISH), 0b1111, ISH, (WT, Inner)),
        ((WB, ISH), 0b0101, ISH, (NC, Outer)),
        ((NC, ISH), 0b1111, ISH, (NC, Outer)),
        ((WB, ISH), 0b0001, ISH, (NGNRE, Outer)),
        ((NGNRE, ISH), 0b1111, ISH, (NGNRE, Outer)),
        ((GRE, ISH), 0b0001, ISH, (NGNRE, Outer)),
        ((NGNRNE, ISH), 0b0011, ISH, (NGNRNE, Outer)),
        // Reserved: Device-nGnRnE.
        ((WB, ISH), 0b0100, ISH, (NGNRNE, Outer)),
    ] {
        check(0, first, mem_attr, sh2, expected);
    }
    for (first, mem_attr, sh2, expected) in [
        ((WB, ISH), 0b0111, NSH, (WB, Inner)),
        ((NGNRE, ISH), 0b0111, NSH, (NGNRE, Outer)),
        ((NC, NSH), 0b0110, ISH, (WB, Outer)),
        ((NGNRE, NSH), 0b0110, ISH, (WB, Outer)),
        ((WT, NSH), 0b0110, ISH, (WB, Inner)),
        ((WB, ISH), 0b0101, ISH, (NC, Outer)),
        ((NGNRE, ISH), 0b0101, ISH, (NGNRE, Outer)),
        ((WB, ISH), 0b0011, ISH, (GRE, Outer)),
        ((NGNRE, ISH), 0b0011, ISH, (NGNRE, Outer)),
        ((GRE, ISH), 0b0000, ISH, (NGNRNE, Outer)),
    ] {
        check(1, first, mem_attr, sh2, expected);
    }
}

/// §5.2, PRIVCFG and INSTCFG: before permissions are judged and events are written.
#[test]
fn privilege_and_instruction_overrides_come_before_the_check() {
    for ovr in [true, false] {
        let mut m = Machine::booted(Options { attr_perms_ovr: ovr, ..Options::everything() });
        let one = m.stage1(3, 1);
        // Readable, not executable, privileged only.
        m.put(&one.tables, 0x5000, 3, OUT | pte::S1_RW & !pte::USER | pte::UXN | pte::PXN);
        let user = Transaction::read(3, 0x5000);
        let privileged = Transaction { privileged: true, ..user };
        let fetch = Transaction { instruction: true, ..privileged };
        for (privcfg, instcfg, transaction, granted) in [
            (0b00, 0b00, user, false),
            (0b00, 0b00, privileged, true),
            (0b00, 0b00, fetch, false),
            // Reserved: as it comes.
            (0b01, 0b01, user, false),
            (0b01, 0b01, privileged, true),
            (0b01, 0b01, fetch, false),
            (0b11, 0b00, user, ovr),
            (0b10, 0b00, privileged, !ovr),
            (0b00, 0b10, fetch, ovr),
            (0b00, 0b11, privileged, !ovr),
            // Writes are data.
            (0b11, 0b11, Transaction { write: true, ..privileged }, true),
        ] {
            m.set_ste(3, one.ste.with(ste::PRIV_CFG, privcfg).with(ste::INST_CFG, instcfg));
            for _ in 0..2 {
                let found = m.go(&transaction);
                assert_eq!(found.is_ok(), granted, "{privcfg:#b} {instcfg:#b} {transaction:?}");
                let (privileged, instruction) = if let Ok(translation) = found {
                    (translation.privileged, translation.instruction)
                } else {
                    let record = m.event();
                    assert_eq!(record.get(event::NUMBER), F_PERMISSION);
                    (record.get(event::PNU) == 1, record.get(event::IND) == 1)
                };
                let choose = |field, incoming| match field {
                    0b10 if ovr => false,
                    0b11 if ovr => true,
                    _ => incoming,
                };
                assert_eq!(privileged, choose(privcfg, transaction.privileged));
                let as_read = choose(instcfg, transaction.instruction);
                assert_eq!(instruction, as_read && !transaction.write);
            }
        }
    }
}

/// §5.4: PAN, WXN, E0PD; XNX at stage 2.
#[test]
fn controls_of_a_cd_take_permissions_away() {
    let mut m = Machine::everything();
    let one = m.stage1(3, 1);
    m.map(&one.tables, 0x5000, OUT);
    let user = Transaction::read(3, 0x5000);
    let privileged = Transaction { privileged: true, ..user };
    let fetch = Transaction { instruction: true, ..user };
    for (field, transaction, number) in [
        (cd::PAN, privileged, F_PERMISSION),
        (cd::PAN, Transaction { write: true, ..privileged }, F_PERMISSION),
        (cd::WXN, fetch, F_PERMISSION),
        (cd::E0PD0, user, F_TRANSLATION),
        (cd::E0PD0, fetch, F_TRANSLATION),
    ] {
        m.set_cd(&one, one.cd);
        m.go(&transaction).unwrap();
        m.set_cd(&one, one.cd.with(field, 1));
        for _ in 0..2 {
            let record = m.fault(&transaction);
            assert_eq!(record.get(event::NUMBER), number, "{field:?}");
        }
        // What the control is not about goes on, also after it was cached.
        let other = if field == cd::E0PD0 { privileged } else { user };
        m.go(&other).unwrap();
        let record = m.fault(&transaction);
        assert_eq!(record.get(event::NUMBER), number, "{field:?}, from the TLB");
    }
    // XN[1:0] at stage 2: 00 all, 01 unprivileged, 10 nobody, 11 privileged.
    let two = m.stage2(4, 1);
    for (xn, unprivileged_runs, privileged_runs) in
        [(0b00, true, true), (0b01, true, false), (0b10, false, false), (0b11, false, true)]
    {
        m.put(&two.tables, 0x5000, 3, OUT | pte::S2_RW | xn << 53);
        m.tlbi_all();
        let fetch = Transaction { instruction: true, ..Transaction::read(4, 0x5000) };
        let privileged = Transaction { privileged: true, ..fetch };
        assert_eq!(m.go(&fetch).is_ok(), unprivileged_runs, "XN {xn:#b}");
        assert_eq!(m.go(&privileged).is_ok(), privileged_runs, "XN {xn:#b}");
    }
}

/// §5.2, S2PTW: walks and CD fetches through Device memory.
#[test]
fn protected_table_walks_fault_on_device_memory() {
    let mut m = Machine::everything();
    let (nested, second) = m.nested(3, 1, 1);
    m.map(&nested.tables, 0x5000, GUEST + OUT);
    let device = |m: &Machine, ipa| {
        let entry = m.entry(&second, ipa, 3);
        m.ram.set(entry, m.ram.get(entry) & !(0xf << 2));
    };
    // The page itself may be Device memory.
    m.set_ste(3, nested.ste.with(ste::S2_PTW, 1));
    device(&m, GUEST + OUT);
    assert_eq!(m.output(3, 0x5008), OUT + 8);
    let leaf = m.entry(&nested.tables, 0x5000, 3);
    for (ipa, class) in [(GUEST + leaf, CLASS_TT), (GUEST + nested.cd_at, CLASS_CD)] {
        device(&m, ipa);
        for ptw in [0, 1] {
            m.set_ste(3, nested.ste.with(ste::S2_PTW, ptw));
            m.tlbi_all();
            if ptw == 0 {
                m.read(3, 0x5008).unwrap();
                continue;
            }
            let record = m.read_faults(3, 0x5008, F_PERMISSION);
            assert_eq!((record.get(event::S2), record.get(event::CLASS)), (1, class));
        }
    }
}
