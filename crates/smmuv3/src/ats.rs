//! PCIe ATS: translated transactions and translation requests (§3.9.1).

use crate::config::{Context, Eats};
use crate::fault::Fault;
use crate::platform::Memory;
use crate::requester::{Refused, Transaction, Translation};
use crate::smmu::Smmu;
use crate::sync::Fence;
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

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// A transaction whose address ATS has translated (§3.9.1.3).
    pub(crate) fn translated(&self, transaction: &Transaction) -> Result<Translation, Refused> {
        // Without PASIDTT a translated transaction is unprivileged data without a PASID.
        let transaction = Transaction {
            substream_id: None,
            privileged: false,
            instruction: false,
            ..*transaction
        };
        let passed = Translation {
            address: transaction.address,
            length: 0x1000 - (transaction.address & 0xfff),
            attributes: transaction.attributes,
            privileged: false,
            instruction: false,
        };
        let forbidden = Fault::configuration(EventKind::TranslForbidden);
        let cr0 = self.live.cr0();
        if !cr0.smmuen() || !self.options.ats {
            return Err(self.refuse(&forbidden, &transaction, None, false));
        }
        if !cr0.atschk() {
            return if transaction.address >> self.options.oas == 0 {
                Ok(passed)
            } else {
                Err(Refused::Abort)
            };
        }
        let context = match self.fetch_ste(transaction.stream_id, &mut ()) {
            Ok(context) => context,
            Err(fault) => {
                if self.live.cr2().rec_cfg_ats() {
                    return Err(self.refuse(&fault, &transaction, None, false));
                }
                return Err(Refused::Abort);
            }
        };
        if context.abort {
            return Err(Refused::Abort);
        }
        match (context.eats, &context.stage2) {
            (Eats::Full, _) if transaction.address >> self.options.oas == 0 => Ok(passed),
            (Eats::Full, _) => Err(Refused::Abort),
            (Eats::SplitStage, Some(stage2)) => {
                let wanted = context.wanted(&transaction);
                let before = Some(self.before(&context));
                let mut walker = Walker {
                    memory: &self.memory,
                    tlb: &self.tlb,
                    context: &context,
                    oas: self.options.oas,
                    before,
                    recorder: &mut (),
                };
                let result = if transaction.address >> self.options.oas != 0 {
                    Err(Fault::bypassed_stage1())
                } else {
                    walker.stage2(stage2, transaction.address, wanted, Class::In)
                };
                match result {
                    Ok(output) => Ok(Translation {
                        address: output.address,
                        length: (1 << output.size)
                            - (transaction.address & ((1 << output.size) - 1)),
                        attributes: transaction.attributes.through_stage2(
                            output.memory,
                            output.shareability,
                            stage2.fwb,
                        ),
                        ..passed
                    }),
                    Err(fault) => Err(self.refuse(&fault, &transaction, Some(&context), true)),
                }
            }
            _ => Err(self.refuse(&forbidden, &transaction, Some(&context), false)),
        }
    }

    /// Answers an ATS Translation Request (§3.9.1.2). Access and dirty state are updated as for an
    /// access, because the SMMU will not see the access itself.
    pub fn ats_request(&self, request: &AtsRequest) -> Result<AtsTranslation, AtsError> {
        let marker = self.in_flight.register();
        self.in_flight.begin(&marker);
        let result = self.ats(request);
        let awaited = self.in_flight.end(&marker);
        self.in_flight.unregister(&marker);
        if awaited {
            self.poll();
        }
        result
    }

    fn ats(&self, request: &AtsRequest) -> Result<AtsTranslation, AtsError> {
        let with_pasid = request.substream_id.is_some();
        let transaction = Transaction {
            substream_id: request.substream_id,
            write: !request.no_write,
            privileged: request.privileged && with_pasid,
            instruction: false,
            ..Transaction::read(request.stream_id, request.address)
        };
        if !self.live.cr0().smmuen() || !self.options.ats {
            return Err(self.bad_request(request));
        }
        let ste = self
            .fetch_ste(request.stream_id, &mut ())
            .map_err(|fault| self.configuration_error(&fault, &transaction))?;
        if ste.abort {
            return Err(AtsError::UnsupportedRequest);
        }
        if ste.eats == Eats::Disabled {
            return Err(self.bad_request(request));
        }
        let before = |context: &Context| Some(self.before(context));
        let context =
            match self.fetch_context(request.stream_id, request.substream_id, before, &mut ()) {
                Ok(context) => context,
                Err(fault) if fault.kind.can_stall() => return Ok(nothing(request)),
                Err(fault) => return Err(self.configuration_error(&fault, &transaction)),
            };
        self.ats_translate(&context, request, &transaction)
    }

    fn ats_translate(
        &self,
        context: &Context,
        request: &AtsRequest,
        transaction: &Transaction,
    ) -> Result<AtsTranslation, AtsError> {
        let split = context.eats == Eats::SplitStage;
        if split && context.stage1.is_none() {
            // Stage 1 is skipped: the IPA is the address itself.
            let granted = AtsTranslation {
                read: true,
                write: true,
                execute: request.execute,
                ..nothing(request)
            };
            return Ok(granted);
        }
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
        let read = try_access(false, false);
        let write = if request.no_write { None } else { Some(try_access(true, false)) };
        let mut entry = None;
        for (access, result) in [Some(&read), write.as_ref()].into_iter().flatten().enumerate() {
            match result {
                Ok(output) => {
                    let page = (1u64 << output.size) - 1;
                    let address = if split { output.ipa } else { output.address };
                    let found = entry.get_or_insert(AtsTranslation {
                        address: address & !page,
                        size_log2: output.size as u8,
                        ..nothing(request)
                    });
                    if access == 0 { found.read = true } else { found.write = true }
                }
                Err(fault) if fault.kind.can_stall() => {}
                Err(fault) => return Err(self.configuration_error(fault, transaction)),
            }
        }
        let Some(mut found) = entry else { return Ok(nothing(request)) };
        // Execution needs read permission to be of use (§13.7).
        found.execute = request.execute && found.read && try_access(false, true).is_ok();
        Ok(found)
    }

    fn bad_request(&self, request: &AtsRequest) -> AtsError {
        let wanted = Rwx { read: true, write: !request.no_write, exec: request.execute };
        let event = Event {
            ssid: request.substream_id,
            input_address: request.address,
            span: 1,
            user: if request.privileged { Rwx::default() } else { wanted },
            privileged: if request.privileged { wanted } else { Rwx::default() },
            ..Event::new(EventKind::BadAtsTreq, request.stream_id)
        };
        self.record(&mut self.front.lock(), event, true);
        self.poll();
        AtsError::UnsupportedRequest
    }

    fn configuration_error(&self, fault: &Fault, transaction: &Transaction) -> AtsError {
        if self.live.cr2().rec_cfg_ats() {
            self.refuse(fault, transaction, None, false);
        }
        AtsError::CompleterAbort
    }
}

/// The page is not accessible.
fn nothing(request: &AtsRequest) -> AtsTranslation {
    AtsTranslation {
        address: request.address & !0xfff,
        size_log2: 12,
        read: false,
        write: false,
        execute: false,
    }
}
