use std::any::Any;
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::sync::Arc;

use host::{Fault, PhysAllocation};
use uapi::Plain;

use crate::{Device, Domain, Error, NestedDomain, PageRequest, PageResponse, PagingDomain};

/// What a driver states that its hardware does for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// DMA is cache coherent; without it user space cannot use the device.
    CacheCoherency,
    /// DMA can be forced to snoop.
    EnforceCacheCoherency,
    /// Paging domains can track dirty pages.
    DirtyTracking,
    /// The device's translation requests (ATS) are honoured.
    PciAts,
}

/// The part of a device's traffic that a domain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Requests without a PASID.
    Rid,
    /// Requests with this PASID.
    Pasid(u32),
}

bitflags::bitflags! {
    /// What a paging domain must be fit for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct PagingFlags: u32 {
        /// To be the stage 2 of nested domains.
        const NEST_PARENT = 1 << 0;
        /// Only devices whose dirty pages can be tracked may attach.
        const DIRTY_TRACKING = 1 << 1;
        /// To be attached beside PASIDs.
        const PASID = 1 << 2;
    }
}

/// Why a device's IOVAs are reserved: `enum iommu_resv_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservedKind {
    /// Firmware needs it mapped one to one at all times.
    Direct,
    /// Firmware needed it one to one while it ran.
    DirectRelaxable,
    /// Never reaches the IOMMU.
    Reserved,
    /// The hardware's MSI doorbell, not translated.
    Msi,
    /// A window for doorbells that software maps.
    SwMsi,
}

/// IOVAs that a device cannot use for memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The IOVAs, inclusive.
    pub range: RangeInclusive<u64>,
    /// Why.
    pub kind: ReservedKind,
}

/// What `IOMMU_GET_HW_INFO` answers for the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HwInfo {
    /// `enum iommu_hw_info_type`.
    pub data_type: u32,
    /// The type's struct.
    pub data: Vec<u8>,
}

/// What a device declares of PASIDs, as far as the IOMMU lets it use them. None by
/// default.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pasids {
    /// Every usable PASID is smaller; 0 is none at all.
    pub max: u32,
    /// Requests with a PASID may ask to execute.
    pub exec: bool,
    /// Requests with a PASID may claim privilege.
    pub privileged: bool,
}

/// The driver of one kind of IOMMU hardware.
///
/// Every method gets a device that the driver itself put in place.
pub trait Driver: Any + Send + Sync {
    /// Whether the hardware does this for the device. A driver claims only what
    /// the conformance suites prove.
    fn capable(&self, device: &Device, capability: Capability) -> bool;

    /// IOVAs that the device cannot use for memory.
    fn reserved_regions(&self, device: &Device) -> Vec<ReservedRegion> {
        let _ = device;
        Vec::new()
    }

    /// What the device can do with PASIDs.
    fn pasids(&self, device: &Device) -> Pasids {
        let _ = device;
        Pasids::default()
    }

    /// Describes the hardware in the type that is asked for; 0 asks for the
    /// driver's own.
    fn hw_info(&self, device: &Device, data_type: u32) -> Result<HwInfo, Error>;

    /// Makes an empty paging domain that suits the device.
    fn alloc_paging(
        &self,
        device: &Device,
        flags: PagingFlags,
        data: Option<&UserData>,
    ) -> Result<Arc<dyn PagingDomain>, Error>;

    /// Makes a nested domain from user space's description of a stage 1. The
    /// parent is kept inside.
    fn alloc_nested(
        &self,
        device: &Device,
        parent: &Arc<dyn PagingDomain>,
        data: &UserData,
    ) -> Result<Arc<dyn NestedDomain>, Error> {
        let _ = (device, parent, data);
        Err(Error::Unsupported("nested domains"))
    }

    /// Moves the device's traffic from `old` to `new`. Traffic never sees
    /// anything but the one or the other; on error it stays with `old`.
    fn attach(
        &self,
        device: &Device,
        target: Target,
        new: &Domain,
        old: &Domain,
    ) -> Result<(), Error>;

    /// Aborts the device's traffic from now on; cannot fail.
    fn block(&self, device: &Device, target: Target, old: &Domain);

    /// Makes a VM's slice of this IOMMU over a nesting parent. Beside it comes
    /// what to write back into the user's data, if anything.
    fn alloc_viommu(
        &self,
        device: &Device,
        viommu_type: u32,
        parent: &Arc<dyn PagingDomain>,
        data: Option<&UserData>,
        host: ViommuHost<'_>,
    ) -> Result<(Arc<dyn Viommu>, Vec<u8>), Error> {
        let _ = (device, viommu_type, parent, data, host);
        Err(Error::Unsupported("vIOMMUs"))
    }

    /// Whether the driver makes vIOMMUs of this type for the device.
    fn has_viommu(&self, device: &Device, viommu_type: u32) -> bool {
        let _ = (device, viommu_type);
        false
    }

    /// Answers a group of page requests.
    fn page_response(&self, device: &Device, last: &PageRequest, response: PageResponse) {
        let _ = (device, last, response);
    }
}

/// What iommufd offers a driver that makes a vIOMMU.
pub struct ViommuHost<'a> {
    /// Takes memory that user space may map and returns its `mmap` offset.
    pub add_mmap: &'a mut dyn FnMut(Arc<dyn PhysAllocation>) -> Result<u64, Error>,
    /// Takes the vIOMMU's events from now on.
    pub events: Arc<dyn EventSink>,
}

/// Where a vIOMMU's events go.
pub trait EventSink: Send + Sync {
    /// Queues an event of a type, `enum iommu_veventq_type`;
    /// [`Error::Unsupported`] if nobody listens to that type.
    fn report(&self, event_type: u32, data: &[u8]) -> Result<(), Error>;
}

/// A VM's slice of a physical IOMMU: the driver's part of a vIOMMU object.
pub trait Viommu: Any + Send + Sync {
    /// Makes a nested domain over the vIOMMU's parent from user space's
    /// description of a stage 1.
    fn alloc_nested(
        &self,
        device: &Device,
        data: &UserData,
    ) -> Result<Arc<dyn NestedDomain>, Error>;

    /// Executes user space's invalidations in order, up to the first error.
    /// Returns how many were carried out, and that error.
    fn invalidate(&self, array: &UserArray<'_>) -> (u32, Result<(), Error>);

    /// Makes a device known by its virtual id, which is unique here.
    fn add_device(&self, device: &Arc<Device>, virt_id: u64) -> Result<(), Error>;

    /// Forgets a device.
    fn remove_device(&self, virt_id: u64);

    /// Whether there are hardware queues of this type.
    fn has_hw_queues(&self, queue_type: u32) -> bool {
        let _ = queue_type;
        false
    }

    /// Hands user space a hardware queue whose `len` bytes of memory begin at
    /// the IPA `ipa`, which is `pa` in the stage 2.
    fn add_hw_queue(&self, index: u32, ipa: u64, pa: u64, len: u64) -> Result<(), Error> {
        let _ = (index, ipa, pa, len);
        Err(Error::Unsupported("hardware queues"))
    }

    /// The queue that must not be destroyed before this one, if any.
    fn hw_queue_depends_on(&self, index: u32) -> Option<u32> {
        let _ = index;
        None
    }

    /// Takes a hardware queue back.
    fn remove_hw_queue(&self, index: u32) {
        let _ = index;
    }
}

/// Driver data that user space gave with an allocation, read ahead of it.
pub struct UserData {
    data_type: u32,
    len: usize,
    bytes: Result<Vec<u8>, Fault>,
}

impl UserData {
    /// The longest data that is read; every driver's struct is shorter.
    pub const MAX: usize = 4096;

    /// `len` bytes of the type `data_type`. `read` fills its argument from the
    /// start of the data; what it cannot read is an error only once a driver
    /// looks at it.
    pub fn new(
        data_type: u32,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), Fault>,
    ) -> Self {
        let mut bytes = vec![0; len.min(Self::MAX)];
        let bytes = read(&mut bytes).map(|()| bytes);
        Self { data_type, len, bytes }
    }

    /// The struct, if it has the type that the driver expects, is at least
    /// `min` bytes and not longer than `T`.
    pub fn get<T: Plain>(&self, data_type: u32, min: usize) -> Result<T, Error> {
        if self.data_type != data_type {
            return Err(Error::Unsupported("the type of the driver data"));
        }
        if self.len < min || self.len > size_of::<T>() {
            return Err(Error::Invalid("the length of the driver data"));
        }
        match &self.bytes {
            Ok(bytes) => Ok(T::from_bytes(bytes)),
            Err(fault) => Err((*fault).into()),
        }
    }
}

/// Reads bytes at an offset into something that user space gave.
pub type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> Result<(), Fault> + 'a;

/// An array of driver entries in user memory, read as it is worked on.
pub struct UserArray<'a> {
    /// The driver's type of the entries.
    pub data_type: u32,
    /// Bytes from one entry to the next.
    pub entry_len: u32,
    /// How many entries there are.
    pub entry_num: u32,
    read: &'a ReadAt<'a>,
    /// Entries read ahead, from this offset on.
    ahead: RefCell<(u64, Vec<u8>)>,
}

/// Bytes that are read ahead at most.
const AHEAD: u64 = 16 << 10;

impl<'a> UserArray<'a> {
    /// An array whose bytes `read` reads.
    pub fn new(data_type: u32, entry_len: u32, entry_num: u32, read: &'a ReadAt<'a>) -> Self {
        Self { data_type, entry_len, entry_num, read, ahead: RefCell::default() }
    }

    /// Reads one entry, and those behind it if that works.
    fn read(&self, index: u32, entry: &mut [u8]) -> Result<(), Fault> {
        let len = u64::from(self.entry_len);
        let offset = u64::from(index) * len;
        let mut ahead = self.ahead.borrow_mut();
        let (start, bytes) = &mut *ahead;
        if offset < *start || offset + len > *start + bytes.len() as u64 {
            let rest = u64::from(self.entry_num - index.min(self.entry_num)) * len;
            bytes.resize(rest.min(AHEAD.max(len)) as usize, 0);
            *start = offset;
            if bytes.len() < entry.len() || (self.read)(offset, bytes).is_err() {
                bytes.clear();
                return (self.read)(offset, entry);
            }
        }
        let at = (offset - *start) as usize;
        entry.copy_from_slice(&bytes[at..at + entry.len()]);
        Ok(())
    }

    /// Entry `index`, which may be longer than `T` only by zeroes.
    pub fn get_extensible<T: Plain>(&self, index: u32, min: usize) -> Result<T, Error> {
        let len = self.entry_len as usize;
        if len <= size_of::<T>() {
            return self.get(index, min);
        }
        let mut bytes = vec![0; len];
        self.read(index, &mut bytes)?;
        let (known, tail) = bytes.split_at(size_of::<T>());
        if tail.iter().any(|&byte| byte != 0) {
            return Err(Error::TooBig);
        }
        Ok(T::from_bytes(known))
    }

    /// Entry `index`: at least `min` bytes and not longer than `T`.
    pub fn get<T: Plain>(&self, index: u32, min: usize) -> Result<T, Error> {
        let len = self.entry_len as usize;
        if len < min || len > size_of::<T>() {
            return Err(Error::Invalid("the length of an entry"));
        }
        let mut entry = T::zeroed();
        self.read(index, &mut entry.as_bytes_mut()[..len])?;
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers 0, 1, 2, … of 4 bytes, of which the first `there` can be read.
    fn numbers(there: u64) -> impl Fn(u64, &mut [u8]) -> Result<(), Fault> {
        move |offset, buf| {
            if offset + buf.len() as u64 > there * 4 {
                return Err(Fault { va: offset });
            }
            let bytes = (offset / 4..).flat_map(|n| (n as u32).to_ne_bytes());
            buf.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            Ok(())
        }
    }

    #[test]
    fn reading_ahead_is_not_to_be_seen() {
        use uapi::selftest::iommu_viommu_event_selftest as Number;
        // Faults in the middle of what is read ahead.
        let read = numbers(10_000);
        let array = UserArray::new(0, 4, 20_000, &read);
        let get = |index| array.get::<Number>(index, 4).map(|number| number.virt_id);
        assert!((0..10_000).all(|n| get(n) == Ok(n)));
        assert!(matches!(get(10_000), Err(Error::Fault(_))));
        assert_eq!([get(3), get(9_999), get(0)], [Ok(3), Ok(9_999), Ok(0)]);
    }
}
