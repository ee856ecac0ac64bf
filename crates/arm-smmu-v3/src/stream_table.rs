//! The Stream table (IHI 0070 §3.3.1).

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pagetable::OutOfMemory;
use smmuv3::wire::register::{StrtabBase, StrtabBaseCfg};
use smmuv3::wire::{Command, L1Std, Ste};

use crate::error::Error;
use crate::platform::{DmaMemory, Region};
use crate::probe::Features;

/// log2 of the size of an STE, in bytes.
const STE_LOG2: u8 = 6;
/// The bits of a StreamID that index a level 2 table.
const SPLIT: u8 = 8;
/// The most bits that index the level 1 table, which takes a megabyte then.
const LARGEST_L1: u8 = 17;
/// The most bits that index a linear table.
const LARGEST_LINEAR: u8 = 16;

/// The table: level 2 tables come when somebody needs a stream of theirs, and stay.
pub(crate) struct StreamTable<M: DmaMemory> {
    memory: Arc<M>,
    bits: u8,
    /// The table, or its level 1.
    top: Region<M>,
    /// The level 2 tables if there are any, by index.
    below: Option<BTreeMap<u32, Region<M>>>,
    /// Former level 2 tables of which the SMMU has not confirmed that it has forgotten them.
    doubtful: Vec<Region<M>>,
}

impl<M: DmaMemory> StreamTable<M> {
    /// An empty table: all streams abort.
    pub(crate) fn new(memory: &Arc<M>, features: &Features) -> Result<Self, OutOfMemory> {
        let memory = memory.clone();
        // Up to 64 streams, a level more saves nothing.
        if features.sid_bits <= 6 || !features.two_level_streams {
            let bits = features.sid_bits.min(LARGEST_LINEAR);
            let top = aborting(&memory, bits)?;
            return Ok(Self { memory, bits, top, below: None, doubtful: Vec::new() });
        }
        let bits = features.sid_bits.min(SPLIT + LARGEST_L1);
        let top = Region::new(&memory, (bits.saturating_sub(SPLIT) + 3).max(6))?;
        Ok(Self { memory, bits, top, below: Some(BTreeMap::new()), doubtful: Vec::new() })
    }

    /// What the registers say of it.
    pub(crate) fn registers(&self) -> (StrtabBase, StrtabBaseCfg) {
        let base = StrtabBase(0).with_addr(self.top.address()).with_ra(true);
        let cfg = StrtabBaseCfg(0).with_log2size(self.bits);
        if self.below.is_some() { (base, cfg.with_fmt(1).with_split(SPLIT)) } else { (base, cfg) }
    }

    /// The STE of a stream. It may be in a table that the SMMU does not know of yet: before the STE counts,
    /// what the SMMU remembers of the way to it must go too.
    pub(crate) fn ste(&mut self, stream_id: u32) -> Result<&[AtomicU64; 8], Error> {
        if u64::from(stream_id) >> self.bits != 0 {
            return Err(Error::StreamId(stream_id));
        }
        let Some(below) = &mut self.below else { return Ok(self.top.entry(stream_id as usize)) };
        let index = stream_id >> SPLIT;
        let table = match below.entry(index) {
            btree_map::Entry::Occupied(table) => table.into_mut(),
            btree_map::Entry::Vacant(place) => {
                let table = aborting(&self.memory, SPLIT)?;
                publish(&self.top, index, &table);
                place.insert(table)
            }
        };
        Ok(table.entry(inside(stream_id)))
    }

    /// Gives a stream another STE by one write, whatever the difference: a copy of its level 2 table with the new STE
    /// takes the place of the table. `forget` has the SMMU execute what makes it forget the table. Says whether there is
    /// a second level to do so in.
    pub(crate) fn replace(
        &mut self,
        stream_id: u32,
        ste: Ste,
        forget: impl FnOnce(Command) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let index = stream_id >> SPLIT;
        let table = self.below.as_mut().and_then(|below| below.get_mut(&index));
        let Some(table) = table else { return Ok(false) };
        let copy = Region::new(&self.memory, SPLIT + STE_LOG2)?;
        copy.fill_from(table);
        for (to, word) in copy.entry(inside(stream_id)).iter().zip(ste.0) {
            to.store(word.to_le(), Ordering::Relaxed);
        }
        publish(&self.top, index, &copy);
        let old = std::mem::replace(table, copy);
        let result =
            forget(Command::CfgiSteRange { sid: index << SPLIT, range: SPLIT - 1, ssec: false });
        if result.is_err() {
            self.doubtful.push(old);
        }
        result.map(|()| true)
    }
}

/// The place of a stream in its level 2 table.
fn inside(stream_id: u32) -> usize {
    (stream_id & ((1 << SPLIT) - 1)) as usize
}

/// Puts a level 2 table in place: whoever sees it sees its STEs.
fn publish<M: DmaMemory>(top: &Region<M>, index: u32, table: &Region<M>) {
    let l1std = L1Std(0).with_span(SPLIT + 1).with_l2_ptr(table.address());
    top.words()[index as usize].store(l1std.0.to_le(), Ordering::Release);
}

/// 2^`log2` STEs that abort.
fn aborting<M: DmaMemory>(memory: &Arc<M>, log2: u8) -> Result<Region<M>, OutOfMemory> {
    let region = Region::new(memory, log2 + STE_LOG2)?;
    for word in region.words().iter().step_by(8) {
        word.store(Ste::default().with_v(true).0[0].to_le(), Ordering::Relaxed);
    }
    Ok(region)
}
