//! A device's own thread: it sleeps until registers give it something to do, and a reset waits for it.

use std::sync::Arc;

use platform::{Monitor, Spawn};

use crate::Bus;

/// What the thread of a [`Worker`] works off: the device's state, which registers change meanwhile.
pub trait Work: Send + Sync + 'static {
    /// A bus for the thread.
    fn bus(&self) -> Bus;

    /// Does a piece of what there is to do; whether there may be more.
    fn step(&self, bus: &mut Bus) -> bool;
}

/// A device's own thread, for its DMA: it sleeps until registers give it something to do, and a reset waits for it.
pub struct Worker {
    name: &'static str,
    spawn: Spawn,
    state: Monitor<State>,
}

#[derive(Default)]
struct State {
    wanted: bool,
    busy: bool,
    /// The process that the thread runs in.
    thread_of: Option<u32>,
    closed: bool,
}

impl Worker {
    /// A thread, which starts when there is something to do.
    pub fn new(name: &'static str, spawn: &Spawn) -> Arc<Self> {
        Arc::new(Self { name, spawn: spawn.clone(), state: Monitor::default() })
    }

    /// There is something to do. The first call starts the thread.
    pub fn kick(self: &Arc<Self>, work: &Arc<impl Work>) {
        let mut state = self.state.lock();
        state.wanted = true;
        let process = std::process::id();
        if state.thread_of != Some(process) {
            let (worker, mut bus, work) = (self.clone(), work.bus(), Arc::downgrade(work));
            let run = move || worker.run(|| work.upgrade().is_some_and(|work| work.step(&mut bus)));
            // Without a thread there is no DMA: as a device whose clock stands still.
            if (self.spawn)(self.name, Box::new(run)).is_ok() {
                state.thread_of = Some(process);
            }
        }
        self.state.notify();
    }

    /// Waits until the thread rests, or does not exist. What it works on must have been taken away.
    pub fn rest(&self) {
        let mut state = self.state.lock();
        state.wanted = false;
        while state.busy && state.thread_of == Some(std::process::id()) {
            state = self.state.wait(state);
        }
    }

    /// Ends the thread.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.state.notify();
    }

    fn run(&self, mut step: impl FnMut() -> bool) {
        loop {
            {
                let mut state = self.state.lock();
                state.busy = false;
                self.state.notify();
                while !state.wanted && !state.closed {
                    state = self.state.wait(state);
                }
                if state.closed {
                    return;
                }
                (state.wanted, state.busy) = (false, true);
            }
            while step() {}
        }
    }
}
