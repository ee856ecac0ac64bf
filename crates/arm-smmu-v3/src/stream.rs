//! Streams: what a device's transactions are attached to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pagetable::Stage;
use parking_lot::Mutex;
use smmuv3::wire::{Cd, Command, Ste};

use crate::cd_table::{CdTable, Next};
use crate::domain::{AtsUser, Domain};
use crate::error::Error;
use crate::nested::Nested;
use crate::platform::{DmaMemory, Region, Registers};
use crate::smmu::Smmu;

/// What the transactions of a stream that have no PASID go through.
pub enum Attachment<R: Registers, M: DmaMemory> {
    /// They abort.
    Blocked,
    /// Input addresses are physical.
    Identity,
    /// A domain translates.
    Paging(Arc<Domain<R, M>>),
    /// What a guest has said, over its stage 2.
    Nested(Arc<Nested<R, M>>),
}

/// What a stream can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    /// Bits of its PASIDs; 0 if it has none.
    pub pasid_bits: u8,
    /// Its device uses ATS: it is given translations wherever a domain translates, and told to forget them.
    pub ats: bool,
    /// Its transactions stall where stage 1 faults, if that is the driver's, or if a guest asks for it; otherwise faults
    /// end them.
    pub stalls: bool,
}

impl<R: Registers, M: DmaMemory> Clone for Attachment<R, M> {
    fn clone(&self) -> Self {
        match self {
            Self::Blocked => Self::Blocked,
            Self::Identity => Self::Identity,
            Self::Paging(domain) => Self::Paging(domain.clone()),
            Self::Nested(nested) => Self::Nested(nested.clone()),
        }
    }
}

impl<R: Registers, M: DmaMemory> Attachment<R, M> {
    /// The CD, if stage 1 is the driver's.
    fn cd(&self) -> Option<Cd> {
        match self {
            Self::Paging(domain) => domain.cd(),
            Self::Blocked | Self::Identity | Self::Nested(_) => None,
        }
    }

    /// Stage 2 is in use, which leaves no room for PASIDs of the driver's.
    fn has_stage2(&self) -> bool {
        match self {
            Self::Paging(domain) => domain.geometry().stage() == Stage::Two,
            Self::Nested(_) => true,
            Self::Blocked | Self::Identity => false,
        }
    }

    /// The domain, and what a stream with ATS keeps of it.
    fn ats(&self, sid: u32) -> Option<(&Arc<Domain<R, M>>, AtsUser)> {
        match self {
            Self::Paging(domain) => Some((domain, AtsUser { sid, ssid: None, whole: false })),
            Self::Nested(nested) if nested.wants_ats() => {
                Some((nested.parent(), AtsUser { sid, ssid: None, whole: true }))
            }
            Self::Blocked | Self::Identity | Self::Nested(_) => None,
        }
    }
}

/// A stream, to whom nobody else has it. Blocked from the start, and once dropped.
///
/// A change of what is attached happens between two transactions: they see the old or the new attachment. Only where
/// the SMMU has a linear Stream table, and a stage 2 takes the place of another domain or the reverse, those in between
/// may abort. An error that is not one of [`Commands`](Error::Commands) changes nothing; after one of those,
/// transactions see the old attachment, the new one or an abort until the next success.
pub struct Stream<R: Registers, M: DmaMemory> {
    smmu: Arc<Smmu<R, M>>,
    id: u32,
    options: StreamOptions,
    state: Mutex<State<R, M>>,
}

struct State<R: Registers, M: DmaMemory> {
    attachment: Attachment<R, M>,
    pasids: BTreeMap<u32, Arc<Domain<R, M>>>,
    /// Once there was something at stage 1.
    cds: Option<CdTable<M>>,
    /// What hardware may still be using, because it has not confirmed that it has forgotten.
    doubtful: Option<Doubtful<R, M>>,
}

struct Doubtful<R: Registers, M: DmaMemory> {
    attachments: Vec<Attachment<R, M>>,
    ats: Vec<InAts<R, M>>,
    leaves: Vec<Region<M>>,
    tables: Vec<CdTable<M>>,
}

/// A stream with ATS that a domain tells of its invalidations.
type InAts<R, M> = (Arc<Domain<R, M>>, AtsUser);

impl<R: Registers, M: DmaMemory> State<R, M> {
    fn new() -> Self {
        Self { attachment: Attachment::Blocked, pasids: BTreeMap::new(), cds: None, doubtful: None }
    }

    fn doubtful(&mut self) -> &mut Doubtful<R, M> {
        self.doubtful.get_or_insert_with(|| Doubtful {
            attachments: Vec::new(),
            ats: Vec::new(),
            leaves: Vec::new(),
            tables: Vec::new(),
        })
    }
}

/// The StreamIDs that somebody has.
pub(crate) type Claims = Mutex<BTreeSet<u32>>;

impl<R: Registers, M: DmaMemory> Stream<R, M> {
    /// Takes a stream.
    pub fn new(smmu: &Arc<Smmu<R, M>>, id: u32, options: StreamOptions) -> Result<Self, Error> {
        let features = smmu.features();
        if options.pasid_bits > CdTable::<M>::largest_bits(features) {
            return Err(Error::Unsupported("the SMMU has fewer bits of SubstreamID"));
        }
        if options.ats && !features.ats {
            return Err(Error::Unsupported("the SMMU does not have ATS"));
        }
        if options.stalls && !features.stalls {
            return Err(Error::Unsupported("the SMMU does not have the Stall model"));
        }
        if !smmu.claims.lock().insert(id) {
            return Err(Error::StreamInUse(id));
        }
        // From here on, dropping it gives the claim back.
        let stream = Self { smmu: smmu.clone(), id, options, state: Mutex::new(State::new()) };
        smmu.permit_ats(id);
        stream.smmu.write_ste(id, aborting())?;
        if options.ats {
            // From an earlier life.
            stream.forget_atc(AtsUser { sid: id, ssid: None, whole: true })?;
        }
        Ok(stream)
    }

    /// The SMMU.
    pub fn smmu(&self) -> &Arc<Smmu<R, M>> {
        &self.smmu
    }

    /// Its StreamID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How many bits its PASIDs have; 0 if there are none.
    pub fn pasid_bits(&self) -> u8 {
        self.options.pasid_bits
    }

    /// Whether its device uses ATS.
    pub fn has_ats(&self) -> bool {
        self.options.ats
    }

    /// Whether its transactions may stall.
    pub fn may_stall(&self) -> bool {
        self.options.stalls
    }

    /// What transactions without a PASID go through.
    pub fn attachment(&self) -> Attachment<R, M> {
        self.state.lock().attachment.clone()
    }

    /// Has transactions without a PASID go through something else. What has a stage 2 cannot be beside PASIDs, and a
    /// guest's stage 1 needs the stream to be known to the guest's vIOMMU.
    pub fn attach(&self, new: Attachment<R, M>) -> Result<(), Error> {
        let state = &mut *self.state.lock();
        match &new {
            Attachment::Paging(domain) => {
                self.check(domain)?;
                if new.has_stage2() && !state.pasids.is_empty() {
                    return Err(Error::Unsupported("a stage 2 beside PASIDs"));
                }
            }
            Attachment::Nested(nested) => {
                self.check(nested.parent())?;
                if !state.pasids.is_empty() {
                    return Err(Error::PasidsInUse);
                }
                if nested.translates() && nested.viommu().virtual_id(self.id).is_none() {
                    return Err(Error::NoVirtualStreamId(self.id));
                }
            }
            Attachment::Blocked | Attachment::Identity => {}
        }
        let will = new.ats(self.id).filter(|_| self.options.ats);
        let will = will.map(|(domain, user)| (domain.clone(), user));
        let was = self.in_ats(state, None);
        self.change(state, Some(&new), will, was, |state| self.attach_with(state, &new))?;
        state.attachment = new;
        Ok(())
    }

    fn attach_with(&self, state: &mut State<R, M>, new: &Attachment<R, M>) -> Result<(), Error> {
        let (had_cd, cd) = (Self::has_cd(state), new.cd());
        if let Some(cd) = cd {
            self.set_cd(state, 0, cd)?;
        }
        self.smmu.write_ste(self.id, self.ste(state, new))?;
        if had_cd && cd.is_none() {
            self.set_cd(state, 0, Cd::default())?;
        }
        Ok(())
    }

    /// Has the transactions with a PASID, which is not 0, go through a domain of stage 1.
    pub fn attach_pasid(&self, pasid: u32, domain: &Arc<Domain<R, M>>) -> Result<(), Error> {
        self.check(domain)?;
        if pasid == 0 || u64::from(pasid) >> self.pasid_bits() != 0 {
            return Err(Error::Unsupported("the stream does not have this PASID"));
        }
        let cd = domain.cd().ok_or(Error::Unsupported("a PASID of a stage 2"))?;
        let state = &mut *self.state.lock();
        if state.attachment.has_stage2() {
            return Err(Error::Unsupported("PASIDs beside a stage 2"));
        }
        let user = AtsUser { sid: self.id, ssid: Some(pasid), whole: false };
        let will = self.options.ats.then(|| (domain.clone(), user));
        let was = self.in_ats(state, Some(pasid));
        let new = Attachment::Paging(domain.clone());
        self.change(state, Some(&new), will, was, |state| {
            self.set_cd(state, pasid, cd)?;
            // With the first one, stage 1 begins.
            let old = state.pasids.insert(pasid, domain.clone());
            let result = self.smmu.write_ste(self.id, self.ste(state, &state.attachment));
            if result.is_err() {
                match old {
                    Some(old) => state.pasids.insert(pasid, old),
                    None => state.pasids.remove(&pasid),
                };
            }
            result
        })
    }

    /// Has the transactions with a PASID abort. No error if nothing is attached.
    pub fn detach_pasid(&self, pasid: u32) -> Result<(), Error> {
        let state = &mut *self.state.lock();
        if !state.pasids.contains_key(&pasid) {
            return Ok(());
        }
        let was = self.in_ats(state, Some(pasid));
        self.change(state, None, None, was, |state| {
            self.set_cd(state, pasid, Cd::default())?;
            let old = state.pasids.remove(&pasid);
            let result = self.smmu.write_ste(self.id, self.ste(state, &state.attachment));
            if let (Some(old), Err(_)) = (old, &result) {
                state.pasids.insert(pasid, old);
            }
            result
        })
    }

    /// Changes something, for the sake of something new if there is that. If the SMMU does not confirm it, what is new
    /// is kept. With ATS, `will` is told of invalidations before the stream can know anything of it, and `was` until the
    /// stream has forgotten it.
    fn change(
        &self,
        state: &mut State<R, M>,
        new: Option<&Attachment<R, M>>,
        will: Option<InAts<R, M>>,
        was: Option<InAts<R, M>>,
        change: impl FnOnce(&mut State<R, M>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.settle(state)?;
        if let Some((domain, user)) = &will {
            domain.add_ats(*user);
        }
        let mut result = change(state);
        if let (Ok(()), Some((_, user))) = (&result, &was) {
            result = self.forget_atc(*user);
        }
        if let Err(Error::Commands(_)) = result {
            let doubtful = state.doubtful();
            doubtful.attachments.extend(new.cloned());
            doubtful.ats.extend([was, will].into_iter().flatten());
            return result;
        }
        // Of the two, the one that the stream is not on.
        if let Some((domain, user)) = if result.is_ok() { was } else { will } {
            domain.remove_ats(user);
        }
        result
    }

    fn forget_atc(&self, user: AtsUser) -> Result<(), Error> {
        self.smmu.forget_atc(&[AtsUser { whole: true, ..user }], &(0..0))
    }

    /// After a failure, puts what is attached in place anew. Until that has worked nothing that was in use goes away.
    fn settle(&self, state: &mut State<R, M>) -> Result<(), Error> {
        if state.doubtful.is_none() {
            return Ok(());
        }
        self.smmu.write_ste(self.id, aborting())?;
        // Whatever the STE was before, it may be remembered.
        self.smmu.forget_stream(self.id)?;
        state.cds = None;
        if let Some(cd) = state.attachment.cd() {
            self.set_cd(state, 0, cd)?;
        }
        for (pasid, domain) in state.pasids.clone() {
            self.set_cd(state, pasid, domain.cd().unwrap_or_default())?;
        }
        self.smmu.write_ste(self.id, self.ste(state, &state.attachment))?;
        let Some(doubtful) = state.doubtful.take() else { return Ok(()) };
        let Some((_, user)) = doubtful.ats.first() else { return Ok(()) };
        if let Err(error) = self.forget_atc(*user) {
            state.doubtful = Some(doubtful);
            return Err(error);
        }
        // Whichever of the two it is on now, that one goes on telling it of invalidations.
        if let Some((domain, user)) = self.in_ats(state, user.ssid) {
            domain.add_ats(user);
        }
        doubtful.ats.iter().for_each(|(domain, user)| domain.remove_ats(*user));
        Ok(())
    }

    /// Who tells the stream, or one of its PASIDs, of invalidations.
    fn in_ats(&self, state: &State<R, M>, ssid: Option<u32>) -> Option<InAts<R, M>> {
        let (domain, user) = match ssid {
            None => state.attachment.ats(self.id)?,
            Some(pasid) => {
                let domain = state.pasids.get(&pasid)?;
                (domain, AtsUser { sid: self.id, ssid, whole: false })
            }
        };
        self.options.ats.then(|| (domain.clone(), user))
    }

    fn check(&self, domain: &Domain<R, M>) -> Result<(), Error> {
        let same = Arc::ptr_eq(domain.smmu(), &self.smmu);
        if same { Ok(()) } else { Err(Error::Unsupported("a domain of another SMMU")) }
    }

    /// Whether the attachment has CD 0.
    fn has_cd(state: &State<R, M>) -> bool {
        state.attachment.cd().is_some()
    }

    fn set_cd(&self, state: &mut State<R, M>, ssid: u32, cd: Cd) -> Result<(), Error> {
        let live = Self::has_cd(state) || !state.pasids.is_empty();
        let cds = match &mut state.cds {
            Some(cds) => cds,
            none => none.insert(CdTable::new(
                &self.smmu.memory,
                self.smmu.features(),
                self.pasid_bits(),
            )?),
        };
        let cd = cd.with_s(cd.v() && self.options.stalls);
        let forget = [Command::CfgiCd { sid: self.id, ssid, leaf: false, ssec: false }];
        match cds.set(ssid, cd, live, || Ok::<_, Error>(self.smmu.run(&forget)?))? {
            Next::Done => {}
            Next::Forget(leaf) => {
                let forget = [Command::CfgiCdAll { sid: self.id, ssec: false }];
                if let Err(error) = self.smmu.run(&forget) {
                    state.doubtful().leaves.push(leaf);
                    return Err(error.into());
                }
            }
            Next::Swap(table) => {
                let old = std::mem::replace(cds, table);
                let result = self.smmu.write_ste(self.id, self.ste(state, &state.attachment));
                if result.is_err() {
                    state.doubtful().tables.push(old);
                    return result;
                }
            }
        }
        Ok(())
    }

    /// The STE for what is attached.
    fn ste(&self, state: &State<R, M>, attachment: &Attachment<R, M>) -> Ste {
        // Shareability as it comes in.
        let ste = Ste::default().with_v(true).with_sh_cfg(1);
        let ats = attachment.ats(self.id).is_some() || !state.pasids.is_empty();
        let ste = if ats && self.options.ats { ste.with_eats(0b01) } else { ste };
        let stage1 = |dss: u8| match &state.cds {
            Some(cds) => {
                let ste = cds.point(ste.with_config(0b101));
                let ste = ste.with_s1_cir(1).with_s1_cor(1).with_s1_csh(3);
                if self.pasid_bits() > 0 { ste.with_s1_dss(dss) } else { ste }
            }
            None => aborting(),
        };
        match attachment {
            Attachment::Blocked if state.pasids.is_empty() => aborting(),
            Attachment::Blocked => stage1(0b00),
            Attachment::Identity if state.pasids.is_empty() => ste.with_config(0b100),
            Attachment::Identity => stage1(0b01),
            Attachment::Paging(domain) => {
                domain.stage2(ste.with_config(0b110)).unwrap_or_else(|| stage1(0b10))
            }
            Attachment::Nested(nested) => {
                nested.ste(ste, self.options.stalls).unwrap_or_else(aborting)
            }
        }
    }
}

impl<R: Registers, M: DmaMemory> Drop for Stream<R, M> {
    fn drop(&mut self) {
        if self.smmu.write_ste(self.id, aborting()).is_err() {
            // Hardware does not confirm that the stream is blocked: nothing that it uses may go away, ever.
            std::mem::forget(std::mem::replace(self.state.get_mut(), State::new()));
        }
        if self.options.stalls {
            // Nobody will say what is to become of them.
            let _ = self.smmu.run(&[Command::StallTerm { sid: self.id, ssec: false }]);
        }
        let state = self.state.lock();
        let targets = state.pasids.keys().copied().map(Some).chain([None]);
        let attached = targets.filter_map(|ssid| self.in_ats(&state, ssid));
        let doubtful = state.doubtful.iter().flat_map(|doubtful| doubtful.ats.iter().cloned());
        attached.chain(doubtful).for_each(|(domain, user)| domain.remove_ats(user));
        drop(state);
        self.smmu.claims.lock().remove(&self.id);
    }
}

/// An STE that aborts, and reports nothing.
fn aborting() -> Ste {
    Ste::default().with_v(true)
}
