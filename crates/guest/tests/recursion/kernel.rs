//! L1's kernel: our driver on what L0 shows it, and as much of an iommufd as a VMM of L1 needs. Memory is pinned and
//! counted by nobody; the rest is what the ioctls come down to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use arm_smmu_v3::{DeviceOptions, Driver, HostFaults, Options, Prot};
use guest::GuestRam;
use iommu::{
    Attachment, Domain, Driver as _, EventSink, Group, NestedDomain, OwnerId, PagingDomain,
    PagingFlags, Target, UserArray, UserData, Viommu, ViommuHost,
};
use smmuv3::Smmu;
use smmuv3_iommufd::{Device, Host, HwInfo, InvalidateError};

/// `linux/iommufd.h`: the numbers of what is an SMMUv3's.
const HW_INFO: u32 = 2;
const HWPT_DATA: u32 = 2;
const VIOMMU: u32 = 1;
const INVALIDATE_DATA: u32 = 1;

type Registers = Arc<Smmu<Arc<GuestRam>>>;

/// See the module.
pub(crate) struct Kernel {
    driver: Arc<Driver<Registers, Arc<GuestRam>>>,
    device: Arc<iommu::Device>,
    /// The memory that L1's VMM has put into its IOAS: addresses there, and L1's physical ones.
    ioas: (Range<u64>, u64),
    objects: Mutex<BTreeMap<u32, Object>>,
    next: AtomicU32,
}

enum Object {
    Parent(Arc<dyn PagingDomain>),
    Viommu(Arc<dyn Viommu>, Option<OwnedFd>),
    Nested(Arc<dyn NestedDomain>),
    Vdevice(Arc<dyn Viommu>, u32),
    EventQueue,
}

/// A vEVENTQ: `struct iommufd_vevent_header` before each record.
struct Events(UnixDatagram, AtomicU32);

impl EventSink for Events {
    fn report(&self, _: u32, data: &[u8]) -> Result<(), iommu::Error> {
        let sequence = self.1.fetch_add(1, Ordering::Relaxed);
        let record = [&0u32.to_ne_bytes(), &sequence.to_ne_bytes(), data].concat();
        self.0.send(&record).map(|_| ()).map_err(|_| iommu::Error::NoMemory)
    }
}

fn failed(error: iommu::Error) -> io::Error {
    // Those that the vSMMU tells apart.
    let errno = match error {
        iommu::Error::Io(_) => libc::EIO,
        iommu::Error::NoMemory => libc::ENOMEM,
        _ => libc::EINVAL,
    };
    io::Error::from_raw_os_error(errno)
}

impl Kernel {
    /// Boots on L0's SMMU, and finds the device that L1 is to pass on.
    pub(crate) fn boot(
        smmu: &Registers,
        ram: &Arc<GuestRam>,
        stream_id: u32,
        ioas: (Range<u64>, u64),
    ) -> Arc<Self> {
        let smmu = arm_smmu_v3::Smmu::new(smmu.clone(), ram.clone(), Options::default()).unwrap();
        let (driver, group) = (Driver::new(&smmu), Group::new());
        let options = DeviceOptions::default();
        let device = driver.add_device("device", stream_id, options, &group).unwrap();
        group.claim(OwnerId(1)).unwrap();
        let (objects, next) = (Mutex::default(), AtomicU32::new(1));
        Arc::new(Self { driver, device, ioas, objects, next })
    }

    /// What the interrupt handler does, and what it has to say that is nobody else's business.
    pub(crate) fn interrupt(&self) -> HostFaults {
        while self.driver.handle_events() {}
        self.driver.host_faults()
    }

    /// `IOMMU_IOAS_UNMAP` of all, as far as the domains are concerned.
    pub(crate) fn unmap_all(&self) {
        for object in self.objects.lock().unwrap().values() {
            if let Object::Parent(domain) = object {
                domain.unmap(self.ioas.0.start, self.ioas.0.end - self.ioas.0.start);
                domain.sync();
            }
        }
    }

    pub(crate) fn map_all(&self) {
        for object in self.objects.lock().unwrap().values() {
            if let Object::Parent(domain) = object {
                self.fill(&**domain);
            }
        }
    }

    fn fill(&self, domain: &dyn PagingDomain) {
        let ((range, pa), prot) = (&self.ioas, Prot::READ | Prot::WRITE | Prot::CACHE);
        domain.map(range.start, *pa, range.end - range.start, prot, 1 << 21).unwrap();
    }

    fn add(&self, object: Object) -> u32 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.objects.lock().unwrap().insert(id, object);
        id
    }

    fn get<T>(&self, id: u32, get: impl FnOnce(&mut Object) -> Option<T>) -> io::Result<T> {
        let mut objects = self.objects.lock().unwrap();
        objects.get_mut(&id).and_then(get).ok_or(io::ErrorKind::NotFound.into())
    }

    fn viommu_of(&self, id: u32) -> io::Result<Arc<dyn Viommu>> {
        self.get(id, |object| match object {
            Object::Viommu(viommu, _) => Some(viommu.clone()),
            _ => None,
        })
    }
}

impl Host for Kernel {
    fn hw_info(&self, _: u32) -> io::Result<HwInfo> {
        let data = self.driver.hw_info(&self.device, HW_INFO).map_err(failed)?.data;
        let words: Vec<u32> = data.as_chunks().0.iter().map(|w| u32::from_ne_bytes(*w)).collect();
        let idr = std::array::from_fn(|n| words[2 + n]);
        Ok(HwInfo { flags: words[0], idr, iidr: words[8], aidr: words[9] })
    }

    fn nest_parent(&self, _: u32, _: u32) -> io::Result<u32> {
        let flags = PagingFlags::NEST_PARENT;
        let domain = self.driver.alloc_paging(&self.device, flags, None).map_err(failed)?;
        self.fill(&*domain);
        Ok(self.add(Object::Parent(domain)))
    }

    fn viommu(&self, _: u32, parent: u32) -> io::Result<u32> {
        let parent = self.get(parent, |object| match object {
            Object::Parent(domain) => Some(domain.clone()),
            _ => None,
        })?;
        let (theirs, ours) = UnixDatagram::pair()?;
        theirs.set_nonblocking(true)?;
        let host = ViommuHost {
            add_mmap: &mut |_| Err(iommu::Error::Unsupported("mmap")),
            events: Arc::new(Events(ours, AtomicU32::new(0))),
        };
        let viommu = self.driver.alloc_viommu(&self.device, VIOMMU, &parent, None, host);
        Ok(self.add(Object::Viommu(viommu.map_err(failed)?.0, Some(theirs.into()))))
    }

    fn nested(&self, _: u32, viommu: u32, ste: [u64; 2], _: Option<u32>) -> io::Result<u32> {
        let bytes: Vec<u8> = ste.iter().flat_map(|word| word.to_le_bytes()).collect();
        let data = UserData::new(HWPT_DATA, bytes.len(), |to| {
            to.copy_from_slice(&bytes);
            Ok(())
        });
        let viommu = self.viommu_of(viommu)?;
        Ok(self.add(Object::Nested(viommu.alloc_nested(&self.device, &data).map_err(failed)?)))
    }

    fn vdevice(&self, viommu: u32, _: u32, stream_id: u32) -> io::Result<u32> {
        let viommu = self.viommu_of(viommu)?;
        viommu.add_device(&self.device, stream_id.into()).map_err(failed)?;
        Ok(self.add(Object::Vdevice(viommu, stream_id)))
    }

    fn event_queue(&self, viommu: u32, _: u32) -> io::Result<(u32, File)> {
        let queue = self.get(viommu, |object| match object {
            Object::Viommu(_, queue) => queue.take(),
            _ => None,
        })?;
        Ok((self.add(Object::EventQueue), queue.into()))
    }

    fn fault_queue(&self) -> io::Result<(u32, File)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn invalidate(&self, viommu: u32, commands: &[[u64; 2]]) -> Result<(), InvalidateError> {
        let viommu = self.viommu_of(viommu).map_err(|error| InvalidateError { done: 0, error })?;
        let bytes: Vec<u8> =
            commands.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        let read = |offset: u64, to: &mut [u8]| {
            let from = offset as usize;
            to.copy_from_slice(&bytes[from..from + to.len()]);
            Ok(())
        };
        let array = UserArray::new(INVALIDATE_DATA, 16, commands.len() as u32, &read);
        let (done, result) = viommu.invalidate(&array);
        result.map_err(|error| InvalidateError { done: done as usize, error: failed(error) })
    }

    fn destroy(&self, object: u32) -> io::Result<()> {
        let object = self.objects.lock().unwrap().remove(&object);
        if let Some(Object::Vdevice(viommu, stream_id)) = &object {
            viommu.remove_device((*stream_id).into());
        }
        object.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }
}

/// The device in the hands of L1's VMM.
pub(crate) struct Passed(pub(crate) Arc<Kernel>);

impl Device for Passed {
    fn id(&self) -> u32 {
        0
    }

    fn attach(&self, page_table: u32) -> io::Result<()> {
        let domain = self.0.get(page_table, |object| match object {
            Object::Parent(domain) => Some(Domain::Paging(domain.clone())),
            Object::Nested(domain) => Some(Domain::Nested(domain.clone())),
            _ => None,
        })?;
        let (group, attachment) = (self.0.device.group(), Attachment { domain, faults: None });
        match group.attached(Target::Rid) {
            Some(_) => group.replace(Target::Rid, attachment).map(|_| ()),
            None => group.attach(Target::Rid, attachment),
        }
        .map_err(failed)
    }

    fn detach(&self) -> io::Result<()> {
        self.0.device.group().detach(Target::Rid);
        Ok(())
    }
}
