//! Streams: what a device's transactions are attached to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pagetable::Stage;
use parking_lot::Mutex;
use smmuv3::wire::{Cd, Command, Ste};

use crate::cd_table::{CdTable, Next};
use crate::domain::Domain;
use crate::error::Error;
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
}

impl<R: Registers, M: DmaMemory> Clone for Attachment<R, M> {
    fn clone(&self) -> Self {
        match self {
            Self::Blocked => Self::Blocked,
            Self::Identity => Self::Identity,
            Self::Paging(domain) => Self::Paging(domain.clone()),
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
    pasid_bits: u8,
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
    domains: Vec<Arc<Domain<R, M>>>,
    leaves: Vec<Region<M>>,
    tables: Vec<CdTable<M>>,
}

impl<R: Registers, M: DmaMemory> State<R, M> {
    fn new() -> Self {
        Self { attachment: Attachment::Blocked, pasids: BTreeMap::new(), cds: None, doubtful: None }
    }

    fn doubtful(&mut self) -> &mut Doubtful<R, M> {
        let nothing = || Doubtful { domains: Vec::new(), leaves: Vec::new(), tables: Vec::new() };
        self.doubtful.get_or_insert_with(nothing)
    }
}

/// The StreamIDs that somebody has.
pub(crate) type Claims = Mutex<BTreeSet<u32>>;

impl<R: Registers, M: DmaMemory> Stream<R, M> {
    /// Takes a stream whose PASIDs have up to `pasid_bits` bits; 0 is none.
    pub fn new(smmu: &Arc<Smmu<R, M>>, id: u32, pasid_bits: u8) -> Result<Self, Error> {
        if pasid_bits > CdTable::<M>::largest_bits(smmu.features()) {
            return Err(Error::Unsupported("the SMMU has fewer bits of SubstreamID"));
        }
        if !smmu.claims.lock().insert(id) {
            return Err(Error::StreamInUse(id));
        }
        // From here on, dropping it gives the claim back.
        let stream = Self { smmu: smmu.clone(), id, pasid_bits, state: Mutex::new(State::new()) };
        stream.smmu.write_ste(id, aborting())?;
        Ok(stream)
    }

    /// Its StreamID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How many bits its PASIDs have; 0 if there are none.
    pub fn pasid_bits(&self) -> u8 {
        self.pasid_bits
    }

    /// What transactions without a PASID go through.
    pub fn attachment(&self) -> Attachment<R, M> {
        self.state.lock().attachment.clone()
    }

    /// Has transactions without a PASID go through something else. A domain of stage 2 cannot be beside PASIDs.
    pub fn attach(&self, new: Attachment<R, M>) -> Result<(), Error> {
        let state = &mut *self.state.lock();
        let cd = match &new {
            Attachment::Paging(domain) => {
                self.check(domain)?;
                if domain.geometry().stage() == Stage::Two && !state.pasids.is_empty() {
                    return Err(Error::Unsupported("a stage 2 beside PASIDs"));
                }
                domain.cd()
            }
            Attachment::Blocked | Attachment::Identity => None,
        };
        let domain = match &new {
            Attachment::Paging(domain) => Some(domain),
            Attachment::Blocked | Attachment::Identity => None,
        };
        self.change(state, domain, |state| self.attach_with(state, &new, cd))?;
        state.attachment = new;
        Ok(())
    }

    fn attach_with(
        &self,
        state: &mut State<R, M>,
        new: &Attachment<R, M>,
        cd: Option<Cd>,
    ) -> Result<(), Error> {
        let had_cd = Self::has_cd(state);
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
        if pasid == 0 || u64::from(pasid) >> self.pasid_bits != 0 {
            return Err(Error::Unsupported("the stream does not have this PASID"));
        }
        let cd = domain.cd().ok_or(Error::Unsupported("a PASID of a stage 2"))?;
        let state = &mut *self.state.lock();
        if let Attachment::Paging(domain) = &state.attachment
            && domain.geometry().stage() == Stage::Two
        {
            return Err(Error::Unsupported("PASIDs beside a stage 2"));
        }
        self.change(state, Some(domain), |state| {
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
        self.change(state, None, |state| {
            self.set_cd(state, pasid, Cd::default())?;
            let old = state.pasids.remove(&pasid);
            let result = self.smmu.write_ste(self.id, self.ste(state, &state.attachment));
            if let (Some(old), Err(_)) = (old, &result) {
                state.pasids.insert(pasid, old);
            }
            result
        })
    }

    /// Changes something, for the sake of a new domain if there is one. If the SMMU does not confirm it, that domain is
    /// kept.
    fn change(
        &self,
        state: &mut State<R, M>,
        domain: Option<&Arc<Domain<R, M>>>,
        change: impl FnOnce(&mut State<R, M>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.settle(state)?;
        let result = change(state);
        if let Err(Error::Commands(_)) = result {
            state.doubtful().domains.extend(domain.cloned());
        }
        result
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
        if let Attachment::Paging(domain) = &state.attachment
            && let Some(cd) = domain.cd()
        {
            self.set_cd(state, 0, cd)?;
        }
        for (pasid, domain) in state.pasids.clone() {
            self.set_cd(state, pasid, domain.cd().unwrap_or_default())?;
        }
        self.smmu.write_ste(self.id, self.ste(state, &state.attachment))?;
        state.doubtful = None;
        Ok(())
    }

    fn check(&self, domain: &Domain<R, M>) -> Result<(), Error> {
        let same = Arc::ptr_eq(domain.smmu(), &self.smmu);
        if same { Ok(()) } else { Err(Error::Unsupported("a domain of another SMMU")) }
    }

    /// Whether the attachment has CD 0.
    fn has_cd(state: &State<R, M>) -> bool {
        matches!(&state.attachment, Attachment::Paging(domain) if domain.cd().is_some())
    }

    fn set_cd(&self, state: &mut State<R, M>, ssid: u32, cd: Cd) -> Result<(), Error> {
        let live = Self::has_cd(state) || !state.pasids.is_empty();
        let cds = match &mut state.cds {
            Some(cds) => cds,
            none => {
                none.insert(CdTable::new(&self.smmu.memory, self.smmu.features(), self.pasid_bits)?)
            }
        };
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
        let stage1 = |dss: u8| match &state.cds {
            Some(cds) => {
                let ste = cds.point(ste.with_config(0b101));
                let ste = ste.with_s1_cir(1).with_s1_cor(1).with_s1_csh(3);
                if self.pasid_bits > 0 { ste.with_s1_dss(dss) } else { ste }
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
        }
    }
}

impl<R: Registers, M: DmaMemory> Drop for Stream<R, M> {
    fn drop(&mut self) {
        if self.smmu.write_ste(self.id, aborting()).is_err() {
            // Hardware does not confirm that the stream is blocked: nothing that it uses may go away, ever.
            std::mem::forget(std::mem::replace(self.state.get_mut(), State::new()));
        }
        self.smmu.claims.lock().remove(&self.id);
    }
}

/// An STE that aborts, and reports nothing.
fn aborting() -> Ste {
    Ste::default().with_v(true)
}
