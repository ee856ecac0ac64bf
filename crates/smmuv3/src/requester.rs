//! Where transactions enter.

use std::sync::Arc;

use pagetable::Permissions;

use crate::attributes::Attributes;
use crate::cache::generation::Space;
use crate::cache::in_flight::Marker;
use crate::cache::tlb::{Before, Tags, Tlb};
use crate::config::Context;
use crate::explain::{Explanation, Recorder, Step};
use crate::fault::{Fault, Origin};
use crate::platform::{Abort, Memory};
use crate::smmu::Smmu;
use crate::sync::{Fence, SeqCst};
use crate::translate::{Output, Walker, Wanted, representable};
use crate::wire::Event;
use pagetable::Shareability;

/// A transaction as a device issues it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Who issues it.
    pub stream_id: u32,
    /// On behalf of which of its address spaces (PCIe: PASID).
    pub substream_id: Option<u32>,
    /// The input address, 64 bits.
    pub address: u64,
    /// A write, else a read.
    pub write: bool,
    /// Privileged, else unprivileged.
    pub privileged: bool,
    /// An instruction fetch; writes are data whatever this says.
    pub instruction: bool,
    /// The memory attributes that it comes with.
    pub attributes: Attributes,
    /// PCIe: the address was translated by ATS.
    pub translated: bool,
}

impl Transaction {
    /// An unprivileged data read of ordinary memory.
    pub fn read(stream_id: u32, address: u64) -> Self {
        Self {
            stream_id,
            substream_id: None,
            address,
            write: false,
            privileged: false,
            instruction: false,
            attributes: Attributes::default(),
            translated: false,
        }
    }

    /// An unprivileged data write of ordinary memory.
    pub fn write(stream_id: u32, address: u64) -> Self {
        Self { write: true, ..Self::read(stream_id, address) }
    }

    /// The same for a substream.
    #[must_use]
    pub fn with_substream(self, substream_id: u32) -> Self {
        Self { substream_id: Some(substream_id), ..self }
    }
}

/// Where a transaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The output address for the transaction's input address (PA).
    pub address: u64,
    /// How many bytes from there on continue the input alike: to the end of the page.
    pub length: u64,
    /// Memory attributes of the access.
    pub attributes: Attributes,
    /// Privileged, after overrides.
    pub privileged: bool,
    /// An instruction fetch, after overrides.
    pub instruction: bool,
}

/// Why a transaction goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It ends with a bus error.
    #[error("aborted")]
    Abort,
    /// It ends as if it had succeeded: reads are zero, writes are ignored (`CD.A == 0`).
    #[error("terminated, reads as zero and ignores writes")]
    RazWi,
    /// It waits: [`Devices::resume`](crate::Devices::resume) says when to issue it again or how to end it.
    #[error("stalled as {stag:#x}")]
    Stalled {
        /// What names it until then.
        stag: u16,
    },
}

impl From<Abort> for Refused {
    fn from(_: Abort) -> Self {
        Self::Abort
    }
}

/// A port of the SMMU for one thread of one or more devices.
///
/// It remembers the configuration of the streams that it issued for last, so a port for each
/// device, or for each thread, serves best.
pub struct Requester<M: Memory, F: Fence = SeqCst> {
    smmu: Arc<Smmu<M, F>>,
    marker: Arc<Marker>,
    hot: Box<[Hot]>,
    contexts: Box<[Option<Context>]>,
}

/// What a hit needs of a [`Context`], on one or two cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Hot {
    /// StreamID and SubstreamID.
    key: u64,
    /// What [`Tlb::changes`] was when this was last known to be current.
    changes: u64,
    tags: Tags,
    space: Space,
    stamp: u64,
    /// For each kind of access, [`kind`] as the index, a byte of permissions wanted and of
    /// attributes after the STE's overrides.
    wanted: [u8; 8],
    /// A byte is ignored in the lower, in the upper half.
    tbi: bool,
    /// The TLB holds the final attributes, but for the hints that a transaction may come with.
    settled: bool,
}

const PRIVILEGED: u8 = 1 << 6;
const INSTRUCTION: u8 = 1 << 7;

#[inline]
fn kind(transaction: &Transaction) -> usize {
    usize::from(transaction.write)
        | usize::from(transaction.privileged) << 1
        | usize::from(transaction.instruction) << 2
}

impl Hot {
    /// Matches no transaction: no key has bit 63 set.
    fn empty() -> Self {
        let space = Space::stage2(0);
        let tags = Tags::default();
        Self {
            key: 1 << 63,
            changes: 0,
            tags,
            space,
            stamp: 0,
            wanted: [0; 8],
            tbi: false,
            settled: false,
        }
    }

    /// `changes` and `stamp` are from before the configuration was read.
    fn new(key: u64, changes: u64, stamp: u64, context: &Context, tlb: &Tlb) -> Self {
        let wanted = std::array::from_fn(|kind| {
            let transaction = Transaction {
                write: kind & 1 != 0,
                privileged: kind & 2 != 0,
                instruction: kind & 4 != 0,
                ..Transaction::read(0, 0)
            };
            let wanted = context.wanted(&transaction);
            wanted.permissions().bits()
                | if wanted.privileged { PRIVILEGED } else { 0 }
                | if wanted.instruction { INSTRUCTION } else { 0 }
        });
        let tbi = context.stage1.as_ref().is_some_and(|stage1| stage1.tbi.contains(&true));
        let tags = tlb.tags(&context.space, &context.vm);
        Self {
            key,
            changes,
            tags,
            space: context.space,
            stamp,
            wanted,
            tbi,
            settled: context.stage1.is_some() && !context.overrides.types(),
        }
    }
}

/// A SubstreamID of more than 20 bits is out of range whatever its upper bits are.
#[inline]
fn key(transaction: &Transaction) -> u64 {
    let substream =
        transaction.substream_id.map_or(0, |ssid| u64::from(ssid.min(1 << 20)) << 1 | 1);
    u64::from(transaction.stream_id) | substream << 32
}

impl<M: Memory, F: Fence> Requester<M, F> {
    pub(crate) fn new(smmu: Arc<Smmu<M, F>>) -> Self {
        let marker = smmu.in_flight.register();
        let count = 1 << smmu.options.contexts_log2;
        let contexts = (0..count).map(|_| None).collect();
        Self { smmu, marker, hot: vec![Hot::empty(); count].into(), contexts }
    }

    /// The SMMU.
    pub fn smmu(&self) -> &Arc<Smmu<M, F>> {
        &self.smmu
    }

    /// Begins to issue transactions. As long as the result lives, no `CMD_SYNC` completes that
    /// would revoke what was translated through it: finish the accesses first, then drop it.
    #[inline]
    pub fn begin(&mut self) -> Transfer<'_, M, F> {
        self.enter();
        Transfer { requester: self }
    }

    #[inline]
    pub(crate) fn enter(&self) {
        self.smmu.in_flight.begin(&self.marker);
    }

    #[inline]
    pub(crate) fn end(&self) {
        if self.smmu.in_flight.end(&self.marker) {
            self.smmu.poll();
        }
    }

    /// Between [`enter`](Self::enter) and [`end`](Self::end).
    #[inline(always)]
    pub(crate) fn translate(&mut self, transaction: &Transaction) -> Result<Translation, Refused> {
        if let Some(translation) = self.hit(transaction) {
            return Ok(translation);
        }
        self.miss(*transaction)
    }
}

impl<M: Memory, F: Fence> Drop for Requester<M, F> {
    fn drop(&mut self) {
        if self.smmu.in_flight.unregister(&self.marker) {
            self.smmu.poll();
        }
    }
}

/// Transactions under way; see [`Requester::begin`].
pub struct Transfer<'a, M: Memory, F: Fence = SeqCst> {
    requester: &'a mut Requester<M, F>,
}

impl<M: Memory, F: Fence> Drop for Transfer<'_, M, F> {
    #[inline]
    fn drop(&mut self) {
        self.requester.end();
    }
}

impl<M: Memory, F: Fence> Transfer<'_, M, F> {
    /// Translates one transaction. The answer holds as long as this transfer lives.
    #[inline(always)]
    pub fn translate(&mut self, transaction: &Transaction) -> Result<Translation, Refused> {
        self.requester.translate(transaction)
    }

    /// Reads through the SMMU from the device's address space. Bytes before the first failing page
    /// may have been read.
    pub fn read(&mut self, transaction: &Transaction, data: &mut [u8]) -> Result<(), Refused> {
        let mut done = 0;
        while done < data.len() {
            let (address, length) = self.run(transaction, done, data.len())?;
            self.requester.smmu.memory.read(address, &mut data[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    /// Writes through the SMMU to the device's address space. Bytes before the first failing page may have been
    /// written.
    pub fn write(&mut self, transaction: &Transaction, data: &[u8]) -> Result<(), Refused> {
        let transaction = Transaction { write: true, ..*transaction };
        let mut done = 0;
        while done < data.len() {
            let (address, length) = self.run(&transaction, done, data.len())?;
            self.requester.smmu.memory.write(address, &data[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    /// The next physically contiguous part of an access of `len` bytes of which `done` are done.
    #[inline]
    fn run(
        &mut self,
        transaction: &Transaction,
        done: usize,
        len: usize,
    ) -> Result<(u64, usize), Refused> {
        let next = |done: usize| Transaction {
            address: transaction.address.wrapping_add(done as u64),
            ..*transaction
        };
        let first = self.translate(&next(done))?;
        let mut length = first.length.min((len - done) as u64);
        while ((done as u64 + length) as usize) < len {
            // Only what continues the run is worth a look; a refusal is met when it is due.
            match self.requester.hit(&next(done + length as usize)) {
                Some(more) if more.address == first.address.wrapping_add(length) => {
                    length += more.length.min((len - done) as u64 - length);
                }
                _ => break,
            }
        }
        Ok((first.address, length as usize))
    }
}

impl<M: Memory, F: Fence> Requester<M, F> {
    #[inline(always)]
    fn hit(&mut self, transaction: &Transaction) -> Option<Translation> {
        let key = key(transaction);
        let slot = self.slot(key);
        // A loop, so that what is read once is not read again.
        let hot = loop {
            let hot = &self.hot[slot];
            if hot.key != key || transaction.translated {
                return None;
            }
            if hot.changes == self.smmu.tlb.changes() {
                break hot;
            }
            if !self.refresh(slot, transaction.stream_id) {
                return None;
            }
        };
        let mut canonical = transaction.address;
        if hot.tbi {
            canonical = self.canonical(slot, canonical);
        }
        if !representable(canonical) {
            return None;
        }
        let (data, size) = self.smmu.tlb.lookup(&hot.space, &hot.tags, canonical)?;
        let wanted = hot.wanted[kind(transaction)];
        if wanted & !data.permissions() & Permissions::ALL.bits() != 0 {
            // Whatever the reason, a walk finds out: hardware updates, or who is to report what.
            return None;
        }
        let offset = (1u64 << size) - 1;
        let shareability = Shareability::from_bits(data.shareability().into());
        let mut attributes = Attributes { memory: data.memory(), shareability };
        if !hot.settled || transaction.attributes.has_hints() {
            attributes = self.attributes(slot, *transaction, attributes);
        }
        Some(Translation {
            address: data.address() & !offset | canonical & offset,
            length: offset + 1 - (canonical & offset),
            attributes,
            privileged: wanted & PRIVILEGED != 0,
            instruction: wanted & INSTRUCTION != 0,
        })
    }

    /// Something was invalidated: is the configuration still current? If so, looks up what its
    /// translations must carry now.
    #[cold]
    #[inline(never)]
    fn refresh(&mut self, slot: usize, stream_id: u32) -> bool {
        let tlb = &self.smmu.tlb;
        let changes = tlb.changes();
        let hot = &mut self.hot[slot];
        let Some(context) = &self.contexts[slot] else { return false };
        if hot.stamp != tlb.stream(stream_id) {
            return false;
        }
        hot.tags = tlb.tags(&context.space, &context.vm);
        hot.changes = changes;
        true
    }

    #[cold]
    #[inline(never)]
    fn canonical(&self, slot: usize, address: u64) -> u64 {
        self.contexts[slot].as_ref().map_or(address, |context| context.canonical(address))
    }

    #[inline(never)]
    fn attributes(&self, slot: usize, transaction: Transaction, found: Attributes) -> Attributes {
        let context = self.contexts[slot].as_ref();
        context.map_or(found, |context| context.attributes(&transaction, found))
    }

    #[inline]
    fn slot(&self, key: u64) -> usize {
        (key ^ key >> 20) as usize & (self.hot.len() - 1)
    }

    #[cold]
    #[inline(never)]
    fn miss(&mut self, transaction: Transaction) -> Result<Translation, Refused> {
        let transaction = &transaction;
        let key = key(transaction);
        let slot = self.slot(key);
        let Self { smmu, hot, contexts, .. } = self;
        let smmu = &**smmu;
        // Before anything is read: what is read later may be newer, never older.
        let changes = smmu.tlb.changes();
        let current = hot[slot].key == key && hot[slot].changes == changes;
        if !current || transaction.translated {
            if transaction.translated {
                return smmu.translated(transaction);
            }
            if !smmu.live.cr0().smmuen() {
                return smmu.disabled(transaction);
            }
            let stamp = smmu.tlb.stream(transaction.stream_id);
            let mut context = smmu
                .fetch_ste(transaction.stream_id, &mut ())
                .map_err(|fault| smmu.refuse(&fault, transaction, None, true))?;
            let before = Some(smmu.before(&context));
            smmu.fetch_cd(&mut context, transaction.substream_id, before, &mut ())
                .map_err(|fault| smmu.refuse(&fault, transaction, Some(&context), true))?;
            hot[slot] = Hot::new(key, changes, stamp, &context, &smmu.tlb);
            contexts[slot] = Some(context);
        }
        match &contexts[slot] {
            Some(context) => smmu.walk(context, transaction, smmu.tlb.before(hot[slot].tags)),
            None => Err(Refused::Abort),
        }
    }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    #[inline(always)]
    fn walk(
        &self,
        context: &Context,
        transaction: &Transaction,
        before: Before,
    ) -> Result<Translation, Refused> {
        if context.abort {
            return Err(Refused::Abort);
        }
        let wanted = context.wanted(transaction);
        let canonical = context.canonical(transaction.address);
        let before = Some(before).filter(|_| representable(canonical));
        let mut walker = Walker {
            memory: &self.memory,
            tlb: &self.tlb,
            context,
            oas: self.options.oas,
            before,
            recorder: &mut (),
        };
        match walker.translate(canonical, wanted) {
            Ok(output) => Ok(context.translation(transaction, &output, wanted)),
            Err(fault) => Err(self.refuse(&fault, transaction, Some(context), true)),
        }
    }

    /// `SMMUEN == 0`: `GBPA` decides (§6.3.14).
    pub(crate) fn disabled(&self, transaction: &Transaction) -> Result<Translation, Refused> {
        let gbpa = self.live.gbpa();
        if gbpa.abort() || transaction.address >> self.options.oas != 0 {
            return Err(Refused::Abort);
        }
        let overrides = crate::config::Overrides::of_gbpa(gbpa, &self.options);
        Ok(Translation {
            address: transaction.address,
            length: (1 << self.options.oas) - transaction.address,
            attributes: overrides.attributes(transaction.attributes),
            privileged: overrides.privileged(transaction.privileged),
            instruction: overrides.instruction(transaction.instruction, transaction.write),
        })
    }

    /// The one place where a fault becomes an event and an answer to the device.
    pub(crate) fn refuse(
        &self,
        fault: &Fault,
        transaction: &Transaction,
        context: Option<&Context>,
        may_stall: bool,
    ) -> Refused {
        let event = fault.event(&origin(transaction, context));
        let mergeable = context.is_none_or(|context| context.mev);
        let mut refused = if fault.controls.abort { Refused::Abort } else { Refused::RazWi };
        {
            let mut front = self.front.lock();
            let stalled = if fault.controls.stall && may_stall && event.kind.can_stall() {
                self.stall(&mut front, event)
            } else {
                None
            };
            if let Some(stag) = stalled {
                refused = Refused::Stalled { stag };
            } else if fault.controls.record || fault.controls.stall {
                self.record(&mut front, event, mergeable);
            }
        }
        self.poll();
        refused
    }

    /// What would happen to a transaction, step by step, from what memory holds now. Nothing is cached, updated or
    /// recorded.
    pub fn explain(&self, transaction: &Transaction) -> (Result<Translation, Event>, Explanation) {
        let mut steps = Vec::new();
        let result = self.explained(transaction, &mut steps);
        (result, Explanation { steps })
    }

    fn explained(
        &self,
        transaction: &Transaction,
        steps: &mut Vec<Step>,
    ) -> Result<Translation, Event> {
        let silent = Event::default();
        if !self.live.cr0().smmuen() {
            steps.step(|| Step::Disabled { abort: self.live.gbpa().abort() });
            return self.disabled(transaction).map_err(|_| silent);
        }
        let (fault, context) = match self.fetch_ste(transaction.stream_id, steps) {
            Err(fault) => (fault, None),
            Ok(context) if context.abort => return Err(silent),
            Ok(mut context) => {
                let found = self.fetch_cd(&mut context, transaction.substream_id, None, steps);
                let wanted = context.wanted(transaction);
                let mut walker = Walker {
                    memory: &self.memory,
                    tlb: &self.tlb,
                    context: &context,
                    oas: self.options.oas,
                    before: None,
                    recorder: steps,
                };
                let canonical = context.canonical(transaction.address);
                match found.and_then(|()| walker.translate(canonical, wanted)) {
                    Ok(output) => {
                        let translation = context.translation(transaction, &output, wanted);
                        if context.stage1.is_none() {
                            // Stage 1 tells of both where it takes part.
                            steps.step(|| Step::Combined {
                                address: output.address,
                                size_log2: output.size as u8,
                                permissions: output.permissions,
                                attributes: translation.attributes,
                            });
                        }
                        return Ok(translation);
                    }
                    Err(fault) => (fault, Some(context)),
                }
            }
        };
        let event = fault.event(&origin(transaction, context.as_ref()));
        steps.step(|| Step::Fault {
            event,
            recorded: fault.controls.record,
            stalls: fault.controls.stall && event.kind.can_stall(),
        });
        Err(event)
    }
}

pub(crate) fn origin(transaction: &Transaction, context: Option<&Context>) -> Origin {
    let wanted = context.map_or(
        Wanted {
            write: transaction.write,
            privileged: transaction.privileged,
            instruction: transaction.instruction,
        },
        |context| context.wanted(transaction),
    );
    Origin {
        stream_id: transaction.stream_id,
        substream_id: transaction.substream_id,
        address: transaction.address,
        write: transaction.write,
        privileged: wanted.privileged,
        instruction: wanted.instruction,
    }
}

impl Context {
    /// What a transaction wants, after the STE's overrides.
    #[inline]
    pub(crate) fn wanted(&self, transaction: &Transaction) -> Wanted {
        Wanted {
            write: transaction.write,
            privileged: self.overrides.privileged(transaction.privileged),
            instruction: self.overrides.instruction(transaction.instruction, transaction.write),
        }
    }

    #[inline]
    pub(crate) fn canonical(&self, address: u64) -> u64 {
        match &self.stage1 {
            Some(stage1) => stage1.canonical(address),
            None => address,
        }
    }

    /// The attributes of a transaction for which the tables say `found`: both stages together, or, where stage 1 does
    /// not translate, stage 2 alone.
    fn attributes(&self, transaction: &Transaction, found: Attributes) -> Attributes {
        let incoming = self.overrides.attributes(transaction.attributes);
        match (&self.stage1, &self.stage2) {
            (Some(_), _) => found.hinted(incoming),
            (None, Some(stage2)) => {
                incoming.through_stage2(found.memory, found.shareability, stage2.fwb)
            }
            (None, None) => incoming,
        }
    }

    #[inline]
    pub(crate) fn translation(
        &self,
        transaction: &Transaction,
        output: &Output,
        wanted: Wanted,
    ) -> Translation {
        let found = Attributes { memory: output.memory, shareability: output.shareability };
        let attributes = self.attributes(transaction, found);
        let offset = transaction.address & ((1 << output.size) - 1);
        Translation {
            address: output.address,
            length: (1 << output.size) - offset,
            attributes,
            privileged: wanted.privileged,
            instruction: wanted.instruction,
        }
    }
}
