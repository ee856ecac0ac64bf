//! PCIe ATS: translated transactions and translation requests (§3.9.1).

use crate::config::{Context, Eats};
use crate::explain::{Recorder, Step};
use crate::fault::Fault;
use crate::platform::Memory;
use crate::resolve::origin;
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::transaction::{Refused, Transaction, Translation};
use crate::translate::{Walker, Wanted};
use crate::wire::{Class, Event, EventKind, Rwx};

/// An ATS Translation Request for one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtsRequest {
    /// Who asks.
    pub stream_id: u32,
    /// The PASID, if the request has one.
    pub substream_id: Option<u32>,
    /// The untranslated address.
    pub address: u64,
    /// The endpoint does not intend to write (NW).
    pub no_write: bool,
    /// Privileged access is requested (needs a PASID).
    pub privileged: bool,
    /// Execute permission is requested (needs a PASID).
    pub execute: bool,
}

/// A successful answer: one Translation Completion Data Entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtsTranslation {
    /// The translated address of the start of the range: a PA, or under split-stage ATS an IPA.
    pub address: u64,
    /// Log2 of the size of the range in bytes.
    pub size_log2: u8,
    /// Read permission. Neither this nor write: nothing is mapped.
    pub read: bool,
    /// Write permission.
    pub write: bool,
    /// Execute permission, if it was asked for.
    pub execute: bool,
}

/// A request that is not answered with a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AtsError {
    /// Completion status UR: ATS is not for this stream.
    #[error("unsupported request")]
    UnsupportedRequest,
    /// Completion status CA: the configuration is broken.
    #[error("completer abort")]
    CompleterAbort,
}

/// How a transaction ends whose address ATS has translated, if not well.
enum Refusal {
    /// Aborted without an event.
    Silent,
    Fault(Fault, Option<Box<Context>>),
    /// The STE could not be read or used: an event only for who asked for it (`CR2.REC_CFG_ATS`).
    Configuration(Fault),
}

/// Without PASIDTT a translated transaction is unprivileged data without a PASID.
fn without_pasid(transaction: &Transaction) -> Transaction {
    Transaction { substream_id: None, privileged: false, instruction: false, ..*transaction }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// A transaction whose address ATS has translated (§3.9.1.3).
    pub(crate) fn translated(&self, transaction: &Transaction) -> Result<Translation, Refused> {
        let transaction = without_pasid(transaction);
        self.pass(&transaction, true, &mut ()).map_err(|refusal| match refusal {
            Refusal::Silent => Refused::Abort,
            Refusal::Fault(fault, context) => {
                self.refuse(&fault, &transaction, context.as_deref(), true)
            }
            Refusal::Configuration(fault) => {
                if self.live.cr2().rec_cfg_ats() {
                    // Without regard to RECINVSID.
                    let event = fault.event(&origin(&transaction, None));
                    self.record_any(&mut self.front.lock(), event, true);
                    self.poll();
                }
                Refused::Abort
            }
        })
    }

    /// [`explain`](Self::explain) for such a transaction.
    pub(crate) fn explained_translated(
        &self,
        transaction: &Transaction,
        steps: &mut Vec<Step>,
    ) -> Result<Translation, Event> {
        let transaction = without_pasid(transaction);
        self.pass(&transaction, false, steps).map_err(|refusal| {
            let (fault, context, recorded) = match refusal {
                Refusal::Silent => return Event::default(),
                Refusal::Fault(fault, context) => (fault, context, fault.controls.record),
                Refusal::Configuration(fault) => (fault, None, self.live.cr2().rec_cfg_ats()),
            };
            let event = fault.event(&origin(&transaction, context.as_deref()));
            let stalls = fault.controls.stall && event.kind.can_stall();
            steps.step(|| Step::Fault { event, recorded, stalls });
            event
        })
    }

    /// Lets such a transaction pass, or translates it as far as is left to do. Without `cached`, caches and tables
    /// stay as they are.
    fn pass<R: Recorder>(
        &self,
        transaction: &Transaction,
        cached: bool,
        recorder: &mut R,
    ) -> Result<Translation, Refusal> {
        let passed = Translation {
            address: transaction.address,
            length: 0x1000 - (transaction.address & 0xfff),
            attributes: transaction.attributes,
            privileged: false,
            instruction: false,
        };
        let forbidden = Fault::configuration(EventKind::TranslForbidden);
        let within = transaction.address >> self.options.oas == 0;
        let cr0 = self.live.cr0();
        if !cr0.smmuen() || !self.options.ats {
            return Err(Refusal::Fault(forbidden, None));
        }
        if !cr0.atschk() {
            return if within { Ok(passed) } else { Err(Refusal::Silent) };
        }
        let context =
            self.fetch_ste(transaction.stream_id, recorder).map_err(Refusal::Configuration)?;
        if context.abort {
            return Err(Refusal::Silent);
        }
        let fault = |fault| Refusal::Fault(fault, Some(Box::new(context.clone())));
        match (context.eats, &context.stage2) {
            (Eats::Full, _) if within => Ok(passed),
            (Eats::Full, _) => Err(Refusal::Silent),
            (Eats::SplitStage, Some(stage2)) => {
                if !within {
                    return Err(fault(Fault::bypassed_stage1()));
                }
                let mut walker = Walker {
                    memory: &self.memory,
                    tlb: &self.tlb,
                    context: &context,
                    oas: self.options.oas,
                    before: cached.then(|| self.before(&context)),
                    recorder,
                };
                let wanted = context.wanted(transaction);
                let output =
                    walker.stage2(stage2, transaction.address, wanted, Class::In).map_err(fault)?;
                Ok(Translation {
                    address: output.address,
                    length: (1 << output.size) - (transaction.address & ((1 << output.size) - 1)),
                    attributes: transaction.attributes.through_stage2(
                        output.memory,
                        output.shareability,
                        stage2.fwb,
                    ),
                    ..passed
                })
            }
            _ => Err(fault(forbidden)),
        }
    }

    /// Answers an ATS Translation Request (§3.9.1.2). Access and dirty state are updated as for an
    /// access, because the SMMU will not see the access itself.
    pub fn ats_request(&self, request: &AtsRequest) -> Result<AtsTranslation, AtsError> {
        let marker = self.in_flight.register();
        self.in_flight.begin(&marker);
        // Without a PASID there is nowhere to say so.
        let with_pasid = request.substream_id.is_some();
        let request = AtsRequest {
            privileged: request.privileged && with_pasid,
            execute: request.execute && with_pasid,
            ..*request
        };
        let watch = self.checker.get().map(|checker| (checker, checker.asked()));
        let result = self.ats(&request);
        if let (Some((checker, asked)), Ok(translation)) = (watch, &result)
            && (translation.read || translation.write)
        {
            self.told(checker, asked, &request, translation);
        }
        if self.in_flight.unregister(&marker) {
            self.poll();
        }
        result
    }

    fn ats(&self, request: &AtsRequest) -> Result<AtsTranslation, AtsError> {
        let transaction = Transaction {
            substream_id: request.substream_id,
            write: !request.no_write,
            privileged: request.privileged,
            instruction: false,
            ..Transaction::read(request.stream_id, request.address)
        };
        if !self.live.cr0().smmuen() || !self.options.ats {
            return Err(self.bad_request(request, true));
        }
        let mut context = self
            .fetch_ste(request.stream_id, &mut ())
            .map_err(|fault| self.configuration_error(&fault, &transaction, None))?;
        if context.abort {
            return Err(AtsError::UnsupportedRequest);
        }
        if context.eats == Eats::Disabled {
            return Err(self.bad_request(request, context.mev));
        }
        let before = Some(self.before(&context));
        match self.fetch_cd(&mut context, request.substream_id, before, &mut ()) {
            Ok(()) => self.ats_translate(&context, request, &transaction),
            Err(fault) if fault.kind.can_stall() => Ok(self.nothing(request)),
            Err(fault) => Err(self.configuration_error(&fault, &transaction, Some(&context))),
        }
    }

    fn ats_translate(
        &self,
        context: &Context,
        request: &AtsRequest,
        transaction: &Transaction,
    ) -> Result<AtsTranslation, AtsError> {
        let split = context.eats == Eats::SplitStage;
        let privileged = context.wanted(transaction).privileged;
        let try_access = |write: bool, instruction: bool| {
            let before = Some(self.before(context));
            let mut walker = Walker {
                memory: &self.memory,
                tlb: &self.tlb,
                context,
                oas: self.options.oas,
                before,
                recorder: &mut (),
            };
            walker.translate(
                context.canonical(request.address),
                Wanted { write, privileged, instruction },
            )
        };
        // A write permission is asked for only where the endpoint means to use it: it marks the page dirty.
        let reads_as = |instruction| context.overrides.instruction(instruction, false);
        let read = try_access(false, reads_as(false));
        // Where nothing translates there is nothing to mark, and both are granted (§13.6.4).
        let passes = context.stage1.is_none() && context.stage2.is_none();
        let write = (!request.no_write || passes).then(|| try_access(true, false));
        let mut entry = None;
        for (access, result) in [Some(&read), write.as_ref()].into_iter().flatten().enumerate() {
            match result {
                Ok(output) => {
                    let size = output.size as u8;
                    let address = if split { output.ipa } else { output.address };
                    let found = entry.get_or_insert(AtsTranslation {
                        address: address & !((1 << size) - 1),
                        size_log2: size,
                        ..self.nothing(request)
                    });
                    if access == 0 { found.read = true } else { found.write = true }
                }
                Err(fault) if fault.kind.can_stall() => {}
                Err(fault) => {
                    return Err(self.configuration_error(fault, transaction, Some(context)));
                }
            }
        }
        let Some(mut found) = entry else { return Ok(self.nothing(request)) };
        // Execution needs read permission to be of use (§13.7).
        found.execute = request.execute && found.read && try_access(false, reads_as(true)).is_ok();
        Ok(found)
    }

    fn bad_request(&self, request: &AtsRequest, mergeable: bool) -> AtsError {
        let wanted = Rwx { read: true, write: !request.no_write, exec: request.execute };
        let event = Event {
            ssid: request.substream_id,
            input_address: request.address,
            span: 1,
            user: if request.privileged { Rwx::default() } else { wanted },
            privileged: if request.privileged { wanted } else { Rwx::default() },
            ..Event::new(EventKind::BadAtsTreq, request.stream_id)
        };
        self.record(&mut self.front.lock(), event, mergeable);
        self.poll();
        AtsError::UnsupportedRequest
    }

    fn configuration_error(
        &self,
        fault: &Fault,
        transaction: &Transaction,
        context: Option<&Context>,
    ) -> AtsError {
        if self.live.cr2().rec_cfg_ats() {
            self.refuse(fault, transaction, context, false);
        }
        AtsError::CompleterAbort
    }

    /// The Smallest Translation Unit: the smallest granule (§3.9.1).
    fn stu_log2(&self) -> u8 {
        match (self.options.gran4k, self.options.gran16k) {
            (true, _) => 12,
            (_, true) => 14,
            _ => 16,
        }
    }

    /// The page is not accessible.
    fn nothing(&self, request: &AtsRequest) -> AtsTranslation {
        let size_log2 = self.stu_log2();
        AtsTranslation {
            address: request.address & !((1 << size_log2) - 1),
            size_log2,
            read: false,
            write: false,
            execute: false,
        }
    }
}
