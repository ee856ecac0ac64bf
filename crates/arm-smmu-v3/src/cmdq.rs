//! The Command queue as its producer (IHI 0070 §3.5, §4, §7.1).
//!
//! Any number of threads submit. The lock is held to put a batch into the queue and to look at its
//! progress, never while waiting; a thread that finds the queue stopped by an error deals with it, whoever's command
//! it was.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pagetable::OutOfMemory;
use parking_lot::Mutex;
use smmuv3::wire::Command;
use smmuv3::wire::register::{CmdqCons, CommandError, Gerror, QueueBase, Register, Ring};
use thiserror::Error;

use crate::platform::{DmaMemory, Region, Registers, read, write, write64};
use crate::wait;

/// log2 of the size of a command, in bytes.
const COMMAND_LOG2: u8 = 4;
/// log2 of the most entries that the queue is given: more would not be in use at a time.
const LARGEST_LOG2: u8 = 10;
/// The most commands between two `CMD_SYNC`.
pub(crate) const BATCH: usize = 64;
/// How often the SMMU may try to read a command that it could not read.
const READS: u32 = 8;

const SYNC: Command = Command::Sync { cs: 0, msh: 0, msi_attr: 0, msi_data: 0, msi_address: 0 };

/// Why commands did not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CommandsError {
    /// `CERROR_ILL`. What was before the command is complete; it and what was after it were not executed.
    #[error("the SMMU refuses {command}, command {index}")]
    Illegal {
        /// Which of the commands it is.
        index: usize,
        /// The command.
        command: Command,
    },
    /// `CERROR_ATC_INV_SYNC`: a device did not answer one of the ATS invalidations.
    #[error("a device does not answer ATS invalidations; {executed} commands were executed")]
    AtcTimeout {
        /// How many of the commands were executed; they are complete but for the invalidation.
        executed: usize,
    },
    /// `CERROR_ABT`, again and again: the SMMU cannot read its queue. The commands from the batch on may be
    /// executed later.
    #[error("the SMMU cannot read its Command queue")]
    Unreadable,
    /// The SMMU does not consume commands in time. They may be executed later.
    #[error("the SMMU does not consume commands")]
    Timeout,
}

impl CommandsError {
    /// The same, where `before` other commands came first.
    fn after(self, before: usize) -> Self {
        match self {
            Self::Illegal { index, command } => Self::Illegal { index: before + index, command },
            Self::AtcTimeout { executed } => Self::AtcTimeout { executed: before + executed },
            Self::Unreadable | Self::Timeout => self,
        }
    }
}

/// The Command queue of an SMMU.
pub(crate) struct CommandQueue<R, M: DmaMemory> {
    registers: Arc<R>,
    region: Region<M>,
    ring: Ring,
    timeout: Duration,
    state: Mutex<State>,
}

/// Positions in the queue count commands since its start; the indexes of the ring are their lowest bits.
#[derive(Default)]
struct State {
    prod: u64,
    cons: u64,
    batches: Vec<Batch>,
    /// How often in a row the SMMU could not read the command at `cons`.
    aborts: u32,
}

/// A batch that somebody waits for: its commands and the `CMD_SYNC` behind them.
struct Batch {
    positions: Range<u64>,
    outcome: Outcome,
}

/// What became of a batch so far; at first, nothing went wrong.
#[derive(Clone, Copy, Default)]
enum Outcome {
    #[default]
    Executed,
    /// The command at this position is illegal.
    Illegal(u64),
    AtcTimeout,
    Unreadable,
}

impl State {
    fn batch_at(&mut self, position: u64) -> Option<&mut Batch> {
        self.batches.iter_mut().find(|batch| batch.positions.contains(&position))
    }

    /// What became of the batch that begins at `start`, forgotten when known.
    fn take_outcome(&mut self, start: u64) -> Option<Outcome> {
        let n = self.batches.iter().position(|batch| batch.positions.start == start)?;
        let Batch { positions, outcome } = &self.batches[n];
        let done = self.cons >= positions.end || matches!(outcome, Outcome::Unreadable);
        done.then(|| self.batches.swap_remove(n).outcome)
    }
}

impl<R: Registers, M: DmaMemory> CommandQueue<R, M> {
    /// A queue of 2^`log2` entries, or fewer, for an SMMU that is [told](Self::install) of it.
    pub(crate) fn new(
        registers: &Arc<R>,
        memory: &Arc<M>,
        log2: u8,
        timeout: Duration,
    ) -> Result<Self, OutOfMemory> {
        let log2 = log2.min(LARGEST_LOG2);
        Ok(Self {
            registers: registers.clone(),
            region: Region::new(memory, (log2 + COMMAND_LOG2).max(6))?,
            ring: Ring::new(log2.into()),
            timeout,
            state: Mutex::default(),
        })
    }

    /// Tells the SMMU where the queue is. `CR0.CMDQEN` is 0.
    pub(crate) fn install(&self) {
        *self.state.lock() = State::default();
        let log2 = self.ring.entries().trailing_zeros() as u8;
        let base = QueueBase(0).with_addr(self.region.address()).with_log2size(log2);
        write64(&*self.registers, Register::CmdqBase, base.with_allocate(true).0);
        write(&*self.registers, Register::CmdqProd, 0);
        write(&*self.registers, Register::CmdqCons, 0);
    }

    /// Has commands executed in order; returns when all are complete. On an error the commands up to the one that
    /// it names are complete, and none after it was executed.
    pub(crate) fn run(&self, commands: &[Command]) -> Result<(), CommandsError> {
        let most = BATCH.min(self.ring.entries() as usize - 1);
        let mut before = 0;
        loop {
            let batch = &commands[before..commands.len().min(before + most)];
            self.run_batch(batch).map_err(|error| error.after(before))?;
            before += batch.len();
            if before == commands.len() {
                return Ok(());
            }
        }
    }

    fn run_batch(&self, commands: &[Command]) -> Result<(), CommandsError> {
        // Whatever kept the SMMU from reading may be over.
        self.state.lock().aborts = 0;
        let start = wait::until(self.timeout, || self.put(commands));
        let start = start.ok_or(CommandsError::Timeout)?;
        let outcome = wait::until(self.timeout, || {
            let mut state = self.state.lock();
            self.refresh(&mut state);
            state.take_outcome(start)
        });
        let Some(outcome) = outcome else {
            self.state.lock().batches.retain(|batch| batch.positions.start != start);
            return Err(CommandsError::Timeout);
        };
        match outcome {
            Outcome::Executed => Ok(()),
            Outcome::Unreadable => Err(CommandsError::Unreadable),
            Outcome::AtcTimeout => Err(CommandsError::AtcTimeout { executed: commands.len() }),
            Outcome::Illegal(position) => {
                let index = (position - start) as usize;
                let command = commands.get(index).copied().unwrap_or(SYNC);
                Err(CommandsError::Illegal { index, command })
            }
        }
    }

    /// Puts a batch into the queue if there is room; returns its position.
    fn put(&self, commands: &[Command]) -> Option<u64> {
        let mut state = self.state.lock();
        self.refresh(&mut state);
        let (start, end) = (state.prod, state.prod + commands.len() as u64 + 1);
        if end - state.cons > u64::from(self.ring.entries()) {
            return None;
        }
        for (position, command) in (start..).zip(commands.iter().chain([&SYNC])) {
            self.store(position, command);
        }
        state.prod = end;
        state.batches.push(Batch { positions: start..end, outcome: Outcome::Executed });
        write(&*self.registers, Register::CmdqProd, end as u32 & self.ring.mask());
        Some(start)
    }

    /// Acknowledges global errors that are not the queue's own, and returns which were active.
    pub(crate) fn acknowledge_others(&self) -> Gerror {
        // GERRORN is written under this lock only.
        let _state = self.state.lock();
        let gerror = Gerror(read(&*self.registers, Register::Gerror));
        let gerrorn = Gerror(read(&*self.registers, Register::Gerrorn));
        let active = Gerror(gerror.0 ^ gerrorn.0).with_cmdq_err(false);
        if active.0 != 0 {
            write(&*self.registers, Register::Gerrorn, gerrorn.0 ^ active.0);
        }
        active
    }

    fn store(&self, position: u64, command: &Command) {
        let index = 2 * self.ring.index(position as u32) as usize;
        let slot = &self.region.words()[index..index + 2];
        for (to, word) in slot.iter().zip(command.encode()) {
            to.store(word.to_le(), Ordering::Release);
        }
    }

    /// Learns how far the SMMU is, and gets it going again if it stopped.
    fn refresh(&self, state: &mut State) {
        let before = state.cons;
        self.consumed(state);
        if state.cons != before || state.cons == state.prod {
            return;
        }
        let gerror = read(&*self.registers, Register::Gerror);
        let gerrorn = read(&*self.registers, Register::Gerrorn);
        if Gerror(gerror ^ gerrorn).cmdq_err() {
            self.resolve(state, Gerror(gerrorn));
        }
    }

    fn consumed(&self, state: &mut State) -> CmdqCons {
        let cons = CmdqCons(read(&*self.registers, Register::CmdqCons));
        let new = u64::from(self.ring.len(cons.rd(), state.cons as u32));
        // Further than the last command is no place for CONS to be.
        if new > 0 && state.cons + new <= state.prod {
            state.cons += new;
            state.aborts = 0;
        }
        cons
    }

    /// Deals with the error that has stopped the queue.
    fn resolve(&self, state: &mut State, gerrorn: Gerror) {
        // It stands still now: this is where the error is.
        let error = CommandError::from_code(self.consumed(state).err());
        let error = error.unwrap_or(CommandError::Ill);
        let at = state.cons;
        match error {
            CommandError::Abt if state.aborts < READS => state.aborts += 1,
            CommandError::Abt => {
                for batch in &mut state.batches {
                    batch.outcome = Outcome::Unreadable;
                }
                return;
            }
            CommandError::AtcInvSync => {
                // What comes first counts: nothing after an illegal command was asked for.
                if let Some(batch) = state.batch_at(at)
                    && matches!(batch.outcome, Outcome::Executed)
                {
                    batch.outcome = Outcome::AtcTimeout;
                }
            }
            CommandError::None | CommandError::Ill => {
                // The SMMU reads again from here on: let it find nothing to do, to the end of the batch.
                let mut end = at + 1;
                if let Some(batch) = state.batch_at(at) {
                    batch.outcome = Outcome::Illegal(at);
                    end = batch.positions.end;
                }
                (at..end).for_each(|position| self.store(position, &SYNC));
            }
        }
        let acknowledged = gerrorn.with_cmdq_err(!gerrorn.cmdq_err());
        write(&*self.registers, Register::Gerrorn, acknowledged.0);
    }
}
