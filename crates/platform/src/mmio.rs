//! Registers in the physical address space: what the DMA of one device finds of another (peer to peer).
//!
//! One thread of the machine's carries the accesses out, and the device that makes one waits, unless it is reset. Were they
//! carried out where they are made, two devices that reset each other would wait for each other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::RwLock;
use smmuv3::Abort;

use crate::irq::Spawn;
use crate::monitor::Monitor;
use crate::port::Data;

/// What answers in a range of physical addresses. No method may wait for DMA.
pub trait Registers: Send + Sync {
    /// Reads bytes at an offset, all of them inside; whether anything answered.
    fn read(&self, offset: u64, data: &mut [u8]) -> bool;

    /// Writes bytes, likewise.
    fn write(&self, offset: u64, data: &[u8]) -> bool;
}

/// See the module.
pub(crate) struct Mmio {
    spawn: Spawn,
    windows: RwLock<Windows>,
    state: Monitor<State>,
}

struct Windows {
    /// By their first addresses.
    taken: BTreeMap<u64, Window>,
    next: u64,
    end: u64,
}

struct Window {
    len: u64,
    registers: Weak<dyn Registers>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Tickets of those that are waited for, and what became of them.
    fates: HashMap<u64, Option<Outcome>>,
    next_ticket: u64,
    /// The process that the thread runs in: a forked child has none of its own.
    thread_of: Option<u32>,
    closed: bool,
}

struct Job {
    ticket: u64,
    registers: Arc<dyn Registers>,
    offset: u64,
    transfer: Transfer,
}

enum Transfer {
    /// So many bytes.
    Read(usize),
    Write(Vec<u8>),
}

/// The bytes that were read; `Err`: nothing answered.
type Outcome = Result<Vec<u8>, Abort>;

impl Mmio {
    /// Nothing yet; there is room in `start..end`.
    pub(crate) fn new(spawn: Spawn, start: u64, end: u64) -> Arc<Self> {
        let windows = RwLock::new(Windows { taken: BTreeMap::new(), next: start, end });
        Arc::new(Self { spawn, windows, state: Monitor::default() })
    }

    /// Gives registers of `len` bytes, a power of two, a place, which stays theirs. `None`: there is no room left.
    pub(crate) fn place(&self, len: u64, registers: Weak<dyn Registers>) -> Option<u64> {
        let mut windows = self.windows.write();
        let first = windows.next.checked_next_multiple_of(len)?;
        let next = first.checked_add(len).filter(|next| *next <= windows.end)?;
        windows.next = next;
        windows.taken.insert(first, Window { len, registers });
        Some(first)
    }

    /// An access of a device, which waits until it is done or `halted`.
    pub(crate) fn access(
        self: &Arc<Self>,
        address: u64,
        data: Data<'_>,
        halted: impl Fn() -> bool,
    ) -> Result<(), Abort> {
        let (registers, offset) = self.find(address, data.len())?;
        let transfer = match &data {
            Data::Read(data) => Transfer::Read(data.len()),
            Data::Write(data) => Transfer::Write(data.to_vec()),
        };
        let mut state = self.state.lock();
        self.start(&mut state)?;
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(Job { ticket, registers, offset, transfer });
        state.fates.insert(ticket, None);
        self.state.notify();
        loop {
            if let Some(Some(outcome)) = state.fates.get_mut(&ticket).map(Option::take) {
                state.fates.remove(&ticket);
                let bytes = outcome?;
                if let Data::Read(data) = data {
                    data.copy_from_slice(&bytes);
                }
                return Ok(());
            }
            if halted() {
                // What has not begun never happens.
                state.waiting.retain(|job| job.ticket != ticket);
                state.fates.remove(&ticket);
                return Err(Abort);
            }
            state = self.state.wait(state);
        }
    }

    /// Has those who wait look whether they are halted.
    pub(crate) fn wake(&self) {
        // With the lock: nobody is between looking and waiting.
        let _state = self.state.lock();
        self.state.notify();
    }

    /// Ends the thread.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.state.notify();
    }

    fn find(&self, address: u64, len: usize) -> Result<(Arc<dyn Registers>, u64), Abort> {
        let windows = self.windows.read();
        let (first, window) = windows.taken.range(..=address).next_back().ok_or(Abort)?;
        let offset = address - first;
        let fits = offset.checked_add(len as u64).is_some_and(|end| end <= window.len);
        let registers = window.registers.upgrade().filter(|_| fits);
        Ok((registers.ok_or(Abort)?, offset))
    }

    /// Makes sure that there is a thread.
    fn start(self: &Arc<Self>, state: &mut State) -> Result<(), Abort> {
        let process = std::process::id();
        if state.thread_of != Some(process) {
            let mmio = self.clone();
            (self.spawn)("peer-to-peer", Box::new(move || mmio.run())).map_err(|_| Abort)?;
            state.thread_of = Some(process);
        }
        Ok(())
    }

    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return;
            }
            let Some(Job { ticket, registers, offset, transfer }) = state.waiting.pop_front()
            else {
                state = self.state.wait(state);
                continue;
            };
            drop(state);
            let outcome = match transfer {
                Transfer::Read(len) => {
                    let mut bytes = vec![0; len];
                    registers.read(offset, &mut bytes).then_some(bytes)
                }
                Transfer::Write(bytes) => registers.write(offset, &bytes).then(Vec::new),
            };
            drop(registers);
            state = self.state.lock();
            // Unless nobody waits for it any more.
            if let Some(fate) = state.fates.get_mut(&ticket) {
                *fate = Some(outcome.ok_or(Abort));
                self.state.notify();
            }
        }
    }
}
