//! Submission and completion queues, as the doorbells and the controller move through them (§4.1).

/// A submission queue. The host moves its tail, the controller its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct SubmissionQueue {
    base: u64,
    size: u32,
    head: u32,
    tail: u32,
    /// The completion queue that it uses.
    pub(super) completions: u16,
}

impl SubmissionQueue {
    pub(super) fn new(base: u64, size: u32, completions: u16) -> Self {
        Self { base, size, head: 0, tail: 0, completions }
    }

    /// The doorbell; whether there is such an entry.
    pub(super) fn set_tail(&mut self, tail: u32) -> bool {
        let valid = tail < self.size;
        if valid {
            self.tail = tail;
        }
        valid
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Where the next command is, which is fetched now.
    pub(super) fn pop(&mut self) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let at = self.base.wrapping_add(u64::from(self.head) * 64);
        self.head = (self.head + 1) % self.size;
        Some(at)
    }

    /// `SQHD`: what is before it has been fetched.
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }
}

/// A completion queue. The controller moves its tail, the host its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct CompletionQueue {
    base: u64,
    size: u32,
    head: u32,
    tail: u32,
    phase: bool,
    /// The interrupt vector, if it has one.
    pub(super) vector: Option<u16>,
}

impl CompletionQueue {
    pub(super) fn new(base: u64, size: u32, vector: Option<u16>) -> Self {
        Self { base, size, head: 0, tail: 0, phase: true, vector }
    }

    /// The doorbell; whether it frees entries that were posted.
    pub(super) fn set_head(&mut self, head: u32) -> bool {
        let distance = |to: u32| (to + self.size - self.head) % self.size;
        let valid = head < self.size && distance(head) <= distance(self.tail);
        if valid {
            self.head = head;
        }
        valid
    }

    /// The host has seen everything.
    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    pub(super) fn is_full(&self) -> bool {
        (self.tail + 1) % self.size == self.head
    }

    /// Where the next entry goes, and its phase.
    pub(super) fn push(&mut self) -> (u64, bool) {
        let slot = (self.base.wrapping_add(u64::from(self.tail) * 16), self.phase);
        self.tail = (self.tail + 1) % self.size;
        if self.tail == 0 {
            self.phase = !self.phase;
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_queue_goes_round() {
        let mut queue = SubmissionQueue::new(0x1000, 3, 1);
        assert!(!queue.set_tail(3));
        assert!(queue.set_tail(2));
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some(0x1000), Some(0x1040), None]);
        assert!(queue.set_tail(1));
        assert_eq!((queue.pop(), queue.pop(), queue.head()), (Some(0x1080), Some(0x1000), 1));
    }

    #[test]
    fn a_completion_queue_is_never_overrun_and_changes_its_phase() {
        let mut queue = CompletionQueue::new(0x1000, 3, None);
        assert_eq!([queue.push(), queue.push()], [(0x1000, true), (0x1010, true)]);
        assert!(queue.is_full());
        assert!(!queue.set_head(3), "no such entry");
        assert!(queue.set_head(1) && !queue.is_full());
        assert!(!queue.set_head(0), "backwards");
        assert_eq!(queue.push(), (0x1020, true));
        assert!(queue.set_head(0));
        assert_eq!(queue.push(), (0x1000, false));
        assert!(queue.set_head(1) && queue.is_empty());
    }
}
