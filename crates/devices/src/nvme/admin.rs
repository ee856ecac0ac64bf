//! Admin commands (§5).

use vfio::Bus;

use super::controller::{Controller, Outcome, Running, Scratch};
use super::namespace::MAX_TRANSFER;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::spec::{Command, Status, admin, log_page};
use super::state::{EVENT_REQUESTS, IO_QUEUES, MAX_ENTRIES, State, VECTORS};

/// `PC`, `IEN` of Create I/O Queue: the queue is contiguous; it has interrupts.
const CONTIGUOUS: u32 = 1;
const INTERRUPTS: u32 = 1 << 1;

impl Controller {
    pub(super) fn admin(
        &self,
        bus: &mut Bus,
        scratch: &mut Scratch,
        running: Running<'_>,
    ) -> Result<Outcome, Status> {
        let command = running.command;
        let done = |()| Outcome::Done(0);
        match command.opcode {
            admin::IDENTIFY => {
                let answer = self.identify(command)?;
                scratch.answer(bus, running, &answer).map(done)
            }
            admin::GET_LOG_PAGE => self.get_log_page(bus, scratch, running).map(done),
            admin::CREATE_CQ => self.state.lock().create_cq(command).map(done),
            admin::CREATE_SQ => self.state.lock().create_sq(command).map(done),
            admin::DELETE_SQ => self.state.lock().delete_sq(command).map(done),
            admin::DELETE_CQ => {
                let mut state = self.state.lock();
                state.delete_cq(command)?;
                // It may have been what the line was asserted for.
                bus.set_line(state.line());
                Ok(done(()))
            }
            // By then it is done: nothing is aborted.
            admin::ABORT => Ok(Outcome::Done(1)),
            admin::SET_FEATURES => {
                let mut state = self.state.lock();
                let has_queues = state.has_io_queues();
                state.features.set(command, has_queues).map(Outcome::Done)
            }
            admin::GET_FEATURES => self.state.lock().features.get(command).map(Outcome::Done),
            admin::ASYNC_EVENT_REQUEST => {
                let mut state = self.state.lock();
                if state.requests.len() == EVENT_REQUESTS {
                    return Err(Status::TOO_MANY_EVENT_REQUESTS);
                }
                state.requests.push_back(command.id);
                Ok(Outcome::Waits)
            }
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn get_log_page(
        &self,
        bus: &mut Bus,
        scratch: &mut Scratch,
        running: Running<'_>,
    ) -> Result<(), Status> {
        const RETAIN_EVENTS: u32 = 1 << 15;
        let command = running.command;
        let id = command.dword(10) as u8;
        let dwords =
            u64::from(command.dword(10) >> 16) | u64::from(command.dword(11) & 0xffff) << 16;
        let len = usize::try_from(4 * (dwords + 1)).ok().filter(|len| *len <= MAX_TRANSFER);
        let len = len.ok_or(Status::INVALID_FIELD)?;
        let offset = u64::from(command.dword(12)) | u64::from(command.dword(13)) << 32;
        let mut page = self.log.lock().page(id).ok_or(Status::INVALID_LOG_PAGE)?;
        let offset = usize::try_from(offset).ok().filter(|at| at % 4 == 0 && *at <= page.len());
        page.drain(..offset.ok_or(Status::INVALID_FIELD)?);
        // Beyond the page there is nothing.
        page.resize(len, 0);
        scratch.answer(bus, running, &page)?;
        if id == log_page::ERRORS && command.dword(10) & RETAIN_EVENTS == 0 {
            self.state.lock().allow_events();
        }
        Ok(())
    }
}

/// The number of a queue that a command names.
fn queue_id(command: &Command) -> u16 {
    command.dword(10) as u16
}

impl State {
    fn has_io_queues(&self) -> bool {
        let completions = self.completions.iter().skip(1);
        completions.flatten().next().is_some()
    }

    /// What creating queues of both kinds has in common: the number of one that there is not yet, its base, its size.
    fn new_queue(&self, command: &Command, taken: bool) -> Result<(usize, u64, u32), Status> {
        let (id, size) = (queue_id(command), (command.dword(10) >> 16) + 1);
        if id == 0 || id > IO_QUEUES || taken {
            return Err(Status::INVALID_QUEUE_IDENTIFIER);
        }
        if !(2..=MAX_ENTRIES).contains(&size) {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if command.dword(11) & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        if !command.prp1.is_multiple_of(self.page() as u64) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        Ok((id.into(), command.prp1, size))
    }

    fn create_cq(&mut self, command: &Command) -> Result<(), Status> {
        let taken = self.completions.get(usize::from(queue_id(command)));
        let (id, base, size) = self.new_queue(command, taken.is_some_and(Option::is_some))?;
        if !self.has_entry_sizes().1 {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let vector = (command.dword(11) >> 16) as u16;
        if vector >= VECTORS {
            return Err(Status::INVALID_INTERRUPT_VECTOR);
        }
        let vector = (command.dword(11) & INTERRUPTS != 0).then_some(vector);
        self.completions[id] = Some(CompletionQueue::new(base, size, vector));
        Ok(())
    }

    fn create_sq(&mut self, command: &Command) -> Result<(), Status> {
        let completions = (command.dword(11) >> 16) as u16;
        let exists = self.completions.get(usize::from(completions)).is_some_and(Option::is_some);
        if completions == 0 || !exists {
            return Err(Status::INVALID_COMPLETION_QUEUE);
        }
        let taken = self.submissions.get(usize::from(queue_id(command)));
        let (id, base, size) = self.new_queue(command, taken.is_some_and(Option::is_some))?;
        if !self.has_entry_sizes().0 {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        self.submissions[id] = Some(SubmissionQueue::new(base, size, completions));
        Ok(())
    }

    fn delete_sq(&mut self, command: &Command) -> Result<(), Status> {
        let id = queue_id(command);
        let queue = self.submissions.get_mut(usize::from(id)).filter(|_| id != 0);
        // Its commands are done: there is one thread.
        let queue = queue.and_then(Option::take);
        queue.map(drop).ok_or(Status::INVALID_QUEUE_IDENTIFIER)
    }

    fn delete_cq(&mut self, command: &Command) -> Result<(), Status> {
        let id = queue_id(command);
        let queue = self.completions.get_mut(usize::from(id)).filter(|_| id != 0);
        let queue =
            queue.filter(|queue| queue.is_some()).ok_or(Status::INVALID_QUEUE_IDENTIFIER)?;
        if self.submissions.iter().flatten().any(|queue| queue.completions == id) {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        *queue = None;
        Ok(())
    }
}
