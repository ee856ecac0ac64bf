//! A function's page request interface (PCIe 10.4): groups of requests, and the responses that they wait for.

use std::collections::BTreeMap;

use smmuv3::PageResponseCode;

use crate::monitor::Monitor;

/// Requests that a group has at most.
pub(crate) const GROUP: usize = 8;
/// `Outstanding Page Request Capacity`: what may be unanswered, in requests.
pub const CAPACITY: u32 = 128;
/// Page Request Group Indexes have 9 bits.
const INDEXES: u16 = 1 << 9;

/// The registers of the page request capability, as far as they change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PriStatus {
    /// `Control.Enable`.
    pub enabled: bool,
    /// `Status.RF`: a Response Failure came; responses to what was outstanding then are ignored.
    pub failure: bool,
    /// `Status.UPRGI`: a response came to a group that there is not.
    pub unexpected: bool,
    /// `Status.Stopped`: nothing is outstanding, and nothing will be.
    pub stopped: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Pri {
    state: Monitor<State>,
}

#[derive(Default)]
struct State {
    enabled: bool,
    failure: bool,
    unexpected: bool,
    /// Groups without an answer, and those whose answer nobody has fetched yet.
    groups: BTreeMap<u16, Option<PageResponseCode>>,
    /// Goes on over resets: a late answer to one group is not taken for the answer to another.
    next: u16,
}

/// How a group ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The pages are there.
    Success,
    /// They are not, or nobody is to be asked.
    Refused,
}

impl Pri {
    /// Sets `Enable`; if it was clear, the status is as after power-on.
    pub(crate) fn enable(&self, enable: bool) {
        let mut state = self.state.lock();
        if enable && !state.enabled {
            (state.failure, state.unexpected) = (false, false);
        }
        state.enabled = enable;
        self.state.notify();
    }

    pub(crate) fn status(&self) -> PriStatus {
        let state = self.state.lock();
        let State { enabled, failure, unexpected, .. } = *state;
        let stopped = !enabled && state.groups.is_empty();
        PriStatus { enabled, failure, unexpected, stopped }
    }

    /// Sends a group of requests with the index that `send` is told, and waits for the answer, or until `halted` says
    /// that nobody does any more.
    pub(crate) fn request(&self, halted: impl Fn() -> bool, send: impl FnOnce(u16)) -> Answer {
        let mut state = self.state.lock();
        let index = loop {
            if !state.enabled || state.failure || halted() {
                return Answer::Refused;
            }
            if state.groups.len() < CAPACITY as usize / GROUP {
                break state.take_index();
            }
            state = self.state.wait(state);
        };
        // The answer may come before it returns.
        drop(state);
        send(index);
        state = self.state.lock();
        loop {
            if let Some(Some(code)) = state.groups.get(&index) {
                let success = *code == PageResponseCode::Success;
                state.groups.remove(&index);
                self.state.notify();
                return if success { Answer::Success } else { Answer::Refused };
            }
            if halted() {
                state.groups.remove(&index);
                return Answer::Refused;
            }
            state = self.state.wait(state);
        }
    }

    /// A PRG Response.
    pub(crate) fn respond(&self, index: u16, code: PageResponseCode) {
        let mut state = self.state.lock();
        if state.failure {
            return;
        }
        if code == PageResponseCode::Failure {
            state.failure = true;
            // None of the others will be answered.
            state.groups.values_mut().for_each(|answer| {
                answer.get_or_insert(code);
            });
        } else if let Some(answer @ None) = state.groups.get_mut(&index) {
            *answer = Some(code);
        } else {
            state.unexpected = true;
        }
        self.state.notify();
    }

    /// Whoever waits looks whether it is halted.
    pub(crate) fn wake(&self) {
        // With the lock: nobody is between looking and waiting.
        let _state = self.state.lock();
        self.state.notify();
    }

    /// The status as after power-on.
    pub(crate) fn clear(&self) {
        let mut state = self.state.lock();
        (state.failure, state.unexpected) = (false, false);
    }
}

impl State {
    /// An index for a new group: there are fewer groups than indexes.
    fn take_index(&mut self) -> u16 {
        while self.groups.contains_key(&self.next) {
            self.next = (self.next + 1) % INDEXES;
        }
        let index = self.next;
        self.groups.insert(index, None);
        self.next = (index + 1) % INDEXES;
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const NEVER: fn() -> bool = || false;

    fn enabled() -> Pri {
        let pri = Pri::default();
        pri.enable(true);
        pri
    }

    #[test]
    fn each_group_has_its_answer() {
        let pri = enabled();
        let mut seen = Vec::new();
        for (code, expected) in [
            (PageResponseCode::Success, Answer::Success),
            (PageResponseCode::InvalidRequest, Answer::Refused),
            (PageResponseCode::Success, Answer::Success),
        ] {
            let answer = pri.request(NEVER, |index| {
                seen.push(index);
                pri.respond(index, code);
            });
            assert_eq!(answer, expected);
        }
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(pri.status(), PriStatus { enabled: true, ..PriStatus::default() });
    }

    #[test]
    fn a_failure_ends_all_until_it_is_enabled_anew() {
        let pri = enabled();
        let answer = pri.request(NEVER, |index| {
            pri.respond(index, PageResponseCode::Failure);
            pri.respond(index, PageResponseCode::Success);
        });
        assert_eq!(answer, Answer::Refused);
        assert!(pri.status().failure && !pri.status().unexpected, "what comes later is ignored");
        assert_eq!(pri.request(NEVER, |_| panic!("nobody is asked")), Answer::Refused);
        pri.enable(false);
        assert!(pri.status().stopped);
        pri.enable(true);
        assert!(!pri.status().failure);
        let success = |index| pri.respond(index, PageResponseCode::Success);
        assert_eq!(pri.request(NEVER, success), Answer::Success);
    }

    #[test]
    fn an_answer_to_nothing_is_noted() {
        let pri = enabled();
        pri.respond(3, PageResponseCode::Success);
        assert!(pri.status().unexpected);
        pri.clear();
        let twice = |index| (0..2).for_each(|_| pri.respond(index, PageResponseCode::Success));
        assert_eq!(pri.request(NEVER, twice), Answer::Success);
        assert!(pri.status().unexpected);
    }

    #[test]
    fn who_waits_is_woken_and_the_late_answer_is_nobody_s() {
        let (pri, halted, sent) = (enabled(), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let halted = || halted.load(Ordering::Relaxed);
                pri.request(halted, |_| sent.store(true, Ordering::Relaxed))
            });
            while !sent.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            halted.store(true, Ordering::Relaxed);
            pri.wake();
            assert_eq!(waits.join().unwrap(), Answer::Refused);
        });
        pri.respond(0, PageResponseCode::Success);
        assert!(pri.status().unexpected);
        let answer = pri.request(NEVER, |index| {
            assert_eq!(index, 1);
            pri.respond(index, PageResponseCode::Success);
        });
        assert_eq!(answer, Answer::Success);
    }
}
