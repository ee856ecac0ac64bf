//! PCIe ATS: Translation Requests and translated transactions (§3.9.1.2, §3.9.1.3, §13.6.3 to §13.7.1).

use super::configuration::{Located, Ste};
use super::permissions::Access;
use super::record::{Class, Fault, Place, Record};
use super::translate::abort;
use super::walk::first_allows;
use super::{End, Naive, Step, Stop, Words, bit};

/// An answer to a Translation Request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Completion {
    UnsupportedRequest,
    CompleterAbort,
    /// Success: the translated address and what may be done there.
    Granted(u64, Rights),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rights {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
}

/// What the tables grant, before `INSTCFG` has its say.
#[derive(Clone, Copy)]
struct Granted {
    r: bool,
    w: bool,
    x: bool,
}

/// Effective `EATS`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Eats {
    Disabled,
    Full,
    Split,
}

impl<M: Words> Naive<'_, M> {
    fn eats(&self, ste: &Ste) -> Eats {
        let atschk = bit(self.registers.cr0, 4);
        match ste.eats {
            _ if ste.config == 0b100 => Eats::Disabled,
            0b01 => Eats::Full,
            0b10 if atschk => Eats::Split,
            _ => Eats::Disabled,
        }
    }

    /// CR2.REC_CFG_ATS.
    fn records_errors(&self) -> bool {
        self.features.atsrecerr && bit(self.registers.cr2, 3)
    }

    /// A Translation Request; `write` of the incoming transaction is !NW, `execute` is Exe.
    pub(crate) fn request(&self, execute: bool) -> (Completion, Option<Record>) {
        loop {
            match self.request_once(execute) {
                Ok(completion) => return (completion, None),
                Err(Refusal::Unsupported(record)) => {
                    return (Completion::UnsupportedRequest, record);
                }
                Err(Refusal::Stopped(Stop::Again)) => {}
                // Address Size, Access, Translation and Permission faults: nothing is granted.
                Err(Refusal::Stopped(Stop::Faulted(..))) => {
                    return (Completion::Granted(0, Rights::default()), None);
                }
                Err(Refusal::Stopped(Stop::Ended(_, record))) => {
                    let record = record.filter(|_| self.records_errors()).map(Record::of_ats);
                    return (Completion::CompleterAbort, record);
                }
            }
        }
    }

    fn request_once(&self, execute: bool) -> Result<Completion, Refusal> {
        let who = self.who();
        let bad_request = || Refusal::Unsupported(Some(Record::bad_ats_request(&who)));
        if !bit(self.registers.cr0, 0) {
            return Err(bad_request());
        }
        let ste = self.valid_ste(bit(self.registers.cr2, 1))?;
        if ste.config & 0b100 == 0 {
            return Err(Refusal::Unsupported(None));
        }
        let eats = self.eats(&ste);
        if eats == Eats::Disabled {
            return Err(bad_request());
        }
        Ok(self.grant(&ste, eats, execute)?)
    }

    fn grant(&self, ste: &Ste, eats: Eats, execute: bool) -> Step<Completion> {
        let stage1 = self.stage1_applies(ste)?;
        let regime = self.tag(ste);
        let own = self.overridden(ste.raw.bits(113, 112), 0);
        let of = |write, instruction| Access { write, instruction, ..own };
        let asked = self.incoming.write;
        let place = |ipa| Place { s2: true, class: Class::In, ipa, table_read: true };
        let va = self.incoming.address;
        let rights = |granted: Granted| self.completion(ste, granted, execute);

        let mut granted = Granted { r: true, w: true, x: true };
        let mut ipa = va;
        let mut first = None;
        if stage1 {
            let cd = self.locate_cd(ste, regime)?;
            let leaf = self.first_leaf(ste, &cd, own.privileged)?;
            granted.r = first_allows(&cd, &leaf, of(false, false));
            granted.w = asked && first_allows(&cd, &leaf, of(true, false));
            granted.x = first_allows(&cd, &leaf, of(false, true));
            ipa = leaf.output;
            if rights(granted) == Rights::default() {
                // Stage 2 is not looked at.
                self.perhaps(|| self.first_update(ste, &cd, &leaf, false));
                return Ok(Completion::Granted(0, Rights::default()));
            }
            first = Some((cd, leaf));
        } else if va >> self.features.ias() != 0 {
            return Err(Stop::Faulted(End::Abort, None));
        } else if !ste.stage2() {
            // §13.6.4: reads and writes pass, whatever was asked for.
            return Ok(Completion::Granted(va, Rights { read: true, write: true, execute: false }));
        }
        let first_granted = granted;
        let mut pa = ipa;
        let mut second = None;
        if ste.stage2() {
            let leaf = self.second_leaf(ste, ipa, place(ipa)).inspect_err(|_| {
                if let Some((cd, leaf)) = &first {
                    self.perhaps(|| self.first_update(ste, cd, leaf, first_granted.w));
                }
            })?;
            granted.r &= self.second_allows(ste, &leaf, of(false, false), place(ipa));
            granted.w &= asked && self.second_allows(ste, &leaf, of(true, false), place(ipa));
            granted.x &= self.second_allows(ste, &leaf, of(false, true), place(ipa));
            pa = leaf.output;
            second = Some(leaf);
        }
        let result = rights(granted);
        let any = result != Rights::default();
        if let Some((cd, leaf)) = &first {
            if result.write != first_granted.w || !any {
                self.perhaps(|| self.first_update(ste, cd, leaf, first_granted.w));
            }
            if any {
                // Accessed first and dirty then is as good as both at once.
                self.in_passing(|| self.first_update(ste, cd, leaf, false));
                // Half of what was asked for may be possible without the update, half not.
                self.first_update(ste, cd, leaf, result.write).inspect_err(|stop| {
                    if !matches!(stop, Stop::Again) {
                        self.unpredictable.set(true);
                    }
                })?;
            }
        }
        if let Some(leaf) = &second {
            if any {
                self.in_passing(|| self.second_update(ste, leaf, false, place(ipa)));
                self.second_update(ste, leaf, result.write, place(ipa)).inspect_err(|stop| {
                    if !matches!(stop, Stop::Again) {
                        self.unpredictable.set(true);
                    }
                })?;
            } else {
                self.perhaps(|| self.second_update(ste, leaf, false, place(ipa)));
            }
        }
        if !any {
            return Ok(Completion::Granted(0, result));
        }
        Ok(Completion::Granted(if eats == Eats::Split { ipa } else { pa }, result))
    }

    /// §13.7.1.
    fn completion(&self, ste: &Ste, granted: Granted, execute: bool) -> Rights {
        let inst_cfg = if self.features.attr_perms_ovr { ste.raw.bits(115, 114) } else { 0 };
        let Granted { r, w, x } = granted;
        match inst_cfg {
            0b11 => Rights { read: x, write: w, execute: execute && x },
            0b10 => Rights { read: r, write: w, execute: execute && r },
            _ => Rights { read: r, write: w, execute: execute && r && x },
        }
    }

    /// The STE, if one is found and legal.
    fn valid_ste(&self, record_bad_stream: bool) -> Step<Ste> {
        let who = self.who();
        let ste = match self.locate_ste() {
            Located::Ste(words) => Ste::decode(words, self.features),
            Located::OutOfRange => {
                return Err(abort(record_bad_stream.then(|| Record::bad_stream_id(&who))));
            }
            Located::External(at) => return Err(abort(Some(Record::ste_fetch(&who, at)))),
        };
        if ste.illegal(self.features) {
            return Err(abort(Some(Record::bad_ste(&who))));
        }
        Ok(ste)
    }

    /// A transaction whose address ATS has translated. Without PASIDTT it is unprivileged data
    /// without a PASID; the caller sees to that.
    pub(crate) fn translated(&self) -> Step<End> {
        let who = self.who();
        let forbidden = || Err(abort(Some(Record::translation_forbidden(&who))));
        let passed = End::Done {
            pa: self.incoming.address,
            attributes: self.incoming.attributes,
            privileged: false,
            instruction: false,
        };
        let fits = self.incoming.address >> self.features.oas == 0;
        let pass = || if fits { Ok(passed) } else { Err(abort(None)) };
        if !bit(self.registers.cr0, 0) {
            return forbidden();
        }
        if !bit(self.registers.cr0, 4) {
            return pass();
        }
        let ste = self.valid_ste(true).map_err(|stop| match stop {
            Stop::Ended(end, record) => Stop::Ended(end, record.filter(|_| self.records_errors())),
            other => other,
        })?;
        if ste.config & 0b100 == 0 {
            return Err(abort(None));
        }
        match self.eats(&ste) {
            Eats::Disabled => forbidden(),
            Eats::Full => pass(),
            Eats::Split => {
                self.tag(&ste);
                let address = self.incoming.address;
                if address >> self.features.ias() != 0 {
                    let place = Place { s2: false, class: Class::In, ipa: 0, table_read: true };
                    let record =
                        Record::fault(Fault::AddrSize, &self.who_after(&ste), place, false);
                    return Err(abort(Some(record)));
                }
                let place = Place { s2: true, class: Class::In, ipa: address, table_read: true };
                let second = self.stage2(&ste, address, self.access(&ste), place)?;
                let attributes = self.incoming.attributes;
                self.vague_stage2(&ste, second.descriptor, attributes);
                Ok(End::Done {
                    pa: second.pa,
                    attributes: attributes.through_stage2(&ste, second.descriptor),
                    privileged: false,
                    instruction: false,
                })
            }
        }
    }
}

/// Why a request is not answered with a translation.
enum Refusal {
    Unsupported(Option<Record>),
    Stopped(Stop),
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}
