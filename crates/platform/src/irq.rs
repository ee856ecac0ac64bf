//! Interrupt lines of an SMMU: an edge wakes a thread, which runs the driver's handler.
//!
//! Edges come in the middle of other things, often from the driver's own register writes, so the handler cannot run
//! there.

use std::sync::{Arc, Weak};

use smmuv3::{Interrupts, Wire};

use crate::monitor::Monitor;

/// Starts a thread of the machine's with this name.
pub type Spawn = Arc<dyn Fn(&str, Box<dyn FnOnce() + Send>) -> std::io::Result<()> + Send + Sync>;

/// What a handler is called with until there is nothing to do.
pub(crate) type Handler = Weak<dyn Fn() + Send + Sync>;

/// The lines of one SMMU.
pub(crate) struct Lines {
    name: String,
    spawn: Spawn,
    state: Monitor<State>,
}

#[derive(Default)]
struct State {
    handler: Option<Handler>,
    pending: bool,
    /// The process that the thread runs in: a forked child has none of its own.
    thread_of: Option<u32>,
    closed: bool,
}

impl Lines {
    pub(crate) fn new(name: &str, spawn: &Spawn) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), spawn: spawn.clone(), state: Monitor::default() })
    }

    /// Edges are handled by `handler` from now on, those before it included.
    pub(crate) fn connect(self: &Arc<Self>, handler: Handler) {
        let mut state = self.state.lock();
        state.handler = Some(handler);
        if state.pending {
            self.start(&mut state);
        }
    }

    /// No edge is handled any more.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.state.notify();
    }

    fn edge(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.pending = true;
        if state.handler.is_some() {
            self.start(&mut state);
        }
        self.state.notify();
    }

    /// Makes sure that there is a thread.
    fn start(self: &Arc<Self>, state: &mut State) {
        let process = std::process::id();
        if state.thread_of == Some(process) || state.closed {
            return;
        }
        let lines = self.clone();
        match (self.spawn)(&self.name, Box::new(move || lines.run())) {
            Ok(()) => state.thread_of = Some(process),
            Err(error) => tracing::error!(smmu = self.name, %error, "no thread for interrupts"),
        }
    }

    fn run(&self) {
        loop {
            let handler = {
                let mut state = self.state.lock();
                while !state.pending && !state.closed {
                    state = self.state.wait(state);
                }
                if state.closed {
                    return;
                }
                state.pending = false;
                state.handler.clone()
            };
            match handler.and_then(|handler| handler.upgrade()) {
                Some(handler) => handler(),
                None => return,
            }
        }
    }
}

/// The end of the lines that the SMMU has.
pub(crate) struct LineEnds(pub(crate) Arc<Lines>);

impl Interrupts for LineEnds {
    fn pulse(&self, wire: Wire) {
        // The driver waits for commands by polling.
        if matches!(wire, Wire::Eventq | Wire::Priq | Wire::Gerror) {
            self.0.edge();
        }
    }
}
