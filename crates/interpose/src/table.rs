//! Which descriptors are emulated.

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::handle::{Id, LocalFile, ServerEnd};

/// Descriptors beyond are the kernel's alone; no system allows more by default.
const MAX_FDS: usize = 1 << 20;

/// The slot of each descriptor, 0 for the kernel's own. Written only with the
/// slab locked; 4 MiB of zero pages until touched.
static FDS: [AtomicU32; MAX_FDS] = [const { AtomicU32::new(0) }; MAX_FDS];

/// The slot of an emulated descriptor, or 0: all that a foreign one costs.
#[inline]
pub(crate) fn slot_of(fd: RawFd) -> u32 {
    FDS.get(fd as usize).map_or(0, |slot| slot.load(Ordering::Relaxed))
}

/// An emulated open file as this process knows it.
pub(crate) struct Handle {
    pub(crate) id: Id,
    /// `None`: another process serves it.
    pub(crate) file: Option<Arc<LocalFile>>,
    /// This process's descriptors for it.
    pub(crate) fds: Vec<RawFd>,
    /// The last of them is being closed, and whoever does that releases the file: `close` returns when it is released.
    pub(crate) closing: bool,
}

impl Handle {
    pub(crate) fn new(id: Id, file: Option<Arc<LocalFile>>, fds: Vec<RawFd>) -> Self {
        Self { id, file, fds, closing: false }
    }
}

/// All handles of a process.
#[derive(Default)]
pub(crate) struct Slab {
    /// Slot 0 is never used.
    slots: Vec<Option<Handle>>,
    free: Vec<u32>,
    by_id: HashMap<Id, u32>,
}

impl Slab {
    /// Adds a handle; its descriptors are attached.
    pub(crate) fn insert(&mut self, handle: Handle) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len().max(1);
            self.slots.resize_with(slot + 1, || None);
            slot as u32
        });
        for &fd in &handle.fds {
            set(fd, slot);
        }
        self.by_id.insert(handle.id, slot);
        self.slots[slot as usize] = Some(handle);
        slot
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Handle> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// The handle behind a descriptor.
    #[inline]
    pub(crate) fn by_fd(&self, fd: RawFd) -> Option<&Handle> {
        self.get(slot_of(fd))
    }

    pub(crate) fn by_id(&mut self, id: Id) -> Option<&mut Handle> {
        self.slots[*self.by_id.get(&id)? as usize].as_mut()
    }

    /// Our end of the file with that name, if this process serves it.
    pub(crate) fn own_end(&self, id: Id) -> Option<Arc<ServerEnd>> {
        let handle = self.slots[*self.by_id.get(&id)? as usize].as_ref()?;
        Some(handle.file.as_ref()?.end.clone())
    }

    /// The file of this process with that name.
    pub(crate) fn own_file(&self, id: Id) -> Option<Arc<LocalFile>> {
        self.slots[*self.by_id.get(&id)? as usize].as_ref()?.file.clone()
    }

    /// Says that `fd` is now another descriptor for `id`; false if there is no
    /// such handle or the table has no room for the number.
    pub(crate) fn attach(&mut self, fd: RawFd, id: Id) -> bool {
        let Some(&slot) = self.by_id.get(&id).filter(|_| (fd as usize) < MAX_FDS) else {
            return false;
        };
        self.detach(fd);
        set(fd, slot);
        if let Some(handle) = &mut self.slots[slot as usize] {
            handle.fds.push(fd);
            handle.closing = false;
        }
        true
    }

    /// Says that `fd` is closed; the handle if that was its last descriptor.
    pub(crate) fn detach(&mut self, fd: RawFd) -> Option<Id> {
        let slot = slot_of(fd);
        let handle = self.slots.get_mut(slot as usize)?.as_mut()?;
        set(fd, 0);
        handle.fds.retain(|&other| other != fd);
        handle.fds.is_empty().then_some(handle.id)
    }

    /// The same; if that was its last, whoever says so is going to release the handle.
    pub(crate) fn begin_close(&mut self, fd: RawFd) -> Option<Id> {
        let id = self.detach(fd)?;
        if let Some(handle) = self.by_id(id) {
            handle.closing = true;
        }
        Some(id)
    }

    /// Whoever was about to release handles is not there any more.
    pub(crate) fn abandon_closing(&mut self) {
        self.slots.iter_mut().flatten().for_each(|handle| handle.closing = false);
    }

    /// Forgets a handle that has no descriptors here.
    pub(crate) fn remove_unused(&mut self, id: Id) -> Option<Handle> {
        let slot = *self.by_id.get(&id)?;
        let place = &mut self.slots[slot as usize];
        let handle = place.take_if(|handle| handle.fds.is_empty())?;
        self.by_id.remove(&id);
        self.free.push(slot);
        Some(handle)
    }

    /// Whether any file is served by this process.
    pub(crate) fn serves(&self) -> bool {
        self.iter().any(|handle| handle.file.is_some())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Handle> {
        self.slots.iter().flatten()
    }

    /// The table as a forked child has it: the same descriptors in the same
    /// slots, all served by another process. Takes nothing from `self`.
    pub(crate) fn inherited(&self) -> Self {
        let mut child = Self::default();
        for (slot, handle) in self.slots.iter().enumerate() {
            let handle = handle.as_ref().filter(|handle| !handle.fds.is_empty());
            let handle = handle.map(|handle| Handle::new(handle.id, None, handle.fds.clone()));
            match &handle {
                Some(handle) => drop(child.by_id.insert(handle.id, slot as u32)),
                None if slot > 0 => child.free.push(slot as u32),
                None => {}
            }
            child.slots.push(handle);
        }
        child
    }

    /// The emulated descriptors in a range.
    pub(crate) fn fds_in(&self, first: u32, last: u32) -> Vec<RawFd> {
        let fds = self.iter().flat_map(|handle| &handle.fds).copied();
        fds.filter(|&fd| (first..=last).contains(&(fd as u32))).collect()
    }
}

fn set(fd: RawFd, slot: u32) {
    if let Some(place) = FDS.get(fd as usize) {
        place.store(slot, Ordering::Relaxed);
    }
}
