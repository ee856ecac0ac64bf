//! A device's reads, and the host's changes to stage 2.

use std::cell::RefCell;
use std::hint::black_box;

use benches::{Goal, Race, Random, Report};
use iommu::Prot;
use platform::{Access, Place};

use crate::vm::{Guest, IOVA, IPA, Machine, PAGE, PAGES};

const COUNT: u64 = 1 << 14;

fn offsets(size: u64, mut each: impl FnMut(u64)) {
    let mut random = Random::new(5);
    for _ in 0..COUNT {
        each(random.below(PAGES - size.div_ceil(PAGE)) << 12 | if size < PAGE { 0x40 } else { 0 });
    }
}

pub(crate) fn reads(report: &mut Report) {
    let machine = Machine::new();
    let mut guest = Guest::new(&machine, 8..9);
    let mut port = guest.ports.remove(0);
    let (_device, mut direct) =
        machine.platform.add_device("direct", &Place::Direct).expect("a device");
    for (size, goal) in [(64usize, 1.4), (65_536, 1.05)] {
        // The same for both: where it lies decides some percent of a copy.
        let buffer = RefCell::new(vec![0u8; size]);
        let mut race = Race::new(format!("nested DMA read of {size} bytes"), COUNT);
        race.enter("without an IOMMU", || {
            let mut data = buffer.borrow_mut();
            offsets(size as u64, |at| {
                direct.read(Access::at(guest.physical(at)), &mut data).expect("memory");
                black_box(&mut *data);
            });
        });
        race.enter("both stages", || {
            let mut data = buffer.borrow_mut();
            offsets(size as u64, |at| {
                port.read(Access::at(IOVA + at), &mut data).expect("a mapping");
                black_box(&mut *data);
            });
        });
        race.goal("both stages", Goal::Within("without an IOMMU", goal));
        report.run(race);
    }
}

/// Memory that comes and goes in stage 2, with nested domains over it.
pub(crate) fn stage_2(report: &mut Report) {
    const LEN: u64 = 2 << 20;
    const TIMES: u64 = 64;
    let machine = Machine::new();
    let [one, many] = [8..9, 64..128].map(|streams| Guest::new(&machine, streams));
    let change = |guest: &Guest| {
        let at = IPA + (1 << 30);
        let prot = Prot::READ | Prot::WRITE | Prot::CACHE;
        for _ in 0..TIMES {
            guest.parent.map(at, guest.pa, LEN, prot, PAGE).expect("a mapping");
            guest.parent.unmap(at, LEN);
            guest.parent.sync();
        }
    };
    let mut race = Race::new("stage 2: map, unmap, sync 512 pages", TIMES);
    race.enter("1 nested domain", || change(&one));
    race.enter("64 nested domains", || change(&many));
    race.goal("64 nested domains", Goal::Within("1 nested domain", 1.1));
    report.run(race);
}
