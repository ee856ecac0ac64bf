//! What the SMMU does as a consumer of commands and a producer of events, for who watches.

use crate::platform::Memory;
use crate::smmu::Smmu;
use crate::sync::Fence;
use crate::wire::register::{CommandError, Gerror};
use crate::wire::{Command, Event, PageRequest};

/// Something that the SMMU did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observation<'a> {
    /// A command was executed and consumed.
    Command(&'a Command),
    /// A `CMD_SYNC` is at the head of the queue and waits, for transactions or for the answer of an endpoint. Told
    /// each time that this is found.
    Waits(&'a Command),
    /// The command at the head of the queue is in error: the queue stops.
    CommandError(CommandError),
    /// An event was recorded.
    Event(&'a Event),
    /// An event was lost, because the Event queue is full.
    EventLost(&'a Event),
    /// A page request was queued.
    PageRequest(&'a PageRequest),
    /// A global error became active; the one bit of it is set.
    GlobalError(Gerror),
}

/// Who watches: a closure, mostly.
pub trait Observer: Send + Sync {
    /// Something was done. Called on whatever thread does it, and with a lock of the SMMU held: do not wait, and do not
    /// call back.
    fn observe(&self, observation: Observation<'_>);
}

impl<T: Fn(Observation<'_>) + Send + Sync> Observer for T {
    fn observe(&self, observation: Observation<'_>) {
        self(observation);
    }
}

/// The SMMU is being observed already, by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the SMMU is being observed already")]
pub struct AlreadyObserved;

impl<M: Memory, F: Fence> Smmu<M, F> {
    /// Has `observer` told from now on what is done with commands, events, page requests and errors, in order.
    /// Transactions are not told of: whoever issues them knows.
    pub fn observe(&self, observer: impl Observer + 'static) -> Result<(), AlreadyObserved> {
        self.observer.set(Box::new(observer)).map_err(|_| AlreadyObserved)
    }

    #[inline]
    pub(crate) fn tell(&self, observation: Observation<'_>) {
        if let Some(observer) = self.observer.get() {
            observer.observe(observation);
        }
    }
}
