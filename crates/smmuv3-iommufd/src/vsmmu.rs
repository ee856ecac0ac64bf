//! What a VMM holds.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use smmuv3::{AlreadyAccelerated, AssignError, Fence, Memory, RestoreError, SeqCst, Smmu, State};
use thiserror::Error;

use crate::back::{Back, Statistics, count};
use crate::capabilities::{Capabilities, Incompatible};
use crate::events::{News, Reader};
use crate::faults;
use crate::host::{Device, Host};
use crate::parents::NestParents;
use crate::slot::Slot;
use crate::viommu::Viommu;

/// Reads of a queue of the host in one call, so that a device that keeps faulting does not keep the thread.
const READS: usize = 64;

/// An accelerated vSMMU: a model, and the devices of the host that are behind it.
///
/// Devices are named by their ids at the host. Any thread may call anything at any time.
pub struct Vsmmu<M: Memory, F: Fence = SeqCst> {
    smmu: Arc<Smmu<M, F>>,
    back: Arc<Back>,
    parents: Arc<NestParents>,
    /// Held while a device comes, goes or is renamed, which is rare.
    devices: Mutex<BTreeMap<u32, Arc<Slot>>>,
    reader: Mutex<Reader>,
}

/// Why a device cannot be plugged in, or have a StreamID.
#[derive(Debug, Error)]
pub enum PlugError {
    /// A device with this id is there already.
    #[error("device {0} is plugged in already")]
    Plugged(u32),
    /// There is no such device here.
    #[error("device {0} is not plugged in")]
    Absent(u32),
    /// Another device has the StreamID.
    #[error("StreamID {0:#x} is in use")]
    InUse(u32),
    /// The guest would see less than it was promised.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// The model does not take the StreamID.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// The host refused. With `EINVAL` from a device of another kind than those that are there:
    /// it is behind another SMMU of the host, and needs a vSMMU of its own.
    #[error("the host: {0}")]
    Host(#[from] io::Error),
}

impl<M: Memory, F: Fence> Vsmmu<M, F> {
    /// Puts a model in front of a host. Until the first device comes there is nothing at the host.
    pub fn new(
        smmu: Arc<Smmu<M, F>>,
        host: Arc<dyn Host>,
        parents: Arc<NestParents>,
    ) -> Result<Self, AlreadyAccelerated> {
        let back = Arc::new(Back::new(host));
        smmu.accelerate(back.clone())?;
        Ok(Self { smmu, back, parents, devices: Mutex::default(), reader: Mutex::default() })
    }

    /// The model.
    pub fn smmu(&self) -> &Arc<Smmu<M, F>> {
        &self.smmu
    }

    /// The page table that guest-physical addresses go through, once a device is there.
    pub fn nest_parent(&self) -> Option<u32> {
        self.back.viommu.read().as_ref().map(|viommu| viommu.parent.id())
    }

    /// What went wrong so far.
    pub fn statistics(&self) -> Statistics {
        self.back.counters.read()
    }

    /// Takes a device, which from now on is attached under this vSMMU, and aborts until it has a StreamID.
    pub fn plug(&self, device: Arc<dyn Device>) -> Result<(), PlugError> {
        let mut devices = self.devices.lock();
        let id = device.id();
        if devices.contains_key(&id) {
            return Err(PlugError::Plugged(id));
        }
        let info = self.back.host.hw_info(id)?;
        Capabilities::validate(self.smmu.options(), &info)?;
        let existing = self.back.viommu.read().clone();
        let viommu = if let Some(viommu) = existing {
            viommu
        } else {
            let pri = self.smmu.options().pri;
            Arc::new(Viommu::new(&self.back.host, &self.parents, id, &info, pri)?)
        };
        let slot = Slot::new(device, viommu.clone())?;
        self.back.repeat.fetch_or(info.repeats_invalidations(), Ordering::Relaxed);
        *self.back.viommu.write() = Some(viommu);
        devices.insert(id, Arc::new(slot));
        Ok(())
    }

    /// Gives a device its StreamID, another one, or none: when the guest numbers its buses. The
    /// device aborts in between; then it does what the guest configured for the new one.
    ///
    /// After an error it has none, unless the error is about the StreamID.
    pub fn set_stream_id(&self, device: u32, stream_id: Option<u32>) -> Result<(), PlugError> {
        let devices = self.devices.lock();
        let slot = devices.get(&device).ok_or(PlugError::Absent(device))?;
        let old = slot.stream_id();
        if old == stream_id {
            return Ok(());
        }
        if let Some(new) = stream_id {
            if u64::from(new) >> self.smmu.options().sid_bits != 0 {
                return Err(AssignError::OutOfRange(new).into());
            }
            if self.back.streams.read().contains_key(&new) {
                return Err(PlugError::InUse(new));
            }
        }
        self.release(slot)?;
        let Some(new) = stream_id else { return Ok(()) };
        slot.name(new)?;
        self.back.streams.write().insert(new, slot.clone());
        if let Err(error) = self.smmu.assign(new) {
            self.release(slot)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Lets a device go. It is detached.
    pub fn unplug(&self, device: u32) -> Result<(), PlugError> {
        let mut devices = self.devices.lock();
        let slot = devices.remove(&device).ok_or(PlugError::Absent(device))?;
        // Whatever the host says to that, it goes.
        let _ = self.release(&slot);
        Ok(())
    }

    /// Takes a StreamID away. When this returns nobody uses it at the host.
    fn release(&self, slot: &Arc<Slot>) -> io::Result<()> {
        let Some(stream_id) = slot.stream_id() else { return Ok(()) };
        self.smmu.unassign(stream_id);
        // After the invalidation that is under way, if one is.
        self.back.streams.write().remove(&stream_id);
        self.back.faults.forget(stream_id);
        slot.unname()
    }

    /// Calls `use_it` with the file of the host's event queue, if there is a device: it is readable when
    /// [`process_events`](Self::process_events) has something to do. It stays the same from the first device on.
    pub fn with_event_file<T>(&self, use_it: impl FnOnce(BorrowedFd) -> T) -> Option<T> {
        let viommu = self.back.viommu.read().clone()?;
        Some(use_it(viommu.events.file.as_fd()))
    }

    /// As [`with_event_file`](Self::with_event_file), for [`process_page_requests`](Self::process_page_requests). There
    /// is one only if the guest has a PRI queue.
    pub fn with_fault_file<T>(&self, use_it: impl FnOnce(BorrowedFd) -> T) -> Option<T> {
        let viommu = self.back.viommu.read().clone()?;
        viommu.faults.as_ref().map(|queue| use_it(queue.file.as_fd()))
    }

    /// Records the host's events in the guest's queue, without waiting for any. Returns how many there were.
    /// If there are very many it leaves some, and the file stays readable.
    ///
    /// Where the host lost some the guest sees an overflow.
    pub fn process_events(&self) -> io::Result<usize> {
        let Some(viommu) = self.back.viommu.read().clone() else { return Ok(0) };
        // One reader at a time, or events would change places.
        let mut reader = self.reader.lock();
        let mut events = 0;
        for _ in 0..READS {
            let news = reader.read(&viommu.events.file)?;
            if news.is_empty() {
                break;
            }
            for news in news {
                match news {
                    News::Event(event) if self.back.streams.read().contains_key(&event.sid) => {
                        events += 1;
                        self.smmu.inject_event(event);
                    }
                    News::Lost => {
                        count(&self.back.counters.events_lost);
                        self.smmu.inject_lost_events();
                    }
                    News::Event(_) | News::Unknown => {
                        count(&self.back.counters.events_dropped);
                    }
                }
            }
        }
        Ok(events)
    }

    /// Puts the page requests of devices into the guest's PRI queue, without waiting for any. Returns how many there
    /// were. The guest's responses find their way by themselves.
    pub fn process_page_requests(&self) -> io::Result<usize> {
        let Some(viommu) = self.back.viommu.read().clone() else { return Ok(0) };
        let Some(queue) = &viommu.faults else { return Ok(0) };
        let mut requests = 0;
        for _ in 0..READS {
            let found = faults::read(&queue.file)?;
            if found.is_empty() {
                break;
            }
            for fault in found {
                let stream_id = self.stream_of(fault.device);
                let request = stream_id.and_then(|sid| self.back.faults.admit(sid, &fault));
                match request {
                    Some(request) => {
                        requests += 1;
                        self.smmu.page_request(request);
                    }
                    None if fault.last() => {
                        count(&self.back.counters.page_requests_refused);
                        faults::answer(&queue.file, fault.cookie, false);
                    }
                    None => {}
                }
            }
        }
        Ok(requests)
    }

    fn stream_of(&self, device: u32) -> Option<u32> {
        let streams = self.back.streams.read();
        streams.iter().find(|(_, slot)| slot.device.id() == device).map(|(sid, _)| *sid)
    }

    /// Resets the model, as the reset line of the guest's machine does. Devices first do what `GBPA` will say, stay
    /// plugged in, and keep their StreamIDs; what the host still has to tell of the time before is discarded.
    ///
    /// The VMM resets the devices themselves before.
    pub fn reset(&self) -> io::Result<()> {
        self.smmu.reset();
        let Some(viommu) = self.back.viommu.read().clone() else { return Ok(()) };
        let mut reader = self.reader.lock();
        for _ in 0..READS {
            if reader.read(&viommu.events.file)?.is_empty() {
                break;
            }
        }
        let Some(queue) = &viommu.faults else { return Ok(()) };
        for _ in 0..READS {
            let found = faults::read(&queue.file)?;
            if found.is_empty() {
                break;
            }
            let groups = found.iter().filter(|fault| fault.last());
            groups.for_each(|fault| faults::answer(&queue.file, fault.cookie, false));
        }
        Ok(())
    }

    /// The state to be saved: the model's, after what the host had to tell has reached the guest's queues.
    ///
    /// Which devices there are, and their StreamIDs, is the VMM's to know. The VMM has stopped the devices and the
    /// processors before. A page request that the guest has not answered is answered by nobody when the
    /// devices go: they ask again.
    pub fn save(&self) -> io::Result<State> {
        self.process_events()?;
        self.process_page_requests()?;
        Ok(self.smmu.save())
    }

    /// Takes over a saved state. Every device that is plugged in is driven to what the guest had configured for its
    /// StreamID, and everything that the host has cached is invalidated; commands that were under way are
    /// carried out again.
    ///
    /// The model has to have the options of the one that was saved. [`plug`](Self::plug) holds the devices of this
    /// host to them: where the host is less, it fails, and the restore cannot be.
    pub fn restore(&self, state: &State) -> Result<(), RestoreError> {
        self.smmu.restore(state)
    }
}

impl<M: Memory, F: Fence> Drop for Vsmmu<M, F> {
    /// Detaches all devices and destroys what is at the host.
    fn drop(&mut self) {
        for (_, slot) in std::mem::take(&mut *self.devices.lock()) {
            let _ = self.release(&slot);
        }
        *self.back.viommu.write() = None;
    }
}
