//! The comparison, and what is made of a difference.

use std::sync::atomic::{AtomicU64, Ordering};

use pagetable::{Granule, LAST_LEVEL, Permissions, format};
use parking_lot::{Mutex, MutexGuard};

use super::ledger::{Ledger, NoteKey, Noted, PageKey};
use super::report::{Proof, Stale, StaleCache};
use super::scope::{Scope, Tag};
use super::words::{
    Change, Place, Word, configuration, first_change, marks_dirty, words, words_after,
};
use crate::cache::generation::StreamWorld;
use crate::config::Context;
use crate::explain::Explanation;
use crate::platform::Memory;
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::transaction::{Refused, Transaction, Translation};
use crate::translate::Walker;
use crate::wire::register::{CmdqCons, Prod, Register};
use crate::wire::{Command, Event};

/// When a difference between a cache and memory is a bug of the software; [`Smmu::check_stale`] says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StaleRule {
    /// Software may unmap lazily: what it takes away it invalidates before it uses the address again. Configuration
    /// (STEs, CDs) and the tables of an address space it invalidates before its next `CMD_SYNC`.
    #[default]
    Reuse,
    /// Software invalidates all that it changes before its next `CMD_SYNC`.
    Sync,
    /// No rule: each first use of what memory contradicts is reported, also while the commands are still to come.
    Use,
}

/// Who hears of stale translations: a closure, mostly.
pub trait StaleSink: Send + Sync {
    /// A transaction was served what software failed to invalidate. Called on the thread of the transaction while it is
    /// under way: do not wait for software here, whose `CMD_SYNC` waits for the transaction. No lock of the
    /// SMMU is held.
    fn stale(&self, stale: &Stale);
}

impl<T: Fn(&Stale) + Send + Sync> StaleSink for T {
    fn stale(&self, stale: &Stale) {
        self(stale);
    }
}

/// What the checker has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StaleSummary {
    /// Transactions that were compared.
    pub checked: u64,
    /// Those that were served what memory contradicts, whether that was right or wrong.
    pub stale: u64,
    /// Reports.
    pub reported: u64,
}

/// The checker of one SMMU.
pub(crate) struct Checker {
    rule: StaleRule,
    sink: Box<dyn StaleSink>,
    /// Taken after the lock of [`Front`](crate::front::Front) by whoever needs both.
    ledger: Mutex<Ledger>,
    checked: AtomicU64,
    stale: AtomicU64,
    reported: AtomicU64,
}

/// What memory says of a transaction, and how.
pub(super) type Answer = (Result<Translation, Event>, Explanation);

/// A transaction, and how it was served.
pub(crate) struct Served<'a> {
    pub(crate) transaction: &'a Transaction,
    /// What memory said before.
    pub(crate) first: Answer,
    /// Commands executed before that.
    pub(crate) since: u64,
    pub(crate) used: Result<Translation, Refused>,
    /// By a TLB entry, with these permissions.
    pub(crate) entry: Option<Permissions>,
    pub(crate) context: Option<&'a Context>,
    /// The words of configuration that `context` is from; `None` if it was fetched for this transaction.
    pub(crate) origin: Option<&'a [Word]>,
}

/// A use of what differs.
pub(super) struct Seen<'a> {
    pub(super) transaction: Transaction,
    /// The configuration that served it; `None` if there is none any more.
    pub(super) context: Option<&'a Context>,
    /// Commands executed before it.
    pub(super) since: u64,
    pub(super) used: Result<Translation, Refused>,
    pub(super) permissions: Option<Permissions>,
}

/// When a device asked for a translation: how many commands were executed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(super) executed: u64,
    pub(super) atc_invalidations: u64,
}

/// A difference, diagnosed.
pub(super) struct Difference {
    pub(super) key: NoteKey,
    pub(super) scope: Scope,
    pub(super) cache: StaleCache,
    pub(super) change: Option<Change>,
    /// Memory permits less than it did, and nothing else: lazy software may still be about to invalidate.
    pub(super) taken_away: bool,
}

impl Checker {
    pub(crate) fn new(rule: StaleRule, sink: Box<dyn StaleSink>) -> Self {
        Self {
            rule,
            sink,
            ledger: Mutex::default(),
            checked: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        }
    }

    /// A command was executed.
    pub(crate) fn command(&self, command: &Command) {
        self.ledger.lock().command(command);
    }

    /// Commands executed so far.
    pub(crate) fn executed(&self) -> u64 {
        self.ledger.lock().executed()
    }

    /// When a device asks for a translation.
    pub(crate) fn asked(&self) -> Asked {
        let ledger = self.ledger.lock();
        Asked { executed: ledger.executed(), atc_invalidations: ledger.atc_invalidations() }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// One more transaction is compared.
    pub(super) fn count(&self) {
        self.checked.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn summary(&self) -> StaleSummary {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StaleSummary {
            checked: count(&self.checked),
            stale: count(&self.stale),
            reported: count(&self.reported),
        }
    }

    pub(crate) fn pending(&self) -> Vec<Stale> {
        let ledger = self.ledger.lock();
        let unreported = ledger.notes.values().filter(|note| !note.reported);
        unreported
            .map(|note| Stale {
                uses: note.uses,
                misses: ledger.misses(&note.scope),
                ..note.first.clone()
            })
            .collect()
    }

    fn proof(&self, remapped: bool, overdue: bool, taken_away: bool) -> Option<Proof> {
        match self.rule {
            _ if remapped => Some(Proof::Remapped),
            StaleRule::Sync | StaleRule::Use if overdue => Some(Proof::Synchronized),
            StaleRule::Reuse if overdue && !taken_away => Some(Proof::Synchronized),
            StaleRule::Use => Some(Proof::Used),
            StaleRule::Reuse | StaleRule::Sync => None,
        }
    }
}

fn agree(used: &Result<Translation, Refused>, memory: &Result<Translation, Event>) -> bool {
    match (used, memory) {
        (Ok(used), Ok(memory)) => same(used, memory),
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

/// All but how far it reaches: caches hold pieces of pages.
fn same(a: &Translation, b: &Translation) -> bool {
    Translation { length: 0, ..*a } == Translation { length: 0, ..*b }
}

/// Log2 of the bytes that a descriptor of a level describes.
fn reach(granule: Granule, level: i8) -> u32 {
    u32::from(granule.page_log2()) + (LAST_LEVEL - level) as u32 * u32::from(granule.stride())
}

impl Context {
    pub(super) fn tag(&self) -> Tag {
        let world = match self.space.regime >> crate::cache::generation::REGIME_SHIFT & 0b11 {
            0 => StreamWorld::El1,
            1 => StreamWorld::El2,
            _ => StreamWorld::El2E2h,
        };
        Tag { world, vmid: (self.vm.tag >> 16) as u16, asid: self.space.tag as u16 }
    }

    pub(super) fn page(&self, transaction: &Transaction) -> PageKey {
        let page = self.canonical(transaction.address) >> 12;
        PageKey { regime: self.space.regime, tag: self.space.tag, page }
    }

    /// What must be invalidated after a change of what the translation of `address` was made from.
    pub(super) fn scope(&self, change: Option<&Change>, address: u64) -> Scope {
        let tag = self.tag();
        let address = self.canonical(address) & !0xfff;
        let combined = self.stage1.is_some();
        let asid = Scope::Asid { tag, address };
        let vm = Scope::Vm { tag, combined, address };
        let Some(change) = change else {
            return if self.stage2.is_some() { vm } else { asid };
        };
        let leaf = change.was_leaf();
        match (change.place, &self.stage1, &self.stage2) {
            (Place::Stage1 { level }, Some(stage1), _) => {
                let upper = stage1.two_halves && address >> 55 & 1 == 1;
                let granule = stage1.halves[usize::from(upper)]
                    .map_or(Granule::K64, |half| half.table.geometry().granule());
                Scope::Va { tag, address, size: reach(granule, level), leaf }
            }
            (Place::Stage2 { level, ipa, .. }, _, Some(stage2)) => {
                let size = reach(stage2.table.geometry().granule(), level);
                Scope::Ipa { tag, ipa: ipa & !0xfff, size, leaf, combined, address }
            }
            // S2VMID, S2TTB and what is around them.
            (Place::Ste { word: 2.. }, _, Some(_)) | (_, None, _) => vm,
            _ => asid,
        }
    }
}

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// Compares a transaction with memory; see the [module](super).
    pub(crate) fn judge(&self, checker: &Checker, served: &Served) {
        checker.count();
        let transaction = served.transaction;
        // A write that memory would mark dirty, and a TLB entry lets pass.
        let unmarked = served.entry.is_some() && marks_dirty(&served.first.1);
        if agree(&served.used, &served.first.0) && !unmarked {
            agreed(checker, served);
            return;
        }
        let second = self.explain(transaction);
        let unmarked = unmarked && marks_dirty(&second.1);
        let changing = match (&served.first.0, &second.0) {
            (Ok(first), Ok(second)) => !same(first, second),
            (first, second) => first.is_ok() != second.is_ok(),
        };
        if changing || agree(&served.used, &second.0) && !unmarked {
            return;
        }
        let Some(context) = served.context else { return };
        let Some(difference) = self.diagnose(checker, served, context, &second, unmarked) else {
            return;
        };
        let seen = Seen {
            transaction: *transaction,
            context: Some(context),
            since: served.since,
            used: served.used,
            permissions: served.entry,
        };
        self.conclude(checker, &difference, &seen, second);
    }

    fn diagnose(
        &self,
        checker: &Checker,
        served: &Served,
        context: &Context,
        second: &Answer,
        unmarked: bool,
    ) -> Option<Difference> {
        let transaction = served.transaction;
        let memory = words(&second.1);
        let (dry, steps) = self.walk_dry(context, transaction);
        let under_old_configuration = match (&served.used, &dry) {
            (Ok(used), Some(dry)) => same(used, dry),
            (used, dry) => used.is_err() && dry.is_none(),
        };
        let page = context.page(transaction);
        if under_old_configuration && !unmarked {
            // Tables and TLB agree: the configuration is what is old.
            let origin = served.origin?;
            if served.used.is_ok() {
                checker.ledger.lock().agree(
                    page,
                    [origin, &words(&steps)].concat(),
                    served.entry.is_some(),
                );
            }
            let change = first_change(origin, configuration(&memory));
            let (sid, ssid) = (transaction.stream_id, context.substream_id);
            let scope = match change.map(|change| change.place) {
                Some(Place::Ste { .. }) => Scope::Ste { sid, leaf: true },
                None | Some(Place::L1Std) => Scope::Ste { sid, leaf: false },
                Some(Place::L1Cd) => Scope::Cd { sid, ssid, leaf: false },
                Some(_) => Scope::Cd { sid, ssid, leaf: true },
            };
            return Some(Difference {
                key: NoteKey::of(transaction, Noted::Configuration),
                scope,
                cache: StaleCache::Configuration,
                change,
                taken_away: false,
            });
        }
        let now = match served.origin {
            None => memory,
            Some(origin) => [origin, &words(&steps)].concat(),
        };
        let change = first_change(checker.ledger.lock().path(page), &now);
        if served.used.is_err() && change.is_none() {
            // That memory permits more than was granted may have many reasons.
            return None;
        }
        let of_translation = change.is_none_or(|change| change.is_of_translation());
        Some(Difference {
            key: NoteKey::of(
                transaction,
                Noted::Page { page: page.page, write: transaction.write },
            ),
            scope: context.scope(change.as_ref(), transaction.address),
            cache: if served.entry.is_some() { StaleCache::Tlb } else { StaleCache::Walk },
            change,
            taken_away: unmarked || second.0.is_err() && of_translation,
        })
    }

    /// What memory says under a configuration that may be old.
    fn walk_dry(
        &self,
        context: &Context,
        transaction: &Transaction,
    ) -> (Option<Translation>, Explanation) {
        let mut steps = Vec::new();
        if context.abort {
            return (None, Explanation { steps });
        }
        let wanted = context.wanted(transaction);
        let mut walker = Walker {
            memory: &self.memory,
            tlb: &self.tlb,
            context,
            oas: self.options.oas,
            before: None,
            recorder: &mut steps,
        };
        let output = walker.translate(context.canonical(transaction.address), wanted).ok();
        let translation = output.map(|output| context.translation(transaction, &output, wanted));
        (translation, Explanation { steps })
    }

    /// Notes a difference, and reports it if that is due.
    pub(super) fn conclude(
        &self,
        checker: &Checker,
        difference: &Difference,
        seen: &Seen,
        (now, explanation): Answer,
    ) {
        let elsewhere =
            matches!((&seen.used, &now), (Ok(used), Ok(now)) if used.address != now.address);
        let remapped = elsewhere
            && difference.change.is_some_and(|change| {
                change.is_of_translation() && change.was & format::VALID != 0
            });
        let tag = seen.context.map(Context::tag);
        let mut stale = Stale {
            transaction: seen.transaction,
            cache: difference.cache,
            used: seen.used,
            permissions: seen.permissions,
            world: tag.map_or(StreamWorld::El1, |tag| tag.world),
            vmid: tag.map_or(0, |tag| tag.vmid),
            asid: tag
                .filter(|_| seen.context.is_some_and(|context| context.stage1.is_some()))
                .map(|tag| tag.asid),
            now,
            change: difference.change,
            commands: difference.scope.commands(),
            misses: Vec::new(),
            proof: None,
            uses: 0,
            explanation,
        };
        {
            let front = self.front.lock();
            let (_, ring) = front.queue(Register::CmdqBase, 0, self.options.cmdq_log2);
            let pending = ring.len(
                Prod(front.word(Register::CmdqProd)).wr(),
                CmdqCons(front.word(Register::CmdqCons)).rd(),
            );
            let mut ledger = checker.ledger.lock();
            drop(front);
            let Some(note) =
                ledger.note(difference.key, difference.scope, seen.since, pending.into(), &stale)
            else {
                return;
            };
            checker.stale.fetch_add(1, Ordering::Relaxed);
            stale.uses = note.uses;
            stale.proof = checker.proof(remapped, note.overdue, difference.taken_away);
            if stale.proof.is_none() || note.reported {
                return;
            }
            note.reported = true;
            stale.misses = ledger.misses(&difference.scope);
        }
        checker.reported.fetch_add(1, Ordering::Relaxed);
        checker.sink.stale(&stale);
    }
}

/// Caches and memory agree on a transaction.
fn agreed(checker: &Checker, served: &Served) {
    let Some(context) = served.context else { return };
    let transaction = served.transaction;
    let (page, words) = (context.page(transaction), words_after(&served.first.1));
    let mut ledger = checker.ledger.lock();
    for write in [false, true] {
        // A TLB entry that is right for reads may be wrong for writes.
        if served.entry.is_none() || write == transaction.write {
            ledger.settle(NoteKey::of(transaction, Noted::Page { page: page.page, write }));
        }
    }
    if served.origin.is_none_or(|origin| origin == configuration(&words)) {
        ledger.settle(NoteKey::of(transaction, Noted::Configuration));
    }
    if served.used.is_ok() && !words.is_empty() {
        ledger.agree(page, words, served.entry.is_some());
    }
}
