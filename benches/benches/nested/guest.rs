//! A guest that maps, unmaps and invalidates: its vSMMU in software, and accelerated.

use std::sync::Arc;

use benches::{Goal, Race, Report};
use guest::{Guest, GuestRam, GuestStream, Vmm};
use smmuv3::{Options, Smmu};

const PAGES: u64 = 256;
const IOVA: u64 = 0x100_0000;

type Registers = Arc<Smmu<Arc<GuestRam>>>;

/// Maps and unmaps `PAGES` pages, and waits for the SMMU after each `batch` of them.
fn cycle(stream: &GuestStream<Registers>, pages: &[u64], batch: usize) {
    for (chunk, iova) in pages.chunks(batch).zip((IOVA..).step_by(batch * 4096)) {
        for (page, iova) in chunk.iter().zip((iova..).step_by(4096)) {
            stream.map(iova, *page).expect("a mapping");
        }
        for iova in (iova..).step_by(4096).take(chunk.len()) {
            stream.unmap_lazily(iova).expect("a mapping");
        }
        stream.domain().sync().expect("an SMMU that answers");
    }
}

pub(crate) fn cycles(report: &mut Report) {
    softiommu::install(softiommu::Machine {
        grant: vec![softiommu::Grant::IpcLock],
        ..softiommu::Machine::default()
    })
    .expect("a machine");
    let ram = GuestRam::new(0x4000_0000, 64 << 20).expect("guest memory");
    let pages: Vec<_> = (0..PAGES).map(|_| ram.page().expect("a page")).collect();
    let vmm = Vmm::new(&ram).expect("a VM");
    let device = vmm.open_device("/dev/vfio/devices/vfio0").expect("a device");
    // Without range invalidation: a command for each page.
    let options = Options { ril: false, ..Options::mmu600() };
    let vsmmu = vmm.vsmmu(options, &device, 0x10).expect("a vSMMU");
    let software = Smmu::new(vsmmu.smmu().options().clone(), ram.clone(), (), ()).expect("an SMMU");
    let guests =
        [software, vsmmu.smmu().clone()].map(|smmu| Guest::boot(smmu, &ram).expect("boots"));
    let streams = guests.each_ref().map(|guest| guest.stream(0x10).expect("a stream"));
    for batch in [1, 16, 256] {
        let mut race =
            Race::new(format!("guest: map, unmap, invalidate, {batch} a CMD_SYNC"), PAGES);
        race.enter("software vSMMU", || cycle(&streams[0], &pages, batch));
        race.enter("accelerated vSMMU", || cycle(&streams[1], &pages, batch));
        race.goal("accelerated vSMMU", Goal::Compared("software vSMMU"));
        report.run(race);
    }
}
