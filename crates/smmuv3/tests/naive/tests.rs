//! The naive SMMU itself, on tables small enough to be checked by hand.

use std::collections::BTreeMap;

use super::attributes::{Attributes, Cache, Hints, Memory, Share};
use super::{End, Features, Incoming, Registers, Words, answer};

struct Ram(BTreeMap<u64, u64>);

impl Words for Ram {
    fn word(&self, address: u64) -> Option<u64> {
        (address < 0x100_0000).then(|| self.0.get(&address).copied().unwrap_or(0))
    }
    fn takes_updates(&self, _: u64) -> bool {
        true
    }
}

/// SMMUv3.2 with everything that the tests below need: both stages, HTTU, 48 bits.
fn features() -> Features {
    let idr0 = 0b11 | 0b10 << 2 | 2 << 6 | 1 << 9 | 1 << 12 | 1 << 18 | 1 << 19 | 2 << 21 | 1 << 27;
    Features::from_registers(idr0, 16 | 8 << 6, 1 << 2 | 1 << 9, 5 | 1 << 4, 2)
}

const REGISTERS: Registers =
    Registers { cr0: 1, cr2: 0b10, gbpa: 0, strtab_base: 0x1000, strtab_base_cfg: 4 };
const WRITE_BACK: Attributes = Attributes {
    memory: Memory::Normal([(Cache::Wb, Hints { read: true, write: true, transient: false }); 2]),
    share: Share::Inner,
};

fn read(address: u64) -> Incoming {
    Incoming {
        stream: 0,
        substream: None,
        address,
        write: false,
        privileged: true,
        instruction: false,
        attributes: WRITE_BACK,
    }
}

/// An STE for stage 1 with a CD at 0x2000, one table at 0x3000 that covers 2 MiB, one page.
fn stage1() -> Ram {
    let cd = 0x2b | 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46;
    Ram(BTreeMap::from([
        (0x1000, 1 | 0b101 << 1 | 0x2000),
        (0x2000, cd),
        (0x2008, 0x3000),
        (0x2018, 0xff),
        (0x3000 + 8 * 5, 0x7_4000 | 1 << 10 | 3 << 8 | 0b11),
    ]))
}

#[test]
fn a_page_translates() {
    let answer = answer(&features(), &REGISTERS, &stage1(), &read(0x5678));
    let end =
        End::Done { pa: 0x7_4678, attributes: WRITE_BACK, privileged: true, instruction: false };
    assert_eq!((answer.end, answer.record), (end, None));
}

#[test]
fn an_invalid_descriptor_is_a_translation_fault() {
    let answer = answer(&features(), &REGISTERS, &stage1(), &read(0x6678));
    assert_eq!(answer.end, End::Abort);
    // Read, privileged, CLASS IN.
    assert_eq!(answer.record.unwrap().words, [0x10, 2 << 40 | 1 << 35 | 1 << 33, 0x6678, 0]);
}

#[test]
fn hardware_makes_a_clean_page_dirty() {
    let mut ram = stage1();
    *ram.0.get_mut(&0x2000).unwrap() |= 3 << 42;
    let clean = 0x7_4000 | 1 << 51 | 1 << 7 | 0b11;
    ram.0.insert(0x3028, clean);
    let write = Incoming { write: true, ..read(0x5000) };
    let answer = answer(&features(), &REGISTERS, &ram, &write);
    assert!(matches!(answer.end, End::Done { pa: 0x7_4000, .. }));
    let [update] = answer.must[..] else { panic!("{answer:?}") };
    assert_eq!((update.address, update.value), (0x3028, clean & !(1 << 7) | 1 << 10));
}

#[test]
fn stage_2_is_under_tables_and_cds() {
    let mut ram = stage1();
    // 1 GiB of IPA from level 2, identity but for the page of the stage 1 table.
    *ram.0.get_mut(&0x1000).unwrap() |= 0b110 << 1;
    ram.0.insert(0x1010, (0x22 | 5 << 16 | 1 << 19 | 1 << 22) << 32);
    ram.0.insert(0x1018, 0x8000);
    ram.0.insert(0x8000, 0x9000 | 0b11);
    for page in 0..512 {
        ram.0.insert(0x9000 + page * 8, page << 12 | 1 << 10 | 0b11 << 6 | 0b1111 << 2 | 0b11);
    }
    let through = answer(&features(), &REGISTERS, &ram, &read(0x5678));
    assert!(matches!(through.end, End::Done { pa: 0x7_4678, .. }), "{through:?}");
    // Without the page of the CD: CLASS CD, its IPA, and S2R is 0, so nothing recorded.
    *ram.0.get_mut(&(0x9000 + 2 * 8)).unwrap() = 0;
    let fault = answer(&features(), &REGISTERS, &ram, &read(0x5678));
    assert_eq!((fault.end, fault.record), (End::Abort, None));
    *ram.0.get_mut(&0x1010).unwrap() |= 1 << 58;
    let fault = answer(&features(), &REGISTERS, &ram, &read(0x5678)).record.unwrap();
    assert_eq!(fault.words, [0x10, 1 << 39 | 1 << 35 | 1 << 33, 0x5678, 0x2000]);
}

#[test]
fn streams_outside_the_table_are_reported_if_asked() {
    let far = Incoming { stream: 16, ..read(0) };
    let recorded = answer(&features(), &REGISTERS, &stage1(), &far);
    assert_eq!(recorded.record.unwrap().words, [0x02 | 16 << 32, 0, 0, 0]);
    let silent = Registers { cr2: 0, ..REGISTERS };
    assert_eq!(answer(&features(), &silent, &stage1(), &far).record, None);
}
