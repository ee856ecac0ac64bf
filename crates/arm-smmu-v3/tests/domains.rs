//! Domains: what a device may do after each change, and while it happens.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arm_smmu_v3::{Attachment, Domain, Error, Options, Prot, Smmu, Stage, Stream};
use common::{Bus, Model, Ram, machine};
use proptest::prelude::*;
use smmuv3::{Httu, Refused, Requester, Transaction};

type Driver = Arc<Smmu<Bus, Arc<Ram>>>;
type Paging = Arc<Domain<Bus, Arc<Ram>>>;

const RW: Prot = Prot::READ.union(Prot::WRITE).union(Prot::CACHE);
const SID: u32 = 5;

fn start(options: smmuv3::Options) -> (Driver, Model, Arc<Ram>) {
    let (bus, ram) = machine(options);
    let timeout = Options { timeout: Duration::from_mins(10) };
    let smmu = Smmu::new(bus.clone(), ram.clone(), timeout).unwrap();
    (smmu, bus.model, ram)
}

/// SMMUs that differ in what matters here.
fn smmus() -> Vec<smmuv3::Options> {
    let everything = smmuv3::Options::everything();
    let only_16k = smmuv3::Options { gran4k: false, gran64k: false, ..smmuv3::Options::mmu600() };
    let only_64k =
        smmuv3::Options { gran4k: false, gran16k: false, ds: false, ..everything.clone() };
    vec![
        everything.clone(),
        smmuv3::Options::mmu600(),
        smmuv3::Options::linux_host(),
        only_16k,
        only_64k,
        smmuv3::Options {
            stage1: false,
            ssid_bits: 0,
            asid16: false,
            cd2l: false,
            hyp: false,
            had: false,
            ..smmuv3::Options::mmu600()
        },
        smmuv3::Options { oas: 40, va52: false, ds: false, ..everything },
        smmuv3::Options::minimal(),
    ]
}

fn stages(smmu: &Driver) -> Vec<Stage> {
    let both = [(smmu.features().stage1, Stage::One), (smmu.features().stage2, Stage::Two)];
    both.into_iter().filter(|(is_there, _)| *is_there).map(|(_, stage)| stage).collect()
}

struct Device(Requester<Arc<Ram>>);

impl Device {
    fn new(model: &Model) -> Self {
        Self(model.requester())
    }
    fn go(&mut self, transaction: &Transaction) -> Option<u64> {
        match self.0.begin().translate(transaction) {
            Ok(translation) => Some(translation.address),
            Err(Refused::Abort) => None,
            Err(other) => panic!("{other}"),
        }
    }
    fn read(&mut self, address: u64) -> Option<u64> {
        self.go(&Transaction::read(SID, address))
    }
    fn write(&mut self, address: u64) -> Option<u64> {
        self.go(&Transaction::write(SID, address))
    }
    fn pasid(&mut self, pasid: u32, address: u64) -> Option<u64> {
        self.go(&Transaction::read(SID, address).with_substream(pasid))
    }
}

fn map(domain: &Paging, range: Range<u64>, output: u64, prot: Prot) {
    domain.map(range, output, prot, domain.geometry().page_sizes()).unwrap();
}

/// A domain in which `at` is mapped to `output`.
fn with_page(smmu: &Driver, stage: Stage, at: u64, output: u64) -> Paging {
    let domain = Domain::new(smmu, stage, false).unwrap();
    map(&domain, at..at + 0x1_0000, output, RW);
    domain
}

#[test]
fn a_device_reaches_what_is_mapped_as_it_is_mapped_and_no_longer() {
    for options in smmus() {
        let (smmu, model, ram) = start(options);
        let before = ram.allocations();
        for stage in stages(&smmu) {
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, 0).unwrap();
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
            let stream = Stream::new(&smmu, SID, 0).unwrap();
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
            let stream = Stream::new(&smmu, SID, 0).unwrap();
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
    let stream = Stream::new(&smmu, SID, 0).unwrap();
    // More domains than there are ASIDs, one after another.
    for n in 0..600u64 {
        let domain = with_page(&smmu, Stage::One, 0x1_0000, (n + 1) << 16);
        stream.attach(Attachment::Paging(domain)).unwrap();
        assert_eq!(device.read(0x1_0000), Some((n + 1) << 16));
    }
    let (smmu, model, _) = start(smmuv3::Options::everything());
    let mut device = Device::new(&model);
    let stream = Stream::new(&smmu, SID, 0).unwrap();
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
        let stream = Stream::new(&smmu, SID, 0).unwrap();
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
fn pasids_have_domains_of_their_own() {
    // One linear table; two levels; a linear table because there can be no other.
    let no_levels = smmuv3::Options { cd2l: false, ..smmuv3::Options::everything() };
    for (options, bits) in
        [(smmuv3::Options::everything(), 4), (smmuv3::Options::everything(), 20), (no_levels, 10)]
    {
        let (smmu, model, ram) = start(options);
        let mut device = Device::new(&model);
        let stream = Stream::new(&smmu, SID, bits).unwrap();
        let at = 0x1_0000;
        let domains: Vec<_> = (1..6).map(|n| with_page(&smmu, Stage::One, at, n << 20)).collect();
        let last = (1 << bits) - 1;
        for (pasid, n) in [(1, 0), (7, 1), (last, 2)] {
            stream.attach_pasid(pasid, &domains[n]).unwrap();
        }
        let mut seen = |transactions: &[u32]| -> Vec<Option<u64>> {
            let mut all = vec![device.read(at)];
            all.extend(transactions.iter().map(|&pasid| device.pasid(pasid, at)));
            all.into_iter().map(|address| address.map(|address| address >> 20)).collect()
        };
        assert_eq!(seen(&[1, 7, last, 2]), [None, Some(1), Some(2), Some(3), None]);
        stream.attach(Attachment::Identity).unwrap();
        assert_eq!(seen(&[1, 7, last]), [Some(0), Some(1), Some(2), Some(3)]);
        stream.attach(Attachment::Paging(domains[3].clone())).unwrap();
        assert_eq!(seen(&[1, 7, last]), [Some(4), Some(1), Some(2), Some(3)]);
        stream.attach_pasid(7, &domains[4]).unwrap();
        stream.detach_pasid(1).unwrap();
        assert_eq!(seen(&[1, 7, last]), [Some(4), None, Some(5), Some(3)]);
        stream.attach(Attachment::Blocked).unwrap();
        assert_eq!(seen(&[1, 7, last]), [None, None, Some(5), Some(3)]);

        let second = smmu.features().stage2.then(|| Domain::new(&smmu, Stage::Two, false).unwrap());
        let second = second.unwrap();
        let refused = stream.attach(Attachment::Paging(second.clone())).unwrap_err();
        assert!(matches!(refused, Error::Unsupported(_)));
        assert!(matches!(stream.attach_pasid(2, &second), Err(Error::Unsupported(_))));
        for pasid in [0, last + 1, u32::MAX] {
            let refused = stream.attach_pasid(pasid, &domains[0]);
            assert!(matches!(refused, Err(Error::Unsupported(_))));
        }
        assert_eq!(seen(&[1, 7, last]), [None, None, Some(5), Some(3)], "nothing changed");
        stream.detach_pasid(7).unwrap();
        stream.detach_pasid(last).unwrap();
        stream.attach(Attachment::Paging(second)).unwrap();
        assert_eq!(seen(&[7]), [None, None]);
        drop((stream, domains, smmu));
        assert_eq!(ram.allocations(), 0, "{:x?}", ram.in_use());
    }
}

#[test]
fn a_stream_has_one_owner_and_must_exist() {
    let (smmu, ..) = start(smmuv3::Options::minimal());
    let stream = Stream::new(&smmu, 63, 0).unwrap();
    let taken = Stream::new(&smmu, 63, 0).map(|_| ()).unwrap_err();
    assert_eq!(taken, Error::StreamInUse(63));
    drop(stream);
    assert!(Stream::new(&smmu, 63, 0).is_ok());
    for sid in [64, u32::MAX] {
        let none = Stream::new(&smmu, sid, 0).map(|_| ()).unwrap_err();
        assert_eq!(none, Error::StreamId(sid));
    }
    assert!(matches!(Stream::new(&smmu, 1, 1), Err(Error::Unsupported(_))));

    let (other, ..) = start(smmuv3::Options::minimal());
    let foreign = Domain::new(&other, Stage::One, false).unwrap();
    let stream = Stream::new(&smmu, 1, 0).unwrap();
    let refused = stream.attach(Attachment::Paging(foreign)).unwrap_err();
    assert!(matches!(refused, Error::Unsupported(_)));
}

#[test]
fn streams_far_apart_are_apart() {
    let (smmu, model, _) = start(smmuv3::Options::everything());
    let sids = [0, 1, 255, 256, 0x1234, 0x1ff_ffff];
    let streams: Vec<_> = sids.map(|sid| Stream::new(&smmu, sid, 0).unwrap()).into();
    let mut device = Device::new(&model);
    for (n, stream) in streams.iter().enumerate() {
        let domain = with_page(&smmu, Stage::One, 0x1_0000, (n as u64 + 1) << 20);
        stream.attach(Attachment::Paging(domain)).unwrap();
    }
    for (n, sid) in sids.into_iter().enumerate() {
        let seen = device.go(&Transaction::read(sid, 0x1_0000));
        assert_eq!(seen, Some((n as u64 + 1) << 20));
    }
    let others: BTreeSet<_> = [2, 254, 257, 0x1235, 0x200_0000].into();
    for sid in others {
        assert_eq!(device.go(&Transaction::read(sid, 0x1_0000)), None);
    }
}

/// Each replacement is a change between two transactions.
#[test]
fn transactions_see_the_old_attachment_or_the_new_one() {
    for bits in [0, 4, 20] {
        // It remembers one stream at a time, so that configuration is read anew all the time.
        let options = smmuv3::Options { contexts_log2: 0, ..smmuv3::Options::everything() };
        let (smmu, model, ram) = start(options);
        let stream = Stream::new(&smmu, SID, bits).unwrap();
        let at = 0x1_0000;
        let page = |n: u64| with_page(&smmu, Stage::One, at, n << 20);
        let second = |n: u64| with_page(&smmu, Stage::Two, at, n << 20);
        let attachments = [
            (Attachment::Blocked, None),
            (Attachment::Identity, Some(at)),
            (Attachment::Paging(page(1)), Some(1 << 20)),
            (Attachment::Paging(page(2)), Some(2 << 20)),
            (Attachment::Paging(second(3)), Some(3 << 20)),
            (Attachment::Paging(second(4)), Some(4 << 20)),
        ];
        // A stage 2 cannot be beside PASIDs.
        let attachments = if bits > 0 { &attachments[..4] } else { &attachments };
        let (pasid, bystander) = (3, 5);
        let pasids = [page(8), page(9)];
        if bits > 0 {
            stream.attach_pasid(bystander, &page(7)).unwrap();
            stream.attach_pasid(pasid, &pasids[0]).unwrap();
        }
        ram.slow.store(true, Ordering::Relaxed);
        // The attachment before and after, and those of the PASID.
        let change = AtomicU64::new(0);
        let (stop, checked) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let dma = scope.spawn(|| {
                let mut device = Device::new(&model);
                while !stop.load(Ordering::Acquire) {
                    device.go(&Transaction::read(SID + 1, at));
                    let before = change.load(Ordering::SeqCst);
                    let (seen, other, third) = match checked.load(Ordering::Relaxed) % 3 {
                        0 => (Some(device.read(at)), None, None),
                        1 => (None, Some(device.pasid(pasid, at)), None),
                        _ => (None, None, Some(device.pasid(bystander, at))),
                    };
                    if change.load(Ordering::SeqCst) != before {
                        continue;
                    }
                    let [from, to, old, new, ..] = before.to_le_bytes().map(usize::from);
                    if let Some(seen) = seen {
                        let expected = [attachments[from].1, attachments[to].1];
                        assert!(expected.contains(&seen), "{seen:x?} from {from} to {to}");
                    }
                    if bits > 0 {
                        let expected = [old as u64 + 8, new as u64 + 8].map(|n| n << 20);
                        let as_expected = |seen: u64| expected.contains(&seen);
                        assert!(other.is_none_or(|seen| seen.is_some_and(as_expected)));
                        assert!(third.is_none_or(|seen| seen == Some(7 << 20)), "{third:x?}");
                    }
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            });
            let (mut from, mut old, mut round) = (0, 0, 0);
            while !dma.is_finished() && (round < 300 || checked.load(Ordering::Relaxed) < 2000) {
                let to = if round % 2 == 0 { round / 12 } else { round / 2 } % attachments.len();
                let new = round / 3 % 2;
                let state = |from: usize, to: usize, old: usize, new: usize| {
                    let bytes = [from as u8, to as u8, old as u8, new as u8, 0, 0, 0, 0];
                    change.store(u64::from_le_bytes(bytes), Ordering::SeqCst);
                };
                state(from, to, old, new);
                (0..round % 7).for_each(|_| std::thread::yield_now());
                stream.attach(attachments[to].0.clone()).unwrap();
                if bits > 0 {
                    stream.attach_pasid(pasid, &pasids[new]).unwrap();
                }
                state(to, to, new, new);
                (from, old, round) = (to, new, round + 1);
            }
            stop.store(true, Ordering::Release);
        });
    }
}

#[test]
fn pages_far_apart_go_with_one_sync() {
    for options in smmus() {
        let (smmu, model, _) = start(options);
        for stage in stages(&smmu) {
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, 0).unwrap();
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

/// The Command queue fails in the middle of things: nothing that hardware may use goes away, and all is well later.
#[test]
fn a_failure_of_the_command_queue_is_survived() {
    for bits in [0, 4, 20] {
        for fails_after in 0..4 {
            let (smmu, model, ram) = start(smmuv3::Options::everything());
            let mut device = Device::new(&model);
            let stream = Stream::new(&smmu, SID, bits).unwrap();
            let at = 0x1_0000;
            let page = |n: u64| with_page(&smmu, Stage::One, at, n << 20);
            stream.attach(Attachment::Paging(page(1))).unwrap();
            if bits > 0 {
                stream.attach_pasid(3, &page(2)).unwrap();
            }
            ram.fail_reads_after(2 * fails_after);
            let result = stream.attach(Attachment::Paging(page(4)));
            let pasid = (bits > 0).then(|| stream.attach_pasid(3, &page(5)));
            let detached = stream.attach(Attachment::Blocked);
            // Whatever happened, what is reached is a page of a domain that is there.
            let reached = device.read(at);
            assert!([None, Some(1 << 20), Some(4 << 20)].contains(&reached), "{reached:x?}");
            ram.fail_reads_after(u64::MAX);

            let again = Domain::new(&smmu, Stage::One, false).unwrap();
            map(&again, at..at + 0x1_0000, 6 << 20, RW);
            stream.attach(Attachment::Paging(again)).unwrap();
            assert_eq!(device.read(at), Some(6 << 20));
            if let Some(pasid) = pasid {
                let expected = if pasid.is_ok() { 5 << 20 } else { 2 << 20 };
                assert_eq!(device.pasid(3, at), Some(expected));
            }
            if fails_after == 0 {
                assert!(matches!(result, Err(Error::Commands(_))) && detached.is_err());
            }
            drop((stream, smmu));
            assert_eq!(ram.allocations(), 0, "{:x?}", ram.in_use());
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
            let stream = Stream::new(&smmu, SID, 0).unwrap();
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

#[test]
fn streams_change_side_by_side() {
    let (smmu, model, ram) = start(smmuv3::Options::everything());
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (smmu, model) = (&smmu, &model);
            scope.spawn(move || {
                let sid = 40 + thread as u32;
                let stream = Stream::new(smmu, sid, 0).unwrap();
                let mut device = Device::new(model);
                for round in 0..100 {
                    let at = 0x1_0000;
                    let output = (thread + 1) << 32 | (round + 1) << 20;
                    let (attachment, expected) = match (round + thread) % 4 {
                        0 => (Attachment::Blocked, None),
                        1 => (Attachment::Identity, Some(at)),
                        2 => (
                            Attachment::Paging(with_page(smmu, Stage::One, at, output)),
                            Some(output),
                        ),
                        _ => (
                            Attachment::Paging(with_page(smmu, Stage::Two, at, output)),
                            Some(output),
                        ),
                    };
                    stream.attach(attachment).unwrap();
                    assert_eq!(device.go(&Transaction::read(sid, at)), expected);
                }
            });
        }
    });
    drop(smmu);
    assert_eq!(ram.allocations(), 0);
}
