//! The Event queue and the PRI queue as their consumer (IHI 0070 §3.5, §7, §8).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagetable::OutOfMemory;
use parking_lot::Mutex;
use smmuv3::wire::register::{Cons, Prod, QueueBase, Register, Ring};

use crate::platform::{DmaMemory, Region, Registers, read, write, write64};

/// log2 of the most entries that a queue is given.
const LARGEST_LOG2: u8 = 10;

/// What [`RecordQueue::take`] found.
pub(crate) struct Records<const WORDS: usize> {
    /// Oldest first; no more than the queue has entries.
    pub(crate) records: Vec<[u64; WORDS]>,
    /// There were more, for which the queue had no room.
    pub(crate) overflow: bool,
}

/// A queue of records of `WORDS` words, a power of two, that the SMMU fills.
pub(crate) struct RecordQueue<R, M: DmaMemory, const WORDS: usize> {
    registers: Arc<R>,
    places: [Register; 3],
    region: Region<M>,
    ring: Ring,
    cons: Mutex<Cons>,
}

/// Where the registers of the Event queue are: base, PROD, CONS.
pub(crate) const EVENTQ: [Register; 3] =
    [Register::EventqBase, Register::EventqProd, Register::EventqCons];
/// Those of the PRI queue.
pub(crate) const PRIQ: [Register; 3] = [Register::PriqBase, Register::PriqProd, Register::PriqCons];

impl<R: Registers, M: DmaMemory, const WORDS: usize> RecordQueue<R, M, WORDS> {
    /// A queue of 2^`log2` entries, or fewer.
    pub(crate) fn new(
        registers: &Arc<R>,
        memory: &Arc<M>,
        places: [Register; 3],
        log2: u8,
    ) -> Result<Self, OutOfMemory> {
        let log2 = log2.min(LARGEST_LOG2);
        let record_log2 = (8 * WORDS).trailing_zeros() as u8;
        Ok(Self {
            registers: registers.clone(),
            places,
            region: Region::new(memory, (log2 + record_log2).max(6))?,
            ring: Ring::new(log2.into()),
            cons: Mutex::default(),
        })
    }

    /// Tells the SMMU where the queue is, which is not enabled.
    pub(crate) fn install(&self) {
        let [base, prod, cons] = self.places;
        *self.cons.lock() = Cons(0);
        let log2 = self.ring.entries().trailing_zeros() as u8;
        let place = QueueBase(0).with_addr(self.region.address()).with_log2size(log2);
        write64(&*self.registers, base, place.with_allocate(true).0);
        write(&*self.registers, prod, 0);
        write(&*self.registers, cons, 0);
    }

    /// Takes out what is there now.
    pub(crate) fn take(&self) -> Records<WORDS> {
        let [_, prod, cons_register] = self.places;
        let mut cons = self.cons.lock();
        let prod = Prod(read(&*self.registers, prod));
        let overflow = prod.ovflg() != cons.ovackflg();
        let mut pointer = cons.rd();
        // No more than there can be, whatever PROD says.
        let count = self.ring.len(prod.wr(), pointer).min(self.ring.entries());
        let mut records = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let index = WORDS * self.ring.index(pointer) as usize;
            let words = &self.region.words()[index..index + WORDS];
            let word = |n: usize| u64::from_le(words[n].load(Ordering::Acquire));
            records.push(std::array::from_fn(word));
            pointer = self.ring.next(pointer);
        }
        if count > 0 || overflow {
            *cons = Cons(0).with_rd(pointer).with_ovackflg(prod.ovflg());
            write(&*self.registers, cons_register, cons.0);
        }
        Records { records, overflow }
    }
}
