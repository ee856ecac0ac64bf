//! Registers in the physical address space: what the DMA of one device finds of another (peer to peer).
//!
//! One thread of the machine's carries the accesses out, and the device that makes one waits, unless it is reset. Were they
//! carried out where they are made, two devices that reset each other would wait for each other. It does not wait for long
//! (PCIe calls that a completion timeout): a `CMD_SYNC` waits for the access, and software for the `CMD_SYNC`.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use smmuv3::Abort;

use crate::irq::Spawn;
use crate::monitor::Monitor;

/// What answers in a range of physical addresses. A method that takes long ends the accesses that wait for it.
pub trait Registers: Send + Sync {
    /// Reads bytes at an offset, all of them inside; whether anything answered.
    fn read(&self, offset: u64, data: &mut [u8]) -> bool;

    /// Writes bytes, likewise.
    fn write(&self, offset: u64, data: &[u8]) -> bool;
}

/// How long a device waits for one access: less than software waits for a `CMD_SYNC`.
const COMPLETION_TIMEOUT: Duration = Duration::from_millis(500);

thread_local! {
    /// This is the thread that carries accesses out.
    static CARRIES_OUT: Cell<bool> = const { Cell::new(false) };
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

    /// A device reads `len` bytes: it waits until that is done, for a while at most, or until the device is `halted`.
    pub(crate) fn read(
        self: &Arc<Self>,
        address: u64,
        len: usize,
        halted: impl Fn() -> bool,
    ) -> Result<Vec<u8>, Abort> {
        let (registers, offset) = self.find(address, len)?;
        self.wait_for(registers, offset, Transfer::Read(len), halted)
    }

    /// A device writes, likewise.
    pub(crate) fn write(
        self: &Arc<Self>,
        address: u64,
        data: &[u8],
        halted: impl Fn() -> bool,
    ) -> Result<(), Abort> {
        let (registers, offset) = self.find(address, data.len())?;
        self.wait_for(registers, offset, Transfer::Write(data.to_vec()), halted).map(drop)
    }

    fn wait_for(
        self: &Arc<Self>,
        registers: Arc<dyn Registers>,
        offset: u64,
        transfer: Transfer,
        halted: impl Fn() -> bool,
    ) -> Outcome {
        if CARRIES_OUT.get() {
            // A message that a register write has raised, which stage 1 leads here: nobody would be left to carry it out.
            return Err(Abort);
        }
        let deadline = Instant::now() + COMPLETION_TIMEOUT;
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
                return outcome;
            }
            if halted() || Instant::now() >= deadline {
                // What has not begun never happens.
                state.waiting.retain(|job| job.ticket != ticket);
                state.fates.remove(&ticket);
                return Err(Abort);
            }
            state = self.state.wait_until(state, deadline);
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
        CARRIES_OUT.set(true);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Each write waits until the test lets it go on.
    struct Slow {
        begun: mpsc::Sender<u64>,
        go_on: parking_lot::Mutex<mpsc::Receiver<()>>,
    }

    impl Registers for Slow {
        fn read(&self, offset: u64, data: &mut [u8]) -> bool {
            data.fill(offset as u8);
            true
        }

        fn write(&self, offset: u64, _data: &[u8]) -> bool {
            self.begun.send(offset).unwrap();
            self.go_on.lock().recv().unwrap();
            offset < 8
        }
    }

    /// Registers that lead to themselves.
    struct Loop(parking_lot::Mutex<Weak<Mmio>>);

    impl Registers for Loop {
        fn read(&self, _offset: u64, _data: &mut [u8]) -> bool {
            let mmio = self.0.lock().upgrade().unwrap();
            mmio.read(0x1000, 1, || false).is_ok()
        }

        fn write(&self, _offset: u64, _data: &[u8]) -> bool {
            true
        }
    }

    #[test]
    fn nobody_waits_for_registers_that_do_not_answer() {
        let mmio = Mmio::new(spawn(), 0x1_0000, 0x2_0000);
        let ((begun, beginnings), (go_on, signals)) = (mpsc::channel(), mpsc::channel());
        let slow = Arc::new(Slow { begun, go_on: parking_lot::Mutex::new(signals) });
        let at = mmio.place(0x1_0000, Arc::downgrade(&(slow.clone() as Arc<_>))).unwrap();
        assert_eq!(mmio.write(at, &[1], || false), Err(Abort));
        assert_eq!(beginnings.recv(), Ok(0));
        // Behind it others wait in vain, until it is over.
        assert_eq!(mmio.read(at + 3, 1, || false), Err(Abort));
        go_on.send(()).unwrap();
        assert_eq!(mmio.read(at + 3, 1, || false), Ok(vec![3]));
        mmio.close();
    }

    #[test]
    fn an_access_does_not_wait_for_itself() {
        let mmio = Mmio::new(spawn(), 0x1000, 0x2000);
        let registers = Arc::new(Loop(parking_lot::Mutex::new(Arc::downgrade(&mmio))));
        mmio.place(0x1000, Arc::downgrade(&(registers.clone() as Arc<dyn Registers>))).unwrap();
        assert_eq!(mmio.read(0x1000, 1, || false), Err(Abort));
        assert_eq!(mmio.write(0x1000, &[1], || false), Ok(()));
        mmio.close();
    }

    fn spawn() -> Spawn {
        Arc::new(|_, run| {
            std::thread::spawn(run);
            Ok(())
        })
    }

    #[test]
    fn what_has_not_begun_when_its_device_is_halted_never_happens() {
        let mmio = Mmio::new(spawn(), 0x1_0000, 0x4_0000);
        let ((begun, beginnings), (go_on, signals)) = (mpsc::channel(), mpsc::channel());
        let slow = Arc::new(Slow { begun, go_on: parking_lot::Mutex::new(signals) });
        let registers: Weak<dyn Registers> = Arc::downgrade(&(slow.clone() as Arc<_>));
        let at = mmio.place(0x2_0000, registers.clone()).unwrap();
        assert_eq!(at, 0x2_0000, "aligned");
        assert_eq!(mmio.place(0x1000, registers), None, "no room is left");
        assert_eq!(mmio.read(at + 5, 2, || false), Ok(vec![5, 5]));
        assert_eq!(mmio.read(at + 0x1_fff8, 9, || false), Err(Abort), "beyond the end");
        assert_eq!(mmio.read(at - 1, 1, || false), Err(Abort), "nothing there");
        let halted = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let write = |offset: u64| {
                let (mmio, halted) = (&mmio, &halted);
                scope.spawn(move || mmio.write(at + offset, &[1], || halted.load(Ordering::SeqCst)))
            };
            let first = write(0);
            assert_eq!(beginnings.recv(), Ok(0));
            let second = write(1);
            while mmio.state.lock().waiting.is_empty() {
                std::thread::yield_now();
            }
            halted.store(true, Ordering::SeqCst);
            mmio.wake();
            assert_eq!((first.join().unwrap(), second.join().unwrap()), (Err(Abort), Err(Abort)));
            halted.store(false, Ordering::SeqCst);
            // The first is carried out all the same, the second is not.
            let third = write(8);
            go_on.send(()).unwrap();
            assert_eq!(beginnings.recv(), Ok(8));
            go_on.send(()).unwrap();
            assert_eq!(third.join().unwrap(), Err(Abort), "the registers say so");
        });
        drop(slow);
        assert_eq!(mmio.read(at, 1, || false), Err(Abort), "they are gone");
        mmio.close();
    }
}
