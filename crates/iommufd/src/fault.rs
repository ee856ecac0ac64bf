//! Fault queues: page requests on their way to user space, and the answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use host::{Errno, File, FileMode, Notify, Task};
use iommu::{FaultGroup, FaultHandler, PageRequest, PageResponse, Target};
use uapi::Plain;
use uapi::iommufd::{
    iommu_hwpt_page_response, iommu_hwpt_pgfault,
    iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_LAST_PAGE as LAST_PAGE,
    iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_PASID_VALID as PASID_VALID,
};

use crate::context::Hold;
use crate::sync::{Mutex, MutexGuard};
use crate::{Context, Error, Id};

const FAULT: usize = size_of::<iommu_hwpt_pgfault>();
const RESPONSE: usize = size_of::<iommu_hwpt_page_response>();

/// A queue of page-request groups.
#[derive(Default)]
pub(crate) struct FaultQueue {
    state: Mutex<Queues>,
    notify: OnceLock<Notify>,
}

#[derive(Default)]
struct Queues {
    /// Not yet read.
    deliver: VecDeque<Pending>,
    /// Read, by cookie, and not yet answered.
    response: BTreeMap<u32, Pending>,
}

struct Pending {
    attachment: u64,
    device: Id,
    group: FaultGroup,
}

impl FaultQueue {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readable(&self) -> bool {
        !self.lock().deliver.is_empty()
    }
}

/// One device's attachment to a HWPT with a fault queue. When it is dropped,
/// whatever it has not been answered is answered as invalid.
pub(crate) struct FaultAttachment {
    queue: Arc<FaultQueue>,
    device: Id,
    serial: u64,
}

impl FaultAttachment {
    pub(crate) fn new(queue: Arc<FaultQueue>, device: Id) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { queue, device, serial: NEXT.fetch_add(1, Ordering::Relaxed) }
    }
}

impl FaultHandler for FaultAttachment {
    fn report(&self, group: FaultGroup) {
        let pending = Pending { attachment: self.serial, device: self.device, group };
        self.queue.lock().deliver.push_back(pending);
        if let Some(notify) = self.queue.notify.get() {
            notify();
        }
    }
}

impl Drop for FaultAttachment {
    fn drop(&mut self) {
        let mut queues = self.queue.lock();
        let mine = |pending: &Pending| pending.attachment == self.serial;
        let (gone, kept) = std::mem::take(&mut queues.deliver).into_iter().partition(mine);
        let gone: VecDeque<Pending> = gone;
        queues.deliver = kept;
        let answered: Vec<_> = queues.response.extract_if(.., |_, pending| mine(pending)).collect();
        drop(queues);
        // Dropping a group answers it.
        drop((gone, answered));
    }
}

/// The file of a fault queue. It keeps the queue and its context.
pub(crate) struct FaultFile {
    hold: Hold,
    queue: Arc<FaultQueue>,
}

impl FaultFile {
    pub(crate) fn new(context: Arc<Context>, queue: Arc<FaultQueue>) -> Self {
        Self { hold: Hold::new(context), queue }
    }

    /// What keeps the queue's object.
    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }
}

fn message(request: &PageRequest, device: Id, cookie: u32) -> iommu_hwpt_pgfault {
    let mut fault = iommu_hwpt_pgfault::zeroed();
    if let Target::Pasid(pasid) = request.target {
        fault.flags |= PASID_VALID;
        fault.pasid = pasid;
    }
    if request.last {
        fault.flags |= LAST_PAGE;
    }
    fault.dev_id = device;
    fault.grpid = request.group;
    fault.perm = request.perm.bits();
    fault.addr = request.addr;
    fault.cookie = cookie;
    fault
}

impl Queues {
    /// The lowest unused cookie; 0 is never one.
    fn cookie(&self) -> u32 {
        let mut cookie = 1;
        for used in self.response.keys() {
            if *used != cookie {
                break;
            }
            cookie += 1;
        }
        cookie
    }
}

impl File for FaultFile {
    fn mode(&self) -> FileMode {
        FileMode::AnonInode("[iommufd-pgfault]")
    }

    /// Delivers whole groups; an empty queue reads as 0 bytes.
    fn read(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        if pos.is_some_and(|pos| pos != 0) || !len.is_multiple_of(FAULT) {
            return Err(Error::Seek.errno());
        }
        let mut done = 0;
        loop {
            let (cookie, bytes) = {
                let mut queues = self.queue.lock();
                let cookie = queues.cookie();
                let Some(pending) = queues.deliver.front() else {
                    break;
                };
                let requests = pending.group.requests();
                if done + requests.len() * FAULT > len {
                    if done == 0 {
                        return Err(Error::Invalid("the group does not fit").errno());
                    }
                    break;
                }
                let faults = requests.iter().map(|r| message(r, pending.device, cookie));
                let bytes: Vec<u8> = faults.flat_map(|f| f.as_bytes().to_vec()).collect();
                // Ours until the copy below has worked; a detach finds it here.
                if let Some(pending) = queues.deliver.pop_front() {
                    queues.response.insert(cookie, pending);
                }
                (cookie, bytes)
            };
            if let Err(fault) = task.mm().copy_to_user(buf + done as u64, &bytes) {
                let mut queues = self.queue.lock();
                if let Some(pending) = queues.response.remove(&cookie) {
                    queues.deliver.push_front(pending);
                }
                return if done == 0 { Err(Error::from(fault).errno()) } else { Ok(done) };
            }
            done += bytes.len();
        }
        Ok(done)
    }

    /// Answers groups by cookie, up to the first that cannot be.
    fn write(
        &self,
        task: &dyn Task,
        buf: u64,
        len: usize,
        pos: Option<u64>,
    ) -> Result<usize, Errno> {
        if pos.is_some_and(|pos| pos != 0) || !len.is_multiple_of(RESPONSE) {
            return Err(Error::Seek.errno());
        }
        let mut done = 0;
        while done < len {
            let mut answer = iommu_hwpt_page_response::zeroed();
            let read = task.mm().copy_from_user(buf + done as u64, answer.as_bytes_mut());
            let result = read.map_err(Error::from).and_then(|()| {
                let response = match answer.code {
                    0 => PageResponse::Success,
                    1 => PageResponse::Invalid,
                    _ => return Err(Error::Invalid("the response code")),
                };
                let pending = self.queue.lock().response.remove(&answer.cookie);
                let pending = pending.ok_or(Error::Invalid("the cookie"))?;
                pending.group.respond(response);
                Ok(())
            });
            match result {
                Ok(()) => done += RESPONSE,
                Err(error) if done == 0 => return Err(error.errno()),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn readable(&self) -> bool {
        self.queue.readable()
    }

    fn set_notify(&self, notify: Notify) {
        // Set once, before the file is visible.
        let _ = self.queue.notify.set(notify);
    }
}
