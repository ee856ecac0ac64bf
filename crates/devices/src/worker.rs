//! A device's own thread: it sleeps until registers give it something to do, and a reset waits for it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use platform::Spawn;
use vfio::Bus;

/// What the thread works off.
pub(crate) trait Work: Send + Sync + 'static {
    /// A bus for the thread.
    fn bus(&self) -> Bus;

    /// Does a piece of what there is to do; whether there may be more.
    fn step(&self, bus: &mut Bus) -> bool;
}

/// See the module.
pub(crate) struct Worker {
    name: &'static str,
    spawn: Spawn,
    state: Mutex<State>,
    changed: Condvar,
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
    pub(crate) fn new(name: &'static str, spawn: &Spawn) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { name, spawn: spawn.clone(), state, changed })
    }

    /// There is something to do. The first call starts the thread.
    pub(crate) fn kick(self: &Arc<Self>, work: &Arc<impl Work>) {
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
        self.changed.notify_all();
    }

    /// Waits until the thread rests, or does not exist. What it works on must have been taken away.
    pub(crate) fn rest(&self) {
        let mut state = self.state.lock();
        state.wanted = false;
        while state.busy && state.thread_of == Some(std::process::id()) {
            self.changed.wait(&mut state);
        }
    }

    /// Ends the thread.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    fn run(&self, mut step: impl FnMut() -> bool) {
        loop {
            {
                let mut state = self.state.lock();
                state.busy = false;
                self.changed.notify_all();
                while !state.wanted && !state.closed {
                    self.changed.wait(&mut state);
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
