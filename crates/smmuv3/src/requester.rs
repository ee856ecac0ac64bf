//! Where transactions enter: ports, and what they remember.

use std::ops::Range;
use std::sync::Arc;

use pagetable::{Permissions, Shareability};

use crate::attributes::Attributes;
use crate::cache::generation::Space;
use crate::cache::in_flight::Marker;
use crate::cache::tlb::{Tags, Tlb};
use crate::config::Context;
use crate::platform::{Abort, Memory};
use crate::smmu::Smmu;
use crate::stale::{Served, Word, origin};
use crate::sync::{Fence, SeqCst};
use crate::transaction::{Refused, Transaction, Translation};
use crate::translate::representable;

/// A port of the SMMU for one thread of one or more devices.
///
/// It remembers the configuration of the streams that it issued for last, so a port for each
/// device, or for each thread, serves best.
pub struct Requester<M: Memory, F: Fence = SeqCst> {
    smmu: Arc<Smmu<M, F>>,
    marker: Arc<Marker>,
    hot: Box<[Hot]>,
    contexts: Box<[Option<Context>]>,
    /// For the checker: the words that each context was made from.
    origins: Vec<Vec<Word>>,
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

/// A bit of a [`Hot::key`] that no transaction's has: streams that the checker watches never hit by themselves.
const WATCHED: u64 = 1 << 62;

const PRIVILEGED: u8 = 1 << 6;
const INSTRUCTION: u8 = 1 << 7;

#[inline]
fn kind(transaction: &Transaction) -> usize {
    usize::from(transaction.write)
        | usize::from(transaction.privileged) << 1
        | usize::from(transaction.instruction) << 2
}

impl Hot {
    /// Matches no transaction: no key has bit 63 set, watched or not.
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
        let hot = vec![Hot::empty(); count].into();
        Self { smmu, marker, hot, contexts, origins: Vec::new() }
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
        let len = data.len();
        let each = |memory: &M, address, part: Range<usize>| {
            memory.read(address, &mut data[part.clone()]).map(|()| part.len())
        };
        self.each_run(transaction, len, each).map(drop)
    }

    /// Writes through the SMMU to the device's address space. Bytes before the first failing page may have been
    /// written.
    pub fn write(&mut self, transaction: &Transaction, data: &[u8]) -> Result<(), Refused> {
        let transaction = Transaction { write: true, ..*transaction };
        let each = |memory: &M, address, part: Range<usize>| {
            memory.write(address, &data[part.clone()]).map(|()| part.len())
        };
        self.each_run(&transaction, data.len(), each).map(drop)
    }

    /// Has `each` move the physically contiguous parts of an access of `len` bytes, one after the other, until it moves
    /// less than such a part; how many bytes it has moved altogether.
    pub fn each_run(
        &mut self,
        transaction: &Transaction,
        len: usize,
        mut each: impl FnMut(&M, u64, Range<usize>) -> Result<usize, Abort>,
    ) -> Result<usize, Refused> {
        let mut done = 0;
        while done < len {
            let (address, length) = self.run(transaction, done, len)?;
            let moved = each(&self.requester.smmu.memory, address, done..done + length)?;
            done += moved;
            if moved < length {
                break;
            }
        }
        Ok(done)
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
        self.hit_as(key(transaction), transaction)
    }

    #[inline(always)]
    fn hit_as(&mut self, key: u64, transaction: &Transaction) -> Option<Translation> {
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
        // Streams, and substreams of one stream, are numbered from 0.
        (key ^ key >> 33) as usize & (self.hot.len() - 1)
    }

    #[cold]
    #[inline(never)]
    fn miss(&mut self, transaction: Transaction) -> Result<Translation, Refused> {
        let key = key(&transaction);
        // Before anything is read: what is read later may be newer, never older.
        let changes = self.smmu.tlb.changes();
        let result = if self.smmu.checker.get().is_some() {
            self.watched(key | WATCHED, &transaction)
        } else {
            self.serve(key, &transaction, changes, &mut false)
        };
        if let Err(refused) = result {
            self.smmu.refused(&transaction, refused);
        }
        result
    }

    /// Answers a transaction that the TLB does not. `fetched` becomes whether its configuration was.
    #[inline(always)]
    fn serve(
        &mut self,
        key: u64,
        transaction: &Transaction,
        changes: u64,
        fetched: &mut bool,
    ) -> Result<Translation, Refused> {
        let slot = self.slot(key);
        let Self { smmu, hot, contexts, .. } = self;
        let smmu = &**smmu;
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
            *fetched = true;
        }
        match &contexts[slot] {
            Some(context) => smmu.walk(context, transaction, smmu.tlb.before(hot[slot].tags)),
            None => Err(Refused::Abort),
        }
    }

    /// A transaction under the eyes of the checker: served as ever, then compared with memory.
    #[cold]
    #[inline(never)]
    fn watched(&mut self, key: u64, transaction: &Transaction) -> Result<Translation, Refused> {
        let smmu = self.smmu.clone();
        let Some(checker) = smmu.checker.get() else { return Err(Refused::Abort) };
        let since = checker.executed();
        if transaction.translated {
            let used = smmu.translated(transaction);
            smmu.judge_translated(checker, since, transaction, used);
            return used;
        }
        let first = smmu.explain(transaction);
        let mut fetched = false;
        let hit = self.hit_as(key, transaction);
        let used = match hit {
            Some(translation) => Ok(translation),
            None => self.serve(key, transaction, smmu.tlb.changes(), &mut fetched),
        };
        let slot = self.slot(key);
        if fetched {
            self.origins.resize_with(self.hot.len(), Vec::new);
            self.origins[slot] = origin(&first.1);
        }
        let known = self.hot[slot].key == key;
        let served = Served {
            transaction,
            first,
            since,
            used,
            entry: hit.and_then(|_| self.permissions(slot, transaction.address)),
            context: self.contexts[slot].as_ref().filter(|_| known),
            origin: self.origins.get(slot).filter(|_| !fetched).map(Vec::as_slice),
        };
        smmu.judge(checker, &served);
        // So that each page of a long transfer comes by here.
        let page = |from: &Translation| 0x1000 - (from.address & 0xfff);
        used.map(|used| Translation { length: used.length.min(page(&used)), ..used })
    }

    /// What the TLB entry permits that has just been used.
    fn permissions(&self, slot: usize, address: u64) -> Option<Permissions> {
        let (hot, canonical) = (&self.hot[slot], self.canonical(slot, address));
        let (data, _) = self.smmu.tlb.lookup(&hot.space, &hot.tags, canonical)?;
        Some(Permissions::from_bits(data.permissions()))
    }
}
