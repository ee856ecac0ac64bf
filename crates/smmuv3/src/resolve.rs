//! What becomes of a transaction that the TLB does not answer: a walk, `GBPA`, or a fault; and the
//! one place where a fault becomes an event and an answer to the device.

use crate::attributes::Attributes;
use crate::cache::tlb::Before;
use crate::config::Context;
use crate::explain::{AlreadyExplaining, ExplainedFault, Explanation, FaultSink, Recorder, Step};
use crate::fault::{Fault, Origin};
use crate::platform::Memory;
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::transaction::{Refused, Transaction, Translation};
use crate::translate::{Output, Walker, Wanted, representable};
use crate::wire::Event;

impl<M: Memory, F: Fence> Smmu<M, F> {
    #[inline(always)]
    pub(crate) fn walk(
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

    /// Has each transaction that is refused explained to `sink` from now on, whether or not it is recorded: what
    /// [`explain`](Self::explain) tells of it, at once. A transaction that stalls is refused each time that it stalls.
    pub fn explain_faults(&self, sink: impl FaultSink + 'static) -> Result<(), AlreadyExplaining> {
        self.fault_sink.set(Box::new(sink)).map_err(|_| AlreadyExplaining)
    }

    /// A transaction was refused.
    #[cold]
    pub(crate) fn refused(&self, transaction: &Transaction, refused: Refused) {
        if let Some(sink) = self.fault_sink.get() {
            let (now, explanation) = self.explain(transaction);
            sink.fault(&ExplainedFault { transaction: *transaction, refused, now, explanation });
        }
    }

    fn explained(
        &self,
        transaction: &Transaction,
        steps: &mut Vec<Step>,
    ) -> Result<Translation, Event> {
        let silent = Event::default();
        if transaction.translated {
            return self.explained_translated(transaction, steps);
        }
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
    pub(crate) fn attributes(&self, transaction: &Transaction, found: Attributes) -> Attributes {
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
