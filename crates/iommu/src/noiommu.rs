//! Devices that are behind no IOMMU.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iova_map::{Entry, IovaMap};

use crate::{
    Capability, Device, Domain, Driver, Error, Geometry, Group, HwInfo, MapError, PagingDomain,
    PagingFlags, Prot, Target, UserData,
};

/// The driver of devices that are behind no IOMMU: their DMA goes where it says,
/// whatever they are attached to.
///
/// Its domains are tables in software ([`NoIommuDomain`]). User space that owns
/// such a device asks them which physical addresses to give it.
pub struct NoIommu;

impl NoIommu {
    /// A device behind no IOMMU, which makes it a group of its own.
    pub fn add_device(name: impl Into<String>) -> Arc<Device> {
        Device::new(name, Arc::new(Self), Box::new(()), &Group::new())
    }
}

impl Driver for NoIommu {
    fn capable(&self, _device: &Device, _capability: Capability) -> bool {
        false
    }

    fn hw_info(&self, _device: &Device, _data_type: u32) -> Result<HwInfo, Error> {
        Err(Error::Unsupported("hardware information without an IOMMU"))
    }

    fn alloc_paging(
        &self,
        _device: &Device,
        flags: PagingFlags,
        data: Option<&UserData>,
    ) -> Result<Arc<dyn PagingDomain>, Error> {
        if !flags.is_empty() || data.is_some() {
            return Err(Error::Unsupported("flags and driver data without an IOMMU"));
        }
        Ok(Arc::new(NoIommuDomain::default()))
    }

    fn attach(
        &self,
        _device: &Device,
        _target: Target,
        _new: &Domain,
        _old: &Domain,
    ) -> Result<(), Error> {
        // Also to a domain of another driver's, as in Linux: nothing translates.
        Ok(())
    }

    fn block(&self, _device: &Device, _target: Target, _old: &Domain) {}
}

/// A table from IOVAs to physical addresses that no hardware reads.
#[derive(Default)]
pub struct NoIommuDomain {
    /// The physical address of each range's first byte.
    table: Mutex<IovaMap<u64>>,
}

/// Every power of two from 4 KiB to 2 PiB but 512 GiB: what a table in AMD's
/// format has, which is the one that Linux uses here.
const PAGE_SIZES: u64 = ((1 << 52) - 4096) & !(1 << 39);

/// The widest physical address, in bits.
const OUTPUT_BITS: u32 = 52;

impl NoIommuDomain {
    /// The domain, if it is one of these.
    pub fn of(domain: &Arc<dyn PagingDomain>) -> Option<&Self> {
        let domain: &dyn Any = domain.as_ref();
        domain.downcast_ref()
    }

    /// The physical address of `iova`, and how many bytes, at most `len`, follow
    /// it both in the table and in physical memory.
    pub fn lookup(&self, iova: u64, len: u64) -> Option<(u64, u64)> {
        let last = iova.saturating_add(len.checked_sub(1)?);
        let mut found: Option<(u64, u64)> = None;
        for Entry { start, last: end, value } in self.lock().range(iova, last) {
            let from = start.max(iova);
            let pa = value + (from - start);
            let follows = match found {
                None => from == iova,
                Some((first, len)) => from - iova == len && pa == first + len,
            };
            if !follows {
                break;
            }
            let (first, len) = found.unwrap_or((pa, 0));
            found = Some((first, len + (end.min(last) - from) + 1));
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, IovaMap<u64>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PagingDomain for NoIommuDomain {
    fn geometry(&self) -> Geometry {
        Geometry { aperture: 0..=u64::MAX, page_sizes: PAGE_SIZES }
    }

    fn map(&self, iova: u64, pa: u64, len: u64, prot: Prot, _largest: u64) -> Result<(), MapError> {
        let last = iova.checked_add(len.wrapping_sub(1)).ok_or(MapError::Invalid)?;
        let pa_last = pa.checked_add(len.wrapping_sub(1)).ok_or(MapError::Invalid)?;
        let fits = len != 0
            && (iova | pa | len).is_multiple_of(self.geometry().min_page())
            && pa_last >> OUTPUT_BITS == 0
            && prot.intersects(Prot::READ | Prot::WRITE);
        if !fits {
            return Err(MapError::Invalid);
        }
        self.lock().insert(iova, last, pa).map_err(|_| MapError::Overlap)
    }

    fn unmap(&self, iova: u64, len: u64) {
        let Some(last) = iova.checked_add(len.wrapping_sub(1)) else { return };
        let mut table = self.lock();
        while let Some(Entry { start, .. }) = table.first_overlap(iova, last) {
            let Some(Entry { start, last: end, value: pa }) = table.remove(start) else {
                return;
            };
            // What sticks out stays; its place was free a moment ago.
            if start < iova {
                let _ = table.insert(start, iova - 1, pa);
            }
            if end > last {
                let _ = table.insert(last + 1, end, pa + (last + 1 - start));
                return;
            }
        }
    }

    fn iova_to_phys(&self, iova: u64) -> Option<u64> {
        self.lookup(iova, 1).map(|(pa, _)| pa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;
    const PAGES: u64 = 24;

    /// Where a page of the model leads: runs that sometimes continue each other.
    fn target(page: u64, gap: u64) -> u64 {
        (1 << 30) + (page + gap * 100) * PAGE
    }

    proptest! {
        #[test]
        fn leads_where_a_plain_array_does(
            ops in prop::collection::vec((any::<bool>(), 0..PAGES, 1u64..8, 0u64..2), 0..40),
            odd in 0..PAGE,
        ) {
            let domain = NoIommuDomain::default();
            let mut model = [None; PAGES as usize];
            for (map, first, len, gap) in ops {
                let len = len.min(PAGES - first);
                let pages = &mut model[first as usize..(first + len) as usize];
                if map {
                    let done = domain.map(first * PAGE, target(first, gap), len * PAGE, Prot::READ, 1 << 63);
                    let free = pages.iter().all(Option::is_none);
                    prop_assert_eq!(done, if free { Ok(()) } else { Err(MapError::Overlap) });
                    if free {
                        let run = (first..).map(|page| Some(target(page, gap)));
                        pages.iter_mut().zip(run).for_each(|(page, pa)| *page = pa);
                    }
                } else {
                    domain.unmap(first * PAGE, len * PAGE);
                    pages.fill(None);
                }
                for page in 0..PAGES {
                    let iova = page * PAGE + odd;
                    let expected = model[page as usize].map(|pa| pa + odd);
                    prop_assert_eq!(domain.iova_to_phys(iova), expected);
                    let run = model[page as usize..]
                        .iter()
                        .zip((0..).map(|n| model[page as usize].map(|pa| pa + n * PAGE)))
                        .take_while(|(is, contiguous)| is.is_some() && *is == contiguous)
                        .count() as u64;
                    let expected = expected.map(|pa| (pa, run * PAGE - odd));
                    prop_assert_eq!(domain.lookup(iova, u64::MAX), expected);
                    let capped = expected.map(|(pa, len)| (pa, len.min(5000)));
                    prop_assert_eq!(domain.lookup(iova, 5000), capped);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let domain = NoIommuDomain::default();
        let map = |iova, pa, len, prot| domain.map(iova, pa, len, prot, 1 << 63);
        assert_eq!(map(1, 0, PAGE, Prot::READ), Err(MapError::Invalid));
        assert_eq!(map(0, 1 << 52, PAGE, Prot::READ), Err(MapError::Invalid));
        assert_eq!(map(0, 0, 0, Prot::READ), Err(MapError::Invalid));
        assert_eq!(map(0, 0, PAGE, Prot::MMIO), Err(MapError::Invalid));
        // The last page there is.
        let top = 0u64.wrapping_sub(PAGE);
        assert_eq!(map(top, 7 * PAGE, PAGE, Prot::READ), Ok(()));
        assert_eq!(domain.lookup(u64::MAX, 9), Some((8 * PAGE - 1, 1)));
        domain.unmap(top, PAGE);
        assert_eq!(domain.lookup(u64::MAX, 9), None);
        assert_eq!(domain.lookup(0, 0), None);
    }
}
