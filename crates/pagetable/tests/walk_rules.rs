//! Behaviours that other walkers get wrong, one test each, on tables made by hand.

use std::collections::HashMap;

use pagetable::format::{
    AF, AP_READ_ONLY, AP_USER, CONTIGUOUS, DBM, NG, S2AP_READ, S2AP_WRITE, TABLE, VALID,
};
use pagetable::{
    Descriptors, Fault, Geometry, GeometryError, Granule, Leaf, Permissions, Regime, Shareability,
    Stage1Controls, Stage2Controls, Table, TableAttributes,
};

const PAGE: u64 = VALID | TABLE;

/// Sparse memory: what is not there reads as zero, one address aborts.
#[derive(Default)]
struct Memory {
    words: HashMap<u64, u64>,
    abort: Option<u64>,
    reads: u32,
}

impl Memory {
    fn of(words: &[(u64, u64)]) -> Self {
        Self { words: words.iter().copied().collect(), ..Self::default() }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Abort;

impl Descriptors for Memory {
    type Error = Abort;
    fn read(&mut self, address: u64, _level: i8) -> Result<u64, Abort> {
        self.reads += 1;
        if self.abort == Some(address) {
            return Err(Abort);
        }
        Ok(self.words.get(&address).copied().unwrap_or(0))
    }
}

fn walk(table: &Table, input: u64, words: &[(u64, u64)]) -> Result<Leaf, Fault<Abort>> {
    table.walk(input, &mut Memory::of(words))
}

fn stage1(granule: Granule, input: u8, output: u8, ds: bool) -> Table {
    Table::stage1(granule, input, output, ds, 0x10_0000).unwrap()
}

#[test]
fn a_block_where_none_may_stand_is_a_translation_fault() {
    // Level of the initial table, and whether a block is legal there.
    let cases = [
        (stage1(Granule::K4, 48, 48, false), 0, false),
        (stage1(Granule::K4, 48, 52, true), 0, true),
        (stage1(Granule::K4, 52, 52, true), -1, false),
        (stage1(Granule::K4, 39, 48, false), 1, true),
        (stage1(Granule::K16, 48, 48, false), 0, false),
        (stage1(Granule::K16, 48, 52, true), 0, false),
        (stage1(Granule::K16, 47, 48, false), 1, false),
        (stage1(Granule::K16, 47, 52, true), 1, true),
        (stage1(Granule::K16, 36, 48, false), 2, true),
        (stage1(Granule::K64, 48, 48, false), 1, false),
        (stage1(Granule::K64, 48, 52, false), 1, true),
        (stage1(Granule::K64, 42, 48, false), 2, true),
        // 0b01 at level 3 is reserved.
        (stage1(Granule::K4, 20, 48, false), 3, false),
    ];
    for (table, level, legal) in cases {
        assert_eq!(table.geometry().initial_level(), level);
        let result = walk(&table, 0, &[(0x10_0000, VALID)]);
        match result {
            Ok(leaf) => assert!(legal && leaf.level == level, "{table:?}"),
            Err(fault) => {
                assert!(!legal, "{table:?}");
                assert_eq!(fault, Fault::Translation { level });
            }
        }
    }
}

#[test]
fn level_1_blocks_of_64k_depend_on_the_implementation_not_on_the_context() {
    let geometry = Geometry::stage1(Granule::K64, 48, 48, false).unwrap();
    let words = [(0, VALID)];
    assert_eq!(walk(&Table::new(geometry, 0), 0, &words), Err(Fault::Translation { level: 1 }));
    assert!(walk(&Table::new(geometry.with_lpa(true), 0), 0, &words).is_ok());
}

#[test]
fn an_address_beyond_the_output_size_faults_at_the_level_that_holds_it() {
    let table = stage1(Granule::K4, 48, 36, false);
    let chain = |bad: usize| {
        let mut words: Vec<(u64, u64)> =
            (0..4).map(|n| (0x10_0000 + n * 0x1000, (0x10_1000 + n * 0x1000) | PAGE)).collect();
        words[bad].1 |= 1 << 36;
        words
    };
    for bad in 0..4 {
        let fault = walk(&table, 0, &chain(bad)).unwrap_err();
        assert_eq!(fault, Fault::AddressSize { level: bad as i8 });
    }
}

#[test]
fn a_base_beyond_the_output_size_is_an_address_size_fault_of_level_0() {
    let table = Table::stage1(Granule::K4, 30, 36, false, 1 << 36).unwrap();
    assert_eq!(table.geometry().initial_level(), 2);
    assert_eq!(walk(&table, 0, &[]), Err(Fault::AddressSize { level: 0 }));
    assert_eq!(walk(&table, 1 << 30, &[]), Err(Fault::Translation { level: 0 }));
}

#[test]
fn an_input_beyond_its_size_is_a_translation_fault_that_reads_nothing() {
    let table = stage1(Granule::K4, 30, 48, false);
    let mut memory = Memory::default();
    for input in [1 << 30, 1 << 48, u64::MAX] {
        assert_eq!(table.walk(input, &mut memory), Err(Fault::Translation { level: 0 }));
    }
    assert_eq!(memory.reads, 0);
}

#[test]
fn a_memory_error_says_where_and_is_no_translation_fault() {
    let table = stage1(Granule::K4, 30, 48, false);
    let mut memory = Memory::of(&[(0x10_0000, 0x5000 | PAGE)]);
    memory.abort = Some(0x5008);
    assert_eq!(
        table.walk(0x1234, &mut memory),
        Err(Fault::Memory { level: 3, address: 0x5008, error: Abort })
    );
}

#[test]
fn the_upper_bits_of_64k_addresses_stand_in_15_to_12() {
    let words =
        [(0x10_0000, 0x2_0000 | 0xa000 | PAGE), (0xa_0000_0002_0008, 0x5_0000 | 0xf000 | PAGE)];
    let table = stage1(Granule::K64, 42, 52, false);
    assert_eq!(walk(&table, 0x1_0123, &words).unwrap().output, 0xf_0000_0005_0123);
    // With 48-bit addresses the bits are reserved, and ignored.
    let words = [(0x10_0000, 0x2_0000 | 0xa000 | PAGE), (0x2_0008, 0x5_0000 | 0xf000 | PAGE)];
    let table = stage1(Granule::K64, 42, 48, false);
    assert_eq!(walk(&table, 0x1_0123, &words).unwrap().output, 0x5_0123);
}

#[test]
fn with_ds_the_upper_bits_stand_in_9_to_8_and_49_to_48() {
    for (granule, page) in [(Granule::K4, 12), (Granule::K16, 14)] {
        let table = stage1(granule, page + 4, 52, true);
        let leaf = 2 << page | 0b10 << 8 | 0b01 << 48 | PAGE;
        let input = (3 << page) + 0x123;
        let output = walk(&table, input, &[(0x10_0018, leaf)]).unwrap().output;
        assert_eq!(output, 0x9_0000_0000_0000 | 2 << page | 0x123);
        // Without, they are shareability and reserved bits.
        let table = stage1(granule, page + 4, 52, false);
        let found = walk(&table, input, &[(0x10_0018, leaf)]).unwrap();
        assert_eq!(found.output, 2 << page | 0x123);
        assert_eq!(found.stage1().shareability(), Shareability::Outer);
    }
}

#[test]
fn small_contexts_start_further_down_and_small_tables_are_aligned_to_their_size() {
    // Granule, input bits, level, entries.
    let cases = [
        (Granule::K4, 48, 0, 512),
        (Granule::K4, 40, 0, 2),
        (Granule::K4, 39, 1, 512),
        (Granule::K4, 25, 2, 16),
        (Granule::K4, 21, 3, 512),
        (Granule::K4, 16, 3, 16),
        (Granule::K16, 48, 0, 2),
        (Granule::K16, 16, 3, 4),
        (Granule::K64, 52, 1, 1024),
        (Granule::K64, 17, 3, 2),
    ];
    for (granule, input, level, entries) in cases {
        let geometry = Geometry::stage1(granule, input, 48, false).unwrap();
        assert_eq!(geometry.initial_level(), level);
        assert_eq!(1u64 << geometry.initial_entries_log2(), entries);
        let table = Table::new(geometry, 0xffff_ffff_ffff);
        assert_eq!(table.base(), 0x1_0000_0000_0000 - entries * 8);
        // Output addresses of more than 48 bits demand 64 bytes at least (D8.2.5.2).
        let wide = Geometry::stage1(granule, input, 52, true).unwrap();
        if wide.initial_level() == level {
            let table = Table::new(wide, 0xf_ffff_ffff_ffff);
            assert_eq!(table.base(), 0x10_0000_0000_0000 - (entries * 8).max(64));
        }
    }
    // The index ends with the input: a table of 4 entries is never read beyond.
    let table = Table::stage1(Granule::K16, 16, 48, false, 0x1040).unwrap();
    let leaf = walk(&table, 0xffff, &[(0x1058, 0xc000 | PAGE)]).unwrap();
    assert_eq!(leaf.output, 0xffff);
    let error = Geometry::stage1(Granule::K4, 15, 48, false).unwrap_err();
    assert_eq!(error, GeometryError::InputBits { bits: 15, min: 16, max: 48 });
}

#[test]
fn up_to_16_stage_2_tables_are_concatenated() {
    // 43 bits from level 1: 16 tables of 512, aligned to all of them.
    let table = Table::stage2(Granule::K4, 43, 1, 48, false, 0x4_5678).unwrap();
    assert_eq!(table.base(), 0x4_0000);
    let input = 0x7ff << 30 | 0x42;
    let block = 0x123 << 30 | VALID;
    let leaf = walk(&table, input, &[(0x4_0000 + 0x1fff * 8, block)]);
    assert_eq!(leaf, Err(Fault::Translation { level: 1 }));
    let leaf = walk(&table, 0x1fff << 30 | 0x42, &[(0x4_0000 + 0x1fff * 8, block)]).unwrap();
    assert_eq!((leaf.output, leaf.level, leaf.size_log2), (0x123 << 30 | 0x42, 1, 30));
    for (input, level) in [(44, 1), (30, 1), (43, 2), (48, -1)] {
        let error = Geometry::stage2(Granule::K4, input, level, 48, false).unwrap_err();
        assert_eq!(error, GeometryError::StartLevel { level, bits: input });
    }
}

#[test]
fn the_contiguous_bit_counts_only_where_groups_exist() {
    // A group of 16 pages: the outer bits of any member, the inner bits of the input.
    let table = stage1(Granule::K4, 20, 48, false);
    let leaf = walk(&table, 0x1_2345, &[(0x10_0090, 0x8_2000 | CONTIGUOUS | PAGE)]).unwrap();
    assert!(leaf.contiguous);
    assert_eq!((leaf.output, leaf.size_log2), (0x8_2345, 12));
    let cases = [
        // A group of 128 16K pages does not fit 20 bits of input.
        (stage1(Granule::K16, 20, 48, false), false, PAGE),
        (stage1(Granule::K16, 21, 48, false), true, PAGE),
        // Reserved at level 0 of 4K, level 1 of 16K and of 64K.
        (stage1(Granule::K4, 48, 52, true), false, VALID),
        (stage1(Granule::K16, 47, 52, true), false, VALID),
        (stage1(Granule::K64, 52, 52, false), false, VALID),
        (stage1(Granule::K4, 39, 48, false), true, VALID),
        (stage1(Granule::K16, 36, 48, false), true, VALID),
        (stage1(Granule::K64, 42, 48, false), true, VALID),
    ];
    for (table, contiguous, kind) in cases {
        let leaf = walk(&table, 0, &[(0x10_0000, CONTIGUOUS | kind)]).unwrap();
        assert_eq!(leaf.contiguous, contiguous, "{table:?}");
    }
}

#[test]
fn table_attributes_accumulate_and_only_hierarchical_disable_lifts_them() {
    let table = stage1(Granule::K4, 39, 48, false);
    let words = [
        (0x10_0000, 0x20_0000 | 1 << 62 | PAGE),
        (0x20_0000, 0x30_0000 | 1 << 59 | PAGE),
        (0x30_0000, AF | AP_USER | PAGE),
    ];
    let leaf = walk(&table, 0, &words).unwrap();
    assert!(leaf.table_attributes.read_only() && leaf.table_attributes.pxn());
    assert!(!leaf.table_attributes.no_user() && !leaf.table_attributes.uxn());
    let plain = leaf.stage1().permissions(Stage1Controls::PLAIN);
    assert_eq!(plain, Permissions::READ | Permissions::USER_EXECUTE);
    let free = Stage1Controls { hierarchical_disabled: true, ..Stage1Controls::PLAIN };
    // What users can write, the kernel does not execute.
    assert_eq!(
        leaf.stage1().permissions(free),
        Permissions::ALL.without(Permissions::PRIVILEGED_EXECUTE)
    );
    // Stage 2 tables have no such bits.
    let table = Table::stage2(Granule::K4, 39, 1, 48, false, 0x10_0000).unwrap();
    assert_eq!(walk(&table, 0, &words).unwrap().table_attributes, TableAttributes::NONE);
}

#[test]
fn af_and_permissions_are_told_and_never_checked() {
    let table = stage1(Granule::K4, 21, 48, false);
    let leaf = walk(&table, 0, &[(0x10_0000, DBM | AP_READ_ONLY | NG | 5 << 2 | PAGE)]).unwrap();
    let stage1 = leaf.stage1();
    assert!(!stage1.accessed() && stage1.writable_clean() && stage1.not_global());
    assert_eq!(stage1.attr_index(), 5);
    assert_eq!(stage1.dirtied(), leaf.descriptor & !AP_READ_ONLY);
    let one = Stage1Controls { regime: Regime::OnePrivilege, ..Stage1Controls::PLAIN };
    assert_eq!(stage1.permissions(one), Permissions::READ | Permissions::EXECUTE);
    let dirty = Stage1Controls { hardware_dirty: true, ..one };
    assert_eq!(stage1.permissions(dirty), Permissions::ALL);

    let table = Table::stage2(Granule::K4, 21, 3, 48, false, 0x10_0000).unwrap();
    let leaf = walk(&table, 0, &[(0x10_0000, DBM | AF | S2AP_READ | 0xf << 2 | PAGE)]).unwrap();
    let stage2 = leaf.stage2();
    assert!(stage2.accessed() && stage2.writable_clean());
    assert_eq!(stage2.mem_attr(), 0xf);
    assert_eq!(stage2.dirtied(), leaf.descriptor | S2AP_WRITE);
    let without_write = Permissions::ALL.without(Permissions::WRITE);
    assert_eq!(stage2.permissions(Stage2Controls::default()), without_write);
    let dirty = Stage2Controls { hardware_dirty: true, ..Default::default() };
    assert_eq!(stage2.permissions(dirty), Permissions::ALL);
}

#[test]
fn reserved_bits_of_a_leaf_change_nothing() {
    let table = stage1(Granule::K4, 39, 48, false);
    let clean = 0x40_0000_0000 | AF | VALID;
    let noise = 0xfff << 18 | 0x8000_0000_0000_0000 | 0xf << 55 | 3 << 48;
    let expected = walk(&table, 0x2345_6789, &[(0x10_0000, clean)]).unwrap();
    let noisy = walk(&table, 0x2345_6789, &[(0x10_0000, clean | noise & !(1 << 30))]).unwrap();
    assert_eq!(noisy.output, expected.output);
}

#[test]
fn tables_that_point_to_themselves_end() {
    let table = stage1(Granule::K4, 52, 52, true);
    let mut memory = Memory::of(&[(0x10_0000, 0x10_0000 | PAGE)]);
    let leaf = table.walk(0xabc, &mut memory).unwrap();
    assert_eq!((leaf.output, leaf.level, memory.reads), (0x10_0abc, 3, 5));
}

#[test]
fn what_is_taken_away_and_permitted_can_be_read() {
    let tables = TableAttributes::of(1 << 62 | 1 << 59);
    assert_eq!(format!("{tables:?} {:?}", TableAttributes::NONE), "APTable[1] PXNTable none");
    let some = Permissions::READ | Permissions::PRIVILEGED_EXECUTE;
    assert_eq!(format!("{some:?}"), "r--/r-x");
}
