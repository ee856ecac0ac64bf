//! A host with the driver under the IOMMU core, and guests: their memory, their tables in it, and what a VMM does for
//! them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arm_smmu_v3::{DeviceOptions, Driver, Options, Prot, Smmu};
use iommu::{
    Attachment, Device, Domain, Error, EventSink, Group, NestedDomain, OwnerId, PagingDomain,
    PagingFlags, Target, UserArray, UserData, Viommu, ViommuHost,
};
use pagetable::{Gather, Geometry, Granule, Mapper, OutOfMemory, Stage1Attributes, TableMemory};
use smmuv3::wire::{Cd, Command, Ste};
use smmuv3::{AtcCompletion, AtcInvalidate, Refused, Requester, Transaction};

use crate::common::{Bus, Ram, wired_machine};

pub const ME: OwnerId = OwnerId(1);
pub const RW: Prot = Prot::READ.union(Prot::WRITE).union(Prot::CACHE);
/// Mappings with leaves of any size.
pub const ANY: u64 = 1 << 63;

pub struct Host {
    pub bus: Bus,
    pub ram: Arc<Ram>,
    pub driver: Arc<Driver<Bus, Arc<Ram>>>,
    pub port: Requester<Arc<Ram>>,
}

impl Host {
    pub fn new(options: smmuv3::Options) -> Self {
        Self::with(options, ())
    }

    pub fn with(options: smmuv3::Options, devices: impl smmuv3::Devices + 'static) -> Self {
        Self::wired(options, (), devices)
    }

    pub fn wired(
        options: smmuv3::Options,
        wires: impl smmuv3::Interrupts + 'static,
        devices: impl smmuv3::Devices + 'static,
    ) -> Self {
        let (bus, ram) = wired_machine(options, wires, devices);
        let timeout = Options { timeout: Duration::from_mins(10) };
        let smmu = Smmu::new(bus.clone(), ram.clone(), timeout).unwrap();
        Self { driver: Driver::new(&smmu), port: bus.model.requester(), bus, ram }
    }

    /// A device in a group of its own, which is claimed.
    pub fn device(&self, stream_id: u32, options: DeviceOptions) -> Arc<Device> {
        let group = Group::new();
        let name = format!("device {stream_id}");
        let device = self.driver.add_device(name, stream_id, options, &group).unwrap();
        group.claim(ME).unwrap();
        device
    }

    pub fn go(&mut self, transaction: &Transaction) -> Option<u64> {
        match self.port.begin().translate(transaction) {
            Ok(translation) => Some(translation.address),
            Err(Refused::Abort) => None,
            Err(other) => panic!("{other}"),
        }
    }

    pub fn read(&mut self, stream_id: u32, address: u64) -> Option<u64> {
        self.go(&Transaction::read(stream_id, address))
    }
}

/// Attaches, or moves to another domain.
pub fn attach(device: &Device, domain: Domain) -> Result<(), Error> {
    let attachment = Attachment { domain, faults: None };
    let group = device.group();
    if group.attached(Target::Rid).is_some() {
        group.replace(Target::Rid, attachment).map(drop)
    } else {
        group.attach(Target::Rid, attachment)
    }
}

/// Keeps what is reported.
#[derive(Default)]
pub struct Events(pub Mutex<Vec<(u32, Vec<u8>)>>);

impl EventSink for Events {
    fn report(&self, event_type: u32, data: &[u8]) -> Result<(), Error> {
        self.0.lock().unwrap().push((event_type, data.to_vec()));
        Ok(())
    }
}

/// The guest's memory, by IPA: `SIZE` bytes from `IPA` on, which are at `pa`.
pub struct GuestRam {
    ram: Arc<Ram>,
    pub pa: u64,
    next: AtomicU64,
}

pub const IPA: u64 = 0x4000_0000;
pub const SIZE: u64 = 0x4_0000;

impl GuestRam {
    pub fn words(&self, ipa: u64, count: usize) -> Option<&[AtomicU64]> {
        let inside = ipa.checked_sub(IPA)? + 8 * count as u64 <= SIZE;
        inside.then(|| self.ram.table(self.pa + (ipa - IPA), count))?
    }

    /// Aligned memory of the guest's, of zeroes.
    pub fn alloc(&self, size_log2: u8) -> u64 {
        let size = 1u64 << size_log2;
        let round = |at: u64| Some(at.next_multiple_of(size) + size);
        let at = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, round).unwrap();
        let ipa = at.next_multiple_of(size);
        let words = self.words(ipa, 1 << (size_log2 - 3)).expect("the guest has more memory");
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        ipa
    }

    pub fn write(&self, ipa: u64, words: &[u64]) {
        for (to, word) in self.words(ipa, words.len()).unwrap().iter().zip(words) {
            to.store(word.to_le(), Ordering::Release);
        }
    }
}

impl TableMemory for GuestRam {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        tables.extend((0..count).map(|_| self.alloc(size_log2)));
        Ok(())
    }
    fn free(&self, _: u8, _: &[u64]) {}
    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        self.words(address, entries)
    }
}

/// A VM: its memory behind a stage 2, and its vIOMMU.
pub struct Guest {
    pub ram: Arc<GuestRam>,
    pub parent: Arc<dyn PagingDomain>,
    pub viommu: Arc<dyn Viommu>,
    pub events: Arc<Events>,
}

impl Guest {
    /// Guest 0 or 1, on the SMMU of that device.
    pub fn new(host: &Host, device: &Device, n: u64) -> Self {
        let driver = device.driver();
        let parent = driver.alloc_paging(device, PagingFlags::NEST_PARENT, None).unwrap();
        let pa = 0x8_0000 + n * SIZE;
        parent.map(IPA, pa, SIZE, RW, ANY).unwrap();
        let events = Arc::new(Events::default());
        let viommu = make_viommu(device, &parent, events.clone()).unwrap();
        let ram = Arc::new(GuestRam { ram: host.ram.clone(), pa, next: AtomicU64::new(IPA) });
        Self { ram, parent, viommu, events }
    }

    pub fn nested(&self, device: &Device, ste: Ste) -> Result<Domain, Error> {
        let bytes: Vec<u8> = ste.0[..2].iter().flat_map(|word| word.to_le_bytes()).collect();
        let nested: Arc<dyn NestedDomain> = self.viommu.alloc_nested(device, &data(2, &bytes))?;
        Ok(Domain::Nested(nested))
    }

    /// The guest's STE for a CD at that address.
    pub fn ste(cds: u64) -> Ste {
        Ste::default().with_v(true).with_config(0b101).with_s1_context_ptr(cds)
    }

    pub fn run(&self, commands: &[Command]) -> (u32, Result<(), Error>) {
        let raw: Vec<_> = commands.iter().map(Command::encode).collect();
        self.run_raw(&raw)
    }

    pub fn run_raw(&self, commands: &[[u64; 2]]) -> (u32, Result<(), Error>) {
        let bytes: Vec<u8> =
            commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        let read = |offset: u64, buf: &mut [u8]| {
            let at = offset as usize;
            let from = bytes.get(at..at + buf.len()).ok_or(host::Fault { va: offset })?;
            buf.copy_from_slice(from);
            Ok(())
        };
        self.viommu.invalidate(&UserArray::new(1, 16, commands.len() as u32, &read))
    }

    pub fn all(&self, commands: &[Command]) {
        assert_eq!(self.run(commands), (commands.len() as u32, Ok(())));
    }
}

pub fn make_viommu(
    device: &Device,
    parent: &Arc<dyn PagingDomain>,
    events: Arc<dyn EventSink>,
) -> Result<Arc<dyn Viommu>, Error> {
    let host = ViommuHost { add_mmap: &mut |_| unreachable!(), events };
    device.driver().alloc_viommu(device, 1, parent, None, host).map(|(viommu, _)| viommu)
}

pub fn data(data_type: u32, bytes: &[u8]) -> UserData {
    UserData::new(data_type, bytes.len(), |buf| {
        buf.copy_from_slice(bytes);
        Ok(())
    })
}

/// An address space that the guest made: its tables are in its memory.
pub struct Space {
    mapper: Mapper<Arc<GuestRam>>,
    gather: Gather,
    asid: u16,
}

impl Space {
    pub fn new(ram: &Arc<GuestRam>, asid: u16) -> Self {
        let geometry = Geometry::stage1(Granule::K4, 39, 48, false).unwrap();
        let mapper = Mapper::new(geometry, ram.clone()).unwrap();
        Self { mapper, gather: Gather::default(), asid }
    }

    pub fn map(&mut self, range: Range<u64>, ipa: u64) {
        self.mapper.map(range, ipa, Stage1Attributes::DMA.into(), 1 << 12).unwrap();
    }

    /// What is cached of it stays.
    pub fn unmap(&mut self, range: Range<u64>) {
        self.mapper.unmap(range, &mut self.gather).unwrap();
    }

    pub fn cd(&self) -> Cd {
        let cd = Cd::default().with_v(true).with_aa64(true).with_r(true).with_a(true);
        let cd = cd.with_t0sz(25).with_ir0(1).with_or0(1).with_sh0(3).with_epd1(true);
        let cd = cd.with_ips(5).with_ttb0(self.mapper.table().base()).with_mair(0xff);
        cd.with_aset(true).with_asid(self.asid)
    }
}

/// Remembers what devices are asked to forget; device `deaf` does not answer.
#[derive(Default)]
pub struct Atcs {
    pub asked: Mutex<Vec<AtcInvalidate>>,
    pub deaf: Mutex<Option<u32>>,
}

impl smmuv3::Devices for Atcs {
    fn atc_invalidate(&self, _: u64, request: AtcInvalidate) -> AtcCompletion {
        self.asked.lock().unwrap().push(request);
        let deaf = *self.deaf.lock().unwrap() == Some(request.stream_id);
        if deaf { AtcCompletion::Timeout } else { AtcCompletion::Done }
    }
}
