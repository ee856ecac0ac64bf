//! How a device reaches memory and rings doorbells.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use smmuv3::{Devices, Memory, Refused, Requester, Resume, Transaction};

use crate::bus::{Bus, MMIO};
use crate::its::{FRAME_LOG2, Its};
use crate::observe::Watch;
use crate::smmu::{AnyFence, Model};

/// What a device asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// The address: an IOVA behind an IOMMU.
    pub address: u64,
    /// The PASID of the request, if it has one.
    pub pasid: Option<u32>,
    /// A privileged access.
    pub privileged: bool,
}

impl Access {
    /// An unprivileged access without a PASID.
    pub fn at(address: u64) -> Self {
        Self { address, ..Self::default() }
    }

    /// The same on behalf of a PASID.
    #[must_use]
    pub fn with_pasid(self, pasid: u32) -> Self {
        Self { pasid: Some(pasid), ..self }
    }
}

/// A DMA access ended with a bus error: refused by the IOMMU, or nothing answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the DMA at {address:#x} was aborted")]
pub struct DmaError {
    /// The address that the device used for the access.
    pub address: u64,
}

/// A device's way to memory: one for each of its threads that do DMA.
pub struct Port {
    bus: Arc<Bus>,
    doorbells: Arc<Itses>,
    /// What the interrupt controller knows the device by.
    device_id: u32,
    /// The device is being reset: nothing waits.
    halted: Arc<AtomicBool>,
    way: Way,
    watch: Watch,
}

enum Way {
    /// Through an SMMU.
    Translated {
        stream_id: u32,
        requester: Mutex<Requester<Arc<Bus>, AnyFence>>,
        stalls: Arc<Stalls>,
    },
    /// Behind no IOMMU: addresses are physical.
    Direct,
}

/// The interrupt controllers of a machine.
#[derive(Default)]
pub(crate) struct Itses(pub(crate) Mutex<Vec<Arc<Its>>>);

impl Itses {
    fn at(&self, address: u64) -> Option<Arc<Its>> {
        let frame = address >> FRAME_LOG2 << FRAME_LOG2;
        self.0.lock().iter().find(|its| its.frame() == frame).cloned()
    }
}

impl Port {
    pub(crate) fn new(
        bus: &Arc<Bus>,
        doorbells: &Arc<Itses>,
        device_id: u32,
        behind: Option<(&Arc<Model>, u32, &Arc<Stalls>)>,
        watch: Watch,
    ) -> Self {
        let way = match behind {
            Some((model, stream_id, stalls)) => Way::Translated {
                stream_id,
                requester: Mutex::new(model.requester()),
                stalls: stalls.clone(),
            },
            None => Way::Direct,
        };
        let halted = Arc::default();
        Self { bus: bus.clone(), doorbells: doorbells.clone(), device_id, halted, way, watch }
    }

    /// A port of the same device for another thread.
    #[must_use]
    pub fn another(&self) -> Self {
        let way = match &self.way {
            Way::Translated { stream_id, requester, stalls } => Way::Translated {
                stream_id: *stream_id,
                requester: Mutex::new(requester.lock().smmu().requester()),
                stalls: stalls.clone(),
            },
            Way::Direct => Way::Direct,
        };
        let (bus, doorbells) = (self.bus.clone(), self.doorbells.clone());
        let (halted, watch) = (self.halted.clone(), self.watch.clone());
        Self { bus, doorbells, device_id: self.device_id, halted, way, watch }
    }

    /// Ends what the device's accesses wait for, and has none of them wait, until it is taken back. For all ports of
    /// the device.
    pub fn halt(&self, halt: bool) {
        self.halted.store(halt, Ordering::Release);
        if let Way::Translated { stalls, .. } = &self.way {
            stalls.wake();
        }
    }

    /// What the interrupt controller knows the device by.
    pub fn device_id(&self) -> u32 {
        self.device_id
    }

    /// Reads memory.
    ///
    /// An access that the SMMU stalls waits here for the answer, so a device does its DMA on a thread of its own.
    pub fn read(&self, access: Access, data: &mut [u8]) -> Result<(), DmaError> {
        let (begun, length) = (self.watch.begin(), data.len());
        let result = self.do_read(access, data);
        self.watch.dma(begun, access, false, length, result);
        result
    }

    fn do_read(&self, access: Access, data: &mut [u8]) -> Result<(), DmaError> {
        let error = DmaError { address: access.address };
        let Way::Translated { stream_id, requester, stalls } = &self.way else {
            return self.bus.read(access.address, data).map_err(|_| error);
        };
        let transaction = transaction(*stream_id, access, false);
        loop {
            let result = requester.lock().begin().read(&transaction, data);
            let resume = match result {
                Ok(()) => return Ok(()),
                Err(Refused::RazWi) => Resume::RazWi,
                Err(Refused::Abort) => Resume::Abort,
                Err(Refused::Stalled { stag }) => stalls.wait(*stream_id, stag, &self.halted),
            };
            match resume {
                Resume::Retry => {}
                Resume::Abort => return Err(error),
                Resume::RazWi => {
                    data.fill(0);
                    return Ok(());
                }
            }
        }
    }

    /// Writes memory; 4 aligned bytes may reach a doorbell. Waits as [`Port::read`] does.
    pub fn write(&self, access: Access, data: &[u8]) -> Result<(), DmaError> {
        let begun = self.watch.begin();
        let result = self.do_write(access, data);
        self.watch.dma(begun, access, true, data.len(), result);
        result
    }

    fn do_write(&self, access: Access, data: &[u8]) -> Result<(), DmaError> {
        let error = DmaError { address: access.address };
        let Way::Translated { stream_id, requester, stalls } = &self.way else {
            return self.write_physical(access.address, data).map_err(|()| error);
        };
        let transaction = transaction(*stream_id, access, true);
        loop {
            let result = self.write_translated(&mut requester.lock(), &transaction, data);
            let resume = match result {
                Ok(()) | Err(Refused::RazWi) => return Ok(()),
                Err(Refused::Abort) => Resume::Abort,
                Err(Refused::Stalled { stag }) => stalls.wait(*stream_id, stag, &self.halted),
            };
            match resume {
                Resume::Retry => {}
                Resume::Abort => return Err(error),
                Resume::RazWi => return Ok(()),
            }
        }
    }

    /// Sends a message: `data` to the doorbell at `address`.
    pub fn message(&self, address: u64, data: u32) -> Result<(), DmaError> {
        let begun = self.watch.begin();
        let result = self.do_write(Access::at(address), &data.to_le_bytes());
        self.watch.message(begun, address, data, result);
        result
    }

    fn write_translated(
        &self,
        requester: &mut Requester<Arc<Bus>, AnyFence>,
        transaction: &Transaction,
        data: &[u8],
    ) -> Result<(), Refused> {
        let mut transfer = requester.begin();
        // Messages are of this size, and little else is.
        if let Ok(message) = <[u8; 4]>::try_from(data) {
            let to = transfer.translate(transaction)?;
            if MMIO.contains(&to.address) {
                return self.ring(to.address, message).ok_or(Refused::Abort);
            }
        }
        transfer.write(transaction, data)
    }

    fn write_physical(&self, address: u64, data: &[u8]) -> Result<(), ()> {
        match <[u8; 4]>::try_from(data) {
            Ok(message) if MMIO.contains(&address) => self.ring(address, message).ok_or(()),
            _ => self.bus.write(address, data).map_err(|_| ()),
        }
    }

    fn ring(&self, address: u64, message: [u8; 4]) -> Option<()> {
        let its = self.doorbells.at(address).filter(|its| its.translater() == address)?;
        its.message(self.device_id, u32::from_le_bytes(message));
        Some(())
    }
}

fn transaction(stream_id: u32, access: Access, write: bool) -> Transaction {
    Transaction {
        substream_id: access.pasid,
        privileged: access.privileged,
        write,
        ..Transaction::read(stream_id, access.address)
    }
}

/// Transactions that an SMMU has stalled, and what became of them.
#[derive(Default)]
pub(crate) struct Stalls {
    /// By StreamID and STAG.
    fates: Mutex<HashMap<(u32, u16), Fate>>,
    answered: Condvar,
}

enum Fate {
    /// Answered, and nobody has fetched the answer yet.
    Answered(Resume),
    /// Nobody waits for the answer any more.
    Abandoned,
}

impl Stalls {
    fn wait(&self, stream_id: u32, stag: u16, halted: &AtomicBool) -> Resume {
        let mut fates = self.fates.lock();
        loop {
            if let Some(Fate::Answered(answer)) = fates.remove(&(stream_id, stag)) {
                return answer;
            }
            if halted.load(Ordering::Acquire) {
                fates.insert((stream_id, stag), Fate::Abandoned);
                return Resume::Abort;
            }
            self.answered.wait(&mut fates);
        }
    }

    fn wake(&self) {
        // With the lock: nobody is between looking and waiting.
        let _fates = self.fates.lock();
        self.answered.notify_all();
    }
}

/// The end of an SMMU's stalls that the SMMU has.
pub(crate) struct StallEnds(pub(crate) Arc<Stalls>);

impl Devices for StallEnds {
    fn resume(&self, stream_id: u32, stag: u16, action: Resume) {
        let mut fates = self.0.fates.lock();
        if fates.remove(&(stream_id, stag)).is_none() {
            fates.insert((stream_id, stag), Fate::Answered(action));
            self.0.answered.notify_all();
        }
    }
}
