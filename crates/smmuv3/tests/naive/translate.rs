//! One transaction from its arrival to its end: §3.3, §3.4, §5.5, §7.3.22.

use super::attributes::{Attributes, Overrides};
use super::configuration::{Cd, Located, Ste};
use super::permissions::{Access, Regime};
use super::record::{Class, Fault, Place, Record, Who};
use super::{End, Naive, Role, Step, Stop, Words, bit, bits};

impl<M: Words> Naive<'_, M> {
    /// The transaction as a record names it, before any override.
    pub(crate) fn who(&self) -> Who {
        Who {
            stream: self.incoming.stream,
            substream: self.incoming.substream,
            address: self.incoming.address,
            read: !self.incoming.write,
            instruction: self.incoming.instruction,
            privileged: self.incoming.privileged,
        }
    }

    pub(crate) fn transaction(&self) -> Step<End> {
        if !bit(self.registers.cr0, 0) {
            return Ok(self.global_bypass());
        }
        let who = self.who();
        let ste = match self.locate_ste() {
            Located::Ste(words) => Ste::decode(words, self.features),
            Located::OutOfRange => {
                let recorded = bit(self.registers.cr2, 1);
                return Err(abort(recorded.then(|| Record::bad_stream_id(&who))));
            }
            Located::External(at) => return Err(abort(Some(Record::ste_fetch(&who, at)))),
        };
        if ste.illegal(self.features) {
            return Err(abort(Some(Record::bad_ste(&who))));
        }
        if ste.config & 0b100 == 0 {
            return Err(abort(None));
        }
        self.enabled(&ste)
    }

    /// SMMUEN == 0: §6.3.14, §3.4.
    fn global_bypass(&self) -> End {
        let gbpa = self.registers.gbpa;
        if bit(gbpa, 20) || self.incoming.address >> self.features.oas != 0 {
            return End::Abort;
        }
        let overrides = Overrides {
            supported: self.features.attr_types_ovr,
            mtcfg: bit(gbpa, 4),
            mem_attr: bits(gbpa, 3, 0),
            alloc_cfg: bits(gbpa, 11, 8),
            sh_cfg: bits(gbpa, 13, 12),
        };
        let access = self.overridden(bits(gbpa, 17, 16), bits(gbpa, 19, 18));
        done(self.incoming.address, self.incoming.attributes.replaced(&overrides), access)
    }

    /// PRIVCFG and INSTCFG.
    pub(crate) fn overridden(&self, priv_cfg: u64, inst_cfg: u64) -> Access {
        let apply = |field, incoming| match field {
            0b10 if self.features.attr_perms_ovr => false,
            0b11 if self.features.attr_perms_ovr => true,
            _ => incoming,
        };
        Access {
            write: self.incoming.write,
            privileged: apply(priv_cfg, self.incoming.privileged),
            instruction: !self.incoming.write && apply(inst_cfg, self.incoming.instruction),
        }
    }

    /// The access of the transaction, with the overrides of its STE.
    pub(crate) fn access(&self, ste: &Ste) -> Access {
        self.overridden(ste.raw.bits(113, 112), ste.raw.bits(115, 114))
    }

    /// Whether the transaction goes through stage 1: SubstreamID and S1DSS.
    pub(crate) fn stage1_applies(&self, ste: &Ste) -> Step<bool> {
        let who = self.who();
        let ssid = self.incoming.substream;
        let substreams = self.features.ssidsize != 0 && ste.stage1() && ste.s1_cd_max != 0;
        if ssid.is_some_and(|ssid| !substreams || u64::from(ssid) >> ste.s1_cd_max != 0) {
            return Err(abort(Some(Record::bad_substream_id(&who))));
        }
        if !substreams {
            return Ok(ste.stage1());
        }
        match (ste.s1_dss, ssid) {
            (0b00 | 0b11, None) | (0b10, Some(0)) => {
                Err(abort(Some(Record::stream_disabled(&who))))
            }
            (0b01, None) => Ok(false),
            _ => Ok(true),
        }
    }

    /// Tags what follows with StreamWorld and VMID.
    pub(crate) fn tag(&self, ste: &Ste) -> Regime {
        let regime = ste.regime(self.features, self.e2h());
        let mut tags = self.tags.get();
        tags.world = regime as u64;
        tags.vmid = if self.features.s2p && regime == Regime::El1 { ste.s2_vmid } else { 0 };
        tags.stage2 = ste.stage2().then(|| ste.stage2_fields());
        self.tags.set(tags);
        regime
    }

    /// A valid STE that lets traffic pass.
    fn enabled(&self, ste: &Ste) -> Step<End> {
        let stage1 = self.stage1_applies(ste)?;
        let regime = self.tag(ste);
        let overrides = Overrides {
            supported: self.features.attr_types_ovr,
            mtcfg: ste.raw.bit(100),
            mem_attr: ste.raw.bits(99, 96),
            alloc_cfg: ste.raw.bits(104, 101),
            sh_cfg: ste.raw.bits(109, 108),
        };
        let access = self.access(ste);
        let mut attributes = self.incoming.attributes.replaced(&overrides);
        let mut address = self.incoming.address;
        if stage1 {
            let cd = self.locate_cd(ste, regime)?;
            let (ipa, first) = self.stage1(ste, &cd, access)?;
            address = ipa;
            attributes = attributes.through_stage1(first);
        } else if address >> self.features.ias() != 0 {
            // Without a CD there is nothing that could suppress or stall it.
            let place = Place { s2: false, class: Class::In, ipa: 0, table_read: true };
            let record = Record::fault(Fault::AddrSize, &self.who_after(ste), place, false);
            return Err(Stop::Faulted(End::Abort, Some(record)));
        }
        if ste.stage2() {
            let place = Place { s2: true, class: Class::In, ipa: address, table_read: true };
            if !stage1 {
                self.mark.set(self.must.borrow().len());
            }
            let second = self.stage2(ste, address, access, place);
            if let Err(Stop::Ended(..) | Stop::Faulted(..)) = second {
                // Stage 1's own updates are permitted, but nobody is promised them.
                let mut must = self.must.borrow_mut();
                let doubtful: Vec<_> = must.drain(self.mark.get()..).collect();
                self.may.borrow_mut().extend(doubtful);
            }
            let second = second?;
            self.vague_stage2(ste, second.descriptor, attributes);
            address = second.pa;
            attributes = attributes.through_stage2(ste, second.descriptor);
        }
        Ok(done(address, attributes, access))
    }

    /// Marks results of stage 2 whose memory type the specification leaves open.
    pub(crate) fn vague_stage2(&self, ste: &Ste, descriptor: u64, incoming: Attributes) {
        let mem_attr = bits(descriptor, 5, 2);
        let reserved = if ste.s2_fwb {
            bit(mem_attr, 3) || bits(mem_attr, 2, 0) == 0b100
        } else {
            bits(mem_attr, 1, 0) == 0 && bits(mem_attr, 3, 2) != 0
        };
        // Nobody says whose hints memory has that stage 2 alone makes cacheable.
        let forced = ste.s2_fwb && bits(mem_attr, 2, 0) == 0b110 && !incoming.fully_cacheable();
        if reserved || forced {
            self.vague.set(true);
        }
    }

    /// As a record names the transaction after the STE's overrides.
    pub(crate) fn who_after(&self, ste: &Ste) -> Who {
        let access = self.access(ste);
        Who { instruction: access.instruction, privileged: access.privileged, ..self.who() }
    }

    /// §3.3.2, §5.3; with a stage 2, CDs and L1CDs are at IPAs.
    pub(crate) fn locate_cd(&self, ste: &Ste, regime: Regime) -> Step<Cd> {
        let who = self.who();
        let ssid = u64::from(self.incoming.substream.unwrap_or(0));
        let max = if self.features.ssidsize == 0 { 0 } else { ste.s1_cd_max };
        let split = match ste.s1_fmt {
            _ if max == 0 => None,
            0b01 => Some(6),
            0b10 => Some(10),
            _ => None,
        };
        let at = match split {
            None => (ste.s1_context_ptr >> (max + 6) << (max + 6)) + ssid * 64,
            Some(split) => {
                // The first table is aligned to its size, or 64 bytes.
                let lowest = (max + 3).saturating_sub(split).max(6);
                let at = (ste.s1_context_ptr >> lowest << lowest) + (ssid >> split) * 8;
                let pa = self.cd_address(ste, at)?;
                self.note(pa, Role::L1Cd);
                let Some(l1cd) = self.load(pa) else {
                    return Err(abort(Some(Record::cd_fetch(&who, pa))));
                };
                let l2ptr = bits(l1cd, 55, 12) << 12;
                // §3.4.3 (3) and (4).
                let size = if ste.stage2() { self.features.ias() } else { self.features.oas };
                if !bit(l1cd, 0) || l2ptr >> size != 0 {
                    return Err(abort(Some(Record::bad_substream_id(&who))));
                }
                // Second tables of 64 KiB are aligned to that: L2Ptr[15:12] are RES0.
                let table = l2ptr >> (split + 6) << (split + 6);
                table + (ssid & ((1 << split) - 1)) * 64
            }
        };
        let pa = self.cd_address(ste, at)?;
        self.note(pa, Role::Cd);
        let Some(words) = self.fetch_structure(pa) else {
            return Err(abort(Some(Record::cd_fetch(&who, pa))));
        };
        let cd = Cd::decode(words, self.features, regime);
        if cd.illegal(self.features, ste) {
            return Err(abort(Some(Record::bad_cd(&who))));
        }
        let mut tags = self.tags.get();
        tags.cd = Some(words);
        tags.asid = if regime == Regime::El2 { 0 } else { cd.asid };
        self.tags.set(tags);
        Ok(cd)
    }

    fn cd_address(&self, ste: &Ste, address: u64) -> Step<u64> {
        if !ste.stage2() {
            return Ok(address);
        }
        let place = Place { s2: true, class: Class::Cd, ipa: address, table_read: true };
        Ok(self.stage2(ste, address, Access::own(false), place)?.pa)
    }

    /// The STE of this transaction, once more, for overrides in records.
    fn current_who(&self) -> Who {
        match self.locate_ste() {
            Located::Ste(words) => self.who_after(&Ste::decode(words, self.features)),
            Located::OutOfRange | Located::External(_) => self.who(),
        }
    }

    /// §5.5 with the A, R and S of a CD.
    pub(crate) fn stage1_fault(&self, fault: Fault, cd: &Cd) -> Stop {
        let place = Place { s2: false, class: Class::In, ipa: 0, table_read: true };
        let end = match (cd.s, cd.a) {
            (true, _) => End::Stall,
            (false, true) => End::Abort,
            (false, false) => End::RazWi,
        };
        let record = (cd.r || cd.s).then(|| Record::fault(fault, &self.current_who(), place, cd.s));
        Stop::Faulted(end, record)
    }

    /// §5.5 with the R and S of an STE, and A as if it were 1.
    pub(crate) fn stage2_fault(&self, fault: Fault, ste: &Ste, place: Place) -> Stop {
        let end = if ste.s2_s { End::Stall } else { End::Abort };
        let record = (ste.s2_r || ste.s2_s)
            .then(|| Record::fault(fault, &self.who_after(ste), place, ste.s2_s));
        Stop::Faulted(end, record)
    }

    /// F_WALK_EABT.
    pub(crate) fn external(&self, place: Place, address: u64) -> Stop {
        abort(Some(Record::walk_eabt(&self.current_who(), place, address)))
    }
}

pub(crate) fn abort(record: Option<Record>) -> Stop {
    Stop::Ended(End::Abort, record)
}

fn done(pa: u64, attributes: Attributes, access: Access) -> End {
    End::Done {
        pa,
        attributes: attributes.consistent(),
        privileged: access.privileged,
        instruction: access.instruction,
    }
}
