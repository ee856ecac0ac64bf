//! A second SMMUv3, deliberately naive: no TLB, no caches, no queues, one transaction at a time,
//! in the order and with the names of the pseudocode and prose of IHI 0070 (§3.3, §3.4, §5.1 to
//! §5.5, §7.3, chapter 13) and of DDI 0487 (`AArch64.S1Translate`, `AArch64.S2Translate` and what
//! they call). It shares no code with the crate and knows its options only from what the ID
//! registers say.

pub(crate) mod ats;
pub(crate) mod attributes;
pub(crate) mod configuration;
pub(crate) mod features;
pub(crate) mod permissions;
pub(crate) mod record;
#[cfg(test)]
mod tests;
pub(crate) mod translate;
pub(crate) mod walk;

use std::cell::{Cell, RefCell};

use ats::Completion;
use attributes::Attributes;
pub(crate) use features::Features;
use record::Record;

/// Bits `high` to `low` of a word.
pub(crate) fn bits(word: u64, high: u32, low: u32) -> u64 {
    (word >> low) & (u64::MAX >> (63 - (high - low)))
}

/// One bit of a word.
pub(crate) fn bit(word: u64, n: u32) -> bool {
    bits(word, n, n) == 1
}

/// Physical memory as the naive SMMU sees it.
pub(crate) trait Words {
    /// The aligned 64-bit word at `address`; `None` is an external abort.
    fn word(&self, address: u64) -> Option<u64>;

    /// Whether an atomic update of the word would succeed.
    fn takes_updates(&self, address: u64) -> bool;
}

/// The registers that a transaction depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Registers {
    pub cr0: u64,
    pub cr2: u64,
    pub gbpa: u64,
    pub strtab_base: u64,
    pub strtab_base_cfg: u64,
}

/// An ordinary (untranslated) incoming transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub stream: u32,
    pub substream: Option<u32>,
    pub address: u64,
    pub write: bool,
    pub privileged: bool,
    pub instruction: bool,
    pub attributes: Attributes,
}

/// What becomes of the transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Done { pa: u64, attributes: Attributes, privileged: bool, instruction: bool },
    Abort,
    RazWi,
    Stall,
}

/// A change to a descriptor in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Update {
    pub address: u64,
    pub value: u64,
}

/// A structure or descriptor that was read: what invalidations have to be about, if it changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Read {
    pub address: u64,
    pub role: Role,
}

/// What a [`Read`] was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    L1Std,
    Ste,
    L1Cd,
    Cd,
    /// A descriptor of stage 1.
    First(Descriptor),
    /// A descriptor of stage 2, for an IPA.
    Second(Descriptor, record::Place),
}

/// Where in a walk a descriptor stood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor {
    /// log2.
    pub granule: u64,
    pub level: i64,
    pub leaf: bool,
}

/// What a TLB may have tagged entries of this transaction with, and the configuration that
/// software must not vary under one tag (§5.2.1, §5.4.1).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tags {
    pub world: u64,
    pub vmid: u64,
    pub asid: u64,
    /// A leaf without nG was met.
    pub global: bool,
    /// The fields of the STE's stage 2.
    pub stage2: Option<[u64; 3]>,
    pub cd: Option<[u64; 8]>,
}

/// Everything that is to be seen of one transaction.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub end: End,
    pub record: Option<Record>,
    /// Updates that must have happened.
    pub must: Vec<Update>,
    /// Updates that may have happened besides (§3.13.2: it is UNKNOWN whether a Permission fault
    /// sets AF; §13.4.4: stage 1 may be updated though stage 2 faults).
    pub may: Vec<Update>,
    /// Values that descriptors may have had in between.
    pub passed: Vec<Update>,
    pub tags: Tags,
    pub trace: Vec<Read>,
    /// Parts of the output attributes are CONSTRAINED UNPREDICTABLE.
    pub vague: bool,
    /// Tables that are such that anything may happen: contiguous groups whose members differ, descriptors that stage
    /// 1 updates and stage 2 uses.
    pub unpredictable: bool,
}

/// Why a translation does not go on.
pub(crate) enum Stop {
    /// The transaction ends like this.
    Ended(End, Option<Record>),
    /// The same, for one of the four Translation-related faults.
    Faulted(End, Option<Record>),
    /// A descriptor changed under the walk: once more from the beginning.
    Again,
}

pub(crate) type Step<T> = Result<T, Stop>;

/// The naive SMMU at work on one transaction.
pub(crate) struct Naive<'a, M> {
    pub features: &'a Features,
    pub registers: &'a Registers,
    pub memory: &'a M,
    pub incoming: Incoming,
    pub must: RefCell<Vec<Update>>,
    pub may: RefCell<Vec<Update>>,
    pub passed: RefCell<Vec<Update>>,
    /// Set while whatever is updated need not be.
    pub optional: Cell<bool>,
    pub tags: Cell<Tags>,
    pub trace: RefCell<Vec<Read>>,
    pub vague: Cell<bool>,
    pub unpredictable: Cell<bool>,
    /// How many updates there were before stage 1's own.
    pub mark: Cell<usize>,
    /// Where stage 1 updated, and where stage 2 found its leaves, which a TLB may still hold.
    pub first: RefCell<Vec<u64>>,
    pub second: RefCell<Vec<u64>>,
}

/// What a naive SMMU answers to one transaction.
pub(crate) fn answer<M: Words>(
    features: &Features,
    registers: &Registers,
    memory: &M,
    incoming: &Incoming,
) -> Answer {
    let naive = Naive::new(features, registers, memory, incoming);
    let (end, record) = naive.until_it_ends(Naive::transaction);
    naive.into_answer(end, record)
}

/// What it answers to a transaction whose address ATS has translated.
pub(crate) fn answer_translated<M: Words>(
    features: &Features,
    registers: &Registers,
    memory: &M,
    incoming: &Incoming,
) -> Answer {
    let incoming = Incoming { substream: None, privileged: false, instruction: false, ..*incoming };
    let naive = Naive::new(features, registers, memory, &incoming);
    let (end, record) = naive.until_it_ends(Naive::translated);
    naive.into_answer(end, record)
}

/// What it answers to an ATS Translation Request; the end is that of no transaction.
pub(crate) fn answer_request<M: Words>(
    features: &Features,
    registers: &Registers,
    memory: &M,
    incoming: &Incoming,
) -> (Completion, Answer) {
    // Without a PASID there is nowhere to ask for privilege or execution.
    let pasid = incoming.substream.is_some();
    let execute = incoming.instruction && pasid;
    let incoming =
        Incoming { privileged: incoming.privileged && pasid, instruction: false, ..*incoming };
    let naive = Naive::new(features, registers, memory, &incoming);
    let (completion, record) = naive.request(execute);
    (completion, naive.into_answer(End::Abort, record))
}

impl<'a, M: Words> Naive<'a, M> {
    fn new(
        features: &'a Features,
        registers: &'a Registers,
        memory: &'a M,
        incoming: &Incoming,
    ) -> Self {
        Self {
            features,
            registers,
            memory,
            // §13.1.2: all incoming writes are data.
            incoming: Incoming {
                instruction: incoming.instruction && !incoming.write,
                ..*incoming
            },
            must: RefCell::default(),
            may: RefCell::default(),
            passed: RefCell::default(),
            optional: Cell::new(false),
            tags: Cell::default(),
            trace: RefCell::default(),
            vague: Cell::new(false),
            unpredictable: Cell::new(false),
            mark: Cell::new(0),
            first: RefCell::default(),
            second: RefCell::default(),
        }
    }

    fn until_it_ends(&self, once: impl Fn(&Self) -> Step<End>) -> (End, Option<Record>) {
        loop {
            match once(self) {
                Ok(end) => return (end, None),
                Err(Stop::Ended(end, record) | Stop::Faulted(end, record)) => {
                    return (end, record);
                }
                Err(Stop::Again) => {}
            }
        }
    }

    fn into_answer(self, end: End, record: Option<Record>) -> Answer {
        Answer {
            end,
            record,
            unpredictable: self.unpredictable.get() || self.roles_mix(),
            must: self.must.into_inner(),
            may: self.may.into_inner(),
            passed: self.passed.into_inner(),
            tags: self.tags.get(),
            trace: self.trace.into_inner(),
            vague: self.vague.get(),
        }
    }
}

impl<M: Words> Naive<'_, M> {
    fn roles_mix(&self) -> bool {
        let second = self.second.borrow();
        self.first.borrow().iter().any(|address| second.contains(address))
    }

    pub(crate) fn note(&self, address: u64, role: Role) {
        self.trace.borrow_mut().push(Read { address, role });
    }

    /// Memory, with the updates made so far.
    pub(crate) fn load(&self, address: u64) -> Option<u64> {
        let must = self.must.borrow();
        match must.iter().rev().find(|update| update.address == address) {
            Some(update) => Some(update.value),
            None => self.memory.word(address),
        }
    }
}
