//! The SMMUv3 model against version 1.8.0 of the crate `smmu`, with that SMMU enabled.

#[path = "../../../benches/smmuv3/machine.rs"]
mod machine;

use std::cell::RefCell;
use std::hint::black_box;

use benches::{Goal, Race, Random, Report};
use machine::{Machine, PAGE, Ram, Stages};
use smmu::SMMU;
use smmu::types::{
    AccessType, CommandEntry, CommandType, IOVA, PA, PASID, PagePermissions, SecurityState,
    StreamConfig, StreamID,
};
use smmuv3::Transaction;
use smmuv3::wire::{Command, TlbiVa};

const COUNT: u64 = 1 << 14;
const TARGET: u64 = 0x800_0000;

fn ours(pages: u64) -> Machine<Ram> {
    let ram = TARGET + pages * PAGE;
    Machine::new(Ram::new(ram), ram, Stages::One, pages, TARGET)
}

fn peer(pages: u64) -> (SMMU, StreamID, PASID) {
    let smmu = SMMU::new();
    let stream = StreamID::new(1).expect("a stream");
    let pasid = PASID::new(0).expect("a PASID");
    let mut config = StreamConfig::default();
    config.translation_enabled = true;
    config.stage1_enabled = true;
    smmu.configure_stream(stream, config).expect("a stream");
    smmu.create_pasid(stream, pasid).expect("a PASID");
    for n in 0..pages {
        let (from, to) =
            (IOVA::new(n * PAGE).expect("an IOVA"), PA::new(TARGET + n * PAGE).expect("a PA"));
        smmu.map_page(
            stream,
            pasid,
            from,
            to,
            PagePermissions::read_write(),
            SecurityState::NonSecure,
        )
        .expect("a mapping");
    }
    smmu.enable().expect("nothing forbids it");
    (smmu, stream, pasid)
}

fn addresses(pages: u64, mut each: impl FnMut(u64)) {
    let mut random = Random::new(1);
    for _ in 0..COUNT {
        each(random.below(pages) << 12 | 0x123);
    }
}

fn main() {
    let mut report = Report::new("smmuv3 against smmu 1.8.0", 9);
    let machine = ours(64);
    let requester = RefCell::new(machine.smmu.requester());
    let (smmu, stream, pasid) = peer(64);
    let mut race = Race::new("translation, hit, 64 pages", COUNT);
    race.enter("stage 1, a transfer each", || {
        let mut requester = requester.borrow_mut();
        addresses(64, |a| {
            black_box(
                requester.begin().translate(&Transaction::read(1, a)).map_or(0, |to| to.address),
            );
        });
    });
    race.enter("smmu 1.8.0", || {
        addresses(64, |a| {
            let iova = IOVA::new(a).expect("an IOVA");
            black_box(smmu.translate(
                stream,
                pasid,
                iova,
                AccessType::Read,
                SecurityState::NonSecure,
            ))
            .ok();
        });
    });
    race.goal("stage 1, a transfer each", Goal::FasterThan("smmu 1.8.0", 15.0));
    report.run(race);

    let machine = RefCell::new(ours(1000));
    let (smmu, stream, pasid) = peer(1000);
    {
        let mut requester = machine.borrow().smmu.requester();
        let mut transfer = requester.begin();
        for page in 0..1000 {
            transfer.translate(&Transaction::read(1, page * PAGE)).expect("mapped");
            let iova = IOVA::new(page * PAGE).expect("an IOVA");
            smmu.translate(stream, pasid, iova, AccessType::Read, SecurityState::NonSecure)
                .expect("mapped");
        }
    }
    let batch: Vec<Command> = (0..64)
        .map(|page| {
            Command::TlbiNhVa(TlbiVa {
                vmid: 1,
                asid: 7,
                address: page * PAGE,
                leaf: true,
                ..TlbiVa::default()
            })
        })
        .collect();
    let mut race = Race::new("TLBI by VA through the Command queue", 64);
    race.enter("by VA", || machine.borrow_mut().command(&batch));
    race.enter("smmu 1.8.0", || {
        for page in 0..64 {
            let mut command = CommandEntry::new(CommandType::TlbiNhVa, 1, 0);
            command.start_address = page * PAGE;
            command.end_address = page * PAGE;
            smmu.submit_command(command).expect("room");
            smmu.process_command_queue().expect("a legal command");
        }
    });
    race.goal("by VA", Goal::FasterThan("smmu 1.8.0", 100.0));
    report.run(race);
    report.finish();
}
