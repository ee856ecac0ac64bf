//! A device of the VMM's own: what the host's does behind its IOMMU, this one does in software, through the vSMMU.

use std::sync::Arc;

use parking_lot::Mutex;
use smmuv3::{Fence, Memory, Refused, Requester, SeqCst, Smmu, Transaction};

use crate::engine::Copied;

/// `CHANERR`, as the engine has it.
const NEXT_DESCRIPTOR_ADDRESS: u32 = 1 << 2;
const READ_DATA: u32 = 1 << 8;
const WRITE_DATA: u32 = 1 << 9;
const LENGTH: u32 = 1 << 11;

/// The longest copy, in bytes.
const LONGEST: u32 = 1 << 20;

/// The engine's extension: on whose behalf a descriptor is.
const PROCESS_VALID: u32 = 1 << 31;
const PROCESS_PRIVILEGED: u32 = 1 << 30;

/// A DMA engine that the VMM emulates. It carries out the copies that an [`Engine`](crate::Engine) does.
///
/// It may share a vSMMU with devices of the host: its StreamID is one that is not assigned.
pub struct Emulated<M: Memory = Arc<crate::GuestRam>, F: Fence = SeqCst> {
    requester: Mutex<Requester<M, F>>,
    stream_id: u32,
}

impl<M: Memory, F: Fence> Emulated<M, F> {
    /// A device behind this SMMU.
    pub fn new(smmu: &Arc<Smmu<M, F>>, stream_id: u32) -> Self {
        Self { requester: Mutex::new(smmu.requester()), stream_id }
    }

    /// Copies memory as the descriptor at an address of the device's says, and as
    /// [`Engine::run`](crate::Engine::run) does.
    pub fn run(&self, descriptor: u64) -> Copied {
        self.copy(descriptor).map_or_else(Copied::Refused, |()| Copied::Done)
    }

    fn copy(&self, descriptor: u64) -> Result<(), u32> {
        let mut bytes = [0; 64];
        let descriptor = Transaction::read(self.stream_id, descriptor);
        self.read(&descriptor, &mut bytes).map_err(|_| NEXT_DESCRIPTOR_ADDRESS)?;
        let word =
            |n: usize| bytes.as_chunks().0.get(n).map_or(0, |word| u64::from_le_bytes(*word));
        let process = word(4) as u32;
        let substream_id = (process & PROCESS_VALID != 0).then_some(process & 0xf_ffff);
        let privileged = substream_id.is_some() && process & PROCESS_PRIVILEGED != 0;
        let on_behalf = |transaction| Transaction { substream_id, privileged, ..transaction };
        let from = on_behalf(Transaction::read(self.stream_id, word(1)));
        let to = on_behalf(Transaction::write(self.stream_id, word(2)));
        let size = word(0) as u32;
        if size > LONGEST {
            return Err(LENGTH);
        }
        let mut data = vec![0; size as usize];
        self.read(&from, &mut data).map_err(|_| READ_DATA)?;
        self.requester.lock().begin().write(&to, &data).map_err(|_| WRITE_DATA)
    }

    fn read(&self, from: &Transaction, data: &mut [u8]) -> Result<(), Refused> {
        self.requester.lock().begin().read(from, data)
    }
}
