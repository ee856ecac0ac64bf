//! A machine: memory, the model of an SMMU, and a bus between it and the driver on which things can go wrong.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use arm_smmu_v3::Registers;
use pagetable::{OutOfMemory, TableMemory};
use smmuv3::wire::Register;
use smmuv3::{Abort, Memory};

/// Memory from address 0 on, in atomic words. What is beyond it aborts.
pub struct Ram {
    words: Box<[AtomicU64]>,
    heap: Mutex<Heap>,
    /// Reads by the SMMU of more than a word that fail from now on.
    pub failing_reads: AtomicU32,
    /// After so many more of these reads, all fail.
    good_reads: AtomicU64,
    /// The SMMU's reads of words are slow: others get a chance in between.
    pub slow: AtomicBool,
    watch: RwLock<Option<Watch>>,
    escapes: Mutex<Vec<Escape>>,
}

/// What the SMMU, and devices through it, may use while it is watched.
#[derive(Default, Clone)]
pub struct Watch {
    pub readable: Vec<Range<u64>>,
    pub writable: Vec<Range<u64>>,
}

/// An access that was not among those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    Read(u64),
    Write(u64),
}

/// What is in use, by address, and what was given back, by log2 of its size.
struct Heap {
    next: u64,
    used: BTreeMap<u64, u8>,
    free: BTreeMap<u8, Vec<u64>>,
}

pub const HEAP: u64 = 1 << 20;

impl Ram {
    pub fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            words: (0..size / 8).map(|_| AtomicU64::new(0)).collect(),
            heap: Mutex::new(Heap { next: HEAP, used: BTreeMap::new(), free: BTreeMap::new() }),
            failing_reads: AtomicU32::new(0),
            good_reads: AtomicU64::new(u64::MAX),
            slow: AtomicBool::new(false),
            watch: RwLock::default(),
            escapes: Mutex::default(),
        })
    }

    fn words(&self, address: u64, count: usize) -> Option<&[AtomicU64]> {
        let first = usize::try_from(address / 8).ok()?;
        self.words.get(first..first.checked_add(count)?)
    }

    pub fn get(&self, address: u64) -> u64 {
        self.words[address as usize / 8].load(Ordering::Acquire)
    }

    /// From now on, accesses other than these are escapes.
    pub fn watch(&self, watch: Option<Watch>) {
        *self.watch.write().unwrap() = watch;
    }

    /// What has escaped since the last time.
    pub fn escapes(&self) -> Vec<Escape> {
        std::mem::take(&mut *self.escapes.lock().unwrap())
    }

    fn observe(&self, escape: Escape, length: usize) {
        let watch = &*self.watch.read().unwrap();
        let Some(Watch { readable, writable }) = watch else { return };
        let (ranges, at) = match escape {
            Escape::Read(at) => (readable, at),
            Escape::Write(at) => (writable, at),
        };
        let inside =
            |range: &Range<u64>| range.start <= at && at.saturating_add(length as u64) <= range.end;
        if !ranges.iter().any(inside) {
            self.escapes.lock().unwrap().push(escape);
        }
    }

    /// The SMMU can read no command after the next `count`.
    pub fn fail_reads_after(&self, count: u64) {
        self.good_reads.store(count, Ordering::Release);
    }

    /// How many allocations there are.
    pub fn allocations(&self) -> usize {
        self.heap.lock().unwrap().used.len()
    }

    /// The memory that is in use.
    pub fn in_use(&self) -> Vec<Range<u64>> {
        self.heap.lock().unwrap().used.iter().map(|(at, log2)| *at..at + (1 << log2)).collect()
    }
}

impl TableMemory for Ram {
    fn allocate(
        &self,
        size_log2: u8,
        count: usize,
        tables: &mut Vec<u64>,
    ) -> Result<(), OutOfMemory> {
        let mut heap = self.heap.lock().unwrap();
        let before = tables.len();
        for _ in 0..count {
            let address = if let Some(again) = heap.free.entry(size_log2).or_default().pop() {
                again
            } else {
                let address = heap.next.next_multiple_of(1 << size_log2);
                if self.words(address, 1 << (size_log2 - 3)).is_none() {
                    for table in tables.drain(before..) {
                        heap.used.remove(&table);
                        heap.free.entry(size_log2).or_default().push(table);
                    }
                    return Err(OutOfMemory);
                }
                heap.next = address + (1 << size_log2);
                address
            };
            heap.used.insert(address, size_log2);
            tables.push(address);
            // Nobody may count on anything.
            for word in self.words(address, 1 << (size_log2 - 3)).unwrap() {
                word.store(0xdead_dead_dead_dead, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn free(&self, size_log2: u8, tables: &[u64]) {
        let mut heap = self.heap.lock().unwrap();
        for table in tables {
            assert_eq!(heap.used.remove(table), Some(size_log2), "{table:#x} is not allocated");
            heap.free.entry(size_log2).or_default().push(*table);
        }
    }

    fn table(&self, address: u64, entries: usize) -> Option<&[AtomicU64]> {
        self.words(address, entries)
    }
}

impl Memory for Ram {
    fn load(&self, address: u64) -> Result<u64, Abort> {
        if self.slow.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        self.observe(Escape::Read(address), 8);
        Ok(self.words(address, 1).ok_or(Abort)?[0].load(Ordering::Acquire))
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        self.observe(Escape::Write(address), 8);
        let word = &self.words(address, 1).ok_or(Abort)?[0];
        let result = word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        Ok(result.unwrap_or_else(|seen| seen))
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        let fails = |left: u32| left.checked_sub(1);
        if self.failing_reads.fetch_update(Ordering::AcqRel, Ordering::Acquire, fails).is_ok() {
            return Err(Abort);
        }
        if self.good_reads.load(Ordering::Acquire) != u64::MAX {
            let left = |left: u64| left.checked_sub(1);
            self.good_reads
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, left)
                .map_err(|_| Abort)?;
        }
        for (n, byte) in data.iter_mut().enumerate() {
            let at = address + n as u64;
            *byte = (self.load(at & !7)? >> (8 * (at & 7))) as u8;
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        self.observe(Escape::Write(address), data.len());
        for (n, byte) in data.iter().enumerate() {
            let at = address + n as u64;
            let shift = 8 * (at & 7);
            let word = &self.words(at & !7, 1).ok_or(Abort)?[0];
            let replace = |old: u64| Some(old & !(0xff << shift) | u64::from(*byte) << shift);
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, replace);
        }
        Ok(())
    }
}

pub type Model = Arc<smmuv3::Smmu<Arc<Ram>>>;

/// The bus to the model's registers. Some of them can be made to read as something else, and to ignore writes.
#[derive(Clone)]
pub struct Bus {
    pub model: Model,
    fixed: Arc<Mutex<HashMap<u32, u32>>>,
    /// Every write, in order.
    pub writes: Arc<Mutex<Vec<(u32, u64)>>>,
}

impl Bus {
    pub fn new(model: Model) -> Self {
        Self { model, fixed: Arc::default(), writes: Arc::default() }
    }

    /// The register is stuck at a value from now on.
    pub fn fix(&self, register: Register, value: u32) {
        self.fixed.lock().unwrap().insert(register.offset(), value);
    }

    /// The register works again.
    pub fn release(&self, register: Register) {
        self.fixed.lock().unwrap().remove(&register.offset());
    }

    fn fixed(&self, offset: u32) -> Option<u32> {
        self.fixed.lock().unwrap().get(&offset).copied()
    }
}

impl Registers for Bus {
    fn read32(&self, offset: u32) -> u32 {
        self.fixed(offset).unwrap_or_else(|| Registers::read32(&*self.model, offset))
    }
    fn write32(&self, offset: u32, value: u32) {
        self.writes.lock().unwrap().push((offset, value.into()));
        if self.fixed(offset).is_none() {
            Registers::write32(&*self.model, offset, value);
        }
    }
    fn read64(&self, offset: u32) -> u64 {
        Registers::read64(&*self.model, offset)
    }
    fn write64(&self, offset: u32, value: u64) {
        self.writes.lock().unwrap().push((offset, value));
        Registers::write64(&*self.model, offset, value);
    }
}

pub const RAM_SIZE: u64 = 16 << 20;

/// The hardware, not driven by anybody yet.
pub fn machine(options: smmuv3::Options) -> (Bus, Arc<Ram>) {
    machine_with(options, ())
}

pub fn machine_with(
    options: smmuv3::Options,
    devices: impl smmuv3::Devices + 'static,
) -> (Bus, Arc<Ram>) {
    wired_machine(options, (), devices)
}

pub fn wired_machine(
    options: smmuv3::Options,
    wires: impl smmuv3::Interrupts + 'static,
    devices: impl smmuv3::Devices + 'static,
) -> (Bus, Arc<Ram>) {
    let ram = Ram::new(RAM_SIZE);
    let model = smmuv3::Smmu::new(options, ram.clone(), wires, devices).expect("valid options");
    (Bus::new(model), ram)
}
