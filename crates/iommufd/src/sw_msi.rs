//! MSI doorbells behind an IOMMU: mapped in a paging HWPT when it is made, in the window that the devices' driver
//! keeps free for them.
//!
//! Doorbell n is n of the domain's smallest pages from the beginning of the window. What is mapped stays until the
//! domain goes. A nested HWPT has those of its parent.

use iommu::{Device, MapError, PagingDomain, Prot, ReservedKind, Target};

use crate::context::{Object, State};
use crate::{Context, Error, Id};

/// The window for doorbells among a device's reserved regions: first and last IOVA.
fn window_of(device: &Device) -> Option<(u64, u64)> {
    let regions = device.driver().reserved_regions(device);
    let region = regions.into_iter().find(|region| region.kind == ReservedKind::SwMsi)?;
    Some((*region.range.start(), *region.range.end()))
}

/// The doorbells in the domain of a paging HWPT.
#[derive(Debug, Default)]
pub(crate) struct SwMsi {
    /// The window, once a device needed one: first and last IOVA.
    window: Option<(u64, u64)>,
    /// So many are mapped.
    mapped: usize,
}

impl SwMsi {
    /// Where no memory can be mapped: first and last IOVA.
    pub(crate) fn window(&self) -> Option<(u64, u64)> {
        self.window
    }

    /// Maps those of `frames` that the domain lacks, for this device.
    pub(crate) fn map(
        &mut self,
        domain: &dyn PagingDomain,
        device: &Device,
        frames: &[u64],
    ) -> Result<(), Error> {
        let Some(window) = window_of(device) else { return Ok(()) };
        if frames.is_empty() {
            return Ok(());
        }
        if *self.window.get_or_insert(window) != window {
            return Err(Error::Invalid("devices with different MSI windows share a HWPT"));
        }
        let page = domain.geometry().min_page();
        for (index, frame) in frames.iter().enumerate().skip(self.mapped) {
            let iova = iova(domain, window, index)?;
            let prot = Prot::READ | Prot::WRITE | Prot::NOEXEC | Prot::MMIO;
            domain.map(iova, *frame, page, prot, page).map_err(|error| match error {
                MapError::Overlap => Error::AddressInUse("a mapping lies in the MSI window"),
                error => error.into(),
            })?;
            self.mapped = index + 1;
        }
        Ok(())
    }
}

/// The IOVA of doorbell `index` in a window that has room for it.
fn iova(domain: &dyn PagingDomain, window: (u64, u64), index: usize) -> Result<u64, Error> {
    let page = domain.geometry().min_page();
    let iova = window.0 + index as u64 * page;
    if iova + (page - 1) > window.1 {
        return Err(Error::Overflow("the window for MSI doorbells is full"));
    }
    Ok(iova)
}

impl State {
    /// Maps the doorbells that a paging HWPT, or the parent of a nested one, lacks for this device.
    pub(crate) fn map_doorbells(&mut self, hwpt: Id, device: &Device) -> Result<(), Error> {
        let frames = self.doorbells.frames();
        let hwpt = self.hwpt_paging_mut(self.paging_of(hwpt))?;
        hwpt.sw_msi.map(hwpt.domain.as_ref(), device, &frames)
    }

    /// The paging HWPT that a HWPT is, or stands on.
    fn paging_of(&self, hwpt: Id) -> Id {
        match self.objects.get(hwpt) {
            Ok(Object::HwptNested(nested)) => self.nest_parent(nested.parent),
            _ => hwpt,
        }
    }
}

impl Context {
    /// Where a device writes its messages: the IOVA of the doorbell whose frame is at the physical address `frame`, for
    /// as long as the device stays attached to what it is attached to now. Behind a nested HWPT it is an IPA: what
    /// user space's stage 1 has to lead to.
    ///
    /// A doorbell that came after the HWPT was made is mapped now.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device is attached to nothing, so that its messages abort; [`Error::Overflow`] if
    /// the window has no room; [`Error::NoDevice`] if there is no such doorbell.
    pub fn prepare_msi(&self, id: Id, frame: u64) -> Result<u64, Error> {
        let mut state = self.lock();
        let device = state.device(id)?.device.clone();
        let Some(window) = window_of(&device) else {
            // No IOMMU, or one that does not translate messages.
            return Ok(frame);
        };
        let frames = state.doorbells.frames();
        let index = frames.iter().position(|known| *known == frame);
        let index = index.ok_or(Error::NoDevice("no such MSI doorbell"))?;
        let hwpt = state
            .hwpt_of(id, &device, Target::Rid)
            .ok_or(Error::Unsupported("MSIs of a device that is attached to nothing"))?;
        if host::fail::point() {
            return Err(Error::NoMemory("an MSI doorbell"));
        }
        state.map_doorbells(hwpt, &device)?;
        let hwpt = state.paging_of(hwpt);
        iova(state.hwpt_paging(hwpt)?.domain.as_ref(), window, index)
    }
}
