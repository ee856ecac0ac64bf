//! Event queues of vIOMMUs: what the hardware has to tell a guest.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, PoisonError};

use host::{Errno, File, FileMode, Notify, Task};
use uapi::Plain;
use uapi::iommufd::{
    iommu_veventq_flag_IOMMU_VEVENTQ_FLAG_LOST_EVENTS as LOST_EVENTS, iommufd_vevent_header,
};

use crate::context::{Hold, Object, State};
use crate::error::fallible;
use crate::sync::{Mutex, MutexGuard};
use crate::viommu::Events;
use crate::{Context, Error, Id};

const HEADER: usize = size_of::<iommufd_vevent_header>();

/// A queue of events of one type. It never holds more than its depth: what
/// comes then is counted as lost.
pub(crate) struct EventQueue {
    depth: usize,
    state: Mutex<Queue>,
    notify: OnceLock<Notify>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<(u32, Vec<u8>)>,
    /// The sequence number of the latest lost event, to be told behind the
    /// events that are queued.
    lost: Option<u32>,
    /// Events taken out that may come back: their reader's memory may fault.
    reading: usize,
    next: u32,
}

impl Queue {
    /// Every event takes a number, also a lost one.
    fn sequence(&mut self) -> u32 {
        let sequence = self.next;
        self.next = if sequence == i32::MAX as u32 { 0 } else { sequence + 1 };
        sequence
    }
}

impl EventQueue {
    pub(crate) fn new(depth: u32) -> Self {
        Self { depth: depth as usize, state: Mutex::default(), notify: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event; whether there was room for it.
    pub(crate) fn push(&self, data: &[u8]) -> bool {
        let mut queue = self.lock();
        let sequence = queue.sequence();
        let room = queue.events.len() + queue.reading < self.depth;
        if room {
            // What was lost before this event is evident from its number.
            queue.lost = None;
            queue.events.push_back((sequence, data.to_vec()));
        } else {
            queue.lost = Some(sequence);
        }
        drop(queue);
        if let Some(notify) = self.notify.get() {
            notify();
        }
        room
    }
}

/// The file of an event queue. It keeps the queue and its context.
pub(crate) struct EventFile {
    hold: Hold,
    queue: Arc<EventQueue>,
}

impl EventFile {
    pub(crate) fn new(context: Arc<Context>, queue: Arc<EventQueue>) -> Self {
        Self { hold: Hold::new(context), queue }
    }

    /// What keeps the queue's object.
    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }
}

/// The object of an event queue.
pub(crate) struct VeventqObject {
    pub(crate) viommu: Id,
    event_type: u32,
    events: Arc<Events>,
}

impl State {
    /// `IOMMU_VEVENTQ_ALLOC`, up to the answer: the queue becomes the one of its
    /// type in the vIOMMU.
    pub(crate) fn alloc_veventq(
        &mut self,
        viommu: Id,
        event_type: u32,
        queue: Arc<EventQueue>,
    ) -> Result<Id, Error> {
        let events = self.viommu(viommu)?.events.clone();
        fallible("an event queue")?;
        events.add(event_type, queue)?;
        self.objects.hold(viommu);
        self.reserve(Object::Veventq(VeventqObject { viommu, event_type, events }))
    }

    pub(crate) fn dispose_veventq(&mut self, queue: &VeventqObject) {
        queue.events.remove(queue.event_type);
        self.objects.unhold(queue.viommu);
    }
}

impl File for EventFile {
    fn mode(&self) -> FileMode {
        FileMode::AnonInode("[iommufd-veventq]")
    }

    /// Packs as many events as fit, each behind its header; an empty queue reads
    /// as 0 bytes.
    fn read(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        if pos.is_some_and(|pos| pos != 0) {
            return Err(Error::Seek.errno());
        }
        if len < HEADER {
            return Err(Error::Invalid("no room for a header").errno());
        }
        let too_short = || Error::Invalid("no room for the event").errno();
        let mut done = 0;
        loop {
            let (bytes, event, lost) = {
                let mut queue = self.queue.lock();
                let event = queue.events.front();
                let (header, data): (_, &[u8]) = match (event, queue.lost) {
                    (Some((sequence, data)), _) => {
                        (iommufd_vevent_header { flags: 0, sequence: *sequence }, data)
                    }
                    (None, Some(sequence)) => {
                        (iommufd_vevent_header { flags: LOST_EVENTS, sequence }, &[])
                    }
                    (None, None) => break,
                };
                let bytes = [header.as_bytes(), data].concat();
                if done + bytes.len() > len {
                    if done == 0 {
                        return Err(too_short());
                    }
                    break;
                }
                let event = queue.events.pop_front();
                let lost = if event.is_none() { queue.lost.take() } else { None };
                queue.reading = usize::from(event.is_some());
                (bytes, event, lost)
            };
            let copied = task.mm().copy_to_user(buf + done as u64, &bytes);
            let mut queue = self.queue.lock();
            queue.reading = 0;
            if let Err(fault) = copied {
                match event {
                    Some(event) => queue.events.push_front(event),
                    None if queue.events.is_empty() => queue.lost = queue.lost.or(lost),
                    None => {}
                }
                drop(queue);
                return if done == 0 { Err(Error::from(fault).errno()) } else { Ok(done) };
            }
            done += bytes.len();
        }
        Ok(done)
    }

    fn readable(&self) -> bool {
        let queue = self.queue.lock();
        !queue.events.is_empty() || queue.lost.is_some()
    }

    fn set_notify(&self, notify: Notify) {
        // Set once, before the file is visible.
        let _ = self.queue.notify.set(notify);
    }
}
