//! The I/OAT DMA engine, version 3.3: one channel that works off a chain of descriptors in memory.
//!
//! Registers and descriptors are those of Intel's CB3 devices, as Linux's `ioatdma` and the kernel's VFIO selftests
//! drive them. Of the operations it has the copy, the fill, the null descriptor and none of the RAID ones.
//!
//! One thing is ours: an engine with PASIDs looks at the reserved word at byte 32 of a copy descriptor (`rsv1`), which
//! drivers that do not know of it leave zero. An engine without PASIDs ignores it, as hardware does.
//!
//! | bits | what |
//! |---|---|
//! | 31 | source and destination are addresses of a process; the descriptor itself never is |
//! | 30 | with privilege |
//! | 19:0 | its PASID, of which the bits count that the function has |

use std::sync::Arc;

use parking_lot::Mutex;
use platform::Spawn;
use vfio::{Access, Bus, Device, Identity, Work, Worker};

/// The log2 of the longest copy of one descriptor, in bytes.
const XFERCAP: u8 = 16;
const BAR_SIZE: u64 = 16 << 10;

/// Registers of the device.
mod device {
    pub(super) const CHANCNT: u64 = 0x00;
    pub(super) const XFERCAP: u64 = 0x01;
    pub(super) const INTRCTRL: u64 = 0x03;
    pub(super) const ATTNSTATUS: u64 = 0x04;
    pub(super) const CBVER: u64 = 0x08;
    /// Where channels' registers begin.
    pub(super) const CHANNEL: u64 = 0x80;
}

/// `INTRCTRL`: interrupts are on; one is under way; MSI-X.
const MASTER_INT_EN: u8 = 1;
const INT_STATUS: u8 = 1 << 1;
const MSIX_VECTOR_CONTROL: u8 = 1 << 3;

/// Registers of a channel, from its beginning.
mod channel {
    pub(super) const CHANCTRL: u64 = 0x00;
    pub(super) const CHANCMD: u64 = 0x04;
    pub(super) const DMACOUNT: u64 = 0x06;
    pub(super) const CHANSTS: u64 = 0x08;
    pub(super) const CHAINADDR: u64 = 0x10;
    pub(super) const CHANCMP: u64 = 0x18;
    pub(super) const CHANERR: u64 = 0x28;
    pub(super) const CHANERR_MASK: u64 = 0x2c;
    pub(super) const END: u64 = 0x80;
}

/// `CHANCTRL`: lets the channel interrupt once more; has errors write the completion, and interrupt.
const INT_REARM: u16 = 1;
const ERR_COMPLETION_EN: u16 = 1 << 2;
const ERR_INT_EN: u16 = 1 << 4;

/// `CHANCMD`.
const CMD_SUSPEND: u8 = 1 << 2;
const CMD_RESUME: u8 = 1 << 4;
const CMD_RESET: u8 = 1 << 5;

/// `CHANSTS[2:0]`.
const ACTIVE: u64 = 0;
const DONE: u64 = 1;
const SUSPENDED: u64 = 2;
const HALTED: u64 = 3;
/// There is a chain, and nothing to do yet.
const ARMED: u64 = 4;

/// `CHANERR`.
const NEXT_DESCRIPTOR_ADDRESS: u32 = 1 << 2;
const READ_DATA: u32 = 1 << 8;
const WRITE_DATA: u32 = 1 << 9;
const CONTROL: u32 = 1 << 10;
const LENGTH: u32 = 1 << 11;
const COMPLETION_ADDRESS: u32 = 1 << 12;

/// The control word of a descriptor.
const CTL_INT_EN: u32 = 1;
const CTL_COMPL_WRITE: u32 = 1 << 3;
const CTL_NULL: u32 = 1 << 5;
const OP_SHIFT: u32 = 24;
const OP_COPY: u32 = 0;
/// The source is eight bytes, which are repeated.
const OP_FILL: u32 = 1;

/// The word at byte 32 of a descriptor (`rsv1`), of which we make use: see the module.
const PROCESS_VALID: u32 = 1 << 31;
const PROCESS_PRIVILEGED: u32 = 1 << 30;

/// A DMA engine.
pub struct Ioat {
    engine: Arc<Engine>,
    worker: Arc<Worker>,
}

struct Engine {
    /// The thread has one of its own.
    bus: Bus,
    state: Mutex<Channel>,
}

/// The channel, and the few registers beside it that can change.
#[derive(Debug, Clone)]
struct Channel {
    intrctrl: u8,
    control: u16,
    /// It may interrupt; after that, not before it is armed again.
    armed: bool,
    /// There was something to interrupt for while it was not armed.
    interrupt_due: bool,
    status: u64,
    /// The last descriptor that is complete.
    completed: u64,
    next: u64,
    chain: u64,
    completion: u64,
    /// Descriptors that there are, and those that are done, since the chain was set.
    count: u16,
    done: u16,
    error: u32,
    error_mask: u32,
    /// Changes with each reset: what was under way before is forgotten.
    life: u64,
}

impl Channel {
    fn new(life: u64) -> Self {
        Self {
            intrctrl: 0,
            control: 0,
            armed: false,
            interrupt_due: false,
            status: HALTED,
            completed: 0,
            next: 0,
            chain: 0,
            completion: 0,
            count: 0,
            done: 0,
            error: 0,
            error_mask: 0,
            life,
        }
    }

    /// `INTRCTRL` wants the line asserted: the status is not acknowledged, and MSI-X has not taken over.
    fn asserts_line(&self) -> bool {
        let bits = MASTER_INT_EN | INT_STATUS;
        self.intrctrl & (bits | MSIX_VECTOR_CONTROL) == bits
    }

    fn chansts(&self) -> u64 {
        self.completed & !0x3f | self.status
    }
}

impl Ioat {
    /// An engine on this bus, whose thread `spawn` starts.
    pub fn new(bus: Bus, spawn: &Spawn) -> Arc<Self> {
        let engine = Arc::new(Engine { bus, state: Mutex::new(Channel::new(0)) });
        Arc::new(Self { engine, worker: Worker::new("ioat", spawn) })
    }

    fn register(&self, offset: u64) -> (u64, u32) {
        let state = self.engine.state.lock();
        // A register's value, and its size in bytes.
        match offset {
            device::CHANCNT => (1, 1),
            device::XFERCAP => (XFERCAP.into(), 1),
            device::INTRCTRL => (state.intrctrl.into(), 1),
            device::ATTNSTATUS => (u64::from(state.intrctrl & INT_STATUS != 0), 4),
            device::CBVER => (0x33, 1),
            _ => match offset.wrapping_sub(device::CHANNEL) {
                channel::CHANCTRL => (state.control.into(), 2),
                channel::DMACOUNT => (state.count.into(), 2),
                channel::CHANSTS => (state.chansts(), 8),
                channel::CHAINADDR => (state.chain, 8),
                channel::CHANCMP => (state.completion, 8),
                channel::CHANERR => (state.error.into(), 4),
                channel::CHANERR_MASK => (state.error_mask.into(), 4),
                // Nothing, or a later part of one.
                _ => (0, 0),
            },
        }
    }
}

/// A 64-bit register after `data` was written at a byte of it.
fn merged(old: u64, at: u64, data: &[u8]) -> u64 {
    let mut bytes = old.to_le_bytes();
    let first = at as usize;
    let len = data.len().min(8 - first);
    bytes[first..first + len].copy_from_slice(&data[..len]);
    u64::from_le_bytes(bytes)
}

fn number(data: &[u8]) -> u64 {
    merged(0, 0, data)
}

impl Device for Ioat {
    fn identity(&self) -> Identity {
        // Skylake-SP's, which the kernel's VFIO selftests know.
        Identity {
            vendor: 0x8086,
            device: 0x2021,
            subsystem_vendor: 0x8086,
            subsystem: 0,
            class: 0x08_80_00,
            revision: 4,
        }
    }

    fn bars(&self) -> [u64; 6] {
        [BAR_SIZE, 0, 0, 0, 0, 0]
    }

    fn vectors(&self) -> u16 {
        1
    }

    fn messages(&self) -> u8 {
        1
    }

    fn has_line(&self) -> bool {
        true
    }

    fn read(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        let mut at = 0;
        while at < data.len() {
            // From the beginning of a register, or from amid one: none is longer than 8 bytes.
            let offset = offset + at as u64;
            let hit = (offset.saturating_sub(7)..=offset).rev().find_map(|start| {
                let (value, size) = self.register(start);
                let within = offset - start;
                (within < u64::from(size))
                    .then(|| (value >> (8 * within), u64::from(size) - within))
            });
            let (value, left) = hit.unwrap_or((0, 1));
            let part = (left as usize).min(data.len() - at);
            data[at..at + part].copy_from_slice(&value.to_le_bytes()[..part]);
            at += part;
        }
    }

    fn write(&self, _bar: usize, offset: u64, data: &[u8]) {
        let mut state = self.engine.state.lock();
        if offset == device::INTRCTRL {
            let writable = MASTER_INT_EN | MSIX_VECTOR_CONTROL;
            state.intrctrl = state.intrctrl & INT_STATUS & !data[0] | data[0] & writable;
            self.engine.bus.set_line(state.asserts_line());
            return;
        }
        let Some(offset) = offset.checked_sub(device::CHANNEL).filter(|at| *at < channel::END)
        else {
            return;
        };
        match offset {
            channel::CHANCTRL => {
                state.control = number(data) as u16 & !INT_REARM;
                if number(data) as u16 & INT_REARM != 0 {
                    state.armed = true;
                    if state.interrupt_due {
                        // A message is DMA, which is the thread's.
                        drop(state);
                        self.worker.kick(&self.engine);
                    }
                }
            }
            channel::CHANCMD => self.command(state, data[0]),
            channel::DMACOUNT => {
                state.count = number(data) as u16;
                if state.status != HALTED || state.error == 0 {
                    state.status = ACTIVE;
                    drop(state);
                    self.worker.kick(&self.engine);
                }
            }
            0x10..0x18 => {
                state.chain = merged(state.chain, offset - channel::CHAINADDR, data);
                (state.next, state.count, state.done) = (state.chain, 0, 0);
                if state.status == HALTED && state.error == 0 {
                    state.status = ARMED;
                }
            }
            0x18..0x20 => {
                state.completion = merged(state.completion, offset - channel::CHANCMP, data);
            }
            channel::CHANERR => state.error &= !(number(data) as u32),
            channel::CHANERR_MASK => state.error_mask = number(data) as u32,
            _ => {}
        }
    }

    fn reset(&self) {
        {
            let mut state = self.engine.state.lock();
            *state = Channel::new(state.life + 1);
        }
        self.worker.rest();
    }
}

impl Ioat {
    fn command(&self, mut state: parking_lot::MutexGuard<'_, Channel>, command: u8) {
        if command & CMD_RESET != 0 {
            let intrctrl = state.intrctrl;
            *state = Channel { intrctrl, ..Channel::new(state.life + 1) };
            drop(state);
            self.engine.bus.without_waiting(|| self.worker.rest());
        } else if command & CMD_SUSPEND != 0 {
            if state.status != HALTED {
                state.status = SUSPENDED;
            }
        } else if command & CMD_RESUME != 0 && state.status == SUSPENDED {
            state.status = ACTIVE;
            drop(state);
            self.worker.kick(&self.engine);
        }
    }
}

impl Drop for Ioat {
    fn drop(&mut self) {
        self.worker.close();
    }
}

/// One descriptor, 64 bytes in memory; what a copy needs of it.
struct Descriptor {
    size: u32,
    control: u32,
    source: u64,
    destination: u64,
    next: u64,
    /// Our extension, see the module.
    process: u32,
}

impl Descriptor {
    fn decode(bytes: &[u8; 64]) -> Self {
        let long = |at: usize| number(&bytes[at..at + 8]);
        Self {
            size: long(0) as u32,
            control: (long(0) >> 32) as u32,
            source: long(8),
            destination: long(16),
            next: long(24),
            process: long(32) as u32,
        }
    }
}

impl Descriptor {
    /// The PASID that it is to use. The function may use those of `bits` bits, so others are cut to them.
    fn pasid(&self, bits: u8) -> Option<u32> {
        let valid = bits > 0 && self.process & PROCESS_VALID != 0;
        valid.then_some(self.process & ((1 << bits) - 1))
    }

    fn privileged(&self, bits: u8) -> bool {
        self.pasid(bits).is_some() && self.process & PROCESS_PRIVILEGED != 0
    }
}

impl Work for Engine {
    fn bus(&self) -> Bus {
        self.bus.another()
    }

    fn step(&self, bus: &mut Bus) -> bool {
        let (address, life) = {
            let mut state = self.state.lock();
            if state.armed && state.interrupt_due {
                (state.armed, state.interrupt_due) = (false, false);
                let life = state.life;
                drop(state);
                self.interrupt(bus, life);
                return true;
            }
            if state.status != ACTIVE {
                return false;
            }
            if state.done == state.count {
                state.status = DONE;
                return false;
            }
            (state.next, state.life)
        };
        let result = Self::execute(bus, address);
        let mut state = self.state.lock();
        if state.life != life {
            return false;
        }
        let (control, write_completion) = match result {
            Ok(descriptor) => {
                state.completed = address;
                state.next = descriptor.next;
                state.done = state.done.wrapping_add(1);
                (descriptor.control, descriptor.control & CTL_COMPL_WRITE != 0)
            }
            Err(error) => {
                state.error |= error;
                state.status = HALTED;
                let interrupt = if state.control & ERR_INT_EN != 0 { CTL_INT_EN } else { 0 };
                (interrupt, state.control & ERR_COMPLETION_EN != 0)
            }
        };
        if state.status == ACTIVE && state.done == state.count {
            state.status = DONE;
        }
        let (completion, status) = (state.completion, state.chansts());
        let enabled = state.intrctrl & (MSIX_VECTOR_CONTROL | MASTER_INT_EN) != 0;
        let wanted = control & CTL_INT_EN != 0 && enabled;
        let interrupts = wanted && state.armed;
        state.interrupt_due |= wanted && !state.armed;
        state.armed &= !wanted;
        drop(state);
        if write_completion && completion != 0 {
            let written = bus.write(Access::at(completion), &status.to_le_bytes());
            if written.is_err() {
                let mut state = self.state.lock();
                if state.life == life {
                    (state.status, state.error) = (HALTED, state.error | COMPLETION_ADDRESS);
                }
            }
        }
        if interrupts {
            self.interrupt(bus, life);
        }
        true
    }
}

impl Engine {
    /// By a message if software has enabled them, and by the line until it has acknowledged; not at all if there was a reset
    /// meanwhile.
    fn interrupt(&self, bus: &mut Bus, life: u64) {
        {
            let mut state = self.state.lock();
            if state.life != life {
                return;
            }
            state.intrctrl |= INT_STATUS;
            bus.set_line(state.asserts_line());
        }
        bus.raise(0);
    }

    /// Carries out the descriptor at an address; bits of `CHANERR` if that fails.
    fn execute(bus: &mut Bus, address: u64) -> Result<Descriptor, u32> {
        let mut bytes = [0; 64];
        bus.read(Access::at(address), &mut bytes).map_err(|_| NEXT_DESCRIPTOR_ADDRESS)?;
        let descriptor = Descriptor::decode(&bytes);
        if descriptor.control & CTL_NULL != 0 {
            return Ok(descriptor);
        }
        let operation = descriptor.control >> OP_SHIFT;
        if operation != OP_COPY && operation != OP_FILL {
            return Err(CONTROL);
        }
        if descriptor.size > 1 << XFERCAP {
            return Err(LENGTH);
        }
        let bits = bus.pasid_bits();
        let at = |address| Access {
            pasid: descriptor.pasid(bits),
            privileged: descriptor.privileged(bits),
            ..Access::at(address)
        };
        let mut data = vec![0; descriptor.size as usize];
        if operation == OP_COPY {
            bus.read(at(descriptor.source), &mut data).map_err(|_| READ_DATA)?;
        } else {
            let pattern = descriptor.source.to_le_bytes();
            data.iter_mut().zip(pattern.iter().cycle()).for_each(|(byte, with)| *byte = *with);
        }
        bus.write(at(descriptor.destination), &data).map_err(|_| WRITE_DATA)?;
        Ok(descriptor)
    }
}
