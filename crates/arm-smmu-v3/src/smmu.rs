//! An SMMU as a whole, and its way from any state into service.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use smmuv3::wire::pri::PageRequest;
use smmuv3::wire::register::{Cr0, Cr1, Cr2, Gbpa, Gerror, IrqCtrl};
use smmuv3::wire::{Command, Event, Register, Ste};

use crate::cmdq::{CommandQueue, CommandsError};
use crate::domain::AtsUser;
use crate::entry;
use crate::error::Error;
use crate::ids::Ids;
use crate::platform::{DmaMemory, Functions, Registers, read, write, write64};
use crate::probe::Features;
use crate::records::{EVENTQ, PRIQ, RecordQueue};
use crate::stream::Claims;
use crate::stream_table::StreamTable;
use crate::wait;

/// Settings of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long the SMMU may take to acknowledge a change or to consume commands, one second by default. A `CMD_SYNC`
    /// waits for the transactions that are under way.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(1) }
    }
}

/// What [`Smmu::events`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Events {
    /// The records, oldest first. What is not an architected event is left out.
    pub records: Vec<Event>,
    /// There were more, for which the queue had no room.
    pub overflow: bool,
}

/// What [`Smmu::page_requests`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequests {
    /// The records, oldest first.
    pub records: Vec<PageRequest>,
    /// There were more, for which the queue had no room. The SMMU has answered them.
    pub overflow: bool,
}

/// An SMMUv3 in service. Any number of threads may use it at a time.
pub struct Smmu<R: Registers, M: DmaMemory> {
    pub(crate) registers: Arc<R>,
    pub(crate) memory: Arc<M>,
    features: Features,
    options: Options,
    commands: CommandQueue<R, M>,
    events: RecordQueue<R, M, 4>,
    /// If the SMMU has PRI.
    page_requests: Option<RecordQueue<R, M, 2>>,
    streams: Mutex<StreamTable<M>>,
    /// Streams that are not to have ATS, whatever their STEs are to say.
    without_ats: Mutex<BTreeSet<u32>>,
    /// Told what the STEs say of ATS.
    functions: OnceLock<Arc<dyn Functions>>,
    /// For good: something failed that must not.
    out_of_service: AtomicBool,
    pub(crate) claims: Claims,
    pub(crate) asids: Ids,
    pub(crate) vmids: Ids,
}

impl<R: Registers, M: DmaMemory> Smmu<R, M> {
    /// Takes an SMMU into service, whatever state it is in. All streams abort.
    pub fn new(registers: R, memory: M, options: Options) -> Result<Arc<Self>, Error> {
        let (registers, memory) = (Arc::new(registers), Arc::new(memory));
        let features = Features::probe(&*registers)?;
        let commands = CommandQueue::new(&registers, &memory, features.cmdq_log2, options.timeout)?;
        let events = RecordQueue::new(&registers, &memory, EVENTQ, features.eventq_log2)?;
        let page_requests = features
            .pri
            .then(|| RecordQueue::new(&registers, &memory, PRIQ, features.priq_log2))
            .transpose()?;
        let streams = Mutex::new(StreamTable::new(&memory, &features)?);
        let smmu = Self {
            asids: Ids::new(features.asid_bits),
            vmids: Ids::new(features.vmid_bits),
            claims: Claims::default(),
            without_ats: Mutex::default(),
            functions: OnceLock::new(),
            out_of_service: AtomicBool::new(false),
            registers,
            memory,
            features,
            options,
            commands,
            events,
            page_requests,
            streams,
        };
        smmu.reset()?;
        Ok(Arc::new(smmu))
    }

    /// Has these functions told when they may use ATS: before the SMMU gives them translations, and until it refuses
    /// them. To be called once, before there are streams; without it, functions have to know.
    pub fn connect(&self, functions: Arc<dyn Functions>) {
        let _ = self.functions.set(functions);
    }

    fn enable_ats(&self, stream_id: u32, enable: bool) {
        if let Some(functions) = self.functions.get() {
            functions.enable_ats(stream_id, enable);
        }
    }

    /// What it is.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Has commands executed in order; returns when all are complete. Out of service there is nothing left to do.
    pub fn run(&self, commands: &[Command]) -> Result<(), CommandsError> {
        if commands.is_empty() || self.out_of_service.load(Ordering::Acquire) {
            return Ok(());
        }
        self.commands.run(commands)
    }

    /// Has streams that keep translations of a domain forget those of a range. One that does not answer may not use
    /// any from now on, and is given no more.
    pub(crate) fn forget_atc(&self, users: &[AtsUser], range: &Range<u64>) -> Result<(), Error> {
        let users: Vec<_> = users.iter().filter(|user| self.permits_ats(user.sid)).collect();
        let commands: Vec<_> = users.iter().map(|user| user.forget(range)).collect();
        let Err(error) = self.run(&commands) else { return Ok(()) };
        if !matches!(error, CommandsError::AtcTimeout { .. }) {
            return Err(error.into());
        }
        for (user, command) in users.into_iter().zip(commands) {
            match self.run(&[command]) {
                Err(CommandsError::AtcTimeout { .. }) => self.revoke_ats(user.sid)?,
                result => result?,
            }
        }
        Ok(())
    }

    /// Has the SMMU refuse what a stream has translated itself.
    fn revoke_ats(&self, stream_id: u32) -> Result<(), Error> {
        tracing::warn!(stream_id, "does not answer ATS invalidations: ATS is off");
        let mut streams = self.streams.lock();
        self.enable_ats(stream_id, false);
        self.without_ats.lock().insert(stream_id);
        let place = streams.ste(stream_id)?;
        let old = Ste(entry::read(place));
        entry::write(place, old, old.with_eats(0), || self.forget_stream(stream_id))
    }

    /// The stream is somebody else's now.
    pub(crate) fn permit_ats(&self, stream_id: u32) {
        self.without_ats.lock().remove(&stream_id);
    }

    /// Whether the stream is to have ATS, if its STE says so.
    pub(crate) fn permits_ats(&self, stream_id: u32) -> bool {
        !self.without_ats.lock().contains(&stream_id)
    }

    /// Takes out of the Event queue what is there now. Its interrupt comes when the queue is no longer empty: who waits for
    /// that takes until nothing is found.
    pub fn events(&self) -> Events {
        let found = self.events.take();
        let records = found.records.iter().filter_map(Event::decode).collect();
        Events { records, overflow: found.overflow }
    }

    /// Takes out of the PRI queue what is there now; like [`events`](Self::events).
    pub fn page_requests(&self) -> PageRequests {
        let found = self.page_requests.as_ref().map(RecordQueue::take);
        found.map_or_else(PageRequests::default, |found| PageRequests {
            records: found.records.iter().map(PageRequest::decode).collect(),
            overflow: found.overflow,
        })
    }

    /// Acknowledges the global errors that are active, but for those of the Command queue, which whoever waits for it
    /// deals with.
    pub fn global_errors(&self) -> Gerror {
        let active = self.commands.acknowledge_others();
        if active.sfm_err() {
            // It says itself that it does not work any more.
            self.out_of_service.store(true, Ordering::Release);
        }
        active
    }

    /// Changes the STE of a stream. Transactions see the old one or the new one; an abort in between only where the
    /// change takes more than one write and the Stream table has but one level.
    pub(crate) fn write_ste(&self, stream_id: u32, new: Ste) -> Result<(), Error> {
        let mut streams = self.streams.lock();
        let new = if self.permits_ats(stream_id) { new } else { new.with_eats(0) };
        let old = Ste(entry::read(streams.ste(stream_id)?));
        if old.eats() != 0 && new.eats() == 0 {
            // First, or what it asks for and uses meanwhile were errors.
            self.enable_ats(stream_id, false);
        }
        let forget = |forget| Ok(self.run(&[forget])?);
        if entry::is_hitless(old, new) || !streams.replace(stream_id, new, forget)? {
            let place = streams.ste(stream_id)?;
            entry::write(place, old, new, || self.forget_stream(stream_id))?;
        }
        if new.eats() != 0 {
            self.enable_ats(stream_id, true);
        }
        Ok(())
    }

    /// Has the SMMU forget the configuration of a stream: its STE, its CDs, and the way to them.
    pub(crate) fn forget_stream(&self, stream_id: u32) -> Result<(), Error> {
        Ok(self.run(&[Command::CfgiSte { sid: stream_id, leaf: false, ssec: false }])?)
    }

    fn reset(&self) -> Result<(), Error> {
        self.disable()?;
        // Tables and queues are cached, inner shareable.
        let cr1 = Cr1(0).with_queue_ic(1).with_queue_oc(1).with_queue_sh(3);
        let cr1 = cr1.with_table_ic(1).with_table_oc(1).with_table_sh(3);
        self.write(Register::Cr1, cr1.0);
        let cr2 = Cr2(0).with_recinvsid(true).with_ptm(self.features.broadcast);
        self.write(Register::Cr2, cr2.0);
        let (base, cfg) = self.streams.lock().registers();
        write64(&*self.registers, Register::StrtabBase, base.0);
        self.write(Register::StrtabBaseCfg, cfg.0);
        self.commands.install();
        self.events.install();
        if let Some(queue) = &self.page_requests {
            queue.install();
        }
        self.install_interrupts()?;
        // Errors of an earlier life are nobody's now, and would stop the queue.
        self.write(Register::Gerrorn, read(&*self.registers, Register::Gerror));

        // Or devices could use whatever address they say is translated.
        let mut cr0 = Cr0(0).with_cmdqen(true).with_atschk(self.features.ats);
        self.set_cr0(cr0)?;
        self.forget_all()?;
        cr0 = cr0.with_eventqen(true);
        self.set_cr0(cr0)?;
        cr0 = cr0.with_smmuen(true);
        self.set_cr0(cr0)?;
        self.set_cr0(cr0.with_priqen(self.page_requests.is_some()))
    }

    /// Interrupts are wires, not messages.
    fn install_interrupts(&self) -> Result<(), Error> {
        for register in [Register::GerrorIrqCfg0, Register::EventqIrqCfg0] {
            write64(&*self.registers, register, 0);
        }
        let pri = self.page_requests.is_some();
        if pri {
            write64(&*self.registers, Register::PriqIrqCfg0, 0);
            // When the queue is no longer empty.
            self.write(Register::PriqIrqCfg2, 0);
        }
        let on = IrqCtrl(0).with_gerror_irqen(true).with_eventq_irqen(true).with_priq_irqen(pri);
        self.acknowledged(Register::IrqCtrl, Register::IrqCtrlAck, on.0)
    }

    /// For what must not fail: takes the SMMU out of service if it did.
    pub(crate) fn must(&self, result: Result<(), Error>) {
        // Hardware that does not even do that is beyond help.
        if result.is_err() && self.disable().is_ok() {
            self.out_of_service.store(true, Ordering::Release);
        }
    }

    /// Everything off, all transactions abort.
    fn disable(&self) -> Result<(), Error> {
        // First, or what translates now would bypass for a moment.
        let updated = || {
            let gbpa = Gbpa(read(&*self.registers, Register::Gbpa));
            (!gbpa.update()).then_some(gbpa)
        };
        let not_updated = Error::NotAcknowledged("SMMU_GBPA.Update");
        let gbpa = wait::until(self.options.timeout, updated).ok_or(not_updated.clone())?;
        self.write(Register::Gbpa, gbpa.with_abort(true).with_update(true).0);
        wait::until(self.options.timeout, updated).ok_or(not_updated)?;
        self.set_cr0(Cr0(0))?;
        self.acknowledged(Register::IrqCtrl, Register::IrqCtrlAck, 0)
    }

    /// Invalidates everything that the SMMU may have cached.
    fn forget_all(&self) -> Result<(), CommandsError> {
        let all = Command::CfgiSteRange { sid: 0, range: Command::CFGI_ALL_RANGE, ssec: false };
        if self.features.hyp {
            self.run(&[all, Command::TlbiEl2All, Command::TlbiNsnhAll])
        } else {
            self.run(&[all, Command::TlbiNsnhAll])
        }
    }

    fn write(&self, register: Register, value: u32) {
        write(&*self.registers, register, value);
    }

    fn set_cr0(&self, cr0: Cr0) -> Result<(), Error> {
        self.acknowledged(Register::Cr0, Register::Cr0Ack, cr0.0)
    }

    fn acknowledged(&self, register: Register, ack: Register, value: u32) -> Result<(), Error> {
        self.write(register, value);
        let equal = || (read(&*self.registers, ack) == value).then_some(());
        wait::until(self.options.timeout, equal).ok_or(Error::NotAcknowledged(register.name()))
    }
}

impl<R: Registers, M: DmaMemory> Drop for Smmu<R, M> {
    /// Out of service: all transactions abort, and nothing of the driver's memory is used any more.
    fn drop(&mut self) {
        // Hardware that does not even do that is beyond help.
        let _ = self.disable();
    }
}
