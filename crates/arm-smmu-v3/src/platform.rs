//! What the driver needs of the machine: registers, and memory that the SMMU reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagetable::{OutOfMemory, TableMemory};
use smmuv3::wire::Register;

/// The register file of one SMMU: two pages of 64 KiB, by offset from the first.
///
/// A write is ordered after everything that the same thread stored to DMA memory before it, and a read before
/// everything that it loads from there afterwards (`writel` and `readl` of other systems).
pub trait Registers: Send + Sync {
    /// Reads the 32 bits at `offset`, a multiple of 4.
    fn read32(&self, offset: u32) -> u32;
    /// Writes 32 bits.
    fn write32(&self, offset: u32, value: u32);
    /// Reads the 64 bits at `offset`, a multiple of 8.
    fn read64(&self, offset: u32) -> u64;
    /// Writes 64 bits.
    fn write64(&self, offset: u32, value: u64);
}

impl<R: Registers + ?Sized> Registers for Arc<R> {
    fn read32(&self, offset: u32) -> u32 {
        (**self).read32(offset)
    }
    fn write32(&self, offset: u32, value: u32) {
        (**self).write32(offset, value);
    }
    fn read64(&self, offset: u32) -> u64 {
        (**self).read64(offset)
    }
    fn write64(&self, offset: u32, value: u64) {
        (**self).write64(offset, value);
    }
}

/// The PCIe functions behind an SMMU: what is the driver's to set in their configuration space.
pub trait Functions: Send + Sync {
    /// Sets `ATS Control.Enable` of the function that has this StreamID. When a call that clears it returns, the function
    /// asks for no translation and uses none.
    ///
    /// Called while nothing of the SMMU is waited for, and not to call back into the driver.
    fn enable_ats(&self, stream_id: u32, enable: bool);
}

pub(crate) fn read(registers: &impl Registers, register: Register) -> u32 {
    registers.read32(register.offset())
}

pub(crate) fn write(registers: &impl Registers, register: Register, value: u32) {
    registers.write32(register.offset(), value);
}

pub(crate) fn write64(registers: &impl Registers, register: Register, value: u64) {
    registers.write64(register.offset(), value);
}

/// Memory that the SMMU reads and writes: translation tables, configuration tables and queues live in it.
///
/// It is what page tables need of memory, for any size from 64 bytes on: naturally aligned, atomic 64-bit
/// words, at physical addresses that the SMMU's output size covers. Accesses are coherent.
pub trait DmaMemory: TableMemory + Send + Sync {}

impl<M: TableMemory + Send + Sync> DmaMemory for M {}

/// A piece of DMA memory: given back when dropped, by when the SMMU has forgotten it.
pub(crate) struct Region<M: DmaMemory> {
    memory: Arc<M>,
    address: u64,
    size_log2: u8,
}

impl<M: DmaMemory> Region<M> {
    /// 2^`size_log2` bytes, zeroed and aligned to their size.
    pub(crate) fn new(memory: &Arc<M>, size_log2: u8) -> Result<Self, OutOfMemory> {
        let mut addresses = Vec::with_capacity(1);
        memory.allocate(size_log2, 1, &mut addresses)?;
        let address = addresses.pop().ok_or(OutOfMemory)?;
        let region = Self { memory: memory.clone(), address, size_log2 };
        let words = region.memory.table(address, region.len()).ok_or(OutOfMemory)?;
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        Ok(region)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    fn len(&self) -> usize {
        1 << (self.size_log2 - 3)
    }

    /// All its words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let words = self.memory.table(self.address, self.len());
        words.expect("memory that was allocated stays there")
    }

    /// Fills it with what another of the same size holds.
    pub(crate) fn fill_from(&self, other: &Self) {
        for (to, from) in self.words().iter().zip(other.words()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// The eight words of entry `index`.
    pub(crate) fn entry(&self, index: usize) -> &[AtomicU64; 8] {
        let (entries, _) = self.words().as_chunks();
        &entries[index]
    }
}

impl<M: DmaMemory> Drop for Region<M> {
    fn drop(&mut self) {
        self.memory.free(self.size_log2, &[self.address]);
    }
}

/// The model as the hardware under the driver.
impl<M: smmuv3::Memory, F: smmuv3::Fence> Registers for smmuv3::Smmu<M, F> {
    fn read32(&self, offset: u32) -> u32 {
        self.read32(offset.into())
    }
    fn write32(&self, offset: u32, value: u32) {
        self.write32(offset.into(), value);
    }
    fn read64(&self, offset: u32) -> u64 {
        self.read64(offset.into())
    }
    fn write64(&self, offset: u32, value: u64) {
        self.write64(offset.into(), value);
    }
}
