//! Adding and removing domains, and the alignment they impose.

use std::sync::Arc;

use host::PAGE_SIZE;
use iommu::{Device, NoIommuDomain, PagingDomain, ReservedKind};
use iova_map::Entry;

use super::pages::PagesTable;
use super::{Ioas, ReservedBy};
use crate::error::fallible;
use crate::{Error, Id};

impl Ioas {
    /// Maps every area in a domain that is new to this IOAS, or changes nothing. No area may lie in `window`.
    pub(crate) fn add_domain(
        &mut self,
        table: &mut PagesTable,
        hwpt: Id,
        domain: Arc<dyn PagingDomain>,
        window: Option<(u64, u64)>,
    ) -> Result<(), Error> {
        let geometry = domain.geometry();
        let alignment = geometry.min_page().max(self.alignment);
        if alignment > PAGE_SIZE {
            return Err(Error::Invalid("the domain cannot map single pages"));
        }
        self.check_alignment(table, alignment)?;
        let by = ReservedBy::Hwpt(hwpt);
        let below = geometry.aperture.start().checked_sub(1).map(|last| (0, last));
        let above = geometry.aperture.end().checked_add(1).map(|first| (first, u64::MAX));
        let result = below
            .into_iter()
            .chain(above)
            .chain(window)
            .try_for_each(|(first, last)| self.reserve(first, last, by))
            .and_then(|()| self.fill_domain(table, domain.as_ref()));
        if let Err(error) = result {
            self.reserved.remove(by);
            return Err(error);
        }
        self.alignment = alignment;
        self.domains.push((hwpt, domain));
        Ok(())
    }

    /// Unmaps everything from a domain and forgets it; unpins what only it held.
    pub(crate) fn remove_domain(&mut self, table: &mut PagesTable, hwpt: Id) {
        let Some(index) = self.domains.iter().position(|(id, _)| *id == hwpt) else {
            return;
        };
        // The last one takes its place, as in the kernel: which is the first matters
        // to `Ioas::noiommu_phys`.
        let (_, domain) = self.domains.swap_remove(index);
        self.unfill_domain(table, domain.as_ref(), self.areas.len());
        self.reserved.remove(ReservedBy::Hwpt(hwpt));
        self.lower_alignment();
    }

    /// The physical address of an IOVA for a device behind no IOMMU, and how many
    /// bytes of the same area, at most `len`, follow it in physical memory.
    ///
    /// Only the first domain is asked, as in the kernel: an IOAS that a real IOMMU
    /// maps before does not tell.
    pub(crate) fn noiommu_phys(
        &self,
        table: &PagesTable,
        iova: u64,
        len: u64,
    ) -> Result<(u64, u64), Error> {
        let area = self.areas.get(iova).ok_or(Error::NotMapped(iova))?;
        if table.get(area.value.pages).revoked {
            return Err(Error::Invalid("the dma-buf was revoked"));
        }
        let domain = self.domains.first().and_then(|(_, domain)| NoIommuDomain::of(domain));
        let domain = domain.ok_or(Error::Unsupported("physical addresses beside an IOMMU"))?;
        let rest = (area.last - iova).saturating_add(1);
        domain.lookup(iova, len.min(rest)).ok_or(Error::NotMapped(iova))
    }

    /// Pins (for a first domain) and maps every area.
    fn fill_domain(&self, table: &mut PagesTable, domain: &dyn PagingDomain) -> Result<(), Error> {
        let first = self.domains.is_empty();
        for (done, entry) in self.areas.iter().enumerate() {
            let Entry { start, last: end, value: area } = entry;
            let len = end - start + 1;
            let result = if first { table.hold(area.pages, area.byte, len) } else { Ok(()) };
            let result = result.and_then(|()| {
                self.map_domain(table, domain, start, len, area).inspect_err(|_| {
                    if first {
                        table.unhold(area.pages, area.byte, len);
                    }
                })
            });
            if let Err(error) = result {
                self.unfill_domain(table, domain, done);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Unmaps the first `count` areas from a domain that is not, or no longer,
    /// in the list, and lets go of them if there is no other.
    fn unfill_domain(&self, table: &mut PagesTable, domain: &dyn PagingDomain, count: usize) {
        for area in self.areas.iter().take(count) {
            domain.unmap(area.start, area.last - area.start + 1);
        }
        domain.sync();
        if self.domains.is_empty() {
            for Entry { start, last: end, value: area } in self.areas.iter().take(count) {
                table.unhold(area.pages, area.byte, end - start + 1);
            }
        }
    }

    /// Keeps IOVAs from being mapped or allowed.
    pub(crate) fn reserve(&mut self, first: u64, last: u64, by: ReservedBy) -> Result<(), Error> {
        fallible("reserved ranges")?;
        if self.areas.overlaps(first, last) {
            return Err(Error::AddressInUse("a mapping lies in a reserved range"));
        }
        if self.reserved.allows_any(first, last) {
            return Err(Error::AddressInUse("an allowed range is reserved"));
        }
        self.reserved.add(first, last, by);
        Ok(())
    }

    /// Reserves what a device cannot use. Returns the start of its software MSI
    /// window, if it has one. On error nothing is reserved.
    pub(crate) fn reserve_device(&mut self, id: Id, device: &Device) -> Result<Option<u64>, Error> {
        let regions = device.driver().reserved_regions(device);
        let count = |kind| regions.iter().filter(|region| region.kind == kind).count();
        let software = count(ReservedKind::SwMsi);
        if software > 1 || (software > 0 && count(ReservedKind::Msi) > 0) {
            return Err(Error::Invalid("the driver's MSI regions contradict each other"));
        }
        let mut window = None;
        for region in regions.iter().filter(|r| r.kind != ReservedKind::DirectRelaxable) {
            let (first, last) = (*region.range.start(), *region.range.end());
            if let Err(error) = self.reserve(first, last, ReservedBy::Device(id)) {
                self.unreserve_device(id);
                return Err(error);
            }
            if region.kind == ReservedKind::SwMsi {
                window = Some(first);
            }
        }
        Ok(window)
    }

    pub(crate) fn unreserve_device(&mut self, id: Id) {
        self.reserved.remove(ReservedBy::Device(id));
    }

    /// Replaces the ranges that IOVAs are chosen from.
    pub(crate) fn set_allowed(&mut self, ranges: &[(u64, u64)]) -> Result<(), Error> {
        self.reserved.set_allowed(ranges)
    }

    /// Adds an access that needs this alignment.
    pub(crate) fn add_access(
        &mut self,
        table: &PagesTable,
        id: Id,
        alignment: u64,
    ) -> Result<(), Error> {
        fallible("accesses")?;
        self.accesses.push((id, alignment));
        self.raise_alignment(table).inspect_err(|_| {
            self.accesses.pop();
        })
    }

    pub(crate) fn remove_access(&mut self, id: Id) {
        self.accesses.retain(|(access, _)| *access != id);
        self.lower_alignment();
    }

    /// A hardware queue reads whole pages: IOVAs are multiples of them meanwhile.
    pub(super) fn add_lock(&mut self, table: &PagesTable) -> Result<(), Error> {
        self.locks += 1;
        self.raise_alignment(table).inspect_err(|_| self.locks -= 1)
    }

    pub(super) fn remove_lock(&mut self) {
        self.locks -= 1;
        self.lower_alignment();
    }

    /// `IOMMU_OPTION_HUGE_PAGES`.
    pub(crate) fn set_huge_pages(&mut self, table: &PagesTable, on: bool) -> Result<(), Error> {
        if on {
            self.small_pages_only = false;
            self.lower_alignment();
            return Ok(());
        }
        if self.small_pages_only {
            return Ok(());
        }
        if !self.domains.is_empty() && !self.areas.is_empty() {
            return Err(Error::Invalid("domains may have mapped large pages already"));
        }
        self.small_pages_only = true;
        self.raise_alignment(table).inspect_err(|_| self.small_pages_only = false)
    }

    fn wanted_alignment(&self) -> u64 {
        let whole_pages = self.small_pages_only || self.locks > 0;
        let floor = if whole_pages { PAGE_SIZE } else { 1 };
        let domains = self.domains.iter().map(|(_, domain)| domain.geometry().min_page());
        let accesses = self.accesses.iter().map(|(_, alignment)| *alignment);
        domains.chain(accesses).fold(floor, u64::max)
    }

    fn raise_alignment(&mut self, table: &PagesTable) -> Result<(), Error> {
        let alignment = self.wanted_alignment();
        self.check_alignment(table, alignment)?;
        self.alignment = alignment;
        Ok(())
    }

    fn lower_alignment(&mut self) {
        self.alignment = self.wanted_alignment();
    }

    /// Every area conforms to an alignment that may be larger than the present
    /// one.
    fn check_alignment(&self, table: &PagesTable, alignment: u64) -> Result<(), Error> {
        if alignment <= self.alignment {
            return Ok(());
        }
        let fits = self.areas.iter().all(|Entry { start, last: end, value: area }| {
            let offset = table.get(area.pages).page_offset(area.byte);
            (start | offset | end.wrapping_sub(start).wrapping_add(1)).is_multiple_of(alignment)
        });
        if fits { Ok(()) } else { Err(Error::AddressInUse("a mapping is less aligned")) }
    }
}
