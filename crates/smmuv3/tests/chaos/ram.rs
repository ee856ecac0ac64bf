//! The memory of a random world, the same for both SMMUs.

use parking_lot::Mutex;
use smmuv3::{Abort, Memory};

use super::plan::{Plan, QUEUES, QUEUES_SIZE};
use crate::naive::Words;

/// What has become of a [`Plan`]'s memory.
pub(crate) struct Ram(Mutex<State>);

struct State {
    plan: Plan,
    /// Words that differ from the plan's.
    written: Vec<(u64, u64)>,
    /// What the model under test wrote since it was last asked.
    log: Vec<(u64, u64)>,
    queues: Box<[u64]>,
    /// STEs and CDs as they were last worked out: by their address.
    lines: Box<[(u64, [Option<u64>; 8])]>,
}

const LINES: usize = 64;

impl State {
    fn get(&mut self, address: u64) -> Option<u64> {
        if let Some(index) = queue_index(address) {
            return Some(self.queues[index]);
        }
        if let Some((_, word)) = self.written.iter().rfind(|(at, _)| *at == address) {
            return Some(*word);
        }
        self.plan.word(address)
    }

    /// All 64 bytes at once, remembered.
    fn line(&mut self, address: u64) -> [Option<u64>; 8] {
        let base = address & !63;
        let slot = (base / 64) as usize % LINES;
        if self.lines[slot].0 != base {
            let words = std::array::from_fn(|n| self.get(base + n as u64 * 8));
            self.lines[slot] = (base, words);
        }
        self.lines[slot].1
    }

    fn load(&mut self, address: u64) -> Option<u64> {
        if queue_index(address).is_none() && self.plan.is_structure(address) {
            return self.line(address)[(address % 64 / 8) as usize];
        }
        self.get(address)
    }

    fn store(&mut self, address: u64, word: u64) -> Result<(), Abort> {
        if let Some(index) = queue_index(address) {
            self.queues[index] = word;
            return Ok(());
        }
        if self.plan.word(address).is_none() {
            return Err(Abort);
        }
        self.log.push((address, word));
        self.written.retain(|(at, _)| *at != address);
        self.written.push((address, word));
        self.lines[(address / 64) as usize % LINES].0 = NOWHERE;
        Ok(())
    }
}

/// The address of no line.
const NOWHERE: u64 = 1;

fn queue_index(address: u64) -> Option<usize> {
    let offset = address.wrapping_sub(QUEUES);
    (offset < QUEUES_SIZE).then_some((offset / 8) as usize)
}

impl Ram {
    pub(crate) fn new(plan: Plan) -> Self {
        Self(Mutex::new(State {
            plan,
            written: Vec::new(),
            log: Vec::new(),
            queues: vec![0; (QUEUES_SIZE / 8) as usize].into(),
            lines: vec![(NOWHERE, [None; 8]); LINES].into(),
        }))
    }

    /// Becomes the memory of another world.
    pub(crate) fn become_new(&self, plan: Plan) {
        let mut state = self.0.lock();
        state.plan = plan;
        state.written.clear();
        state.log.clear();
        state.lines.fill((NOWHERE, [None; 8]));
    }

    /// Undoes what was written to other places than queues.
    pub(crate) fn restore(&self) {
        let mut state = self.0.lock();
        state.written.clear();
        state.lines.fill((NOWHERE, [None; 8]));
    }

    /// Software writes a word, where there is memory.
    pub(crate) fn poke(&self, address: u64, word: u64) {
        let mut state = self.0.lock();
        let _ = state.store(address, word);
        state.log.clear();
    }

    /// What was written to other places than queues since the last call.
    pub(crate) fn take_log(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().log)
    }

    /// Reads a queue entry.
    pub(crate) fn queue_words<const N: usize>(&self, address: u64) -> [u64; N] {
        let index = queue_index(address).expect("a queue");
        let state = self.0.lock();
        std::array::from_fn(|n| state.queues[index + n])
    }

    /// Writes a queue entry.
    pub(crate) fn set_queue_words(&self, address: u64, words: &[u64]) {
        let index = queue_index(address).expect("a queue");
        self.0.lock().queues[index..index + words.len()].copy_from_slice(words);
    }
}

impl Words for Ram {
    fn word(&self, address: u64) -> Option<u64> {
        self.0.lock().load(address)
    }

    fn takes_updates(&self, address: u64) -> bool {
        !self.0.lock().plan.is_rom(address)
    }
}

impl Memory for Ram {
    fn load(&self, address: u64) -> Result<u64, Abort> {
        self.0.lock().load(address).ok_or(Abort)
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<u64, Abort> {
        let mut state = self.0.lock();
        let old = state.load(address).ok_or(Abort)?;
        if state.plan.is_rom(address) {
            return Err(Abort);
        }
        if old == current {
            state.store(address, new)?;
        }
        Ok(old)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Abort> {
        let mut state = self.0.lock();
        for (n, byte) in data.iter_mut().enumerate() {
            let at = address.wrapping_add(n as u64);
            let word = state.load(at & !7).ok_or(Abort)?;
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Abort> {
        let mut state = self.0.lock();
        for (n, byte) in data.iter().enumerate() {
            let at = address.wrapping_add(n as u64);
            let mut word = state.load(at & !7).ok_or(Abort)?.to_le_bytes();
            word[(at % 8) as usize] = *byte;
            state.store(at & !7, u64::from_le_bytes(word))?;
        }
        Ok(())
    }
}
