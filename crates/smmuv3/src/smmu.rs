//! The SMMU as a whole: what is shared between the register bus, the devices and the caches.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::accelerator::Accelerator;
use crate::cache::in_flight::InFlight;
use crate::cache::tlb::{Before, Tlb};
use crate::config::{Context, Rules};
use crate::explain::FaultSink;
use crate::front::{Effect, Front};
use crate::observe::Observer;
use crate::options::{Options, OptionsError};
use crate::platform::{AtcCompletion, Devices, Interrupts, Memory};
use crate::requester::Requester;
use crate::stale::Checker;
use crate::sync::{Fence, SeqCst};
use crate::wire::register::{Cr0, Cr2, Gbpa};

/// An SMMUv3.
///
/// Software reaches it through [`mmio_read`](Self::mmio_read) and [`mmio_write`](Self::mmio_write),
/// devices through [`requester`](Self::requester). Any number of threads may do either at any
/// time. `M` is the memory that tables, queues and transactions are in, `F` the kind of barrier
/// between transactions and invalidations.
pub struct Smmu<M, F = SeqCst> {
    pub(crate) options: Options,
    pub(crate) memory: M,
    pub(crate) interrupts: Box<dyn Interrupts>,
    pub(crate) devices: Box<dyn Devices>,
    pub(crate) accelerator: OnceLock<Box<dyn Accelerator>>,
    pub(crate) tlb: Tlb,
    pub(crate) in_flight: InFlight<F>,
    pub(crate) live: Live,
    pub(crate) front: Mutex<Front>,
    pub(crate) checker: OnceLock<Checker>,
    pub(crate) fault_sink: OnceLock<Box<dyn FaultSink>>,
    pub(crate) observer: OnceLock<Box<dyn Observer>>,
}

/// The registers that transactions depend on, as they are in force.
#[derive(Debug, Default)]
pub(crate) struct Live {
    cr0: AtomicU32,
    cr2: AtomicU32,
    gbpa: AtomicU32,
    strtab_base: AtomicU64,
    strtab_base_cfg: AtomicU32,
}

impl Live {
    pub(crate) fn cr0(&self) -> Cr0 {
        Cr0(self.cr0.load(Ordering::Acquire))
    }
    pub(crate) fn cr2(&self) -> Cr2 {
        Cr2(self.cr2.load(Ordering::Acquire))
    }
    pub(crate) fn gbpa(&self) -> Gbpa {
        Gbpa(self.gbpa.load(Ordering::Acquire))
    }
    pub(crate) fn strtab(&self) -> (u64, u32) {
        (self.strtab_base.load(Ordering::Acquire), self.strtab_base_cfg.load(Ordering::Acquire))
    }
    pub(crate) fn set(&self, front: &Front) {
        use crate::wire::register::Register;
        self.cr2.store(front.word(Register::Cr2), Ordering::Release);
        self.gbpa.store(front.word(Register::Gbpa), Ordering::Release);
        self.strtab_base.store(front.value(Register::StrtabBase), Ordering::Release);
        self.strtab_base_cfg.store(front.word(Register::StrtabBaseCfg), Ordering::Release);
        self.cr0.store(front.word(Register::Cr0), Ordering::Release);
    }
}

impl<M: Memory> Smmu<M> {
    /// An SMMU out of reset, with the portable barrier.
    pub fn new(
        options: Options,
        memory: M,
        interrupts: impl Interrupts + 'static,
        devices: impl Devices + 'static,
    ) -> Result<Arc<Self>, OptionsError> {
        Self::with_fence(options, memory, interrupts, devices, SeqCst)
    }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// An SMMU out of reset, with a barrier of the embedder's choice.
    pub fn with_fence(
        options: Options,
        memory: M,
        interrupts: impl Interrupts + 'static,
        devices: impl Devices + 'static,
        fence: F,
    ) -> Result<Arc<Self>, OptionsError> {
        options.check()?;
        let front = Front::new(&options);
        let live = Live::default();
        live.set(&front);
        Ok(Arc::new(Self {
            tlb: Tlb::new(options.tlb),
            in_flight: InFlight::new(fence),
            live,
            front: Mutex::new(front),
            checker: OnceLock::new(),
            fault_sink: OnceLock::new(),
            observer: OnceLock::new(),
            interrupts: Box::new(interrupts),
            devices: Box::new(devices),
            accelerator: OnceLock::new(),
            memory,
            options,
        }))
    }

    /// What this SMMU is.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The memory it was given.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// A port for a device, or for one thread of it: transactions enter here.
    pub fn requester(self: &Arc<Self>) -> Requester<M, F> {
        Requester::new(self.clone())
    }

    /// The state of the caches before a walk in `context` reads anything.
    pub(crate) fn before(&self, context: &Context) -> Before {
        self.tlb.before(self.tlb.tags(&context.space, &context.vm))
    }

    pub(crate) fn rules(&self) -> Rules<'_> {
        Rules {
            options: &self.options,
            atschk: self.live.cr0().atschk(),
            e2h: self.live.cr2().e2h(),
        }
    }

    /// Carries on with whatever waits: commands, effects. Everything that may have unblocked something calls it;
    /// an embedder need not.
    pub fn poll(&self) {
        let mut budget = self.front.lock().command_budget();
        loop {
            let effect = {
                let mut front = self.front.lock();
                if front.draining {
                    // Whoever performs effects goes on with what this call leaves.
                    self.run_commands(&mut front, &mut budget);
                    front.credit = front.credit.max(budget);
                    return;
                }
                budget = budget.max(std::mem::take(&mut front.credit));
                match front.effects.pop_front() {
                    Some(effect) => {
                        front.draining = true;
                        effect
                    }
                    None if self.run_commands(&mut front, &mut budget)
                        || !front.effects.is_empty() =>
                    {
                        continue;
                    }
                    None => return,
                }
            };
            let _draining = Draining(&self.front);
            self.perform(effect);
        }
    }

    fn perform(&self, effect: Effect) {
        match effect {
            Effect::Pulse(wire) => self.interrupts.pulse(wire),
            Effect::PageResponse(response) => {
                let assigned = self.front.lock().assigned.contains(response.stream_id);
                match self.accelerator.get() {
                    Some(accelerator) if assigned => accelerator.page_response(response),
                    _ => self.devices.page_response(response),
                }
            }
            Effect::Resume { stream_id, stag, action } => {
                self.devices.resume(stream_id, stag, action);
            }
            Effect::Install { stream_id } => self.install(stream_id),
            Effect::Flush => self.flush(),
            Effect::Forward { tag, commands } => self.forward(tag, &commands),
            Effect::AtcInvalidate { tag, request } => {
                match self.devices.atc_invalidate(tag, request) {
                    AtcCompletion::Done => self.front.lock().atc_done(tag, true),
                    AtcCompletion::Timeout => self.front.lock().atc_done(tag, false),
                    AtcCompletion::Pending => {}
                }
            }
        }
    }

    /// An endpoint answered an ATS Invalidate Request that it had left pending; or `success` is
    /// false, and it did not in time.
    pub fn complete_atc_invalidate(&self, tag: u64, success: bool) {
        self.front.lock().atc_done(tag, success);
        self.poll();
    }
}

/// Clears [`Front::draining`] even if an embedder's hook panics.
struct Draining<'a>(&'a Mutex<Front>);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.lock().draining = false;
    }
}
