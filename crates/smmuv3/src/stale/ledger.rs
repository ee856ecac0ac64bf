//! What the checker remembers: the words that translations were made from, differences that prove nothing yet, the
//! last commands, and what devices were told. All of it is bounded.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use super::report::{Miss, Stale};
use super::scope::Scope;
use super::words::Word;
use crate::transaction::Transaction;
use crate::wire::Command;

/// Addresses whose words are remembered, at least.
const PATHS: usize = 1 << 14;
/// Differences that may be pending at a time.
const NOTES: usize = 1 << 12;
/// Translations that one device's cache is remembered to hold, at least.
const TOLD: usize = 1 << 12;
/// Invalidations that are remembered for reports, and how many a report shows.
const COMMANDS: usize = 64;
const SHOWN: usize = 3;

/// A map that forgets what was not stored lately.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), capacity }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        self.young.retain(|key, value| keep(key, value));
        self.old.retain(|key, value| keep(key, value));
    }

    fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(&self.old)
    }
}

/// The page of an address space: regime and tag of its [`Space`](crate::cache::generation::Space), page number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PageKey {
    pub(super) regime: u64,
    pub(super) tag: u32,
    pub(super) page: u64,
}

/// What a difference is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NoteKey {
    pub(super) stream_id: u32,
    pub(super) substream_id: Option<u32>,
    pub(super) what: Noted,
}

impl NoteKey {
    pub(super) fn of(transaction: &Transaction, what: Noted) -> Self {
        let Transaction { stream_id, substream_id, .. } = *transaction;
        Self { stream_id, substream_id, what }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Noted {
    Configuration,
    /// A page, as seen by reads or by writes.
    Page {
        page: u64,
        write: bool,
    },
    /// A page of a device's own cache.
    Atc(u64),
    /// A page of stage 2 that a device under split-stage ATS uses by itself.
    Split(u64),
}

/// A difference that was seen and is not settled.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) scope: Scope,
    /// The parts of the scope that no command since has invalidated.
    left: u8,
    /// Only a `CMD_SYNC` that is a later command than this was submitted after the difference was seen.
    submitted: u64,
    /// Such a `CMD_SYNC` has completed.
    pub(super) overdue: bool,
    pub(super) reported: bool,
    /// Transactions that were served so.
    pub(super) uses: u64,
    /// The first of them.
    pub(super) first: Stale,
}

/// A translation that a device was told.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// The untranslated address of its range.
    pub(super) address: u64,
    /// The translated address.
    pub(super) output: u64,
    /// Log2 of the size of the range in bytes.
    pub(super) size: u32,
    pub(super) privileged: bool,
    pub(super) write: bool,
    /// Only stage 1 was translated: `output` is an IPA.
    pub(super) split: bool,
    pub(super) words: Vec<Word>,
}

/// Of which stream and substream, for which page of untranslated addresses.
type ToldKey = (u32, Option<u32>, u64);

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    paths: Recent<PageKey, Vec<Word>>,
    pub(super) notes: HashMap<NoteKey, Note>,
    told: Recent<ToldKey, Told>,
    /// The last invalidations, and which command each was.
    commands: VecDeque<(u64, Command)>,
    /// Commands executed so far.
    executed: u64,
    /// `CMD_ATC_INV`s among them.
    atc_invalidations: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            paths: Recent::new(PATHS),
            notes: HashMap::new(),
            told: Recent::new(TOLD),
            commands: VecDeque::new(),
            executed: 0,
            atc_invalidations: 0,
        }
    }
}

impl Ledger {
    /// A command was executed: what it invalidated is settled.
    pub(super) fn command(&mut self, command: &Command) {
        self.executed += 1;
        if let Command::Sync { .. } = command {
            for note in self.notes.values_mut() {
                note.overdue |= self.executed > note.submitted;
            }
            return;
        }
        self.notes.retain(|_, note| {
            note.left &= !note.scope.covered_by(command);
            note.left != 0
        });
        if let Command::AtcInv { .. } = command {
            self.atc_invalidations += 1;
            self.told.retain(|&(sid, ssid, _), told| {
                let scope = Scope::Atc { sid, ssid, address: told.address, size: told.size };
                scope.covered_by(command) == 0
            });
        }
        if is_invalidation(command) {
            if self.commands.len() == COMMANDS {
                self.commands.pop_front();
            }
            self.commands.push_back((self.executed, *command));
        }
    }

    /// The last commands that look as if they were meant for `scope`, and why they are not enough.
    pub(super) fn misses(&self, scope: &Scope) -> Vec<Miss> {
        let missed = |(_, command): &(u64, Command)| {
            let reason = scope.missed_by(command)?;
            Some(Miss { command: *command, reason })
        };
        let mut misses: Vec<Miss> =
            self.commands.iter().rev().filter_map(missed).take(SHOWN).collect();
        misses.reverse();
        misses
    }

    /// Caches and memory agree on a page, as of these words. If a TLB entry has answered, what it was made from is rather
    /// what is known already: agreeing on a read does not make it new.
    pub(super) fn agree(&mut self, page: PageKey, words: Vec<Word>, entry: bool) {
        if entry && self.paths.get(&page).is_some() {
            return;
        }
        // Neighbours share all but the last table entry: what a page does not know, its region may.
        self.paths.insert(region(page), words.clone());
        self.paths.insert(page, words);
    }

    /// The words that a page was translated from when caches and memory last agreed; else those of a neighbour.
    pub(super) fn path(&self, page: PageKey) -> &[Word] {
        let found = self.paths.get(&page).or_else(|| self.paths.get(&region(page)));
        found.map_or(&[], Vec::as_slice)
    }

    /// Nothing is wrong with it (any more).
    pub(super) fn settle(&mut self, key: NoteKey) {
        if !self.notes.is_empty() {
            self.notes.remove(&key);
        }
    }

    /// Commands executed so far.
    pub(super) fn executed(&self) -> u64 {
        self.executed
    }

    /// A transaction that began when `since` commands were executed was served what memory contradicts; `pending`
    /// more are submitted. `None` if it has been invalidated since.
    pub(super) fn note(
        &mut self,
        key: NoteKey,
        scope: Scope,
        since: u64,
        pending: u64,
        first: &Stale,
    ) -> Option<&mut Note> {
        let later = self.commands.iter().filter(|(number, _)| *number > since);
        let covered = later.fold(0, |parts, (_, command)| parts | scope.covered_by(command));
        if scope.parts() & !covered == 0 {
            return None;
        }
        if self.notes.len() >= NOTES && !self.notes.contains_key(&key) {
            // Rather no report than a map without end.
            self.notes.clear();
        }
        let submitted = self.executed + pending;
        let fresh = || Note {
            scope,
            left: scope.parts() & !covered,
            submitted,
            overdue: false,
            reported: false,
            uses: 0,
            first: first.clone(),
        };
        let note = self.notes.entry(key).or_insert_with(fresh);
        if note.scope != scope {
            // It is wrong in another way than before.
            *note = fresh();
        }
        note.uses += 1;
        Some(note)
    }

    /// How many `CMD_ATC_INV` there were; see [`tell`](Self::tell).
    pub(super) fn atc_invalidations(&self) -> u64 {
        self.atc_invalidations
    }

    /// A device was told a translation, unless it was made before an invalidation that it may not have survived.
    pub(super) fn tell(&mut self, sid: u32, ssid: Option<u32>, told: Told, invalidations: u64) {
        if self.atc_invalidations == invalidations {
            self.told.insert((sid, ssid, told.address >> 12), told);
        }
    }

    /// What a device may have made a translated address from.
    pub(super) fn told(&self, sid: u32, output: u64) -> Vec<(Option<u32>, Told)> {
        self.told
            .iter()
            .filter(|((of, ..), told)| {
                *of == sid && told.output >> told.size == output >> told.size
            })
            .map(|((_, ssid, _), told)| (*ssid, told.clone()))
            .collect()
    }
}

fn region(page: PageKey) -> PageKey {
    // A page number that no page has.
    PageKey { page: page.page >> 9 | 1 << 63, ..page }
}

fn is_invalidation(command: &Command) -> bool {
    !matches!(
        command,
        Command::Sync { .. }
            | Command::PrefetchAddr { .. }
            | Command::PrefetchConfig { .. }
            | Command::PriResp { .. }
            | Command::Resume { .. }
            | Command::StallTerm { .. }
    )
}
