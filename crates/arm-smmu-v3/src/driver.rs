//! The driver as the IOMMU core knows drivers.

use std::any::Any;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use iommu::{
    Capability, Device, DirtyTracking, Group, HwInfo, PagingDomain, PagingFlags, Pasids, Prot,
    ReservedKind, ReservedRegion, Target, UserData, ViommuHost,
};
use pagetable::{MapError, Stage};

use crate::domain::Domain;
use crate::error::Error;
use crate::faults::{Faults, Port};
use crate::nested::Nested;
use crate::platform::{DmaMemory, Registers};
use crate::probe::Httu;
use crate::smmu::Smmu;
use crate::stream::{Attachment, Stream, StreamOptions};
use crate::viommu::Viommu;

use uapi::Plain;
use uapi::iommufd as u;

/// What a device behind an SMMU can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceOptions {
    /// Bits of its PASIDs; 0 if it has none.
    pub pasid_bits: u8,
    /// It uses ATS.
    pub ats: bool,
    /// It uses PRI, which takes ATS.
    pub pri: bool,
    /// Its transactions may stall, where a domain's owner handles page requests. Not beside PRI.
    pub stalls: bool,
    /// IOVAs that it cannot use, beside the window for MSI doorbells, which gives way to regions of that kind.
    pub reserved: Vec<ReservedRegion>,
}

/// Where doorbells are mapped unless the device has another place for them: Linux's.
const SW_MSI: RangeInclusive<u64> = 0x800_0000..=0x80f_ffff;

/// What the driver keeps with a device.
pub(crate) struct Behind<R: Registers, M: DmaMemory> {
    pub(crate) stream: Stream<R, M>,
    /// It uses PRI.
    pub(crate) pri: bool,
    reserved: Vec<ReservedRegion>,
}

impl<R: Registers + 'static, M: DmaMemory + 'static> Behind<R, M> {
    pub(crate) fn of(device: &Device) -> Result<&Self, iommu::Error> {
        device.data().ok_or(iommu::Error::Invalid("not a device of an SMMUv3"))
    }
}

/// One SMMU as a driver of the crate `iommu`.
///
/// What the core's traits cannot report, a failure of the SMMU to confirm that it has forgotten something, takes the SMMU
/// out of service: rather than that a device goes on with what is not its own, all abort.
pub struct Driver<R: Registers, M: DmaMemory> {
    smmu: Arc<Smmu<R, M>>,
    faults: Faults<R, M>,
}

impl<R: Registers + 'static, M: DmaMemory + 'static> Driver<R, M> {
    /// A driver for that SMMU.
    pub fn new(smmu: &Arc<Smmu<R, M>>) -> Arc<Self> {
        Arc::new(Self { smmu: smmu.clone(), faults: Faults::default() })
    }

    /// The SMMU.
    pub fn smmu(&self) -> &Arc<Smmu<R, M>> {
        &self.smmu
    }

    pub(crate) fn faults(&self) -> &Faults<R, M> {
        &self.faults
    }

    /// Attaches a stream, and has its events go to the guest that it is given to, if it is: those from before do not, nor
    /// those from after it was taken away.
    fn attach_stream(
        &self,
        stream: &Stream<R, M>,
        attachment: Attachment<R, M>,
    ) -> Result<(), Error> {
        let guest = match &attachment {
            Attachment::Nested(nested) => Arc::downgrade(nested.viommu()),
            _ => Weak::new(),
        };
        let old = self.faults.ports.read().get(&stream.id()).map(|port| port.guest.clone());
        let old = old.unwrap_or_default();
        if old.ptr_eq(&guest) {
            return stream.attach(attachment);
        }
        self.settle_events();
        self.route(stream.id(), &Weak::new());
        let result = stream.attach(attachment);
        if result.is_ok() {
            self.settle_events();
        }
        self.route(stream.id(), if result.is_ok() { &guest } else { &old });
        result
    }

    fn route(&self, stream_id: u32, guest: &Weak<Viommu<R, M>>) {
        if let Some(port) = self.faults.ports.write().get_mut(&stream_id) {
            port.guest = guest.clone();
        }
    }

    /// Puts a device, which uses one stream, behind the SMMU. As long as nobody owns its group it is on identity.
    pub fn add_device(
        self: &Arc<Self>,
        name: impl Into<String>,
        stream_id: u32,
        options: DeviceOptions,
        group: &Arc<Group>,
    ) -> Result<Arc<Device>, Error> {
        let DeviceOptions { pasid_bits, ats, pri, stalls, mut reserved } = options;
        if pri && !(ats && self.smmu.features().pri) {
            return Err(Error::Unsupported("PRI without ATS, or the SMMU does not have it"));
        }
        if pri && stalls {
            return Err(Error::Unsupported("PRI and stalls of one device"));
        }
        let is_msi = |kind| matches!(kind, ReservedKind::Msi | ReservedKind::SwMsi);
        if !reserved.iter().any(|region| is_msi(region.kind)) {
            reserved.push(ReservedRegion { range: SW_MSI, kind: ReservedKind::SwMsi });
        }
        let stream = Stream::new(&self.smmu, stream_id, StreamOptions { pasid_bits, ats, stalls })?;
        stream.attach(Attachment::Identity)?;
        let behind = Behind { stream, pri, reserved };
        let device = Device::new(name, self.clone(), Box::new(behind), group);
        let mut ports = self.faults.ports.write();
        ports.retain(|_, port| port.device.strong_count() > 0);
        ports.insert(stream_id, Port::new(&device));
        Ok(device)
    }

    fn stream(device: &Device) -> Result<&Stream<R, M>, iommu::Error> {
        Ok(&Behind::of(device)?.stream)
    }

    fn domain(&self, domain: &Arc<dyn PagingDomain>) -> Result<Arc<Domain<R, M>>, iommu::Error> {
        let domain: Arc<dyn Any + Send + Sync> = domain.clone();
        let ours = domain.downcast::<Domain<R, M>>().ok();
        ours.filter(|domain| Arc::ptr_eq(domain.smmu(), &self.smmu))
            .ok_or(iommu::Error::Incompatible("the domain is another IOMMU's"))
    }

    /// What there is to attach for a domain, if it is of this SMMU.
    fn attachment(&self, domain: &iommu::Domain) -> Result<Attachment<R, M>, iommu::Error> {
        Ok(match domain {
            iommu::Domain::Blocked => Attachment::Blocked,
            iommu::Domain::Identity => Attachment::Identity,
            iommu::Domain::Paging(domain) => Attachment::Paging(self.domain(domain)?),
            iommu::Domain::Nested(domain) => {
                let domain: Arc<dyn Any + Send + Sync> = domain.clone();
                let ours = domain.downcast::<Nested<R, M>>().ok();
                ours.filter(|nested| Arc::ptr_eq(nested.parent().smmu(), &self.smmu))
                    .map(Attachment::Nested)
                    .ok_or(iommu::Error::Incompatible("the domain is another IOMMU's"))?
            }
        })
    }
}

impl From<Error> for iommu::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Probe(_) => Self::Unsupported("this SMMU"),
            Error::NotAcknowledged(_) => Self::Io("the SMMU does not acknowledge a change"),
            Error::Commands(_) => Self::Io("the SMMU does not execute commands"),
            Error::OutOfMemory(_) => Self::NoMemory,
            Error::StreamId(_) => Self::Invalid("the StreamID is out of range"),
            Error::StreamInUse(_) => Self::Busy("the stream belongs to another device"),
            Error::Unsupported(reason) => Self::Unsupported(reason),
            Error::PasidsInUse => Self::Busy("PASIDs are attached"),
            Error::NoVirtualStreamId(_) => Self::NotFound("the device's vDEVICE"),
            Error::VirtualSte(reason) => Self::Io(reason),
            Error::Exhausted(name) => Self::NoSpace(name),
            Error::Map(_) => Self::Invalid("the range does not fit the page table"),
        }
    }
}

impl<R: Registers + 'static, M: DmaMemory + 'static> iommu::Driver for Driver<R, M> {
    fn capable(&self, device: &Device, capability: Capability) -> bool {
        match capability {
            // Or it would not have been probed.
            Capability::CacheCoherency => true,
            Capability::DirtyTracking => self.smmu.features().httu == Httu::Dirty,
            Capability::PciAts => Self::stream(device).is_ok_and(Stream::has_ats),
            Capability::EnforceCacheCoherency => false,
        }
    }

    fn pasids(&self, device: &Device) -> Pasids {
        let bits = Self::stream(device).map_or(0, Stream::pasid_bits);
        // Requests with a PASID carry both attributes, and the tables judge them.
        let there = bits > 0;
        let max = if there { 1 << bits } else { 0 };
        Pasids { max, exec: there, privileged: there }
    }

    fn hw_info(&self, _: &Device, data_type: u32) -> Result<HwInfo, iommu::Error> {
        let own = u::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3;
        if data_type != u::iommu_hw_info_type_IOMMU_HW_INFO_TYPE_DEFAULT && data_type != own {
            return Err(iommu::Error::Unsupported("the type of hardware information"));
        }
        let features = self.smmu.features();
        let mut info = u::iommu_hw_info_arm_smmuv3::zeroed();
        (info.idr, info.iidr, info.aidr) = (features.idr, features.iidr, features.aidr);
        Ok(HwInfo { data_type: own, data: info.as_bytes().to_vec() })
    }

    fn alloc_paging(
        &self,
        _: &Device,
        flags: PagingFlags,
        data: Option<&UserData>,
    ) -> Result<Arc<dyn PagingDomain>, iommu::Error> {
        if data.is_some() {
            return Err(iommu::Error::Unsupported("driver data for a paging domain"));
        }
        let nest = flags.contains(PagingFlags::NEST_PARENT);
        if nest && flags.contains(PagingFlags::PASID) {
            return Err(iommu::Error::Unsupported("a stage 2 beside PASIDs"));
        }
        let stage1 = self.smmu.features().stage1 || flags.contains(PagingFlags::PASID);
        let stage = if nest || !stage1 { Stage::Two } else { Stage::One };
        Ok(Domain::new(&self.smmu, stage, flags.contains(PagingFlags::DIRTY_TRACKING))?)
    }

    fn attach(
        &self,
        device: &Device,
        target: Target,
        new: &iommu::Domain,
        _old: &iommu::Domain,
    ) -> Result<(), iommu::Error> {
        let stream = Self::stream(device)?;
        let result = match (target, self.attachment(new)?) {
            (Target::Rid, attachment) => self.attach_stream(stream, attachment),
            (Target::Pasid(pasid), Attachment::Blocked) => stream.detach_pasid(pasid),
            (Target::Pasid(pasid), Attachment::Paging(domain)) => {
                stream.attach_pasid(pasid, &domain)
            }
            (Target::Pasid(_), Attachment::Identity | Attachment::Nested(_)) => {
                return Err(iommu::Error::Unsupported("such a domain for a PASID"));
            }
        };
        result.map_err(|error| match error {
            Error::Unsupported(reason) => iommu::Error::Incompatible(reason),
            error => error.into(),
        })
    }

    fn block(&self, device: &Device, target: Target, _old: &iommu::Domain) {
        let Ok(stream) = Self::stream(device) else { return };
        let result = match target {
            Target::Rid => {
                let result = self.attach_stream(stream, Attachment::Blocked);
                // Blocked or not, it is the guest's no longer.
                self.route(stream.id(), &Weak::new());
                result
            }
            Target::Pasid(pasid) => stream.detach_pasid(pasid),
        };
        self.smmu.must(result);
    }

    fn reserved_regions(&self, device: &Device) -> Vec<ReservedRegion> {
        Behind::<R, M>::of(device).map_or_else(|_| Vec::new(), |behind| behind.reserved.clone())
    }

    fn page_response(
        &self,
        device: &Device,
        last: &iommu::PageRequest,
        response: iommu::PageResponse,
    ) {
        self.respond(device, last, response);
    }

    fn has_viommu(&self, _: &Device, viommu_type: u32) -> bool {
        viommu_type == u::iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3
            && self.smmu.features().nests()
    }

    fn alloc_viommu(
        &self,
        device: &Device,
        viommu_type: u32,
        parent: &Arc<dyn PagingDomain>,
        _: Option<&UserData>,
        host: ViommuHost<'_>,
    ) -> Result<(Arc<dyn iommu::Viommu>, Vec<u8>), iommu::Error> {
        if !self.has_viommu(device, viommu_type) {
            return Err(iommu::Error::Unsupported("the type of vIOMMU"));
        }
        // One stage 2 belongs to one SMMU, as its VMID does.
        let parent = self.domain(parent)?;
        Ok((Viommu::new(&parent, host.events)?, Vec::new()))
    }
}

impl<R: Registers + 'static, M: DmaMemory + 'static> PagingDomain for Domain<R, M> {
    fn geometry(&self) -> iommu::Geometry {
        let geometry = Domain::geometry(self);
        let aperture: RangeInclusive<u64> = 0..=(1 << geometry.input_bits()) - 1;
        iommu::Geometry { aperture, page_sizes: geometry.page_sizes() }
    }

    fn map(
        &self,
        iova: u64,
        pa: u64,
        len: u64,
        prot: Prot,
        largest: u64,
    ) -> Result<(), iommu::MapError> {
        let end = iova.checked_add(len).ok_or(iommu::MapError::Invalid)?;
        let sizes = Domain::geometry(self).page_sizes() & (largest | largest.wrapping_sub(1));
        Domain::map(self, iova..end, pa, prot, sizes).map_err(|error| match error {
            Error::Map(MapError::AlreadyMapped(_)) => iommu::MapError::Overlap,
            // What was there before is still in use, for all that the SMMU says.
            Error::Map(MapError::OutOfMemory(_)) | Error::Commands(_) => iommu::MapError::NoMemory,
            _ => iommu::MapError::Invalid,
        })
    }

    fn unmap(&self, iova: u64, len: u64) {
        let Some(end) = iova.checked_add(len) else { return };
        // An address that cannot be mapped is not mapped; but what should be gone must not stay.
        if let Err(error @ Error::Map(MapError::CutsLeaf(_) | MapError::Lost(_))) =
            Domain::unmap(self, iova..end)
        {
            self.smmu().must(Err(error));
        }
    }

    fn sync(&self) {
        self.smmu().must(Domain::sync(self));
    }

    fn iova_to_phys(&self, iova: u64) -> Option<u64> {
        self.translate(iova)
    }

    fn dirty(&self) -> Option<&dyn DirtyTracking> {
        self.tracks_dirty().then_some(self)
    }
}

impl<R: Registers + 'static, M: DmaMemory + 'static> DirtyTracking for Domain<R, M> {
    fn set_enabled(&self, enabled: bool) -> Result<(), iommu::Error> {
        Ok(self.set_dirty_tracking(enabled)?)
    }

    fn read_and_clear(&self, iova: u64, len: u64, keep: bool, report: &mut dyn FnMut(u64, u64)) {
        let limit = 1 << Domain::geometry(self).input_bits();
        let end = iova.saturating_add(len).min(limit);
        if iova >= end {
            return;
        }
        let result =
            self.read_dirty(iova..end, !keep, |part| report(part.start, part.end - part.start));
        // A range that is no multiple of pages has no leaf to itself.
        if let Err(error @ Error::Commands(_)) = result {
            self.smmu().must(Err(error));
        }
    }
}
