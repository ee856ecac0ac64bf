//! The CDs of a stream (IHI 0070 §3.3.2).

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagetable::OutOfMemory;
use smmuv3::wire::{Cd, L1Cd, Ste};

use crate::entry;
use crate::platform::{DmaMemory, Region};
use crate::probe::Features;

/// log2 of the size of a CD, in bytes.
const CD_LOG2: u8 = 6;
/// The bits of a SubstreamID that index a leaf, of 4 KiB.
const SPLIT: u8 = 6;
/// The most bits that index a linear table where there can be no other.
const LARGEST_LINEAR: u8 = 10;

/// A table of CDs: linear, or with leaves that come when they are needed.
///
/// What takes more than one write to a CD is done to a copy of the leaf, or of the whole linear table, which then
/// takes the place of the original by one write to what points to it.
pub(crate) struct CdTable<M: DmaMemory> {
    memory: Arc<M>,
    bits: u8,
    /// The table, or its level 1.
    top: Region<M>,
    leaves: Option<BTreeMap<u32, Region<M>>>,
}

/// What [`CdTable::set`] leaves to do.
#[must_use]
pub(crate) enum Next<M: DmaMemory> {
    /// Nothing.
    Done,
    /// The SMMU must forget all CDs of the stream; then the old leaf can go.
    Forget(Region<M>),
    /// This table must become the stream's.
    Swap(CdTable<M>),
}

impl<M: DmaMemory> CdTable<M> {
    /// The SubstreamID bits that a stream can have.
    pub(crate) fn largest_bits(features: &Features) -> u8 {
        if features.two_level_cds {
            features.ssid_bits
        } else {
            features.ssid_bits.min(LARGEST_LINEAR)
        }
    }

    /// A table of 2^`bits` CDs, none of them valid.
    pub(crate) fn new(memory: &Arc<M>, features: &Features, bits: u8) -> Result<Self, OutOfMemory> {
        let memory = memory.clone();
        if bits <= SPLIT || !features.two_level_cds {
            let top = Region::new(&memory, bits + CD_LOG2)?;
            return Ok(Self { memory, bits, top, leaves: None });
        }
        let top = Region::new(&memory, (bits - SPLIT + 3).max(6))?;
        Ok(Self { memory, bits, top, leaves: Some(BTreeMap::new()) })
    }

    /// Adds to an STE where the table is.
    pub(crate) fn point(&self, ste: Ste) -> Ste {
        ste.with_s1_context_ptr(self.top.address())
            .with_s1_cd_max(self.bits)
            .with_s1_fmt(u8::from(self.leaves.is_some()))
    }

    /// Sets the CD of a substream. `live` says whether transactions may be using the table; if so, they see the old CD
    /// or the new one and nothing else. `forget` has the SMMU forget this CD and the way to it.
    pub(crate) fn set<Error: From<OutOfMemory>>(
        &mut self,
        ssid: u32,
        new: Cd,
        live: bool,
        forget: impl FnMut() -> Result<(), Error>,
    ) -> Result<Next<M>, Error> {
        let Some(leaves) = &mut self.leaves else {
            let place = self.top.entry(ssid as usize);
            let old = Cd(entry::read(place));
            if !live || entry::is_hitless(old, new) {
                entry::write(place, old, new, forget)?;
                return Ok(Next::Done);
            }
            let top = copy(&self.memory, &self.top, self.bits, ssid, new)?;
            let (memory, bits) = (self.memory.clone(), self.bits);
            return Ok(Next::Swap(Self { memory, bits, top, leaves: None }));
        };
        let index = ssid >> SPLIT;
        let inside = ssid & ((1 << SPLIT) - 1);
        let pointer = &self.top.words()[index as usize];
        let l1cd = |leaf: &Region<M>| L1Cd(0).with_v(true).with_l2_ptr(leaf.address()).0.to_le();
        let leaf = match leaves.entry(index) {
            btree_map::Entry::Occupied(leaf) => leaf.into_mut(),
            btree_map::Entry::Vacant(place) => {
                let leaf = Region::new(&self.memory, SPLIT + CD_LOG2)?;
                pointer.store(l1cd(&leaf), Ordering::Release);
                place.insert(leaf)
            }
        };
        let place = leaf.entry(inside as usize);
        let old = Cd(entry::read(place));
        if !live || entry::is_hitless(old, new) {
            entry::write(place, old, new, forget)?;
            return Ok(Next::Done);
        }
        let new = copy(&self.memory, leaf, SPLIT, inside, new)?;
        pointer.store(l1cd(&new), Ordering::Release);
        Ok(Next::Forget(std::mem::replace(leaf, new)))
    }
}

/// A copy of 2^`bits` CDs, one of them another.
fn copy<M: DmaMemory>(
    memory: &Arc<M>,
    from: &Region<M>,
    bits: u8,
    index: u32,
    new: Cd,
) -> Result<Region<M>, OutOfMemory> {
    let region = Region::new(memory, bits + CD_LOG2)?;
    region.fill_from(from);
    for (to, word) in region.entry(index as usize).iter().zip(new.0) {
        to.store(word.to_le(), Ordering::Relaxed);
    }
    Ok(region)
}
