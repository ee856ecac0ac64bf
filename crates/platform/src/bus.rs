//! The physical address space.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host::{FilePart, MACHINE_START, PHYS_BITS, PhysMemory};
use pagetable::{Granule, HeapPool, OutOfMemory, TableMemory};
use smmuv3::{Abort, Memory};

use crate::irq::Spawn;
use crate::mmio::Mmio;

/// log2 of the machine's own memory that there may be at most, in tables of 4 KiB: 4 GiB, which is what it takes to
/// map two terabytes in pages of 4 KiB.
const OWN_TABLES_LOG2: u32 = 20;

/// Where the machine's own memory is: tables and queues of the drivers.
pub(crate) const OWN_MEMORY: Range<u64> = MACHINE_START..MACHINE_START + (1 << 40);

/// Where registers are that devices reach by DMA: doorbells first.
pub(crate) const MMIO: Range<u64> = OWN_MEMORY.end..1 << PHYS_BITS;

/// From where on those are that are no doorbells.
const PEERS: u64 = MMIO.start + (1 << 40);

/// What answers at a physical address: memory of processes, and above it the machine's own, which grows as
/// drivers need it. Registers answer to devices only, not to the walks of an SMMU.
pub struct Bus {
    processes: Arc<dyn PhysMemory>,
    own: HeapPool,
    pub(crate) mmio: Arc<Mmio>,
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.mmio.close();
    }
}

impl Bus {
    /// A bus with this memory of processes. `spawn` starts its thread, if it comes to need one.
    pub(crate) fn new(processes: Arc<dyn PhysMemory>, spawn: &Spawn) -> Arc<Self> {
        let own = HeapPool::new(Granule::K4, OWN_MEMORY.start, 1 << OWN_TABLES_LOG2);
        let mmio = Mmio::new(spawn.clone(), PEERS, MMIO.end);
        Arc::new(Self { processes, own, mmio })
    }

    /// The bytes of the machine's own memory that are in use.
    pub fn own_memory(&self) -> u64 {
        self.own.size()
    }

    /// A short cut to [`write`](Memory::write): see [`PhysMemory::write_from`].
    pub(crate) fn write_from(&self, address: u64, from: FilePart<'_>) -> usize {
        if address < MACHINE_START { self.processes.write_from(address, from) } else { 0 }
    }

    fn own_words(&self, address: u64, len: usize) -> Option<&[AtomicU64]> {
        // A table is never shorter than a page, so a page is what can be looked at.
        let end = address.checked_add(len as u64)?;
        let words = (end.checked_next_multiple_of(8)? - (address & !7)) / 8;
        self.own.table(address & !7, words as usize)
    }
}

/// Applies `f` to each part of `data` that lies in one word: the word's index, the first bit, and the part.
fn by_word(address: u64, len: usize, mut f: impl FnMut(usize, u32, Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = address + done as u64;
        let part = (8 - (at & 7) as usize).min(len - done);
        f(((at / 8) - (address / 8)) as usize, 8 * (at & 7) as u32, done..done + part);
        done += part;
    }
}

impl Memory for Bus {
    fn load(&self, address: u64) -> Result<u64, Abort> {
        if address < MACHINE_START {
            return self.processes.load(address).map_err(|_| Abort);
        }
        let words = self.own.table(address, 1).ok_or(Abort)?;
        Ok(u64::from_le(words[0].load(Ordering::Acquire)))
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        if address < MACHINE_START {
            return self.processes.compare_exchange(address, current, new).map_err(|_| Abort);
        }
        let word = &self.own.table(address, 1).ok_or(Abort)?[0];
        let (current, new) = (current.to_le(), new.to_le());
        let result = word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        Ok(u64::from_le(result.unwrap_or_else(|seen| seen)))
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        if address < MACHINE_START {
            return self.processes.read(address, data).map_err(|_| Abort);
        }
        let words = self.own_words(address, data.len()).ok_or(Abort)?;
        by_word(address, data.len(), |index, shift, part| {
            let bytes = words[index].load(Ordering::Acquire).to_ne_bytes();
            let first = shift as usize / 8;
            data[part.clone()].copy_from_slice(&bytes[first..first + part.len()]);
        });
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        if address < MACHINE_START {
            return self.processes.write(address, data).map_err(|_| Abort);
        }
        let words = self.own_words(address, data.len()).ok_or(Abort)?;
        by_word(address, data.len(), |index, shift, part| {
            let first = shift as usize / 8;
            let change = |word: u64| {
                let mut bytes = word.to_ne_bytes();
                bytes[first..first + part.len()].copy_from_slice(&data[part.clone()]);
                Some(u64::from_ne_bytes(bytes))
            };
            // Others may write the rest of the word.
            let _ = words[index].fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        });
        Ok(())
    }
}

impl TableMemory for Bus {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        self.own.allocate(size_log2, count, tables)
    }

    fn free(&self, size_log2: u8, tables: &[u64]) {
        self.own.free(size_log2, tables);
    }

    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        self.own.table(address, entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_s_own_memory_is_read_and_written_in_bytes_and_words() {
        let spawn: Spawn = Arc::new(|_, _| Err(std::io::ErrorKind::Unsupported.into()));
        let bus = Bus::new(host_fake::FakeHost::new(1), &spawn);
        let mut tables = Vec::new();
        bus.allocate(12, 1, &mut tables).unwrap();
        let at = tables[0];
        assert!(OWN_MEMORY.contains(&at));
        bus.write(at, &[0; 4096]).unwrap();
        bus.write(at + 5, b"across words, and odd").unwrap();
        let mut data = [0; 21];
        bus.read(at + 5, &mut data).unwrap();
        assert_eq!(&data, b"across words, and odd");
        assert_eq!(bus.load(at), Ok(u64::from_le_bytes(*b"\0\0\0\0\0acr")));
        assert_eq!(bus.compare_exchange(at + 64, 1, 2), Ok(0));
        assert_eq!(bus.compare_exchange(at + 64, 0, 2), Ok(0));
        assert_eq!(bus.load(at + 64), Ok(2));
        assert_eq!(bus.read(OWN_MEMORY.end - 8, &mut data), Err(Abort), "nothing there");
        assert_eq!(bus.write(MMIO.end - 1, &data), Err(Abort), "nor there");
        assert_eq!(
            bus.read(u64::MAX - 21, &mut data),
            Err(Abort),
            "nor at the end of all addresses"
        );
        assert_eq!(bus.write(u64::MAX - 3, &data), Err(Abort));
    }
}
