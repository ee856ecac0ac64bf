//! Translations without the access: hits and misses.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use benches::{Goal, Race, Random, Report};
use smmu::SMMU;
use smmu::types::{
    AccessType, IOVA, PA, PASID, PagePermissions, SecurityState, StreamConfig, StreamID,
};
use smmuv3::vm_memory::GuestRam;
use smmuv3::wire::{Cd, Ste};
use smmuv3::{Memory, Transaction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::{Machine, PAGE, Ram, STRTAB, Stages};

const COUNT: u64 = 1 << 16;
const TARGET: u64 = 0x800_0000;

/// A direct-mapped table of 16-byte entries: what a hit cannot do without.
struct Direct(Vec<(AtomicU64, AtomicU64)>);

impl Direct {
    fn new(pages: u64) -> Self {
        let entry = |n: u64| (AtomicU64::new(n), AtomicU64::new(TARGET + n * PAGE));
        Self((0..pages).map(entry).collect())
    }

    #[inline]
    fn lookup(&self, address: u64) -> Option<u64> {
        let page = address >> 12;
        let (tag, data) = &self.0[page as usize & (self.0.len() - 1)];
        let before = tag.load(Ordering::Acquire);
        let data = data.load(Ordering::Acquire);
        (before == page && tag.load(Ordering::Relaxed) == page).then_some(data | address & 0xfff)
    }
}

fn ours(stages: Stages, pages: u64) -> Machine<Ram> {
    let ram = TARGET + pages * PAGE;
    Machine::new(Ram::new(ram), ram, stages, pages, TARGET)
}

/// The crate `smmu` with the same pages.
fn peer(pages: u64) -> (SMMU, StreamID, PASID) {
    let smmu = SMMU::new();
    let stream = StreamID::new(1).expect("a stream");
    let pasid = PASID::new(0).expect("a PASID");
    let config =
        StreamConfig { translation_enabled: true, stage1_enabled: true, ..StreamConfig::default() };
    smmu.configure_stream(stream, config).expect("a stream");
    smmu.create_pasid(stream, pasid).expect("a PASID");
    for n in 0..pages {
        smmu.map_page(
            stream,
            pasid,
            IOVA::new(n * PAGE).expect("an IOVA"),
            PA::new(TARGET + n * PAGE).expect("a PA"),
            PagePermissions::read_write(),
            SecurityState::NonSecure,
        )
        .expect("a mapping");
    }
    (smmu, stream, pasid)
}

/// Addresses that look random, at the price of a multiplication each.
fn addresses(pages: u64, mut each: impl FnMut(u64)) {
    let mut random = Random::new(1);
    for _ in 0..COUNT {
        each(random.below(pages) << 12 | 0x123);
    }
}

pub(crate) fn hits(report: &mut Report) {
    for pages in [64, 4096] {
        let direct = Direct::new(pages);
        let single = ours(Stages::One, pages);
        let nested = ours(Stages::Both, pages);
        let (smmu, stream, pasid) = peer(pages);
        let requesters = [&single, &nested].map(|machine| RefCell::new(machine.smmu.requester()));
        let [one, both] = &requesters;

        let mut race = Race::new(format!("translation, hit, {pages} pages"), COUNT);
        race.enter("direct-mapped array", || {
            addresses(pages, |a| {
                black_box(direct.lookup(a));
            });
        });
        race.enter("stage 1", || {
            let mut requester = one.borrow_mut();
            let mut transfer = requester.begin();
            addresses(pages, |a| {
                black_box(transfer.translate(&Transaction::read(1, a)).map_or(0, |to| to.address));
            });
        });
        race.enter("both stages", || {
            let mut requester = both.borrow_mut();
            let mut transfer = requester.begin();
            addresses(pages, |a| {
                black_box(transfer.translate(&Transaction::read(1, a)).map_or(0, |to| to.address));
            });
        });
        race.enter("stage 1, a transfer each", || {
            let mut requester = one.borrow_mut();
            addresses(pages, |a| {
                black_box(
                    requester
                        .begin()
                        .translate(&Transaction::read(1, a))
                        .map_or(0, |to| to.address),
                );
            });
        });
        race.enter("smmu 1.2.5", || {
            addresses(pages, |a| {
                let iova = IOVA::new(a).expect("an IOVA");
                black_box(
                    smmu.translate(stream, pasid, iova, AccessType::Read)
                        .map_or(0, |to| to.physical_address().as_u64()),
                );
            });
        });
        race.goal("stage 1", Goal::Within("direct-mapped array", 3.0));
        race.goal("stage 1", Goal::FasterThan("smmu 1.2.5", 3.5));
        race.goal("both stages", Goal::Within("stage 1", 1.05));
        race.goal("stage 1, a transfer each", Goal::FasterThan("smmu 1.2.5", 3.5));
        report.run(race);
    }
}

#[inline]
fn raw(ram: &Ram, root: u64, address: u64) -> Option<u64> {
    let mut table = root;
    for shift in [39, 30, 21] {
        let descriptor = ram.load(table + ((address >> shift) & 511) * 8).ok()?;
        if descriptor & 3 != 3 {
            return None;
        }
        table = descriptor & 0xffff_ffff_f000;
    }
    let descriptor = ram.load(table + ((address >> 12) & 511) * 8).ok()?;
    (descriptor & 3 == 3).then_some(descriptor & 0xffff_ffff_f000 | address & 0xfff)
}

#[inline]
fn raw_nested(ram: &Ram, roots: [u64; 2], address: u64) -> Option<u64> {
    let mut table = roots[0];
    for shift in [39, 30, 21, 12] {
        let slot = raw(ram, roots[1], table + ((address >> shift) & 511) * 8)?;
        let descriptor = ram.load(slot).ok()?;
        if descriptor & 3 != 3 {
            return None;
        }
        table = descriptor & 0xffff_ffff_f000;
    }
    raw(ram, roots[1], table | address & 0xfff)
}

pub(crate) fn misses(report: &mut Report) {
    let pages = 65_536;
    let single = ours(Stages::One, pages);
    let nested = ours(Stages::Both, pages);
    let requesters = [&single, &nested].map(|machine| RefCell::new(machine.smmu.requester()));
    let [one, both] = &requesters;
    let mut race = Race::new(format!("translation, miss, {pages} pages"), COUNT);
    race.enter("raw walk, 4 loads", || {
        addresses(pages, |a| {
            black_box(raw(single.smmu.memory(), single.roots[0], a));
        });
    });
    race.enter("stage 1", || {
        let mut requester = one.borrow_mut();
        let mut transfer = requester.begin();
        addresses(pages, |a| {
            black_box(transfer.translate(&Transaction::read(1, a)).map_or(0, |to| to.address));
        });
    });
    race.enter("raw nested walk, 24 loads", || {
        addresses(pages, |a| {
            black_box(raw_nested(nested.smmu.memory(), nested.roots, a));
        });
    });
    race.enter("both stages", || {
        let mut requester = both.borrow_mut();
        let mut transfer = requester.begin();
        addresses(pages, |a| {
            black_box(transfer.translate(&Transaction::read(1, a)).map_or(0, |to| to.address));
        });
    });
    race.goal("stage 1", Goal::Within("raw walk, 4 loads", 3.0));
    race.goal("both stages", Goal::Within("raw nested walk, 24 loads", 0.5));
    report.run(race);
}

/// What a VMM without caches does for each access: STE, CD and four descriptors from guest memory.
fn reread(ram: &GuestMemoryMmap, root: u64, address: u64) -> Option<u64> {
    let ste: [u64; 8] = ram.read_obj(GuestAddress(STRTAB + 64)).ok()?;
    let cd: [u64; 8] = ram.read_obj(GuestAddress(Ste(ste).s1_context_ptr())).ok()?;
    if !Ste(ste).v() || !Cd(cd).v() || Cd(cd).ttb0() != root {
        return None;
    }
    let mut table = Cd(cd).ttb0();
    for shift in [39, 30, 21, 12] {
        let at = GuestAddress(table + ((address >> shift) & 511) * 8);
        let descriptor: u64 = ram.read_obj(at).ok()?;
        if descriptor & 3 != 3 {
            return None;
        }
        table = descriptor & 0xffff_ffff_f000;
    }
    Some(table | address & 0xfff)
}

pub(crate) fn misses_in_guest_memory(report: &mut Report) {
    let pages = 65_536;
    let ram = TARGET + pages * PAGE;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), ram as usize)]).expect("RAM");
    let machine = Machine::new(GuestRam(memory.clone()), ram, Stages::One, pages, TARGET);
    let requester = RefCell::new(machine.smmu.requester());
    let mut race = Race::new(format!("translation in GuestMemoryMmap, miss, {pages} pages"), COUNT);
    race.enter("stage 1", || {
        let mut requester = requester.borrow_mut();
        addresses(pages, |a| {
            black_box(
                requester.begin().translate(&Transaction::read(1, a)).map_or(0, |to| to.address),
            );
        });
    });
    race.enter("STE, CD and tables each time", || {
        addresses(pages, |a| {
            black_box(reread(&memory, machine.roots[0], a));
        });
    });
    race.goal("stage 1", Goal::FasterThan("STE, CD and tables each time", 8.0));
    report.run(race);
}
