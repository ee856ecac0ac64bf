use std::sync::Arc;

use crate::{Device, Target};

bitflags::bitflags! {
    /// What a faulting access wanted.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FaultPerm: u32 {
        /// To read.
        const READ = 1 << 0;
        /// To write.
        const WRITE = 1 << 1;
        /// To execute.
        const EXEC = 1 << 2;
        /// With privilege.
        const PRIV = 1 << 3;
    }
}

/// One page that a device asks for, and waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// Whose traffic faulted.
    pub target: Target,
    /// The group: one response answers all its requests.
    pub group: u32,
    /// The last request of its group.
    pub last: bool,
    /// What the access wanted.
    pub perm: FaultPerm,
    /// The IOVA.
    pub addr: u64,
}

/// The answer to a group of page requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageResponse {
    /// The pages are there: retry.
    Success,
    /// They will not be.
    Invalid,
}

/// A complete group of page requests, waiting for its one answer. Dropped
/// unanswered, it is answered [`PageResponse::Invalid`].
pub struct FaultGroup {
    device: Arc<Device>,
    requests: Vec<PageRequest>,
    answered: bool,
}

impl FaultGroup {
    pub(crate) fn new(device: Arc<Device>, requests: Vec<PageRequest>) -> Self {
        Self { device, requests, answered: false }
    }

    /// The requests, in order; the last one ends the group.
    pub fn requests(&self) -> &[PageRequest] {
        &self.requests
    }

    /// Answers the group.
    pub fn respond(mut self, response: PageResponse) {
        self.answer(response);
    }

    fn answer(&mut self, response: PageResponse) {
        self.answered = true;
        if let Some(last) = self.requests.last() {
            self.device.driver().page_response(&self.device, last, response);
        }
    }
}

impl Drop for FaultGroup {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(PageResponse::Invalid);
        }
    }
}

/// Who takes the page requests of an attachment.
pub trait FaultHandler: Send + Sync {
    /// Takes a complete group. Called on the device's thread: it must not wait.
    fn report(&self, group: FaultGroup);
}
