//! A machine, and guests on it whose devices translate through both stages.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use host_linux::Host;
use iommu::{
    Attachment, Device, Domain, Driver, EventSink, Group, OwnerId, PagingDomain, PagingFlags, Prot,
    Target, UserData, Viommu, ViommuHost,
};
use platform::{DeviceOptions, Place, Platform, Port, Smmu};
use rustix::fs::{MemfdFlags, SealFlags};

pub(crate) const PAGE: u64 = 4096;
/// Guest memory, and where its tables are in it.
pub(crate) const IPA: u64 = 0x4000_0000;
pub(crate) const RAM: u64 = 16 << 20;
const CD: u64 = 0x1000;
const TABLES: u64 = 0x10_0000;
/// What the device reads.
pub(crate) const IOVA: u64 = 0x1000_0000;
pub(crate) const PAGES: u64 = 1024;
const DATA: u64 = 8 << 20;

const HWPT_DATA_ARM_SMMUV3: u32 = 2;
const VIOMMU_TYPE_ARM_SMMUV3: u32 = 1;

struct Nobody;

impl EventSink for Nobody {
    fn report(&self, _: u32, _: &[u8]) -> Result<(), iommu::Error> {
        Ok(())
    }
}

pub(crate) struct Machine {
    pub(crate) host: Arc<Host>,
    pub(crate) platform: Platform,
    pub(crate) smmu: Arc<Smmu>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let host = Host::new().expect("a host");
        let spawn = |_: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::spawn(run);
            Ok(())
        };
        let platform = Platform::new(host.phys().clone(), Arc::new(spawn)).expect("a machine");
        let options =
            smmuv3::Options { sid_bits: 16, oas: 48, ds: false, ..smmuv3::Options::linux_host() };
        let smmu = platform.add_smmu("smmu", options).expect("an SMMU");
        Self { host, platform, smmu }
    }

    pub(crate) fn device(&self, stream_id: u32) -> (Arc<Device>, Port) {
        let (group, options) = (Group::new(), DeviceOptions::default());
        let place = Place::Smmu { smmu: &self.smmu, stream_id, options, group: &group };
        self.platform.add_device("device", &place).expect("a device")
    }

    /// Memory as a VMM has it: its physical address.
    pub(crate) fn memory(&self) -> (OwnedFd, u64) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("guest", flags).expect("a memfd");
        rustix::fs::ftruncate(&fd, RAM).expect("memory");
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).expect("a seal");
        let mut runs = Vec::new();
        let file = self.host.memory_file(fd.try_clone().expect("a descriptor"));
        file.pin(0, RAM, &mut |run| runs.push(run)).expect("pinned memory");
        assert_eq!(runs.len(), 1, "it is contiguous");
        (fd, runs[0].pa)
    }
}

/// A guest with any number of devices, which share a stage 1.
pub(crate) struct Guest {
    pub(crate) parent: Arc<dyn PagingDomain>,
    pub(crate) pa: u64,
    pub(crate) ports: Vec<Port>,
    _devices: Vec<Arc<Device>>,
    _viommu: Arc<dyn Viommu>,
    _ram: OwnedFd,
}

impl Guest {
    pub(crate) fn new(machine: &Machine, streams: std::ops::Range<u32>) -> Self {
        let (ram, pa) = machine.memory();
        write_tables(machine, pa);
        let (devices, ports): (Vec<_>, Vec<_>) = streams.map(|id| machine.device(id)).unzip();
        let first = &devices[0];
        let driver: &Arc<dyn Driver> = first.driver();
        let parent = driver.alloc_paging(first, PagingFlags::NEST_PARENT, None).expect("a stage 2");
        let prot = Prot::READ | Prot::WRITE | Prot::CACHE;
        parent.map(IPA, pa, RAM, prot, 1 << 30).expect("a mapping");
        let host = ViommuHost {
            add_mmap: &mut |_| Err(iommu::Error::Unsupported("mmap")),
            events: Arc::new(Nobody),
        };
        let (viommu, _) = driver
            .alloc_viommu(first, VIOMMU_TYPE_ARM_SMMUV3, &parent, None, host)
            .expect("a vIOMMU");
        let ste: [u64; 2] = [1 | 0b101 << 1 | (IPA + CD), 0b01 << 2 | 0b01 << 4 | 0b11 << 6];
        for (n, device) in devices.iter().enumerate() {
            device.group().claim(OwnerId(1)).expect("a claim");
            viommu.add_device(device, n as u64).expect("a vDEVICE");
            let data = UserData::new(HWPT_DATA_ARM_SMMUV3, 16, |bytes| {
                bytes.copy_from_slice(&ste.map(u64::to_le_bytes).concat());
                Ok(())
            });
            let nested = viommu.alloc_nested(device, &data).expect("a nested domain");
            let attachment = Attachment { domain: Domain::Nested(nested), faults: None };
            device.group().attach(Target::Rid, attachment).expect("an attachment");
        }
        Self { parent, pa, ports, _devices: devices, _viommu: viommu, _ram: ram }
    }

    /// The physical address of what the device reads at an offset from `IOVA`.
    pub(crate) fn physical(&self, offset: u64) -> u64 {
        self.pa + DATA + offset
    }
}

/// A CD, and a stage 1 of four levels that maps `PAGES` pages at `IOVA`.
fn write_tables(machine: &Machine, pa: u64) {
    let word = |at: u64, value: u64| {
        machine.host.phys().write(pa + at, &value.to_le_bytes()).expect("guest memory");
    };
    let t0sz = 64 - 48;
    let walks = 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
    let flags = 1 << 30 | 1 << 31 | 0b101 << 32 | 1 << 41 | 0b111 << 45;
    word(CD, t0sz | walks | flags | 1 << 48);
    word(CD + 8, IPA + TABLES);
    word(CD + 24, 0xff);
    let page = 0b11 | 1 << 6 | 0b11 << 8 | 1 << 10 | 1 << 11;
    word(TABLES, (IPA + TABLES + PAGE) | 0b11);
    word(TABLES + PAGE, (IPA + TABLES + 2 * PAGE) | 0b11);
    for table in 0..PAGES.div_ceil(512) {
        let at = TABLES + 2 * PAGE + 8 * ((IOVA >> 21) + table);
        word(at, (IPA + TABLES + (3 + table) * PAGE) | 0b11);
    }
    for n in 0..PAGES {
        word(TABLES + 3 * PAGE + 8 * n, (IPA + DATA + n * PAGE) | page);
    }
}
