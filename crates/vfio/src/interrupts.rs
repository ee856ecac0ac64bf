//! A function's interrupts, as the host programs them: a line (INTx), MSI or MSI-X, one kind at a time.
//!
//! A message is written by the device and goes through the IOMMU to the interrupt controller, which signals an eventfd.
//! The line is a level: when it is asserted the eventfd is signalled once, and the line masked until software unmasks
//! it.

use std::sync::Arc;

use host::KernelFile;
use parking_lot::Mutex;
use platform::{Its, ItsDevice, ItsError, Port, Sink, Spawn};

type Trigger = Option<Arc<dyn KernelFile>>;

/// A kind of which one is in use at a time: `VFIO_PCI_*_IRQ_INDEX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// INTx.
    Line,
    Msi,
    MsiX,
}

/// How many a function has of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) line: bool,
    /// A power of two, at most 32, or 0.
    pub(crate) msi: u8,
    /// At most 2048.
    pub(crate) msix: u16,
}

/// See the module.
pub(crate) struct Interrupts {
    its: Arc<Its>,
    table: ItsDevice,
    counts: Counts,
    spawn: Spawn,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What is in use.
    mode: Mode,
    /// The device asserts its line.
    level: bool,
    /// `COMMAND.Interrupt Disable`: the line is not driven.
    line_disabled: bool,
    /// The host asks for the device back.
    request: Trigger,
    /// The device has failed.
    error: Trigger,
}

#[derive(Default)]
enum Mode {
    #[default]
    None,
    Line {
        trigger: Trigger,
        masked: bool,
        unmask: Option<Unmask>,
    },
    Messages {
        kind: Kind,
        /// Where the doorbell's frame is for the device.
        frame: u64,
        triggers: Vec<Trigger>,
    },
}

/// An eventfd that unmasks the line.
struct Unmask {
    file: Arc<dyn KernelFile>,
    /// The process whose thread watches it.
    process: u32,
    _watch: Box<dyn Send + Sync>,
}

impl State {
    /// Signals a line that is asserted and not masked, and masks it.
    fn drive(&mut self) {
        let driven = self.level && !self.line_disabled;
        if let Mode::Line { trigger, masked, .. } = &mut self.mode
            && driven
            && !*masked
        {
            *masked = true;
            signal(trigger.as_ref());
        }
    }

    fn mask(&mut self, mask: bool) {
        if let Mode::Line { masked, .. } = &mut self.mode {
            *masked = mask;
        }
        self.drive();
    }
}

fn signal(trigger: Option<&Arc<dyn KernelFile>>) {
    if let Some(trigger) = trigger {
        trigger.signal();
    }
}

impl Interrupts {
    pub(crate) fn new(
        its: Arc<Its>,
        port: &Port,
        counts: Counts,
        spawn: &Spawn,
    ) -> Result<Self, ItsError> {
        let events = u32::from(counts.msix).max(counts.msi.into());
        let table = its.map_device(port.device_id(), events)?;
        Ok(Self { its, table, counts, spawn: spawn.clone(), state: Arc::default() })
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// How many there are of a kind.
    pub(crate) fn count(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Line => self.counts.line.into(),
            Kind::Msi => self.counts.msi.into(),
            Kind::MsiX => self.counts.msix.into(),
        }
    }

    /// The doorbell's frame, for who prepares it.
    pub(crate) fn frame(&self) -> u64 {
        self.its.frame()
    }

    pub(crate) fn its(&self) -> &Arc<Its> {
        &self.its
    }

    /// The kind in use.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match &self.state.lock().mode {
            Mode::None => None,
            Mode::Line { .. } => Some(Kind::Line),
            Mode::Messages { kind, .. } => Some(*kind),
        }
    }

    /// Has messages of a kind, from `start` on, signal these eventfds, or nothing. `frame` is where the device finds the
    /// doorbell. Only if no other kind is in use.
    pub(crate) fn enable(&self, kind: Kind, frame: u64, start: u16, new: Vec<Trigger>) {
        let count = self.count(kind) as usize;
        let mut state = self.state.lock();
        if !matches!(&state.mode, Mode::Messages { kind: old, .. } if *old == kind) {
            state.mode = Mode::Messages { kind, frame, triggers: vec![None; count] };
        }
        let Mode::Messages { frame: place, triggers, .. } = &mut state.mode else { return };
        *place = frame;
        for (event, trigger) in (usize::from(start)..count).zip(new) {
            let sink = trigger.clone().map(|file| -> Sink { Arc::new(move || file.signal()) });
            self.table.set(event as u32, sink);
            triggers[event] = trigger;
        }
    }

    /// Has the line signal an eventfd, or nothing.
    pub(crate) fn enable_line(&self, new: Trigger) {
        let mut state = self.state.lock();
        match &mut state.mode {
            Mode::Line { trigger, .. } => *trigger = new,
            mode => *mode = Mode::Line { trigger: new, masked: false, unmask: None },
        }
        state.drive();
    }

    /// Masks the line, or unmasks it: if it is still asserted it is signalled again.
    pub(crate) fn mask_line(&self, mask: bool) {
        self.state.lock().mask(mask);
    }

    /// An eventfd unmasks the line.
    pub(crate) fn is_unmasked_by_eventfd(&self) -> bool {
        matches!(&self.state.lock().mode, Mode::Line { unmask: Some(_), .. })
    }

    /// Has the line unmasked whenever `file` is signalled, or no longer.
    pub(crate) fn unmask_line_by(&self, file: Trigger) -> std::io::Result<()> {
        let new = file.map(|file| self.watch(file)).transpose()?;
        if let Mode::Line { unmask, .. } = &mut self.state.lock().mode {
            *unmask = new;
        }
        Ok(())
    }

    fn watch(&self, file: Arc<dyn KernelFile>) -> std::io::Result<Unmask> {
        let state = Arc::downgrade(&self.state);
        let unmask = move || {
            if let Some(state) = state.upgrade() {
                state.lock().mask(false);
            }
        };
        let watch = file.on_signal(&*self.spawn, Box::new(unmask))?;
        Ok(Unmask { file, process: std::process::id(), _watch: watch })
    }

    /// Watches the eventfd that unmasks the line anew where a machine finds itself in another process, without its threads.
    fn renew_watch(&self) {
        let stale = match &self.state.lock().mode {
            Mode::Line { unmask: Some(unmask), .. } if unmask.process != std::process::id() => {
                unmask.file.clone()
            }
            _ => return,
        };
        if let Err(error) = self.unmask_line_by(Some(stale)) {
            tracing::warn!(%error, "nothing unmasks the interrupt line any more");
        }
    }

    /// No interrupt signals anything any more.
    pub(crate) fn disable(&self) {
        let mut state = self.state.lock();
        if let Mode::Messages { triggers, .. } = std::mem::take(&mut state.mode) {
            for event in 0..triggers.len() {
                self.table.set(event as u32, None);
            }
        }
    }

    /// All that a client has set is gone.
    pub(crate) fn close(&self) {
        self.disable();
        let mut state = self.state.lock();
        (state.request, state.error) = (None, None);
    }

    /// Signals an eventfd as though the device had raised the interrupt.
    pub(crate) fn trigger(&self, event: u16) {
        match &self.state.lock().mode {
            Mode::None => {}
            Mode::Line { trigger, .. } => signal(trigger.as_ref()),
            Mode::Messages { triggers, .. } => {
                signal(triggers.get(usize::from(event)).and_then(Option::as_ref));
            }
        }
    }

    /// What is signalled when the host wants the device back.
    pub(crate) fn set_request(&self, trigger: Trigger) {
        self.state.lock().request = trigger;
    }

    /// What is signalled when the device fails.
    pub(crate) fn set_error(&self, trigger: Trigger) {
        self.state.lock().error = trigger;
    }

    pub(crate) fn trigger_request(&self) {
        signal(self.state.lock().request.as_ref());
    }

    pub(crate) fn trigger_error(&self) {
        signal(self.state.lock().error.as_ref());
    }

    /// `COMMAND.Interrupt Disable`.
    pub(crate) fn disable_line(&self, disabled: bool) {
        let mut state = self.state.lock();
        state.line_disabled = disabled;
        state.drive();
    }

    /// The device asserts its line or takes that back.
    pub(crate) fn set_level(&self, level: bool) {
        if level {
            self.renew_watch();
        }
        let mut state = self.state.lock();
        state.level = level;
        state.drive();
    }

    /// Whether the device asserts its line: `STATUS.Interrupt Status`.
    pub(crate) fn level(&self) -> bool {
        self.state.lock().level
    }

    /// The device raises a vector: a message through the IOMMU, if software has enabled messages. Where there are
    /// fewer than it has vectors, those beyond share the first.
    pub(crate) fn raise(&self, vector: u16, port: &mut Port) {
        let message = {
            let state = self.state.lock();
            let Mode::Messages { frame, triggers, .. } = &state.mode else { return };
            let event = if usize::from(vector) < triggers.len() { vector } else { 0 };
            triggers.get(usize::from(event)).is_some_and(Option::is_some).then_some((*frame, event))
        };
        let Some((frame, event)) = message else { return };
        let address = frame + (self.its.translater() - self.its.frame());
        if let Err(error) = port.message(address, event.into()) {
            tracing::warn!(vector, %error, "an MSI did not reach its doorbell");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use host::{FilePinError, PhysRun, StartThread};
    use platform::{Place, Platform};

    use super::*;

    /// An eventfd that counts who watches it.
    #[derive(Default)]
    struct Eventfd(AtomicUsize);

    impl KernelFile for Eventfd {
        fn pin(&self, _: u64, _: u64, _: &mut dyn FnMut(PhysRun)) -> Result<(), FilePinError> {
            Err(FilePinError::NotMemory)
        }

        fn on_signal(
            &self,
            _: &StartThread<'_>,
            mut signalled: Box<dyn FnMut() + Send>,
        ) -> std::io::Result<Box<dyn Send + Sync>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            signalled();
            Ok(Box::new(()))
        }
    }

    /// As after a fork into which a machine has moved: threads stay behind.
    #[test]
    fn what_unmasks_the_line_is_watched_anew_in_another_process() {
        let spawn: Spawn = Arc::new(|_, _| Ok(()));
        let platform = Platform::new(host_fake::FakeHost::new(1), spawn.clone()).unwrap();
        let (_, port) = platform.add_device("d", &Place::Direct).unwrap();
        let counts = Counts { line: true, msi: 0, msix: 0 };
        let interrupts = Interrupts::new(platform.its(), &port, counts, &spawn).unwrap();
        let file = Arc::new(Eventfd::default());
        interrupts.enable_line(None);
        interrupts.unmask_line_by(Some(file.clone())).unwrap();
        assert!(interrupts.is_unmasked_by_eventfd());
        let watchers = || file.0.load(Ordering::Relaxed);
        interrupts.set_level(true);
        assert_eq!(watchers(), 1);
        if let Mode::Line { unmask: Some(unmask), .. } = &mut interrupts.state.lock().mode {
            unmask.process ^= 1;
        }
        interrupts.set_level(true);
        interrupts.set_level(true);
        assert_eq!(watchers(), 2);
        interrupts.unmask_line_by(None).unwrap();
        assert!(!interrupts.is_unmasked_by_eventfd());
    }
}
