//! The driver under the IOMMU core: what devices reach as their groups are claimed, attached, replaced and released.

mod common;

use std::sync::Arc;
use std::time::Duration;

use arm_smmu_v3::{DeviceOptions, Driver, Options, Prot, Smmu};
use common::{Bus, Model, Ram, machine};
use iommu::{
    Attachment, Capability, Device, Domain, Error, Group, MapError, OwnerId, PagingDomain,
    PagingFlags, ReservedKind, ReservedRegion, Target,
};
use smmuv3::wire::Register;
use smmuv3::{Refused, Requester, Transaction};

const ME: OwnerId = OwnerId(1);
const RW: Prot = Prot::READ.union(Prot::WRITE).union(Prot::CACHE);
const ANY: u64 = 1 << 63;

struct Machine {
    bus: Bus,
    ram: Arc<Ram>,
    driver: Arc<Driver<Bus, Arc<Ram>>>,
    group: Arc<Group>,
    port: Requester<Arc<Ram>>,
}

impl Machine {
    fn new(options: smmuv3::Options, timeout: Duration) -> Self {
        let (bus, ram) = machine(options);
        let smmu = Smmu::new(bus.clone(), ram.clone(), Options { timeout }).unwrap();
        let model: &Model = &bus.model;
        let port = model.requester();
        Self { driver: Driver::new(&smmu), group: Group::new(), port, bus, ram }
    }

    fn device(&self, stream_id: u32, pasid_bits: u8) -> Arc<Device> {
        let options = DeviceOptions { pasid_bits, ..DeviceOptions::default() };
        self.driver.add_device("device", stream_id, options, &self.group).unwrap()
    }

    fn read(&mut self, transaction: &Transaction) -> Option<u64> {
        match self.port.begin().translate(transaction) {
            Ok(translation) => Some(translation.address),
            Err(Refused::Abort) => None,
            Err(other) => panic!("{other}"),
        }
    }
}

fn on(domain: &Arc<dyn PagingDomain>) -> Attachment {
    Attachment { domain: Domain::Paging(domain.clone()), faults: None }
}

fn paging(device: &Device, flags: PagingFlags, output: u64) -> Arc<dyn PagingDomain> {
    let domain = device.driver().alloc_paging(device, flags, None).unwrap();
    domain.map(0x10_0000, output, 0x1_0000, RW, ANY).unwrap();
    domain
}

const LONG: Duration = Duration::from_mins(10);

#[test]
fn a_group_of_two_devices_lives_its_life() {
    let mut m = Machine::new(smmuv3::Options::everything(), LONG);
    let (a, b) = (m.device(0x10, 0), m.device(0x1000, 0));
    let at = 0x10_0000;
    let both = |m: &mut Machine| [0x10, 0x1000].map(|sid| m.read(&Transaction::read(sid, at)));
    assert_eq!(both(&mut m), [Some(at); 2], "the kernel's own: identity");
    let group = m.group.clone();
    group.claim(ME).unwrap();
    assert_eq!(both(&mut m), [None; 2]);
    let first = paging(&a, PagingFlags::empty(), 1 << 30);
    let second = paging(&b, PagingFlags::NEST_PARENT, 2 << 30);
    group.attach(Target::Rid, on(&first)).unwrap();
    assert_eq!(both(&mut m), [Some(1 << 30); 2]);
    group.replace(Target::Rid, on(&second)).unwrap();
    assert_eq!(both(&mut m), [Some(2 << 30); 2]);
    second.unmap(at, 0x1_0000);
    second.sync();
    assert_eq!(both(&mut m), [None; 2]);
    group.detach(Target::Rid);
    assert_eq!(both(&mut m), [None; 2]);
    group.release(ME);
    assert_eq!(both(&mut m), [Some(at); 2]);

    let ram = m.ram.clone();
    drop((a, b, first, second, group, m));
    assert_eq!(ram.allocations(), 0);
}

#[test]
fn a_domain_is_refused_where_it_cannot_serve() {
    let mut m = Machine::new(smmuv3::Options::everything(), LONG);
    let device = m.device(1, 8);
    let group = m.group.clone();
    group.claim(ME).unwrap();
    let own = paging(&device, PagingFlags::PASID, 1 << 30);
    group.attach(Target::Rid, on(&own)).unwrap();
    group.attach(Target::Pasid(9), on(&own)).unwrap();
    let at = Transaction::read(1, 0x10_0000);
    assert_eq!(m.read(&at.with_substream(9)), Some(1 << 30));

    let other = Machine::new(smmuv3::Options::everything(), LONG);
    let foreign = paging(&other.device(1, 0), PagingFlags::empty(), 0);
    let parent = paging(&device, PagingFlags::NEST_PARENT, 0);
    for refused in [foreign, parent] {
        let error = group.replace(Target::Rid, on(&refused)).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Incompatible(_)), "{error}");
        assert_eq!(m.read(&at), Some(1 << 30), "stays where it is");
    }
    assert!(group.attach(Target::Pasid(256), on(&own)).is_err());
    let taken =
        m.driver.add_device("other", 1, DeviceOptions::default(), &group).map(|_| ()).unwrap_err();
    assert_eq!(taken, arm_smmu_v3::Error::StreamInUse(1));
    group.detach(Target::Pasid(9));
    assert_eq!(m.read(&at.with_substream(9)), None);
}

#[test]
fn what_the_hardware_is_can_be_read() {
    let m = Machine::new(smmuv3::Options::linux_host(), LONG);
    let device = m.device(1, 8);
    let info = device.driver().hw_info(&device, 0).unwrap();
    let word = |n: usize| u32::from_ne_bytes(info.data[4 * n..4 * n + 4].try_into().unwrap());
    assert_eq!((info.data_type, info.data.len()), (2, 40));
    let read = |register: Register| m.bus.model.read32(register.offset().into());
    assert_eq!([word(0), word(1)], [0, 0]);
    assert_eq!([word(2), word(3)], [read(Register::Idr0), read(Register::Idr1)]);
    assert_eq!([word(7), word(9)], [read(Register::Idr5), read(Register::Aidr)]);
    assert!(device.driver().hw_info(&device, 1).is_err());
    assert_eq!(device.driver().pasids(&device).max, 256);
    assert!(device.driver().capable(&device, Capability::DirtyTracking));
    assert!(!device.driver().capable(&device, Capability::PciAts));
}

#[test]
fn the_core_maps_and_tracks_through_its_traits() {
    let mut m = Machine::new(smmuv3::Options::everything(), LONG);
    let device = m.device(1, 0);
    m.group.claim(ME).unwrap();
    let flags = PagingFlags::DIRTY_TRACKING;
    let domain = device.driver().alloc_paging(&device, flags, None).unwrap();
    m.group.attach(Target::Rid, on(&domain)).unwrap();
    assert_eq!(domain.geometry().aperture, 0..=(1 << 48) - 1);
    assert_eq!(domain.geometry().min_page(), 0x1000);
    domain.map(0x1000, 0x10_0000, 0x3000, RW, 0x1000).unwrap();
    let map = |iova, pa, len| domain.map(iova, pa, len, RW, ANY);
    assert_eq!(map(0x3000, 0, 0x2000), Err(MapError::Overlap));
    for (iova, pa, len) in
        [(0x800, 0, 0x1000), (0x8000, 0, 0), (!0xfff, 0, 0x2000), (1 << 48, 0, 0x1000)]
    {
        assert_eq!(map(iova, pa, len), Err(MapError::Invalid));
    }
    assert_eq!(domain.iova_to_phys(0x2010), Some(0x10_1010));
    let dirty = domain.dirty().unwrap();
    dirty.set_enabled(true).unwrap();
    assert!(m.read(&Transaction::write(1, 0x2000)).is_some());
    let mut seen = Vec::new();
    for keep in [true, false, false] {
        dirty.read_and_clear(0, 1 << 48, keep, &mut |iova, len| seen.push((iova, len)));
    }
    assert_eq!(seen, [(0x2000, 0x1000), (0x2000, 0x1000)]);
    dirty.read_and_clear(!0, !0, false, &mut |_, _| panic!("beyond the aperture"));
}

#[test]
fn rather_no_dma_than_dma_to_what_was_unmapped() {
    let mut m = Machine::new(smmuv3::Options::everything(), Duration::from_millis(1));
    let device = m.device(1, 0);
    m.group.claim(ME).unwrap();
    let domain = paging(&device, PagingFlags::empty(), 1 << 30);
    m.group.attach(Target::Rid, on(&domain)).unwrap();
    let at = Transaction::read(1, 0x10_0000);
    assert_eq!(m.read(&at), Some(1 << 30));
    m.ram.fail_reads_after(0);
    domain.unmap(0x10_0000, 0x1_0000);
    domain.sync();
    assert_eq!(m.read(&at), None);
    assert_eq!(m.bus.model.read32(Register::Cr0.offset().into()), 0, "out of service");
    // For good, and without waiting for it any more.
    m.group.detach(Target::Rid);
    m.group.attach(Target::Rid, on(&domain)).unwrap();
    assert_eq!(m.read(&Transaction::read(2, 0x10_0000)), None);
    let ram = m.ram.clone();
    drop((device, domain, m));
    assert_eq!(ram.allocations(), 0, "nothing is in use");
}

#[test]
fn what_cannot_be_unmapped_alone_is_not_left_mapped_in_silence() {
    let mut m = Machine::new(smmuv3::Options::everything(), LONG);
    let device = m.device(1, 0);
    m.group.claim(ME).unwrap();
    let domain = device.driver().alloc_paging(&device, PagingFlags::empty(), None).unwrap();
    domain.map(0x20_0000, 0x4000_0000, 0x20_0000, RW, ANY).unwrap();
    m.group.attach(Target::Rid, on(&domain)).unwrap();
    // Nothing is there, or can be.
    for (iova, len) in [(0, 0x1000), (0x40_0000, 0), (1 << 48, 0x1000), (!0xfff, 0x2000)] {
        domain.unmap(iova, len);
    }
    let at = Transaction::read(1, 0x20_1000);
    assert_eq!(m.read(&at), Some(0x4000_1000));
    // A part of a block.
    domain.unmap(0x20_1000, 0x1000);
    assert_eq!(m.read(&at), None);
}

#[test]
fn every_device_has_a_window_for_doorbells() {
    let m = Machine::new(smmuv3::Options::everything(), LONG);
    let regions = |stream_id, reserved: Vec<ReservedRegion>| {
        let options = DeviceOptions { reserved, ..DeviceOptions::default() };
        let group = Group::new();
        let device = m.driver.add_device("device", stream_id, options, &group).unwrap();
        device.driver().reserved_regions(&device)
    };
    let window = ReservedRegion { range: 0x800_0000..=0x80f_ffff, kind: ReservedKind::SwMsi };
    assert_eq!(regions(1, vec![]), vec![window.clone()]);
    let firmware = ReservedRegion { range: 0..=0xfff, kind: ReservedKind::DirectRelaxable };
    assert_eq!(regions(2, vec![firmware.clone()]), vec![firmware, window]);
    // Another place, or one that is not translated: there is no second.
    for kind in [ReservedKind::SwMsi, ReservedKind::Msi] {
        let own = ReservedRegion { range: 0x1000_0000..=0x1000_ffff, kind };
        assert_eq!(regions(3, vec![own.clone()]), vec![own]);
    }
}

/// What a doorbell is mapped with: an access through either stage is one to a device.
#[test]
fn a_doorbell_is_device_memory() {
    for flags in [PagingFlags::empty(), PagingFlags::NEST_PARENT] {
        let mut m = Machine::new(smmuv3::Options::everything(), LONG);
        let device = m.device(1, 0);
        m.group.claim(ME).unwrap();
        let domain = device.driver().alloc_paging(&device, flags, None).unwrap();
        let write = Prot::WRITE | Prot::READ;
        domain.map(0x800_0000, 0x5000_0000, 0x1000, write | Prot::MMIO, ANY).unwrap();
        domain.map(0x10_0000, 0x6000_0000, 0x1000, write | Prot::CACHE, ANY).unwrap();
        m.group.attach(Target::Rid, on(&domain)).unwrap();
        let mut memory = |at| {
            let transaction = Transaction::write(1, at);
            let translation = m.port.begin().translate(&transaction).unwrap();
            (translation.address, translation.attributes.memory)
        };
        // Device-nGnRE, and write-back.
        assert_eq!(memory(0x800_0040), (0x5000_0040, 0x04));
        assert_eq!(memory(0x10_0000), (0x6000_0000, 0xff));
    }
}
