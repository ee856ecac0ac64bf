//! A naive model of what a mapper has mapped, and memory that watches it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pagetable::format::{CONTIGUOUS, S2AP_WRITE, TABLE, VALID};
use pagetable::{Geometry, HeapPool, OutOfMemory, Stage, TableMemory};

/// A block, a page or a contiguous group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    pub(crate) size: u64,
    pub(crate) output: u64,
    pub(crate) attributes: u64,
}

/// What is mapped: leaves by their first input address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Model(pub(crate) BTreeMap<u64, Leaf>);

/// Reads all tables and checks that each is in use and holds something.
pub(crate) fn dump<M: TableMemory>(geometry: &Geometry, base: u64, memory: &M) -> (Model, usize) {
    let mut model = Model::default();
    let entries = 1 << geometry.initial_entries_log2();
    let level = geometry.initial_level();
    let tables = dump_table(geometry, memory, level, base, entries, 0, &mut model);
    (model, tables)
}

fn dump_table<M: TableMemory>(
    geometry: &Geometry,
    memory: &M,
    level: i8,
    address: u64,
    entries: usize,
    origin: u64,
    model: &mut Model,
) -> usize {
    let table = memory.table(address, entries).expect("a table");
    let size = 1u64 << geometry.shift(level);
    let mut tables = 0;
    let mut used = 0;
    let mut n = 0;
    while n < entries {
        let descriptor = table[n].load(Ordering::Acquire);
        let input = origin + n as u64 * size;
        n += 1;
        if descriptor == 0 {
            continue;
        }
        used += 1;
        assert_eq!(descriptor & VALID, VALID, "garbage in a table");
        if level < 3 && descriptor & TABLE != 0 {
            let next = geometry.address(descriptor);
            assert_eq!(descriptor, geometry.address_field(next) | VALID | TABLE);
            let entries = 1 << geometry.granule().stride();
            let before = model.0.len();
            tables += 1 + dump_table(geometry, memory, level + 1, next, entries, input, model);
            assert_ne!(before, model.0.len(), "an empty table at {next:#x}");
            continue;
        }
        assert!(geometry.has_leaves(level));
        assert_eq!(descriptor & TABLE != 0, level == 3);
        let output = geometry.address(descriptor) & !(size - 1);
        let ours = geometry.address_mask() | CONTIGUOUS | TABLE | VALID;
        let mut leaf = Leaf { size, output, attributes: descriptor & !ours };
        if descriptor & CONTIGUOUS != 0 {
            // A group must be whole, in order and aligned.
            let group = 1usize << geometry.contiguous_log2(level).expect("a legal group");
            assert_eq!((n - 1) % group, 0);
            leaf.size = size * group as u64;
            assert_eq!(output % leaf.size, 0);
            for k in 1..group {
                let member = table[n - 1 + k].load(Ordering::Acquire);
                let expected = geometry.address_field(output + k as u64 * size);
                assert_eq!(member & geometry.address_mask(), expected);
                assert_eq!(
                    member & (CONTIGUOUS | TABLE | VALID),
                    descriptor & ours & !geometry.address_mask()
                );
                // Hardware may have written to any member: then the group is dirty.
                let differing = (member & !ours) ^ (descriptor & !ours);
                assert_eq!(differing & !S2AP_WRITE, 0);
                if differing != 0 {
                    leaf.attributes &= !S2AP_WRITE;
                    leaf.attributes |= if geometry.stage() == Stage::Two { S2AP_WRITE } else { 0 };
                }
            }
            n += group - 1;
        }
        model.0.insert(input, leaf);
    }
    assert!(used > 0 || level == geometry.initial_level());
    tables
}

/// A pool whose new and freed tables are full of garbage that looks valid, that knows
/// which tables are out, and can be made to run dry.
pub(crate) struct Watched {
    pool: HeapPool,
    out: Mutex<BTreeMap<u64, u8>>,
    /// How many more tables may be allocated.
    pub(crate) left: AtomicU64,
}

const GARBAGE: u64 = 0x0000_dead_beef_f003;

impl Watched {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self {
            pool: HeapPool::new(geometry.granule(), 0x40_0000_0000, 10_000),
            out: Mutex::default(),
            left: AtomicU64::new(u64::MAX),
        }
    }

    pub(crate) fn out(&self) -> usize {
        self.out.lock().unwrap().len()
    }

    fn spoil(&self, size_log2: u8, table: u64) {
        for entry in self.pool.table(table, 1 << (size_log2 - 3)).expect("a table") {
            entry.store(GARBAGE, Ordering::Release);
        }
    }
}

impl TableMemory for Watched {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        if (count as u64) > self.left.load(Ordering::Relaxed) {
            return Err(OutOfMemory);
        }
        let before = tables.len();
        self.pool.allocate(size_log2, count, tables)?;
        for &table in &tables[before..] {
            assert_eq!(table % (1 << size_log2), 0);
            assert_eq!(self.out.lock().unwrap().insert(table, size_log2), None);
            self.spoil(size_log2, table);
        }
        Ok(())
    }

    fn free(&self, size_log2: u8, tables: &[u64]) {
        for table in tables {
            assert_eq!(self.out.lock().unwrap().remove(table), Some(size_log2));
            self.spoil(size_log2, *table);
        }
        self.pool.free(size_log2, tables);
    }

    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        self.pool.table(address, entries)
    }
}
