//! What a mapper promises while hardware walks its tables, and what it refuses.

mod model;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use model::{Watched, dump};
use pagetable::format::{AF, AP_READ_ONLY, DBM};
use pagetable::{
    Attributes, Fault, Gather, Geometry, Granule, HeapPool, MapError, Mapper, Meaning, OutOfMemory,
    Reader, Stage1Attributes, Stage2Attributes, TableMemory, walk,
};

const DISTANCE: u64 = 0x40_0000_0000;

fn geometry() -> Geometry {
    Geometry::stage1(Granule::K4, 48, 48, false).unwrap()
}

/// A walker in another thread sees nothing but complete tables, whatever the mapper is
/// doing: the garbage in new and in recycled tables would show.
#[test]
fn a_walker_never_sees_a_table_in_the_making() {
    const ROUNDS: u64 = 4000;
    let geometry = geometry();
    let memory = Watched::new(&geometry);
    let mut mapper = Mapper::new(geometry, &memory).unwrap();
    let table = mapper.table();
    // Odd while a walk is under way.
    let walking = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let sizes = geometry.page_sizes();
    let place = |round: u64| {
        let start = [0, 0x1f_f000, 0x20_0000, 0x3fff_f000, 0x4000_0000][round as usize % 5];
        let length = [0x1000, 0x3000, 0x20_0000, 0x21_1000, 0x4020_1000][round as usize / 5 % 5];
        start..start + length
    };
    let hits = std::thread::scope(|scope| {
        let walker = scope.spawn(|| {
            let mut hits = 0;
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(0x1234_5677);
                let input = place(n >> 33).start + ((n >> 20 & 0xff) << 12);
                walking.fetch_add(1, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                let result = table.walk(input, &mut Reader(&memory));
                walking.fetch_add(1, Ordering::SeqCst);
                match result {
                    Ok(leaf) => {
                        hits += 1;
                        assert_eq!(leaf.output, input + DISTANCE);
                    }
                    Err(fault) => assert!(matches!(fault, Fault::Translation { .. })),
                }
            }
            hits
        });
        let mut gather = Gather::default();
        for round in 0..ROUNDS {
            let range = place(round);
            let output = range.start + DISTANCE;
            mapper.map(range.clone(), output, Stage1Attributes::DMA.into(), sizes).unwrap();
            if round % 7 == 0 {
                std::thread::yield_now();
            }
            mapper.unmap(range, &mut gather).unwrap();
            // What a TLB invalidation is to hardware: no walk goes on that began before.
            fence(Ordering::SeqCst);
            let now = walking.load(Ordering::SeqCst);
            while now % 2 == 1 && walking.load(Ordering::SeqCst) == now {
                std::thread::yield_now();
            }
            mapper.recycle(&mut gather);
        }
        stop.store(true, Ordering::Relaxed);
        walker.join().unwrap()
    });
    assert!(hits > 0);
}

/// Hardware marks leaves dirty while software collects: no write is lost.
#[test]
fn no_dirty_mark_is_lost_to_the_collector() {
    const PAGES: u64 = 64;
    const ROUNDS: u64 = 20_000;
    let geometry = Geometry::stage2(Granule::K4, 40, 1, 40, false).unwrap();
    let pool = HeapPool::new(Granule::K4, 0, 100);
    let mut mapper = Mapper::new(geometry, &pool).unwrap();
    let attributes = Stage2Attributes { write: false, dbm: true, ..Stage2Attributes::GUEST };
    mapper.map(0..PAGES << 12, 0, attributes.into(), 0x1000).unwrap();
    let stop = AtomicBool::new(false);
    let mapper = &mapper;
    let (marked, collected) = std::thread::scope(|scope| {
        let hardware = scope.spawn(|| {
            let mut marked = 0u64;
            for n in 0..ROUNDS {
                let leaf = mapper.leaf((n % PAGES) << 12).unwrap();
                let old = leaf.descriptor;
                if leaf.stage2().writable_clean() {
                    let entry = &pool.table(leaf.descriptor_address, 1).unwrap()[0];
                    let new = leaf.stage2().dirtied();
                    let done =
                        entry.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
                    marked += u64::from(done.is_ok());
                }
            }
            stop.store(true, Ordering::Relaxed);
            marked
        });
        let mut collected = 0;
        let mut gather = Gather::default();
        loop {
            let last = stop.load(Ordering::Relaxed);
            let report = |part: std::ops::Range<u64>| collected += (part.end - part.start) >> 12;
            mapper.read_dirty(0..PAGES << 12, true, &mut gather, report).unwrap();
            if last {
                break;
            }
        }
        (hardware.join().unwrap(), collected)
    });
    assert!(marked > 0);
    assert_eq!(marked, collected);
}

#[test]
fn a_failed_map_changes_nothing() {
    let geometry = geometry();
    let memory = Watched::new(&geometry);
    let mut mapper = Mapper::new(geometry, &memory).unwrap();
    let dma = Attributes::from(Stage1Attributes::DMA);
    let sizes = geometry.page_sizes();
    mapper.map(0x4000_1000..0x4000_2000, 0, dma, sizes).unwrap();
    let before = (dump(&geometry, mapper.table().base(), &memory), memory.out());

    // Fails on its last page, far behind tables that it needs.
    let taken = mapper.map(0x1000..0x4000_2000, 0x1000, dma, 0x1000);
    assert_eq!(taken, Err(MapError::AlreadyMapped(0x4000_1000)));
    // Level 0 and 1 are there; 512 tables of level 3 below a new one of level 2 are not.
    memory.left.store(512, Ordering::Relaxed);
    let poor = mapper.map(0..0x4000_0000, 0, dma, 0x1000);
    assert_eq!(poor, Err(MapError::OutOfMemory(OutOfMemory)));
    assert_eq!((dump(&geometry, mapper.table().base(), &memory), memory.out()), before);
    // More than there ever will be: 2^27 tables.
    memory.left.store(u64::MAX, Ordering::Relaxed);
    let greedy = mapper.map(1 << 47..1 << 48, 0, dma, 0x1000);
    assert_eq!(greedy, Err(MapError::OutOfMemory(OutOfMemory)));
    memory.left.store(513, Ordering::Relaxed);
    mapper.map(0..0x4000_0000, 0, dma, 0x1000).unwrap();
    assert_eq!(memory.out(), before.1 + 513);
}

#[test]
fn ranges_that_cannot_be_mapped_are_refused() {
    let pool = HeapPool::new(Granule::K4, 0, 100);
    let geometry = Geometry::stage1(Granule::K4, 39, 40, false).unwrap();
    let mut mapper = Mapper::new(geometry, &pool).unwrap();
    let dma = Attributes::from(Stage1Attributes::DMA);
    let top = 1 << 39;
    #[allow(clippy::reversed_empty_ranges)]
    let cases = [
        (0x1000..0x1000, 0, u64::MAX, MapError::Input(0x1000..0x1000)),
        (0x2000..0x1000, 0, u64::MAX, MapError::Input(0x2000..0x1000)),
        (top - 0x1000..top + 0x1000, 0, u64::MAX, MapError::Input(top - 0x1000..top + 0x1000)),
        (0..u64::MAX, 0, u64::MAX, MapError::Input(0..u64::MAX)),
        (0..0x1001, 0, u64::MAX, MapError::Alignment(0x1000)),
        (0..0x1000, 0x800, u64::MAX, MapError::Alignment(0x1000)),
        (0..0x1000, 0, 0x20_0000, MapError::Alignment(0x20_0000)),
        (0..0x2000, (1 << 40) - 0x1000, u64::MAX, MapError::Output((1 << 40) - 0x1000)),
        (0..0x2000, u64::MAX - 0xfff, u64::MAX, MapError::Output(u64::MAX - 0xfff)),
        (0..0x2000, 0, 0x2000, MapError::PageSizes(0x2000)),
        // A contiguous group needs the pages it consists of.
        (0..0x1_0000, 0, 0x1_0000, MapError::PageSizes(0x1_0000)),
    ];
    for (range, output, sizes, error) in cases {
        assert_eq!(mapper.map(range, output, dma, sizes), Err(error));
    }
    mapper.map(top - 0x1000..top, (1 << 40) - 0x1000, dma, u64::MAX).unwrap();
    assert_eq!(mapper.leaf(top - 1).unwrap().output, (1 << 40) - 1);
}

#[test]
fn leaves_and_groups_are_never_cut() {
    let pool = HeapPool::new(Granule::K4, 0, 100);
    let geometry = geometry();
    let mut mapper = Mapper::new(geometry, &pool).unwrap();
    let dma = Attributes::from(Stage1Attributes::DMA);
    mapper.map(0..0x41_0000, 0, dma, geometry.page_sizes()).unwrap();
    let mut gather = Gather::default();
    let block = MapError::CutsLeaf(0x20_0000..0x40_0000);
    let group = MapError::CutsLeaf(0x40_0000..0x41_0000);
    assert_eq!(mapper.unmap(0x20_0000..0x20_1000, &mut gather), Err(block.clone()));
    assert_eq!(mapper.protect(0x3f_f000..0x40_0000, dma, &mut gather), Err(block));
    assert_eq!(mapper.unmap(0x40_0000..0x40_1000, &mut gather), Err(group));
    assert_eq!(gather.range(), None);
    assert_eq!(mapper.read_run(0..u64::MAX).unwrap().length, 0x41_0000);
    mapper.unmap(0x20_0000..0x41_0000, &mut gather).unwrap();
    assert_eq!(gather.range(), Some(0x20_0000..0x41_0000));
    assert!(gather.has_tables());
    mapper.recycle(&mut gather);
}

/// Tables that were taken out keep their contents until they are recycled, and come
/// back into use after that.
#[test]
fn tables_are_reused_only_after_recycling() {
    let geometry = geometry();
    let memory = Watched::new(&geometry);
    let mut mapper = Mapper::new(geometry, &memory).unwrap();
    let dma = Attributes::from(Stage1Attributes::DMA);
    mapper.map(0x1000..0x2000, 0x5000, dma, 0x1000).unwrap();
    let leaf = mapper.leaf(0x1000).unwrap();
    let mut gather = Gather::default();
    mapper.unmap(0x1000..0x2000, &mut gather).unwrap();
    assert_eq!(memory.out(), 4);
    mapper.map(0x1000..0x2000, 0x6000, dma, 0x1000).unwrap();
    assert_ne!(mapper.leaf(0x1000).unwrap().descriptor_address, leaf.descriptor_address);
    assert_eq!(memory.table(leaf.descriptor_address, 1).unwrap()[0].load(Ordering::Relaxed), 0);
    mapper.recycle(&mut gather);
    assert_eq!(memory.out(), 4);
}

#[test]
fn protecting_keeps_the_memory_type_and_what_was_written() {
    let pool = HeapPool::new(Granule::K4, 0, 100);
    let mut mapper = Mapper::new(geometry(), &pool).unwrap();
    let old = Stage1Attributes { attr_index: 3, dbm: true, ..Stage1Attributes::DMA };
    mapper.map(0..0x1000, 0, old.into(), 0x1000).unwrap();
    let mut gather = Gather::default();
    let clean = Stage1Attributes { attr_index: 5, dbm: true, read_only: true, ..old };
    mapper.protect(0..0x1000, clean.into(), &mut gather).unwrap();
    let descriptor = mapper.leaf(0).unwrap().descriptor;
    assert_eq!(descriptor & (DBM | AP_READ_ONLY | AF), DBM | AF);
    assert_eq!(mapper.leaf(0).unwrap().stage1().attr_index(), 3);
    let fixed = Stage1Attributes { dbm: false, ..clean };
    mapper.protect(0..0x1000, fixed.into(), &mut gather).unwrap();
    assert_eq!(mapper.leaf(0).unwrap().descriptor & (DBM | AP_READ_ONLY), AP_READ_ONLY);
    assert_eq!(gather.range(), Some(0..0x1000));
    mapper.recycle(&mut gather);
}

/// What a cache of table addresses does: walk again from the last table.
#[test]
fn a_walk_continues_from_a_remembered_table() {
    struct Cache<'a>(&'a HeapPool, Option<walk::Position>, u32);
    impl pagetable::Descriptors for Cache<'_> {
        type Error = pagetable::Lost;
        fn read(&mut self, address: u64, level: i8) -> Result<u64, pagetable::Lost> {
            self.2 += 1;
            Reader(self.0).read(address, level)
        }
        fn seen(&mut self, step: pagetable::Step) {
            if let Meaning::Table(position) = step.meaning {
                self.1 = Some(position);
            }
        }
    }
    let pool = HeapPool::new(Granule::K4, 0, 100);
    let mut mapper = Mapper::new(geometry(), &pool).unwrap();
    let dma = Attributes::from(Stage1Attributes::DMA);
    mapper.map(0x20_0000..0x22_0000, 0x7000_0000, dma, 0x1000).unwrap();
    let mut cache = Cache(&pool, None, 0);
    mapper.table().walk(0x20_0000, &mut cache).unwrap();
    assert_eq!(cache.2, 4);
    let last = cache.1.unwrap();
    let leaf = mapper.table().walk_from(last, 0x21_f123, &mut cache).unwrap();
    assert_eq!((leaf.output, cache.2), (0x7001_f123, 5));
}

#[test]
fn a_pool_aligns_runs_of_tables_and_wastes_none() {
    let pool = HeapPool::new(Granule::K4, 0x1234_5678, 64);
    let mut single = Vec::new();
    pool.allocate(12, 1, &mut single).unwrap();
    let mut sixteen = Vec::new();
    pool.allocate(16, 1, &mut sixteen).unwrap();
    assert_eq!(sixteen[0] % 0x1_0000, 0);
    assert_eq!(pool.table(sixteen[0], 16 * 512).unwrap().len(), 16 * 512);
    // 64 tables: 1 + 16 are out.
    assert_eq!(pool.allocate(12, 48, &mut single), Err(OutOfMemory));
    assert_eq!(single.len(), 1);
    pool.allocate(12, 47, &mut single).unwrap();
    single.sort_unstable();
    single.dedup();
    assert_eq!(single.len(), 48);
    assert_eq!(pool.allocate(6, 1, &mut single), Err(OutOfMemory));
    pool.free(16, &sixteen);
    assert_eq!(pool.allocate(16, 2, &mut sixteen), Err(OutOfMemory));
    pool.allocate(16, 1, &mut sixteen).unwrap();
    assert_eq!(pool.size(), 64 * 0x1000);
    for outside in [0, 0x1234_5678, u64::MAX, pool.size() + 0x1300_0000] {
        assert!(pool.table(outside, 1).is_none());
    }
    assert!(pool.table(sixteen[0], usize::MAX).is_none());
    assert_eq!(pool.allocate(30, 1, &mut single), Err(OutOfMemory));
}
