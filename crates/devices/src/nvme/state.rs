//! What registers, doorbells and admin commands have made of a controller.

use std::collections::VecDeque;

use super::features::Features;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::spec::{
    CC_AMS, CC_CSS, CC_EN, CC_IOCQES_SHIFT, CC_IOSQES_SHIFT, CC_MPS_SHIFT, CC_SHN, CSTS_CFS,
    CSTS_RDY, CSTS_SHST, CSTS_SHST_COMPLETE, CSTS_SHST_OCCURRING, VERSION, log_page, register,
};

/// I/O queue pairs. Each may have a vector of its own, beside the admin queue's.
pub(super) const IO_QUEUES: u16 = 64;
pub(super) const VECTORS: u16 = IO_QUEUES + 1;
/// Entries of the longest queue.
pub(super) const MAX_ENTRIES: u32 = 1024;
/// log2 of the largest memory page, in units of 4 KiB.
const MPS_MAX: u32 = 4;
/// Asynchronous Event Requests that may wait (`AERL` + 1).
pub(super) const EVENT_REQUESTS: usize = 4;

/// `CAP`: queues are contiguous, 10 s to become ready, the NVM command set, pages of 4 to 64 KiB.
const CAP: u64 = (MAX_ENTRIES as u64 - 1) | 1 << 16 | 20 << 24 | 1 << 37 | (MPS_MAX as u64) << 52;

/// An asynchronous event (§5.2): an error, of which the error log tells more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    InvalidDoorbellRegister = 0,
    InvalidDoorbellValue = 1,
}

impl Event {
    /// Dword 0 of the request's completion: type, information, log page.
    pub(super) fn dword(self) -> u32 {
        (self as u32) << 8 | u32::from(log_page::ERRORS) << 16
    }
}

/// What the thread is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// Carry out commands of a submission queue.
    Commands { queue: u16 },
    /// Complete an Asynchronous Event Request.
    Event { request: u16, event: Event },
    /// Raise these of the first 32 vectors.
    Interrupts(u32),
    /// Make everything durable, and say so.
    Shutdown,
}

/// See the module.
pub(super) struct State {
    /// Changes with each reset: what was under way before is forgotten.
    pub(super) life: u64,
    pub(super) cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    /// `INTMS`, `INTMC`: vectors that are masked.
    mask: u32,
    /// Vectors that were unmasked with something to tell.
    due: u32,
    shutdown_due: bool,
    /// By number; 0 is the admin queue.
    pub(super) submissions: Vec<Option<SubmissionQueue>>,
    pub(super) completions: Vec<Option<CompletionQueue>>,
    /// Where the search for commands goes on.
    turn: usize,
    pub(super) features: Features,
    /// Identifiers of Asynchronous Event Requests that wait.
    pub(super) requests: VecDeque<u16>,
    events: VecDeque<Event>,
    /// An event was told, and the log has not been read since: no other is told before that.
    told: bool,
}

impl State {
    pub(super) fn new(life: u64) -> Self {
        Self {
            life,
            cc: 0,
            csts: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            mask: 0,
            due: 0,
            shutdown_due: false,
            submissions: vec![None; usize::from(IO_QUEUES) + 1],
            completions: vec![None; usize::from(IO_QUEUES) + 1],
            turn: 0,
            features: Features::new(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            told: false,
        }
    }

    /// The registers below the doorbells.
    pub(super) fn registers(&self) -> [u8; register::END as usize] {
        let words = [
            CAP as u32,
            (CAP >> 32) as u32,
            VERSION,
            self.mask,
            self.mask,
            self.cc,
            0,
            self.csts,
            0,
            self.aqa,
            self.asq as u32,
            (self.asq >> 32) as u32,
            self.acq as u32,
            (self.acq >> 32) as u32,
        ];
        let mut bytes = [0; register::END as usize];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// Writes `AQA` or half of `ASQ` or `ACQ`.
    pub(super) fn set_admin_queues(&mut self, at: u64, value: u32) {
        let value = u64::from(value);
        let low = |old: u64| old >> 32 << 32 | value & !0xfff;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        match at {
            register::AQA => self.aqa = value as u32 & 0x0fff_0fff,
            register::ASQ => self.asq = low(self.asq),
            0x2c => self.asq = high(self.asq),
            register::ACQ => self.acq = low(self.acq),
            0x34 => self.acq = high(self.acq),
            _ => {}
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.cc & CC_EN != 0
    }

    /// Commands are carried out.
    pub(super) fn is_ready(&self) -> bool {
        self.csts & (CSTS_RDY | CSTS_CFS) == CSTS_RDY
    }

    /// Bytes of a memory page.
    pub(super) fn page(&self) -> usize {
        4096 << (self.cc >> CC_MPS_SHIFT & 0xf).min(MPS_MAX)
    }

    /// Entries of I/O queues have the only size that there is: 64 bytes of commands, 16 of completions.
    pub(super) fn has_entry_sizes(&self) -> (bool, bool) {
        (self.cc >> CC_IOSQES_SHIFT & 0xf == 6, self.cc >> CC_IOCQES_SHIFT & 0xf == 4)
    }

    /// `CC.EN` from 0 to 1.
    pub(super) fn enable(&mut self, cc: u32) {
        self.cc = cc;
        let (submissions, completions) = ((self.aqa & 0xfff) + 1, (self.aqa >> 16) + 1);
        let possible = cc & (CC_CSS | CC_AMS) == 0
            && cc >> CC_MPS_SHIFT & 0xf <= MPS_MAX
            && [submissions, completions].iter().all(|size| (2..=4096).contains(size))
            && [self.asq, self.acq].iter().all(|base| base.is_multiple_of(self.page() as u64));
        if !possible {
            self.csts |= CSTS_CFS;
            return;
        }
        self.submissions[0] = Some(SubmissionQueue::new(self.asq, submissions, 0));
        self.completions[0] = Some(CompletionQueue::new(self.acq, completions, Some(0)));
        self.csts |= CSTS_RDY;
    }

    /// `CC.EN` from 1 to 0, which leaves the admin queue's registers. Nothing more is begun; `finish_disable` is for when
    /// nothing is under way either.
    pub(super) fn begin_disable(&mut self, cc: u32) {
        let Self { csts, aqa, asq, acq, life, .. } = *self;
        *self = Self { cc, csts: csts & CSTS_RDY, aqa, asq, acq, ..Self::new(life + 1) };
    }

    pub(super) fn finish_disable(&mut self) {
        if !self.is_enabled() {
            self.csts &= !CSTS_RDY;
        }
    }

    /// `CC.SHN`, with everything else of `CC` as it is; whether there is something to do.
    pub(super) fn notify_shutdown(&mut self, cc: u32) -> bool {
        self.cc = self.cc & !CC_SHN | cc & CC_SHN;
        let begins = cc & CC_SHN != 0 && self.csts & CSTS_SHST == 0;
        if begins {
            self.csts |= CSTS_SHST_OCCURRING;
            self.shutdown_due = true;
        }
        begins
    }

    pub(super) fn finish_shutdown(&mut self) {
        self.csts = self.csts & !CSTS_SHST | CSTS_SHST_COMPLETE;
    }

    /// The controller can go on no more: its queues cannot be reached.
    pub(super) fn fail(&mut self) {
        self.csts |= CSTS_CFS;
    }

    /// A doorbell. What there is no place for is an event.
    pub(super) fn ring(&mut self, index: u64, value: u32) {
        if !self.is_ready() || !self.is_enabled() {
            return;
        }
        let queue = (index / 2) as usize;
        let valid = if index.is_multiple_of(2) {
            let queue = self.submissions.get_mut(queue).and_then(Option::as_mut);
            queue.map(|queue| queue.set_tail(value))
        } else {
            let queue = self.completions.get_mut(queue).and_then(Option::as_mut);
            queue.map(|queue| queue.set_head(value))
        };
        match valid {
            Some(true) => {}
            Some(false) => self.report(Event::InvalidDoorbellValue),
            None => self.report(Event::InvalidDoorbellRegister),
        }
    }

    fn report(&mut self, event: Event) {
        if !self.events.contains(&event) {
            self.events.push_back(event);
        }
    }

    /// The error log was read: the next event can be told.
    pub(super) fn allow_events(&mut self) {
        self.told = false;
    }

    /// `INTMS` and `INTMC`: what is unmasked with something to tell is raised, where it is a message. `masks`: it is not
    /// MSI-X, which has masks of its own.
    pub(super) fn set_mask(&mut self, mask: u32, masks: bool) {
        let unmasked = self.mask & !mask;
        self.mask = mask;
        if masks {
            let pending = self.pending().filter(|vector| *vector < 32);
            self.due |= pending.fold(0, |all, vector| all | 1 << vector) & unmasked;
        }
    }

    pub(super) fn mask(&self) -> u32 {
        self.mask
    }

    pub(super) fn is_masked(&self, vector: u16) -> bool {
        vector < 32 && self.mask >> vector & 1 != 0
    }

    /// Vectors of completion queues that have something to tell.
    fn pending(&self) -> impl Iterator<Item = u16> {
        let queues = self.completions.iter().flatten();
        queues.filter(|queue| !queue.is_empty()).filter_map(|queue| queue.vector)
    }

    /// The level of the interrupt line.
    pub(super) fn line(&self) -> bool {
        self.pending().any(|vector| !self.is_masked(vector))
    }

    /// What the thread is to do next.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        if std::mem::take(&mut self.shutdown_due) {
            return Some(Job::Shutdown);
        }
        if !self.is_ready() {
            return None;
        }
        if self.due != 0 {
            return Some(Job::Interrupts(std::mem::take(&mut self.due)));
        }
        if let Some(job) = self.next_event() {
            return Some(job);
        }
        let count = self.submissions.len();
        let mut turns = (0..count).map(|n| (self.turn + n) % count);
        let queue = turns.find(|queue| self.has_commands(*queue))?;
        self.turn = queue + 1;
        Some(Job::Commands { queue: queue as u16 })
    }

    fn next_event(&mut self) -> Option<Job> {
        let full = self.completions[0].is_none_or(|queue| queue.is_full());
        if self.told || full || self.events.is_empty() {
            return None;
        }
        let request = self.requests.pop_front()?;
        let event = self.events.pop_front()?;
        self.told = true;
        Some(Job::Event { request, event })
    }

    /// There are commands, and room for their completions.
    fn has_commands(&self, queue: usize) -> bool {
        let Some(queue) = &self.submissions[queue] else { return false };
        let completions = self.completions.get(usize::from(queue.completions));
        !queue.is_empty() && completions.copied().flatten().is_some_and(|queue| !queue.is_full())
    }

    /// Where the next command of a queue is, if it can be carried out.
    pub(super) fn fetch(&mut self, queue: u16) -> Option<u64> {
        if !self.is_ready() || !self.has_commands(queue.into()) {
            return None;
        }
        self.submissions[usize::from(queue)].as_mut()?.pop()
    }
}
