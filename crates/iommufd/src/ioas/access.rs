//! Software that reads and writes through an IOAS, or pins parts of it.

use host::{Fault, PAGE_SIZE, PhysRun};
use iommu::Prot;

use super::area::range_last;
use super::pages::{PagesId, PagesTable};
use super::{Ioas, Use};
use crate::Error;

/// The part of one area that an access touches.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// First IOVA of the area.
    area: u64,
    pages: PagesId,
    byte: u64,
    len: u64,
}

/// A direction and its buffer.
pub(crate) enum Transfer<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Transfer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(buf) => buf.len(),
            Self::Write(buf) => buf.len(),
        }
    }
}

impl Ioas {
    fn parts(
        &self,
        table: &PagesTable,
        iova: u64,
        len: u64,
        write: bool,
        page_aligned: bool,
    ) -> Result<Vec<Part>, Error> {
        let last = range_last(iova, len)?;
        let mut parts = Vec::new();
        self.contiguous(iova, last, |from, to, start, area| {
            if area.prevent_access {
                return Err(Error::Invalid("the mapping is going away"));
            }
            let pages = table.get(area.pages);
            let byte = area.byte + (from - start);
            let end = pages.page_offset(byte + (to - from));
            if page_aligned
                && (pages.page_offset(byte) != 0 || (to != last && end != PAGE_SIZE - 1))
            {
                return Err(Error::Invalid("pins need whole pages"));
            }
            let needed = if write { Prot::WRITE } else { Prot::READ };
            if !area.prot.contains(needed) {
                return Err(Error::Permission("the mapping does not allow this access"));
            }
            if pages.dmabuf().is_some() {
                return Err(Error::Invalid("the CPU cannot access a dma-buf"));
            }
            parts.push(Part { area: start, pages: area.pages, byte, len: to - from + 1 });
            Ok(())
        })?;
        Ok(parts)
    }

    /// Pins a range, whole pages of memory, so that it can be used until
    /// [`Ioas::unpin`]. Returns the runs, merged where contiguous.
    pub(crate) fn pin(
        &mut self,
        table: &mut PagesTable,
        iova: u64,
        len: u64,
        write: bool,
    ) -> Result<Vec<PhysRun>, Error> {
        let parts = self.hold(table, iova, len, write)?;
        let mut runs: Vec<PhysRun> = Vec::new();
        for part in &parts {
            table.runs(part.pages, part.byte, part.len, &mut |run| match runs.last_mut() {
                Some(last) if last.pa + last.len == run.pa => last.len += run.len,
                _ => runs.push(run),
            });
            if let Some(area) = self.areas.get_mut(part.area) {
                area.value.pinned = true;
            }
            self.uses.entry(part.area).or_default().accesses += 1;
        }
        Ok(runs)
    }

    fn hold(
        &self,
        table: &mut PagesTable,
        iova: u64,
        len: u64,
        write: bool,
    ) -> Result<Vec<Part>, Error> {
        let parts = self.parts(table, iova, len, write, true)?;
        for (done, part) in parts.iter().enumerate() {
            if let Err(error) = table.hold(part.pages, part.byte, part.len) {
                for part in &parts[..done] {
                    table.unhold(part.pages, part.byte, part.len);
                }
                return Err(error);
            }
        }
        Ok(parts)
    }

    /// Pins a range and keeps its areas from being unmapped until
    /// [`Ioas::unlock`].
    pub(crate) fn lock(
        &mut self,
        table: &mut PagesTable,
        iova: u64,
        len: u64,
    ) -> Result<Vec<PhysRun>, Error> {
        self.add_lock(table)?;
        let runs = self.pin(table, iova, len, false).inspect_err(|_| self.remove_lock())?;
        self.adjust_locks(iova, len, |uses| {
            uses.accesses -= 1;
            uses.locks += 1;
        });
        Ok(runs)
    }

    /// Takes back one [`Ioas::lock`] of the same range.
    pub(crate) fn unlock(&mut self, table: &mut PagesTable, iova: u64, len: u64) {
        self.adjust_locks(iova, len, |uses| {
            uses.accesses += 1;
            uses.locks -= 1;
        });
        self.unpin(table, iova, len);
        self.remove_lock();
    }

    fn adjust_locks(&mut self, iova: u64, len: u64, adjust: impl Fn(&mut Use)) {
        let Ok(last) = range_last(iova, len) else { return };
        for area in self.areas.range(iova, last) {
            if let Some(uses) = self.uses.get_mut(&area.start) {
                adjust(uses);
            }
        }
    }

    /// Takes back one [`Ioas::pin`] of the same range.
    pub(crate) fn unpin(&mut self, table: &mut PagesTable, iova: u64, len: u64) {
        let Ok(last) = range_last(iova, len) else {
            return;
        };
        let mut parts = Vec::new();
        let visited = self.contiguous(iova, last, |from, to, start, area| {
            let byte = area.byte + (from - start);
            parts.push(Part { area: start, pages: area.pages, byte, len: to - from + 1 });
            Ok(())
        });
        debug_assert!(visited.is_ok(), "pinned areas cannot go away");
        for part in parts {
            table.unhold(part.pages, part.byte, part.len);
            let Some(uses) = self.uses.get_mut(&part.area) else {
                continue;
            };
            uses.accesses = uses.accesses.saturating_sub(1);
            if uses.accesses == 0 && uses.locks == 0 {
                self.uses.remove(&part.area);
                if let Some(area) = self.areas.get_mut(part.area) {
                    area.value.pinned = false;
                }
            }
        }
    }

    /// Reads or writes bytes at any IOVA.
    pub(crate) fn transfer(
        &self,
        table: &PagesTable,
        iova: u64,
        mut transfer: Transfer<'_>,
    ) -> Result<(), Error> {
        let write = matches!(transfer, Transfer::Write(_));
        let parts = self.parts(table, iova, transfer.len() as u64, write, false)?;
        let memory = table.memory().clone();
        let mut done = 0usize;
        for part in parts {
            let mut result = Ok(());
            table.visit(part.pages, part.byte, part.len, &mut |run| {
                let range = done..done + run.len as usize;
                done = range.end;
                if result.is_ok() {
                    result = match &mut transfer {
                        Transfer::Read(buf) => memory.read(run.pa, &mut buf[range]),
                        Transfer::Write(buf) => memory.write(run.pa, &buf[range]),
                    };
                }
            })?;
            result.map_err(|_| Fault { va: iova })?;
        }
        Ok(())
    }
}
