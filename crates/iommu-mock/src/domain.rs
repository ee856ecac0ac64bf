use std::any::Any;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu::{DirtyTracking, Error, Geometry, MapError, PagingDomain, Prot};
use iova_map::{Entry, IovaMap};
use uapi::selftest as t;

/// The widest output address, in bits.
const OUTPUT_BITS: u32 = 51;

/// A paging domain of the mock hardware.
///
/// Its table is kept as what was mapped, not as descriptors: the leaves follow
/// from each mapping's addresses, length and the sizes that the table has.
pub struct MockDomain {
    geometry: Geometry,
    dirty: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    mappings: IovaMap<Mapping>,
    /// First IOVAs of dirty leaves.
    dirty: BTreeSet<u64>,
    tracking: bool,
}

/// Contiguous leaves that were mapped together.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    pa: u64,
    /// Sizes that its leaves may have, one bit each.
    sizes: u64,
}

impl Mapping {
    /// The leaf that holds `iova`: its first IOVA and its size. Leaves are the
    /// largest aligned blocks that fit the mapping.
    fn leaf(&self, start: u64, last: u64, iova: u64) -> (u64, u64) {
        let aligned = |size: u64| (start ^ self.pa) & (size - 1) == 0;
        let mut sizes = self.sizes;
        while sizes != 0 {
            let size = 1 << sizes.ilog2();
            let first = iova & !(size - 1);
            if aligned(size) && first >= start && first + (size - 1) <= last {
                return (first, size);
            }
            sizes &= !size;
        }
        debug_assert!(false, "mappings are made of whole leaves");
        (start, last - start + 1)
    }
}

impl MockDomain {
    /// The ordinary table: every power of two from 2 KiB, in a small aperture.
    pub(crate) fn new(dirty: bool) -> Self {
        let page_sizes = (1 << (OUTPUT_BITS + 1)) - t::MOCK_PAGE_SIZE;
        let aperture = t::MOCK_APERTURE_START..=t::MOCK_APERTURE_LAST;
        Self { geometry: Geometry { aperture, page_sizes }, dirty, table: Mutex::default() }
    }

    /// A table with 4 KiB and 1 MiB leaves and no narrow aperture.
    pub(crate) fn huge(dirty: bool) -> Self {
        let page_sizes = 4096 | t::MOCK_HUGE_PAGE_SIZE;
        let geometry = Geometry { aperture: 0..=(1 << 56) - 1, page_sizes };
        Self { geometry, dirty, table: Mutex::default() }
    }

    /// The domain, if it is the mock's.
    pub fn from_domain(domain: Arc<dyn PagingDomain>) -> Option<Arc<Self>> {
        (domain as Arc<dyn Any + Send + Sync>).downcast().ok()
    }

    pub(crate) fn tracks_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether dirty tracking is on now.
    pub fn is_tracking(&self) -> bool {
        self.dirty && self.lock().tracking
    }

    /// A device wrote at `iova`: its leaf, if there is one, becomes dirty.
    pub fn set_dirty(&self, iova: u64) {
        let mut table = self.lock();
        if let Some(Entry { start, last, value }) = table.mappings.get(iova) {
            let (leaf, _) = value.leaf(start, last, iova);
            table.dirty.insert(leaf);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PagingDomain for MockDomain {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn map(&self, iova: u64, pa: u64, len: u64, prot: Prot, largest: u64) -> Result<(), MapError> {
        let min = self.geometry.min_page();
        let last = iova.checked_add(len.wrapping_sub(1)).ok_or(MapError::Invalid)?;
        let pa_last = pa.checked_add(len.wrapping_sub(1)).ok_or(MapError::Invalid)?;
        let fits = len != 0
            && (iova | pa | len).is_multiple_of(min)
            && self.geometry.aperture.contains(&iova)
            && self.geometry.aperture.contains(&last)
            && pa_last >> OUTPUT_BITS == 0
            && prot.intersects(Prot::READ | Prot::WRITE);
        if !fits {
            return Err(MapError::Invalid);
        }
        let sizes = self.geometry.page_sizes & (largest | (largest - 1));
        self.lock()
            .mappings
            .insert(iova, last, Mapping { pa, sizes })
            .map_err(|_| MapError::Overlap)
    }

    fn unmap(&self, iova: u64, len: u64) {
        let Some(last) = iova.checked_add(len.wrapping_sub(1)) else { return };
        let mut table = self.lock();
        while let Some(found) = table.mappings.first_overlap(iova, last) {
            let start = found.start;
            let Some(Entry { start, last: end, value }) = table.mappings.remove(start) else {
                return;
            };
            // What sticks out stays; the cuts lie between leaves.
            if start < iova {
                debug_assert_eq!(value.leaf(start, end, iova).0, iova, "cut inside a leaf");
                let _ = table.mappings.insert(start, iova - 1, value);
            }
            if end > last {
                debug_assert_eq!(value.leaf(start, end, last + 1).0, last + 1, "cut inside a leaf");
                let pa = value.pa + (last + 1 - start);
                let _ = table.mappings.insert(last + 1, end, Mapping { pa, ..value });
            }
            if end >= last {
                break;
            }
        }
        if !table.dirty.is_empty() {
            table.dirty.retain(|leaf| !(iova..=last).contains(leaf));
        }
    }

    fn iova_to_phys(&self, iova: u64) -> Option<u64> {
        let table = self.lock();
        table.mappings.get(iova).map(|found| found.value.pa + (iova - found.start))
    }

    fn dirty(&self) -> Option<&dyn DirtyTracking> {
        self.dirty.then_some(self)
    }
}

impl DirtyTracking for MockDomain {
    fn set_enabled(&self, enabled: bool) -> Result<(), Error> {
        self.lock().tracking = enabled;
        Ok(())
    }

    fn read_and_clear(&self, iova: u64, len: u64, keep: bool, report: &mut dyn FnMut(u64, u64)) {
        let Some(last) = iova.checked_add(len.wrapping_sub(1)) else { return };
        let mut table = self.lock();
        let Table { mappings, dirty, .. } = &mut *table;
        let mut clean = Vec::new();
        // The first leaf may begin below the range.
        let begin = mappings
            .get(iova)
            .map_or(iova, |found| found.value.leaf(found.start, found.last, iova).0);
        for &leaf in dirty.range(begin..=last) {
            let Some(found) = mappings.get(leaf) else { continue };
            let (first, size) = found.value.leaf(found.start, found.last, leaf);
            let (from, to) = (first.max(iova), (first + (size - 1)).min(last));
            report(from, to - from + 1);
            clean.push(leaf);
        }
        if !keep {
            for leaf in clean {
                dirty.remove(&leaf);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = t::MOCK_APERTURE_START;

    fn mapped(len: u64, largest: u64) -> MockDomain {
        let domain = MockDomain::new(true);
        domain.map(BASE, 0x10_0000_0000, len, Prot::READ | Prot::WRITE, largest).unwrap();
        domain
    }

    fn dirty(domain: &MockDomain, iova: u64, len: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        domain.read_and_clear(iova, len, true, &mut |at, len| found.push((at, len)));
        found
    }

    #[test]
    fn a_dirty_leaf_is_reported_whole_but_not_beyond_the_request() {
        let domain = mapped(4 << 20, 1 << 63);
        domain.set_dirty(BASE + 0x12_3456);
        assert_eq!(dirty(&domain, BASE, 4 << 20), [(BASE, 4 << 20)]);
        assert_eq!(dirty(&domain, BASE + 0x1000, 0x1000), [(BASE + 0x1000, 0x1000)]);
        let small = mapped(4 << 20, 4096);
        small.set_dirty(BASE + 0x3800);
        assert_eq!(dirty(&small, BASE, 4 << 20), [(BASE + 0x3000, 0x1000)]);
    }

    #[test]
    fn unmapping_part_of_small_leaves_keeps_the_rest() {
        let domain = mapped(0x10000, 4096);
        domain.unmap(BASE + 0x4000, 0x2000);
        assert_eq!(domain.iova_to_phys(BASE + 0x3fff), Some(0x10_0000_3fff));
        assert_eq!(domain.iova_to_phys(BASE + 0x4000), None);
        assert_eq!(domain.iova_to_phys(BASE + 0x6000), Some(0x10_0000_6000));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let domain = mapped(0x1000, 1 << 63);
        let map = |iova, pa, len| domain.map(iova, pa, len, Prot::READ, 1 << 63);
        assert_eq!(map(BASE, 0, 0x1000), Err(MapError::Overlap));
        assert_eq!(map(0, 0, 0x1000), Err(MapError::Invalid));
        assert_eq!(map(BASE + 0x1400, 0, 0x1000), Err(MapError::Invalid));
        assert_eq!(map(BASE + 0x1000, 1 << 51, 0x1000), Err(MapError::Invalid));
        assert_eq!(map(BASE + 0x1000, 0, 0), Err(MapError::Invalid));
        assert_eq!(domain.iova_to_phys(BASE + 0x1000), None);
    }
}
