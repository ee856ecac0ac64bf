//! A function's address translation cache (PCIe 10.2, 10.3): what translation requests told it, and what it does with
//! that when it is told to forget.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

use smmuv3::{AtcCompletion, AtcInvalidate, AtsTranslation};

use crate::monitor::Monitor;
use crate::port::Access;

/// Translations that it keeps.
const ENTRIES: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) struct Atc {
    /// `ATS Control.Enable`, unless a translation request was answered UR since it was set.
    enabled: AtomicBool,
    state: Monitor<State>,
}

#[derive(Default)]
struct State {
    /// The latest first.
    entries: VecDeque<Entry>,
    /// Invalidations so far.
    age: u64,
    /// How many uses are under way, by the age that they began in.
    uses: BTreeMap<u64, u32>,
    /// Tags of invalidations that wait for uses that are older than they are.
    waiting: Vec<(u64, u64)>,
}

/// A translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pasid: Option<u32>,
    privileged: bool,
    start: u64,
    size_log2: u8,
    output: u64,
    read: bool,
    write: bool,
}

impl Entry {
    pub(crate) fn new(access: Access, translation: &AtsTranslation) -> Self {
        let AtsTranslation { address, size_log2, read, write, .. } = *translation;
        let start = access.address & !(Self::bytes(size_log2) - 1);
        let Access { pasid, privileged, .. } = access;
        Self { pasid, privileged, start, size_log2, output: address, read, write }
    }

    fn bytes(size_log2: u8) -> u64 {
        1 << size_log2
    }

    pub(crate) fn permits(&self, write: bool) -> bool {
        if write { self.write } else { self.read }
    }

    /// Where the access goes, and how many bytes from there on are translated.
    pub(crate) fn output(&self, access: Access) -> (u64, u64) {
        let offset = access.address - self.start;
        (self.output + offset, Self::bytes(self.size_log2) - offset)
    }

    fn covers(&self, access: Access) -> bool {
        (self.pasid, self.privileged) == (access.pasid, access.privileged)
            && access.address.wrapping_sub(self.start) < Self::bytes(self.size_log2)
    }

    fn is_in(&self, request: &AtcInvalidate) -> bool {
        // Without a PASID it is about all addresses, also those of PASIDs.
        if let Some(pasid) = request.substream_id
            && self.pasid.is_none_or(|own| own != pasid && !request.global)
        {
            return false;
        }
        let bits = u32::from(request.size_log2) + 12;
        let mask = 1u64.checked_shl(bits).map_or(u64::MAX, |size| size - 1);
        let (first, last) = (request.address & !mask, request.address | mask);
        self.start <= last && first <= self.start + (Self::bytes(self.size_log2) - 1)
    }
}

impl Atc {
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Sets `Enable`. Enabled, it knows nothing; when it is disabled nothing that it knew is in use any more.
    pub(crate) fn enable(&self, enable: bool) {
        let mut state = self.state.lock();
        if enable {
            self.enabled.store(true, Ordering::Release);
            return;
        }
        self.forget(&mut state);
        while state.uses.first_key_value().is_some_and(|(age, _)| *age < state.age) {
            state = self.state.wait(state);
        }
    }

    /// A translation request was answered UR: there are none until it is enabled again.
    pub(crate) fn shut(&self) {
        self.forget(&mut self.state.lock());
    }

    fn forget(&self, state: &mut State) {
        self.enabled.store(false, Ordering::Release);
        state.entries.clear();
        state.age += 1;
    }

    /// Forgets everything, as in a reset of the function.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        state.entries.clear();
        state.age += 1;
    }

    /// Begins to use translations, if it may, with the one that it has for an access. Until the [end](Self::end) no
    /// invalidation is complete that would take away what is in use.
    pub(crate) fn begin(&self, access: Access, write: bool) -> Option<(u64, Option<Entry>)> {
        let mut state = self.state.lock();
        if !self.is_enabled() {
            return None;
        }
        let age = state.age;
        *state.uses.entry(age).or_default() += 1;
        let permits = |entry: &&Entry| entry.covers(access) && entry.permits(write);
        Some((age, state.entries.iter().find(permits).copied()))
    }

    /// Keeps the answer to a translation request, which was made by a use that began at `age`. If there has been an
    /// invalidation since, the answer may be older, and will do for this use only.
    pub(crate) fn learn(&self, age: u64, access: Access, entry: Entry) {
        let mut state = self.state.lock();
        if state.age == age {
            state.entries.retain(|old| !old.covers(access));
            state.entries.push_front(entry);
            state.entries.truncate(ENTRIES);
        }
    }

    /// Ends a use. Returns the tags of the invalidations that waited for it.
    pub(crate) fn end(&self, age: u64) -> Vec<u64> {
        let mut state = self.state.lock();
        if let Some(count) = state.uses.get_mut(&age) {
            *count -= 1;
            if *count == 0 {
                state.uses.remove(&age);
            }
        }
        self.state.notify();
        let oldest = state.uses.first_key_value().map_or(u64::MAX, |(age, _)| *age);
        let done = state.waiting.extract_if(.., |(age, _)| *age <= oldest);
        done.map(|(_, tag)| tag).collect()
    }

    /// An ATS Invalidate Request.
    pub(crate) fn invalidate(&self, tag: u64, request: &AtcInvalidate) -> AtcCompletion {
        let mut state = self.state.lock();
        state.entries.retain(|entry| !entry.is_in(request));
        state.age += 1;
        if state.uses.is_empty() {
            return AtcCompletion::Done;
        }
        let age = state.age;
        state.waiting.push((age, tag));
        AtcCompletion::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(access: Access, write: bool) -> Entry {
        let address = 0x8_0000_0000 + (access.address & !0xfff);
        let translation =
            AtsTranslation { address, size_log2: 12, read: true, write, execute: false };
        Entry::new(access, &translation)
    }

    fn has(atc: &Atc, access: Access, write: bool) -> bool {
        let (age, found) = atc.begin(access, write).unwrap();
        atc.end(age);
        found.is_some()
    }

    fn learn(atc: &Atc, access: Access, write: bool) {
        let (age, _) = atc.begin(access, write).unwrap();
        atc.learn(age, access, entry(access, write));
        atc.end(age);
    }

    fn range(substream_id: Option<u32>, address: u64, size_log2: u8) -> AtcInvalidate {
        AtcInvalidate { stream_id: 0, substream_id, global: false, address, size_log2 }
    }

    #[test]
    fn an_entry_serves_its_page_its_pasid_and_what_it_permits() {
        let atc = Atc::default();
        assert!(atc.begin(Access::at(0), false).is_none(), "not enabled");
        atc.enable(true);
        let access = Access::at(0x5123).with_pasid(7);
        learn(&atc, access, false);
        assert!(has(&atc, access, false) && has(&atc, Access { address: 0x5000, ..access }, false));
        assert_eq!(entry(access, false).output(access), (0x8_0000_5123, 0xedd));
        assert!(!has(&atc, access, true), "it may not be written");
        for other in [
            Access::at(0x5123),
            Access::at(0x5123).with_pasid(8),
            Access { address: 0x6000, ..access },
            Access { address: 0x4fff, ..access },
            Access { privileged: true, ..access },
        ] {
            assert!(!has(&atc, other, false), "{other:?}");
        }
        learn(&atc, access, true);
        assert!(has(&atc, access, true));
        atc.shut();
        assert!(!atc.is_enabled());
        atc.enable(true);
        assert!(!has(&atc, access, false), "it begins with nothing");
    }

    #[test]
    fn invalidations_take_their_range_of_their_pasid() {
        let atc = Atc::default();
        atc.enable(true);
        let one = Access::at(0x5000).with_pasid(1);
        let two = Access::at(0x5000).with_pasid(2);
        let none = Access::at(0x5000);
        let all = [one, two, none];
        let left = |request: &AtcInvalidate| {
            all.iter().for_each(|access| learn(&atc, *access, true));
            assert_eq!(atc.invalidate(0, request), AtcCompletion::Done);
            all.map(|access| has(&atc, access, false))
        };
        assert_eq!(left(&range(Some(1), 0x5000, 0)), [false, true, true]);
        assert_eq!(left(&range(Some(1), 0x6000, 0)), [true; 3]);
        assert_eq!(left(&range(Some(2), 0x1000, 3)), [true, false, true]);
        assert_eq!(left(&range(None, 0, 52)), [false; 3]);
        assert_eq!(left(&range(None, 0x6000, 0)), [true; 3]);
        assert_eq!(
            left(&AtcInvalidate { global: true, ..range(Some(9), 0, 52) }),
            [false, false, true]
        );
    }

    #[test]
    fn an_invalidation_waits_for_the_uses_before_it_and_for_no_others() {
        let atc = Atc::default();
        atc.enable(true);
        let access = Access::at(0x5000);
        let (before, _) = atc.begin(access, true).unwrap();
        assert_eq!(atc.invalidate(11, &range(None, 0, 52)), AtcCompletion::Pending);
        // What it was told before that, or meanwhile, is not kept.
        atc.learn(before, access, entry(access, true));
        let (after, found) = atc.begin(access, true).unwrap();
        assert_eq!(found, None);
        assert_eq!(atc.invalidate(12, &range(None, 0, 52)), AtcCompletion::Pending);
        assert_eq!(atc.end(before), [11]);
        assert_eq!(atc.end(after), [12]);
        assert_eq!(atc.invalidate(13, &range(None, 0, 52)), AtcCompletion::Done);
    }

    #[test]
    fn it_is_bounded() {
        let atc = Atc::default();
        atc.enable(true);
        (0..1000).for_each(|page| learn(&atc, Access::at(page << 12), true));
        assert_eq!(atc.state.lock().entries.len(), ENTRIES);
        assert!(has(&atc, Access::at(999 << 12), true) && !has(&atc, Access::at(0), true));
    }

    #[test]
    fn disabling_waits_for_what_is_in_use() {
        let atc = Atc::default();
        atc.enable(true);
        let (age, _) = atc.begin(Access::at(0), true).unwrap();
        std::thread::scope(|scope| {
            let disable = scope.spawn(|| atc.enable(false));
            while atc.is_enabled() {
                std::thread::yield_now();
            }
            assert!(!disable.is_finished());
            atc.end(age);
        });
    }
}
