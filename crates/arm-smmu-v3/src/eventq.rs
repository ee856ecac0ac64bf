//! The Event queue as its consumer (IHI 0070 §3.5, §7).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagetable::OutOfMemory;
use parking_lot::Mutex;
use smmuv3::wire::Event;
use smmuv3::wire::register::{Cons, Prod, QueueBase, Register, Ring};

use crate::platform::{DmaMemory, Region, Registers, read, write, write64};

/// log2 of the size of a record, in bytes.
const RECORD_LOG2: u8 = 5;
/// log2 of the most entries that the queue is given.
const LARGEST_LOG2: u8 = 10;

/// What [`Smmu::events`](crate::Smmu::events) found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Events {
    /// The records, oldest first. What is not an architected event is left out.
    pub records: Vec<Event>,
    /// There were more, for which the queue had no room.
    pub overflow: bool,
}

/// The Event queue of an SMMU.
pub(crate) struct EventQueue<R, M: DmaMemory> {
    registers: Arc<R>,
    region: Region<M>,
    ring: Ring,
    cons: Mutex<Cons>,
}

impl<R: Registers, M: DmaMemory> EventQueue<R, M> {
    pub(crate) fn new(registers: &Arc<R>, memory: &Arc<M>, log2: u8) -> Result<Self, OutOfMemory> {
        let log2 = log2.min(LARGEST_LOG2);
        Ok(Self {
            registers: registers.clone(),
            region: Region::new(memory, (log2 + RECORD_LOG2).max(6))?,
            ring: Ring::new(log2.into()),
            cons: Mutex::default(),
        })
    }

    /// Tells the SMMU where the queue is. `CR0.EVENTQEN` is 0.
    pub(crate) fn install(&self) {
        *self.cons.lock() = Cons(0);
        let log2 = self.ring.entries().trailing_zeros() as u8;
        let base = QueueBase(0).with_addr(self.region.address()).with_log2size(log2);
        write64(&*self.registers, Register::EventqBase, base.with_allocate(true).0);
        write(&*self.registers, Register::EventqProd, 0);
        write(&*self.registers, Register::EventqCons, 0);
    }

    /// Takes out what is there now.
    pub(crate) fn take(&self) -> Events {
        let mut cons = self.cons.lock();
        let prod = Prod(read(&*self.registers, Register::EventqProd));
        let mut events = Events { overflow: prod.ovflg() != cons.ovackflg(), ..Events::default() };
        let mut pointer = cons.rd();
        // No more than there can be, whatever PROD says.
        for _ in 0..self.ring.len(prod.wr(), pointer).min(self.ring.entries()) {
            let index = 4 * self.ring.index(pointer) as usize;
            let words = &self.region.words()[index..index + 4];
            let raw = std::array::from_fn(|n| u64::from_le(words[n].load(Ordering::Acquire)));
            events.records.extend(Event::decode(&raw));
            pointer = self.ring.next(pointer);
        }
        *cons = Cons(0).with_rd(pointer).with_ovackflg(prod.ovflg());
        write(&*self.registers, Register::EventqCons, cons.0);
        events
    }
}
