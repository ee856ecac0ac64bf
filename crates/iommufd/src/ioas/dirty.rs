//! Which pages devices wrote.

use iommu::DirtyTracking;

use super::Ioas;
use crate::Error;

impl Ioas {
    /// The rules for a dirty-bitmap request; returns its last IOVA.
    pub(crate) fn check_dirty_range(
        &self,
        iova: u64,
        length: u64,
        page_size: u64,
    ) -> Result<u64, Error> {
        if length == 0 || page_size == 0 {
            return Err(Error::Invalid("the length or the page size is 0"));
        }
        let last = iova.checked_add(length - 1).ok_or(Error::Overflow("IOVA + length"))?;
        // The kernel masks with `page_size - 1` even if it is no power of two.
        let mask = (self.alignment - 1) | (page_size - 1);
        if iova & mask != 0 || last.wrapping_add(1) & mask != 0 {
            return Err(Error::Invalid("the range is misaligned"));
        }
        Ok(last)
    }

    /// Reports dirty bytes of `iova..=last` up to the first hole in what is
    /// mapped; says whether there was none.
    pub(crate) fn read_and_clear_dirty(
        &self,
        dirty: &dyn DirtyTracking,
        iova: u64,
        last: u64,
        keep: bool,
        mut report: impl FnMut(u64, u64),
    ) -> bool {
        self.contiguous(iova, last, |from, to, _, _| {
            dirty.read_and_clear(from, to - from + 1, keep, &mut report);
            Ok(())
        })
        .is_ok()
    }

    /// Makes every mapped leaf clean.
    pub(crate) fn clear_dirty(&self, dirty: &dyn DirtyTracking) {
        for area in self.areas.iter() {
            dirty.read_and_clear(area.start, area.last - area.start + 1, false, &mut |_, _| {});
        }
    }
}
