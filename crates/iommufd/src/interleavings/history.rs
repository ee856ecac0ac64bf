//! What threads saw of objects, and whether there is an order that explains it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use host::Errno;

use crate::Id;

/// What one call found out about one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saw {
    /// It made the object.
    Made,
    /// It destroyed it.
    Destroyed,
    /// It used it, or could not destroy it because others did.
    Found,
    /// There was no such object.
    Missing,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    saw: Saw,
    /// When the call began and ended.
    from: u64,
    to: u64,
}

/// The calls of all threads. It uses no lock that is explored.
#[derive(Default)]
pub(super) struct History {
    clock: AtomicU64,
    events: Mutex<BTreeMap<Id, Vec<Event>>>,
}

impl History {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes what `call` found out.
    pub(super) fn note(&self, call: impl FnOnce() -> Option<(Id, Saw)>) {
        let from = self.now();
        let seen = call();
        let to = self.now();
        if let Some((id, saw)) = seen {
            let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            events.entry(id).or_default().push(Event { saw, from, to });
        }
    }

    /// What an answer says of the object that a call was about, which `done` does
    /// to it.
    pub(super) fn saw<T>(answer: &Result<T, Errno>, done: Saw) -> Option<Saw> {
        match answer {
            Ok(_) => Some(done),
            Err(Errno::BUSY) => Some(Saw::Found),
            Err(Errno::NOENT) => Some(Saw::Missing),
            Err(_) => None,
        }
    }

    /// No object was lost, used before it was made or after it was destroyed, or
    /// destroyed twice; those that `lives` says are there are those that should be. The
    /// error has what was seen of an id that cannot be explained.
    pub(super) fn check(&self, lives: impl Fn(Id) -> bool) -> Result<(), String> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, events) in &*events {
            if !explained(events, 0, false, lives(*id)) {
                return Err(format!("{id}, in the end {}: {events:?}", lives(*id)));
            }
        }
        Ok(())
    }
}

/// Whether the calls that are not `done` (one bit each) can have taken effect one
/// after the other, each between its begin and its end, on an id that is taken or not
/// `before` them and `after` them.
fn explained(events: &[Event], done: u32, before: bool, after: bool) -> bool {
    let rest = || events.iter().enumerate().filter(|(n, _)| done & 1 << n == 0);
    let Some(first_end) = rest().map(|(_, event)| event.to).min() else {
        return before == after;
    };
    rest().any(|(n, event)| {
        let (needs, leaves) = match event.saw {
            Saw::Made => (false, true),
            Saw::Destroyed => (true, false),
            Saw::Found => (true, true),
            Saw::Missing => (false, false),
        };
        event.from < first_end && needs == before && explained(events, done | 1 << n, leaves, after)
    })
}

#[test]
fn a_history_that_no_order_explains_is_found_out() {
    use Saw::{Destroyed, Found, Made, Missing};
    let check = |script: &[Saw], lives: bool| {
        let history = History::default();
        script.iter().for_each(|saw| history.note(|| Some((1, *saw))));
        history.check(|_| lives).is_ok()
    };
    assert!(check(&[Missing, Made, Found, Destroyed, Missing, Made], true));
    assert!(!check(&[Made, Missing], true));
    assert!(!check(&[Made, Destroyed, Found], false));
    assert!(!check(&[Found, Made], true));
    assert!(!check(&[Destroyed, Made], false));
    assert!(!check(&[Made, Made, Destroyed], true));
    assert!(!check(&[Made, Destroyed, Destroyed], false));
    assert!(!check(&[Made, Destroyed], true));
    assert!(!check(&[Made], false));
    // Calls that overlap may have taken effect in either order.
    let history = History::default();
    history.note(|| {
        history.note(|| Some((1, Made)));
        history.note(|| Some((1, Missing)));
        Some((1, Destroyed))
    });
    assert_eq!(history.check(|_| false), Ok(()));
}
