//! What the controller's thread does: fetches commands, carries them out, posts completions.

use std::sync::atomic::{Ordering, fence};

use parking_lot::{Mutex, MutexGuard};
use vfio::{Access, Bus, Work};

use super::log::{Failure, Log};
use super::namespace::Namespace;
use super::prp::Prps;
use super::spec::{Command, Status};
use super::state::{Job, State};
use crate::burst::Burst;
use crate::scatter::Scatter;

/// A controller, without its registers' side.
pub(super) struct Controller {
    pub(super) name: String,
    /// For the interrupt line, and to make others from.
    pub(super) bus: Bus,
    pub(super) namespaces: Vec<Namespace>,
    pub(super) state: Mutex<State>,
    /// The thread's own.
    scratch: Mutex<Scratch>,
    pub(super) log: Mutex<Log>,
}

/// Room for the data of a command, and the command's place.
#[derive(Default)]
pub(super) struct Scratch {
    prps: Prps,
    pub(super) data: Scatter,
    pub(super) bytes: Vec<u8>,
}

impl Scratch {
    /// Finds the `len` bytes of a command's data.
    pub(super) fn gather(
        &mut self,
        bus: &mut Bus,
        running: Running<'_>,
        len: usize,
    ) -> Result<(), Status> {
        self.prps.gather(bus, &mut self.data, running.command, len, running.page)
    }

    /// Gives the host an answer.
    pub(super) fn answer(
        &mut self,
        bus: &mut Bus,
        running: Running<'_>,
        answer: &[u8],
    ) -> Result<(), Status> {
        self.gather(bus, running, answer.len())?;
        Ok(self.data.put(bus, answer)?)
    }
}

/// There is nothing to go on with: the controller was reset, or its queues cannot be reached.
struct Stopped;

/// How a command ends.
pub(super) enum Outcome {
    /// With this Dword 0 in its completion.
    Done(u32),
    /// Some time later.
    Waits,
}

/// A command that is under way.
#[derive(Clone, Copy)]
pub(super) struct Running<'a> {
    pub(super) command: &'a Command,
    /// Bytes of a memory page.
    pub(super) page: usize,
}

impl Controller {
    pub(super) fn new(bus: Bus, name: &str, namespaces: Vec<Namespace>) -> Self {
        let (state, log) = (Mutex::new(State::new(0)), Mutex::new(Log::new()));
        Self { name: name.to_owned(), bus, namespaces, state, scratch: Mutex::default(), log }
    }

    /// The state, if it is still in the same life.
    fn alive(&self, life: u64) -> Result<MutexGuard<'_, State>, Stopped> {
        let state = self.state.lock();
        if state.life == life { Ok(state) } else { Err(Stopped) }
    }

    fn commands(&self, bus: &mut Bus, queue: u16, life: u64) -> Result<(), Stopped> {
        let mut vectors = Vec::new();
        let mut result = Ok(());
        let mut burst = Burst::new();
        while burst.goes_on() {
            match self.next_command(bus, queue, life, &mut vectors) {
                Ok(Some(moved)) => burst.spend(moved),
                Ok(None) => break,
                Err(stopped) => {
                    result = Err(stopped);
                    break;
                }
            }
        }
        self.interrupt(bus, life, &vectors)?;
        result
    }

    /// Carries out the next command of a queue, and adds the vector to raise; how many bytes it moved, if there was one.
    fn next_command(
        &self,
        bus: &mut Bus,
        queue: u16,
        life: u64,
        vectors: &mut Vec<u16>,
    ) -> Result<Option<u64>, Stopped> {
        let (at, page) = {
            let mut state = self.alive(life)?;
            let Some(at) = state.fetch(queue) else { return Ok(None) };
            (at, state.page())
        };
        let mut bytes = [0; 64];
        if bus.read(Access::at(at), &mut bytes).is_err() {
            return Err(self.fail(life));
        }
        let command = Command::decode(&bytes);
        let running = Running { command: &command, page };
        let mut scratch = self.scratch.lock();
        scratch.data.clear();
        let result = if command.flags != 0 {
            // Neither fused nor with scatter/gather lists.
            Err(Status::INVALID_FIELD)
        } else if queue == 0 {
            self.admin(bus, &mut scratch, running)
        } else {
            self.io(bus, &mut scratch, running).map(|()| Outcome::Done(0))
        };
        let moved = scratch.data.len();
        drop(scratch);
        let (status, dword) = match result {
            Ok(Outcome::Waits) => return Ok(Some(0)),
            Ok(Outcome::Done(dword)) => (Status::SUCCESS, dword),
            Err(status) => (status, 0),
        };
        if !status.is_success() {
            let (id, namespace) = (command.id, command.namespace);
            self.log.lock().add(Failure { queue, id, status, namespace });
        }
        let vector = self.post(bus, queue, life, command.id, status, dword)?;
        vectors.extend(vector.filter(|new| !vectors.contains(new)));
        Ok(Some(moved))
    }

    /// Posts a completion; the vector to raise, if there is one.
    fn post(
        &self,
        bus: &mut Bus,
        queue: u16,
        life: u64,
        id: u16,
        status: Status,
        dword: u32,
    ) -> Result<Option<u16>, Stopped> {
        let (at, phase, head, vector) = {
            let mut state = self.alive(life)?;
            // A queue that deletes itself is the admin queue, which cannot.
            let Some(submissions) = state.submissions[usize::from(queue)] else {
                return Err(Stopped);
            };
            let completions = usize::from(submissions.completions);
            let Some(Some(completions)) = state.completions.get_mut(completions) else {
                return Err(Stopped);
            };
            let (at, phase) = completions.push();
            (at, phase, submissions.head(), completions.vector)
        };
        let first = u64::from(dword);
        let status = status.field() << 1 | u16::from(phase);
        let second = u64::from(head)
            | u64::from(queue) << 16
            | u64::from(id) << 32
            | u64::from(status) << 48;
        // The phase makes the entry the host's: it comes last.
        let written = bus.write(Access::at(at), &first.to_le_bytes()).and_then(|()| {
            fence(Ordering::Release);
            bus.write(Access::at(at.wrapping_add(8)), &second.to_le_bytes())
        });
        if written.is_err() {
            return Err(self.fail(life));
        }
        Ok(vector)
    }

    fn fail(&self, life: u64) -> Stopped {
        if let Ok(mut state) = self.alive(life) {
            state.fail();
        }
        Stopped
    }

    /// Tells the host of completions that were posted.
    fn interrupt(&self, bus: &mut Bus, life: u64, vectors: &[u16]) -> Result<(), Stopped> {
        let unmasked: Vec<_> = {
            let state = self.alive(life)?;
            bus.set_line(state.line());
            let has_masks = !bus.is_msix();
            let masked = |vector: &&u16| has_masks && state.is_masked(**vector);
            vectors.iter().filter(|vector| !masked(vector)).copied().collect()
        };
        unmasked.into_iter().for_each(|vector| bus.raise(vector));
        Ok(())
    }

    fn shut_down(&self, life: u64) -> Result<(), Stopped> {
        for namespace in &self.namespaces {
            // Nobody is there to hear of it any more.
            let _ = namespace.image.flush();
        }
        self.alive(life)?.finish_shutdown();
        Ok(())
    }
}

impl Work for Controller {
    fn bus(&self) -> Bus {
        self.bus.another()
    }

    fn step(&self, bus: &mut Bus) -> bool {
        let (job, life) = {
            let mut state = self.state.lock();
            let Some(job) = state.next_job() else { return false };
            (job, state.life)
        };
        let result = match job {
            Job::Commands { queue } => self.commands(bus, queue, life),
            Job::Event { request, event } => {
                let posted = self.post(bus, 0, life, request, Status::SUCCESS, event.dword());
                posted.and_then(|vector| self.interrupt(bus, life, vector.as_slice()))
            }
            Job::Interrupts(vectors) => {
                let vectors: Vec<_> = (0..32).filter(|n| vectors >> n & 1 != 0).collect();
                self.interrupt(bus, life, &vectors)
            }
            Job::Shutdown => self.shut_down(life),
        };
        result.is_ok()
    }
}
