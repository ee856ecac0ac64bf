//! Software in the kernel's place that uses an IOAS as a device would: an
//! emulated device's DMA.

use std::sync::Arc;

use host::{PAGE_SIZE, PhysRun};

use crate::context::{Object, State};
use crate::ioas::{Transfer, Unmapped};
use crate::{Context, Error, Id};

/// Who is asked to let go of pinned pages.
pub trait AccessHandler: Send + Sync {
    /// Part of the IOAS is being unmapped: everything pinned that intersects
    /// `[iova, iova + len)` must be unpinned before this returns, with
    /// [`Context::access_unpin`]. Called without locks.
    fn unmap(&self, iova: u64, len: u64);
}

/// An access object.
pub(crate) struct Access {
    handler: Arc<dyn AccessHandler>,
    /// Where it reads, writes and pins; nowhere while it changes.
    ioas: Option<Id>,
    /// Where what it has pinned lies, until it is told to let go.
    pinned_in: Option<Id>,
    pins: bool,
}

impl Access {
    /// The IOAS that it holds.
    pub(crate) fn holds(&self) -> Option<Id> {
        self.pinned_in
    }
}

impl State {
    pub(crate) fn dispose_access(&mut self, id: Id, access: &Access) {
        self.detach_access(id, access.pinned_in);
    }

    fn detach_access(&mut self, id: Id, ioas_id: Option<Id>) {
        if let Some(ioas_id) = ioas_id {
            if let Ok(ioas) = self.ioas_mut(ioas_id) {
                ioas.remove_access(id);
            }
            self.objects.unhold(ioas_id);
        }
    }
}

/// How often an access may fail to unpin before we give up.
const UNMAP_TRIES: u32 = 100;

impl Context {
    /// Makes an access. One that `pins` makes the IOAS keep to whole pages.
    pub fn access_create(&self, handler: Arc<dyn AccessHandler>, pins: bool) -> Result<Id, Error> {
        let mut state = self.lock();
        let id =
            state.reserve(Object::Access(Access { handler, ioas: None, pinned_in: None, pins }))?;
        state.objects.finalize(id);
        // Its maker holds it: user space cannot destroy it.
        state.objects.hold(id);
        Ok(id)
    }

    /// Destroys an access, whose pins must all be gone.
    pub fn access_destroy(&self, id: Id) -> Result<(), Error> {
        let mut state = self.lock();
        state.access(id)?;
        state.objects.unhold(id);
        state.destroy_unused(id)
    }

    /// Points an access that has no IOAS at one.
    pub fn access_attach(&self, id: Id, ioas_id: Id) -> Result<(), Error> {
        let mut state = self.lock();
        let access = state.access(id)?;
        if access.pinned_in.is_some() {
            return Err(Error::Invalid("the access has an IOAS already"));
        }
        let alignment = if access.pins { PAGE_SIZE } else { 1 };
        let (ioas, pages) = state.ioas_and_pages(ioas_id)?;
        ioas.add_access(pages, id, alignment)?;
        state.objects.hold(ioas_id);
        let access = state.access_mut(id)?;
        (access.ioas, access.pinned_in) = (Some(ioas_id), Some(ioas_id));
        Ok(())
    }

    /// Points an access at another IOAS, after it was asked to unpin everything.
    /// On error it keeps the old one.
    pub fn access_replace(&self, id: Id, ioas_id: Id) -> Result<(), Error> {
        let (handler, old) = {
            let mut state = self.lock();
            let access = state.access(id)?;
            let (handler, pins) = (access.handler.clone(), access.pins);
            let old = access.ioas.ok_or(Error::NotMapped(0))?;
            if old == ioas_id {
                return Ok(());
            }
            let alignment = if pins { PAGE_SIZE } else { 1 };
            let (ioas, pages) = state.ioas_and_pages(ioas_id)?;
            ioas.add_access(pages, id, alignment)?;
            state.objects.hold(ioas_id);
            // No new pins from here on; those there are can still be undone.
            state.access_mut(id)?.ioas = None;
            (handler, old)
        };
        handler.unmap(0, u64::MAX);
        let mut state = self.lock();
        state.detach_access(id, Some(old));
        let access = state.access_mut(id)?;
        (access.ioas, access.pinned_in) = (Some(ioas_id), Some(ioas_id));
        Ok(())
    }

    /// Pins `[iova, iova + len)`: whole pages of mapped memory. The runs can be
    /// used, through the context's physical memory, until
    /// [`Context::access_unpin`] of the same range.
    pub fn access_pin(
        &self,
        id: Id,
        iova: u64,
        len: u64,
        write: bool,
    ) -> Result<Vec<PhysRun>, Error> {
        let mut state = self.lock();
        let access = state.access(id)?;
        if !access.pins {
            return Err(Error::Invalid("this access does not pin"));
        }
        let ioas_id = access.ioas.ok_or(Error::NotMapped(iova))?;
        let (ioas, pages) = state.ioas_and_pages(ioas_id)?;
        ioas.pin(pages, iova, len, write)
    }

    /// Takes back one [`Context::access_pin`] of exactly this range.
    pub fn access_unpin(&self, id: Id, iova: u64, len: u64) {
        let mut state = self.lock();
        let Some(ioas_id) = state.access(id).ok().and_then(|access| access.pinned_in) else {
            return;
        };
        if let Ok((ioas, pages)) = state.ioas_and_pages(ioas_id) {
            ioas.unpin(pages, iova, len);
        }
    }

    /// Reads from any mapped IOVAs.
    pub fn access_read(&self, id: Id, iova: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.access_transfer(id, iova, Transfer::Read(buf))
    }

    /// Writes to any writable IOVAs.
    pub fn access_write(&self, id: Id, iova: u64, buf: &[u8]) -> Result<(), Error> {
        self.access_transfer(id, iova, Transfer::Write(buf))
    }

    fn access_transfer(&self, id: Id, iova: u64, transfer: Transfer<'_>) -> Result<(), Error> {
        let mut state = self.lock();
        let ioas_id = state.access(id)?.ioas.ok_or(Error::NotMapped(iova))?;
        let (ioas, pages) = state.ioas_and_pages(ioas_id)?;
        ioas.transfer(pages, iova, transfer)
    }

    /// Unmaps `first..=last` of an IOAS, asking accesses to let go where they
    /// pin. Returns how many bytes were unmapped, also beside an error.
    pub(crate) fn unmap_range(
        &self,
        ioas_id: Id,
        first: u64,
        last: u64,
    ) -> (u64, Result<(), Error>) {
        let mut bytes = 0;
        let mut next = first;
        let mut tries = 0;
        loop {
            let (iova, end, handlers) = {
                let mut state = self.lock();
                let (ioas, pages) = match state.ioas_and_pages(ioas_id) {
                    Ok(both) => both,
                    Err(error) => return (bytes, Err(error)),
                };
                match ioas.unmap(pages, next, last, &mut bytes) {
                    Ok(Unmapped::Done) => return (bytes, Ok(())),
                    Err(error) => return (bytes, Err(error)),
                    Ok(Unmapped::Pinned { iova, last }) => {
                        let ids: Vec<Id> = ioas.accesses().collect();
                        let handlers: Vec<_> = ids
                            .into_iter()
                            .filter_map(|id| Some(state.access(id).ok()?.handler.clone()))
                            .collect();
                        (iova, last, handlers)
                    }
                }
            };
            tries = if iova == next { tries + 1 } else { 1 };
            if tries > UNMAP_TRIES {
                return (bytes, Err(Error::Deadlock));
            }
            for handler in handlers {
                handler.unmap(iova, (end - iova).wrapping_add(1));
            }
            next = iova;
        }
    }
}
