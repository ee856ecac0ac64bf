//! What an emulated PCI device is made of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use platform::{Access, DmaError, FilePart, Port};

use crate::interrupts::{Interrupts, Kind};

/// What a function is, in its configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Class code: base class, sub-class, programming interface, 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// An emulated PCI function. Authors of devices implement this.
///
/// Methods are called by any thread, several at a time. None may wait: DMA belongs on a thread of the device's, which holds no
/// lock meanwhile that they take, because DMA may reach registers of other devices, and its own.
pub trait Device: Send + Sync {
    /// What it is.
    fn identity(&self) -> Identity;

    /// The size of each memory BAR in bytes, a power of two of at least 4096; 0 is none. BARs are 64 bits wide: the
    /// next number is taken, too. The last two belong to the MSI-X table of a device with vectors.
    fn bars(&self) -> [u64; 6];

    /// How many MSI-X vectors it has, at most 2048.
    fn vectors(&self) -> u16;

    /// How many MSI vectors it has: a power of two, at most 32, or 0.
    fn messages(&self) -> u8 {
        0
    }

    /// Whether it has an interrupt line, INTA: see [`Bus::set_line`].
    fn has_line(&self) -> bool {
        false
    }

    /// Its vendor-specific capabilities (09h): of each, what follows the byte with its length. There is room for 80 bytes,
    /// 3 of each being the header.
    fn capabilities(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// A program takes it, which comes before its first access. A device may refuse: what it needs is somebody else's.
    fn open(&self) -> Result<(), InUse> {
        Ok(())
    }

    /// The program has given it back, and it was reset.
    fn close(&self) {}

    /// Reads registers: `data` is 1, 2, 4 or 8 bytes at an offset that is a multiple of that, inside the BAR.
    fn read(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes registers, likewise.
    fn write(&self, bar: usize, offset: u64, data: &[u8]);

    /// Function level reset: every register as after power-on, and no DMA or interrupt of before happens after it
    /// returns.
    fn reset(&self);
}

/// What a device needs is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what the device needs is in use")]
pub struct InUse;

/// What a device reaches of the machine: one for each of its threads.
pub struct Bus {
    port: Port,
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) interrupts: OnceLock<Interrupts>,
    /// `COMMAND.Bus Master Enable`: without it there is neither DMA nor a message.
    pub(crate) master: AtomicBool,
    pub(crate) virtual_function: Option<u16>,
}

impl Bus {
    pub(crate) fn new(port: Port, shared: &Arc<Shared>) -> Self {
        Self { port, shared: shared.clone() }
    }

    /// The bus of a device that is no function of a machine, for its tests: it may use memory, and raises nothing.
    pub fn alone(port: Port) -> Self {
        let (interrupts, master) = (OnceLock::new(), AtomicBool::new(true));
        Self { port, shared: Arc::new(Shared { interrupts, master, virtual_function: None }) }
    }

    /// Its number, from 0, if it is a virtual function: one of those that the machine file asks for with `vfs`. They are
    /// made as the device is itself, and may be something else than it is.
    pub fn virtual_function(&self) -> Option<u16> {
        self.shared.virtual_function
    }

    /// The same for another thread.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { port: self.port.another(), shared: self.shared.clone() }
    }

    /// Bits of the PASIDs that it may use; 0 if it has none.
    pub fn pasid_bits(&self) -> u8 {
        self.port.capabilities().pasid_bits
    }

    /// Calls `quiesce` with nothing of the device's DMA waiting for an answer, neither for stalls nor for page requests:
    /// what a device does that waits for its own thread because it is reset.
    pub fn without_waiting<T>(&self, quiesce: impl FnOnce() -> T) -> T {
        self.port.halt(true);
        let result = quiesce();
        self.port.halt(false);
        result
    }

    /// Reads memory.
    pub fn read(&mut self, access: Access, data: &mut [u8]) -> Result<(), DmaError> {
        self.mastering(access)?;
        self.port.read(access, data)
    }

    /// Writes memory.
    pub fn write(&mut self, access: Access, data: &[u8]) -> Result<(), DmaError> {
        self.mastering(access)?;
        self.port.write(access, data)
    }

    /// A short cut to [`Bus::write`]: bytes of a file, without a copy in between, where memory and file allow. How many of
    /// them, from the first on; the rest has to be read and written.
    pub fn write_from(&mut self, access: Access, from: FilePart<'_>) -> Result<usize, DmaError> {
        self.mastering(access)?;
        self.port.write_from(access, from)
    }

    /// Raises a vector, of MSI-X or of MSI, if software has enabled it. Vectors beyond those that MSI has share its first.
    pub fn raise(&mut self, vector: u16) {
        if self.shared.master.load(Ordering::Acquire)
            && let Some(interrupts) = self.shared.interrupts.get()
        {
            interrupts.raise(vector, &mut self.port);
        }
    }

    /// Asserts the interrupt line (INTx), or takes that back. What is asserted while software uses messages is not seen.
    pub fn set_line(&self, level: bool) {
        if let Some(interrupts) = self.shared.interrupts.get() {
            interrupts.set_level(level);
        }
    }

    /// Whether software has enabled MSI-X, which has masks of its own.
    pub fn is_msix(&self) -> bool {
        let kind = self.shared.interrupts.get().and_then(Interrupts::kind);
        kind == Some(Kind::MsiX)
    }

    fn mastering(&self, access: Access) -> Result<(), DmaError> {
        if self.shared.master.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(DmaError { address: access.address })
        }
    }
}
