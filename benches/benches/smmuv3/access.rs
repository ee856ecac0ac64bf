//! DMA through the SMMU, to the last byte.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::RwLock;

use benches::{Goal, Race, Random, Report};
use smmuv3::Transaction;
use smmuv3::vm_memory::GuestRam;
use vm_memory::iommu::{Iommu, IommuMemory, Iotlb, IotlbIterator};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Permissions};

use crate::machine::{Machine, PAGE, Stages};

const TARGET: u64 = 0x800_0000;
const PAGES: u64 = 1024;
const RAM: u64 = TARGET + 2 * PAGES * PAGE;
const COUNT: u64 = 1 << 14;

/// `vm-memory`'s own IOTLB, filled with a thousand pages of which no two join.
#[derive(Debug)]
struct Filled(RwLock<Iotlb>);

impl Iommu for Filled {
    type IotlbGuard<'a> = std::sync::RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, vm_memory::iommu::Error> {
        Ok(Iotlb::lookup(self.0.read().expect("no panic"), iova, length, access)
            .expect("it is mapped"))
    }
}

fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("RAM")
}

/// Offsets of accesses of `size` bytes that look random.
fn offsets(size: u64, mut each: impl FnMut(u64)) {
    let mut random = Random::new(3);
    for _ in 0..COUNT {
        each(random.below(PAGES - size.div_ceil(PAGE)) << 12 | if size < PAGE { 0x40 } else { 0 });
    }
}

pub(crate) fn reads(report: &mut Report) {
    let ours = Machine::new(GuestRam(ram()), RAM, Stages::One, PAGES, TARGET);
    let requester = RefCell::new(ours.smmu.requester());
    let plain = ours.smmu.memory().0.clone();
    let mut iotlb = Iotlb::new();
    for page in 0..PAGES {
        let (from, to) =
            (GuestAddress(page * PAGE), GuestAddress(TARGET + (page * 7 % PAGES) * PAGE));
        iotlb.set_mapping(from, to, PAGE as usize, Permissions::ReadWrite).expect("a mapping");
    }
    let peer = IommuMemory::new(plain.clone(), Filled(RwLock::new(iotlb)), true, ());
    let flat = vec![1u8; (PAGES * PAGE) as usize];

    for size in [64usize, 4096, 65_536] {
        let buffers = std::array::from_fn::<_, 4, _>(|_| RefCell::new(vec![0u8; size]));
        let [one, two, three, four] = &buffers;
        let mut race = Race::new(format!("DMA read of {size} bytes"), COUNT);
        race.enter("memcpy", || {
            let mut data = one.borrow_mut();
            offsets(size as u64, |at| {
                data.copy_from_slice(&flat[at as usize..at as usize + size]);
                black_box(&mut *data);
            });
        });
        race.enter("GuestMemoryMmap", || {
            let mut data = two.borrow_mut();
            offsets(size as u64, |at| {
                plain.read_slice(&mut data, GuestAddress(TARGET + at)).expect("RAM");
                black_box(&mut *data);
            });
        });
        race.enter("through the SMMU", || {
            let mut data = three.borrow_mut();
            let mut requester = requester.borrow_mut();
            offsets(size as u64, |at| {
                requester.begin().read(&Transaction::read(1, at), &mut data).expect("mapped");
                black_box(&mut *data);
            });
        });
        race.enter("IommuMemory, 1024 entries", || {
            let mut data = four.borrow_mut();
            offsets(size as u64, |at| {
                peer.read_slice(&mut data, GuestAddress(at)).expect("mapped");
                black_box(&mut *data);
            });
        });
        match size {
            64 => {
                race.goal("through the SMMU", Goal::Within("GuestMemoryMmap", 1.0));
                race.goal("through the SMMU", Goal::FasterThan("IommuMemory, 1024 entries", 8.0));
            }
            65_536 => {
                race.goal("through the SMMU", Goal::Within("memcpy", 1.05));
            }
            _ => {
                race.goal("through the SMMU", Goal::Compared("GuestMemoryMmap"));
            }
        }
        report.run(race);
    }
}
