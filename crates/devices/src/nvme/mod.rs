//! An NVMe controller (NVM Express 1.4) with any number of namespaces.
//!
//! What it implements and what not is in `docs/nvme.md` of this crate.

mod admin;
mod controller;
mod features;
mod identify;
mod log;
mod namespace;
mod prp;
mod queue;
mod spec;
mod state;

use std::sync::Arc;

use platform::Spawn;
use vfio::{Bus, Device, Identity, InUse, Worker};

use self::controller::Controller;
use self::identify::{DEVICE, VENDOR};
use self::spec::{CC_EN, register};
use self::state::{State, VECTORS};

pub use self::namespace::Namespace;

const BAR_SIZE: u64 = 16 << 10;

/// An NVMe controller.
pub struct Nvme {
    controller: Arc<Controller>,
    worker: Arc<Worker>,
}

impl Nvme {
    /// A controller on this bus, whose thread `spawn` starts. `name` is its serial number, and what the identifiers of
    /// its namespaces are made from.
    pub fn new(bus: Bus, spawn: &Spawn, name: &str, namespaces: Vec<Namespace>) -> Arc<Self> {
        let controller = Arc::new(Controller::new(bus, name, namespaces));
        Arc::new(Self { controller, worker: Worker::new("nvme", spawn) })
    }

    /// Writes a register of 4 bytes.
    fn write_register(&self, at: u64, value: u32) {
        let bus = &self.controller.bus;
        let mut state = self.controller.state.lock();
        match at {
            register::INTMS | register::INTMC => {
                let set = at == register::INTMS;
                let mask = if set { state.mask() | value } else { state.mask() & !value };
                state.set_mask(mask, !bus.is_msix());
                bus.set_line(state.line());
                drop(state);
                self.worker.kick(&self.controller);
            }
            register::CC => {
                let enables = value & CC_EN != 0;
                match (state.is_enabled(), enables) {
                    (false, true) => state.enable(value),
                    (true, false) => {
                        state.begin_disable(value);
                        bus.set_line(false);
                        drop(state);
                        bus.without_waiting(|| self.worker.rest());
                        state = self.controller.state.lock();
                        state.finish_disable();
                    }
                    (false, false) => state.cc = value,
                    (true, true) => {}
                }
                if state.notify_shutdown(value) {
                    drop(state);
                    self.worker.kick(&self.controller);
                }
            }
            register::DOORBELLS.. => {
                state.ring((at - register::DOORBELLS) / 4, value);
                bus.set_line(state.line());
                drop(state);
                self.worker.kick(&self.controller);
            }
            _ => {
                if !state.is_enabled() {
                    state.set_admin_queues(at, value);
                }
            }
        }
    }
}

impl Device for Nvme {
    fn identity(&self) -> Identity {
        Identity {
            vendor: VENDOR,
            device: DEVICE,
            subsystem_vendor: VENDOR,
            subsystem: 0,
            // Mass storage, non-volatile memory, NVM Express.
            class: 0x01_08_02,
            revision: 1,
        }
    }

    fn bars(&self) -> [u64; 6] {
        [BAR_SIZE, 0, 0, 0, 0, 0]
    }

    fn vectors(&self) -> u16 {
        VECTORS
    }

    fn messages(&self) -> u8 {
        32
    }

    fn has_line(&self) -> bool {
        true
    }

    fn open(&self) -> Result<(), InUse> {
        let Controller { name, namespaces, .. } = &*self.controller;
        let images: Vec<_> = namespaces.iter().map(|namespace| &namespace.image).collect();
        crate::lock(name, &images)
    }

    fn close(&self) {
        let namespaces = self.controller.namespaces.iter();
        namespaces.for_each(|namespace| namespace.image.unlock());
    }

    fn read(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        // Doorbells, and what there is not, read as zero.
        data.fill(0);
        if offset < register::END {
            let registers = self.controller.state.lock().registers();
            let there = &registers[offset as usize..];
            let len = data.len().min(there.len());
            data[..len].copy_from_slice(&there[..len]);
        }
    }

    fn write(&self, _bar: usize, offset: u64, data: &[u8]) {
        // Narrower accesses than registers have are none (§3).
        if offset.is_multiple_of(4) {
            for (at, word) in (offset..).step_by(4).zip(data.as_chunks().0) {
                self.write_register(at, u32::from_le_bytes(*word));
            }
        }
    }

    fn reset(&self) {
        {
            let mut state = self.controller.state.lock();
            *state = State::new(state.life + 1);
        }
        self.worker.rest();
    }
}

impl Drop for Nvme {
    fn drop(&mut self) {
        self.worker.close();
    }
}
