//! Mapping, copying, unmapping and cutting areas.

use host::PAGE_SIZE;
use iommu::{PagingDomain, Prot};
use iova_map::Entry;

use super::pages::{PagesId, PagesTable};
use super::{Area, Ioas, Use};
use crate::Error;
use crate::error::fallible;

/// A transparent huge page: chosen IOVAs are aligned no further.
const MAX_AUTO_ALIGNMENT: u64 = 2 << 20;

/// Part of some pages, to be shown in an IOAS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) pages: PagesId,
    /// First byte of the pages.
    pub(crate) byte: u64,
    pub(crate) len: u64,
}

/// Pieces to be mapped one behind the other.
pub(crate) struct MapRequest<'a> {
    pub(crate) pieces: &'a [Piece],
    pub(crate) prot: Prot,
    /// Where, if user space chose.
    pub(crate) iova: Option<u64>,
}

/// How far unmapping came.
pub(crate) enum Unmapped {
    /// All there was to unmap is unmapped.
    Done,
    /// The area `iova..=last` is pinned by accesses: they must be asked to
    /// unpin it, without holding any lock, before going on from `iova`.
    Pinned { iova: u64, last: u64 },
}

impl Ioas {
    /// Maps the pieces; returns where.
    pub(crate) fn map(
        &mut self,
        table: &mut PagesTable,
        request: &MapRequest<'_>,
    ) -> Result<u64, Error> {
        let length = request
            .pieces
            .iter()
            .try_fold(0u64, |sum, piece| sum.checked_add(piece.len))
            .ok_or(Error::Overflow("length"))?;
        if length == 0 || !length.is_multiple_of(self.alignment) {
            return Err(Error::Invalid("the length is 0 or misaligned"));
        }
        let iova = match request.iova {
            Some(iova) => {
                self.check_iova(iova, length)?;
                iova
            }
            None => self.alloc_iova(table, request.pieces, length)?,
        };
        for piece in request.pieces {
            let pages = table.get(piece.pages);
            if request.prot.contains(Prot::WRITE) && !pages.writable {
                return Err(Error::Permission("the memory is mapped for reading only"));
            }
            if !pages.page_offset(piece.byte).is_multiple_of(self.alignment) {
                return Err(Error::Invalid("the address within its page is misaligned"));
            }
        }
        let mut at = iova;
        for (done, piece) in request.pieces.iter().enumerate() {
            let area = Area {
                pages: piece.pages,
                prot: request.prot,
                prevent_access: false,
                pinned: false,
                byte: piece.byte,
            };
            if let Err(error) = self.insert(table, at, piece.len, area) {
                let mut back = iova;
                for piece in &request.pieces[..done] {
                    self.remove(table, back);
                    back += piece.len;
                }
                self.sync();
                return Err(error);
            }
            at = at.wrapping_add(piece.len);
        }
        Ok(iova)
    }

    fn check_iova(&self, iova: u64, length: u64) -> Result<(), Error> {
        if !iova.is_multiple_of(self.alignment) {
            return Err(Error::Invalid("the IOVA is misaligned"));
        }
        let last = iova.checked_add(length - 1).ok_or(Error::Overflow("IOVA + length"))?;
        if self.reserved.overlaps(iova, last) {
            return Err(Error::Invalid("the IOVA is reserved"));
        }
        if self.areas.overlaps(iova, last) {
            return Err(Error::Exists("a mapping in this IOVA range"));
        }
        Ok(())
    }

    /// Chooses the lowest free IOVA that keeps the memory's own alignment, and
    /// with it the chance of large leaves. Never 0.
    fn alloc_iova(
        &mut self,
        table: &PagesTable,
        pieces: &[Piece],
        length: u64,
    ) -> Result<u64, Error> {
        if length >= u64::MAX / 2 {
            return Err(Error::Overflow("length"));
        }
        let first = pieces.first().ok_or(Error::Invalid("nothing to map"))?;
        let address = table.get(first.pages).address_of(first.byte);
        let natural = length.next_power_of_two();
        let alignment = match address {
            0 => natural,
            _ => natural.min(1 << address.trailing_zeros()),
        }
        .min(MAX_AUTO_ALIGNMENT);
        if alignment < self.alignment {
            return Err(Error::Invalid("the address is less aligned than IOVAs must be"));
        }
        let offset = address % PAGE_SIZE;
        let alignment = if offset == 0 { alignment } else { alignment.max(PAGE_SIZE) };
        let Self { reserved, areas, .. } = self;
        reserved
            .windows(PAGE_SIZE, u64::MAX - PAGE_SIZE)
            .find_map(|(lo, hi)| areas.find_gap(length, alignment, offset, lo, hi))
            .ok_or(Error::NoIova)
    }

    /// Inserts one area and maps it in every domain, or does nothing. The range
    /// must be free.
    fn insert(
        &mut self,
        table: &mut PagesTable,
        iova: u64,
        len: u64,
        area: Area,
    ) -> Result<(), Error> {
        fallible("areas")?;
        if !self.domains.is_empty() {
            self.fill(table, iova, len, &area)?;
        }
        table.share(area.pages);
        let inserted = self.areas.insert(iova, iova + (len - 1), area);
        debug_assert!(inserted.is_ok(), "the range was checked to be free");
        Ok(())
    }

    /// Removes the area that starts at `iova`; the domains are to be synced.
    fn remove(&mut self, table: &mut PagesTable, iova: u64) {
        let Some(Entry { start: first, last, value: area }) = self.areas.remove(iova) else {
            return;
        };
        let len = last - first + 1;
        if !self.domains.is_empty() {
            for (_, domain) in &self.domains {
                domain.unmap(first, len);
            }
            // Devices must be done with the pages before they are unpinned.
            self.sync();
            table.unhold(area.pages, area.byte, len);
        }
        table.release(area.pages);
    }

    pub(super) fn sync(&self) {
        self.domains.iter().for_each(|(_, domain)| domain.sync());
    }

    /// Pins an area's pages and maps them in every domain, or does nothing.
    fn fill(&self, table: &mut PagesTable, iova: u64, len: u64, area: &Area) -> Result<(), Error> {
        table.hold(area.pages, area.byte, len)?;
        for (done, (_, domain)) in self.domains.iter().enumerate() {
            let Err(error) = self.map_domain(table, domain.as_ref(), iova, len, area) else {
                continue;
            };
            for (_, domain) in &self.domains[..done] {
                domain.unmap(iova, len);
                domain.sync();
            }
            table.unhold(area.pages, area.byte, len);
            return Err(error);
        }
        Ok(())
    }

    /// Maps an area, whose pages are held, in one domain, or does nothing.
    pub(super) fn map_domain(
        &self,
        table: &PagesTable,
        domain: &dyn PagingDomain,
        iova: u64,
        len: u64,
        area: &Area,
    ) -> Result<(), Error> {
        if table.get(area.pages).revoked {
            return Ok(());
        }
        let largest = if self.small_pages_only { PAGE_SIZE } else { 1 << 63 };
        let mut at = iova;
        let mut result = Ok(());
        table.runs(area.pages, area.byte, len, &mut |run| {
            if result.is_ok() && host::fail::point() {
                result = Err(iommu::MapError::NoMemory);
            }
            if result.is_ok() {
                result = domain.map(at, run.pa, run.len, area.prot, largest);
                if result.is_ok() {
                    at = at.wrapping_add(run.len);
                }
            }
        });
        if result.is_err() && at != iova {
            domain.unmap(iova, at - iova);
            domain.sync();
        }
        Ok(result?)
    }

    /// The pieces that `iova..=iova + len - 1` shows, without holes.
    pub(crate) fn pieces(&self, iova: u64, len: u64) -> Result<Vec<Piece>, Error> {
        let last = range_last(iova, len)?;
        let mut pieces = Vec::new();
        self.contiguous(iova, last, |first, last, start, area| {
            let byte = area.byte + (first - start);
            pieces.push(Piece { pages: area.pages, byte, len: last - first + 1 });
            Ok(())
        })?;
        Ok(pieces)
    }

    /// Visits the parts of `iova..=last`, which must be mapped without a hole:
    /// the part's first and last IOVA, its area's first IOVA and the area.
    pub(super) fn contiguous(
        &self,
        iova: u64,
        last: u64,
        mut visit: impl FnMut(u64, u64, u64, &Area) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut next = Some(iova);
        for Entry { start, last: end, value: area } in self.areas.range(iova, last) {
            if next != Some(start.max(iova)) {
                return Err(Error::NotMapped(iova));
            }
            visit(start.max(iova), end.min(last), start, area)?;
            next = if end >= last { None } else { end.checked_add(1) };
            if next.is_none() {
                return Ok(());
            }
        }
        Err(Error::NotMapped(iova))
    }

    /// Unmaps every area in `first..=last`, ascending, adding their bytes to
    /// `bytes`; an area that sticks out is an error, but those before it are
    /// gone by then.
    pub(crate) fn unmap(
        &mut self,
        table: &mut PagesTable,
        first: u64,
        last: u64,
        bytes: &mut u64,
    ) -> Result<Unmapped, Error> {
        let mut next = first;
        while let Some(found) = self.areas.first_overlap(next, last) {
            let Entry { start, last: end, value: area } = found;
            let uses = self.uses_of(start, area);
            if uses.locks > 0 {
                return Err(Error::Busy("a hardware queue lies in this mapping"));
            }
            if start < first || end > last {
                return Err(Error::NotMapped(start));
            }
            if uses.accesses > 0 {
                if let Some(area) = self.areas.get_mut(start) {
                    area.value.prevent_access = true;
                }
                return Ok(Unmapped::Pinned { iova: start, last: end });
            }
            self.remove(table, start);
            *bytes = bytes.wrapping_add((end - start).wrapping_add(1));
            if end >= last {
                break;
            }
            next = end + 1;
        }
        Ok(Unmapped::Done)
    }

    pub(super) fn uses_of(&self, start: u64, area: &Area) -> Use {
        if area.pinned {
            self.uses.get(&start).copied().unwrap_or_default()
        } else {
            Use::default()
        }
    }

    /// Cuts the area that holds `iova`, if any, behind that byte.
    pub(crate) fn cut(&mut self, table: &mut PagesTable, iova: u64) -> Result<(), Error> {
        let Some(Entry { start, last: end, value: &area }) = self.areas.get(iova) else {
            return Ok(());
        };
        if iova == start || iova == end {
            return Ok(());
        }
        if area.prevent_access {
            return Err(Error::Busy("the area is being unmapped"));
        }
        if table.get(area.pages).dmabuf().is_some() {
            return Err(Error::Unsupported("cutting the mapping of a dma-buf"));
        }
        let right = iova + 1;
        let byte = area.byte + (right - start);
        if !right.is_multiple_of(self.alignment) || !byte.is_multiple_of(self.alignment) {
            return Err(Error::Invalid("the cut is misaligned"));
        }
        if area.pinned {
            return Err(Error::Invalid("an access holds the area"));
        }
        if !self.domains.is_empty() && !self.small_pages_only {
            return Err(Error::Invalid("the area may be mapped with large pages"));
        }
        if !self.domains.is_empty() {
            // Each half holds its own pages from now on; the page in which they
            // meet is held by both.
            table.hold(area.pages, area.byte, right - start)?;
            if let Err(error) = table.hold(area.pages, byte, end - iova) {
                table.unhold(area.pages, area.byte, right - start);
                return Err(error);
            }
            table.unhold(area.pages, area.byte, end - start + 1);
        }
        self.areas.remove(start);
        let halves = [(start, iova, area.byte), (right, end, byte)];
        for (first, last, byte) in halves {
            let inserted = self.areas.insert(first, last, Area { byte, ..area });
            debug_assert!(inserted.is_ok(), "the halves fill the range of the whole");
        }
        table.share(area.pages);
        Ok(())
    }

    /// Takes the mappings of matching pages out of every domain. The areas
    /// stay.
    pub(crate) fn unmap_from_domains(
        &self,
        table: &PagesTable,
        matches: impl Fn(&super::pages::Pages) -> bool,
    ) {
        for Entry { start, last: end, value: area } in self.areas.iter() {
            if matches(table.get(area.pages)) {
                for (_, domain) in &self.domains {
                    domain.unmap(start, end - start + 1);
                }
            }
        }
        self.sync();
    }

    /// Whether every area matches.
    pub(crate) fn all_areas(
        &self,
        table: &PagesTable,
        matches: impl Fn(&super::pages::Pages) -> bool,
    ) -> bool {
        self.areas.iter().all(|area| matches(table.get(area.value.pages)))
    }

    /// Unmaps everything; only for an IOAS without accesses or locks.
    pub(crate) fn clear(&mut self, table: &mut PagesTable) {
        let starts: Vec<u64> = self.areas.iter().map(|area| area.start).collect();
        starts.into_iter().for_each(|start| self.remove(table, start));
    }
}

/// The last IOVA of a range.
pub(crate) fn range_last(iova: u64, len: u64) -> Result<u64, Error> {
    if len == 0 {
        return Err(Error::Invalid("the length is 0"));
    }
    iova.checked_add(len - 1).ok_or(Error::Overflow("IOVA + length"))
}
