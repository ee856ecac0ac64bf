//! `pagetable` against `aarch64-paging`, `page_table_multiarch` and plain loops.

mod heap;
mod peers;

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use benches::{Goal, Race, Random, Report};
use pagetable::{
    Attributes, Descriptors, Gather, Geometry, Granule, HeapPool, Mapper, Reader, Stage1Attributes,
    Table, TableMemory,
};

use crate::peers::{Aarch64Paging, Multiarch, Pool};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where things are mapped: at the start of a level 1 entry.
const INPUT: u64 = 5 * GIB;
const OUTPUT: u64 = 64 * GIB;

fn geometry() -> Geometry {
    Geometry::stage1(Granule::K4, 48, 48, false).expect("a geometry")
}

fn dma() -> Attributes {
    Stage1Attributes::DMA.into()
}

/// A pool whose first tables have been touched, like the peers' memory.
fn warm_pool(tables: usize) -> HeapPool {
    let pool = HeapPool::new(Granule::K4, 1 << 40, 1 << 20);
    let mut out = Vec::new();
    pool.allocate(12, tables, &mut out).expect("memory");
    pool.free(12, &out);
    pool
}

fn map(mapper: &mut Mapper<&HeapPool>, input: u64, length: u64, sizes: u64) {
    let output = input - INPUT + OUTPUT;
    mapper.map(input..input + length, output, dma(), sizes).expect("a free range");
}

/// 1 GiB of 4 KiB pages in one call, and away again in one.
fn gigabyte(report: &mut Report) {
    const LOOP: &str = "allocate and fill 512 tables";
    const AARCH64: &str = "aarch64-paging map";
    const DETACH: &str = "aarch64-paging unmap (detach)";
    const MULTIARCH: &str = "page_table_multiarch map";
    let pool = warm_pool(600);
    let ours = RefCell::new(Mapper::new(geometry(), &pool).expect("a table"));
    let gather = RefCell::new(Gather::default());
    let peer_pool = RefCell::new(Pool::default());
    let peer = RefCell::new(Aarch64Paging::new(&peer_pool));
    let multiarch = RefCell::new(Multiarch::new());
    let mut tables = Vec::new();

    let mut race = Race::new("1 GiB as 4 KiB pages in one call, per 512 pages", 512);
    race.enter(LOOP, || {
        tables.clear();
        let mut descriptor = OUTPUT | 0x7ff;
        for _ in 0..512 {
            let mut table = vec![0_u64; 512];
            for entry in &mut table {
                *entry = descriptor;
                descriptor += PAGE;
            }
            tables.push(black_box(table));
        }
    });
    race.enter("pagetable map", || map(&mut ours.borrow_mut(), INPUT, GIB, PAGE));
    race.enter(AARCH64, || peer.borrow_mut().map(INPUT, GIB, OUTPUT));
    race.enter(MULTIARCH, || multiarch.borrow_mut().map(INPUT, GIB, OUTPUT));
    race.enter("pagetable unmap + recycle", || {
        let (mut ours, mut gather) = (ours.borrow_mut(), gather.borrow_mut());
        ours.unmap(INPUT..INPUT + GIB, &mut gather).expect("a range");
        ours.recycle(&mut gather);
    });
    race.enter(DETACH, || peer.borrow_mut().unmap(INPUT, GIB));
    race.enter("page_table_multiarch unmap", || {
        multiarch.borrow_mut().unmap(INPUT, GIB);
    });
    // What it costs to have zero tables at hand, which is in nobody's time.
    race.enter("zero 513 tables", || {
        peer_pool.borrow_mut().clean();
        multiarch.replace(Multiarch::new());
    });
    race.goal("pagetable map", Goal::FasterThan(AARCH64, 3.0));
    race.goal("pagetable map", Goal::FasterThan(MULTIARCH, 10.0));
    race.goal("pagetable map", Goal::Within(LOOP, 1.67));
    race.goal("pagetable unmap + recycle", Goal::Within(DETACH, 2.0));
    report.run(race);
}

/// 256 pages per call into tables that hold something else already.
fn live(report: &mut Report) {
    const CALLS: u64 = 64;
    const LENGTH: u64 = 256 * PAGE;
    const LOOP: &str = "check-and-store loop";
    const AARCH64: &str = "aarch64-paging map";
    const UNMAP: &str = "aarch64-paging unmap";
    let pool = warm_pool(100);
    let mut mapper = Mapper::new(geometry(), &pool).expect("a table");
    let peer_pool = RefCell::new(Pool::default());
    let mut peer = Aarch64Paging::new(&peer_pool);
    let mut multiarch = Multiarch::new();
    let calls = || (0..CALLS).map(|n| INPUT + n * 2 * MIB);
    for input in calls() {
        map(&mut mapper, input + LENGTH, LENGTH, PAGE);
        peer.map(input + LENGTH, LENGTH, OUTPUT);
        multiarch.map(input + LENGTH, LENGTH, OUTPUT);
    }
    let plain: Vec<AtomicU64> = (0..CALLS * 512).map(|_| AtomicU64::new(0)).collect();
    let (ours, peer, multiarch) =
        (RefCell::new(mapper), RefCell::new(peer), RefCell::new(multiarch));
    let gather = RefCell::new(Gather::default());

    let mut race = Race::new("256 x 4 KiB in one call, live tables", CALLS);
    race.enter(LOOP, || {
        for table in plain.chunks(512) {
            let mut descriptor = OUTPUT | 0x7ff;
            for entry in black_box(&table[..256]) {
                assert_eq!(entry.load(Ordering::Relaxed) & 1, 0);
                entry.store(descriptor, Ordering::Relaxed);
                descriptor += PAGE;
            }
        }
    });
    race.enter("pagetable map", || {
        let mut ours = ours.borrow_mut();
        calls().for_each(|input| map(&mut ours, input, LENGTH, PAGE));
    });
    race.enter(AARCH64, || {
        let mut peer = peer.borrow_mut();
        calls().for_each(|input| peer.map(input, LENGTH, OUTPUT));
    });
    race.enter("page_table_multiarch map", || {
        let mut multiarch = multiarch.borrow_mut();
        calls().for_each(|input| multiarch.map(input, LENGTH, OUTPUT));
    });
    race.enter("pagetable unmap", || {
        let (mut ours, mut gather) = (ours.borrow_mut(), gather.borrow_mut());
        for input in calls() {
            ours.unmap(input..input + LENGTH, &mut gather).expect("a range");
        }
        ours.recycle(&mut gather);
    });
    race.enter(UNMAP, || {
        let mut peer = peer.borrow_mut();
        calls().for_each(|input| peer.unmap(input, LENGTH));
    });
    race.enter("page_table_multiarch unmap", || {
        let mut multiarch = multiarch.borrow_mut();
        calls().for_each(|input| multiarch.unmap(input, LENGTH));
    });
    race.enter("clear loop", || {
        for table in plain.chunks(512) {
            for entry in black_box(&table[..256]) {
                assert_eq!(entry.load(Ordering::Relaxed) & 1, 1);
                entry.store(0, Ordering::Relaxed);
            }
        }
    });
    race.goal("pagetable map", Goal::FasterThan(AARCH64, 3.2));
    race.goal("pagetable map", Goal::Within(LOOP, 1.5));
    race.goal("pagetable unmap", Goal::FasterThan(UNMAP, 2.5));
    report.run(race);
}

/// What is mapped where: 1 GiB of 4 KiB pages.
fn read_back(report: &mut Report) {
    const QUERY: &str = "pagetable leaf, page by page";
    const AARCH64: &str = "aarch64-paging, page by page";
    const MULTIARCH: &str = "page_table_multiarch, page by page";
    let pool = warm_pool(600);
    let mut pages = Mapper::new(geometry(), &pool).expect("a table");
    map(&mut pages, INPUT, GIB, PAGE);
    let peer_pool = RefCell::new(Pool::default());
    let mut peer = Aarch64Paging::new(&peer_pool);
    peer.map(INPUT, GIB, OUTPUT);
    let mut multiarch = Multiarch::new();
    multiarch.map(INPUT, GIB, OUTPUT);
    let inputs = || (INPUT..INPUT + GIB).step_by(PAGE as usize);
    let run = || {
        let run = pages.read_run(black_box(INPUT..INPUT + GIB)).expect("a mapping");
        assert_eq!((run.output, run.length), (OUTPUT, GIB));
    };

    let mut race = Race::new("physical addresses of 1 GiB of 4 KiB pages, per page", GIB / PAGE);
    race.enter("pagetable read_run", run);
    race.enter(QUERY, || {
        let sum: u64 = inputs().map(|input| pages.leaf(input).expect("a page").output).sum();
        black_box(sum);
    });
    race.enter(AARCH64, || {
        black_box(inputs().map(|input| peer.query(input)).sum::<u64>());
    });
    race.enter(MULTIARCH, || {
        black_box(inputs().map(|input| multiarch.query(input)).sum::<u64>());
    });
    race.enter("aarch64-paging walk_range", || {
        black_box(peer.walk(INPUT, GIB));
    });
    race.goal("pagetable read_run", Goal::FasterThan(AARCH64, 50.0));
    race.goal("pagetable read_run", Goal::Compared(QUERY));
    race.goal("pagetable read_run", Goal::Compared(MULTIARCH));
    report.run(race);
}

/// Tables in one flat array, addressed by their offset.
struct Flat<'a>(&'a [u64]);

impl Descriptors for Flat<'_> {
    type Error = ();
    #[inline]
    fn read(&mut self, address: u64, _level: i8) -> Result<u64, ()> {
        self.0.get(address as usize / 8).copied().ok_or(())
    }
}

/// Four levels of descriptors for random addresses.
fn walks(report: &mut Report, pages: u64) {
    const COUNT: u64 = 200_000;
    const LOOP: &str = "raw loop, four loads";
    let pool = HeapPool::new(Granule::K4, 0, 1 << 20);
    let mut mapper = Mapper::new(geometry(), &pool).expect("a table");
    map(&mut mapper, INPUT, pages * PAGE, PAGE);
    let table = mapper.table();
    let words = pool.size() as usize / 8;
    let flat: Vec<u64> = (0..words)
        .map(|n| pool.table(n as u64 * 8, 1).map_or(0, |word| word[0].load(Ordering::Relaxed)))
        .collect();
    let seed = RefCell::new(Random::new(7));

    let mut race = Race::new(format!("walk of four levels, {pages} pages"), COUNT);
    race.enter(LOOP, || {
        let mut random = seed.borrow_mut();
        let mut sum = 0_u64;
        for _ in 0..COUNT {
            let input = INPUT + random.below(pages) * PAGE;
            let mut at = table.base();
            for shift in [39, 30, 21, 12] {
                at = flat[(at / 8 + (input >> shift & 511)) as usize] & 0xffff_ffff_f000;
            }
            sum = sum.wrapping_add(at);
        }
        black_box(sum);
    });
    race.enter("Table::walk in a slice", || {
        let mut random = seed.borrow_mut();
        black_box(sum_of_walks(&table, &mut Flat(&flat), &mut random, COUNT, pages));
    });
    race.enter("Table::walk in a HeapPool", || {
        let mut random = seed.borrow_mut();
        black_box(sum_of_walks(&table, &mut Reader(&pool), &mut random, COUNT, pages));
    });
    race.goal("Table::walk in a slice", Goal::Compared(LOOP));
    race.goal("Table::walk in a HeapPool", Goal::Compared(LOOP));
    report.run(race);
}

fn sum_of_walks<M: Descriptors>(
    table: &Table,
    memory: &mut M,
    random: &mut Random,
    count: u64,
    pages: u64,
) -> u64 {
    let mut sum = 0_u64;
    for _ in 0..count {
        let input = INPUT + random.below(pages) * PAGE;
        let leaf = table.walk(input, memory).ok().expect("a page");
        sum = sum.wrapping_add(leaf.output ^ leaf.descriptor >> 52);
    }
    sum
}

/// What the heap holds beyond the tables themselves.
fn memory(report: &mut Report) {
    const LENGTH: u64 = 16 * GIB;
    let before = heap::live();
    // Room for eight times as much.
    let pool = HeapPool::new(Granule::K4, 1 << 40, 1 << 16);
    let mut mapper = Mapper::new(geometry(), &pool).expect("a table");
    map(&mut mapper, INPUT, LENGTH, PAGE);
    let tables = 2 + LENGTH / GIB + LENGTH / (2 * MIB);
    let beyond = (heap::live() - before) as u64 - tables * PAGE;
    let share = (beyond * 10_000 / (tables * PAGE)) as u32;
    let share = f64::from(share) / 100.0;
    report.quantity("memory beyond the tables of 16 GiB", share, "%", Some(1.0));
}

fn main() {
    let mut report = Report::new("pagetable", 15);
    gigabyte(&mut report);
    live(&mut report);
    read_back(&mut report);
    walks(&mut report, 64);
    walks(&mut report, GIB / PAGE);
    memory(&mut report);
    report.finish();
}
