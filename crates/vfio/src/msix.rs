//! The MSI-X table of a function, as the host programs it: vectors to messages, messages to eventfds.

use std::sync::Arc;

use host::KernelFile;
use parking_lot::Mutex;
use platform::{Its, ItsDevice, ItsError, Port, Sink};

/// See the module.
pub(crate) struct Msix {
    its: Arc<Its>,
    table: ItsDevice,
    state: Mutex<State>,
    vectors: u16,
}

#[derive(Default)]
struct State {
    /// Where the doorbell's frame is for the device, once interrupts are enabled.
    frame: Option<u64>,
    triggers: Vec<Option<Arc<dyn KernelFile>>>,
}

impl Msix {
    pub(crate) fn new(its: Arc<Its>, port: &Port, vectors: u16) -> Result<Self, ItsError> {
        let table = its.map_device(port.device_id(), vectors.into())?;
        Ok(Self { its, table, state: Mutex::default(), vectors })
    }

    pub(crate) fn vectors(&self) -> u16 {
        self.vectors
    }

    /// The doorbell's frame, for who prepares it.
    pub(crate) fn frame(&self) -> u64 {
        self.its.frame()
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.state.lock().frame.is_some()
    }

    /// Has vectors from `start` on signal these eventfds, or nothing. `frame` is where the device finds the doorbell.
    pub(crate) fn enable(
        &self,
        frame: u64,
        start: u16,
        triggers: Vec<Option<Arc<dyn KernelFile>>>,
    ) {
        let mut state = self.state.lock();
        state.frame = Some(frame);
        state.triggers.resize(self.vectors.into(), None);
        for (vector, trigger) in (usize::from(start)..).zip(triggers) {
            let sink = trigger.clone().map(|file| -> Sink { Arc::new(move || file.signal()) });
            self.table.set(vector as u32, sink);
            state.triggers[vector] = trigger;
        }
    }

    /// No vector signals anything any more.
    pub(crate) fn disable(&self) {
        let mut state = self.state.lock();
        *state = State::default();
        for vector in 0..self.vectors {
            self.table.set(vector.into(), None);
        }
    }

    /// Signals a vector's eventfd as though the device had raised it.
    pub(crate) fn trigger(&self, vector: u16) {
        let trigger = self.state.lock().triggers.get(usize::from(vector)).cloned().flatten();
        if let Some(trigger) = trigger {
            trigger.signal();
        }
    }

    /// The device raises a vector: a message through the IOMMU.
    pub(crate) fn raise(&self, vector: u16, port: &mut Port) {
        let frame = {
            let state = self.state.lock();
            let set = state.triggers.get(usize::from(vector)).is_some_and(Option::is_some);
            state.frame.filter(|_| set)
        };
        let Some(frame) = frame else { return };
        let address = frame + (self.its.translater() - self.its.frame());
        if let Err(error) = port.message(address, vector.into()) {
            tracing::warn!(vector, %error, "an MSI did not reach its doorbell");
        }
    }
}
