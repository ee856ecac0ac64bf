//! What an SMMU is wired to, recorded.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use smmuv3::{
    Abort, AtcCompletion, AtcInvalidate, Devices, Interrupts, Memory, PageResponse, Resume, Wire,
};

/// Memory from address 0 on, in atomic words. What is beyond it aborts, and so do holes.
pub struct Ram {
    words: Box<[AtomicU64]>,
    holes: Mutex<Vec<Range<u64>>>,
    has_holes: AtomicBool,
    failing_writes: AtomicU32,
    loads: AtomicU64,
    after_load: Mutex<Option<AfterLoad>>,
}

/// What to do when the word at an address has been read.
type AfterLoad = (u64, Box<dyn FnOnce() + Send>);

impl Ram {
    pub fn new(size: u64) -> Self {
        Self {
            words: (0..size / 8).map(|_| AtomicU64::new(0)).collect(),
            holes: Mutex::default(),
            has_holes: AtomicBool::new(false),
            failing_writes: AtomicU32::new(0),
            loads: AtomicU64::new(0),
            after_load: Mutex::default(),
        }
    }

    /// Runs `action` once, between the next read of the word at `address` and the use of its value.
    ///
    /// On the thread that reads: it may use the SMMU if that is the walk of a transaction, during which the SMMU
    /// holds no lock.
    pub fn after_load(&self, address: u64, action: impl FnOnce() + Send + 'static) {
        *self.after_load.lock().unwrap() = Some((address, Box::new(action)));
    }

    /// Every access to these bytes aborts.
    pub fn make_hole(&self, bytes: Range<u64>) {
        self.holes.lock().unwrap().push(bytes);
        self.has_holes.store(true, Ordering::Release);
    }

    pub fn fill_holes(&self) {
        self.holes.lock().unwrap().clear();
        self.has_holes.store(false, Ordering::Release);
    }

    /// The SMMU's next write aborts.
    pub fn fail_next_write(&self) {
        self.failing_writes.store(1, Ordering::Release);
    }

    /// How many words were read one by one so far: structures and descriptors.
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    fn word(&self, address: u64) -> Result<&AtomicU64, Abort> {
        if self.has_holes.load(Ordering::Acquire) {
            let holes = self.holes.lock().unwrap();
            if holes.iter().any(|hole| hole.contains(&address)) {
                return Err(Abort);
            }
        }
        self.words.get(usize::try_from(address / 8).unwrap_or(usize::MAX)).ok_or(Abort)
    }

    /// Software's view: a word that is there.
    pub fn get(&self, address: u64) -> u64 {
        self.words[address as usize / 8].load(Ordering::Acquire)
    }

    pub fn set(&self, address: u64, value: u64) {
        self.words[address as usize / 8].store(value, Ordering::Release);
    }

    pub fn get32(&self, address: u64) -> u32 {
        (self.get(address & !7) >> (8 * (address & 4))) as u32
    }
}

impl Memory for Ram {
    fn load(&self, address: u64) -> Result<u64, Abort> {
        assert_eq!(address % 8, 0, "descriptors are read aligned");
        self.loads.fetch_add(1, Ordering::Relaxed);
        let value = self.word(address)?.load(Ordering::Acquire);
        let action = self.after_load.lock().unwrap().take_if(|(at, _)| *at == address);
        if let Some((_, action)) = action {
            action();
        }
        Ok(value)
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        let word = self.word(address)?;
        Ok(word
            .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            .unwrap_or_else(|seen| seen))
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        for (n, byte) in data.iter_mut().enumerate() {
            let at = address + n as u64;
            *byte = (self.word(at & !7)?.load(Ordering::Acquire) >> (8 * (at & 7))) as u8;
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        let fails = |left: u32| left.checked_sub(1);
        if self.failing_writes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fails).is_ok() {
            return Err(Abort);
        }
        for (n, byte) in data.iter().enumerate() {
            let at = address + n as u64;
            let shift = 8 * (at & 7);
            let word = self.word(at & !7)?;
            let replace = |old: u64| Some(old & !(0xff << shift) | u64::from(*byte) << shift);
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, replace);
        }
        Ok(())
    }
}

/// The wired outputs: every edge, in order.
#[derive(Default)]
pub struct Wires(Mutex<Vec<Wire>>);

impl Wires {
    /// The edges since the last call.
    pub fn take(&self) -> Vec<Wire> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Interrupts for Wires {
    fn pulse(&self, wire: Wire) {
        self.0.lock().unwrap().push(wire);
    }
}

/// What the SMMU sent to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    Invalidate(u64, AtcInvalidate),
    Response(PageResponse),
    Resume(u32, u16, Resume),
}

/// The devices' side: records messages, and answers invalidations as told.
#[derive(Default)]
pub struct Endpoints {
    messages: Mutex<Vec<Message>>,
    answer: Mutex<Option<AtcCompletion>>,
}

impl Endpoints {
    /// The messages since the last call.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock().unwrap())
    }

    /// How invalidations are answered from now on.
    pub fn answer(&self, completion: AtcCompletion) {
        *self.answer.lock().unwrap() = Some(completion);
    }
}

impl Devices for Endpoints {
    fn atc_invalidate(&self, tag: u64, request: AtcInvalidate) -> AtcCompletion {
        self.messages.lock().unwrap().push(Message::Invalidate(tag, request));
        self.answer.lock().unwrap().unwrap_or(AtcCompletion::Done)
    }

    fn page_response(&self, response: PageResponse) {
        self.messages.lock().unwrap().push(Message::Response(response));
    }

    fn resume(&self, stream_id: u32, stag: u16, action: Resume) {
        self.messages.lock().unwrap().push(Message::Resume(stream_id, stag, action));
    }
}

/// The three of them, to be shared with an SMMU.
#[derive(Clone)]
pub struct World {
    pub ram: Arc<Ram>,
    pub wires: Arc<Wires>,
    pub devices: Arc<Endpoints>,
}

impl World {
    pub fn new(size: u64) -> Self {
        Self { ram: Arc::new(Ram::new(size)), wires: Arc::default(), devices: Arc::default() }
    }
}
