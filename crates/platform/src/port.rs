//! How a device reaches memory and rings doorbells.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use host::FilePart;
use parking_lot::Mutex;
use smmuv3::{Abort, Memory, Refused, Requester, Resume, Transaction};

use crate::bus::{Bus, MMIO};
use crate::endpoint::{Capabilities, Endpoint, Endpoints, Reach};
use crate::its::{FRAME_LOG2, Its};
use crate::mmio::Registers;
use crate::monitor::Monitor;
use crate::observe::Watch;
use crate::pri::PriStatus;
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
    endpoint: Arc<Endpoint>,
    /// `None`: behind no IOMMU, addresses are physical.
    behind: Option<Behind>,
    watch: Watch,
}

/// The SMMU of a device.
struct Behind {
    stream_id: u32,
    requester: Requester<Arc<Bus>, AnyFence>,
    endpoints: Arc<Endpoints>,
}

/// Where the data of an access comes from, or goes to.
enum Data<'a> {
    /// From memory.
    Read(&'a mut [u8]),
    /// To memory.
    Write(&'a [u8]),
    /// From a file to memory.
    From(FilePart<'a>),
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(data) => data.len(),
            Self::Write(data) => data.len(),
            Self::From(file) => file.len,
        }
    }

    fn is_write(&self) -> bool {
        !matches!(self, Self::Read(_))
    }

    fn part(&mut self, part: Range<usize>) -> Data<'_> {
        match self {
            Self::Read(data) => Data::Read(&mut data[part]),
            Self::Write(data) => Data::Write(&data[part]),
            Self::From(file) => Data::From(file.part(part)),
        }
    }
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
        endpoint: Arc<Endpoint>,
        behind: Option<(&Arc<Model>, u32, &Arc<Endpoints>)>,
        watch: Watch,
    ) -> Self {
        let behind = behind.map(|(model, stream_id, endpoints)| Behind {
            stream_id,
            requester: model.requester(),
            endpoints: endpoints.clone(),
        });
        Self { bus: bus.clone(), doorbells: doorbells.clone(), device_id, endpoint, behind, watch }
    }

    /// A port of the same device for another thread.
    #[must_use]
    pub fn another(&self) -> Self {
        let behind = self.behind.as_ref();
        let behind =
            behind.map(|behind| (behind.requester.smmu(), behind.stream_id, &behind.endpoints));
        let (endpoint, watch) = (self.endpoint.clone(), self.watch.clone());
        Self::new(&self.bus, &self.doorbells, self.device_id, endpoint, behind, watch)
    }

    /// Ends what the device's accesses wait for, and has none of them wait, until it is taken back as often as it was
    /// asked for. For all ports of the device.
    pub fn halt(&self, halt: bool) {
        self.endpoint.halt(halt);
        self.bus.mmio.wake();
        if let Some(behind) = &self.behind {
            behind.endpoints.stalls.wake();
        }
    }

    /// A reset of the function, after which the host enables what was enabled before: the ATC is empty, and nothing is
    /// wrong with page requests.
    pub fn reset(&self) {
        self.endpoint.atc.clear();
        self.endpoint.pri.clear();
    }

    /// Gives registers of the device, `len` bytes and a power of two, a place in the physical address space, where the DMA of
    /// devices reaches them for as long as they are there. `None`: there is no room left.
    pub fn place(&self, len: u64, registers: Weak<dyn Registers>) -> Option<u64> {
        self.bus.mmio.place(len, registers)
    }

    /// What the interrupt controller knows the device by.
    pub fn device_id(&self) -> u32 {
        self.device_id
    }

    /// What the device can do as a PCIe function.
    pub fn capabilities(&self) -> Capabilities {
        self.endpoint.capabilities
    }

    /// `ATS Control.Enable`, which the driver of the SMMU sets: the device translates its accesses before it makes them.
    pub fn has_ats_enabled(&self) -> bool {
        self.endpoint.atc.is_enabled()
    }

    /// The state of the device's page requests, which the driver of the SMMU enables with ATS.
    pub fn page_requests(&self) -> PriStatus {
        self.endpoint.pri.status()
    }

    /// Reads memory.
    ///
    /// An access that the SMMU stalls, or for which a page is asked, waits here for the answer, so a device does its DMA
    /// on a thread of its own.
    #[inline]
    pub fn read(&mut self, access: Access, data: &mut [u8]) -> Result<(), DmaError> {
        self.watched(access, Data::Read(data)).map(drop)
    }

    /// Writes memory; 4 aligned bytes may reach a doorbell. Waits as [`Port::read`] does.
    #[inline]
    pub fn write(&mut self, access: Access, data: &[u8]) -> Result<(), DmaError> {
        self.watched(access, Data::Write(data)).map(drop)
    }

    /// A short cut to [`Port::write`]: bytes of a file, without a copy in between, where memory and file allow. How many
    /// of them, from the first on; the rest has to be read and written.
    pub fn write_from(&mut self, access: Access, from: FilePart<'_>) -> Result<usize, DmaError> {
        self.watched(access, Data::From(from))
    }

    /// Sends a message: `data` to the doorbell at `address`, which is never translated in advance.
    pub fn message(&mut self, address: u64, data: u32) -> Result<(), DmaError> {
        let begun = self.watch.begin();
        let result = self.untranslated(Access::at(address), Data::Write(&data.to_le_bytes()));
        let result = result.map(drop);
        self.watch.message(begun, address, data, result);
        result
    }

    /// How many bytes were moved: all, but for what comes from a file.
    #[inline]
    fn watched(&mut self, access: Access, data: Data<'_>) -> Result<usize, DmaError> {
        let (begun, write, length) = (self.watch.begin(), data.is_write(), data.len());
        let result = self.access(access, data);
        let length = result.unwrap_or(length);
        // A short cut that led nowhere was no access.
        if length > 0 {
            self.watch.dma(begun, access, write, length, result.map(drop));
        }
        result
    }

    #[inline]
    fn access(&mut self, access: Access, data: Data<'_>) -> Result<usize, DmaError> {
        if self.endpoint.atc.is_enabled() {
            return self.by_atc(access, data);
        }
        self.untranslated(access, data)
    }

    #[inline]
    fn untranslated(&mut self, access: Access, mut data: Data<'_>) -> Result<usize, DmaError> {
        let error = DmaError { address: access.address };
        let Self { bus, doorbells, device_id, endpoint, behind, .. } = self;
        let outside = Outside { bus, doorbells, device_id: *device_id, endpoint };
        let Some(behind) = behind else {
            return outside.transfer(access.address, data).map_err(|_| error);
        };
        let transaction = transaction(behind.stream_id, access, data.is_write());
        loop {
            let resume = match issue(&mut behind.requester, &transaction, &mut data, &outside) {
                Ok(moved) => return Ok(moved),
                Err(Refused::RazWi) => Resume::RazWi,
                Err(Refused::Abort) => Resume::Abort,
                Err(Refused::Stalled { stag }) => {
                    let halted = || endpoint.is_halted();
                    behind.endpoints.stalls.wait(behind.stream_id, stag, halted)
                }
            };
            match (resume, data) {
                (Resume::Retry, same) => data = same,
                (Resume::Abort, _) => return Err(error),
                (Resume::RazWi, Data::Read(data)) => {
                    data.fill(0);
                    return Ok(data.len());
                }
                (Resume::RazWi, data) => return Ok(data.len()),
            }
        }
    }

    /// An access of a function with ATS: translated first, then made.
    #[cold]
    #[inline(never)]
    fn by_atc(&mut self, access: Access, mut data: Data<'_>) -> Result<usize, DmaError> {
        let error = DmaError { address: access.address };
        let mut done = 0;
        while done < data.len() {
            let Self { bus, doorbells, device_id, endpoint, behind, .. } = self;
            let Some(behind) = behind else { return Err(error) };
            let at = Access { address: access.address.wrapping_add(done as u64), ..access };
            let mut rest = data.part(done..data.len());
            let model = behind.requester.smmu().clone();
            let (address, len, age) =
                match endpoint.reach(&model, at, rest.is_write(), rest.len())? {
                    Reach::Untranslated => return Ok(done + self.untranslated(at, rest)?),
                    Reach::Translated { address, len, age } => (address, len, age),
                };
            let len = rest.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            let to = Transaction {
                translated: true,
                ..transaction(behind.stream_id, Access::at(address), rest.is_write())
            };
            let outside = Outside { bus, doorbells, device_id: *device_id, endpoint };
            let result = issue(&mut behind.requester, &to, &mut rest.part(0..len), &outside);
            endpoint.finish(&model, age);
            let moved = result.map_err(|_| error)?;
            done += moved;
            if moved < len {
                break;
            }
        }
        Ok(done)
    }
}

/// One transaction, or as many as there are pages.
#[inline]
fn issue(
    requester: &mut Requester<Arc<Bus>, AnyFence>,
    transaction: &Transaction,
    data: &mut Data<'_>,
    outside: &Outside<'_>,
) -> Result<usize, Refused> {
    let mut transfer = requester.begin();
    let left = 0x1000 - (transaction.address & 0xfff) as usize;
    if (1..=left).contains(&data.len()) {
        // Most are in one page, and all messages are.
        let to = transfer.translate(transaction)?.address;
        return Ok(outside.transfer(to, data.part(0..data.len()))?);
    }
    transfer.each_run(transaction, data.len(), |_, address, part| {
        outside.transfer(address, data.part(part))
    })
}

/// A device at what is behind the IOMMU.
struct Outside<'a> {
    bus: &'a Bus,
    doorbells: &'a Itses,
    device_id: u32,
    endpoint: &'a Endpoint,
}

impl Outside<'_> {
    /// Reads or writes memory or registers, or rings a doorbell; how many bytes were moved.
    #[inline]
    fn transfer(&self, address: u64, data: Data<'_>) -> Result<usize, Abort> {
        if MMIO.contains(&address) {
            return self.registers(address, data);
        }
        let len = data.len();
        match data {
            Data::Read(data) => self.bus.read(address, data)?,
            Data::Write(data) => self.bus.write(address, data)?,
            Data::From(file) => return Ok(self.bus.write_from(address, file)),
        }
        Ok(len)
    }

    fn registers(&self, address: u64, data: Data<'_>) -> Result<usize, Abort> {
        let len = data.len();
        if let Data::Write(data) = &data
            && let Ok(message) = <[u8; 4]>::try_from(*data)
            && let Some(its) = self.doorbells.at(address)
        {
            self.ring(&its, address, message)?;
            return Ok(len);
        }
        let halted = || self.endpoint.is_halted();
        match data {
            Data::Read(data) => {
                data.copy_from_slice(&self.bus.mmio.read(address, data.len(), halted)?);
            }
            Data::Write(data) => self.bus.mmio.write(address, data, halted)?,
            // No short cut leads there.
            Data::From(_) => return Ok(0),
        }
        Ok(len)
    }

    fn ring(&self, its: &Its, address: u64, message: [u8; 4]) -> Result<(), Abort> {
        if its.translater() != address {
            return Err(Abort);
        }
        its.message(self.device_id, u32::from_le_bytes(message));
        Ok(())
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
    fates: Monitor<HashMap<(u32, u16), Fate>>,
}

enum Fate {
    /// Answered, and nobody has fetched the answer yet.
    Answered(Resume),
    /// Nobody waits for the answer any more.
    Abandoned,
}

impl Stalls {
    fn wait(&self, stream_id: u32, stag: u16, halted: impl Fn() -> bool) -> Resume {
        let mut fates = self.fates.lock();
        loop {
            if let Some(Fate::Answered(answer)) = fates.remove(&(stream_id, stag)) {
                return answer;
            }
            if halted() {
                fates.insert((stream_id, stag), Fate::Abandoned);
                return Resume::Abort;
            }
            fates = self.fates.wait(fates);
        }
    }

    fn wake(&self) {
        // With the lock: nobody is between looking and waiting.
        let _fates = self.fates.lock();
        self.fates.notify();
    }

    pub(crate) fn resume(&self, stream_id: u32, stag: u16, action: Resume) {
        let mut fates = self.fates.lock();
        if fates.remove(&(stream_id, stag)).is_none() {
            fates.insert((stream_id, stag), Fate::Answered(action));
            self.fates.notify();
        }
    }
}
