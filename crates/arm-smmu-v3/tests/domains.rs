//! Domains: what a device may do after each change of a page table, and while it happens.

mod common;
#[path = "common/driven.rs"]
mod driven;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arm_smmu_v3::{Attachment, Domain, Error, Prot, Stage, Stream};
use driven::{Device, RW, SID, map, plain, smmus, stages, start, with_page};
use proptest::prelude::*;
use smmuv3::{Httu, Transaction};

#[test]
fn a_device_reaches_what_is_mapped_as_it_is_mapped_and_no_longer() {
    for options in smmus() {
        let (smmu, model, ram) = start(options);
        let before = ram.allocations();
        for stage in stages(&smmu) {
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
            let domain = Domain::new(&smmu, stage, false).unwrap();
            assert_eq!(device.read(0x10_0000), None, "blocked");
            stream.attach(Attachment::Paging(domain.clone())).unwrap();
            assert_eq!(device.read(0x10_0000), None, "not mapped");

            // 4 MiB and a page; then one for reads only.
            let page = 1 << domain.geometry().granule().page_log2();
            let big = 0x40_0000..0x80_0000 + page;
            map(&domain, big.clone(), 0x1040_0000, RW);
            map(&domain, 0x1000_0000..0x1000_0000 + page, 0x8000_0000, Prot::READ | Prot::CACHE);
            for at in [0x40_0000, 0x41_0123, 0x7f_ffff, 0x80_0000] {
                assert_eq!(device.read(at), Some(at + 0x1000_0000));
                assert_eq!(device.write(at), Some(at + 0x1000_0000));
                assert_eq!(domain.translate(at), Some(at + 0x1000_0000));
            }
            assert_eq!(device.read(0x1000_0040), Some(0x8000_0040));
            assert_eq!(device.write(0x1000_0040), None);
            assert_eq!((device.read(big.end), domain.translate(big.end)), (None, None));

            domain.unmap(big.clone()).unwrap();
            domain.sync().unwrap();
            for at in [0x40_0000, 0x41_0123, 0x7f_ffff, 0x80_0000] {
                assert_eq!((device.read(at), domain.translate(at)), (None, None));
            }
            assert_eq!(device.read(0x1000_0040), Some(0x8000_0040));
            stream.attach(Attachment::Identity).unwrap();
            assert_eq!(device.write(0x7000), Some(0x7000));
            stream.attach(Attachment::Blocked).unwrap();
            assert_eq!(device.read(0x1000_0040), None);
        }
        // The level 2 stream table stays.
        assert!(ram.allocations() <= before + 1, "{:x?}", ram.in_use());
        drop(smmu);
        assert_eq!(ram.allocations(), 0);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Map(u64, u64),
    Unmap(u64, u64),
    Access(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..96u64, prop_oneof![1..5u64, 1..96u64]);
    prop_oneof![
        range().prop_map(|(at, pages)| Step::Map(at, pages)),
        range().prop_map(|(at, pages)| Step::Unmap(at, pages)),
        (0..200u64).prop_map(Step::Access),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Against a map of pages: what a device sees after each step is what the map has.
    #[test]
    fn devices_see_what_a_map_of_pages_has(
        which in 0..8usize,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (smmu, model, _) = start(smmus().swap_remove(which));
        for stage in stages(&smmu) {
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
            let domain = Domain::new(&smmu, stage, false).unwrap();
            stream.attach(Attachment::Paging(domain.clone())).unwrap();
            let log2 = domain.geometry().granule().page_log2();
            // Around a boundary between tables.
            let base = (1 << (2 * log2 - 3)) - (48 << log2);
            let at = |page: u64| base + (page << log2);
            let mut naive = BTreeMap::new();
            let mut output = 1u64 << 30;
            for step in &steps {
                match *step {
                    Step::Map(first, pages) => {
                        let range = at(first)..at(first + pages);
                        let sizes = domain.geometry().leaf_sizes();
                        let free = naive.range(first..first + pages).next().is_none();
                        let result = domain.map(range, output, RW, sizes);
                        prop_assert_eq!(result.is_ok(), free, "{:?}", result);
                        for page in (0..pages).filter(|_| free) {
                            naive.insert(first + page, output + (page << log2));
                        }
                        // No two mappings of a page are alike.
                        output += 128 << log2;
                    }
                    Step::Unmap(first, pages) => {
                        let range = at(first)..at(first + pages);
                        domain.unmap(range).unwrap();
                        naive.retain(|page, _| !(first..first + pages).contains(page));
                    }
                    Step::Access(page) => {
                        let expected = naive.get(&page).copied();
                        // What is mapped needs none.
                        if expected.is_none() {
                            domain.sync().unwrap();
                        }
                        prop_assert_eq!(device.read(at(page)), expected, "page {}", page);
                    }
                }
            }
            domain.sync().unwrap();
            for page in 0..200 {
                prop_assert_eq!(device.write(at(page)), naive.get(&page).copied());
            }
        }
    }
}

/// A page that is unmapped is used for something else right after [`Domain::sync`]; so are the tables.
#[test]
fn no_device_uses_what_was_unmapped_once_synced() {
    for options in [smmuv3::Options::everything(), smmuv3::Options::mmu600()] {
        let (smmu, model, ram) = start(options);
        for stage in stages(&smmu) {
            let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
            let domain = Domain::new(&smmu, stage, false).unwrap();
            stream.attach(Attachment::Paging(domain.clone())).unwrap();
            let (stop, good) = (AtomicBool::new(false), AtomicU64::new(0));
            // Page n of memory holds a word that says whose it is.
            let word = |n: u64| &pagetable::TableMemory::table(&*ram, n << 12, 1).unwrap()[0];
            let iova = |n: u64| n << 30;
            std::thread::scope(|scope| {
                let dma = scope.spawn(|| {
                    let mut port = model.requester();
                    let mut n = 0;
                    while !stop.load(Ordering::Acquire) {
                        n = n % 8 + 1;
                        let transfer = &mut port.begin();
                        if let Ok(at) = transfer.translate(&Transaction::read(SID, iova(n))) {
                            assert_eq!(ram.get(at.address), n, "the device's own page");
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
                let mut round = 0;
                while !dma.is_finished() && (round < 300 || good.load(Ordering::Relaxed) < 500) {
                    let n = round % 8 + 1;
                    word(n).store(n, Ordering::Release);
                    map(&domain, iova(n)..iova(n) + 0x1000, n << 12, RW);
                    (0..round % 5).for_each(|_| std::thread::yield_now());
                    domain.unmap(iova(n)..iova(n) + 0x1000).unwrap();
                    domain.sync().unwrap();
                    word(n).store(!0, Ordering::Release);
                    round += 1;
                }
                stop.store(true, Ordering::Release);
            });
        }
    }
}

#[test]
fn an_asid_or_vmid_comes_back_without_memories() {
    let (smmu, model, _) = start(smmuv3::Options::minimal());
    let mut device = Device::new(&model);
    let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
    // More domains than there are ASIDs, one after another.
    for n in 0..600u64 {
        let domain = with_page(&smmu, Stage::One, 0x1_0000, (n + 1) << 16);
        stream.attach(Attachment::Paging(domain)).unwrap();
        assert_eq!(device.read(0x1_0000), Some((n + 1) << 16));
    }
    let (smmu, model, _) = start(smmuv3::Options::everything());
    let mut device = Device::new(&model);
    let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
    for n in 0..10 {
        let domain = with_page(&smmu, Stage::Two, 0x1_0000, (n + 1) << 16);
        stream.attach(Attachment::Paging(domain)).unwrap();
        assert_eq!(device.read(0x1_0000), Some((n + 1) << 16));
        stream.attach(Attachment::Blocked).unwrap();
    }
}

#[test]
fn there_are_so_many_asids_and_no_more() {
    let (smmu, ..) = start(smmuv3::Options::minimal());
    let all: Vec<_> = (0..255).map(|_| Domain::new(&smmu, Stage::One, false).unwrap()).collect();
    let one_more = Domain::new(&smmu, Stage::One, false).map(|_| ()).unwrap_err();
    assert_eq!(one_more, Error::Exhausted("ASID"));
    drop(all);
    assert!(Domain::new(&smmu, Stage::One, false).is_ok());
    let none = Domain::new(&smmu, Stage::Two, false).map(|_| ()).unwrap_err();
    assert!(matches!(none, Error::Unsupported(_)));
}

#[test]
fn dirty_pages_are_those_that_were_written_to() {
    let (smmu, model, _) = start(smmuv3::Options::everything());
    for stage in [Stage::One, Stage::Two] {
        let mut device = Device::new(&model);
        let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
        let domain = Domain::new(&smmu, stage, true).unwrap();
        let small = 1 << 12;
        let page = |n: u64| (n << 12)..(n + 1) << 12;
        domain.map(0x10_0000..0x12_0000, 0x20_0000, RW, small).unwrap();
        stream.attach(Attachment::Paging(domain.clone())).unwrap();
        let dirty = |clear| {
            let mut pages = Vec::new();
            domain.read_dirty(0..1 << 30, clear, |range| pages.push(range)).unwrap();
            pages
        };
        assert_eq!(dirty(false), vec![0x10_0000..0x12_0000], "writable, and not tracked");
        assert!(device.write(0x10_0000).is_some());

        domain.set_dirty_tracking(true).unwrap();
        assert_eq!(dirty(false), []);
        assert!(device.read(0x10_0000).is_some());
        assert_eq!(dirty(false), [], "read only");
        for n in [0x102, 0x103, 0x110, 0x100] {
            assert!(device.write(n << 12).is_some());
        }
        let expected = vec![page(0x100), 0x10_2000..0x10_4000, page(0x110)];
        assert_eq!(dirty(false), expected);
        assert_eq!(dirty(true), expected);
        assert_eq!(dirty(true), []);
        assert!(device.write(0x10_2000).is_some(), "again, through a warm TLB");
        assert_eq!(dirty(true), vec![page(0x102)]);

        // What is mapped meanwhile is clean.
        domain.map(0x20_0000..0x20_2000, 0x30_0000, RW, small).unwrap();
        assert!(device.write(0x20_1000).is_some());
        assert_eq!(dirty(true), vec![page(0x201)]);
        // What may only be read stays so.
        domain.map(0x20_2000..0x20_3000, 0x30_0000, Prot::READ, small).unwrap();
        assert_eq!(device.write(0x20_2000), None);
        domain.set_dirty_tracking(false).unwrap();
    }
    let plain = Domain::new(&smmu, Stage::One, false).unwrap();
    assert!(matches!(plain.set_dirty_tracking(true), Err(Error::Unsupported(_))));
    let options = smmuv3::Options { httu: Httu::Access, ..smmuv3::Options::everything() };
    let (smmu, ..) = start(options);
    assert!(matches!(Domain::new(&smmu, Stage::One, true), Err(Error::Unsupported(_))));
}

#[test]
fn pages_far_apart_go_with_one_sync() {
    for options in smmus() {
        let (smmu, model, _) = start(options);
        for stage in stages(&smmu) {
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
            let domain = Domain::new(&smmu, stage, false).unwrap();
            stream.attach(Attachment::Paging(domain.clone())).unwrap();
            let top = 1 << (domain.geometry().input_bits() - 1);
            for at in [0x1_0000, 0x1000_0000, top] {
                map(&domain, at..at + 0x1_0000, 0x1_0000, RW);
                assert_eq!(device.read(at), Some(0x1_0000));
            }
            for at in [0x1_0000, top] {
                domain.unmap(at..at + 0x1_0000).unwrap();
            }
            domain.sync().unwrap();
            assert_eq!(
                [0x1_0000, 0x1000_0000, top].map(|at| device.read(at)),
                [None, Some(0x1_0000), None]
            );
        }
    }
}

/// The table that held a page goes with the page; what the SMMU remembers of it must not hide the table after it.
#[test]
fn what_is_mapped_is_reached_at_once() {
    for options in smmus() {
        let (smmu, model, _) = start(options);
        for stage in stages(&smmu) {
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, plain(0)).unwrap();
            let domain = Domain::new(&smmu, stage, false).unwrap();
            stream.attach(Attachment::Paging(domain.clone())).unwrap();
            for n in 0..16 {
                let at = n << 16;
                map(&domain, at..at + 0x1_0000, 0x100_0000 + at, RW);
                assert_eq!(device.read(at), Some(0x100_0000 + at));
                domain.unmap(at..at + 0x1_0000).unwrap();
            }
        }
    }
}
